"""What a recorded run says: its settings, the changes of its timeline, and what must come out of it.

The format is described in docs/recordings.md. Everything that is wrong with a recording is said at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustertools.check import Check
from clustertools.errors import ConfigError
from clustertools.model import Attempt
from clustertools.policy import MODES, STEPS, Budgets
from clustertools.schedulers import RunSpec
from clustertools.watchdog import Settings

#: What may stand in one entry of the timeline beside its time.
CHANGES = (
    "set", "append", "remove", "unreadable", "readable", "kmsg", "commands", "boot", "job", "processes",
    "checkpoints",
)  # fmt: skip
_WHEN = ("at", "after", "every", "until", "count", "note")
_TOP = (
    "what", "provenance", "node_class", "expectations", "settings", "run", "timeline", "expect", "until",
    "away",
)  # fmt: skip
_SETTINGS = (
    "mode", "interval", "limits", "checks", "supported", "budgets", "playbook_modes", "cluster",
    "blind_confirm", "flap_window", "confirm", "intervals",
)  # fmt: skip
_RUN = ("name", "log", "metrics", "checkpoints", "steps", "grace", "attempts", "rollback")
_JOB = ("state", "attempt", "pids", "nodes", "started", "exit_code", "exit_reason", "leftovers", "unknown")
_JOB_STATES = ("pending", "running", "completing", "ended", "unknown")
#: What the scheduler may be asked for, and the timeline may answer.
EVENTS = ("submit", "cancel", "kill", "drain")
_EXPECTED = (
    "at", "kind", "code", "subject", "status", "explained_by", "action", "target", "blocked", "done",
    "failed", "call", "what",
)  # fmt: skip
#: What an expectation is about: a transition, a planned action, how one ended, a deed of the scheduler.
EXPECTED = ("code", "action", "done", "failed", "call")
#: More passes than this is a mistake in the recording: a week at thirty seconds is 20,160.
MOST_PASSES = 25_000


def seconds(text: Any) -> float | None:
    """`90`, `90s`, `2m11s`, `1.5h`, `-1h` as seconds; None for anything else."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    # 1h2m3.5s
    match = re.fullmatch(
        r"(-?)(?:(\d{1,6}(?:\.\d+)?)d)?(?:(\d{1,6}(?:\.\d+)?)h)?(?:(\d{1,6}(?:\.\d+)?)m)?(?:(\d{1,9}(?:\.\d+)?)s)?",
        str(text).strip(),
    )
    if match is None or not any(match.groups()[1:]):
        return None
    days, hours, minutes, rest = (float(part or 0) for part in match.groups()[1:])
    total = days * 86400 + hours * 3600 + minutes * 60 + rest
    return -total if match[1] else total


@dataclass(frozen=True, slots=True)
class Entry:
    """Changes that happen at one time, or again and again.

    `at` counts from the start of the recording, or (`after`) from what our own hand did: `submit`, `cancel`,
    `kill`, `drain`. `nth` is the number of that deed, 0 for each.
    """

    at: float
    changes: Mapping[str, Any]
    after: str = ""
    nth: int = 0
    every: float = 0.0
    until: float = 0.0
    count_from: int = 0
    count_by: int = 1
    note: str = ""

    def times(self) -> int:
        """How often it happens."""
        return 1 + int((self.until - self.at) / self.every + 1e-9) if self.every else 1


@dataclass(frozen=True)
class Script:
    """A recorded run as it was read."""

    folder: Path
    what: str
    spec: RunSpec | None
    attempts: tuple[Attempt, ...]
    settings: Settings
    checks: tuple[Check, ...]
    supported: frozenset[str]
    timeline: tuple[Entry, ...]
    expect: tuple[Mapping[str, Any], ...] | None
    until: float
    away: tuple[tuple[float, float], ...] = ()
    node_class: str = ""
    provenance: str = ""


