"""How a run ended: well, by our own hand, or by a crash."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Remedy

#: Enough of the log's end for a traceback.
TAIL_BYTES = 16384
TAIL_LINES = 12


@check(
    stages={"job"},
    interval_seconds=0.0,
    codes={"JobCrashed": "the processes of a run ended with an error, and nobody asked them to"},
)
def job_exit(ctx: Context) -> Iterator[Finding]:
    """Whether the run's processes ended, and how."""
    job = ctx.job
    if job is None:
        raise ctx.skip("no job to look at")
    if job.state in ("pending", "unknown"):
        raise ctx.skip(f"the job is {job.state}")
    if job.state != "ended":
        return
    if job.exit_code == 0:
        ctx.note("ended well")
        return
    if job.exit_reason.startswith("clustertools:"):
        raise ctx.skip(f"stopped by us ({job.exit_reason})")
    if job.exit_code is None:
        how = job.exit_reason or "nobody saw how it ended"
    elif job.exit_code < 0:
        how = f"killed by signal {-job.exit_code}"
    else:
        how = f"exit code {job.exit_code}"
    yield ctx.critical(
        "JobCrashed", "", f"run {job.run} (attempt {job.attempt}) ended: {how}",
        evidence=_last_words(ctx, job.log_paths), remedy=Remedy.RESTART_APP,
        nodes=job.nodes, since=job.started_at,
    )  # fmt: skip


def _last_words(ctx: Context, paths: tuple[str, ...]) -> tuple[str, ...]:
    """The end of the first log that can be read."""
    for path in paths:
        try:
            size = ctx.host.stat(path).size_bytes
            text = ctx.host.read(path, max(0, size - TAIL_BYTES), TAIL_BYTES)
        except Absent:
            continue
        except Unobservable as exc:
            return (f"the log could not be read: {exc}",)
        return tuple(line[:300] for line in text.splitlines() if line.strip())[-TAIL_LINES:]
    return ()
