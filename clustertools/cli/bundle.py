"""What `record --run` gathers of one run beside the machine: its facts, its logs' ends, what happened to it.

Everything is looked at through a Recorder, so that the folder answers as the machine did.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustertools import check as checking
from clustertools.check import Check
from clustertools.cli.assemble import load_config, run_folder, state_folder, stores
from clustertools.errors import ConfigError, Unobservable
from clustertools.host import PYTHON, FileStat, Host, LocalHost, PassingHost
from clustertools.model import Attempt, Job, Subject, Verdict
from clustertools.recorder import Recorder
from clustertools.render import story
from clustertools.render.json_lines import json_line
from clustertools.schedulers import RunSpec
from clustertools.schedulers.local import LocalScheduler
from clustertools.sources import processes, stacks
from clustertools.store import Store

#: Of each log the last part: enough for thousands of steps and a traceback of every rank.
LOG_TAIL_BYTES = 512 << 10
_CHECKPOINTS = (PYTHON, "-m", "clustertools.sources.checkpoints")
#: /proc/4711/stat, /proc/4711
_OF_A_PROCESS = re.compile(r"/proc/(\d+)(?:/.*)?")


class Tails(PassingHost):
    """A host on which each of `paths` holds only its last part, from where it was first looked at.

    What is appended later is appended here too, so that two looks can be compared.
    """

    def __init__(self, host: Host, paths: Sequence[str], keep_bytes: int = LOG_TAIL_BYTES) -> None:
        super().__init__(host)
        self._paths = frozenset(paths)
        self._keep_bytes = keep_bytes
        self._begins: dict[str, tuple[int, int]] = {}

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        begin = self._begin(path, self.host.stat(path)) if path in self._paths else 0
        return self.host.read(path, begin + offset, limit)

    def stat(self, path: str) -> FileStat:
        info = self.host.stat(path)
        if path not in self._paths:
            return info
        return dataclasses.replace(info, size_bytes=info.size_bytes - self._begin(path, info))

    def _begin(self, path: str, info: FileStat) -> int:
        """The byte where the part begins: the first line that is whole."""
        inode, begin = self._begins.get(path, (-1, 0))
        if inode == info.inode and begin <= info.size_bytes:
            return begin
        begin = max(0, info.size_bytes - self._keep_bytes)
        if begin:
            lead, newline, _ = self.host.read(path, begin, 1 << 16).partition("\n")
            begin += len(lead.encode()) + 1 if newline else 0
        self._begins[path] = (info.inode, min(begin, info.size_bytes))
        return self._begins[path][1]


@dataclass(frozen=True)
class RunFacts:
    """A run as its watchdog knows it. `job` is None when nobody can tell; `why` says the reason."""

    spec: RunSpec
    attempts: tuple[Attempt, ...]
    scheduler: LocalScheduler
    store: Store
    job: Job | None = None
    why: str = ""

    def look(self) -> RunFacts:
        """The same with the job as it is now."""
        try:
            job = self.scheduler.job(self.spec, self.attempts)
        except Unobservable as exc:
            return dataclasses.replace(self, job=None, why=str(exc))
        return dataclasses.replace(self, job=job, why="")


def run_facts(name: str, state: Path | None, logs: Sequence[str], checkpoint_dir: str) -> RunFacts:
    """What is known of a run. Raises ConfigError when no watchdog knows it, StoreError."""
    loaded = load_config(None)
    config = loaded.config if loaded else None
    folder = state_folder(state, config)
    known = dict(stores(folder))
    found = name if name in known else next((n for n, s in known.items() if name in s.runs()), None)
    if found is None:
        have = ", ".join(sorted({n for n in known if n} | {r for s in known.values() for r in s.runs()}))
        raise ConfigError(f"no watchdog in {folder} knows a run {name!r}; there is {have or 'none'}")
    store = known[found]
    attempts = tuple(store.attempts(name))
    told = config.jobs.get(name) if config else None
    if not checkpoint_dir:
        resumed = [a.resume_path for a in attempts if a.resume_path]
        checkpoint_dir = told.checkpoints if told else str(Path(resumed[-1]).parent) if resumed else ""
    where = run_folder(folder, name) if found else folder
    spec = RunSpec(
        name,
        log_paths=tuple(logs) or (tuple(told.log) if told else ()),
        metrics_path=told.metrics if told else "",
        checkpoint_dir=checkpoint_dir,
        total_steps=(told.total_steps or 0) if told else 0,
    )
    return RunFacts(spec, attempts, LocalScheduler(where / "attempts", LocalHost().name), store).look()


def log_paths(facts: RunFacts) -> tuple[str, ...]:
    """Every file that the run writes its progress to."""
    paths = (*facts.spec.log_paths, facts.spec.metrics_path)
    if facts.job is not None:
        paths = (*facts.job.log_paths, facts.job.metrics_path)
    return tuple(dict.fromkeys(p for p in paths if p))


def look(
    recorder: Recorder,
    node_checks: Sequence[Check],
    job_checks: Sequence[Check],
    job: Job | None,
    past: dict[str, Mapping[str, Any]],
) -> list[Verdict]:
    """One moment: every check once, the stacks of every rank, and of /proc only the run's own processes."""
    verdicts = [checking.run(c, recorder) for c in node_checks]
    for check in job_checks if job is not None else ():
        verdict = checking.run(check, recorder, job=job, past=past.get(check.name))
        past[check.name] = verdict.memory
        verdicts.append(verdict)
    mine: set[int] = {1}
    if job is not None and job.pids:
        with contextlib.suppress(Unobservable):
            seen = processes.processes(recorder)
            mine |= set(processes.tree(seen, job.pids))
            by_rank = processes.ranks(recorder, job.pids, seen) or dict(enumerate(job.pids))
            stacks.stacks(recorder, by_rank)
    if job is not None:
        # other people's processes are nobody's business; a daemon's name is a check's
        recorder.forget(lambda path: _is_of_another(path, mine) and not path.endswith("/comm"))
    return verdicts


