"""Hung, idle, silent, healthy or blind: the two questions, over a machine in memory and a clock."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools import check as checking
from clustertools.errors import Unobservable
from clustertools.fleet.job_looks import LocalLooker
from clustertools.model import Job, Status
from clustertools.sources.job_look import LookOrder, LookRequest
from tests.lab.memory_host import MemoryHost

LOG = "/scratch/train.log"
WAITING = [("all_reduce", "distributed_c10d.py", 2810), ("step", "train.py", 41), ("main", "train.py", 60)]
LOADING = [("read", "data.py", 7), ("main", "train.py", 38)]


class Run:
    """A two-rank run and the passes over it."""

    def __init__(self, **limits):
        from clustertools.checks.job_progress import Limits

        self.limits = dataclasses.replace(
            Limits(), minimum_silence_seconds=300.0, stack_gap_seconds=60.0, **limits
        )
        self.host = MemoryHost()
        self.looker = LocalLooker(self.host)
        self.looks = 0
        self.job = Job(
            "j#1", "big", "running", 1, ("n1",), (100,), started_at=self.host.time, log_paths=(LOG,)
        )  # fmt: skip
        self.memory: dict = {}
        self.cpu = 0.0
        self.host.files[LOG] = ""
        self.host.process(100)
        self.ranks()
        for pid in (101, 102):
            self.host.stack(pid, WAITING)

    def ranks(self, state="S"):
        self.host.process(101, 100, rank=0, cpu_seconds=self.cpu)
        self.host.process(102, 100, rank=1, cpu_seconds=self.cpu, state=state)

    def say(self, text):
        self.host.files[LOG] += text + "\n"

    def steps(self, first, last):
        for n in range(first, last + 1):
            self.say(f"step {n}/1000 | loss 2.5")

    def look(self, after=30.0, busy=0.0, state="S"):
        self.host.time += after
        self.cpu += busy * after
        self.ranks(state)
        check = checking.discover(site_folders=())["job_progress"]
        how = {"limits": self.limits, "past": self.memory, "job": self.job}
        verdict = checking.run(check, self.host, **how)
        if verdict.wants_look:
            self.looks += 1
            order = LookOrder(LookRequest(run=self.job.run, roots=self.job.pids, seconds=5.0), self.job.nodes)
            looked = self.looker.look([order])[self.job.run]
            verdict = checking.run(check, self.host, looked=looked, **how)
        self.memory = dict(verdict.memory)
        return verdict

    def train(self, passes=10):
        """Ten steps a pass, a pass each 30 s."""
        for n in range(passes):
            self.steps(10 * n + 1, 10 * n + 10)
            verdict = self.look(busy=1.0)
            assert (verdict.status, verdict.codes) == (Status.OK, frozenset())
        return 10 * passes


@pytest.fixture
def big():
    return Run()


def found(run, passes, **how):
    return [run.look(**how).codes for _ in range(passes)]


def test_a_healthy_run_is_healthy_and_tells_its_steps(big):
    last = big.train()
    readings = {r.name: r.value for r in big.look().readings}
    assert readings["job_last_step"] == last
    assert readings["job_first_step"] == 1


def test_hung_needs_silence_and_a_second_sign(big):
    big.train()
    codes = found(big, 14)
    assert codes[:10] == [frozenset()] * 10, "no alarm within the limit"
    assert codes[-1] == {"JobHung"}
    finding = big.look().findings[0]
    assert finding.status is Status.CRITICAL
    assert "stuck at step 100" in finding.summary
    assert any("all 2 ranks stand at the same line" in line for line in finding.evidence)
    assert any(line.startswith("ranks 0-1: all_reduce") for line in finding.evidence)


def test_a_stopped_rank_is_a_sign_by_itself_and_is_named(big):
    big.train()
    for pid in (101, 102):
        big.host.stack(pid, Unobservable("py-spy is not allowed to look into the process"))
    for _ in range(12):
        verdict = big.look(state="T")
    assert verdict.codes == {"JobHung"}
    assert "(pid 102) is stopped by a signal, state T" in verdict.findings[0].summary


def test_silent_without_a_sign_is_only_a_warning(big):
    big.train()
    for n in range(14):
        big.host.stack(101, [("evaluate", "train.py", n), *LOADING])
        verdict = big.look(busy=1.0)
    assert verdict.codes == {"JobSilent"}
    assert verdict.status is Status.WARNING


def test_a_new_step_ends_it(big):
    big.train()
    assert found(big, 14)[-1] == {"JobHung"}
    big.steps(101, 101)
    assert big.look().codes == frozenset()


def test_a_long_evaluation_that_was_lived_through_is_no_hang(big):
    big.train(4)
    big.say("evaluating ...")
    big.say("step 40: train loss 2.4, val loss 2.5")
    for round_ in range(3):
        assert found(big, 5, busy=1.0) == [frozenset()] * 5, round_
        big.steps(41 + 10 * round_, 50 + 10 * round_)
        big.look(busy=1.0)


def test_the_watchdogs_own_gap_is_not_silence(big):
    big.train()
    assert big.look(after=3600.0).codes == frozenset()
    assert found(big, 9) == [frozenset()] * 9, "an hour in which nobody looked does not count"
    assert found(big, 4)[-1] == {"JobHung"}


def test_starting_is_given_its_time_and_then_idle_is_idle(big):
    first = big.look()
    assert first.status is Status.SKIPPED
    assert "no step yet" in first.detail
    verdicts = [big.look(after=60.0) for _ in range(31)]
    assert {v.status for v in verdicts[:27]} == {Status.SKIPPED}
    assert verdicts[-1].codes == {"JobIdle"}
    assert "never made a step" in verdicts[-1].findings[0].summary


def test_a_slow_start_that_works_is_not_idle(big):
    codes = set()
    for n in range(33):
        big.host.stack(101, [("compile", "inductor.py", n)])
        codes |= big.look(after=60.0, busy=1.0).codes
    assert "JobIdle" not in codes
    assert "JobHung" not in codes


def test_finished_and_not_ended_is_idle(big):
    big.train()
    big.say("training complete")
    big.look()
    verdict = [big.look() for _ in range(14)][-1]
    assert verdict.codes == {"JobIdle"}
    assert "finished but has not ended" in verdict.findings[0].summary


def test_an_unreadable_log_is_blindness_and_no_finding(big):
    big.train()
    big.host.files[LOG] = Unobservable(f"{LOG}: Stale file handle")
    for _ in range(20):
        verdict = big.look(state="T")
        assert (verdict.status, verdict.codes) == (Status.UNKNOWN, frozenset())
        assert "Stale file handle" in verdict.blind


def test_blind_time_does_not_count_as_silence_when_sight_returns(big):
    big.train()
    text = big.host.files[LOG]
    big.host.files[LOG] = Unobservable("stale")
    found(big, 40)
    big.host.files[LOG] = text
    assert big.look().codes == frozenset()


def test_a_log_that_never_appears_is_blindness(big):
    del big.host.files[LOG]
    assert big.look().status is Status.SKIPPED
    assert "does not exist" in big.look(after=400.0).blind


def test_a_log_without_steps_is_blindness_not_a_hang(big):
    for n in range(40):
        big.say(f"all is well, {n} of nothing in particular")
        verdict = big.look(after=60.0, busy=1.0)
    assert verdict.status is Status.UNKNOWN
    assert "no step is recognised" in verdict.blind


def test_no_log_at_all_is_blindness(big):
    big.job = dataclasses.replace(big.job, log_paths=())
    assert "say --log or --metrics" in big.look().blind


def test_a_new_attempt_begins_anew(big):
    big.train()
    assert found(big, 14)[-1] == {"JobHung"}
    big.job = dataclasses.replace(big.job, attempt=2, log_paths=(LOG + ".2",), started_at=big.host.time)
    big.host.files[LOG + ".2"] = ""
    verdict = big.look()
    assert verdict.status is Status.SKIPPED
    assert "job_last_step" not in {r.name for r in verdict.readings}, (
        "the old attempt's steps are not its own"
    )
    big.host.files[LOG + ".2"] = "step 61/1000 | loss 2.0\n"
    assert {r.name: r.value for r in big.look().readings}["job_last_step"] == 61


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": "pending"}, "pending"),
        ({"state": "ended", "ended_by": "us"}, "we ended the job"),
        ({"exit_reason": "clustertools: JobHung:run:big"}, "stopped by us"),
    ],
)
def test_what_is_not_training_is_not_judged(big, changes, why):
    big.train()
    found(big, 14)
    big.job = dataclasses.replace(big.job, **changes)
    verdict = big.look(state="T")
    assert verdict.status is Status.SKIPPED
    assert why in verdict.detail


def test_what_was_wrong_with_the_steps_of_a_job_that_ended_is_over(big):
    big.train()
    found(big, 14)
    big.job = dataclasses.replace(big.job, state="ended", ended_by="person")
    assert big.look(state="T").status is Status.OK


def test_a_broken_memory_is_no_reason_to_fall_over(big):
    big.train()
    big.memory["tracker"] = {"from": "another version"}
    assert big.look().codes == frozenset()
