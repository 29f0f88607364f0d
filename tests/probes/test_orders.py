"""The lines of the conversation: what is taken, what is refused, and what an answer may hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.measurement import Ending
from clustertools.probes.orders import (
    EVIDENCE_LINES,
    BadOrder,
    Order,
    Report,
    answer_line,
    figure,
    read_order,
    together,
)


def order(**parameters):
    return Order(1, "collective", ("n1",), 5.0, parameters)


def test_an_order_for_others_is_none():
    assert read_order('{"id": 1, "probe": "gemm", "nodes": ["n2"]}', "n1") is None
    groups = [{"nodes": ["n2", "n3"], "address": "a", "port": 1}]
    assert read_order(json.dumps({"id": 1, "probe": "collective", "groups": groups}), "n1") is None


def test_the_group_of_this_node_is_what_counts():
    groups = [{"nodes": ["n1", "n2"], "port": 1}, {"nodes": ["n3", "n4"], "port": 2}]
    read = read_order(json.dumps({"id": 1, "probe": "collective", "groups": groups}), "n4")
    assert read is not None
    assert (read.nodes, read.parameters["port"], read.timeout_seconds) == (("n3", "n4"), 2, 30.0)


@pytest.mark.parametrize(
    "line",
    [
        "", "nonsense", "[]", "7", '{"id": "1", "probe": "gemm", "nodes": ["n1"]}', '{"id": true}',
        '{"id": 1, "nodes": ["n1"]}', '{"id": 1, "probe": "gemm"}',
        '{"id": 1, "probe": "gemm", "nodes": "n1"}',
        '{"id": 1, "probe": "gemm", "nodes": ["n1", "n1"]}', '{"id": 1, "probe": "x", "groups": {"n1": 1}}',
        '{"id": 1, "probe": "gemm", "nodes": ["n1"], "timeout_seconds": 0}',
        '{"id": 1, "probe": "gemm", "nodes": ["n1"], "timeout_seconds": 1e9}',
        '{"id": 1, "probe": "gemm", "nodes": ["n1"], "timeout_seconds": NaN}',
        '{"id": 1, "probe": "gemm", "groups": [{"nodes": ["n1"]}, {"nodes": ["n1"]}]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_order_is_refused(line):
    with pytest.raises(BadOrder):
        read_order(line, "n1")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_KEYS = st.sampled_from(["id", "probe", "nodes", "groups", "end", "timeout_seconds", "address", "port"])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(_KEYS, _ANY | st.just(["n1"]) | st.just([{"nodes": ["n1"]}]), max_size=8))
def test_any_json_is_an_order_or_is_refused(said):
    try:
        read_order(json.dumps(said), "n1")
    except BadOrder:
        return


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.binary(max_size=200))
def test_any_line_is_an_order_or_is_refused(raw):
    try:
        assert read_order(raw.decode("utf-8", "replace"), "n1") is None
    except BadOrder:
        return


@pytest.mark.parametrize(
    "environment",
    [{"PATH": "/x"}, {"LD_PRELOAD": "x"}, {"NCCL_DEBUG": 1}, {"nccl_debug": "INFO"}, ["NCCL_X"]],
)
def test_only_settings_of_the_communication_libraries_are_passed_on(environment):
    with pytest.raises(BadOrder, match="environment"):
        order(environment=environment).environment()


def test_the_settings_of_nccl_are():
    assert order(environment={"NCCL_IB_HCA": "=mlx5_0"}).environment() == {"NCCL_IB_HCA": "=mlx5_0"}


@pytest.mark.parametrize("sizes", [[], [0], [True], [1.5], "4", [1 << 41], [1] * 65])
def test_sizes_are_bounded(sizes):
    with pytest.raises(BadOrder, match="sizes_bytes"):
        order(sizes_bytes=sizes).sizes("sizes_bytes", [1])


def test_an_answer_is_one_line_and_capped_and_holds_no_escapes():
    report = Report(Ending.CRASH, "\x1b[31mred\nline" * 500, [f"line {n}\n\x07" for n in range(100)])
    report.figures = [figure("x_seconds", float("nan")), figure("y_seconds", 1.0)]
    line = answer_line(Order(7, "gemm", ("n1",), 1.0), "n1", report, 1.0)
    told = json.loads(line)
    assert "\n" not in line
    assert "\x1b" not in told["detail"]
    assert len(told["detail"]) <= 500
    assert len(told["evidence"]) == EVIDENCE_LINES
    assert [one["metric"] for one in told["figures"]] == ["y_seconds"]


@pytest.mark.parametrize(
    ("endings", "ending"),
    [
        ((Ending.DONE, Ending.HANG, Ending.CRASH), Ending.CRASH),
        ((Ending.HANG, Ending.COULD_NOT_RUN), Ending.COULD_NOT_RUN),
        ((Ending.CRASH, Ending.WRONG_DATA), Ending.WRONG_DATA),
        ((Ending.DONE, Ending.DONE), Ending.DONE),
        ((), Ending.COULD_NOT_RUN),
    ],
)
def test_the_worst_ending_of_a_nodes_children_is_the_nodes(endings, ending):
    assert together([Report(one) for one in endings]).ending is ending
