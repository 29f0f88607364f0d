"""What a node decides about itself: pure cases, with Slurm as a list in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from clustertools import node_health
from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import Completed
from clustertools.model import Clears, Finding, Playbook, Status, Step, Subject, Verdict
from clustertools.node_health import Decision, Memory, Rules, decide
from clustertools.schedulers.slurm_nodes import SlurmNode, SlurmNodes

NOON = 1_790_000_000.0
BOOKS = [
    Playbook(
        "drain-it", ("GpuLost", "FanStopped"), "x", steps=(Step("capture"), Step("drain"), Step("reboot"))
    ),
    Playbook("look", ("LinkDown",), "x"),
]
ACT = Rules(mode="act", hold_seconds=60.0, max_fraction=1.0)
OURS = "clustertools: GpuLost gpu0 it is gone (node-health)"


class List:
    """Slurm's list. `away` makes every question fail; `arrive` puts drains of others before each look."""

    def __init__(self, size: int = 10, **drained: str) -> None:
        self.drained = dict(drained)
        self.size = size
        self.away = ""
        self.asked: list[str] = []
        self.arrive: Callable[[List], None] = lambda nodes: None

    def _ask(self, text: str) -> None:
        self.asked.append(text)
        if self.away:
            raise Unobservable(self.away)

    def node(self, name: str) -> SlurmNode:
        self._ask("node")
        return SlurmNode(name, name in self.drained, self.drained.get(name, ""))

    def reasons(self) -> dict[str, str]:
        self._ask("reasons")
        return {f"n{i}": self.drained.get(f"n{i}", "") for i in range(1, self.size + 1)}

    def drain(self, name: str, reason: str) -> None:
        self._ask("drain")
        self.arrive(self)
        self.drained[name] = reason

    def undrain(self, name: str) -> None:
        self._ask("undrain")
        del self.drained[name]


def verdict(
    *codes: str, blind: str = "", status: Status = Status.CRITICAL, clears: Clears = "recovery",
    summary: str = "it is gone", boot: str = "b1",
) -> Verdict:  # fmt: skip
    subject = Subject(node="host1")
    findings = tuple(
        Finding("gpu", code, Subject(node="host1", part="gpu0"), status, summary, clears=clears, time=NOON)
        for code in codes
    )
    outcome = Status.UNKNOWN if blind else max((f.status for f in findings), default=Status.OK)
    return Verdict("gpu", subject, outcome, findings, blind=blind, boot_id=boot, time=NOON)


class Node:
    """One node that looks again and again."""

    def __init__(self, nodes: List | None = None, rules: Rules = ACT) -> None:
        self.nodes, self.rules = nodes or List(), rules
        self.memory = Memory()
        self.now = NOON

    def look(self, *verdicts: Verdict, seconds: float = 60.0) -> Decision:
        self.now += seconds
        decision = decide(self.memory, verdicts, lambda: BOOKS, self.rules, self.now, "n1", self.nodes)
        # what is remembered lies in a JSON file in between
        data = json.loads(json.dumps(node_health.memory_to_data(decision.memory)))
        self.memory = node_health.memory_from_data(data)
        return decision


def test_a_healthy_node_asks_slurm_once_and_no_more():
    node = Node()
    assert node.look(verdict()).sentences == ()
    assert node.nodes.asked == ["node"]
    for _ in range(5):
        node.look(verdict())
    assert node.nodes.asked == ["node"]


def test_in_observe_mode_slurm_is_never_asked():
    node = Node(rules=Rules())
    node.look(verdict())
    (said,) = node.look(verdict("GpuLost")).sentences
    assert said == "would drain for GpuLost gpu0 (it is gone): observe mode"
    assert node.nodes.asked == []


def test_it_drains_once_and_refuses_jobs_for_as_long():
    node = Node()
    first = node.look(verdict("GpuLost"))
    assert first.refuse
    assert node.nodes.drained == {"n1": OURS}
    for _ in range(3):
        again = node.look(verdict("GpuLost"))
        assert again.refuse
        assert again.sentences == ()
    assert node.nodes.asked.count("drain") == 1


