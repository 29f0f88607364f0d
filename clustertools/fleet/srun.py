"""Runs programs on nodes through Slurm's own srun: inside a job that runs, or in an allocation of our own.

    with SrunTransport(job_id="4711") as transport:                   # in the job's script, beside its steps
    with SrunTransport(SrunSettings(partition="gpu")) as transport:   # from a login node, on idle nodes

srun has one exit code, one input and one stream for all its tasks, and one node that fails may take the
step with it. So each task is `srun_agent.py`, which frames what its program says and starts it only when all
nodes of the step are there: until then a step can be given up and tried without the node that is away, and
no program has run twice. Everything hangs on pipes that we hold: when we die, whatever way, srun's input
ends, the agents end their programs, and the allocation of our own is given back.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.fleet import Answer, Conversation
from clustertools.fleet.srun_session import Launch, Owner, Session, slurm_environment
from clustertools.host import OUTPUT_CAP_BYTES, Host, LocalHost
from clustertools.sources.slurm import SlurmNode
from clustertools.sources.slurm_jobs import JobAllocation, job_nodes, node_records
from clustertools.text import plain

#: Job states in which a job holds its nodes and takes steps.
_RUNNING = ("RUNNING", "CONFIGURING")
#: salloc runs this here: it tells the allocation's number, and ends when its input does, that is with us.
_HOLDER = "import os, sys; print(os.environ['SLURM_JOB_ID'], flush=True); sys.stdin.buffer.read()"


@dataclass(frozen=True, slots=True)
class SrunSettings:
    """How to start programs through Slurm. All up to `wait_seconds` says what an own allocation asks for.

    `launch_seconds`: within that every node of a step must have begun; a long prolog counts. `python`: of
    the nodes, 3.6 or newer, for the agent.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    time_limit_minutes: int = 30
    exclusive: bool = True
    wait_seconds: float = 60.0
    launch_seconds: float = 45.0
    silence_seconds: float = 25.0
    nodes_per_step: int = 64
    python: str = "python3"


@dataclass(slots=True)
class _Held:
    """An allocation of our own, which lives as long as `holder` does."""

    job: JobAllocation
    holder: subprocess.Popen[bytes] = field(repr=False)