def _is_of_another(path: str, mine: set[int]) -> bool:
    match = _OF_A_PROCESS.fullmatch(path)
    return match is not None and int(match[1]) not in mine


# run.yaml


def run_data(
    facts: RunFacts,
    checks: Sequence[Check],
    moments: Sequence[tuple[Recorder, RunFacts]],
    every_seconds: float,
    what: str,
    provenance: str,
) -> dict[str, Any]:
    """The recorded run of these moments, as the data of its run.yaml. The first one is the folder itself."""
    first, start = moments[0][0], moments[0][0].began
    timeline: list[dict[str, Any]] = [{"at": "0s", **_job(moments[0][1], start), **_listing(first)}]
    every = max(1.0, every_seconds)
    for number, ((before, _), (after, now)) in enumerate(itertools.pairwise(moments), 1):
        # at the time of a pass, so that the replay looks when we did
        timeline.append({"at": f"{number * every:g}s", **_job(now, start), **changes(before, after)})
    paths = log_paths(facts)
    metrics = facts.spec.metrics_path
    return {
        "what": what,
        "provenance": provenance,
        "settings": {
            "mode": "observe", "interval": f"{every:g}s",
            "checks": [c.name for c in checks],
        },
        "run": {
            "name": facts.spec.name, "log": [p for p in paths if p != metrics], "metrics": metrics,
            "checkpoints": facts.spec.checkpoint_dir, "steps": facts.spec.total_steps,
            "attempts": [_attempt(a, start) for a in facts.attempts],
        },
        "until": f"{(len(moments) - 1) * every:g}s",
        "timeline": timeline,
    }  # fmt: skip


