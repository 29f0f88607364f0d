"""Restart of a run from its last verified checkpoint: a sequence that survives a crash between any two steps.

    capture -> stop -> wait_end -> choose -> submit -> wait_step

`choose` decides the token of the next attempt and writes it down; `submit` starts that attempt, and a
scheduler starts a token at most once, so a restart that is taken up again after a crash never doubles.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from clustertools.actions import Progress, Scene, StepFunction, tracker
from clustertools.actions.capture import evidence
from clustertools.errors import Absent, ActionFailed, Unobservable
from clustertools.model import Action, Attempt, Job
from clustertools.schedulers import RunSpec
from clustertools.sources.checkpoints import CheckpointReport, checkpoints, last_good

#: After SIGKILL a process that is still there hangs in the kernel; a second copy must not be started.
KILL_SECONDS = 60.0
#: A storage that does not answer is waited for this long before the restart gives up.
STORAGE_SECONDS = 600.0
#: Reading every byte of the newest checkpoint may take this long: 1.2 TB at 2 GB/s.
VERIFY_SECONDS = 600.0


def attempt_token(action_id: str) -> str:
    """The token of the attempt that an action starts: always the same one for the same action."""
    return hashlib.sha256(action_id.encode()).hexdigest()[:12]


def _run(scene: Scene) -> tuple[RunSpec, Job]:
    if scene.spec is None or scene.job is None:
        raise ActionFailed("the run is no longer known; it was not restarted")
    return scene.spec, scene.job


def _capture(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    _, job = _run(scene)
    try:
        told = evidence(scene.host, job, scene.evidence_folder)
    except ActionFailed as exc:
        # evidence on a full disk must not keep a thousand GPUs waiting
        return Progress("stop", detail, str(exc))
    first = told.get("stacks.txt", "")
    return Progress(
        "stop", {**detail, "evidence": str(scene.evidence_folder)},
        f"saved the evidence in {scene.evidence_folder}" + (f" ({first})" if first else ""),
    )  # fmt: skip


def _stop(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    why = f"clustertools: {action.because}"
    if job.state == "ended" and not scene.scheduler.leftovers(spec, job):
        return Progress("choose", detail)
    scene.scheduler.cancel(spec, job, why, force=False)
    said = "" if detail.get("stopped_at") else "asked every process of the run to end (SIGTERM)"
    return Progress("wait_end", {**detail, "stopped_at": detail.get("stopped_at", scene.now)}, said)


def _wait_end(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    left = scene.scheduler.leftovers(spec, job)
    if job.state == "ended" and not left:
        return Progress("choose", detail, "every process of the run has ended")
    if scene.now - float(detail.get("stopped_at", scene.now)) <= spec.grace_seconds:
        return Progress("wait_end", detail)
    # counted from the kill, not from the request: the watchdog may have been away in between
    killed_at = float(detail.get("killed_at", scene.now))
    if scene.now - killed_at > KILL_SECONDS:
        what = f"processes {left} of {spec.name} could not be killed (they hang in the kernel)"
        if not left:
            what = f"{spec.name} has no process left and is still {job.state}"
        raise ActionFailed(f"{what}; no second copy is started; drain and reboot the node")
    scene.scheduler.cancel(spec, job, f"clustertools: {action.because}", force=True)
    said = "" if "killed_at" in detail else f"still there after {spec.grace_seconds:g} s: sent SIGKILL"
    return Progress("wait_end", {**detail, "killed_at": killed_at}, said)


def _choose(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """Find the checkpoint to resume from, and decide the next attempt."""
    spec, _ = _run(scene)
    since = float(detail.get("choosing_since", scene.now))
    try:
        good, refused = _last_good(spec, scene)
    except Unobservable as exc:
        if scene.now - since > STORAGE_SECONDS:
            raise ActionFailed(f"the checkpoints of {spec.name} could not be read: {exc}") from exc
        said = "" if "choosing_since" in detail else f"waiting for the checkpoints: {exc}"
        return Progress("choose", {**detail, "choosing_since": since}, said)
    number = (scene.attempts[-1].number if scene.attempts else 0) + 1
    attempt = Attempt(
        spec.name, number, attempt_token(action.id), resume_step=good.step if good else None,
        resume_path=good.path if good else "", started_at=scene.now,
    )  # fmt: skip
    said = "".join(f"refused {r.path}: {r.reason}. " for r in refused)
    said += (
        f"resuming from {good.path} (step {good.step}, verified)" if good else "starting from the beginning"
    )
    kept = {**detail, "token": attempt.token, "number": number, "refused": [r.path for r in refused]}
    return Progress("submit", kept, said, attempt=attempt)


def _last_good(spec: RunSpec, scene: Scene) -> tuple[CheckpointReport | None, list[CheckpointReport]]:
    """The newest checkpoint that verifies, and those newer ones that did not.

    Raises ActionFailed when there are some and none is good: starting anew would overwrite what a person may
    still save.
    """
    if not spec.checkpoint_dir or spec.resume == "none":
        return None, []
    try:
        reports = _reports(spec, scene)
    except Absent:
        return None, []
    good = last_good(reports)
    refused = reports if good is None else reports[: reports.index(good)]
    if reports and good is None:
        raise ActionFailed(
            f"none of the {len(reports)} checkpoints in {spec.checkpoint_dir} is whole "
            f"(newest: {reports[0].reason}); not started from the beginning without being told to"
        )
    return good, list(refused)


def _reports(spec: RunSpec, scene: Scene) -> tuple[CheckpointReport, ...]:
    """Every byte is read where there is time for it; the rest is judged by its structure."""
    look = functools.partial(checkpoints, scene.host, spec.checkpoint_dir, timeout_seconds=VERIFY_SECONDS)
    if not spec.deep_verify:
        return look(deep=False).reports
    deep = look(deep=True).reports
    good = last_good(deep)
    newer = deep if good is None else deep[: deep.index(good)]
    if not any(r.verdict == "unknown" for r in newer):
        return deep
    shallow = {r.path: r for r in look(deep=False).reports}
    return tuple(shallow.get(r.path, r) if r.verdict == "unknown" else r for r in deep)


def _submit(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, _ = _run(scene)
    attempt = scene.attempts[-1]
    if attempt.token != detail["token"]:
        raise ActionFailed(f"attempt {attempt.number} of {spec.name} was started by somebody else")
    said = _prepare(spec, attempt, detail, scene)
    try:
        job_id = scene.scheduler.submit(spec, attempt)
    except ActionFailed as exc:
        # it counts as a start that made no step, or a place that starts nothing would be asked for ever
        step = attempt.resume_step or 0
        lost = dataclasses.replace(attempt, end=str(exc), ended_at=scene.now, last_step=step)
        return Progress("", detail, f"{said}{exc}", ok=False, attempt=lost)
    said += f"started attempt {attempt.number}"
    started = dataclasses.replace(attempt, job_id=job_id, started_at=scene.now, end="", ended_at=0.0)
    kept = {**detail, "submitted_at": scene.now}
    return Progress("wait_step", kept, said, attempt=started)


def _prepare(spec: RunSpec, attempt: Attempt, detail: Mapping[str, Any], scene: Scene) -> str:
    """Make the framework resume where we decided; in words, what was changed."""
    if spec.resume == "newest":
        return "".join(f"{tracker.set_aside(path)}. " for path in detail.get("refused", ()))
    if spec.resume == "tracker" and attempt.resume_path:
        reports = checkpoints(scene.host, spec.checkpoint_dir).reports
        chosen = next((r for r in reports if r.path == attempt.resume_path), None)
        if chosen is None:
            raise ActionFailed(f"{attempt.resume_path} is gone since it was verified")
        return f"{tracker.repair_tracker(spec.checkpoint_dir, chosen)}. "
    return ""


def _wait_step(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    attempt = next((a for a in scene.attempts if a.token == detail["token"]), None)
    if attempt is None:
        raise ActionFailed(f"the attempt of {spec.name} that was started is no longer known")
    took = scene.now - float(detail["submitted_at"])
    if attempt.new_steps:
        said = f"training again: step {attempt.last_step} after {took:.0f} s (attempt {attempt.number})"
        return Progress("", detail, said)
    if attempt != scene.attempts[-1]:
        raise ActionFailed(
            f"attempt {attempt.number} of {spec.name} made no new step: {attempt.end or 'stuck'}"
        )
    if job.state == "ended":
        if job.exit_code == 0:
            return Progress("", detail, f"attempt {attempt.number} ended well")
        raise ActionFailed(
            f"attempt {attempt.number} of {spec.name} ended before its first new step: {how_it_ended(job)}"
        )
    return Progress("wait_step", detail)


def how_it_ended(job: Job) -> str:
    """An exit code in words."""
    if job.exit_code is None:
        return job.exit_reason or "nobody saw how it ended"
    if job.exit_code < 0:
        return f"killed by signal {-job.exit_code}"
    return f"exit code {job.exit_code}" + (f" ({job.exit_reason})" if job.exit_reason else "")


def _stop_only(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    progress = (
        _stop(action, detail, scene) if not detail.get("stopped_at") else _wait_end(action, detail, scene)
    )
    if progress.step == "choose":
        return Progress("", progress.detail, progress.said or "the run has ended")
    return Progress("stop", progress.detail, progress.said)


STEPS: Mapping[str, StepFunction] = {
    "capture": _capture,
    "stop": _stop,
    "wait_end": _wait_end,
    "choose": _choose,
    "submit": _submit,
    "wait_step": _wait_step,
}
CANCEL_STEPS: Mapping[str, StepFunction] = {"stop": _stop_only}
