"""Where a run's time went: restarts, rolled back steps, saves, hangs; and what nobody can know."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.goodput_measured import KINDS, Goodput, Sign, measure
from clustertools.model import Attempt


def steps(first: int, last: int, at: float, *, every: int = 10, pace: float = 6.0, told: bool = False):
    """Lines of a log: step `first` at `at`, and so on."""
    return [
        Sign("step", n, at + pace * (n - first), pace if told else None)
        for n in range(first, last + 1, every)
    ]  # fmt: skip


def spent(found: Goodput) -> dict[str, float]:
    return {kind: round(seconds, 6) for kind, seconds in found.seconds.items() if seconds}


def test_a_run_without_trouble():
    found = measure(steps(10, 100, 60.0))
    assert spent(found) == {"kept": 600.0}
    assert (found.ettr, found.wall_seconds, found.kept_steps) == (1.0, 600.0, 100)
    assert (found.step_seconds, found.failures) == (6.0, 0)


@pytest.mark.parametrize("told", [True, False])
def test_steps_counted_twice_are_lost_once(told):
    # to step 100 at t=600; again from 80 at t=1000, with 60 s of start
    later = [Sign("resumed", 80, 1000.0), Sign("restarted", 90), *steps(90, 200, 1120.0, told=told)]
    found = measure([*steps(10, 100, 60.0, told=told), *later])
    assert spent(found) == {"kept": 1200.0, "rolled back": 120.0, "starting": 60.0, "stopped": 400.0}
    assert (found.kept_steps, found.rolled_back_steps) == (200, 20)
    assert found.ettr == pytest.approx(1200 / 1780)
    assert found.failures == 1
    assert found.restart_seconds == pytest.approx(460.0)
    first, second = found.attempts
    assert (first.kept_steps, first.rolled_back_steps, second.resume_step) == (80, 20, 80)


def test_back_beyond_two_attempts():
    """The third begins from before the second: what both lost is lost, each step once for each training."""
    signs = [
        *steps(10, 100, 60.0),
        Sign("restarted", 90), *steps(90, 150, 1000.0),
        Sign("restarted", 60), *steps(60, 200, 2000.0),
    ]  # fmt: skip
    found = measure(signs)
    assert (found.kept_steps, found.rolled_back_steps) == (200, 20 + 30 + 70)
    assert found.seconds["rolled back"] == pytest.approx(6.0 * 120)
    assert found.seconds["kept"] == pytest.approx(1200.0)


def test_a_restart_without_a_word_from_the_log():
    """No `resumed`: the first line's step, less what lies between two lines, is where it began."""
    found = measure([*steps(10, 100, 60.0), Sign("restarted", 90), *steps(90, 120, 1000.0)])
    assert found.attempts[1].resume_step == 80
    assert found.rolled_back_steps == 20


def test_saves_hold_training_up():
    signs = []
    for block in range(5):
        at = 1000.0 * block
        signs += steps(100 * block + 10, 100 * block + 100, at + 60.0)
        signs += [
            Sign("saving", 100 * block + 100, at + 600.0),
            Sign("saved", 100 * block + 100, at + 1000.0),
        ]
    found = measure(signs)
    assert spent(found) == {"kept": 3000.0, "saving": 2000.0}
    assert (found.save_seconds, found.interval_seconds) == (400.0, 1000.0)


def test_saves_in_the_background_hold_nothing_up():
    signs = [*steps(10, 100, 60.0), Sign("saving", 100, 600.0), *steps(110, 150, 660.0)]
    signs += [Sign("saved", 100, 905.0), *steps(160, 200, 960.0)]
    found = measure(signs)
    assert spent(found) == {"kept": 1200.0}
    assert not found.save_seconds


def test_a_save_that_is_only_told_afterwards():
    signs = [*steps(10, 100, 60.0), Sign("saved", 100), *steps(110, 200, 720.0)]
    found = measure(signs)
    assert spent(found) == {"kept": 1200.0, "saving": 60.0}
    assert found.wall_seconds == 1260.0


def test_an_evaluation_between_steps():
    signs = [*steps(10, 100, 60.0), Sign("evaluating", None, 600.0), Sign("evaluated", 100, 900.0)]
    found = measure([*signs, *steps(110, 200, 960.0)])
    assert spent(found) == {"kept": 1200.0, "evaluating": 300.0}


def test_a_hang_that_ended_by_itself_was_no_training():
    found = measure([*steps(10, 100, 60.0), *steps(110, 200, 3660.0)])
    assert spent(found) == {"kept": 1200.0, "silent": 3000.0}


def test_slow_steps_are_training():
    found = measure([*steps(10, 200, 60.0), *steps(210, 300, 1200.0 + 120.0, pace=12.0)])
    assert spent(found) == {"kept": 2400.0}


def test_many_ranks_tell_every_step():
    signs = [sign for sign in steps(10, 100, 60.0) for _ in range(3)]
    assert spent(measure(signs)) == {"kept": 600.0}


# attempts that were written down


def attempt(number: int, began: float, ended: float, **more) -> Attempt:
    return Attempt("r", number, f"t{number}", started_at=began, ended_at=ended, **more)


