"""The known answers: bandwidth by hand-made numbers, exact sums, and whom wrong elements point at."""

from __future__ import annotations

import itertools

import pytest

from clustertools.probes.known_answers import (
    Seen,
    block,
    bus_factor,
    contribution,
    elements,
    expected_sum,
    guilty,
    percentile,
    rounds,
)


@pytest.mark.parametrize(
    ("collective", "ranks", "factor"),
    # nccl-tests doc/PERFORMANCE.md: 2(n-1)/n for all_reduce, (n-1)/n for the three others, 1 for sendrecv
    [
        ("all_reduce", 2, 1.0), ("all_reduce", 8, 1.75), ("all_gather", 4, 0.75),
        ("reduce_scatter", 4, 0.75), ("all_to_all", 8, 0.875), ("pairs", 2, 1.0),
    ],
)  # fmt: skip
def test_bus_factor(collective, ranks, factor):
    assert bus_factor(collective, ranks) == pytest.approx(factor)


def test_no_factor_for_what_is_not_known():
    with pytest.raises(ValueError, match="broadcast"):
        bus_factor("broadcast", 2)


@pytest.mark.parametrize(
    ("collective", "size", "width", "ranks", "count"),
    [("all_reduce", 1024, 4, 3, 256), ("all_gather", 1024, 4, 3, 85), ("all_to_all", 8, 4, 4, 1)],
)
def test_elements(collective, size, width, ranks, count):
    assert elements(collective, size, width, ranks) == count


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64, 65, 128, 500, 4096])
def test_sums_are_exact_in_eight_bits_of_significand(ranks):
    """Every partial sum, in any order, is at most the whole one: nothing is negative."""
    whole = expected_sum(ranks)
    parts = [contribution(rank, ranks) for rank in range(ranks)]
    assert [sum(column) for column in zip(*parts, strict=True)] == whole
    assert 0 < max(whole) <= 256
    assert min(value for part in parts for value in part) >= 0
    assert all(any(part) for part in parts), "a rank that gives nothing would not be missed"


def test_blocks_tell_whose_they_are():
    assert block(0) != block(1)
    assert block(3, 1) != block(3, 2)
    assert max(block(90, 7)) <= 256


@pytest.mark.parametrize("members", [2, 3, 4, 7, 8, 33])
def test_every_two_meet_once_and_nobody_twice_in_a_round(members):
    met = rounds(members)
    pairs = [pair for pairs in met for pair in pairs]
    assert sorted(pairs) == sorted(itertools.combinations(range(members), 2))
    for pairs_of_round in met:
        together = [member for pair in pairs_of_round for member in pair]
        assert len(together) == len(set(together))


@pytest.mark.parametrize(
    ("seen", "ranks", "blamed"),
    [
        # its own input is wrong: that explains all else
        ([Seen(0, 1, {1: 1}), Seen(1, 1, {1: 1}, own_data_wrong=True)], 2, [1]),
        # two receivers saw the same owner's block wrong
        ([Seen(0, 5, {2: 5}), Seen(1, 5, {2: 5}), Seen(2, 0, {}), Seen(3, 0, {})], 4, [2]),
        # one receiver saw everybody's blocks wrong
        ([Seen(0, 0, {}), Seen(1, 9, {0: 3, 2: 6}), Seen(2, 0, {})], 3, [1]),
        # one saw one other's wrong: it may be the way
        ([Seen(0, 4, {1: 4}), Seen(1, 0, {}), Seen(2, 0, {})], 3, []),
        # a wrong sum on one rank only arrived wrong there
        ([Seen(0, 0, {}), Seen(1, 0, {}), Seen(2, 3, {})], 3, [2]),
        # a wrong sum on all, and all inputs right
        ([Seen(0, 1, {}), Seen(1, 1, {}), Seen(2, 1, {})], 3, []),
    ],
)
def test_guilty(seen, ranks, blamed):
    assert guilty(seen, ranks)[0] == blamed


def test_percentile():
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.99)) == (50.0, 99.0, 3.0)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
