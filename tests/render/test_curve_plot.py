"""Curves that stream into a bounded picture, and the picture in a terminal and on a page."""

from __future__ import annotations

import math
import random
import re

import pytest

from clustertools.curves import CurveEvent, Restart, Row
from clustertools.render.curves import (
    BUCKETS,
    SERIES_AT_MOST,
    Curve,
    Pen,
    Picture,
    Told,
    number_text,
    text_plot,
)  # fmt: skip
from clustertools.render.curves_page import page
from tests.lab.browser import measure, needs_chromium
from tests.render.test_preflight_page import Reader


def event(number=1, step=500, end=510, **other) -> CurveEvent:
    told = {
        "kind": "spike", "metric": "loss", "value": 9.0, "baseline": 2.0, "confidence": 0.9,
        "severity": "notice", "message": "loss 9 at step 500", "alarm_step": step, **other,
    }  # fmt: skip
    return CurveEvent(number=number, step=step, end_step=end, **told)


def drawn(rows: int = 1000, *, loss=lambda step: 2.0 + 0.01 * (step % 7), only=frozenset()) -> Picture:
    picture = Picture(only=only)
    for step in range(rows):
        picture.row(Row(step, {"loss": loss(step), "grad_norm": 0.2}))
    return picture


def test_a_single_row_is_never_lost_however_long_the_log():
    curve = Curve()
    for step in range(20 * BUCKETS):
        curve.add(step, 900.0 if step == 12_345 else -5.0 if step == 30_001 else 2.0)
    assert len(curve.buckets) <= BUCKETS
    assert curve.rows == sum(b.rows for b in curve.buckets) == 20 * BUCKETS
    assert [b.high_x for b in curve.buckets if b.high == 900.0] == [12_345]
    assert [b.low_x for b in curve.buckets if b.low == -5.0] == [30_001]
    assert (curve.low, curve.high) == (-5.0, 900.0)


def test_buckets_hold_what_all_rows_hold():
    seed = random.Random(7)
    values = [seed.gauss(0, 1) for _ in range(3 * BUCKETS + 17)]
    curve = Curve()
    for x, value in enumerate(values):
        curve.add(x, value)
    begin = 0
    for bucket in curve.buckets:
        part = values[begin : begin + bucket.rows]
        assert (bucket.low, bucket.high) == (min(part), max(part))
        assert values[int(bucket.low_x)] == bucket.low
        begin += bucket.rows
    assert begin == len(values)


def test_numbers_that_are_none_break_the_line_and_are_counted():
    curve = Curve()
    for x, value in enumerate([1.0, 2.0, math.nan, math.inf, 3.0]):
        curve.add(x, value)
    assert curve.not_finite == 2
    assert list(curve.strokes()) == [[(0, 1.0), (1, 2.0)], [(4, 3.0)]]
    assert list(curve.strokes(breaks=[1])) == [[(0, 1.0)], [(1, 2.0)], [(4, 3.0)]]
    assert (curve.first, curve.last) == (1.0, 3.0)


def test_an_axis_is_logarithmic_when_the_values_span_decades():
    def scale(*values):
        curve = Curve()
        for x, value in enumerate(values):
            curve.add(x, value)
        return curve.scale()

    assert not scale(11.0, 2.0).is_log
    assert scale(0.2, 0.3, 960.0).is_log
    assert scale(0.0, 0.3, 960.0).low == 0.3
    assert not scale(-1.0, 0.3, 960.0).is_log
    assert scale(2.0, 2.0).part(2.0) == 0.5
    assert scale(-1.7e308, 1.7e308).part(0.0) == pytest.approx(0.5)
    for one in (scale(0.2, 0.3, 960.0), scale(1.0, 5.0)):
        assert [one.part(one.value(p)) for p in (0.0, 0.3, 1.0)] == pytest.approx([0.0, 0.3, 1.0])


def test_a_spike_of_one_row_is_seen_with_its_kind_and_step():
    picture = drawn(100_000, loss=lambda step: 9.0 if step == 50_000 else 2.0)
    picture.event(event(step=50_000, end=50_000))
    lines = text_plot(picture, width=80)
    assert lines[0] == "loss"
    assert lines[1].startswith("        9 │")
    assert lines[1].strip()[-1] not in " │"
    assert sum(len(line) > len(lines[1].split("│")[0]) + 1 for line in lines[2:7]) == 5
    assert "▲ spike 50,000" in lines[-1]
    assert all(len(line) <= 80 for line in lines)


def test_a_dumb_terminal_gets_ascii_and_only_a_terminal_gets_colours():
    picture = drawn()
    picture.event(event())
    plainly = "\n".join(text_plot(picture, pen=Pen(unicode=False)))
    assert plainly.isascii()
    assert "\x1b" not in plainly
    assert "^ spike 500" in plainly
    falling = drawn(80, loss=lambda step: 100.0 - step)
    assert {".", "'", "|"} <= set(
        "".join(text_plot(falling, width=200, wanted=["loss"], pen=Pen(unicode=False)))
    )
    assert "\x1b[33m" in "\n".join(text_plot(picture, pen=Pen(color=True)))


def test_rows_after_a_restart_stand_to_the_right_and_their_steps_are_told():
    picture = drawn(100)
    picture.restart(Restart(50, 99))
    for step in range(50, 150):
        picture.row(Row(step, {"loss": 2.0}))
    assert picture.last_x == 199
    assert [picture.step_at(x) for x in (0, 99, 100, 199)] == [0, 99, 50, 149]
    assert picture.x_of(50) == 50
    assert picture.x_of(149) == 199
    assert "┊" in "".join(text_plot(picture))
    late = event(2, step=60, end=70)
    picture.event(late)
    assert (picture.marks[2].x, picture.marks[2].end_x) == (110, 120)


