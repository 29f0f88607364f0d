"""Step times: what is told as slower, when, and what is not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable

import pytest

from clustertools.curves import News, Restart, Row, Story
from clustertools.curves.pace import Pace

_METRICS = ("step_seconds", "throughput_tokens_per_second", "samples_per_second", "tflops_per_gpu")


def steady(
    rows: int, seconds: float, spread: float = 0.01, seed: int = 1, wander: float = 0.0
) -> list[float]:
    """Step times with an evaluation every 150 rows; `wander`: how much of a row's noise stays in the next."""
    rnd, out, noise = random.Random(seed), [], 0.0
    for row in range(rows):
        noise = wander * noise + rnd.gauss(0, 1) * math.sqrt(1 - wander * wander)
        slow = rnd.uniform(2, 100) if (row + 1) % 150 == 0 else 1.0
        out.append(seconds * max(0.1, 1 + spread * noise) * slow)
    return out


def rows_of(seconds: Iterable[float], way: str = "step_seconds", stride: int = 1) -> list[Row]:
    rows, clock = [], 1_700_000_000.3
    for number, value in enumerate(seconds):
        clock += value * stride
        if way in ("clock", "whole"):
            rows.append(
                Row(number * stride, {"loss": 2.0}, (), clock if way == "clock" else float(int(clock)))
            )
        else:
            told = value if way == "step_seconds" else 1000 / value
            rows.append(Row(number * stride, {"loss": 2.0, way: told}))
    return rows


def fed(rows: Iterable[Row | Restart]) -> list[News]:
    pace, story, told = Pace(), Story(), []  # type: Pace, Story, list[News]
    for row in rows:
        if isinstance(row, Restart):
            pace.restart(row, story, told)
        else:
            pace.add(row, story, told)
    pace.finish(story, told)
    return told


def began(told: list[News]) -> list[int]:
    return [news.event.step for news in told if news.change == "began"]


@pytest.mark.parametrize("way", [*_METRICS, "clock", "whole"])
def test_the_slow_node_of_bloom_is_told_whatever_the_log_says(way: str) -> None:
    series = [*steady(400, 105.2, 0.003), 106.25, 110.17, 111.14, *steady(80, 111.14, 0.003)]
    told = fed(rows_of([*series, *steady(40, 105.2, 0.003)], way))
    assert [news.change for news in told] == ["began", "recovered"]
    event = told[-1].event
    assert event.step in (400, 401)
    assert event.alarm_step <= 413
    assert event.end_step in range(482, 485)
    assert event.severity == "notice"
    assert (event.value > event.baseline) == (event.metric == "step_seconds")
    assert "5." in event.message


@pytest.mark.parametrize(
    ("usual", "slow", "within", "severity"),
    [
        (5.0, steady(1000, 5.325), 12, "notice"),
        (5.0, steady(1345, 5.75), 12, "notice"),
        (5.0, steady(700, 7.0), 8, "page"),
        (5.0, [21.0, 22.0, 21.5], 3, "notice"),
        (
            5.0,
            [5 * f for f in (2.2, 4, 5, 3, 2.5, 3, 4, 2.1, 5, 3, 2.4, 4, 3, 2.6, 2.2, 4, 5, 3, 2.2)],
            3,
            "page",
        ),
    ],
)
def test_slowdowns_of_every_size_and_length(
    usual: float, slow: list[float], within: int, severity: str
) -> None:
    told = fed(rows_of([*steady(200, usual), *slow, *steady(60, usual, seed=2)]))
    assert [n.change for n in told if n.change != "grew"] == ["began", "recovered"]
    last = told[-1].event
    assert (last.step, last.severity) == (200, severity)
    assert last.alarm_step < 200 + within
    assert last.end_step is not None
    assert abs(last.end_step - (200 + len(slow) - 1)) <= 10


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("wander", [0.0, 0.9])
def test_a_run_whose_pace_wanders_is_not_told(spread: float, wander: float) -> None:
    told = fed(rows_of(steady(6000, 1.0, spread, seed=5, wander=wander)))
    assert len(began(told)) <= (1 if wander else 0)


