"""`clustertools metrics tail`: what the curves of a live run do, as it happens."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from clustertools.cli.frame import Output, common, examples
from clustertools.cli.metrics_scan import (
    Wanted,
    complain,
    event_cells,
    event_line,
    metric_option,
    pen,
    status_of,
    told_options,
    wanted_of,
)
from clustertools.cli.node_memory import replace
from clustertools.curves import CurveEvent, News, Options
from clustertools.curves.watch import CurveWatch
from clustertools.errors import ConfigError, Unobservable
from clustertools.host import LocalHost
from clustertools.model import Job, Status
from clustertools.sources.training_log import LogReader
from clustertools.sources.training_run import RunNews, read_run
from clustertools.sources.training_values import Event, Point
from clustertools.text import plain

#: Between two looks at files that do not grow.
PAUSE_SECONDS = 1.0
_STATE_VERSION = 1


@click.command(
    epilog=examples(
        "clustertools metrics tail /runs/70b/train.log",
        "clustertools metrics tail /runs/70b/tensorboard --json",
        "clustertools metrics tail train.log --once --state ~/.cache/70b.json     from cron",
        "kubectl logs -f trainer-0 | clustertools metrics tail -",
    )
)
@click.argument("path", metavar="FILE")
@click.option("--once", is_flag=True, help="Read what is there now and end: for cron.")
@click.option(
    "--state", "state", type=click.Path(path_type=Path), metavar="FILE",
    help="Go on from what is written here, and write it after every look.",
)  # fmt: skip
@metric_option
@told_options
@common
def tail(
    out: Output,
    path: str,
    once: bool,
    state: Path | None,
    names: tuple[str, ...],
    kinds: tuple[str, ...] | None,
    min_severity: str,
) -> Status:
    """Follow a live run and say what its curves do: one line when an event begins, grows, recovers or ends.

    FILE may grow, be rotated or truncated, or not be there yet; it may be a folder of TensorBoard, W&B or
    MLflow, or a pattern in quotes; - is a pipe. Of a long log the last 4 MiB are read first. In a terminal
    the line of an open event is edited in place. Ctrl-C ends it, with exit code 130.

    With --once the exit code is that of `metrics scan`, for what is told now or still goes on.
    """
    following = Following(path, wanted_of(names, kinds, min_severity), Telling(out, path))
    if path == "-":
        if once or state is not None:
            raise click.UsageError("a pipe cannot be read again: neither --once nor --state goes with -")
        following.take(_piped(following), live=True)
        following.hear(following.watch.finish(), live=True)
        return following.status
    try:
        following.follow(once, state)
    except Unobservable as exc:
        complain(exc)
        return Status.UNKNOWN
    return following.status


class Following:
    """One run that is followed: what its files told so far, and its events that are open or told now."""

    def __init__(self, path: str, wanted: Wanted, telling: Telling) -> None:
        self.path = path
        self.memory: Mapping[str, Any] = {}
        self.watch = CurveWatch(options=Options(wanted.extra))
        self.caught_up = False
        self.last_step: int | None = None
        self._wanted = wanted
        self.telling = telling
        self._open: dict[int, CurveEvent] = {}
        self._told: dict[int, CurveEvent] = {}

    @property
    def status(self) -> Status:
        return status_of([*self._told.values(), *filter(self._wanted.tells, self._open.values())])

    @property
    def open_events(self) -> int:
        return sum(map(self._wanted.tells, self._open.values()))

    def follow(self, once: bool, state: Path | None) -> None:
        """Until Ctrl-C, or with `once` until all that is there was read."""
        if state is not None:
            self.load(state)
        is_saved = False
        for look in _looks(self, once):
            self.take(look.items, live=self.caught_up)
            if state is not None and (look.items or look.grew or not is_saved):
                replace(state, self.state())
                is_saved = True

    def take(self, items: Iterable[Point | Event], *, live: bool) -> None:
        """What the files brought. What was in them when they were opened is told in its end state only."""
        past: dict[int, News] = {}
        for item in items:
            if isinstance(item, Point) and item.step is not None:
                self.last_step = item.step
            news = self.watch.add(item)
            if news and live:
                self.hear(news, live=True)
            else:
                past.update((one.event.number, one) for one in news)
        self.hear(past.values(), live=False)

    def hear(self, told: Iterable[News], *, live: bool) -> None:
        for news in told:
            event = news.event
            self._open.pop(event.number, None)
            if event.is_open and news.change not in ("recovered", "ended"):
                self._open[event.number] = event
            if self._wanted.tells(event):
                self._told[event.number] = event
                self.telling.news(news, live)

    def state(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "path": os.path.abspath(self.path),
            "files": self.memory,
            "watch": self.watch.state(),
            "open": [dataclasses.asdict(event) for event in self._open.values()],
            "last_step": self.last_step,
        }

    def load(self, path: Path) -> None:
        """Go on from a state. One that cannot be used is told, and the run is read as if for the first time.

        Raises ConfigError when it is that of another run: to write over it would lose it.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            self.telling.note(f"the state {path} cannot be read, begun anew: {exc}")
            return
        try:
            if saved["version"] != _STATE_VERSION:
                raise ValueError(f"it is of version {saved['version']}")
            if saved["path"] != os.path.abspath(self.path):
                raise ConfigError(
                    f"the state {path} is that of {saved['path']}: give each run a state of its own"
                )
            watch = CurveWatch(saved["watch"], Options(self._wanted.extra))
            is_open = {int(data["number"]): CurveEvent(**data) for data in saved["open"]}
            self.memory, self.last_step = dict(saved["files"]), saved["last_step"]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            self.telling.note(f"the state {path} cannot be used, begun anew: {exc!r}")
            return
        self.watch, self._open, self.caught_up = watch, is_open, True


