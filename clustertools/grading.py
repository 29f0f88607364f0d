"""What one node is worth, from all that was learnt of it: one grade, who decided it, and every reason. Pure.

    grade_nodes(("gpu-001", "gpu-002"), verdicts=..., judged=..., trials=..., suspects=...)

The grades are never mixed: a test that could not run makes no node bad, and a slow group makes no node slow
unless the search for the guilty one says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clustertools.measurement import Ending, Grade, Judged, Suspect, Trial
from clustertools.model import Finding, Status, Verdict
from clustertools.performance import name_of, told
from clustertools.preflight_report import WORST_FIRST, NodeResult

#: A suspect below this is told, and grades nobody: as likely as not it is somebody else.
LEAST_CONFIDENCE = 0.5
_BAD_ENDINGS = {Ending.CRASH: "crashed", Ending.HANG: "did not end"}


@dataclass(frozen=True, slots=True)
class _Vote:
    """One reason for one grade."""

    grade: Grade
    decided_by: str
    reason: str
    confidence: float = 1.0


class _Known(NamedTuple):
    """What was learnt of one node."""

    verdicts: list[Verdict]
    judged: list[Judged]
    trials: list[Trial]


def grade_nodes(
    nodes: Sequence[str],
    *,
    verdicts: Iterable[Verdict] = (),
    judged: Iterable[Judged] = (),
    trials: Iterable[Trial] = (),
    suspects: Iterable[Suspect] = (),
    away: Mapping[str, str] | None = None,
    required: Collection[str] = (),
) -> list[NodeResult]:
    """One result for each of `nodes`, in order. `away` says why a node could not be reached."""
    blamed = tuple(suspects)
    by_node = {node: _Known([], [], []) for node in nodes}
    ran: dict[str, set[str]] = {}
    for verdict in verdicts:
        if verdict.subject.node in by_node:
            by_node[verdict.subject.node].verdicts.append(verdict)
    for one in judged:
        for name in set(one.figure.nodes) & by_node.keys():
            by_node[name].judged.append(one)
    for trial in trials:
        for name in set(trial.nodes) & by_node.keys():
            by_node[name].trials.append(trial)
        if trial.ending is Ending.DONE:
            ran.setdefault(trial.probe, set()).update(trial.nodes)
    results = []
    for node, known in by_node.items():
        results.append(
            node_grade(
                node,
                verdicts=known.verdicts,
                judged=known.judged,
                trials=known.trials,
                suspects=blamed,
                away=(away or {}).get(node, ""),
                ran_elsewhere={probe for probe, there in ran.items() if len(there) > (node in there)},
                required=required,
            )
        )
    return results


def node_grade(
    node: str,
    *,
    verdicts: Sequence[Verdict] = (),
    judged: Sequence[Judged] = (),
    trials: Sequence[Trial] = (),
    suspects: Sequence[Suspect] = (),
    away: str = "",
    ran_elsewhere: Collection[str] = (),
    required: Collection[str] = (),
) -> NodeResult:
    """The grade of one node; the worst reason decides, the others follow it.

    `verdicts` are those of its passive checks, `judged` and `trials` those that it took part in.
    `ran_elsewhere` are the probes that ended well on other nodes: a probe that runs nowhere is broken itself,
    or not installed. `required` are checks and probes without which no node is good.

    Whose fault a group's result is, only a suspect says, or the trial itself where it names this node.
    """
    votes = [
        *_by_checks(verdicts, required),
        *_by_trials(node, trials, ran_elsewhere, required),
        *_by_figures(judged),
        *_by_suspects(node, suspects),
    ]
    if away:
        votes.append(_Vote(Grade.UNTESTED, "reach", away))
    looked = [
        verdict for verdict in verdicts if verdict.status in (Status.OK, Status.WARNING, Status.CRITICAL)
    ]
    done = [trial for trial in trials if trial.ending is Ending.DONE]
    if not votes and (looked or done):
        votes.append(_Vote(Grade.GOOD, _what_vouches(judged, done), _what_was_done(looked, done, judged)))
    elif not votes:
        votes.append(_Vote(Grade.UNTESTED, "", "nobody looked at it"))
    votes.sort(key=lambda vote: (WORST_FIRST.index(vote.grade), -vote.confidence))
    first = votes[0]
    in_passing = _in_passing(node, verdicts, trials, suspects)
    reasons = tuple(dict.fromkeys([*(vote.reason for vote in votes), *in_passing]))
    findings: tuple[Finding, ...] = tuple(finding for verdict in verdicts for finding in verdict.findings)
    return NodeResult(node, first.grade, reasons, first.decided_by, first.confidence, findings, tuple(judged))


def _by_checks(verdicts: Sequence[Verdict], required: Collection[str]) -> Iterable[_Vote]:
    for verdict in verdicts:
        for finding in verdict.findings:
            if finding.status is Status.CRITICAL:
                yield _Vote(Grade.BAD_HARDWARE, "check", f"{finding.code}: {finding.summary}")
        if verdict.status is Status.CRITICAL and not verdict.findings:
            yield _Vote(Grade.BAD_HARDWARE, "check", f"{verdict.check}: {verdict.detail}")
        if verdict.check in required and verdict.status is Status.UNKNOWN:
            yield _Vote(
                Grade.COULD_NOT_RUN, "check", f"{verdict.check} could not look: {_why_blind(verdict)}"
            )
    blind = [verdict for verdict in verdicts if verdict.status is Status.UNKNOWN]
    if blind and all(verdict.status in (Status.UNKNOWN, Status.SKIPPED) for verdict in verdicts):
        yield _Vote(Grade.COULD_NOT_RUN, "check", f"no check could look: {_why_blind(blind[0])}")


def _why_blind(verdict: Verdict) -> str:
    lines = (verdict.blind or verdict.detail).strip().splitlines()
    return lines[0] if lines else "it did not say why"


def _by_trials(
    node: str, trials: Sequence[Trial], ran_elsewhere: Collection[str], required: Collection[str]
) -> Iterable[_Vote]:
    for probe in dict.fromkeys(trial.probe for trial in trials):
        mine = [trial for trial in trials if trial.probe == probe]
        for trial in mine:
            alone = trial.nodes == (node,)
            if trial.ending is Ending.WRONG_DATA and (alone or node in trial.blamed):
                yield _Vote(Grade.WRONG_DATA, "trial", _told_trial(trial, "wrong data"))
            elif trial.ending in _BAD_ENDINGS and node in trial.blamed and (alone or len(trial.blamed) == 1):
                yield _Vote(Grade.BAD_HARDWARE, "trial", _told_trial(trial, _BAD_ENDINGS[trial.ending]))
        if any(trial.ending is Ending.DONE for trial in mine):
            continue
        last = [trial for trial in mine if trial.nodes == (node,)]
        if not last:
            continue
        ending = last[-1].ending
        if ending in _BAD_ENDINGS and not last[-1].blamed:
            # what ends well on others and twice not here is this node; what ends well nowhere is no node
            again = sum(trial.ending in _BAD_ENDINGS for trial in last) > 1
            grade = Grade.BAD_HARDWARE if probe in ran_elsewhere and again else Grade.COULD_NOT_RUN
            yield _Vote(grade, "trial", _told_trial(last[-1], _BAD_ENDINGS[ending]))
        elif ending is Ending.COULD_NOT_RUN and (probe in ran_elsewhere or probe in required):
            yield _Vote(Grade.COULD_NOT_RUN, "trial", _told_trial(last[-1], "could not run"))
    if trials and all(trial.ending is Ending.COULD_NOT_RUN for trial in trials):
        yield _Vote(Grade.COULD_NOT_RUN, "trial", _told_trial(trials[0], "could not run"))


def _told_trial(trial: Trial, how: str) -> str:
    return f"{trial.probe}: {how}" + (f": {trial.detail}" if trial.detail else "")


def _by_figures(judged: Sequence[Judged]) -> Iterable[_Vote]:
    for one in judged:
        if len(one.figure.nodes) > 1 or one.grade in (Grade.GOOD, Grade.UNTESTED):
            continue
        part = f" on {one.figure.part}" if one.figure.part else ""
        what = f"{name_of(one.figure)}{part}: {told(one.figure.value, one.figure)}"
        if one.grade is Grade.SLOW:
            yield _Vote(Grade.SLOW, one.decided_by, f"{what}, {one.ratio:.0%} of {one.against}")
        else:
            yield _Vote(one.grade, one.decided_by, f"{what}, {one.against}")


def _by_suspects(node: str, suspects: Sequence[Suspect]) -> Iterable[_Vote]:
    for suspect in suspects:
        if suspect.kind == "node" and node in suspect.names and suspect.confidence >= LEAST_CONFIDENCE:
            yield _Vote(suspect.grade, "isolation", suspect.because, suspect.confidence)


def _in_passing(
    node: str, verdicts: Sequence[Verdict], trials: Sequence[Trial], suspects: Sequence[Suspect]
) -> Iterable[str]:
    """What is worth a word and changes no grade."""
    passed = {trial.probe for trial in trials if trial.ending is Ending.DONE}
    for trial in trials:
        if trial.ending in _BAD_ENDINGS and trial.nodes == (node,) and trial.probe in passed:
            yield f"{_told_trial(trial, _BAD_ENDINGS[trial.ending])}; it passed in another run"
    warned = [f for verdict in verdicts for f in verdict.findings if f.status is Status.WARNING]
    yield from (f"{finding.code}: {finding.summary}" for finding in warned)
    blind = [verdict for verdict in verdicts if verdict.status is Status.UNKNOWN]
    if blind:
        names = ", ".join(verdict.check for verdict in blind[:5]) + (" ..." if len(blind) > 5 else "")
        yield f"{len(blind)} checks could not look: {names}"
    for suspect in suspects:
        if suspect.kind == "node" and node in suspect.names and suspect.confidence < LEAST_CONFIDENCE:
            yield f"perhaps {suspect.grade.value} (probability {suspect.confidence:.0%}): {suspect.because}"


def _what_vouches(judged: Sequence[Judged], done: Sequence[Trial]) -> str:
    deciders = [one.decided_by for one in judged if one.grade is Grade.GOOD and one.decided_by]
    if deciders:
        return max(sorted(set(deciders)), key=deciders.count)
    return "trial" if done else "check"


def _what_was_done(looked: Sequence[Verdict], done: Sequence[Trial], judged: Sequence[Judged]) -> str:
    probes = ", ".join(dict.fromkeys(trial.probe for trial in done))
    parts = [f"{len(looked)} checks looked and found nothing critical"] if looked else []
    parts.append(f"passed: {probes}" if probes else "no active test ran")
    if done and judged and all(one.grade is Grade.UNTESTED for one in judged):
        parts.append("its speed could not be judged")
    return "; ".join(parts)
