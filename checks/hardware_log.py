"""What the kernel log says of the machine itself: machine checks, PCIe errors and slots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.kernel_groups import Group, Rule, Rules, follow

HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    """How long an event of each kind counts after its last repetition."""

    #: Hardware: a day, so that no job of the morning starts on last night's fault.
    hardware_seconds: float = 24 * HOUR
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


RULES: Rules = {
    "machine-check": Rule(
        "HostMachineCheck", Status.CRITICAL, Remedy.INSPECT, "hardware_seconds",
        "the hardware reported an error that it could not correct",
    ),
    "pcie-fatal": Rule(
        "PcieFatalError", Status.CRITICAL, Remedy.REBOOT_NODE, "hardware_seconds",
        "a fatal error on a PCIe link", "pci@",
    ),
    # said once, when the device is found or its driver loaded
    "pcie-narrow": Rule(
        "PcieBandwidthLimited", Status.WARNING, Remedy.INSPECT, "reboot",
        "a card has fewer PCIe lanes than it could use", "pci@",
    ),
    "slot-power": Rule(
        "PcieSlotPower", Status.WARNING, Remedy.INSPECT, "hardware_seconds",
        "a card does not get the power that it asks of its slot", "pci@",
    ),
}  # fmt: skip

# 63.008 Gb/s available PCIe bandwidth, limited by 16.0 GT/s PCIe x4 link at 0000:3a:00.0 (capable of
#   252.048 Gb/s with 16.0 GT/s PCIe x16 link)
_LANES = r"limited by .{0,40}x(?P<now>\d{1,2}) link.{0,60}capable of .{0,60}x(?P<able>\d{1,2}) link"
#: PCI base classes of what carries a training job: network (0x02), display and 3D (0x03).
_CARDS = (0x02, 0x03)


def _fewer_lanes(ctx: Context, group: Group) -> bool:
    """Whether a line of limited bandwidth means a card that sits badly.

    Most such lines mean nothing: a card newer than its slot, a drive with two lanes by design. What counts is
    a GPU or a network adapter with fewer lanes than it has, now as well.
    """
    lanes = [re.search(_LANES, line) for line in group.evidence]
    if not any(found and int(found["now"]) < int(found["able"]) for found in lanes):
        return False
    folder = f"/sys/bus/pci/devices/{group.part.removeprefix('pci@')}"
    try:
        if int(ctx.host.read(f"{folder}/class"), 16) >> 16 not in _CARDS:
            return False
        now, able = (ctx.host.read(f"{folder}/{side}_link_width") for side in ("current", "max"))
        return int(now) < int(able)
    except (Unobservable, ValueError):
        return False  # the card is gone, or nobody can say what it is: other checks count cards


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={rule.code: rule.meaning for rule in RULES.values()},
)
def hardware_log(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the kernel wrote about the hardware since the last look, and what of it stands.

    Corrected machine checks are not reported here: their rate is what matters, and `host_memory` counts them.
    That lines were lost is told by `host_kernel`, which reads the same log.
    """
    followed = follow(ctx.host, ctx.past, RULES, ctx.limits)
    ctx.remember.update(followed.memory)
    for group in followed.groups:
        rule = RULES[group.kind]  # type: ignore[index]
        if group.kind == "pcie-narrow" and not _fewer_lanes(ctx, group):
            continue
        say = ctx.critical if rule.status is Status.CRITICAL else ctx.warning
        # while it stands it is reported again on each look, so that it ends by silence
        yield say(
            rule.code, group.part, group.summary(rule), time=group.last_time, evidence=group.evidence,
            remedy=rule.remedy,
        )  # fmt: skip