def _looks(following: Following, once: bool) -> Iterator[RunNews]:
    """One look after the other at the run's files, without end, or until all of them is read.

    Raises Unobservable when the first look fails; later a file system may be away for a while.
    """
    host, note, is_placed = LocalHost(), following.telling.note, False
    # a child that reads for us stands in another folder
    path = os.path.abspath(following.path)
    job = Job(id="", run=path, state="running", log_paths=(path,))
    while True:
        try:
            look = read_run(host, job, following.memory)
        except Unobservable as exc:
            if once or not following.caught_up:
                raise
            note(str(exc))
            time.sleep(PAUSE_SECONDS)
            continue
        following.memory = look.memory
        for said in look.notes:
            note(said)
        yield look
        if look.items and not look.whole:
            continue  # there is more to be read
        if once and not look.paths:
            raise Unobservable(f"there is no {following.path}")
        if not look.paths:
            what = "nothing to read in" if os.path.isdir(following.path) else "no"
            note(f"there is {what} {following.path} yet; waiting for it")
        elif look.unrecognised:
            note(f"no step of a known form is in {look.unrecognised} yet")
        elif not is_placed:
            is_placed = True
            note(_where(following, look))
        following.caught_up = True
        if once:
            return
        time.sleep(PAUSE_SECONDS)


def _where(following: Following, look: RunNews) -> str:
    count = following.open_events
    going = f"{count} {'event goes' if count == 1 else 'events go'} on" if count else "no event goes on"
    step = "no step yet" if following.last_step is None else f"step {following.last_step}"
    rows = following.watch.story.rows
    return f"{following.path} ({look.format or 'no known format'}): {rows:,} rows, {step}; {going}"


def _piped(following: Following) -> Iterator[Point | Event]:
    """The records of the standard input as they come."""
    reader, descriptor = LogReader(), sys.stdin.fileno()
    while data := os.read(descriptor, 1 << 16):
        yield from reader.feed(data)
    yield from reader.close()


class Telling:
    """How changes are told: as JSON lines, as lines, or as lines of a terminal that change in place."""

    def __init__(self, out: Output, path: str) -> None:
        self._out, self._path = out, path
        self._pen = pen(out)
        in_place = not out.json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._screen = Screen() if in_place else None
        self._noted = ""

    def note(self, text: str) -> None:
        """A remark; the same one is not repeated."""
        if text != self._noted:
            self._noted = text
            self._out.note(plain(text))
            if self._screen is not None:
                self._screen.forget()  # the remark may have moved its lines

    def news(self, news: News, live: bool) -> None:
        event = news.event
        if self._out.json:
            at = {"told_at": time.time()} if live else {}
            print(event_line(event, self._path, change=news.change, **at), flush=True)
            return
        when = time.strftime("%H:%M:%S") if live else "earlier "
        severity, *cells, message = event_cells(event)
        start, severity = f"{when}  {news.change:<9}  ", f"{severity:<6}"
        rest = "  ".join(("", *cells, message))

        def paint(line: str) -> str:
            return line.replace(severity, self._pen.paint(severity, event.severity), 1)

        if self._screen is None:
            self._out.line(paint(start + severity + rest), flush=True)
        else:
            self._screen.show(event.number, start + severity + rest, paint)


class Screen:
    """Lines of a terminal, of which those of an open event are written anew where they stand."""

    def __init__(self) -> None:
        self._size = shutil.get_terminal_size((80, 24))
        self._lines = 0
        self._places: dict[int, tuple[int, int]] = {}

    def forget(self) -> None:
        """What is written now stays as it is."""
        self._places.clear()

    def show(self, key: int, text: str, paint: Callable[[str], str]) -> None:
        size = shutil.get_terminal_size((80, 24))
        if size != self._size:  # all lines were wrapped anew: nobody knows where they are
            self._size = size
            self.forget()
        pieces = textwrap.wrap(text, max(20, size.columns - 1), subsequent_indent="    ") or [""]
        pieces[0] = paint(pieces[0])
        known = self._places.get(key)
        if known is not None and len(pieces) <= known[1] and self._lines - known[0] < size.lines:
            self._edit(known, pieces)
        else:
            self._places[key] = (self._lines, len(pieces))
            self._lines += len(pieces)
            sys.stdout.write("".join(f"{piece}\n" for piece in pieces))
        sys.stdout.flush()

    def _edit(self, known: tuple[int, int], pieces: Sequence[str]) -> None:
        """Up to the first line of the event, write each anew, down again. ECMA-48: CUU, EL, CUD."""
        place, count = known
        up = self._lines - place
        lines = [*pieces, *[""] * (count - len(pieces))]
        body = "".join(f"\x1b[2K{line}\n" for line in lines)
        down = f"\x1b[{up - count}B" if up > count else ""
        sys.stdout.write(f"\x1b[{up}A\r{body}{down}\r")
