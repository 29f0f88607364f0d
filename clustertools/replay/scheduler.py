"""The scheduler of a recording: tells what the timeline says of the job, and writes down what it is asked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clustertools.errors import Unobservable
from clustertools.model import Attempt, Job, JobState, Subject
from clustertools.replay.script import seconds
from clustertools.schedulers import NodeState, RunSpec

#: What a recording's scheduler can do unless the recording says otherwise: what the local one can.
SUPPORTED = frozenset({"capture", "cancel", "restart", "notify", "silence"})


@dataclass(frozen=True, slots=True)
class Call:
    """Something that the scheduler was asked to do, and only wrote down."""

    time: float
    kind: str
    what: str


@dataclass
class ReplayScheduler:
    """`asked` is called with the kind of each deed, the first time that it is asked for."""

    node: str
    now: Callable[[], float]
    supported: frozenset[str] = SUPPORTED
    answered: frozenset[str] = frozenset()
    asked: Callable[[str], None] = lambda kind: None
    calls: list[Call] = field(default_factory=list)
    kind: str = "replay"
    submits: int = 0
    _job: Job = field(default_factory=lambda: Job("", "", "pending"))
    _leftovers: tuple[int, ...] = ()
    _unknown: str = ""
    _started: set[str] = field(default_factory=set)
    _told: set[tuple[int, str]] = field(default_factory=set)

    def begin(self, spec: RunSpec, attempt: Attempt) -> None:
        """The attempt with which the recording begins."""
        self._started.add(attempt.token)
        state: JobState = "ended" if attempt.end else "running"
        self._job = Job(
            f"{spec.name}#{attempt.number}", spec.name, state, attempt.number, (self.node,),
            started_at=attempt.started_at, ended_at=attempt.ended_at, exit_reason=attempt.end,
        )  # fmt: skip

    @property
    def state(self) -> JobState:
        return self._job.state

    def change(self, told: Mapping[str, Any], start: float) -> None:
        """What the timeline says of the job from now on; what it does not name stays."""
        self._unknown = str(told.get("unknown", ""))
        self._leftovers = tuple(told.get("leftovers", self._leftovers))
        job = replace(
            self._job,
            state=told.get("state", self._job.state),
            pids=tuple(told.get("pids", self._job.pids)),
            nodes=tuple(told.get("nodes", self._job.nodes)),
            exit_code=told.get("exit_code", self._job.exit_code),
            exit_reason=str(told.get("exit_reason", self._job.exit_reason)),
        )
        if "started" in told:
            job = replace(job, started_at=start + (seconds(told["started"]) or 0.0))
        if job.state == "ended" and self._job.state != "ended":
            job = replace(job, pids=(), ended_at=self.now())
        self._job = job

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest attempt as the timeline tells it. Raises Unobservable."""
        if self._unknown:
            raise Unobservable(self._unknown)
        if not attempts:
            raise Unobservable(f"run {spec.name} was never started in this recording")
        attempt = attempts[-1]
        job = self._job
        if attempt.token not in self._started:
            # decided and written down, but not yet submitted
            job = Job(f"{spec.name}#{attempt.number}", spec.name, "pending", attempt.number, job.nodes)
        return replace(
            job, log_paths=spec.log_paths, metrics_path=spec.metrics_path,
            checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps, attempts=attempts,
        )  # fmt: skip

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        name = f"{spec.name}#{attempt.number}"
        if attempt.token in self._started:
            return name
        self._started.add(attempt.token)
        self.submits += 1
        self._leftovers = ()
        self._job = Job(
            name, spec.name, "pending", attempt.number, self._job.nodes, started_at=attempt.started_at
        )
        where = f" from {attempt.resume_path}" if attempt.resume_path else " from the beginning"
        self._note("submit", f"attempt {attempt.number} of {spec.name}{where}")
        return name

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        kind = "kill" if force else "cancel"
        if self._job.state == "ended" and not self._leftovers:
            return
        self._job = replace(self._job, exit_reason=why)
        if (self._job.attempt, kind) in self._told:
            return
        self._told.add((self._job.attempt, kind))
        self._note(kind, f"{'SIGKILL' if force else 'SIGTERM'} to every process of {spec.name}")
        if kind not in self.answered:
            self._leftovers = ()
            self.change({"state": "ended", "exit_code": -9 if force else -15}, 0.0)

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return sorted({*self._leftovers, *(self._job.pids if self._job.state != "ended" else ())})

    def nodes(self) -> dict[str, NodeState]:
        """The nodes that the recording is about; drained are those that we drained in it."""
        drained = dict(c.what.split(": ", 1) for c in self.calls if c.kind == "drain")
        return {
            name: NodeState(name, name not in drained, name in drained, drained.get(name, ""), "idle")
            for name in {self.node, *self._job.nodes, *drained}
        }

    def resume(self, node: str) -> None:
        """Take a node back into service; written down."""
        self._note("resume", node)

    def drain(self, node: str, reason: str) -> None:
        """Take a node out of service; written down, once."""
        if not any(c.kind == "drain" and c.what.startswith(f"{node}: ") for c in self.calls):
            self._note("drain", f"{node}: {reason}")

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        who = shlex.quote(target.run or target.node)
        if kind == "restart":
            return (
                f"stop every process of {who}, find its last verified checkpoint, start it again from there"
            )
        if kind == "capture":
            return f"save stacks, process states, kernel lines and log tails of {who}"
        if kind == "cancel":
            return f"SIGTERM, then SIGKILL, to every process of {who}"
        if kind == "drain":
            reason = shlex.quote(str(options.get("reason", "")))
            return f"scontrol update NodeName={who} State=DRAIN Reason={reason}"
        return f"{kind} {who}"

    def _note(self, kind: str, what: str) -> None:
        self.calls.append(Call(self.now(), kind, what))
        self.asked(kind)
