"""How a run ended: well, by a person, its scheduler, our own hand, or a crash; and what its logs say.

The lines of the logs that tell of failures are remembered under `failures` (for `diagnose`), also while the
run still goes on: a run that hangs may have said why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.catalog.failures import FailureLine
from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Job, Remedy, from_data, to_data
from clustertools.sources.failures import FailureLook, error_files, read_failures

#: Enough of the log's end for a traceback.
TAIL_BYTES = 16384
TAIL_LINES = 12
#: Failure lines that are shown, beside the end of the log.
TOLD_LINES = 6
#: Logs of one run that are read; more than that is one log a rank, and most say the same.
LOGS_AT_MOST = 256

#: Ends that are nobody's fault, in words.
_NO_FAULT = {
    "person": "a person cancelled it; it is left alone",
    "preempted": "another job took its nodes; the scheduler begins it anew",
    "requeued": "it was put back into the queue; the scheduler begins it anew",
}


@check(
    stages={"job"},
    interval_seconds=0.0,
    codes={
        "JobCrashed": "the processes of a run ended with an error, and nobody asked them to",
        "JobTimeLimit": "a run reached its time limit",
        "JobHeld": "a run waits in the queue and is held: only a person lets it begin",
        "JobEndUnknown": "a run is over, and nobody can tell how it ended",
    },
    timeout_seconds=60.0,
)
def job_exit(ctx: Context) -> Iterator[Finding]:
    """Whether the run's processes ended, and how."""
    job = ctx.job
    if job is None:
        raise ctx.skip("no job to look at")
    if job.state == "pending" and job.held and job.ended_by != "us":
        yield _held(ctx, job)
        return
    if job.state in ("pending", "unknown"):
        raise ctx.skip(f"the job is {job.state}")
    lines = _failures(ctx, job)
    if job.state != "ended":
        _note_roots(ctx, lines)
        return
    if job.ended_by in _NO_FAULT:
        ctx.note(_NO_FAULT[job.ended_by])
        return
    if job.exit_code == 0 and job.ended_by in ("", "itself"):
        ctx.note("ended well")
        return
    if job.exit_reason.startswith("clustertools:") or job.ended_by == "us":
        raise ctx.skip(f"stopped by us ({job.exit_reason})")
    who = f"run {job.run} (attempt {job.attempt})"
    if job.ended_by == "time-limit":
        yield ctx.warning(
            "JobTimeLimit", "", f"{who} reached its time limit", nodes=job.nodes, since=job.started_at
        )  # fmt: skip
    elif _is_unknown(job) and not any(line.role == "root" for line in lines):
        why = job.exit_reason or "nobody saw how it ended"
        yield ctx.warning(
            "JobEndUnknown", "", f"{who} is over: {why}", evidence=_last_words(ctx, job.log_paths),
            nodes=job.nodes, since=job.started_at,
        )  # fmt: skip
    else:
        yield ctx.critical(
            "JobCrashed", "", f"{who} ended: {_how(job)}",
            evidence=(*_telling(lines), *_last_words(ctx, job.log_paths)), remedy=Remedy.RESTART_APP,
            nodes=job.nodes, since=job.started_at,
        )  # fmt: skip


def _held(ctx: Context, job: Job) -> Finding:
    why = job.reason or "no reason is given"
    return ctx.warning(
        "JobHeld", "", f"run {job.run} is held in the queue ({why}): only a person releases it"
    )


def _is_unknown(job: Job) -> bool:
    return job.ended_by == "lost" or (
        job.ended_by == "" and job.exit_code is None and not (job.exit_reason or job.reason)
    )


def _how(job: Job) -> str:
    if job.ended_by == "node-failed":
        failed = f" ({', '.join(job.failed_nodes)})" if job.failed_nodes else ""
        return f"a node of it failed{failed}"
    if job.ended_by == "out-of-memory":
        return "a host ran out of memory"
    if job.exit_code is None:
        return job.exit_reason or job.reason or "nobody saw how it ended"
    if job.exit_code < 0:
        return f"killed by signal {-job.exit_code}"
    return f"exit code {job.exit_code}"


# the failure lines of this attempt


def _failures(ctx: Context, job: Job) -> tuple[FailureLine, ...]:
    """What the logs say of failures in this attempt so far. What cannot be read is noted, and remembered."""
    same = ctx.past.get("attempt") == job.attempt
    logs: dict[str, Any] = {}
    found: list[FailureLine] = []
    for path in job.log_paths[:LOGS_AT_MOST]:
        try:
            look = _read(ctx, job, path, same)
        except Absent:
            continue
        except Unobservable as exc:
            # the end is told by the scheduler: the log says only why
            ctx.note(f"the log could not be read: {exc}")
            logs[path] = ctx.past.get("logs", {}).get(path, {})
            kept = ctx.past.get("failures", ()) if same else ()
            found += [from_data(FailureLine, item) for item in kept if item["path"] == path]
            continue
        logs[path] = look.memory
        found += look.lines
    if job.state == "ended" and job.exit_code != 0 and job.log_paths:
        found += _error_files(ctx, job)
    ctx.remember.update(attempt=job.attempt, logs=logs, failures=[to_data(line) for line in found])
    return tuple(found)


def _read(ctx: Context, job: Job, path: str, same: bool) -> FailureLook:
    """Read on in one log. What it holds of the attempts before is left out."""
    past: Mapping[str, Any] = ctx.past.get("logs", {}).get(path, {})
    # one that appeared since the last look has nothing of an attempt before
    mixed = not same and not _is_first(job) and (bool(past) or not ctx.past)
    if not same and past.get("reader"):
        past = {**past, "reader": {**past["reader"], "kept": []}}
    now, nodes, since = ctx.host.now(), job.nodes, job.started_at
    look = read_failures(ctx.host, path, past, now=now, nodes=nodes, since=since, mixed=mixed)
    while job.state == "ended" and look.behind_bytes:
        look = read_failures(ctx.host, path, look.memory, now=now, nodes=nodes, since=since)
    return look


def _is_first(job: Job) -> bool:
    """Whether no attempt was there before this one."""
    return job.attempt <= 1 and not any(a.requeues for a in job.attempts[-1:])


def _error_files(ctx: Context, job: Job) -> tuple[FailureLine, ...]:
    try:
        return error_files(ctx.host, job.log_paths[0], job.started_at, one_node=len(job.nodes) <= 1)
    except Unobservable as exc:
        ctx.note(f"torchrun's error files could not be read: {exc}")
        return ()


def _note_roots(ctx: Context, lines: tuple[FailureLine, ...]) -> None:
    for line in [line for line in lines if line.role == "root"][:TOLD_LINES]:
        ctx.note(f"{line.signature}: {line.text}")


def _telling(lines: tuple[FailureLine, ...]) -> tuple[str, ...]:
    """The lines that may be the cause first; a symptom only where there is nothing else."""
    roots = [line.text for line in lines if line.role == "root"]
    return tuple(dict.fromkeys(roots or [line.text for line in lines]))[:TOLD_LINES]


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
