"""What the logs of real crashes are taken for: read, diagnosed, decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustertools.diagnose import Evidence, diagnose
from clustertools.host import LocalHost
from clustertools.model import Attempt, Job
from clustertools.restarts import decide
from clustertools.sources.failures import read_failures

LOGS = Path(__file__).parent / "failure_logs"
NOW = 1_795_300_000.0

# log: cause, advice, rank that is named (None: nobody), what is done about a first start that trained, and
# about one that never made a step
EXPECTED = {
    "exception": ("UncaughtException", "same", 1, "restart", "restart"),
    "exception-record": ("UncaughtException", "same", 1, "restart", "restart"),
    "keyerror": ("CodeError", "stop", 1, "stop", "stop"),
    "tee": ("CodeError", "stop", 1, "stop", "stop"),
    "kill": ("ProcessKilled", "same", 1, "restart", "restart"),
    "segv": ("SegmentationFault", "same", 1, "restart", "restart"),
    # who aborts says nothing of the cause: NCCL's watchdog does it on every survivor
    "abort": ("", "none", None, "restart", "restart"),
    "oom": ("HostAllocationFailed", "same", 1, "restart", "stop"),
    "mismatch": ("CollectiveMismatch", "same", 1, "restart", "stop"),
    "shape": ("CollectiveMismatch", "same", None, "restart", "stop"),
    # torchrun calls the survivor that waited in vain the root cause
    "sleep": ("", "none", None, "restart", "restart"),
    "barrier": ("", "none", None, "restart", "restart"),
    "full": ("StorageFull", "wait", 1, "hold", "hold"),
    "torn": ("CheckpointTorn", "same", 1, "restart", "restart"),
    "misfit": ("CheckpointMisfit", "stop", None, "stop", "stop"),
    "module": ("ModuleMissing", "stop", None, "stop", "stop"),
    "args": ("WrongArguments", "stop", None, "stop", "stop"),
    "worker": ("DataWorkerDied", "same", 1, "restart", "restart"),
    "nan": ("LossNotFinite", "same", 1, "restart", "restart"),
    "rendezvous": ("RendezvousFailed", "same", None, "restart", "restart"),
    "rendezvous-master": ("RendezvousFailed", "same", None, "restart", "restart"),
    "port": ("PortTaken", "same", None, "restart", "restart"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_real_crash_is_taken_for(name):
    cause, advice, rank, trained, never = EXPECTED[name]
    look = read_failures(LocalHost(), str(LOGS / f"{name}.log"), {}, now=NOW, nodes=("n1",))
    job = Job("1", "big", "ended", 1, ("n1",), started_at=NOW - 7200, ended_at=NOW, exit_code=1)
    told = diagnose(Evidence(job, look.lines, rank_nodes={0: "n1", 1: "n1"}, world_size=2))
    assert (told.cause, told.advice, told.blamed) == (cause, advice, ())
    if rank is not None:
        first = told.lines[0]
        assert first.startswith(f"rank {rank}: "), first
    for last_step, kind in ((5000, trained), (0, never)):
        attempt = Attempt(
            "big", 1, "x", started_at=NOW - 60, ended_at=NOW, last_step=last_step, nodes=("n1",)
        )
        decision = decide([attempt], job, told, codes=frozenset({"JobCrashed"}), now=NOW + 1)
        assert decision.kind == kind, decision


# what srun and slurmstepd of a real Slurm write: cause, nodes that are blamed, the first that is named
SLURM = {
    "slurm-exit": ("ProcessFailed", (), ""),
    "slurm-signal": ("ProcessKilled", (), "n1"),
    "slurm-segv": ("SegmentationFault", (), "n2"),
    "slurm-launch": ("FileMissing", (), ""),
    "slurm-nodefail": ("SlurmNodeFailure", ("n2",), "n2"),
    # these ends are the scheduler's to tell
    "slurm-cancelled": ("", (), ""),
    "slurm-requeued": ("", (), ""),
    "slurm-timelimit": ("", (), ""),
}


@pytest.mark.parametrize("name", SLURM)
def test_what_the_words_of_slurm_are_taken_for(name):
    cause, blamed, named = SLURM[name]
    nodes = ("n1", "n2")
    look = read_failures(LocalHost(), str(LOGS / f"{name}.log"), {}, now=NOW, nodes=nodes)
    told = diagnose(Evidence(Job("1", "big", "ended", 1, nodes, ended_at=NOW), look.lines))
    assert (told.cause, told.blamed) == (cause, blamed)
    assert [s.node for s in told.suspects][:1] == ([named] if named else [])


def test_every_log_is_expected_to_be_something():
    assert {path.stem for path in LOGS.glob("*.log")} == EXPECTED.keys() | SLURM.keys()
