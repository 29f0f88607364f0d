"""Curves of a run's metrics with what happened in them: kept small while they stream, drawn for a terminal.

picture = Picture()
picture.row(row); picture.restart(restart); picture.event(event)      as CurveWatch sees them
text_plot(picture, width=100)                                         lines for a terminal

A curve keeps the lowest and the highest value of each of at most BUCKETS groups of rows, with their places: a
single row that stands out is never lost, however long the log. When there are too many groups, each two
neighbours become one. `curves_page` draws the same picture as a page.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clustertools.curves import CurveEvent, Restart, Row
from clustertools.text import plain

#: Groups of rows of one curve: more than the columns of any terminal, or the pixels of a page's picture.
BUCKETS = 2048
#: Series that are kept; a logger may write thousands of them.
SERIES_AT_MOST = 48
#: Restarts and events whose places are kept. A picture with more marks than this shows nothing.
MARKS_AT_MOST = 500
#: Highest over lowest value from which an axis is logarithmic: one and a half decades, our choice.
LOG_FROM = 30.0
#: Of these a small value is not what one looks for: their axis stays linear.
_LINEAR = frozenset({"learning_rate", "tokens", "samples", "epoch"})
#: Columns left of a terminal's plot: a number of at most 9 characters and the axis.
_MARGIN = 11


@dataclass(slots=True)
class Bucket:
    """A few neighbouring rows of one series: where it was lowest and highest, and how many were no number."""

    low_x: float = 0.0
    low: float = math.inf
    high_x: float = 0.0
    high: float = -math.inf
    rows: int = 0
    not_finite: int = 0

    def join(self, later: Bucket) -> None:
        if later.low < self.low:
            self.low, self.low_x = later.low, later.low_x
        if later.high > self.high:
            self.high, self.high_x = later.high, later.high_x
        self.rows += later.rows
        self.not_finite += later.not_finite

    def points(self) -> tuple[tuple[float, float], ...]:
        """One or two points that can be drawn, in order."""
        if self.low > self.high:
            return ()
        if self.low_x == self.high_x:
            return ((self.low_x, self.low),)
        return tuple(sorted(((self.low_x, self.low), (self.high_x, self.high))))


class Curve:
    """One series in at most BUCKETS buckets of equally many rows."""

    __slots__ = ("_bucket", "_size", "buckets", "first", "last")

    def __init__(self) -> None:
        self._bucket = Bucket()
        self.buckets = [self._bucket]
        self._size = 1
        self.first = self.last = math.nan

    def add(self, x: float, value: float) -> None:
        bucket = self._bucket
        if bucket.rows >= self._size:
            bucket = self._next()
        bucket.rows += 1
        if -math.inf < value < math.inf:
            if value < bucket.low:
                bucket.low, bucket.low_x = value, x
            if value > bucket.high:
                bucket.high, bucket.high_x = value, x
            if self.first != self.first:
                self.first = value
            self.last = value
        else:
            bucket.not_finite += 1

    def _next(self) -> Bucket:
        """The bucket for the next row, when the last one is full."""
        if len(self.buckets) >= BUCKETS:
            for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=True):
                left.join(right)
            self.buckets = self.buckets[::2]
            self._size *= 2
        self._bucket = Bucket()
        self.buckets.append(self._bucket)
        return self._bucket

    @property
    def rows(self) -> int:
        return sum(b.rows for b in self.buckets)

    @property
    def low(self) -> float:
        """The lowest number; infinity when there is none."""
        return min((b.low for b in self.buckets), default=math.inf)

    @property
    def high(self) -> float:
        return max((b.high for b in self.buckets), default=-math.inf)

    @property
    def not_finite(self) -> int:
        return sum(b.not_finite for b in self.buckets)

    def scale(self, name: str = "") -> Scale:
        """The axis that fits: logarithmic when the values span decades and none is negative."""
        low, high = self.low, self.high
        positive = min((v for b in self.buckets for v in (b.low, b.high) if 0 < v < math.inf), default=0.0)
        is_log = name not in _LINEAR and low >= 0 and positive > 0 and high / positive >= LOG_FROM
        return Scale(positive if is_log else low, high, is_log)

    def strokes(
        self, since: float = -math.inf, breaks: Sequence[float] = ()
    ) -> Iterator[list[tuple[float, float]]]:
        """Lines to draw, broken at rows that are no numbers and where the run went back (`breaks`)."""
        stroke: list[tuple[float, float]] = []
        for bucket in self.buckets:
            for point in bucket.points():
                if stroke and bisect.bisect(breaks, stroke[-1][0]) != bisect.bisect(breaks, point[0]):
                    yield stroke
                    stroke = []
                if point[0] >= since:
                    stroke.append(point)
            if bucket.not_finite and stroke:
                yield stroke
                stroke = []
        if stroke:
            yield stroke


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False

    def part(self, value: float) -> float:
        """Where a value lies, from 0 (the lowest) to 1; a flat line lies in the middle."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        # halves: the difference of two numbers near the largest there is would be infinite
        span = high / 2 - low / 2
        return min(1.0, max(0.0, (value / 2 - low / 2) / span)) if span > 0 else 0.5

    def value(self, part: float) -> float:
        """The inverse of `part`."""
        if self.is_log:
            return float(self.low ** (1 - part) * self.high**part)
        return self.low * (1 - part) + self.high * part


