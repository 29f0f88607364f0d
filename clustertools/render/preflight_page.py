"""A preflight as one HTML file: no script, nothing from elsewhere, light and dark, desk and phone.

Everything that is not ours is printable text (`plain`) before the template escapes it, and the page forbids
scripts to the browser besides.
"""

from __future__ import annotations

import datetime
import html
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from clustertools.measurement import Grade, Judged
from clustertools.model import Status
from clustertools.preflight_report import (
    BAD,
    WORST_FIRST,
    Decision,
    NodeResult,
    Report,
    folded,
    number,
    results,
    state,
    suspect_ends,
)
from clustertools.render import plot
from clustertools.render.preflight_text import pair_ratios, reasons_of, stage_in_words, untested_alike, warned
from clustertools.text import in_words, plain

#: More single nodes than this in the table would bury the rest of the page.
ROWS_SHOWN = 200
#: Pictures of one kind: those that somebody deviates in come first.
PICTURES_SHOWN = 12
BARS_SHOWN = 12
#: A folded set of many nodes is long and must stay whole.
_TEXT_CHARACTERS = 20_000


def page(report: Report) -> str:
    """The whole HTML document."""
    import jinja2  # head side, and only for a page
    import markupsafe

    def printable(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
            return plain(value, _TEXT_CHARACTERS)
        return value

    environment = jinja2.Environment(
        autoescape=True, finalize=printable, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    source = resources.files(__package__).joinpath("preflight.html").read_text(encoding="utf-8")
    template = environment.from_string(source)
    verdict = report.verdict
    by_name = results(report)
    rows = _rows(by_name)
    spares = [n for n, r in by_name.items() if r.spare and n not in report.asked]
    return template.render(
        report=report,
        verdict=verdict,
        tone=_TONES[verdict.status],
        answer="NO GO" if verdict.decision is Decision.NO_GO else "GO",
        sentence=_after_the_answer(verdict.sentence),
        when=_clock(report.started),
        took=in_words(report.ended - report.started),
        budget=in_words(report.budget_seconds) if report.budget_seconds else "",
        asked=number(len(set(report.asked)), "node"),
        spares=number(len(spares), "spare") if spares else "",
        rows=rows[:ROWS_SHOWN],
        more_rows=max(0, len(rows) - ROWS_SHOWN),
        good=verdict.good_nodes,
        warned=warned(report),
        tone_of=lambda grade: "good" if grade is Grade.GOOD else "bad" if grade in BAD else "unknown",
        suspects=[(s, " and ".join(suspect_ends(s))) for s in report.suspects if s.kind != "node"],
        stages=[stage_in_words(stage) for stage in report.stages],
        pictures=[(title, markupsafe.Markup(svg)) for title, svg in _pictures(report, by_name)],  # noqa: S704
        style=markupsafe.Markup(plot.STYLE),  # noqa: S704  # ours
        untested=untested_alike(report),
        folded=lambda names: markupsafe.Markup(_breakable(folded(names))),  # noqa: S704  # escaped there
        command=shlex.join(report.command),
        repeats=[(repeat.what, shlex.join(repeat.argv)) for repeat in report.repeats],
    )  # fmt: skip


_TONES = {
    Status.OK: "good",
    Status.WARNING: "warn",
    Status.UNKNOWN: "unknown",
    Status.CRITICAL: "bad",
}


def _after_the_answer(sentence: str) -> str:
    """The sentence without its `GO` or `NO GO`, which stands above it."""
    for start in ("NO GO: ", "GO: ", "GO "):
        if sentence.startswith(start):
            return sentence[len(start) :]
    return sentence


def _breakable(names: str) -> str:
    """Folded names as HTML that a browser breaks after commas, not inside 0233-0239."""
    pieces = re.split(r"(?<=,)", plain(names, _TEXT_CHARACTERS))
    # a long piece must be broken somewhere, or it would be wider than a phone
    return "".join(
        f"<span>{html.escape(piece)}</span><wbr>" if len(piece) <= 24 else html.escape(piece)
        for piece in pieces
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One node of the table."""

    name: str
    word: str
    tone: str
    why: tuple[str, ...]
    how: str
    measured: tuple[str, ...]
    evidence: tuple[str, ...]


def _rows(by_name: dict[str, NodeResult]) -> list[Row]:
    """The nodes that are not good, the worst grade first, then the furthest from what was expected."""
    order = {grade: place for place, grade in enumerate(WORST_FIRST)}

    def place(item: tuple[str, NodeResult]) -> tuple[int, float]:
        return order[item[1].grade], min((j.ratio for j in item[1].judged), default=1.0)

    found = [(name, r) for name, r in by_name.items() if state(r) != Grade.GOOD.value]
    return [_row(name, result) for name, result in sorted(found, key=place)]


def _row(name: str, result: NodeResult) -> Row:
    worst: dict[tuple[str, str, str], Judged] = {}
    # of a curve one point: the large messages, where it is as low
    for judged in sorted(result.judged, key=lambda j: (round(j.ratio, 1), -j.figure.size_bytes)):
        if judged.grade in BAD:
            worst.setdefault((judged.figure.probe, judged.figure.metric, judged.figure.part), judged)
    how = [result.decided_by] if result.decided_by else []
    how += [f"confidence {result.confidence:.2f}"] if result.confidence < 1 else []
    return Row(
        name=name + (" (spare)" if result.spare else ""),
        word=state(result),
        tone="bad" if result.grade in BAD else "unknown",
        why=reasons_of(result),
        how=", ".join(how),
        measured=tuple(_in_words(judged) for judged in list(worst.values())[:3]),
        evidence=tuple(line for finding in result.findings for line in finding.evidence[:5])[:10],
    )


def _in_words(judged: Judged) -> str:
    figure = judged.figure
    at = f" at {plot.size(figure.size_bytes)}" if figure.size_bytes else ""
    part = f" {figure.part}" if figure.part else ""
    value = plot.quantity(figure.value, figure.metric)
    return f"{figure.probe}{part}{at}: {value}, {judged.ratio:.2f} of {judged.against} ({judged.decided_by})"


def _clock(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


# pictures


def _pictures(report: Report, by_name: dict[str, NodeResult]) -> Iterator[tuple[str, str]]:
    """Titles and SVGs."""
    every = [j for result in by_name.values() for j in result.judged]
    many = [j for j in report.group_figures if len(set(j.figure.nodes)) > 2]
    alike: dict[tuple[str, str, str, str], list[Judged]] = {}
    for judged in [*every, *many]:
        figure = judged.figure
        who = "each node" if len(figure.nodes) < 2 else f"groups of {len(figure.nodes)}"
        alike.setdefault((figure.probe, figure.metric, figure.variant, who), []).append(judged)
    ordered = sorted(alike.items(), key=lambda item: not any(j.grade in BAD for j in item[1]))
    for place, ((probe, metric, variant, who), some) in enumerate(ordered[:PICTURES_SHOWN]):
        title = f"{probe}: {plot.what(metric)}, {who}"
        title += f" ({variant})" if variant else ""
        if len({j.figure.size_bytes for j in some}) > 1:
            yield title, plot.lines(_series(some), key=f"picture{place}", title=title, metric=metric)
        else:
            yield title, plot.bars(_bars(some), key=f"picture{place}", title=title)
    if report.pair_figures:
        title = "pairs of nodes: measured over expected, the slowest of each"
        names, ratios, leaves = pair_ratios(report)
        yield title, plot.heat_map(names, ratios, key="pairs", title=title, groups=leaves)


def _name(judged: Judged) -> str:
    figure = judged.figure
    return folded(figure.nodes) + (f"/{figure.part}" if figure.part else "")


def _series(some: Iterable[Judged]) -> list[plot.Series]:
    by_name: dict[tuple[tuple[str, ...], str], list[Judged]] = {}
    for judged in some:
        by_name.setdefault((judged.figure.nodes, judged.figure.part), []).append(judged)
    return [
        plot.Series(
            _name(each[0]),
            tuple((float(j.figure.size_bytes), j.figure.value) for j in each),
            any(j.grade in BAD for j in each),
        )
        for each in by_name.values()
    ]


def _bars(some: Iterable[Judged]) -> list[plot.Bar]:
    """The worst few by themselves, the others as their median."""
    ordered = sorted(some, key=lambda j: (j.grade not in BAD, j.ratio))
    shown = ordered
    if len(ordered) > BARS_SHOWN + 1:
        deviating = sum(j.grade in BAD for j in ordered)
        shown = ordered[: min(BARS_SHOWN, deviating + 2)]
    rows = [
        plot.Bar(
            _name(j), j.figure.value, plot.quantity(j.figure.value, j.figure.metric),
            j.grade in BAD,
        )
        for j in shown
    ]  # fmt: skip
    if others := [j.figure.value for j in ordered[len(shown) :]]:
        middle = statistics.median(others)
        said = plot.quantity(middle, ordered[0].figure.metric)
        rows.append(plot.Bar(f"median of {len(others):,} others", middle, said))
    return rows
