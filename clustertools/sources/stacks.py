"""Where processes are: the Python stack of each rank by py-spy, the kernel's where there is no Python.

    report = stacks(host, ranks(host, job.pids))
    print(render(fold(report.stacks)))

py-spy is run by a child of ours (`python -m clustertools.sources.stacks`), which finds it beside this
interpreter, on PATH, or beside the Python of the process. The JSON is that of `py-spy dump --json` 0.4
(benfred/py-spy, src/dump.rs).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import DEFAULT_PATH, PYTHON, Completed, Host
from clustertools.sources.processes import Process, processes

#: So many at once: a node has 8 ranks, and one that hangs must not hold up the others.
_AT_ONCE = 8
_TRY = (
    "install py-spy beside clustertools (pip install 'gpu-clustertools[hang]'), and run as root, or as the "
    "job's user with kernel.yama.ptrace_scope = 0"
)
#: States that single a rank out even when its stack looks like the others'.
_ODD_STATES = {
    "T": "stopped by a signal, state T",
    "t": "held by a debugger, state t",
    "D": "waits in the kernel, state D",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One call. `line` is 0 for native and kernel frames; `file` is `kernel` for the latter."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        place = self.file.rsplit("/", 1)[-1]
        return f"{self.function} ({place}:{self.line})" if self.line else f"{self.function} ({place})"


@dataclass(frozen=True, slots=True)
class Stack:
    """The main thread of one rank, innermost frame first. `state` is the kernel's letter (R, S, D, T...).

    `wchan` is the kernel function that it sleeps in, where the kernel tells.
    """

    pid: int
    rank: int
    thread: str
    frames: tuple[Frame, ...]
    state: str
    wchan: str = ""


@dataclass(frozen=True, slots=True)
class StackReport:
    """The stacks that were seen, by rank, and for the other ranks the reason why not."""

    stacks: tuple[Stack, ...]
    unseen: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks with the same stack in the same kind of state. `state` is empty unless it is an odd one."""

    ranks: tuple[int, ...]
    frames: tuple[Frame, ...]
    count: int
    state: str = ""
    wchan: str = ""


class _NotPython(Exception):
    """py-spy found no interpreter in the process."""


def py_spy_path() -> str:
    """The py-spy beside this interpreter, else the one on PATH. Raises Absent when there is none."""
    beside = Path(sys.executable).parent / "py-spy"
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which("py-spy")
    if found is None:
        raise Absent("py-spy is not installed")
    return found


def stacks(
    host: Host, pids_by_rank: Mapping[int, int], *, native: bool = False, timeout_seconds: float = 10
) -> StackReport:
    """The stack of every rank that can be seen.

    Without `native` the process is not stopped for the look. With it, C++ and CUDA frames show too, and the
    process is held for about two seconds; one that is stopped is looked at without, as py-spy cannot hold it.
    Raises Unobservable when there are ranks and none could be seen, with what to try.
    """
    seen = processes(host, sorted(set(pids_by_rank.values())))

    def look(item: tuple[int, int]) -> Stack | str:
        rank, pid = item
        one = seen.get(pid)
        if one is None:
            return f"process {pid} is gone"
        if one.state in "ZX":
            return f"process {pid} is dead (state {one.state}); its parent has not collected it"
        return _stack(host, rank, one, native, timeout_seconds)

    items = sorted(pids_by_rank.items())
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        answers = list(pool.map(look, items))
    found = tuple(answer for answer in answers if isinstance(answer, Stack))
    unseen = {rank: a for (rank, _), a in zip(items, answers, strict=True) if isinstance(a, str)}
    if unseen and not found:
        raise Unobservable(f"no stack could be seen ({'; '.join(sorted(set(unseen.values())))}); {_TRY}")
    return StackReport(found, unseen)


def _stack(host: Host, rank: int, one: Process, native: bool, timeout_seconds: float) -> Stack | str:
    """The rank's stack from py-spy, else from the kernel, else why there is none."""
    native = native and not one.is_stopped
    wchan = one.wchan if one.wchan and one.wchan != "0" else ""
    try:
        try:
            thread, frames = _dump(host, one.pid, native, timeout_seconds)
        except Unparsable:
            # the process ran on while py-spy read it, or could not be held: the second look mostly succeeds
            thread, frames = _dump(host, one.pid, False, timeout_seconds)
        if frames:
            return Stack(one.pid, rank, thread, frames, one.state, wchan)
        reason = f"process {one.pid} has no Python frames (it is starting or ending)"
    except (Unobservable, _NotPython) as exc:
        reason = str(exc)
    frames = _kernel_frames(host, one.pid, wchan)
    return Stack(one.pid, rank, "kernel", frames, one.state, wchan) if frames else reason


def _dump(host: Host, pid: int, native: bool, timeout_seconds: float) -> tuple[str, tuple[Frame, ...]]:
    how = "--native" if native else "--nonblocking"
    done = host.run(
        PYTHON, "-m", "clustertools.sources.stacks", "--json", how, "--pid", str(pid),
        timeout_seconds=timeout_seconds,
    )  # fmt: skip
    if done.returncode != 0:
        raise _complaint(done, pid)
    return parse_dump(done.stdout, pid)


