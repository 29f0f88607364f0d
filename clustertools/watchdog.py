"""One pass of the watchdog, and the loop around it.

    observe -> fold -> plan -> commit -> deliver -> perform -> deliver -> heartbeat

What is observed, decided and planned becomes true in one transaction, before anybody is told and before
anything is done. Each action then advances by at most one step a pass, each step written down before it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clustertools import actions, incidents, policy
from clustertools import check as checking
from clustertools.actions.restart import attempt_token, how_it_ended
from clustertools.check import Check
from clustertools.delivery import Mail
from clustertools.errors import ActionFailed, StoreError, Unobservable
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
from clustertools.sinks.message import Message, fold_messages, from_outcome, from_transition
from clustertools.store import ActionRow, Store

#: How long an action of the past matters to the guards.
LEDGER_SECONDS = 7 * 86400.0


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
        jobs, verdicts = self._observe(now)
        before = self.store.incidents()
        rules = incidents.Rules(
            confirm={c.name: self.settings.confirm.get(c.name, c.confirm) for c in self.checks},
            blind_confirm=self.settings.blind_confirm,
            flap_window_seconds=self.settings.flap_window_seconds,
            explains=policy.explains(self.playbooks),
        )
        after, transitions = incidents.fold(before, verdicts, now, rules)
        planned = self._plan(after, verdicts, jobs, now)
        with self.store.transaction():
            self._write(before, after, verdicts, transitions, planned, jobs, now)
        sentences = list(self._deliver(now))
        steps, outcomes = self._perform(now)
        sentences += self._deliver(now)
        blind = tuple(f"{v.check} on {v.subject}: {v.blind}" for v in verdicts if v.blind)
        self._heartbeat(now, blind)
        sentence = _sentence(verdicts, transitions, planned, steps, sentences)
        return Pass(
            tuple(verdicts), tuple(transitions), tuple(planned), tuple(steps), tuple(outcomes),
            tuple(jobs.values()), blind, sentence,
        )  # fmt: skip

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
        return checking.run(
            check, host, limits=self.settings.limits.get(check.name), expect=self.settings.expect,
            past=self.store.memory(check.name, subject), job=job, cluster=self.settings.cluster,
        )  # fmt: skip

    # plan

    def _plan(
        self,
        after: Mapping[str, Incident],
        verdicts: Sequence[Verdict],
        jobs: Mapping[str, Job],
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
            paused=str(self.store.cursor("pause").get("why", "")) if self._paused(now) else "",
            fresh=frozenset(f.key for v in verdicts for f in v.findings),
            owned_runs=frozenset(spec.name for spec in self.specs),
            jobs=tuple(jobs.values()),
            supported=self.scheduler.supported,
            class_size=self.settings.class_size,
            approved=frozenset(r.action.id for r in rows if r.approved_by),
            preview=self.scheduler.preview,
        )
        shown = {k: i for k, i in after.items() if i.finding.check not in self.settings.observe_only}
        return policy.plan(shown, self.playbooks, Ledger(past, attempts), world, now, self.settings.budgets)

    def _paused(self, now: float) -> bool:
        return float(self.store.cursor("pause").get("until", 0.0)) > now

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
        self._enqueue(self._messages(transitions, planned, after, now), now)
        if now - float(self.store.cursor("thinned").get("at", 0.0)) > 3600:
            self.store.thin(now)
            self.store.put_cursor("thinned", "", {"at": now})

    def _messages(
        self,
        transitions: Sequence[Transition],
        planned: Sequence[Action],
        after: Mapping[str, Incident],
        now: float,
    ) -> list[Message]:
        silences = self.store.silences(now)
        told = []
        for transition in transitions:
            incident = transition.incident
            hushed = any(fnmatch.fnmatchcase(incident.key, s.pattern) for s in silences)
            if hushed or incidents.is_quiet(incident, now) or incident.explained_by:
                continue
            told.append(
                from_transition(
                    transition,
                    playbook=policy.playbook_for(incident.finding.code, self.playbooks),
                    planned=[a for a in planned if a.because == incident.key],
                    explains=[i for i in after.values() if i.explained_by == incident.key],
                )
            )
        keys = {message.key for message in told}
        return fold_messages(told, references=self.mail.references(self.store, keys))

    def _enqueue(self, messages: Sequence[Message], now: float) -> None:
        for message in messages:
            self.mail.enqueue(self.store, message, now)

    # deliver

    def _deliver(self, now: float) -> list[str]:
        return list(self.mail.deliver(self.store, now).sentences)

    # perform

    def _perform(self, now: float) -> tuple[list[str], list[Outcome]]:
        """Take every action that is under way one step further; those of one incident in their order."""
        said: list[str] = []
        outcomes: list[Outcome] = []
        held: set[str] = set()
        rows = self.store.actions(since=now)
        for row in sorted(rows, key=lambda r: (r.action.planned_at, r.action.id)):
            if row.state not in ("planned", "running") or row.action.because in held:
                continue
            if row.step != "wait_step":
                held.add(row.action.because)
            sentence, outcome = self._step(row, now)
            if sentence:
                said.append(sentence)
            if outcome:
                outcomes.append(outcome)
        return said, outcomes

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
        outcome = None
        with self.store.transaction():
            if progress.attempt is not None:
                self.store.put_attempt(progress.attempt)
            detail = _with_history(progress, now)
            self.store.advance_action(action.id, "running", progress.step, detail, now)
            if not progress.step:
                outcome = Outcome(action.id, progress.ok, progress.said, now - action.planned_at, now)
                self.store.finish_action(outcome, now)
                incident = self.store.incidents().get(action.because)
                self._enqueue([from_outcome(action, outcome, incident=incident)], now)
        return progress.said, outcome

    def _scene(self, action: Action, now: float) -> actions.Scene:
        spec = next((s for s in self.specs if s.name == action.target.run), None)
        attempts = tuple(self.store.attempts(spec.name)) if spec else ()
        job = self.scheduler.job(spec, attempts) if spec and attempts else None
        name = f"{int(action.planned_at)}-{_safe(action.because)}"
        return actions.Scene(self.host, self.scheduler, self.evidence_folder / name, now, spec, job, attempts)

    # heartbeat

    def _heartbeat(self, now: float, blind: Sequence[str]) -> None:
        beat = {"at": now, "blind": list(blind), "pid": os.getpid()}
        with self.store.transaction():
            self.store.put_cursor("heartbeat", "", beat)
        if not blind:
            notify_systemd("WATCHDOG=1")

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
    words = [f"{findings} finding{'s' if findings != 1 else ''}"]
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


def notify_systemd(state: str) -> None:
    """One datagram to systemd's notification socket, when there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)


def loop(watchdog: Watchdog, clock: Clock, stop: Any, report: Any) -> None:
    """Passes every `interval_seconds` until `stop()` is true; `report(pass_)` gets each one.

    A pass that could not write its state is reported as a sentence and tried again: nothing was done in it.
    """
    notify_systemd("READY=1")
    while not stop():
        began = clock.monotonic()
        try:
            result: Pass | StoreError = watchdog.once()
        except StoreError as exc:
            result = exc
        report(result)
        clock.sleep(max(0.05, watchdog.settings.interval_seconds - (clock.monotonic() - began)))
    notify_systemd("STOPPING=1")


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
