"""What is known of each node so far, while a preflight runs: kept here, told once as the report's results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from clustertools.fleet import Answer, Fate
from clustertools.grading import grade_nodes
from clustertools.measurement import Ending, Grade, Judged, Suspect, Trial
from clustertools.model import Status, Verdict
from clustertools.preflight_report import Case, NodeResult, Remark, Stage, Untested

#: How an ending is shown where the trial was of one node alone; whose fault it is, grading says.
_CASES = {
    Ending.DONE: Grade.GOOD,
    Ending.WRONG_DATA: Grade.WRONG_DATA,
    Ending.CRASH: Grade.BAD_HARDWARE,
    Ending.HANG: Grade.BAD_HARDWARE,
    Ending.COULD_NOT_RUN: Grade.COULD_NOT_RUN,
}


@dataclass
class NodeRecord:
    """One node: what it said, what was tried on it, and what keeps it from being good."""

    node: str
    spare: bool = False
    leaf: str = ""
    fate: str = Fate.COMPLETED.value
    away_reason: str = ""
    #: Why it is not good, although nothing bad is known of it.
    doubts: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def away(self, answer: Answer) -> None:
        """It is not there any more, or never was; whatever was found of it before still counts."""
        if answer.fate is Fate.COMPLETED:
            self.doubts.append(answer.reason)
            return
        self.fate = answer.fate.value
        self.away_reason = f"{answer.fate.value}: {answer.reason}" if answer.reason else answer.fate.value

    def saw(self, verdict: Verdict, stage: str) -> None:
        """One passive check's verdict."""
        self.verdicts.append(verdict)
        grade, detail = Grade.GOOD, ""
        if verdict.status is Status.CRITICAL:
            grade = Grade.BAD_HARDWARE
            detail = next((f.summary for f in verdict.findings if f.status is Status.CRITICAL), "")
        elif verdict.status is Status.UNKNOWN:
            grade, detail = Grade.COULD_NOT_RUN, verdict.blind
        elif verdict.status is Status.SKIPPED:
            grade, detail = Grade.UNTESTED, verdict.detail
        self.cases.append(Case(stage, verdict.check, grade, detail, verdict.elapsed_seconds))

    def tried(self, trial: Trial, stage: str) -> None:
        """One probe's trial on this node alone."""
        self.trials.append(trial)
        self.cases.append(Case(stage, trial.probe, _CASES[trial.ending], trial.detail, trial.elapsed_seconds))


@dataclass
class Record:
    """All nodes of one preflight, its stages, what was left out and what is to be said of the cluster."""

    nodes: dict[str, NodeRecord]
    suspects: Sequence[Suspect] = ()
    stages: list[Stage] = field(default_factory=list)
    untested: list[Untested] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def __getitem__(self, node: str) -> NodeRecord:
        return self.nodes[node]

    def results(self) -> tuple[NodeResult, ...]:
        """What is thought of every node by now. A node that one check or probe could not look at is not good:
        who must start without that has to leave it out."""
        every = self.nodes.values()
        graded = grade_nodes(
            tuple(self.nodes),
            verdicts=[verdict for n in every for verdict in n.verdicts],
            judged=[judged for n in every for judged in n.judged],
            trials=[trial for n in every for trial in n.trials],
            suspects=self.suspects,
            away={n.node: n.away_reason for n in every if n.away_reason},
            required={
                *(v.check for n in every for v in n.verdicts),
                *(t.probe for n in every for t in n.trials),
            },
        )
        return tuple(_whole(result, self.nodes[result.node]) for result in graded)

    def fit(self, among: Iterable[str]) -> tuple[str, ...]:
        """Those that nothing speaks against so far and that are there, in their order."""
        fit = {
            r.node for r in self.results()
            if r.fate == Fate.COMPLETED.value
            and (r.grade is Grade.GOOD or (r.grade is Grade.UNTESTED and not self.nodes[r.node].doubts))
        }  # fmt: skip
        return tuple(node for node in among if node in fit)

    @contextmanager
    def stage(self, name: str, planned: int) -> Iterator[StageCount]:
        """Time one stage; what is counted in it stands in the report, also when it is broken off."""
        count = StageCount()
        try:
            yield count
        finally:
            done = min(count.done, planned)
            self.stages.append(Stage(name, planned, done, count.elapsed_seconds, count.note))


@dataclass
class StageCount:
    """How far one stage came."""

    done: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.began


def _whole(result: NodeResult, record: NodeRecord) -> NodeResult:
    whole = replace(result, cases=tuple(record.cases), spare=record.spare, fate=record.fate, leaf=record.leaf)
    if not record.doubts:
        return whole
    reasons = tuple(dict.fromkeys((*record.doubts, *whole.reasons)))
    if whole.grade is Grade.GOOD:
        return replace(whole, grade=Grade.COULD_NOT_RUN, reasons=reasons, decided_by="")
    return replace(whole, reasons=reasons)
