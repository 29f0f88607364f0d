"""A preflight for a terminal: the answer first, then each distinct finding once, with its nodes folded. Pure.

Names, reasons and evidence come from nodes and from the user: each goes through `plain`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from clustertools.measurement import Grade, Suspect
from clustertools.model import Finding, Status
from clustertools.preflight_report import (
    WORST_FIRST,
    Decision,
    NodeResult,
    Remark,
    Report,
    Stage,
    Untested,
    Verdict,
    folded,
    number,
    results,
    state,
    suspect_ends,
)
from clustertools.render.formats import paint
from clustertools.render.plot import text_heat_map
from clustertools.text import in_words, plain

#: More distinct answers of one kind than this are told as one, with an example.
ANSWERS_SHOWN = 12
EVIDENCE_SHOWN = 5
_INDENT = 14

# "41.2", "0x1f", "3b": what differs between two nodes that say the same
_NUMBER = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*(?:\.\d+)?", re.IGNORECASE)

_STATUS = {
    Grade.GOOD: Status.OK,
    Grade.SLOW: Status.WARNING,
    Grade.WRONG_DATA: Status.CRITICAL,
    Grade.BAD_HARDWARE: Status.CRITICAL,
    Grade.COULD_NOT_RUN: Status.UNKNOWN,
    Grade.UNTESTED: Status.UNKNOWN,
}


@dataclass
class Answer:
    """What several nodes have in common: the same word and, but for numbers, the same reasons."""

    word: str
    status: Status
    example: NodeResult
    reasons: tuple[str, ...]
    nodes: list[str] = field(default_factory=list)
    is_same: bool = True


def answers(report: Report) -> list[Answer]:
    """The distinct answers about nodes, the worst first, within a kind the one of most nodes first."""
    found: dict[object, Answer] = {}
    for name, result in results(report).items():
        word = state(result)
        is_good = word == Grade.GOOD.value
        status = Status.UNKNOWN if not is_good and result.grade is Grade.GOOD else _STATUS[result.grade]
        reasons = () if is_good else reasons_of(result)
        alike = (word, result.decided_by, result.spare, tuple(_NUMBER.sub("#", r) for r in reasons))
        answer = found.setdefault(alike, Answer(word, status, result, reasons))
        answer.nodes.append(name)
        answer.is_same = answer.is_same and answer.reasons == reasons
    order = {grade: place for place, grade in enumerate(WORST_FIRST)}
    last = len(order)

    def place(answer: Answer) -> tuple[int, int]:
        grade = answer.example.grade
        return (last if answer.status is Status.OK else order[grade], -len(answer.nodes))

    return sorted(found.values(), key=place)


def reasons_of(result: NodeResult) -> tuple[str, ...]:
    """Why a node has its grade, in words; findings that its reasons do not tell already come after."""
    reasons = [plain(reason) for reason in result.reasons]
    for finding in result.findings:
        if finding.status >= Status.WARNING:
            said = _finding_in_words(finding)
            if not any(plain(finding.summary) in reason for reason in reasons):
                reasons.append(said)
    return tuple(reasons)


def _finding_in_words(finding: Finding) -> str:
    part = f"{finding.subject.part}: " if finding.subject.part else ""
    return plain(f"{finding.code} {part}{finding.summary}")


def text(report: Report, *, color: bool = False, width: int = 80, verbose: int = 0) -> str:
    """The whole report for a terminal of `width` columns; `verbose` adds evidence and pairs."""
    verdict = report.verdict
    lines = [*_headline(verdict, color, width), *_counts(report, verdict, width)]
    lines += [line for warning in verdict.warnings for line in wrap(f"! {warning}", "  ", width)]
    lines += _node_lines(report, color, width, verbose)
    lines += [line for s in report.suspects if s.kind != "node" for line in _suspect_lines(s, color, width)]
    lines += _warned_lines(report, color, width)
    for remark in report.remarks:
        lines += _remark_lines(remark, color, width)
    if verbose and (cells := text_heat_map(*pair_ratios(report), width=width - 2)):
        lines.append("pairs, in tenths of what was expected (#: all of it, .: not measured)")
        lines += [f"  {line}" for line in cells]
    if report.untested:
        lines.append("not tested")
        lines += [line for untested in untested_alike(report) for line in _untested_lines(untested, width)]
    if report.stages:
        lines += wrap("; ".join(stage_in_words(stage) for stage in report.stages), "stages: ", width)
    return "\n".join(lines)


def _headline(verdict: Verdict, color: bool, width: int) -> Iterator[str]:
    word = "NO GO" if verdict.decision is Decision.NO_GO else "GO"
    first, *more = wrap(verdict.sentence, "", width, hang="  ")
    yield first.replace(word, paint(word, verdict.status, color), 1)
    yield from more


def _counts(report: Report, verdict: Verdict, width: int) -> Iterator[str]:
    known = results(report)
    spares = sum(r.spare and n not in report.asked for n, r in known.items())
    nodes = number(len(set(report.asked)), "node") + (f" and {number(spares, 'spare')}" if spares else "")
    kinds = (("good", verdict.good_nodes), ("bad", verdict.bad_nodes), ("unknown", verdict.unknown_nodes))
    counts = ", ".join(f"{len(names):,} {kind}" for kind, names in kinds)
    took = in_words(report.ended - report.started)
    budget = f" of {in_words(report.budget_seconds)}" if report.budget_seconds else ""
    about = [f"job {plain(report.job, 100)}"] if report.job else []
    about += [plain(word, 100) for word in (report.cluster, report.transport) if word]
    yield from wrap(", ".join([f"{nodes}: {counts}; took {took}{budget}", *about]), "  ", width)


def _node_lines(report: Report, color: bool, width: int, verbose: int) -> Iterator[str]:
    by_word: dict[str, list[Answer]] = {}
    for answer in answers(report):
        by_word.setdefault(answer.word, []).append(answer)
    for alike in by_word.values():
        for answer in alike[:ANSWERS_SHOWN]:
            yield from _answer_lines(answer, color, width, verbose)
        rest = alike[ANSWERS_SHOWN:]
        if rest:
            names = [name for answer in rest for name in answer.nodes]
            said = f"{folded(names)} for {len(rest)} more reasons; the report has them all"
            yield from _marked(rest[0].word, rest[0].status, said, color, width)


def _answer_lines(answer: Answer, color: bool, width: int, verbose: int) -> Iterator[str]:
    result = answer.example
    many = number(len(answer.nodes), "spare" if result.spare else "node")
    count = f" ({many})" if len(answer.nodes) > 1 else " (spare)" if result.spare else ""
    yield from _marked(answer.word, answer.status, folded(answer.nodes) + count, color, width)
    example = "" if answer.is_same else f"for example {plain(result.node, 100)}: "
    for reason in answer.reasons:
        yield from wrap(example + reason, " " * _INDENT, width)
        example = ""
    how = [f"decided by {plain(result.decided_by, 100)}"] if result.decided_by else []
    how += [f"confidence {result.confidence:.2f}"] if result.confidence < 1 else []
    if how and answer.status is not Status.OK:
        yield from wrap(f"[{', '.join(how)}]", " " * _INDENT, width)
    if verbose and answer.status is not Status.OK:
        evidence = [line for f in result.findings for line in f.evidence]
        # as it was written: a line of a log is compared with the log
        yield from (f"{' ' * _INDENT}| {plain(line)}" for line in evidence[: EVIDENCE_SHOWN * verbose])


def _marked(word: str, status: Status, said: str, color: bool, width: int) -> Iterator[str]:
    """A line behind its word, which stands in a column of its own."""
    first, *rest = wrap(said, " " * _INDENT, width)
    if len(word) < _INDENT:
        yield paint(word, status, color) + first[len(word) :]
    else:
        yield from (paint(word, status, color), first)
    yield from rest


def _suspect_lines(suspect: Suspect, color: bool, width: int) -> Iterator[str]:
    said = f"{plain(suspect.kind, 40)} {' <-> '.join(suspect_ends(suspect))}"
    yield from _marked(suspect.grade.value, _STATUS[suspect.grade], said, color, width)
    why = f"{plain(suspect.because)} [confidence {suspect.confidence:.2f}]".strip()
    yield from wrap(why, " " * _INDENT, width)


def warned(report: Report) -> list[tuple[str, list[str]]]:
    """Findings on nodes that are good all the same: words (but for numbers those of all), and the nodes."""
    groups: dict[str, dict[str, str]] = {}
    for name, result in results(report).items():
        for finding in result.findings if state(result) == Grade.GOOD.value else ():
            if finding.status >= Status.WARNING:
                said = _finding_in_words(finding)
                groups.setdefault(_NUMBER.sub("#", said), {}).setdefault(name, said)
    found = []
    for by_name in groups.values():
        name, said = next(iter(by_name.items()))
        example = f"for example {plain(name, 100)}: " if len(set(by_name.values())) > 1 else ""
        found.append((example + said, list(by_name)))
    return found


def _warned_lines(report: Report, color: bool, width: int) -> Iterator[str]:
    for said, names in warned(report):
        yield from _marked("warning", Status.WARNING, folded(names), color, width)
        yield from wrap(said, " " * _INDENT, width)


def _remark_lines(remark: Remark, color: bool, width: int) -> Iterator[str]:
    nodes = f": {folded(remark.nodes)}" if remark.nodes else ""
    word = "remark" if remark.status < Status.WARNING else remark.status.name.lower()
    yield from _marked(word, remark.status, plain(remark.text) + nodes, color, width)
    for line in remark.evidence[:EVIDENCE_SHOWN]:
        yield f"{' ' * _INDENT}| {plain(line)}"


def untested_alike(report: Report) -> list[Untested]:
    """What was not tested, those with the same reason and nodes as one."""
    alike: dict[tuple[str, tuple[str, ...], bool], list[str]] = {}
    for untested in report.untested:
        alike.setdefault((untested.why, untested.nodes, untested.required), []).append(plain(untested.what))
    return [Untested(", ".join(names), *why) for why, names in alike.items()]


def _untested_lines(untested: Untested, width: int) -> Iterator[str]:
    nodes = f" on {folded(untested.nodes)}" if untested.nodes else ""
    must = " (required)" if untested.required else ""
    yield from wrap(f"{untested.what}{nodes}{must}: {plain(untested.why)}", "  ", width)


def pair_ratios(report: Report) -> tuple[list[str], dict[tuple[str, str], float], dict[str, str]]:
    """For a heat map: the nodes, those of one leaf switch together so that a slow one shows as a band; the
    lowest ratio of each pair; each node's leaf switch, where it is known."""
    by_name = results(report)
    ratios: dict[tuple[str, str], float] = {}
    for judged in report.pair_figures:
        a, b = sorted(set(judged.figure.nodes))
        ratios[a, b] = min(judged.ratio, ratios.get((a, b), judged.ratio))
    tested = {name for pair in ratios for name in pair}
    leaves = {name: result.leaf for name, result in by_name.items() if result.leaf}
    order = {leaf: place for place, leaf in enumerate(dict.fromkeys(leaves.values()))}
    names = [name for name in (*by_name, *sorted(tested - set(by_name))) if name in tested]
    return sorted(names, key=lambda n: order.get(leaves.get(n, ""), len(order))), ratios, leaves


