"""Where a run goes on: the newest checkpoint that can be trusted, and the nodes that it does without."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clustertools.actions import Scene
from clustertools.actions.spare_copy import keep_copy
from clustertools.catalog import skip_data
from clustertools.errors import Absent, ActionFailed, Unobservable
from clustertools.model import Action, Attempt, Job
from clustertools.schedulers import KnowsNodes, RunSpec
from clustertools.sources.checkpoints import (
    CheckpointReport,
    checkpoints,
    is_being_verified,
    last_good,
    verify_in_background,
)

#: One look may hold up the watchdog's pass so long; what it does not reach is read by a child of its own.
LOOK_SECONDS = 20.0
#: Reading every byte of the newest checkpoint may take this long: 1.2 TB at 2 GB/s.
VERIFY_SECONDS = 600.0
#: Signatures of catalog/failures.yaml. After a full storage the newest checkpoint counts only when every byte
#: of it was proved; after the other, the one that the start had to load does not count.
DISK_FULL = "StorageFull"
COULD_NOT_LOAD = "CheckpointTorn"
#: A node that we left out is tried again after so long; if it is still bad, it was drained meanwhile.
EXCLUDED_SECONDS = 7 * 86400.0
#: More nodes than this share are not left out by a look at them: then the look is wrong, or the fabric is.
PREFLIGHT_SHARE = 0.1


class StillReading(Exception):
    """Not every byte was read yet; the text says of what. Ask again on the next pass."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`good` is None when the run starts from the beginning; `refused` are the newer ones, with reasons."""

    good: CheckpointReport | None = None
    refused: tuple[CheckpointReport, ...] = ()
    note: str = ""

    def in_words(self, before_step: int | None) -> str:
        said = "".join(f"refused {r.path}: {r.reason}. " for r in self.refused) + self.note
        if self.good is None:
            return said + "starting from the beginning"
        limit = "" if before_step is None else f", saved before step {before_step}"
        return f"{said}resuming from {self.good.path} (step {self.good.step}{limit}, verified)"


def choose_checkpoint(
    spec: RunSpec, action: Action, ended: Attempt | None, scene: Scene, seconds: float
) -> Choice:
    """The newest checkpoint that verifies, and those newer ones that did not.

    `seconds` is for how long this was asked for already: after VERIFY_SECONDS what has not been read is
    judged by its structure. Raises StillReading, Unobservable, and ActionFailed when there are checkpoints
    and none is good: starting anew would overwrite what a person may still save.
    """
    if not spec.checkpoint_dir or spec.resume == "none":
        return Choice()
    before_step = action.options.get("before_step")
    try:
        reports, note = _reports(spec, scene, before_step, seconds)
    except Absent:
        reports, note = (), ""
    before = next((a.resume_path for a in reversed(scene.attempts) if a.resume_path), "")
    if not reports and before:
        # a file system that is not mounted here shows an empty folder, or none
        raise Unobservable(f"there is no checkpoint in {spec.checkpoint_dir}, and {before} once was")
    reports = tuple(_distrusted(r, action, ended) for r in reports)
    good = last_good(reports) or _least_bad(reports)
    if reports and good is None:
        raise ActionFailed(
            f"none of the {len(reports)} checkpoints in {spec.checkpoint_dir} can be resumed from "
            f"(newest: {reports[0].reason}); not started from the beginning without being told to"
        )
    refused = reports if good is None else reports[: reports.index(good)]
    kept = keep_copy(good, reports) if good is not None else ""
    return Choice(good, tuple(refused), note + (f"{kept}. " if kept else ""))


def _distrusted(report: CheckpointReport, action: Action, ended: Attempt | None) -> CheckpointReport:
    """The report, refused when what ended the last attempt speaks against a checkpoint that looks whole."""
    if report.verdict != "good" or ended is None:
        return report
    full = ended.cause == DISK_FULL or bool(action.options.get("distrust_newest"))
    saved_then = not ended.started_at or report.mtime >= ended.started_at
    if full and saved_then and not report.proved:
        return replace(report, verdict="unknown", reason=_WHEN_FULL)
    if ended.cause == COULD_NOT_LOAD and report.path == ended.resume_path and not ended.new_steps:
        return replace(report, verdict="unknown", reason=_NOT_LOADED)
    return report


_WHEN_FULL = "whole as far as can be told, but saved by the attempt that ended on a full storage"
_NOT_LOADED = "whole as far as can be told, but the last start could not load it"


def _least_bad(reports: Sequence[CheckpointReport]) -> CheckpointReport | None:
    """Where nothing else is left, one that is only distrusted: a start that fails is no loss."""
    return next((r for r in reports if r.reason in (_WHEN_FULL, _NOT_LOADED)), None)


