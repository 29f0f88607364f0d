"""Errors on the links between AMD's GPUs."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused

GPU = "0000:05:00.0"
PATH = f"/sys/bus/pci/devices/{GPU}/ras/xgmi_wafl_err_count"


@pytest.fixture
def host():
    machine = MemoryHost()
    machine.files[f"/sys/bus/pci/devices/{GPU}/vendor"] = "0x1002\n"
    machine.files[f"/sys/bus/pci/devices/{GPU}/class"] = "0x120000\n"
    machine.files[PATH] = "ue: 0\nce: 4\n"
    return machine


def test_an_uncorrected_error(run):
    verdict = run("xgmi_errors", host="mi300x-xgmi")
    assert [(f.code, f.status) for f in verdict.findings] == [("XgmiUncorrected", Status.CRITICAL)]


def test_corrected_ones_count_when_they_grow(run, host):
    first = run("xgmi_errors", host=host)
    assert first.status is Status.OK
    host.time += 60
    assert run("xgmi_errors", host=host, past=first.memory).findings == ()
    host.files[PATH] = "ue: 0\nce: 5\nde: 0\n"
    assert run("xgmi_errors", host=host, past=first.memory).codes == {"XgmiCorrected"}


def test_the_newer_name(run, host):
    del host.files[PATH]
    host.files[PATH.replace("_wafl", "")] = "ue: 1\nce: 0\nde: 0\n"
    assert run("xgmi_errors", host=host).codes == {"XgmiUncorrected"}


@pytest.mark.parametrize(
    "text", ["Query currently inaccessible\n", "", "ue: x\n", refused("Input/output error")]
)
def test_what_cannot_be_read_is_blindness(run, host, text):
    host.files[PATH] = text
    assert run("xgmi_errors", host=host).status is Status.UNKNOWN


def test_where_there_is_nothing_to_read(run, host):
    del host.files[PATH]
    assert run("xgmi_errors", host=host).status is Status.SKIPPED
    assert run("xgmi_errors", host=MemoryHost()).status is Status.SKIPPED
