"""One pass of the watchdog, and the loop around it.

    observe -> fold -> plan -> commit -> deliver -> perform -> deliver -> heartbeat

What is observed, decided and planned becomes true in one transaction, before anybody is told and before
anything is done. Each action then advances by at most one step a pass, each step written down before it runs.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clustertools import actions, incidents, notices, policy, precision, systemd
from clustertools import check as checking
from clustertools.actions.restart import attempt_token, how_it_ended
from clustertools.check import Check
from clustertools.delivery import Mail
from clustertools.errors import Absent, ActionFailed, StoreError, Unobservable
from clustertools.host import Host
from clustertools.model import (
    Action,
    Attempt,
    Incident,
    Job,
    Outcome,
    Playbook,
    Status,
    Subject,
    Transition,
    Verdict,
    worst,
)
from clustertools.policy import Budgets, Ledger, Past, World
from clustertools.schedulers import RunSpec, Scheduler
from clustertools.shared_host import SharedHost
from clustertools.sinks.message import Message, fold_messages, from_outcome, from_transition, note
from clustertools.store import ActionRow, Store
from clustertools.text import plain

#: How long an action of the past matters to the guards.
LEDGER_SECONDS = 7 * 86400.0
#: Between two passes the loop wakes up this often to see whether it was asked to stop or to reload.
SLICE_SECONDS = 0.5


class Clock(Protocol):
    """Time as the loop feels it; everything else is handed `now`."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a site decided. The defaults only look."""

    cluster: str = ""
    mode: str = "observe"
    playbook_modes: Mapping[str, str] = field(default_factory=dict)
    budgets: Budgets = field(default_factory=Budgets)
    interval_seconds: float = 30.0
    blind_confirm: int = 3
    flap_window_seconds: float = 1800.0
    limits: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, float] = field(default_factory=dict)
    confirm: Mapping[str, int] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    observe_only: frozenset[str] = frozenset()
    class_size: int = 1
    pause_file: str = ""


@dataclass(frozen=True)
class Pass:
    """What one pass saw and did. `sentence` is its log line."""

    verdicts: tuple[Verdict, ...]
    transitions: tuple[Transition, ...]
    planned: tuple[Action, ...]
    steps: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    jobs: tuple[Job, ...]
    blind: tuple[str, ...]
    sentence: str

    @property
    def status(self) -> Status:
        return worst(v.status for v in self.verdicts)


