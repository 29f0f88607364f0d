"""`clustertools metrics scan`: what the curves of a run did, from any log of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import click

from clustertools.cli.frame import SCHEMA, Output, common, examples
from clustertools.curves import CurveEvent, Kind, Options, Restart, Row, event_json
from clustertools.curves.rows import Rows
from clustertools.curves.watch import CurveWatch
from clustertools.errors import ConfigError, Unobservable, Unparsable
from clustertools.model import Status, worst
from clustertools.render.curves import Pen, Picture, Told, number_text, text_plot
from clustertools.sources.metrics_file import Metrics, open_metrics
from clustertools.sources.training_log import FORMATS
from clustertools.sources.training_values import CANONICAL_NAMES, canonical
from clustertools.text import plain

KINDS: tuple[str, ...] = get_args(Kind)
#: From the least urgent to the most.
SEVERITIES = ("daily", "notice", "page")
#: What detectors look at; the others of CANONICAL_NAMES (epochs, counts of tokens) only go with them.
WATCHED = frozenset({
    "loss", "eval_loss", "grad_norm", "param_norm", "loss_scale", "skipped_iterations", "nan_iterations",
    "step_seconds", "throughput_tokens_per_second", "samples_per_second", "tflops_per_gpu",
})  # fmt: skip
#: Events of one file that are kept for its end. A log with more is not one that can be watched.
EVENTS_AT_MOST = 50_000


class Names(click.ParamType[tuple[str, ...]]):
    """Words with commas between them, each one of `known`."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(word for word in str(value).replace(",", " ").split())
        if wrong := [word for word in words if word not in self._known]:
            self.fail(f"{wrong[0]!r} is none of {', '.join(self._known)}", param, ctx)
        return words


metric_option = click.option(
    "--metric", "names", multiple=True, metavar="NAME",
    help="Only this series; may be given several times. One of no known name is watched as a loss is.",
)  # fmt: skip
format_option = click.option(
    "--format", "format_", type=click.Choice(sorted(FORMATS)), help="Of the file, when it is not recognised."
)


