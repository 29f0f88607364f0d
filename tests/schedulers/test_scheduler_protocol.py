"""The same promises of every scheduler: on this machine, and on a real Slurm."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustertools.host import LocalHost
from clustertools.model import Attempt, Job
from clustertools.schedulers import FindsRuns, KnowsNodes, RunSpec, Scheduler, Wanted
from clustertools.schedulers.local import LocalScheduler
from clustertools.schedulers.slurm import SlurmScheduler
from tests.lab.runs import marked, until
from tests.lab.slurm import Slurm, needs_slurm

_numbers = itertools.count()


class Run:
    """One run of a shell script under one scheduler, and what a watchdog would know of it."""

    def __init__(self, folder: Path, renew: Callable[[], Scheduler]) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.renew = renew
        self.scheduler = renew()
        self.name = f"run{os.getpid()}x{next(_numbers)}"
        self.attempts: tuple[Attempt, ...] = ()
        self.spec = RunSpec(self.name, cwd=str(self.work))

    def token(self, number: int) -> str:
        return f"{self.name}.{number}"

    def start(self, script: str) -> str:
        """Write a script down, decide an attempt, and submit it."""
        path = self.work / "script"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        command: tuple[str, ...] = ("sh", str(path))
        if self.scheduler.kind == "slurm":
            command = ("sbatch", f"--job-name={self.name}", "--output=out-%j", "--time=5", str(path))
        self.spec = dataclasses.replace(self.spec, command=command)
        return self.again()

    def again(self) -> str:
        number = len(self.attempts) + 1
        self.attempts += (Attempt(self.name, number, self.token(number), started_at=time.time()),)
        return self.submit()

    def submit(self) -> str:
        job_id = self.scheduler.submit(self.spec, self.attempts[-1])
        self.attempts = (*self.attempts[:-1], dataclasses.replace(self.attempts[-1], job_id=job_id))
        return job_id

    def job(self) -> Job:
        if isinstance(self.scheduler, FindsRuns):
            wanted = Wanted(self.name, name=self.name, template=self.spec)
            specs = self.scheduler.runs((wanted,), {self.name: self.attempts})
            assert [spec.name for spec in specs] == [self.name]
        job = self.scheduler.job(self.spec, self.attempts)
        self.attempts = job.attempts
        if job.state == "ended" and not job.attempts[-1].end:
            self.attempts = (*job.attempts[:-1], dataclasses.replace(job.attempts[-1], end="ended"))
        return job

    def until(self, state: str) -> Job:
        until(lambda: self.job().state == state, f"{self.name} is {state}, not {self.job()}", 30)
        return self.job()

    def cancel(self, *, force: bool = False) -> None:
        self.scheduler.cancel(self.spec, self.job(), "clustertools: test", force=force)

    def file(self, name: str) -> str:
        until((self.work / name).exists, name, 30)
        until((self.work / name).read_text, f"{name} has content")
        return (self.work / name).read_text()


@pytest.fixture(
    params=[
        "local",
        pytest.param(
            "slurm", marks=[pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(120), needs_slurm]
        ),
    ]
)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    if request.param == "local":
        made = Run(tmp_path, lambda: LocalScheduler(tmp_path / "attempts", "n1"))
        yield made
        for number in range(1, len(made.attempts) + 1):
            for pid in marked(f"CLUSTERTOOLS_ATTEMPT={made.token(number)}"):
                os.kill(pid, signal.SIGKILL)
        return
    slurm: Slurm = request.getfixturevalue("slurm")
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    made = Run(tmp_path, lambda: SlurmScheduler(LocalHost(), settle_seconds=1))
    yield made
    slurm.run("scancel", f"--name={made.name}", check=False)


def test_what_it_is(run: Run) -> None:
    scheduler = run.scheduler
    assert {"capture", "cancel", "restart", "notify", "silence"} <= scheduler.supported
    assert isinstance(scheduler, KnowsNodes) == isinstance(scheduler, FindsRuns)
    assert isinstance(scheduler, KnowsNodes) == ("drain" in scheduler.supported)


def test_it_runs_and_ends_well(run: Run) -> None:
    before = time.time() - 2
    run.start("echo begun > begun; until [ -e go ]; do sleep 0.05; done")
    assert run.file("begun") == "begun\n"  # in its own folder
    job = run.until("running")
    assert (job.run, job.attempt, job.ended_by, job.exit_code) == (run.name, 1, "", None)
    assert job.nodes
    assert before <= job.started_at <= time.time()
    (run.work / "go").touch()
    job = run.until("ended")
    assert (job.exit_code, job.attempt) == (0, 1)
    assert before <= job.ended_at <= time.time() + 1
    assert not run.scheduler.leftovers(run.spec, job)


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -SEGV $$", -11)])
def test_it_crashes(run: Run, end: str, code: int) -> None:
    run.start(end)
    assert run.until("ended").exit_code == code


def test_the_same_attempt_begins_once(run: Run) -> None:
    first = run.start("echo $$ >> starts; until [ -e go ]; do sleep 0.05; done")
    run.file("starts")
    run.scheduler = run.renew()  # a watchdog that was killed after its submit knows nothing of it
    run.attempts = (dataclasses.replace(run.attempts[-1], job_id=""),)
    assert run.submit() == first
    (run.work / "go").touch()
    run.until("ended")
    assert len(run.file("starts").split()) == 1


def test_a_cancel_ends_it_for_good(run: Run) -> None:
    run.start("echo 1 >> starts; exec sleep 300")
    run.file("starts")
    run.until("running")
    run.cancel()
    run.cancel()
    job = run.until("ended")
    assert job.attempt == 1
    assert not run.scheduler.leftovers(run.spec, job)
    run.cancel(force=True)
    time.sleep(1)
    assert run.job().state == "ended"
    assert run.file("starts") == "1\n"


def test_the_deaf_end_too(run: Run) -> None:
    run.start("trap '' TERM; echo 1 > deaf; while :; do sleep 0.05; done")
    run.file("deaf")
    run.until("running")
    run.cancel()
    run.cancel(force=True)
    run.until("ended")


def test_it_is_begun_again_as_the_next_attempt(run: Run) -> None:
    run.start("echo $$ >> starts; exec sleep 300")
    run.file("starts")
    run.until("running")
    run.cancel()
    run.until("ended")
    again = run.again()
    assert run.submit() == again
    job = run.until("running")
    assert (job.attempt, [a.token for a in job.attempts]) == (2, [run.token(1), run.token(2)])
    until(lambda: len(run.file("starts").split()) == 2, "the second start")
    run.scheduler = run.renew()
    assert run.submit() == again
    time.sleep(0.5)
    assert len(run.file("starts").split()) == 2


def test_one_that_crashed_is_begun_again(run: Run) -> None:
    run.start("echo $$ >> starts; [ -e fixed ] || exit 5; exec sleep 300")
    assert run.until("ended").exit_code == 5
    (run.work / "fixed").touch()
    run.again()
    assert run.until("running").attempt == 2
    until(lambda: len(run.file("starts").split()) == 2, "the second start")
