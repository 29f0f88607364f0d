"""A preflight on a terminal: answers first, nodes folded, nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.measurement import Grade
from clustertools.model import Finding, Status, Subject
from clustertools.preflight_report import NodeResult, Report, Stage, Terms, Untested
from clustertools.render.preflight_text import ANSWERS_SHOWN, progress, text, warned, wrap
from tests.render.preflight_cases import hostile, large, node, small


def test_the_answer_comes_first_then_the_bad_then_the_unknown_then_the_good():
    lines = text(small()).splitlines()
    assert lines[0].startswith("NO GO: the boundary between gpu[001-006] and gpu[008-016] is slow;")
    assert lines[3] == "  16 nodes and 2 spares: 13 good, 2 bad, 3 unknown; took 2 m 11 s of 5 m, job"
    words = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert words == [
        "NO", "bad-hardware", "slow", "could-not-run", "unreachable", "good", "good", "slow",
        "warning", "warning", "remark", "not", "stages:",
    ]  # fmt: skip


def test_each_answer_says_who_why_and_how_it_is_known():
    said = text(small())
    assert "slow          gpu007\n" in said
    assert "all-reduce of 64 MiB at 41.2 GB/s, 0.45 of its peers' 91.6 GB/s\n" in said
    assert "[decided by isolation, then peers, confidence 0.97]" in said
    assert "bad-hardware  gpu003\n              EccUncorrected gpu@0000:3b:00.0: 3 uncorrectable" in said
    assert "unreachable   gpu[009-010] (2 nodes)\n              connection refused" in said
    assert "warning       gpu001\n              GpuClockLow 1,410 MHz of 1,980 MHz" in said
    assert "  storage: no path was named" in said
    assert "driver 535.104 where the others have 550.54: gpu[005-006]" in said
    assert "| volatile uncorrected: 3" not in said
    assert "| volatile uncorrected: 3" in text(small(), verbose=1)


def test_pairs_are_shown_when_asked_for_and_when_they_fit():
    lines = text(small(), verbose=1).splitlines()
    at = lines.index("pairs, in tenths of what was expected (#: all of it, .: not measured)")
    assert lines[at + 1] == "  gpu001 .####555555"
    assert lines[at + 6] == "  gpu008 55555.#####"
    assert "pairs, in tenths" not in text(small())
    assert "pairs, in tenths" in text(large(), verbose=1)  # by leaf switch


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    for report in (small(), large(), hostile()):
        quoted = [line for line in text(report, width=width).splitlines() if "| " not in line]
        assert max(map(len, quoted)) <= width


def test_1024_nodes_fit_on_a_screen():
    lines = text(large()).splitlines()
    assert len(lines) < 24
    assert "for example gpu0185: all-reduce of 64 MiB at" in "\n".join(lines)
    assert "gpu0233-0239" not in lines  # folded, not cut


def test_many_different_reasons_of_one_kind_are_not_all_told():
    letters = "abcdefghijklmnopqrstuvwxyz"
    nodes = tuple(node(f"n{k}", Grade.SLOW, f"because of {letter * 3}") for k, letter in enumerate(letters))
    said = text(Report(1.0, 2.0, tuple(n.node for n in nodes), nodes))
    assert said.count("because of") == ANSWERS_SHOWN
    assert f"for {26 - ANSWERS_SHOWN} more reasons" in said


def test_warnings_on_good_nodes_are_told_once():
    def clock(name: str, rate: str) -> NodeResult:
        finding = Finding("gpu_clock", "GpuClockLow", Subject(node=name), Status.WARNING, f"{rate} MHz")
        return NodeResult(name, Grade.GOOD, findings=(finding,))

    alike = warned(Report(1.0, 2.0, ("n1", "n2"), (clock("n1", "1410"), clock("n2", "1410"))))
    assert alike == [("GpuClockLow 1410 MHz", ["n1", "n2"])]
    unlike = warned(Report(1.0, 2.0, ("n1", "n2"), (clock("n1", "1410"), clock("n2", "1200"))))
    assert unlike == [("for example n1: GpuClockLow 1410 MHz", ["n1", "n2"])]


def test_what_was_not_tested_for_one_reason_is_one_line():
    whats = tuple(Untested(f"check {name}", "left out, as was asked") for name in ("bmc_sel", "ib_peer"))
    said = text(Report(1.0, 2.0, (), untested=(*whats, Untested("storage", "no path"))))
    assert "  check bmc_sel, check ib_peer: left out, as was asked\n  storage: no path" in said


def test_none_and_one_node():
    assert text(Report(1.0, 2.0, ())).splitlines() == [
        "NO GO: no node was asked for",
        "  0 nodes: 0 good, 0 bad, 0 unknown; took 1 s",
    ]
    one = Report(1.0, 2.0, ("n1",), (NodeResult("n1", Grade.GOOD),))
    assert text(one).splitlines()[0] == "GO: the node is good: n1"


def test_nothing_that_a_terminal_obeys_comes_through():
    for color in (False, True):
        said = text(hostile(), color=color, verbose=3)
        for escape in ("\x1b[0m", "\x1b[33m", "\x1b[1;31m", "\x1b[35m", "\x1b[32m"):
            said = said.replace(escape, "") if color else said
        assert all(c == "\n" or c.isprintable() for c in said)


def test_colour_is_only_there_when_asked_for():
    assert "\x1b" not in text(small())
    assert text(small(), color=True).startswith("\x1b[1;31mNO GO\x1b[0m: ")
    good = Report(1.0, 2.0, ("n1", "n2"), (node("n1"), node("n2", Grade.SLOW, "x")), terms=Terms(at_least=1))
    assert text(good, color=True).startswith("\x1b[33mGO\x1b[0m on 1 node: n1")


def test_progress_says_how_far_and_how_long():
    assert progress(Stage("pairs", 512, 0, 0.0), 3, 5) == "stage 3 of 5, pairs: 0 of 512, 0 s"
    assert (
        progress(Stage("pairs", 512, 128, 10.0), 3, 5)
        == "stage 3 of 5, pairs: 128 of 512, 10 s, about 30 s left"
    )
    assert progress(Stage("pairs", 512, 512, 41.0, "budget over"), 3, 5) == (
        "stage 3 of 5, pairs: 512 of 512, 41 s (budget over)"
    )


@given(st.text(st.sampled_from("ab,[] "), max_size=200), st.integers(30, 90))
def test_wrapping_loses_nothing(said, width):
    lines = wrap(said, "  ", width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == said.replace(" ", "")
