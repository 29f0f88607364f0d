"""Progress of a run: phases, learned limits, restarts, and clocks that cannot be trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.sources.training_log import LogReader, ProgressTracker
from clustertools.sources.training_progress import STARTING_SECONDS, UNLEARNED_SECONDS
from clustertools.sources.training_values import Event, Point

LOGS = Path(__file__).parent.parent / "runs" / "logs"


def step(number: int, time: float | None = None, **values: float) -> Point:
    return Point(number, time, values)


def trained(steps: int = 20, seconds: float = 10.0) -> ProgressTracker:
    """A run that was looked at once after each step, with the log's own times."""
    tracker = ProgressTracker()
    for i in range(steps):
        tracker.add([step(i, 1000 + i * seconds)], 5000 + i * seconds)
    return tracker


def test_a_plain_run() -> None:
    tracker = trained()
    assert (tracker.first_step, tracker.last_step, tracker.highest_step) == (0, 19, 19)
    assert tracker.phase == "training"
    assert tracker.step_seconds == 10
    assert tracker.last_advance_time == 5190
    assert tracker.silent_seconds(5200) == 10
    assert tracker.limit_seconds(minimum=30, factor=5) == 50
    assert tracker.limit_seconds(minimum=600, factor=5) == 600


def test_a_log_that_tells_its_pace_is_believed_however_long_it_is() -> None:
    """The observer's clock spans evaluations; it counts only where the log has no time of its own."""
    tracker = ProgressTracker()
    for i in range(100):
        tracker.add([step(i, step_seconds=10.0)], 5000 + i * 10.0)
    tracker.add([step(100, step_seconds=10.0)], 6000 + 600)
    assert tracker.step_seconds_max == 10


def test_before_the_first_step_the_starting_limit_holds() -> None:
    tracker = ProgressTracker()
    tracker.add([], 100)
    assert (tracker.phase, tracker.last_step) == ("starting", None)
    assert tracker.limit_seconds(60, 5) == STARTING_SECONDS
    assert tracker.limit_seconds(60, 5, starting=900) == 900
    tracker.add([], 400)
    assert tracker.silent_seconds(500) == 400


def test_the_interval_of_the_log_counts_not_the_step() -> None:
    tracker = ProgressTracker()
    for i in range(10):
        tracker.add([step(i * 50, 1000 + i * 100)], 5000 + i * 100)
    assert tracker.step_seconds == 2
    assert tracker.limit_seconds(10, 3) == 300


def test_step_times_of_the_log_count_where_it_has_no_clock() -> None:
    tracker = ProgressTracker()
    tracker.add([step(i * 10, None, step_seconds=2.0) for i in range(5)], 5000)
    assert tracker.step_seconds == 2
    assert tracker.limit_seconds(1, 3) == 60


def test_without_any_time_in_the_log_the_observers_clock_counts() -> None:
    tracker = ProgressTracker()
    for i in range(10):
        tracker.add([step(i * 3)], 5000 + i * 60)
        tracker.add([], 5030 + i * 60)
    assert tracker.step_seconds == pytest.approx(20)
    # silence was only seen to last 30 s, but a line comes once a minute: that may be waited for
    assert tracker.limit_seconds(1, 4) == pytest.approx(240)


def test_the_observers_own_absence_is_not_learned() -> None:
    tracker = trained()
    tracker.add([step(20 + i, 1200 + i * 10) for i in range(700)], 5190 + 7000)
    assert tracker.limit_seconds(1, 5) == 50


def test_buffered_output_is_learned_as_it_was_seen() -> None:
    tracker = ProgressTracker()
    for burst in range(4):
        now = 5000 + burst * 600
        tracker.add([step(burst * 60 + i, 1000 + burst * 600 + i * 10) for i in range(60)], now)
        for look in range(60, 600, 60):
            tracker.add([], now + look)
    assert tracker.limit_seconds(1, 2) == pytest.approx(2 * 540)


def test_saving_is_a_phase_with_its_own_limit() -> None:
    tracker = trained()
    tracker.add([Event("checkpoint_started", 19, time=1191)], 5191)
    assert tracker.phase == "saving"
    assert tracker.limit_seconds(60, 5) == UNLEARNED_SECONDS["saving"]
    tracker.add([Event("checkpoint_saved", 19, time=1231)], 5231)
    assert (tracker.phase, tracker.last_checkpoint_step) == ("training", 19)
    tracker.add([step(20, 1241), Event("checkpoint_started", 20, time=1242)], 5242)
    assert tracker.limit_seconds(60, 5) == 200
    # the save itself did not make steps look slow
    tracker.add([Event("checkpoint_saved", 20, time=1280), step(21, 1290)], 5290)
    assert tracker.step_seconds == 10


def test_an_evaluation_without_announcement_is_expected_when_it_is_due() -> None:
    """Megatron-LM prints only the result: BLOOM's took 12 minutes at 105 s a step."""
    tracker, clock = ProgressTracker(), 0.0
    for i in range(1, 251):
        clock += 100
        tracker.add([step(i, clock)], clock)
        if i % 100 == 0:
            clock += 720
            tracker.add([Point(i, clock, {"eval_loss": 2.5})], clock)
    assert tracker.limit_seconds(600, 3) == 600
    for i in range(251, 301):
        clock += 100
        tracker.add([step(i, clock)], clock)
    assert tracker.silence_phases == ("training", "evaluating")
    assert tracker.limit_seconds(600, 3) == 3 * 720


def test_announced_evaluation() -> None:
    tracker = trained()
    tracker.add([Event("evaluation", None)], 5200)
    assert tracker.phase == "evaluating"
    assert tracker.limit_seconds(60, 5) == UNLEARNED_SECONDS["evaluating"]
    tracker.add([Point(19, None, {"eval_loss": 1.0})], 5260)
    assert tracker.phase == "training"


