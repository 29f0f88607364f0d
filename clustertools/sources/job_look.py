"""What a node shows of one job: its ranks, their stacks, what its GPUs and network ports do, kernel lines.

    look(host, LookRequest(job_id="4711", run="pretrain"))        on the node
    JobLook((NodeLook(...), NodeLook(...)), {"n3": "no route to host"})   all of its nodes, on the head

It is taken only of jobs in doubt, on each of their nodes at once (`clustertools.fleet.job_looks`), or here.
As a program (`python -m clustertools.sources.job_look`) it reads one request, a line of JSON, and prints one
look, another line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from clustertools.errors import Absent, ClustertoolsError, ConfigError, NotApplicable, Unobservable
from clustertools.host import DEFAULT_TIMEOUT_SECONDS, Completed, Host, LocalHost, PassingHost
from clustertools.model import to_data
from clustertools.sources import cgroup, infiniband, kernel, nvidia
from clustertools.sources.kernel_events import parse_host_event
from clustertools.sources.processes import Process, environ, processes, ranks, tree
from clustertools.sources.stacks import Frame, Stack, rank_set, stacks
from clustertools.text import plain

#: A node has 8 ranks, seldom 64; so many are looked into.
MOST_RANKS = 64
MOST_PROCESSES = 256
MOST_GPUS = 64
#: A node of a container platform has hundreds of interfaces.
MOST_INTERFACES = 64
MOST_KERNEL_LINES = 200
#: Of one line, and of one process's command line.
MOST_CHARACTERS = 500
#: Of one stack, innermost first.
MOST_FRAMES = 64
#: A whole look as JSON. A transport keeps lines up to a megabyte.
MOST_BYTES = 400_000
#: py-spy needs well under a second; a process that it cannot read within this will not be read.
STACK_SECONDS = 5.0
#: What the parts of a look have left of its time to say that theirs is over.
REST_SECONDS = 1.0
#: Port counters count words of four octets (InfiniBand Architecture, PortXmitData and PortRcvData).
_OCTETS = 4


@dataclass(frozen=True, slots=True)
class LookRequest:
    """What to look at. The processes are those of the Slurm job `job_id` ("4711", "4711_3", "4711+1"), or the
    trees below `roots`. `kernel_since`: no kernel lines before this time (epoch seconds). What is not seen
    within `seconds` is unseen.
    """

    job_id: str = ""
    run: str = ""
    roots: tuple[int, ...] = ()
    stacks: bool = True
    kernel_since: float = 0.0
    seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class GpuActivity:
    """What one GPU does now. None: not told. Utilisation says nothing of work (it is 100 % in a spinning
    collective); power and memory traffic do.
    """

    index: int
    pci: str
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: float | None = None
    temperature_celsius: float | None = None
    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeLook:
    """One node at one moment. `ranks` is rank -> pid there, `stacks` those of the ranks (main threads); where
    no process names its rank, those of the topmost Python processes, with the rank -1.

    `port_bytes` counts what went in and out of each RDMA port and network interface since it came up, by
    `mlx5_0/1 in`, `eth0 out`. A line of `kernel` begins with its time (`2026-11-21T19:30:12Z NVRM: Xid ...`).
    `unseen` names each part that could not be looked at, and why.
    """

    node: str
    time: float
    boot_id: str = ""
    ranks: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    stacks: tuple[Stack, ...] = ()
    gpus: tuple[GpuActivity, ...] = ()
    port_bytes: Mapping[str, int] = field(default_factory=dict)
    kernel: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLook:
    """All nodes of a job at one moment; `unseen` is node -> why nobody could look there."""

    nodes: tuple[NodeLook, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LookOrder:
    """A look at all nodes of one job. `how` is the way to them (`schedulers.RunSpec.look`)."""

    request: LookRequest
    nodes: tuple[str, ...] = ()
    how: Literal["auto", "ssh", "srun", "none"] = "auto"


class Looker(Protocol):
    """The way to the nodes of jobs. A node that does not answer is in `unseen`, never an exception."""

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        """Look at all of them side by side, within a deadline for all together: run -> what was seen."""
        ...


class Hurried(PassingHost):
    """A host whose commands must all end before one moment."""

    def __init__(self, host: Host, until: float) -> None:
        super().__init__(host)
        self._until = until

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        left = self._until - time.monotonic()
        if left <= 0:
            raise Unobservable("the time for the look was over")
        return self.host.run(*argv, timeout_seconds=min(timeout_seconds, left), stdin=stdin)


#: A part of a look: gives fields of NodeLook, and tells what it could not see.
_Part = Callable[[Host, LookRequest, Callable[[str], None]], Mapping[str, Any]]


def look(host: Host, request: LookRequest, *, without: Collection[int] = ()) -> NodeLook:
    """Look at the job here. `without` are processes that are not the job's although they look like it.

    Never raises for what cannot be seen, and takes at most `request.seconds`: a part that hangs (reading the
    command line of a process that sits in the driver may) is unseen, the others count. Raises ConfigError for
    a request that names no job.
    """
    if not request.job_id and not request.roots:
        raise ConfigError("the look names neither a job nor processes")
    if request.job_id:
        _job_words(request.job_id)
    began = time.monotonic()
    hurried = Hurried(host, began + max(0.1, request.seconds - REST_SECONDS))

    def of_the_job(host: Host, request: LookRequest, unseen: Callable[[str], None]) -> Mapping[str, Any]:
        return _of_the_job(host, request, unseen, without)

    parts: Mapping[str, _Part] = {
        "processes": of_the_job, "GPUs": _gpus, "network ports": _ports, "kernel log": _kernel,
    }  # fmt: skip
    seen, unseen = _side_by_side(parts, hurried, request, began + request.seconds)
    try:
        boot_id = host.boot_id
    except Unobservable as exc:
        boot_id = ""
        unseen.append(f"boot: {exc}")
    told = tuple(plain(text, MOST_CHARACTERS) for text in unseen)
    return fitted(NodeLook(host.name, host.now(), boot_id, **seen, unseen=told))


def _side_by_side(
    parts: Mapping[str, _Part], host: Host, request: LookRequest, until: float
) -> tuple[dict[str, Any], list[str]]:
    """What all parts saw until then, and what they did not. One that hangs is left behind."""
    answers: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    notes: dict[str, list[str]] = {name: [] for name in parts}

    def work(name: str, part: _Part) -> None:
        try:
            answers[name] = part(host, request, notes[name].append)
        except ClustertoolsError as exc:
            failed[name] = str(exc)
        except Exception as exc:  # noqa: BLE001 - whatever breaks here, the other parts count
            failed[name] = f"the look itself failed: {type(exc).__name__}: {exc}"

    threads = {
        name: threading.Thread(target=work, args=(name, part), daemon=True) for name, part in parts.items()
    }
    for thread in threads.values():
        thread.start()
    seen: dict[str, Any] = {}
    unseen: list[str] = []
    for name, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        if name in answers:
            seen |= answers[name]
            unseen += [f"{name}: {note}" for note in notes[name]]
        else:
            unseen.append(f"{name}: {failed.get(name) or f'no answer within {request.seconds:g} s'}")
    return seen, unseen


# the job's processes


def _of_the_job(
    host: Host, request: LookRequest, unseen: Callable[[str], None], without: Collection[int]
) -> Mapping[str, Any]:
    pids = job_pids(host, request, unseen, without=without)
    inside = processes(host, pids)
    by_rank: Mapping[int, int] = {}
    try:
        by_rank = ranks(host, inside, inside)
    except Unobservable as exc:
        unseen(str(exc))
    if len(by_rank) > MOST_RANKS:
        unseen(f"{len(by_rank)} ranks are here, {MOST_RANKS} of them were looked at")
        by_rank = dict(sorted(by_rank.items())[:MOST_RANKS])
    found: tuple[Stack, ...] = ()
    if request.stacks and inside:
        found = _stacks(host, by_rank, inside, unseen)
    first = set(by_rank.values())
    told = sorted(inside.values(), key=lambda one: (one.pid not in first, one.pid))
    if len(told) > MOST_PROCESSES:
        unseen(f"the job has {len(told)} of them here, {MOST_PROCESSES} are told")
    return {
        "ranks": {str(rank): pid for rank, pid in sorted(by_rank.items())},
        "processes": tuple(_short(one) for one in told[:MOST_PROCESSES]),
        "stacks": found,
    }


def job_pids(
    host: Host,
    request: LookRequest,
    unseen: Callable[[str], None],
    *,
    without: Collection[int] = (),
) -> list[int]:
    """The processes of the job here, parents before children.

    Those of a Slurm job are found by their cgroup, by their environment, and by what is above them: a program
    that writes its title over its environment has only these. Slurm's own daemons are none of them.
    """
    seen = processes(host, brief=True)
    roots = set(request.roots)
    if request.job_id:
        roots |= _marked(host, request.job_id, seen, unseen) - set(without)
    return tree(seen, sorted(roots))


def _marked(host: Host, job_id: str, seen: Mapping[int, Process], unseen: Callable[[str], None]) -> set[int]:
    """The processes that bear the mark of the job."""
    number, kind, part = _job_words(job_id)
    numbers = set() if kind else {number}
    found: set[int] = set()
    in_job: dict[int, str] = {}
    denied = 0
    for pid, one in seen.items():
        if one.is_kernel or one.command == "slurmstepd":
            continue
        in_job[pid] = _cgroup_job(host, pid)
        try:
            variables = environ(host, pid)
        except Absent:
            continue
        except Unobservable:
            denied += 1
            continue
        if _is_of(variables, number, kind, part):
            found.add(pid)
            # a task of an array, and a part of a heterogeneous job, is a job with a number of its own
            numbers.add(variables.get("SLURM_JOB_ID", number))
    found |= {pid for pid, job in in_job.items() if job and job in numbers}
    if not found and denied:
        unseen(
            f"no process of job {job_id} was found, but the environment of {denied} processes may not be "
            "read; look as root or as the job's user"
        )
    return found


def _job_words(job_id: str) -> tuple[str, str, str]:
    # 4711, one task of an array 4711_3, one part of a heterogeneous job 4711+1
    match = re.fullmatch(r"([0-9]{1,10})(?:([_+])([0-9]{1,10}))?", job_id)
    if match is None:
        raise ConfigError(f"job {plain(job_id, 40)!r}: expected a job's number, as squeue shows it")
    return match[1], match[2] or "", match[3] or ""


def _is_of(variables: Mapping[str, str], number: str, kind: str, part: str) -> bool:
    """By the variables that Slurm sets (sbatch(1), OUTPUT ENVIRONMENT VARIABLES)."""
    if kind == "_":
        return variables.get("SLURM_ARRAY_JOB_ID") == number and variables.get("SLURM_ARRAY_TASK_ID") == part
    if kind == "+":
        return number in (variables.get("SLURM_HET_JOB_ID"), variables.get("SLURM_JOB_ID"))
    return number in (variables.get("SLURM_JOB_ID"), variables.get("SLURM_JOBID"))


def _cgroup_job(host: Host, pid: int) -> str:
    try:
        return cgroup.slurm_job(host.read(f"/proc/{pid}/cgroup"))
    except Unobservable:
        return ""  # it ended in between, or this kernel has none


def _short(one: Process) -> Process:
    """Without the rest of a command line that is a book."""
    if one.argv is None or sum(map(len, one.argv)) <= MOST_CHARACTERS:
        return one
    words, left = [], MOST_CHARACTERS
    for word in one.argv:
        words.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    return dataclasses.replace(one, argv=(*words, "…"))


def _stacks(
    host: Host, by_rank: Mapping[int, int], inside: Mapping[int, Process], unseen: Callable[[str], None]
) -> tuple[Stack, ...]:
    wanted = by_rank or dict(enumerate(_topmost_python(inside)[:8]))
    if not wanted:
        return ()
    try:
        report = stacks(host, wanted, timeout_seconds=STACK_SECONDS)
    except Unobservable as exc:
        unseen(str(exc))
        return ()
    reasons: dict[str, list[int]] = {}
    for rank, why in report.unseen.items():
        reasons.setdefault(why, []).append(rank)
    for why, numbers in reasons.items():
        unseen(f"stack of rank {rank_set(numbers)}: {why}")
    return tuple(
        dataclasses.replace(s, frames=_innermost(s.frames), rank=s.rank if by_rank else -1)
        for s in report.stacks
    )


def _innermost(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The first of them, and how many more there are: a recursion that is deeper now stands elsewhere."""
    if len(frames) <= MOST_FRAMES:
        return frames
    return (*frames[: MOST_FRAMES - 1], Frame(f"{len(frames) - MOST_FRAMES + 1} more frames", "...", 0))


