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
        "a link above a card has lost PCIe lanes", "pci@",
    ),
    "slot-power": Rule(
        "PcieSlotPower", Status.WARNING, Remedy.INSPECT, "hardware_seconds",
        "a card does not get the power that it asks of its slot", "pci@",
    ),
}  # fmt: skip

# 63.008 Gb/s available PCIe bandwidth, limited by 16.0 GT/s PCIe x4 link at 0000:3a:00.0 (capable of
#   252.048 Gb/s with 16.0 GT/s PCIe x16 link)
_LANES = (
    r"limited by .{0,40}x(?P<now>\d{1,2}) link at (?P<at>[0-9a-f:.]{7,16}) "
    r"\(capable of .{0,60}x(?P<able>\d{1,2}) link"
)
#: PCI base classes of what carries a training job: network (0x02), display and 3D (0x03).
_CARDS = (0x02, 0x03)
#: QEMU's and VMware's bridges say one lane, and pass all that the card can (PCI ID repository).
_EMULATED = (0x1B36, 0x15AD)


def _fewer_lanes(ctx: Context, group: Group) -> bool:
    """Whether a line of limited bandwidth means a link above a card that lost lanes.

    Most such lines mean nothing: a card newer than its slot, a drive with two lanes by design, the bridge of
    a virtual machine. The card's own link is judged by `pcie_link`; what is left is a GPU or a network
    adapter behind a link that has, now as well, fewer lanes than it could have.
    """
    card = group.part.removeprefix("pci@")
    for line in group.evidence:
        said = re.search(_LANES, line)
        if said is None or said["at"] == card or int(said["now"]) >= int(said["able"]):
            continue
        bus = "/sys/bus/pci/devices"
        try:
            if int(ctx.host.read(f"{bus}/{card}/class"), 16) >> 16 not in _CARDS:
                continue
            if int(ctx.host.read(f"{bus}/{said['at']}/vendor"), 16) in _EMULATED:
                continue
            now, able = (ctx.host.read(f"{bus}/{said['at']}/{x}_link_width") for x in ("current", "max"))
            if int(now) < int(able):
                return True
        except (Unobservable, ValueError):
            continue  # the card is gone, or nobody can say what it is: other checks count cards
    return False


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