def _job(facts: RunFacts, start: float) -> dict[str, Any]:
    job = facts.job
    if job is None:
        return {"job": {"unknown": facts.why or "nobody knows"}}
    told: dict[str, Any] = {
        "state": job.state, "attempt": job.attempt, "pids": list(job.pids), "nodes": list(job.nodes),
        "started": f"{job.started_at - start:.0f}s",
    }  # fmt: skip
    if job.exit_code is not None:
        told["exit_code"] = job.exit_code
    if job.exit_reason:
        told["exit_reason"] = job.exit_reason
    return {"job": told}


def _attempt(attempt: Attempt, start: float) -> dict[str, Any]:
    told: dict[str, Any] = {"number": attempt.number, "started": f"{attempt.started_at - start:.0f}s"}
    if attempt.end:
        told |= {"ended": f"{attempt.ended_at - start:.0f}s", "end": attempt.end}
    for name in ("resume_step", "resume_path", "first_step", "last_step"):
        if getattr(attempt, name) not in (None, ""):
            told[name] = getattr(attempt, name)
    return told


def _listing(recorder: Recorder) -> dict[str, Any]:
    """The answers about checkpoints, for whoever asks with other options: a restart asks for more."""
    found = [
        {**entry, "argv": list(argv[:4]), "prefix": True}
        for argv, entry in recorder.commands.items()
        if argv[:3] == _CHECKPOINTS
    ]
    return {"commands": found} if found else {}


def changes(before: Recorder, after: Recorder) -> dict[str, Any]:
    """What another moment of the same machine saw otherwise, as one entry of a timeline."""
    told: dict[str, Any] = {"set": {}, "append": {}, "remove": [], "commands": [], "unreadable": {}}
    for path, text in after.files.items():
        old = before.files.get(path, "")
        if path in before.files and _gist(path, text) == _gist(path, old):
            continue
        rest = text[len(old) :]
        grew = bool(old) and text.startswith(old) and old.endswith("\n") and rest.endswith("\n")
        told["append" if grew else "set"][path] = rest if grew else text
    told["remove"] = sorted(p for p in before.files if p not in after.files and p.startswith("/proc/"))
    for argv, entry in after.commands.items():
        if _said(before.commands.get(argv, {})) != _said(entry):
            told["commands"].append(entry)
    told["unreadable"] = {p: why for p, why in after.errors.items() if p not in before.errors}
    told["readable"] = sorted(p for p in before.errors if p in after.files)
    return {kind: value for kind, value in told.items() if value}


def _gist(path: str, text: str) -> str:
    """What counts of a file: of /proc/stat only when the machine was booted, not its busy counters."""
    if path == "/proc/stat":
        return "".join(line for line in text.splitlines() if line.startswith("btime"))
    return text


def _said(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k != "seconds"}


def history(facts: RunFacts) -> Iterator[tuple[str, Any]]:
    """(kind, value) of everything that the store knows of the run: events, incidents, actions, verdicts."""
    store, name = facts.store, facts.spec.name
    nodes = set(facts.job.nodes) if facts.job else set()
    attempts = store.attempts(name)
    for event in story.events(store.transitions(), store.actions(), attempts, 0.0):
        if name in event.subjects or nodes & set(event.subjects):
            data = dataclasses.asdict(event)
            yield "event", {"event": data.pop("kind"), **data}
    for incident in store.incidents().values():
        subject = incident.finding.subject
        if _concerns(subject, name, nodes):
            yield "incident", incident
    for verdict in store.verdicts():
        if _concerns(verdict.subject, name, nodes):
            yield "verdict", verdict


def _concerns(subject: Subject, run: str, nodes: set[str]) -> bool:
    return subject.run == run or bool(subject.node and subject.node in nodes)


def json_lines(items: Iterator[tuple[str, Any]], scrub: Any) -> str:
    """One JSON object a line, every text in it through `scrub`."""
    from clustertools.model import to_data
    from clustertools.recorder import scrubbed

    return "".join(json_line(kind, scrubbed(to_data(value), scrub)) + "\n" for kind, value in items)
