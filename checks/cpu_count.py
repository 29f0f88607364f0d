"""The processors: all sockets, cores and threads there and on line, memory at every one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import lscpu

_CPU = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"


@dataclass(frozen=True)
class Limits:
    # of the median of the other NUMA nodes with processors. A DIMM of 8 at a socket is 12 %; the kernel
    # itself and firmware take a few percent of the first node
    numa_memory_ratio: float = 0.85


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    cost_seconds=0.2,
    codes={
        "CpuMissing": "the node has fewer processors than its class should have",
        "CpuOffline": "processors are there but off line",
        "CpuThreads": "SMT (hyper-threading) is on where it should be off, or off where it should be on",
        "NumaMemoryUneven": "a NUMA node has no memory, or less than the others: a DIMM is gone or misplaced",
    },
)
def cpu_count(ctx: Context) -> Iterator[Finding | Reading]:
    """Sockets, cores and threads by `lscpu`, CPUs off line and SMT by sysfs, memory of each NUMA node.

    Compared with `cpu_sockets`, `cpu_cores` (of all sockets together) and `cpu_count` (threads) of the node
    class; without these, with what the machine has itself. Threads that SMT's own switch turned off are not
    off line by accident.
    """
    online = _list(ctx, "online")
    offline = sorted(set(_list(ctx, "present")) - set(online))
    smt = _smt(ctx)
    yield ctx.reading("cpu_online_total", len(online))
    yield ctx.reading("cpu_offline_total", len(offline))
    told = _lscpu(ctx)
    yield from _expected(ctx, told, len(online), smt)
    if offline and smt not in ("off", "forceoff"):
        yield ctx.warning(
            "CpuOffline", "cpu",
            f"{len(offline)} of {len(online) + len(offline)} CPUs are off line: {_ranges(offline)}",
            evidence=(f"back: echo 1 > {_CPU}/cpu{offline[0]}/online",),
        )  # fmt: skip
    yield from _numa(ctx)


def _list(ctx: Context, name: str) -> list[int]:
    return lscpu.cpu_list(ctx.host.read(f"{_CPU}/{name}"))


def _smt(ctx: Context) -> str:
    """on, off, forceoff, notsupported or notimplemented (ABI/testing/sysfs-devices-system-cpu)."""
    try:
        return ctx.host.read(f"{_CPU}/smt/control").strip()
    except Absent:
        return "notimplemented"


def _lscpu(ctx: Context) -> dict[str, Any]:
    try:
        return lscpu.read(ctx.host.run("lscpu", "--json").check().stdout)
    except Absent:
        ctx.note("lscpu is not installed: sockets and cores are not compared")
        return {}


def _expected(ctx: Context, told: dict[str, Any], online: int, smt: str) -> Iterator[Finding | Reading]:
    sockets, per_socket = told.get("sockets"), told.get("cores_per_socket")
    cores = sockets * per_socket if sockets and per_socket else None
    have = {"cpu_sockets": sockets, "cpu_cores": cores, "cpu_count": online}
    words = {"cpu_sockets": "sockets", "cpu_cores": "cores", "cpu_count": "CPUs (threads)"}
    wanted = {key: int(ctx.expect[key]) for key in have if key in ctx.expect}
    if cores is not None:
        yield ctx.reading("cpu_cores_total", cores)
    short = {k: n for k, n in wanted.items() if (has := have[k]) is not None and has < n}
    if set(short) == {"cpu_count"} and cores is not None and cores == wanted.get("cpu_cores"):
        yield ctx.warning(
            "CpuThreads", "cpu",
            f"{online} CPUs, {wanted['cpu_count']} expected, with all cores there: SMT is {smt}",
        )  # fmt: skip
    elif short:
        text = ", ".join(f"{have[k]} {words[k]} ({n} expected)" for k, n in short.items())
        yield ctx.critical("CpuMissing", "cpu", f"the node has {text}", remedy=Remedy.INSPECT)
    elif online > wanted.get("cpu_count", online) and cores == wanted.get("cpu_cores", -1):
        yield ctx.warning("CpuThreads", "cpu", f"{online} CPUs, {wanted['cpu_count']} expected: SMT is {smt}")


def _numa(ctx: Context) -> Iterator[Finding | Reading]:
    """Memory of the NUMA nodes that have processors; GPUs and CXL memory are nodes without any."""
    sizes: dict[str, float] = {}
    try:
        nodes = ctx.host.glob(f"{_NODES}/node[0-9]*/meminfo")
    except Unobservable:
        nodes = []
    for path in nodes:
        name = path.split("/")[5]
        if not ctx.host.read(f"{_NODES}/{name}/cpulist").strip():
            continue
        # Node 0 MemTotal:       1056703180 kB
        match = re.search(r"^Node [0-9]+ MemTotal: +([0-9]{1,15}) kB", ctx.host.read(path), re.MULTILINE)
        if match is None:
            raise Unparsable(f"{path} has an unknown form", path)
        sizes[name] = int(match[1]) * 1024.0
        yield ctx.reading("numa_memory_bytes", sizes[name], f"numa@{name}")
    if len(sizes) < 2:
        return
    median = sorted(sizes.values())[len(sizes) // 2]  # of two the larger
    for name, size in sizes.items():
        if size < ctx.limits.numa_memory_ratio * median:
            yield ctx.warning(
                "NumaMemoryUneven", f"numa@{name}",
                f"{name} has {size / (1 << 30):.1f} GiB, the others {median / (1 << 30):.1f} GiB "
                f"(limit {ctx.limits.numa_memory_ratio:.0%} of that)",
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _ranges(numbers: list[int]) -> str:
    """1-3,8: the kernel's own form."""
    pieces: list[list[int]] = []
    for n in numbers:
        if pieces and n == pieces[-1][1] + 1:
            pieces[-1][1] = n
        else:
            pieces.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in pieces[:20])
