"""Whether every GPU is there: on recorded hosts and on the real pynvml over the stand-in."""

from __future__ import annotations

import dataclasses

import pytest
from clustertools.checks.gpu_count import gpu_count

from clustertools import check as checking
from clustertools.model import Remedy, Status
from tests.lab import profiles


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def test_a_lost_gpu(run, nvml):
    nvml.set("5.lost=1")
    verdict = run("gpu_count", host=nvml.host, expect={"gpu_count": 8})
    assert [(f.code, f.subject.part, f.status, f.remedy) for f in verdict.findings] == [
        ("GpuLost", "gpu@0000:ab:00.0", Status.CRITICAL, Remedy.REBOOT_NODE)
    ]
    assert verdict.blind == ""


def test_fewer_than_expected(run):
    verdict = run("gpu_count", host="h100-gpu-missing", expect={"gpu_count": 8})
    assert [(f.code, f.subject.part) for f in verdict.findings] == [("GpuMissing", "")]
    assert "7 GPUs on the PCI bus, 8 expected" in verdict.findings[0].summary


def test_without_an_expectation_the_bus_and_the_driver_are_compared(run, nvml):
    assert run("gpu_count", host="h100-gpu-missing").status is Status.OK
    nvml.set("count=7")
    verdict = run("gpu_count", host=nvml.host)
    assert set(by_part(verdict)) == {("GpuMissing", "gpu@0000:db:00.0")}


def test_none_at_all_where_some_are_expected(run, nvml):
    nvml.bus([])
    verdict = run("gpu_count", host=nvml.host, expect={"gpu_count": 8})
    assert verdict.codes == {"GpuMissing"}


def test_too_few_is_told_even_if_the_driver_hangs(nvml):
    nvml.bus(profiles.DGX_H100[:7])
    nvml.set("hang.nvmlInitWithFlags=30")
    quick = dataclasses.replace(gpu_count, timeout_seconds=0.4)
    verdict = checking.run(quick, nvml.host, expect={"gpu_count": 8})
    assert (verdict.codes, verdict.status) == ({"GpuMissing"}, Status.CRITICAL)
    assert verdict.blind


def test_gpus_that_are_not_ours(run, nvml):
    nvml.set("init=9")
    assert run("gpu_count", host=nvml.host, expect={"gpu_count": 0}).status is Status.SKIPPED


def test_more_than_expected_is_a_note(run, nvml):
    verdict = run("gpu_count", host=nvml.host, expect={"gpu_count": 4})
    assert verdict.status is Status.OK
    assert "more than the 4" in verdict.detail


@pytest.mark.parametrize(
    ("code", "word"), [(9, "kernel module"), (18, "different driver versions"), (999, "Unknown Error")]
)
def test_a_driver_that_does_not_start(run, nvml, code, word):
    nvml.set(f"init={code}")
    verdict = run("gpu_count", host=nvml.host)
    assert (verdict.codes, verdict.status) == ({"GpuDriverDown"}, Status.CRITICAL)
    assert word in verdict.findings[0].summary
    assert run("gpu_ecc", host=nvml.host).status is Status.UNKNOWN


def test_no_library(run, nvml, monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    nvml.file("/dev/nvidiactl", "")
    verdict = run("gpu_count", host=nvml.host)
    assert verdict.codes == {"GpuDriverDown"}
    assert "libnvidia-ml.so.1 is not installed" in verdict.findings[0].summary
    nvml.file("/run/nvidia/driver/usr", "")
    verdict = run("gpu_count", host=nvml.host)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "/run/nvidia/driver" in verdict.blind


def test_a_machine_that_does_not_use_its_gpus(run, nvml, monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    nvml.file("/dev/null", "")
    for check in ("gpu_count", "gpu_ecc"):
        verdict = run(check, host=nvml.host)
        assert (verdict.status, verdict.findings) == (Status.SKIPPED, ())
        assert "no NVIDIA driver is installed" in verdict.detail
    assert run("gpu_count", host=nvml.host, expect={"gpu_count": 8}).codes == {"GpuDriverDown"}


def test_a_container_that_was_given_some_gpus(run, nvml):
    nvml.set("count=2")
    assert run("gpu_count", host=nvml.host).codes == {"GpuMissing"}
    mount = "612 598 0:98 / /proc/driver/nvidia rw,nosuid,nodev,noexec - tmpfs tmpfs rw,mode=555,inode64\n"
    nvml.file("/proc/self/mountinfo", mount)
    verdict = run("gpu_count", host=nvml.host)
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "given 2 of the 8" in verdict.detail
    assert run("gpu_count", host=nvml.host, expect={"gpu_count": 8}).codes == {"GpuMissing"}


def test_not_being_allowed_to_ask_is_not_the_drivers_fault(run, nvml):
    nvml.set("init=4")
    verdict = run("gpu_count", host=nvml.host)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "NO_PERMISSION" in verdict.blind