@dataclass
class Watchdog:
    """The parts that one pass needs. `once` is the whole interface."""

    store: Store
    host: Host
    scheduler: Scheduler
    checks: Sequence[Check]
    specs: Sequence[RunSpec] = ()
    playbooks: Sequence[Playbook] = ()
    mail: Mail = field(default_factory=Mail)
    settings: Settings = field(default_factory=Settings)
    evidence_folder: Path = Path("/var/lib/clustertools/evidence")

    def once(self) -> Pass:
        """One pass. Raises StoreError when nothing could be written down; nothing was done then."""
        now = self.host.now()
        paused = self._pause_file()
        jobs, verdicts = self._observe(now)
        with self.store.transaction():
            # read inside: what a person marks at this moment is neither missed nor written over
            paused = paused or self._paused(now)
            before = self.store.incidents()
            after, transitions = incidents.fold(before, verdicts, now, self._rules())
            after, transitions = self._ended_by_people(after, transitions, verdicts, now)
            after, lapsed = notices.lapsed(after, now)
            planned = self._plan(after, verdicts, jobs, paused, now)
            self._write(before, after, verdicts, transitions, planned, jobs, now)
            self._enqueue(self._messages(transitions, planned, after, lapsed, now), now)
        sentences = list(self._deliver(now))
        steps, outcomes = self._perform(paused, now)
        sentences += self._deliver(now)
        blind = tuple(f"{v.check} on {v.subject}: {v.blind}" for v in verdicts if v.blind)
        self._heartbeat(now, blind, paused)
        sentences += self.mail.after_pass(self.store, now, complete=not blind)
        sentence = _sentence(verdicts, transitions, planned, steps, sentences)
        return Pass(
            tuple(verdicts), tuple(transitions), tuple(planned), tuple(steps), tuple(outcomes),
            tuple(jobs.values()), blind, sentence,
        )  # fmt: skip

    def _rules(self) -> incidents.Rules:
        explains, observed = policy.explains(self.playbooks), self.settings.observe_only
        # what only observed checks find explains nothing away: nobody relies on it yet
        shadow = {code for c in self.checks if c.name in observed for code in c.codes}
        shadow -= {code for c in self.checks if c.name not in observed for code in c.codes}
        return incidents.Rules(
            confirm={c.name: self.settings.confirm.get(c.name, c.confirm) for c in self.checks},
            blind_confirm=self.settings.blind_confirm,
            flap_window_seconds=self.settings.flap_window_seconds,
            explains={code: known for code, known in explains.items() if code not in shadow},
            observe_only=observed,
        )

    # observe

    def _observe(self, now: float) -> tuple[dict[str, Job], list[Verdict]]:
        host = SharedHost(self.host)
        verdicts = []
        for check in self.checks:
            subject = Subject(cluster=self.settings.cluster, node=host.name)
            if "job" not in check.stages and self._is_due(check, subject, now):
                verdicts.append(self._run(check, host, subject, None))
        jobs: dict[str, Job] = {}
        for spec in self.specs:
            subject = Subject(cluster=self.settings.cluster, run=spec.name)
            try:
                job = self.scheduler.job(spec, tuple(self.store.attempts(spec.name)))
            except Unobservable as exc:
                verdicts.append(
                    Verdict("job_state", subject, Status.UNKNOWN, blind=str(exc), time=now)
                )  # fmt: skip
                continue
            jobs[spec.name] = job
            verdicts.append(Verdict("job_state", subject, Status.OK, detail=job.state, time=now))
            for check in self.checks:
                if "job" in check.stages and self._is_due(check, subject, now):
                    verdicts.append(self._run(check, host, subject, job))
        return jobs, verdicts

    def _is_due(self, check: Check, subject: Subject, now: float) -> bool:
        last = self.store.cursor("ran:" + check.name, str(subject)).get("at", 0.0)
        interval = self.settings.intervals.get(check.name, check.interval_seconds)
        # a clock that was set back must not silence a check
        return not 0 <= now - last < interval - 0.5 * self.settings.interval_seconds

    def _run(self, check: Check, host: Host, subject: Subject, job: Job | None) -> Verdict:
        verdict = checking.run(
            check, host, limits=self.settings.limits.get(check.name), expect=self.settings.expect,
            past=self.store.memory(check.name, subject), job=job, cluster=self.settings.cluster,
        )  # fmt: skip
        systemd.alive()  # each check has its own deadline: a pass may be long without being stuck
        return verdict

    def _ended_by_people(
        self,
        after: dict[str, Incident],
        transitions: list[Transition],
        verdicts: Sequence[Verdict],
        now: float,
    ) -> tuple[dict[str, Incident], list[Transition]]:
        """End what a person said is over, unless this very pass reports it."""
        asked = self.store.cursor("resolve")
        if not asked:
            return after, transitions
        reported = {f.key for v in verdicts for f in v.findings}
        reported |= {
            f"Blind:{dataclasses.replace(v.subject, part=v.check)}"
            for v in verdicts
            if v.blind or v.status is Status.UNKNOWN
        }
        for key in asked.keys() & after.keys() - reported:
            if after[key].state == "open":
                after, ended = incidents.resolve(after, key, now)
                transitions = [*transitions, *ended]
        self.store.put_cursor("resolve", "", {})
        return after, transitions

    # plan

    def _plan(
        self,
        after: Mapping[str, Incident],
        verdicts: Sequence[Verdict],
        jobs: Mapping[str, Job],
        paused: str,
        now: float,
    ) -> list[Action]:
        rows = self.store.actions(since=now - LEDGER_SECONDS)
        attempts = {run: self.store.attempts(run) for run in self.store.runs()}
        for seen in (_progress(job, verdicts, now) for job in jobs.values()):
            if seen is not None:  # an end that this pass saw counts in its plan, not in that of the next
                attempts[seen.run] = [seen if a.number == seen.number else a for a in attempts[seen.run]]
        past = tuple(
            Past(a.id, a.kind, a.target, a.playbook, row.state, a.blocked, row.time, row.step)
            for row in rows
            for a in (row.action,)
        )
        world = World(
            mode=self.settings.mode,
            playbook_modes=self.settings.playbook_modes,
            paused=paused,
            fresh=frozenset(f.key for v in verdicts for f in v.findings),
            owned_runs=frozenset(spec.name for spec in self.specs),
            jobs=tuple(jobs.values()),
            supported=self.scheduler.supported,
            class_size=self.settings.class_size,
            approved=frozenset(r.action.id for r in rows if r.approved_by),
            preview=self.scheduler.preview,
            judged=self._judged(after),
        )
        shown = {k: i for k, i in after.items() if not i.observed}
        return policy.plan(shown, self.playbooks, Ledger(past, attempts), world, now, self.settings.budgets)

    def _judged(self, after: Mapping[str, Incident]) -> dict[str, tuple[int, float]]:
        """Code -> (firings that people judged, share of true ones): what it has earned.

        The whole history is read for it, so only where it is asked for and something is open.
        """
        if not self.settings.budgets.earn_cases or not any(i.state == "open" for i in after.values()):
            return {}
        deeds = [(row.action, row.outcome, row.time) for row in self.store.actions()]
        return precision.earned(precision.scores(precision.firings(self.store.transitions(), deeds)))

    def paused(self, now: float) -> str:
        """Why nothing new may be done now; empty when it may."""
        return self._pause_file() or self._paused(now)

    def _paused(self, now: float) -> str:
        pause = self.store.cursor("pause")
        return str(pause.get("why") or "by a person") if float(pause.get("until", 0.0)) > now else ""

    def _pause_file(self) -> str:
        """What the config's pause file says. One that cannot be looked at pauses: it may well be there."""
        path = self.settings.pause_file
        if not path:
            return ""
        try:
            self.host.stat(path)
        except Absent:
            return ""
        except Unobservable as exc:
            return f"nobody can see whether the pause file is there: {exc}"
        return f"{path} exists"

    # commit

    def _write(
        self,
        before: Mapping[str, Incident],
        after: Mapping[str, Incident],
        verdicts: Sequence[Verdict],
        transitions: Sequence[Transition],
        planned: Sequence[Action],
        jobs: Mapping[str, Job],
        now: float,
    ) -> None:
        self.store.save_incidents(before, after)
        for verdict in verdicts:
            self.store.save_verdict(verdict)
            self.store.put_cursor("ran:" + verdict.check, str(verdict.subject), {"at": now})
        for action in planned:
            self.store.put_action(action, "blocked" if action.blocked else "planned", now)
        for job in jobs.values():
            attempt = _progress(job, verdicts, now)
            if attempt is not None:
                self.store.put_attempt(attempt)
        for transition in transitions:
            self.store.add_transition(transition)
        if now - float(self.store.cursor("thinned").get("at", 0.0)) > 3600:
            self.store.thin(now)
            self.store.put_cursor("thinned", "", {"at": now})

    def _messages(
        self,
        transitions: Sequence[Transition],
        planned: Sequence[Action],
        after: Mapping[str, Incident],
        lapsed: Sequence[tuple[Incident, str]],
        now: float,
    ) -> list[Message]:
        patterns = [s.pattern for s in self.store.silences(now)]
        owed = self.store.cursor("owed")
        tell, left = notices.due(transitions, after, owed, patterns, now)
        if left != owed:
            self.store.put_cursor("owed", "", left)
        told = [
            from_transition(
                transition,
                playbook=policy.playbook_for(transition.incident.finding.code, self.playbooks),
                planned=[a for a in planned if a.because == transition.incident.key],
                explains=[i for i in after.values() if i.explained_by == transition.incident.key],
            )
            for transition in tell
        ]
        keys = {message.key for message in told}
        reminders = [
            _reminder(incident, who, now)
            for incident, who in lapsed
            if incident.key not in keys and not notices.is_quiet(incident, patterns, now)
        ]
        said = [
            note(key, after[key].finding.status, f"{_short(after[key])} · {text}", now)
            for key, text in self._said_by_people()
            if key in after and self.mail.heard(self.store, key)
        ]
        return [*said, *fold_messages(told, references=self.mail.references(self.store, keys)), *reminders]

    def _said_by_people(self) -> list[tuple[str, str]]:
        """What people did to incidents since the last pass, as (key, sentence): the others want to know."""
        said = self.store.cursor("said").get("notes", [])
        if said:
            self.store.put_cursor("said", "", {})
        return [(str(key), str(text)) for key, text in said]

    def _enqueue(self, messages: Sequence[Message], now: float) -> None:
        for message in messages:
            self.mail.enqueue(self.store, message, now)

    # deliver

    def _deliver(self, now: float) -> list[str]:
        said = list(self.mail.deliver(self.store, now).sentences)
        systemd.alive()
        return said

    # perform

    def _perform(self, paused: str, now: float) -> tuple[list[str], list[Outcome]]:
        """Take every action that is under way one step further; those of one incident in their order."""
        said: list[str] = []
        outcomes: list[Outcome] = []
        held: set[str] = set()
        rows = self.store.actions(since=now)
        for row in sorted(rows, key=lambda r: (r.action.planned_at, r.action.id)):
            if row.state not in ("planned", "running") or row.action.because in held:
                continue
            why = self._called_off(row, paused) if row.state == "planned" else ""
            if why:
                with self.store.transaction():
                    # the next plan decides anew
                    self.store.put_action(dataclasses.replace(row.action, blocked=why), "blocked", now)
                said.append(f"{row.action.kind} of {row.action.target} called off: {why}")
                continue
            if row.step != "wait_step":
                held.add(row.action.because)
            sentence, outcome = self._step(row, now)
            if sentence:
                said.append(sentence)
            if outcome:
                outcomes.append(outcome)
        return said, outcomes

    def _called_off(self, row: ActionRow, paused: str) -> str:
        """Why a planned action must not begin after all: it may have waited in line, or through a crash."""
        action = row.action
        if not action.playbook:
            return ""  # a person's own order
        incident = self.store.incidents().get(action.because)
        if incident is None or incident.state != "open":
            return "its incident is over"
        if action.kind in policy.HARMLESS:
            return ""
        if paused:
            return f"paused: {paused}"
        mode = self.settings.playbook_modes.get(action.playbook, self.settings.mode)
        return "observe mode" if mode == "observe" else ""

    def _step(self, row: ActionRow, now: float) -> tuple[str, Outcome | None]:
        action = row.action
        if row.state == "planned":
            with self.store.transaction():
                self.store.advance_action(action.id, "running", row.step, row.detail, now)
        try:
            progress = actions.advance(action, row.step, row.detail, self._scene(action, now))
        except ActionFailed as exc:
            progress = actions.Progress("", row.detail, str(exc), ok=False)
        except Unobservable as exc:
            # could not look: the step is taken again on the next pass
            return f"{action.kind} of {action.target} waits: {exc}", None
        except StoreError:
            raise
        except Exception as exc:  # noqa: BLE001 - one action's bug must not end every pass from now on
            said = f"a fault in clustertools itself: {type(exc).__name__}: {exc}"
            progress = actions.Progress("", row.detail, said, ok=False)
        outcome = None
        with self.store.transaction():
            if progress.attempt is not None:
                self.store.put_attempt(progress.attempt)
            detail = _with_history(progress, now)
            self.store.advance_action(action.id, "running", progress.step, detail, now)
            if not progress.step:
                outcome = Outcome(action.id, progress.ok, progress.said, now - action.planned_at, now)
                self.store.finish_action(outcome, now)
                self._enqueue(self._news(action, outcome, now), now)
        return progress.said, outcome

    def _news(self, action: Action, outcome: Outcome, now: float) -> list[Message]:
        """What people hear of an outcome, in the thread of the root where one explains the incident."""
        incident = self.store.incidents().get(action.because)
        if incident is not None and incident.explained_by:
            action = dataclasses.replace(action, because=incident.explained_by)
        if notices.is_silenced(action.because, [s.pattern for s in self.store.silences(now)]):
            return []
        return [from_outcome(action, outcome, incident=incident)]

    def _scene(self, action: Action, now: float) -> actions.Scene:
        spec = next((s for s in self.specs if s.name == action.target.run), None)
        attempts = tuple(self.store.attempts(spec.name)) if spec else ()
        job = self.scheduler.job(spec, attempts) if spec and attempts else None
        name = f"{int(action.planned_at)}-{_safe(action.because)}"
        return actions.Scene(self.host, self.scheduler, self.evidence_folder / name, now, spec, job, attempts)

    # heartbeat

    def _heartbeat(self, now: float, blind: Sequence[str], paused: str) -> None:
        """Write down that a pass ended, and (`seen`) when one last could see everything.

        The first is for whoever asks whether we live; only the second may feed a dead man's switch that
        people trust to mean "somebody is looking".
        """
        with self.store.transaction():
            seen = now if not blind else self.store.cursor("heartbeat").get("seen", 0.0)
            beat = {"at": now, "seen": seen, "blind": list(blind), "paused": paused, "pid": os.getpid()}
            self.store.put_cursor("heartbeat", "", beat)

    def start(self, spec: RunSpec) -> bool:
        """Begin a run's first attempt, unless it already has one. True when it was started now.

        The attempt is written down first; the scheduler starts its token at most once.
        """
        attempts = self.store.attempts(spec.name)
        if not attempts:
            now = self.host.now()
            attempts = [Attempt(spec.name, 1, _token(spec.name, now), started_at=now)]
            with self.store.transaction():
                self.store.put_attempt(attempts[0])
        if len(attempts) > 1 or self.scheduler.job(spec, tuple(attempts)).state != "pending":
            return False
        self.scheduler.submit(spec, attempts[0])
        return True

    def request(self, action: Action) -> None:
        """A person's order: write an action down that the next pass begins with."""
        with self.store.transaction():
            self.store.put_action(action, "planned", action.planned_at)


