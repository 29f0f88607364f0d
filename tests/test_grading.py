"""One grade a node: who decides it, and what never makes a node bad."""

from __future__ import annotations

from typing import Any

import pytest

from clustertools.grading import grade_nodes, node_grade
from clustertools.measurement import Ending, Figure, Grade, Judged, Suspect, Trial
from clustertools.model import Finding, Status, Subject, Verdict


def verdict(status: Status, check: str = "gpu_ecc", node: str = "n1", **more: Any) -> Verdict:
    findings: tuple[Finding, ...] = ()
    if status in (Status.CRITICAL, Status.WARNING):
        findings = (Finding(check, "EccUncorrected", Subject(node=node), status, "2 errors"),)
    return Verdict(check, Subject(node=node), status, findings, **more)


def judged(grade: Grade, nodes: tuple[str, ...] = ("n1",), by: str = "peers") -> Judged:
    figure = Figure("gemm", nodes, "flop_per_second", 560e12, "gpu5", 0, "bfloat16 8192")
    return Judged(figure, grade, by, 0.8, "700 TFLOP/s, the median of 24 alike")


def trial(ending: Ending, nodes: tuple[str, ...] = ("n1",), probe: str = "gemm", **more: Any) -> Trial:
    return Trial(probe, nodes, ending, **more)


OK, DONE = verdict(Status.OK), trial(Ending.DONE)
SUSPECT = Suspect("node", ("n1",), Grade.SLOW, 0.93, "both halves with n1 are slow")
UNLIKELY = Suspect("node", ("n1",), Grade.SLOW, 0.3, "one slow group")
PATH = Suspect("path", ("n1", "n2"), Grade.SLOW, 1.0, "only together")


@pytest.mark.parametrize(
    ("told", "grade", "by"),
    [
        ({}, Grade.UNTESTED, ""),
        ({"verdicts": [OK]}, Grade.GOOD, "check"),
        ({"verdicts": [OK], "trials": [DONE]}, Grade.GOOD, "trial"),
        ({"trials": [DONE], "judged": [judged(Grade.GOOD)]}, Grade.GOOD, "peers"),
        ({"verdicts": [verdict(Status.WARNING)]}, Grade.GOOD, "check"),
        ({"verdicts": [OK, verdict(Status.CRITICAL)]}, Grade.BAD_HARDWARE, "check"),
        # one blind check of two is told, all of them are no ground to stand on
        ({"verdicts": [OK, verdict(Status.UNKNOWN, "mem_dimms")]}, Grade.GOOD, "check"),
        ({"verdicts": [verdict(Status.UNKNOWN), verdict(Status.SKIPPED)]}, Grade.COULD_NOT_RUN, "check"),
        ({"verdicts": [verdict(Status.SKIPPED)]}, Grade.UNTESTED, ""),
        (
            {"verdicts": [OK, verdict(Status.UNKNOWN, "gpu_count")], "required": ("gpu_count",)},
            Grade.COULD_NOT_RUN, "check",
        ),
        ({"judged": [judged(Grade.SLOW)]}, Grade.SLOW, "peers"),
        ({"trials": [DONE], "judged": [judged(Grade.UNTESTED)]}, Grade.GOOD, "trial"),
        (
            {"trials": [DONE], "judged": [judged(Grade.COULD_NOT_RUN, by="bound")]},
            Grade.COULD_NOT_RUN, "bound",
        ),
        # a slow group is nobody's fault until somebody searched
        ({"trials": [DONE], "judged": [judged(Grade.SLOW, ("n1", "n2"))]}, Grade.GOOD, "trial"),
        ({"trials": [trial(Ending.WRONG_DATA)]}, Grade.WRONG_DATA, "trial"),
        ({"trials": [DONE, trial(Ending.WRONG_DATA, ("n1", "n2"), blamed=("n2",))]}, Grade.GOOD, "trial"),
        ({"trials": [trial(Ending.WRONG_DATA, ("n1", "n2"), blamed=("n1",))]}, Grade.WRONG_DATA, "trial"),
        ({"trials": [trial(Ending.HANG, ("n1", "n2"))]}, Grade.UNTESTED, ""),
        ({"trials": [trial(Ending.CRASH, blamed=("n1",))]}, Grade.BAD_HARDWARE, "trial"),
        # one crash without a culprit is not yet broken hardware, nor is one that happens everywhere
        ({"trials": [trial(Ending.CRASH)], "ran_elsewhere": {"gemm"}}, Grade.COULD_NOT_RUN, "trial"),
        ({"trials": [trial(Ending.CRASH)] * 2, "ran_elsewhere": {"gemm"}}, Grade.BAD_HARDWARE, "trial"),
        ({"trials": [trial(Ending.CRASH)] * 2}, Grade.COULD_NOT_RUN, "trial"),
        ({"trials": [trial(Ending.CRASH), DONE]}, Grade.GOOD, "trial"),
        # a tool that is nowhere is a gap of the preflight; where only this node lacks it, it is the node's
        ({"trials": [DONE, trial(Ending.COULD_NOT_RUN, probe="peer")]}, Grade.GOOD, "trial"),
        (
            {"trials": [DONE, trial(Ending.COULD_NOT_RUN, probe="peer")], "ran_elsewhere": {"peer"}},
            Grade.COULD_NOT_RUN, "trial",
        ),
        ({"trials": [trial(Ending.COULD_NOT_RUN)]}, Grade.COULD_NOT_RUN, "trial"),
        ({"verdicts": [OK], "trials": [trial(Ending.COULD_NOT_RUN)]}, Grade.COULD_NOT_RUN, "trial"),
        (
            {"trials": [DONE], "suspects": [SUSPECT]},
            Grade.SLOW, "isolation",
        ),
        ({"trials": [DONE], "suspects": [UNLIKELY]}, Grade.GOOD, "trial"),
        ({"trials": [DONE], "suspects": [PATH]}, Grade.GOOD, "trial"),
        ({"away": "connection refused"}, Grade.UNTESTED, "reach"),
        ({"away": "lost", "verdicts": [verdict(Status.CRITICAL)]}, Grade.BAD_HARDWARE, "check"),
    ],
)  # fmt: skip
def test_the_grade_and_who_decides(told: dict[str, Any], grade: Grade, by: str) -> None:
    found = node_grade("n1", **told)
    assert (found.grade, found.decided_by) == (grade, by)
    assert found.reasons
    assert all(found.reasons)


