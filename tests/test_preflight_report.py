"""May the job start, and on which nodes: the verdict of a preflight."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.measurement import Figure, Grade, Judged, Suspect
from clustertools.model import Finding, Status, Subject
from clustertools.preflight_report import (
    Decision,
    NodeResult,
    Remark,
    Report,
    Swap,
    Terms,
    Untested,
    folded,
    is_host_name,
    suspect_in_words,
)
from clustertools.render.json_lines import json_line

EIGHT = tuple(f"gpu{n}" for n in range(1, 9))


def report(grades: dict[str, Grade] | None = None, asked=EIGHT, **more) -> Report:
    """All asked nodes good, except as told."""
    found = {**dict.fromkeys(asked, Grade.GOOD), **(grades or {})}
    spares = more.pop("spares", ())
    fates = more.pop("fates", {})
    leaves = more.pop("leaves", {})
    nodes = tuple(
        NodeResult(n, g, spare=n in spares, fate=fates.get(n, "completed"), leaf=leaves.get(n, ""))
        for n, g in {**found, **{s: found.get(s, Grade.GOOD) for s in spares}}.items()
    )
    return Report(1.0, 61.0, tuple(asked), nodes, **more)


def test_all_good_is_go():
    verdict = report().verdict
    assert (verdict.decision, verdict.exit_code) == (Decision.GO, 0)
    assert verdict.launch_nodes == EIGHT
    assert verdict.sentence == "GO: all 8 nodes are good: gpu[1-8]"


def test_one_bad_of_eight_is_no_go_unless_seven_will_do():
    refused = report({"gpu7": Grade.SLOW}).verdict
    assert (refused.decision, refused.exit_code, refused.launch_nodes) == (Decision.NO_GO, 2, ())
    assert refused.sentence == "NO GO: 7 of 8 nodes are good, 8 are needed; slow: gpu7"
    for terms in (Terms(need=7), Terms(at_least=7)):
        allowed = report({"gpu7": Grade.SLOW}, terms=terms).verdict
        assert (allowed.decision, allowed.exit_code) == (Decision.GO_WITHOUT, 1)
        assert folded(allowed.launch_nodes) == "gpu[1-6,8]"
        assert allowed.excluded == ("gpu7",)
        assert allowed.sentence == "GO on 7 nodes: gpu[1-6,8]; without slow: gpu7"


@pytest.mark.parametrize(
    ("grade", "fate", "word"),
    [
        (Grade.UNTESTED, "unreachable", "unreachable"),
        (Grade.UNTESTED, "host-key", "host-key"),
        (Grade.COULD_NOT_RUN, "timeout", "timeout"),
        (Grade.COULD_NOT_RUN, "completed", "could-not-run"),
        (Grade.UNTESTED, "completed", "untested"),
        (Grade.GOOD, "lost", "lost"),
    ],
)
def test_what_is_unknown_stops_the_launch(grade, fate, word):
    verdict = report({"gpu7": grade}, fates={"gpu7": fate}).verdict
    assert (verdict.decision, verdict.exit_code) == (Decision.NO_GO, 3)
    assert verdict.unknown_nodes == ("gpu7",)
    assert f"{word}: gpu7" in verdict.sentence


def test_an_unknown_node_may_be_allowed_but_not_one_that_is_away():
    terms = Terms(allow_unknown=True)
    allowed = report({"gpu7": Grade.COULD_NOT_RUN}, terms=terms).verdict
    assert (allowed.exit_code, allowed.launch_nodes, allowed.unproven) == (1, EIGHT, ("gpu7",))
    assert "allowed although could-not-run: gpu7" in allowed.sentence
    assert "not known to be good, and used all the same: gpu7" in allowed.warnings
    away = report({"gpu7": Grade.UNTESTED}, fates={"gpu7": "unreachable"}, terms=terms).verdict
    assert (away.exit_code, away.launch_nodes) == (3, ())
    bad = report({"gpu7": Grade.WRONG_DATA}, terms=terms).verdict
    assert (bad.exit_code, bad.launch_nodes) == (2, ())


def test_a_node_without_a_result_is_unknown():
    verdict = Report(1.0, 2.0, ("gpu1", "gpu2"), (NodeResult("gpu1", Grade.GOOD),)).verdict
    assert (verdict.exit_code, verdict.unknown_nodes) == (3, ("gpu2",))


def test_nothing_asked_is_no_go():
    assert Report(1.0, 2.0, ()).verdict.exit_code == 3
    assert report(asked=(), spares=("s1",)).verdict.exit_code == 3


def test_the_worse_of_two_results_counts():
    twice = (NodeResult("gpu1", Grade.GOOD), NodeResult("gpu1", Grade.SLOW), NodeResult("gpu1", Grade.GOOD))
    assert Report(1.0, 2.0, ("gpu1",), twice).verdict.bad_nodes == ("gpu1",)


def test_a_spare_takes_the_place_of_the_bad_node_on_its_leaf():
    verdict = report(
        {"gpu3": Grade.SLOW, "s0": Grade.SLOW},
        spares=("s0", "s1", "s2"),
        leaves={"gpu3": "leaf2", "s1": "leaf1", "s2": "leaf2"},
    ).verdict
    assert verdict.swaps == (Swap("gpu3", "s2"),)
    assert verdict.launch_nodes == ("gpu1", "gpu2", "s2", *EIGHT[3:])
    assert (verdict.decision, verdict.exit_code) == (Decision.GO_WITHOUT, 1)
    assert "spares: s2 for gpu3" in verdict.sentence


def test_a_bad_spare_that_is_not_used_changes_nothing():
    verdict = report({"s0": Grade.SLOW}, spares=("s0",)).verdict
    assert (verdict.decision, verdict.exit_code, verdict.excluded) == (Decision.GO, 0, ("s0",))


def test_more_asked_than_needed_is_its_own_reserve():
    verdict = report({"gpu2": Grade.BAD_HARDWARE}, terms=Terms(need=6)).verdict
    assert verdict.launch_nodes == ("gpu1", "gpu3", "gpu4", "gpu5", "gpu6", "gpu7")
    assert verdict.excluded == ("gpu2",)
    assert report(terms=Terms(need=6)).verdict.exit_code == 0


def test_a_reference_node_is_never_launched_on():
    """One that was neither asked for nor named a spare: a known good partner of a test."""
    both = (NodeResult("gpu1", Grade.SLOW), NodeResult("other", Grade.GOOD))
    assert Report(1.0, 2.0, ("gpu1",), both).verdict.launch_nodes == ()


PATH = Suspect("path", ("gpu1", "gpu5"), Grade.BAD_HARDWARE, 0.97, "every pair over it fails")
BOUNDARY = Suspect("boundary", ("gpu[1-6]", "gpu[7-8]"), Grade.SLOW, 0.97, "half the rate")


def test_a_broken_path_inside_the_job_stops_it_and_is_avoided_where_that_is_possible():
    refused = report(suspects=(PATH,)).verdict
    assert refused.exit_code == 2
    assert "the path between gpu1 and gpu5 is bad-hardware" in refused.sentence
    avoided = report(suspects=(PATH,), terms=Terms(at_least=7)).verdict
    assert avoided.exit_code == 1
    assert not {"gpu1", "gpu5"} <= set(avoided.launch_nodes)
    swapped = report(suspects=(PATH,), spares=("s1",)).verdict
    assert len(swapped.launch_nodes) == 8
    assert not {"gpu1", "gpu5"} <= set(swapped.launch_nodes)


def test_a_slow_boundary_may_be_allowed_and_is_told():
    assert report(suspects=(BOUNDARY,)).verdict.exit_code == 2
    allowed = report(suspects=(BOUNDARY,), terms=Terms(allow_slow_paths=True)).verdict
    assert (allowed.exit_code, allowed.launch_nodes) == (1, EIGHT)
    assert allowed.warnings == ("the boundary between gpu[1-6] and gpu[7-8] is slow",)
    six = report(suspects=(BOUNDARY,), terms=Terms(need=6)).verdict
    assert six.launch_nodes == EIGHT[:6]


@pytest.mark.parametrize(
    "suspect",
    [
        Suspect("node", ("gpu2",), Grade.SLOW, 0.9, ""),
        Suspect("leaf", ("gpu[1-2]",), Grade.SLOW, 0.9, ""),
        Suspect("boundary", ("gpu2,gpu1", ""), Grade.SLOW, 0.9, ""),
        Suspect("rail", ("gpu1", "gpu2", "gpu3"), Grade.BAD_HARDWARE, 0.9, ""),
    ],
)
def test_whatever_is_suspected_is_not_run_over(suspect):
    """Also a node that was graded good all the same: nobody launches on a contradiction."""
    refused = report(suspects=(suspect,)).verdict
    assert (refused.exit_code, refused.launch_nodes) == (2, ())
    assert suspect_in_words(suspect) in refused.sentence
    fewer = report(
        suspects=(suspect,), terms=Terms(at_least=5, allow_slow_paths=suspect.kind == "node")
    ).verdict
    assert fewer.exit_code == 1
    assert any(suspect_in_words(suspect) in warning for warning in fewer.warnings)
    assert "gpu2" not in fewer.launch_nodes or suspect.kind == "rail"


def test_too_many_bad_ones_are_the_answer_before_what_was_not_tested():
    untested = (Untested("all-reduce", "no time", required=True),)
    assert report({"gpu1": Grade.SLOW}, untested=untested).verdict.exit_code == 2


def test_a_reference_does_not_count_as_enough():
    nodes = (*(NodeResult(n, Grade.GOOD) for n in ("a", "b", "ref")),)
    path = Suspect("path", ("a", "b"), Grade.BAD_HARDWARE, 0.9, "")
    verdict = Report(1.0, 2.0, ("a", "b"), nodes, suspects=(path,)).verdict
    assert (verdict.exit_code, verdict.sentence) == (2, "NO GO: the path between a and b is bad-hardware")


def test_what_is_required_and_was_not_tested_stops_the_launch():
    untested = Untested("the whole job's all-reduce", "the budget was over", required=True)
    assert report(untested=(untested,)).verdict.exit_code == 3
    allowed = report(untested=(untested,), terms=Terms(allow_unknown=True)).verdict
    assert (allowed.exit_code, allowed.launch_nodes) == (1, EIGHT)
    assert report(untested=(Untested("storage", "not asked for"),)).verdict.exit_code == 0


def test_a_warning_is_told_and_does_not_stop():
    finding = Finding("gpu_clock", "ClockLow", Subject(node="gpu1"), Status.WARNING, "slow clock")
    nodes = tuple(NodeResult(n, Grade.GOOD, findings=(finding,) if n == "gpu1" else ()) for n in EIGHT)
    verdict = Report(1.0, 2.0, EIGHT, nodes, remarks=(Remark("the driver of gpu8 differs"),)).verdict
    assert (verdict.decision, verdict.exit_code) == (Decision.GO, 1)
    assert verdict.warnings == ("findings on nodes that are used: gpu1", "the driver of gpu8 differs")


def test_a_report_survives_json():
    figure = Figure("collective", ("gpu1", "gpu2"), "busbw_bytes_per_second", 4.5e10, size_bytes=1 << 20)
    full = report(
        {"gpu7": Grade.SLOW},
        suspects=(PATH,),
        untested=(Untested("x", "y"),),
        terms=Terms(at_least=7),
        group_figures=(Judged(figure, Grade.SLOW, "peers", 0.5, "the others' 90 GB/s"),),
        versions={"clustertools": "0.1.0"},
    )
    data = json.loads(json_line("preflight", full.to_data()))
    assert Report.from_data(data) == full
    assert data["verdict"]["exit_code"] == full.verdict.exit_code
    assert data["verdict"]["bad_nodes"] == ["gpu7"]


def test_names_that_mean_something_else_are_never_folded():
    assert folded(["gpu2", "gpu1", "gpu1"]) == "gpu[1-2]"
    assert (
        folded(["gpu1", "@all", "gpu[1-9]", "a,b", "\x1b[31mx", ""]) == "gpu1,@all,gpu[1-9],a,b,x,(no name)"
    )
    for odd in ("", "-w", "a b", "a,b", "a[1-2]", "@x", "gpu1\n", "é", "../x", "a/b", "x" * 300):
        assert not is_host_name(odd), odd
    assert all(map(is_host_name, ("gpu-017.example.org", "n1", "node_3")))


_NODE = st.sampled_from([f"n{k}" for k in range(12)])
_RESULT = st.builds(
    NodeResult,
    _NODE,
    st.sampled_from(Grade),
    spare=st.booleans(),
    fate=st.sampled_from(["completed", "unreachable", "lost", "timeout"]),
    leaf=st.sampled_from(["", "a", "b"]),
)
_SUSPECT = st.builds(
    Suspect,
    st.sampled_from(["path", "boundary", "node"]),
    st.tuples(_NODE, _NODE),
    st.sampled_from(Grade),
    st.just(0.9),
    st.just(""),
)


@given(
    st.lists(_NODE, max_size=10),
    st.lists(_RESULT, max_size=16),
    st.lists(_SUSPECT, max_size=3),
    st.builds(Terms, st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans()),
)
def test_the_verdict_holds_whatever_was_found(asked, nodes, suspects, terms):
    full = Report(1.0, 2.0, tuple(asked), tuple(nodes), suspects=tuple(suspects), terms=terms)
    verdict = full.verdict
    parts = (verdict.good_nodes, verdict.bad_nodes, verdict.unknown_nodes)
    assert sorted(n for part in parts for n in part) == sorted({*asked, *(r.node for r in nodes)})
    launch = set(verdict.launch_nodes)
    assert len(launch) == len(verdict.launch_nodes)
    assert not launch & set(verdict.bad_nodes)
    assert launch & set(verdict.unknown_nodes) == set(verdict.unproven)
    assert terms.allow_unknown or not verdict.unproven
    assert not launch & set(verdict.excluded)
    assert (verdict.decision is Decision.NO_GO) == (not launch) == (verdict.exit_code > 1)
    if launch:
        need = terms.need or len(set(asked))
        assert min(need, terms.at_least or need) <= len(launch) <= need
        assert launch <= {*asked, *(r.node for r in nodes if r.spare)}
    if verdict.exit_code == 0:
        assert set(asked) <= set(verdict.good_nodes)
    assert Report.from_data(json.loads(json.dumps(full.to_data()))) == full