@dataclass(slots=True)
class Mark:
    """An event and where it lies: `x` its first bad row, `end_x` its last (None while it goes on)."""

    event: CurveEvent
    x: float
    end_x: float | None = None
    shift: float = 0.0


@dataclass(slots=True)
class Picture:
    """All series of one run. `x` is the step, moved to the right by what was trained twice: after a restart
    the axis goes on, so that what is void now is still seen where it happened.

    `left_out`: names of series for which there was no room. `only`: names to keep, all when empty.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    marks: dict[int, Mark] = field(default_factory=dict)
    restarts: list[tuple[float, Restart]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    only: frozenset[str] = frozenset()
    first_x: float | None = None
    last_x: float = 0.0
    _shift: float = 0.0
    pieces: list[tuple[float, float]] = field(default_factory=list)

    def row(self, row: Row) -> None:
        x = row.step + self._shift
        if self.first_x is None:
            self.first_x = self.last_x = x
            self.pieces.append((x, self._shift))
        self.last_x = x = max(x, self.last_x)
        for name, value in row.values.items():
            curve = self.curves.get(name)
            if curve is None:
                curve = self._new(name)
            if curve is not None:
                curve.add(x, value)

    def _new(self, name: str) -> Curve | None:
        if self.only and name not in self.only:
            return None
        # the loss must have room, however many series came before it
        if len(self.curves) >= SERIES_AT_MOST and name not in ("loss", "grad_norm"):
            if len(self.left_out) < 1000:
                self.left_out.add(name)
            return None
        curve = self.curves[name] = Curve()
        return curve

    def restart(self, restart: Restart) -> None:
        if self.first_x is None:
            return
        self._shift = self.last_x + 1 - restart.step
        if len(self.restarts) < MARKS_AT_MOST:
            self.restarts.append((self.last_x + 1, restart))
            self.pieces.append((self.last_x + 1, self._shift))

    def event(self, event: CurveEvent) -> None:
        mark = self.marks.get(event.number)
        if mark is None:
            if len(self.marks) >= MARKS_AT_MOST:
                return
            mark = self.marks[event.number] = Mark(event, event.step + self._shift, shift=self._shift)
        mark.event = event
        mark.end_x = None if event.end_step is None else max(mark.x, event.end_step + mark.shift)

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget the marks of all other events."""
        wanted = set(numbers)
        self.marks = {number: mark for number, mark in self.marks.items() if number in wanted}

    @property
    def breaks(self) -> list[float]:
        """Where the run went back, in order."""
        return [x for x, _ in self.restarts]

    def step_at(self, x: float) -> int:
        """The step that was trained at a place of the axis."""
        place = bisect.bisect_right(self.pieces, (x, math.inf)) - 1
        return round(x - self.pieces[max(0, place)][1]) if self.pieces else round(x)

    def x_of(self, step: int) -> float:
        """Where a step was trained first."""
        for number, (x, shift) in enumerate(self.pieces):
            end = self.pieces[number + 1][0] if number + 1 < len(self.pieces) else math.inf
            if step + shift < end:
                return max(x, step + shift)
        return self.last_x

    def chosen(self, wanted: Sequence[str] = ()) -> list[str]:
        """The series for a terminal: those asked for, else the loss above the grad norm."""
        if wanted:
            return [name for name in wanted if name in self.curves]
        first = next((name for name in ("loss", "eval_loss") if name in self.curves), "")
        found = [name for name in (first, "grad_norm") if name in self.curves]
        return found or list(self.curves)[:1]


