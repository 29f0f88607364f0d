"""Memory errors: limits, cards without ECC, counters that cannot be read."""

from __future__ import annotations

import pytest
from clustertools.checks.gpu_ecc import gpu_ecc

from clustertools.model import Remedy, Status
from tests.lab import profiles


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def test_double_bit_error(run):
    verdict = run("gpu_ecc", host="h100-dbe-gpu3")
    assert verdict.codes == {"EccUncorrected"}
    finding = verdict.findings[0]
    assert (finding.subject.part, finding.remedy) == ("gpu@0000:5d:00.0", Remedy.RESET_GPU)
    assert finding.evidence == ("uncorrected volatile DRAM: 1",)
    readings = {(r.subject.part, r.name): r.value for r in verdict.readings}
    assert readings["gpu@0000:5d:00.0", "ecc_uncorrected_volatile_errors_total"] == 1


def test_cards_without_ecc(run, nvml):
    nvml.use(profiles.GEFORCE)
    verdict = run("gpu_ecc", host=nvml.host)
    assert (verdict.status, verdict.detail) == (Status.SKIPPED, "NVIDIA GeForce RTX 3060 has no ECC")


def test_off_by_default_is_not_a_finding(run, nvml):
    nvml.set("ecc=0", "ecc_default=0")
    assert run("gpu_ecc", host=nvml.host).status is Status.OK
    assert run("gpu_ecc", host=nvml.host, expect={"ecc": True}).codes == {"EccDisabled"}


def test_off_where_it_is_on_by_default(run, nvml):
    nvml.set("4.ecc=0", "4.ecc_pending=1")
    finding = run("gpu_ecc", host=nvml.host).findings[0]
    assert (finding.code, finding.status) == ("EccDisabled", Status.WARNING)
    assert (finding.subject.part, finding.remedy) == ("gpu@0000:9a:00.0", Remedy.RESET_GPU)
    assert run("gpu_ecc", host=nvml.host, expect={"ecc": False}).status is Status.OK


def test_off_on_one_of_several_when_the_default_is_unknown(run, nvml):
    nvml.set("err.nvmlDeviceGetDefaultEccMode=13", "4.ecc=0")
    assert set(by_part(run("gpu_ecc", host=nvml.host))) == {("EccDisabled", "gpu@0000:9a:00.0")}
    nvml.set(*(f"{i}.ecc=0" for i in range(8)))
    assert run("gpu_ecc", host=nvml.host).status is Status.OK


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("1.sram_threshold_exceeded=1", "EccSramThreshold"),
        ("1.ecc.uncorrected.aggregate.sram=5", "EccSramThreshold"),
        ("1.ecc.corrected.volatile=50000001", "EccCorrectedHigh"),
        ("1.ecc.corrected.volatile.dram=20000001", "EccCorrectedHigh"),
        ("1.ecc.corrected.volatile.sram=10001", "EccCorrectedHigh"),
    ],
)
def test_limits(run, nvml, line, code):
    nvml.set(line)
    assert set(by_part(run("gpu_ecc", host=nvml.host))) == {(code, "gpu@0000:2a:00.0")}
    if "=5" in line or "0001" in line:
        nvml.set(line.replace("=5", "=4").replace("0001", "0000"))
        if line.endswith("=50000001"):
            nvml.set("1.ecc.corrected.volatile=50000000")
        assert run("gpu_ecc", host=nvml.host).status is Status.OK


def test_a_limit_from_config(run, nvml):
    nvml.set("1.ecc.uncorrected.volatile=2")
    limits = gpu_ecc.limits(uncorrected_volatile=2)
    assert run("gpu_ecc", host=nvml.host, limits=limits).status is Status.OK


def test_a_counter_that_cannot_be_read_is_blindness(run, nvml):
    nvml.set("1.err.nvmlDeviceGetTotalEccErrors=999")
    verdict = run("gpu_ecc", host=nvml.host)
    assert verdict.status is Status.UNKNOWN
    assert "GPU 1" in verdict.blind


def test_ecc_that_will_be_off_after_the_next_reset(run, nvml):
    nvml.set("4.ecc_pending=0")
    verdict = run("gpu_ecc", host=nvml.host)
    assert set(by_part(verdict)) == {("EccModePending", "gpu@0000:9a:00.0")}
    assert run("gpu_ecc", host=nvml.host, expect={"ecc": False}).status is Status.OK
