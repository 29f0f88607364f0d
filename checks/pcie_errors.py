"""Errors on PCIe links: what the kernel counts of each device, and what the GPUs repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import NotApplicable, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus
from clustertools.sources.pcie import Device, bus, errors
from clustertools.stats import Rate

_HOUR_SECONDS = 3600.0
_DAY_SECONDS = 86400.0
#: DCGM's rule: replays a minute and lane, by generation. A link may lose about one bit in 10^12, so twice
#: the speed loses twice as many.
REPLAYS_PER_LANE_MINUTE = {1: 0.15, 2: 0.3, 3: 0.48, 4: 0.96, 5: 1.92, 6: 3.84}
#: A drive or a card that is pulled shows as this (SDES, Surprise Down Error), and so may a reset.
SURPRISE_DOWN = {"SDES", "Surprise Down Error"}
#: A question that a device does not know. Drivers ask such when they look for features.
UNSUPPORTED = {"UnsupReq", "Unsupported Request"}


@dataclass(frozen=True)
class Limits:
    #: DCGM's diagnostic fails at 480 in a run, 32 a minute of its quarter of an hour.
    correctable_per_minute: float = 32.0
    #: Unsupported requests come in handfuls when drivers load (own choice: the rate of the line above).
    unsupported_per_minute: float = 32.0


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "PcieAerFatal": "a PCIe device had a fatal error: its link was reset or is lost",
        "PcieAerUncorrected": "a PCIe device had an uncorrected error that was not fatal",
        "PcieAerCorrected": "a PCIe device corrects errors at a rate that announces a bad link",
        "PcieReplays": "a GPU repeats PCIe transfers more often than a good link needs to",
    },
)
def pcie_errors(ctx: Context) -> Iterator[Finding | Reading]:
    """Judges the growth of the AER counters of GPUs, adapters, drives, NVSwitches and the bridges above them.

    A first look only reads: totals since boot hold what happened while drivers loaded. The replay counter is
    NVML's, judged by DCGM's rule of generation and lanes.
    """
    devices = [*bus(ctx.host).by_address.values()]
    if not devices:
        raise ctx.skip("no GPU, network adapter or NVMe drive on the PCI bus")
    counted = {d.address: found for d in devices if (found := errors(ctx.host, d.address)) is not None}
    cards = _gpus(ctx, devices)
    if not counted and not cards:
        raise ctx.skip(
            "the kernel counts no PCIe errors here (a virtual machine, or the firmware keeps them)"
        )
    counters = {
        f"{address} {severity} {name}": float(count)
        for address, found in counted.items()
        for severity, names in found.items()
        for name, count in names.items()
    }
    counters |= {
        f"{gpu.pci} replay count": float(gpu.pcie_replays) for gpu in cards if gpu.pcie_replays is not None
    }
    rates = ctx.rates(counters)
    for device in devices:
        if device.address not in counted:
            continue
        for severity, names in counted[device.address].items():
            yield ctx.reading(f"pcie_{severity}_errors_total", sum(names.values()), device.part)
        own = {
            tuple(key.split(" ", 2)[1:]): rate
            for key, rate in rates.items()
            if key.startswith(f"{device.address} ") and rate.delta > 0
        }
        yield from _fatal(ctx, device, _of(own, "fatal"))
        yield from _uncorrected(ctx, device, _of(own, "nonfatal"))
        yield from _corrected(ctx, device, _of(own, "correctable"))
    for gpu in cards:
        if gpu.pcie_replays is not None:
            yield ctx.reading("pcie_replays_total", gpu.pcie_replays, gpu.part)
        yield from _replays(ctx, gpu, rates.get(f"{gpu.pci} replay count"))


def _of(rates: Mapping[tuple[str, ...], Rate], severity: str) -> dict[str, Rate]:
    return {key[1]: rate for key, rate in rates.items() if key[0] == severity}


def _gpus(ctx: Context, devices: list[Device]) -> list[Gpu]:
    if not any(d.kind == "gpu" for d in devices):
        return []
    try:
        found = gpus(ctx.host)
    except NotApplicable:
        return []  # the GPUs are another maker's
    except Unobservable as exc:
        ctx.unseen(str(exc))
        return []
    for gpu in found:
        if why := gpu.blind("pcie_replays"):
            ctx.unseen(why)
    return found


def _told(grown: Mapping[str, Rate]) -> tuple[str, ...]:
    return tuple(f"{name}: {rate.delta:.0f} more" for name, rate in sorted(grown.items()))


def _fatal(ctx: Context, device: Device, grown: Mapping[str, Rate]) -> Iterator[Finding]:
    if not grown:
        return
    pulled = set(grown) <= SURPRISE_DOWN
    say = ctx.warning if pulled else ctx.critical
    what = "a device below it went away" if pulled else "fatal PCIe error"
    yield say(
        "PcieAerFatal", device.part, f"{device.kind} {device.address}: {what}",
        evidence=_told(grown), remedy=Remedy.REBOOT_NODE, clears=_DAY_SECONDS,
    )  # fmt: skip


def _uncorrected(ctx: Context, device: Device, grown: Mapping[str, Rate]) -> Iterator[Finding]:
    worse = {
        name: rate
        for name, rate in grown.items()
        if name not in UNSUPPORTED or rate.per_second * 60 > ctx.limits.unsupported_per_minute
    }
    if worse:
        yield ctx.warning(
            "PcieAerUncorrected", device.part, f"{device.kind} {device.address}: uncorrected PCIe errors",
            evidence=_told(worse), remedy=Remedy.INSPECT, clears=_HOUR_SECONDS,
        )  # fmt: skip


def _corrected(ctx: Context, device: Device, grown: Mapping[str, Rate]) -> Iterator[Finding]:
    per_minute = round(sum(rate.per_second for rate in grown.values()) * 60, 6)
    if per_minute > ctx.limits.correctable_per_minute:
        yield ctx.warning(
            "PcieAerCorrected", device.part,
            f"{device.kind} {device.address}: {per_minute:.0f} corrected PCIe errors a minute "
            f"(limit {ctx.limits.correctable_per_minute:g})",
            evidence=_told(grown), remedy=Remedy.INSPECT, clears=_HOUR_SECONDS,
        )  # fmt: skip


def _replays(ctx: Context, gpu: Gpu, rate: Rate | None) -> Iterator[Finding]:
    lanes = gpu.pcie_width_max or gpu.pcie_width
    per_lane = REPLAYS_PER_LANE_MINUTE.get(gpu.pcie_generation_max or gpu.pcie_generation or 0)
    if rate is None or not lanes or per_lane is None:
        return
    limit = math.ceil(per_lane * lanes)
    per_minute = round(rate.per_second * 60, 6)
    if per_minute > limit:
        yield ctx.warning(
            "PcieReplays", gpu.part,
            f"GPU {gpu.index}: {per_minute:.0f} PCIe replays a minute (limit {limit})",
            remedy=Remedy.INSPECT, clears=_HOUR_SECONDS,
        )  # fmt: skip