def _token(name: str, now: float) -> str:
    return attempt_token(f"{name}@{now!r}/{os.getpid()}")


def _with_history(progress: actions.Progress, now: float) -> dict[str, Any]:
    detail = dict(progress.detail)
    if progress.said:
        detail["history"] = [*detail.get("history", ()), [now, progress.said]]
    return detail


def _progress(job: Job, verdicts: Sequence[Verdict], now: float) -> Attempt | None:
    """The job's newest attempt as this pass saw it; None when nothing new was seen."""
    if not job.attempts:
        return None
    attempt = job.attempts[-1]
    seen = {
        r.name: int(r.value)
        for v in verdicts
        if v.subject.run == job.run and v.check == "job_progress"
        for r in v.readings
    }
    new = dataclasses.replace(
        attempt,
        job_id=job.id,
        first_step=seen.get("job_first_step", attempt.first_step),
        last_step=seen.get("job_last_step", attempt.last_step),
    )
    if job.state == "ended" and not new.end:
        new = dataclasses.replace(new, ended_at=job.ended_at or now, end=job.exit_reason or how_it_ended(job))
    return new if new != attempt else None


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in text)[:80]


def _sentence(
    verdicts: Sequence[Verdict],
    transitions: Sequence[Transition],
    planned: Sequence[Action],
    steps: Sequence[str],
    told: Sequence[str],
) -> str:
    """The pass in one line, as a person would say it."""
    findings = sum(len(v.findings) for v in verdicts)
    words = [f"{findings} finding{'s' if findings != 1 else ''}" if verdicts else "no check was due"]
    for kind in ("opened", "reopened", "worsened", "resolved"):
        keys = [t.incident.finding.code for t in transitions if t.kind == kind]
        if keys:
            words.append(f"{kind} {', '.join(keys)}")
    blind = [v.check for v in verdicts if v.blind]
    if blind:
        words.append(f"could not look: {', '.join(sorted(set(blind)))}")
    words += [f"would {a.kind} {a.target} ({a.blocked})" for a in planned if a.blocked]
    words += steps
    words += told
    return ", ".join(words)


