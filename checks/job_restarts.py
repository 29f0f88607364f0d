"""Restarts of a run that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, starts_without_progress


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
    if lost >= ctx.limits.without_progress:
        yield ctx.critical(
            "JobCrashLoop", "", f"the last {lost} starts of {job.run} made no new step: not started again",
            evidence=tuple(f"attempt {a.number}: {a.end}" for a in job.attempts[-lost:]),
            nodes=job.nodes,
        )  # fmt: skip
