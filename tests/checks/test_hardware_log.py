"""Machine checks, PCIe errors and slots: what the kernel wrote, held against what the bus says now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.hardware_log import hardware_log

from clustertools.errors import Absent
from clustertools.model import Finding, Status, Verdict
from tests.checks.kernel_node import Node

Run = Callable[..., Verdict]
NARROW = (
    "pci 0000:3b:00.0: 252.048 Gb/s available PCIe bandwidth, limited by 32.0 GT/s PCIe {} link at "
    "0000:15:01.0 (capable of 504.112 Gb/s with 32.0 GT/s PCIe x16 link)"
)


class Slotted(Node):
    """A node with one card behind a bridge; a test says what they are and how wide the bridge's link is."""

    sysfs: dict[str, str]

    def with_card(self, kind: str, now: str, vendor: str = "0x8086") -> Slotted:
        self.sysfs = {
            "0000:3b:00.0/class": kind,
            "0000:15:01.0/vendor": vendor,
            "0000:15:01.0/current_link_width": now,
            "0000:15:01.0/max_link_width": "16",
        }
        return self

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path.startswith("/sys/bus/pci/devices/"):
            name = path.removeprefix("/sys/bus/pci/devices/")
            if not self.sysfs.get(name):
                raise Absent(path)
            return self.sysfs[name] + "\n"
        return super().read(path, offset, limit)


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


@pytest.mark.parametrize(
    ("text", "code", "status", "part"),
    [
        (
            "mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 4: be00000000800400",
            "HostMachineCheck",
            Status.CRITICAL,
            "",
        ),
        ("{1}[Hardware Error]: event severity: fatal", "HostMachineCheck", Status.CRITICAL, ""),
        (
            "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
            "HostMachineCheck",
            Status.CRITICAL,
            "",
        ),
        (
            "Memory failure: 0x1a2b3c: recovery action for dirty LRU page: Recovered",
            "HostMachineCheck",
            Status.CRITICAL,
            "",
        ),
        (
            "pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0",
            "PcieFatalError",
            Status.CRITICAL,
            "pci@0000:3b:00.0",
        ),
        (
            "mlx5_core 0000:1a:00.0: x:1:(pid 0): Detected insufficient power on the PCIe slot (27W).",
            "PcieSlotPower",
            Status.WARNING,
            "pci@0000:1a:00.0",
        ),
    ],
)
def test_an_event(text: str, code: str, status: Status, part: str) -> None:
    finding = only(Node().say(text).look(hardware_log))
    assert (finding.code, finding.status, finding.subject.part) == (code, status, part)


@pytest.mark.parametrize(
    "text",
    [
        "mce: [Hardware Error]: Machine check events logged",
        "{2}[Hardware Error]: event severity: corrected",
        "EDAC MC0: 2 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
        "mce: CPU0: Thermal monitoring enabled (TM1)",
        "MCE: In-kernel MCE decoding enabled.",
        "EDAC MC: Ver: 3.0.0",
        "pcieport 0000:3a:00.0: AER: Corrected error received: 0000:3b:00.0",
        "pcieport 0000:3a:00.0: AER: enabled with IRQ 33",
    ],
)
def test_what_is_corrected_or_ordinary_is_none(text: str) -> None:
    assert Node().say(text).look(hardware_log).status is Status.OK


@pytest.mark.parametrize("kind", ["0x030200", "0x020700", "0x020000"])
def test_a_card_with_fewer_lanes_than_it_has(kind: str) -> None:
    finding = only(Slotted().with_card(kind, "8").say(NARROW.format("x8")).look(hardware_log))
    assert (finding.code, finding.status) == ("PcieBandwidthLimited", Status.WARNING)
    assert finding.subject.part == "pci@0000:3b:00.0"


@pytest.mark.parametrize(
    ("kind", "now", "vendor", "said"),
    [
        ("0x010802", "8", "0x8086", NARROW.format("x8")),  # a drive in a narrow slot, by design
        ("0x030200", "16", "0x8086", NARROW.format("x8")),  # it was reseated or trained anew
        ("0x030200", "16", "0x8086", NARROW.format("x16")),  # only slower: a card newer than its slot
        ("0x030200", "1", "0x1b36", NARROW.format("x1")),  # the bridge of a virtual machine
        ("0x030200", "8", "0x8086", NARROW.format("x8").replace("15:01.0", "3b:00.0")),  # pcie_link's
        ("", "", "", NARROW.format("x8")),  # the card is gone
        ("0x03", "wide", "0x8086", NARROW.format("x8")),
        ("0x030200", "8", "0x8086", NARROW.format("x8")[:90]),  # cut
    ],
)
def test_a_limit_that_means_nothing(kind: str, now: str, vendor: str, said: str) -> None:
    assert Slotted().with_card(kind, now, vendor).say(said).look(hardware_log).status is Status.OK


def test_recorded_machines(run: Run) -> None:
    verdict = run("hardware_log", host="h100-kernel-broken")
    assert verdict.codes == {"HostMachineCheck", "PcieFatalError", "PcieBandwidthLimited"}
    assert run("hardware_log", host="a100-healthy").status is Status.OK


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    node = Node()
    node.ring = None
    assert node.look(hardware_log).status is Status.UNKNOWN
