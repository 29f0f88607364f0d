"""All logs and metrics files of a run as one stream of points and events.

    news = read_run(host, job, memory)         then hand news.memory to the next look

A path may be a file, a pattern (`/runs/x/*.log`), or a folder: of TensorBoard, of W&B (`wandb/run-*`), of
MLflow (`metrics/`), of a trainer's output (`metrics.csv`, `trainer_log.jsonl`, `trainer_state.json`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.model import Job
from clustertools.sources.tensorboard import read_events
from clustertools.sources.training_log import follow
from clustertools.sources.training_loggers import (
    read_mlflow,
    read_trainer_state,
    read_wandb_summary,
)
from clustertools.sources.training_values import Event, Point

#: Of the files that one pattern or folder gives, so many of the newest are read: logs of 1,000 ranks tell
#: the same steps.
FILES_AT_MOST = 4
#: A file that was last written this long before the start of the job is still its own: clocks differ.
CLOCK_SLACK_SECONDS = 120.0
#: What is looked for in a folder.
_IN_FOLDERS = (
    "*tfevents*", "run-*.wandb", "files/wandb-summary.json", "files/output.log", "metrics.csv",
    "trainer_log.jsonl", "trainer_state.json", "metrics/*", "*.jsonl", "*.log", "*.out",
)  # fmt: skip
#: Files that are written anew as a whole, or in which each record is a single value: they tell progress, but
#: say nothing of what is between their records.
_WHOLE = ("wandb-summary.json", "trainer_state.json")


@dataclass(frozen=True, slots=True)
class RunNews:
    """What the logs of a run say since the last look.

    `paths` are those that exist, `format` is that of the file which tells the steps. `grew` says whether any
    was written to; `unrecognised` names one that was and has no known format. `begun`: a file was read that
    no look before had seen. `whole`: nothing was passed over, such as the beginning of a very long log.
    """

    items: tuple[Point | Event, ...]
    memory: Mapping[str, Any]
    paths: tuple[str, ...]
    format: str | None = None
    grew: bool = False
    unrecognised: str = ""
    begun: bool = False
    whole: bool = True
    notes: tuple[str, ...] = ()


def asked_paths(job: Job) -> list[str]:
    """The paths and patterns of a run, its metrics first: they tell more than its log."""
    return [path for path in (job.metrics_path, *job.log_paths) if path]


def read_run(host: Host, job: Job, memory: Mapping[str, Any]) -> RunNews:
    """What is new since the look that gave `memory` ({} at first).

    The steps are told by one file, the first that has any; another one counts where it is further, and for
    what it says of checkpoints and evaluations. A restart that several files tell of is told once.
    Raises Unobservable when there are files and one of them cannot be read.
    """
    known: Mapping[str, Any] = memory.get("files", {})
    leader, top = memory.get("leader", ""), memory.get("top_step")
    backs: dict[str, int] = dict(memory.get("backs", {}))
    kept: dict[str, Any] = {}
    gone: dict[str, Any] = {}
    items: list[Point | Event] = []
    notes: list[str] = []
    told: dict[str, Any] = {"grew": False, "unrecognised": "", "begun": False, "whole": True}
    paths = run_files(host, job, known)
    formats: dict[str, str | None] = {}
    for path in paths:
        try:
            found, kept[path], told_now = _read(host, path, known.get(path, {}))
        except Absent:
            if path in known:  # between the two steps of a rotation there is no file of this name
                gone[path] = known[path]
            continue
        formats[path] = told_now.get("format")
        told["begun"] |= path not in known
        told["grew"] |= told_now["grew"]
        told["whole"] &= told_now["whole"]
        notes += told_now["notes"]
        if told_now["grew"] and formats[path] is None:
            told["unrecognised"] = path
        if leader not in paths and any(isinstance(i, Point) and not i.evaluation for i in found):
            leader = path
        backs.setdefault(path, max(backs.values(), default=0))
        for item in found:
            if isinstance(item, Event) and item.kind == "restart_marker":
                backs[path] += 1
                if backs[path] <= max((n for p, n in backs.items() if p != path), default=0):
                    continue
                top = None
            elif isinstance(item, Point) and item.step is not None and not item.evaluation:
                if path != leader and top is not None and item.step <= top:
                    continue
                top = max(item.step, top or 0)
            items.append(item)
    fresh = {p: n for p, n in backs.items() if p in kept}
    return RunNews(
        tuple(items), {"files": {**gone, **kept}, "leader": leader, "top_step": top, "backs": fresh},
        tuple(kept), formats.get(leader), notes=tuple(notes), **told,
    )  # fmt: skip


def run_files(host: Host, job: Job, known: Container[str] = ()) -> list[str]:
    """The files that the run's paths, patterns and folders stand for now; a plain path need not exist yet.

    Of a pattern or a folder: the newest that this start of the run wrote to, or that are `known` already.
    Raises Unobservable.
    """
    found: list[str] = []
    for asked in asked_paths(job):
        if any(sign in asked for sign in "*?["):
            found += _newest(host, host.glob(asked), job, known)
        elif asked in known or not _is_folder(host, asked):
            found.append(asked)
        else:
            inside = (p for name in _IN_FOLDERS for p in host.glob(f"{asked.rstrip('/')}/{name}"))
            found += _newest(host, dict.fromkeys(inside), job, known)
    return list(dict.fromkeys(found))


def _is_folder(host: Host, path: str) -> bool:
    try:
        return host.stat(path).is_dir
    except Absent:
        return False


def _newest(host: Host, paths: Iterable[str], job: Job, known: Container[str]) -> list[str]:
    """Those of this start of the run that were written last, in the order of their names."""
    aged: list[tuple[float, str]] = []
    for path in paths:
        try:
            info = host.stat(path)
        except Absent:
            continue  # it was rotated away since the folder was read
        if info.is_dir:
            continue
        if path in known or info.mtime >= job.started_at - CLOCK_SLACK_SECONDS:
            aged.append((info.mtime, path))
    return sorted(path for _, path in sorted(aged)[-FILES_AT_MOST:])


def _read(
    host: Host, path: str, memory: Mapping[str, Any]
) -> tuple[list[Point | Event], Mapping[str, Any], dict[str, Any]]:
    name = path.rsplit("/", 1)[-1]
    if "tfevents" in name or name.endswith(".wandb"):
        return _read_events(host, path, memory)
    if name in _WHOLE:
        return _read_whole(host, path, name, memory)
    if "/metrics/" in path and "." not in name:
        return _read_mlflow(host, path, name, memory)
    seen = follow(host, path, memory)
    whole = bool(memory) or not seen.note
    return list(seen.items), seen.memory, {
        "format": seen.format, "grew": seen.grew, "whole": whole and not seen.behind_bytes,
        "notes": [seen.note] if seen.note else [],
    }  # fmt: skip


def _told(format: str, grew: bool, whole: bool = True, note: str = "") -> dict[str, Any]:
    return {"format": format, "grew": grew, "whole": whole, "notes": [note] if note else []}


def _read_events(
    host: Host, path: str, memory: Mapping[str, Any]
) -> tuple[list[Point | Event], Mapping[str, Any], dict[str, Any]]:
    info = host.stat(path)
    kind = "wandb" if path.endswith(".wandb") else "tensorboard"
    size, state = int(memory.get("size", 0)), memory.get("state")
    if memory.get("damaged") or (state is not None and info.size_bytes == size):
        return [], memory, _told(kind, False)
    if state is not None and info.size_bytes < size:
        state = None
    try:
        seen = read_events(host, path, state=state)
    except Unparsable as exc:
        # what follows a damaged length cannot be found: this file tells nothing more
        damaged = {"size": info.size_bytes, "damaged": str(exc)}
        return [], damaged, _told(kind, False, False, f"{path} is damaged: {exc}")
    kept = {"size": info.size_bytes if not seen.behind_bytes else 0, "state": seen.state}
    return list(seen.items), kept, _told(kind, True, not seen.behind_bytes)


def _read_whole(
    host: Host, path: str, name: str, memory: Mapping[str, Any]
) -> tuple[list[Point | Event], Mapping[str, Any], dict[str, Any]]:
    info = host.stat(path)
    if memory and [info.size_bytes, info.mtime] == memory["was"]:
        return [], memory, _told(name, False)
    last = memory.get("step")
    try:
        text = host.read(path)
        one = read_wandb_summary(text) if name == "wandb-summary.json" else None
        points = [one] if one else [] if name == "wandb-summary.json" else read_trainer_state(text)
    except Unparsable:
        # it is being written at this moment: the next look sees all of it
        return [], memory, _told(name, False, False)
    fresh = [p for p in points if p.step is not None and (last is None or p.step > last)]
    # the whole history of a run is in it at every look; a step that is lower than before was a restart
    newest = max((p.step for p in points if p.step is not None), default=None)
    items: list[Point | Event] = list(fresh)
    if newest is not None and last is not None and newest < last:
        items = [Event("restart_marker", newest, f"the step went back from {last} to {newest}"), points[-1]]
    return items, {"was": [info.size_bytes, info.mtime], "step": newest}, _told(name, bool(items), False)


def _read_mlflow(
    host: Host, path: str, name: str, memory: Mapping[str, Any]
) -> tuple[list[Point | Event], Mapping[str, Any], dict[str, Any]]:
    info = host.stat(path)
    offset = int(memory.get("offset", 0))
    if info.size_bytes < offset:
        offset = 0
    if info.size_bytes == offset:
        return [], {"offset": offset, "step": memory.get("step")}, _told("mlflow", False)
    text = host.read(path, offset, min(info.size_bytes - offset, 1 << 20))
    points, used = read_mlflow(name, text)
    items: list[Point | Event] = []
    last = memory.get("step")
    for point in points:
        assert point.step is not None
        if last is not None and point.step < last:
            text = f"the step went back from {last} to {point.step}"
            items.append(Event("restart_marker", point.step, text, "", point.time))
        last = point.step
        items.append(point)
    return items, {"offset": offset + used, "step": last}, _told("mlflow", bool(points))


def not_there(job: Job, news: RunNews, now: float, minimum_seconds: float) -> Unobservable | None:
    """Why nothing can be known of the run's progress; None when its log is there, or may yet come."""
    asked = asked_paths(job)
    if not asked:
        return Unobservable(f"no log of {job.run} is known: say --log or --metrics")
    age = now - job.started_at
    if news.paths or job.state == "ended" or age <= minimum_seconds:
        return None
    return Unobservable(f"{asked[0]} does not exist {age:.0f} s after the start")