def test_many_series_and_marks_stay_bounded_and_the_loss_has_room():
    picture = Picture()
    picture.row(Row(1, {f"layer_{n}": 1.0 for n in range(500)}))
    picture.row(Row(2, {"loss": 1.0, "grad_norm": 1.0}))
    assert len(picture.curves) == SERIES_AT_MOST + 2
    assert len(picture.left_out) == 500 - SERIES_AT_MOST
    for number in range(3000):
        picture.event(event(number, step=number, end=number))
        picture.restart(Restart(1))
    assert len(picture.marks) <= 500
    lines = text_plot(picture, width=60)
    assert len(lines) < 40
    assert "more events without room here" in lines[-1]


def test_only_the_wanted_series_and_steps_are_drawn():
    picture = drawn(only=frozenset({"grad_norm"}))
    assert list(picture.curves) == ["grad_norm"]
    lines = text_plot(drawn(), wanted=["grad_norm"], since=900)
    assert lines[0] == "grad_norm"
    assert lines[-1].split()[0] == "900"
    assert text_plot(Picture()) == []


@pytest.mark.parametrize("width", [1, 20, 40, 81, 300])
def test_any_width(width):
    picture = drawn(300)
    picture.event(event(1, step=299, end=None, kind="divergence", severity="page"))
    picture.event(event(2, step=2))
    lines = text_plot(picture, width=width)
    assert all(len(line) <= max(32, width) for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.198845, "2.199"), (65536.0, "65,536"), (0.0, "0"), (1.2e9, "1.2e+09"), (math.nan, "nan"),
     (-0.01234567, "-0.01235"), (1e-5, "1e-05")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number_text(value) == text


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"


def told(name="train.log") -> Told:
    picture = drawn(3000, loss=lambda step: math.nan if step == 7 else 9.0 if step == 500 else 2.0)
    picture.row(Row(3000, {f"{MARKUP}{n}": 1.0 for n in range(30)}))
    picture.restart(Restart(2000, 3000))
    for step in range(2000, 2500):
        picture.row(Row(step, {"loss": 2.0, "learning_rate": 1e-4 * step}))
    events = [
        event(1, step=500, end=500),
        event(2, step=2400, end=None, kind="divergence", severity="page", message=f"it grows {MARKUP}"),
        event(3, step=2450, end=2460, metric="grad_norm", kind="grad_burst", value=math.nan),
        event(4, step=2460, end=2460, metric=MARKUP, kind="spike", severity="daily"),
    ]
    for one in events:
        picture.event(one)
    return Told(name, f"3,501 rows of {MARKUP}", picture, events)


@pytest.mark.parametrize("runs", [[told()], [told(MARKUP), told("b")], [], [Told("a", "", Picture(), ())]])
def test_the_page_is_whole_asks_for_nothing_and_runs_nothing(runs):
    text = page(runs)
    seen = Reader(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    assert len(seen.ids) == len(set(seen.ids))
    assert "default-src 'none'" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert len(text) < 600_000


def test_the_page_tells_each_event_and_its_place():
    text = page([told()])
    said = Reader(text).text
    for words in (
        "1 page, 2 notices, 1 for the day", "loss 9 at step 500", "2,400 and on", "still open at the end",
        "spike at step 500; divergence at step 2,400", "3,500 rows, from 2 to 2, lowest 2, highest 9.",
        "the run went back to step 2,000", "it grows <script>alert(1)</script>", "grad_norm 2 to nan",
    ):  # fmt: skip
        assert words in said, words
    assert "Nothing happened" in page([Told("a", "", drawn(), ())])


def test_a_noisy_curve_has_two_points_a_pixel_at_most_and_keeps_its_extremes():
    seed = random.Random(3)
    picture = drawn(40_000, loss=lambda step: 50.0 if step == 31_000 else seed.gauss(2, 0.1))
    path = re.search(r'class="line" d="([^"]*)"', page([Told("a", "", picture, ())]))[1]
    assert 1000 < path.count("L") < 2 * 900
    assert min(float(y) for y in re.findall(r" ([\d.]+)", path)) == 22.0


def test_a_flat_a_short_and_a_huge_curve_can_be_drawn():
    for values in ([1.0], [1.0, 1.0], [-1.7e308, 1.7e308], [1e-300, 1e300], [math.nan] * 3, [0.0, 0.0]):
        picture = Picture()
        for n, value in enumerate(values):
            picture.row(Row(n * 10**15, {"loss": value}))
        assert "nan" not in page([Told("a", "", picture, ())]).split("<body>")[1].split("figures")[0]
        assert text_plot(picture)


@needs_chromium
@pytest.mark.slow
def test_a_browser_shows_the_page_on_desk_and_phone(tmp_path):
    for width in (1280, 390):
        seen = measure(tmp_path, page([told()]), width=width)
        assert width - 20 <= seen["scroll"] <= seen["client"] <= width, seen["wide"]
        assert seen["wide"] == []
        assert (seen["scripts"], seen["images"], seen["links"]) == (0, 0, 0)
        assert seen["pictures"] > 3
    assert measure(tmp_path, page([told()]), width=390, dark=True)["background"] == "rgb(15, 19, 24)"
