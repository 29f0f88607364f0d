"""A preflight as CI systems read it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from clustertools.measurement import Grade
from clustertools.preflight_report import NodeResult, Report, Terms, Untested
from clustertools.render.preflight_junit import junit
from tests.render.preflight_cases import hostile, large, small


def parsed(report: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(junit(report))
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.get("tests")) == len(cases)
        for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.get(count)) == sum(case.find(tag) is not None for case in cases)
    return root


def outcome(root: ElementTree.Element, suite: str, case: str) -> tuple[str, str]:
    (found,) = root.findall(f"testsuite[@name='{suite}']/testcase[@name='{case}']")
    for tag in ("failure", "error", "skipped"):
        if (told := found.find(tag)) is not None:
            return tag, told.get("message", "")
    return "", found.findtext("system-out", "")


def test_a_suite_for_the_cluster_and_one_for_each_node():
    root = parsed(small())
    assert [suite.get("name") for suite in root][:3] == ["preflight", "gpu001", "gpu002"]
    assert len(root) == 1 + 16 + 2


@pytest.mark.parametrize(
    ("suite", "case", "tag", "words"),
    [
        ("preflight", "verdict", "failure", "NO GO: the boundary between"),
        ("preflight", "stage checks", "", "checks 16 of 16"),
        ("preflight", "stage pairs", "skipped", "pairs 40 of 64, 1 m (budget over)"),
        ("preflight", "storage", "skipped", "no path was named"),
        ("preflight", "boundary gpu[001-006] - gpu[008-016]", "failure", "pairs across it reach half"),
        ("gpu002", "grade", "", ""),
        ("gpu002", "alone: gemm", "", ""),
        ("gpu001", "grade", "", "GpuClockLow 1,410 MHz"),
        ("gpu003", "grade", "failure", "EccUncorrected gpu@0000:3b:00.0: 3 uncorrectable errors"),
        ("gpu007", "alone: gemm", "failure", "all-reduce of 64 MiB at 41.2 GB/s"),
        ("gpu009", "grade", "error", "connection refused"),
        ("gpu012", "grade", "error", "no torch for its Python 3.10"),
    ],
)
def test_bad_fails_unknown_is_an_error_untested_is_skipped(suite, case, tag, words):
    found, said = outcome(parsed(small()), suite, case)
    assert found == tag
    assert words in said


def test_what_is_unknown_is_an_error_and_what_was_not_looked_at_is_skipped():
    nodes = (NodeResult("n1", Grade.UNTESTED, ("no time",)), NodeResult("n2", Grade.GOOD, fate="lost"))
    untested = (Untested("all-reduce", "no time", required=True),)
    root = parsed(Report(1.0, 2.0, ("n1", "n2", "n3"), nodes, untested=untested))
    assert outcome(root, "preflight", "verdict")[0] == "error"
    assert outcome(root, "preflight", "all-reduce")[0] == "error"
    assert outcome(root, "n1", "grade") == ("skipped", "no time")
    assert outcome(root, "n2", "grade")[0] == "error"
    assert outcome(root, "n3", "grade") == ("skipped", "nobody looked at it")


def test_a_launch_with_a_warning_passes_and_says_so():
    nodes = (NodeResult("n1", Grade.GOOD), NodeResult("n2", Grade.SLOW, ("slow",)))
    root = parsed(Report(1.0, 2.0, ("n1", "n2"), nodes, terms=Terms(at_least=1)))
    assert outcome(root, "preflight", "verdict") == ("", "GO on 1 node: n1; without slow: n2")


def test_hostile_none_and_many():
    said = junit(hostile())
    assert "<script" not in said
    assert "\x1b" not in said
    parsed(hostile())
    assert len(parsed(Report(1.0, 2.0, ()))) == 1
    assert len(parsed(large())) == 1025
