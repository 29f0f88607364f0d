"""The BMC's event log: what the board itself wrote down, also while no system ran."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.tools import ipmitool_sel

_DAY_SECONDS = 86400.0
#: The newest of the log: a BMC gives some 20 records a second, and logs hold thousands.
_NEWEST = 200
#: How long an event that nothing takes back stays open after it was last logged.
_EVENT_CLEARS_SECONDS = 3 * _DAY_SECONDS


@dataclass(frozen=True)
class Limits:
    # at the first look, which knows no earlier one: older events were dealt with, or forgotten, long ago
    recent_days: float = 7
    # gcm (facebookresearch/gcm) clears a log of more than 40 lines; a full one takes no new event
    full_ratio: float = 0.90


@dataclass(frozen=True, slots=True)
class Kind:
    """Events that mean one thing. `lasts`: a state, which a later "Deasserted" takes back."""

    code: str
    status: Status
    pattern: re.Pattern[str]
    lasts: bool = False
    remedy: Remedy = Remedy.INSPECT


def _kinds() -> tuple[Kind, ...]:
    """By `sensor: event`, in the words of ipmitool (IPMI 2.0 table 42-3, and what boards write)."""

    def kind(code: str, status: Status, pattern: str, **more: Any) -> Kind:
        return Kind(code, status, re.compile(pattern, re.IGNORECASE), **more)

    critical, warning = Status.CRITICAL, Status.WARNING
    return (
        # Memory #0x87: Uncorrectable ECC      Processor CPU1: IERR      CPU: NVIDIA MCA error
        kind(
            "BmcUncorrectableError", critical,
            r"^memory.*: .*(uncorrectable ecc|uncorrectable memory|parity)|uncorrectable error"
            r"|: (ierr|frb[123]/|uncorrectable machine check|machine check exception)|\bmca error",
            remedy=Remedy.REPLACE,
        ),
        # Critical Interrupt #0xa1: Bus Fatal Error        PCI SERR
        kind(
            "BmcBusError", critical,
            r"bus fatal error|bus uncorrectable error|pci serr|pci perr|fatal nmi|software nmi.*pci",
        ),
        kind("BmcOverheated", critical, r"thermal trip"),
        # Processor #0x65: Throttled        Processor Automatically Throttled
        kind("BmcCpuThrottled", warning, r"throttled", lasts=True),
        # Power Supply PS2 Status: Power Supply AC lost
        kind(
            "BmcPowerLost", warning,
            r"power supply (ac|input)( is)? lost|power supply.*: (failure detected|predictive failure)"
            r"|redundancy (lost|degraded)|non-redundant: insufficient",
            lasts=True,
        ),
        # Temperature Inlet Temp: Upper Critical going high
        kind(
            "BmcOverheated", warning,
            r"^temperature.*: upper (critical|non-recoverable) going high", lasts=True,
        ),
        kind(
            "BmcFanFailed", warning,
            r"^fan.*: (lower (critical|non-recoverable) going low|.*failure)", lasts=True,
        ),
        kind("BmcMemoryCorrected", warning, r"correctable ecc logging limit|correctable.*threshold"),
        kind("BmcFirmwareFault", warning, r"(bios|firmware|rom).*corrupt|^system firmware.*: .*(hang|error)"),
        kind("BmcWatchdog", warning, r"^watchdog.*: .*(reset|power down|power cycle)"),
    )  # fmt: skip


@check(
    limits=Limits,
    stages={"daily"},
    timeout_seconds=60.0,
    interval_seconds=86400.0,
    cost_seconds=10.0,
    needs={"root"},
    codes={
        "BmcUncorrectableError": "the BMC logged an error of memory or processor that could not be corrected",
        "BmcBusError": "the BMC logged a fatal error on the PCI bus",
        "BmcOverheated": "the BMC logged a temperature beyond its limit, or a shutdown because of it",
        "BmcCpuThrottled": "the BMC logged that a processor is slowed down by heat or power",
        "BmcPowerLost": "the BMC logged a power supply without power, failed, or not redundant",
        "BmcFanFailed": "the BMC logged a fan that is too slow or has failed",
        "BmcMemoryCorrected": "the BMC logged so many corrected memory errors that it stopped counting",
        "BmcFirmwareFault": "the BMC logged that the firmware hangs or is corrupt",
        "BmcWatchdog": "the BMC's watchdog reset the node or cut its power",
        "BmcLogFull": "the BMC's event log is full, or nearly: it may not note the next fault",
    },
)
def bmc_sel(ctx: Context) -> Iterator[Finding | Reading]:
    """The newest 200 events of the BMC (`ipmitool sel elist`), and how full its log is.

    Judged are events that came since the last look; at the first look, those of the last days by the BMC's
    clock. A state (power, temperature) counts as long as no later event takes it back.
    """
    if not ctx.host.glob("/dev/ipmi[0-9]*"):
        raise ctx.skip("no /dev/ipmi0: no BMC here, or the module ipmi_devintf is not loaded")
    try:
        info = ctx.host.run("ipmitool", "sel", "info", timeout_seconds=15.0).check().stdout
    except Absent as exc:
        raise ctx.skip("ipmitool is not installed") from exc
    yield from _room(ctx, info)
    text = ctx.host.run("ipmitool", "sel", "elist", "last", str(_NEWEST), timeout_seconds=45.0).check()
    # "SEL has no entries" goes to the other stream
    events = ipmitool_sel.read(text.stdout)["events"] if text.stdout.strip() else []
    yield ctx.reading("bmc_events_total", len(events))
    yield from _judge(ctx, events)


def _room(ctx: Context, info: str) -> Iterator[Finding | Reading]:
    # Percent Used     : 1%        or "unknown", with boards that do not tell their room
    used = re.search(r"^Percent Used +: +([0-9]{1,3})%", info, re.MULTILINE)
    overflow = re.search(r"^Overflow +: +true", info, re.MULTILINE)
    if used:
        yield ctx.reading("bmc_log_used_ratio", int(used[1]) / 100)
    if overflow or (used and int(used[1]) / 100 >= ctx.limits.full_ratio):
        how = "overflowed" if overflow else f"is {int(used[1]) if used else 0} % full"
        yield ctx.warning(
            "BmcLogFull", "bmc", f"the BMC's event log {how} (limit {ctx.limits.full_ratio:.0%})"
        )


def _judge(ctx: Context, events: list[Mapping[str, Any]]) -> Iterator[Finding]:
    known = set(ctx.past.get("seen", ()))
    keys = [_key(event) for event in events]
    ctx.remember["seen"] = keys
    # what was open stays open until it is taken back: `standing` are the states of earlier looks
    standing: dict[str, Mapping[str, Any]] = {}
    for text, kind, event, key in _matched(events, keys):
        if kind.lasts:
            standing.pop(text, None)
        if event.get("asserted", True):
            new = key not in known if "seen" in ctx.past else _recent(ctx, event)
            if new or (kind.lasts and key in ctx.past.get("open", ())):
                standing[text] = event
    ctx.remember["open"] = [_key(event) for event in standing.values()]
    for text, event in standing.items():
        kind = next(k for k in _KINDS if k.pattern.search(text))
        make = ctx.critical if kind.status is Status.CRITICAL else ctx.warning
        yield make(
            kind.code, f"bmc@{event['sensor'] or 'log'}", f"{text} ({_when(event)})",
            evidence=((event["detail"],) if event["detail"] else ()), remedy=kind.remedy,
            clears="recovery" if kind.lasts else _EVENT_CLEARS_SECONDS,
        )  # fmt: skip


def _matched(
    events: list[Mapping[str, Any]], keys: list[str]
) -> Iterator[tuple[str, Kind, Mapping[str, Any], str]]:
    for event, key in zip(events, keys, strict=True):
        text = f"{event['sensor']}: {event['event']}"
        for kind in _KINDS:
            if kind.pattern.search(text):
                yield text, kind, event, key
                break


def _recent(ctx: Context, event: Mapping[str, Any]) -> bool:
    """By the BMC's clock, which may be hours off; an event without a time is not known to be recent."""
    age = ctx.host.now() - float(event.get("time", 0.0))
    return -_DAY_SECONDS < age < float(ctx.limits.recent_days) * _DAY_SECONDS


def _key(event: Mapping[str, Any]) -> str:
    """One record: its number alone is given again after the log was cleared."""
    return f"{event['record']} {event.get('time', 0):.0f} {event['sensor']} {event['event']}"


def _when(event: Mapping[str, Any]) -> str:
    import datetime

    if "time" not in event:
        return f"record {event['record']}, time unknown"
    at = datetime.datetime.fromtimestamp(event["time"], tz=datetime.timezone.utc)
    return f"record {event['record']}, {at:%Y-%m-%d %H:%M} by the BMC's clock"


_KINDS = _kinds()
