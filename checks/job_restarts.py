"""Restarts of a run that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Attempt, Finding, Reading, starts_without_progress


@dataclass(frozen=True)
class Limits:
    """`without_progress`: NVIDIA's resiliency extension stops after 3 cycles without a newer checkpoint;
    Meta's RSC paper counts a crash loop of 35 requeues among its largest single wastes."""

    without_progress: int = 3


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    codes={"JobCrashLoop": "start after start of a run made no new step"},
)
def job_restarts(ctx: Context) -> Iterator[Finding | Reading]:
    """How often the run was started, and whether the starts still lead to new steps."""
    job = ctx.job
    if job is None or not job.attempts:
        raise ctx.skip("no starts are known")
    lost = starts_without_progress(job.attempts)
    yield ctx.reading("job_starts_total", len(job.attempts))
    yield ctx.reading("job_starts_without_progress", lost)
    unknown = _unknown(job.attempts)
    if unknown:
        ctx.note(f"of {unknown} of the starts nobody knows whether they made a step: they do not count")
    if lost >= ctx.limits.without_progress:
        vain = [a for a in job.attempts if a.end and a.new_steps == 0][-lost:]
        yield ctx.critical(
            "JobCrashLoop", "",
            f"the last {lost} starts of {job.run} made no new step{_in_common(vain)}: not started again",
            evidence=tuple(_line(a) for a in vain), nodes=job.nodes,
        )  # fmt: skip


def _unknown(attempts: tuple[Attempt, ...]) -> int:
    """Ended starts since the last that trained of which nobody knows a step."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.new_steps:
            break
        count += bool(attempt.end) and attempt.new_steps is None
    return count


def _in_common(vain: list[Attempt]) -> str:
    """What all of them share: the first thing that a person would ask."""
    shared = []
    causes = {a.cause for a in vain}
    ends = {a.end for a in vain}
    if len(causes) == 1 and "" not in causes:
        shared.append(f"each time {vain[0].cause}")
    elif len(ends) == 1:
        shared.append(f"each time {vain[0].end}")
    steps = {a.resume_step for a in vain}
    if len(steps) == 1 and None not in steps:
        shared.append(f"from step {vain[0].resume_step}")
    nodes = set(vain[0].nodes).intersection(*(a.nodes for a in vain))
    # a run that has the same nodes each time says nothing about one of them
    if 0 < len(nodes) <= 2 and any(set(a.nodes) != nodes for a in vain):
        shared.append(f"always with {', '.join(sorted(nodes))}")
    return f" ({', '.join(shared)})" if shared else ""


def _line(attempt: Attempt) -> str:
    began = "" if attempt.resume_step is None else f" from step {attempt.resume_step}"
    blamed = f"; blamed: {', '.join(attempt.blamed[:8])}" if attempt.blamed else ""
    return f"attempt {attempt.number}{began}: {attempt.cause or attempt.end}{blamed}"[:400]
