"""GPUs that have not joined their fabric, are not well in it, or cannot reach each other."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import profiles


def parts(verdict, code):
    return {f.subject.part for f in verdict.findings if f.code == code}


@pytest.mark.parametrize("profile", ["H100", "A100", "GB200"])
def test_healthy(run, nvml, profile):
    addresses = {"GB200": profiles.TRAY_GB200}.get(profile) or getattr(profiles, f"DGX_{profile}")
    nvml.use(profiles.profile(getattr(profiles, f"{profile}_VALUES"), addresses))
    verdict = run("nvlink_fabric", host=nvml.host)
    assert (verdict.status, verdict.findings, verdict.blind) == (Status.OK, (), "")


def test_cards_without_a_fabric_are_skipped(run, nvml):
    nvml.use(profiles.GEFORCE)
    assert run("nvlink_fabric", host=nvml.host).status is Status.SKIPPED


def test_a_fabric_that_never_came(run):
    verdict = run("nvlink_fabric", host="h100-fabric-down")
    assert len(parts(verdict, "FabricNotReady")) == 8
    assert parts(verdict, "NvlinkPeerUnreachable") == {""}
    assert "state in progress" in verdict.findings[0].summary


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (["2.fabric.state=1"], "FabricNotReady", "state not started"),
        (["2.fabric.status=23"], "FabricNotReady", "insufficient resources"),
        (["2.fabric.status=999"], "FabricNotReady", "unknown error"),
        (["2.fabric.health=0x1"], "FabricUnhealthy", "bandwidth is degraded"),
        (["2.fabric.health=0x10"], "FabricUnhealthy", "a route is unhealthy"),
        (["2.fabric.health=0x500"], "FabricUnhealthy", "too few NVLinks"),
        (["2.fabric.health=0xf00"], "FabricUnhealthy", "reason 15"),
        (["2.fabric.summary=2"], "FabricUnhealthy", "unhealthy"),
        (["2.fabric.summary=3"], "FabricUnhealthy", "limited capacity"),
        (["2.fabric.health=0x4"], "FabricRecovering", "a route recovers"),
        (["2.fabric.health=0x40"], "FabricRecovering", "timed out"),
        (["2.fabric.cluster=00000000-0000-4000-8000-000000000002"], "FabricSplit", "another NVLink domain"),
    ],
)
def test_each_fault(run, nvml, lines, code, words):
    nvml.set(*lines)
    verdict = run("nvlink_fabric", host=nvml.host)
    assert [(f.code, f.subject.part) for f in verdict.findings] == [(code, "gpu@0000:3a:00.0")]
    assert words in verdict.findings[0].summary
    assert verdict.status is (Status.WARNING if code == "FabricRecovering" else Status.CRITICAL)


def test_a_mask_that_says_all_is_well(run, nvml):
    # each two bits are 2 (no), the configuration 1 (none is wrong)
    nvml.set("fabric.health=0x1aa")
    assert run("nvlink_fabric", host=nvml.host).findings == ()


def test_a_driver_without_the_summary(run, nvml):
    nvml.use(profiles.H100.replace("fabric.summary=1\n", ""))
    nvml.set("2.fabric.health=0x1")
    verdict = run("nvlink_fabric", host=nvml.host)
    assert verdict.findings[0].evidence == ("health mask 0x1, summary not told",)


def test_one_gpu_that_nobody_reaches(run, nvml):
    nvml.set("p2p.5=3", "5.p2p=3", *(f"5.p2p.{n}=3" for n in range(8)))
    verdict = run("nvlink_fabric", host=nvml.host)
    assert parts(verdict, "NvlinkPeerUnreachable") == {"gpu@0000:ab:00.0"}
    assert "7 of the other GPUs" in verdict.findings[0].summary


def test_a_bridged_pair_reaches_its_partner_only(run, nvml):
    cards = profiles.H100_VALUES.replace("fabric.state=3\n", "").replace("p2p=0\n", "p2p=5\n")
    nvml.use(profiles.profile(cards, profiles.DGX_A100[:4]))
    nvml.set("0.p2p.1=0", "1.p2p.0=0", "2.p2p.3=0", "3.p2p.2=0")
    assert run("nvlink_fabric", host=nvml.host).findings == ()
    nvml.set("3.p2p.2=5")
    verdict = run("nvlink_fabric", host=nvml.host)
    assert parts(verdict, "NvlinkPeerUnreachable") == {"gpu@0000:4e:00.0"}


def test_peers_that_are_switched_off_on_purpose(run, nvml):
    nvml.set("p2p=4")
    assert run("nvlink_fabric", host=nvml.host).findings == ()


def test_mig_has_no_peers(run, nvml):
    nvml.set("2.mig=1", "p2p.2=5", "2.p2p=5")
    assert run("nvlink_fabric", host=nvml.host).findings == ()


def test_a_lost_gpu_is_its_own_affair(run, nvml):
    nvml.set("5.lost=1")
    verdict = run("nvlink_fabric", host=nvml.host)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "GPU 5" in verdict.blind
