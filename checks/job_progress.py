"""Whether a run still trains: two independent questions, each with an honest "do not know".

    steps advance?   working?    verdict
    yes              -           healthy
    no               stuck       JobHung: silent past the learned limit, and a second sign
    no               no          JobIdle: never made a step, or finished without ending
    no               yes         JobSilent: silent past the limit, no second sign; nobody acts on it
    unknown          any         UNKNOWN: nobody could read the log

The second signs: a rank stopped by a signal or stuck in the kernel, or every rank at the same line in two
looks some time apart. GPU utilisation is no sign: it stays at 100 % while a collective spins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Job, Reading, Remedy, from_data, to_data
from clustertools.sources.processes import Process, processes, ranks, tree
from clustertools.sources.stacks import Stack, StackReport, fold, render, same, stacks
from clustertools.sources.training_log import follow
from clustertools.sources.training_progress import ProgressTracker
from clustertools.sources.training_values import Event, Point

#: A core that is busy less than this is idle: a waiting rank still polls now and then.
IDLE_CPU_SHARE = 0.05


@dataclass(frozen=True)
class Limits:
    """When silence is too long.

    `factor` times the longest interval seen in the phase (NVIDIA's resiliency extension: 5), and at least
    `minimum_silence_seconds` (NCCL's own watchdog waits 600 s; half of that leaves time to take its dump).
    `startup_seconds` is for the first step: DLRover allows 120 min for it, most runs need a few.
    `stack_gap_seconds` is the time between two equal stacks that make a sign (ByteRobust and MegaScale look
    at a scale of minutes). A look later than `longest_gap_seconds` after the one before proves nothing about
    the time between: the watchdog itself was away.
    """

    minimum_silence_seconds: float = 300.0
    factor: float = 5.0
    startup_seconds: float = 1800.0
    stack_gap_seconds: float = 60.0
    longest_gap_seconds: float = 600.0


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    codes={
        "JobHung": "a run makes no steps and a second sign says that it is stuck",
        "JobIdle": "a run holds its machines and has nothing to do: no step ever, or finished and not ended",
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
    files, news = _read(ctx, job, tracker, ctx.past.get("files", {}), now)
    silent = 0.0 if news else _silent_seconds(ctx, past, now)
    ctx.remember.update(
        attempt=job.attempt, files=files, tracker=tracker.state(), looked_at=now, silent_seconds=silent
    )
    yield from _readings(ctx, tracker, silent)
    if tracker.last_step is None and files and _began_in_vain(job, ctx.limits.startup_seconds):
        yield ctx.reading("job_last_step", (job.attempts[-1].resume_step if job.attempts else 0) or 0)
    if job.state == "ended":
        raise ctx.skip("the job has ended")
    if job.exit_reason.startswith("clustertools:"):
        raise ctx.skip("the job is being stopped by us")
    yield from _judge(ctx, job, tracker, past, silent)


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


def _read(
    ctx: Context, job: Job, tracker: ProgressTracker, files: Mapping[str, Any], now: float
) -> tuple[dict[str, Mapping[str, Any]], bool]:
    """Take in what the logs say since the last look; whether there was news.

    Raises Unobservable when no log could be read, or when one is written to and no step is recognised in it.
    """
    kept: dict[str, Mapping[str, Any]] = {}
    items: list[Point | Event] = []
    paths = [p for p in (job.metrics_path, *job.log_paths) if p]
    if not paths:
        raise Unobservable(f"no log of {job.run} is known: say --log or --metrics")
    age = now - job.started_at
    unknown = ""
    for path in paths:
        try:
            seen = follow(ctx.host, path, files.get(path, {}))
        except Absent:
            continue
        kept[path] = seen.memory
        items += seen.items
        if seen.note:
            ctx.note(seen.note)
        if seen.grew and seen.format is None:
            unknown = path
    tracker.add(items, now)
    if not kept and job.state != "ended" and age > ctx.limits.minimum_silence_seconds:
        raise Unobservable(f"{paths[0]} does not exist {age:.0f} s after the start")
    if unknown and tracker.last_step is None and age > ctx.limits.startup_seconds:
        raise Unobservable(f"{unknown} is written to, but no step is recognised in it: say --metrics")
    return kept, bool(items)


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


def _began_in_vain(job: Job, startup_seconds: float) -> bool:
    """Whether a start without a step in its log is known to have made none.

    One that lasted longer than a start may take can have trained in a log that we do not understand; one that
    a person stopped did not fail.
    """
    by_person = job.exit_reason.startswith(("clustertools: signal", "clustertools: asked by a person"))
    ended_at = job.ended_at or job.started_at
    return job.state == "ended" and not by_person and ended_at - job.started_at <= startup_seconds


def _judge(
    ctx: Context, job: Job, tracker: ProgressTracker, past: Mapping[str, Any], silent: float
) -> Iterator[Finding]:
    limits = ctx.limits
    never = tracker.last_step is None
    total = tracker.total_steps or job.total_steps
    # at its last step it has nothing to gain from a restart, and a last save to lose
    done = tracker.phase == "finished" or (bool(total) and not never and (tracker.last_step or 0) >= total)
    limit = limits.minimum_silence_seconds
    if tracker.phase != "finished":
        limit = tracker.limit_seconds(limit, limits.factor, limits.startup_seconds)
    seen = processes(ctx.host)
    inside = {pid: seen[pid] for pid in tree(seen, job.pids) if pid in seen}
    ctx.remember["cpu"] = {str(p.pid): [p.start_ticks, p.cpu_seconds] for p in inside.values()}
    if never and silent <= limit:
        raise ctx.skip(f"starting: no step yet after {silent:.0f} s")
    if silent <= 0.5 * limit:
        return
    by_rank = ranks(ctx.host, job.pids, seen) or dict(enumerate(job.pids))
    report, old = _sample(ctx, by_rank, past)
    if silent <= limit:
        return
    signs = _signs(inside, report, old)
    busy = _busy_share(past, inside, ctx.host.now() - float(past.get("looked_at", 0.0)))
    what = f"no new step for {silent:.0f} s (limit {limit:.0f} s)"
    where = f"at step {tracker.last_step}" if not never else "before its first step"
    evidence = (
        *(f"second sign: {sign}" for sign in signs),
        *render(fold(report.stacks), report.unseen).splitlines(),
        "CPU use: " + ("not known yet" if busy is None else f"{busy:.0%} of a core in the busiest process"),
    )
    if done or (never and busy is not None and busy < IDLE_CPU_SHARE):
        why = "finished but has not ended" if done else "never made a step"
        yield ctx.critical(
            "JobIdle", "", f"run {job.run} {why}: {what}", evidence=evidence,
            nodes=job.nodes, since=job.started_at,
        )  # fmt: skip
    elif signs:
        yield ctx.critical(
            "JobHung", "", f"run {job.run} is stuck {where}: {what}; {signs[0]}",
            evidence=evidence, remedy=Remedy.RESTART_APP, nodes=job.nodes, since=job.started_at,
        )  # fmt: skip
    else:
        yield ctx.warning(
            "JobSilent", "", f"run {job.run} is silent {where}: {what}; no second sign that it is stuck",
            evidence=evidence, nodes=job.nodes, since=job.started_at,
        )  # fmt: skip


def _sample(
    ctx: Context, by_rank: Mapping[int, int], past: Mapping[str, Any]
) -> tuple[StackReport, list[Stack]]:
    """The stacks now, and those of the last sample that is old enough to compare with."""
    try:
        report = stacks(ctx.host, by_rank)
    except Unobservable as exc:
        report = StackReport((), dict.fromkeys(by_rank, str(exc)))
    kept = past.get("sample") or {"at": ctx.host.now(), "stacks": to_data(report.stacks)}
    old = [from_data(Stack, item) for item in kept["stacks"]]
    ripe = ctx.host.now() - float(kept["at"]) >= ctx.limits.stack_gap_seconds
    if ripe and not same(old, report.stacks):
        # it moved: begin again with what is seen now
        kept, old = {"at": ctx.host.now(), "stacks": to_data(report.stacks)}, []
    ctx.remember["sample"] = kept
    return report, old if ripe else []


def _signs(inside: Mapping[int, Process], report: StackReport, old: list[Stack]) -> list[str]:
    """Second signs of being stuck, the most telling first."""
    signs = []
    names = {stack.pid: f"rank {stack.rank}" for stack in report.stacks}
    for pid, process in sorted(inside.items()):
        if process.is_stopped:
            signs.append(f"{names.get(pid, process.command)} (pid {pid}) is stopped by a signal, state T")
        elif process.state == "D" and any(s.pid == pid and s.state == "D" for s in old):
            signs.append(f"{names.get(pid, process.command)} (pid {pid}) hangs in the kernel, state D")
    if old and same(old, report.stacks):
        signs.append(f"all {len(old)} ranks stand at the same line as in the sample before")
    return signs


def _busy_share(past: Mapping[str, Any], inside: Mapping[int, Process], seconds: float) -> float | None:
    """CPU use per process since the last look, as a share of one core; None when there was no such look."""
    before = past.get("cpu")
    if not before or seconds <= 0:
        return None
    used = [
        p.cpu_seconds - before[str(pid)][1]
        for pid, p in inside.items()
        if before.get(str(pid), [None])[0] == p.start_ticks
    ]
    return max(used) / seconds if used else None