def _topmost_python(inside: Mapping[int, Process]) -> list[int]:
    """Python processes without one above them."""
    python = {pid for pid, one in inside.items() if one.is_python}

    def has_above(pid: int) -> bool:
        above = inside[pid].ppid
        while above in inside and above != pid:
            if above in python:
                return True
            pid, above = above, inside[above].ppid
        return False

    return sorted(pid for pid in python if not has_above(pid))


# the node


def _gpus(host: Host, request: LookRequest, unseen: Callable[[str], None]) -> Mapping[str, Any]:
    try:
        listed = nvidia.gpus(host)
    except NotApplicable:
        return {}
    found = []
    for gpu in listed[:MOST_GPUS]:
        if gpu.error:
            unseen(f"GPU {gpu.index} ({gpu.part}): {gpu.error}")
        found.append(
            GpuActivity(
                gpu.index, gpu.pci, gpu.power_watts, gpu.power_limit_watts, gpu.sm_clock_mhz,
                gpu.temperature_celsius, _ratio(gpu.gpu_utilisation_percent),
                _ratio(gpu.memory_utilisation_percent), gpu.throttle_reasons or (),
            )
        )  # fmt: skip
    return {"gpus": tuple(found)}


def _ratio(percent: int | None) -> float | None:
    return None if percent is None else percent / 100


