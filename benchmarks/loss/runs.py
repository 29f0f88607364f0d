"""Labelled runs: the rows of a CSV file, what happened in it and where, in rows instead of steps."""

from __future__ import annotations

import csv
import gzip
import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

LOSS_KINDS = frozenset(("nan", "spike", "divergence", "restart", "level_shift", "slow_bump", "stall"))
GRAD_KINDS = frozenset(("grad_burst",))
STEP_TIME_KINDS = frozenset(("step_time",))
TREND_KINDS = frozenset(("grad_rise", "param_norm_rise", "loss_scale_collapse"))
KINDS = LOSS_KINDS | GRAD_KINDS | STEP_TIME_KINDS | TREND_KINDS
#: So many rows after an event are its aftermath and not clean.
AFTERMATH_ROWS = 15
_SPEEDS = ("throughput_tokens_per_second", "samples_per_second", "tflops_per_gpu")


class LabelError(Exception):
    """The labels of a folder, or a run of it, are not what the layout says. The message tells where."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Something that happened, in rows of the file (the first is 0). `last` is the last bad one."""

    kind: str
    first: int
    last: int
    sure: bool = True
    steps: tuple[int, int] = (0, 0)


@dataclass
class Run:
    """A labelled run. `columns` are numbers, None where a cell is blank; `text` is the file."""

    name: str
    text: str
    steps: list[int]
    columns: Mapping[str, list[float | None]]
    events: list[Labelled] = field(default_factory=list)
    about: str = ""
    made_by: str = ""
    warm_up: int = 0
    ignored: set[int] = field(default_factory=set)
    isolated: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def _rows_of(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for row, step in enumerate(self.steps):
            found.setdefault(step, []).append(row)
        return found

    def row_of(self, step: int, upto: int) -> int:
        """The last row with that step no later than row `upto`; else the nearest one before it in step."""
        rows = self._rows_of.get(step, [])
        place = bisect_right(rows, upto)
        if place:
            return rows[place - 1]
        row = upto
        while row > 0 and self.steps[row] > step and self.steps[row - 1] < self.steps[row]:
            row -= 1
        return row

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """The first rows, one after another, whose steps are in [start, end]; None when there are none."""
        first = next((r for r, step in enumerate(self.steps) if start <= step <= end), None)
        if first is None:
            return None
        last = first
        while last + 1 < len(self.steps) and start <= self.steps[last + 1] <= end:
            last += 1
        return first, last

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(row, value) where the metric was logged."""
        cells = self.columns.get(metric, [])
        return [(row, value) for row, value in enumerate(cells) if value is not None]

    def step_seconds(self) -> list[tuple[int, float]]:
        """How long a step took: as logged, else from the speed, else from the clock."""
        logged = self.series("step_seconds")
        if logged:
            return logged
        for name in _SPEEDS:
            if speed := self.series(name):
                return [(row, 1 / value) for row, value in speed if value > 0]
        found, before = [], None
        for row, now in self.series("time"):
            steps = self.steps[row] - self.steps[before[0]] if before else 0
            if before and steps > 0 and math.isfinite(now - before[1]) and now > before[1]:
                found.append((row, (now - before[1]) / steps))
            before = (row, now)
        return found

    def logs(self, family: str) -> bool:
        """Whether the metrics of a family are in this log."""
        if family == "grad":
            return bool(self.series("grad_norm"))
        if family == "step_time":
            return len(self.step_seconds()) > 20
        return family == "all" or bool(self.series("loss"))

    @cached_property
    def clean(self) -> list[bool]:
        """Row by row: nothing happened here, so an alarm would be false."""
        clean = [row >= self.warm_up and row not in self.ignored for row in range(len(self))]
        for event in self.events:
            for row in range(max(0, event.first - 1), min(len(self), event.last + AFTERMATH_ROWS + 1)):
                clean[row] = False
        return clean


def load(folder: Path, wanted: str | None = None) -> tuple[list[Run], list[str]]:
    """The runs of a folder, those of one set only when `wanted` names it, and the names of absent files.

    Bulky runs are made anew and not kept, so a label may stand without its file. Raises LabelError on labels
    that are not as the layout says.
    """
    try:
        data = yaml.safe_load((folder / "labels.yaml").read_text("utf-8"))
        entries = dict(data["runs"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise LabelError(
            f"reading the labels of {folder}: {error}; it needs a labels.yaml with `runs:`"
        ) from error
    runs, absent = [], []
    for name, entry in sorted(entries.items()):
        if wanted is not None and entry.get("set") != wanted:
            continue
        text = _text(folder, name)
        if text is None:
            absent.append(name)
            continue
        runs.append(labelled(name, text, entry))
    return runs, absent


def _text(folder: Path, name: str) -> str | None:
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.gz"
    if plain.exists():
        return plain.read_text("utf-8")
    return gzip.decompress(packed.read_bytes()).decode("utf-8") if packed.exists() else None


def labelled(name: str, text: str, entry: Mapping[str, Any]) -> Run:
    """A run from its CSV text and its entry in the labels. Raises LabelError."""
    try:
        steps, columns = _table(text)
    except (ValueError, IndexError) as error:
        raise LabelError(f"run {name}: {error}") from error
    if not steps:
        raise LabelError(f"run {name}: it has no rows")
    run = Run(name, text, steps, columns, about=entry.get("about", ""), made_by=entry.get("made_by", ""))
    run.warm_up = int(entry.get("warm_up") or 0)
    for event in entry.get("events") or []:
        run.events.append(_event(run, event))
    for start, end in entry.get("ignore") or []:
        run.ignored.update(row for row, step in enumerate(steps) if start <= step <= end)
    alone = set(entry.get("isolated") or [])
    run.isolated.update(row for row, step in enumerate(steps) if step in alone)
    return run


def _event(run: Run, event: Mapping[str, Any]) -> Labelled:
    kind = event.get("kind")
    if kind not in KINDS:
        raise LabelError(f"run {run.name}: the kind {kind!r} is none of {', '.join(sorted(KINDS))}")
    try:
        start, end = int(event["start"]), int(event["end"])
    except (KeyError, TypeError, ValueError) as error:
        raise LabelError(f"run {run.name}: a {kind} needs `start` and `end`, both steps: {event}") from error
    span = run.span(start, end)
    if span is None:
        raise LabelError(f"run {run.name}: no row has a step of {start} to {end}, where a {kind} is labelled")
    return Labelled(kind, *span, bool(event.get("sure", True)), (start, end))


def _table(text: str) -> tuple[list[int], dict[str, list[float | None]]]:
    lines: Iterator[list[str]] = csv.reader(io.StringIO(text))
    header = next(lines, [])
    if header[:1] != ["step"]:
        raise ValueError("the first column has to be `step`")
    steps: list[int] = []
    columns: dict[str, list[float | None]] = {name: [] for name in header[1:]}
    for cells in lines:
        if len(cells) != len(header):
            raise ValueError(f"row {len(steps)} has {len(cells)} cells of {len(header)}")
        steps.append(int(cells[0]))
        for name, cell in zip(header[1:], cells[1:], strict=True):
            columns[name].append(float(cell) if cell.strip() else None)
    return steps, columns
