"""A restart where others have a say: a queue, people who hold and cancel, nodes that are not good."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from clustertools.actions import Progress, Scene, advance, sequence
from clustertools.actions.choose import EXCLUDED_SECONDS, excluded_nodes
from clustertools.actions.restart import COMPLETING_SECONDS, attempt_token
from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import FileStat, LocalHost
from clustertools.model import Action, Attempt, Job, Subject
from clustertools.schedulers import NodeState, RunSpec
from tests.checkpoint_builders import torch_zip

FIRST = Attempt("r", 1, "t1", "4711", 10.0, last_step=45, nodes=("n1", "n2", "n3"))
PLANNED = Action("JobHung:run:r@1/0:restart", "restart", Subject(run="r"), "JobHung:run:r", "book", "again")


class Queue:
    """A scheduler with nodes and a queue that a test sets; notes what it is asked for."""

    kind = "slurm"
    supported = frozenset({"restart", "requeue", "exclude"})

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.left: list[int] = []
        self.states: dict[str, NodeState] = {}
        self.silent = ""
        self.job_id = "4711"
        self.submitted: Attempt | None = None

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        raise AssertionError("a step looks at the job of its scene")

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        self.asked.append(f"submit {attempt.number}")
        self.submitted = attempt
        return self.job_id

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        self.asked.append("kill" if force else "end")

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return self.left

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        return ""

    def nodes(self) -> Mapping[str, NodeState]:
        if self.silent:
            raise Unobservable(self.silent)
        return self.states

    def drain(self, node: str, reason: str) -> None:
        self.asked.append(f"drain {node} {reason}")

    def resume(self, node: str) -> None:
        self.asked.append(f"resume {node}")


class Unseeing(LocalHost):
    """This machine; nobody can look at the files in `unseen`."""

    unseen: frozenset[str] = frozenset()

    def stat(self, path: str) -> FileStat:
        if path in self.unseen:
            raise Unobservable(f"{path}: Stale file handle")
        return super().stat(path)


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.action = PLANNED
        self.host = Unseeing("n1")
        self.queue = Queue()
        self.now = 100_000.0
        self.attempts: tuple[Attempt, ...] = (FIRST,)
        self.spec = RunSpec("r", checkpoint_dir=str(folder / "ck"), grace_seconds=30.0, resume="none")
        self.job = Job("4711", "r", "running", 1, ("n1", "n2", "n3"))
        self.more: tuple[Attempt, ...] = ()
        self.node_check: Any = None

    def step(self, name: str, detail: Mapping[str, Any] | None = None) -> Progress:
        job = dataclasses.replace(self.job, attempts=(*self.attempts, *self.more))
        scene = Scene(
            self.host, self.queue, self.folder / "evidence" / "one", self.now, self.spec, job, self.attempts,
            node_check=self.node_check,
        )  # fmt: skip
        progress = advance(self.action, name, detail or {}, scene)
        if progress.attempt is not None:  # as the watchdog writes it down
            kept = [a for a in self.attempts if a.number != progress.attempt.number]
            self.attempts = (*kept, progress.attempt)
        return progress

    def become(self, **changes: Any) -> None:
        self.job = dataclasses.replace(self.job, **changes)

    def until(self, last: str) -> Progress:
        """Every step up to `last`, of a job that Slurm puts back into the queue and holds."""
        progress = self.step("capture")
        while progress.step != last:
            before = progress.step
            progress = self.step(before, progress.detail)
            if before == "stop":
                self.become(state="pending", held=True, reason="JobHeldUser", ended_by="us")
        return progress


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "ck").mkdir()
    return Stage(tmp_path)


def test_a_job_that_is_put_back_and_held_is_begun_anew_under_its_number(stage: Stage) -> None:
    submit = stage.until("submit")
    assert stage.queue.asked == ["end"]
    started = stage.step("submit", submit.detail)
    assert (started.step, stage.queue.asked) == ("wait_step", ["end", "submit 2"])
    assert started.attempt is not None
    assert (started.attempt.job_id, started.attempt.requeues) == ("4711", 1)


def test_a_job_with_a_new_number_was_not_requeued(stage: Stage) -> None:
    submit = stage.until("submit")
    stage.queue.job_id = "4712"
    started = stage.step("submit", submit.detail).attempt
    assert started is not None
    assert (started.job_id, started.requeues) == ("4712", 0)


# people and the scheduler


STEPS_THAT_START = ("stop", "wait_end", "choose", "submit")


def at(stage: Stage, name: str) -> Mapping[str, Any]:
    return stage.step("capture").detail if name == "stop" else stage.until(name).detail


@pytest.mark.parametrize("name", STEPS_THAT_START)
def test_a_run_that_a_person_cancelled_meanwhile_is_left_alone(stage: Stage, name: str) -> None:
    detail = at(stage, name)
    asked = list(stage.queue.asked)
    stage.become(state="ended", held=False, ended_by="person", exit_reason="CANCELLED by 1000")
    says = r"r was cancelled by a person \(CANCELLED by 1000\): nothing is started"
    if name == "submit":
        given_up = stage.step(name, detail)
        assert (given_up.step, given_up.ok) == ("", False)
        assert given_up.attempt is not None
        assert given_up.attempt.end.startswith("clustertools: not started: r was cancelled by a person")
        assert given_up.attempt.new_steps is None, "it was no start, so it does not count as one"
    else:
        with pytest.raises(ActionFailed, match=says):
            stage.step(name, detail)
    assert stage.queue.asked == asked


def test_a_person_may_order_the_restart_of_what_a_person_cancelled(stage: Stage) -> None:
    stage.become(state="ended", ended_by="person")
    detail = stage.step("capture").detail
    with pytest.raises(ActionFailed, match="cancelled by a person"):
        stage.step("stop", detail)
    stage.action = dataclasses.replace(PLANNED, playbook="", because="asked by a person")
    assert stage.step("stop", detail).step == "choose"


@pytest.mark.parametrize("name", STEPS_THAT_START)
def test_what_slurm_began_anew_by_itself_is_not_begun_twice(stage: Stage, name: str) -> None:
    detail = at(stage, name)
    asked = list(stage.queue.asked)
    stage.become(state="running", held=False, ended_by="", attempt=9)
    stage.more = (Attempt("r", 9, "theirs", "4711", requeues=1),)
    if name == "submit":
        assert "begun anew meanwhile" in stage.step(name, detail).said
    else:
        with pytest.raises(ActionFailed, match=r"begun anew meanwhile, .* \(attempt 9, job 4711\)"):
            stage.step(name, detail)
    assert stage.queue.asked == asked


def test_what_somebody_else_holds_is_never_released(stage: Stage) -> None:
    stage.become(state="pending", held=True, reason="JobHeldAdmin")
    detail = stage.step("capture").detail
    with pytest.raises(ActionFailed, match=r"held by somebody else \(JobHeldAdmin\): only they"):
        stage.step("stop", detail)
    assert stage.queue.asked == []


def test_a_crash_after_the_hold_and_before_it_was_written_down(stage: Stage) -> None:
    detail = stage.step("capture").detail
    stage.become(state="pending", held=True, reason="JobHeldUser", exit_reason="clustertools: JobHung")
    assert stage.step("stop", detail).step == "choose"


def test_a_state_that_nobody_tells_is_waited_for(stage: Stage) -> None:
    detail = stage.step("capture").detail
    stage.become(state="unknown")
    with pytest.raises(Unobservable, match="does not tell"):
        stage.step("stop", detail)
    assert stage.queue.asked == []


# the kill switch


@pytest.mark.parametrize("name", ["stop", "submit"])
@pytest.mark.parametrize("how", ["exists", "unseen"])
def test_the_kill_switch_starts_nothing(stage: Stage, name: str, how: str) -> None:
    switch = stage.folder / "STOP"
    stage.spec = dataclasses.replace(stage.spec, kill_switch=str(switch))
    detail = at(stage, name)
    asked = list(stage.queue.asked)
    if how == "unseen":
        stage.host.unseen = frozenset((str(switch),))
        with pytest.raises(Unobservable, match="nothing is started while nobody can see the kill switch"):
            stage.step(name, detail)
    else:
        switch.touch()
        if name == "submit":
            assert "exists: nothing is started" in stage.step(name, detail).said
        else:
            with pytest.raises(ActionFailed, match="exists: nothing is started"):
                stage.step(name, detail)
    assert stage.queue.asked == asked


def test_after_a_crash_in_submit_the_switch_comes_too_late(stage: Stage) -> None:
    switch = stage.folder / "STOP"
    stage.spec = dataclasses.replace(stage.spec, kill_switch=str(switch))
    detail = stage.until("submit").detail
    switch.touch()
    stage.become(state="running", held=False, ended_by="", attempt=2)
    assert stage.step("submit", detail).step == "wait_step"


# an end that does not come


def test_a_job_that_keeps_completing_is_never_doubled(stage: Stage) -> None:
    detail = stage.step("stop", stage.step("capture").detail).detail
    stage.become(state="completing")
    for seconds in (31, 60, COMPLETING_SECONDS - 61):
        stage.now += seconds
        progress = stage.step("wait_end", detail)
        assert progress.step == "wait_end"
        detail = progress.detail
    stage.now += 120
    with pytest.raises(ActionFailed, match=r"still completing 15 min .* n1, n2, n3 .* drain and reboot"):
        stage.step("wait_end", detail)
    assert not [a for a in stage.queue.asked if a.startswith("submit")]


def test_a_job_that_is_ending_already_is_not_asked_to(stage: Stage) -> None:
    stage.become(state="completing")
    assert stage.step("stop", stage.step("capture").detail).said == "it is ending already"
    assert stage.queue.asked == []


# nodes


def test_nodes_that_were_blamed_are_left_out_with_those_of_before(stage: Stage) -> None:
    stage.attempts = (dataclasses.replace(FIRST, excluded=("mine",)),)
    stage.action = dataclasses.replace(PLANNED, options={"exclude": ["n2"], "reason": "Xid 79 on n2"})
    progress = stage.until("submit")
    assert "Xid 79 on n2. " in progress.said
    assert progress.said.endswith("without mine, n2")
    assert stage.attempts[-1].excluded == ("mine", "n2")


def test_a_node_comes_back_after_a_while_and_the_users_own_never_does() -> None:
    def attempt(number: int, at: float, *excluded: str) -> Attempt:
        return Attempt("r", number, "", started_at=at, excluded=excluded)

    attempts = (attempt(1, 0, "mine"), attempt(2, 10, "mine", "a"), attempt(3, 20, "mine", "a", "b"))
    assert excluded_nodes(attempts, ["c"], 30) == ("mine", "a", "b", "c")
    assert excluded_nodes(attempts, [], 10 + EXCLUDED_SECONDS) == ("mine", "b")
    assert excluded_nodes((), ["c"], 30) == ("c",)


def preflight(stage: Stage) -> Progress:
    stage.spec = dataclasses.replace(stage.spec, preflight=True)
    return stage.step("preflight", stage.until("preflight").detail)


def test_light_preflight_leaves_out_what_looks_bad(stage: Stage) -> None:
    asked: list[Sequence[str]] = []

    def look(nodes: Sequence[str]) -> Mapping[str, str]:
        asked.append(list(nodes))
        return {"n3": "7 of 8 GPUs", "elsewhere": "not ours"}

    stage.queue.states = {
        n: NodeState(n, is_good=n != "n1", is_drained=n == "n1", reason="bad fan", state="DRAINED")
        for n in ("n1", "n2", "n3")
    }
    stage.node_check = look
    progress = preflight(stage)
    assert progress.step == "submit"
    assert asked == [["n2", "n3"]]
    assert progress.said == "n1 is not used: DRAINED (bad fan); left out after a look: n3: 7 of 8 GPUs"
    assert stage.attempts[-1].excluded == ("n3",)
    stage.step("submit", progress.detail)
    assert stage.queue.submitted is not None
    assert stage.queue.submitted.excluded == ("n3",)


def test_a_look_that_finds_half_of_them_bad_is_not_believed(stage: Stage) -> None:
    stage.node_check = lambda nodes: dict.fromkeys(nodes[:2], "no GPU")
    progress = preflight(stage)
    assert "2 of 3 nodes look bad, more than 1: none left out" in progress.said
    assert stage.attempts[-1].excluded == ()
    stage.action = dataclasses.replace(PLANNED, options={"exclude_at_most": 2})
    stage.step("preflight", progress.detail)
    assert stage.attempts[-1].excluded == ("n1", "n2")


def test_a_look_that_fails_holds_up_nothing(stage: Stage) -> None:
    def away(nodes: Sequence[str]) -> Mapping[str, str]:
        raise Unobservable("no route")

    stage.queue.silent, stage.node_check = "slurmctld is away", away
    progress = preflight(stage)
    assert progress.step == "submit"
    assert "nobody could see the state of its nodes: slurmctld is away" in progress.said
    assert "nobody could look at its nodes: no route" in progress.said


# checkpoints


def test_only_what_was_saved_before_the_first_nan(stage: Stage) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume="env")
    for step in (20, 30, 40):
        torch_zip(stage.folder / "ck" / f"step_{step}.pt")
    stage.action = dataclasses.replace(PLANNED, options={"before_step": 30, "reason": "the loss is NaN"})
    progress = stage.until("submit")
    assert progress.said.startswith("the loss is NaN. refused ")
    assert "saved after the first non-finite loss at step 30" in progress.said
    assert progress.said.endswith("step_20.pt (step 20, saved before step 30, verified)")
    assert stage.attempts[-1].resume_step == 20
    assert progress.detail["lost"] == 25
    stage.action = dataclasses.replace(PLANNED, options={"before_step": 20})
    with pytest.raises(ActionFailed, match=r"none of the 3 checkpoints .* can be resumed from"):
        stage.step("choose", {})


@pytest.mark.parametrize("proved", [True, False])
def test_after_a_full_disk_the_newest_must_be_proved(stage: Stage, proved: bool) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume="env", deep_verify=proved)
    for step in (30, 40):
        torch_zip(stage.folder / "ck" / f"step_{step}.pt")
    os.utime(stage.folder / "ck" / "step_30.pt", (1000, 1000))
    stage.attempts = (dataclasses.replace(FIRST, cause="StorageFull", started_at=2000.0),)
    progress = stage.until("submit")
    assert stage.attempts[-1].resume_step == (40 if proved else 30)
    assert ("saved by the attempt that ended on a full storage" in progress.said) is not proved


def test_what_the_last_start_could_not_load_is_not_taken_again(stage: Stage) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume="env")
    newest = torch_zip(stage.folder / "ck" / "step_40.pt")
    failed = dataclasses.replace(
        FIRST, cause="CheckpointTorn", resume_path=str(newest), resume_step=40, last_step=40
    )
    stage.attempts = (failed,)
    stage.until("submit")
    assert stage.attempts[-1].resume_step == 40, "there is no other: a start that fails is no loss"
    torch_zip(stage.folder / "ck" / "step_30.pt")
    stage.attempts = (failed,)
    progress = stage.step("choose", {})
    assert stage.attempts[-1].resume_step == 30
    assert "but the last start could not load it" in progress.said


# wait_step


def test_a_queue_is_waited_for_and_said_once(stage: Stage) -> None:
    detail = stage.step("submit", stage.until("submit").detail).detail
    stage.become(state="pending", held=False, ended_by="", reason="Priority", attempt=2)
    queued = stage.step("wait_step", detail)
    assert (queued.step, queued.said) == ("wait_step", "job 4711 waits in the queue (Priority)")
    stage.now += 10 * 86400
    stage.become(reason="Resources")
    assert stage.step("wait_step", queued.detail).said == ""
    stage.become(held=True, reason="JobHeldAdmin")
    assert "is held (JobHeldAdmin): only a person" in stage.step("wait_step", queued.detail).said


def test_the_time_from_the_last_sign_of_life_to_the_first_new_step(stage: Stage) -> None:
    log = stage.folder / "train.log"
    log.write_text("step 45\n")
    os.utime(log, (stage.now - 900, stage.now - 900))
    stage.become(log_paths=(str(log),))
    submit = stage.until("submit")
    stage.now += 60
    detail = stage.step("submit", submit.detail).detail
    stage.attempts = (FIRST, dataclasses.replace(stage.attempts[-1], first_step=1, last_step=3))
    stage.now += 40
    assert stage.step("wait_step", detail).said == (
        "training again: step 3 after 1000 s, lost 45 steps (attempt 2)"
    )


def test_a_start_from_the_beginning_is_no_resume(stage: Stage) -> None:
    detail = stage.step("submit", stage.until("submit").detail).detail
    resumed = dataclasses.replace(stage.attempts[-1], resume_step=40, first_step=1, last_step=90)
    stage.attempts = (FIRST, resumed)
    wrong = stage.step("wait_step", detail)
    assert (wrong.step, wrong.ok) == ("", False)
    assert "its first step is 1 although it was to go on from step 40" in wrong.said


def test_an_attempt_that_a_person_cancels_before_its_first_step(stage: Stage) -> None:
    detail = stage.step("submit", stage.until("submit").detail).detail
    stage.become(state="ended", held=False, ended_by="person", exit_reason="CANCELLED by 0")
    with pytest.raises(ActionFailed, match="attempt 2 of r was cancelled by a person before its first"):
        stage.step("wait_step", detail)


# nodes by themselves


def on_node(stage: Stage, kind: str, **state: Any) -> Progress:
    stage.queue.states = {"n1": NodeState("n1", is_good=False, **{"is_drained": True, **state})}
    stage.action = Action(kind, kind, Subject(node="n1"), "GpuLost:n1", "book", "", {"reason": "GpuLost"})
    return stage.step(next(iter(sequence(kind))))


def test_only_our_own_drain_is_taken_back(stage: Stage) -> None:
    assert on_node(stage, "resume", reason="clustertools: GpuLost").said == (
        "took our drain of n1 back (it said: clustertools: GpuLost)"
    )
    assert stage.queue.asked == ["resume n1"]
    for reason, words in (("bad fan", "bad fan"), ("", "without a reason")):
        with pytest.raises(ActionFailed, match=f"drained by somebody else \\({words}\\)"):
            on_node(stage, "resume", reason=reason)
    assert "is not drained" in on_node(stage, "resume", is_drained=False).said
    assert stage.queue.asked == ["resume n1"]


def test_a_drain_of_somebody_else_is_not_overwritten(stage: Stage) -> None:
    assert "by somebody else (bad fan)" in on_node(stage, "drain", reason="bad fan").said
    assert "drained already" in on_node(stage, "drain", reason="clustertools: GpuLost").said
    assert stage.queue.asked == []
    assert on_node(stage, "drain", is_drained=False).said == "drained n1 (clustertools: GpuLost)"
    assert stage.queue.asked == ["drain n1 clustertools: GpuLost"]


def test_to_exclude_is_a_record(stage: Stage) -> None:
    assert "left out by the next restart" in on_node(stage, "exclude").said
    assert stage.queue.asked == []


def test_the_token_is_that_of_the_action(stage: Stage) -> None:
    stage.until("submit")
    assert stage.attempts[-1].token == attempt_token(PLANNED.id)
