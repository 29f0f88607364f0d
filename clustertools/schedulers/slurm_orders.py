"""What is done to jobs, and by which command: hold, let go, end, submit. Each order may be given twice.

A batch job that may be requeued is ended by `scontrol requeuehold`: there is no moment in which a second copy
could start, and its number, options and script stay. What we do is written at the job first (slurm_states),
where it is found again by whoever comes after us.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import Completed, Host
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec
from clustertools.schedulers.slurm_runs import Place
from clustertools.schedulers.slurm_states import (
    Mark,
    held_by_us,
    is_ended,
    is_held,
    mark_of,
    state_of,
    unmarked,
)
from clustertools.sources.slurm_queue import Queue, Row, answer, node_names, read_queue, slurm_command

#: scontrol and scancel answer within milliseconds, or wait for MessageTimeout (10 s, slurm.conf(5)).
ORDER_SECONDS = 12.0

# slurmctld is away, or busy: nobody knows whether the order arrived
_AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Zero Bytes were transmitted|"
    r"slurm_receive_msg|Communication connection failure|Transport endpoint|Resource temporarily unavailable|"
    r"standby mode|Slurm backup controller",
    re.IGNORECASE,
)
_GONE = re.compile(r"Invalid job id|already finished|already completed|already completing", re.IGNORECASE)
_DENIED = re.compile(r"Access/permission denied|Invalid user id", re.IGNORECASE)


def scontrol(host: Host, *words: str) -> None:
    """Give one order. Raises ActionFailed when slurmctld refuses, Unobservable when it does not answer."""
    done = host.run(*slurm_command("scontrol", *words), timeout_seconds=ORDER_SECONDS)
    if done.returncode:
        raise refused(done, words)


def refused(done: Completed, words: Sequence[str]) -> Exception:
    """What it means that a command failed: slurmctld said no, or nobody knows whether it heard."""
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1][:200]
    order = shlex.join(words[:3])
    if _AWAY.search(done.stderr):
        return Unobservable(f"slurmctld did not answer `{order}`: {said}")
    if _DENIED.search(said):
        said += "; clustertools needs to be the job's owner, or an operator of Slurm (docs/slurm.md)"
    return ActionFailed(f"Slurm refused `{order}`: {said}")


def stop(host: Host, spec: RunSpec, place: Place, now: float, *, requeue: bool = True) -> None:
    """End a job: hold it where it can be requeued, else cancel it. Raises ActionFailed, Unobservable."""
    if place.row.waiting_tasks:
        raise ActionFailed(f"{spec.name} waits for the next task of array {place.row.id}: nothing of it runs")
    # what the last look told may be half a minute old: an ended job must not be held, nor be ended twice
    fresh = read_queue(host, (place.row.target,)).rows
    row = next((row for row in fresh if row.id == place.row.id), None)
    if row is None or is_ended(row) or held_by_us(row, now) or state_of(row, now) == "completing":
        return
    _write_mark(host, row, Mark("stop", row.restarts))
    if requeue and may_requeue(spec, row) and state_of(row, now) == "running":
        try:
            scontrol(host, "requeuehold", row.target)
            return
        except ActionFailed as exc:
            # a site forbids it, or the job was told --no-requeue since
            if "disabled" not in str(exc):
                raise
    scancel(host, row.target)


def scancel(host: Host, job_id: str) -> None:
    """Cancel a job; one that is over already is no failure."""
    done = host.run(*slurm_command("scancel", job_id), timeout_seconds=ORDER_SECONDS)
    if (done.returncode or _AWAY.search(done.stderr)) and not _GONE.search(done.stderr):
        raise refused(done, ("scancel", job_id))


def may_requeue(spec: RunSpec, row: Row) -> bool:
    """Whether the job is begun anew by itself: it has a script, Slurm allows it, and the config wants it."""
    return row.is_batch and row.may_requeue and spec.again != "submit"


def _write_mark(host: Host, row: Row, mark: Mark, *more: str) -> None:
    """Write a mark at the job, together with other changes, and keep what people wrote there.

    In the administrator's comment where we may, else in the job's own, which is its owner's to change.
    """
    if mark_of(row) == mark and not more:
        return
    try:
        scontrol(
            host, "update", f"JobId={row.target}", f"AdminComment={marked(row.admin_comment, mark)}", *more
        )
    except ActionFailed as exc:
        if not _DENIED.search(str(exc)):
            raise
        scontrol(host, "update", f"JobId={row.target}", f"Comment={marked(row.comment, mark)}", *more)


def marked(comment: str, mark: Mark) -> str:
    """A comment with our mark after what people wrote."""
    return f"{unmarked(comment)} {mark}".strip()


def begin_again(
    host: Host, place: Place, attempt: Attempt, lapsed: Collection[str], settle_seconds: float, queue: Queue
) -> str:
    """Let a job that is over start once more, without the excluded nodes; its number stays.

    `lapsed`: nodes that an earlier start of ours was kept off, and that it may use again.

    Raises Unobservable while its last incarnation is still on its way out, ActionFailed when it cannot be.
    """
    row, now = place.row, queue.at
    if state_of(row, now) == "completing":
        # what is set now would be undone when the end is complete
        raise Unobservable(f"job {row.id} is still completing")
    exclusion = _exclusion(
        host, row, attempt.excluded, lapsed
    )  # before anything is changed: it may be refused
    if is_ended(row):
        scontrol(host, "requeuehold", row.target)
        restarts = row.restarts + 1
    elif held_by_us(row, now):
        restarts = row.restarts
    else:
        held = f"held by somebody else ({row.reason})" if is_held(row) else row.state.lower()
        raise ActionFailed(f"job {row.id} is {held}: it is not started a second time")
    # by itself Slurm waits for the life of a job's credential, 120 s by default, before a restart
    when = f"StartTime=now+{_settled(settle_seconds)}"
    mark = Mark("start", restarts, attempt.token)
    _write_mark(host, row, mark, when, *exclusion)
    for other in place.others:
        exclude(host, other, attempt.excluded, lapsed)
    scontrol(host, "release", row.target)
    return row.id


def exclude(host: Host, row: Row, excluded: Sequence[str], lapsed: Collection[str] = ()) -> None:
    """Keep what waits off some nodes, beside those that its owner excluded. Raises ActionFailed."""
    words = _exclusion(host, row, excluded, lapsed)
    if words:
        scontrol(host, "update", f"JobId={row.target}", *words)


def let_go(host: Host, row: Row) -> str:
    """The end of a start that broke off: everything is written at the job, it is only still held."""
    scontrol(host, "release", row.target)
    return row.id


def _exclusion(
    host: Host, row: Row, excluded: Sequence[str], lapsed: Collection[str] = ()
) -> tuple[str, ...]:
    """The words that exclude nodes from a job beside those that its owner excluded already.

    `lapsed` are nodes that an earlier start of ours was kept off, and this one need not be.
    """
    if not excluded and not lapsed:
        return ()
    own = own_exclusions(host, row)
    names = dict.fromkeys([*(node for node in own if node not in lapsed), *excluded])
    if set(names) == set(own):
        return ()
    left = set(_partition_nodes(host, row)) - names.keys()
    if len(left) < row.node_count and excluded:
        raise ActionFailed(
            f"without {', '.join(excluded)} partition {row.partition} has {len(left)} nodes left for job "
            f"{row.id}, which needs {row.node_count}"
        )
    return (f"ExcNodeList={','.join(names)}",)


def own_exclusions(host: Host, row: Row) -> tuple[str, ...]:
    """The nodes that a job is kept off already; none when slurmctld has forgotten it."""
    options = ("--noheader", "--local", "--states=all", f"--jobs={row.target}", "--format=%x")
    try:
        said = answer(host, "squeue", *options, timeout_seconds=ORDER_SECONDS).stdout
    except Unobservable as exc:
        if _GONE.search(str(exc)):
            return ()
        raise
    folded = (word for word in said.split() if word != "(null)")
    return tuple(dict.fromkeys(node for names in folded for node in node_names(host, names)))


def _partition_nodes(host: Host, row: Row) -> tuple[str, ...]:
    options = ("--noheader", "--local", "--Node", "--format=%N", f"--partition={row.partition}")
    said = answer(host, "sinfo", *options, timeout_seconds=ORDER_SECONDS).stdout
    return tuple(dict.fromkeys(said.split()))


def previewed(
    kind: str, spec: RunSpec, row: Row | None, excluded: Sequence[str], settle_seconds: float
) -> list[list[str]]:
    """The commands of a step on a job, as they would be given; JOB where its number is not known."""
    job_id = row.target if row else "JOB"
    exclude = [f"ExcNodeList={','.join(excluded)}"] if excluded else []
    if kind == "exclude":
        return [["scontrol", "update", f"JobId={job_id}", *exclude]]
    again = row is None or may_requeue(spec, row)
    end = [["scontrol", "requeuehold", job_id] if again else ["scancel", job_id]]
    if kind == "cancel":
        return end
    if not again:
        return [
            *end,
            [*spec.command[:1], *(f"--exclude={','.join(excluded)}" for _ in exclude), *spec.command[1:]],
        ]
    when = f"StartTime=now+{_settled(settle_seconds)}"
    return [*end, ["scontrol", "update", f"JobId={job_id}", *exclude, when], ["scontrol", "release", job_id]]


def _settled(seconds: float) -> int:
    return max(1, round(seconds))
