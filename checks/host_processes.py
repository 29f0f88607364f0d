"""Processes that are stuck or dead, and the kernel's tables of processes and files filling up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.processes import Process, processes

#: Whom a stuck task waits for, by the kernel function or the frame of its stack that it sleeps in.
_WAITS = (
    ("the NVIDIA driver", r"\[nvidia|^_?nv_|\bnvidia_|\buvm_|\brm_|os_acquire_(rwlock|mutex|semaphore)"),
    ("NFS", r"\[nfs|\[sunrpc|^nfs|^rpc_wait|\brpc_wait_bit"),
    ("Lustre", r"\[lustre|\[ptlrpc|\[obdclass|\[osc\]|\[lov\]|^ll_|^ptlrpc_|^cl_sync_io|^osc_|^ldlm_"),
    ("GPFS", r"\[mmfs|^cxiWait|^kxWait"),
    ("FUSE", r"\[fuse|^fuse_|request_wait_answer"),
    ("the InfiniBand adapter", r"\[mlx5|\[ib_|^mlx5_|^ib_uverbs|^uverbs_"),
    ("a disk", r"^io_schedule|^folio_wait|^wait_on_page|^jbd2_|^xfs_|^blk_|^submit_bio_wait"),
)
#: Programs of NVIDIA that do nothing but talk to the driver: gpud (leptonai/gpud) judges those by name.
_NVIDIA_PROGRAMS = ("nvidia-smi", "nv-hostengine", "nvidia-persiste", "nv-fabricmanage", "nvidia-modprobe")


@dataclass(frozen=True)
class Limits:
    # gcm (Meta) and gpud: 300 s in state D without a pause
    stuck_seconds: float = 300.0
    # gpud warns at 1000 zombies and alarms at 2000; one or two wait for their parent on every node
    zombies_warning: int = 1000
    # gcm warns of any zombie of 300 s; containers without an init keep some for ever, so here it takes many
    old_zombies_warning: int = 100
    old_zombie_seconds: float = 300.0
    # gpud: 80 % and 95 % of the limit, for open files and for tasks
    table_warning_ratio: float = 0.80
    table_critical_ratio: float = 0.95
    # NHC (check_ps_kswapd) looks at the same; own choice: a reclaimer that rests a tenth of the time is busy
    kswapd_ratio: float = 0.90


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        "DriverTaskStuck": "a process hangs in the NVIDIA driver and cannot be killed",
        "TaskStuck": "a process hangs in the kernel (state D) and cannot be killed",
        "ZombieProcesses": "processes that ended are not collected by their parents",
        "TaskTableFull": "hardly any process or thread can be started any more",
        "FileTableFull": "hardly any file can be opened any more, by anybody",
        "KswapdBusy": "the kernel does nothing but look for free memory",
    },
)
def host_processes(ctx: Context) -> Iterator[Finding | Reading]:
    """Tasks in uninterruptible sleep over several looks, zombies, tasks and open files against their limits.

    A task is stuck when it is in state D at every look for `stuck_seconds` and was never scheduled in
    between (its count of context switches stands still), so busy disks are no finding. That takes memory:
    the watchdog's, or `check --remember`.
    """
    seen = processes(ctx.host, brief=True)
    yield ctx.reading("processes_total", len(seen))
    yield from _stuck(ctx, seen)
    yield from _zombies(ctx, seen)
    yield from _tables(ctx)
    yield from _kswapd(ctx, seen)


def _stuck(ctx: Context, seen: Mapping[int, Process]) -> Iterator[Finding | Reading]:
    waiting = [one for one in seen.values() if one.state == "D"]
    # a job that was killed while one of its threads hangs: the process shows as a zombie that has threads
    waiting += [one for one in seen.values() if one.state == "Z" and one.threads > 1]
    yield ctx.reading("processes_blocked_total", len(waiting))
    before = ctx.past.get("blocked") or {}
    now, kept = ctx.host.now(), {}
    same_boot = before.get("boot_id") == ctx.host.boot_id
    old: Mapping[str, Any] = before.get("tasks", {}) if same_boot else {}
    for one in waiting:
        key = f"{one.pid}:{one.start_ticks}"
        switches = _switches(ctx, one)
        if switches is None:
            continue
        then = old.get(key, {})
        since = then["since"] if then.get("switches") == switches else now
        kept[key] = {"since": since, "switches": switches}
        lasted = now - since
        if lasted < ctx.limits.stuck_seconds:
            continue
        if one.is_kernel:
            # some drivers' threads sleep in state D when they have nothing to do
            ctx.note(f"the kernel thread {one.command} has not run for {lasted:.0f} s")
            continue
        yield _stuck_finding(ctx, one, lasted)
    ctx.remember["blocked"] = {"boot_id": ctx.host.boot_id, "tasks": kept}


def _stuck_finding(ctx: Context, one: Process, lasted: float) -> Finding:
    where = _where(ctx, one.pid)
    whom = next((name for name, form in _WAITS if any(re.search(form, line) for line in where)), "")
    if not whom and one.command in _NVIDIA_PROGRAMS:
        whom = "the NVIDIA driver"
    text = f"{one.command} (pid {one.pid}) hangs in the kernel for {lasted:.0f} s"
    text += f", waiting for {whom}" if whom else ""
    text += f" (limit {ctx.limits.stuck_seconds:.0f} s)"
    part = f"pid@{one.pid}"
    if whom == "the NVIDIA driver":
        return ctx.critical("DriverTaskStuck", part, text, evidence=where, remedy=Remedy.REBOOT_NODE)
    return ctx.warning("TaskStuck", part, text, evidence=where, remedy=Remedy.INSPECT)


def _switches(ctx: Context, one: Process) -> int | None:
    """How often its threads in state D were taken off a processor; None when none of them is in it."""
    total, seen = 0, False
    paths = [f"/proc/{one.pid}/status"]
    if one.state == "Z":
        paths = ctx.host.glob(f"/proc/{one.pid}/task/[0-9]*/status")
    for path in paths:
        try:
            text = ctx.host.read(path)
        except Unobservable:
            # it ended, or may not be read
            continue
        counts = re.findall(r"^(?:non)?voluntary_ctxt_switches:\t(\d{1,18})$", text, re.MULTILINE)
        # State:	D (disk sleep)
        if len(counts) == 2 and re.search(r"^State:\tD", text, re.MULTILINE):
            total, seen = total + sum(map(int, counts)), True
    return total if seen else None


def _where(ctx: Context, pid: int) -> tuple[str, ...]:
    """Where in the kernel it sleeps: its function, and as root the stack above it."""
    lines: list[str] = []
    for name in ("wchan", "stack"):
        try:
            text = ctx.host.read(f"/proc/{pid}/{name}", 0, 4096)
        except Unobservable:
            continue
        # [<0>] uvm_api_unregister_gpu+0x1c/0x60 [nvidia_uvm]
        found = [re.sub(r"^\[<[0-9a-fx]+>\] ", "", line.strip())[:120] for line in text.splitlines()[:12]]
        lines += [line for line in found if line and line != "0"]
    return tuple(dict.fromkeys(lines))


def _zombies(ctx: Context, seen: Mapping[int, Process]) -> Iterator[Finding | Reading]:
    dead = [one for one in seen.values() if one.state == "Z"]
    yield ctx.reading("processes_zombie_total", len(dead))
    now = ctx.host.now()
    before = ctx.past.get("zombies") or {}
    since: Mapping[str, float] = before.get("since", {})
    first = {f"{z.pid}:{z.start_ticks}": since.get(f"{z.pid}:{z.start_ticks}", now) for z in dead}
    ctx.remember["zombies"] = {"since": dict(list(first.items())[:5000])}
    old = sum(now - at >= ctx.limits.old_zombie_seconds for at in first.values())
    if len(dead) > ctx.limits.zombies_warning or old >= ctx.limits.old_zombies_warning:
        parents: dict[int, int] = {}
        for one in dead:
            parents[one.ppid] = parents.get(one.ppid, 0) + 1
        often = sorted(parents.items(), key=lambda item: -item[1])[:3]
        yield ctx.warning(
            "ZombieProcesses", "",
            f"{len(dead)} zombies, {old} of them older than {ctx.limits.old_zombie_seconds:.0f} s (limits "
            f"{ctx.limits.zombies_warning} and {ctx.limits.old_zombies_warning})",
            evidence=tuple(f"{n} of {_name(seen, pid)} (pid {pid})" for pid, n in often),
        )  # fmt: skip


def _name(seen: Mapping[int, Process], pid: int) -> str:
    return seen[pid].command if pid in seen else "a process that is gone"


def _tables(ctx: Context) -> Iterator[Finding | Reading]:
    # 0.20 0.18 0.12 1/2688 412083
    match = re.fullmatch(r"(?:[\d.]+ ){3}\d+/(\d{1,9}) \d+", ctx.host.read("/proc/loadavg").strip())
    if match is None:
        raise Unparsable("/proc/loadavg has an unknown form", ctx.host.read("/proc/loadavg"))
    most = min(_number(ctx, "/proc/sys/kernel/pid_max"), _number(ctx, "/proc/sys/kernel/threads-max"))
    yield from _table(ctx, "TaskTableFull", "tasks", int(match[1]), most, "processes and threads")
    # 8480	0	9223372036854775807
    words = ctx.host.read("/proc/sys/fs/file-nr").split()
    if len(words) != 3 or not all(re.fullmatch(r"\d{1,20}", word) for word in words):
        raise Unparsable("/proc/sys/fs/file-nr has an unknown form", " ".join(words))
    yield from _table(
        ctx, "FileTableFull", "open_files", int(words[0]) - int(words[1]), int(words[2]), "files"
    )


def _table(
    ctx: Context, code: str, name: str, used: int, most: int, what: str
) -> Iterator[Finding | Reading]:
    ratio = used / most if most else 0.0
    yield ctx.reading(f"{name}_total", used)
    yield ctx.reading(f"{name}_used_ratio", ratio)
    if ratio < ctx.limits.table_warning_ratio:
        return
    say = ctx.critical if ratio >= ctx.limits.table_critical_ratio else ctx.warning
    yield say(
        code, "",
        f"{used} of at most {most} {what} ({ratio:.0%}, limit {ctx.limits.table_warning_ratio:.0%})",
        remedy=Remedy.INSPECT,
    )  # fmt: skip


def _number(ctx: Context, path: str) -> int:
    text = ctx.host.read(path).strip()
    if not re.fullmatch(r"\d{1,12}", text):
        raise Unparsable(f"{path} is not a number", text)
    return int(text)


def _kswapd(ctx: Context, seen: Mapping[int, Process]) -> Iterator[Finding]:
    busy = {one.command: one.cpu_seconds for one in seen.values() if re.fullmatch(r"kswapd\d+", one.command)}
    for name, rate in ctx.rates(busy, name="kswapd").items():
        if rate.per_second >= ctx.limits.kswapd_ratio:
            yield ctx.warning(
                "KswapdBusy", name,
                f"{name} took {rate.per_second:.0%} of a processor since the last look (limit "
                f"{ctx.limits.kswapd_ratio:.0%}): memory is short, or a cgroup's is",
            )  # fmt: skip
