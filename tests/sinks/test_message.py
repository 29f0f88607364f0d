"""What messages say, and when many become one."""

from __future__ import annotations

import dataclasses
import datetime
import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.model import (
    Action,
    Finding,
    Incident,
    Outcome,
    Playbook,
    Remedy,
    State,
    Status,
    Subject,
    Transition,
    from_data,
    to_data,
)
from clustertools.sinks import SinkRule, wants
from clustertools.sinks.message import (
    Message,
    fold_messages,
    from_outcome,
    from_transition,
    named,
    note,
)
from clustertools.text import in_words, plain

UTC = datetime.timezone.utc
NOON = datetime.datetime(2026, 3, 4, 12, 2, 11, tzinfo=UTC).timestamp()
BOOK = Playbook("node-reboot", ("XidGpuLost",), "It fell off the bus.\n\nReboot it, then run preflight.")


def lost_gpu(node: str = "gpu-017", address: str = "0000:3b:00.0", **change: object) -> Finding:
    finding = Finding(
        check="gpu_xid",
        code="XidGpuLost",
        subject=Subject(node=node, part=f"gpu@{address}"),
        status=Status.CRITICAL,
        summary=f"GPU {address} fell off the bus (Xid 79)",
        evidence=(f"NVRM: Xid (PCI:{address[:-2]}): 79, pid=1234, GPU has fallen off the bus.",),
        remedy=Remedy.REBOOT_NODE,
        clears="reboot",
    )
    return dataclasses.replace(finding, **change)  # type: ignore[arg-type]


def change(
    finding: Finding, was: State = "none", now: State = "open", worse: bool = False, time: float = NOON
) -> Transition:
    incident = Incident(finding, now, first_seen=NOON - 60, last_seen=time, opened_at=NOON)
    return Transition(incident, was, now, time, worse)


def drain(finding: Finding, blocked: str = "") -> Action:
    node = finding.subject.node
    preview = f"scontrol update nodename={node} state=drain reason='clustertools: XidGpuLost'"
    return Action("1", "drain", Subject(node=node), finding.key, "node-reboot", preview, blocked=blocked)


def opened(node: str, address: str = "0000:3b:00.0") -> Message:
    finding = lost_gpu(node, address)
    return from_transition(change(finding), playbook=BOOK, planned=[drain(finding)], zone=UTC)


def test_the_message_of_the_design() -> None:
    finding = lost_gpu()
    hang = Finding("job", "JobHung", Subject(run="pretrain-7"), Status.CRITICAL, "no step for 12 m")
    message = from_transition(
        change(finding),
        playbook=BOOK,
        planned=[drain(finding)],
        explains=[Incident(hang, "open", NOON, NOON)],
        zone=UTC,
    )
    assert message.title == "CRITICAL gpu-017 · GPU 0000:3b:00.0 fell off the bus (Xid 79) · 12:02:11"
    assert message.lines == (
        "explains: run pretrain-7 · no step for 12 m (JobHung)",
        "next: drain gpu-017",
        "advice: reboot the node",
        "runbook: node-reboot (clustertools explain XidGpuLost)",
        "look: clustertools show XidGpuLost:gpu-017/gpu@0000:3b:00.0",
    )
    assert message.keys == (finding.key,)
    assert "Reboot it, then run preflight." in message.runbook
    assert message.evidence[0].startswith("NVRM: Xid")


def test_a_blocked_action_says_why_and_how_to_do_it_by_hand() -> None:
    finding = lost_gpu()
    message = from_transition(
        change(finding), playbook=None, planned=[drain(finding, "observe mode")], zone=UTC
    )
    assert "not done: drain gpu-017 (observe mode)" in message.lines
    assert any(line.startswith("by hand: scontrol update nodename=gpu-017") for line in message.lines)


def test_the_other_changes() -> None:
    finding = lost_gpu()
    over = from_transition(change(finding, "open", "resolved", time=NOON + 7800), playbook=BOOK, zone=UTC)
    assert over.kind == "resolved"
    assert over.title == "RESOLVED gpu-017 · GPU 0000:3b:00.0 fell off the bus (Xid 79) · 14:12:11"
    assert over.lines[0] == "resolved, it lasted 2 h 10 m"
    assert not any("advice" in line for line in over.lines)
    assert over.status is Status.CRITICAL
    back = from_transition(change(finding, "resolved", "open"), playbook=BOOK, zone=UTC)
    assert (back.kind, "again: GPU" in back.title) == ("reopened", True)
    worse = from_transition(change(finding, "open", "open", worse=True), playbook=BOOK, zone=UTC)
    assert (worse.kind, "worse: GPU" in worse.title) == ("worsened", True)


