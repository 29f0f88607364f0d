"""The first loss that is no number, and what is none."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.model import Remedy, Status
from tests.lab.run_log import FollowedRun

OK, BAD = frozenset(), frozenset({"LossNotFinite"})


@pytest.fixture
def big() -> FollowedRun:
    return FollowedRun("job_loss")


def plain(step: int, loss: object = 2.5) -> str:
    return f"step {step}/1000 | loss {loss} | grad norm 0.5"


def megatron(
    step: int, loss: str = "2.5E+00", skipped: int = 0, nan: int = 0, norm: str = "0.5", scale: float = 1.0
) -> str:  # fmt: skip
    told = f" lm loss: {loss} |" if loss else ""
    return (
        f" iteration {step:8}/  500000 | consumed samples: {step * 64} | learning rate: 1.2E-05 |"
        f" global batch size: 64 |{told} loss scale: {scale} | grad norm: {norm} |"
        f" number of skipped iterations: {skipped:3} | number of nan iterations: {nan:3} |"
    )


def test_two_lines_in_a_row_are_believed_and_the_first_bad_step_is_remembered(big: FollowedRun) -> None:
    assert big.look(plain(10), plain(20)).codes == OK
    assert big.look(plain(30, "nan")).codes == OK, "one line may be a step that was skipped"
    assert big.memory["first_bad_step"] == 21, "a checkpoint of step 25 is spoilt as well"
    (finding,) = big.look(plain(40, "nan")).findings
    assert (finding.code, finding.status, finding.remedy) == (
        "LossNotFinite", Status.CRITICAL, Remedy.RESTART_APP,
    )  # fmt: skip
    assert "not a number from step 21 on" in finding.summary
    assert "last finite loss: 2.5 at step 20" in finding.evidence
    assert big.look().codes == BAD, "it stays while nothing new is told"


def test_one_inf_by_itself_is_a_skipped_step(big: FollowedRun) -> None:
    assert big.look(plain(10), plain(11, "inf"), plain(12)).codes == OK
    assert "first_bad_step" not in big.memory


def test_one_line_is_enough_when_the_run_ended_with_it(big: FollowedRun) -> None:
    big.look(plain(10), plain(11, "nan"))
    big.job = dataclasses.replace(big.job, state="ended", exit_code=1)
    assert big.look().codes == BAD


def test_gradients_that_were_nan_had_spoilt_the_step_before(big: FollowedRun) -> None:
    big.look(plain(10), "step 11/1000 | loss 2.5 | grad norm nan", plain(12, "nan"), plain(13, "nan"))
    assert big.memory["first_bad_step"] == 11


def test_megatron_leaves_the_loss_out(big: FollowedRun) -> None:
    assert big.look(megatron(94), megatron(95, "", nan=1, norm="nan")).codes == OK
    assert big.look(megatron(96, "", nan=1, norm="nan")).codes == BAD
    assert big.memory["first_bad_step"] == 95


def test_the_search_for_a_loss_scale_is_normal(big: FollowedRun) -> None:
    big.look(megatron(1, scale=2.0**32))
    lines = [megatron(n, "", skipped=1, nan=1, norm="inf", scale=2.0 ** (33 - n)) for n in range(2, 20)]
    assert big.look(*lines).codes == OK
    assert big.look(megatron(20, scale=8192.0)).codes == OK
    lines = [megatron(n, skipped=1, nan=1, scale=8192.0) for n in (30, 40, 50)]
    assert big.look(*lines).codes == OK, "the mean of ten iterations without the one that was skipped"
    assert "first_bad_step" not in big.memory


def test_a_search_that_does_not_end_is_not(big: FollowedRun) -> None:
    big.look(megatron(1, scale=2.0**32))
    lines = [
        megatron(n, "", skipped=1, nan=1, norm="inf", scale=max(1.0, 2.0 ** (33 - n))) for n in range(2, 60)
    ]
    finding, *signs = big.look(*lines).findings
    assert "51 iterations in a row were skipped" in finding.summary
    assert {sign.code for sign in signs} <= {"StepsNotFinite", "LossScaleCollapse"}, "explained by the other"
    assert big.memory["first_bad_step"] == 2


def test_it_clears_when_the_next_start_tells_a_finite_loss(big: FollowedRun) -> None:
    big.look(plain(20), plain(30, "nan"), plain(40, "nan"))
    big.again(10)
    verdict = big.look("loading")
    assert verdict.status is Status.SKIPPED, "neither lost nor found: the incident stays, nothing is done"
    assert big.look("start step=10", plain(11)).codes == OK
    assert big.memory["first_bad_step"] == 21, "what was saved from there on is still bad"
    assert big.look(plain(20), plain(21)).codes == OK
    assert "first_bad_step" not in big.memory, "and is saved anew when the run has passed it"


def test_a_second_time_tells_of_the_first(big: FollowedRun) -> None:
    big.look(plain(20), plain(21, "nan"), plain(22, "nan"))
    big.again(10)
    big.look(plain(11), plain(20))
    (finding,) = big.look(plain(21, "nan"), plain(22, "nan")).findings
    assert "attempt 1 lost it at step 21" in finding.evidence


def test_an_evaluation_is_no_step(big: FollowedRun) -> None:
    big.look(plain(10))
    lines = ["step 10: train loss nan, val loss nan", "step 10: train loss nan, val loss nan"]
    assert big.look(*lines).codes == OK
