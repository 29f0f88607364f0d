"""The starts of a run as Slurm tells them: which incarnation of which job runs, and how the last ended. Pure.

One incarnation is one job number and one count of restarts. What others begin (a requeue by Slurm after a
node failed, a person's `scontrol requeue`, the next task of a chain) is an attempt like any other.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from clustertools.model import Attempt, EndedBy
from clustertools.schedulers.slurm_runs import has_begun
from clustertools.schedulers.slurm_states import (
    ended_by,
    exit_code,
    held_by_us,
    incarnation,
    is_ended,
    mark_of,
    state_of,
)
from clustertools.sources.slurm_queue import Row


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended that is no longer in the queue, or that began anew since."""

    by: EndedBy
    why: str
    exit_code: int | None = None
    at: float = 0.0
    failed_nodes: tuple[str, ...] = ()


def end_of(row: Row, now: float) -> End:
    """How the job of a row that is over ended."""
    by, why = ended_by(row, now)
    return End(by, why, exit_code(row, now), row.ends_at if is_ended(row) else 0.0)


def followed(
    run: str, known: tuple[Attempt, ...], row: Row, nodes: tuple[str, ...], before: End, now: float
) -> tuple[Attempt, ...]:
    """The known attempts, brought up to what the row tells: the newest one filled in, or one more.

    `before` says how the newest known one ended, for when the row tells of a later one.
    """
    restarts = incarnation(row, now)
    running = has_begun(row) and state_of(row, now) == "running"
    began = row.started_at if running or is_ended(row) else 0.0
    new = Attempt(
        run, 1, f"{row.id}.{restarts}", row.id, began, requeues=restarts, nodes=nodes if running else ()
    )  # fmt: skip
    if not known:
        return () if row.waiting_tasks else (new,)
    last = known[-1]
    if is_same(last, row, now):
        kept = last.nodes if not running or not nodes else nodes
        return (
            *known[:-1],
            dataclasses.replace(
                last, job_id=row.id, requeues=restarts, nodes=kept, started_at=began or last.started_at
            ),
        )
    before_it = next((attempt for attempt in reversed(known) if attempt.job_id), None)
    if not last.job_id:
        told = before_it is None or is_same(before_it, row, now) or held_by_us(row, now)
        if told or not (has_begun(row) or is_ended(row)):
            # decided, and not begun or not to be: the row is that of a job before it, or of one that waits
            return known
        if row.task is not None and not last.end:
            # the next task of a chain is what was decided, and begins by itself
            started = dataclasses.replace(new, number=last.number, token=last.token)
            started = dataclasses.replace(started, resume_step=last.resume_step, excluded=last.excluded)
            return (*known[:-1], dataclasses.replace(started, resume_path=last.resume_path))
    if not last.end:
        last = dataclasses.replace(
            last, end=before.why or _coded(before.exit_code), ended_by=before.by, ended_at=before.at or now,
            blamed=last.blamed or before.failed_nodes,
        )  # fmt: skip
    if row.id != last.job_id and not has_begun(row) and not is_ended(row):
        return (*known[:-1], last)  # another job that waits has begun nothing yet
    return (*known[:-1], last, dataclasses.replace(new, number=last.number + 1))


def _coded(code: int | None) -> str:
    return "it ended" if code is None else f"exit code {code}" if code >= 0 else f"killed by signal {-code}"


def is_same(attempt: Attempt, row: Row, now: float) -> bool:
    """Whether the row tells of this attempt: the same incarnation, or one that carries its token."""
    mark = mark_of(row)
    if mark is not None and mark.token == attempt.token and mark.restarts == incarnation(row, now):
        return True
    # a count that went back is slurmctld's state of before its own end, not another start
    return attempt.job_id == row.id and attempt.requeues >= incarnation(row, now)
