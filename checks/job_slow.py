"""Whether a run became slower than it was, and which node it waits for.

All ranks wait for the slowest, so one bad node slows the whole run and shows in its step time: BLOOM-176B
went from 105.2 to 111.1 s a step, 5.6 %, without any change of the loss. That it is slow the log tells; which
node it is, only a look at all of them can, and sometimes not even that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.model import Finding, Job, Reading
from clustertools.sources.job_peers import Outlier, outliers, ports
from clustertools.sources.step_times import Slow, StepTimes
from clustertools.sources.training_run import read_run

#: From this confidence on a node is blamed, when two looks in a row say so (as `diagnose.CERTAIN`).
_BLAMED = 0.7


@dataclass(frozen=True)
class Limits:
    """`slower_ratio`: 5 %, as the BLOOM case has it; the swing of a day's temperature is 1-2 %. It is raised
    to six times the run's own noise. `stretches` in a row, each of at least 2 minutes, 3 lines and 10 steps,
    must be slower, and `known_stretches` must be known at the usual pace. The nodes are looked at every
    `look_seconds` while it lasts. A start that was slower from its first step on is taken for what its owner
    wanted after `accept_seconds`.
    """

    slower_ratio: float = 0.05
    stretches: int = 3
    known_stretches: int = 4
    look_seconds: float = 900.0
    accept_seconds: float = 6 * 3600.0


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=60.0,
    timeout_seconds=60.0,
    codes={"JobSlow": "the steps of a run take longer than they did before"},
)
def job_slow(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether the steps of a run became slower, and which of its nodes differs from the others."""
    job, limits = ctx.job, ctx.limits
    if job is None or job.state != "running":
        raise ctx.skip(f"the job is {job.state if job else 'not known'}")
    news = read_run(ctx.host, job, ctx.past.get("logs", {}))
    times = _remembered(ctx.past)
    if ctx.past.get("attempt") != job.attempt:
        times.begin()
    times.add(news.items, len(job.nodes), limits.slower_ratio)
    slow = times.slow(limits.stretches, limits.known_stretches)
    since = float(ctx.past.get("since", ctx.host.now())) if slow else 0.0
    if slow and slow.since_start and ctx.host.now() - since > limits.accept_seconds:
        times.accept()
        slow = None
    ctx.remember.update(logs=news.memory, times=times.state(), attempt=job.attempt)
    if slow is None:
        return
    ctx.remember["since"] = since
    yield ctx.reading("job_slower_ratio", slow.ratio)
    seen = _look(ctx)
    named = [Outlier(name, confidence, tuple(why)) for name, confidence, why in seen["outliers"]]
    blamed = tuple(o.node for o in named if o.confidence >= _BLAMED)
    text = f"run {job.run} is {_percent(slow)} slower than it was: {_pace(slow)}; {_who(named, job)}"
    finding = ctx.warning(
        "JobSlow", "", text,
        evidence=tuple(_evidence(slow, named, seen, job)), nodes=blamed or job.nodes, since=job.started_at,
    )  # fmt: skip
    yield dataclasses.replace(finding, blamed=blamed)


def _remembered(past: Mapping[str, Any]) -> StepTimes:
    try:
        return StepTimes(past.get("times"))
    except (TypeError, ValueError, IndexError, AttributeError):
        return StepTimes()  # written by another version: the pace is learned anew


def _look(ctx: Context) -> dict[str, Any]:
    """Who stands out, from a look now when the last one is old; sure is only what two looks in a row say."""
    now, past = ctx.host.now(), ctx.past.get("seen") or {}
    if past and 0 <= now - past["at"] < ctx.limits.look_seconds:
        ctx.remember["seen"] = past
        return dict(past)
    looked = ctx.look()
    before = {name: confidence for name, confidence, _ in past.get("found", ())}
    found = [[o.node, o.confidence, list(o.why)] for o in outliers(past.get("ports", {}), looked)]
    told = [
        [name, min(c, before.get(name, 0.5)), why] for name, c, why in found if name in before or not past
    ]
    seen = {
        "at": now, "ports": ports(looked), "found": found[:8], "outliers": told[:8],
        "count": len(looked.nodes), "unseen": dict(list(looked.unseen.items())[:8]),
    }  # fmt: skip
    ctx.remember["seen"] = seen
    return seen


def _percent(slow: Slow) -> str:
    return f"{100 * (slow.ratio - 1):.1f} %"


def _pace(slow: Slow) -> str:
    if slow.usual_seconds < 1e-3:
        return f"{1 / slow.now_seconds:,.0f} tokens/s instead of {1 / slow.usual_seconds:,.0f}"
    return f"{slow.now_seconds:.4g} s a step instead of {slow.usual_seconds:.4g}"


def _who(named: list[Outlier], job: Job) -> str:
    if named:
        sure = "" if named[0].confidence >= _BLAMED else " perhaps"
        return f"{named[0].node} differs{sure}: {named[0].why[0]}"
    if len(job.nodes) < 2:
        return "it has one node, so nothing can be compared"
    return f"none of its {len(job.nodes)} nodes stands out"


def _evidence(slow: Slow, named: list[Outlier], seen: Mapping[str, Any], job: Job) -> Iterator[str]:
    start = ", from the first steps of this start on" if slow.since_start else ""
    yield f"{slow.stretches} stretches in a row{start}; at its usual pace they differ by {slow.noise:.1%}"
    for outlier in named:
        yield f"{outlier.node} ({outlier.confidence:.0%} sure): {'; '.join(outlier.why)}"
    yield f"{seen['count']} of {len(job.nodes)} nodes were looked at"
    for name, why in seen["unseen"].items():
        yield f"{name} could not be looked at: {why}"
    if len(job.nodes) > 1 and not any(o.confidence >= _BLAMED for o in named):
        half = (len(job.nodes) + 1) // 2
        yield (
            f"what would find it: the same job for some steps on {half} of its nodes, then on the others; "
            "or `clustertools preflight` over them, which compares them in pairs"
        )