def test_what_is_no_slowdown() -> None:
    pace = steady(300, 5.0)
    faster = fed(rows_of([*pace, *steady(300, 4.0)]))
    a_while = fed(rows_of([*steady(900, 5.0), *steady(200, 4.0), *steady(300, 5.0)]))
    compiling = fed(rows_of([60.0, 30.0, 9.0, *pace]))
    resumed = fed([*rows_of(pace), Restart(300), *rows_of([70.0, 20.0, 8.0, *pace])])
    other_nodes = fed([*rows_of(pace), Restart(300), *rows_of(steady(300, 9.0))])
    interval = fed([*rows_of(pace, "clock"), *rows_of(steady(300, 6.0), "clock", stride=10)])
    assert not any([faster, a_while, compiling, resumed, other_nodes, interval])


@pytest.mark.parametrize("odd", [1e308, 5e-324, 0.0, -1.0, math.inf, math.nan])
def test_what_is_no_time_is_passed_over(odd: float) -> None:
    series = [*steady(60, 5.0), odd, odd, odd, odd, *steady(60, 5.0)]
    told = fed(rows_of([*series, *steady(60, 9.0, seed=2), odd, odd]))
    assert began(told) == [124]


def test_a_larger_batch_is_not_slower() -> None:
    rows = rows_of([*steady(310, 5.0), *steady(300, 9.0)])
    assert began(fed(rows)) == [310]
    ramped = [Row(r.step, {**r.values, "global_batch_size": 256 if r.step < 310 else 512}) for r in rows]
    assert not fed(ramped)


def test_slower_once_more_is_another_event() -> None:
    told = fed(rows_of([*steady(300, 5.0), *steady(400, 5.5), *steady(100, 7.0), *steady(60, 5.0)]))
    assert [(n.change, n.event.number) for n in told if n.change != "grew"] == [
        ("began", 1), ("ended", 1), ("began", 2), ("recovered", 2),
    ]  # fmt: skip


def test_a_run_that_does_it_all_the_time_is_told_of_it_three_times() -> None:
    series = steady(300, 5.0)
    for seed in range(12):
        series += [*steady(30, 8.0, seed=seed), *steady(120, 5.0, seed=seed)]
    assert len(began(fed(rows_of(series)))) == 3
    assert len(began(fed(rows_of([*series, *steady(30, 14.0)])))) == 4
    longer = fed(rows_of([*series, *steady(100, 8.0), *steady(40, 5.0)]))
    assert [n.event.step for n in longer if n.change == "recovered"][3:] == [2100]


def test_evaluations_of_several_rows_are_learned() -> None:
    series: list[float] = []
    for seed in range(10):
        series += [*steady(60, 5.0, seed=seed), 20.0, 20.0]
    assert not fed(rows_of(series))
    assert not fed(rows_of([*series, *steady(60, 5.0), 20.0, 20.0, 20.0, *steady(60, 5.0)]))


@pytest.mark.parametrize("way", ["step_seconds", "whole", "habit"])
def test_saved_at_any_row_it_goes_on_the_same(way: str) -> None:
    habit = [*steady(30, 8.0), *steady(60, 5.0)] * (5 if way == "habit" else 0)
    way = "step_seconds" if habit else way
    series = [*steady(160, 5.0), *steady(260, 6.0), *steady(30, 5.0), *steady(30, 12.0, seed=3)]
    series = [*series[:100], *habit, *series[100:]]
    rows: list[Row | Restart] = [*rows_of(series, way), Restart(400), *rows_of(steady(80, 5.0), way)]
    story, saved, told = Story(), None, []  # type: Story, str | None, list[News]
    for row in rows:
        pace = Pace(json.loads(saved) if saved else None)
        pace.restart(row, story, told) if isinstance(row, Restart) else pace.add(row, story, told)
        saved = json.dumps(pace.state())
        assert len(saved) < 8000
    Pace(json.loads(saved or "")).finish(story, told)
    assert told == fed(rows)
    assert told or way == "whole"
