"""The minority by fact: ties, unknown facts, names, and 16,000 nodes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.drift import Drift, drift, folded


def nodes(*values):
    return {f"n{i}": {} if v is None else {"kernel": v} for i, v in enumerate(values)}


def test_the_minority_is_named():
    assert drift(nodes("a", "a", "b", "a", "c")) == [Drift("kernel", "a", 3, {"b": ("n2",), "c": ("n4",)})]


def test_all_alike_and_unknown_is_no_drift():
    assert drift(nodes("a", "a")) == []
    assert drift(nodes("a", None, None)) == []
    assert drift({}) == []
    (one,) = drift(nodes("a", None, "a", "b"))
    assert (one.common, one.others, one.unknown) == ("a", {"b": ("n3",)}, ("n1",))


def test_a_tie_blames_nobody():
    (one,) = drift(nodes("a", "b"))
    assert (one.common, one.others) == (None, {"a": ("n0",), "b": ("n1",)})
    (one,) = drift(nodes("a", "a", "b", "b", "c"))
    assert (one.common, set(one.others)) == (None, {"a", "b", "c"})


def test_what_is_a_nodes_own_is_ignored():
    own = {f"n{i}": {"hostname": str(i), "board.serial": str(i), "env.X": str(i)} for i in range(3)}
    assert [d.fact for d in drift(own)] == ["env.X"]
    assert drift(own, ignore=["*"]) == []
    assert [d.fact for d in drift(own, ignore=(), only=["host*"])] == ["hostname"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["gpu-001", "gpu-002", "gpu-003", "gpu-007"], "gpu-[001-003,007]"),
        (["n9", "n10", "n11"], "n9,n[10-11]"),
        (["login", "gpu1"], "gpu1,login"),
        (["r1-n1.x.org", "r1-n2.x.org"], "r1-n[1-2].x.org"),
        (["10.0.0.1"], "10.0.0.1"),
        ([], ""),
    ],
)
def test_folding(names, text):
    assert folded(names) == text


@given(st.lists(st.text(max_size=20)))
def test_any_names_are_folded(names):
    folded(names)


@pytest.mark.slow
def test_sixteen_thousand_nodes():
    shared = {f"sysctl.a{i}": "1" for i in range(100)}
    fleet = {f"gpu-{i:05d}": {**shared, "kernel": "b" if i % 1000 == 7 else "a"} for i in range(16_384)}
    began = time.process_time()
    (one,) = drift(fleet)
    assert len(one.others["b"]) == 17
    assert folded(fleet) == "gpu-[00000-16383]"
    assert time.process_time() - began < 10
