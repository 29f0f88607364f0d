"""A Slurm of virtual nodes with real torch jobs on it, and `clustertools watch --act` over them.

    with ClusterWatch(folder, nodes=8) as lab:
        lab.plan("hung", "--do", "stop@25//1")
        lab.begin()                                   # all planned jobs, then the watchdog
        lab.until(lambda: lab.trained("hung", 2), "hung trains again")
        lab.starts("hung"), lab.actions("hung"), lab.opened("hung")

Jobs, watchdog and nodes die with the process that made them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clustertools.errors import StoreError
from clustertools.model import Incident
from clustertools.store import ActionRow, Store
from tests.lab.slurm import Slurm

TRAINER = Path(__file__).parent / "faulty_trainer.py"
CHECKS = Path(__file__).parents[2] / "checks"
BIN = Path(sys.executable).parent
#: Two starts of PyTorch on a machine whose cores are all busy.
SOON_SECONDS = 150.0

# torchrun knows the others by the head's address: all virtual nodes share one network. The port moves on with
# every start, so that what is left of the last one cannot be met.
SCRIPT = """#!/bin/bash
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo PYTHONUNBUFFERED= PYTHONPATH=
export PORT=$(({port} + ${{SLURM_RESTART_COUNT:-0}}))
{before}
exec srun --kill-on-bad-exit=1 --ntasks-per-node=1 bash -c 'exec {torchrun} --nnodes {nodes} \\
    --node-rank $SLURM_NODEID --nproc-per-node {ranks} --master-addr 127.0.0.1 --master-port $PORT \\
    {words}'
