"""PCIe links that are narrow or slow, and the many machines on which that is right."""

from __future__ import annotations

import json

import pytest

from clustertools.host import PYTHON
from clustertools.model import Status
from clustertools.sources.pcie import FOLDER
from tests.sources.test_source_pcie import Machine

ASK = (PYTHON, "-m", "clustertools.sources.nvidia", "--json")
G3, G4 = "8.0 GT/s PCIe", "16.0 GT/s PCIe"


def told(verdict):
    return {(f.code, f.subject.part): f.status for f in verdict.findings}


class Node(Machine):
    """Four GPUs and four adapters, each below a root port of its own."""

    def __init__(self, ports=True, gpus=4, nics=4):
        super().__init__()
        self.utilisation = {}
        self.commands[ASK] = self.answer
        self.addresses = []
        for n in range(gpus + nics):
            bus = 0x10 + 0x10 * n
            if ports:
                self.bridge(f"0000:{bus - 1:02x}:01.0", bus, vendor="0x8086")
            if n < gpus:
                self.device(f"0000:{bus:02x}:00.0")
            else:
                self.device(f"0000:{bus:02x}:00.0", "0x15b3", "0x020700", "0x1021")

    def answer(self):
        gpus = [
            {"index": n, "pci": pci, "gpu_utilisation_percent": percent}
            for n, (pci, percent) in enumerate(self.utilisation.items())
        ]
        return json.dumps({"schema": 1, "gpus": gpus})

    def now(self, address=None, width=None, speed=None):
        if address is None:
            return super().now()
        if width:
            self.files[f"{FOLDER}/{address}/current_link_width"] = f"{width}\n"
        if speed:
            self.files[f"{FOLDER}/{address}/current_link_speed"] = f"{speed}\n"
        return 0.0


def test_a_node_with_narrow_and_slow_links(run):
    assert told(run("pcie_link", host="h100-pcie-degraded")) == {
        ("PcieWidthReduced", "gpu@0000:2a:00.0"): Status.CRITICAL,
        ("PcieSpeedReduced", "pci@0000:19:00.0"): Status.CRITICAL,
    }


@pytest.mark.parametrize("ports", [True, False])
def test_one_of_many(run, ports):
    node = Node(ports)
    assert run("pcie_link", host=node).status is Status.OK
    node.now("0000:20:00.0", width=8)
    assert told(run("pcie_link", host=node)) == {("PcieWidthReduced", "gpu@0000:20:00.0"): Status.CRITICAL}


def test_a_slot_with_fewer_lanes_is_no_fault(run):
    node = Node()
    node.now("0000:20:00.0", width=8)
    node.files[f"{FOLDER}/0000:1f:01.0/max_link_width"] = "8\n"
    node.files[f"{FOLDER}/0000:1f:01.0/current_link_width"] = "8\n"
    assert run("pcie_link", host=node).findings == ()


def test_all_narrow(run):
    for ports, status in ((True, Status.WARNING), (False, Status.OK)):
        node = Node(ports)
        for bus in (0x10, 0x20, 0x30, 0x40):
            node.now(f"0000:{bus:02x}:00.0", width=8)
        assert run("pcie_link", host=node).status is status


def test_all_slow_is_the_way_the_board_is_set_up(run):
    node = Node()
    for bus in (0x50, 0x60, 0x70, 0x80):
        node.now(f"0000:{bus:02x}:00.0", speed=G4)
    verdict = run("pcie_link", host=node)
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "PCIe generation 4 of 5" in verdict.detail


def test_an_idle_gpu_is_slow_by_design(run):
    node = Node()
    node.utilisation = {f"0000:{bus:02x}:00.0": 0 for bus in (0x10, 0x20, 0x30, 0x40)}
    node.now("0000:20:00.0", speed=G3)
    assert run("pcie_link", host=node, expect={"pcie_generation": 5}).findings == ()
    node.utilisation = dict.fromkeys(node.utilisation, 50)
    for expect in ({}, {"pcie_generation": 5}):
        verdict = run("pcie_link", host=node, expect=expect)
        assert told(verdict) == {("PcieSpeedReduced", "gpu@0000:20:00.0"): Status.CRITICAL}


