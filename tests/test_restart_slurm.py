"""A restart on a real Slurm, step by step: stopped, held, begun anew from the file that its script reads."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.actions import Progress, Scene, advance
from clustertools.host import LocalHost
from clustertools.model import Action, Attempt, Job, Subject
from clustertools.schedulers import RunSpec, Wanted
from clustertools.schedulers.slurm import SlurmScheduler
from tests.checkpoint_builders import torch_zip
from tests.lab.slurm import Slurm, cluster, needs_slurm

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180), needs_slurm]

SCRIPT = """#!/bin/sh
[ -r {folder}/resume.sh ] && . {folder}/resume.sh
echo "$SLURM_JOB_ID $SLURM_RESTART_COUNT from ${{CLUSTERTOOLS_RESUME_STEP:-0}}" >> {folder}/starts
exec sleep 300
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with (
        tempfile.TemporaryDirectory(prefix="ct-restart-", ignore_cleanup_errors=True) as folder,
        cluster(Path(folder), nodes=2, extra="JobRequeue=1") as made,
    ):
        yield made


class Lab:
    """One run on the queue, and the steps of its restarts as a watchdog takes them."""

    def __init__(self, slurm: Slurm, folder: Path, name: str) -> None:
        self.slurm, self.folder = slurm, folder
        self.wanted = Wanted(
            name, name=name,
            template=RunSpec(
                name, checkpoint_dir=str(folder / "ck"), resume="file", resume_file=str(folder / "resume.sh"),
                kill_switch=str(folder / "STOP"), preflight=True,
            ),
        )  # fmt: skip
        self.scheduler = SlurmScheduler(LocalHost(), settle_seconds=1)
        self.name = name
        self.attempts: tuple[Attempt, ...] = ()
        self.action = Action("a1", "restart", Subject(run=name), "JobHung:run", "book", "")

    def look(self) -> tuple[RunSpec, Job]:
        (spec,) = self.scheduler.runs((self.wanted,), {self.name: self.attempts})
        job = self.scheduler.job(spec, self.attempts)
        self.attempts = job.attempts
        return spec, job

    def step(self, before: Progress) -> Progress:
        spec, job = self.look()
        evidence = self.folder / "state" / "evidence"
        scene = Scene(LocalHost(), self.scheduler, evidence, time.time(), spec, job, self.attempts)
        progress = advance(self.action, before.step, before.detail, scene)
        if progress.attempt is not None:
            kept = [a for a in self.attempts if a.number != progress.attempt.number]
            self.attempts = (*kept, progress.attempt)
        return progress

    def until(self, step: str) -> Progress:
        progress, end = Progress("capture"), time.monotonic() + 60
        while progress.step != step:
            assert time.monotonic() < end, progress
            before = progress.step
            progress = self.step(progress)
            if progress.step == before:
                time.sleep(0.3)
        return progress

    def starts(self) -> list[str]:
        path = self.folder / "starts"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def lab(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Lab]:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    with tempfile.TemporaryDirectory(prefix="ct-restart-") as text:
        folder, name = Path(text), f"r{abs(hash(request.node.name)) % 10**8}"
        torch_zip(folder / "ck" / "step_30.pt")
        torch_zip(folder / "ck" / "step_40.pt")
        made = Lab(slurm, folder, name)
        job_id = slurm.submit(SCRIPT.format(folder=folder), f"--job-name={name}", "--nodes=1", "--requeue")
        slurm.wait(lambda: made.starts() == [f"{job_id}  from 0"], "its first start")
        yield made
        slurm.run("scancel", f"--name={name}", check=False)


def test_stopped_held_and_begun_anew_without_the_blamed_node(lab: Lab) -> None:
    torn = lab.folder / "ck" / "step_40.pt"
    torn.write_bytes(torn.read_bytes()[:300])
    os.utime(torn, (time.time() - 3600,) * 2)
    _, job = lab.look()
    (node,) = job.nodes
    lab.action = dataclasses.replace(lab.action, options={"exclude": [node], "reason": f"Xid 79 on {node}"})
    queued = lab.until("wait_step")
    job_id = job.id
    lab.slurm.wait(lambda: len(lab.starts()) == 2, "its second start")
    assert lab.starts() == [f"{job_id}  from 0", f"{job_id} 1 from 30"]
    _, again = lab.look()
    assert again.state == "running"
    assert node not in again.nodes
    assert [(a.number, a.job_id, a.requeues) for a in lab.attempts] == [(1, job_id, 0), (2, job_id, 1)]
    assert lab.attempts[1].excluded == (node,)
    # taken up again after a crash, the last step starts nothing
    before = Progress("submit", queued.detail)
    assert lab.step(before).step == "wait_step"
    time.sleep(1)
    assert len(lab.starts()) == 2
    lab.attempts = (lab.attempts[0], dataclasses.replace(lab.attempts[1], first_step=31, last_step=32))
    assert lab.step(queued).said.startswith("training again: step 32 after ")


@pytest.mark.parametrize("how", ["scancel", "switch", "release"])
def test_what_a_person_does_between_the_stop_and_the_start(lab: Lab, how: str) -> None:
    """Cancelled, forbidden, or let go by hand: it starts nothing, and says what was in the way."""
    _, job = lab.look()
    submit = lab.until("submit")
    if how == "scancel":
        lab.slurm.run("scancel", job.id)
    elif how == "switch":
        (lab.folder / "STOP").touch()
    else:
        lab.slurm.run("scontrol", "release", job.id)
        lab.slurm.wait(lambda: len(lab.starts()) == 2, "the start by hand")
    ended = lab.step(submit)
    words = {"scancel": "cancelled by a person", "switch": "STOP exists", "release": "begun anew meanwhile"}
    assert (ended.step, ended.ok) == ("", False)
    assert words[how] in ended.said
    time.sleep(1)
    assert len(lab.starts()) == (2 if how == "release" else 1)
