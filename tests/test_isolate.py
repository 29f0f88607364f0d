"""The search of the guilty: what it names, what it must not name, and that it ends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.isolate import (
    PAIRS,
    Conclusion,
    GroupResult,
    Noise,
    Question,
    Round,
    next_step,
    so_far,
)
from clustertools.measurement import Grade
from tests.isolated_cluster import Cluster, guilty, leaves, names, search

EIGHT = names(8)
SIXTY_FOUR = names(64)
GRADED = {"noise": Noise(0.0, 0.0), "pairs_measured": False}


def test_eight_good_nodes_take_one_round():
    found, rounds = search(Question(EIGHT), Cluster())
    assert (found.suspects, found.cleared, len(rounds)) == ((), EIGHT, 1)
    assert found.confidence > 0.99
    assert found.sentence == "nothing found in 1 round: 8 nodes cleared, over 99% sure of it"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_slow_nodes_of_eight_take_one_round_and_one_to_be_sure(count):
    found, rounds = search(Question(EIGHT), Cluster(faulty=EIGHT[:count]))
    assert guilty(found) == {(n,) for n in EIGHT[:count]}
    assert found.cleared == EIGHT[count:]
    assert len(rounds) == 2
    assert "bad in 14 of 14 tests with different partners, at best 4" in found.suspects[0].because


def test_one_bad_moment_of_a_node_blames_nobody():
    def round_of(slow: str) -> GroupResult:
        pairs = [(a, b) for a in EIGHT for b in EIGHT if a < b]
        return GroupResult(EIGHT, Grade.GOOD, None, {p: 0.5 if slow in p else 1.0 for p in pairs})

    history: list = []
    step = next_step(Question(EIGHT), history)
    while isinstance(step, Round):
        history.append((step, [round_of("" if history else EIGHT[3])]))
        step = next_step(Question(EIGHT), history)
    assert step.suspects == ()
    assert len(history) > 1


def test_a_slow_path_between_good_nodes_is_no_slow_node():
    found, rounds = search(Question(EIGHT), Cluster(slow_paths=[(EIGHT[6], EIGHT[1])]))
    assert guilty(found) == set()
    assert guilty(found, "path") == {(EIGHT[1], EIGHT[6])}
    assert found.cleared == EIGHT
    assert len(rounds) <= 3


def test_a_cut_node_hangs_the_group_of_all_and_is_still_found():
    found, rounds = search(Question(EIGHT), Cluster(cut=EIGHT[2:3], slow_paths=[(EIGHT[0], EIGHT[7])]))
    assert [(s.names, s.grade) for s in found.suspects if s.kind == "node"] == [
        (("n0002",), Grade.BAD_HARDWARE)
    ]
    assert guilty(found, "path") == {("n0000", "n0007")}
    assert len(rounds) <= 6


def test_a_crash_and_a_slow_node_are_not_mixed():
    found, _ = search(Question(EIGHT), Cluster(cut=EIGHT[2:3], faulty=EIGHT[5:6]))
    assert {(s.names[0], s.grade) for s in found.suspects} == {
        ("n0002", Grade.BAD_HARDWARE),
        ("n0005", Grade.SLOW),
    }


@pytest.mark.parametrize("topology", [{}, leaves(EIGHT, 4)])
def test_two_halves_that_do_not_get_on(topology):
    found, rounds = search(Question(EIGHT, topology), Cluster(across=(EIGHT[:4], EIGHT[4:])))
    assert guilty(found, "boundary") == {(",".join(EIGHT[:4]), ",".join(EIGHT[4:]))}
    assert guilty(found) == set()
    assert len(rounds) == 2
    assert ("leaf0" in found.sentence) == bool(topology)


@pytest.mark.parametrize("flip", [None, 0.05])
def test_the_way_out_of_a_leaf(flip):
    topology = leaves(SIXTY_FOUR, 8)
    cluster = Cluster(across=(SIXTY_FOUR[:8], SIXTY_FOUR[8:]), flip=flip)
    found, rounds = search(Question(SIXTY_FOUR, topology, pairs_measured=flip is None), cluster)
    assert guilty(found) == set()
    assert "the way out of leaf0" in found.sentence
    assert len(rounds) <= 5


def test_a_leaf_as_a_whole_is_its_switch():
    found, _ = search(Question(SIXTY_FOUR, leaves(SIXTY_FOUR, 8)), Cluster(faulty=SIXTY_FOUR[:8]))
    assert guilty(found) == set()
    assert "leaf0 as a whole" in found.sentence
    assert set(found.undecided) == set(SIXTY_FOUR[:8])


def test_the_boundary_between_two_of_eight_leaves():
    cluster = Cluster(across=(SIXTY_FOUR[:8], SIXTY_FOUR[8:16]))
    found, _ = search(Question(SIXTY_FOUR, leaves(SIXTY_FOUR, 8)), cluster)
    assert guilty(found) == set()
    assert "between leaf0 and leaf1" in found.sentence


@pytest.mark.parametrize("nodes", [EIGHT, SIXTY_FOUR])
@pytest.mark.parametrize("how", ["faulty", "cut"])
def test_all_alike_blames_nobody(nodes, how):
    found, rounds = search(Question(nodes), Cluster(**{how: nodes}))
    assert found.suspects == ()
    assert set(found.undecided) == set(nodes)
    assert found.sentence.startswith("cannot tell: ")
    assert len(rounds) <= 4


def test_half_of_all_nodes_bad_and_one_in_every_group():
    found, _ = search(Question(SIXTY_FOUR), Cluster(faulty=SIXTY_FOUR[::2]))
    assert guilty(found) == {(n,) for n in SIXTY_FOUR[::2]}


def test_one_node_has_nothing_to_be_compared_with():
    found, rounds = search(Question(EIGHT[:1]), Cluster())
    assert (found.suspects, found.cleared, found.undecided, rounds) == ((), (), EIGHT[:1], [])
    assert "one node alone" in found.sentence


def test_no_node_at_all():
    assert search(Question(()), Cluster())[0].suspects == ()


def test_of_two_nodes_it_cannot_tell_which():
    found, rounds = search(Question(EIGHT[:2]), Cluster(faulty=EIGHT[:1]))
    assert found.suspects == ()
    assert set(found.undecided) == set(EIGHT[:2])
    assert "only a third node can tell" in found.sentence
    assert len(rounds) <= 3


@pytest.mark.parametrize("measured", [True, False])
def test_a_third_node_tells(measured):
    cluster = Cluster(faulty=EIGHT[:1], flip=None if measured else 0.0)
    found, _ = search(Question(EIGHT[:3], pairs_measured=measured), cluster)
    assert guilty(found) == {EIGHT[:1]}
    assert found.cleared == EIGHT[1:3]


def test_who_could_not_run_is_neither_bad_nor_good():
    found, _ = search(Question(EIGHT), Cluster(cannot=EIGHT[1:2]))
    assert found.suspects == ()
    assert found.undecided == EIGHT[1:2]
    assert found.sentence.endswith("not tested: n0001")


def test_nobody_could_run():
    found, rounds = search(Question(EIGHT), Cluster(cannot=EIGHT))
    assert (found.suspects, found.cleared, found.confidence) == ((), (), 0.0)
    assert len(rounds) <= 4


def test_two_bad_nodes_in_one_group_are_both_found():
    question = Question(EIGHT, **GRADED)
    asked = Round(((EIGHT[0], EIGHT[1]), EIGHT[2:4], EIGHT[4:6], EIGHT[6:]), PAIRS, "")
    cluster = Cluster(faulty=EIGHT[:2], flip=0.0)
    found, _ = search(question, cluster, [(asked, cluster.run(asked))])
    assert guilty(found) == {(EIGHT[0],), (EIGHT[1],)}


def test_a_good_partner_of_a_faulty_node_is_not_blamed():
    asked = Round((EIGHT[:2],), PAIRS, "")
    history = [
        (asked, [GroupResult(EIGHT[:2], Grade.SLOW)]),
        (asked, [GroupResult((EIGHT[0], EIGHT[2]), Grade.SLOW), GroupResult(EIGHT[3:5], Grade.GOOD)]),
        (asked, [GroupResult((EIGHT[0], EIGHT[3]), Grade.SLOW)]),
    ]
    found = so_far(Question(EIGHT), history)
    assert guilty(found) == {(EIGHT[0],)}
    assert EIGHT[3] in found.cleared


def test_a_node_that_the_run_points_at_is_believed_sooner():
    asked = Round((EIGHT,), PAIRS, "")
    quiet = [GroupResult(EIGHT, Grade.WRONG_DATA)]
    pointing = [GroupResult(EIGHT, Grade.WRONG_DATA, blamed=(EIGHT[3], "a stranger"))]
    question = Question(EIGHT)
    assert so_far(question, [(asked, quiet)]).suspects == ()
    found = so_far(question, [(asked, pointing)])
    assert found.suspects == () or guilty(found) == {(EIGHT[3],)}
    assert found.undecided[:1] == EIGHT[3:4] or found.suspects


def test_passive_evidence_counts():
    asked = Round((EIGHT[:2], EIGHT[2:4], EIGHT[4:6], EIGHT[6:]), PAIRS, "")
    results = [
        GroupResult(EIGHT[:2], Grade.SLOW),
        *(GroupResult(EIGHT[i : i + 2], Grade.GOOD) for i in (2, 4, 6)),
    ]
    found = so_far(Question(EIGHT, prior={EIGHT[1]: 0.8}), [(asked, results)])
    assert guilty(found) == {(EIGHT[1],)}


@given(
    count=st.integers(2, 40),
    seed=st.integers(0, 99),
    width=st.sampled_from([0, 3, 8]),
    measured=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_healthy_cluster_without_noise_blames_nobody(count, seed, width, measured):
    nodes = names(count)
    question = Question(
        nodes, leaves(nodes, width) if width else {}, seed=seed, noise=Noise(0, 0), pairs_measured=measured
    )
    found, rounds = search(question, Cluster(flip=None if measured else 0.0, seed=seed))
    assert (found.suspects, found.undecided) == ((), ())
    assert len(rounds) <= 3


@given(
    count=st.integers(10, 80),
    faults=st.integers(1, 4),
    seed=st.integers(0, 99),
    width=st.sampled_from([0, 8]),
    size=st.sampled_from([2, 3]),
)
@settings(max_examples=40, deadline=None)
def test_few_faults_without_noise_are_all_named(count, faults, seed, width, size):
    nodes = names(count)
    bad = {nodes[(seed + 7 * i) % count] for i in range(faults)}
    question = Question(
        nodes, leaves(nodes, width) if width else {}, seed=seed, smallest_group=size, **GRADED
    )
    found, rounds = search(question, Cluster(faulty=bad, flip=0.0))
    assert guilty(found) == {(n,) for n in bad}
    assert len(rounds) <= (6 if count >= 20 else 10)


results = st.builds(
    GroupResult,
    st.lists(st.sampled_from([*EIGHT, "stranger", ""]), max_size=9).map(tuple),
    st.sampled_from(Grade),
    st.none() | st.floats(),
    st.dictionaries(
        st.tuples(st.sampled_from([*EIGHT, "x"]), st.sampled_from(EIGHT)), st.floats(), max_size=9
    ),
    st.lists(st.sampled_from([*EIGHT, "x"]), max_size=3).map(tuple),
)
rounds_of_results = st.lists(
    st.tuples(
        st.builds(Round, st.just(()), st.sampled_from(["pairs", "all_reduce", "?"]), st.just("")),
        st.lists(results, max_size=6),
    ),
    max_size=6,
)


@given(history=rounds_of_results, width=st.sampled_from([0, 2, 4]), budget=st.integers(0, 10))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_is_survived_and_the_search_ends(history, width, budget):
    question = Question(
        EIGHT,
        leaves(EIGHT, width) if width else {},
        prior={EIGHT[0]: 1.0, EIGHT[1]: 0.0},
        budget_rounds=budget,
    )
    found, rounds = search(question, Cluster(), history)
    assert len(rounds) <= max(budget, len(history))
    parts = (
        *found.cleared,
        *found.undecided,
        *(n for s in found.suspects if s.kind == "node" for n in s.names),
    )
    assert sorted(parts) == sorted(EIGHT)
    assert 0.0 <= found.confidence <= 1.0


@given(history=rounds_of_results)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_could_not_run_changes_no_odds(history):
    question = Question(EIGHT)
    nothing = (Round((EIGHT,), PAIRS, ""), [GroupResult(EIGHT, Grade.COULD_NOT_RUN, 0.1)])
    before, after = so_far(question, history), so_far(question, [*history, nothing])
    assert (before.suspects, before.cleared, before.undecided) == (
        after.suspects,
        after.cleared,
        after.undecided,
    )
    assert before.confidence == after.confidence


@given(seed=st.integers(0, 5), flip=st.sampled_from([0.0, 0.1]))
@settings(max_examples=10, deadline=None)
def test_the_same_question_is_answered_the_same(seed, flip):
    question = Question(names(50), seed=seed, pairs_measured=False)
    one = search(question, Cluster(faulty=["n0003"], flip=flip, seed=seed))
    assert one == search(question, Cluster(faulty=["n0003"], flip=flip, seed=seed))


def test_another_seed_shuffles_otherwise():
    first = [next_step(Question(SIXTY_FOUR, seed=seed), []) for seed in (0, 1)]
    assert first[0] != first[1]


def test_no_round_is_asked_beyond_the_budget():
    question = Question(SIXTY_FOUR, budget_rounds=1)
    found, rounds = search(question, Cluster(faulty=SIXTY_FOUR[:1], flip=0.05))
    assert len(rounds) == 1
    assert isinstance(found, Conclusion)


def faults_named(nodes, faults, trials, **settings_):
    named = blamed = asked = 0
    for seed in range(trials):
        bad = {nodes[(seed * 37 + 101 * i) % len(nodes)] for i in range(faults)}
        question = Question(nodes, seed=seed, pairs_measured=False, **settings_)
        found, rounds = search(question, Cluster(faulty=bad, flip=0.05, seed=seed))
        who = {n for (n,) in guilty(found)}
        named += len(who & bad)
        blamed += len(who - bad)
        asked += len(rounds)
    return named / (faults * trials), blamed / ((len(nodes) - faults) * trials), asked / trials


def test_two_faults_of_256_with_five_percent_noise():
    """A small relative of the table in docs/isolation.md, with room for so few trials."""
    named, blamed, asked = faults_named(names(256), 2, 25)
    assert named >= 0.96
    assert blamed <= 0.002
    assert asked <= 7


@pytest.mark.slow
def test_two_faults_of_1024_with_five_percent_noise():
    named, blamed, asked = faults_named(names(1024), 2, 20)
    assert named >= 0.92
    assert blamed <= 0.001
    assert asked <= 6.5
