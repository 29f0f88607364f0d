"""Runs that are jobs of Slurm: found by what the config asks for, begun and ended by Slurm's own commands.

    slurm = SlurmScheduler(host)
    specs = slurm.runs(wanted, attempts)          one look at all jobs
    slurm.job(specs[0], attempts)                 what that look tells of one run

Nothing is remembered here between two looks: what a watchdog did stands at the job itself, so one that is
started anew, or from cron, goes on where the last one was.
"""

from __future__ import annotations

import dataclasses
import glob
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import Host
from clustertools.model import Attempt, Job, Subject
from clustertools.schedulers import NodeState, RunSpec, Wanted
from clustertools.schedulers import slurm_orders as orders
from clustertools.schedulers.slurm_attempts import End, end_of, followed, is_same
from clustertools.schedulers.slurm_ends import Ends
from clustertools.schedulers.slurm_nodes import SlurmNodes
from clustertools.schedulers.slurm_paths import with_paths
from clustertools.schedulers.slurm_runs import Found, Place, find, last_number, places_of
from clustertools.schedulers.slurm_states import (
    ended_by,
    exit_code,
    held_by_us,
    is_ended,
    is_held,
    mark_of,
    state_of,
    waits_for,
)
from clustertools.schedulers.slurm_submit import submit_anew
from clustertools.sources.slurm_queue import Queue, Row, node_names, read_queue
from clustertools.text import plain

#: How a reason of ours begins: what does not is somebody else's.
OURS = "clustertools:"
#: sinfo and other tools cut what is longer.
REASON_CHARACTERS = 200
#: Between the end of an incarnation and the start of the next: the nodes' clocks may differ by this much.
SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Look:
    """What one call of squeue told, and which run is where in it."""

    queue: Queue
    ends: Ends
    found: Mapping[str, Found] = field(default_factory=dict)
    by_id: Mapping[str, Place] = field(default_factory=dict)


