"""Judging figures: who is slow, who decides, what is never one node's fault, and what cannot be told."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.measurement import Figure, Grade
from clustertools.performance import Limits, Usual, assess, judge, name_of, of_repeats, told
from clustertools.performance_bounds import Bound, Facts, Reference

GB = 1e9


def figures(
    values: Sequence[float], probe: str = "collective", metric: str = "busbw_bytes_per_second", **more: object
) -> list[Figure]:
    """One figure a node: n0, n1 ..."""
    return [Figure(probe, (f"n{i}",), metric, value, **more) for i, value in enumerate(values)]  # type: ignore[arg-type]


def slow(found: Sequence[object]) -> list[str]:
    return [one.figure.nodes[0] for one in found if one.grade is Grade.SLOW]  # type: ignore[attr-defined]


# peers


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([400, 402, 398, 401, 280], ["n4"]),
        ([400, 402, 398, 401, 350], ["n4"]),  # one rail of eight
        ([400, 402, 398, 401, 380], []),
        ([400, 402, 398, 401, 900], []),  # faster is never bad
        ([400, 400, 280], ["n2"]),
        ([400, 402, 398, 280], ["n3"]),
        ([400, 330, 280], []),  # the others do not agree themselves
        ([400, 401, 340, 280], []),  # two of four against two
        ([400, 280], []),  # neither outvotes the other
        ([400], []),
        ([400, 402, 398, 401, 399, 403, 280, 200], ["n6", "n7"]),
        ([400.0] * 8, []),
        ([400.0] * 7 + [399.0], []),  # no spread at all is still a spread
    ],
)
def test_who_is_slow_among_peers(values: list[float], named: list[str]) -> None:
    found = judge(figures([value * GB for value in values]))
    assert slow(found) == named
    assert {one.decided_by for one in found if one.grade is Grade.SLOW} <= {"peers"}


def test_what_is_said_names_the_numbers() -> None:
    found = judge(figures([400 * GB, 402 * GB, 398 * GB, 401 * GB, 280 * GB]))
    assert found[4].ratio == pytest.approx(280 / 400.5, rel=1e-3)
    assert found[4].against.startswith("400.5 GB/s, the median of 5 alike; slow is below 8")
    assert (found[0].grade, found[0].decided_by) == (Grade.GOOD, "peers")


def test_lower_is_better_for_a_latency() -> None:
    found = judge(
        figures(
            [1.0e-6, 1.02e-6, 0.99e-6, 1.01e-6, 2.2e-6],
            "ib_write_bw",
            "latency_seconds",
            higher_is_better=False,
        )
    )
    assert slow(found) == ["n4"]
    assert found[4].ratio == pytest.approx(1.005 / 2.2, rel=0.01)
    assert found[4].against.startswith("1.005 us")


def test_half_on_another_clock_are_two_populations_and_nobody_is_slow() -> None:
    values = [400, 401, 402, 399, 398, 320, 321, 319, 322, 318]
    found = assess(figures([value * GB for value in values]))
    assert slow(found.judged) == []
    (remark,) = found.remarks
    assert remark.code == "TwoPopulations"
    assert remark.sets == (("n5", "n6", "n7", "n8", "n9"), ("n0", "n1", "n2", "n3", "n4"))
    assert "5 nodes at 320 GB/s and 5 nodes at 400 GB/s" in remark.sentence


@pytest.mark.parametrize("value", [200, 20, 0.02])
def test_a_slow_node_is_found_within_its_population(value: float) -> None:
    values = [400 + i % 3 for i in range(20)] + [320 + i % 3 for i in range(20)] + [value]
    found = assess(figures([value * GB for value in values]))
    assert slow(found.judged) == ["n40"]
    assert "of its population, 21 of 41" in found.judged[40].against


def test_two_that_differ_are_undecided_and_measured_again() -> None:
    found = assess(figures([400 * GB, 280 * GB]))
    assert {one.grade for one in found.judged} == {Grade.UNTESTED}
    assert {one.nodes[0] for one in found.marginal} == {"n0", "n1"}
    assert [remark.code for remark in found.remarks] == ["PeersDisagree"]
    assert found.accepted == ()


def test_different_variants_and_sizes_are_never_compared() -> None:
    nccl, gloo = "nccl float32 8 ranks all_reduce", "gloo float32 8 ranks all_reduce"
    apart = [
        *figures([400 * GB] * 5, variant=nccl, size_bytes=1 << 30),
        *figures([100 * GB], variant=nccl, size_bytes=1 << 20),
        *figures([100 * GB], variant=gloo, size_bytes=1 << 30),
    ]
    assert slow(judge(apart)) == []


def test_a_gpu_is_held_against_all_gpus_of_its_kind() -> None:
    many = [
        Figure("gemm", (f"n{node}",), "flop_per_second", 700e12 + gpu * 1e12, f"gpu{gpu}", 0, "bfloat16 8192")
        for node in range(3)
        for gpu in range(8)
    ]
    many[5] = Figure("gemm", ("n0",), "flop_per_second", 560e12, "gpu5", 0, "bfloat16 8192")
    found = judge(many)
    assert [(one.figure.nodes, one.figure.part) for one in found if one.grade is Grade.SLOW] == [
        (("n0",), "gpu5")
    ]


def test_what_tells_the_same_is_judged_once() -> None:
    both = [
        *figures([400 * GB] * 5),
        *figures([400 * GB] * 5, metric="algbw_bytes_per_second"),
        *figures([1.0] * 5, metric="time_mean_seconds", higher_is_better=False),
    ]
    assert len(judge(both)) == 5


def groups(values: dict[tuple[str, ...], float]) -> list[Figure]:
    return [Figure("collective", names, "busbw_bytes_per_second", v * GB) for names, v in values.items()]


def slow_groups(values: dict[tuple[str, ...], float]) -> set[tuple[str, ...]]:
    return {one.figure.nodes for one in judge(groups(values)) if one.grade is Grade.SLOW}


def test_of_groups_the_slower_are_slow_even_if_they_are_many() -> None:
    # c slows half of all pairs of four nodes
    pairs = {("a", "b"): 400.0, ("a", "d"): 402.0, ("b", "d"): 399.0}
    slower = {("a", "c"): 200.0, ("b", "c"): 201.0, ("c", "d"): 199.0}
    assert slow_groups(pairs | slower) == set(slower)
    found = judge(groups(pairs | slower))
    assert found[3].ratio == pytest.approx(0.5, rel=0.01)
    assert found[3].against.startswith("400 GB/s, the fastest of 6 groups; slow is below")
    # of two halves one is enough to know what is possible
    assert slow_groups({("a", "b"): 400, ("c", "d"): 200}) == {("c", "d")}
    assert slow_groups({("a", "b"): 400, ("c", "d"): 395}) == set()
    assert slow_groups({("a", "b"): 400, ("c", "d"): 330, ("e", "f"): 280}) == {("c", "d"), ("e", "f")}
    assert assess(groups(pairs | slower)).remarks == ()


def test_a_place_is_held_against_the_same_place_of_other_nodes() -> None:
    # the second GPU is behind another socket on every node
    near_and_far = {"gpu0": 55 * GB, "gpu1": 40 * GB}

    def copies(nodes: int) -> list[Figure]:
        return [
            Figure("host_device", (f"n{i}",), "host_to_device_bytes_per_second", value, part, 1 << 28)
            for i in range(nodes)
            for part, value in near_and_far.items()
        ]

    many = assess([*copies(5), Figure("host_device", ("n5",), copies(1)[0].metric, 42 * GB, "gpu0", 1 << 28)])
    assert slow(many.judged) == ["n5"]
    assert many.remarks == ()


def test_file_systems_are_not_compared_with_each_other_and_quick_is_quick_enough() -> None:
    def reads(path: str, *values: float) -> list[Figure]:
        return [
            Figure("storage", (f"n{i}",), "read_bytes_per_second", value * GB, path, 1 << 30, "data")
            for i, value in enumerate(values)
        ]

    assert slow(judge([*reads("/data", 1, 1.1, 1), *reads("/scratch", 9, 9.1, 9, 9.2, 9)])) == []

    def opens(*values: float, metric: str = "open_p50_seconds") -> list[Figure]:
        return figures(values, "storage", metric, part="/data", higher_is_better=False)

    assert slow(judge(opens(10e-6, 12e-6, 9e-6, 11e-6, 400e-6))) == []
    assert slow(judge(opens(2e-3, 3e-3, 2.5e-3, 1.8e-3, 2.1e-3, 60e-3))) == ["n5"]
    assert judge(opens(2e-3, 2e-3, 60e-3, metric="open_p99_seconds")) == []


@settings(max_examples=80, deadline=None)
@given(
    st.integers(5, 60),
    st.sampled_from([2.0**-20, 0.125, 1024.0]),
    st.floats(0.001, 0.03),
    st.integers(0, 2**32),
)
def test_scale_changes_nothing_and_one_at_seventy_percent_is_always_named(
    count: int, factor: float, noise: float, seed: int
) -> None:
    draw = random.Random(seed)
    values = [400 * GB * (1 + draw.uniform(-noise, noise)) for _ in range(count)]
    bad = draw.randrange(count)
    values[bad] *= 0.7
    found = judge(figures(values))
    assert slow(found) == [f"n{bad}"]
    scaled = judge(figures([value * factor for value in values]))
    assert [(one.grade, one.ratio) for one in scaled] == [(one.grade, one.ratio) for one in found]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=40))
def test_peers_never_blame_half(values: list[float]) -> None:
    blamed = slow(judge(figures([value * GB for value in values])))
    assert 2 * len(blamed) < max(2, len(values))


def test_a_thousand_sound_nodes_of_three_percent_noise_are_left_alone() -> None:
    draw = random.Random(7)
    blamed = 0
    for _ in range(20):
        values = [400 * GB * math.exp(draw.gauss(0, 0.03)) for _ in range(1000)]
        found = assess(figures(values))
        blamed += len(slow(found.judged))
        assert not [remark for remark in found.remarks if remark.code == "TwoPopulations"]
    assert blamed < 20  # of 20,000: a tenth of a percent
    assert slow(judge(figures([*values, 0.7 * 400 * GB]))) == ["n1000"]


@pytest.mark.parametrize("count", [3, 4, 5, 8, 16, 64])
def test_small_sound_sets_are_seldom_blamed(count: int) -> None:
    draw = random.Random(count)
    sets = sum(
        bool(slow(judge(figures([400 * GB * math.exp(draw.gauss(0, 0.03)) for _ in range(count)]))))
        for _ in range(400)
    )
    assert sets <= 8  # measured over 20,000 sets: 0.03 to 0.3 %


# physical limits


def bounded(value: float, surely: float = 0.0, full: bool = True) -> object:
    return lambda figure: Bound(value, surely or value, "8 x 50 GB/s of network in each of 2 nodes", full)


def test_faster_than_the_links_is_no_measurement() -> None:
    found = judge(figures([390 * GB, 391 * GB, 389 * GB, 700 * GB]), bounds=bounded(400 * GB))  # type: ignore[arg-type]
    assert (found[3].grade, found[3].decided_by) == (Grade.COULD_NOT_RUN, "bound")
    assert found[3].against.startswith("not to be believed: 175% of 400 GB/s, 8 x 50 GB/s")
    assert slow(found) == []


def test_most_beyond_the_bound_means_that_the_bound_is_wrong() -> None:
    found = assess(figures([700 * GB, 701 * GB, 702 * GB, 400 * GB]), bounds=bounded(400 * GB))  # type: ignore[arg-type]
    assert [remark.code for remark in found.remarks] == ["FactsSuspect"]
    assert slow(found.judged) == ["n3"]
    assert found.accepted == ()


def test_switches_that_add_up_may_pass_the_links() -> None:
    found = judge(figures([482 * GB]), bounds=bounded(450 * GB, 787.5 * GB, full=False))  # type: ignore[arg-type]
    assert found[0].grade is not Grade.COULD_NOT_RUN


def host_device(values: Sequence[float]) -> list[Figure]:
    return figures([value * GB for value in values], "host_device", "bytes_per_second", size_bytes=1 << 30)


def test_below_half_of_its_link_is_slow_even_alone() -> None:
    (alone,) = judge(host_device([25]), bounds=bounded(63 * GB))  # type: ignore[arg-type]
    assert (alone.grade, alone.decided_by) == (Grade.SLOW, "bound")
    assert "no sound one is below 45%" in alone.against
    (sound,) = judge(host_device([55]), bounds=bounded(63 * GB))  # type: ignore[arg-type]
    assert (sound.grade, sound.decided_by) == (Grade.GOOD, "bound")


def test_all_alike_below_the_floor_is_the_configuration() -> None:
    found = assess(host_device([25, 25.1, 25.2, 24.9, 25]), bounds=bounded(63 * GB))  # type: ignore[arg-type]
    assert slow(found.judged) == []
    assert [remark.code for remark in found.remarks] == ["ConfigSuspect"]
    assert found.accepted == ()


def test_half_below_the_floor_are_slow_since_the_others_are_not() -> None:
    found = assess(host_device([25, 25.1, 25.2, 55, 55.1, 55.2]), bounds=bounded(63 * GB))  # type: ignore[arg-type]
    assert slow(found.judged) == ["n0", "n1", "n2"]


def test_small_messages_are_not_held_against_the_rate_of_a_link() -> None:
    few = figures([2 * GB], "host_device", "bytes_per_second", size_bytes=1 << 16)
    assert judge(few, bounds=bounded(63 * GB))[0].grade is Grade.UNTESTED  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_number_is_no_verdict_on_the_node(value: float) -> None:
    found = judge(figures([400 * GB, 401 * GB, 399 * GB, 400 * GB, value]))
    assert found[4].grade is Grade.COULD_NOT_RUN
    assert slow(found) == []


# its own past


def past(values: dict[str, float], count: int = 5) -> object:
    def usual(figure: Figure) -> Usual | None:
        value = values.get(figure.nodes[0])
        return Usual(value, count, 0.01, "2026-11-01") if value else None

    return usual


def test_a_node_below_its_own_past_is_slow_where_no_peers_decide() -> None:
    found = judge(figures([400 * GB, 330 * GB]), baselines=past({"n0": 400 * GB, "n1": 401 * GB}))  # type: ignore[arg-type]
    assert [(one.grade, one.decided_by) for one in found] == [
        (Grade.GOOD, "baseline"), (Grade.SLOW, "baseline"),
    ]  # fmt: skip
    assert found[1].against == "401 GB/s, its own median of 5 runs since 2026-11-01"


def test_a_past_of_two_runs_is_none() -> None:
    found = judge(figures([330 * GB]), baselines=past({"n0": 400 * GB}, count=2))  # type: ignore[arg-type]
    assert found[0].grade is Grade.UNTESTED


def test_when_most_fall_below_their_past_something_came_over_all() -> None:
    known = past({f"n{i}": 400 * GB for i in range(6)})
    found = assess(figures([330 * GB] * 6), baselines=known)  # type: ignore[arg-type]
    assert slow(found.judged) == []
    assert [remark.code for remark in found.remarks] == ["ConfigSuspect"]
    assert (
        "6 of 6 are below their own past (at 82% of it): look at what was changed"
        in found.remarks[0].sentence
    )


def test_a_slow_server_is_not_many_slow_nodes() -> None:
    known = past({f"n{i}": 4 * GB for i in range(6)})
    stored = figures([1 * GB] * 6, "storage", "read_bytes_per_second")
    found = assess(stored, baselines=known)  # type: ignore[arg-type]
    assert slow(found.judged) == []
    assert "look at the server or the network to it" in found.remarks[0].sentence
    one = figures(
        [4 * GB, 4.2 * GB, 3.9 * GB, 4.1 * GB, 3.6 * GB, 1 * GB], "storage", "read_bytes_per_second"
    )
    assert slow(judge(one, baselines=known)) == ["n5"]  # type: ignore[arg-type]


# the catalogue


def test_the_catalogue_alone_fails_nobody() -> None:
    best = lambda figure: Reference(482 * GB, "H200 SXM: measured by others")  # noqa: E731
    found = assess(figures([300 * GB, 301 * GB, 299 * GB, 300 * GB]), catalogue=best)
    assert slow(found.judged) == []
    (remark,) = found.remarks
    assert remark.code == "BelowCatalogue"
    assert "at 62% of 482 GB/s (H200 SXM: measured by others): alike on 4 of 4" in remark.sentence
    assert assess(figures([300 * GB, 470 * GB, 471 * GB, 469 * GB]), catalogue=best).remarks == ()
    assert assess(figures([300 * GB]), catalogue=best).judged[0].grade is Grade.UNTESTED
    assert judge(figures([470 * GB]), catalogue=best)[0].decided_by == "catalogue"


# repeats


def test_the_best_of_repeats_counts_unless_it_is_slow_half_of_the_time() -> None:
    def repeats(*values: float) -> float:
        return of_repeats([Figure("collective", ("n1",), "busbw_bytes_per_second", v * GB) for v in values])[
            0
        ].value

    assert repeats(280, 400) == 400 * GB
    assert repeats(400, 280, 401, 402) == 402 * GB
    assert repeats(280, 281, 400) == 281 * GB
    assert repeats(math.nan, 400) == 400 * GB


def test_a_repeat_clears_a_node_that_was_disturbed_once() -> None:
    first = figures([400 * GB, 401 * GB, 399 * GB, 402 * GB, 280 * GB])
    again = [Figure("collective", ("n4",), "busbw_bytes_per_second", 398 * GB)]
    assert slow(judge(first)) == ["n4"]
    assert slow(judge([*first, *again])) == []


def test_near_the_line_is_marginal_and_far_from_it_is_not() -> None:
    def marginal(value: float) -> list[str]:
        found = assess(figures([400 * GB, 401 * GB, 399 * GB, 402 * GB, 400 * GB, value * GB]))
        return [one.nodes[0] for one in found.marginal]

    assert marginal(350) == ["n5"]
    assert marginal(362) == ["n5"]
    assert marginal(200) == []
    assert marginal(395) == []


# clocks


def clocks(*offsets: float) -> list[Figure]:
    return figures(offsets, "clock", "offset_seconds")


def test_a_clock_off_the_others_is_said_and_slows_nobody() -> None:
    found = assess(clocks(0.001, -0.002, 0.0, 12.5))
    assert found.judged == ()
    (remark,) = found.remarks
    assert (remark.code, remark.sets) == ("ClockOffset", (("n3",),))
    assert "1 of 4 clocks" in remark.sentence
    assert "+12.5 s on n3" in remark.sentence


def test_all_clocks_off_together_agree_and_two_cannot_tell_who_is_right() -> None:
    assert assess(clocks(5.0, 5.001, 5.002)).remarks == ()
    (remark,) = assess(clocks(0.0, 3.0)).remarks
    assert remark.sets == (("n0", "n1"),)
    assert "3 s apart" in remark.sentence


# words


def test_figures_are_told_with_units() -> None:
    one = Figure(
        "collective", ("a", "b"), "busbw_bytes_per_second", 1.0, "", 1 << 30, "nccl float32 16 ranks"
    )
    assert name_of(one) == "collective busbw at 1 GiB (nccl float32 16 ranks)"
    assert told(1.8e12, one) == "1800 GB/s"
    assert told(742.4e12, Figure("gemm", ("a",), "flop_per_second", 1.0)) == "742.4 TFLOP/s"
    assert told(1.2e-3, Figure("x", ("a",), "latency_seconds", 1.0)) == "1.2 ms"
    assert told(12.0, Figure("x", ("a",), "operations_per_second", 1.0)) == "12 /s"


def test_a_site_may_set_its_margins() -> None:
    loose = Limits(margins={})
    values = figures([400 * GB, 402 * GB, 398 * GB, 401 * GB, 350 * GB])
    assert slow(judge(values, limits=loose)) == []
    assert Facts().row is None