def _complaint(done: Completed, pid: int) -> Exception:
    """py-spy's error text as one of ours; the texts are those of py-spy 0.4.3."""
    text = done.stderr.strip() or done.stdout.strip() or "it said nothing"
    # Permission Denied: Try running again with elevated permissions by going 'sudo env "PATH=$PATH" !!'
    if re.search(r"permission denied|operation not permitted", text, re.IGNORECASE):
        return Unobservable("py-spy is not allowed to look into the process")
    if "py-spy is not installed" in text:
        return Absent("py-spy is not installed")
    # Error: Failed to find python version from target process
    if "Failed to find python version" in text:
        return _NotPython(f"process {pid} is not Python")
    # Error: Failed to get process executable name. Check that the process is running.
    if "Check that the process is running" in text:
        return Unobservable(f"process {pid} is gone, or a thread of the kernel")
    causes = re.findall(r"^\s*(?:Error: |\d+: )(.{1,200})$", text.split("Stack backtrace")[0], re.MULTILINE)
    return Unparsable(f"py-spy could not read process {pid}", ": ".join(causes[:3]) or text.splitlines()[0])


def parse_dump(text: str, pid: int) -> tuple[str, tuple[Frame, ...]]:
    """Name and frames of the main thread in what `py-spy dump --json` printed.

    No thread at all gives no frames. Raises Unparsable for anything but that form.
    """
    try:
        data = json.loads(text)
        if not isinstance(data, list):
            raise TypeError("not a list")
        threads = [_thread(one) for one in data]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Unparsable(f"py-spy printed an unknown form for process {pid}", text) from exc
    if not threads:
        return "", ()
    # MainThread by Python's own name; by the kernel's id when a site renamed it; else the first
    named = [t for t in threads if t[0] == "MainThread"] or [t for t in threads if t[1] == pid]
    name, _, frames = (named or threads)[0]
    return name, frames


def _thread(data: Mapping[str, Any]) -> tuple[str, int, tuple[Frame, ...]]:
    frames = []
    for frame in data["frames"]:
        name, file, line = frame["name"], frame["filename"], frame["line"]
        if not (isinstance(name, str) and isinstance(file, str) and type(line) is int):
            raise TypeError("a frame without name, file and line")
        frames.append(Frame(name, file, max(0, line)))
    name, number = data.get("thread_name"), data.get("os_thread_id")
    return name if isinstance(name, str) else "", number if type(number) is int else 0, tuple(frames)


def _kernel_frames(host: Host, pid: int, wchan: str) -> tuple[Frame, ...]:
    """The kernel's side of the stack: /proc/PID/stack (root only), else the one function in wchan."""
    try:
        text = host.read(f"/proc/{pid}/stack")
    except Unobservable:
        text = ""
    # [<0>] futex_wait_queue+0x63/0x90
    names = re.findall(
        r"^\[<[0-9a-fx]{1,20}>\] (\S{1,200}?)(?:\+0x\S{1,40})?(?: \[\w+\])?$", text, re.MULTILINE
    )
    names = names or ([wchan] if wchan else [])
    return tuple(Frame(name, "kernel", 0) for name in names)