class SlurmScheduler:
    """The jobs of the cluster that `host` belongs to."""

    kind = "slurm"
    supported = frozenset(
        {"capture", "drain", "resume", "cancel", "requeue", "restart", "exclude", "notify", "silence"}
    )

    def __init__(self, host: Host, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._host = host
        self._nodes = SlurmNodes(host)
        self._settle_seconds = settle_seconds
        self._keeps_accounting = True
        self._wanted: tuple[Wanted, ...] = ()
        self._attempts: dict[str, tuple[Attempt, ...]] = {}
        self._look: _Look | None = None
        #: The last row of each run: whose it is and where it works, when slurmctld has forgotten the job.
        self._seen: dict[str, Row] = {}

    # what is there

    def runs(
        self, wanted: Sequence[Wanted], attempts: Mapping[str, tuple[Attempt, ...]]
    ) -> Sequence[RunSpec]:
        """Look at all jobs once. Raises Unobservable when slurmctld does not answer."""
        self._wanted, self._attempts = tuple(wanted), {run: tuple(known) for run, known in attempts.items()}
        self._look = None
        look = self._looked()
        return [self._spec(found) for _, found in sorted(look.found.items())]

    def _looked(self) -> _Look:
        if self._look is None:
            queue = read_queue(self._host)
            places = places_of(queue.rows)
            found = find(places, self._wanted, self._attempts, queue.at)
            ends = Ends(self._host, self._nodes, keeps_accounting=self._keeps_accounting)
            by_id = {place.row.id: place for place in places}
            ends.ask(_unclear(found, by_id, self._attempts, queue.at))
            self._keeps_accounting = ends.keeps_accounting
            self._look = _Look(queue, ends, found, by_id)
        return self._look

    def _spec(self, found: Found) -> RunSpec:
        row = found.place.row if found.place else self._seen.get(found.name)
        if row is None:
            return dataclasses.replace(found.wanted.template, name=found.name)
        self._seen[found.name] = row
        nodes = node_names(self._host, row.node_list)
        return with_paths(found.wanted.template, found.name, row, nodes[0] if nodes else "")

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest incarnation of a run. Raises Unobservable when nobody can tell."""
        if attempts and self._attempts.get(spec.name) != attempts:
            # the same look, seen with what was written down since
            self._attempts[spec.name] = attempts
            if self._look is not None:
                runs = find(self._look.by_id.values(), self._wanted, self._attempts, self._look.queue.at)
                self._look = dataclasses.replace(self._look, found=runs)
        look = self._looked()
        found = look.found.get(spec.name)
        # one that is no run of ours (any more) may be looked at all the same
        place = found.place if found else look.by_id.get(last_number(attempts))
        if place is None:
            return self._forgotten(spec, attempts, look)
        return self._job(spec, attempts, place, look)

    def _job(self, spec: RunSpec, known: tuple[Attempt, ...], place: Place, look: _Look) -> Job:
        row, now = place.row, look.queue.at
        rows = (row, *place.others)
        nodes = tuple(
            dict.fromkeys(n for one in rows for n in node_names(self._host, one.node_list))
        )  # fmt: skip
        before = self._end_before(known, place, look)
        attempts = followed(spec.name, known, row, nodes, before, now)
        newest = attempts[-1] if attempts else None
        if newest is not None and not newest.job_id:
            return self._planned(spec, attempts)
        state = state_of(row, now)
        if state == "ended" and any(not is_ended(other) and not is_held(other) for other in place.others):
            state = "completing"
        by, why = ended_by(row, now)
        by = by if by == "us" or state == "ended" else ""
        return Job(
            row.id, spec.name, state, newest.number if newest else 0,
            nodes or (newest.nodes if newest else ()),
            started_at=newest.started_at if newest else 0.0,
            ended_at=row.ends_at if is_ended(row) else newest.ended_at if newest and by == "us" else 0.0,
            exit_code=exit_code(row, now), exit_reason=why, log_paths=self._logs(spec),
            metrics_path=spec.metrics_path, checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps,
            attempts=attempts, user=row.user, reason=waits_for(row), ended_by=by,
            ends_at=row.ends_at if state == "running" else 0.0,
            held=is_held(row) and not held_by_us(row, now),
            failed_nodes=look.ends.failed_nodes(nodes) if by == "node-failed" else before.failed_nodes,
        )  # fmt: skip

    def _end_before(self, known: Sequence[Attempt], place: Place, look: _Look) -> End:
        """How the newest known attempt ended, when the run is by now in another one."""
        row, now = place.row, look.queue.at
        if not known or known[-1].end or not known[-1].job_id or is_same(known[-1], row, now):
            return End("", "")
        if known[-1].job_id == row.id:
            return look.ends.requeued(known[-1])
        old = look.by_id.get(known[-1].job_id)
        return end_of(old.row, now) if old else look.ends.gone(known[-1])

    def _planned(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """An attempt that is written down, and not begun, or that could not be begun."""
        last = attempts[-1]
        return Job(
            "", spec.name, "ended" if last.end else "pending", last.number, log_paths=self._logs(spec),
            metrics_path=spec.metrics_path, checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps,
            started_at=last.started_at, ended_at=last.ended_at, exit_reason=last.end, attempts=attempts,
            reason="" if last.end else "NotSubmitted", ended_by=last.ended_by,
        )  # fmt: skip

    def _forgotten(self, spec: RunSpec, attempts: tuple[Attempt, ...], look: _Look) -> Job:
        """A run whose job slurmctld does not have: it forgets one MinJobAge (300 s) after its end."""
        if not attempts:
            raise Unobservable(f"run {spec.name} has no job in Slurm")
        last = attempts[-1]
        if not last.job_id:
            return self._planned(spec, attempts)
        if not last.end and look.queue.unread:
            raise Unobservable(
                f"job {last.job_id} of {spec.name} is not among those that squeue told of, and "
                f"{look.queue.unread} of its lines could not be read"
            )
        end = End(last.ended_by, last.end, at=last.ended_at)
        if not last.end:
            end = look.ends.gone(last)
        return Job(
            last.job_id, spec.name, "ended", last.number, last.nodes, started_at=last.started_at,
            ended_at=end.at, exit_code=end.exit_code, exit_reason=end.why, log_paths=self._logs(spec),
            metrics_path=spec.metrics_path, checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps,
            attempts=attempts, ended_by=end.by, failed_nodes=end.failed_nodes,
        )  # fmt: skip

    def _logs(self, spec: RunSpec) -> tuple[str, ...]:
        """The run's log files: patterns of the config become the files that there are."""
        found: dict[str, None] = {}
        for path in spec.log_paths:
            found.update(dict.fromkeys(self._host.glob(path) if glob.has_magic(path) else (path,)))
        return tuple(found)

    # what is done

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        """Ask Slurm to end a job: its script hears SIGTERM, and SIGKILL after Slurm's KillWait (30 s).

        So `force` asks once more: a signal of our own would only come later. Raises ActionFailed,
        Unobservable.
        """
        found = self._looked().found.get(spec.name)
        if found is None:
            raise ActionFailed(f"job {job.id} is not {spec.name} (any more): it is left alone")
        if found.place is not None and found.place.row.id == job.id:
            # of a chain the next task takes over as soon as this one is over
            requeue = self._next_task(found) is None
            orders.stop(self._host, spec, found.place, self._looked().queue.at, requeue=requeue)
            self._look = None

    def _next_task(self, found: Found) -> Row | None:
        """What waits of an array that is a chain, behind the task that tells of the run."""
        row = found.place.row if found.place else None
        if row is None or row.task is None or found.wanted.array != "chain":
            return None
        over = state_of(row, self._looked().queue.at) in ("running", "ended")
        waiting = (place.row for place in self._looked().by_id.values() if place.row.waiting_tasks)
        return next((one for one in waiting if over and one.array_id == row.array_id), None)

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        """None by their numbers: what still runs of a job is why Slurm calls it COMPLETING."""
        return []

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        """Begin an attempt, by a requeue of the last job or by the config's command; its job's number.

        Raises ActionFailed, and Unobservable when it has to be asked again.
        """
        self._look = None
        look = self._looked()
        try:
            for place in look.by_id.values():
                mark = mark_of(place.row)
                if mark is not None and mark.token == attempt.token:
                    held = held_by_us(place.row, look.queue.at)
                    return orders.let_go(self._host, place.row) if held else place.row.id
            found = look.found.get(spec.name)
            if found is None and last_number(self._attempts.get(spec.name, ())):
                raise ActionFailed(f"the job of {spec.name} is not asked for in the config (any more)")
            if found is not None and found.place is not None:
                following = self._next_task(found)
                if following is not None:
                    orders.exclude(self._host, following, attempt.excluded)
                    raise Unobservable(f"{spec.name} waits for the next task of array {following.id}")
                last = last_number(self._attempts.get(spec.name, ()))
                if found.wanted.array == "chain" and last and found.place.row.id != last:
                    return found.place.row.id  # which began by itself
                self._refuse(spec, found.place, look)
                if orders.may_requeue(spec, found.place.row):
                    known = self._attempts.get(spec.name, ())
                    lapsed = {node for a in known for node in a.excluded} - set(attempt.excluded)
                    return orders.begin_again(
                        self._host, found.place, attempt, lapsed, self._settle_seconds, look.queue
                    )
            return self._submit_anew(spec, attempt, found)
        finally:
            self._look = None

    def _submit_anew(self, spec: RunSpec, attempt: Attempt, found: Found | None) -> str:
        row = found.place.row if found and found.place else None
        if not spec.command or spec.again == "requeue":
            what = f"job {row.id} may not be requeued" if row else "its job is no longer known to Slurm"
            raise ActionFailed(f"{spec.name}: {what}, and the config has no command that submits it")
        before = row or self._seen.get(spec.name)
        if before is None and last_number(self._attempts.get(spec.name, ())):
            # whoever ran it, and where: root must not guess
            raise ActionFailed(f"{spec.name}: Slurm no longer knows its job: submit it by hand once")
        return submit_anew(self._host, spec, attempt, before)

    def _refuse(self, spec: RunSpec, place: Place, look: _Look) -> None:
        """Raises ActionFailed where a start would be a second copy, or against a person's word."""
        now, row = look.queue.at, place.row
        # whoever had written down that a person ended it acts on the order of a person
        ordered = any(
            a.job_id == row.id and a.ended_by == "person" for a in self._attempts.get(spec.name, ())[-2:]
        )
        if ended_by(row, now)[0] == "person" and not ordered:
            raise ActionFailed(
                f"job {row.id} of {spec.name} was cancelled by a person: it is not started again"
            )
        if state_of(row, now) == "completing":
            raise Unobservable(f"job {row.id} of {spec.name} is still completing")
        if state_of(row, now) != "ended":
            held = f"held by somebody else ({row.reason})" if is_held(row) else row.state.lower()
            raise ActionFailed(f"job {row.id} of {spec.name} is {held}: it is not started a second time")

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        """What would be run for a step, as a person would type it."""
        found = self._look.found.get(target.run) if self._look else None
        row = found.place.row if found and found.place else None
        excluded = tuple(
            options.get("exclude") or ((target.node,) if kind == "exclude" and target.node else ())
        )
        if kind in ("drain", "resume"):
            state = "DRAIN" if kind == "drain" else "UNDRAIN"
            reason = (f"Reason={our_reason(str(options.get('reason', '')))}",) if kind == "drain" else ()
            return shlex.join(["scontrol", "update", f"NodeName={target.node}", f"State={state}", *reason])
        if kind in ("cancel", "requeue", "restart", "exclude"):
            spec = self._spec(found) if found else RunSpec(target.run)
            told = orders.previewed(kind, spec, row, excluded, self._settle_seconds)
            return "; ".join(shlex.join(words) for words in told)
        if kind == "capture":
            return f"save stacks, process states, kernel lines and log tails of {shlex.quote(str(target))}"
        return f"{kind} {shlex.quote(str(target))}"

    # nodes

    def nodes(self) -> Mapping[str, NodeState]:
        """Every node by name. Raises Unobservable."""
        return self._nodes.states()

    def drain(self, node: str, reason: str) -> None:
        """Let nothing new start on `node`; one that is drained already keeps the reason that it has.

        Raises ActionFailed, Unobservable.
        """
        state = self._nodes.node(node)
        if not state.is_drained:
            self._nodes.drain(node, our_reason(reason))

    def resume(self, node: str) -> None:
        """Take our own drain back. Raises ActionFailed when the reason is not ours, and Unobservable."""
        state = self._nodes.node(node)
        if not state.is_drained:
            return
        if not state.reason.startswith(OURS):
            why = plain(state.reason) or "nobody wrote why"
            raise ActionFailed(f"{node} was drained by somebody else ({why}): it is theirs to resume")
        self._nodes.undrain(node)


def our_reason(why: str) -> str:
    """The reason of a drain of ours, in one line and by its beginning to be known as such."""
    words = plain(why, REASON_CHARACTERS)
    return words if words.startswith(OURS) else f"{OURS} {words}".strip()


def _unclear(
    found: Mapping[str, Found],
    by_id: Mapping[str, Place],
    attempts: Mapping[str, tuple[Attempt, ...]],
    now: float,
) -> Iterator[str]:
    """The jobs of starts whose end nobody wrote down yet and the queue does not tell."""
    for run in found:
        known = attempts.get(run, ())
        if not known or known[-1].end or not known[-1].job_id:
            continue
        place = by_id.get(known[-1].job_id)
        if place is None or not is_same(known[-1], place.row, now):
            yield known[-1].job_id