def test_the_worst_reason_comes_first_and_the_others_follow() -> None:
    found = node_grade(
        "n1",
        verdicts=[verdict(Status.CRITICAL)],
        judged=[judged(Grade.SLOW)],
        trials=[trial(Ending.WRONG_DATA, detail="3 wrong elements")],
    )
    assert found.grade is Grade.WRONG_DATA
    assert found.reasons == (
        "gemm: wrong data: 3 wrong elements",
        "EccUncorrected: 2 errors",
        "gemm flop (bfloat16 8192) on gpu5: 560 TFLOP/s, 80% of 700 TFLOP/s, the median of 24 alike",
    )


def test_confidence_is_that_of_the_suspect() -> None:
    found = node_grade("n1", suspects=[Suspect("node", ("n1",), Grade.BAD_HARDWARE, 0.8, "it hung thrice")])
    assert (found.confidence, found.reasons) == (0.8, ("it hung thrice",))


def test_what_is_worth_a_word_changes_no_grade() -> None:
    found = node_grade(
        "n1",
        verdicts=[OK, verdict(Status.WARNING), verdict(Status.UNKNOWN, "mem_dimms")],
        trials=[trial(Ending.CRASH, detail="CUDA error"), DONE],
        judged=[judged(Grade.UNTESTED)],
        suspects=[UNLIKELY],
    )
    assert found.grade is Grade.GOOD
    assert found.reasons == (
        "2 checks looked and found nothing critical; passed: gemm; its speed could not be judged",
        "gemm: crashed: CUDA error; it passed in another run",
        "EccUncorrected: 2 errors",
        "1 checks could not look: mem_dimms",
        "perhaps slow (probability 30%): one slow group",
    )


def test_all_nodes_at_once_know_where_a_probe_ran() -> None:
    crash = trial(Ending.CRASH, ("n2",))
    results = grade_nodes(
        ("n1", "n2", "n3", "n4"),
        verdicts=[verdict(Status.OK, node="n1")],
        trials=[trial(Ending.DONE, ("n1",)), crash, crash],
        away={"n4": "no route to host"},
    )
    assert [(one.node, one.grade) for one in results] == [
        ("n1", Grade.GOOD), ("n2", Grade.BAD_HARDWARE), ("n3", Grade.UNTESTED), ("n4", Grade.UNTESTED),
    ]  # fmt: skip
    assert results[3].reasons == ("no route to host",)