def _reports(
    spec: RunSpec, scene: Scene, before_step: int | None, seconds: float
) -> tuple[tuple[CheckpointReport, ...], str]:
    """Every byte is read where there is time for it; the rest is judged by its structure."""
    cache = scene.checkpoint_cache or str(scene.evidence_folder.parent / "checkpoint-cache")
    look = functools.partial(
        checkpoints, scene.host, spec.checkpoint_dir, timeout_seconds=LOOK_SECONDS,
        refuse_after_step=before_step, cache=cache,
    )  # fmt: skip
    if not spec.deep_verify:
        return look(deep=False).reports, ""
    # one that reads already is not disturbed by a second reader of the same bytes
    in_time = seconds < VERIFY_SECONDS
    if in_time and is_being_verified(spec.checkpoint_dir, cache):
        raise StillReading(spec.checkpoint_dir)
    deep = look(deep=True).reports
    good = last_good(deep)
    newer = deep if good is None else deep[: deep.index(good)]
    late = [r for r in newer if r.late]
    if not late:
        return deep, ""
    if in_time:
        verify_in_background(scene.host, spec.checkpoint_dir, cache, seconds=VERIFY_SECONDS - seconds)
        raise StillReading(f"{late[0].name} ({late[0].size_bytes / 1e9:.0f} GB)")
    shallow = {r.path: r for r in look(deep=False).reports}
    note = f"not every byte could be read within {VERIFY_SECONDS:.0f} s: judged by the structure. "
    return tuple(shallow.get(r.path, r) if r.late else r for r in deep), note


# nodes


def excluded_nodes(attempts: Sequence[Attempt], wanted: Sequence[str], now: float) -> tuple[str, ...]:
    """The nodes that the next attempt does without: the user's, those left out lately, and the new ones."""
    kept: list[str] = []
    if attempts:
        first, last = attempts[0], attempts[-1]
        for node in last.excluded:
            since = last.started_at
            for attempt in reversed(attempts):
                if node not in attempt.excluded:
                    break
                since = attempt.started_at
            # what the first start left out is the user's own wish
            if node in first.excluded or now - since < EXCLUDED_SECONDS:
                kept.append(node)
    return tuple(dict.fromkeys((*kept, *wanted)))


def look_at_nodes(
    action: Action, nodes: Sequence[str], excluded: Sequence[str], scene: Scene
) -> tuple[tuple[str, ...], str]:
    """Which of the run's nodes are not good now: (those to leave out as well, in words what was found).

    Nodes that the scheduler itself keeps jobs off are named and need no exclusion. A look that fails stops
    nothing.
    """
    nodes = [n for n in nodes if n not in excluded]
    said, bad, unusable = [], {}, set()
    if isinstance(scene.scheduler, KnowsNodes):
        try:
            states = scene.scheduler.nodes()
        except Unobservable as exc:
            said.append(f"nobody could see the state of its nodes: {exc}")
        else:
            for name in nodes:
                state = states.get(name)
                if state is not None and not state.is_good:
                    unusable.add(name)
                    about = " ".join(x for x in (state.state, state.reason and f"({state.reason})") if x)
                    said.append(f"{name} is not used: {about or 'out of service'}")
    asked = [n for n in nodes if n not in unusable]
    if scene.node_check is not None and asked:
        try:
            bad = {n: why for n, why in scene.node_check(asked).items() if n in asked}
        except Unobservable as exc:
            said.append(f"nobody could look at its nodes: {exc}")
    if not bad:
        return (), "; ".join(said)
    words = "; ".join(f"{n}: {why}" for n, why in sorted(bad.items())[:8])
    limit = int(action.options.get("exclude_at_most", max(1, int(len(nodes) * PREFLIGHT_SHARE))))
    if len(bad) > limit:
        said.append(f"{len(bad)} of {len(nodes)} nodes look bad, more than {limit}: none left out ({words})")
        return (), "; ".join(said)
    said.append(f"left out after a look: {words}")
    return tuple(sorted(bad)), "; ".join(said)


def steps_lost(ended: Attempt | None, good: CheckpointReport | None) -> int | None:
    """How many steps of the last attempt have to be made again; None when nobody knows."""
    if ended is None or ended.last_step is None:
        return None
    if good is None:
        return ended.last_step
    return None if good.step is None else max(0, ended.last_step - good.step)


def skip_steps(action: Action, good: CheckpointReport | None, ended: Attempt | None) -> str:
    """The steps whose data the next attempt is asked to leave out, as `FIRST-LAST`; "" for none.

    What the attempt before was asked holds until a checkpoint has passed it.
    """
    begun = good.step if good is not None and good.step is not None else 0
    bad = action.options.get("before_step")
    if bad is None or not action.options.get("skip_data"):
        asked = ended.skip_steps if ended is not None else ""
        return asked if asked and begun < int(asked.partition("-")[2]) else ""
    first, last = skip_data.around(int(bad), begun)
    return f"{first}-{last}"


def last_sign_of_life(job: Job, scene: Scene) -> float:
    """When the run ended, or else last wrote to a log; the moment of the look where nobody can tell."""
    if job.state == "ended" and job.ended_at:
        return min(job.ended_at, scene.now)
    times = []
    for path in (job.metrics_path, *job.log_paths):
        try:
            if path:
                times.append(scene.host.stat(path).mtime)
        except Unobservable:
            continue  # a log that is not there, or cannot be seen, tells no time
    written = max(times, default=scene.now)
    return min(max(written, job.started_at), scene.now)


def resume_looks_wrong(attempt: Attempt) -> str:
    """What is wrong with where an attempt began, judged by its first step; "" when nothing is."""
    first, resumed = attempt.first_step, attempt.resume_step
    # some programs count the step that they repeat: one less is no sign
    if first is None or resumed is None or first >= resumed - 1:
        return ""
    return f"its first step is {first} although it was to go on from step {resumed}: it did not resume"