def test_a_job_is_named_by_its_run_and_shows_its_nodes() -> None:
    nodes = tuple(f"gpu-{n:03}" for n in range(31))
    hang = Finding("job", "JobHung", Subject(run="r7"), Status.CRITICAL, "stuck", nodes=nodes)
    message = from_transition(change(hang), playbook=None, zone=UTC)
    assert message.title.startswith("CRITICAL run r7 · stuck")
    assert message.lines[0].endswith("gpu-007 and 23 more")


def test_outcomes() -> None:
    finding = lost_gpu()
    done = from_outcome(drain(finding), Outcome("1", True, "State=DRAINED", 3.2, NOON), zone=UTC)
    assert done.title == "DONE drain gpu-017 · 12:02:11"
    assert done.key == finding.key
    assert done.lines[:2] == ("State=DRAINED", "took 3 s")
    incident = change(finding).incident
    failed = from_outcome(drain(finding), Outcome("1", False, "no slurmctld", 0, NOON), incident=incident)
    assert failed.title.startswith("FAILED drain gpu-017")
    assert any(line.startswith("by hand: scontrol") for line in failed.lines)
    assert failed.status is Status.CRITICAL


def test_the_command_to_look_can_be_pasted_into_a_shell() -> None:
    finding = lost_gpu(node="gpu-1; rm -rf /")
    message = from_transition(change(finding), playbook=None, zone=UTC)
    assert message.lines[-1] == "look: clustertools show 'XidGpuLost:gpu-1; rm -rf //gpu@0000:3b:00.0'"


def test_round_trip() -> None:
    message = fold_messages([opened("a"), opened("b"), opened("c")], zone=UTC)[0]
    assert from_data(Message, json.loads(json.dumps(to_data(message)))) == message


# text that others wrote


def test_escapes_and_controls_are_dropped() -> None:
    assert plain("\x1b[31mred\x1b[0m \x1b]0;owned\x07x\x1bcy\x9b1mz") == "red xyz"
    assert plain("a\x00b\x08\tc\r\nd\x7f") == "ab c d"
    assert plain("\u202eevil\u202c \u200bzero \ud800 \u2066x") == "evil zero x"
    assert plain("x" * 10_000) == "x" * 499 + "…"


@settings(max_examples=100)
@given(
    st.text()
    | st.lists(st.sampled_from(["\x1b[", "\x1b]", "\x9b", "3", "1", "m", "\x07", "\n", "a"])).map("".join)
)
def test_whatever_comes_in_one_printable_line_comes_out(text: str) -> None:
    line = plain(text, 80)
    assert len(line) <= 80
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in line)
    assert plain(line, 80) == line


def test_hostile_findings_make_bounded_messages() -> None:
    finding = lost_gpu(
        node="n\x1b[2J\x00" + "x" * 500,
        summary="\x1b[31m" + "y" * 100_000,
        evidence=tuple("z" * 100_000 for _ in range(50)),
        nodes=tuple("w" * 1000 for _ in range(2000)),
    )
    actions = [drain(finding, "b" * 10_000) for _ in range(100)]
    message = from_transition(change(finding), playbook=BOOK, planned=actions, zone=UTC)
    assert len(json.dumps(to_data(message))) < 20_000
    assert message.lines[-1].startswith("look: ")
    assert message.lines[-2].endswith("more lines")


