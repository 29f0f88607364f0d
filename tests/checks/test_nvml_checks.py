"""The checks that ask NVML, on recorded hosts and on the real pynvml over the stand-in."""

from __future__ import annotations

import dataclasses
import time

import pytest
from clustertools.checks.gpu_ecc import gpu_ecc

from clustertools import check as checking
from clustertools.model import Status
from clustertools.shared_host import SharedHost

CHECKS = ("gpu_count", "gpu_ecc", "gpu_remap", "gpu_throttle", "gpu_recovery")


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


@pytest.mark.parametrize("check", CHECKS)
def test_healthy(run, check):
    verdict = run(check, host="h100-healthy", expect={"gpu_count": 8})
    assert (verdict.status, verdict.findings, verdict.blind) == (Status.OK, (), "")
    assert verdict.memory == ({} if check != "gpu_throttle" else verdict.memory)


@pytest.mark.parametrize("check", CHECKS)
def test_a_hanging_driver_is_unknown(run, check):
    verdict = run(check, host="h100-nvml-hang", expect={"gpu_count": 8})
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "did not answer within" in verdict.blind


def test_a_real_hang_ends_at_the_deadline(nvml):
    nvml.set("3.hang.nvmlDeviceGetTemperature=30")
    quick = dataclasses.replace(gpu_ecc, timeout_seconds=0.5)
    began = time.monotonic()
    verdict = checking.run(quick, nvml.host)
    assert time.monotonic() - began < 2
    assert verdict.status is Status.UNKNOWN
    assert "did not answer" in verdict.blind


@pytest.mark.parametrize("check", CHECKS)
def test_no_nvidia_device_is_skipped(run, nvml, check):
    nvml.bus([])
    verdict = run(check, host=nvml.host)
    assert verdict.status is Status.SKIPPED
    assert "no NVIDIA device" in verdict.detail


def test_checks_of_one_pass_share_one_child(run, nvml):
    nvml.set("3.ecc.uncorrected.volatile=1")
    shared = SharedHost(nvml.host)
    assert run("gpu_ecc", host=shared).codes == {"EccUncorrected"}
    # the second check sees the same moment
    nvml.set("3.ecc.uncorrected.volatile=0", "init=9")
    assert run("gpu_ecc", host=shared).codes == {"EccUncorrected"}


def test_a_lost_gpu_blinds_only_itself(run, nvml):
    nvml.set("5.lost=1", "2.ecc.uncorrected.volatile=7")
    verdict = run("gpu_ecc", host=nvml.host)
    assert set(by_part(verdict)) == {("EccUncorrected", "gpu@0000:3a:00.0")}
    assert "gpu@0000:ab:00.0" in verdict.blind  # GPU 5's own incidents must not resolve on this
    assert len({r.subject.part for r in verdict.readings}) == 7
