"""What is known of each node so far, while a preflight runs: kept here, told once as the report's results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clustertools.fleet import Answer, Fate
from clustertools.measurement import Ending, Grade, Judged, Trial
from clustertools.model import Finding, Status, Verdict
from clustertools.preflight_report import WORST_FIRST, Case, NodeResult, Remark, Stage, Untested

#: How an ending is to be graded, where the trial was of one node alone.
GRADES = {
    Ending.DONE: Grade.GOOD,
    Ending.WRONG_DATA: Grade.WRONG_DATA,
    Ending.CRASH: Grade.BAD_HARDWARE,
    Ending.HANG: Grade.BAD_HARDWARE,
    Ending.COULD_NOT_RUN: Grade.COULD_NOT_RUN,
}


@dataclass
class NodeRecord:
    """One node: every reason to think something of it, and what was tried on it."""

    node: str
    spare: bool = False
    leaf: str = ""
    fate: str = Fate.COMPLETED.value
    grounds: list[tuple[Grade, str, str, float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    #: What this node has passed of what is asked for; without any of it, it is untested.
    passed: set[str] = field(default_factory=set)

    def think(self, grade: Grade, reason: str, decided_by: str, confidence: float = 1.0) -> None:
        if (grade, reason) not in [(g, r) for g, r, _, _ in self.grounds]:
            self.grounds.append((grade, reason, decided_by, confidence))

    @property
    def grade(self) -> Grade:
        grades = [g for g, _, _, _ in self.grounds]
        return min(grades, key=WORST_FIRST.index) if grades else Grade.GOOD if self.passed else Grade.UNTESTED

    def away(self, answer: Answer) -> None:
        """It is not there any more, or never was; whatever was found of it before still counts."""
        self.fate = answer.fate.value
        reason = f"{answer.fate.value}: {answer.reason}" if answer.reason else answer.fate.value
        self.think(Grade.COULD_NOT_RUN, reason, "transport")

    def saw(self, verdict: Verdict, stage: str) -> None:
        """One passive check's verdict. A CRITICAL finding is bad hardware, blindness is no health."""
        self.findings += [f for f in verdict.findings if f.status >= Status.WARNING]
        critical = [f for f in verdict.findings if f.status is Status.CRITICAL]
        for finding in critical:
            part = f"{finding.subject.part}: " if finding.subject.part else ""
            self.think(
                Grade.BAD_HARDWARE, f"{finding.code} {part}{finding.summary}", f"check {verdict.check}"
            )
        grade = Grade.BAD_HARDWARE if critical else Grade.GOOD
        detail = critical[0].summary if critical else ""
        if verdict.status is Status.UNKNOWN or verdict.blind:
            detail = detail or verdict.blind or "could not look"
            self.think(
                Grade.COULD_NOT_RUN, f"{verdict.check} could not look: {detail}", f"check {verdict.check}"
            )
            grade = grade if critical else Grade.COULD_NOT_RUN
        elif verdict.status is Status.SKIPPED:
            grade = Grade.UNTESTED
        self.cases.append(Case(stage, verdict.check, grade, detail, verdict.elapsed_seconds))

    def tried(self, trial: Trial, stage: str) -> None:
        """One probe's trial on this node alone."""
        grade = GRADES[trial.ending]
        self.cases.append(Case(stage, trial.probe, grade, trial.detail, trial.elapsed_seconds))
        if grade is Grade.GOOD:
            self.passed.add(trial.probe)
        else:
            how = {Ending.CRASH: "crashed", Ending.HANG: "hung"}.get(trial.ending, trial.ending.value)
            self.think(grade, f"{trial.probe} {how}: {trial.detail}".rstrip(": "), f"probe {trial.probe}")

    def result(self) -> NodeResult:
        grade = self.grade
        worst_first = sorted(self.grounds, key=lambda ground: WORST_FIRST.index(ground[0]))
        deciding = next((g for g in worst_first if g[0] is grade), None)
        return NodeResult(
            self.node, grade, tuple(reason for _, reason, _, _ in worst_first),
            deciding[2] if deciding else "", deciding[3] if deciding else 1.0, tuple(self.findings),
            tuple(self.judged), tuple(self.cases), self.spare, self.fate, self.leaf,
        )  # fmt: skip


@dataclass
class Record:
    """All nodes of one preflight, its stages, what was left out and what is to be said of the cluster."""

    nodes: dict[str, NodeRecord]
    stages: list[Stage] = field(default_factory=list)
    untested: list[Untested] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def __getitem__(self, node: str) -> NodeRecord:
        return self.nodes[node]

    def fit(self, among: Iterable[str]) -> tuple[str, ...]:
        """Those that nothing speaks against so far and that are there, in their order."""
        return tuple(
            n for n in among
            if self.nodes[n].fate == Fate.COMPLETED.value
            and self.nodes[n].grade in (Grade.GOOD, Grade.UNTESTED)
        )  # fmt: skip

    @contextmanager
    def stage(self, name: str, planned: int) -> Iterator[StageCount]:
        """Time one stage; what is counted in it stands in the report, also when it is broken off."""
        count = StageCount()
        try:
            yield count
        finally:
            self.stages.append(
                Stage(name, planned, min(count.done, planned), count.elapsed_seconds, count.note)
            )


@dataclass
class StageCount:
    """How far one stage came."""

    done: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.began