def rank_set(ranks: Iterable[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2,5`."""
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def fold(stacks: Iterable[Stack]) -> list[Group]:
    """Ranks with identical stacks together; the odd ones first.

    Odd is a rank that is stopped or waits in the kernel, whatever its stack; after those, the fewer ranks
    share a stack, the odder it is: in a hang most ranks wait in a collective for the few that are elsewhere.
    """
    together: dict[tuple[tuple[Frame, ...], str, str], list[int]] = {}
    for stack in stacks:
        state = stack.state if stack.state in _ODD_STATES else ""
        wchan = stack.wchan if state == "D" else ""
        together.setdefault((stack.frames, state, wchan), []).append(stack.rank)
    groups = [
        Group(tuple(sorted(ranks)), frames, len(ranks), state, wchan)
        for (frames, state, wchan), ranks in together.items()
    ]
    return sorted(groups, key=lambda g: (not g.state, g.count, g.ranks))


#: Where a rank is that waits for the others: torch.distributed's calls, and the backward pass, in which DDP
#: and FSDP wait for theirs.
_WAITING = frozenset(
    "all_reduce all_gather all_gather_into_tensor reduce_scatter reduce_scatter_tensor broadcast reduce "
    "all_to_all all_to_all_single barrier monitored_barrier send recv isend irecv wait synchronize "
    "_engine_run_backward backward broadcast_object_list all_gather_object _sync_buffers "
    "_sync_module_states _verify_param_shape_across_processes".split()
)


def odd_ranks(stacks: Iterable[Stack]) -> dict[int, str]:
    """The ranks that others seem to wait for, with what they do; none when nobody stands out.

    Those stopped or waiting in the kernel; else those that are in no collective while others are; else those
    whose stack fewer share than that of the most.
    """
    groups = fold(stacks)
    odd = [group for group in groups if group.state]
    if not odd:
        waits = [g for g in groups if any(f.function in _WAITING for f in g.frames)]
        odd = [g for g in groups if g not in waits] if waits else []
    if not odd:
        most = max((group.count for group in groups), default=0)
        odd = [group for group in groups if group.count < most]
    if sum(g.count for g in odd) * 2 > sum(g.count for g in groups):
        return {}  # most of them: that tells nothing of anyone
    told = {g.ranks: render([dataclasses.replace(g, ranks=())], depth=2).partition(" ")[2] for g in odd}
    return {rank: text for ranks, text in told.items() for rank in ranks}


def same(before: Iterable[Stack], after: Iterable[Stack]) -> bool:
    """Whether every rank stands at the same function, file and line in both samples.

    Samples of different ranks, of other processes, or of none are never the same.
    """
    first = {stack.rank: (stack.pid, stack.frames) for stack in before}
    second = {stack.rank: (stack.pid, stack.frames) for stack in after}
    return bool(first) and first == second


def render(groups: Iterable[Group], unseen: Mapping[int, str] | None = None, *, depth: int = 10) -> str:
    """One line a group, innermost frame first, at most `depth` frames; then the ranks not seen, by reason.

    rank 1 (stopped by a signal, state T): load_batch (data.py:41) < main (train.py:60)
    ranks 0,2-7: all_reduce (distributed_c10d.py:2810) < step (train.py:41) < main (train.py:60)
    """
    lines = []
    for group in groups:
        state = _ODD_STATES.get(group.state, "") + (f", in {group.wchan}" if group.wchan else "")
        frames = [str(frame) for frame in group.frames[:depth]]
        if len(group.frames) > depth:
            frames.append(f"{len(group.frames) - depth} more")
        lines.append(f"{_title(group.ranks)}{f' ({state})' if state else ''}: {' < '.join(frames)}")
    reasons: dict[str, list[int]] = {}
    for rank, reason in (unseen or {}).items():
        reasons.setdefault(reason, []).append(rank)
    lines += [f"{_title(ranks)}: not seen: {reason}" for reason, ranks in reasons.items()]
    return "\n".join(lines)


def _title(ranks: Iterable[int]) -> str:
    numbers = rank_set(ranks)
    return f"rank {numbers}" if numbers.isdigit() else f"ranks {numbers}"


def _beside_its_python(pid: int) -> str:
    """The py-spy in the folder of the process's own Python; we become its user before it is run.

    Whoever owns the process may have put it there, so root runs it as that user; as root only where nobody
    else can change it: a container may have given a stranger's process the number 0. Raises Absent.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        first = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError as exc:
        raise Absent("py-spy is not installed") from exc
    # Uid:	1000	1000	1000	1000        real, effective, saved, of the file system
    users, groups = (
        {int(n) for n in re.findall(r"\d+", m[1])}
        for name in ("Uid", "Gid")
        for m in [re.search(rf"^{name}:([\t\d]+)$", status, re.MULTILINE)]
        if m
    )
    folders = [os.path.dirname(first)] + [
        os.path.join(os.fsdecode(one.partition(b"=")[2]), "bin")
        for one in environment
        if one.startswith((b"VIRTUAL_ENV=", b"CONDA_PREFIX="))
    ]
    found = next((p for f in folders if os.path.isabs(f) and os.access(p := f"{f}/py-spy", os.X_OK)), "")
    mine = os.geteuid()
    if not found or len(users) != 1 or len(groups) != 1 or (mine and users != {mine}):
        raise Absent("py-spy is not installed")
    if users == {0}:
        found = os.path.realpath(found)
        if not _is_roots_alone(found):
            raise Absent(f"py-spy is not installed; {found} could be changed by others than root")
    elif mine == 0:
        os.setgroups([])
        os.setresgid(*groups, *groups, *groups)
        os.setresuid(*users, *users, *users)
    return found


def _is_roots_alone(path: str) -> bool:
    """Whether only root can change what is there, or what it is below."""
    while True:
        told = os.stat(path)
        # in a folder like /tmp (sticky) others cannot put theirs in the place of ours
        if told.st_uid != 0 or (told.st_mode & 0o022 and not told.st_mode & 0o1000):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def main(arguments: list[str]) -> NoReturn:
    """Become `py-spy dump ARGUMENTS`. Exit code 127 when there is no py-spy."""
    environment = dict(os.environ)
    try:
        try:
            path = py_spy_path()
        except Absent:
            if "--pid" not in arguments:
                raise
            path = _beside_its_python(int(arguments[arguments.index("--pid") + 1]))
            environment = {"PATH": DEFAULT_PATH, "LC_ALL": "C"}  # it may be a stranger's, and ours has tokens
    except Absent as exc:
        print(exc, file=sys.stderr)
        sys.exit(127)
    os.execve(path, [path, "dump", *arguments], environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