class SrunTransport:
    """Many nodes through srun, in the job `job_id`, or in allocations of our own when it is empty.

    In a job programs run as its user: root becomes that user, for Slurm takes steps of nobody else ("Unable
    to create step for job 4711: Access/permission denied", 22.05 says to root as well).

    Nodes that are down or busy are answers (UNREACHABLE). Raises ConfigError for a job that is not ours, is
    over or does not hold a node; Absent without Slurm here, Unobservable when it does not answer.
    """

    name = "srun"

    def __init__(
        self, settings: SrunSettings | None = None, *, job_id: str = "", host: Host | None = None
    ) -> None:
        self.settings = settings or SrunSettings()
        self.job_id = job_id
        self.host: Host = host or LocalHost()
        self._job: JobAllocation | None = None
        self._held: list[_Held] = []
        self._sessions: list[Session] = []
        self._version: tuple[int, int] = (0, 0)

    def __enter__(self) -> SrunTransport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        session = self._session(nodes, argv, timeout_seconds, OUTPUT_CAP_BYTES)
        try:
            session.send_bytes(stdin)
            session.end_input()
            while not session.is_over:
                for said in session.receive(3600.0):
                    if isinstance(said, Answer):
                        yield said
        finally:
            session.close()
            self._sessions.remove(session)

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> Conversation:
        return self._session(nodes, argv, 0.0, 0)

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        for held in self._held:
            self._give_back(held)
        self._held.clear()

    def _session(self, nodes: Sequence[str], argv: Sequence[str], seconds: float, cap: int) -> Session:
        if not argv:
            raise ConfigError("there is no program to run on the nodes")
        launches, away = self._launches(tuple(dict.fromkeys(nodes)))
        session = Session(
            launches, away, tuple(argv), timeout_seconds=seconds, cap_bytes=cap, host=self.host,
            python=self.settings.python, launch_seconds=self.settings.launch_seconds,
            silence_seconds=self.settings.silence_seconds, owner=self._owner(),
        )  # fmt: skip
        self._sessions.append(session)
        return session

    def _owner(self) -> Owner | None:
        """As whom steps are started, where not as ourselves."""
        if self._job is None or os.geteuid() != 0 or self._job.user_id == 0:
            return None
        return Owner.of(self._job.user_id)

    def _launches(self, nodes: tuple[str, ...]) -> tuple[list[Launch], dict[str, str]]:
        """The steps to start, and why the other nodes are away."""
        records = node_records(self.host, nodes)
        away = {n: f"Slurm knows no node {plain(n)}" for n in nodes if n not in records}
        known = [n for n in nodes if n in records]
        jobs = self._in_job(nodes) if self.job_id else self._in_own(known, records, away)
        away.update((n, _state(records[n])) for n in jobs if "DOWN" in records[n].flags)
        groups: dict[tuple[str, int, str], list[str]] = {}
        for node in (n for n in known if n not in away):
            # one that does not answer is given a step for itself: it must not delay the others
            alone = node if "NOT_RESPONDING" in records[node].flags else ""
            groups.setdefault((jobs[node].job_id, jobs[node].gpus[node], alone), []).append(node)
        width = self.settings.nodes_per_step
        return [
            Launch(self._words(job_id, gpus), tuple(group[i : i + width]), job_id)
            for (job_id, gpus, _), group in groups.items()
            for i in range(0, len(group), width)
        ], away

    def _in_job(self, nodes: Sequence[str]) -> dict[str, JobAllocation]:
        if self._job is None:
            job = job_nodes(self.host, self.job_id)
            if job.state not in _RUNNING:
                raise ConfigError(f"job {self.job_id} is {job.state}: nothing can be started in it")
            if os.geteuid() not in (0, job.user_id):
                raise ConfigError(
                    f"job {self.job_id} belongs to {plain(job.user)}: "
                    "Slurm starts steps for a job's owner only; run this as they, or on idle nodes"
                )
            self._job = job
        strangers = [n for n in nodes if n not in self._job.nodes]
        if strangers:
            raise ConfigError(
                f"job {self.job_id} does not hold {plain(', '.join(strangers))}; "
                f"it holds {len(self._job.nodes)} nodes, {plain(', '.join(self._job.nodes[:8]))} ..."
            )
        return dict.fromkeys(nodes, self._job)

    def _in_own(
        self, nodes: Sequence[str], records: Mapping[str, SlurmNode], away: dict[str, str]
    ) -> dict[str, JobAllocation]:
        """The allocation that holds each node, made if there is none yet; `away` gets those that are busy."""
        held = {node: h.job for h in self._held for node in h.job.nodes}
        missing = [n for n in nodes if n not in held]
        away.update((n, _state(records[n])) for n in missing if records[n].flags != {"IDLE"})
        idle = [n for n in missing if n not in away]
        if idle:
            self._held.append(self._allocate(idle))
            held.update(dict.fromkeys(self._held[-1].job.nodes, self._held[-1].job))
        return {n: held[n] for n in nodes if n in held}

    def _allocate(self, nodes: Sequence[str]) -> _Held:
        settings = self.settings
        argv = [
            "salloc", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}",
            "--ntasks-per-node=1", "--job-name=clustertools", "--no-kill", "--no-bell",
            f"--immediate={max(1, round(settings.wait_seconds))}", f"--time={settings.time_limit_minutes}",
        ]  # fmt: skip
        argv += ["--exclusive"] if settings.exclusive else []
        for option in ("partition", "account", "qos", "reservation"):
            argv += [f"--{option}={value}"] if (value := getattr(settings, option)) else []
        try:
            holder = subprocess.Popen(
                [*argv, sys.executable, "-I", "-S", "-c", _HOLDER], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=slurm_environment(),
                start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise Absent(f"salloc: {exc.strerror}: Slurm's tools are not here") from exc
        assert holder.stdout is not None
        assert holder.stderr is not None
        # --immediate bounds the wait
        number = holder.stdout.readline().decode("ascii", "replace").strip()
        if not number.isdigit():
            holder.stdin.close() if holder.stdin else None
            said = plain(holder.stderr.read(10_000).decode("utf-8", "replace"))
            holder.wait()
            raise Unobservable(
                f"Slurm gave no allocation of {len(nodes)} nodes ({plain(', '.join(nodes[:8]))} ...): {said}"
            )
        return _Held(job_nodes(self.host, number), holder)

    def _give_back(self, held: _Held) -> None:
        if held.holder.stdin:
            held.holder.stdin.close()
        try:
            held.holder.wait(10.0)
        except subprocess.TimeoutExpired:
            held.holder.kill()
            self.host.run("scancel", held.job.job_id)

    def _words(self, job_id: str, gpus: int) -> tuple[str, ...]:
        """srun's words for one step in that job, up to its nodes."""
        if self._version == (0, 0):
            # slurm-wlm 22.05.8         slurm 24.11.0-0rc1
            found = re.search(r"\b(\d{2})\.(\d{2})\b", self.host.run("srun", "--version").check().stdout)
            self._version = (int(found[1]), int(found[2])) if found else (20, 11)
        # A step without --gres gets the job's GPUs, but none at all in a job that was given whole nodes
        # (--exclusive) and did not ask for GPUs by itself; srun(1), --gres.
        words = [
            "srun", f"--jobid={job_id}", f"--gres={f'gpu:{gpus}' if gpus else 'none'}", "--ntasks-per-node=1",
            "--mem=0", "--cpu-bind=none", "--mpi=none", "--chdir=/", "--input=all", "--label", "--export=ALL",
            "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--quit-on-interrupt",
        ]  # fmt: skip
        # before 20.11 every step shared what the job has
        return (*words, "--overlap") if self._version >= (20, 11) else tuple(words)


def _state(node: SlurmNode) -> str:
    why = f": {node.reason}" if node.reason else ""
    return f"Slurm says {'+'.join(sorted(node.flags))}{plain(why)}"
