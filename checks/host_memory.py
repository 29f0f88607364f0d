"""Main memory of the node: enough of it, all of it there, not swapping, without errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.stats import counter_rate

_GIB = 1 << 30
_DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Limits:
    # own choice: on a 2 TiB node this is 60 GiB, less than one data loader too many needs in a minute
    available_warning_ratio: float = 0.03
    # gpud (leptonai/gpud) takes 100 MiB; by then the kernel may already be choosing whom to kill
    available_critical_bytes: float = 512 << 20
    # share of the last minute in which every process waited for memory. The critical one is the default of
    # systemd-oomd (oomd.conf, DefaultMemoryPressureLimit=60%), at which it kills
    pressure_warning_ratio: float = 0.20
    pressure_critical_ratio: float = 0.60
    # Imbue's bare-metal scripts want swap off; pages of sleeping daemons do no harm, so some is let be
    swap_used_warning_bytes: float = 1 << 30
    # own choice, 4 MiB a second: a rank that waits for its pages makes every other rank wait
    swap_pages_per_second: float = 1024
    # MemTotal is what the kernel leaves of the DIMMs, about 2 % less. Node Health Check sites and Azure's
    # health checks allow 3 to 10 %; one DIMM of 16 is 6 %
    missing_ratio: float = 0.05
    # Node Health Check's check_hw_mcelog default: more than 9 corrected errors of a DIMM in 24 hours
    corrected_per_day: float = 9


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        "HostMemoryLow": "hardly any memory is left, or processes stand still waiting for it",
        "HostSwapping": "the node swaps memory to disk",
        "HostMemoryMissing": "the node has less memory than its class should have (a DIMM is gone)",
        "HostMemoryUncorrected": "a DIMM had an error that could not be corrected",
        "HostMemoryCorrected": "a DIMM has corrected errors at a rate that announces a failure",
    },
)
def host_memory(ctx: Context) -> Iterator[Finding | Reading]:
    """Free memory, memory pressure, swap, installed size, and the error counters of the DIMMs.

    Read are /proc/meminfo, /proc/pressure/memory, /proc/vmstat and the EDAC counters in sysfs. Limits of a
    job's cgroup are the job's own and are not looked at. `expect["memory_bytes"]` is the size of this class.
    """
    memory = _meminfo(ctx)
    yield from _free(ctx, memory)
    yield from _pressure(ctx)
    yield from _swap(ctx, memory)
    yield from _installed(ctx, memory["MemTotal"])
    yield from _errors(ctx)


def _meminfo(ctx: Context) -> dict[str, int]:
    """Bytes (or plain counts) by name. Raises Unparsable for a line of another form."""
    found = {}
    for line in ctx.host.read("/proc/meminfo").splitlines():
        # MemAvailable:   24304820 kB        or, without a unit, HugePages_Total:       0
        match = re.fullmatch(r"([\w()]+):\s+([0-9]{1,18})( kB)?\s*", line)
        if match is None:
            raise Unparsable("/proc/meminfo has a line of an unknown form", line)
        found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
    missing = {"MemTotal", "MemAvailable", "SwapTotal", "SwapFree"} - set(found)
    if missing:
        raise Unparsable(f"/proc/meminfo lacks {', '.join(sorted(missing))}")
    return found


def _free(ctx: Context, memory: Mapping[str, int]) -> Iterator[Finding | Reading]:
    total, available = memory["MemTotal"], memory["MemAvailable"]
    yield ctx.reading("host_memory_total_bytes", total)
    yield ctx.reading("host_memory_available_bytes", available)
    text = f"{available / _GIB:.1f} GiB of {total / _GIB:.1f} GiB are available"
    if available < ctx.limits.available_critical_bytes:
        limit = f"limit {ctx.limits.available_critical_bytes / _GIB:.1f} GiB"
        yield ctx.critical(
            "HostMemoryLow",
            "memory",
            f"{text} ({limit})",
            evidence=_largest(memory),
            remedy=Remedy.RESTART_APP,
        )
    elif available < ctx.limits.available_warning_ratio * total:
        limit = f"limit {ctx.limits.available_warning_ratio:.0%}"
        yield ctx.warning("HostMemoryLow", "memory", f"{text} ({limit})", evidence=_largest(memory))


def _largest(memory: Mapping[str, int]) -> tuple[str, ...]:
    """Where the memory went: process memory, shared memory, kernel, huge pages."""
    parts = {
        "AnonPages (processes)": memory.get("AnonPages", 0),
        "Shmem (/dev/shm and other tmpfs)": memory.get("Shmem", 0),
        "Slab (kernel)": memory.get("Slab", 0),
        "huge pages": memory.get("Hugetlb", 0),
    }
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return tuple(f"{name}: {size / _GIB:.1f} GiB" for name, size in ordered if size)


def _pressure(ctx: Context) -> Iterator[Finding | Reading]:
    try:
        text = ctx.host.read("/proc/pressure/memory")
    except Unobservable as exc:
        # some kernels have the file and answer EOPNOTSUPP when pressure is switched off at boot
        if not isinstance(exc, Absent) and "not supported" not in str(exc):
            raise
        ctx.note("the kernel does not measure memory pressure (boot option psi=1)")
        return
    # full avg10=0.00 avg60=0.00 avg300=0.00 total=0
    match = re.search(r"^full avg10=\S+ avg60=([0-9]{1,3}\.[0-9]+) ", text, re.MULTILINE)
    if match is None:
        raise Unparsable("/proc/pressure/memory has an unknown form", text)
    ratio = float(match[1]) / 100
    yield ctx.reading("host_memory_pressure_ratio", ratio)
    summary = f"in the last minute all processes stood still for memory {ratio:.0%} of the time"
    if ratio >= ctx.limits.pressure_critical_ratio:
        limit = f"limit {ctx.limits.pressure_critical_ratio:.0%}"
        yield ctx.critical("HostMemoryLow", "pressure", f"{summary} ({limit})", remedy=Remedy.RESTART_APP)
    elif ratio >= ctx.limits.pressure_warning_ratio:
        limit = f"limit {ctx.limits.pressure_warning_ratio:.0%}"
        yield ctx.warning("HostMemoryLow", "pressure", f"{summary} ({limit})")


def _swap(ctx: Context, memory: Mapping[str, int]) -> Iterator[Finding | Reading]:
    used = memory["SwapTotal"] - memory["SwapFree"]
    yield ctx.reading("host_swap_used_bytes", used)
    if not memory["SwapTotal"]:
        return
    # pswpin 0
    pages = sum(
        int(n)
        for n in re.findall(r"^pswp(?:in|out) ([0-9]{1,20})$", ctx.host.read("/proc/vmstat"), re.MULTILINE)
    )
    now, before = ctx.host.now(), ctx.past.get("swap")
    ctx.remember["swap"] = [pages, now]
    rate = counter_rate(before[0], pages, now - before[1]) if before else None
    if rate:
        yield ctx.reading("host_swap_pages_per_second", rate.per_second)
    if rate and rate.per_second >= ctx.limits.swap_pages_per_second:
        yield ctx.warning(
            "HostSwapping",
            "swap",
            f"{rate.per_second:.0f} pages a second go to or come from swap "
            f"(limit {ctx.limits.swap_pages_per_second:.0f}); {used / _GIB:.1f} GiB are in swap",
        )
    elif used >= ctx.limits.swap_used_warning_bytes:
        yield ctx.warning(
            "HostSwapping",
            "swap",
            f"{used / _GIB:.1f} GiB are in swap (limit {ctx.limits.swap_used_warning_bytes / _GIB:.1f} GiB)",
        )


def _installed(ctx: Context, total: int) -> Iterator[Finding]:
    if "memory_bytes" not in ctx.expect:
        return
    expected = float(ctx.expect["memory_bytes"])
    if total < expected * (1 - ctx.limits.missing_ratio):
        yield ctx.critical(
            "HostMemoryMissing",
            "memory",
            f"{total / _GIB:.1f} GiB of memory, {(expected - total) / _GIB:.1f} GiB less than the "
            f"{expected / _GIB:.1f} GiB expected (limit {ctx.limits.missing_ratio:.0%} less)",
            remedy=Remedy.INSPECT,
        )


def _errors(ctx: Context) -> Iterator[Finding | Reading]:
    """EDAC counters since boot, by DIMM; by memory controller where the driver does not know the DIMMs.

    Files as in the kernel's Documentation/admin-guide/RAS/main.rst.
    """
    places = ctx.host.glob("/sys/devices/system/edac/mc/mc[0-9]*/dimm[0-9]*/dimm_ue_count")
    places = places or ctx.host.glob("/sys/devices/system/edac/mc/mc[0-9]*/ue_count")
    if not places:
        ctx.note("no EDAC driver counts memory errors here (a virtual machine, or the firmware keeps them)")
        return
    corrected: dict[str, int] = {}
    for path in places:
        name = "/".join(x for x in path.split("/") if re.fullmatch(r"(mc|dimm)[0-9]+", x))
        part = f"dimm@{name}"
        uncorrected = _count(ctx, path)
        corrected[name] = _count(ctx, path.replace("ue_count", "ce_count"))
        yield ctx.reading("memory_uncorrected_errors_total", uncorrected, part)
        yield ctx.reading("memory_corrected_errors_total", corrected[name], part)
        if uncorrected > 0:
            where = _label(ctx, path, name)
            yield ctx.critical(
                "HostMemoryUncorrected",
                part,
                f"{uncorrected} uncorrectable memory errors since boot in {where} (limit 0)",
                remedy=Remedy.REPLACE,
            )
    yield from _corrected(ctx, corrected)


def _corrected(ctx: Context, counts: Mapping[str, int]) -> Iterator[Finding]:
    """Judge growth over the last half to whole day, from two baselines: one is dropped when a day old."""
    now = ctx.host.now()
    bases: list[dict[str, Any]] = [b for b in ctx.past.get("corrected", []) if now - b["time"] < _DAY_SECONDS]
    if any(counts.get(name, 0) < then for base in bases for name, then in base["counts"].items()):
        # a reboot or a reset: all that is counted now came after the latest baseline
        bases = [{"time": bases[-1]["time"], "counts": {}}]
    if not bases or now - bases[-1]["time"] >= _DAY_SECONDS / 2:
        bases.append({"time": now, "counts": dict(counts)})
    ctx.remember["corrected"] = bases
    base = bases[0]
    for name, count in counts.items():
        rate = counter_rate(base["counts"].get(name, 0), count, now - base["time"])
        if rate and rate.delta > ctx.limits.corrected_per_day:
            yield ctx.warning(
                "HostMemoryCorrected",
                f"dimm@{name}",
                f"{rate.delta:.0f} corrected memory errors in {(now - base['time']) / 3600:.1f} h "
                f"(limit {ctx.limits.corrected_per_day:.0f} in 24 h)",
                remedy=Remedy.INSPECT,
            )


def _count(ctx: Context, path: str) -> int:
    text = ctx.host.read(path).strip()
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise Unparsable(f"{path} is not a count", text)
    return int(text)


def _label(ctx: Context, path: str, name: str) -> str:
    """What the board's maker prints beside the socket, where the firmware tells."""
    try:
        label = ctx.host.read(
            path.replace("dimm_ue_count", "dimm_label").replace("/ue_count", "/mc_name")
        ).strip()
    except Absent:
        return name
    return f"{name} ({label})" if label else name