"""


@dataclass
class PlannedJob:
    """A job as it will be submitted, and what the config says of it."""

    name: str
    words: tuple[str, ...]
    nodes: int
    ranks: int
    options: tuple[str, ...]
    config: dict[str, Any]
    folder: Path
    port: int
    id: str = ""


@dataclass
class Said:
    """What `clustertools watch` said: its exit code (None: it runs) and its output so far."""

    code: int | None
    text: str = field(repr=False)


class ClusterWatch:
    """Use it as a context manager. `config` goes over the config of the watchdog, by top-level key."""

    def __init__(self, folder: Path, nodes: int, config: Mapping[str, Any] | None = None) -> None:
        self.folder, self.config = folder, dict(config or {})
        self.slurm = Slurm(folder / "slurm", nodes=nodes)
        self.jobs: dict[str, PlannedJob] = {}
        self.state_folder = folder / "state"
        self.watchdogs: list[subprocess.Popen[bytes]] = []
        (folder / "jobs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ClusterWatch:
        try:
            self.slurm.__enter__()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.watchdogs:
            if child.poll() is None:
                child.kill()
                child.wait(10)
        self.slurm.__exit__()

    # jobs

    def plan(
        self, name: str, *words: str, nodes: int = 1, ranks: int = 1, options: tuple[str, ...] = (),
        folder: Path | None = None, before: str = "", **config: Any,
    ) -> PlannedJob:  # fmt: skip
        """A job of the trainer on so many nodes. `config` is its entry in the config of the watchdog."""
        where = folder or self.folder / "jobs" / name
        (where / "ckpt").mkdir(parents=True, exist_ok=True)
        job = PlannedJob(name, words, nodes, ranks, options, dict(config), where, _free_port())
        script = SCRIPT.format(
            port=job.port, before=before, nodes=nodes, ranks=ranks, torchrun=BIN / "torchrun",
            words=shlex.join([str(TRAINER), str(where), *words]).replace("'", "'\\''"),
        )  # fmt: skip
        (where / "job.sh").write_text(script)
        self.jobs[name] = job
        return job

    def submit(self, *names: str) -> None:
        for job in (self.jobs[name] for name in names):
            told = self.slurm.run(
                "sbatch", "--parsable", "--requeue", "--open-mode=append", "--exclusive", f"-J{job.name}",
                f"-N{job.nodes}", f"--chdir={job.folder}", f"--output={job.folder}/log", *job.options,
                str(job.folder / "job.sh"),
            )  # fmt: skip
            job.id = told.split(";")[0].strip()

    def trace(self, name: str, what: str = "") -> list[dict[str, Any]]:
        """What the trainer says happened, oldest first."""
        try:
            text = (self.jobs[name].folder / "trace.jsonl").read_text()
        except FileNotFoundError:
            return []
        # a line that is just being written has no end yet
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [row for row in rows if not what or row["what"] == what]

    def log(self, name: str) -> str:
        path = self.jobs[name].folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def starts(self, name: str) -> list[tuple[int, int]]:
        """Each start that got so far: (how often Slurm had begun it before, the step it resumed from)."""
        return [(row["attempt"], row["step"]) for row in self.trace(name, "resumed")]

    def trained(self, name: str, attempt: int) -> int:
        """The last step that was made on an attempt (0 is the first); 0 when it made none."""
        return max((r["step"] for r in self.trace(name, "step") if r["attempt"] == attempt), default=0)

    def done(self, name: str) -> bool:
        return bool(self.trace(name, "done"))

    def state(self, name: str) -> str:
        """The job's state in Slurm's word; empty while Slurm does not answer."""
        argv = ("squeue", "-h", "-a", "-t", "all", "-j", self.jobs[name].id, "-o", "%T")
        return self.slurm.run(*argv, check=False).strip()

    def ended(self, name: str) -> bool:
        return self.state(name) in (
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
        )

    def nodes_of(self, name: str) -> list[str]:
        """The nodes that the job runs on now."""
        said = self.slurm.run("squeue", "-h", "-j", self.jobs[name].id, "-o", "%N").strip()
        return self.slurm.run("scontrol", "show", "hostnames", said).split()

    # the watchdog

    def write_config(self) -> Path:
        node_checks = sorted(p.stem for p in CHECKS.glob("[a-z]*.py") if not p.stem.startswith("job_"))
        hang = {"minimum": "5s", "factor": 3, "startup": "90s"}
        jobs = {
            name: {
                "name": name, "checkpoints": str(job.folder / "ckpt"), "grace": "3s",
                "resume": {"kind": "tracker"}, "hang": hang, **job.config,
            }
            for name, job in self.jobs.items()
        }  # fmt: skip
        config: dict[str, Any] = {
            "cluster": "lab",
            "scheduler": "slurm",
            "jobs": jobs,
            # what ails this machine is not the question here
            "checks": {
                **{name: {"enabled": False} for name in node_checks},
                "job_progress": {"limits": {"stack_gap": "1s"}},
            },
            "policy": {
                "mode": "act",
                "budgets": {"per_node_per_day": 20, "restarts_per_hour": 50},
                "circuit_breaker": {"nodes": 50, "fraction": 1.0},
            },
            **self.config,
        }
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CLUSTERTOOLS"))}
        return {**kept, "SLURM_CONF": str(self.slurm.conf), "CLUSTERTOOLS_STATE": str(self.state_folder)}

    def watch(self, *words: str, program: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start `clustertools watch --act`, or what stands in for it."""
        argv = [sys.executable, *(program or ("-m", "clustertools", "watch"))]
        argv += ["--act", "--interval", "500ms", "--config", str(self.folder / "config.yaml"), *words]
        with open(self.folder / f"watch{len(self.watchdogs)}.log", "wb") as out:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv], env=self.environment(), stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, cwd=CHECKS.parent,
            )  # fmt: skip
        self.watchdogs.append(child)
        return child

    def begin(self) -> None:
        """Submit every job that was planned, and start the watchdog."""
        self.write_config()
        self.submit(*self.jobs)
        self.watch()

    def said(self, number: int = -1) -> Said:
        number = range(len(self.watchdogs))[number]
        text = (self.folder / f"watch{number}.log").read_text(errors="replace")
        return Said(self.watchdogs[number].poll(), text)

    def end_watch(self, number: int = signal.SIGTERM) -> Said:
        child = self.watchdogs[-1]
        child.send_signal(number)
        child.wait(60)
        return self.said()

    def run(self, *words: str, check: bool = True) -> str:
        """What another command of clustertools says about this state."""
        done = subprocess.run(
            [str(BIN / "clustertools"), *words], env=self.environment(), capture_output=True, text=True,
            timeout=60, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    # what became of it

    @contextlib.contextmanager
    def store(self) -> Any:
        store = Store(self.state_folder / "state.db", read_only=True)
        try:
            yield store
        finally:
            store.close()

    def actions(self, name: str) -> list[ActionRow]:
        """The audit: every action about a run, oldest first, also those that were blocked."""
        with self.store() as store:
            rows = [row for row in store.actions() if row.action.target.run == name]
        return sorted(rows, key=lambda row: (row.action.planned_at, row.action.id))

    def incidents(self, name: str) -> list[Incident]:
        with self.store() as store:
            found = [i for i in store.incidents().values() if i.finding.subject.run == name]
        return sorted(found, key=lambda i: i.first_seen)

    def opened(self, name: str, code: str = "") -> list[Any]:
        """The openings of a run's incidents, oldest first."""
        with self.store() as store:
            found = [t for t in store.transitions() if t.incident.finding.subject.run == name]
        return [
            t
            for t in sorted(found, key=lambda t: t.time)
            if t.kind in ("opened", "reopened", "worsened") and code in ("", t.incident.finding.code)
        ]

    def heartbeat(self) -> dict[str, Any]:
        """What the watchdog wrote down at the end of its last pass: `at`, `seen`, `blind`."""
        with self.store() as store:
            return dict(store.cursor("heartbeat"))

    def timeline(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("timeline", name, "--json").splitlines()]

    def until(self, true: Callable[[], Any], what: str, seconds: float = SOON_SECONDS) -> Any:
        """Wait for something; AssertionError with what the watchdog said when it does not come."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(StoreError):  # not made yet
                if found := true():
                    return found
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.story()}"
            time.sleep(0.2)

    def story(self) -> str:
        parts = [self.said(n).text[-3000:] for n in range(len(self.watchdogs))]
        parts += [f"--- {name}\n{self.log(name)[-700:]}" for name in self.jobs]
        return "\n".join(parts)


def _free_port() -> int:
    """The first of some ports that nobody listens on; each start of the job takes the next."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1]) // 2
