"""Pictures: well-formed, honest about what was not measured, and readable by those who do not see them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clustertools.render import plot
from clustertools.render.plot import Bar, Series
from tests.render.preflight_cases import ANSI, MARKUP

EVIL = MARKUP + ANSI
_SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert set(root.get("aria-labelledby", "").split()) == ids
    assert root.find(f"{_SVG}title").text
    assert root.find(f"{_SVG}desc").text
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    numbers = [n for e in root.iter() for key in ("x", "y", "width", "height", "d") for n in [e.get(key, "")]]
    assert not any("nan" in n or "inf" in n for n in numbers)
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in root.iter(f"{_SVG}text")]


def classes(root: ElementTree.Element, name: str) -> int:
    return sum(name in e.get("class", "").split() for e in root.iter())


@pytest.mark.parametrize(
    ("value", "metric", "said"),
    [
        (91.6e9, "busbw_bytes_per_second", "91.6 GB/s"),
        (4e12, "bytes_per_second", "4 TB/s"),
        (12.34e-6, "latency_seconds", "12.3 µs"),
        (0.0, "latency_seconds", "0 ns"),
        (7.5e14, "gemm_flops_per_second", "750 TFLOP/s"),
        (61.0, "temperature_celsius", "61.0 °C"),
        (0.987, "used_ratio", "0.987"),
        (1234.0, "samples_per_second", "1,234 samples/s"),
        (math.nan, "busbw_bytes_per_second", "no number"),
        (math.inf, "latency_seconds", "no number"),
    ],
)
def test_numbers_have_units_that_fit(value, metric, said):
    assert plot.quantity(value, metric) == said


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("busbw_bytes_per_second", "bus bandwidth"),
        ("memory_copy_bytes_per_second", "memory copy"),
        ("flop_per_second", "arithmetic"),
        ("latency_seconds", "latency"),
        ("x", "x"),
    ],
)
def test_metrics_are_named_without_their_units(metric, words):
    assert plot.what(metric) == words
    assert plot.quantity(7.6e9, "flop_per_second") == "7.6 GFLOP/s"


def test_sizes_are_powers_of_two():
    assert [plot.size(n) for n in (8, 1024, 1 << 20, 3 << 29)] == ["8 B", "1 KiB", "1 MiB", "1.5 GiB"]


def lines(*series: Series) -> ElementTree.Element:
    return parsed(plot.lines(series, key="k", title="t", metric="busbw_bytes_per_second"))


def test_the_one_that_deviates_is_drawn_and_named():
    usual = [Series(f"n{k}", ((1024.0, 1e9), (1 << 20, 9e9 + k))) for k in range(3)]
    root = lines(*usual, Series("n7", ((1024.0, 0.5e9), (1 << 20, 4e9)), True))
    assert (classes(root, "line"), classes(root, "off")) == (3, 1)
    assert {"n7", "3 others", "1 KiB", "1 MiB", "GB/s by message size"} <= set(words(root))
    assert root.find(f"{_SVG}desc").text == "n7 reaches 4 GB/s; the median of 3 others reaches 9 GB/s"


def test_many_ordinary_lines_are_a_band():
    usual = [Series(f"n{k}", ((1024.0, 1e9), (1 << 20, 9e9 + k))) for k in range(1000)]
    odd = [Series(f"bad{k}", ((1024.0, 1e9), (1 << 20, 4e9)), True) for k in range(200)]
    root = lines(*usual, *odd)
    assert (classes(root, "band"), classes(root, "line"), classes(root, "off")) == (1, 1, 200)
    places = [float(e.get("y")) for e in root.iter(f"{_SVG}text") if "name-off" in e.get("class", "")]
    assert all(b - a >= 13.9 for a, b in zip(sorted(places), sorted(places)[1:], strict=False))
    assert any(re.fullmatch(r"and \d+ more", word) for word in words(root))


def test_what_cannot_be_drawn_is_left_out_and_nothing_is_said_so():
    assert words(lines()) == ["nothing was measured"]
    assert words(lines(Series("n1", ((0.0, 1.0), (8.0, math.nan), (math.inf, 1.0))))) == [
        "nothing was measured"
    ]
    assert "n1" in words(lines(Series("n1", ((8.0, 0.0),))))


def heat(names, ratios, groups=None) -> ElementTree.Element:
    return parsed(plot.heat_map(names, ratios, key="k", title="t", groups=groups))


def test_a_pair_is_on_both_sides_and_what_was_not_measured_is_empty():
    root = heat(["a", "b", "c"], {("b", "a"): 0.45, ("a", "c"): 1.0, ("b", "c"): math.nan})
    assert (classes(root, "s0"), classes(root, "s4")) == (2 + 1, 2 + 1)  # and the legend
    assert root.find(f"{_SVG}desc").text == (
        "1 of 2 cells are below 0.95 of what was expected; the slowest are a and b at 0.45"
    )
    assert words(heat(["a"], {})) == ["nothing was measured"]


@pytest.mark.parametrize(
    ("ratio", "shade"),
    [(0.0, 0), (0.49, 0), (0.5, 1), (0.7, 2), (0.85, 3), (0.949, 3), (0.95, 4), (1.3, 4)],
)
def test_the_steps_of_the_scale(ratio, shade):
    assert classes(heat(["a", "b"], {("a", "b"): ratio}), f"s{shade}") == 3


def test_256_nodes_are_cells_and_more_are_put_together():
    names = [f"n{k:04d}" for k in range(256)]
    every = {(a, b): 1.0 for i, a in enumerate(names) for b in names[:i]}
    svg = plot.heat_map(names, {**every, ("n0007", "n0200"): 0.3}, key="k", title="t")
    assert len(svg) < 200_000
    named = words(parsed(svg))
    assert 40 < named.count("n0000") + len({word for word in named if word.startswith("n0")}) < 60
    many = [f"n{k:04d}" for k in range(1024)]
    leaves = {name: f"leaf{k // 32:02d}" for k, name in enumerate(many)}
    slow = {("n0000", "n0040"): 0.3, ("n0001", "n0041"): 1.0}
    root = heat(many, slow, leaves)
    assert "leaf31" in words(root)
    assert root.find(f"{_SVG}desc").text.endswith("the slowest are leaf00 and leaf01 at 0.30")
    assert "n0000… and n0032… at 0.30" in heat(many, slow).find(f"{_SVG}desc").text


def test_bars_have_their_numbers():
    root = parsed(plot.bars([Bar("n1", 2.0, "2 GB/s"), Bar("n2", 1.0, "1 GB/s", True)], key="k", title="t"))
    assert (classes(root, "bar"), classes(root, "bad")) == (2, 1)
    assert {"n1", "2 GB/s", "n2", "1 GB/s"} <= set(words(root))
    assert words(parsed(plot.bars([Bar("n", math.nan, "")], key="k", title="t"))) == ["nothing was measured"]


def test_nothing_of_a_name_is_markup():
    for svg in (
        plot.lines([Series(EVIL, ((8.0, 1.0), (64.0, 2.0)), True)], key="k", title=EVIL, metric=EVIL),
        plot.heat_map([EVIL, "b"], {(EVIL, "b"): 0.4}, key="k", title=EVIL, groups={EVIL: EVIL}),
        plot.bars([Bar(EVIL, 1.0, EVIL, True)], key="k", title=EVIL),
    ):
        assert "<script" not in svg
        assert "<img" not in svg
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", svg)
    parsed(plot.bars([Bar(EVIL, 1.0, EVIL, True)], key="k", title=EVIL))


_NUMBER = st.floats(allow_nan=True, allow_infinity=True)


@example(series=[("", [(1.0, 2.220446049250313e-16)], False)])
@given(
    st.lists(st.tuples(st.text(max_size=5), st.lists(st.tuples(_NUMBER, _NUMBER), max_size=4), st.booleans()))
)
def test_any_figures_can_be_drawn(series):
    lines(*(Series(name, tuple(points), odd) for name, points, odd in series))


@given(st.lists(st.tuples(st.text(max_size=4), _NUMBER, st.booleans()), max_size=9))
def test_any_bars_can_be_drawn(rows):
    bars = [Bar(f"n{name}", value, name, odd) for name, value, odd in rows]
    parsed(plot.bars(bars, key="k", title="t"))
    for line in plot.text_bars(bars, 60):
        assert line.isprintable()


def test_bars_and_heat_maps_on_a_terminal():
    assert plot.text_bars([Bar("n1", 2.0, "2 GB/s"), Bar("node2", 1.0, "1 GB/s", True)], 30) == [
        "n1     ███████████████  2 GB/s",
        "node2  ███████▌         1 GB/s",
    ]
    pairs = {("a", "b"): 0.45, ("a", "c"): 1.0}
    assert plot.text_heat_map(["a", "b", "c"], pairs) == ["a .4#", "b 4..", "c #.."]
    assert plot.text_heat_map([f"n{k}" for k in range(100)], {("n1", "n2"): 1.0}) == []