def _ports(host: Host, request: LookRequest, unseen: Callable[[str], None]) -> Mapping[str, Any]:
    directions = {"port_rcv_data": "in", "port_xmit_data": "out"}
    of = [port for _, port in infiniband.ports(infiniband.devices(host, unseen))]
    counted = {}
    for port, values in infiniband.counters(host, of, directions, unseen).items():
        for name, value in values.items():
            counted[f"{port.part} {directions[name]}"] = value * _OCTETS
    return {"port_bytes": {**counted, **_interfaces(host.read("/proc/net/dev"))}}


def _interfaces(text: str) -> dict[str, int]:
    """Bytes in and out of each interface but the loopback; of many, those with the most (proc_net(5))."""
    #   eth0: 1296    13    0    0    0     0          0         0     1296      13    0    0 ...
    rows = re.findall(
        r"^\s*([^\s:]{1,40}):\s*(\d{1,20})(?:\s+\d{1,20}){7}\s+(\d{1,20})\b", text, re.MULTILINE
    )
    kept = sorted(
        ((int(received) + int(sent), name, int(received), int(sent)) for name, received, sent in rows),
        reverse=True,
    )
    found = {}
    for _, name, received, sent in [row for row in kept if row[1] != "lo"][:MOST_INTERFACES]:
        found[f"{name} in"], found[f"{name} out"] = received, sent
    return found


