"""PCIe error counters from look to look."""

from __future__ import annotations

import json

import pytest

from clustertools.host import PYTHON
from clustertools.model import Status
from tests.lab.parts.pcie import aer
from tests.sources.test_source_pcie import Machine

ASK = (PYTHON, "-m", "clustertools.sources.nvidia", "--json")
NIC = "0000:50:00.0"


class Node(Machine):
    """An adapter with error counters, and a GPU whose driver counts replays."""

    def __init__(self, gpu=True):
        super().__init__()
        self.device(NIC, "0x15b3", "0x020700", "0x1021")
        self.files.update(aer(NIC, correctable_RxErr=1000, nonfatal_UnsupReq=3, fatal_DLP=1))
        self.gpu = {"index": 0, "pci": "0000:18:00.0", "pcie_replays": 5, "pcie_generation_max": 5,
                    "pcie_width_max": 16}  # fmt: skip
        if gpu:
            self.device("0000:18:00.0")
        self.commands[ASK] = lambda: json.dumps({"schema": 1, "gpus": [self.gpu]})
        self.past = {}

    def look(self, run, seconds=60.0, **counts):
        self.time += seconds
        if counts:
            self.files.update(aer(NIC, **counts))
        verdict = run("pcie_errors", host=self, past=self.past)
        self.past = json.loads(json.dumps(verdict.memory))
        return verdict


def test_what_was_counted_since_boot_is_not_judged(run):
    node = Node()
    assert node.look(run).status is Status.OK
    assert node.look(run).status is Status.OK
    readings = {(r.subject.part, r.name): r.value for r in node.look(run).readings}
    assert readings[f"pci@{NIC}", "pcie_correctable_errors_total"] == 1000


@pytest.mark.parametrize(
    ("counts", "code", "status"),
    [
        ({"correctable_RxErr": 1032}, None, Status.OK),
        ({"correctable_RxErr": 1020, "correctable_BadTLP": 13}, "PcieAerCorrected", Status.WARNING),
        ({"nonfatal_UnsupReq": 35}, None, Status.OK),
        ({"nonfatal_UnsupReq": 36}, "PcieAerUncorrected", Status.WARNING),
        ({"nonfatal_CmpltTO": 1}, "PcieAerUncorrected", Status.WARNING),
        ({"fatal_DLP": 2}, "PcieAerFatal", Status.CRITICAL),
        ({"fatal_SDES": 1}, "PcieAerFatal", Status.WARNING),
    ],
)
def test_growth(run, counts, code, status):
    node = Node()
    node.look(run)
    before = {"correctable_RxErr": 1000, "nonfatal_UnsupReq": 3, "fatal_DLP": 1}
    verdict = node.look(run, **{**before, **counts})
    assert [f.code for f in verdict.findings] == ([code] if code else [])
    assert verdict.status is status
    if code:
        assert verdict.findings[0].subject.part == f"pci@{NIC}"


@pytest.mark.parametrize(
    ("generation", "lanes", "limit"), [(5, 16, 31), (4, 16, 16), (3, 8, 4), (1, 1, 1), (6, 16, 62)]
)
def test_replays_by_generation_and_lanes(run, generation, lanes, limit):
    for growth, codes in ((limit, set()), (limit + 1, {"PcieReplays"})):
        node = Node()
        node.gpu |= {"pcie_generation_max": generation, "pcie_width_max": lanes}
        node.look(run)
        node.gpu["pcie_replays"] = 5 + growth
        assert node.look(run).codes == codes


def test_a_card_of_a_generation_that_nobody_knows(run):
    node = Node()
    node.gpu["pcie_generation_max"] = 9
    node.look(run)
    node.gpu["pcie_replays"] = 10**9
    assert node.look(run).findings == ()


def test_a_reboot_and_a_counter_that_was_reset(run):
    node = Node()
    node.look(run)
    node.boot_id = "boot-2"
    assert node.look(run, correctable_RxErr=0).findings == ()
    assert node.look(run, correctable_RxErr=0).findings == ()


def test_a_driver_that_does_not_answer_leaves_the_kernel_s_counters(run):
    node = Node()
    node.look(run)
    node.commands[ASK] = "babble"
    verdict = node.look(run, correctable_RxErr=1000, nonfatal_UnsupReq=3, fatal_DLP=2)
    assert (verdict.status, verdict.codes) == (Status.CRITICAL, {"PcieAerFatal"})
    assert "JSON" in verdict.blind


def test_a_machine_that_counts_nothing(run):
    node = Machine()
    node.device(NIC, "0x15b3", "0x020700")
    assert run("pcie_errors", host=node).status is Status.SKIPPED
    assert run("pcie_errors", host=Machine()).status is Status.SKIPPED
