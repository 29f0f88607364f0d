"""Silence and what the job's nodes show: when they are looked at, and what makes a hang of it."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.model import Status, Verdict
from clustertools.sources.job_look import JobLook
from tests.lab.job_nodes import IDLES, SPINS, WORKS, Nodes
from tests.lab.run_log import FollowedRun

OK = frozenset()


class Silent(FollowedRun):
    """A run that trains, 10 s a step, and whose nodes can be looked at."""

    def __init__(self, **how: object) -> None:
        super().__init__("job_progress", **how)  # type: ignore[arg-type]
        self.nodes = Nodes()
        self.looks = 0
        self.last_look = self.host.time

    def pass_by(self, *lines: str, after: float = 30.0) -> Verdict:
        verdict = self.look(*lines, after=after)
        if verdict.wants_look:
            self.looks += 1
            seen = self.nodes.look(self.host.time - self.last_look)
            self.last_look = self.host.time
            verdict = self.look(after=0.0, looked=seen)
        return verdict

    def train(self, passes: int = 10, first: int = 1) -> None:
        for n in range(passes):
            lines = [f"step {first + 3 * n + i}/100000 | loss 2.5 | dt 10000ms" for i in range(3)]
            assert self.pass_by(*lines).codes == OK

    def wait(self, seconds: float) -> Verdict:
        for _ in range(int(seconds / 30)):
            verdict = self.pass_by()
        return verdict


@pytest.fixture
def big() -> Silent:
    run = Silent()
    run.train()
    return run


def stuck(run: Silent) -> None:
    run.nodes.moves, run.nodes.busy, run.nodes.gpu, run.nodes.bytes_per_second = False, 1.0, SPINS, 0.0


def test_nobody_is_looked_at_while_steps_come(big: Silent) -> None:
    assert big.looks == 0
    big.wait(180)
    assert big.looks == 0, "nor while the silence is far from the limit"
    big.wait(120)
    assert 1 <= big.looks <= 2


def test_looks_at_a_long_silence_become_rarer(big: Silent) -> None:
    stuck(big)
    assert big.wait(4 * 3600).codes == {"JobHung"}
    assert big.looks < 40, "a hang that nobody mends is not looked at every minute"


def test_a_collective_that_spins_is_a_hang(big: Silent) -> None:
    stuck(big)
    verdict = big.wait(360)
    assert verdict.codes == {"JobHung"}
    assert "4 of 4 GPUs spin" in verdict.findings[0].summary
    assert any(line.startswith("ranks 0-3: all_reduce") for line in verdict.findings[0].evidence)
    assert big.pass_by().codes == {"JobHung"}, "between two looks it is still one"


def test_spinning_beats_stacks_that_move(big: Silent) -> None:
    stuck(big)
    big.nodes.moves = True
    assert big.wait(420).codes == {"JobHung"}


def test_a_log_that_is_late_while_the_gpus_work_is_nothing(big: Silent) -> None:
    big.nodes.moves = False
    assert big.wait(840).codes == OK, "the main thread of a healthy run stands at loss.backward() as well"
    assert big.wait(300).codes == {"JobSilent"}, "but not for ever"


def test_idle_gpus_are_a_sign_when_nothing_else_works(big: Silent) -> None:
    big.nodes.gpu, big.nodes.busy, big.nodes.bytes_per_second = IDLES, 0.0, None
    verdict = big.wait(420)
    assert verdict.codes == {"JobHung"}
    assert "all 4 GPUs are idle" in verdict.findings[0].summary


def test_an_evaluation_on_the_cpu_is_no_hang(big: Silent) -> None:
    big.nodes.gpu, big.nodes.busy, big.nodes.bytes_per_second = IDLES, 1.0, 0.0
    assert big.wait(420).codes == {"JobSilent"}


def test_ports_that_are_flat_are_a_sign(big: Silent) -> None:
    big.nodes.gpu, big.nodes.busy, big.nodes.bytes_per_second = None, 0.0, 10.0
    verdict = big.wait(420)
    assert "nothing goes through the network ports of its 2 nodes" in verdict.findings[0].summary


def test_a_stopped_rank_is_named_with_its_node(big: Silent) -> None:
    big.nodes.states = {3: "T"}
    verdict = big.wait(420)
    assert verdict.codes == {"JobHung"}, "even though the other GPUs look as if they worked"
    assert "rank 3 on n2 (pid 103) is stopped by a signal" in verdict.findings[0].summary


def test_a_rank_in_the_kernel_that_moves_bytes_is_reading(big: Silent) -> None:
    big.nodes.gpu, big.nodes.states, big.nodes.io_per_second = None, {3: "D"}, 1e7
    assert big.wait(420).codes == OK
    big.nodes.io_per_second = 0.0
    assert big.wait(240).codes == {"JobHung"}


def test_a_checkpoint_folder_that_grows_is_a_slow_save() -> None:
    run = Silent(checkpoint_dir="/ckpt")
    run.train()
    run.nodes.moves, run.nodes.gpu, run.nodes.busy = False, IDLES, 0.0
    for n in range(24):
        run.host.files["/ckpt/step-30/model.pt"] = "x" * n
        assert run.pass_by().codes == OK
    assert run.wait(240).codes == {"JobHung"}, "it does not grow any more"


def test_nodes_that_cannot_be_seen_are_no_sign(big: Silent) -> None:
    stuck(big)
    big.nodes.unseen = {"n1": "no route to host", "n2": "no route to host"}
    verdict = big.wait(420)
    assert (verdict.codes, verdict.status) == ({"JobSilent"}, Status.WARNING)
    assert "its nodes could not be looked at" in verdict.findings[0].summary
    assert "n1 could not be looked at: no route to host" in verdict.findings[0].evidence
    big.nodes.unseen = {"n1": "no route to host"}
    assert big.wait(240).codes == {"JobHung"}, "those that are seen count"


def test_a_job_without_any_way_to_its_nodes_is_silent_only(big: Silent) -> None:
    for _ in range(20):
        verdict = big.look()
        if verdict.wants_look:
            verdict = big.look(after=0.0, looked=JobLook())
    assert verdict.codes == {"JobSilent"}


def test_what_the_gpus_show_in_training_is_learned_from_a_doubt_that_ended() -> None:
    """A run that is bound by its input works at a third of its GPUs' power, always."""
    run = Silent()
    run.train()
    run.nodes.gpu = (560.0, 1.0, 0.3)
    run.wait(330)
    run.train(first=31)
    assert run.memory["levels"] == {"power_ratio": 0.8, "memory_ratio": 0.3}
    run.nodes.gpu, run.nodes.busy = (200.0, 1.0, 0.12), 1.0
    verdict = run.wait(420 + 5 * 330)
    assert verdict.codes == {"JobHung"}, "0.12 would be work, did it not have 0.3 while it trained"


