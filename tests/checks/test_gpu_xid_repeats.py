"""What comes again: over boots, within a day, over processes; and what must not be made more of."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from clustertools.checks.gpu_xid_repeats import MOST_EVENTS, Limits, gpu_xid_repeats
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.model import Finding, Remedy, Status, Verdict
from tests.checks.kernel_node import Node

Run = Callable[..., Verdict]
GPU = "0000:3b:00.0"
HOUR = 3600.0
UUID = "NVRM: GPU at PCI:0000:3b:00: GPU-00000000-0000-4000-8000-00000000000{}"


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


@pytest.fixture
def node() -> Node:
    return Node(GPU, "0000:5d:00.0")


def fault(node: Node, pid: int, name: str, code: int = 31, gpu: str = "0000:3b:00", text: str = "x") -> None:
    node.say(f"NVRM: Xid (PCI:{gpu}): {code}, pid={pid}, name={name}, {text}")


def boots(node: Node, code: int, times: int, text: str = "", uuids: str = "") -> Verdict:
    for number in range(times):
        if uuids:
            node.say(UUID.format(uuids[number]))
        verdict = node.xid(code, text).look(gpu_xid_repeats)
        if number < times - 1:
            assert verdict.findings == ()
            assert node.reboot().say("Linux version").look(gpu_xid_repeats).findings == ()
    return verdict


# ---- over boots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "remedy"), [(79, Remedy.INSPECT), (48, Remedy.REPLACE), (119, Remedy.INSPECT)]
)
def test_the_same_fatal_xid_after_two_reboots(node: Node, code: int, remedy: Remedy) -> None:
    finding = only(boots(node, code, 3))
    assert (finding.code, finding.status, finding.remedy) == ("XidRecurring", Status.CRITICAL, remedy)
    assert (finding.clears, finding.subject.part) == ("manual", "gpu@0000:3b:00.0")
    assert "on 3 boots" in finding.summary
    assert len(finding.evidence) == 3
    # the next boot is quiet: the finding is a person's to end, and nothing new is claimed
    assert node.reboot().say("Linux version").look(gpu_xid_repeats).findings == ()


@pytest.mark.parametrize("code", [94, 31, 45, 63, 154])
def test_what_is_never_made_more_of(node: Node, code: int) -> None:
    assert boots(node, code, 5).findings == ()


def test_different_xids_and_different_gpus_are_not_the_same(node: Node) -> None:
    for code, gpu in ((48, "0000:3b:00"), (79, "0000:3b:00"), (48, "0000:5d:00")):
        node.xid(code, gpu=gpu).look(gpu_xid_repeats)
        node.reboot()
    assert node.xid(119).look(gpu_xid_repeats).findings == ()


def test_a_consequence_counts_as_its_root(node: Node) -> None:
    for _ in range(3):
        verdict = node.reboot().xid(79).xid(74).xid(119).look(gpu_xid_repeats)
    assert "Xid 79" in only(verdict).summary


def test_links_of_a_switch_that_fails_are_not_the_gpus(node: Node) -> None:
    for _ in range(3):
        node.reboot().say("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up")
        verdict = node.xid(74).look(gpu_xid_repeats)
    assert verdict.findings == ()


def test_a_gpu_that_was_exchanged_starts_anew(node: Node) -> None:
    assert boots(node, 48, 3, uuids="112").findings == ()
    assert "GPU-00000000" in only(boots(Node(GPU), 48, 3, uuids="111")).summary


def test_what_is_long_ago_is_forgotten(node: Node) -> None:
    for _ in range(2):
        node.xid(48).look(gpu_xid_repeats)
        node.reboot()
    node.seconds += Limits().memory_seconds + 1
    assert node.xid(48).look(gpu_xid_repeats).findings == ()
    assert len(node.memory["seen"]) == 1


def test_many_times_a_day(node: Node) -> None:
    for number in range(5):
        assert node.look(gpu_xid_repeats).findings == ()
        for _ in range(3):  # a burst is one
            node.xid(95)
        node.seconds += 2 * HOUR if number < 4 else 0
    assert "5 times within a day" in only(node.look(gpu_xid_repeats)).summary


# ---- over processes -------------------------------------------------------------------------------------


def test_a_page_fault_that_stays_while_the_processes_change(node: Node) -> None:
    fault(node, 100, "train")
    assert node.look(gpu_xid_repeats).findings == ()
    node.seconds += 2 * HOUR
    fault(node, 200, "other")
    finding = only(node.look(gpu_xid_repeats))
    assert (finding.code, finding.status, finding.remedy) == (
        "XidHardwareSuspect",
        Status.WARNING,
        Remedy.INSPECT,
    )
    assert "pid 100 train, 200 other" in finding.summary
    node.seconds += Limits().spread_seconds + 1
    assert node.look(gpu_xid_repeats).findings == ()


def test_one_process_that_faults_for_hours_is_one(node: Node) -> None:
    for _ in range(5):
        fault(node, 100, "train")
        node.seconds += HOUR
    assert node.look(gpu_xid_repeats).findings == ()


def test_a_crash_loop_is_back_within_minutes(node: Node) -> None:
    for pid in range(10):
        fault(node, pid, "train")
        node.seconds += 120
    assert node.look(gpu_xid_repeats).findings == ()


def test_many_gpus_at_once_are_the_application(node: Node) -> None:
    for pid in (100, 200):
        fault(node, pid, "train")
        fault(node, pid + 1, "train", gpu="0000:5d:00")
        node.seconds += 2 * HOUR
    assert node.look(gpu_xid_repeats).findings == ()


SHADER = "Graphics SM Warp Exception on (GPC {}, TPC {}, SM 1): Illegal Instruction Parameter"


def test_the_same_place_on_the_chip_for_two_processes(node: Node) -> None:
    for pid in (100, 200):
        fault(node, pid, "train", 13, text=SHADER.format(3, 5))
        fault(node, pid, "train", 13, text="Graphics Exception: ESR 0x51d730=0xb")
        node.seconds += 2 * HOUR
    # the second line of each names no place
    assert node.look(gpu_xid_repeats).findings == ()
    for pid in (300, 400):
        fault(node, pid, "train", 13, text=SHADER.format(3, 5))
        node.seconds += 2 * HOUR
    assert "at GPC 3, TPC 5" in only(node.look(gpu_xid_repeats)).summary


def test_a_wrong_program_fails_all_over_the_chip(node: Node) -> None:
    for pid in (100, 200):
        for tpc in range(4):
            fault(node, pid, "train", 13, text=SHADER.format(3, tpc))
        node.seconds += 2 * HOUR
    assert node.look(gpu_xid_repeats).findings == ()


# ---- what cannot be seen, and what is hostile -------------------------------------------------------------


def test_recorded_machines(run: Run) -> None:
    verdict = run("gpu_xid_repeats", host="h100-xid-lemon")
    assert {(f.code, f.subject.part) for f in verdict.findings} == {
        ("XidRecurring", "gpu@0000:db:00.0"),
        ("XidHardwareSuspect", "gpu@0000:2a:00.0"),
    }
    assert run("gpu_xid_repeats", host="h100-xid-storm").status is Status.OK
    assert run("gpu_xid_repeats", host="h100-xid79").status is Status.OK
    assert run("gpu_xid_repeats", host="cpu-healthy").status is Status.SKIPPED


def test_a_log_that_may_not_be_read_is_unknown_and_forgets_nothing(node: Node) -> None:
    boots(node, 48, 2)
    node.reboot()
    ring, node.ring = node.ring, None
    assert node.look(gpu_xid_repeats).status is Status.UNKNOWN
    node.ring = ring
    assert only(node.xid(48).look(gpu_xid_repeats)).code == "XidRecurring"


def test_without_gpus_an_unreadable_log_does_not_matter() -> None:
    node = Node()
    node.ring = None
    assert node.look(gpu_xid_repeats).status is Status.SKIPPED


def test_a_lost_cursor_does_not_count_twice(node: Node) -> None:
    for number in range(3):
        node.xid(48, after=2 * HOUR).look(gpu_xid_repeats)
        node.memory["cursor"] = None if number % 2 else "nonsense"
    node.memory["cursor"] = None
    assert node.look(gpu_xid_repeats).findings == ()
    assert [len(one["times"]) for one in node.memory["seen"]] == [3]


@pytest.mark.parametrize(
    "memory",
    [
        {"seen": 3},
        {"seen": [{"no": 1}]},
        {"seen": [{"part": "x"}]},
        {"uuids": 3},
        {"uuids": "x"},
        {"cursor": 1},
    ],
)
def test_a_memory_that_makes_no_sense_means_a_first_look(node: Node, memory: dict[str, object]) -> None:
    node.memory = {"boot_id": "boot-1", **memory}
    assert node.xid(48).look(gpu_xid_repeats).status is Status.OK
    assert len(node.memory["seen"]) == 1


def test_memory_stays_bounded_in_a_flood(node: Node) -> None:
    for number in range(1500):
        fault(node, number, "n" * 300, 31, gpu=f"{number % 200:04x}:3b:00", text="y" * 3000)
    node.look(gpu_xid_repeats)
    assert len(node.memory["seen"]) == MOST_EVENTS
    assert len(json.dumps(node.memory)) < MOST_EVENTS * 800


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([13, 31, 48, 74, 79, 94, 95, 154, 999]),
            st.integers(0, 3),
            st.one_of(
                st.just(SHADER.format(1, 2)), st.text(st.characters(exclude_characters="\n"), max_size=30)
            ),
            st.floats(0, 9000),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_no_log_breaks_the_check(events: list[tuple[int, int, str, float, bool]]) -> None:
    node = Node(GPU)
    for code, gpu, text, after, reboots in events:
        node.xid(code, text, gpu=f"000{gpu}:3b:00", after=after)
        verdict = node.look(gpu_xid_repeats)
        keys = [f.key for f in verdict.findings]
        assert len(keys) == len(set(keys))
        if reboots:
            node.reboot()