def test_without_act_it_only_says_so():
    node = Node(rules=Rules(mode="act", may_act=False))
    decision = node.look(verdict("GpuLost"))
    assert "it may only look now" in decision.sentences[0]
    assert not decision.refuse
    assert node.nodes.asked == []


@pytest.mark.parametrize("case", [verdict("LinkDown"), verdict("GpuLost", status=Status.WARNING)])
def test_what_no_playbook_drains_for_and_warnings_drain_nothing(case: Verdict):
    node = Node()
    decision = node.look(case)
    assert not decision.refuse
    assert node.nodes.drained == {}


def test_a_mode_of_one_playbook():
    node = Node(rules=Rules(playbook_modes={"drain-it": "act"}, max_fraction=1.0))
    assert node.look(verdict("GpuLost")).refuse


def test_a_state_that_flickers_is_believed_only_after_its_passes():
    node = Node(rules=Rules(mode="act", confirm={"gpu": 2}, max_fraction=1.0))
    assert not node.look(verdict("GpuLost")).refuse
    assert node.look(verdict("GpuLost")).refuse


def test_a_prolog_after_an_epilog_is_no_second_pass():
    node = Node(rules=Rules(mode="act", confirm={"gpu": 2}, max_fraction=1.0, is_watch=False))
    for _ in range(4):
        assert not node.look(verdict("GpuLost")).refuse
    node.rules = dataclasses.replace(node.rules, is_watch=True)
    assert not node.look(verdict("GpuLost")).refuse
    assert node.look(verdict("GpuLost")).refuse
    # and what the looks of every minute have believed, a prolog refuses
    node.rules = dataclasses.replace(node.rules, is_watch=False)
    assert node.look(verdict("GpuLost")).refuse


def test_a_prolog_that_is_well_resumes_nothing():
    node = Node()
    node.look(verdict("GpuLost"))
    node.rules = dataclasses.replace(ACT, is_watch=False)
    for _ in range(5):
        node.look(verdict(), seconds=600)
    assert node.nodes.drained == {"n1": OURS}
    assert node.memory.well_since == 0


@pytest.mark.parametrize("change", [{"mode": "observe"}, {"paused": "x"}, {"may_act": False}])
def test_who_may_not_act_refuses_nothing_even_where_it_drained_before(change: dict[str, Any]):
    node = Node()
    node.look(verdict("GpuLost"))
    node.rules = dataclasses.replace(ACT, **change)
    assert not node.look(verdict("GpuLost")).refuse
    for _ in range(3):
        node.look(verdict(), seconds=600)
    assert node.nodes.drained == {"n1": OURS}


def test_well_again_it_waits_and_then_resumes_only_its_own():
    node = Node()
    node.look(verdict("GpuLost"))
    assert node.look(verdict()).sentences == ("well again; resumes in 60 s if it stays so",)
    node.look(verdict("GpuLost"))  # a relapse begins the time anew
    assert "resumes in 60 s" in node.look(verdict()).sentences[0]
    assert "resumed n1: well for 61 s" in node.look(verdict(), seconds=61).sentences[0]
    assert node.nodes.drained == {}


def test_blind_looks_begin_the_hold_time_anew_and_resume_nothing():
    node = Node()
    node.look(verdict("GpuLost"))
    node.look(verdict())
    assert node.look(verdict(blind="no answer"), seconds=600).sentences == (
        "not resumed: could not look with gpu",
    )
    assert "resumes in 60 s" in node.look(verdict(), seconds=600).sentences[0]


def test_a_look_with_nothing_but_skipped_checks_resumes_nothing():
    node = Node(List(n1=OURS))
    skipped = Verdict("gpu", Subject(node="host1"), Status.SKIPPED)
    for _ in range(3):
        node.look(skipped, seconds=600)
    assert node.nodes.drained == {"n1": OURS}


