"""NVLinks that are down or slow, and the machines on which fewer of them are right."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import profiles

CARDS = profiles.H100_VALUES.replace("fabric.state=3\n", "").replace("nvlinks=18", "nvlinks=12")


def by_part(verdict):
    return {(f.code, f.subject.part): f for f in verdict.findings}


def inactive(gpu, links):
    return [f"{gpu}.nvlink.{n}=0" for n in links]


def test_links_that_are_down_and_slow(run):
    verdict = run("nvlink_links", host="h100-nvlink-down")
    found = by_part(verdict)
    assert set(found) == {("NvlinkDown", "gpu@0000:5d:00.0"), ("NvlinkSlow", "gpu@0000:5d:00.0")}
    down = found["NvlinkDown", "gpu@0000:5d:00.0"]
    assert (down.status, down.evidence) == (Status.CRITICAL, ("links down: 4, 5",))
    assert "16 NVLinks are up, the other GPUs have 18" in down.summary
    slow = found["NvlinkSlow", "gpu@0000:5d:00.0"]
    assert (slow.status, slow.evidence) == (Status.WARNING, ("link 7: 13.281 GB/s",))


def test_healthy(run, nvml):
    for expect in ({}, {"nvlinks_per_gpu": 18, "nvlink_bytes_per_second": 26562000000}):
        verdict = run("nvlink_links", host=nvml.host, expect=expect)
        assert (verdict.status, verdict.findings, verdict.blind) == (Status.OK, (), "")
    assert {r.value for r in verdict.readings} == {18}


def test_expected_of_one(run, nvml):
    nvml.set("6.nvlink.17=0")
    verdict = run("nvlink_links", host=nvml.host, expect={"nvlinks_per_gpu": 18})
    assert set(by_part(verdict)) == {("NvlinkDown", "gpu@0000:ba:00.0")}


def test_none_of_all_behind_switches(run, nvml):
    for gpu in range(8):
        nvml.set(*inactive(gpu, range(18)))
    for expect in ({}, {"nvlinks_per_gpu": 18}):
        assert set(by_part(run("nvlink_links", host=nvml.host, expect=expect))) == {("NvlinkDown", "")}


def test_a_pair_of_cards_has_twelve(run, nvml):
    nvml.use(profiles.profile(CARDS, profiles.DGX_V100))
    assert run("nvlink_links", host=nvml.host).status is Status.OK


@pytest.mark.parametrize("gpus", [(1,), (0, 1)])
def test_cards_without_a_bridge(run, nvml, gpus):
    nvml.use(profiles.profile(CARDS, profiles.DGX_A100[:4]))
    for gpu in gpus:
        nvml.set(*inactive(gpu, range(12)))
    assert run("nvlink_links", host=nvml.host).findings == ()


def test_a_bridge_that_lost_some(run, nvml):
    nvml.use(profiles.profile(CARDS, profiles.DGX_A100[:4]))
    nvml.set(*inactive(2, range(4)))
    assert set(by_part(run("nvlink_links", host=nvml.host))) == {("NvlinkDown", "gpu@0000:47:00.0")}


def test_one_gpu_of_a_board_in_a_virtual_machine(run, nvml):
    nvml.use(profiles.profile(profiles.H100_VALUES, profiles.WORKSTATION))
    nvml.set(*inactive(0, range(18)))
    verdict = run("nvlink_links", host=nvml.host, expect={"nvlinks_per_gpu": 18})
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "as on all GPUs of this machine" in verdict.detail


def test_two_gpus_of_four_in_a_virtual_machine(run, nvml):
    nvml.use(profiles.profile(CARDS, profiles.DGX_V100))
    nvml.set(*inactive(0, range(8)), *inactive(1, range(8)))
    assert run("nvlink_links", host=nvml.host, expect={"nvlinks_per_gpu": 12}).findings == ()


def test_mig_switches_them_off(run, nvml):
    nvml.set("2.mig=1", *inactive(2, range(18)))
    verdict = run("nvlink_links", host=nvml.host, expect={"nvlinks_per_gpu": 18})
    assert (verdict.status, verdict.findings) == (Status.OK, ())


def test_a_card_without_nvlink(run, nvml):
    nvml.use(profiles.GEFORCE)
    assert run("nvlink_links", host=nvml.host).status is Status.SKIPPED


def test_what_cannot_be_asked_is_blindness(run, nvml):
    nvml.set("1.err.nvmlDeviceGetNvLinkState=999", "5.lost=1")
    verdict = run("nvlink_links", host=nvml.host, expect={"nvlinks_per_gpu": 18})
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "GPU 1" in verdict.blind
    assert "GPU 5" in verdict.blind


def test_the_rounding_of_the_speed(run, nvml):
    nvml.set("4.field.164=26100")
    assert run("nvlink_links", host=nvml.host, expect={"nvlink_bytes_per_second": 26.5625e9}).findings == ()
    nvml.set("4.field.164=26000")
    verdict = run("nvlink_links", host=nvml.host, expect={"nvlink_bytes_per_second": 26.5625e9})
    assert set(by_part(verdict)) == {("NvlinkSlow", "gpu@0000:9a:00.0")}
