"""Model, firmware and driver: against expectations and against peers."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import profiles

EXPECT = {
    "gpu_name": "NVIDIA H100 80GB HBM3", "gpu_memory_bytes": 80 << 30, "gpu_vbios": "96.00.89.00.01",
    "gpu_driver_version": "570.133",
}  # fmt: skip


def by_part(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_as_expected(run):
    verdict = run("gpu_identity", "h100-healthy", expect=EXPECT)
    assert (verdict.status, verdict.detail) == (Status.OK, "driver 570.133.20")


def test_nothing_as_expected(run, nvml):
    nvml.use(profiles.A100)
    verdict = run("gpu_identity", nvml.host, expect={**EXPECT, "gpu_memory_bytes": 141 << 30})
    assert verdict.codes == {"GpuModelMismatch", "GpuVbiosMismatch", "GpuDriverVersion"}
    model = next(f for f in verdict.findings if f.code == "GpuModelMismatch")
    assert "NVIDIA A100-SXM4-80GB, expected NVIDIA H100" in model.summary
    assert "80.0 GiB of memory, expected 141.0 GiB" in model.summary


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [("570", True), ("570.133.20", True), (["535.1", "570.133"], True), ("57", False), ("570.13", False)],
)
def test_a_driver_version_is_compared_by_its_parts(run, wanted, fits):
    verdict = run("gpu_identity", "h100-healthy", expect={"gpu_driver_version": wanted})
    assert (verdict.status is Status.OK) == fits


def test_the_odd_one(run):
    verdict = run("gpu_identity", "h100-gpu-odd-one")
    part = "gpu@0000:ab:00.0"
    assert by_part(verdict) == {
        (code, part) for code in ("GpuVbiosMismatch", "GpuFirmwareMismatch", "GpuInforomCorrupted")
    }
    assert "7 of 8 have 96.00.89.00.01" in str([f.summary for f in verdict.findings])


def test_no_majority_is_one_finding(run, nvml):
    nvml.set(*(f"{n}.vbios=96.00.30.00.01" for n in range(4)))
    verdict = run("gpu_identity", nvml.host)
    assert by_part(verdict) == {("GpuVbiosMismatch", "vbios")}
    assert len(verdict.findings[0].evidence) == 8


@pytest.mark.slow
def test_cards_of_two_makers_are_not_compared(run, nvml):
    nvml.set("3.vbios=94.02.26.40.81", "3.pci_subsystem=0x403b1458")
    assert run("gpu_identity", nvml.host).status is Status.OK
    nvml.set("3.pci_subsystem=0x16c110de", "3.name=NVIDIA T1000")
    assert run("gpu_identity", nvml.host).status is Status.OK
    nvml.use(profiles.GEFORCE)
    assert run("gpu_identity", nvml.host).status is Status.OK


def test_a_lost_gpu_is_blindness(run, nvml):
    nvml.set("3.lost=1")
    verdict = run("gpu_identity", nvml.host)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
