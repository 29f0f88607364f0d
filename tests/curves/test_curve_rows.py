"""Rows out of the records of a log."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.curves import Restart, Row
from clustertools.curves.rows import Rows, loss_name
from clustertools.sources.training_values import Event, Point

NAN = float("nan")


def point(step: int | None, rank: int | None = None, **values: float) -> Point:
    return Point(step, None, values, rank)


def told(*items: Point | Event, flush: bool = True) -> list[Any]:
    """The rows as (step, loss), the restarts as (step, "back")."""
    rows = Rows()
    found = [row for item in items for row in rows.add(item)]
    found += rows.flush() if flush else []
    return [(r.step, "back") if isinstance(r, Restart) else (r.step, r.values.get("loss")) for r in found]


def rows_of(*items: Point | Event) -> list[Row]:
    rows = Rows()
    found = [row for item in items for row in rows.add(item)] + rows.flush()
    return [row for row in found if isinstance(row, Row)]


def test_whole_records_are_passed_on_at_once() -> None:
    rows = Rows()
    seen = [len(rows.add(point(n, loss=2.0, grad_norm=1.0))) for n in range(1, 6)]
    # the first waits, for it may have been a part; the second brings both
    assert seen == [0, 2, 1, 1, 1]


def test_the_parts_of_a_step_are_put_together() -> None:
    parts = [
        p
        for n in (10, 20, 30)
        for p in (point(n, loss=n / 10), point(n, grad_norm=1.0), point(n, tokens=5.0))
    ]
    found = rows_of(*parts)
    assert [(r.step, dict(r.values)) for r in found] == [
        (n, {"loss": n / 10, "grad_norm": 1.0, "tokens": 5.0}) for n in (10, 20, 30)
    ]


def test_a_nan_waits_for_no_other_part() -> None:
    rows = Rows()
    for n in (10, 20):
        for part in (point(n, grad_norm=1.0), point(n, loss=2.0)):
            rows.add(part)
    rows.add(point(30, grad_norm=1.0))
    assert [r.step for r in rows.add(point(30, loss=NAN)) if isinstance(r, Row)] == [30]


def test_a_bar_beside_the_metrics() -> None:
    """The step of the bar was passed on before it was known that more comes: nothing of it is lost."""
    bars = [point(n, step_seconds=1.0) for n in (8, 9, 10)]
    more = [point(n, step_seconds=1.0) for n in (11, 12)]
    found = rows_of(*bars, point(10, loss=2.0), *more, point(12, loss=1.9))
    assert [(r.step, dict(r.values)) for r in found[2:]] == [
        (10, {"step_seconds": 1.0}), (10, {"loss": 2.0}), (11, {"step_seconds": 1.0}),
        (12, {"step_seconds": 1.0, "loss": 1.9}),
    ]  # fmt: skip


def test_a_source_that_became_whole_again_is_not_held_for_ever() -> None:
    rows = Rows()
    for item in (point(1, loss=2.0), point(1, lr=1.0), *(point(n, loss=2.0) for n in range(2, 30))):
        rows.add(item)
    assert [r.step for r in rows.add(point(30, loss=2.0)) if isinstance(r, Row)] == [30]


def test_several_ranks_one_leads_and_no_nan_is_lost() -> None:
    lines = [point(n, rank, loss=n + rank / 10, grad_norm=1.0) for n in (1, 2, 3) for rank in (3, 0, 1)]
    lines[4] = point(2, 0, loss=NAN, grad_norm=1.0)
    found = told(*lines)
    assert [x for x in found if x[1] is None or not math.isnan(x[1])] == [(1, 1.3), (2, 2.3), (3, 3.3)]
    assert [x[0] for x in found if math.isnan(x[1])] == [2]


def test_a_rank_leads_when_the_leader_is_gone() -> None:
    lines = [point(n, rank, loss=float(n)) for n in (1, 2, 3) for rank in (0, 1)]
    after = [point(n, 1, loss=float(n)) for n in range(4, 14)]
    assert [step for step, _ in told(*lines, *after)] == [1, 2, 3, *range(8, 14)]


def test_two_writers_without_ranks() -> None:
    """LLaMA-Factory: two ranks append to one trainer_log.jsonl."""
    together = [point(n, loss=n + d) for n in (10, 20, 30) for d in (0.0, 0.25)]
    assert told(*together) == [(10, 10.0), (20, 20.0), (30, 30.0)]
    same = (10, 20, 10, 30, 20, 40, 30, 40)
    assert told(*(point(n, loss=float(n)) for n in same)) == [(n, float(n)) for n in (10, 20, 30, 40)]
    lagging = [(10, 0.0), (10, 0.5), (20, 0.0), (30, 0.0), (20, 0.5), (30, 0.5), (40, 0.0), (40, 0.5)]
    assert told(*(point(n, loss=n + d) for n, d in lagging)) == [(n, float(n)) for n in (10, 20, 30, 40)]


def test_a_restart_is_a_restart_when_the_run_goes_on_from_there() -> None:
    steps = (2500, 2550, 2598, 2500, 2550, 2600)
    found = told(*(point(n, loss=n + i) for i, n in enumerate(steps)))
    assert [x for x in found if x[1] == "back"] == [(2500, "back")]
    assert [x[0] for x in found] == [2500, 2550, 2598, 2500, 2500, 2550, 2600]
    whole = Rows()
    items = [r for i, n in enumerate(steps) for r in whole.add(point(n, loss=n + i))]
    assert Restart(2500, 2598) in items


def test_a_line_that_comes_late_is_none() -> None:
    steps = (100, 110, 120, 90, 130, 140)
    assert [s for s, _ in told(*(point(n, loss=n + i) for i, n in enumerate(steps)))] == [
        100,
        110,
        120,
        130,
        140,
    ]
    late = told(point(100, loss=2.0), point(110, loss=2.0), point(105, loss=NAN), point(120, loss=2.0))
    assert [s for s, loss in late if math.isnan(loss)] == [110]


def test_a_line_that_says_so_needs_no_second() -> None:
    rows = Rows()
    for n in (100, 110, 120):
        rows.add(point(n, loss=2.0))
    rows.add(Event("resumed", 100))
    assert [type(r) for r in rows.add(point(105, loss=2.5))] == [Restart, Row]


def test_a_restart_in_parts() -> None:
    steps = (10, 20, 30, 20, 30, 40)
    parts = [p for i, n in enumerate(steps) for p in (point(n, loss=n + i / 10), point(n, grad_norm=1.0))]
    found = told(*parts)
    assert [x[0] for x in found] == [10, 20, 30, 20, 20, 30, 40]
    assert found[3] == (20, "back")


def test_two_branches_of_which_one_is_dead() -> None:
    live = [point(4000 + n, loss=5.0 + n / 100) for n in range(20)]
    dead = [point(5000 + n, loss=3.0 + n / 100) for n in range(10)]
    mixed = [p for pair in zip(dead, live[:10], strict=True) for p in pair] + live[10:]
    found = told(*mixed)
    assert [x[0] for x in found if x[1] == "back"] == [4009]
    assert found[-1] == (4019, 5.19)
    assert [x[0] for x in found[:11]] == [*range(5000, 5010), 4009]


def test_no_steps_at_all_are_counted() -> None:
    hf = [point(None, loss=2.0, epoch=n / 100) for n in range(1, 5)]
    assert [s for s, _ in told(*hf)] == [1, 2, 3, 4]
    assert [s for s, _ in told(*(point(None, loss=2.0, epoch=float(n)) for n in range(4)))] == [0, 1, 2, 3]
    assert [s for s, _ in told(*(point(None, loss=2.0, epoch=float(n // 2)) for n in range(4)))] == [
        0,
        1,
        2,
        3,
    ]
    assert [s for s, _ in told(*(point(None, loss=2.0) for _ in range(3)))] == [1, 2, 3]


def test_steps_that_begin_anew_with_every_epoch() -> None:
    items = [point(n, loss=float(e), epoch=float(e)) for e in range(3) for n in (10, 20, 30)]
    assert [s for s, _ in told(*items)] == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_evaluations_go_with_the_next_row() -> None:
    found = rows_of(
        point(100, loss=2.0), point(100, eval_loss=2.2), point(110, loss=1.9), point(110, eval_loss=2.1)
    )  # fmt: skip
    assert [(r.step, r.values.get("eval_loss")) for r in found] == [(100, 2.2), (110, None), (110, 2.1)]
    alone = rows_of(*(point(n, eval_loss=n / 10) for n in (10, 20)))
    assert [(r.step, dict(r.values)) for r in alone] == [(10, {"eval_loss": 1.0}), (20, {"eval_loss": 2.0})]
    before = rows_of(
        *(point(n, loss=n / 10) for n in (10, 20, 30)), point(30, eval_loss=2.1), point(1, loss=9.0)
    )
    assert [(r.step, dict(r.values)) for r in before][-2:] == [(30, {"eval_loss": 2.1}), (1, {"loss": 9.0})]
    late = rows_of(point(100, loss=2.0), point(110, loss=2.0), point(50, eval_loss=2.1), point(120, loss=2.0))
    assert [r.step for r in late] == [100, 110, 120]


def test_a_loss_left_out_where_it_used_to_be() -> None:
    usual = [point(n, loss=2.0, grad_norm=1.0) for n in range(1, 40)]
    found = rows_of(
        *usual, point(40, grad_norm=1.0), point(41, accuracy=0.5), point(42, loss=2.0, grad_norm=1.0)
    )
    assert [r.step for r in found if r.missing] == [40]
    seldom = [
        point(n, learning_rate=0.1, grad_norm=1.0, **({"loss": 2.0} if n % 10 == 0 else {}))
        for n in range(1, 99)
    ]
    assert not [r for r in rows_of(*seldom) if r.missing]
    nan_told = rows_of(Point(5, None, {"grad_norm": 1.0}, missing=("loss",)))
    assert nan_told[0].missing == ("loss",)


def test_a_skipped_step_without_a_number_goes_with_the_next() -> None:
    overflow = point(None, loss_scale=32768.0, skipped_iterations=1.0)
    found = rows_of(point(10, loss=2.0), overflow, overflow, point(11, loss=2.0))
    assert found[1].values == {"loss": 2.0, "loss_scale": 32768.0, "skipped_iterations": 2.0}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("aux_loss z_loss total_loss nll_loss", "total_loss"),
        ("eval_c4_loss val_loss_1b loss_scale router_z_loss reward_loss mtp_loss", None),
        ("train_loss_1b", "train_loss_1b"),
        ("actor_pg_loss critic_vf_loss actor_entropy_loss actor_kl_loss", "actor_pg_loss"),
        ("perplexity learning_rate", "perplexity"),
        ("image_loss text_image_loss", "image_loss"),
        ("closs glossary", None),
    ],
)
def test_what_stands_for_the_loss(names: str, expected: str | None) -> None:
    assert loss_name(dict.fromkeys(names.split(), 1.0)) == expected


def test_the_choice_of_the_loss_holds() -> None:
    found = rows_of(
        point(1, nll_loss=2.0, perplexity=7.0), point(2, total_loss=9.0), point(3, nll_loss=1.9),
        point(4, loss=1.0), point(5, nll_loss=1.0),
    )  # fmt: skip
    assert [r.values.get("loss") for r in found] == [2.0, None, 1.9, 1.0, None]
    assert rows_of(point(1, perplexity=math.e))[0].values["loss"] == pytest.approx(1.0)


_NUMBERS = st.sampled_from([2.0, 2.5, 0.0, NAN, math.inf, -math.inf])
_VALUES = st.dictionaries(
    st.sampled_from(["loss", "grad_norm", "learning_rate", "eval_loss", "epoch", "nll_loss", "perplexity"]),
    _NUMBERS, max_size=4,
)  # fmt: skip
_POINTS = st.builds(
    Point,
    st.one_of(st.none(), st.integers(-3, 12)),
    st.one_of(st.none(), st.just(5.0)),
    _VALUES,
    st.sampled_from([None, None, 0, 1]),
    missing=st.sampled_from([(), (), ("loss",)]),
)
_EVENTS = st.builds(Event, st.sampled_from(["resumed", "restart_marker", "evaluation"]), st.integers(0, 9))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(_POINTS, _POINTS, _EVENTS), max_size=40), st.integers(0, 40))
def test_any_records_and_any_cut_give_the_same(items: list[Point | Event], cut: int) -> None:
    whole, parts = Rows(), Rows()
    expected = [r for item in items for r in whole.add(item)] + whole.flush()
    found: list[Row | Restart] = []
    for i, item in enumerate(items):
        if i == cut:
            parts = Rows(json.loads(json.dumps(parts.state())))
        found += parts.add(item)
    found += parts.flush()
    assert repr(found) == repr(expected)
    last: int | None = None
    for row in found:
        if isinstance(row, Row):
            assert last is None or row.step >= last
            last = row.step
        else:
            last = None
