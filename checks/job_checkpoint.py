"""Whether the run could be resumed: its newest checkpoints are whole, recent, and named by the tracker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading
from clustertools.sources.checkpoints import (
    CheckpointListing,
    CheckpointReport,
    checkpoints,
    is_being_verified,
    last_good,
    verify_in_background,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_age_seconds`: two hours of work are lost when the run dies now; teams that publish their interval
    save every 0.5 h to 3 h (OPT-175B, BLOOM 176B chronicles). `deep` reads every byte that has a checksum:
    a checkpoint of 1.6 TB takes about 13 minutes at 2 GB/s, so it is off. `cache` is a folder (or a file) on
    the machine that looks; with it only new files are read, and what does not end in time is read on by a
    process of its own for `background_seconds`. `allow` names the site's own packages whose classes may be in
    a checkpoint.
    """

    max_age_seconds: float = 7200.0
    newest: int = 5
    deep: bool = False
    cache: str = ""
    allow: tuple[str, ...] = ()
    timeout_seconds: float = 20.0
    background_seconds: float = 3600.0


@check(
    limits=Limits,
    stages={"job"},
    timeout_seconds=45.0,
    interval_seconds=300.0,
    codes={
        "CheckpointTorn": "the newest checkpoint was refused, an older one is whole",
        "CheckpointNoneGood": "there are checkpoints and none of those looked at is whole",
        "CheckpointStale": "no checkpoint was saved for longer than the limit",
        "CheckpointTrackerBad": "the file that says where to resume from is empty or names a bad one",
    },
)
def job_checkpoint(ctx: Context) -> Iterator[Finding | Reading]:
    """Torn, missing or old checkpoints of the run, and a tracker that would resume it from a bad one."""
    if ctx.job is None or not ctx.job.checkpoint_dir:
        raise ctx.skip("no checkpoint folder is known for this run")
    folder, limits = ctx.job.checkpoint_dir, ctx.limits
    try:
        listing = checkpoints(
            ctx.host,
            folder,
            deep=limits.deep,
            timeout_seconds=limits.timeout_seconds,
            newest=limits.newest,
            allow=limits.allow,
            cache=limits.cache,
        )
    except Absent:
        ctx.note(f"{folder} does not exist (yet)")
        return
    if not listing.reports:
        ctx.note(f"no checkpoint in {folder} (yet)")
        return
    good = last_good(listing.reports)
    if good is not None and good.step is not None:
        yield ctx.reading("checkpoint_last_good_step", good.step)
    yield from _refused(ctx, listing, good)
    _note_saves(ctx, listing.reports)
    yield from _age(ctx, listing.reports, good)
    tracker = listing.tracker
    if tracker is not None and not tracker.ok:
        advice = f"the last good one is {good.name}" if good else "no good one is known"
        yield ctx.warning("CheckpointTrackerBad", "", f"{tracker.reason}; {advice}", evidence=(tracker.path,))


def _refused(ctx: Context, listing: CheckpointListing, good: CheckpointReport | None) -> Iterator[Finding]:
    reports = listing.reports
    newer = reports if good is None else reports[: reports.index(good)]
    # one that is being written is neither good nor a fault; a slow save may touch nothing for minutes, and is
    # still another one than at the last look
    settled = [r for r in newer if r.verdict != "in_progress" and not _has_grown(ctx, r)]
    refused = [r for r in settled if r.verdict != "unknown"]
    evidence = tuple(f"{r.name}: {r.verdict}: {r.reason}"[:400] for r in newer[:10])
    for report in settled:
        if report.late and ctx.limits.cache:
            _read_on(ctx, report)
        elif report.verdict == "unknown":
            ctx.unseen(f"{report.name}: {report.reason}")
    if not refused:
        return
    newest = refused[0]
    if good is not None:
        lost = f", {newest.step - good.step} steps older" if newest.step and good.step else ""
        yield ctx.warning(
            "CheckpointTorn",
            "",
            f"{newest.name} is {newest.verdict}: {newest.reason}; the last good one is {good.name}{lost}",
            evidence=evidence,
        )
    elif len(settled) == len(refused):
        beyond = f" ({listing.not_looked_at} older ones were not looked at)" if listing.not_looked_at else ""
        yield ctx.critical(
            "CheckpointNoneGood",
            "",
            f"none of {len(settled)} checkpoints is whole{beyond}; newest: {newest.reason}",
            evidence=evidence,
        )


def _has_grown(ctx: Context, report: CheckpointReport) -> bool:
    before = ctx.past.get("seen", {}).get(report.path)
    return before is not None and before != _shape(report)


def _shape(report: CheckpointReport) -> list[float]:
    return [report.size_bytes, report.mtime, report.files]


def _note_saves(ctx: Context, reports: tuple[CheckpointReport, ...]) -> None:
    """Say which saves are under way, and keep what each looks like for the next look."""
    for report in reports:
        if report.verdict == "in_progress":
            ctx.note(f"being saved: {report.name} ({report.reason})"[:300])
        elif report.verdict != "good" and not report.late and _has_grown(ctx, report):
            ctx.note(f"being saved: {report.name} changed since the last look ({report.reason})"[:300])
    ctx.remember["seen"] = {r.path: _shape(r) for r in reports if r.verdict != "good" and not r.late}


def _read_on(ctx: Context, report: CheckpointReport) -> None:
    """Let a process of its own read what did not end in time; the next look finds it in the cache."""
    folder, limits = (ctx.job.checkpoint_dir if ctx.job else ""), ctx.limits
    ctx.note(f"reading every byte of {report.name} in the background")
    if not is_being_verified(folder, limits.cache):
        verify_in_background(
            ctx.host, folder, limits.cache, seconds=limits.background_seconds, newest=limits.newest,
            allow=limits.allow,
        )  # fmt: skip


def _age(
    ctx: Context, reports: tuple[CheckpointReport, ...], good: CheckpointReport | None
) -> Iterator[Finding | Reading]:
    job, now, limit = ctx.job, ctx.host.now(), ctx.limits.max_age_seconds
    assert job is not None
    if good is None:
        return
    age = max(0.0, now - good.mtime)
    yield ctx.reading("checkpoint_age_seconds", age)
    # a run that was just restarted has had no time to save; one that is saving now is not stale
    counts = [r.mtime for r in reports if r is good or r.late or r.verdict == "in_progress"]
    quiet = now - max(job.started_at, *counts)
    if job.state == "running" and quiet > limit:
        yield ctx.warning(
            "CheckpointStale",
            "",
            f"the last good checkpoint, {good.name}, is {age / 3600:.1f} h old "
            f"(limit {limit / 3600:.1f} h): that much work would be lost",
        )
