"""Whether a run still trains: two independent questions, each with an honest "do not know".

    steps advance?   working?    verdict
    yes              -           healthy
    no               stuck       JobHung: silent past the learned limit, and a second sign
    no               no          JobIdle: never made a step, or finished without ending
    no               yes         JobSilent: silent past the limit, no second sign; nobody acts on it
    no               not seen    JobSilent as well: silence alone is never a hang
    unknown          any         UNKNOWN: nobody could read the log

The second signs come from looks at the job's nodes, which are asked for only when the silence nears its limit
(`clustertools.sources.job_signs`). GPU utilisation is none: it stays at 100 % while a collective spins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Job, Reading, Remedy, from_data, to_data
from clustertools.sources.job_look import JobLook
from clustertools.sources.job_signs import IDLE_CPU_SHARE, Levels, Signs, levels_of, sample, signs
from clustertools.sources.stacks import fold, render
from clustertools.sources.training_progress import ProgressTracker
from clustertools.sources.training_run import not_there, read_run

#: Looks that follow each other at the smallest distance; after these each is twice as far as the one before.
_QUICK_LOOKS = 5
#: Signs of life without a step are believed for so many limits.
_PATIENCE = 3.0
#: Lines of evidence that stacks may take, and characters of one.
_STACK_LINES = 24
_LINE_CHARACTERS = 600
#: Files and folders of the checkpoint folder that are looked at to see it grow.
_FILES_AT_MOST = 200


@dataclass(frozen=True)
class Limits:
    """When silence is too long.

    `factor` times the longest interval seen in the phase (NVIDIA's resiliency extension: 5), and at least
    `minimum_silence_seconds` (NCCL's own watchdog waits 600 s; half of that leaves time to take its dump).
    `startup_seconds` is for the first step: DLRover allows 120 min for it, most runs need a few.
    `stack_gap_seconds` is the time between two equal stacks that make a sign (ByteRobust and MegaScale look
    at a scale of minutes). A look later than `longest_gap_seconds` after the one before proves nothing about
    the time between: the watchdog itself was away. A job that ends for `completing_seconds` hangs in the
    kernel: Slurm kills after 30 s (KillWait) and gives up after UnkillableStepTimeout, 60 s and often more.
    """

    minimum_silence_seconds: float = 300.0
    factor: float = 5.0
    startup_seconds: float = 1800.0
    stack_gap_seconds: float = 60.0
    longest_gap_seconds: float = 600.0
    completing_seconds: float = 900.0


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    codes={
        "JobHung": "a run makes no steps and a second sign says that it is stuck",
        "JobIdle": "a run holds its machines and has nothing to do: no step ever, finished, or unable to end",
        "JobSilent": "a run makes no steps for longer than it ever did; nothing else says that it is stuck",
    },
    timeout_seconds=60.0,
)
def job_progress(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether the run's steps advance and, when they do not, whether it is stuck."""
    job = ctx.job
    if job is None or job.state not in ("running", "completing", "ended"):
        raise ctx.skip(f"the job is {job.state if job else 'not known'}")
    now = ctx.host.now()
    past: Mapping[str, Any] = ctx.past if ctx.past.get("attempt") == job.attempt else {}
    tracker = _tracker(ctx.past.get("tracker", {}), bool(past), now)
    if job.state == "running" and job.reason.lower().startswith("suspend"):
        tracker.away(now)
        ctx.remember.update(ctx.past, tracker=tracker.state(), looked_at=now, doubt={})
        raise ctx.skip("the job is suspended")
    news = _read(ctx, job, tracker, now)
    silent = 0.0 if news else _silent_seconds(ctx, past, now)
    ctx.remember.update(
        attempt=job.attempt, tracker=tracker.state(), looked_at=now, silent_seconds=silent,
        levels=ctx.past.get("levels", {}),
    )  # fmt: skip
    doubt = dict(past.get("doubt") or {})
    if news and doubt:
        # a doubt that steps have ended shows what this run's GPUs do while it trains
        if (known := levels_of(doubt["nodes"])) != Levels():
            ctx.remember["levels"] = to_data(known)
        doubt = {}
    ctx.remember["doubt"] = doubt
    yield from _readings(ctx, tracker, silent)
    if tracker.last_step is None and ctx.remember["logs"]["files"] and _began_in_vain(job, ctx.limits):
        yield ctx.reading("job_last_step", (job.attempts[-1].resume_step if job.attempts else 0) or 0)
    if job.state == "ended" and job.ended_by != "us" and not job.exit_reason.startswith("clustertools"):
        return  # whatever was wrong with its steps is over: how it ended is another check's question
    if job.state == "ended":
        raise ctx.skip("we ended the job")
    if job.exit_reason.startswith("clustertools:"):
        raise ctx.skip("the job is being stopped by us")
    if job.state == "completing":
        yield from _ending(ctx, job, past, now)
    else:
        yield from _judge(ctx, job, tracker, doubt, silent)


def _tracker(state: Mapping[str, Any], same_attempt: bool, now: float) -> ProgressTracker:
    """What was learned so far. A new attempt keeps the pace that was learned and begins its steps anew."""
    try:
        tracker = ProgressTracker.from_state(state)
    except ValueError:
        tracker = ProgressTracker()
    if not same_attempt:
        tracker.begin(now)
        tracker.first_step = tracker.last_step = None
    return tracker


def _read(ctx: Context, job: Job, tracker: ProgressTracker, now: float) -> bool:
    """Take in what the logs say since the last look; whether there was news.

    Raises Unobservable when no log could be read, or when one is written to and no step is recognised in it.
    """
    news = read_run(ctx.host, job, ctx.past.get("logs", {}))
    ctx.remember["logs"] = news.memory
    for text in news.notes:
        ctx.note(text)
    advanced = tracker.add(news.items, now)
    away = not_there(job, news, now, ctx.limits.minimum_silence_seconds)
    if away is not None:
        raise away
    late = now - job.started_at > ctx.limits.startup_seconds
    if news.unrecognised and tracker.last_step is None and late:
        raise Unobservable(
            f"{news.unrecognised} is written to, but no step is recognised in it: say --metrics"
        )
    return advanced


def _silent_seconds(ctx: Context, past: Mapping[str, Any], now: float) -> float:
    """How long looks have found nothing new. Time in which nobody looked does not count as silence."""
    gap = now - float(past.get("looked_at", now))
    if not 0 <= gap <= ctx.limits.longest_gap_seconds:
        gap = 0.0
    return float(past.get("silent_seconds", 0.0)) + gap


def _readings(ctx: Context, tracker: ProgressTracker, silent: float) -> Iterator[Reading]:
    if tracker.first_step is not None and tracker.last_step is not None:
        yield ctx.reading("job_first_step", tracker.first_step)
        yield ctx.reading("job_last_step", tracker.last_step)
    if tracker.step_seconds is not None:
        yield ctx.reading("job_step_seconds", tracker.step_seconds)
    yield ctx.reading("job_silent_seconds", silent)


def _began_in_vain(job: Job, limits: Limits) -> bool:
    """Whether a start without a step in its log is known to have made none.

    One that lasted longer than a start may take can have trained in a log that we do not understand; one that
    a person stopped did not fail.
    """
    by_person = job.exit_reason.startswith(("clustertools: signal", "clustertools: asked by a person"))
    ended_at = job.ended_at or job.started_at
    return job.state == "ended" and not by_person and ended_at - job.started_at <= limits.startup_seconds


def _ending(ctx: Context, job: Job, past: Mapping[str, Any], now: float) -> Iterator[Finding]:
    """A job that its scheduler is ending, and that does not end: something of it hangs in the kernel."""
    since = float(past.get("completing_since", now))
    ctx.remember["completing_since"] = since
    if now - since > ctx.limits.completing_seconds:
        doubt = _look(ctx, job, dict(past.get("doubt") or {}), ctx.limits.stack_gap_seconds)
        nodes = tuple(sorted(name for name, seen in doubt["nodes"].items() if seen["processes"][0]))
        yield ctx.critical(
            "JobIdle", "", f"run {job.run} has been ending for {now - since:.0f} s and does not end: its "
            f"processes on {', '.join(nodes[:8]) or 'a node that could not be seen'} do not go away",
            evidence=tuple(doubt["evidence"]), nodes=nodes or job.nodes, since=job.started_at,
        )  # fmt: skip


def _judge(
    ctx: Context, job: Job, tracker: ProgressTracker, doubt: dict[str, Any], silent: float
) -> Iterator[Finding]:
    limits = ctx.limits
    never = tracker.last_step is None
    total = tracker.total_steps or job.total_steps
    # at its last step it has nothing to gain from a restart, and a last save to lose
    done = tracker.phase == "finished" or (bool(total) and not never and (tracker.last_step or 0) >= total)
    limit = limits.minimum_silence_seconds
    if tracker.phase != "finished":
        limit = tracker.limit_seconds(limit, limits.factor, limits.startup_seconds)
    if silent > max(0.5 * limit, limit - 2 * limits.stack_gap_seconds):
        doubt = _look(ctx, job, doubt, limits.stack_gap_seconds)
    if silent <= limit:
        if never:
            raise ctx.skip(f"starting: no step yet after {silent:.0f} s")
        return
    if doubt["count"] < 2:
        return  # one look proves nothing, and a clock that was set forward looks like a silence
    found = from_data(Signs, doubt["signs"])
    hung = _hung(found, never, patient=silent <= _PATIENCE * limit, late=silent > 2 * limit)
    where = f"at step {tracker.last_step}" if not never else "before its first step"
    what = f"no new step for {silent:.0f} s (limit {limit:.0f} s)"
    lives = (*found.alive, *found.moves)
    evidence = (*(f"second sign: {s}" for s in hung), *(f"sign of life: {s}" for s in lives))
    about: dict[str, Any] = {
        "evidence": (*evidence, *doubt["evidence"]), "nodes": job.nodes, "since": job.started_at,
    }  # fmt: skip
    if (done and (found.is_idle or hung)) or (never and found.is_idle and not found.certain):
        why = "finished but has not ended" if done else "never made a step"
        yield ctx.critical("JobIdle", "", f"run {job.run} {why}: {what}", **about)
    elif hung and not done:
        text = f"run {job.run} is stuck {where}: {what}; {hung[0]}"
        yield ctx.critical("JobHung", "", text, remedy=Remedy.RESTART_APP, **about)
    elif silent > _PATIENCE * limit or not (lives or (done and _is_busy(found))):
        blind = "" if doubt["nodes"] else ": its nodes could not be looked at"
        text = f"run {job.run} is silent {where}: {what}; no second sign that it is stuck{blind}"
        yield ctx.warning("JobSilent", "", text, **about)


def _is_busy(found: Signs) -> bool:
    return found.cpu_share is not None and found.cpu_share >= IDLE_CPU_SHARE


def _hung(found: Signs, never: bool, *, patient: bool, late: bool) -> tuple[str, ...]:
    """The signs that make a hang of a silence; none while something else says that the run lives."""
    if found.alive:
        return tuple(sign for sign in found.certain if "state T" in sign)
    if found.moves and patient:
        return found.certain
    if never and not late:
        # loading, compiling and building an index stand at one line for long
        return found.certain
    return (*found.certain, *found.stuck)


def _look(ctx: Context, job: Job, doubt: dict[str, Any], gap_seconds: float) -> dict[str, Any]:
    """What is known of the job's nodes: from a look now, when the last one is old enough, else from that.

    Looks are dear: while a silence lasts they come at `gap_seconds` at first, then ever more rarely.
    """
    now, count = ctx.host.now(), int(doubt.get("count", 0))
    wait = gap_seconds * min(8.0, 2.0 ** max(0, count - _QUICK_LOOKS))
    age = now - float(doubt.get("at", 0.0))
    if doubt and 0 <= age < wait:
        return doubt
    levels = from_data(Levels, ctx.remember.get("levels", {}))
    looked = ctx.look()
    seen = sample(looked, levels)
    found = signs(doubt["nodes"], seen, age) if doubt and age > 0 else Signs()
    growing = _growth(ctx, job)
    if doubt and growing != doubt.get("files") and growing:
        found = dataclasses.replace(found, moves=(*found.moves, "its checkpoint folder changes"))
    for name, why in list(looked.unseen.items())[:8]:
        ctx.note(f"{name} could not be looked at: {why}")
    fresh = {
        "at": now, "count": count + 1, "nodes": seen, "signs": to_data(found), "files": growing,
        "evidence": _evidence(looked, found),
    }  # fmt: skip
    ctx.remember["doubt"] = fresh
    return fresh


def _evidence(looked: JobLook, found: Signs) -> list[str]:
    """What the nodes show, in a bounded number of lines."""
    stacks = [stack for node in looked.nodes for stack in node.stacks]
    lines = render(fold(stacks)).splitlines()
    if len(lines) > _STACK_LINES:
        lines = [*lines[:_STACK_LINES], f"and {len(lines) - _STACK_LINES} more groups of ranks"]
    missing = [f"{node.node}: {why}" for node in looked.nodes for why in node.unseen]
    missing += [f"{name} could not be looked at: {why}" for name, why in looked.unseen.items()]
    busy = "not known yet" if found.cpu_share is None else f"{found.cpu_share:.0%} of a core each"
    lines += [f"CPU use of its processes: {busy}", *missing[:_STACK_LINES]]
    return [line[:_LINE_CHARACTERS] for line in lines]


def _growth(ctx: Context, job: Job) -> list[Any]:
    """What changes in the checkpoint folder while something is saved; empty when there is nothing to see."""
    if not job.checkpoint_dir:
        return []
    folder = job.checkpoint_dir.rstrip("/")
    try:
        paths = [*ctx.host.glob(f"{folder}/*"), *ctx.host.glob(f"{folder}/*/*")]
        newest = sorted(paths)[-_FILES_AT_MOST:]
        infos = [_stat(ctx, path) for path in newest]
    except Unobservable as exc:
        ctx.note(f"nobody could see whether {folder} grows: {exc}")
        return []
    known = [info for info in infos if info]
    return [len(paths), sum(size for size, _ in known), max((at for _, at in known), default=0.0)]


def _stat(ctx: Context, path: str) -> tuple[int, float] | None:
    try:
        info = ctx.host.stat(path)
    except Absent:
        return None  # renamed since, as a save that ends does
    return (0 if info.is_dir else info.size_bytes), info.mtime