def test_durations_and_names() -> None:
    assert [in_words(s) for s in (-5, 0, 45, 130, 120, 11_100, 187_200)] == [
        "0 s", "0 s", "45 s", "2 m 10 s", "2 m", "3 h 5 m", "2 d 4 h",
    ]  # fmt: skip
    assert named(["a", "b"]) == "a, b"
    assert named(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


# folding


def test_many_nodes_with_one_fault_are_one_message() -> None:
    messages = [opened(f"gpu-{n:03}", f"0000:{n:02x}:00.0") for n in range(31)]
    (one,) = fold_messages(messages, zone=UTC)
    assert one.title == "CRITICAL 31 nodes · XidGpuLost · 12:02:11"
    assert one.lines[0].startswith("gpu-000, gpu-001, ")
    assert one.lines[0].endswith("gpu-007 and 23 more")
    assert one.lines[1] == "for example gpu-000: GPU 0000:00:00.0 fell off the bus (Xid 79)"
    assert "next: drain each node" in one.lines
    assert "advice: reboot the node" in one.lines
    assert one.keys == tuple(m.key for m in messages)
    assert one.key == messages[0].key
    assert len(one.evidence) == 3


def test_lines_that_not_all_share_are_counted() -> None:
    finding = lost_gpu("d")
    odd = from_transition(change(finding), playbook=BOOK, planned=[drain(finding, "budget")], zone=UTC)
    (one,) = fold_messages([opened("a"), opened("b"), opened("c"), odd], zone=UTC)
    assert "next: drain each node (3 of 4)" in one.lines


def test_two_stay_two_and_kinds_and_codes_stay_apart() -> None:
    two = [opened("a"), opened("b")]
    assert fold_messages(two) == two
    other = lost_gpu("c", code="EccUncorrected")
    over = from_transition(change(lost_gpu("d"), "open", "resolved"), playbook=BOOK)
    mixed = [*two, from_transition(change(other), playbook=BOOK), over]
    assert fold_messages(mixed) == mixed


def test_several_parts_of_one_node() -> None:
    messages = [opened("gpu-017", f"0000:{n:02x}:00.0") for n in range(4)]
    (one,) = fold_messages(messages, zone=UTC)
    assert one.title == "CRITICAL 4 incidents on gpu-017 · XidGpuLost · 12:02:11"


def test_recoveries_of_separate_threads_stay_separate() -> None:
    over = [
        from_transition(change(lost_gpu(n), "open", "resolved"), playbook=BOOK, zone=UTC) for n in "abcdef"
    ]
    threads = {over[n].key: "C1:1.1" for n in range(3)} | {over[3].key: "C1:2.2", over[4].key: "C1:3.3"}
    folded = fold_messages(over, references=threads, zone=UTC)
    assert [len(m.keys) for m in folded] == [3, 1, 1, 1]
    assert folded[0].title.startswith("RESOLVED 3 nodes")


def test_outcomes_fold_by_what_was_done() -> None:
    def outcome(node: str, ok: bool) -> Message:
        return from_outcome(drain(lost_gpu(node)), Outcome("1", ok, "", 0, NOON), zone=UTC)

    messages = [outcome("a", True), outcome("b", False), outcome("c", True), outcome("d", True)]
    folded = fold_messages(messages, zone=UTC)
    assert [m.title for m in folded] == ["DONE drain 3 nodes · 12:02:11", "FAILED drain b · 12:02:11"]


def test_no_message_overtakes_an_earlier_one_of_its_incident() -> None:
    def outcome(node: str) -> Message:
        return from_outcome(drain(lost_gpu(node)), Outcome("1", True, "", 0, NOON), zone=UTC)

    messages = [outcome("x"), opened("a"), outcome("a"), opened("b"), outcome("b"), opened("c"), outcome("c")]
    order: dict[str, list[str]] = {}
    for message in fold_messages(messages, at_least=2, zone=UTC):
        for key in message.keys:
            order.setdefault(key, []).append(message.kind)
    for node in "abc":
        assert order[lost_gpu(node).key] == ["opened", "outcome"]


def test_notes_are_not_folded() -> None:
    notes = [note("k", Status.WARNING, "still open", NOON + n) for n in range(5)]
    assert fold_messages(notes) == notes


# who hears what


def test_routing() -> None:
    finding = lost_gpu(status=Status.WARNING)
    warning = from_transition(change(finding), playbook=None)
    over = from_transition(change(finding, "open", "resolved"), playbook=None)
    pager = SinkRule(Status.CRITICAL)
    assert wants(SinkRule(), warning)
    assert not wants(pager, warning)
    # it was CRITICAL when the pager heard of it, and got better in two steps: the end is told all the same
    assert wants(pager, over, told=True)
    assert not wants(pager, over)
    # months later it opens again as a warning: not a page, though the pager once heard of it
    assert not wants(pager, warning, told=True)
    assert not wants(SinkRule(kinds=frozenset({"opened"})), over, told=True)
