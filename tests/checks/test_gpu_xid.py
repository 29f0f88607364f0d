"""Xid and SXid lines become findings that stand for as long as they matter."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from clustertools.checks.gpu_xid import MOST_GROUPS, Limits, gpu_xid
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools import catalog
from clustertools.model import Finding, Remedy, Status, Verdict
from tests.checks.kernel_node import BOOT, Node

Run = Callable[..., Verdict]
GPU = "0000:3b:00.0"
LOAD = "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024"
RESET = "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"
REBOOT = "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"
NOTHING = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


@pytest.fixture
def node() -> Node:
    return Node(GPU, "0000:5d:00.0")


# ---- recorded hosts -------------------------------------------------------------------------------------


def test_a_lost_gpu(run: Run) -> None:
    verdict = run("gpu_xid", host="h100-xid79")
    finding = only(verdict)
    assert (finding.code, finding.status) == ("XidGpuLost", Status.CRITICAL)
    assert finding.subject.part == "gpu@0000:3a:00.0"
    assert (finding.remedy, finding.clears) == (Remedy.REBOOT_NODE, "reboot")
    assert "GPU has fallen off the bus." in finding.evidence[0]
    assert any(": 45," in line for line in finding.evidence)
    assert "with Xid 154, 45" in finding.summary


def test_a_storm_is_one_finding(run: Run) -> None:
    finding = only(run("gpu_xid", host="h100-xid-storm"))
    assert (finding.code, finding.status) == ("XidMmuFault", Status.WARNING)
    assert "180 times" in finding.summary
    assert len(finding.evidence) <= Limits().evidence_lines
    assert all(len(line) <= 300 for line in finding.evidence)


def test_channels_torn_down_after_a_memory_error_belong_to_it(run: Run) -> None:
    verdict = run("gpu_xid", host="h100-xid48-45")
    finding = only(verdict)
    assert (finding.code, finding.subject.part) == ("XidEccUncorrectable", "gpu@0000:5d:00.0")
    assert finding.remedy is Remedy.DRAIN_AND_RESET  # the driver's word in its Xid 154
    assert "with Xid 63, 154, 45" in finding.summary
    assert "ignored by policy" in verdict.detail  # an Xid 45 alone, on another GPU


def test_no_gpu_no_question(run: Run) -> None:
    verdict = run("gpu_xid", host="host-oom")
    assert verdict.status is Status.SKIPPED
    assert "no NVIDIA device on the PCI bus" in verdict.detail


# ---- since the last look --------------------------------------------------------------------------------


def test_a_quiet_node_is_ok(node: Node) -> None:
    assert node.say("eth0: link up").look(gpu_xid).status is Status.OK


def test_an_event_is_found_on_the_next_look_and_stands(node: Node) -> None:
    assert node.look(gpu_xid).status is Status.OK
    node.xid(48, "DBE")
    assert only(node.look(gpu_xid)).time == BOOT + 101
    node.seconds += 3600
    finding = only(node.look(gpu_xid))  # still there, though there is no new line: a prolog must refuse again
    assert finding.time == BOOT + 101
    assert "times" not in finding.summary
    node.xid(48, "DBE")
    assert "2 times" in only(node.look(gpu_xid)).summary


def test_an_event_ends_when_its_time_is_over(node: Node) -> None:
    node.xid(31, "MMU Fault").look(gpu_xid)
    assert only(node.look(gpu_xid)).clears == "recovery"
    node.seconds += 3601
    assert node.look(gpu_xid).status is Status.OK
    assert node.look(gpu_xid, remember=False).status is Status.OK


def test_a_lost_gpu_stands_until_the_reboot(node: Node) -> None:
    node.xid(79, "GPU has fallen off the bus.").look(gpu_xid)
    node.seconds += 30 * 86400
    assert only(node.look(gpu_xid)).code == "XidGpuLost"
    assert only(node.look(gpu_xid, remember=False)).code == "XidGpuLost"  # and on a first look at this boot
    assert node.reboot().say("Linux version").look(gpu_xid).status is Status.OK


def test_old_events_are_history_on_a_first_look(node: Node) -> None:
    node.xid(48, "DBE").seconds += 7200
    assert node.look(gpu_xid, Limits(max_age_seconds=3600), remember=False).status is Status.OK
    assert node.look(gpu_xid, Limits(max_age_seconds=7201), remember=False).status is Status.CRITICAL


def test_a_driver_load_ends_what_a_reset_cures(node: Node) -> None:
    node.xid(48, "DBE").xid(79, "GPU has fallen off the bus.", gpu="0000:5d:00").look(gpu_xid)
    assert only(node.say(LOAD).look(gpu_xid)).code == "XidGpuLost"
    assert node.xid(48, "DBE").look(gpu_xid).codes == {"XidGpuLost", "XidEccUncorrectable"}


@pytest.mark.parametrize(
    "memory", [{"cursor": 3}, {"cursor": "x", "standing": [{"no": 1}]}, {"standing": "x"}]
)
def test_a_memory_that_makes_no_sense_means_a_first_look(node: Node, memory: dict[str, object]) -> None:
    node.memory = {"boot_id": "boot-1", **memory}
    assert only(node.xid(79).look(gpu_xid)).code == "XidGpuLost"


def test_memory_stays_bounded_in_a_flood(node: Node) -> None:
    for number in range(600):
        node.xid(31, "x" * 500, gpu=f"{number:04x}:3b:00", after=0.001)
    node.look(gpu_xid)
    assert len(node.memory["standing"]) == MOST_GROUPS
    assert len(json.dumps(node.memory)) < MOST_GROUPS * 1200


# ---- what cannot be seen --------------------------------------------------------------------------------


def test_lost_messages_are_told(node: Node) -> None:
    node.say("a").look(gpu_xid)
    finding = only(node.lose(12).say("b").look(gpu_xid))
    assert finding.code == "KernelLogGap"
    assert "12 kernel messages" in finding.summary
    assert node.look(gpu_xid).findings == ()


def test_a_log_that_may_not_be_read_is_unknown(node: Node) -> None:
    node.ring = None
    verdict = node.look(gpu_xid)
    assert verdict.status is Status.UNKNOWN
    assert "Operation not permitted" in verdict.blind


def test_without_gpus_an_unreadable_log_does_not_matter() -> None:
    node = Node()
    node.ring = None
    assert node.look(gpu_xid).status is Status.SKIPPED


def test_an_xid_counts_though_no_device_is_listed() -> None:
    # the GPU may be gone from the bus by now
    node = Node().xid(79, "GPU has fallen off the bus.")
    assert only(node.look(gpu_xid)).subject.part == "gpu@0000:3b:00.0"
    assert only(node.look(gpu_xid)).code == "XidGpuLost"


def test_an_xid_in_an_unknown_form_is_blindness(node: Node) -> None:
    node.say("NVRM: Xid [gpu 3b:00]: 79 from a driver of tomorrow")
    verdict = node.look(gpu_xid)
    assert verdict.status is Status.UNKNOWN
    assert "driver of tomorrow" in verdict.blind


# ---- what belongs together ------------------------------------------------------------------------------


def test_45_alone_is_no_finding(node: Node) -> None:
    verdict = node.xid(45, "Ch 08").look(gpu_xid)
    assert verdict.status is Status.OK
    assert "ignored by policy" in verdict.detail


def test_45_long_after_or_on_another_gpu_is_not_a_consequence(node: Node) -> None:
    node.xid(79, "lost").xid(45, gpu="0000:5d:00").xid(45, after=120)
    assert "with Xid" not in only(node.look(gpu_xid)).summary


def test_a_consequence_in_a_later_pass_still_belongs_to_its_root(node: Node) -> None:
    node.xid(48, "DBE").look(gpu_xid)
    finding = only(node.xid(45, "Ch 08").xid(63, "Row Remapper").look(gpu_xid))
    assert "with Xid 45, 63" in finding.summary


def test_a_consequence_logged_before_its_root_belongs_to_it(node: Node) -> None:
    assert node.xid(63, "Row Remapper").look(gpu_xid).codes == {"XidRemapRecorded"}
    finding = only(node.xid(48, "DBE").look(gpu_xid))
    assert finding.code == "XidEccUncorrectable"
    assert "with Xid 63" in finding.summary


def test_hundreds_of_consequences_do_not_push_the_root_out_nor_keep_it_young(node: Node) -> None:
    node.xid(48, "the root")
    for _ in range(300):
        node.xid(45, after=0.1)
    finding = only(node.look(gpu_xid))
    assert "the root" in finding.evidence[0]
    assert finding.time == BOOT + 101
    assert len(finding.evidence) == 2


def test_two_gpus_are_two_findings(node: Node) -> None:
    parts = {f.subject.part for f in node.xid(48).xid(48, gpu="0000:5d:00").look(gpu_xid).findings}
    assert parts == {"gpu@0000:3b:00.0", "gpu@0000:5d:00.0"}


def test_the_plain_sentence_about_a_lost_gpu(node: Node) -> None:
    node.say("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.")
    assert only(node.look(gpu_xid)).code == "XidGpuLost"
    node.xid(79, "GPU has fallen off the bus.").say(
        "NVRM: fallen off the bus and is not responding to commands."
    )
    finding = only(node.look(gpu_xid))
    assert finding.subject.part == "gpu@0000:3b:00.0"
    assert "2 times" in finding.summary


def test_a_lost_gpu_without_an_address_is_the_nodes(node: Node) -> None:
    node.say("NVRM: fallen off the bus and is not responding to commands.")
    assert only(node.look(gpu_xid)).subject.part == ""


def test_an_unknown_code(node: Node) -> None:
    finding = only(node.xid(4711, "news").look(gpu_xid))
    assert (finding.code, finding.status) == ("XidUnknown", Status.WARNING)
    assert "Xid 4711" in finding.summary


# ---- the driver's own word ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "remedy", "status", "clears"),
    [
        ("0x1 (GPU Reset Required)", Remedy.RESET_GPU, Status.CRITICAL, "recovery"),
        ("0x2 (Node Reboot Required)", Remedy.REBOOT_NODE, Status.CRITICAL, "reboot"),
        ("0x2 (OS Reboot)", Remedy.REBOOT_NODE, Status.CRITICAL, "reboot"),
        ("0x3 (Drain P2P)", Remedy.DRAIN_AND_RESET, Status.WARNING, "recovery"),
        ("0x4 (Drain and Reset)", Remedy.DRAIN_AND_RESET, Status.WARNING, "recovery"),
        ("0x9 (Exorcise)", Remedy.INSPECT, Status.WARNING, "recovery"),
    ],
)
def test_154_is_obeyed(node: Node, word: str, remedy: Remedy, status: Status, clears: str) -> None:
    node.xid(154, f"GPU recovery action changed from 0x0 (None) to {word}")
    finding = only(node.look(gpu_xid))
    assert (finding.code, finding.remedy) == ("XidRecoveryAction", remedy)
    assert (finding.status, finding.clears) == (status, clears)


@pytest.mark.parametrize("first", [154, 119])
def test_154_gives_its_remedy_to_the_root_in_either_order(node: Node, first: int) -> None:
    told = {154: REBOOT, 119: "Timeout after 6s of waiting for RPC response from GPU3 GSP!"}
    node.xid(first, told.pop(first))
    node.xid(*told.popitem())
    finding = only(node.look(gpu_xid))
    assert (finding.code, finding.remedy, finding.clears) == ("XidGspTimeout", Remedy.REBOOT_NODE, "reboot")


def test_154_makes_an_application_fault_serious(node: Node) -> None:
    finding = only(node.xid(31, "MMU Fault").xid(154, RESET).look(gpu_xid))
    assert (finding.code, finding.status, finding.remedy) == (
        "XidMmuFault",
        Status.CRITICAL,
        Remedy.RESET_GPU,
    )


def test_154_back_to_none_ends_what_stood_on_that_gpu(node: Node) -> None:
    node.xid(48, "DBE").xid(154, RESET).xid(48, gpu="0000:5d:00").look(gpu_xid)
    node.xid(154, NOTHING, after=600)
    assert only(node.look(gpu_xid)).subject.part == "gpu@0000:5d:00.0"


# ---- NVLink 5 and NVSwitch ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "status", "remedy"),
    [
        (144, "SAW_MVB Fatal XC0 i0 Link 00 (0x00000001 0x00000002 0x0)", Status.CRITICAL, Remedy.RESET_GPU),
        (
            145,
            "RLW_REMAP Nonfatal XC1 i0 Link 10 (0x00000004 0x00000004 0x0)",
            Status.WARNING,
            Remedy.RESTART_APP,
        ),
        (
            145,
            "RLW_RXPIPE Fatal XC1 i0 Link 10 (0x000000c6 0x00000001 0x0)",
            Status.CRITICAL,
            Remedy.RESET_GPU,
        ),
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x004505c6 0x0 0x0)", Status.CRITICAL, Remedy.INSPECT),
        (
            149,
            "NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x001505c6 0x0 0x0)",
            Status.CRITICAL,
            Remedy.DRAIN_AND_RESET,
        ),
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x020505c6 0x0 0x0)", Status.WARNING, Remedy.INSPECT),
        (
            149,
            "NETIR_LINK_EVT/NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x02500011 0x0 0x0)",
            Status.WARNING,
            Remedy.INSPECT,
        ),
        (149, "NETIR_NEW_UNIT Nonfatal XC0 i0 Link 08 (0x00000000 0x0 0x0)", Status.WARNING, Remedy.INSPECT),
    ],
)
def test_nvlink5_by_its_rule(node: Node, code: int, text: str, status: Status, remedy: Remedy) -> None:
    node.say(f"NVRM: Xid (PCI:0000:3b:00): {code}, {text}")
    finding = only(node.look(gpu_xid))
    assert (finding.status, finding.remedy) == (status, remedy)


def test_nvlink5_corrected_is_no_finding_and_a_peer_is_named(node: Node) -> None:
    node.say("NVRM: Xid (PCI:0000:3b:00): 144, SAW_MVB Nonfatal XC0 i0 Link 00 (0x00000001 0x00000004 0x0)")
    assert node.look(gpu_xid).findings == ()
    node.say("NVRM: Xid (PCI:0000:3b:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x020505c6 0x0 0x0)")
    assert "look at the peer device" in only(node.look(gpu_xid)).summary


def test_the_peer_is_to_be_looked_at_and_the_reporter_is_not_drained(node: Node) -> None:
    # leptonai/gpud, nvlink_logs_test.go and kmsg_test.go: sub-code 33
    line = "149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 14 (0x0215c5c6 0x00000000 0x0 0x0 0x0 0x0)"
    finding = only(node.say(f"NVRM: Xid (PCI:0000:3b:00): {line}").look(gpu_xid))
    assert (finding.status, finding.remedy) == (Status.WARNING, Remedy.INSPECT)
    assert "link 14; look at the peer device: the other end of this link is the source" in finding.summary
    node.xid(154, RESET)  # the driver's own word about this GPU stands above the rule
    assert only(node.look(gpu_xid)).remedy is Remedy.RESET_GPU


def test_several_links_are_all_told(node: Node) -> None:
    for link in (1, 14):
        node.say(
            f"NVRM: Xid (PCI:0000:3b:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link {link:02} (0x021425c6 0x0)"
        )
    assert "link 1; look at the peer" in only(node.look(gpu_xid)).summary
    assert "link 14; look at the peer" in only(node.look(gpu_xid)).summary


def test_a_failed_search_for_partners(node: Node) -> None:
    node.say("NVRM: knvlinkDiscoverPostRxDetLinks_GH100: Getting peer1's postRxDetLinkMask failed!")
    finding = only(node.look(gpu_xid))
    assert (finding.code, finding.status, finding.clears) == (
        "NvlinkDiscoveryFailed",
        Status.WARNING,
        "reboot",
    )


LINK = "NVLink: fatal error detected on link 14({})"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Status.CRITICAL, "REG0 bit 4: ECC or parity"),
        ("0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0", Status.CRITICAL, "REG2 bit 16: run a field diagnostic"),
        ("0x200000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Status.CRITICAL, "REG0 bit 21: marginal signal"),
        ("0x0, 0x0, 0x0, 0x0, 0x100000, 0x0, 0x0", Status.WARNING, "REG4 bit 20: many corrected"),
        ("0x40000001, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0", Status.OK, ""),
        (
            "0x0, 0x0, 0x80000000, 0x0, 0x0, 0x0, 0x0",
            Status.CRITICAL,
            "REG2 bit 31: a bit that no source names",
        ),
    ],
)
def test_the_registers_of_xid_74(node: Node, words: str, status: Status, said: str) -> None:
    verdict = node.xid(74, LINK.format(words)).look(gpu_xid)
    assert verdict.status is status
    assert not said or f"link 14: {said}" in only(verdict).summary


def test_74_without_registers_is_as_its_policy(node: Node) -> None:
    assert (
        only(node.xid(74, "NVLink: fatal error detected on link 2").look(gpu_xid)).status is Status.CRITICAL
    )


@pytest.mark.parametrize("first", ["gpu", "switch"])
def test_links_of_a_switch_that_failed_belong_to_it(node: Node, first: str) -> None:
    switch = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up"
    link = LINK.format("0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0")
    if first == "switch":
        node.say(switch)
    node.xid(74, link).xid(74, link, gpu="0000:5d:00")
    if first == "gpu":
        node.say(switch)
    finding = only(node.look(gpu_xid))
    assert finding.subject.part == "nvswitch@0000:c1:00.0"
    assert "with Xid 74" in finding.summary
    node.xid(74, link, after=300)  # long after it is the link's own
    assert node.look(gpu_xid).codes == {"SxidFatal", "XidNvlinkError"}


def test_74_beside_a_switch_that_survived_names_it(node: Node) -> None:
    node.say("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20009, Non-fatal, Link 28 RX Short Error Rate")
    verdict = node.xid(74, LINK.format("0x10, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0")).look(gpu_xid)
    link = next(f for f in verdict.findings if f.code == "XidNvlinkError")
    assert "nvswitch@0000:c1:00.0 reported an error at the same time: look at it first" in link.summary


@pytest.mark.parametrize("code", [45, 63, 64, 94, 95, 171, 172])
def test_what_follows_a_double_bit_error(node: Node, code: int) -> None:
    finding = only(node.xid(48, "DBE").xid(code, "text").look(gpu_xid))
    assert (finding.code, finding.status) == ("XidEccUncorrectable", Status.CRITICAL)
    assert f"with Xid {code}" in finding.summary


def test_a_serious_consequence_is_named(node: Node) -> None:
    assert "could not be" in only(node.xid(48, "DBE").xid(64, "text").look(gpu_xid)).summary


# ---- who it was -----------------------------------------------------------------------------------------


class Busy(Node):
    """A node where one process of a Slurm job lives."""

    cgroup = "0::/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0\n"
    started = 50.0

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path == "/proc/77/stat":
            ticks = int(self.started * 100)
            return f"77 (python) S 1 77 77 0 -1 0 {' '.join(['0'] * 12)} {ticks} {' '.join(['0'] * 30)}\n"
        if path == "/proc/77/cgroup":
            return self.cgroup
        return super().read(path, offset, limit)


def test_a_line_is_attributed_to_process_job_and_gpu() -> None:
    node = Busy(GPU).say("NVRM: GPU at PCI:0000:3b:00: GPU-00000000-0000-4000-8000-000000000003")
    summary = only(node.xid(31, "MMU Fault").look(gpu_xid)).summary
    assert "pid 77 python of job 4812" in summary
    assert "GPU-00000000-0000-4000-8000-000000000003" in summary
    node.cgroup = ""  # it has ended: what was known of it stays, and it is not told twice
    assert only(node.xid(31, "MMU Fault").look(gpu_xid)).summary.count("pid 77") == 1
    assert "of job 4812" in only(node.look(gpu_xid)).summary
    assert "GPU-0000" in only(node.look(gpu_xid)).summary


def test_a_number_that_was_given_to_another_process_tells_no_job() -> None:
    node = Busy(GPU)
    node.started = 5000.0
    assert "of job" not in only(node.xid(31).look(gpu_xid)).summary
    other = Busy(GPU).say("NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=train, MMU Fault")
    assert "of job" not in only(other.look(gpu_xid)).summary


def test_a_process_of_no_job() -> None:
    node = Busy(GPU)
    node.cgroup = "0::/user.slice/user-1000.slice/session-3.scope\n"
    assert only(node.xid(31).look(gpu_xid)).summary.endswith("pid 77 python")


def test_the_same_fault_on_many_gpus_is_the_applications(node: Node) -> None:
    node.xid(31).xid(31, gpu="0000:5d:00", after=5)
    assert all("the application's own fault" in f.summary for f in node.look(gpu_xid).findings)
    later = Node(GPU).xid(31).xid(31, gpu="0000:5d:00", after=900)
    assert not any("application's own" in f.summary for f in later.look(gpu_xid).findings)
    memory = Node(GPU).xid(48).xid(48, gpu="0000:5d:00")
    assert not any("application's own" in f.summary for f in memory.look(gpu_xid).findings)


def test_a_storm_tells_how_long_it_lasted(node: Node) -> None:
    for _ in range(600):
        node.xid(31, "MMU Fault", after=0.5)
    finding = only(node.look(gpu_xid))
    assert "600 times in 5 m" in finding.summary
    assert len(finding.evidence) == Limits().evidence_lines


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("NVRM: GPU 3b:00.0: GPU has fallen off the bus.", "gpu@0000:3b:00.0"),
        (
            "NVRM: The NVIDIA GPU 0000:3b:00.0\\x0aNVRM: (PCI ID: 10de:2901) installed in this system has"
            "\\x0aNVRM: fallen off the bus and is not responding to commands.",
            "gpu@0000:3b:00.0",
        ),
    ],
)
def test_a_lost_gpu_in_other_words(node: Node, text: str, part: str) -> None:
    finding = only(node.say(text).look(gpu_xid))
    assert (finding.code, finding.subject.part) == ("XidGpuLost", part)


def test_a_fatal_sxid(node: Node) -> None:
    node.say("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up")
    node.say("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Severity 1 Engine instance 32")
    finding = only(node.look(gpu_xid))
    assert (finding.code, finding.subject.part) == ("SxidFatal", "nvswitch@0000:c1:00.0")
    assert (finding.remedy, finding.clears) == (Remedy.REBOOT_NODE, "reboot")
    assert "SXid 20034" in finding.summary
    assert "link 32" in finding.summary
    assert len(finding.evidence) == 2


def test_a_corrected_sxid_is_no_finding_and_a_non_fatal_one_is_a_warning(node: Node) -> None:
    node.say("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 11012, Non-fatal, Link 3 single bit")
    assert node.look(gpu_xid).findings == ()
    node.say("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20009, Non-fatal, Link 28 RX Short Error Rate")
    assert only(node.look(gpu_xid)).code == "SxidNonFatal"


def test_an_always_fatal_sxid_is_fatal_whatever_the_line_says(node: Node) -> None:
    node.say("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 23001, Non-fatal, Link 3")
    assert only(node.look(gpu_xid)).code == "SxidFatal"


# ---- the declaration ------------------------------------------------------------------------------------


def test_every_code_of_the_catalogue_is_declared() -> None:
    assert {entry.finding_code for entry in catalog.xids()} <= set(gpu_xid.codes)


@pytest.mark.parametrize("entry", catalog.xids(), ids=lambda e: str(e.code))
def test_every_xid_gives_what_its_policy_says(entry: catalog.XidEntry) -> None:
    verdict = Node(GPU).xid(entry.code, "text").look(gpu_xid)
    expected = {entry.finding_code} if entry.status is not Status.OK else set()
    assert verdict.codes == expected
    if expected:
        assert only(verdict).status is entry.status or entry.code == 154


LINES = st.one_of(
    st.builds(
        "NVRM: Xid (PCI:0000:{}b:00): {}, {}".format,
        st.integers(0, 3),
        st.sampled_from([13, 31, 45, 48, 63, 79, 94, 144, 149, 154, 999]),
        st.sampled_from(
            ["", RESET, REBOOT, NOTHING, "pid=1, name=x, y", "NETIR Fatal XC0 i0 Link 1 (0x1 0x2)"]
        ),
    ),
    st.builds(
        "nvidia-nvswitch{}: SXid (PCI:0000:c1:00.0): {}, Fatal".format,
        st.integers(0, 3),
        st.integers(0, 99999),
    ),
    st.sampled_from([LOAD, "NVRM: Xid", "NVRM: fallen off the bus"]),
    st.text(alphabet=st.characters(exclude_characters="\n"), max_size=80),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(LINES, st.floats(0, 90)), max_size=12), max_size=4))
def test_no_log_breaks_the_check(passes: list[list[tuple[str, float]]]) -> None:
    node = Node(GPU)
    for lines in passes:
        for text, after in lines:
            node.say(text, after)
        verdict = node.look(gpu_xid)  # which fails the test on any exception inside
        keys = [f.key for f in verdict.findings]
        assert len(keys) == len(set(keys))
    # looking in pieces or at once finds the same, apart from what was in between reported and then explained
    whole = node.look(gpu_xid, remember=False)
    assert whole.codes <= set(gpu_xid.codes)
