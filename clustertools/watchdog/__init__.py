"""One pass of the watchdog, and the loop around it.

    observe -> fold -> plan -> commit -> deliver -> perform -> deliver -> heartbeat

What is observed, decided and planned becomes true in one transaction, before anybody is told and before
anything is done. Each action then advances by at most one step a pass, each step written down before it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustertools import actions, incidents, notices, policy, precision, systemd
from clustertools.actions.capture import recorded
from clustertools.actions.evidence_folder import folder_name, tidy
from clustertools.actions.restart import attempt_token
from clustertools.check import Check
from clustertools.delivery import Mail
from clustertools.diagnose import Evidence, diagnose
from clustertools.errors import Absent, ActionFailed, StoreError, Unobservable
from clustertools.host import Host
from clustertools.model import (
    Action,
    Attempt,
    Incident,
    Outcome,
    Playbook,
    Status,
    Subject,
    Transition,
    Verdict,
)
from clustertools.policy import Ledger, Past, World
from clustertools.schedulers import KnowsNodes, NodeState, RunSpec, Scheduler, Wanted
from clustertools.sinks.message import (
    Message,
    fold_messages,
    from_asking,
    from_outcome,
    from_transition,
    note,
    of_the_day,
    one_end,
)
from clustertools.sources.job_look import Looker
from clustertools.store import ActionRow, Store
from clustertools.text import plain
from clustertools.watchdog.deciding import decisions, rollbacks
from clustertools.watchdog.loop import Clock, SystemClock, loop
from clustertools.watchdog.observing import Observer, Seen
from clustertools.watchdog.settings import Pass, Settings

__all__ = ["Clock", "Pass", "Settings", "SystemClock", "Watchdog", "loop"]

#: How long an action of the past matters to the guards.
LEDGER_SECONDS = 7 * 86400.0
#: From so many on, what is looked at every few minutes is not looked at for all runs in the same pass.
MANY_RUNS = 50


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
    wanted: Sequence[Wanted] = ()
    looker: Looker | None = None
    node_check: Callable[[Sequence[str]], Mapping[str, str]] | None = None
    _seen: Seen = field(default_factory=Seen, repr=False)
    _evidence: dict[str, Evidence] = field(default_factory=dict, repr=False)

    def once(self) -> Pass:
        """One pass. Raises StoreError when nothing could be written down; nothing was done then."""
        now = self.host.now()
        paused = self._pause_file()
        seen = self._observer().look(now)
        verdicts, self._seen = seen.verdicts, seen
        self._evidence = {r: e for r, e in self._evidence.items() if r in seen.jobs} | seen.evidence
        with self.store.transaction():
            # read inside: what a person marks at this moment is neither missed nor written over
            paused = paused or self._paused(now)
            before = self.store.incidents()
            after, transitions = incidents.fold(before, verdicts, now, self._rules())
            after, transitions = self._ended_by_people(after, transitions, verdicts, now)
            after, lapsed = notices.lapsed(after, now)
            planned = self._plan(after, seen, paused, now)
            self._write(before, after, seen, transitions, planned, now)
            self._enqueue(self._messages(transitions, planned, after, lapsed, now), now)
        sentences = list(self._deliver(now))
        steps, outcomes = self._perform(paused, now)
        sentences += self._deliver(now)
        blind = tuple(f"{v.check} on {v.subject}: {v.blind}" for v in verdicts if v.blind)
        self._heartbeat(now, blind, paused)
        sentences += self.mail.after_pass(self.store, now, complete=lambda: self._sees_everything(seen))
        sentence = _sentence(verdicts, transitions, planned, steps, sentences)
        return Pass(
            tuple(verdicts), tuple(transitions), tuple(planned), tuple(steps), tuple(outcomes),
            tuple(seen.jobs.values()), blind, sentence,
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

    def _observer(self) -> Observer:
        return Observer(
            self.store, self.host, self.scheduler, self.checks, self.specs, self.wanted, self.looker,
            self.settings,
        )  # fmt: skip

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

    def _plan(self, after: Mapping[str, Incident], seen: Seen, paused: str, now: float) -> list[Action]:
        rows = self.store.actions(since=now - LEDGER_SECONDS)
        attempts = self.store.all_attempts()
        for new in (a for fresh in seen.attempts.values() for a in fresh):
            # an end that this pass saw counts in its plan, not in that of the next
            others = [a for a in attempts.get(new.run, []) if a.number != new.number]
            attempts[new.run] = sorted([*others, new], key=lambda a: a.number)
        past = tuple(
            Past(a.id, a.kind, a.target, a.playbook, row.state, a.blocked, row.time, row.step)
            for row in rows
            for a in (row.action,)
        )
        shown = {k: i for k, i in after.items() if not i.observed}
        nodes = self._nodes(shown)
        world = World(
            mode=self.settings.mode,
            playbook_modes=self.settings.playbook_modes,
            paused=paused,
            fresh=frozenset(f.key for v in seen.verdicts for f in v.findings),
            owned_runs=frozenset(seen.specs),
            jobs=tuple(seen.jobs.values()),
            drained={n.name: n.reason or "no reason given" for n in nodes.values() if n.is_drained},
            supported=self.scheduler.supported,
            class_size=max(self.settings.class_size, len(nodes)),
            approved=frozenset(
                r.action.id for r in rows if policy.is_approved(r.approved_by, r.approved_at, now)
            ),
            preview=self.scheduler.preview,
            judged=self._judged(after),
            decisions=decisions(shown, seen, attempts, nodes, self.host, now),
            rollbacks=rollbacks(shown, seen, attempts, self.host, now),
        )
        return policy.plan(shown, self.playbooks, Ledger(past, attempts), world, now, self.settings.budgets)

    def _nodes(self, incidents: Mapping[str, Incident]) -> Mapping[str, NodeState]:
        """The scheduler's nodes, where it has any and something may be about to be done to one."""
        troubled = any(i.state == "open" for i in incidents.values())
        if not troubled or not isinstance(self.scheduler, KnowsNodes):
            return {}
        try:
            return self.scheduler.nodes()
        except Unobservable:
            return {}  # a drain that is not known to be another's fails at the scheduler, which looks again

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
        seen: Seen,
        transitions: Sequence[Transition],
        planned: Sequence[Action],
        now: float,
    ) -> None:
        self.store.save_incidents(before, after)
        self.store.save_verdicts(seen.verdicts)
        self._note_spaced(seen, now)
        for action in planned:
            self.store.put_action(action, "blocked" if action.blocked else "planned", now)
        for fresh in seen.attempts.values():
            for attempt in fresh:
                self.store.put_attempt(attempt)
        for transition in transitions:
            self.store.add_transition(transition)
        if now - float(self.store.cursor("thinned").get("at", 0.0)) > 3600:
            self.store.thin(now)
            self.store.put_cursor("thinned", "", {"at": now})
            tidy(self.evidence_folder, {k for k, i in after.items() if i.state == "open"}, now)

    def _note_spaced(self, seen: Seen, now: float) -> None:
        """When checks ran that do not run in every pass; those of many runs are drawn apart."""
        spaced = {check.name: self.settings.spacing(check) for check in self.checks}
        many = len(seen.jobs) >= MANY_RUNS
        for verdict in seen.verdicts:
            interval, subject = spaced.get(verdict.check, 0.0), str(verdict.subject)
            if not interval:
                continue
            name, early = "ran:" + verdict.check, 0.0
            if many and verdict.subject.run and not self.store.cursor(name, subject):
                early = zlib.crc32(subject.encode()) % max(1, int(interval))
            self.store.put_cursor(name, subject, {"at": now - early})

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
        day = notices.day_of(now)
        last = self.store.cursor("daily").get("day")
        with_daily = last is not None and last != day
        if last != day:
            self.store.put_cursor("daily", "", {"day": day})
        tell, left = notices.due(transitions, after, owed, patterns, now, with_daily=with_daily)
        if left != owed:
            self.store.put_cursor("owed", "", left)
        wanted = {**(self._asking(now) if tell else {}), **{a.id: a for a in planned}}
        told = [
            from_transition(
                transition,
                playbook=policy.playbook_for(transition.incident.finding.code, self.playbooks),
                planned=[a for a in wanted.values() if a.because == transition.incident.key],
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
        reminders += [
            from_asking(action, after[action.because], now)
            for action in planned
            if policy.asks(action)
            and action.because not in keys
            and not notices.is_quiet(after[action.because], patterns, now)
        ]
        said = [
            note(key, after[key].finding.status, f"{_short(after[key])} · {text}", now)
            for key, text in self._said_by_people()
            if key in after and self.mail.heard(self.store, key)
        ]
        daily = {t.incident.key for t in tell if t.incident.finding.daily and t.kind != "resolved"}
        news = one_end([message for message in told if message.key not in daily])
        return [
            *said,
            *fold_messages(news, references=self.mail.references(self.store, keys)),
            *of_the_day([message for message in told if message.key in daily]),
            *reminders,
        ]

    def _asking(self, now: float) -> dict[str, Action]:
        """What waits for a person's word, by its id."""
        rows = self.store.actions(since=now - LEDGER_SECONDS)
        return {r.action.id: r.action for r in rows if r.state == "blocked" and policy.asks(r.action)}

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
        run = action.target.run
        if run and self._seen.away:
            raise Unobservable(self._seen.away)
        spec = self._seen.specs.get(run) or next((s for s in self.specs if s.name == run), None)
        attempts = tuple(self.store.attempts(spec.name)) if spec else ()
        job = self.scheduler.job(spec, attempts) if spec and (attempts or run in self._seen.jobs) else None
        name = folder_name(action.planned_at, action.because)
        return actions.Scene(
            self.host, self.scheduler, self.evidence_folder / name, now, spec, job, attempts, self.looker,
            node_check=self.node_check if spec and spec.preflight else None,
            checkpoint_cache=str(self.evidence_folder.parent / "checkpoint-cache"),
            accuse=functools.partial(self._accuse, run, self.evidence_folder / name),
        )  # fmt: skip

    def _accuse(self, run: str, folder: Path) -> tuple[tuple[str, ...], str]:
        """Who is guilty by the ranks' flight recorders and all that was seen before the end."""
        seen, dumps = self._evidence.get(run), recorded(folder)
        if seen is None or not dumps.states or "exclude" not in self.scheduler.supported:
            return (), ""
        told = diagnose(
            dataclasses.replace(
                seen, recorded=dumps.states, world_size=dumps.world_size,
                rank_nodes={**dumps.rank_nodes, **seen.rank_nodes},
            )
        )  # fmt: skip
        most = max(1, len(seen.job.nodes) // 10)
        return told.blamed[:most], told.summary if told.blamed else ""

    def busy(self) -> bool:
        """Whether an action is under way that need not wait for the next pass to go on."""
        return any(
            row.state in ("planned", "running") and row.step != "wait_step"
            for row in self.store.actions(since=self.host.now())
        )

    def carry_on(self) -> tuple[str, ...]:
        """Take what is under way one step further between two passes, without looking at anything else.

        Raises StoreError.
        """
        now = self.host.now()
        seen = Seen()
        self._observer().find_runs(seen, now)
        self._seen = seen
        steps, _ = self._perform(self.paused(now), now)
        return (*steps, *self._deliver(now))

    # heartbeat

    def _sees_everything(self, seen: Seen) -> bool:
        """Whether every check saw everything at its last look, which need not have been in this pass."""
        names = {check.name for check in self.checks} | {v.check for v in seen.verdicts}
        cluster = self.settings.cluster
        subjects = {str(Subject(cluster=cluster, run=run)) for run in seen.specs}
        subjects |= {
            str(Subject(cluster=cluster, node=self.host.name)),
            *(str(v.subject) for v in seen.verdicts),
        }
        return not any(name in names and subject in subjects for name, subject in self.store.unseen())

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
