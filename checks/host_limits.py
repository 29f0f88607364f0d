"""The limits that jobs get from the daemon that starts them: locked memory for RDMA, open files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.host import Host
from clustertools.model import Finding, Reading
from clustertools.sources.processes import programs

_GIB = 1 << 30
#: What starts jobs, the first that runs: jobs and containers inherit its limits.
_STARTERS = ("slurmd", "containerd", "crio", "dockerd")
_UNLIMITED = float("inf")


@dataclass(frozen=True)
class Limits:
    # NCCL and MPI pin their buffers: unlimited is what every vendor's guide asks for; own choice: what
    # eight ranks pin at the least
    memlock_least_bytes: float = 16 * _GIB
    # Slurm's own unit file gives 131072; a rank of a large job holds many sockets
    nofile_least: int = 16384


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog", "daily"},
    codes={
        "MemlockLow": "jobs may not pin enough memory for RDMA",
        "NofileLow": "jobs may not open enough files and sockets",
    },
    interval_seconds=300,
)
def host_limits(ctx: Context) -> Iterator[Finding | Reading]:
    """The hard limits of slurmd, or of the container runtime, from /proc/PID/limits; not those of this shell.

    Expected: `memlock_bytes` (or "unlimited") and `nofile`. Without them only slurmd is judged, and locked
    memory only where the kernel's RDMA interface is loaded: a container may bring its own limits.
    """
    running = programs(ctx.host)
    starter = next((name for name in _STARTERS if name in running), "")
    if not starter:
        raise ctx.skip("neither slurmd nor a container runtime runs here")
    judged = starter == "slurmd"
    rdma = judged and _has_rdma(ctx.host)
    text = ctx.host.read(f"/proc/{min(running[starter])}/limits")
    memlock = _limit(text, "Max locked memory", "bytes")
    nofile = _limit(text, "Max open files", "files")
    for name, value in (("memlock_bytes", memlock), ("open_files_limit_total", nofile)):
        if value[1] != _UNLIMITED:
            yield ctx.reading(name, value[1], starter)
    least = ctx.expect.get("memlock_bytes", ctx.limits.memlock_least_bytes if rdma else None)
    if least is not None:
        wanted = _UNLIMITED if least == "unlimited" else float(least)
        if memlock[1] < wanted:
            say = ctx.critical if "memlock_bytes" in ctx.expect else ctx.warning
            yield say(
                "MemlockLow", starter,
                f"{starter} gives jobs at most {memlock[1] / _GIB:.3g} GiB of locked memory (limit "
                f"{'unlimited' if wanted == _UNLIMITED else f'{wanted / _GIB:.3g} GiB'})",
            )  # fmt: skip
        elif memlock[0] < wanted:
            ctx.note(f"the soft limit of {starter} is {memlock[0] / _GIB:.3g} GiB; jobs can raise it")
    fewest = float(ctx.expect.get("nofile", ctx.limits.nofile_least if judged else 0))
    if nofile[1] < fewest:
        yield ctx.warning(
            "NofileLow",
            starter,
            f"{starter} gives jobs at most {nofile[1]:.0f} open files (limit {fewest:.0f})",
        )


def _has_rdma(host: Host) -> bool:
    """Whether programs can use RDMA here: the kernel's interface, as a module or built in."""
    try:
        return bool(re.search(r"^ib_uverbs ", host.read("/proc/modules"), re.MULTILINE))
    except Absent:
        return bool(host.glob("/sys/class/infiniband_verbs/*"))


def _limit(text: str, name: str, unit: str) -> tuple[float, float]:
    """(soft, hard) of one line of /proc/PID/limits, as proc_pid_limits(5) has it."""
    # Max locked memory         8388608              unlimited            bytes
    match = re.search(rf"^{name}\s+(\d{{1,20}}|unlimited)\s+(\d{{1,20}}|unlimited)\s+{unit}\s*$", text, re.M)
    if match is None:
        raise Unparsable(f"/proc/PID/limits has no line {name!r}", text)
    soft, hard = (_UNLIMITED if word == "unlimited" else float(word) for word in match.groups())
    return soft, hard
