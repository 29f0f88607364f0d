"""Healthy jobs that look ill for a while: nobody is told, nothing is done, and they come to their ends."""

from __future__ import annotations

import signal
import time

import pytest

from tests.lab.cluster_watch import ClusterWatch
from tests.lab.slurm import needs_slurm

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.root, needs_slurm, pytest.mark.timeout(300)]
#: A silence of 8 s is too long here, where the watchdog learned nothing else.
HANG = {"minimum": "8s", "factor": 3, "startup": "90s"}
HEALTHY = {
    "evaluates": ("--do", "evaluate:12@30"),
    "saves": ("--do", "save:12@38"),
    "buffers": ("--do", "buffer@1", "--step-seconds", "0.1", "--steps", "250"),
    "pauses": ("--do", "pause:6@30", "--do", "pause:6@60"),
}


def test_healthy_jobs_raise_no_alarm_and_are_left_alone(tmp_path):
    pytest.importorskip("torch")
    with ClusterWatch(tmp_path, nodes=5) as lab:
        for name, words in HEALTHY.items():
            lab.plan(
                name, "--steps", "80", "--plain", *words, ranks=2 if name == "evaluates" else 1, hang=HANG
            )
        lab.begin()
        lab.until(lambda: lab.trained("pauses", 0) > 10, "they train")
        lab.slurm.freeze("slurmctld")
        time.sleep(4.0)
        lab.slurm.freeze("slurmctld", signal.SIGCONT)
        lab.until(lambda: all(lab.done(name) for name in HEALTHY), "all come to their ends")
        lab.until(lambda: all(lab.state(name) == "COMPLETED" for name in HEALTHY), "Slurm has seen it")
        passes = lab.heartbeat()["at"]
        lab.until(lambda: lab.heartbeat()["at"] > passes + 1, "and the watchdog too")
        said = lab.end_watch()

        for name in HEALTHY:
            assert lab.opened(name) == [], name
            assert lab.actions(name) == [], name
            assert len(lab.trace(name, "began")) == 1, name
        assert said.code == 0, said.text
        # it looked all the time
        assert lab.heartbeat()["seen"] == lab.heartbeat()["at"], lab.heartbeat()
        assert "evaluating at step 30" in lab.log("evaluates")
