"""The state of a watch comes back exactly as it was saved."""

from __future__ import annotations

import math
import random

import pytest

from clustertools.curves import Row
from clustertools.curves.packing import packed, unpacked
from clustertools.curves.watch import CurveWatch


def test_numbers_come_back_exactly():
    state = {
        "few": [1.5, 2.5], "many": [random.Random(1).gauss(0, 1e-9) for _ in range(50)],
        "odd": [math.inf, -math.inf, 5e-324, -0.0, 1.7976931348623157e308, 0.1, 1 / 3, 2.0, 3.0],
        "mixed": [1.0, None, *range(20)], "pairs": [[1, 2.0], [3, 4.0]] * 8, "whole": list(range(12)),
    }  # fmt: skip
    again = unpacked(packed(state))
    assert again == state
    assert [math.copysign(1, v) for v in again["odd"]] == [math.copysign(1, v) for v in state["odd"]]
    assert [type(v) for v in again["mixed"]] == [type(v) for v in state["mixed"]]


def test_a_number_that_is_none_stays_none():
    again = unpacked(packed({"x": [math.nan] * 9}))
    assert all(math.isnan(v) for v in again["x"])


def test_a_watch_goes_on_from_it_as_if_nothing_had_been():
    chance, whole, cut = random.Random(3), CurveWatch(), CurveWatch()
    told: list[object] = []
    told_cut: list[object] = []
    for step in range(400):
        loss = 3.0 + chance.gauss(0, 0.02) + (4.0 if 250 <= step < 260 else 0.0)
        row = Row(step, {"loss": loss, "grad_norm": 0.3 + 0.02 * chance.random()})
        told += whole.add_row(row)
        if step % 37 == 0 or 248 <= step < 262:
            cut = CurveWatch(unpacked(packed(cut.state())))
        told_cut += cut.add_row(row)
    assert told == told_cut
    assert told


@pytest.mark.parametrize("text", ["", "{", '{"f64": "no base64 !"}', '{"f64": "AAAA"}'])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError):
        unpacked(text)