def test_a_driver_that_does_not_answer_leaves_the_lanes(run):
    node = Node()
    del node.commands[ASK]
    node.now("0000:20:00.0", width=8, speed=G3)
    verdict = run("pcie_link", host=node)
    assert told(verdict) == {("PcieWidthReduced", "gpu@0000:20:00.0"): Status.CRITICAL}
    assert "is not known" in verdict.detail


def test_expected_lanes(run):
    node = Node(ports=False, gpus=1, nics=0)
    node.now("0000:10:00.0", width=8)
    assert run("pcie_link", host=node).findings == ()
    verdict = run("pcie_link", host=node, expect={"pcie_width": 16})
    assert told(verdict) == {("PcieWidthReduced", "gpu@0000:10:00.0"): Status.CRITICAL}


def test_a_desktop_card_is_a_warning(run):
    node = Node(gpus=0, nics=0)
    for bus in (0x10, 0x20, 0x30):
        node.device(f"0000:{bus:02x}:00.0", pci_class="0x030000")
    node.now("0000:10:00.0", width=4)
    assert set(told(run("pcie_link", host=node)).values()) == {Status.WARNING}


def test_the_uplink_of_a_switch(run):
    node = Node(gpus=0, nics=0)
    for n in range(3):
        bus = 0x10 + 0x10 * n
        node.bridge(f"0000:{bus:02x}:01.0", bus + 1, vendor="0x8086")
        node.bridge(f"0000:{bus + 1:02x}:00.0", bus + 2)
        node.bridge(f"0000:{bus + 2:02x}:00.0", bus + 3)
        node.device(f"0000:{bus + 3:02x}:00.0", "0x15b3", "0x020700", "0x1021")
    assert run("pcie_link", host=node).findings == ()
    node.now("0000:21:00.0", speed=G4)
    assert told(run("pcie_link", host=node)) == {("PcieSpeedReduced", "pci@0000:21:00.0"): Status.CRITICAL}


def test_a_virtual_port_proves_nothing(run):
    node = Node(gpus=0, nics=0)
    node.bridge("0000:00:01.0", 1, vendor="0x1b36", width=32)
    node.device("0000:01:00.0", "0x15b3", "0x020000", "0x101e", now=8)
    assert run("pcie_link", host=node).findings == ()


def test_devices_that_vanish(run):
    node = Node()
    past = run("pcie_link", host=node).memory
    past = json.loads(json.dumps(past))
    for path in [p for p in node.files if "/0000:50:00.0/" in p or "/0000:20:00.0/" in p]:
        del node.files[path]
    verdict = run("pcie_link", host=node, past=past)
    assert told(verdict) == {
        ("PcieDeviceGone", "gpu@0000:20:00.0"): Status.CRITICAL,
        ("PcieDeviceGone", "pci@0000:50:00.0"): Status.CRITICAL,
    }
    # it stays known, gpu_count tells of GPUs where it knows their number, and a reboot forgets
    again = run("pcie_link", host=node, past=verdict.memory, expect={"gpu_count": 4})
    assert set(told(again)) == {("PcieDeviceGone", "pci@0000:50:00.0")}
    node.boot_id = "boot-2"
    assert run("pcie_link", host=node, past=again.memory).findings == ()


def test_an_adapter_that_a_cloud_takes_away(run):
    node = Node(ports=False)
    past = run("pcie_link", host=node).memory
    for path in [p for p in node.files if "/0000:50:00.0/" in p]:
        del node.files[path]
    assert set(told(run("pcie_link", host=node, past=past)).values()) == {Status.WARNING}


def test_nothing_on_the_bus(run):
    assert run("pcie_link", host=Machine()).status is Status.SKIPPED


def test_a_virtual_machine_that_tells_nothing(run):
    node = Machine()
    node.device("0000:10:00.0", width=0)
    verdict = run("pcie_link", host=node)
    assert (verdict.status, "virtual machine" in verdict.detail) == (Status.OK, True)
