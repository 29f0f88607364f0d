"""All detectors together, over any rows: they never raise, forget or repeat themselves."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.curves import CurveEvent, News, Restart, Row, event_json
from clustertools.curves.rows import Rows
from clustertools.curves.together import Together
from clustertools.curves.watch import CurveWatch
from clustertools.sources.training_values import Event, Point

USUAL = {
    "loss": 2.2, "grad_norm": 0.3, "param_norm": 120.0, "loss_scale": 65536.0, "learning_rate": 3e-4,
    "step_seconds": 5.0, "throughput_tokens_per_second": 1e5, "skipped_iterations": 0.0,
    "nan_iterations": 0.0, "eval_loss": 2.3,
}  # fmt: skip
#: What happens to some rows: metric -> factor at each of them, or a number that replaces it.
HAPPENINGS: dict[str, dict[str, float]] = {
    "as usual": {}, "spike": {"loss": 2.3, "grad_norm": 100.0}, "small": {"loss": 1.2},
    "better": {"loss": 0.7}, "burst": {"grad_norm": 30.0},
    "slow": {"step_seconds": 1.3, "throughput_tokens_per_second": 0.7},
    "as at first": {"loss": 5.0}, "nan": {"loss": math.nan}, "inf": {"grad_norm": math.inf},
    "missing": {"loss": 0.0}, "scale falls": {"loss_scale": 2.0**-9, "skipped_iterations": 1.0},
    "grows": {"param_norm": 3.0, "grad_norm": 3.0}, "zero": {"loss": 1e-300, "grad_norm": 0.0},
    "huge": {"loss": 1e306, "step_seconds": 1e300}, "negative": {"loss": -1.0},
}  # fmt: skip
Segment = tuple[str, int, int]


def made(
    segments: Iterable[Segment], seed: int, metrics: Iterable[str], noise: float, digits: int
) -> Iterator[Row]:
    """A run: each segment is what happens, for how many rows, and how many steps lie between two of them."""
    rnd, step, clock, names = random.Random(seed), 0, 1_700_000_000.5, tuple(metrics)
    for number, (what, length, stride) in enumerate(segments):
        for _ in range(length):
            step += stride
            clock += 5.0 * abs(stride)
            values, missing = {}, ()
            for name in names:
                change = HAPPENINGS[what].get(name, 1.0)
                warm = 1 + 4 / (number + 1) ** 2 if name == "loss" else 1.0
                value = USUAL[name] * warm * rnd.lognormvariate(0, noise)
                values[name] = round(value * change if USUAL[name] else change - 1, digits)
            if what == "missing" and values.pop("loss", None) is not None:
                missing = ("loss",)
            yield Row(step, values, missing, clock)


def gone(items: Iterable[Row | Restart], saves: frozenset[int] = frozenset()) -> list[News]:
    """All news of a run; after the rows of `saves` it goes on from the saved state."""
    watch, told = CurveWatch(), []  # type: CurveWatch, list[News]
    for number, item in enumerate(items):
        told += watch.add_row(item)
        if number in saves:
            watch = CurveWatch(json.loads(json.dumps(watch.state())))
    return [*told, *watch.finish()]


def assert_well_formed(told: list[News], forward: bool) -> None:
    began: dict[int, CurveEvent] = {}
    closed: set[int] = set()
    for news in told:
        event = news.event
        assert event.number not in closed, f"news after the end: {news}"
        assert (news.change == "began") == (event.number not in began), news
        first = began.setdefault(event.number, event)
        # a burst that turns out to be the first sign of a spike is told with the step of the spike
        same = (event.step, event.alarm_step) == (first.step, first.alarm_step)
        assert same or event.kind != first.kind or not forward, news
        if news.change in ("recovered", "ended"):
            closed.add(event.number)
            assert event.end_step is not None, news
        shown = event.step if event.sign_step is None else min(event.step, event.sign_step)
        assert not forward or shown <= event.alarm_step, news
        assert not forward or event.end_step is None or event.step <= event.end_step, news
        assert event.severity in ("page", "notice", "daily")
        assert 0 <= event.confidence <= 1, news
        assert event.message.strip(), news
        assert "\n" not in event.message
        json.dumps(event_json(event), allow_nan=False)
    assert closed == set(began), "not closed at the end"


def same(one: list[News], other: list[News]) -> bool:
    return repr(one) == repr(other)  # nan is not nan, but says the same


SEGMENTS = st.lists(
    st.tuples(
        st.sampled_from(sorted(HAPPENINGS)),
        st.sampled_from([1, 2, 3, 7, 12, 40, 80]),
        st.sampled_from([1, 1, 1, 1, 1, 10, 0, -5]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip
METRICS = st.sets(st.sampled_from(sorted(USUAL)), min_size=1)
RUNS = st.tuples(
    SEGMENTS, st.integers(0, 9), METRICS, st.sampled_from([0, 0.01, 0.1]), st.sampled_from([2, 12])
)
ODD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1.0, 1e308, -1e308, 5e-324])
)
ODD_ROWS = st.builds(
    Row,
    st.one_of(st.integers(0, 300), st.integers(-(10**18), 10**18)),
    st.dictionaries(st.sampled_from([*USUAL, "global_batch_size", "loss_2", ""]), ODD, max_size=5),
    st.sampled_from([(), ("loss",), ("grad_norm",), ("loss", "grad_norm", "loss_scale")]),
    st.one_of(st.none(), ODD),
)
ODD_ITEMS = st.one_of(
    ODD_ROWS, ODD_ROWS, ODD_ROWS, st.builds(Restart, st.integers(-5, 300), st.integers(0, 300))
)


@settings(deadline=None, max_examples=60)
@given(RUNS, st.sets(st.integers(0, 500), max_size=8))
def test_a_run_saved_anywhere_goes_on_the_same(run: tuple[Any, ...], saves: set[int]) -> None:
    segments, *how = run
    rows = list(made([("as usual", 70, 1), *segments], *how))
    told = gone(rows)
    assert_well_formed(told, forward=all(stride > 0 for _, _, stride in segments))
    assert same(gone(rows, frozenset(saves)), told)


@settings(deadline=None, max_examples=60)
@given(st.lists(ODD_ITEMS, max_size=30), st.integers(0, 90), st.sets(st.integers(0, 120), max_size=4))
def test_no_rows_are_too_odd(odd: list[Row | Restart], usual: int, saves: set[int]) -> None:
    rows = [*made([("as usual", usual, 1)], 1, USUAL, 0.01, 12), *odd]
    told = gone(rows)
    assert_well_formed(told, forward=False)
    assert same(gone(rows, frozenset(saves)), told)


EVERYTHING: list[Segment] = [
    ("as usual", 120, 1), ("spike", 6, 1), ("as usual", 70, 1), ("nan", 3, 1), ("as usual", 60, 1),
    ("slow", 40, 1), ("as usual", 60, 1), ("burst", 2, 1), ("as usual", 60, 1), ("missing", 2, 1),
    ("as usual", 40, 10), ("scale falls", 12, 10), ("as usual", 60, 10), ("as at first", 90, 10),
]  # fmt: skip


#: Of these at least something is told.
EXPECTED = {"spike", "nan", "step_time", "grad_burst"}


def everything() -> list[Row | Restart]:
    rows: list[Row | Restart] = list(made(EVERYTHING, 3, USUAL, 0.01, 6))
    return [*rows[:300], Restart(250, 300), *rows[250:]]


def test_saved_after_every_row_it_goes_on_the_same() -> None:
    items = everything()
    told = gone(items)
    assert {news.event.kind for news in told} >= EXPECTED
    assert_well_formed(told, forward=True)
    assert same(gone(items, frozenset(range(len(items)))), told)


def test_points_and_rows_are_told_the_same() -> None:
    points: list[Point | Event] = []
    for item in everything():
        if isinstance(item, Restart):
            points.append(Event("restart_marker", item.step))
        else:
            points.append(Point(item.step, item.time, item.values, missing=item.missing))
    by_point, by_row, rows = CurveWatch(), CurveWatch(), Rows()
    told = [news for point in points for news in by_point.add(point)] + by_point.finish()
    whole = [row for point in points for row in rows.add(point)] + rows.flush()
    assert same([news for row in whole for news in by_row.add_row(row)] + by_row.finish(), told)
    assert {news.event.kind for news in told} >= EXPECTED


def test_the_state_does_not_grow() -> None:
    rnd, watch, sizes = random.Random(2), CurveWatch(), []  # type: random.Random, CurveWatch, list[int]
    for step in range(12_000):
        wild = step % 97 < 3
        loss = 2.0 * rnd.lognormvariate(0, 0.3 if wild else 0.02)
        values = {"loss": loss, "grad_norm": 0.3 * rnd.paretovariate(2), "step_seconds": rnd.uniform(4, 9)}
        watch.add_row(Row(step, {**values, "loss_scale": 2.0 ** rnd.randint(0, 16)}))
        if step % 1500 == 1499:
            sizes.append(len(json.dumps(watch.state())))
    assert max(sizes) < 20_000
    assert max(sizes[4:]) < 1.3 * max(sizes[:4])


# one disturbance is told once


def event(number: int, kind: str, metric: str = "loss", step: int = 100, **more: Any) -> CurveEvent:
    given: dict[str, Any] = {"alarm_step": step, "value": 5.0, "baseline": 2.0, "confidence": 0.9}
    return CurveEvent(number, kind, metric, step, severity="page", message="it rose", **{**given, **more})  # type: ignore[arg-type]


def test_nan_ends_the_spike_it_came_of() -> None:
    together = Together()
    assert len(together.tell([News("began", event(1, "spike"))], 100)) == 1
    ended, nan = together.tell([News("began", event(2, "nan", step=104))], 104)
    assert (ended.change, ended.event.number, ended.event.end_step) == ("ended", 1, 104)
    assert nan.event.kind == "nan"
    assert not together.tell([News("recovered", event(1, "spike", end_step=140, recovered_step=141))], 141)
    assert [n.event.number for n in together.finish()] == [2]
    assert not together.finish()


@pytest.mark.parametrize(
    ("first", "then", "rows", "told"),
    [
        (event(1, "spike"), event(2, "grad_burst", "grad_norm"), 2, False),
        (event(1, "divergence"), event(2, "grad_burst", "grad_norm"), 400, True),
        (event(1, "spike"), event(2, "spike", "loss_2"), 2, False),
        (event(1, "spike", "loss_2"), event(2, "spike"), 2, True),
        (event(1, "nan"), event(2, "spike"), 9, False),
        (event(1, "nan"), event(2, "spike"), 90, True),
        (event(1, "divergence"), event(2, "stall"), 900, False),
        (event(1, "spike"), event(2, "nan"), 3, True),
        (event(1, "spike"), event(2, "step_time", "step_seconds"), 3, True),
    ],
)
def test_what_belongs_to_another_event(first: CurveEvent, then: CurveEvent, rows: int, told: bool) -> None:
    together = Together()
    together.tell([News("began", first)], 100)
    together = Together(json.loads(json.dumps(together.state())))
    assert any(n.event.number == 2 for n in together.tell([News("began", then)], 100 + rows)) is told
    grew = together.tell([News("grew", then)], 101 + rows)
    assert bool(grew) is told


def test_after_its_end_it_can_begin_again() -> None:
    together = Together()
    together.tell([News("began", event(1, "nan")), News("recovered", event(1, "nan", end_step=101))], 100)
    assert together.tell([News("began", event(2, "spike", step=110))], 110)
