"""A preflight as JUnit XML, so that a CI system shows it like a test run. Pure.

One suite for the cluster (the verdict, the stages, guilty paths, what was not tested) and one for each node
(its grade, and a case for each check and probe). Bad is a failure, unknown an error, untested skipped; what
passes with a warning says so in system-out.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from clustertools.measurement import Grade
from clustertools.model import Status
from clustertools.preflight_report import (
    BAD,
    NodeResult,
    Report,
    Stage,
    folded,
    results,
    state,
    suspect_ends,
    suspect_in_words,
)
from clustertools.render.formats import xml_text
from clustertools.render.preflight_text import reasons_of, stage_in_words
from clustertools.text import plain, plain_block


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One test case: `tag` is failure, error, skipped or "" for one that passed."""

    name: str
    tag: str = ""
    kind: str = ""
    message: str = ""
    long: str = ""
    elapsed_seconds: float = 0.0


def junit(report: Report) -> str:
    """The whole document."""
    from xml.etree import ElementTree as Xml

    root = Xml.Element("testsuites", name="clustertools preflight")
    started = datetime.datetime.fromtimestamp(report.started, datetime.timezone.utc)
    suites = [("preflight", "", list(_of_the_cluster(report)))]
    suites += [(name, name, list(_of_a_node(result))) for name, result in results(report).items()]
    for title, host, cases in suites:
        counts = Counter(case.tag for case in cases)
        suite = Xml.SubElement(
            root, "testsuite", name=_line(title), hostname=_line(host), tests=str(len(cases)),
            failures=str(counts["failure"]), errors=str(counts["error"]), skipped=str(counts["skipped"]),
            timestamp=started.strftime("%Y-%m-%dT%H:%M:%S"),
            time=f"{sum(case.elapsed_seconds for case in cases):.3f}",
        )  # fmt: skip
        for case in cases:
            element = Xml.SubElement(
                suite, "testcase", name=_line(case.name), classname=_line(title),
                time=f"{case.elapsed_seconds:.3f}",
            )  # fmt: skip
            long = xml_text(plain_block(case.long))
            if case.tag:
                told = Xml.SubElement(element, case.tag, message=_line(case.message), type=_line(case.kind))
                told.text = long or None
            elif long:
                Xml.SubElement(element, "system-out").text = long
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode")


def _line(said: str) -> str:
    return xml_text(plain(said, 1000))


def _of_the_cluster(report: Report) -> Iterable[_Outcome]:
    verdict = report.verdict
    tag = {Status.CRITICAL: "failure", Status.UNKNOWN: "error"}.get(verdict.status, "")
    said = "\n".join([verdict.sentence, *verdict.warnings])
    yield _Outcome("verdict", tag, verdict.decision.value, verdict.sentence, said)
    for stage in report.stages:
        yield _of_a_stage(stage)
    for suspect in report.suspects:
        if suspect.kind != "node":
            name = f"{suspect.kind} {' - '.join(suspect_ends(suspect))}"
            message, kind = f"{suspect_in_words(suspect)}: {suspect.because}", suspect.grade.value
            yield _Outcome(name, _tag(suspect.grade), kind, message)
    for untested in report.untested:
        tag = "error" if untested.required else "skipped"
        nodes = f" (on {folded(untested.nodes)})" if untested.nodes else ""
        yield _Outcome(untested.what, tag, Grade.UNTESTED.value, f"{untested.why}{nodes}")
    for remark in report.remarks:
        nodes = f": {folded(remark.nodes)}" if remark.nodes else ""
        yield _Outcome("remark", "", "", "", "\n".join([remark.text + nodes, *remark.evidence]))


def _of_a_stage(stage: Stage) -> _Outcome:
    tag = "skipped" if stage.done < stage.planned else ""
    said = stage_in_words(stage)
    return _Outcome(f"stage {stage.name}", tag, "incomplete", said, said, stage.elapsed_seconds)


def _of_a_node(result: NodeResult) -> Iterable[_Outcome]:
    word, reasons = state(result), reasons_of(result)
    is_away = result.grade not in BAD and result.fate != "completed"
    evidence = [line for finding in result.findings for line in finding.evidence]
    long = "\n".join([*reasons, *evidence])
    yield _Outcome(
        "grade", "error" if is_away else _tag(result.grade), word, "; ".join(reasons) or word, long
    )
    for case in result.cases:
        tag, name = _tag(case.grade), f"{case.stage}: {case.name}"
        yield _Outcome(
            name, tag, case.grade.value, case.detail or case.grade.value, case.detail, case.elapsed_seconds
        )


def _tag(grade: Grade) -> str:
    if grade in BAD:
        return "failure"
    return {Grade.COULD_NOT_RUN: "error", Grade.UNTESTED: "skipped"}.get(grade, "")