def told_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--kinds` and `--min-severity`."""
    function = click.option(
        "--min-severity",
        type=click.Choice(SEVERITIES),
        default="daily",
        help="Leave out what is less urgent.",
    )(function)
    kinds = f"Only these: {', '.join(KINDS)}."
    return click.option("--kinds", type=Names(KINDS), metavar="KIND,...", help=kinds)(function)


@dataclass(slots=True)
class Wanted:
    """Which events are told."""

    names: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    severity: str = "daily"
    since: int | None = None

    def tells(self, event: CurveEvent) -> bool:
        return (
            (not self.names or event.metric in self.names)
            and (not self.kinds or event.kind in self.kinds)
            and SEVERITIES.index(event.severity) >= SEVERITIES.index(self.severity)
            and (self.since is None or event.end_step is None or event.end_step >= self.since)
        )

    @property
    def extra(self) -> tuple[str, ...]:
        return tuple(sorted(self.names - CANONICAL_NAMES))


def wanted_of(
    names: Iterable[str], kinds: Iterable[str] | None, min_severity: str, since: int | None = None
) -> Wanted:
    return Wanted(frozenset(canonical(name) for name in names), frozenset(kinds or ()), min_severity, since)


@dataclass(slots=True)
class Scanned:
    """What one file told."""

    path: str
    format: str | None = None
    events: dict[int, CurveEvent] = field(default_factory=dict)
    dropped_events: int = 0
    rows: int = 0
    isolated: int = 0
    unreadable: int = 0
    restarts: int = 0
    first_step: int | None = None
    last_step: int | None = None
    series: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    picture: Picture | None = None

    def told(self, wanted: Wanted) -> list[CurveEvent]:
        """In the order of steps."""
        return sorted((e for e in self.events.values() if wanted.tells(e)), key=lambda e: (e.step, e.number))


class Progress:
    """How far a long reading has come: one line of a terminal that goes away again."""

    #: Until then nothing is shown, and so long between two changes.
    SECONDS = 2.0
    #: Records between two looks at the clock.
    RECORDS = 5000

    def __init__(self, path: str, out: Output) -> None:
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not out.quiet
        self._path = path
        self._records = 0
        self._next = time.monotonic() + self.SECONDS
        self._is_there = False

    def record(self, records: Metrics) -> None:
        self._records += 1
        if not self._is_shown or self._records % self.RECORDS or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.SECONDS
        self._is_there = True
        said = f"{records.bytes_read / 1e6:,.0f} MB"
        if os.path.isfile(self._path):
            said += f" of {os.path.getsize(self._path) / 1e6:,.0f}"
        print(f"\r\x1b[K{said}, {self._records:,} records", end="", file=sys.stderr, flush=True)

    def gone(self) -> None:
        if self._is_there:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def scanned(
    path: str, format_: str | None, wanted: Wanted, picture: Picture | None, progress: Progress
) -> Scanned:
    """One file through all detectors. Raises Unobservable when it cannot be read or has no known metric."""
    rows, watch = Rows(), CurveWatch(options=Options(wanted.extra))
    found = Scanned(path, picture=picture)
    with open_metrics(path, format_) as records:
        try:
            for item in records:
                for row in rows.add(item):
                    _take(row, watch, found)
                progress.record(records)
        finally:
            progress.gone()
    for row in rows.flush():
        _take(row, watch, found)
    _hear(watch.finish(), found)
    found.format, found.unreadable, found.notes = records.format, records.unread, records.notes
    found.rows, found.isolated = watch.story.rows, watch.story.isolated
    if not found.series.keys() & (WATCHED | set(wanted.extra)):
        raise Unparsable(nothing_known(found))
    return found


def _take(row: Row | Restart, watch: CurveWatch, found: Scanned) -> None:
    picture = found.picture
    if isinstance(row, Restart):
        found.restarts += 1
        _hear(watch.add_row(row), found)
        if picture is not None:
            picture.restart(row)
        return
    if found.first_step is None:
        found.first_step = row.step
    found.last_step = row.step
    for name in row.values:
        if name not in found.series and len(found.series) < 10_000:
            found.series[name] = len(found.series)
    if picture is not None:
        picture.row(row)
    if told := watch.add_row(row):
        _hear(told, found)


def _hear(told: Sequence[Any], found: Scanned) -> None:
    for news in told:
        event = news.event
        if event.number not in found.events and len(found.events) >= EVENTS_AT_MOST:
            found.dropped_events += 1
            continue
        found.events[event.number] = event
        if found.picture is not None:
            found.picture.event(event)


def nothing_known(found: Scanned) -> str:
    """Why a file that has records could not be watched, and what to try."""
    name = named(found.path)
    if not found.series:
        return (
            f"{name} is recognised as {found.format}, and no step with a metric is in it yet.\n"
            "`clustertools metrics read --records` shows what is understood of it"
        )
    shown = ", ".join(plain(one, 40) for one in list(found.series)[:12])
    more = f" and {len(found.series) - 12} more" if len(found.series) > 12 else ""
    return (
        f"{name} ({found.format}) has {many(found.rows, 'row')} of {shown}{more}: none of them is a "
        "metric that is known.\n`--metric NAME` watches one of them as a loss is watched"
    )


def named(path: str) -> str:
    return "the standard input" if path == "-" else plain(path, 300)


@click.command(
    epilog=examples(
        "clustertools metrics scan train.log",
        "clustertools metrics scan --plot --min-severity notice slurm-*.out",
        "clustertools metrics scan --html curves.html trainer_state.json",
        "zcat old.log.gz | clustertools metrics scan - --json",
        "clustertools metrics scan --metric reward --metric loss metrics.csv",
    )
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--plot", is_flag=True, help="Draw the curves with their events in the terminal.")
@click.option(
    "--html",
    "html",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write the curves as a page to OUT.",
)
@metric_option
@click.option("--since", type=int, metavar="STEP", help="Only what was not over before this step.")
@told_options
@format_option
@common
def scan(
    out: Output,
    files: tuple[str, ...],
    plot: bool,
    html: Path | None,
    names: tuple[str, ...],
    since: int | None,
    kinds: tuple[str, ...] | None,
    min_severity: str,
    format_: str | None,
) -> Status:
    """Say what the curves of a run did: one event a line, in the order of steps.

    FILE is a log or metrics file of any supported format, packed with gzip or not; - is a pipe. Each is a run
    of its own.

    Exit codes: 0 nothing is told, 1 notices only, 2 a page (over by now or not), 3 a file could not be read
    or has no known metric.
    """
    if plot and out.json:
        raise click.UsageError("--plot is for people, --json for programs: --html goes with both")
    if html is not None:
        may_be_written(html)
    wanted = wanted_of(names, kinds, min_severity, since)
    statuses, runs = [], []
    for path in files:
        try:
            picture = Picture(only=wanted.names) if plot or html else None
            found = scanned(path, format_, wanted, picture, Progress(path, out))
        except Unobservable as exc:
            complain(exc)
            statuses.append(Status.UNKNOWN)
            continue
        told = found.told(wanted)
        _tell(out, found, told, len(files) > 1)
        if found.picture is not None:
            found.picture.keep(event.number for event in told)
            runs.append(Told(named(path), summary(found, told), found.picture, told))
        if found.picture is not None and plot:
            if len(files) > 1:
                out.line(named(path))
            for line in text_plot(found.picture, width=_width(), since=since, pen=pen(out)):
                out.line(line)
        for note in found.notes:
            out.note(plain(note))
        out.note(f"{named(path)} ({found.format}): {summary(found, told)}")
        statuses.append(status_of(told))
    if html is not None:
        write_page(html, runs)
    return worst(statuses)


def complain(error: Exception) -> None:
    """An error on stderr: names of files and samples in it may hold anything."""
    for line in str(error).splitlines():
        print(f"clustertools: {plain(line, 1000)}", file=sys.stderr)


def may_be_written(path: Path) -> None:
    """Raises ConfigError when `path` is there and no page: `--html a.log b.log` must not cost a log."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip().lower()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError(f"cannot write the page {path}: {exc.strerror or exc}") from exc
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise ConfigError(f"{path} exists and is no HTML page: it is not written over; name another file")


def write_page(path: Path, runs: Sequence[Told]) -> None:
    """Raises ConfigError."""
    from clustertools.render.curves_page import page

    try:
        path.write_text(page(runs), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write the page {path}: {exc.strerror or exc}") from exc


def status_of(told: Sequence[CurveEvent]) -> Status:
    if any(event.severity == "page" for event in told):
        return Status.CRITICAL
    return Status.WARNING if told else Status.OK


def _tell(out: Output, found: Scanned, told: Sequence[CurveEvent], several: bool) -> None:
    if out.json:
        for event in told:
            print(event_line(event, found.path))
        return
    start = f"{named(found.path)}: " if several else ""
    for line in event_rows(told, out.color):
        out.line(start + line)


def event_line(event: CurveEvent, path: str, **further: Any) -> str:
    """An event as a line of JSON. All of it is ASCII, so a file's name can do nothing to a terminal."""
    return json.dumps({**event_json(event), **further, "file": path, "schema": SCHEMA}, allow_nan=False)


def event_rows(events: Sequence[CurveEvent], color: bool = False) -> list[str]:
    """Events for people, one a line, in columns."""
    cells = [event_cells(event) for event in events]
    widths = [max((len(row[place]) for row in cells), default=0) for place in range(6)]
    lines = []
    for event, row in zip(events, cells, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        padded[0] = Pen(color=color).paint(padded[0], event.severity)
        lines.append("  ".join((*padded, row[6])))
    return lines


def event_cells(event: CurveEvent) -> list[str]:
    """Severity, kind, metric, steps, level and peak, confidence, message."""
    steps = f"{event.step}-" if event.end_step is None else f"{event.step}-{event.end_step}"
    if event.end_step == event.step:
        steps = str(event.step)
    return [
        event.severity, event.kind, plain(event.metric, 40), steps,
        f"{number_text(event.baseline)} -> {number_text(event.value)}", f"{event.confidence:.2f}",
        plain(event.message),
    ]  # fmt: skip


def summary(found: Scanned, told: Sequence[CurveEvent]) -> str:
    """What was read and how much is told."""
    steps = "no step"
    if found.first_step is not None:
        steps = f"steps {found.first_step} to {found.last_step}"
    # those that are looked at first
    names = sorted(found.series, key=lambda name: (name not in WATCHED, found.series[name]))
    series = ", ".join(plain(name, 40) for name in names[:8])
    if len(found.series) > 8:
        series += f" and {len(found.series) - 8} more"
    counts = [(sum(event.severity == word for event in told), word) for word in reversed(SEVERITIES)]
    parts = [
        ", ".join(many(count, word) for count, word in counts if count) or "nothing to tell",
        many(found.rows, "row"), steps, f"{len(found.series)} series ({series})",
        many(found.restarts, "restart") if found.restarts else "",
        many(found.isolated, "isolated outlier") + " counted, not told",
        many(found.unreadable, "unreadable record"),
        f"{found.dropped_events:,} events beyond {EVENTS_AT_MOST:,} left out" if found.dropped_events else "",
        "" if "loss" in found.series else "there is no loss in it, so nothing is known of that",
    ]  # fmt: skip
    return "; ".join(part for part in parts if part)


def many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 or word == 'daily' else 's'}"


def _width() -> int:
    return min(400, max(40, shutil.get_terminal_size((80, 24)).columns))


def pen(out: Output) -> Pen:
    """What the terminal can show: braille needs UTF-8 and a terminal that is not dumb."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return Pen(unicode=encoding == "utf8" and os.environ.get("TERM") != "dumb", color=out.color)
