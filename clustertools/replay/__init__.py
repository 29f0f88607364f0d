"""Drives the real watchdog through a recorded run, with a clock that is only counted.

    told = replay("tests/runs/xid79-during-run", mode="observe")
    told.problems       what came out otherwise than the recording says; empty when all is as expected

A recording is a recorded host with a `run.yaml` beside its `host.yaml`: a timeline of changes. Checks, fold,
plan, store and actions are those of a live pass. Nothing outside a temporary folder is touched, no process is
looked at or started, nobody is told.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustertools.check import Check, discover
from clustertools.errors import ConfigError
from clustertools.fleet.job_looks import LocalLooker
from clustertools.host import load_yaml
from clustertools.model import Action, Incident, Outcome, Playbook, Transition
from clustertools.policy import load_playbooks
from clustertools.render.story import Event, events, since_start
from clustertools.replay.compare import differences
from clustertools.replay.machine import Clock, ReplayHost
from clustertools.replay.scheduler import SUPPORTED, Call, ReplayScheduler
from clustertools.replay.script import Entry, Script, read_script
from clustertools.store import Store
from clustertools.watchdog import Pass, Watchdog

__all__ = ["Replayed", "read", "replay"]


@dataclass(frozen=True)
class Replayed:
    """What came out of a recording.

    `actions` are all that were planned, those that a guard stopped too; `calls` is what the scheduler was
    asked to do. `expected` is false when the recording says nothing about this mode.
    """

    what: str
    mode: str
    start: float
    passes: int
    events: tuple[Event, ...]
    transitions: tuple[Transition, ...]
    actions: tuple[Action, ...]
    outcomes: tuple[tuple[Action, Outcome], ...]
    incidents: tuple[Incident, ...]
    calls: tuple[Call, ...]
    blind: tuple[str, ...]
    problems: tuple[str, ...]
    expected: bool


def read(
    folder: str | Path,
    *,
    mode: str | None = None,
    interval_seconds: float | None = None,
    checks: Mapping[str, Check] | None = None,
) -> tuple[Script, ReplayHost]:
    """A recording, ready to be driven. Raises ConfigError with everything that is wrong with it."""
    folder = Path(folder)
    if not (folder / "run.yaml").is_file():
        raise ConfigError(f"{folder} is no recorded run: it has no run.yaml (docs/recordings.md)")
    host = ReplayHost(folder)
    script = read_script(
        folder, host.start, load_yaml, checks if checks is not None else discover(site_folders=()),
        expectations=host.about.get("expect"), mode=mode, interval_seconds=interval_seconds,
    )  # fmt: skip
    return script, host


def replay(
    folder: str | Path,
    *,
    mode: str | None = None,
    interval_seconds: float | None = None,
    checks: Mapping[str, Check] | None = None,
    playbooks: Sequence[Playbook] | None = None,
) -> Replayed:
    """Drive the watchdog through a recording from its start to its end.

    `mode` and `interval_seconds` override what the recording says; `checks` and `playbooks` are ours unless
    others are given. Raises ConfigError for a recording that cannot be read, before anything is driven.
    """
    script, host = read(folder, mode=mode, interval_seconds=interval_seconds, checks=checks)
    books = load_playbooks(()) if playbooks is None else playbooks
    with tempfile.TemporaryDirectory(prefix="clustertools-replay-") as scratch:
        drive = _Drive(script, host, books, Path(scratch))
        try:
            passes = drive.run()
            return _told(drive, passes)
        finally:
            drive.store.close()


class _Drive:
    """One recording under way: what is due when, and the watchdog that looks at it."""

    def __init__(
        self, script: Script, host: ReplayHost, playbooks: Sequence[Playbook], scratch: Path
    ) -> None:
        self.script = script
        self.host = host
        self.scratch = scratch
        self.clock: Clock = host.clock
        self._due: list[tuple[float, int, int, int, Entry]] = []
        self._order = itertools.count()
        self._deeds: dict[str, int] = {}
        self.scheduler = ReplayScheduler(
            host.name, host.now, script.supported or SUPPORTED,
            frozenset(e.after for e in script.timeline if e.after), self._asked,
        )  # fmt: skip
        self.store = Store(scratch / "state.db")
        self.watchdog = Watchdog(
            store=self.store, host=host, scheduler=self.scheduler, checks=script.checks,
            specs=[script.spec] if script.spec else [], playbooks=playbooks, settings=script.settings,
            evidence_folder=scratch / "evidence", looker=LocalLooker(host),
        )  # fmt: skip
        with self.store.transaction():
            for attempt in script.attempts:
                self.store.put_attempt(attempt)
        if script.spec:
            self.scheduler.begin(script.spec, script.attempts[-1])
        for entry in script.timeline:
            host.expect([*(entry.changes.get("set") or ()), *(entry.changes.get("append") or ())])
            if not entry.after:
                self._put(entry, host.start, 0)

    def run(self) -> list[Pass]:
        """All passes, one an interval, except where the recording says that nobody looked."""
        done = []
        interval = self.script.settings.interval_seconds
        for number in range(int(self.script.until / interval + 1e-9) + 1):
            now = self.host.start + number * interval
            self._happen(now)
            if not any(a < now - self.host.start < b for a, b in self.script.away):
                self.clock.time = now
                done.append(self.watchdog.once())
        return done

    def _put(self, entry: Entry, since: float, submits: int) -> None:
        heapq.heappush(self._due, (since + entry.at, next(self._order), 0, submits, entry))

    def _asked(self, kind: str) -> None:
        """Something was asked of the scheduler: what the timeline says of that comes next."""
        self._deeds[kind] = self._deeds.get(kind, 0) + 1
        for entry in self.script.timeline:
            if entry.after == kind and entry.nth in (0, self._deeds[kind]):
                self._put(entry, self.clock.time, self.scheduler.submits)

    def _happen(self, now: float) -> None:
        """Everything that is due until `now`, each at its own time."""
        while self._due and self._due[0][0] <= now:
            at, _, number, submits, entry = heapq.heappop(self._due)
            self.clock.time = at
            try:
                self._apply(entry, number, submits)
            except (TypeError, ValueError, KeyError, AttributeError) as exc:
                when = since_start(at - self.host.start)
                raise ConfigError(
                    f"{self.script.folder}/run.yaml: a change at {when} has a value of the wrong kind: {exc}"
                ) from exc
            if number + 1 < entry.times():
                # counted from the first time, so that no rounding adds up
                again = at - number * entry.every + (number + 1) * entry.every
                heapq.heappush(self._due, (again, next(self._order), number + 1, submits, entry))

    def _apply(self, entry: Entry, number: int, submits: int) -> None:
        told, host, count = entry.changes, self.host, str(entry.count_from + number * entry.count_by)
        # what an attempt would still have done is not done by one that was ended since
        over = submits != self.scheduler.submits
        for path in told.get("remove") or ():
            host.remove(path)
        if "boot" in told:
            host.boot(str(told["boot"]))
        for path, text in (told.get("set") or {}).items():
            host.set(path, _filled(text, count))
        for path, text in (told.get("append") or {}).items():
            mine = self.script.spec and path in (*self.script.spec.log_paths, self.script.spec.metrics_path)
            if not (mine and (over or self.scheduler.state == "ended")):
                host.append(path, _filled(text, count))
        for path, why in (told.get("unreadable") or {}).items():
            host.unreadable(path, str(why))
        for path in told.get("readable") or ():
            host.readable(path)
        if told.get("kmsg"):
            host.kernel_log(told["kmsg"])
        for command in told.get("commands") or ():
            host.answer(command)
        for path, listed in (told.get("checkpoints") or {}).items():
            host.checkpoints(path, listed)
        for pid, one in (told.get("processes") or {}).items():
            if not over:
                host.process(int(pid), _counted(one, count))
        if "job" in told and not over:
            self.scheduler.change(told["job"], host.start)


def _filled(text: Any, count: str) -> str:
    """Lines of a file; `{count}` is the number of a repeated change."""
    lines = "\n".join(map(str, text)) if isinstance(text, list) else str(text)
    return lines.replace("{count}", count)


def _counted(told: Any, count: str) -> Any:
    """The same process, with `{count}` filled in its texts."""
    if not isinstance(told, Mapping):
        return told
    return {k: v.replace("{count}", count) if isinstance(v, str) else v for k, v in told.items()}


def _told(drive: _Drive, passes: Sequence[Pass]) -> Replayed:
    script, store = drive.script, drive.store
    rows = store.actions()
    by_id = {row.action.id: row.action for row in rows}
    transitions = tuple(t for p in passes for t in p.transitions)
    actions = tuple(a for p in passes for a in p.planned)
    outcomes = tuple((by_id[o.action_id], o) for p in passes for o in p.outcomes)
    attempts = [a for run in store.runs() for a in store.attempts(run)]
    happened = [
        dataclasses.replace(event, text=event.text.replace(f"{drive.scratch}/", ""))
        for event in events(transitions, rows, attempts, drive.host.start - 7 * 86400)
    ]
    problems: list[str] = []
    if script.expect is not None:
        problems = differences(
            script.expect,
            transitions,
            actions,
            outcomes,
            drive.scheduler.calls,
            drive.host.start,
            script.settings.interval_seconds,
        )
    return Replayed(
        script.what, script.settings.mode, drive.host.start, len(passes), tuple(happened), transitions,
        actions, outcomes, tuple(store.incidents().values()), tuple(drive.scheduler.calls),
        passes[-1].blind if passes else (), tuple(problems), script.expect is not None,
    )  # fmt: skip
