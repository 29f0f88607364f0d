"""How starts ended that the queue no longer shows: by Slurm's accounting, and by nodes that are down now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from clustertools.errors import Absent, Unobservable
from clustertools.host import Host
from clustertools.model import Attempt, EndedBy
from clustertools.schedulers.slurm_attempts import End, end_of
from clustertools.schedulers.slurm_nodes import SlurmNodes, is_down
from clustertools.sources.slurm_accounting import Record, read_accounting
from clustertools.sources.slurm_queue import Row, node_names

#: Between the start as squeue told it and as the accounting has it.
SAME_START_SECONDS = 5.0


class Ends:
    """What can be found out about the ends of one look; asks each of Slurm's commands at most once."""

    def __init__(self, host: Host, nodes: SlurmNodes, *, keeps_accounting: bool = True) -> None:
        self._host, self._nodes = host, nodes
        self._records: Mapping[str, tuple[Record, ...]] = {}
        self._down: Collection[str] | None = None
        #: False once Slurm said that it keeps none: it is not asked again.
        self.keeps_accounting = keeps_accounting
        #: Why the accounting could not be asked, where there is one.
        self.blind = ""

    def ask(self, job_ids: Iterable[str]) -> None:
        """Ask the accounting about these jobs, in one call."""
        wanted = set(job_ids)
        if not wanted or not self.keeps_accounting:
            return
        try:
            self._records = read_accounting(self._host, wanted)
        except Absent:
            self.keeps_accounting = False
        except Unobservable as exc:
            self.blind = str(exc)

    def gone(self, attempt: Attempt) -> End:
        """The end of an attempt whose job slurmctld does not have. Raises Unobservable.

        It answered, and has no such job: with nobody left to ask, how it ended is lost.
        """
        if self.blind:
            raise Unobservable(
                f"job {attempt.job_id} of {attempt.run} is over, and how is not told: {self.blind}"
            )
        record = self._record(attempt)
        return self._told(attempt, record) if record else End("lost", "Slurm no longer knows how it ended")

    def requeued(self, attempt: Attempt) -> End:
        """The end of an attempt after which Slurm, or a person, began the same job anew."""
        record = self._record(attempt)
        if record is not None and record.state != "REQUEUED":
            return self._told(attempt, record)
        failed = self.failed_nodes(attempt.nodes)
        if failed:
            return End("node-failed", f"its node {', '.join(failed)} failed", failed_nodes=failed)
        return End("requeued", "Slurm or a person began it anew")

    def _told(self, attempt: Attempt, record: Record) -> End:
        row = Row(
            record.job_id, record.state, exit_code=record.exit_code, restarts=attempt.requeues,
            started_at=record.started_at, ends_at=record.ended_at,
        )  # fmt: skip
        end = end_of(row, record.ended_at)
        by: EndedBy = "requeued" if record.state == "REQUEUED" else end.by
        nodes = node_names(self._host, record.failed_node)
        if by == "node-failed" and not nodes:
            nodes = self.failed_nodes(attempt.nodes or node_names(self._host, record.node_list))
        return End(by, end.why, end.exit_code, record.ended_at, nodes)

    def _record(self, attempt: Attempt) -> Record | None:
        """What the accounting has of this very start; None when it has nothing, or not its end."""
        over = [r for r in self._records.get(attempt.job_id, ()) if r.ended_at and r.state != "RUNNING"]
        near = [r for r in over if abs(r.started_at - attempt.started_at) <= SAME_START_SECONDS]
        if near:
            return near[-1]
        return over[-1] if over and not attempt.started_at else None

    def failed_nodes(self, nodes: Collection[str]) -> tuple[str, ...]:
        """Those of `nodes` that Slurm has down at this moment; none when it does not say."""
        if self._down is None:
            try:
                states = self._nodes.states().values()
            except Unobservable:
                # the end is told without them: `unknown` is an answer to the question which node it was
                return ()
            self._down = {node.name for node in states if is_down(node)}
        return tuple(node for node in nodes if node in self._down)
