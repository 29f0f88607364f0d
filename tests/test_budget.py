"""Which tests fit into a budget, in which order, and why the others do not run."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.budget import FAULT_SHARES, ProbeHistory, ProbeKind, answer_known, plan

GEMM = ProbeKind("gemm", 10, ("gpu", "thermal"))
MEMORY = ProbeKind("memory", 10, ("gpu-memory",))
STORAGE = ProbeKind("storage", 10, ("storage",))
COLLECTIVE = ProbeKind("collective", 20, ("link", "nic"))
ISOLATE = ProbeKind("isolate", 30, ("link",), needs=("collective",))
ALL = (STORAGE, COLLECTIVE, MEMORY, GEMM, ISOLATE)


def names(budget: float, probes: tuple[ProbeKind, ...] = ALL, **more: object) -> list[str]:
    return [step.name for step in plan(budget, probes, **more).chosen]  # type: ignore[arg-type]


def test_what_stops_training_most_comes_first() -> None:
    found = plan(300, ALL)
    assert [step.name for step in found.chosen] == ["gemm", "memory", "collective", "storage", "isolate"]
    assert [step.begins_seconds for step in found.chosen] == [0, 10, 20, 40, 50]
    assert found.left_out == ()
    assert found.cost_seconds == 80


def test_what_does_not_fit_is_told_with_the_reason() -> None:
    found = plan(25, ALL)
    assert [step.name for step in found.chosen] == ["gemm", "memory"]
    assert dict(found.left_out) == {
        "storage": "needs 10 s, and 5 s of the budget are left",
        "collective": "needs 20 s, and 5 s of the budget are left",
        "isolate": "needs collective, which is left out",
    }


def test_what_cannot_be_run_says_why_and_what_needs_it_too() -> None:
    away = ProbeKind("collective", 20, ("link",), unavailable="no torch on the nodes")
    found = plan(300, (away, GEMM, ISOLATE, ProbeKind("x", 1, needs=("nowhere",))))
    assert dict(found.left_out) == {
        "collective": "no torch on the nodes",
        "isolate": "needs collective, which is left out",
        "x": "needs nowhere, which there is not",
    }


def test_needs_in_a_circle_end() -> None:
    found = plan(100, (ProbeKind("a", 1, needs=("b",)), ProbeKind("b", 1, needs=("a",))))
    assert found.chosen == ()


def test_a_second_test_of_the_same_fault_is_worth_less() -> None:
    again = ProbeKind("dcgm", 10, ("gpu", "thermal"))
    assert names(30, (GEMM, again, MEMORY))[:2] == ["gemm", "memory"]


def test_a_lighter_form_is_taken_where_the_full_one_does_not_fit_and_grows_with_what_is_left() -> None:
    light = ProbeKind("collective", 5, ("link", "nic"), detects=0.5, form="one size")
    sweep = ProbeKind("collective", 40, ("link", "nic"), lighter=(light,), form="all sizes")
    small = plan(30, (GEMM, MEMORY, sweep))
    assert [(step.name, step.probe.form) for step in small.chosen] == [
        ("gemm", ""), ("memory", ""), ("collective", "one size"),
    ]  # fmt: skip
    large = plan(100, (GEMM, MEMORY, sweep))
    assert [step.probe.form for step in large.chosen][-1] == "all sizes"
    assert large.cost_seconds == 60


def test_what_this_site_finds_moves_a_test_forward() -> None:
    known = {"storage": ProbeHistory(100, 60), "gemm": ProbeHistory(100, 0), "memory": ProbeHistory(100, 0)}
    assert names(300, (GEMM, MEMORY, STORAGE), history=known)[0] == "storage"
    # two runs move little
    few = {"storage": ProbeHistory(2, 1), "gemm": ProbeHistory(2, 0)}
    assert names(300, (GEMM, MEMORY, STORAGE), history=few)[0] == "gemm"


def test_the_published_shares_are_shares() -> None:
    assert 0.7 < sum(FAULT_SHARES.values()) < 1


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 100),
    st.lists(
        st.tuples(st.floats(0, 60), st.sampled_from(sorted(FAULT_SHARES)), st.integers(0, 8)), max_size=8
    ),
)
def test_no_plan_overruns_its_budget_or_forgets_a_test(
    budget: float, drawn: list[tuple[float, str, int]]
) -> None:
    probes = tuple(
        ProbeKind(f"p{i}", cost, (kind,), needs=(f"p{need}",) if need < i else ())
        for i, (cost, kind, need) in enumerate(drawn)
    )
    found = plan(budget, probes)
    order = [step.name for step in found.chosen]
    assert found.cost_seconds <= budget + 1e-6
    assert sorted([*order, *(name for name, _ in found.left_out)]) == sorted(probe.name for probe in probes)
    assert all(order.index(need) < order.index(s.name) for s in found.chosen for need in s.probe.needs)


def test_when_nothing_more_can_change_the_answer() -> None:
    assert "8 of 64 nodes are bad, so that 60" in answer_known(candidates=64, bad=8, pending=3, at_least=60)
    assert answer_known(candidates=64, bad=4, pending=3, at_least=60) == ""
    assert answer_known(candidates=64, bad=4, pending=0, at_least=60) == "everything that was planned was run"
