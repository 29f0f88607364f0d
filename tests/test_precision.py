"""Who was right how often: lives of incidents from transitions and marks, and what a score allows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from clustertools.cli import main
from clustertools.model import Action, Outcome, Playbook, Status, Step, Subject
from clustertools.policy import Budgets
from clustertools.precision import Firing, Score, earned, firings, scores
from clustertools.sinks.message import from_transition
from clustertools.stats import wilson
from tests.lab.watching import WatchLab

DRAIN = Playbook("drain-it", ("GpuLost",), "x", steps=(Step("drain"),))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchLab:
    """A watchdog that acts, whose scheduler could drain; its state is the one that the commands find."""
    monkeypatch.setenv("CLUSTERTOOLS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CLUSTERTOOLS_ETC", str(tmp_path / "etc"))
    monkeypatch.delenv("CLUSTERTOOLS_CONFIG", raising=False)
    (tmp_path / "state").mkdir()
    lab = WatchLab(tmp_path / "state", mode="act", flap_window_seconds=60.0)
    lab.machine.time = time.time() - 50_000
    lab.runs.supported = frozenset({"drain", "capture"})
    lab.watchdog.playbooks = (DRAIN,)
    return lab


def fire(lab: WatchLab, code: str = "GpuLost") -> None:
    """One life of an incident: reported, and over."""
    lab.machine.fault(code)
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_(600)
    lab.machine.time += 600  # past the time in which a return is the same life


def found(lab: WatchLab) -> list[Firing]:
    deeds = [(row.action, row.outcome, row.time) for row in lab.store.actions()]
    return firings(lab.store.transitions(), deeds)


def test_each_life_counts_once(lab: WatchLab):
    for _ in range(3):
        fire(lab)
    lab.machine.fault("GpuLost")
    lab.pass_(600)
    lives = found(lab)
    assert [bool(f.ended_at) for f in lives] == [True, True, True, False]
    (score,) = scores(lives)
    assert (score.check, score.code, score.fired, score.open, score.by_itself) == (
        "node_check",
        "GpuLost",
        4,
        1,
        3,
    )
    assert score.precision is None
    assert score.interval == (0.0, 1.0)


def test_a_return_inside_the_flap_window_is_the_same_life(lab: WatchLab):
    lab.machine.fault("GpuLost")
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_()
    lab.machine.fault("GpuLost")
    lab.pass_()
    (life,) = found(lab)
    assert life.ended_at == 0


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--true", "--why", "board replaced"], True),
        (["--true"], True),
        (["--false-alarm", "the sensor is off"], False),
    ],
)
def test_people_judge_what_is_over_with_resolve(
    lab: WatchLab, capsys: pytest.CaptureFixture[str], words: list[str], right: bool
):
    fire(lab)
    assert main(["resolve", "GpuLost:n1", *words]) == 0
    (life,) = found(lab)
    assert life.right is right
    assert words[-1] in life.why or words == ["--true"]
    capsys.readouterr()
    assert main(["checks", "precision", "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["kind"] == "precision"
    assert (row["check"], row["code"], row["fired"], row["precision"]) == ("node_check", "GpuLost", 1, right)
    assert main(["checks", "precision"]) == 0
    share = "100% (21% to 100%)" if right else "0% (0% to 79%)"
    assert f"node_check GpuLost  {share}" in capsys.readouterr().out


def test_an_open_one_that_is_a_false_alarm_ends_unless_it_is_reported(lab: WatchLab):
    lab.machine.time = time.time() - 60
    lab.machine.fault("GpuLost")
    lab.pass_()
    assert main(["resolve", "GpuLost:n1", "--false-alarm", "nothing there"]) == 0
    lab.pass_()
    assert lab.store.incidents()["GpuLost:n1"].state == "open"
    assert found(lab)[0].right is False


def test_true_and_false_at_once_and_no_reason_are_wrong_usage(
    lab: WatchLab, capsys: pytest.CaptureFixture[str]
):
    lab.machine.fault("GpuLost")
    lab.pass_()
    assert main(["resolve", "GpuLost:n1", "--true", "--false-alarm", "x"]) == 3
    assert main(["resolve", "GpuLost:n1"]) == 3
    assert "--why is missing" in capsys.readouterr().err


def deed(kind: str, at: float, ok: bool = True) -> tuple[Action, Outcome | None, float]:
    action = Action(f"{kind}{at}", kind, Subject(node="n1"), "GpuLost:n1", "", "said")
    return action, Outcome(action.id, ok, "x", 0.0, at), at


def test_what_a_repair_and_a_mark_count_for(lab: WatchLab):
    begun = lab.machine.time
    fire(lab)
    fire(lab)
    changes = lab.store.transitions()
    first = begun + 60

    def second(*deeds: Any) -> list[Firing]:
        return firings(changes, deeds)

    assert [f.helped for f in second(deed("reboot", first))] == [True, False]
    assert [f.by_itself for f in second(deed("reboot", first))] == [False, True]
    assert [f.helped for f in second(deed("reboot", first, ok=False))] == [False, False]
    assert [f.helped for f in second(deed("drain", first))] == [False, False]
    assert [f.acknowledged for f in second(deed("ack", first))] == [True, False]
    # the last word counts, and only for the life that it is about
    words = (deed("true-alarm", first), deed("false-alarm", first + 1))
    assert [f.right for f in second(*words)] == [False, None]
    assert [f.right for f in second(deed("true-alarm", begun - 10))] == [None, None]


def test_wilson():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(10, 10)
    assert (round(low, 3), high) == (0.722, 1.0)  # the tables say 0.7225
    low, high = wilson(1, 2)
    assert (round(low, 4), round(high, 4)) == (0.0945, 0.9055)
    assert wilson(0, 10)[0] == 0.0


def test_what_codes_have_earned():
    both = [Score("a", "X", confirmed=3, false=1), Score("b", "X", confirmed=1), Score("a", "Y", fired=9)]
    assert earned(both) == {"X": (5, 0.8), "Y": (0, 0.0)}


def blocked(lab: WatchLab) -> str:
    lab.machine.fault("GpuLost")
    planned = lab.pass_(700).planned
    lab.machine.faults.clear()
    lab.pass_(600)
    return "".join(a.blocked for a in planned if a.kind == "drain")


def test_a_code_earns_the_right_to_drain(lab: WatchLab, monkeypatch: pytest.MonkeyPatch):
    assert blocked(lab) == ""  # off by default
    lab.set(budgets=Budgets(per_node_per_day=99, earn_cases=2, earn_precision=0.6))
    assert blocked(lab) == "not earned yet: 0 alarms of GpuLost were judged (needs 2)"
    for kind in ("true-alarm", "false-alarm", "true-alarm"):
        fire(lab)
        with lab.store.transaction():
            action, outcome, _ = deed(kind, lab.machine.time)
            lab.store.put_action(action, "done", lab.machine.time)
            lab.store.finish_action(outcome, lab.machine.time)  # type: ignore[arg-type]
        if kind == "false-alarm":
            assert blocked(lab) == "not earned: 50% of 2 judged alarms of GpuLost were true (needs 60%)"
    assert blocked(lab) == ""


def test_an_observed_check_is_stored_and_told_and_never_acts(lab: WatchLab):
    lab.set(observe_only=frozenset({"node_check"}))
    lab.machine.fault("GpuLost")
    done = lab.pass_()
    assert done.planned == ()
    (change,) = done.transitions
    assert change.incident.observed
    message = from_transition(change, playbook=DRAIN)
    assert "only observed: nothing is done for it (checks.node_check.observe)" in message.lines
    assert lab.store.incidents()["GpuLost:n1"].observed
    assert found(lab)[0].observed
    # the site trusts it from now on
    lab.set(observe_only=frozenset())
    assert [a.kind for a in lab.pass_().planned] == ["drain"]
    assert not lab.store.incidents()["GpuLost:n1"].observed


def test_an_observed_root_hides_no_symptom(lab: WatchLab):
    book = Playbook("root", ("GpuLost",), "x", explains=("LinkDown",))
    lab.watchdog.playbooks = (book,)
    lab.machine.fault("GpuLost")
    lab.machine.fault("LinkDown")
    lab.pass_()
    assert lab.store.incidents()["LinkDown:n1"].explained_by == "GpuLost:n1"
    lab.set(observe_only=frozenset({"node_check"}))
    lab.pass_()
    assert lab.store.incidents()["LinkDown:n1"].explained_by == ""


def test_status_says_that_it_is_only_observed(lab: WatchLab, capsys: pytest.CaptureFixture[str]):
    lab.machine.time = time.time() - 60
    lab.set(observe_only=frozenset({"node_check"}))
    lab.machine.fault("GpuLost", status=Status.CRITICAL)
    lab.pass_()
    main(["status"])
    assert "[only observed]" in capsys.readouterr().out
    main(["show", "GpuLost:n1"])
    assert "only observed: nothing is done for it" in capsys.readouterr().out
