"""What people hear of a run's curve from the real watchdog: one message, edited until it is over."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools import notices
from clustertools.check import discover
from clustertools.curves import CurveEvent, News, Options, Restart, Row, Story
from clustertools.curves import watch as curve_watch
from clustertools.delivery import Mail
from clustertools.incidents import Rules, fold
from clustertools.model import Attempt, Finding, Job, Status, Subject, Verdict
from clustertools.policy import explains, load_playbooks
from clustertools.schedulers import RunSpec
from clustertools.sinks import SinkRule
from clustertools.sinks.slack import SlackSink
from clustertools.store import Store
from clustertools.watchdog import Pass, Settings, Watchdog
from tests.lab.make_curve_runs import bloom
from tests.lab.memory_host import MemoryHost
from tests.lab.slack_stub import SlackStub
from tests.lab.watching import Runs

LOG = "/scratch/train.log"
RED, GREEN, YELLOW = "\N{LARGE RED CIRCLE}", "\N{LARGE GREEN CIRCLE}", "\N{LARGE YELLOW CIRCLE}"


class Script:
    """A detector that says what the test wants to hear: one thing for each row of these steps."""

    says: dict[int, tuple[str, dict[str, Any]]] = {}

    def __init__(self, state: Any, options: Options) -> None:
        self.event = CurveEvent(**state) if state else None

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        change, more = self.says.get(row.step, ("", {}))
        if not change:
            return
        if change == "began":
            base: dict[str, Any] = {
                "number": story.number(), "kind": "spike", "metric": "loss", "step": row.step,
                "alarm_step": row.step, "value": row.values["loss"], "baseline": 2.2, "confidence": 0.9,
                "severity": "notice", "message": f"loss {row.values['loss']} at step {row.step}",
            }  # fmt: skip
            self.event = CurveEvent(**{**base, **more})
        else:
            assert self.event is not None
            self.event = dataclasses.replace(self.event, **more)
        told.append(News(change, self.event))  # type: ignore[arg-type]

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        if self.event is not None and self.event.is_open and restart.step <= self.event.step:
            self.event = dataclasses.replace(self.event, end_step=restart.step)
            told.append(News("ended", self.event))

    def finish(self, story: Story, told: list[News]) -> None:
        return

    def state(self) -> Any:
        return dataclasses.asdict(self.event) if self.event else None


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[str, dict[str, Any]]]:
    monkeypatch.setattr(curve_watch, "DETECTORS", {"script": Script})
    monkeypatch.setattr(Script, "says", {})
    return Script.says


class OneRun(Runs):
    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        return dataclasses.replace(super().job(spec, attempts), log_paths=(LOG,))


class Lab:
    """The real watchdog over a log that the test writes; Slack is a stub that keeps what it shows."""

    def __init__(self, folder: Path, slack: SlackStub, **rule: Any) -> None:
        self.host, self.slack, self.step = MemoryHost(), slack, 0
        self.host.files[LOG] = ""
        sink = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
        self.store = Store(folder / "state.db")
        self.watchdog = Watchdog(
            self.store, self.host, OneRun(), [discover(site_folders=())["job_loss"]], [RunSpec("big")],
            load_playbooks(()), Mail({"team": sink}, {"team": SinkRule(**rule)} if rule else {}),
            Settings(mode="act"), folder / "evidence",
        )  # fmt: skip
        with self.store.transaction():
            self.store.put_attempt(Attempt("big", 1, "t1", started_at=self.host.time))

    def rows(self, count: int, loss: float = 2.2, *, seconds: float = 30.0) -> Pass:
        first, self.step = self.step + 1, self.step + count
        steps = range(first, self.step + 1)
        return self.lines([f"step {n}/1000 | loss {loss} | grad norm 0.5" for n in steps], seconds=seconds)

    def lines(self, lines: list[str], *, seconds: float = 30.0) -> Pass:
        self.host.files[LOG] = str(self.host.files[LOG]) + "".join(f"{line}\n" for line in lines)
        self.host.time += seconds
        return self.watchdog.once()


@pytest.fixture
def lab(tmp_path: Path, says: Any) -> Iterator[Lab]:
    with SlackStub() as slack:
        made = Lab(tmp_path, slack)
        yield made
        made.store.close()


def titles(lab: Lab) -> list[str]:
    return [m.body["text"].splitlines()[0].rpartition(" · ")[0] for m in lab.slack.messages]


def test_a_spike_is_told_when_it_begins_and_its_message_is_edited_until_it_is_over(
    lab: Lab, says: Any
) -> None:
    says[12] = ("began", {})
    says[14] = ("grew", {"value": 5.1, "message": "loss 5.1 at step 14, 2.3 times its level of 2.2"})
    says[20] = ("recovered", {"end_step": 19, "recovered_step": 20})
    lab.rows(11)
    assert titles(lab) == []
    lab.rows(1, 3.3)
    (first,) = lab.slack.first_messages
    assert titles(lab) == [f"{YELLOW} WARNING run big · loss 3.3 at step 12"]
    assert "first bad step 12" in first.text
    lab.rows(3, 5.1)
    assert titles(lab) == [f"{YELLOW} WARNING run big · loss 5.1 at step 14, 2.3 times its level of 2.2"]
    assert (len(lab.slack.messages), first.edits) == (1, 1), "it grew: edited, and nobody is called again"
    lab.rows(3, 2.4)
    assert first.edits == 1, "nothing new, nothing said"
    lab.rows(3)
    told = f"{GREEN} RESOLVED run big · the loss recovered at step 20: the worst was 5.1, its level 2.2, the"
    assert titles(lab)[0].startswith(told)
    assert len(lab.slack.messages) == 2, "and one reply, for those who see no edits"
    assert lab.watchdog.once().planned == ()


def test_what_does_not_come_back_is_told_in_the_thread_of_its_spike(lab: Lab, says: Any) -> None:
    says[12] = ("began", {})
    says[62] = (
        "grew",
        {"kind": "divergence", "severity": "page", "message": "loss 3.3, not back in 50 rows"},
    )
    says[80] = ("recovered", {"end_step": 79, "recovered_step": 80})
    lab.rows(11)
    lab.rows(40, 3.3)
    lab.rows(20, 3.3)
    (first,) = lab.slack.first_messages
    assert titles(lab)[0] == f"{RED} CRITICAL run big · loss 3.3, not back in 50 rows"
    assert len(lab.slack.messages) == 2
    assert lab.slack.messages[1].body.get("reply_broadcast")
    states = {i.finding.code: (i.state, i.explained_by) for i in lab.store.incidents().values()}
    assert states == {"LossSpike": ("open", "LossDiverged:run:big"), "LossDiverged": ("open", "")}
    memory = lab.watchdog.once().verdicts[-1].memory
    assert memory["diverged_step"] == 12, "fifty rows have gone by"
    verdicts = lab.rows(20).verdicts
    assert "diverged_step" not in verdicts[-1].memory, "it came back: no checkpoint of it is bad"
    assert titles(lab)[0].startswith(f"{GREEN} RESOLVED run big · the loss recovered at step 80")
    assert len(lab.slack.messages) == 3, "two names, one end"
    assert lab.slack.first_messages == [first]


def test_a_sign_that_was_told_becomes_the_spike_that_follows(lab: Lab, says: Any) -> None:
    says[12] = ("began", {"kind": "grad_burst", "metric": "grad_norm", "message": "grad norm 12 at step 12"})
    says[14] = ("grew", {"kind": "spike", "metric": "loss", "severity": "page", "message": "loss 5.1"})
    lab.rows(12)
    lab.rows(3, 5.1)
    assert titles(lab)[0] == f"{RED} CRITICAL run big · loss 5.1"
    assert len(lab.slack.first_messages) == 1


def test_what_came_and_went_between_two_looks_is_told_once(lab: Lab, says: Any) -> None:
    says[12] = ("began", {})
    says[15] = ("recovered", {"end_step": 14, "recovered_step": 15})
    lab.rows(11)
    lab.rows(10, 2.2)
    assert titles(lab) == [f"{YELLOW} WARNING run big · loss 2.2 at step 12"]
    lab.rows(1)
    assert titles(lab)[0].startswith(f"{GREEN} RESOLVED run big · the loss recovered at step 15")


def test_what_a_log_says_of_last_week_is_no_news(lab: Lab, says: Any) -> None:
    says[12] = ("began", {})
    says[15] = ("recovered", {"end_step": 14, "recovered_step": 15})
    lab.rows(100)
    lab.rows(1)
    assert titles(lab) == []


def test_another_metric_that_diverges_is_told_and_undoes_nothing(lab: Lab, says: Any) -> None:
    says[12] = ("began", {"kind": "divergence", "severity": "page", "metric": "aux_loss"})
    lab.rows(11)
    verdicts = lab.rows(60, 7.0).verdicts
    assert "LossDiverged" in verdicts[-1].codes
    assert "diverged_step" not in verdicts[-1].memory


def test_what_diverged_is_marked_after_fifty_rows_and_until_the_run_has_passed_it(
    lab: Lab, says: Any
) -> None:
    says[12] = ("began", {"kind": "divergence", "severity": "page"})
    lab.rows(11)
    assert "diverged_step" not in lab.rows(10, 7.0).verdicts[-1].memory, "it may still come back"
    assert lab.rows(45, 7.0).verdicts[-1].memory["diverged_step"] == 12
    with lab.store.transaction():
        lab.store.put_attempt(Attempt("big", 2, "t2", started_at=lab.host.time, resume_step=8))
    waiting = lab.rows(0).verdicts[-1]
    assert (waiting.status, waiting.codes) == (Status.SKIPPED, frozenset()), "nothing is known of it yet"
    lab.step = 8
    verdict = lab.rows(2).verdicts[-1]
    assert (verdict.codes, verdict.memory["diverged_step"]) == (frozenset(), 12)
    (incident,) = lab.store.incidents().values()
    assert (incident.state, incident.finding.summary[:33]) == (
        "resolved",
        "the run went back to before it: t",
    )
    assert "diverged_step" not in lab.rows(4).verdicts[-1].memory


def test_what_is_slow_waits_for_the_summary_of_the_day(
    lab: Lab, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "day_of", functools.partial(notices.day_of, zone=datetime.timezone.utc))
    lab.host.time = 1_790_000_000.0 // 86400 * 86400 + 12 * 3600.0
    says[12] = ("began", {"kind": "stall", "severity": "daily", "message": "no new low since step 3"})
    lab.rows(11)
    lab.rows(1)
    lab.rows(1, seconds=3600.0)
    assert titles(lab) == []
    lab.rows(1, seconds=24 * 3600.0)
    assert titles(lab) == [f"{YELLOW} WARNING run big · no new low since step 3"]
    lab.rows(1, seconds=24 * 3600.0)
    assert len(lab.slack.messages) == 1, "told once, not once a day"


def test_a_divergence_that_ends_without_coming_back_is_not_over(lab: Lab, says: Any) -> None:
    says[12] = ("began", {"kind": "divergence", "severity": "page"})
    says[30] = ("ended", {"end_step": 30})
    lab.rows(11)
    lab.rows(10, 7.0)
    lab.rows(10, 7.0)
    (incident,) = lab.store.incidents().values()
    assert incident.state == "open"
    lab.rows(1, 7.0, seconds=86400.0)
    assert lab.store.incidents()[incident.key].state == "resolved", "after a day nobody needs it any more"


def test_bloom_by_the_real_rules(tmp_path: Path) -> None:
    before, after = bloom()
    with SlackStub() as slack:
        lab = Lab(tmp_path, slack)
        lab.lines(before)
        for line in after[:4]:
            lab.lines([line])
        assert titles(lab)[0].startswith(f"{YELLOW} WARNING run big · loss 2.595"), "by iteration 31217"
        passes = [lab.lines(after[n : n + 11]) for n in range(4, 37, 11)]
        assert not [a for told in passes for a in told.planned if a.kind != "capture"]
        lab.store.close()
    assert len(slack.first_messages) == 1
    assert (
        slack.first_messages[0].body["text"].startswith(f"{GREEN} RESOLVED run big · the loss recovered at")
    )
    assert titles(lab)[-1].startswith(f"{GREEN} RESOLVED")


def test_what_one_run_does_explains_nothing_of_another() -> None:
    rules = Rules(explains=explains(load_playbooks(())))

    def verdict(run: str, code: str, status: Status) -> Verdict:
        subject = Subject(run=run)
        return Verdict("job_loss", subject, status, (Finding("job_loss", code, subject, status, "it is"),))

    incidents, _ = fold({}, [verdict("a", "LossDiverged", Status.CRITICAL)], 1.0, rules)
    incidents, _ = fold(incidents, [verdict("b", "LossSpike", Status.WARNING)], 2.0, rules)
    assert incidents["LossSpike:run:b"].explained_by == ""
