"""Heat, power brake, and the reasons for low clocks that are no faults."""

from __future__ import annotations

import pytest

from clustertools import check as checking
from clustertools.host import RecordedHost
from clustertools.model import Status
from tests.conftest import HOSTS


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def test_heat_and_power_brake(run):
    found = by_part(run("gpu_throttle", host="h100-throttled"))
    assert set(found) == {
        ("GpuThrottledThermal", "gpu@0000:2a:00.0"),
        ("GpuTooHot", "gpu@0000:2a:00.0"),
        ("GpuThrottledPowerBrake", "gpu@0000:9a:00.0"),
    }
    assert all(f.status is Status.CRITICAL for f in found.values())
    assert "SM clock 1005 of 1980 MHz" in found["GpuThrottledThermal", "gpu@0000:2a:00.0"].summary


def test_one_reading_a_gpu_and_figure(run):
    readings = [(r.subject.part, r.name) for r in run("gpu_throttle", host="h100-healthy").readings]
    assert len(readings) == len(set(readings)) == 8 * 4
    assert {name for _, name in readings} == {
        "temperature_celsius", "memory_temperature_celsius", "power_watts", "sm_clock_mhz",
    }  # fmt: skip


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x4, 0x10, 0x100, 0x117])
def test_reasons_that_are_no_faults(run, nvml, bits):
    nvml.set(f"0.throttle={bits:#x}")
    assert run("gpu_throttle", host=nvml.host).status is Status.OK


@pytest.mark.parametrize(
    ("bits", "code", "status"),
    [
        (0x8, "GpuThrottledHw", Status.CRITICAL),
        (0x20, "GpuThrottledThermal", Status.WARNING),
        (0x60, "GpuThrottledThermal", Status.CRITICAL),
        (0x48, "GpuThrottledThermal", Status.CRITICAL),
        (0x88, "GpuThrottledPowerBrake", Status.CRITICAL),
        (0x8C, "GpuThrottledPowerBrake", Status.CRITICAL),
    ],
)
def test_reasons_that_are(run, nvml, bits, code, status):
    nvml.set(f"0.throttle={bits:#x}")
    verdict = run("gpu_throttle", host=nvml.host)
    assert [(f.code, f.status) for f in verdict.findings] == [(code, status)]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["0.temperature=87"], Status.OK),
        (["0.temperature=88"], Status.WARNING),
        (["0.temperature=89"], Status.CRITICAL),
        (["0.margin=0"], Status.OK),
        (["0.margin=-1"], Status.WARNING),
        (["0.margin=-2"], Status.CRITICAL),
        (["0.field.82=95"], Status.OK),
        (["0.field.82=96"], Status.WARNING),
    ],
)
def test_heat(run, nvml, lines, status):
    nvml.set(*lines)
    verdict = run("gpu_throttle", host=nvml.host)
    assert verdict.status is status
    assert verdict.codes == (set() if status is Status.OK else {"GpuTooHot"})


def test_must_last_three_passes():
    assert checking.discover(site_folders=())["gpu_throttle"].confirm == 3


def test_time_throttled_since_the_last_look(run):
    part = "gpu@0000:2a:00.0"
    host = RecordedHost(HOSTS / "h100-throttled")
    past = {part: [host.now() - 100, 704.0]}
    readings = {(r.subject.part, r.name): r.value for r in run("gpu_throttle", host, past=past).readings}
    assert readings[part, "thermal_throttle_ratio"] == pytest.approx(0.3)


def test_mig_mode_hides_utilisation_and_that_is_fine(run, nvml):
    nvml.set("mig=1", "err.nvmlDeviceGetUtilizationRates=3", "err.nvmlDeviceGetCurrentClocksEventReasons=3")
    nvml.set("err.nvmlDeviceGetCurrentClocksThrottleReasons=3")
    assert run("gpu_throttle", host=nvml.host).status is Status.OK
