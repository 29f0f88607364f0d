"""Nodes that are all good, and still do not get on: rings, paths between any two, load, small noise."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustertools.isolate import ALL_REDUCE, PAIRS, GroupResult, Question, Round, next_step
from clustertools.measurement import Grade
from tests.isolated_cluster import Cluster, guilty, leaves, names, search

REPOSITORY = Path(__file__).parent.parent


def from_all(nodes, cluster, traffic, topology=None, **settings):
    """The search after a round with all nodes in one group."""
    asked = Round((nodes,), traffic, "the launch")
    question = Question(nodes, topology or {}, **settings)
    return search(question, cluster, [(asked, cluster.run(asked))])


@pytest.mark.parametrize(("count", "place"), [(8, 2), (63, 40), (64, 62), (256, 100)])
def test_a_slow_link_of_a_ring(count, place):
    nodes = names(count)
    pair = nodes[place], nodes[place + 1]
    found, rounds = from_all(nodes, Cluster(slow_paths=[pair]), ALL_REDUCE)
    assert [(s.kind, s.names) for s in found.suspects] == [("path", pair)]
    assert found.cleared == nodes
    assert len(rounds) <= 8


@pytest.mark.parametrize("count", [8, 17, 64, 100])
def test_a_slow_path_between_any_two(count):
    nodes = names(count)
    pair = tuple(sorted(random.Random(count).sample(nodes, 2)))
    found, rounds = from_all(nodes, Cluster(slow_paths=[pair]), PAIRS)
    assert [(s.kind, s.names) for s in found.suspects] == [("path", pair)]
    assert found.cleared == nodes
    assert len(rounds) <= 6


def test_a_slow_path_without_ratios_takes_halves_and_mixed_quarters():
    nodes = names(64)
    cluster = Cluster(slow_paths=[(nodes[2], nodes[61])], flip=0.0)
    found, rounds = from_all(nodes, cluster, PAIRS, pairs_measured=False, budget_rounds=60)
    assert guilty(found, "path") == {(nodes[2], nodes[61])}
    assert guilty(found) == set()
    sizes = [len(asked.groups[0]) for asked, _ in rounds if len(asked.groups[0]) > 3]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("traffic", [PAIRS, ALL_REDUCE])
@pytest.mark.parametrize("count", [32, 64])
def test_a_boundary_that_shows_under_load_only(traffic, count):
    nodes = names(count)
    cluster = Cluster(at_most=lambda size: 0.5 if size > count // 2 else 1.0)
    found, rounds = from_all(nodes, cluster, traffic, leaves(nodes, count // 2))
    assert [s.kind for s in found.suspects] == ["boundary"]
    assert set(found.suspects[0].names) == {",".join(nodes[: count // 2]), ",".join(nodes[count // 2 :])}
    assert "between leaf0 and leaf1" in found.suspects[0].because
    assert found.cleared == nodes
    assert len(rounds) <= 16


def test_a_large_group_that_was_slow_once_is_no_fault():
    nodes = names(64)
    asked = Round((nodes,), ALL_REDUCE, "the launch")
    once = [(asked, [GroupResult(nodes, Grade.SLOW, 0.5)])]
    found, rounds = search(Question(nodes), Cluster(), once)
    assert found.suspects == ()
    assert found.cleared == nodes
    assert len(rounds) <= 5


def test_a_faulty_node_explains_the_large_group():
    nodes = names(64)
    found, rounds = from_all(nodes, Cluster(faulty=nodes[5:6]), ALL_REDUCE)
    assert [s.names for s in found.suspects] == [nodes[5:6]]
    assert len(rounds) <= 4


def test_a_slow_path_beside_a_faulty_node():
    nodes = names(16)
    cluster = Cluster(faulty=nodes[5:6], slow_paths=[(nodes[1], nodes[9])])
    found, _ = search(Question(nodes), cluster)
    assert {s.names for s in found.suspects} == {(nodes[5],), (nodes[1], nodes[9])}


def test_a_pair_that_is_slow_because_one_is_slow_with_all_is_a_node():
    nodes = names(6)
    asked = Round((nodes,), PAIRS, "")
    ratios = {(a, b): 0.4 if nodes[2] in (a, b) else 1.0 for a in nodes for b in nodes if a < b}
    history = [(asked, [GroupResult(nodes, Grade.SLOW, 0.4, ratios)])] * 2
    step = next_step(Question(nodes), history)
    assert [(s.kind, s.names) for s in step.suspects] == [("node", (nodes[2],))]


def test_ratios_in_another_unit_are_compared_with_their_peers():
    nodes = names(6)
    asked = Round((nodes,), PAIRS, "")
    ratios = {(a, b): 4e9 if nodes[2] in (a, b) else 1e10 for a in nodes for b in nodes if a < b}
    step = next_step(Question(nodes), [(asked, [GroupResult(nodes, Grade.SLOW, None, ratios)])] * 2)
    assert [s.names for s in step.suspects] == [(nodes[2],)]


def test_a_node_of_the_question_that_is_below_no_switch():
    nodes = names(40)
    topology = {node: ("leaf0" if i < 20 else "leaf1",) for i, node in enumerate(nodes[:39])}
    found, _ = search(Question(nodes, topology), Cluster(faulty=nodes[39:]))
    assert guilty(found) == {nodes[39:]}


def test_a_step_among_4096_nodes_is_no_matter():
    nodes = names(4096)
    question = Question(nodes, leaves(nodes, 32), pairs_measured=False)
    cluster = Cluster(faulty=nodes[7:9], flip=0.05)
    history = []
    for _ in range(3):
        began = time.process_time()
        step = next_step(question, history)
        assert time.process_time() - began < 10
        history.append((step, cluster.run(step)))


@pytest.mark.slow
def test_the_comparison_runs():
    program = REPOSITORY / "benchmarks" / "isolation.py"
    done = subprocess.run(
        [sys.executable, str(program), "--quick"], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert "ours, as it is" in done.stdout
    assert "all pairs (SuperBench, gcm), as published" in done.stdout
