"""Memory that is in use on a node that nobody uses: left over, leaked, or in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unparsable
from clustertools.model import Finding, Reading

_GIB = 1 << 30
#: Where Slurm keeps a job's processes, with cgroup v2 and v1; other schedulers' jobs are not seen here.
_JOBS = (
    "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_[0-9]*",
    "/sys/fs/cgroup/memory/slurm/uid_[0-9]*/job_[0-9]*",
)


@dataclass(frozen=True)
class Limits:
    # own choice: an idle GPU node of 2 TiB uses 3 to 8 % (drivers, page tables of the GPUs, daemons).
    # soperator drains a node that still uses memory after its jobs, and takes it back when freed
    used_ratio: float = 0.20
    # gcm (facebookresearch/gcm): at least 10 free blocks of 1 MiB or more in zone Normal
    large_blocks: float = 10
    # below this much free memory a lack of large blocks only means that the page cache does its work
    free_bytes: float = 8 * _GIB
    # allocations of large blocks that failed in spite of compaction, since the last look. Own choice
    failed_per_second: float = 1.0


@check(
    limits=Limits,
    stages={"prolog", "epilog", "preflight"},
    cost_seconds=0.02,
    needs={"idle"},
    codes={
        "MemoryNotFreed": "much memory is in use though no job runs",
        "MemoryFragmented": "free memory is in so small pieces that large blocks cannot be had",
    },
)
def mem_idle(ctx: Context) -> Iterator[Finding | Reading]:
    """Memory in use while no job of Slurm has a cgroup, by what holds it, and the size of the free blocks.

    Read are /proc/meminfo and /proc/buddyinfo. Page cache does not count as used. Fragments are only reported
    when the kernel has tried in vain to make large blocks since the last look.
    """
    memory = _meminfo(ctx)
    used = memory["MemTotal"] - memory["MemAvailable"]
    yield ctx.reading("memory_used_ratio", used / memory["MemTotal"])
    yield ctx.reading(
        "memory_huge_pages_free_bytes", memory.get("HugePages_Free", 0) * memory.get("Hugepagesize", 0)
    )
    yield ctx.reading("memory_vmalloc_used_bytes", memory.get("VmallocUsed", 0))
    jobs = [path for pattern in _JOBS for path in ctx.host.glob(pattern)]
    if jobs:
        ctx.note(f"{len(jobs)} jobs of Slurm run here: what is in use may be theirs")
    elif used > ctx.limits.used_ratio * memory["MemTotal"]:
        yield ctx.warning(
            "MemoryNotFreed", "memory",
            f"{used / _GIB:.0f} GiB ({used / memory['MemTotal']:.0%}) are in use on an idle node "
            f"(limit {ctx.limits.used_ratio:.0%})",
            evidence=_holders(memory),
        )  # fmt: skip
    yield from _fragments(ctx)


def _meminfo(ctx: Context) -> dict[str, int]:
    # MemAvailable:   24304820 kB        or, without a unit, HugePages_Free:       0
    found = {
        match[1]: int(match[2]) * (1024 if match[3] else 1)
        for match in re.finditer(
            r"^([\w()]+): +([0-9]{1,18})( kB)?$", ctx.host.read("/proc/meminfo"), re.MULTILINE
        )
    }
    if not {"MemTotal", "MemAvailable"} <= found.keys() or not found["MemTotal"]:
        raise Unparsable("/proc/meminfo lacks MemTotal or MemAvailable")
    return found


def _holders(memory: Mapping[str, int]) -> tuple[str, ...]:
    known = {
        "processes (AnonPages)": "AnonPages", "files in /dev/shm and other tmpfs (Shmem)": "Shmem",
        "huge pages, used or not": "Hugetlb", "the kernel's slabs that cannot be freed": "SUnreclaim",
        "page tables": "PageTables",
    }  # fmt: skip
    parts = {name: memory.get(key, 0) for name, key in known.items()}
    used = memory["MemTotal"] - memory["MemAvailable"]
    # pages that a driver took for itself are in no column of meminfo
    parts["in no column: drivers, pinned pages"] = max(0, used - sum(parts.values()))
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return tuple(f"{name}: {size / _GIB:.1f} GiB" for name, size in ordered if size >= _GIB)


def _fragments(ctx: Context) -> Iterator[Finding | Reading]:
    # Node 0, zone   Normal    653     33    705    580    390    283    221     68     22      1    136
    zones = re.findall(
        r"^Node +[0-9]+, zone +Normal +([0-9 ]+)$", ctx.host.read("/proc/buddyinfo"), re.MULTILINE
    )
    if not zones:
        ctx.note("no zone Normal: a small machine")
        return
    free = large = 0
    for zone in zones:
        counts = [int(n) for n in zone.split()]
        free += sum(n << order for order, n in enumerate(counts)) * 4096
        large += sum(counts[8:])
    yield ctx.reading("memory_large_free_blocks_total", large)
    # compact_fail 12
    match = re.search(r"^compact_fail ([0-9]{1,20})$", ctx.host.read("/proc/vmstat"), re.MULTILINE)
    rate = ctx.rates({"compact_fail": float(match[1])} if match else {}).get("compact_fail")
    if free < ctx.limits.free_bytes or large >= ctx.limits.large_blocks or rate is None:
        return
    if rate.per_second >= ctx.limits.failed_per_second:
        yield ctx.warning(
            "MemoryFragmented", "memory",
            f"{large} free blocks of 1 MiB or more (limit {ctx.limits.large_blocks:.0f}) in "
            f"{free / _GIB:.1f} GiB of free memory, and {rate.per_second:.1f} compactions a second fail",
        )  # fmt: skip
