"""The loss beside its grad norm: spikes, divergences, restarts, new levels, and what is not to be told."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence

import pytest

from clustertools.curves import News, Options, Restart, Row, Story
from clustertools.curves.loss import LossWatch

Rows = list[tuple[int, dict[str, float]]]


def told(rows: Iterable[tuple[int, dict[str, float]]], finish: bool = True) -> tuple[list[News], Story]:
    watch, story, news = LossWatch(), Story(), []
    for step, values in rows:
        watch.add(Row(step, values), story, news)
    if finish:
        watch.finish(story, news)
    return news, story


def run(rows: int = 400, level: float = 2.2, seed: int = 1, scatter: float = 0.01) -> Rows:
    """A loss that falls to its level and scatters, with its grad norm."""
    rng = random.Random(seed)
    return [
        (
            step,
            {
                "loss": level * (1 + 3 / math.sqrt(1 + step)) * (1 + scatter * rng.gauss(0, 1)),
                "grad_norm": 0.25 * math.exp(0.1 * rng.gauss(0, 1)),
            },
        )
        for step in range(1, rows + 1)
    ]


def lift(rows: Rows, at: int, ratios: Sequence[float], norm: float = 1.0) -> Rows:
    """The loss times `ratios` from row `at` on, the first two grad norms times `norm`."""
    for k, ratio in enumerate(ratios):
        rows[at + k][1]["loss"] *= ratio
        if k < 2:
            rows[at + k][1]["grad_norm"] *= norm
    return rows


def changes(news: Iterable[News]) -> list[tuple[str, str]]:
    return [(n.change, n.event.kind) for n in news]


def bloom() -> Rows:
    """BLOOM 176B, iterations 31214 to 31222 and 31250 as published (BigScience, train/tr11-176B-ml); before
    them its level, between them a way down."""
    loss = [2.198845, 2.220424, 2.595213, 2.241558, 2.345279, 5.098124, 3.492029, 3.213059, 2.804948]
    norm = [0.242, 0.947, 2.390, 15.886, 145.119, 960.351, 353.2, 379.3, 650.2]
    rng = random.Random(31214)
    rows: Rows = []
    for step in range(31014, 31301):
        scatter = 0.006 * rng.gauss(0, 1)
        at = step - 31214
        if 0 <= at < len(loss):
            rows.append((step, {"loss": loss[at], "grad_norm": norm[at]}))
            continue
        gone = math.exp(-(at - 8) / 6) if at > 0 else 0.0
        values = {"loss": 2.2 + 0.6 * gone + scatter, "grad_norm": 0.25 * (1 + 900 * gone**2)}
        rows.append((step, {"loss": 2.215699, "grad_norm": 0.267} if step == 31250 else values))
    return rows


def test_the_spike_of_bloom_is_one_event_told_before_its_peak():
    news, _ = told(bloom())
    first, last = news[0].event, news[-1].event
    assert first.alarm_step <= 31217
    assert 31215 <= first.step <= 31216
    assert first.sign_step == 31215
    assert {n.event.number for n in news} == {first.number}
    assert (news[-1].change, last.kind) == ("recovered", "spike")
    assert last.recovered_step is not None
    assert last.recovered_step <= 31250
    assert last.value == 5.098124
    assert last.severity == "page"


def test_a_spike_of_one_row_is_told_on_that_row_when_the_grad_norm_goes_with_it():
    news, story = told(lift(run(), 300, [1.3], norm=8))
    assert changes(news) == [("began", "spike"), ("recovered", "spike")]
    assert news[0].event.alarm_step == 301
    assert story.isolated == 0


def test_a_row_that_is_out_alone_with_the_grad_norm_unmoved_is_counted_and_not_told():
    news, story = told(lift(run(), 300, [1.5]))
    assert news == []
    assert story.isolated == 1


def test_two_rows_out_are_told_without_the_grad_norm_on_the_second():
    news, _ = told(lift(run(), 300, [1.12, 1.1, 1.05]))
    assert changes(news) == [("began", "spike"), ("recovered", "spike")]
    assert (news[0].event.step, news[0].event.alarm_step) == (301, 302)


def test_what_does_not_come_back_is_a_divergence_that_pages():
    rows = run(600)
    lift(rows, 300, [min(1 + 0.1 * k, 3.0) for k in range(1, 300)], norm=3)
    news, _ = told(rows)
    assert news[0].event.kind == "spike"
    assert ("grew", "divergence") in changes(news)
    assert len({n.event.number for n in news}) == 1
    assert news[-1].event.severity == "page"


def test_a_level_that_holds_is_told_and_accepted():
    rows = lift(run(800), 300, [1.3] * 500)
    lift(rows, 600, [1.5, 1.3], norm=9)
    news, _ = told(rows)
    assert [n.event.kind for n in news if n.change == "ended"] == ["level_shift"]
    assert news[-1].event.step == 601, "a spike of the new level is seen"


def test_a_loss_as_in_the_first_steps_is_a_restart():
    rows = run(600)
    for k, (_, values) in enumerate(rows[400:]):
        values["loss"] = rows[k][1]["loss"]
    news, _ = told(rows)
    assert news[0].event.alarm_step == 401
    assert ("grew", "restart") in changes(news)[:2]
    assert len({n.event.number for n in news}) == 1


def test_a_burst_of_the_grad_norm_alone_is_a_notice():
    news, _ = told(lift(run(), 300, [1.0], norm=20))
    assert changes(news) == [("began", "grad_burst"), ("recovered", "grad_burst")]
    assert news[0].event.severity == "notice"
    assert news[0].event.metric == "grad_norm"


def test_an_earlier_spike_does_not_hide_the_next():
    rows = run(800)
    for at in (200, 300, 400, 500, 600):
        lift(rows, at, [2.0, 1.6, 1.4, 1.2, 1.1], norm=10)
    news, _ = told(rows)
    assert [n.event.step for n in news if n.change == "began"] == [201, 301, 401, 501, 601]


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**30])
def test_the_unit_of_the_loss_does_not_matter(factor):
    rows = lift(lift(run(), 200, [1.3, 1.2, 1.1], norm=8), 300, [1.12, 1.12, 1.0])
    plain, _ = told(rows)
    other, _ = told([(s, {"loss": v["loss"] * factor, "grad_norm": v["grad_norm"]}) for s, v in rows])
    assert len(plain) >= 4
    assert [(n.change, n.event.kind, n.event.step) for n in plain] == [
        (n.change, n.event.kind, n.event.step) for n in other
    ]


def test_every_other_row_shows_what_is_longer_than_two():
    rows = lift(lift(run(800), 300, [2.0, 1.7, 1.5, 1.3, 1.2], norm=10), 500, [1.4] * 6)
    both, _ = told(rows)
    half, _ = told(rows[::2])
    assert len([n for n in both if n.change == "began"]) == 2
    assert len([n for n in half if n.change == "began"]) == 2


@pytest.mark.parametrize("cut", [5, 17, 200, 301, 303, 310, 352, 420])
def test_saved_and_taken_up_again_it_says_the_same(cut):
    rows = lift(lift(run(500), 300, [1.3] * 60, norm=3), 410, [1.4, 1.0, 1.0], norm=20)
    whole, story = told(rows)
    watch, again, news = LossWatch(), Story(), []
    for step, values in rows[:cut]:
        watch.add(Row(step, values), again, news)
    saved = json.dumps(watch.state())
    assert len(saved) < 10_000
    watch = LossWatch(json.loads(saved))
    for step, values in rows[cut:]:
        watch.add(Row(step, values), again, news)
    watch.finish(again, news)
    assert (news, again) == (whole, story)


def test_noise_with_a_heavy_tail_says_nothing():
    rng = random.Random(7)
    rows: Rows = []
    for step in range(20_000):  # a t distribution of 3 degrees of freedom
        scatter = rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2 / 3))
        rows.append(
            (step, {"loss": 2.5 + 0.03 * scatter, "grad_norm": 0.3 * math.exp(0.2 * rng.gauss(0, 1))})
        )
    news, _ = told(rows)
    assert news == []


@pytest.mark.parametrize(
    "loss",
    [
        lambda k: 2.5,
        lambda k: 0.0,
        lambda k: 10 / math.sqrt(k + 1),
        lambda k: 1 + 0.01 * k,
        lambda k: math.log(2 + k),
        lambda k: 3.0 if k < 300 else 2.0 if k < 600 else 1.5,
        lambda k: round((2.3 + 0.004 * math.sin(k * k)) * 128) / 128,
        lambda k: 1e-4 * ((k * 7919) % 5 == 0),
    ],
    ids=["constant", "zero", "falls", "rises", "slows", "stairs", "bf16", "mostly-zero"],
)
def test_what_is_no_disturbance_says_nothing(loss):
    news, _ = told([(k, {"loss": loss(k), "grad_norm": 0.25}) for k in range(1, 1000)])
    assert news == []


def test_a_restart_of_the_log_closes_what_was_open():
    watch, story, news = LossWatch(), Story(), []
    for step, values in lift(run(310), 300, [1.5] * 10, norm=9):
        watch.add(Row(step, values), story, news)
    watch.restart(Restart(250, 310), story, news)
    assert changes(news)[-1] == ("ended", "spike")


def test_a_named_series_is_watched_for_rises():
    rows = run()
    watch, story, news = LossWatch(options=Options(extra=("z_loss",))), Story(), []
    for k, (step, values) in enumerate(rows):
        values["z_loss"] = 0.01 * values["loss"] * (3.0 if 200 <= k < 210 else 1.0)
        watch.add(Row(step, values), story, news)
    assert [(n.change, n.event.metric) for n in news] == [("began", "z_loss"), ("recovered", "z_loss")]


def test_a_loss_that_falls_through_decades_hides_no_spike():
    rng = random.Random(3)
    rows: Rows = [
        (k, {"loss": 10 ** (1 - k / 100) * math.exp(0.03 * rng.gauss(0, 1)), "grad_norm": 1.0})
        for k in range(1, 500)
    ]
    rows[399][1]["loss"] *= 30
    rows[400][1]["loss"] *= 10
    news, _ = told(rows)
    assert changes(news) == [("began", "spike"), ("recovered", "spike")]
    assert news[0].event.alarm_step == 400


def test_a_series_that_turns_negative_is_learned_anew_and_watched():
    rng = random.Random(4)
    rows: Rows = [(k, {"loss": (0.5 if k < 200 else 0.0) + 0.05 * rng.gauss(0, 1)}) for k in range(1, 600)]
    for k in range(400, 405):
        rows[k][1]["loss"] = 3.0
    rows[300][1]["loss"] = -math.inf
    news, _ = told(rows)
    assert [n.event.step for n in news if n.change == "began"] == [401]


def test_single_rows_that_the_run_has_shown_before_are_not_told_without_a_grad_norm_either():
    rows: Rows = [(step, {"loss": values["loss"]}) for step, values in run(3000)]
    for at in range(150, 3000, 100):
        rows[at][1]["loss"] *= 1.13
    news, story = told(rows)
    assert news == []
    assert story.isolated > 20
    rows[2777][1]["loss"] *= 3
    news, _ = told(rows)
    assert [n.event.alarm_step for n in news if n.change == "began"] == [2778], "but one of another size is"


def test_a_spike_as_high_as_the_first_steps_that_comes_down_at_once_is_no_restart():
    rows = lift(run(), 300, [2.6, 2.4, 1.6, 1.3, 1.2, 1.1], 8.0)
    news, _ = told(rows)
    assert {n.event.kind for n in news} == {"spike"}
    assert news[-1].change == "recovered"


def around_zero(rows: int, seed: int = 5) -> Rows:
    """As policies are trained: next to nothing, and now and then as far up as down, with a gradient."""
    rng = random.Random(seed)
    found: Rows = []
    for step in range(rows):
        far = rng.random() < 0.01
        loss = rng.choice((-1, 1)) * rng.uniform(0.005, 0.02) if far else 0.0037 + rng.gauss(0, 2e-4)
        norm = rng.uniform(0.05, 0.3) if far else 0.001 * math.exp(0.2 * rng.gauss(0, 1))
        found.append((step, {"loss": round(loss, 4), "grad_norm": norm}))
    return found


def test_a_loss_around_zero_is_told_by_how_far_it_ever_went():
    quiet, _ = told(around_zero(4000))
    assert [n for n in quiet[1:] if n.event.metric == "loss" and n.event.step > 1000] == []
    rows = around_zero(4000)
    rows[3500][1].update(loss=0.3, grad_norm=3.0)
    news, _ = told(rows)
    assert ("spike", 3500) in {(n.event.kind, n.event.step) for n in news}


def test_what_a_loss_does_that_is_fitted_to_nothing_wakes_nobody():
    rng = random.Random(2)
    falls = [4.0 * math.exp(-step / 8) for step in range(140)]
    flat = [2e-7 * math.exp(0.1 * rng.gauss(0, 1)) for _ in range(300)]
    flat[150:156] = [2e-6] * 6
    rows: Rows = [(step, {"loss": loss}) for step, loss in enumerate(falls + flat)]
    assert told(rows)[0] == []
    rows[350][1]["loss"] = 0.5
    rows[351][1]["loss"] = 0.1
    assert ("began", "spike") in changes(told(rows)[0])


def test_rows_of_which_none_is_high_are_told_when_they_last():
    rows: Rows = [(step, {"loss": values["loss"]}) for step, values in run(rows=600, scatter=0.12)]
    for k, loss in enumerate((5.5, 4.3, 4.2, 4.3, 4.4, 4.3, 4.2)):
        rows[500 + k][1]["loss"] = loss
    news, _ = told(rows)
    assert [n.event.kind for n in news if n.change == "began"] == ["spike"]
    assert news[0].event.step == rows[500][0]
