"""What the drives say of their own health: worn out, failing, counting errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import smartctl

#: Where the drive itself says that data is at risk now (NVM Express base specification, critical warning).
_FATAL = {"reliability_degraded": "its reliability is degraded", "read_only": "it is read-only"}
#: Counters of which growth is a bad sign; what stands there from long ago is not.
_GROWING = ("media_errors", "reallocated_sectors", "grown_defects")
#: A drive answers in well under a second; one that fails may take its whole time-out.
_SECONDS_A_DRIVE = 15.0


@dataclass(frozen=True)
class Limits:
    # share of the life that the maker promised. gcm (facebookresearch/gcm) warns above 80 % and fails above
    # 100 %; drives go on for long after, and the daily look leaves time at 90 %
    worn_ratio: float = 0.90
    # any growth since the last look: gpud and the makers' RMA rules begin at one unrecovered error
    new_errors: float = 0


@check(
    limits=Limits,
    stages={"daily"},
    timeout_seconds=120.0,
    interval_seconds=86400.0,
    cost_seconds=3.0,
    needs={"root"},
    codes={
        "DiskFailing": "a drive says that it fails, or takes no writes any more",
        "DiskErrors": "a drive has new errors, or sectors that it cannot read",
        "DiskWorn": "a drive has used up the life or the spare that its maker gave it",
        "DiskHot": "a drive is hotter than it may be",
    },
)
def disk_smart(ctx: Context) -> Iterator[Finding | Reading]:
    """Every drive that `smartctl --scan` finds, asked for its SMART health (NVMe, SATA, SAS).

    A drive that sleeps is not woken. Counts of errors are judged by their growth since the last look.
    """
    drives = _scan(ctx)
    if not drives:
        raise ctx.skip("smartctl finds no drive (virtual ones have no SMART)")
    counters: dict[str, float] = {}
    answers = []
    for drive in drives:
        told = _ask(ctx, drive)
        if told is not None:
            name = drive["name"].removeprefix("/dev/")
            answers.append((name, told))
            counters |= {f"{_key(name, told)} {c}": float(told[c]) for c in _GROWING if c in told}
    rates = ctx.rates(counters)
    for name, told in answers:
        part = f"disk@{name}"
        yield from _readings(ctx, part, told)
        yield from _failing(ctx, part, name, told)
        yield from _worn(ctx, part, name, told)
        grown = {c: r.delta for c in _GROWING if (r := rates.get(f"{_key(name, told)} {c}")) and not r.reset}
        yield from _errors(ctx, part, name, told, grown)


def _key(name: str, told: Mapping[str, Any]) -> str:
    """The drive itself: names move between drives at a reboot."""
    return str(told.get("serial") or name)


def _scan(ctx: Context) -> list[dict[str, str]]:
    try:
        done = ctx.host.run("smartctl", "--json=c", "--scan")
    except Absent as exc:
        raise ctx.skip("smartctl (smartmontools) is not installed") from exc
    try:
        # {"devices":[{"name":"/dev/nvme0","info_name":"/dev/nvme0","type":"nvme","protocol":"NVMe"}]}
        listed = json.loads(done.stdout).get("devices", [])
        return [{"name": str(d["name"]), "type": str(d["type"])} for d in listed]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as exc:
        raise Unparsable(
            "smartctl --scan printed an unknown form (7.0 or later is needed)", done.stdout
        ) from exc


def _ask(ctx: Context, drive: Mapping[str, str]) -> dict[str, Any] | None:
    """What the drive says; None, and noted, when it does not say anything."""
    argv = ("--info", "--health", "--attributes", "--nocheck=standby", f"--device={drive['type']}")
    try:
        done = ctx.host.run("smartctl", "--json=c", *argv, drive["name"], timeout_seconds=_SECONDS_A_DRIVE)
        told = smartctl.read(done.stdout)
    except Unobservable as exc:
        ctx.unseen(f"{drive['name']}: {exc}")
        return None
    problem = told.get("problem", "")
    if "STANDBY" in problem.upper() or "SLEEP" in problem.upper():
        ctx.note(f"{drive['name']} sleeps and was not woken")
        return None
    if problem:
        ctx.unseen(f"{drive['name']}: {problem}")
        return None
    if "passed" not in told and "used_ratio" not in told:
        ctx.note(f"{drive['name']} ({told.get('model', 'unknown')}) has no SMART")
    return told


def _readings(ctx: Context, part: str, told: Mapping[str, Any]) -> Iterator[Reading]:
    names = {
        "used_ratio": "disk_life_used_ratio", "spare_ratio": "disk_spare_ratio",
        "temperature_celsius": "disk_temperature_celsius", "media_errors": "disk_media_errors_total",
        "written_bytes": "disk_written_bytes", "pending_sectors": "disk_pending_sectors_total",
        "reallocated_sectors": "disk_reallocated_sectors_total",
    }  # fmt: skip
    for key, name in names.items():
        if key in told:
            yield ctx.reading(name, told[key], part)


def _failing(ctx: Context, part: str, name: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    warnings = told.get("warnings", [])
    reasons = [text for bit, text in _FATAL.items() if bit in warnings]
    # an NVMe drive fails its health test by any bit, also by its temperature: there the bits count
    if told.get("passed") is False and "critical_warning" not in told:
        attributes = ", ".join(told.get("failed_attributes", ()))
        reasons.append("its own health test failed" + (f" ({attributes})" if attributes else ""))
    if reasons:
        yield ctx.critical(
            "DiskFailing", part, f"{name} ({told.get('model', '')}): {' and '.join(reasons)}",
            remedy=Remedy.REPLACE,
        )  # fmt: skip
    elif "backup_failed" in warnings:
        yield ctx.warning(
            "DiskFailing", part, f"{name} ({told.get('model', '')}): its power-loss protection failed",
            remedy=Remedy.REPLACE,
        )  # fmt: skip
    if "temperature" in warnings:
        degrees = told.get("temperature_celsius")
        yield ctx.warning(
            "DiskHot", part,
            f"{name} is at {degrees if degrees is not None else '?'} C, outside of what its maker allows",
        )  # fmt: skip


def _worn(ctx: Context, part: str, name: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    used, spare = told.get("used_ratio"), told.get("spare_ratio")
    threshold = told.get("spare_threshold_ratio", 0)
    texts = []
    if used is not None and used >= ctx.limits.worn_ratio:
        texts.append(f"{used:.0%} of its life is used (limit {ctx.limits.worn_ratio:.0%})")
    # cloud volumes tell 0 of 0
    if (spare is not None and threshold and spare < threshold) or "spare_below_threshold" in told.get(
        "warnings", ()
    ):
        texts.append(f"{spare or 0:.0%} of its spare is left (the maker's threshold is {threshold:.0%})")
    if texts:
        yield ctx.warning(
            "DiskWorn", part, f"{name} ({told.get('model', '')}): {'; '.join(texts)}", remedy=Remedy.REPLACE
        )


def _errors(
    ctx: Context, part: str, name: str, told: Mapping[str, Any], grown: Mapping[str, float]
) -> Iterator[Finding]:
    texts = [
        f"{delta:.0f} new {counter.replace('_', ' ')} since the last look"
        for counter, delta in grown.items()
        if delta > ctx.limits.new_errors
    ]
    texts += [
        f"{told[counter]:.0f} {counter.replace('_', ' ')} now"
        for counter in ("pending_sectors", "uncorrectable_sectors")
        if told.get(counter)
    ]
    if texts:
        yield ctx.warning(
            "DiskErrors", part, f"{name} ({told.get('model', '')}): {'; '.join(texts)}", remedy=Remedy.REPLACE
        )
