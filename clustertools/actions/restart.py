"""Restart of a run from its last verified checkpoint: a sequence that survives a crash between any two steps.

    capture -> stop -> wait_end -> choose -> (preflight) -> submit -> wait_step

`capture` writes down which incarnation is to be stopped, `choose` the token of the next attempt; `submit`
starts that attempt, and a scheduler starts a token at most once. So a restart that is taken up again after a
crash never doubles, and one that a person or the scheduler has overtaken starts nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from clustertools.actions import Progress, Scene, StepFunction, tracker
from clustertools.actions.capture import evidence
from clustertools.actions.choose import (
    StillReading,
    choose_checkpoint,
    excluded_nodes,
    last_sign_of_life,
    look_at_nodes,
    resume_looks_wrong,
    skip_steps,
    steps_lost,
)
from clustertools.actions.resume_file import write_resume_file
from clustertools.actions.spare_copy import put_back
from clustertools.errors import Absent, ActionFailed, Unobservable
from clustertools.model import Action, Attempt, Job
from clustertools.schedulers import RunSpec
from clustertools.sources.checkpoints import CheckpointReport, checkpoints

#: After SIGKILL a process that is still there hangs in the kernel; a second copy must not be started.
KILL_SECONDS = 60.0
#: Slurm drains a node whose processes cannot be killed after UnkillableStepTimeout (60 s by default,
#: slurm.conf(5)), and an epilog may take minutes; after that nobody but a person ends it.
COMPLETING_SECONDS = 900.0
#: A storage that does not answer is waited for this long before the restart gives up: an outage is repaired
#: within a day, and a run that is given up needs a person.
STORAGE_SECONDS = 86400.0
OURS = "clustertools:"


def attempt_token(action_id: str) -> str:
    """The token of the attempt that an action starts: always the same one for the same action."""
    return hashlib.sha256(action_id.encode()).hexdigest()[:12]


def _time(detail: Mapping[str, Any], name: str, default: float) -> float:
    """A time that an earlier step wrote down."""
    return float(detail.get(name, default))


def _run(scene: Scene) -> tuple[RunSpec, Job]:
    if scene.spec is None or scene.job is None:
        raise ActionFailed("the run is no longer known; it was not restarted")
    return scene.spec, scene.job


def _capture(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    newest = _newest(scene)
    kept = {
        **detail,
        "stops": newest.number if newest else 0,
        "nodes": list(job.nodes),
        "quiet_since": last_sign_of_life(job, scene),
        "was_ended_by": job.ended_by,
    }
    try:
        told = evidence(
            scene.host, job, scene.evidence_folder,
            looker=scene.looker, how=spec.look, because=action.because,
        )  # fmt: skip
    except ActionFailed as exc:
        # evidence on a full disk must not keep a thousand GPUs waiting
        return Progress("stop", kept, str(exc))
    first = told.get("stacks.txt", "")
    return Progress(
        "stop", {**kept, "evidence": str(scene.evidence_folder)},
        f"saved the evidence in {scene.evidence_folder}" + (f" ({first})" if first else ""),
    )  # fmt: skip


# what ends the sequence without starting anything


def _newest(scene: Scene) -> Attempt | None:
    """The newest attempt that anybody knows: the scheduler may tell of one that is not written down yet."""
    told = scene.job.attempts if scene.job is not None else ()
    return max((*scene.attempts, *told[-1:]), key=lambda a: a.number, default=None)


def _may_go_on(action: Action, detail: Mapping[str, Any], scene: Scene) -> None:
    """Raises ActionFailed when a person or the scheduler has taken the run over meanwhile."""
    spec, job = _run(scene)
    by_order = not action.playbook and detail.get("was_ended_by") == "person"
    if job.ended_by == "person" and not by_order:
        why = job.exit_reason or job.reason
        raise ActionFailed(
            f"{spec.name} was cancelled by a person{f' ({why})' if why else ''}: nothing is started"
        )
    newest = _newest(scene)
    overtaken = newest is not None and newest.number > int(detail.get("stops", newest.number))
    if newest and overtaken and newest.token != detail.get("token") and not _is_held_by_us(job, detail):
        what = f"attempt {newest.number}" + (f", job {job.id}" if job.id else "")
        raise ActionFailed(
            f"{spec.name} was begun anew meanwhile, by its scheduler or by a person ({what}): "
            "nothing more is started"
        )
    if job.state == "unknown":
        raise Unobservable(f"the scheduler does not tell what became of {spec.name}")
    if job.state == "pending" and job.held and not _is_held_by_us(job, detail):
        raise ActionFailed(
            f"{spec.name} (job {job.id}) is held by somebody else ({job.reason or 'no reason given'}): "
            "only they may let it begin"
        )


def _is_held_by_us(job: Job, detail: Mapping[str, Any]) -> bool:
    """Whether the scheduler holds the job because this sequence stopped it that way."""
    if job.state != "pending" or not job.held:
        return False
    return "stopped_at" in detail or job.ended_by == "us" or job.exit_reason.startswith(OURS)


def _kill_switch(spec: RunSpec, scene: Scene) -> None:
    """Raises ActionFailed while the file is there, and Unobservable when nobody can see whether it is."""
    if not spec.kill_switch:
        return
    try:
        scene.host.stat(spec.kill_switch)
    except Absent:
        return
    except Unobservable as exc:
        raise Unobservable(f"nothing is started while nobody can see the kill switch: {exc}") from exc
    raise ActionFailed(
        f"{spec.kill_switch} exists: nothing is started; when it is gone, `clustertools restart {spec.name}`"
    )


# stop


def _is_over(job: Job, detail: Mapping[str, Any]) -> bool:
    return job.state == "ended" or _is_held_by_us(job, detail)


def _stop(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    _may_go_on(action, detail, scene)
    _kill_switch(spec, scene)
    return _ask_to_end(action, detail, scene, spec, job)


def _ask_to_end(action: Action, detail: Mapping[str, Any], scene: Scene, spec: RunSpec, job: Job) -> Progress:
    if _is_over(job, detail) and not scene.scheduler.leftovers(spec, job):
        return Progress("choose", detail)
    kept = {**detail, "stopped_at": detail.get("stopped_at", scene.now)}
    if job.state == "completing":
        return Progress("wait_end", kept, "it is ending already")
    scene.scheduler.cancel(spec, job, f"{OURS} {action.because}", force=False)
    said = "" if detail.get("stopped_at") else "asked every process of the run to end (SIGTERM)"
    return Progress("wait_end", kept, said)


def _wait_end(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    _may_go_on(action, detail, scene)
    return _wait_for_end(action, detail, scene)


def _wait_for_end(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    left = scene.scheduler.leftovers(spec, job)
    if _is_over(job, detail) and not left:
        return Progress("choose", detail, "every process of the run has ended")
    if scene.now - _time(detail, "stopped_at", scene.now) <= spec.grace_seconds:
        return Progress("wait_end", detail)
    # counted from the kill, not from the request: the watchdog may have been away in between
    killed_at = _time(detail, "killed_at", scene.now)
    if scene.now - killed_at > (COMPLETING_SECONDS if job.state == "completing" else KILL_SECONDS):
        raise ActionFailed(f"{_stuck(spec, job, left)}; no second copy is started; drain and reboot the node")
    scene.scheduler.cancel(spec, job, f"{OURS} {action.because}", force=True)
    said = "" if "killed_at" in detail else f"still there after {spec.grace_seconds:g} s: sent SIGKILL"
    return Progress("wait_end", {**detail, "killed_at": killed_at}, said)


def _stuck(spec: RunSpec, job: Job, left: list[int]) -> str:
    if left:
        return f"processes {left} of {spec.name} could not be killed (they hang in the kernel)"
    if job.state == "completing":
        where = ", ".join((job.failed_nodes or job.nodes)[:8]) or "its nodes"
        return (
            f"job {job.id} of {spec.name} is still completing {COMPLETING_SECONDS / 60:.0f} min after "
            f"SIGKILL: processes on {where} hang in the kernel (state D) and hold their GPUs"
        )
    return f"{spec.name} has no process left and is still {job.state}"


# choose, preflight


def _choose(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """Find the checkpoint to resume from, and decide the next attempt."""
    spec, _ = _run(scene)
    _may_go_on(action, detail, scene)
    since = _time(detail, "choosing_since", scene.now)
    ended = next((a for a in scene.attempts if a.number == detail.get("stops")), None)
    ended = ended or (scene.attempts[-1] if scene.attempts else None)
    waiting = {**detail, "choosing_since": since}
    try:
        choice = choose_checkpoint(spec, action, ended, scene, scene.now - since)
    except StillReading as exc:
        said = "" if "choosing_since" in detail else f"reading every byte of {exc} before resuming from it"
        return Progress("choose", waiting, said)
    except Unobservable as exc:
        if scene.now - since > STORAGE_SECONDS:
            raise ActionFailed(f"the checkpoints of {spec.name} could not be read: {exc}") from exc
        said = "" if "choosing_since" in detail else f"waiting for the checkpoints: {exc}"
        return Progress("choose", waiting, said)
    good = choice.good
    wanted = tuple(str(n) for n in action.options.get("exclude") or ())
    accused, told = scene.accuse() if scene.accuse is not None else ((), "")
    wanted = tuple(dict.fromkeys((*wanted, *accused)))
    attempt = Attempt(
        spec.name, (scene.attempts[-1].number if scene.attempts else 0) + 1, attempt_token(action.id),
        resume_step=good.step if good else None, resume_path=good.path if good else "",
        started_at=scene.now, excluded=excluded_nodes(scene.attempts, wanted, scene.now),
        before_step=action.options.get("before_step"), skip_steps=skip_steps(action, good, ended),
    )  # fmt: skip
    why = action.options.get("reason")
    said = (f"{why}. " if why else "") + choice.in_words(action.options.get("before_step"))
    said += f", without {', '.join(attempt.excluded)}" if attempt.excluded else ""
    said += f" ({told})" if told else ""
    if attempt.skip_steps:
        said += f", asked to leave out the data of steps {attempt.skip_steps}"
    kept = {
        **detail,
        "token": attempt.token,
        "number": attempt.number,
        "refused": _files(choice.refused),
        "poisoned": _files(r for r in choice.refused if r.verdict == "poisoned"),
        "lost": steps_lost(ended, good),
    }
    return Progress("preflight" if spec.preflight else "submit", kept, said, attempt=attempt)


def _files(reports: Iterable[CheckpointReport]) -> list[str]:
    return [part for r in reports for part in (r.parts or (r.path,))]


def _own_attempt(detail: Mapping[str, Any], scene: Scene) -> Attempt:
    own = next((a for a in scene.attempts if a.token == detail["token"]), None)
    if own is None:
        newest = scene.attempts[-1]
        raise ActionFailed(f"attempt {newest.number} of {newest.run} was started by somebody else")
    return own


def _preflight(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    """A light look at the nodes that the run had; the bad ones are left out of the next attempt."""
    _run(scene)
    attempt = _own_attempt(detail, scene)
    nodes = [str(n) for n in detail.get("nodes", ())]
    bad, said = look_at_nodes(action, nodes, attempt.excluded, scene)
    if not bad:
        return Progress("submit", detail, said)
    return Progress(
        "submit", detail, said, attempt=dataclasses.replace(attempt, excluded=(*attempt.excluded, *bad))
    )


# submit


def _submit(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    attempt = _own_attempt(detail, scene)
    # after a crash it may run already: what would have stopped it comes too late then, and what it has saved
    # since must neither be set aside nor be passed over
    runs = job.attempt == attempt.number and job.state in ("running", "completing")
    if not runs:
        try:
            _may_go_on(action, detail, scene)
            _kill_switch(spec, scene)
        except ActionFailed as exc:
            # an end with our name on it: nobody takes it for a crash, and it does not count as a start
            given_up = dataclasses.replace(
                attempt, end=f"{OURS} not started: {exc}", ended_at=scene.now, ended_by="us"
            )
            return Progress("", detail, str(exc), ok=False, attempt=given_up)
    said = ""
    try:
        said = "" if runs else _prepare(spec, attempt, detail, scene)
        job_id = scene.scheduler.submit(spec, attempt)
    except ActionFailed as exc:
        # it counts as a start that made no step, or a place that starts nothing would be asked for ever
        step = attempt.resume_step or 0
        lost = dataclasses.replace(attempt, end=str(exc), ended_at=scene.now, last_step=step)
        return Progress("", detail, f"{said}{exc}", ok=False, attempt=lost)
    said += f"started attempt {attempt.number}"
    before = [a.requeues for a in scene.attempts[:-1] if a.job_id == job_id]
    started = dataclasses.replace(
        attempt, job_id=job_id, started_at=scene.now, end="", ended_at=0.0, ended_by="",
        requeues=max(before) + 1 if before else 0,
    )  # fmt: skip
    kept = {**detail, "submitted_at": scene.now}
    return Progress("wait_step", kept, said, attempt=started)


def _prepare(spec: RunSpec, attempt: Attempt, detail: Mapping[str, Any], scene: Scene) -> str:
    """Make the framework resume where we decided; in words, what was changed. Raises ActionFailed."""
    # whole files, of steps that are made anew: nothing but their name can keep a later restart from them
    bad = detail.get("refused" if spec.resume == "newest" else "poisoned", ())
    said = "".join(f"{tracker.set_aside(path)}. " for path in bad)
    if spec.resume == "file":
        return f"{said}{write_resume_file(spec, attempt)}. "
    if spec.resume == "newest":
        return said + put_back(attempt.resume_path)
    if spec.resume == "tracker" and attempt.resume_path:
        reports = checkpoints(scene.host, spec.checkpoint_dir).reports
        chosen = next((r for r in reports if r.path == attempt.resume_path), None)
        if chosen is None:
            raise ActionFailed(f"{attempt.resume_path} is gone since it was verified")
        return f"{said}{tracker.repair_tracker(spec.checkpoint_dir, chosen)}. "
    return said


# wait_step


def _wait_step(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    attempt = next((a for a in scene.attempts if a.token == detail["token"]), None)
    if attempt is None:
        raise ActionFailed(f"the attempt of {spec.name} that was started is no longer known")
    wrong = resume_looks_wrong(attempt)
    if wrong:
        return Progress("", detail, f"attempt {attempt.number} of {spec.name} trains, but {wrong}", ok=False)
    if attempt.new_steps:
        return Progress("", detail, _trains_again(attempt, detail, scene.now))
    if attempt != scene.attempts[-1]:
        raise ActionFailed(
            f"attempt {attempt.number} of {spec.name} made no new step: {attempt.end or 'stuck'}"
        )
    if job.state == "ended":
        return _ended_before_a_step(spec, job, attempt, detail)
    if job.state == "pending" and job.attempt == attempt.number:
        return _in_the_queue(job, detail)
    return Progress("wait_step", detail)


def _trains_again(attempt: Attempt, detail: Mapping[str, Any], now: float) -> str:
    took = now - _time(detail, "quiet_since", _time(detail, "submitted_at", now))
    lost = detail.get("lost")
    words = "" if lost is None else f", lost {lost} step{'' if lost == 1 else 's'}"
    return f"training again: step {attempt.last_step} after {took:.0f} s{words} (attempt {attempt.number})"


def _ended_before_a_step(spec: RunSpec, job: Job, attempt: Attempt, detail: Mapping[str, Any]) -> Progress:
    if job.exit_code == 0:
        return Progress("", detail, f"attempt {attempt.number} ended well")
    who = "was cancelled by a person" if job.ended_by == "person" else "ended"
    raise ActionFailed(
        f"attempt {attempt.number} of {spec.name} {who} before its first new step: {how_it_ended(job)}"
    )


def _in_the_queue(job: Job, detail: Mapping[str, Any]) -> Progress:
    """A queue may be long; it is said once, and once more when somebody holds the job there."""
    why = f"held ({job.reason})" if job.held else "queued"
    if not (job.reason or job.held):
        return Progress("wait_step", detail)  # just handed over; no scheduler has an opinion yet
    if detail.get("waits") == why:
        return Progress("wait_step", detail)
    said = f"job {job.id} waits in the queue ({job.reason})"
    if job.held:
        said = f"job {job.id} is held ({job.reason or 'no reason given'}): only a person lets it begin"
    return Progress("wait_step", {**detail, "waits": why}, said)


def how_it_ended(job: Job) -> str:
    """An exit code in words."""
    if job.exit_code is None:
        return job.exit_reason or "nobody saw how it ended"
    if job.exit_code < 0:
        return f"killed by signal {-job.exit_code}"
    return f"exit code {job.exit_code}" + (f" ({job.exit_reason})" if job.exit_reason else "")


def _stop_only(action: Action, detail: Mapping[str, Any], scene: Scene) -> Progress:
    spec, job = _run(scene)
    if detail.get("stopped_at"):
        progress = _wait_for_end(action, detail, scene)
    else:
        progress = _ask_to_end(action, detail, scene, spec, job)
    if progress.step == "choose":
        return Progress("", progress.detail, progress.said or "the run has ended")
    return Progress("stop", progress.detail, progress.said)


STEPS: Mapping[str, StepFunction] = {
    "capture": _capture,
    "stop": _stop,
    "wait_end": _wait_end,
    "choose": _choose,
    "preflight": _preflight,
    "submit": _submit,
    "wait_step": _wait_step,
}
CANCEL_STEPS: Mapping[str, StepFunction] = {"stop": _stop_only}
