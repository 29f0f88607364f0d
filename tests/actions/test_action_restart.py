"""The steps of a restart one by one: what each waits for, when it gives up, what it leaves for the next."""

from __future__ import annotations

import dataclasses
import fcntl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clustertools.actions import Progress, Scene, advance, capture, sequence
from clustertools.actions.choose import VERIFY_SECONDS
from clustertools.actions.restart import KILL_SECONDS, STORAGE_SECONDS, attempt_token, how_it_ended
from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import Completed, LocalHost
from clustertools.model import Action, Attempt, Job, Subject
from clustertools.schedulers import RunSpec, resume_words
from clustertools.sources.checkpoint_cache import cache_file
from tests.checkpoint_builders import aged, hostile, torch_zip

ACTION = Action("JobHung:run:r@1/0:restart", "restart", Subject(run="r"), "JobHung:run:r", "book", "again")
FIRST = Attempt("r", 1, "t1", "r#1", 10.0, last_step=40)


class Machine(LocalHost):
    """This one; `too_slow`: reading every byte takes longer than a pass, `never`: ever; `away`: silent."""

    too_slow = never = away = False

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        if self.away:
            raise Unobservable("the file system does not answer")
        if self.too_slow and "--deep" in argv and (self.never or "--background" not in argv):
            words = list(argv)
            words[words.index("--seconds") + 1] = "0"
            argv = tuple(words)
        return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)


@dataclasses.dataclass
class FakeScheduler:
    """Notes what it is asked for."""

    left: list[int] = dataclasses.field(default_factory=list)
    asked: list[str] = dataclasses.field(default_factory=list)
    refuses: str = ""
    kind: str = "fake"
    supported: frozenset[str] = frozenset({"restart"})

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        raise AssertionError("a step looks at the job of its scene")

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        self.asked.append(f"submit {attempt.number} {attempt.token}")
        if self.refuses:
            raise ActionFailed(self.refuses)
        return f"r#{attempt.number}"

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        self.asked.append(f"{'kill' if force else 'end'}: {why}")

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return self.left

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        return ""