@dataclass(frozen=True, slots=True)
class Told:
    """One run for the page: the name of its file, what was read of it, its curves, the events to be shown."""

    name: str
    summary: str
    picture: Picture
    events: Sequence[CurveEvent]


def number_text(value: float) -> str:
    """At most 8 characters: 2.198, 0.0123, 65,536, 1.2e+09."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1000 else f"{value:.2g}"


# the terminal

_RESET = "\x1b[0m"
_COLOURS = {"page": "\x1b[31m", "notice": "\x1b[33m", "daily": "\x1b[36m"}
#: Dots of a braille character, by column and row from above: Unicode chapter 21.1, U+2800 to U+28FF.
_BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
#: Upper half, lower half, both.
_HALVES = " '.|"


@dataclass(frozen=True, slots=True)
class Pen:
    """What a terminal can show."""

    unicode: bool = True
    color: bool = False

    @property
    def dots(self) -> tuple[int, int]:
        return (2, 4) if self.unicode else (1, 2)

    def cell(self, dots: Iterable[tuple[int, int]]) -> str:
        if self.unicode:
            return chr(0x2800 + sum(_BRAILLE[x][y] for x, y in dots))
        return _HALVES[sum(1 << y for _, y in dots)]

    def sign(self, fancy: str, simple: str) -> str:
        return fancy if self.unicode else simple

    def paint(self, text: str, severity: str) -> str:
        return f"{_COLOURS[severity]}{text}{_RESET}" if self.color and severity in _COLOURS else text


def text_plot(
    picture: Picture, *, width: int = 80, wanted: Sequence[str] = (), since: int | None = None,
    pen: Pen | None = None,
) -> list[str]:  # fmt: skip
    """The chosen series one above the other over the same axis of steps, with the events below.

    Empty when there is nothing to draw. `width` is that of the terminal; the lines are no longer.
    """
    pen = pen or Pen()
    names = picture.chosen(wanted)
    if not names or picture.first_x is None:
        return []
    columns = max(20, width - _MARGIN - 1)
    begin = picture.first_x if since is None else min(picture.x_of(since), picture.last_x)
    axis = _Axis(begin, max(picture.last_x, begin + 1), columns)
    lines: list[str] = []
    for place, name in enumerate(names):
        lines += _panel(picture, name, axis, 12 if place == 0 else 6, pen)
    lines.append(_steps_line(picture, axis))
    return lines + _marks_lines(picture, axis, pen)


@dataclass(frozen=True, slots=True)
class _Axis:
    begin: float
    end: float
    columns: int

    def column(self, x: float, dots: int = 1) -> int:
        part = (x - self.begin) / (self.end - self.begin)
        return min(self.columns * dots - 1, max(0, int(part * self.columns * dots)))


def _panel(picture: Picture, name: str, axis: _Axis, rows: int, pen: Pen) -> list[str]:
    curve = picture.curves[name]
    scale = curve.scale(name)
    title = f"{plain(name, 40)}{', logarithmic' if scale.is_log else ''}"
    if curve.not_finite:
        title += f", {curve.not_finite:,} not a number"
    if scale.low > scale.high:
        return [title]
    across, up = pen.dots
    grid: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for stroke in curve.strokes(axis.begin, picture.breaks):
        spots = [(axis.column(x, across), round((1 - scale.part(y)) * (rows * up - 1))) for x, y in stroke]
        for x, y in _joined(spots):
            grid.setdefault((y // up, x // across), set()).add((x % across, y % up))
    in_event = _columns_of_events(picture, name, axis)
    backs = {axis.column(x) for x, _ in picture.restarts if x >= axis.begin}
    lines = [title]
    for row in range(rows):
        label = ""
        if row in (0, rows - 1) or (rows > 8 and row == rows // 2):
            label = number_text(scale.value(1 - (row + 0.5 * (row == rows // 2)) / (rows - 1)))
        cells = []
        for column in range(axis.columns):
            dots = grid.get((row, column))
            if dots:
                cells.append(pen.paint(pen.cell(dots), in_event.get(column, "")))
            else:
                cells.append(pen.sign("┊", ":") if column in backs else " ")
        lines.append(f"{label:>{_MARGIN - 2}} {pen.sign('│', '|')}" + "".join(cells).rstrip())
    return lines


def _joined(spots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The dots of a line through all spots."""
    yield from spots[:1]
    for (x0, y0), (x1, y1) in pairwise(spots):
        length = max(abs(x1 - x0), abs(y1 - y0))
        for n in range(1, length + 1):
            yield x0 + round((x1 - x0) * n / length), y0 + round((y1 - y0) * n / length)