def _kernel(host: Host, request: LookRequest, unseen: Callable[[str], None]) -> Mapping[str, Any]:
    log = kernel.read_kernel_log(host)
    known = [
        f"{_clock(line.time)} {plain(line.text, MOST_CHARACTERS)}"
        for line in log.lines
        if line.time >= request.kernel_since and is_known(line.text)
    ]
    if len(known) > MOST_KERNEL_LINES:
        unseen(f"{len(known)} lines, the newest {MOST_KERNEL_LINES} are told")
    return {"kernel": tuple(known[-MOST_KERNEL_LINES:])}


def is_known(text: str) -> bool:
    """Whether a kernel line says that something is wrong: Xid, SXid, out of memory, hung task ..."""
    return bool(
        kernel.parse_xid(text) or kernel.parse_sxid(text) or parse_host_event(text) or kernel.almost_xid(text)
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# how it travels


def fitted(seen: NodeLook) -> NodeLook:
    """`seen`, with less of it where it would be more than MOST_BYTES: the least telling goes first."""
    first = {*seen.ranks.values()}

    def without_others(one: NodeLook) -> NodeLook:
        return dataclasses.replace(one, processes=tuple(p for p in one.processes if p.pid in first))

    def with_frames(count: int) -> Callable[[NodeLook], NodeLook]:
        return lambda one: dataclasses.replace(
            one, stacks=tuple(dataclasses.replace(s, frames=s.frames[:count]) for s in one.stacks)
        )

    def with_lines(one: NodeLook) -> NodeLook:
        return dataclasses.replace(one, kernel=one.kernel[-50:], unseen=one.unseen[:50])

    steps = (without_others, with_frames(24), with_lines, with_frames(8))
    for step in steps:
        size = len(text_of(seen))
        if size <= MOST_BYTES:
            return seen
        seen = step(seen)
        said = f"the look was {size} bytes and was cut"
        seen = dataclasses.replace(seen, unseen=tuple(dict.fromkeys((*seen.unseen, said))))
    return seen


def text_of(seen: NodeLook) -> str:
    """A look as the one line that a node prints."""
    return json.dumps({"schema": 1, "kind": "look", **to_data(seen)}, allow_nan=False)


def request_text(request: LookRequest) -> str:
    """A request as the one line that a node reads."""
    return json.dumps({"schema": 1, **to_data(request)})


def read_request(text: str) -> LookRequest:
    """The inverse of `request_text`. Raises ConfigError for anything else."""
    try:
        data = json.loads(text)
        kinds: Mapping[str, Any] = {
            "job_id": str, "run": str, "stacks": bool, "kernel_since": (int, float), "seconds": (int, float),
        }  # fmt: skip
        if data.pop("schema") != 1 or not all(isinstance(data[key], kind) for key, kind in kinds.items()):
            raise TypeError("a value of another type")
        if not all(type(pid) is int for pid in data["roots"]):
            raise TypeError("a process that is no number")
        return LookRequest(**{**data, "roots": tuple(data["roots"]), "seconds": min(data["seconds"], 300.0)})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise ConfigError(f"the request for a look cannot be read: {plain(str(exc), 200)}") from exc


def own_processes(host: Host) -> set[int]:
    """This process, those above it and those below it: inside a job they bear the job's mark as well."""
    seen = processes(host, brief=True)
    mine, pid = set(tree(seen, [os.getpid()])), os.getpid()
    while pid in seen and seen[pid].ppid not in mine:
        pid = seen[pid].ppid
        mine.add(pid)
    return mine


def main() -> int:
    """One request on standard input, one look on standard output."""
    host = LocalHost()
    try:
        request = read_request(sys.stdin.readline(1 << 20))
        seen = look(host, request, without=own_processes(host))
    except ClustertoolsError as exc:
        print(f"clustertools: {exc}", file=sys.stderr)
        return 3
    print(text_of(seen), flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # a part that hangs in the kernel must not keep us from ending
    os._exit(code)
