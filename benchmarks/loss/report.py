"""Scores as tables, each miss and false alarm with its rows, and the figures that have to be reached."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.loss.runs import Run
from benchmarks.loss.score import FAMILIES, Score

_HEAD = (
    "detector", "recall", "precision", "strict precision", "F1", "false / 10k rows",
    "without its worst run", "with isolated outliers", "clean runs alarmed",
    "delay, rows (median / p90)", "delay, steps", "right kind",
)  # fmt: skip
_ROUND_A_FAILURE_ROWS = 6
_SHOWN_FIRST = ("loss", "grad_norm", "loss_scale", "step_seconds", "learning_rate")


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pair(first: int | None, second: int | None) -> str:
    return "-" if first is None else f"{first} / {second}"


def row(score: Score) -> list[str]:
    data = score.json()
    return [
        score.detector,
        f"{_number(data['recall'])} ({data['found']}/{data['events']})",
        _number(data["precision"]),
        _number(data["strict_precision"]),
        _number(data["f1"]),
        _number(data["false_per_10k"]),
        _number(data["false_per_10k_without_worst_run"]),
        _number(data["false_per_10k_with_isolated"]),
        f"{data['clean_runs_alarmed']}/{data['clean_runs']}",
        _pair(data["delay_rows_median"], data["delay_rows_p90"]),
        _pair(data["delay_steps_median"], data["delay_steps_p90"]),
        _number(data["right_kind"]),
    ]


def table(scores: Iterable[Score]) -> list[str]:
    """A Markdown table, one line a detector."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    return lines + ["| " + " | ".join(row(score)) + " |" for score in scores]


def by_family(scores: Sequence[Score]) -> Iterator[str]:
    """The tables of all families, and recall for each kind of event."""
    for family in FAMILIES:
        those = [score for score in scores if score.family == family]
        if not those:
            continue
        first = those[0]
        rows, events = sum(first.clean_rows.values()), len(first.found)
        yield f"### {family}: {events} events in {first.runs} runs, {rows:,} clean rows"
        yield ""
        yield from table(those)
        yield ""
    yield from kinds(scores)


def kinds(scores: Sequence[Score]) -> Iterator[str]:
    """Recall for each kind, of the detectors of all families that have it."""
    names = sorted({found.event.kind for score in scores for found in score.found})
    if not names:
        return
    yield "### Found of each kind"
    yield ""
    yield "| detector | family | " + " | ".join(names) + " |"
    yield "|" + "---|" * (len(names) + 2)
    for score in scores:
        cells = []
        for name in names:
            found, events = score.recall(name)
            cells.append(f"{found}/{events}" if events else "")
        yield f"| {score.detector} | {score.family} | " + " | ".join(cells) + " |"
    yield ""


def failures(score: Score) -> Iterator[str]:
    """Each event that was missed, each false alarm, each kind told wrong: the rows around it."""
    for found in score.found:
        if found.alarm is None:
            event = found.event
            span = f"{event.steps[0]}-{event.steps[1]}"
            yield f"MISS {found.run.name}: {event.kind} at {span} ({found.run.about})"
            yield from rows(
                found.run, event.first, event.last, {event.first: "<- start", event.last: "<- end"}
            )
    for wrong in sorted(score.wrong, key=lambda wrong: (wrong.isolated, wrong.run.name)):
        first = wrong.alarms[0]
        word = "ISOLATED" if wrong.isolated else "FALSE"
        yield f"{word} {wrong.run.name}: {first.kind} at {wrong.run.steps[first.place]} ({wrong.run.about})"
        if first.message:
            yield f"    {first.severity}: {first.message}"
        marks = {alarm.row: "<- told" for alarm in wrong.alarms}
        marks.update({alarm.place: "<- place" for alarm in wrong.alarms})
        yield from rows(wrong.run, first.place, first.row, marks)
    for found in score.found:
        if found.alarm and found.alarm.kind and not found.right_kind:
            event = found.event
            yield f"KIND {found.run.name}: {event.kind} at {event.steps[0]} told as {found.alarm.kind}"


def rows(run: Run, first: int, last: int, marks: Mapping[int, str]) -> Iterator[str]:
    """The rows around a place, long stretches cut."""
    around = _ROUND_A_FAILURE_ROWS
    shown = [n for n in _SHOWN_FIRST if n in run.columns] or list(run.columns)[:5]
    yield "    " + "  ".join(f"{name:>12}" for name in ["row", "step", *shown])
    begin, end = max(0, first - around), min(len(run) - 1, last + around)
    gap = False
    for place in range(begin, end + 1):
        if first + around < place < last - around:
            if not gap:
                yield "    ..."
            gap = True
            continue
        cells = [run.columns[name][place] for name in shown]
        text = "  ".join(f"{'' if cell is None else format(cell, '.6g'):>12}" for cell in cells)
        yield f"    {place:>12}  {run.steps[place]:>12}  {text}  {marks.get(place, '')}".rstrip()


def wanted(scores: Mapping[tuple[str, str], Score]) -> list[tuple[str, bool]]:
    """The figures that the watch has to reach on its scored corpus, and whether it does."""
    loss, grad, steps = (scores[("ours", family)] for family in ("loss", "grad", "step_time"))
    told: list[tuple[str, bool]] = []

    def of(score: Score, key: str, at_least: float | None = None, at_most: float | None = None) -> None:
        value = score.json()[key]
        good = value is not None
        good = good and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        limit = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
        told.append((f"{score.family}: {key} {_number(value, 3)}, wanted {limit}", good))

    of(loss, "recall", at_least=0.9)
    of(loss, "precision", at_least=0.95)
    of(loss, "false_per_10k", at_most=0.1)
    of(loss, "false_per_10k_with_isolated", at_most=1.0)
    of(loss, "delay_rows_p90", at_most=2)
    of(grad, "recall", at_least=0.95)
    of(grad, "false_per_10k", at_most=1.0)
    of(steps, "recall", at_least=0.75)
    of(steps, "false_per_10k", at_most=0.2)
    for kind in ("nan", "restart"):
        found, events = loss.recall(kind)
        told.append((f"loss: {found} of {events} events of the kind {kind}, wanted all", found == events > 0))
    for (name, family), peer in scores.items():
        if name != "ours":
            mine = scores[("ours", family)]
            told.append((f"{family}: recall and precision together better than {name}", _better(mine, peer)))
    return told


def _better(ours: Score, peer: Score) -> bool:
    """A higher F1, and not beaten or equalled in both recall and precision."""

    def both(score: Score) -> tuple[float, float]:
        found, events = score.recall()
        return (found / events if events else 0.0), (score.precision() or 0.0)

    mine, theirs = both(ours), both(peer)
    return ours.f1() > peer.f1() and (mine[0] > theirs[0] or mine[1] > theirs[1])


def machine() -> str:
    """The machine that figures were made on, without its name."""
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{os.cpu_count()} CPUs ({platform.machine()}), {system}, Python {platform.python_version()}"
