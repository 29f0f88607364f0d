"""Every fault of a training cluster, made for real: what the watchdog must see and do, and what it took.

    with FaultMatrix(folder) as matrix:
        matrix.play()
        rows = matrix.rows()             # a Row for each fault: what was wrong with the answer, and the times

Faults that do not disturb each other run side by side, in one Slurm and under one watchdog; a job has one
fault after the other, one on each of its starts, for a start of PyTorch costs more than anything else here.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustertools.errors import StoreError
from tests.lab.cluster_watch import ClusterWatch

#: For everything: the starts wait for each other's PyTorch, and for whatever else this machine does.
PLAY_SECONDS = 420.0
#: Time in which something that must not happen would have happened.
QUIET_SECONDS = 12.0
#: What a pass tells bears the time at which the pass began; on a busy machine that is before what it read.
PASS_SECONDS = 8.0


@dataclass(frozen=True)
class Fault:
    """A fault, and the right answer to it.

    It happens to `job` on its start `attempt` (0 is the first), by itself, or at the time that the matrix
    notes under `moment`. One of `codes` has to be opened, none at all when there are none. `names`: the node
    on which it happened has to be named; no other may be. `starts`: the job goes on after it, from the
    checkpoint of `resumes`, begun anew by us (`ours`), or by us or Slurm itself.
    """

    name: str
    job: str
    attempt: int = 0
    codes: tuple[str, ...] = ()
    names: bool = False
    starts: bool = True
    ours: bool = True
    resumes: int | None = None
    moment: str = ""


@dataclass
class Row:
    """What came of a fault: seconds until it was told, and until the job made steps again; what is wrong."""

    fault: Fault
    told: tuple[str, ...] = ()
    named: str = ""
    did: str = ""
    detect_seconds: float | None = None
    recover_seconds: float | None = None
    resumed: int | None = None
    wrong: list[str] = field(default_factory=list)


FAULTS = (
    Fault("a rank is stopped (SIGSTOP)", "frozen", 0, ("JobHung",), names=True, resumes=20),
    Fault("a rank waits for its data for ever", "frozen", 1, ("JobHung",), names=True, resumes=40),
    Fault("a rank is in another collective than the others", "collective", 0, ("JobHung",), resumes=20),
    Fault("a rank is killed (SIGKILL)", "collective", 1, ("JobCrashed",), names=True, resumes=40),
    Fault("the kernel kills a rank: out of memory", "memory", 0, ("JobCrashed",), names=True, resumes=20),
    Fault("a node goes down, with all that runs on it", "memory", 1, ours=False, moment="node down"),
    Fault("the disk is full while saving", "full", 0, ("JobCrashed",), resumes=20),
    Fault("the newest checkpoint is cut short", "torn", 0, ("JobCrashed",), resumes=10),
    Fault("the newest checkpoint has a hole of zeros", "torn", 1, ("JobCrashed",), resumes=20),
    Fault("the tracker is empty", "torn", 2, ("JobCrashed",), resumes=40),
    Fault("the newest checkpoint lacks a shard", "shard", 0, ("JobCrashed",), resumes=10),
    Fault("the loss is not a number", "nan", 0, ("LossNotFinite",), resumes=20),
    Fault("a crash then, beside whole checkpoints of that loss", "nan", 1, ("JobCrashed",), resumes=40),
    Fault("it crashes at the same step again", "same-step", -1, ("JobCrashed",), starts=False),
    Fault("a module is missing: fails at once", "mistake", 0, ("JobCrashed",), starts=False),
    Fault("a person drains a node of a job", "people", 0, moment="drained", starts=False),
    Fault("a person cancels a job", "people", 0, moment="cancelled", starts=False),
    Fault("its time limit ends it", "limited", 0, starts=False),
    Fault("its time limit ends it, and it is to go on", "extended", 0),
)  # fmt: skip


class FaultMatrix:
    """The jobs with their faults, the people, and the watchdog. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "full" / "ckpt"
        self.moments: dict[str, float] = {}
        self.lab = ClusterWatch(folder, nodes=20)
        self.starts_on_a_full_disk = 0
        self.down = self.drained = ""

    def __enter__(self) -> FaultMatrix:
        # before the nodes begin: what is mounted later they would not see
        self.disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(self.disk)], check=True)
        try:
            self.lab.__enter__()
        except BaseException:
            self.__exit__()
            raise
        self._plan()
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.__exit__()
        subprocess.run(["umount", "-l", str(self.disk)], check=False)
        groups = Path("/sys/fs/cgroup")
        for group in (*groups.glob("clustertools-lab-*"), *groups.glob("memory/clustertools-lab-*")):
            with contextlib.suppress(OSError):  # somebody else's, who is still in it
                group.rmdir()

    def _plan(self) -> None:
        plan = self.lab.plan
        two: dict[str, Any] = {"nodes": 2}
        plan("frozen", *_steps(60), "--do", "stop@25//1", "--do", "loader@46/1/1", **two)
        plan("collective", *_steps(60), "--do", "mismatch@25//1", "--do", "kill@46/1/1", **two)
        plan("memory", *_steps(90), "--do", "oom@25//1", **two)
        plan("full", *_steps(40), "--plain", "--do", "full@25", folder=self.folder / "full")
        torn = ("truncate@25", "kill@26", "hole@35/1", "kill@36/1", "tracker@47/2", "kill@48/2")
        plan("torn", *_steps(60), "--plain", *_orders(*torn), ranks=2)
        newest = {"kind": "newest"}
        plan("shard", *_steps(40), "--plain", "--layout", "dcp", "--resume", "newest",
             *_orders("shard@25", "kill@26"), ranks=2, resume=newest)  # fmt: skip
        plan("nan", *_steps(400), "--plain", *_orders("nan@25", "kill@46/1"))
        plan("same-step", *_steps(60), "--plain", "--do", "crash@25/*")
        plan("mistake", *_steps(60), "--plain", "--do", "import@start/*")
        plan("people", *_steps(5000), "--plain", **two)
        slow = ("--steps", "5000", "--step-seconds", "1", "--plain")
        plan("limited", *slow, options=("--time=1",))
        plan("extended", *slow, options=("--time=1",), on_time_limit="restart")

    def play(self) -> None:
        """Let everything happen. Raises AssertionError when the jobs do not come to their ends."""
        lab = self.lab
        lab.begin()
        began = time.time()
        people = [self._drain, self._cancel, self._take_node_down, self._make_room, self._stop_nan]
        waits: list[Callable[[], bool]] = [
            lambda: all(lab.done(n) for n in ("frozen", "collective", "memory", "full", "torn", "shard")),
            lambda: not people,
            lambda: lab.trained("extended", 1) > 0,
            lambda: "TIMEOUT" in lab.state("limited"),
            lambda: lab.ended("same-step") and self._quiet_since("same-step"),
            lambda: lab.ended("mistake") and self._quiet_since("mistake"),
        ]
        while people or waits:
            with contextlib.suppress(StoreError):
                people = [act for act in people if not act()]
                waits = [true for true in waits if not true()]
            if time.time() - began > PLAY_SECONDS:
                break  # each row says what it misses
            time.sleep(0.3)
        time.sleep(2.0)
        lab.end_watch()

    # what people and the world do; True once it is done

    def _drain(self) -> bool:
        if not self.lab.trained("people", 0) > 10:
            return False
        self.drained = node = self.lab.nodes_of("people")[1]
        self.lab.slurm.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=fan, asks anna")
        self.moments["drained"] = time.time()
        return True

    def _cancel(self) -> bool:
        if time.time() - self.moments.get("drained", time.time()) < QUIET_SECONDS:
            return False
        self.lab.slurm.run("scancel", self.lab.jobs["people"].id)
        self.moments["cancelled"] = time.time()
        return True

    def _take_node_down(self) -> bool:
        if self.lab.trained("memory", 1) < 46:
            return False
        node = self.lab.nodes_of("memory")[-1]
        self.moments["node down"] = time.time()
        self.lab.slurm.kill(node)
        self.down = node
        return True

    def drained_reason(self) -> str:
        """The reason that the node carries which a person drained."""
        return self.lab.slurm.reasons().get(self.drained, "")

    def _make_room(self) -> bool:
        """Free the disk once the crash was told, and it was seen that nothing is started on a full one."""
        if not self.lab.opened("full", "JobCrashed") or not self._quiet_since("full"):
            return False
        self.starts_on_a_full_disk = len(self.lab.trace("full", "began"))
        (self.disk / "core.dump").unlink()
        return True

    def _stop_nan(self) -> bool:
        """End the job with the loss that was no number, once it is seen to train again."""
        if self.lab.trained("nan", 2) < 45:
            return False
        self.lab.slurm.run("scancel", self.lab.jobs["nan"].id)
        return True

    def _quiet_since(self, name: str) -> bool:
        """Whether nothing began for a while."""
        last = max((r["time"] for r in self.lab.trace(name, "began")), default=0.0)
        opened = max((t.time for t in self.lab.opened(name)), default=time.time())
        return time.time() - max(last, opened) > QUIET_SECONDS

    # what became of it

    def rows(self) -> list[Row]:
        return [self._row(fault) for fault in FAULTS]

    def _row(self, fault: Fault) -> Row:
        row = Row(fault)
        at, node = self._when(fault)
        if not at:
            row.wrong.append("it did not happen")
            return row
        until = self._until(fault)
        self._look(row, fault, at, until, node)
        self._follow(row, fault, at)
        return row

    def _when(self, fault: Fault) -> tuple[float, str]:
        """The moment of the fault, and on which node."""
        if fault.moment:
            return self.moments.get(fault.moment, 0.0), self.down
        if fault.job in ("limited", "extended"):
            found = [r for r in self.lab.trace(fault.job, "step") if r["attempt"] == fault.attempt]
            return (found[-1]["time"], found[-1]["node"]) if found else (0.0, "")
        faults = self.lab.trace(fault.job, "fault")
        if fault.attempt >= 0:
            faults = [r for r in faults if r["attempt"] == fault.attempt]
            return (faults[0]["time"], faults[0]["node"]) if faults else (0.0, "")
        return (faults[-1]["time"], faults[-1]["node"]) if len(faults) > 1 else (0.0, "")

    def _until(self, fault: Fault) -> float:
        """When the job's next fault happened: what is told later is about that one."""
        later = [f for f in FAULTS if f.job == fault.job and f.attempt > fault.attempt >= 0]
        return min((at for f in later if (at := self._when(f)[0])), default=float("inf"))

    def _look(self, row: Row, fault: Fault, at: float, until: float, node: str) -> None:
        opened = [t for t in self.lab.opened(fault.job) if at <= t.time + PASS_SECONDS < until]
        row.told = tuple(dict.fromkeys(t.incident.finding.code for t in opened))
        mine = [t for t in opened if t.incident.finding.code in fault.codes]
        if fault.codes and not mine:
            row.wrong.append(f"none of {fault.codes} was told, but {row.told or 'nothing'}")
        serious = [t for t in opened if t.incident.finding.status.name == "CRITICAL"]
        if not fault.codes and serious:
            row.wrong.append(f"told: {[t.incident.finding.summary for t in serious]}")
        if mine:
            row.detect_seconds = max(0.0, mine[0].time - at)
            said = mine[-1].incident.finding
            nodes = set(re.findall(r"\b(n\d+)(?= may be guilty| is guilty)", said.summary)) | set(said.blamed)
            alone = self.lab.jobs[fault.job].nodes == 1
            row.named = ("its only node" if alone else "the node") if nodes else ""
            if nodes - {node} or (fault.names and not nodes):
                row.wrong.append(f"named {nodes or 'nobody'}, and it was {node}: {said.summary}")

    def _follow(self, row: Row, fault: Fault, at: float) -> None:
        """Whether the job went on, once, from where, and by whom."""
        lab = self.lab
        rows = [a for a in lab.actions(fault.job) if a.action.kind == "restart"]
        began = [r for r in lab.trace(fault.job, "began") if r["time"] > at]
        if not fault.starts:
            row.did = "left alone" if not fault.codes else "stopped"
            if began:
                row.wrong.append(f"it was started again {len(began)} times")
            later = [r for r in lab.trace(fault.job, "step") if r["time"] > at + QUIET_SECONDS / 2]
            if fault.moment == "drained" and not later:
                row.wrong.append("it did not go on training")
            return
        following = [r for r in began if r["attempt"] == fault.attempt + 1]
        if len(following) != 1:
            row.wrong.append(f"{len(following)} starts of attempt {fault.attempt + 1}")
            return
        resumed = [r for r in lab.trace(fault.job, "resumed") if r["attempt"] == fault.attempt + 1]
        steps = [r for r in lab.trace(fault.job, "step") if r["attempt"] == fault.attempt + 1]
        row.resumed = resumed[0]["step"] if resumed else None
        if fault.resumes is not None and row.resumed != fault.resumes:
            row.wrong.append(f"it went on from step {row.resumed}, not {fault.resumes}")
        if not steps:
            row.wrong.append("it made no step again")
        else:
            row.recover_seconds = steps[0]["time"] - at
        ours = [
            a
            for a in rows
            if a.outcome and a.outcome.ok and at - PASS_SECONDS < a.action.planned_at < following[0]["time"]
        ]
        row.did = "started again" if ours else "begun anew by Slurm"
        if fault.ours and len(ours) != 1:
            row.wrong.append(f"{len(ours)} restarts of ours")


def play(folder: Path) -> list[Row]:
    """All of it, in `folder`."""
    with FaultMatrix(folder) as matrix:
        matrix.play()
        return matrix.rows()


def _steps(count: int) -> tuple[str, ...]:
    return "--steps", str(count)


def _orders(*orders: str) -> tuple[str, ...]:
    return tuple(word for order in orders for word in ("--do", order))