def test_finished_runs_may_be_silent_and_may_go_on() -> None:
    tracker = trained()
    tracker.add([Event("finished", 19)], 5200)
    assert tracker.limit_seconds(60, 5) == math.inf
    tracker.add([step(20)], 5300)
    assert tracker.phase == "training"


def test_a_restart_goes_back_and_is_no_hang() -> None:
    tracker = trained()
    tracker.begin(5300)
    assert (tracker.phase, tracker.silent_seconds(5400)) == ("starting", 100)
    tracker.add(
        [Event("resumed", 10, time=1500), Event("restart_marker", 11, time=1600), step(11, 1600)], 5600
    )
    assert tracker.steps_back == 1
    assert (tracker.first_step, tracker.last_step, tracker.highest_step) == (11, 11, 19)
    assert tracker.last_advance_time == 5600
    tracker.add([step(12, 1610)], 5610)
    # the hours between two starts are no step
    assert tracker.step_seconds_max == 10
    assert tracker.limit_seconds(1, 5) == 50


def test_hours_between_two_starts_are_no_silence_of_training() -> None:
    tracker = trained()
    tracker.add([Event("restart_marker", 11, time=90000), step(11, 90000), step(12, 90010)], 95000)
    assert tracker.step_seconds_max == 10
    assert tracker.limit_seconds(1, 5) == 50


def test_a_thread_that_repeats_the_last_step_is_no_sign_of_life() -> None:
    tracker = trained()
    for now in range(5200, 6200, 100):
        tracker.add([step(19, now - 4000, gpu_load=99.0)], now)
    assert tracker.silent_seconds(6200) == 1010


def test_a_save_in_the_background_does_not_end_an_evaluation() -> None:
    tracker = trained()
    tracker.add([Event("checkpoint_started", 19), Event("evaluation"), Event("checkpoint_saved", 19)], 5200)
    assert tracker.phase == "evaluating"


def test_the_first_step_without_a_finite_loss() -> None:
    tracker = trained()
    tracker.add([step(20, loss=float("nan")), step(21, loss=float("inf"))], 5200)
    assert tracker.first_non_finite_step == 20
    tracker.add([Event("restart_marker", 15), step(15, loss=2.0)], 5300)
    assert tracker.first_non_finite_step is None
    tracker.add([Point(16, None, {"grad_norm": 1.0}, missing=("loss",))], 5310)
    assert tracker.first_non_finite_step == 16


def test_points_without_a_step_advance_by_epoch_only() -> None:
    tracker = ProgressTracker()
    tracker.add([Point(None, None, {"loss": 2.0, "epoch": 0.1})], 100)
    tracker.add([Point(None, None, {"loss": 2.0, "epoch": 0.2})], 200)
    tracker.add([Point(None, None, {"loss_scale": 1024.0})], 300)
    assert (tracker.last_advance_time, tracker.phase, tracker.last_step) == (200, "training", None)
    tracker.add([Point(None, None, {"loss": 2.0, "epoch": 0.1})], 400)
    assert (tracker.last_advance_time, tracker.steps_back) == (400, 1)


def test_the_same_step_again_is_no_advance() -> None:
    tracker = trained()
    tracker.add([step(19, 1200)], 6000)
    assert tracker.last_advance_time == 5190


@pytest.mark.parametrize(
    ("name", "last", "total", "phase", "bad"),
    [
        ("megatron.log", 96, 500000, "finished", 94),
        ("hf_trainer.log", 140, 1000, "finished", 130),
        ("torchtitan.log", 530, None, "finished", 530),
        ("nanogpt.log", 30, None, "training", 30),
        ("olmo.log", 102, 500000, "training", None),
        ("deepspeed.log", 15, None, "training", None),
        ("llamafactory.jsonl", 20, 300, "training", None),
    ],
)
def test_whole_logs(name: str, last: int, total: int | None, phase: str, bad: int | None) -> None:
    tracker, reader = ProgressTracker(), LogReader()
    tracker.add(reader.feed((LOGS / name).read_bytes()) + reader.close(), 5000)
    assert (tracker.last_step, tracker.total_steps) == (last, total)
    assert (tracker.phase, tracker.first_non_finite_step) == (phase, bad)


_TIMES = st.one_of(st.none(), st.floats(0, 1e6), st.just(float("nan")))
_ITEMS = st.one_of(
    st.builds(
        Point,
        st.one_of(st.none(), st.integers(0, 50)),
        _TIMES,
        st.dictionaries(st.sampled_from(["loss", "eval_loss", "epoch", "step_seconds"]), st.floats()),
    ),
    st.builds(
        Event,
        st.sampled_from(
            ["checkpoint_started", "checkpoint_saved", "evaluation", "resumed", "finished", "restart_marker"]
        ),
        st.one_of(st.none(), st.integers(0, 50)),
        time=st.one_of(st.none(), st.floats(0, 1e6)),
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.lists(_ITEMS, max_size=5), st.floats(0, 1e6)), max_size=12), st.integers(0, 12))
def test_a_restored_tracker_goes_on_the_same(looks: list[tuple[list[Point | Event], float]], at: int) -> None:
    one, other = ProgressTracker(), ProgressTracker()
    for i, (items, now) in enumerate(looks):
        one.add(items, now)
        if i == at:
            other = ProgressTracker.from_state(json.loads(json.dumps(other.state())))
        other.add(items, now)
    assert json.dumps(one.state()) == json.dumps(other.state())
    assert one.limit_seconds(60, 5) >= 60
    assert one.silent_seconds(1e7) >= 0


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        ProgressTracker.from_state({"last_step": 3})
