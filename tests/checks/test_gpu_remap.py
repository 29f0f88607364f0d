"""Remapped rows, and retired pages of older cards."""

from __future__ import annotations

from clustertools.model import Remedy, Status
from tests.lab import profiles


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def test_pending(run):
    finding = run("gpu_remap", host="h100-remap-pending").findings[0]
    assert (finding.code, finding.subject.part) == ("RemapPending", "gpu@0000:ba:00.0")
    assert (finding.status, finding.remedy) == (Status.CRITICAL, Remedy.DRAIN_AND_RESET)


def test_failed(run):
    found = by_part(run("gpu_remap", host="a100-remap-failed"))
    assert found["RemapFailed", "gpu@0000:47:00.0"].remedy is Remedy.REPLACE
    assert found["RemapHistogramLow", "gpu@0000:47:00.0"].status is Status.WARNING


def test_many_rows(run, nvml):
    nvml.set("0.remap.uncorrectable=511")
    assert run("gpu_remap", host=nvml.host).status is Status.OK
    nvml.set("0.remap.uncorrectable=512")
    assert run("gpu_remap", host=nvml.host).codes == {"RemapManyRows"}


def test_partly_used_banks_are_fine(run, nvml):
    nvml.set("0.remap.histogram=2500,40,20,0,0")
    assert run("gpu_remap", host=nvml.host).status is Status.OK
    nvml.set("0.remap.histogram=2500,40,19,1,0")
    assert run("gpu_remap", host=nvml.host).codes == {"RemapHistogramLow"}


def test_page_retirement_of_older_cards(run, nvml):
    nvml.use(profiles.V100)
    assert run("gpu_remap", host=nvml.host).status is Status.OK
    nvml.set("1.retired_pending=1", "0.field.30=15")
    assert set(by_part(run("gpu_remap", host=nvml.host))) == {
        ("PagesRetiredPending", "gpu@0000:07:00.0"),
        ("PagesRetiredMany", "gpu@0000:06:00.0"),
    }


def test_cards_with_neither(run, nvml):
    nvml.use(profiles.GEFORCE)
    assert run("gpu_remap", host=nvml.host).status is Status.SKIPPED


def test_what_cannot_be_read_is_not_what_is_not_there(run, nvml):
    nvml.set("err.nvmlDeviceGetRemappedRows=999")
    assert run("gpu_remap", host=nvml.host).status is Status.UNKNOWN


def test_memory_beyond_repair_and_repairs_that_wait(run):
    verdict = run("gpu_remap", host="h100-gpu-unrepairable")
    assert {(f.code, f.subject.part, f.status, f.remedy) for f in verdict.findings} == {
        ("MemoryUnrepairable", "gpu@0000:9a:00.0", Status.CRITICAL, Remedy.REPLACE),
        ("MemoryRepairPending", "gpu@0000:ba:00.0", Status.WARNING, Remedy.DRAIN_AND_RESET),
    }


def test_a_repair_that_cannot_be_asked_about_is_blindness(run, nvml):
    nvml.set("1.err.nvmlDeviceGetUnrepairableMemoryFlag_v1=999")
    assert run("gpu_remap", host=nvml.host).status is Status.UNKNOWN
