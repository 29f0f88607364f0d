"""GPUs unlike their peers under load, and never when the load is not the same."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import profiles

LOAD = ("throttle=0x4", "temperature=58", "power_mw=640000", "sm_clock=1755", "utilisation=100")


def found(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_unlike_its_peers(run):
    verdict = run("gpu_balance", "h100-gpu-unlike-peers")
    assert found(verdict) == {
        ("GpuTemperatureSpread", "gpu@0000:3a:00.0"), ("GpuClockSpread", "gpu@0000:ba:00.0"),
    }  # fmt: skip
    assert "27 C more than its 6 peers" in verdict.findings[0].summary


def test_readings(run):
    readings = {r.name: r.value for r in run("gpu_balance", "h100-healthy").readings}
    assert (readings["gpu_utilisation_ratio"], readings["margin_celsius"]) == (0, 56)


@pytest.mark.parametrize(("celsius", "hot"), [(78, False), (79, True)])
def test_the_edge_of_the_spread(run, nvml, celsius, hot):
    nvml.set(*LOAD, f"2.temperature={celsius}")
    assert (run("gpu_balance", nvml.host).codes == {"GpuTemperatureSpread"}) == hot


@pytest.mark.parametrize(
    "lines",
    [
        ("2.temperature=60",),  # idle: hot from the job that just ended
        (*LOAD, "2.temperature=85", "2.power_mw=400000"),  # another load
        (*LOAD, "temperature=30", "2.temperature=52"),  # cool anyway
        (*LOAD, "6.sm_clock=345", "6.utilisation=0"),  # idle among loaded ones
        (*LOAD, "6.sm_clock=1200", "6.throttle=0x4"),  # at its power cap
        (*LOAD, "6.sm_clock=990", "6.throttle=0x88"),  # the power brake, which gpu_throttle tells
        (
            *LOAD,
            *(f"{n}.utilisation=0" for n in range(5)),
            "6.sm_clock=345",
            "6.throttle=0",
        ),
        (*LOAD, "2.temperature=85", "2.pci_subsystem=0x403b1458"),  # another board
    ],
)
def test_what_is_no_fault(run, nvml, lines):
    nvml.set(*lines)
    assert run("gpu_balance", nvml.host).status is Status.OK


def test_one_card_has_no_peers(run, nvml):
    nvml.use(profiles.GEFORCE)
    nvml.set("utilisation=100", "temperature=90", "sm_clock=300")
    assert run("gpu_balance", nvml.host).findings == ()


@pytest.mark.parametrize("line", ["4.temperature=255", "4.power_mw=1400001", "4.power_mw=4294967295"])
def test_readings_that_cannot_be(run, nvml, line):
    nvml.set(line)
    assert found(run("gpu_balance", nvml.host)) == {("GpuSensorImplausible", "gpu@0000:9a:00.0")}
    nvml.set("4.temperature=90", "4.power_mw=1399000")
    assert run("gpu_balance", nvml.host).status is Status.OK


def test_a_sensor_that_cannot_be_read_is_blindness(run, nvml):
    nvml.set("1.err.nvmlDeviceGetClockInfo=999")
    assert run("gpu_balance", nvml.host).status is Status.UNKNOWN
