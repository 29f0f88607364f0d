"""Whether a restart goes on where its checkpoint says: what may be wrong, and what only looks like it."""

from __future__ import annotations

import random

import pytest

from tests.lab.run_log import FollowedRun

OK, WRONG = frozenset(), frozenset({"JobResumeWrong"})


def rate(step: int) -> float:
    """Warm-up over 200 steps, then slowly down."""
    return 3e-4 * min(1.0, step / 200) * (1 - step / 20_000)


def line(step: int, *, loss: float | None = None, lr: float | None = None, samples: int | None = None) -> str:
    noise = random.Random(step).uniform(-0.03, 0.03)
    loss = 4.0 - step / 1000 + noise if loss is None else loss
    lr = rate(step) if lr is None else lr
    samples = step * 64 if samples is None else samples
    return (
        f" iteration {step:8}/   20000 | consumed samples: {samples} | learning rate: {lr:.6E} |"
        f" global batch size: 64 | lm loss: {loss:.6E} | grad norm: 0.5 |"
    )


@pytest.fixture
def big() -> FollowedRun:
    """A run that trained 1,205 steps, a line each 5, and saved every 200."""
    run = FollowedRun("job_resume")
    for step in range(5, 1210, 5):
        lines = [line(step)]
        if step % 200 == 0:
            lines.append(f"  successfully saved checkpoint from iteration {step:7} to /ckpt")
        assert run.look(*lines).codes == OK
    return run


def steps(first: int, count: int = 6, **how: float) -> list[str]:
    return [line(step, **how) for step in range(first, first + 5 * count, 5)]  # type: ignore[arg-type]


def test_a_restart_that_goes_on_is_right(big: FollowedRun) -> None:
    big.again(1000)
    for text in steps(1005, 20):
        assert big.look(text).codes == OK
    assert big.memory["history"][-1][0] == 1100, "what it trains now is what the next start is compared with"
    big.again(1100, truncate=True)
    for text in steps(1105, 20):
        assert big.look(text).codes == OK


@pytest.mark.parametrize(
    ("resume", "lines", "why"),
    [
        (1000, steps(5), "its first step is 5, the checkpoint that it was given is of step 1000"),
        (1000, steps(805), "its first step is 805"),
        (800, steps(1005), "its first step is 1005, beyond the checkpoint"),
        (1000, steps(1005, loss=4.2), "the loss is 4.2 in the 3 lines from step 1005 on"),
        (1000, steps(1005, lr=1.5e-6), "the learning rate is 1.5e-06 at step 1005, it was 0.00028"),
        (1000, steps(1005, samples=320), "320 samples were consumed at step 1005, it was 64320 there"),
    ],
    ids=["from nothing", "an older one", "a newer one", "loss", "learning rate", "samples"],
)
@pytest.mark.parametrize("truncate", [True, False])
def test_what_is_wrong_is_told_within_three_lines(
    big: FollowedRun, resume: int, lines: list[str], why: str, truncate: bool
) -> None:
    big.again(resume, truncate=truncate)
    for text in lines[:3]:
        verdict = big.look(text)
    assert verdict.codes == WRONG
    assert why in " ".join(verdict.findings[0].evidence)
    assert big.look(*lines[3:]).codes == WRONG, "it stays for this start"
    big.again(1000)
    assert big.look(*steps(1005)).codes == OK, "what the wrong start trained is not what it is compared with"


def test_the_last_lines_of_the_old_start_are_not_the_new_ones(big: FollowedRun) -> None:
    """They were in a buffer, or nobody looked: they come when the new start is known already."""
    big.say(*steps(1210, 4))
    big.again(1000)
    assert big.look().codes == OK
    assert big.look(*steps(1005)).codes == OK


def test_lines_that_were_lost_with_their_buffer_are_no_jump(big: FollowedRun) -> None:
    """It saved at step 1400 and was killed; the log ends at 1205, and goes on at 1405 in the same file."""
    big.say("  successfully saved checkpoint from iteration    1200 to /ckpt")
    big.look()
    big.again(1400)
    assert big.look(*steps(1405, 20)).codes == OK
    assert big.look(*steps(1505)).codes == OK


def test_a_start_from_nothing_after_a_requeue(big: FollowedRun) -> None:
    """verl #7952: nobody told it where to resume, and it found nothing."""
    big.again(None)
    verdict = big.look(*steps(5, 1))
    assert "began at step 5, though a checkpoint of step 1200 was saved" in verdict.findings[0].summary


def test_a_start_from_nothing_inside_one_job(big: FollowedRun) -> None:
    """torchrun --max-restarts begins the workers anew, in the same log."""
    assert big.look(*steps(5, 1)).codes == WRONG


def test_a_launcher_that_resumes_rightly_inside_one_job(big: FollowedRun) -> None:
    assert big.look(*steps(1205)).codes == OK


def test_what_a_person_started_is_not_judged(big: FollowedRun) -> None:
    big.again(None, job_id="4712", truncate=True)
    assert big.look(*steps(5, 60, lr=1e-3, loss=9.0)).codes == OK
    big.again(200)
    assert big.look(*steps(205, lr=1e-3, loss=9.0)).codes == OK, "and from then on with itself"


def test_without_a_history_only_the_step_is_judged() -> None:
    run = FollowedRun("job_resume")
    run.again(1000)
    assert run.look(*steps(1005, loss=9.0, lr=1.0)).codes == OK
    other = FollowedRun("job_resume")
    other.look("nothing yet")
    other.again(1000)
    assert other.look(*steps(5)).codes == WRONG


def test_a_bar_at_zero_before_it_jumps_is_no_first_step() -> None:
    """The Trainer shows 0/1000 and then 501/1000."""
    run = FollowedRun("job_resume")
    run.look("Total optimization steps = 1,000", *(bar(n) for n in range(1, 600)))
    run.again(500)
    assert run.look(bar(0), bar(501), bar(502)).codes == OK


@pytest.mark.parametrize("steps_a_line", [0.25, 10])
def test_a_count_of_something_else_is_not_compared_with_steps(steps_a_line: float) -> None:
    """Four batches a step: the bar stands at 2001 when the checkpoint is of step 500. Or tens of steps."""
    run = FollowedRun("job_resume")
    for n in range(1, 2200):
        run.say(f"step {n}/8000 | loss 2.5")
        if n % 400 == 0:
            run.say(f"Saved checkpoint at step {int(n * steps_a_line)}")
    run.look()
    run.again(int(2000 * steps_a_line))
    assert run.look("step 2001/8000 | loss 2.5", "step 2002/8000 | loss 2.5").codes == OK


def bar(step: int) -> str:
    speed = "?it/s" if step == 0 else "1.09s/it"
    return f" {step // 10:2}%|█▏  | {step}/1000 [02:10<15:55,  {speed}]"


def test_a_spike_of_one_line_after_a_restart_is_none(big: FollowedRun) -> None:
    big.again(1000)
    assert big.look(line(1005, loss=5.1), line(1010), line(1015)).codes == OK