@pytest.mark.parametrize(
    "reason",
    [
        "bad fan", "NHC: check_hw_ib", "Prolog error", "",
        "clustertools: GpuLost on gpu0",  # the watchdog's
        f"{OURS}, Bob looks",
    ],
)  # fmt: skip
def test_what_others_wrote_stands(reason: str):
    node = Node(List(n1=reason))
    said = node.look(verdict("GpuLost")).sentences
    assert "drained" in said[0]
    for _ in range(3):
        node.look(verdict(), seconds=600)
    assert node.nodes.drained == {"n1": reason}
    assert not {"drain", "undrain"} & set(node.nodes.asked)


def test_a_reboot_forgets_and_finds_its_own_drain_again():
    node = Node(List(n1=OURS))
    node.look(verdict())
    node.look(verdict(), seconds=61)
    assert node.nodes.drained == {}


def test_what_needs_hands_is_never_taken_back():
    node = Node()
    node.look(verdict("GpuLost", clears="manual"))
    assert node.nodes.drained == {"n1": "clustertools: GpuLost gpu0 it is gone"}
    node.memory = Memory()  # a reboot
    for _ in range(3):
        node.look(verdict(boot="b2"), seconds=600)
    assert "n1" in node.nodes.drained


def test_the_breaker_counts_what_slurm_lists():
    nodes = List(10, n2=OURS, n3="clustertools: FanStopped on fan1", n4="bad fan")
    node = Node(nodes, Rules(mode="act", max_nodes=2, max_fraction=1.0))
    decision = node.look(verdict("GpuLost"))
    assert "circuit breaker: 2 of 10 nodes are drained by us (limit 2)" in decision.sentences[0]
    assert not decision.refuse
    assert "n1" not in nodes.drained
    del nodes.drained["n2"]
    assert node.look(verdict("GpuLost")).refuse


def test_the_breaker_takes_a_share_of_the_class_and_one_is_always_allowed():
    rules = Rules(mode="act", max_fraction=0.2, in_class=lambda name: name in {"n1", "n2", "n3", "n4", "n5"})
    others = {f"n{i}": OURS for i in range(6, 11)}
    assert Node(List(10, **others), rules).look(verdict("GpuLost")).refuse
    assert not Node(List(10, n2=OURS), rules).look(verdict("GpuLost")).refuse


def test_all_at_once_takes_its_drain_back_and_rests():
    nodes = List(10)
    nodes.arrive = lambda those: those.drained.update({f"n{i}": OURS for i in range(2, 6)})
    node = Node(nodes, Rules(mode="act", max_nodes=3, max_fraction=1.0))
    decision = node.look(verdict("GpuLost"))
    assert (
        "took it back: circuit breaker: 5 of 10 nodes were drained at once (limit 3)" in decision.sentences[0]
    )
    assert not decision.refuse
    assert "n1" not in nodes.drained
    nodes.drained.clear()
    nodes.arrive = lambda those: None
    assert "circuit breaker: open for another" in node.look(verdict("GpuLost")).sentences[0]
    assert node.look(verdict("GpuLost"), seconds=3600).refuse  # the time is over, and it still stands


def test_slurm_away_harms_nothing_and_is_asked_again():
    node = Node()
    node.nodes.away = "scontrol did not answer within 5 s"
    decision = node.look(verdict("GpuLost"))
    assert decision.sentences == (
        "would drain for GpuLost gpu0 (it is gone): scontrol did not answer within 5 s",
    )
    assert not decision.refuse
    node.nodes.away = ""
    assert node.look(verdict("GpuLost")).refuse
    node.nodes.away = "away"
    assert "could not be asked" in " ".join(node.look(verdict()).sentences)
    node.nodes.away = ""
    assert "resumed" in node.look(verdict(), seconds=61).sentences[0]


def test_a_person_who_resumes_is_not_contradicted_but_a_new_fault_counts():
    node = Node()
    node.look(verdict("GpuLost"))
    node.nodes.drained.clear()
    decision = node.look(verdict("GpuLost"))
    assert not decision.refuse
    assert node.nodes.drained == {}
    assert node.look(verdict("GpuLost", "FanStopped")).refuse


