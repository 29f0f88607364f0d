"""A restart on a queue, killed at every commit, before it and after it: never doubled, never lost.

The queue keeps what a real one keeps (a job's number, its restarts, a hold, a mark); each time the watchdog
dies another one takes over the same state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clustertools.model import Attempt, Job
from clustertools.schedulers import NodeState, RunSpec
from clustertools.store import Store
from clustertools.watchdog import Watchdog
from tests.lab.watching import NOON, RESTART, Machine, WatchLab, job_check_of

BIG = RunSpec("big", grace_seconds=10.0, preflight=True, kill_switch="/etc/stop")


class Killed(BaseException):
    """The watchdog ends here, as by SIGKILL."""


class MortalStore(Store):
    """Dies at one of its commits, counted over all watchdogs of a test."""

    commits = 0
    at, when = 0, ""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.counts = True
        # a machine that loses power is another test's
        self._db.execute("PRAGMA synchronous=OFF")

    def commit(self) -> None:
        MortalStore.commits += self.counts
        mine = self.counts and MortalStore.commits == MortalStore.at
        if mine and MortalStore.when == "before":
            raise Killed
        super().commit()
        if mine:
            raise Killed


class Queue:
    """One job, number 4711, that is put back and held to stop it, and let go to start it."""

    kind = "slurm"
    supported = frozenset({"restart", "exclude", "capture", "cancel"})

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.state = "running"
        self.restarts = 0
        self.mark = "t1"
        self.starts: list[str] = []
        self.holds = 0
        self.excluded: tuple[str, ...] = ()

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        number = next((a.number for a in attempts if a.token == self.mark), attempts[-1].number)
        if self.state == "held":
            return Job("4711", "big", "ended", number, ("n1",), attempts=attempts, ended_by="us")
        return Job("4711", "big", "running", number, ("n1", "n9"), attempts=attempts)

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        if self.mark != attempt.token:
            assert self.state == "held", "a second copy"
            self.mark, self.state, self.excluded = attempt.token, "running", attempt.excluded
            self.starts.append(attempt.token)
            self.machine.faults.clear()
        return "4711"

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        if self.state == "running":
            self.state, self.restarts, self.holds = "held", self.restarts + 1, self.holds + 1

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return []

    def preview(self, kind: str, target: Any, options: Mapping[str, Any]) -> str:
        return f"{kind} {target}"

    def nodes(self) -> Mapping[str, NodeState]:
        return {"n1": NodeState("n1", True, False), "n9": NodeState("n9", False, False, "bad", "DOWN")}

    def drain(self, node: str, reason: str) -> None:
        raise AssertionError(node)

    resume = drain  # type: ignore[assignment]


class Lab(WatchLab):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, mode="act")
        self.queue = Queue(self.machine)
        self.machine.fault("JobStuck")
        with self.store.transaction():
            first = Attempt("big", 1, "t1", "4711", NOON, first_step=1, last_step=9, excluded=("n5",))
            self.store.put_attempt(first)
        self.store.close()
        self.begin()

    def begin(self) -> None:
        """Another watchdog over the same state and the same queue."""
        self.store: MortalStore = MortalStore(self.folder / "state.db")
        self.watchdog = Watchdog(
            self.store, self.machine, self.queue, [job_check_of(self.machine)], specs=[BIG],
            playbooks=(RESTART,),
            settings=dataclasses.replace(self.watchdog.settings, mode="act"),
            evidence_folder=self.folder / "evidence",
        )  # fmt: skip

    def live(self, passes: int) -> bool:
        """Some passes; whether it died, and another one took over."""
        died = False
        for _ in range(passes):
            try:
                self.pass_()
            except Killed:
                died = True
                self.store.close()
                self.begin()
            self._train()
        return died

    def _train(self) -> None:
        """What the run does meanwhile: its new start makes steps."""
        newest = self.store.attempts("big")[-1]
        if newest.token == self.queue.mark and newest.number > 1 and newest.job_id:
            self.store.counts = False
            with self.store.transaction():
                self.store.put_attempt(dataclasses.replace(newest, first_step=1, last_step=3))
            self.store.counts = True

    def outcomes(self) -> list[tuple[bool, str]]:
        rows = self.store.actions()
        return [(r.outcome.ok, r.outcome.detail) for r in rows if r.outcome is not None]


def one_life(folder: Path, at: int, when: str) -> tuple[Lab, bool]:
    MortalStore.commits, MortalStore.at, MortalStore.when = 0, at, when
    folder.mkdir()
    lab = Lab(folder)
    died = lab.live(12)
    return lab, died


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_commit_it_is_begun_anew_once(tmp_path: Path, when: str) -> None:
    for at in range(1, 200):
        lab, died = one_life(tmp_path / f"{when}-{at}", at, when)
        if not died:
            break
        attempts = lab.store.attempts("big")
        assert len(lab.queue.starts) == 1, f"commit {at}: {lab.queue.starts}"
        assert lab.queue.holds == 1, f"commit {at}"
        assert lab.queue.excluded == ("n5",), f"commit {at}"
        assert [a.number for a in attempts] == [1, 2], f"commit {at}"
        assert attempts[1].token == lab.queue.starts[0], f"commit {at}"
        assert [ok for ok, _ in lab.outcomes()] == [True], f"commit {at}: {lab.outcomes()}"
        assert lab.outcomes()[0][1].startswith("training again: step 3"), f"commit {at}"
        lab.store.close()
    assert at > 12, "it was killed at every step of the sequence"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["person", "switch"])
def test_overtaken_at_every_step_nothing_is_started(tmp_path: Path, kind: str) -> None:
    """A person cancels, or sets the kill switch, after each number of passes: nothing starts from then on."""
    held = 0
    for passes in range(7):
        MortalStore.commits, MortalStore.at = 0, 0
        folder = tmp_path / f"{kind}-{passes}"
        folder.mkdir()
        lab = Lab(folder)
        lab.live(passes)
        started = list(lab.queue.starts)
        if kind == "switch":
            lab.machine.files["/etc/stop"] = ""
        else:
            job = lab.queue.job
            lab.queue.job = lambda spec, attempts, job=job: dataclasses.replace(  # type: ignore[method-assign]
                job(spec, attempts), state="ended", ended_by="person"
            )
        lab.live(8)
        assert lab.queue.starts == started, passes
        held += not started
        lab.store.close()
    assert held >= 4
