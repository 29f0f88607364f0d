"""The driver's own word on what to do."""

from __future__ import annotations

import pytest

from clustertools.model import Remedy, Status


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def test_the_drivers_word(run):
    finding = run("gpu_recovery", host="h100-remap-pending").findings[0]
    assert (finding.code, finding.subject.part) == ("GpuRecoveryAction", "gpu@0000:ba:00.0")
    assert finding.remedy is Remedy.DRAIN_AND_RESET
    assert "drain and reset" in finding.summary


@pytest.mark.parametrize(
    ("action", "remedy"),
    [(1, Remedy.RESET_GPU), (2, Remedy.REBOOT_NODE), (3, Remedy.DRAIN_AND_RESET), (42, Remedy.INSPECT)],
)
def test_actions(run, nvml, action, remedy):
    nvml.set(f"0.field.230={action}")
    verdict = run("gpu_recovery", host=nvml.host)
    assert [f.remedy for f in verdict.findings] == [remedy]


def test_a_driver_that_does_not_tell(run):
    verdict = run("gpu_recovery", host="a100-remap-failed")
    assert verdict.status is Status.SKIPPED
    assert "570" in verdict.detail


def test_a_gpu_that_waits_for_a_reset(run, nvml):
    nvml.set("2.err.nvmlDeviceGetEccMode=16", "2.field.230=1")
    verdict = run("gpu_recovery", host=nvml.host)
    assert set(by_part(verdict)) == {
        ("GpuResetRequired", "gpu@0000:3a:00.0"),
        ("GpuRecoveryAction", "gpu@0000:3a:00.0"),
    }
    # it is there: counting it as lost would ask for a reboot where a reset does
    assert run("gpu_count", host=nvml.host).status is Status.OK
