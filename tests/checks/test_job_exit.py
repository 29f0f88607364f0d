"""How a run ended, and starts that lead nowhere."""

from __future__ import annotations

import pytest

from clustertools.errors import Unobservable
from clustertools.model import Attempt, Job, Status
from tests.lab.memory_host import MemoryHost

LOG = "/scratch/train.log"


def job(**more):
    more.setdefault("state", "ended")
    return Job("j#1", "big", attempt=2, nodes=("n1",), log_paths=(LOG,), started_at=5.0, **more)


@pytest.mark.parametrize(
    ("exit_code", "reason", "how"),
    [
        (1, "", "exit code 1"),
        (-9, "", "killed by signal 9"),
        (None, "the node rebooted", "the node rebooted"),
        (None, "", "nobody saw how it ended"),
    ],
)
def test_a_crash_is_told_with_the_last_words(run, exit_code, reason, how):
    host = MemoryHost()
    host.files[LOG] = "\n".join(f"line {n}" for n in range(50)) + "\nKeyError: 'x'\n\n"
    verdict = run("job_exit", host, job=job(exit_code=exit_code, exit_reason=reason))
    (finding,) = verdict.findings
    assert finding.code == "JobCrashed"
    assert finding.summary == f"run big (attempt 2) ended: {how}"
    assert finding.evidence[-1] == "KeyError: 'x'"
    assert len(finding.evidence) == 12
    assert (finding.nodes, finding.since) == (("n1",), 5.0)


def test_a_log_that_cannot_be_read_does_not_hide_the_crash(run):
    host = MemoryHost()
    host.files[LOG] = Unobservable("Stale file handle")
    (finding,) = run("job_exit", host, job=job(exit_code=1)).findings
    assert finding.evidence == ("the log could not be read: Stale file handle",)
    assert run("job_exit", MemoryHost(), job=job(exit_code=1)).findings[0].evidence == ()


def test_ends_that_are_no_crash(run):
    assert run("job_exit", MemoryHost(), job=job(exit_code=0)).status is Status.OK
    ours = run("job_exit", MemoryHost(), job=job(exit_code=-15, exit_reason="clustertools: JobHung:run:big"))
    assert ours.status is Status.SKIPPED
    assert run("job_exit", MemoryHost(), job=job(state="running")).status is Status.OK
    assert run("job_exit", MemoryHost(), job=job(state="unknown")).status is Status.SKIPPED


def attempts(*new_steps):
    return tuple(
        Attempt("big", n, str(n), end=f"exit code {n}", ended_at=1.0, resume_step=10,
                last_step=None if new is None else 10 + new)
        for n, new in enumerate(new_steps, 1)
    )  # fmt: skip


def test_a_crash_loop_is_told_with_each_end(run):
    verdict = run("job_restarts", MemoryHost(), job=job(exit_code=1, attempts=attempts(5, 0, 0, 0)))
    (finding,) = verdict.findings
    assert finding.code == "JobCrashLoop"
    assert finding.evidence == tuple(f"attempt {n}: exit code {n}" for n in (2, 3, 4))


@pytest.mark.parametrize("history", [(0, 0), (0, 0, 0, 1), (None, None, None), ()])
def test_no_loop(run, history):
    assert run("job_restarts", MemoryHost(), job=job(attempts=attempts(*history))).findings == ()
