"""Persistence, MIG, compute mode, clocks and power limits."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import profiles

PART = "gpu@0000:ab:00.0"


def codes_of(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_the_odd_one(run):
    verdict = run("gpu_settings", "h100-gpu-odd-one")
    assert codes_of(verdict) == {
        (code, PART)
        for code in (
            "GpuPersistenceOff", "GpuMigMode", "GpuComputeMode", "GpuClockLimited", "GpuPowerLimited",
        )
    }  # fmt: skip
    assert all(f.status is Status.WARNING for f in verdict.findings)


@pytest.mark.parametrize("profile", [profiles.A100, profiles.V100, profiles.GEFORCE])
def test_other_healthy_cards(run, nvml, profile):
    nvml.use(profile)
    assert run("gpu_settings", nvml.host).status is Status.OK


def test_persistence(run, nvml):
    nvml.set("persistence=0")
    assert len(run("gpu_settings", nvml.host).findings) == 8  # GPUs that NVLink connects
    assert run("gpu_settings", nvml.host, expect={"gpu_persistence": False}).status is Status.OK
    nvml.use(profiles.GEFORCE)
    assert run("gpu_settings", nvml.host, expect={"gpu_persistence": True}).codes == {"GpuPersistenceOff"}


def test_mig_and_compute_mode_against_the_expectation(run, nvml):
    nvml.set("3.mig=1", "3.compute_mode=3")
    assert (
        run("gpu_settings", nvml.host).status is Status.OK
    )  # a part of a node may be partitioned on purpose
    verdict = run("gpu_settings", nvml.host, expect={"gpu_mig": False, "gpu_compute_mode": "default"})
    assert codes_of(verdict) == {("GpuMigMode", "gpu@0000:5d:00.0"), ("GpuComputeMode", "gpu@0000:5d:00.0")}


@pytest.mark.parametrize(("milliwatts", "found"), [(686000, False), (685999, True)])
def test_the_edge_of_a_power_limit(run, nvml, milliwatts, found):
    nvml.set(f"5.power_limit_mw={milliwatts}")
    assert (run("gpu_settings", nvml.host).codes == {"GpuPowerLimited"}) == found


def test_a_power_limit_that_all_share_is_a_note(run, nvml):
    nvml.set("power_limit_mw=500000")
    verdict = run("gpu_settings", nvml.host)
    assert verdict.status is Status.OK
    assert "is 500 W, by default it is 700 W" in verdict.detail
    assert len(run("gpu_settings", nvml.host, expect={"gpu_power_limit_watts": 700}).findings) == 8
    assert run("gpu_settings", nvml.host, expect={"gpu_power_limit_watts": 500}).status is Status.OK


@pytest.mark.parametrize(("clock", "found"), [(1965, False), (1964, True)])
def test_the_edge_of_a_clock(run, nvml, clock, found):
    nvml.set(f"5.application_clock={clock}")
    assert (run("gpu_settings", nvml.host).codes == {"GpuClockLimited"}) == found
    nvml.set("5.application_clock=1980", f"5.sm_clock_max={clock}")
    verdict = run("gpu_settings", nvml.host, expect={"gpu_sm_clock_max_mhz": 1980})
    assert (verdict.codes == {"GpuClockLimited"}) == found


def test_what_cannot_be_read_is_blindness(run, nvml):
    nvml.set("1.err.nvmlDeviceGetEnforcedPowerLimit=999")
    assert run("gpu_settings", nvml.host).status is Status.UNKNOWN