def test_a_suspended_job_is_no_hang_and_teaches_nothing(big: Silent) -> None:
    stuck(big)
    big.job = dataclasses.replace(big.job, reason="Suspended")
    for _ in range(60):
        verdict = big.pass_by()
        assert (verdict.status, verdict.codes) == (Status.SKIPPED, OK)
    assert big.looks == 0
    big.job = dataclasses.replace(big.job, reason="")
    big.train(first=31)
    assert big.wait(270).codes == OK
    assert big.wait(120).codes == {"JobHung"}, (
        "the half hour was not learned as an interval between two steps"
    )


def test_a_suspension_is_no_interval_between_two_steps() -> None:
    """The log's own clock shows the half hour as well."""
    run = Silent()
    for n in range(80):
        suspended = 20 <= n < 60
        run.job = dataclasses.replace(run.job, reason="Suspended" if suspended else "")
        if not suspended:
            run.say(f'{{"step": {n}, "loss": 2.5, "time": {run.host.time}}}')
        assert run.pass_by().codes == OK
    stuck(run)
    assert run.wait(420).codes == {"JobHung"}


def test_a_thread_that_repeats_the_last_step_is_no_sign_of_life(big: Silent) -> None:
    stuck(big)
    for _ in range(13):
        verdict = big.pass_by("step 30/100000 | loss 2.5 | dt 10000ms")
    assert verdict.codes == {"JobHung"}


def test_a_job_that_does_not_end_is_told_with_its_nodes(big: Silent) -> None:
    big.job = dataclasses.replace(big.job, state="completing")
    big.nodes.names = ("n2",)
    assert big.wait(840).codes == OK
    verdict = big.wait(180)
    assert verdict.codes == {"JobIdle"}
    assert "does not end: its processes on n2 do not go away" in verdict.findings[0].summary
    assert verdict.findings[0].nodes == ("n2",)


def test_a_log_in_bursts_is_learned_from_the_first_one() -> None:
    """stdout into a file is written when 4 or 8 KiB are full: every 15 minutes for 30 lines."""
    run = Silent()
    run.nodes.gpu, run.nodes.bytes_per_second = None, None
    codes = set()
    for burst in range(6):
        for _ in range(29):
            codes |= run.pass_by().codes
        lines = [f"step {burst * 90 + i + 1}/100000 | loss 2.5 | dt 10000ms" for i in range(90)]
        codes |= run.pass_by(*lines).codes
    assert codes == OK
    assert run.wait(1500).codes == OK
    run.nodes.moves = False
    assert run.wait(600).codes == {"JobHung"}, "twice as long as a burst takes is too long"


def test_the_next_run_of_the_same_name_begins_with_what_was_learned(big: Silent) -> None:
    for save in range(3):
        big.say("Saving checkpoint for step 30 to '/ckpt/step30'...")
        big.wait(1200)
        big.say(f"Checkpoint for step {30 + 30 * save} saved successfully")
        big.train(first=31 + 30 * save)
    big.again(None, job_id="4712", truncate=True)
    big.train(first=1)
    big.say("Saving checkpoint for step 30 to '/ckpt/step30'...")
    big.nodes.moves = False
    big.nodes.gpu = None
    assert big.wait(3000).codes == OK


def test_a_finished_run_that_still_writes_its_model_is_not_idle(big: Silent) -> None:
    big.say("training complete")
    big.nodes.gpu, big.nodes.busy = IDLES, 1.0
    assert big.wait(870).codes == OK
    big.nodes.busy = 0.0
    assert big.wait(300).codes == {"JobIdle"}


def test_loading_for_long_at_one_line_is_no_hang() -> None:
    """An index of the data is built in C++: one line of Python, one busy core, for an hour."""
    run = Silent()
    run.nodes.gpu, run.nodes.moves, run.nodes.bytes_per_second = IDLES, False, None
    for _ in range(100):
        verdict = run.pass_by()
        assert "JobHung" not in verdict.codes
    assert run.wait(1200).codes == {"JobHung"}


@pytest.mark.parametrize("jump", [-86400.0, 86400.0, 550.0])
def test_a_clock_that_jumps_is_no_hang(big: Silent, jump: float) -> None:
    big.nodes.gpu = WORKS
    assert big.pass_by(after=jump).codes == OK
    assert big.wait(60).codes == OK