def stage_in_words(stage: Stage) -> str:
    """`pairs 512 of 512, 41 s`"""
    note = f" ({plain(stage.note)})" if stage.note else ""
    done = f"{stage.done:,} of {stage.planned:,}, {in_words(stage.elapsed_seconds)}"
    return f"{plain(stage.name, 60)} {done}{note}"


def progress(stage: Stage, place: int, stages: int) -> str:
    """One line while it runs: `stage 2 of 5, checks: 120 of 512, 12 s, about 39 s left`."""
    left = ""
    if 0 < stage.done < stage.planned:
        ahead = stage.elapsed_seconds * (stage.planned - stage.done) / stage.done
        left = f", about {in_words(ahead)} left"
    note = f" ({plain(stage.note)})" if stage.note else ""
    done = f"{stage.done:,} of {stage.planned:,}, {in_words(stage.elapsed_seconds)}{left}"
    return f"stage {place} of {stages}, {plain(stage.name, 60)}: {done}{note}"


def wrap(said: str, indent: str, width: int, hang: str | None = None) -> list[str]:
    """`said` behind `indent` in lines of at most `width` columns, later ones behind `hang` (as many blanks).

    A folded node set has no blanks: one that is too long goes on after a comma.
    """
    hang = " " * len(indent) if hang is None else hang
    room = max(20, width - max(len(indent), len(hang)))
    lines, line = [], ""
    for word in said.split(" "):
        joint = " " if line else ""
        for piece in _pieces(word, room):
            if line and len(line) + len(joint) + len(piece) > room:
                lines.append(line)
                line, joint = "", ""
            line += joint + piece
            joint = ""
    return [(hang if number else indent) + each for number, each in enumerate([*lines, line])]


def _pieces(word: str, room: int) -> Sequence[str]:
    return [word] if len(word) <= room else _cut(re.split(r"(?<=,)", word), room)


def _cut(pieces: Iterable[str], room: int) -> list[str]:
    """Pieces that no comma makes short enough, cut where they must be."""
    return [piece[at : at + room] for piece in pieces for at in range(0, len(piece), room)]
