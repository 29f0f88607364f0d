"""The node's clock: kept by a time service, near the true time, read from a good counter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.clock import chrony_tracking, clock_source, kernel_clock, time_services

#: Counters that cost a device access of a microsecond at each reading. The kernel takes them on a PC when its
#: watchdog found the TSC wrong (Documentation/timers/timekeeping.rst), or when told to at boot.
_SLOW_SOURCES = frozenset("hpet acpi_pm jiffies refined-jiffies pit".split())


@dataclass(frozen=True)
class Limits:
    # own choice: at 100 ms the events of different nodes sort wrongly within one training step, so that a
    # collective's late rank cannot be told; chrony on a LAN keeps a millisecond
    offset_warning_seconds: float = 0.1
    # own choice: munge and Kerberos refuse credentials at 300 s, and no time service that works leaves 10 s
    offset_critical_seconds: float = 10.0
    # NTP's register of reachability holds 8 polls (RFC 5905), of at most 1024 s each by default
    silent_polls: float = 8
    silent_seconds: float = 8192.0


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        "ClockUnsynchronised": "no time service keeps the clock",
        "ClockOffset": "the clock is off from the time of its source",
        "ClockSourceUnstable": "the time is read from a slow counter, as the processor's is distrusted",
    },
    # a time service needs a minute after boot
    confirm=2,
    interval_seconds=300,
)
def host_clock(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether the clock is synchronised, how far it is off, and from which counter it is read.

    chronyd is asked first, since it alone knows its offset. Else the kernel is: what `timedatectl` shows is
    the same flag. Remote time is not fetched.
    """
    yield from _counter(ctx)
    try:
        yield from _chrony(ctx)
    except Unparsable:
        raise
    except Unobservable as exc:
        yield from _kernel(ctx, "" if isinstance(exc, Absent) else str(exc))


def _counter(ctx: Context) -> Iterator[Finding]:
    try:
        source = clock_source(ctx.host)
    except Absent:
        ctx.note("sysfs does not show the clock source")
        return
    if source.current in _SLOW_SOURCES:
        chosen = "tsc" in source.available or "arch_sys_counter" in source.available
        why = (
            "a better one is available, so it was chosen at boot" if chosen else "the TSC was found unstable"
        )
        yield ctx.warning(
            "ClockSourceUnstable",
            "clocksource",
            f"the kernel reads the time from {source.current}; {why}",
            evidence=(f"available: {' '.join(source.available)}",),
            remedy=Remedy.NONE if chosen else Remedy.REBOOT_NODE,
        )


def _chrony(ctx: Context) -> Iterator[Finding | Reading]:
    tracking = chrony_tracking(ctx.host)
    if not tracking.synchronised:
        yield ctx.warning("ClockUnsynchronised", "clock", "chronyd runs, but no time source answers it")
        return
    offset = abs(tracking.offset_seconds)
    yield ctx.reading("clock_offset_seconds", offset)
    yield ctx.reading("clock_error_bound_seconds", tracking.error_bound_seconds)
    yield from _offset(ctx, offset, f"chronyd, from {tracking.source}")
    silent = ctx.host.now() - tracking.reference_time
    limit = max(ctx.limits.silent_polls * tracking.update_interval_seconds, ctx.limits.silent_seconds)
    if silent > limit:
        text = f"chronyd last heard from {tracking.source} {silent / 3600:.1f} h ago"
        yield ctx.warning("ClockUnsynchronised", "clock", f"{text} (limit {limit / 3600:.1f} h)")


def _kernel(ctx: Context, chrony_says: str) -> Iterator[Finding | Reading]:
    clock = kernel_clock(ctx.host)
    yield ctx.reading("clock_error_bound_seconds", clock.max_error_seconds)
    if clock.synchronised:
        if clock.offset_seconds is not None:
            yield ctx.reading("clock_offset_seconds", abs(clock.offset_seconds))
            yield from _offset(ctx, abs(clock.offset_seconds), "the kernel")
        return
    services = time_services(ctx.host)
    if "phc2sys" in services:
        # linuxptp steers the frequency and leaves the kernel's flag as it was
        ctx.note("phc2sys keeps the clock; its offset cannot be seen here")
        return
    running = f"{', '.join(services)} runs, but has not set it yet" if services else "no time service runs"
    yield ctx.warning(
        "ClockUnsynchronised",
        "clock",
        f"the kernel says that the clock is not synchronised; {running}",
        evidence=(chrony_says,) if chrony_says else (),
    )


def _offset(ctx: Context, offset: float, who: str) -> Iterator[Finding]:
    text = f"the clock is {offset:.3f} s off, says {who}"
    if offset >= ctx.limits.offset_critical_seconds:
        yield ctx.critical("ClockOffset", "clock", f"{text} (limit {ctx.limits.offset_critical_seconds:g} s)")
    elif offset >= ctx.limits.offset_warning_seconds:
        yield ctx.warning("ClockOffset", "clock", f"{text} (limit {ctx.limits.offset_warning_seconds:g} s)")