def _columns_of_events(picture: Picture, name: str, axis: _Axis) -> Mapping[int, str]:
    """The columns of a curve that an event of it covers, with the event's severity."""
    found: dict[int, str] = {}
    for mark in picture.marks.values():
        if mark.event.metric == name:
            end = picture.last_x if mark.end_x is None else mark.end_x
            for column in range(axis.column(mark.x), axis.column(end) + 1):
                if end >= axis.begin and found.get(column) != "page":
                    found[column] = mark.event.severity
    return found


def _steps_line(picture: Picture, axis: _Axis) -> str:
    """The steps below the plot: the first, the middle, the last."""
    first, middle, last = (
        f"{picture.step_at(x):,}" for x in (axis.begin, (axis.begin + axis.end) / 2, axis.end)
    )
    line = first
    if len(first) + len(middle) + len(last) + 8 < axis.columns:
        line = line.ljust((axis.columns - len(middle)) // 2) + middle
    return " " * _MARGIN + line.ljust(axis.columns - len(last)) + last


def _marks_lines(picture: Picture, axis: _Axis, pen: Pen) -> list[str]:
    """A sign below each event, with kind and step where there is room: on up to four lines, pages first."""
    marks = [m for m in picture.marks.values() if m.end_x is None or m.end_x >= axis.begin]
    order = {"page": 0, "notice": 1, "daily": 2}
    marks.sort(key=lambda m: (order.get(m.event.severity, 3), m.x))
    rows: list[list[tuple[int, int, str, str]]] = [[] for _ in range(4)]
    unnamed: dict[int, str] = {}
    for mark in marks:
        column = axis.column(mark.x)
        label = f"{pen.sign('▲', '^')} {mark.event.kind} {mark.event.step:,}"
        start = min(column, max(0, axis.columns - len(label)))
        if start < column:
            label = f"{label[2:]} {label[0]}".rjust(0)
            start = max(0, column + 1 - len(label))
        for row in rows:
            if all(start + len(label) < s or e + 1 < start for s, e, _, _ in row):
                row.append((start, start + len(label), label, mark.event.severity))
                break
        else:
            unnamed.setdefault(column, mark.event.severity)
    lines = []
    for row in rows:
        line, place = "", 0
        for start, end, label, severity in sorted(row):
            line += " " * (start - place) + pen.paint(label, severity)
            place = end
        if row:
            lines.append(" " * _MARGIN + line)
    if unnamed:
        lines.append(f"{'':{_MARGIN}}{len(marks) - sum(map(len, rows)):,} more events without room here")
    return lines
