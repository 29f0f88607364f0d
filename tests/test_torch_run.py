"""The main job whole: a real two-rank DDP run over gloo under `clustertools run`, hurt for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
BIN = Path(sys.executable).parent
STEPS = 90

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", autouse=True)
def _torch():
    pytest.importorskip("torch")


class Supervised:
    """`clustertools run` of the example job in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints, self.state = folder, folder / "ck", folder / "state"
        self.out, self.err = folder / "out.log", folder / "err.log"
        command = [
            BIN / "clustertools", "run", "--name", "ddp", "--state", self.state,
            "--checkpoints", self.checkpoints, "--startup", "90s",
            "--hang-after", "5s", "--stack-gap", "1s", "--interval", "500ms", "--grace", "3s",
            "--", BIN / "torchrun", "--standalone", "--nproc-per-node", "2", EXAMPLES / "train_ddp.py",
            "--steps", str(STEPS), "--save-every", "20", "--checkpoints", self.checkpoints,
        ]  # fmt: skip
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdout=out,
                stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def steps(self) -> list[int]:
        # step 42/90 | loss 0.0602 | grad_norm 0.470 | step_time 0.057
        return [int(n) for n in re.findall(r"^step (\d+)/", self.out.read_text(errors="replace"), re.M)]

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + 90
        while step not in self.steps():
            assert self.child.poll() is None, self.err.read_text()
            assert time.monotonic() < end, f"step {step} was not reached: {self.err.read_text()}"
            time.sleep(0.05)

    def ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.process_iter():
            try:
                if str(self.checkpoints) in process.cmdline() and "RANK" in process.environ():
                    found[int(process.environ()["RANK"])] = process
            except psutil.Error:
                continue
        return found

    def timeline(self) -> list[dict]:
        answer = subprocess.run(
            [BIN / "clustertools", "timeline", "ddp", "--state", self.state, "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.fixture
def job(tmp_path):
    supervised = Supervised(tmp_path)
    yield supervised
    if supervised.child.poll() is None:
        supervised.child.send_signal(signal.SIGTERM)
        supervised.child.wait(60)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]
    assert left == [], "processes were left behind"


def test_a_frozen_rank_is_found_named_and_repaired(job):
    job.wait_for_step(50)
    job.ranks()[1].suspend()
    newest = job.checkpoints / "step_000040.pt"
    torn = job.checkpoints / "step_000045.pt"
    torn.write_bytes(newest.read_bytes()[:-100_000])
    assert job.child.wait(120) == 0, job.err.read_text()

    told = job.err.read_text()
    hung = [e for e in job.timeline() if e["event"] == "opened" and "JobHung" in e["text"]]
    assert len(hung) == 1
    assert "rank 1" in hung[0]["text"]
    assert "state T" in hung[0]["text"]
    assert re.search(r"\| rank 1 \(stopped by a signal, state T\): \w+ \([\w.]+:\d+\)", told)
    assert re.search(r"refused \S*step_000045.pt: .*central directory", told)
    assert "step_000040.pt (step 40, verified)" in told

    steps = job.steps()
    assert steps[-1] == STEPS
    resumed_at = max(i for i in range(1, len(steps)) if steps[i] <= steps[i - 1])
    assert steps[resumed_at] == 41
    starts = [e for e in job.timeline() if e["event"] == "start"]
    assert len(starts) == 2
    (stacks,) = (job.state / "runs/ddp/evidence").glob("*JobHung*/stacks.txt")
    assert "rank 0" in stacks.read_text()
    assert torn.exists(), "nothing is deleted"


def test_a_killed_rank_is_a_crash_and_the_run_goes_on(job):
    job.wait_for_step(30)
    job.ranks()[0].kill()
    assert job.child.wait(120) == 0, job.err.read_text()
    kinds = [(e["event"], e["text"]) for e in job.timeline()]
    life = [k for k, text in kinds if "CRITICAL JobCrashed" in text]
    assert life == ["opened", "resolved"]
    assert job.steps()[-1] == STEPS
    assert sum(k == "start" for k, _ in kinds) == 2
    assert "step_000020.pt (step 20, verified)" in job.err.read_text()