def test_attempts_tell_down_from_silent():
    attempts = [
        attempt(1, 1000.0, 2000.0, end="hung", ended_by="us"),
        attempt(2, 2100.0, 3000.0, end="exit code 0", resume_step=80),
    ]
    signs = [*steps(10, 100, 1160.0), Sign("restarted", 90), *steps(90, 180, 2260.0)]
    found = measure(signs, attempts)
    assert spent(found) == {
        "kept": 1080.0, "rolled back": 120.0, "starting": 200.0, "silent": 300.0 + 200.0, "down": 100.0,
    }  # fmt: skip
    assert (found.wall_seconds, found.failures) == (2000.0, 1)
    assert [a.end for a in found.attempts] == ["us", "exit code 0"]


def test_an_attempt_without_a_step_was_starting_all_the_time():
    attempts = [attempt(1, 1000.0, 1600.0, end="exit code 1"), attempt(2, 1700.0, 2360.0)]
    found = measure([Sign("resumed", 0, 1100.0), *steps(10, 100, 1820.0)], attempts)
    assert spent(found) == {"kept": 600.0, "starting": 600.0 + 60.0, "down": 100.0}


def test_attempts_without_a_log():
    attempts = [
        attempt(1, 0.0 + 1, 1001.0, end="exit code 1", first_step=1, last_step=100),
        attempt(2, 1101.0, 2101.0, resume_step=80, first_step=81, last_step=180, end="exit code 0"),
    ]
    found = measure((), attempts, step_seconds=6.0)
    assert spent(found) == {"kept": 1080.0, "rolled back": 120.0, "unknown": 800.0, "down": 100.0}
    assert found.ettr == pytest.approx(1080 / 2100)


def test_a_running_attempt_is_reckoned_until_now():
    found = measure(steps(10, 100, 1060.0), [attempt(1, 1000.0, 0.0)], until=2000.0)
    assert spent(found) == {"kept": 600.0, "silent": 400.0}
    assert found.failures == 0


def test_what_people_and_time_limits_end_is_no_failure():
    ends = ("person", "time-limit", "preempted", "node-failed", "us", "")
    attempts = [
        attempt(n, 100.0 * n + 1, 100.0 * n + 50, end="it ended", ended_by=by) for n, by in enumerate(ends)
    ]  # type: ignore[arg-type]
    assert measure((), attempts).failures == 3


def test_a_launcher_that_begins_anew_by_itself():
    """torchrun restarts its workers inside one attempt: its steps are lost all the same."""
    signs = [*steps(10, 100, 1060.0), Sign("restarted", 90), *steps(90, 180, 2060.0)]
    found = measure(signs, [attempt(1, 1000.0, 3000.0, end="exit code 0")])
    assert (found.kept_steps, found.rolled_back_steps) == (180, 20)
    assert found.failures == 1
    assert found.wall_seconds == 2000.0
    assert sum(found.seconds.values()) == pytest.approx(2000.0)


# what is not known


def test_a_log_without_times():
    signs = [Sign("step", n, None, 0.25) for n in range(1, 101)]
    found = measure([*signs, Sign("restarted", 81), *(Sign("step", n, None, 0.25) for n in range(81, 121))])
    assert (found.ettr, found.wall_seconds) == (None, None)
    assert spent(found) == {"kept": 30.0, "rolled back": 5.0}
    assert "say how long the run took" in found.notes[0]
    known = measure(signs, wall_seconds=100.0)
    assert known.ettr == pytest.approx(0.25)
    assert spent(known) == {"kept": 25.0, "unknown": 75.0}


def test_a_log_without_times_beside_attempts():
    signs = [Sign("step", n, None, 1.0) for n in range(1, 101)]
    signs += [Sign("restarted", 81), *(Sign("step", n, None, 1.0) for n in range(81, 181))]
    attempts = [attempt(1, 1000.0, 1150.0, end="killed"), attempt(2, 1200.0, 1350.0, end="exit code 0")]
    found = measure(signs, attempts)
    assert spent(found) == {"kept": 180.0, "rolled back": 20.0, "unknown": 100.0, "down": 50.0}


def test_a_log_with_nothing_but_steps():
    found = measure([Sign("step", n) for n in range(1, 11)])
    assert (found.ettr, found.kept_steps, spent(found)) == (None, 10, {})
    assert measure([Sign("step", n) for n in range(1, 11)], wall_seconds=60.0).ettr is None


def test_nothing_at_all():
    found = measure(())
    assert (found.ettr, found.wall_seconds, found.attempts) == (None, None, ())


_SIGNS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "step", "saving", "saved", "evaluating", "resumed", "restarted"]),
        st.integers(0, 50),
        st.one_of(st.none(), st.floats(0, 1000)),
        st.one_of(st.none(), st.floats(0.1, 20)),
    ),
    max_size=40,
)
_ATTEMPTS = st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 300)), max_size=4)


@settings(deadline=None)
@given(_SIGNS, _ATTEMPTS)
def test_whatever_a_log_tells_the_time_is_shared_out(told, begun):
    signs = [Sign(kind, step, time, pace) for kind, step, time, pace in told]
    attempts, at = [], 0.0
    for number, (gap, length) in enumerate(begun, 1):
        attempts.append(attempt(number, at + gap + 1, at + gap + length + 1))
        at += gap + length
    found = measure(signs, attempts)
    assert set(found.seconds) == set(KINDS)
    assert all(seconds >= -1e-6 for seconds in found.seconds.values())
    assert found.ettr is None or 0 <= found.ettr <= 1
    assert found.kept_steps <= 50 * (len(attempts) + len(signs) + 1)
    if found.wall_seconds and not found.notes:
        assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, rel=0.02, abs=2)
