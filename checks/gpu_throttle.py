"""GPUs that run hot, or whose clocks the hardware holds down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.nvidia import Gpu, gpus
from clustertools.stats import counter_rate

#: nvmlClocksEventReasons (nvml.h). Not faults: idle 0x1, application clocks 0x2, and the software power cap
#: 0x4, which any GPU under full load shows. gpud and Azure's node health checks watch the same four.
HW_SLOWDOWN = 0x8
SW_THERMAL = 0x20
HW_THERMAL = 0x40
POWER_BRAKE = 0x80


@dataclass(frozen=True)
class Limits:
    """How near to its own thresholds a GPU may come."""

    #: Degrees below the slowdown temperature at which it is already critical.
    slowdown_slack_celsius: float = 0.0
    #: Degrees above the max operating temperature that are still accepted; gpud calls a GPU degraded at the
    #: first one.
    operating_slack_celsius: float = 0.0


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    # a bit can be set at the moment of a look by chance (a change of clocks shows as HW slowdown); gpud asks
    # for 6 in 10 minutes
    confirm=3,
    timeout_seconds=30.0,
    codes={
        "GpuThrottledThermal": "heat holds a GPU's clocks down",
        "GpuThrottledPowerBrake": "the power supply's brake signal holds a GPU's clocks down",
        "GpuThrottledHw": "the hardware holds a GPU's clocks down, not for heat nor by the power brake",
        "GpuTooHot": "a GPU or its memory is hotter than its maker wants it to run",
    },
)
def gpu_throttle(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads temperature, power, clocks and what holds these down, and compares with the card's own limits."""
    for gpu in gpus(ctx.host):
        if why := gpu.blind("temperature_celsius", "throttle_reasons_raw"):
            ctx.unseen(why)
        for name in ("temperature_celsius", "memory_temperature_celsius", "power_watts", "sm_clock_mhz"):
            if (value := getattr(gpu, name)) is not None:
                yield ctx.reading(name, value, gpu.part)
        yield from _violations(ctx, gpu)
        yield from _throttled(ctx, gpu)
        if hot := _heat(gpu, ctx.limits):
            status, summary = hot
            tell = ctx.critical if status is Status.CRITICAL else ctx.warning
            yield tell("GpuTooHot", gpu.part, f"GPU {gpu.index}: {summary}", remedy=Remedy.INSPECT)


def _violations(ctx: Context, gpu: Gpu) -> Iterator[Reading]:
    """The share of time since the last look for which heat held the clocks: what a momentary look misses."""
    seconds = gpu.thermal_violation_seconds
    if seconds is None:
        return
    now = ctx.host.now()
    ctx.remember[gpu.part] = [now, seconds]
    then, before = ctx.past.get(gpu.part, (now, seconds))
    if rate := counter_rate(before, seconds, now - then):
        yield ctx.reading("thermal_throttle_ratio", min(1.0, rate.per_second), gpu.part)


def _throttled(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    bits = gpu.throttle_reasons_raw or 0
    clocks = f"SM clock {gpu.sm_clock_mhz} of {gpu.sm_clock_max_mhz} MHz"
    evidence = (
        f"reasons: {', '.join(gpu.throttle_reasons or ())} ({bits:#x})",
        f"temperature {gpu.temperature_celsius} C, power {gpu.power_watts} of {gpu.power_limit_watts} W",
    )
    more = {"evidence": evidence, "remedy": Remedy.INSPECT}
    if bits & HW_THERMAL:
        summary = f"GPU {gpu.index}: the hardware slows it down for heat, {clocks}"
        yield ctx.critical("GpuThrottledThermal", gpu.part, summary, **more)
    elif bits & SW_THERMAL:
        summary = f"GPU {gpu.index}: the driver slows it down for heat, {clocks}"
        yield ctx.warning("GpuThrottledThermal", gpu.part, summary, **more)
    if bits & POWER_BRAKE:
        summary = f"GPU {gpu.index}: the power supply asks it to slow down (power brake), {clocks}"
        yield ctx.critical("GpuThrottledPowerBrake", gpu.part, summary, **more)
    # the hardware sets its general bit together with either of the two that say why
    if bits & HW_SLOWDOWN and not bits & (HW_THERMAL | POWER_BRAKE):
        summary = f"GPU {gpu.index}: the hardware slows it down, {clocks}"
        yield ctx.critical("GpuThrottledHw", gpu.part, summary, **more)


def _heat(gpu: Gpu, limits: Limits) -> tuple[Status, str] | None:
    """How serious its heat is, by absolute thresholds where it has them, else by T.Limit margins."""
    now, slack = gpu.temperature_celsius, limits.slowdown_slack_celsius
    if now is not None and gpu.slowdown_celsius is not None and now >= gpu.slowdown_celsius - slack:
        return Status.CRITICAL, f"{now} C, it slows down at {gpu.slowdown_celsius} C"
    margin, slowdown = gpu.margin_celsius, gpu.slowdown_margin_celsius
    if margin is not None and slowdown is not None and margin <= slowdown + slack:
        return Status.CRITICAL, f"T.Limit margin {margin} C ({now} C), it slows down at {slowdown} C"
    slack = limits.operating_slack_celsius
    top = gpu.max_operating_celsius
    if now is not None and top is not None and now > top + slack:
        return Status.WARNING, f"{now} C, max operating temperature {top} C"
    least = gpu.max_operating_margin_celsius
    if margin is not None and least is not None and margin < least - slack:
        return Status.WARNING, f"T.Limit margin {margin} C ({now} C), max operating margin {least} C"
    memory, top = gpu.memory_temperature_celsius, gpu.memory_max_operating_celsius
    if memory is not None and top is not None and memory > top + slack:
        return Status.WARNING, f"memory {memory} C, max operating temperature {top} C"
    return None