class Stage:
    """A scene that a test changes between two steps."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder / "ck"
        self.checkpoints.mkdir()
        self.host = Machine("n1")
        self.scheduler = FakeScheduler()
        self.now = 1000.0
        self.attempts: tuple[Attempt, ...] = (FIRST,)
        self.spec = RunSpec("r", ("train",), checkpoint_dir=str(self.checkpoints), grace_seconds=15.0)
        self.evidence = folder / "evidence"
        self.job = Job("r#1", "r", "running", 1, ("n1",))

    def step(self, name: str, detail: Mapping[str, Any] | None = None, action: Action = ACTION) -> Progress:
        job = dataclasses.replace(self.job, attempts=self.attempts)
        scene = Scene(self.host, self.scheduler, self.evidence, self.now, self.spec, job, self.attempts)
        return advance(action, name, detail or {}, scene)

    def ended(self, code: int | None = 0, reason: str = "") -> None:
        self.job = dataclasses.replace(self.job, state="ended", exit_code=code, exit_reason=reason)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_order_of_the_steps() -> None:
    assert " ".join(sequence("restart")) == "capture stop wait_end choose preflight submit wait_step"
    assert sequence("requeue") == sequence("restart")
    assert attempt_token("a") == attempt_token("a") != attempt_token("b")


# stop and wait_end


def test_a_run_that_has_ended_is_not_stopped(stage: Stage) -> None:
    stage.ended(3)
    assert stage.step("stop").step == "choose"
    assert stage.scheduler.asked == []


def test_leftovers_of_a_run_that_has_ended_are(stage: Stage) -> None:
    stage.ended(3)
    stage.scheduler.left = [7]
    assert stage.step("stop").step == "wait_end"
    assert stage.scheduler.asked == ["end: clustertools: JobHung:run:r"]


def test_sigterm_then_sigkill_then_a_person(stage: Stage) -> None:
    stage.scheduler.left = [7, 8]
    asked = stage.step("stop")
    assert (asked.step, asked.detail["stopped_at"]) == ("wait_end", 1000.0)
    stage.now += 15
    waiting = stage.step("wait_end", asked.detail)
    assert (waiting.step, waiting.said, len(stage.scheduler.asked)) == ("wait_end", "", 1)
    stage.now += 1
    killed = stage.step("wait_end", waiting.detail)
    assert killed.said == "still there after 15 s: sent SIGKILL"
    assert stage.scheduler.asked[-1] == "kill: clustertools: JobHung:run:r"
    stage.now += KILL_SECONDS
    assert stage.step("wait_end", killed.detail).said == ""
    stage.now += 1
    with pytest.raises(
        ActionFailed, match=r"processes \[7, 8\] of r could not be killed .* drain and reboot"
    ):
        stage.step("wait_end", killed.detail)
    stage.scheduler.left = []
    with pytest.raises(ActionFailed, match="r has no process left and is still running; no second copy"):
        stage.step("wait_end", killed.detail)
    stage.ended(-9)
    assert stage.step("wait_end", killed.detail).step == "choose"


def test_a_watchdog_that_was_away_still_gives_the_kill_its_time(stage: Stage) -> None:
    stage.scheduler.left = [7]
    detail = stage.step("stop").detail
    stage.now += 86400
    assert stage.step("wait_end", detail).detail["killed_at"] == stage.now


def test_an_end_with_leftovers_is_no_end(stage: Stage) -> None:
    stage.ended(0)
    stage.scheduler.left = [7]
    assert stage.step("wait_end", {"stopped_at": stage.now}).step == "wait_end"


# choose


def test_the_newest_that_verifies_is_chosen_and_the_others_are_named(stage: Stage) -> None:
    good = torch_zip(stage.checkpoints / "step_30.pt")
    torn = torch_zip(stage.checkpoints / "step_40.pt")
    torn.write_bytes(torn.read_bytes()[:400])
    marker = stage.checkpoints.parent / "executed"
    (stage.checkpoints / "step_50.pt").write_bytes(hostile(marker))
    chosen = stage.step("choose")
    assert chosen.step == "submit"
    assert chosen.attempt == Attempt(
        "r", 2, attempt_token(ACTION.id), started_at=1000.0, resume_step=30, resume_path=str(good)
    )
    assert chosen.said.endswith(f"resuming from {good} (step 30, verified)")
    refused = [stage.checkpoints / "step_50.pt", torn]
    assert chosen.detail["refused"] == [str(path) for path in refused]
    assert all(f"refused {path}: " in chosen.said for path in refused)
    assert not marker.exists()


def test_damage_that_only_reading_finds_is_found(stage: Stage) -> None:
    good = torch_zip(stage.checkpoints / "step_30.pt")
    bad = torch_zip(stage.checkpoints / "step_40.pt", 2000)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bad.write_bytes(data)
    chosen = stage.step("choose").attempt
    assert chosen is not None
    assert chosen.resume_path == str(good)
    stage.spec = dataclasses.replace(stage.spec, deep_verify=False)
    chosen = stage.step("choose").attempt
    assert chosen is not None
    assert chosen.resume_path == str(bad), "--shallow looks at the structure only"


def test_without_time_to_read_every_byte_the_structure_decides(stage: Stage) -> None:
    good = torch_zip(stage.checkpoints / "step_30.pt")
    torn = torch_zip(stage.checkpoints / "step_40.pt")
    torn.write_bytes(torn.read_bytes()[:400])
    stage.host.too_slow = stage.host.never = True
    reading = stage.step("choose")
    assert (reading.step, reading.attempt) == ("choose", None)
    assert reading.said.startswith("reading every byte of step_40.pt")
    stage.now += VERIFY_SECONDS - 1
    assert stage.step("choose", reading.detail).said == "", "said once"
    stage.now += 1
    chosen = stage.step("choose", reading.detail)
    assert "not every byte could be read within 600 s" in chosen.said
    assert chosen.attempt is not None
    assert chosen.attempt.resume_path == str(good)


def test_what_does_not_end_within_a_pass_is_read_on_and_survives_the_watchdog(stage: Stage) -> None:
    """The first pass starts a process of its own and lets go; a later one, of any watchdog, has it."""
    good = torch_zip(stage.checkpoints / "step_30.pt")
    bad = torch_zip(stage.checkpoints / "step_40.pt", 2000)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bad.write_bytes(data)
    aged(bad)
    stage.host.too_slow = True
    progress = stage.step("choose")
    assert (progress.step, progress.attempt) == ("choose", None)
    end = time.monotonic() + 60
    while progress.step == "choose" and time.monotonic() < end:
        time.sleep(0.05)
        stage.now += 0.05
        progress = stage.step("choose", progress.detail)
    assert progress.attempt is not None
    assert progress.attempt.resume_path == str(good)
    assert "CRC-32" in progress.said
    assert "judged by the structure" not in progress.said


def test_one_that_reads_is_not_disturbed_by_a_second_reader(stage: Stage) -> None:
    torch_zip(stage.checkpoints / "step_30.pt")
    cache = stage.evidence.parent / "checkpoint-cache"
    cache.mkdir()
    with open(cache_file(str(cache), str(stage.checkpoints)) + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage.host.away = True
        waiting = stage.step("choose")
        assert waiting.said.startswith("reading every byte of ")
        stage.host.away = False
    assert stage.step("choose", waiting.detail).step == "submit"


def test_when_none_is_whole_a_person_decides(stage: Stage) -> None:
    torn = torch_zip(stage.checkpoints / "step_40.pt")
    torn.write_bytes(torn.read_bytes()[:400])
    with pytest.raises(ActionFailed, match=r"none of the 1 checkpoints .* not started from the beginning"):
        stage.step("choose")
    stage.spec = dataclasses.replace(stage.spec, resume="none")
    assert stage.step("choose").said == "starting from the beginning", "it would not resume from one anyway"


@pytest.mark.parametrize("folder", ["", "/nowhere/at/all"])
def test_without_checkpoints_it_begins_anew(stage: Stage, folder: str) -> None:
    stage.spec = dataclasses.replace(stage.spec, checkpoint_dir=folder)
    chosen = stage.step("choose")
    assert (chosen.step, chosen.said) == ("submit", "starting from the beginning")
    assert chosen.attempt is not None
    assert (chosen.attempt.resume_path, chosen.attempt.resume_step) == ("", None)


def test_a_folder_that_had_checkpoints_and_has_none_is_not_begun_anew(stage: Stage) -> None:
    """The file system is not mounted here: to start from the beginning would lose weeks."""
    stage.attempts = (dataclasses.replace(FIRST, resume_path=str(stage.checkpoints / "step_20.pt")),)
    for folder in (stage.checkpoints, stage.checkpoints / "gone"):
        stage.spec = dataclasses.replace(stage.spec, checkpoint_dir=str(folder))
        waiting = stage.step("choose")
        assert (waiting.step, waiting.attempt) == ("choose", None)
        assert "waiting for the checkpoints: there is no checkpoint in" in waiting.said


def test_a_storage_that_is_away_is_waited_for_and_not_for_ever(stage: Stage) -> None:
    stage.host.away = True
    waiting = stage.step("choose")
    assert waiting.step == "choose"
    assert waiting.said == "waiting for the checkpoints: the file system does not answer"
    stage.now += STORAGE_SECONDS
    again = stage.step("choose", waiting.detail)
    assert (again.step, again.said, again.attempt) == ("choose", "", None)
    stage.now += 1
    with pytest.raises(ActionFailed, match="the checkpoints of r could not be read"):
        stage.step("choose", again.detail)


# submit


def chosen(stage: Stage, **changes: Any) -> Progress:
    torch_zip(stage.checkpoints / "step_30.pt")
    progress = stage.step("choose")
    assert progress.attempt is not None
    stage.attempts = (FIRST, dataclasses.replace(progress.attempt, **changes))
    return progress


def test_the_attempt_that_was_written_down_is_started(stage: Stage) -> None:
    progress = chosen(stage)
    stage.now += 100
    started = stage.step("submit", progress.detail)
    assert stage.scheduler.asked == [f"submit 2 {attempt_token(ACTION.id)}"]
    assert (started.step, started.detail["submitted_at"]) == ("wait_step", 1100.0)
    assert started.attempt is not None
    assert (started.attempt.job_id, started.attempt.started_at) == ("r#2", 1100.0)


def test_an_end_that_was_noted_before_it_began_is_taken_back(stage: Stage) -> None:
    # the watchdog was away so long between the two steps that the attempt counted as lost
    progress = chosen(stage, end="it was never started", ended_at=1050.0)
    started = stage.step("submit", progress.detail).attempt
    assert started is not None
    assert (started.end, started.ended_at) == ("", 0.0)


def test_a_place_that_starts_nothing_is_a_start_without_progress(stage: Stage) -> None:
    progress = chosen(stage)
    stage.scheduler.refuses = "could not start r: No space left on device"
    lost = stage.step("submit", progress.detail)
    assert (lost.step, lost.ok, lost.said) == ("", False, "could not start r: No space left on device")
    assert lost.attempt is not None
    assert lost.attempt.end == "could not start r: No space left on device"
    assert lost.attempt.new_steps == 0


def test_an_attempt_of_somebody_else_is_left_alone(stage: Stage) -> None:
    progress = chosen(stage, token="another")
    with pytest.raises(ActionFailed, match="attempt 2 of r was started by somebody else"):
        stage.step("submit", progress.detail)
    assert stage.scheduler.asked == []


def test_a_checkpoint_that_is_gone_meanwhile_is_not_named_by_the_tracker(stage: Stage) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume="tracker")
    progress = chosen(stage)
    (stage.checkpoints / "step_30.pt").unlink()
    lost = stage.step("submit", progress.detail)
    assert (lost.step, lost.ok) == ("", False)
    assert "gone since it was verified" in lost.said
    assert lost.attempt is not None
    assert lost.attempt.end, "or it would stand there as one that is about to begin"
    assert stage.scheduler.asked == []


@pytest.mark.parametrize("resume", ["tracker", "file", "env", "newest"])
def test_checkpoints_of_a_loss_that_was_no_number_are_set_aside(stage: Stage, resume: Any) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume=resume, resume_file=str(stage.evidence.parent / "r"))
    (stage.checkpoints / "latest").write_text("step_90.pt")
    # more of them than are looked at by default
    steps = range(10, 100, 10)
    for step in steps:
        torch_zip(stage.checkpoints / f"step_{step}.pt")
    action = dataclasses.replace(ACTION, options={"before_step": 25})
    progress = stage.step("choose", action=action)
    assert progress.attempt is not None
    assert progress.attempt.resume_step == 20
    stage.attempts = (FIRST, progress.attempt)
    progress = stage.step("submit", progress.detail, action=action)
    assert progress.step == "wait_step", progress.said
    # a restart of the next start must not take one of these whole files for the newest
    assert sorted(p.name for p in stage.checkpoints.glob("*.pt")) == ["step_10.pt", "step_20.pt"]
    assert ((stage.checkpoints / "latest").read_text() == "step_20.pt") == (resume == "tracker")


def test_a_divergence_leaves_out_the_data_around_it_until_a_checkpoint_has_passed_it(stage: Stage) -> None:
    for step in (10, 850, 990):
        torch_zip(stage.checkpoints / f"step_{step}.pt")
    action = dataclasses.replace(ACTION, options={"before_step": 900, "skip_data": True})
    progress = stage.step("choose", action=action)
    assert progress.attempt is not None
    assert (progress.attempt.resume_step, progress.attempt.skip_steps) == (850, "851-1000")
    assert progress.said.endswith("asked to leave out the data of steps 851-1000")
    assert resume_words(stage.spec, progress.attempt)["CLUSTERTOOLS_SKIP_STEPS"] == "851-1000"
    stage.attempts = (FIRST, dataclasses.replace(progress.attempt, cause=""))
    again = stage.step("choose", {"stops": 2})
    assert again.attempt is not None
    assert (again.attempt.resume_step, again.attempt.skip_steps) == (990, "851-1000")
    torch_zip(stage.checkpoints / "step_1010.pt")
    beyond = stage.step("choose", {"stops": 2})
    assert beyond.attempt is not None
    assert (beyond.attempt.skip_steps, beyond.attempt.before_step) == ("", None)


def test_what_a_start_has_saved_since_a_crash_of_ours_is_not_set_aside(stage: Stage) -> None:
    stage.spec = dataclasses.replace(stage.spec, resume="newest")
    torn = torch_zip(stage.checkpoints / "step_40.pt")
    torn.write_bytes(torn.read_bytes()[:400])
    progress = chosen(stage)
    stage.step("submit", progress.detail)
    assert not torn.exists()
    # the watchdog died before it wrote down that it had begun; the new start has come by the same step
    torch_zip(torn)
    stage.job = dataclasses.replace(stage.job, attempt=2)
    assert stage.step("submit", progress.detail).step == "wait_step"
    assert torn.exists()


# wait_step


def waiting(stage: Stage, **changes: Any) -> Mapping[str, Any]:
    progress = chosen(stage, job_id="r#2", **changes)
    return {**progress.detail, "submitted_at": stage.now}


def test_a_new_step_is_the_end_of_it(stage: Stage) -> None:
    detail = waiting(stage, last_step=31)
    stage.now += 90
    done = stage.step("wait_step", detail)
    said = "training again: step 31 after 90 s, lost 10 steps (attempt 2)"
    assert (done.step, done.ok, done.said) == ("", True, said)


@pytest.mark.parametrize("last_step", [None, 30, 12])
def test_the_step_that_it_resumed_from_is_not_new(stage: Stage, last_step: int | None) -> None:
    assert stage.step("wait_step", waiting(stage, last_step=last_step)).step == "wait_step"


def test_how_a_started_attempt_can_fail(stage: Stage) -> None:
    detail = waiting(stage)
    stage.ended(3, "a reason")
    with pytest.raises(ActionFailed, match=r"before its first new step: exit code 3 \(a reason\)"):
        stage.step("wait_step", detail)
    stage.ended(0)
    assert stage.step("wait_step", detail).said == "attempt 2 ended well"
    stage.attempts = (*stage.attempts, Attempt("r", 3, "t3"))
    with pytest.raises(ActionFailed, match="attempt 2 of r made no new step: stuck"):
        stage.step("wait_step", detail)
    stage.attempts = (FIRST,)
    with pytest.raises(ActionFailed, match="no longer known"):
        stage.step("wait_step", detail)


def test_a_run_that_is_no_longer_known_is_left_alone(stage: Stage) -> None:
    scene = Scene(stage.host, stage.scheduler, stage.evidence, 1.0)
    for name in sequence("restart"):
        with pytest.raises(ActionFailed, match="no longer known"):
            advance(ACTION, name, {}, scene)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (None, "", "nobody saw how it ended"),
        (None, "the machine was rebooted", "the machine was rebooted"),
        (-11, "", "killed by signal 11"),
        (3, "", "exit code 3"),
        (127, "no such file", "exit code 127 (no such file)"),
    ],
)
def test_ends_in_words(code: int | None, reason: str, words: str) -> None:
    assert how_it_ended(Job("j", "r", "ended", exit_code=code, exit_reason=reason)) == words


# capture


def test_evidence_that_cannot_be_saved_holds_up_nothing(stage: Stage) -> None:
    stage.evidence.write_text("in the way")
    progress = stage.step("capture")
    assert progress.step == "stop"
    assert "could not save the evidence" in progress.said


def test_a_look_that_breaks_is_said_and_the_others_are_saved(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    log.write_text("x" * (capture.LOG_TAIL_BYTES + 5) + "\nlast words\n")
    stage.job = dataclasses.replace(stage.job, pids=(2**22 - 1,), log_paths=(str(log), "/nowhere.log"))

    def broken(host: object) -> str:
        raise IndexError("a line that nobody thought of")

    monkeypatch.setattr(capture, "_kernel", broken)
    assert stage.step("capture").step == "stop"
    assert (stage.evidence / "log-0-train.log").read_text().endswith("last words\n")
    assert (stage.evidence / "log-0-train.log").stat().st_size == capture.LOG_TAIL_BYTES
    missing = (stage.evidence / "missing.txt").read_text()
    assert (
        "kernel.txt: not seen: the look itself failed: IndexError: a line that nobody thought of" in missing
    )
    assert "log-1-nowhere.log: not seen: /nowhere.log" in missing
    assert oct(stage.evidence.stat().st_mode)[-3:] == "700"


def test_after_a_crash_the_log_and_the_kernel_are_kept_too(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("CUDA error: out of memory\n")
    stage.job = dataclasses.replace(stage.job, log_paths=(str(tmp_path / "train.log"),))
    stage.ended(1)
    assert stage.step("capture").step == "stop"
    assert "out of memory" in (stage.evidence / "log-0-train.log").read_text()