def test_a_budget_a_day():
    node = Node()
    for _ in range(2):
        node.look(verdict("GpuLost"), seconds=2000)
        node.look(verdict(), seconds=2000)
        node.nodes.drained.clear()
    said = node.look(verdict("GpuLost"), seconds=2000).sentences
    assert "budget: drain of host1 2 times in 24 h (limit 2)" in said[0]


def test_the_reason_is_one_bounded_line():
    node = Node()
    node.look(verdict("GpuLost", summary="bad\n\x1b[31m" + "x" * 5000))
    (reason,) = node.nodes.drained.values()
    assert "\n" not in reason
    assert "\x1b" not in reason
    assert len(reason) < 200
    assert reason.endswith("(node-health)")


@pytest.mark.parametrize("data", [{}, {"incidents": [1]}, {"incidents": [], "done": [{}]}])
def test_a_memory_of_another_shape(data: Any):
    with pytest.raises((KeyError, TypeError, ValueError)):
        node_health.memory_from_data(data)


class Answers:
    """A host that answers one command."""

    def __init__(self, stdout: str = "", returncode: int = 0, stderr: str = "") -> None:
        self.answer = (returncode, stdout, stderr)
        self.asked: list[tuple[str, ...]] = []

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        self.asked.append(argv)
        return Completed(argv, *self.answer)


# `scontrol -o show node`, Slurm 22.05.8, cut to what is read; the second as 23.11 prints it
SHOWN = {
    "NodeName=n1 OS=Linux 6.1 #1 SMP State=IDLE+DRAIN ThreadsPerCore=1 "
    "Reason=clustertools: X [a] 'b' d, e=f (node-health) [root@2026-11-21T13:47:45]\n": (
        True, "clustertools: X [a] 'b' d, e=f (node-health)"
    ),
    "NodeName=n1 State=MIXED+DRAIN+DYNAMIC_NORM Owner=N/A Comment=x Reason=swap [al@2026-11-21T13:47:45] "
    "InstanceId=i-1\n": (True, "swap"),
    "NodeName=n1 State=DOWN* Reason=Not responding [slurm@2026-11-21T13:47:45]\n": (False, "Not responding"),
    "NodeName=n1 State=IDLE ThreadsPerCore=1 ExtSensorsTemp=n/s\n": (False, ""),
}  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_a_node_as_slurm_shows_it(text: str):
    node = SlurmNodes(Answers(text)).node("n1")  # type: ignore[arg-type]
    assert (node.is_drained, node.reason) == SHOWN[text]


@pytest.mark.parametrize(
    "answer", [Answers("", 1, "slurm_load_node error: Invalid node name"), Answers("what?"), Answers("")]
)
def test_a_node_that_slurm_does_not_show(answer: Answers):
    with pytest.raises(Unobservable):
        SlurmNodes(answer).node("n1")  # type: ignore[arg-type]


def test_the_list_of_reasons():
    text = "n1|none\nn2|clustertools: X | y\nn2|clustertools: X | y\nn3|bad fan\n"
    assert SlurmNodes(Answers(text)).reasons() == {  # type: ignore[arg-type]
        "n1": "", "n2": "clustertools: X | y", "n3": "bad fan"
    }  # fmt: skip
    for wrong in ("", "n1\n", "|x\n"):
        with pytest.raises(Unobservable):
            SlurmNodes(Answers(wrong)).reasons()  # type: ignore[arg-type]


def test_a_refused_update_is_told():
    with pytest.raises(ActionFailed, match="Invalid user id"):
        SlurmNodes(Answers("", 1, "slurm_update error: Invalid user id")).drain("n1", "x")  # type: ignore[arg-type]
    host = Answers()
    SlurmNodes(host).drain("n1", "clustertools: a b")  # type: ignore[arg-type]
    assert host.asked == [("scontrol", "update", "nodename=n1", "state=drain", "reason=clustertools: a b")]
