"""Fabric manager that does not run, NVSwitches that are missing, and what its log says."""

from __future__ import annotations

import json

import pytest

from clustertools.model import Remedy, Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.nvlink import FABRIC_MANAGER, LOG, RUNS
from tests.sources.test_source_fabric_manager import FATAL, NON_FATAL, START

FAILED = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
NOT_FOUND = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n"


class Node(MemoryHost):
    """Eight GPUs and four NVSwitches on the PCI bus."""

    def __init__(self, switches: int = 4, gpus: int = 8) -> None:
        super().__init__()
        for n in range(switches):
            self.device(f"0000:0{n}:00.0", "0x068000")
        for n in range(gpus):
            self.device(f"0000:1{n}:00.0", "0x030200")
        self.commands[FABRIC_MANAGER] = RUNS

    def device(self, address: str, kind: str) -> None:
        self.files[f"/sys/bus/pci/devices/{address}/vendor"] = "0x10de\n"
        self.files[f"/sys/bus/pci/devices/{address}/class"] = f"{kind}\n"


def test_a_node_whose_fabric_manager_gave_up(run):
    host = "h100-fabric-down"
    verdict = run("fabric_manager", host=host, expect={"nvswitches": 4})
    assert verdict.codes == {"FabricManagerDown", "NvswitchMissing"}
    assert verdict.status is Status.CRITICAL
    assert run("fabric_manager", host=host).codes == {"FabricManagerDown"}
    assert run("fabric_manager_log", host=host).codes == {"FabricTopologyMismatch"}


def test_it_runs(run):
    assert run("fabric_manager", host=Node(), expect={"nvswitches": 4}).status is Status.OK


@pytest.mark.parametrize("text", [FAILED, NOT_FOUND])
def test_it_does_not_run(run, text):
    node = Node()
    node.commands[FABRIC_MANAGER] = text
    assert run("fabric_manager", host=node).codes == {"FabricManagerDown"}
    # or it does, in a container
    node.files["/proc/71/comm"] = "nv-fabricmanage\n"
    assert run("fabric_manager", host=node).status is Status.OK


def test_no_systemd(run):
    node = Node()
    del node.commands[FABRIC_MANAGER]
    verdict = run("fabric_manager", host=node)
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "no process nv-fabricmanage is to be seen" in verdict.detail
    assert run("fabric_manager", host=node, expect={"fabric_manager": True}).codes == {"FabricManagerDown"}
    node.files["/proc/71/comm"] = "nv-fabricmanage\n"
    assert run("fabric_manager", host=node, expect={"fabric_manager": True}).status is Status.OK


def test_where_it_is_not_needed(run):
    node = Node(switches=0)
    node.commands[FABRIC_MANAGER] = NOT_FOUND
    assert run("fabric_manager", host=node).status is Status.SKIPPED
    assert run("fabric_manager", host=node, expect={"fabric_manager": True}).codes == {"FabricManagerDown"}
    node = Node()
    node.commands[FABRIC_MANAGER] = NOT_FOUND
    for expect in ({"fabric_manager": False}, {"gpu_count": 0}):
        assert run("fabric_manager", host=node, expect=expect).findings == ()


def test_a_systemd_that_hangs_is_blindness(run):
    node = Node()
    node.commands[FABRIC_MANAGER] = refused("systemctl did not answer within 5 s")
    assert run("fabric_manager", host=node).status is Status.UNKNOWN


def test_the_log_from_look_to_look(run):
    node = Node()
    node.files[LOG] = f"{FATAL}\n{START}\n{NON_FATAL}\n"
    past: dict = {}

    def look():
        nonlocal past
        verdict = run("fabric_manager_log", host=node, past=past)
        past = json.loads(json.dumps(verdict.memory))
        return verdict

    assert look().status is Status.OK
    node.files[LOG] += f"{FATAL}\n"
    finding = look().findings[0]
    assert (finding.code, finding.status, finding.remedy) == (
        "FabricSwitchFatal", Status.CRITICAL, Remedy.REBOOT_NODE,
    )  # fmt: skip
    assert finding.subject.part == "pci@0000:86:00.0"
    assert "SXid 20034" in finding.summary
    # what was fatal stands until fabric manager starts anew, days later too
    node.time += 3 * 86400
    assert look().codes == {"FabricSwitchFatal"}
    node.files[LOG] += f"{START}\n"
    assert look().status is Status.OK


def test_many_errors_that_were_not_fatal(run):
    node = Node()
    node.files[LOG] = f"{NON_FATAL}\n" * 10
    assert run("fabric_manager_log", host=node).status is Status.OK
    node.files[LOG] = f"{NON_FATAL}\n" * 11
    verdict = run("fabric_manager_log", host=node)
    assert (verdict.status, verdict.codes) == (Status.WARNING, {"FabricSwitchErrors"})
    node.time += 86401
    assert run("fabric_manager_log", host=node, past=verdict.memory).status is Status.OK


def test_the_log_where_there_is_none_or_where_we_may_not(run):
    node = Node()
    assert run("fabric_manager_log", host=node).status is Status.SKIPPED
    node.files[LOG] = refused("Permission denied")
    assert run("fabric_manager_log", host=node).status is Status.UNKNOWN
    assert run("fabric_manager_log", host=Node(switches=0)).status is Status.SKIPPED