def _short(incident: Incident) -> str:
    return f"{incident.finding.code} {incident.finding.subject}"


def _reminder(incident: Incident, who: str, now: float) -> Message:
    finding = incident.finding
    text = f"{finding.status.name} {_short(incident)} · still open, and {plain(who, 100)} no longer has it"
    look = f"look: clustertools show {shlex.quote(plain(incident.key))}"
    return note(incident.key, finding.status, text, now, lines=(finding.summary, look))


def loop(
    watchdog: Watchdog,
    clock: Clock,
    stop: Callable[[], bool],
    report: Callable[[Pass | StoreError], None],
) -> None:
    """Passes every `interval_seconds` until `stop()` is true; `report` gets each one.

    A pass that could not write its state is reported and tried again: nothing was done in it. `stop` is asked
    between passes and every SLICE_SECONDS of the time between them. systemd hears that we are alive whatever
    a pass could see: to be started anew would not make the machine any easier to look at.
    """
    systemd.notify("READY=1")
    while not stop():
        began = clock.monotonic()
        try:
            result: Pass | StoreError = watchdog.once()
        except StoreError as exc:
            result = exc
        report(result)
        sentence = result.sentence if isinstance(result, Pass) else str(result)
        systemd.notify(f"STATUS={plain(sentence)}")
        _rest(clock, began + watchdog.settings.interval_seconds, stop)
    systemd.notify("STOPPING=1")


def _rest(clock: Clock, until: float, stop: Callable[[], bool]) -> None:
    systemd.alive()
    # a moment at least: passes that take longer than their interval must leave room for others
    until = max(until, clock.monotonic() + 0.05)
    while (left := until - clock.monotonic()) > 0 and not stop():
        clock.sleep(min(left, SLICE_SECONDS))
        systemd.alive()


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
