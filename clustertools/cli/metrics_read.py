"""`clustertools metrics read`: the series of a run themselves, whatever wrote them."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.cli.metrics_scan import WATCHED, complain, format_option, many, named
from clustertools.curves import Restart, Row
from clustertools.curves.rows import Rows
from clustertools.errors import Unobservable, Unparsable
from clustertools.model import Status
from clustertools.render.json_lines import json_line
from clustertools.sources.metrics_file import open_metrics
from clustertools.sources.training_values import Event, Point, canonical, to_json
from clustertools.text import plain


@click.command(
    epilog=examples(
        "clustertools metrics read train.log",
        "clustertools metrics read train.log --csv --metric loss --metric grad_norm > loss.csv",
        "clustertools metrics read --records --json train.log",
    )
)
@click.argument("path", metavar="FILE")
@click.option(
    "--metric", "names", multiple=True, metavar="NAME", help="Only this series; may be given several times."
)
@click.option("--since", type=int, metavar="STEP", help="Only from this step on.")
@click.option("--csv", "as_csv", is_flag=True, help="A table with a column for each series.")
@click.option("--records", is_flag=True, help="Each record as the file has it, not put together by step.")
@format_option
@common
def read(
    out: Output,
    path: str,
    names: tuple[str, ...],
    since: int | None,
    as_csv: bool,
    records: bool,
    format_: str | None,
) -> Status:
    """Print the series themselves: one row a step, put together from all records of it.

    Names are those of docs/metrics.md, whatever the framework calls them. Where the run went back to an
    earlier step, that is told, and the rows of the new branch follow. With --csv a blank cell was not logged.
    """
    if as_csv and (out.json or records):
        raise click.UsageError("--csv goes neither with --json nor with --records")
    only = frozenset(canonical(name) for name in names)
    try:
        _read(out, path, only, since, as_csv, records, format_)
    except Unobservable as exc:
        complain(exc)
        return Status.UNKNOWN
    return Status.OK


def _read(
    out: Output, path: str, only: frozenset[str], since: int | None, as_csv: bool, records: bool,
    format_: str | None,
) -> None:  # fmt: skip
    table = _Table(out, sorted(only)) if as_csv else None
    rows, seen = Rows(), 0
    with open_metrics(path, format_) as source:
        for item in source:
            if records:
                seen += _print_record(out, item, only, since)
                continue
            for row in rows.add(item):
                seen += _print_row(out, table, row, only, since)
        for row in rows.flush():
            seen += _print_row(out, table, row, only, since)
    if table is not None:
        table.close()
    for note in source.notes:
        out.note(plain(note))
    if not seen:
        raise Unparsable(
            f"nothing of {', '.join(sorted(only)) if only else 'any metric'} is in {named(path)} "
            f"(format: {source.format or 'not recognised'}){f' from step {since} on' if since else ''}"
        )
    what = many(seen, "record" if records else "row")
    out.note(f"{named(path)} ({source.format}): {what}; {many(source.unread, 'unreadable record')}")


def _record(out: Output, kind: str, data: Mapping[str, Any]) -> None:
    """A line of JSON that is all ASCII: what a log says can do nothing to a terminal."""
    out.line(json_line(kind, data, ascii_only=True))


def _print_row(
    out: Output, table: _Table | None, row: Row | Restart, only: frozenset[str], since: int | None
) -> int:
    """How many rows that was: 1 or 0."""
    if isinstance(row, Restart):
        before = "" if row.before is None else f" from {row.before}"
        if out.json:
            _record(out, "restart", {"step": row.step, "before": row.before})
        elif table is not None:
            table.note(f"the run went back{before} to step {row.step}")
        else:
            out.line(f"{row.step:>10}  the run went back{before}")
        return 0
    values = {n: v for n, v in row.values.items() if not only or n in only}
    missing = [n for n in row.missing if not only or n in only]
    if (since is not None and row.step < since) or not (values or missing):
        return 0
    if out.json:
        told = {n: v if math.isfinite(v) else str(v) for n, v in values.items()}
        _record(out, "row", {"step": row.step, "time": row.time, "values": told, "missing": missing})
    elif table is not None:
        table.add(row.step, row.time, values)
    else:
        out.line(_as_text(row.step, values, missing))
    return 1


def _as_text(step: int | None, values: Mapping[str, float], missing: Sequence[str]) -> str:
    said = "  ".join(f"{plain(name, 80)}={value:.7g}" for name, value in values.items())
    lost = f"  left out: {', '.join(plain(name, 80) for name in missing)}" if missing else ""
    return f"{'' if step is None else step:>10}  {said}{lost}"


def _print_record(out: Output, item: Point | Event, only: frozenset[str], since: int | None) -> int:
    if since is not None and item.step is not None and item.step < since:
        return 0
    if isinstance(item, Event):
        if out.json:
            _record(out, item.kind, to_json(item))
        else:
            out.line(f"{'' if item.step is None else item.step:>10}  {item.kind}: {plain(item.text)}")
        return 1
    values = {n: v for n, v in item.values.items() if not only or n in only}
    missing = [n for n in item.missing if not only or n in only]
    if not (values or missing):
        return 0
    if out.json:
        _record(out, "point", to_json(dataclasses.replace(item, values=values, missing=tuple(missing))))
    else:
        out.line(_as_text(item.step, values, missing))
    return 1


class _Table:
    """CSV whose columns are known after the first rows: a pipe cannot be read twice."""

    #: Rows that are held back until the columns are settled.
    FIRST_ROWS = 2000

    def __init__(self, out: Output, columns: Sequence[str]) -> None:
        self._out = out
        self._columns = list(columns)
        self._is_open = not columns
        self._held: list[tuple[int, float | None, Mapping[str, float]]] = []
        self._has_time = False
        self._began = False
        self._late: set[str] = set()
        self._writer = csv.writer(sys.stdout, lineterminator="\n")

    def add(self, step: int, time: float | None, values: Mapping[str, float]) -> None:
        if self._began:
            self._write(step, time, values)
            return
        self._held.append((step, time, values))
        if len(self._held) >= self.FIRST_ROWS:
            self._begin()

    def note(self, text: str) -> None:
        self._out.note(text)

    def close(self) -> None:
        if self._held:
            self._begin()
        if self._late:
            shown = ", ".join(sorted(plain(name, 40) for name in self._late)[:10])
            self._out.note(
                f"without a column, because they came later: {shown}; name those wanted by --metric"
            )

    def _begin(self) -> None:
        self._began = True
        self._has_time = any(time is not None for _, time, _ in self._held)
        if self._is_open:
            seen = dict.fromkeys(name for _, _, values in self._held for name in values)
            self._columns = sorted(seen, key=lambda name: name not in WATCHED)
        self._writer.writerow(["step", *self._columns, *(["time"] if self._has_time else [])])
        for row in self._held:
            self._write(*row)
        self._held = []

    def _write(self, step: int, time: float | None, values: Mapping[str, float]) -> None:
        cells = [repr(values[name]) if name in values else "" for name in self._columns]
        times = ["" if time is None else repr(time)] if self._has_time else []
        self._writer.writerow([step, *cells, *times])
        if self._is_open and len(values) > len(cells) - cells.count("") and len(self._late) < 1000:
            self._late.update(name for name in values if name not in self._columns)
