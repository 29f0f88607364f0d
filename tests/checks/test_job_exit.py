"""How a run ended, and starts that lead nowhere."""

from __future__ import annotations

import pytest

from clustertools.catalog.failures import FailureLine
from clustertools.errors import Unobservable
from clustertools.model import Attempt, Job, Status, from_data
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
    ],
)
def test_a_crash_is_told_with_the_last_words(run, exit_code, reason, how):
    host = MemoryHost()
    host.files[LOG] = "\n".join(f"line {n}" for n in range(50)) + "\nKeyError: 'x'\n\n"
    past = {"attempt": 1, "logs": {}}
    verdict = run("job_exit", host, job=job(exit_code=exit_code, exit_reason=reason), past=past)
    (finding,) = verdict.findings
    assert finding.code == "JobCrashed"
    assert finding.summary == f"run big (attempt 2) ended: {how}"
    # the line that says why, and the end of the log
    assert finding.evidence[0] == finding.evidence[-1] == "KeyError: 'x'"
    assert len(finding.evidence) == 1 + 12
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


@pytest.mark.parametrize(
    ("fields", "code", "summary"),
    [
        ({"ended_by": "time-limit"}, "JobTimeLimit", "run big (attempt 2) reached its time limit"),
        ({"ended_by": "lost", "exit_reason": "Slurm forgot it"}, "JobEndUnknown",
         "run big (attempt 2) is over: Slurm forgot it"),
        ({}, "JobEndUnknown", "run big (attempt 2) is over: nobody saw how it ended"),
        ({"state": "pending", "held": True, "reason": "JobHeldAdmin"}, "JobHeld",
         "run big is held in the queue (JobHeldAdmin): only a person releases it"),
        ({"ended_by": "node-failed", "failed_nodes": ("n1",)}, "JobCrashed",
         "run big (attempt 2) ended: a node of it failed (n1)"),
        ({"ended_by": "out-of-memory", "exit_code": -9}, "JobCrashed",
         "run big (attempt 2) ended: a host ran out of memory"),
    ],
)  # fmt: skip
def test_each_end_has_its_code(run, fields, code, summary):
    (finding,) = run("job_exit", MemoryHost(), job=job(**fields)).findings
    assert (finding.code, finding.summary) == (code, summary)
    assert (finding.status is Status.CRITICAL) == (code == "JobCrashed")


@pytest.mark.parametrize("by", ["person", "preempted", "requeued"])
def test_what_people_and_the_scheduler_end_is_a_note(run, by):
    verdict = run("job_exit", MemoryHost(), job=job(ended_by=by))
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert verdict.detail


def test_a_hold_of_ours_is_no_incident(run):
    held = job(state="pending", held=True, ended_by="us")
    assert run("job_exit", MemoryHost(), job=held).status is Status.SKIPPED


ECC = "[rank3]: RuntimeError: CUDA error: uncorrectable ECC error encountered\n"


def test_failure_lines_are_remembered_while_it_still_runs(run):
    host = MemoryHost()
    host.files[LOG] = "iter 1: loss 3.0\n" + ECC
    running = Job("j#1", "big", "running", attempt=1, nodes=("n1",), log_paths=(LOG,), started_at=5.0)
    verdict = run("job_exit", host, job=running)
    assert verdict.findings == ()
    assert "GpuMemoryUncorrectable" in verdict.detail
    (line,) = [from_data(FailureLine, item) for item in verdict.memory["failures"]]
    assert (line.signature, line.rank) == ("GpuMemoryUncorrectable", 3)
    again = run("job_exit", host, job=running, past=verdict.memory)
    assert again.memory["failures"] == verdict.memory["failures"]


def test_the_next_attempt_starts_with_nothing_against_it(run):
    """Both write to the same log: what the first said is not held against the second."""
    host = MemoryHost()
    host.files[LOG] = ECC
    first = Job("j", "big", "running", attempt=1, nodes=("n1",), log_paths=(LOG,), started_at=5.0)
    before = run("job_exit", host, job=first).memory
    assert len(before["failures"]) == 1
    # the last words of the first, which nobody had read yet, and the first of the second
    host.files[LOG] += "KeyError: 'old'\nstarting\n"
    second = job(exit_code=1)
    verdict = run("job_exit", host, job=second, past=before)
    assert verdict.memory["failures"] == []
    host.files[LOG] += "[rank1]: KeyError: 'new'\n"
    later = run("job_exit", host, job=second, past=verdict.memory)
    assert [item["text"] for item in later.memory["failures"]] == ["KeyError: 'new'"]
    assert later.findings[0].evidence[0] == "KeyError: 'new'"


def test_an_end_that_nobody_saw_is_a_crash_when_the_log_says_so(run):
    host = MemoryHost()
    host.files[LOG] = ECC
    (finding,) = run("job_exit", host, job=job(ended_by="lost"), past={"attempt": 1, "logs": {}}).findings
    assert finding.code == "JobCrashed"


def test_a_log_that_is_away_for_a_moment_forgets_nothing(run):
    host = MemoryHost()
    host.files[LOG] = ECC
    ended = job(exit_code=1)
    before = run("job_exit", host, job=ended, past={"attempt": 1, "logs": {}}).memory
    host.files[LOG] = Unobservable("Stale file handle")
    verdict = run("job_exit", host, job=ended, past=before)
    assert verdict.memory["failures"] == before["failures"]
    assert verdict.memory["logs"] == before["logs"]


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
    assert finding.evidence == tuple(f"attempt {n} from step 10: exit code {n}" for n in (2, 3, 4))


@pytest.mark.parametrize("history", [(0, 0), (0, 0, 0, 1), (None, None, None), ()])
def test_no_loop(run, history):
    assert run("job_restarts", MemoryHost(), job=job(attempts=attempts(*history))).findings == ()