@dataclass
class _Reading:
    """Reads one run.yaml and gathers what is wrong with it."""

    source: str
    start: float
    problems: list[str] = field(default_factory=list)

    def wrong(self, where: str, what: str) -> None:
        self.problems.append(f"{self.source}: {where}: {what}")

    def mapping(self, value: Any, where: str, known: Sequence[str] = ()) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.wrong(where, "a mapping is expected")
            return {}
        for key in value:
            if known and key not in known:
                self.wrong(where, f"{key!r} is not known; there is {', '.join(known)}")
        return {str(k): v for k, v in value.items()}

    def listing(self, value: Any, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(where, "a list is expected")
            return []
        return value

    def seconds(self, value: Any, where: str, default: float = 0.0) -> float:
        if value is None:
            return default
        number = seconds(value)
        if number is None:
            self.wrong(where, f"{value!r} is not a time; write for example 90s, 12m or 1h5m")
            return default
        return number

    def whole(self, value: Any, where: str, default: int) -> int:
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(where, f"{value!r} is not a whole number")
            return default
        return value

    # timeline

    def entry(self, data: Any, number: int) -> Entry:
        where = f"timeline, entry {number}"
        told = self.mapping(data, where, (*_WHEN, *CHANGES))
        # submit 2
        match = re.fullmatch(rf"({'|'.join(EVENTS)})(?: (\d{{1,4}}))?", str(told.get("after", "")))
        if match is None and "after" in told:
            self.wrong(where, f"after is one of {', '.join(EVENTS)}, perhaps with a number (submit 2)")
        count = self.mapping(told.get("count"), f"{where}, count", ("from", "by"))
        entry = Entry(
            self.seconds(told.get("at"), f"{where}, at"),
            {k: v for k, v in told.items() if k in CHANGES},
            match[1] if match else "", int(match[2] or 0) if match else 0,
            self.seconds(told.get("every"), f"{where}, every"),
            self.seconds(told.get("until"), f"{where}, until"),
            self.whole(count.get("from"), f"{where}, count", 0),
            self.whole(count.get("by"), f"{where}, count", 1),
            str(told.get("note", "")),
        )  # fmt: skip
        if entry.at < 0:
            self.wrong(where, "at is before the start")
        if entry.every < 0 or (entry.every and entry.until < entry.at):
            self.wrong(where, "every needs an until that is not before at")
        elif entry.times() > MOST_PASSES:
            self.wrong(where, f"it happens {entry.times()} times, more than {MOST_PASSES}")
        self._changes(told, where)
        return entry

    def _changes(self, told: Mapping[str, Any], where: str) -> None:
        """The shape of each change, so that nothing goes wrong half-way through a replay."""
        for kind in ("set", "append", "unreadable", "checkpoints"):
            self.mapping(told.get(kind), f"{where}, {kind}")
        for kind in ("remove", "readable", "kmsg"):
            self.listing(told.get(kind), f"{where}, {kind}")
        for kind in ("kmsg",):
            for item in told.get(kind) or ():
                if not isinstance(item, (str, Mapping)) or (isinstance(item, Mapping) and "text" not in item):
                    self.wrong(f"{where}, {kind}", "a record is a text, or a mapping with level and text")
        for path in (*(told.get("set") or {}), *(told.get("append") or {}), *(told.get("remove") or ())):
            if not str(path).startswith("/"):
                self.wrong(where, f"{path!r} is not an absolute path")
        for item in self.listing(told.get("commands"), f"{where}, commands"):
            argv = self.mapping(item, f"{where}, commands").get("argv")
            if not isinstance(argv, list) or not argv:
                self.wrong(f"{where}, commands", "each needs argv, a list of words")
        job = self.mapping(told.get("job"), f"{where}, job", _JOB)
        if job.get("state", "running") not in _JOB_STATES:
            self.wrong(f"{where}, job", f"state is one of {', '.join(_JOB_STATES)}")
        self.seconds(job.get("started"), f"{where}, job, started")
        for pid, one in self.mapping(told.get("processes"), f"{where}, processes").items():
            if not str(pid).isdigit():
                self.wrong(f"{where}, processes", f"{pid!r} is not a process id")
            elif one != "gone":
                self.mapping(one, f"{where}, processes, {pid}")

    # the run

    def run(self, data: Any) -> tuple[RunSpec | None, tuple[Attempt, ...]]:
        if data is None:
            return None, ()
        told = self.mapping(data, "run", _RUN)
        name = str(told.get("name", ""))
        if not name:
            self.wrong("run", "name is missing")
        logs = told.get("log") or ()
        spec = RunSpec(
            name=name,
            log_paths=(logs,) if isinstance(logs, str) else tuple(str(path) for path in logs),
            metrics_path=str(told.get("metrics", "")),
            checkpoint_dir=str(told.get("checkpoints", "")),
            total_steps=self.whole(told.get("steps"), "run, steps", 0),
            # a replay starts nothing, and other ways to resume would rename files where the recording says
            resume="env",
            grace_seconds=self.seconds(told.get("grace"), "run, grace", 15.0),
            rollback=told.get("rollback") is True,
        )
        given = self.listing(told.get("attempts"), "run, attempts") or [{"number": 1}]
        return spec, tuple(self._attempt(name, item, i) for i, item in enumerate(given, 1))

    def _attempt(self, run: str, data: Any, number: int) -> Attempt:
        where = f"run, attempts, {number}"
        known = ("number", "started", "ended", "end", "resume_step", "resume_path", "first_step", "last_step")
        told = self.mapping(data, where, known)
        number = self.whole(told.get("number"), where, number)
        steps = {
            key: None if told.get(key) is None else self.whole(told[key], where, 0)
            for key in ("resume_step", "first_step", "last_step")
        }
        end = str(told.get("end", ""))
        return Attempt(
            run, number, f"recorded{number}", f"{run}#{number}",
            started_at=self.start + self.seconds(told.get("started"), where),
            ended_at=self.start + self.seconds(told.get("ended"), where) if end else 0.0,
            resume_step=steps["resume_step"], resume_path=str(told.get("resume_path", "")),
            first_step=steps["first_step"], last_step=steps["last_step"], end=end,
        )  # fmt: skip

    # settings

    def settings(
        self, data: Any, checks: Mapping[str, Check], expect: Mapping[str, Any]
    ) -> tuple[Settings, tuple[Check, ...], frozenset[str]]:
        told = self.mapping(data, "settings", _SETTINGS)
        mode = str(told.get("mode", "observe"))
        if mode not in MODES:
            self.wrong("settings, mode", f"{mode!r} is not one of {', '.join(MODES)}")
        named = [str(n) for n in self.listing(told.get("checks"), "settings, checks")]
        for name in named:
            if name not in checks:
                self.wrong("settings, checks", f"there is no check {name!r}")
        chosen = [
            c for c in checks.values() if c.stages & {"watch", "job"} and (not named or c.name in named)
        ]
        supported = {str(s) for s in self.listing(told.get("supported"), "settings, supported")}
        for step in sorted(supported - STEPS):
            self.wrong("settings, supported", f"{step!r} is not a step; there is {', '.join(sorted(STEPS))}")
        numbers = self.mapping(told.get("intervals"), "settings, intervals")
        settings = Settings(
            cluster=str(told.get("cluster", "")),
            mode=mode,
            playbook_modes=self.mapping(told.get("playbook_modes"), "settings, playbook_modes"),
            budgets=self._with(Budgets(), told.get("budgets"), "settings, budgets"),
            interval_seconds=self.seconds(told.get("interval"), "settings, interval", 30.0),
            blind_confirm=self.whole(told.get("blind_confirm"), "settings, blind_confirm", 3),
            flap_window_seconds=self.seconds(told.get("flap_window"), "settings, flap_window", 1800.0),
            limits=self._limits(told.get("limits"), checks),
            intervals={
                **dict.fromkeys(checks, 0.0),
                **{k: self.seconds(v, f"settings, intervals, {k}") for k, v in numbers.items()},
            },
            confirm=self.mapping(told.get("confirm"), "settings, confirm"),
            expect=expect,
        )
        if settings.interval_seconds <= 0:
            self.wrong("settings, interval", "it must be more than nothing")
        return settings, tuple(chosen), frozenset(supported)

    def _limits(self, data: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
        limits = {}
        for name, given in self.mapping(data, "settings, limits").items():
            if name not in checks:
                self.wrong("settings, limits", f"there is no check {name!r}")
                continue
            limits[name] = self._with(checks[name].limits(), given, f"settings, limits, {name}")
        return limits

    def _with(self, default: Any, given: Any, where: str) -> Any:
        """`default` with the fields that are given; a time may be written with its unit."""
        known = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
        told = self.mapping(given, where, tuple(known))
        changed = {}
        for name, value in told.items():
            if name not in known:
                continue
            if isinstance(known[name], float) and not isinstance(value, float):
                value = self.seconds(value, f"{where}, {name}", known[name])
            changed[name] = tuple(value) if isinstance(value, list) else value
        return dataclasses.replace(default, **changed)

    # what must come out

    def expect(self, data: Any, mode: str) -> tuple[Mapping[str, Any], ...] | None:
        """The expectations of `mode`; None when the recording says nothing about it."""
        if isinstance(data, Mapping):
            for key in data:
                if key not in MODES:
                    self.wrong("expect", f"{key!r} is not a mode; there is {', '.join(MODES)}")
            data = data.get(mode)
        if data is None:
            return None
        found = []
        for number, item in enumerate(self.listing(data, "expect"), 1):
            where = f"expect, entry {number}"
            told = self.mapping(item, where, _EXPECTED)
            if sum(key in told for key in EXPECTED) != 1:
                self.wrong(where, f"one of {', '.join(EXPECTED)} is needed")
            found.append({**told, "at": self.seconds(told["at"], where)} if "at" in told else told)
        return tuple(found)


def read_script(
    folder: Path,
    start: float,
    load: Callable[[Path], Any],
    checks: Mapping[str, Check],
    *,
    expectations: Mapping[str, Any] | None = None,
    mode: str | None = None,
    interval_seconds: float | None = None,
) -> Script:
    """The recording in `folder`. Raises ConfigError with everything that is wrong with it.

    `start` is the time of the recorded host, `expectations` what its class expects when run.yaml says nothing
    of it. `mode` and `interval_seconds` override what the recording says.
    """
    path = folder / "run.yaml"
    data = load(path)
    reading = _Reading(str(path), start)
    told = reading.mapping(data, "the file", _TOP)
    expect = reading.mapping(told.get("expectations", expectations or {}), "expectations")
    settings, chosen, supported = reading.settings(told.get("settings"), checks, expect)
    expected = reading.expect(told.get("expect"), mode or settings.mode)
    if mode is not None:
        settings = dataclasses.replace(settings, mode=mode)
    if interval_seconds is not None:
        if interval_seconds <= 0:
            raise ConfigError("the time between two passes must be more than nothing")
        if interval_seconds != settings.interval_seconds and expected is not None:
            # the steps of an action come one a pass: their times belong to the recorded interval
            expected = tuple({k: v for k, v in e.items() if k != "at"} for e in expected)
        settings = dataclasses.replace(settings, interval_seconds=interval_seconds)
    spec, attempts = reading.run(told.get("run"))
    timeline = [
        reading.entry(item, i) for i, item in enumerate(reading.listing(told.get("timeline"), "timeline"), 1)
    ]
    until = reading.seconds(told.get("until"), "until")
    if "until" not in told:
        until = (
            max([e.until or e.at for e in timeline if not e.after] + [0.0]) + 10 * settings.interval_seconds
        )
    if until / settings.interval_seconds > MOST_PASSES:
        reading.wrong("until", f"more than {MOST_PASSES} passes")
    away = []
    for i, item in enumerate(reading.listing(told.get("away"), "away"), 1):
        gap = reading.mapping(item, f"away, {i}", ("from", "to"))
        away.append((reading.seconds(gap.get("from"), "away"), reading.seconds(gap.get("to"), "away")))
    if reading.problems:
        raise ConfigError(*reading.problems)
    return Script(
        folder, str(told.get("what", "")), spec, attempts, settings, chosen, supported, tuple(timeline),
        expected, until, tuple(away), str(told.get("node_class", "")), str(told.get("provenance", "")),
    )  # fmt: skip
