"""How fast the processors may run: governor, caps, slow-downs by heat, load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.model import Finding, Reading

_POLICIES = "/sys/devices/system/cpu/cpufreq/policy[0-9]*"


@dataclass(frozen=True)
class Limits:
    # of the base frequency, which every processor of its kind reaches under any load. Where the driver does
    # not tell it: half of the highest, under which no base frequency of a server processor lies
    capped_ratio: float = 0.95
    capped_of_highest_ratio: float = 0.50
    # share of the time in which a package was slowed down by its own heat sensor or by the board
    # (PROCHOT). Own choice: short spikes under a sudden load are normal
    throttled_ratio: float = 0.10


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    cost_seconds=0.1,
    confirm=2,
    codes={
        "CpuGovernor": "the frequency governor is not that of the node class, or not the same for all CPUs",
        "CpuCapped": "CPUs may not run at their base frequency: somebody or the firmware capped them",
        "CpuThrottled": "processors were slowed down because they are too hot, or told so by the board",
    },
)
def cpu_speed(ctx: Context) -> Iterator[Finding | Reading]:
    """cpufreq's policies and the throttle counters in sysfs, and the load average.

    `expect["cpu_governor"]` is the governor of the class. Without one only a mixture is reported: with the
    intel_pstate and amd_pstate drivers "powersave" is as fast as "performance" under load. Virtual machines
    have no cpufreq.
    """
    yield from _load(ctx)
    folders = ctx.host.glob(_POLICIES)
    if not folders:
        ctx.note("no cpufreq here (a virtual machine, or the firmware governs)")
    yield from _governor(ctx, folders)
    yield from _caps(ctx, folders)
    yield from _throttled(ctx)


def _load(ctx: Context) -> Iterator[Reading]:
    # 0.20 0.18 0.12 1/2688 412083
    match = re.match(r"([0-9]{1,7}\.[0-9]{2}) ", text := ctx.host.read("/proc/loadavg"))
    if match is None:
        raise Unparsable("/proc/loadavg has an unknown form", text)
    yield ctx.reading("cpu_load_total", float(match[1]))


def _governor(ctx: Context, folders: list[str]) -> Iterator[Finding]:
    found: dict[str, int] = {}
    for folder in folders:
        name = _text(ctx, f"{folder}/scaling_governor")
        if name:
            found[name] = found.get(name, 0) + 1
    wanted = ctx.expect.get("cpu_governor")
    told = ", ".join(f"{name} on {count}" for name, count in sorted(found.items()))
    if wanted and found and set(found) != {str(wanted)}:
        yield ctx.warning("CpuGovernor", "cpu", f"governor {told} CPU policies, {wanted} expected")
    elif not wanted and len(found) > 1:
        yield ctx.warning("CpuGovernor", "cpu", f"the governors differ: {told} CPU policies")


def _caps(ctx: Context, folders: list[str]) -> Iterator[Finding | Reading]:
    capped: list[str] = []
    lowest = None
    for folder in folders:
        highest, allowed = (_kilohertz(ctx, f"{folder}/{n}_max_freq") for n in ("cpuinfo", "scaling"))
        if not highest or not allowed:
            continue
        # what the firmware allows (_PPC) stands beside what the system allows
        allowed = min(allowed, _kilohertz(ctx, f"{folder}/bios_limit") or allowed)
        base = _kilohertz(ctx, f"{folder}/base_frequency")
        floor = base * ctx.limits.capped_ratio if base else highest * ctx.limits.capped_of_highest_ratio
        lowest = min(allowed, lowest or allowed)
        if allowed < floor:
            capped.append(
                f"{folder.rsplit('/', 1)[1]}: {allowed / 1e6:.2f} GHz of {(base or highest) / 1e6:.2f}"
            )
    if lowest:
        yield ctx.reading("cpu_frequency_limit_hertz", lowest * 1000)
    if capped:
        yield ctx.warning(
            "CpuCapped", "cpu", f"{len(capped)} of {len(folders)} CPU policies are capped: {capped[0]}",
            evidence=tuple(capped[1:6]),
        )  # fmt: skip


def _throttled(ctx: Context) -> Iterator[Finding | Reading]:
    """Time in which each package was throttled, since Linux 5.4 (ABI: thermal_throttle); Intel only."""
    pattern = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_total_time_ms"
    times: dict[str, float] = {}
    for path in ctx.host.glob(pattern):
        text = _text(ctx, path)
        if not re.fullmatch("[0-9]{1,18}", text or "0"):
            raise Unparsable(f"{path} is not a count", text)
        times[path.split("/")[5]] = float(text or 0)
    rates = ctx.rates(times)
    # every CPU of a package counts the same: the worst stands for all
    worst = max(rates, key=lambda cpu: rates[cpu].per_second, default=None)
    if worst is None or rates[worst].reset:
        return
    ratio = rates[worst].per_second / 1000
    yield ctx.reading("cpu_throttled_ratio", min(1.0, ratio))
    if ratio >= ctx.limits.throttled_ratio:
        yield ctx.warning(
            "CpuThrottled", "cpu",
            f"the package of {worst} was throttled {min(1.0, ratio):.0%} of the time since the last look "
            f"(limit {ctx.limits.throttled_ratio:.0%})",
        )  # fmt: skip


def _text(ctx: Context, path: str) -> str:
    """The file's text, or nothing where the driver has no such file, or its CPU just went off line."""
    try:
        return ctx.host.read(path).strip()
    except Absent:
        return ""


def _kilohertz(ctx: Context, path: str) -> int:
    text = _text(ctx, path)
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
