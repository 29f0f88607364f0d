"""IMEX: only where the fabric spans nodes, and a domain is active."""

from __future__ import annotations

import json

import pytest

from clustertools.errors import Absent
from clustertools.host import PYTHON
from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.nvlink import RUNS, show

IMEX = show("nvidia-imex.service")
ASK = ("nvidia-imex-ctl", "-q")
NVML = (PYTHON, "-m", "clustertools.sources.nvidia", "--json")
STOPPED = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n"
FAILED = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
NOT_FOUND = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n"


def node(unit, state="READY\n", cluster="00000000-0000-4000-8000-000000000001"):
    host = MemoryHost()
    host.files["/sys/bus/pci/devices/0008:06:00.0/vendor"] = "0x10de\n"
    host.files["/sys/bus/pci/devices/0008:06:00.0/class"] = "0x030200\n"
    gpu = {"index": 0, "pci": "0008:06:00.0", "fabric_cluster": cluster}
    host.commands[NVML] = json.dumps({"schema": 1, "gpus": [gpu]})
    host.commands[IMEX] = unit
    host.commands[ASK] = state
    return host


@pytest.mark.parametrize(
    ("unit", "state", "plain", "expected"),
    [
        (RUNS, "READY\n", Status.OK, Status.OK),
        (RUNS, "WAITING_FOR_PEERS\n", Status.WARNING, Status.CRITICAL),
        (RUNS, "\n", Status.WARNING, Status.CRITICAL),
        (RUNS, Absent("nvidia-imex-ctl is not installed"), Status.OK, Status.OK),
        (RUNS, refused("did not answer"), Status.UNKNOWN, Status.UNKNOWN),
        (STOPPED, "", Status.SKIPPED, Status.CRITICAL),
        (NOT_FOUND, "", Status.SKIPPED, Status.CRITICAL),
        (FAILED, "", Status.WARNING, Status.CRITICAL),
        (Absent("systemctl is not installed"), "", Status.SKIPPED, Status.SKIPPED),
    ],
)
def test_each_state(run, unit, state, plain, expected):
    assert run("nvlink_imex", host=node(unit, state)).status is plain
    assert run("nvlink_imex", host=node(unit, state), expect={"imex": True}).status is expected


def test_a_driver_that_hangs_does_not_matter_without_a_domain(run):
    host = node(STOPPED)
    host.commands[NVML] = refused("did not answer")
    assert run("nvlink_imex", host=host).status is Status.SKIPPED


@pytest.mark.parametrize("cluster", ["", None])
def test_a_fabric_of_one_node(run, cluster):
    assert run("nvlink_imex", host=node(FAILED, cluster=cluster)).status is Status.SKIPPED


def test_a_tray_of_a_domain_and_one_whose_daemon_failed(run):
    assert run("nvlink_imex", host="gb200-healthy").status is Status.OK
    verdict = run("nvlink_imex", host="gb200-imex-failed", expect={"imex": True})
    assert (verdict.codes, verdict.status) == ({"ImexDown"}, Status.CRITICAL)
