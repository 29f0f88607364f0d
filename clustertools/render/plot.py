"""Lines, heat maps and bars, as SVG without scripts and as text for a terminal. Pure.

The SVGs take their colours from `STYLE`, which a page holds once, and so follow the reader's light or dark
mode. What they show stands in their title and description too, for those who do not see them.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustertools.text import plain

#: From as expected to far below: the upper ends of the steps of a ratio's scale.
STEPS = (0.5, 0.7, 0.85, 0.95)
STEP_WORDS = ("below 0.5", "0.5 to 0.7", "0.7 to 0.85", "0.85 to 0.95", "0.95 and more")
#: More ordinary lines than this are drawn as a band with their median.
LINES_SHOWN = 12
#: More nodes than this are put together by group in a heat map.
CELLS_SHOWN = 256

STYLE = """
:root { --line: #2f6db3; --off: #c2410c; --band: #2f6db326; --axis: #6b7280; --grid: #e5e7eb;
  --s0: #9a1f0a; --s1: #d9480f; --s2: #f2a65a; --s3: #f7dfb4; --s4: #cfe3ef; --none: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --line: #6cb0f5; --off: #ff9a5c; --band: #6cb0f533;
  --axis: #9ca3af; --grid: #30363f; --s0: #ff7a59; --s1: #e8590c; --s2: #a8561b; --s3: #5e4a2c;
  --s4: #24435a; --none: #1c2128; } }
.plot text { font: 12px system-ui, sans-serif; fill: currentColor; }
.plot .tick { fill: var(--axis); }
.plot .grid { stroke: var(--grid); stroke-width: 1; }
.plot .line { fill: none; stroke: var(--line); stroke-width: 1.5; }
.plot .off { fill: none; stroke: var(--off); stroke-width: 2; }
.plot .dot { fill: var(--off); }
.plot .band { fill: var(--band); stroke: none; }
.plot .bar { fill: var(--line); }
.plot .bar.bad { fill: var(--off); }
.plot .name-off { fill: var(--off); font-weight: 600; }
.plot .none { fill: var(--none); }
.plot .s0 { fill: var(--s0); } .plot .s1 { fill: var(--s1); } .plot .s2 { fill: var(--s2); }
.plot .s3 { fill: var(--s3); } .plot .s4 { fill: var(--s4); }
"""

# the end of a metric's name -> the units to choose from, the largest first
_UNITS: tuple[tuple[str, tuple[tuple[float, str], ...]], ...] = (
    ("bytes_per_second", ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))),
    ("bits_per_second", ((1e12, "Tb/s"), (1e9, "Gb/s"), (1e6, "Mb/s"), (1.0, "b/s"))),
    ("flops_per_second", ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s"))),
    ("flop_per_second", ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s"))),
    ("flops", ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s"))),
    ("seconds", ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))),
    ("celsius", ((1.0, "°C"),)),
    ("watts", ((1.0, "W"),)),
    ("bytes", ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))),
    ("ratio", ((1.0, ""),)),
)


def unit(metric: str, biggest: float) -> tuple[float, str]:
    """What to divide a figure of this metric by, and the unit that is then right."""
    for end, choices in _UNITS:
        if metric == end or metric.endswith(f"_{end}"):
            size = abs(biggest) if math.isfinite(biggest) else 0.0
            return next((choice for choice in choices if size >= choice[0]), choices[-1])
    what, _, rate = metric.partition("_per_second")
    return 1.0, plain(what.rpartition("_")[2] + ("/s" if metric.endswith("_per_second") else rate), 20)


def what(metric: str) -> str:
    """A metric's name in words, without its unit: `memory copy` of memory_copy_bytes_per_second."""
    known = {"busbw_bytes_per_second": "bus bandwidth", "flop_per_second": "arithmetic"}
    if metric in known:
        return known[metric]
    end = next((end for end, _ in _UNITS if metric == end or metric.endswith(f"_{end}")), "")
    name = metric.removesuffix(end).rstrip("_") or metric
    return name.replace("_", " ")


def quantity(value: float, metric: str) -> str:
    """`91.6 GB/s`, `12.3 µs`: a figure with a unit that fits it."""
    if not math.isfinite(value):
        return "no number"
    factor, name = unit(metric, value)
    return f"{_digits(value / factor)} {name}".strip()


def size(count: float) -> str:
    """`64 MiB`: messages and buffers are powers of two."""
    for factor, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor:
            return f"{count / factor:.4g} {name}"
    return f"{count:.4g} B"


#: Where a point of the data lies in the picture.
At = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y) in any order; `deviates` draws it so that it is seen, with its name."""

    name: str
    points: tuple[tuple[float, float], ...]
    deviates: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: `said` is the number as people read it."""

    name: str
    value: float
    said: str
    deviates: bool = False


# SVG


def lines(series: Sequence[Series], *, key: str, title: str, metric: str) -> str:
    """Figures by size, the x axis logarithmic. `key` makes the ids of this picture its own."""
    clean = [Series(s.name, _finite(s.points), s.deviates) for s in series]
    clean = [s for s in clean if s.points]
    if not clean:
        return _empty(key, title)
    width, height, left, right, top, bottom = 640, 300, 48, 128, 14, 44
    xs = sorted({x for s in clean for x, _ in s.points})
    highest = max(y for s in clean for _, y in s.points) or 1.0
    factor, name = unit(metric, highest)
    ticks = _ticks(highest / factor)
    span = math.log2(xs[-1] / xs[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x / xs[0]) / span) if xs[-1] > xs[0] else 0.5
        up = y / factor / ticks[-1]
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    body = []
    for tick in ticks:
        y = at(xs[0], tick * factor)[1]
        body.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        body.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in xs[:: max(1, math.ceil(len(xs) / 7))]:
        spot = f'x="{at(x, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle"'
        body.append(f'<text class="tick" {spot}>{size(x)}</text>')
    body.append(f'<text class="tick" x="4" y="{height - 6}">{html.escape(name)} by message size</text>')
    usual = [s for s in clean if not s.deviates]
    odd = [s for s in clean if s.deviates]
    if len(usual) > LINES_SHOWN:
        body += _band(usual, at)
    else:
        body += [f'<path class="line" d="{_path(s.points, at)}">{_tip(s.name)}</path>' for s in usual]
    body += [f'<path class="off" d="{_path(s.points, at)}">{_tip(s.name)}</path>' for s in odd]
    labels = [(at(*s.points[-1])[1], s.name, "name-off") for s in odd]
    if usual:
        middle = statistics.median(s.points[-1][1] for s in usual)
        many = f"{len(usual):,} {'others' if odd else 'alike'}"
        labels.append((at(xs[-1], middle)[1], usual[0].name if len(usual) == 1 else many, "tick"))
    for y, text, style in _apart(labels, 14, height - bottom):
        spot = f'x="{width - right + 8}" y="{y + 4:.1f}"'
        body.append(f'<text class="{style}" {spot}>{_short(text, 17)}</text>')
    told = [f"{plain(s.name, 60)} reaches {quantity(max(y for _, y in s.points), metric)}" for s in odd[:8]]
    if usual:
        best = statistics.median(max(y for _, y in s.points) for s in usual)
        told.append(f"the median of {len(usual):,} others reaches {quantity(best, metric)}")
    return svg(key, title, "; ".join(told), width, height, body)


def heat_map(
    names: Sequence[str],
    ratios: Mapping[tuple[str, str], float],
    *,
    key: str,
    title: str,
    groups: Mapping[str, str] | None = None,
) -> str:
    """Pairs of nodes, coloured by how far below what was expected the slower direction is.

    Beyond CELLS_SHOWN nodes a cell stands for two groups (`groups`: node -> leaf switch; blocks of names
    where there is none) and shows the slowest pair between them.
    """
    rows, cells = _cells(names, ratios, groups or {})
    if not cells:
        return _empty(key, title)
    edge = max(2.5, min(30.0, 620 / len(rows)))
    corner = 16 + 7 * min(13, max(map(len, rows)))
    side = edge * len(rows)
    body = [f'<rect class="none" x="{corner}" y="{corner}" width="{side:.1f}" height="{side:.1f}"/>']
    body += _squares(rows, cells, corner, edge)
    body += _row_names(rows, corner, edge)
    body += _legend(corner + side + 16)
    slow = sorted((ratio, pair) for pair, ratio in cells.items() if ratio < STEPS[-1])
    told = f"{len(slow):,} of {len(cells):,} cells are below {STEPS[-1]:g} of what was expected"
    if slow:
        worst = ", ".join(f"{plain(a, 60)} and {plain(b, 60)} at {r:.2f}" for r, (a, b) in slow[:3])
        told += f"; the slowest are {worst}"
    return svg(key, title, told, max(430, corner + side + 12), corner + side + 40, body)


def _squares(
    rows: Sequence[str], cells: Mapping[tuple[str, str], float], corner: float, edge: float
) -> list[str]:
    """Each cell on both sides of the diagonal; where they are many, as one path a shade, without tips."""
    place = {row: number for number, row in enumerate(rows)}
    by_shade: dict[int, list[tuple[int, int]]] = {}
    body = []
    for (a, b), ratio in cells.items():
        shade = sum(ratio >= limit for limit in STEPS)
        for row, column in {(place[a], place[b]), (place[b], place[a])}:
            by_shade.setdefault(shade, []).append((row, column))
            if len(rows) <= 40:
                tip = _tip(f"{a} and {b}: {ratio:.2f} of what was expected")
                body.append(
                    f'<rect class="s{shade}" x="{corner + column * edge + 0.5:.1f}" '
                    f'y="{corner + row * edge + 0.5:.1f}" width="{edge - 1:.1f}" height="{edge - 1:.1f}">'
                    f"{tip}</rect>"
                )
    if body:
        return body
    return [f'<path class="s{shade}" d="{_runs(found, corner, edge)}"/>' for shade, found in by_shade.items()]


def _row_names(rows: Sequence[str], corner: float, edge: float) -> list[str]:
    """The names beside the rows and above the columns: as many as there is room for."""
    body = []
    for number in range(0, len(rows), math.ceil(12 / edge)):
        middle, name = corner + (number + 0.5) * edge + 4, _short(rows[number], 13)
        body.append(
            f'<text class="tick" x="{corner - 5}" y="{middle:.1f}" text-anchor="end">{name}</text>'
            f'<text class="tick" transform="translate({middle:.1f} {corner - 5}) rotate(-90)">{name}</text>'
        )
    return body


def bars(rows: Sequence[Bar], *, key: str, title: str) -> str:
    """One horizontal bar a row, from 0, with its number beside it."""
    rows = [row for row in rows if _is_drawable(row.value)]
    if not rows:
        return _empty(key, title)
    width, pitch, left, right = 600, 24, 160, 120
    longest = max(row.value for row in rows) or 1.0
    body = []
    for number, row in enumerate(rows):
        y, long = 6 + number * pitch, max(1.0, row.value / longest * (width - left - right))
        style = "bar bad" if row.deviates else "bar"
        body.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{_short(row.name, 24)}</text>')
        body.append(
            f'<rect class="{style}" x="{left}" y="{y}" width="{long:.1f}" height="16">{_tip(row.name)}</rect>'
        )
        body.append(f'<text x="{left + long + 6:.1f}" y="{y + 13}">{_short(row.said, 20)}</text>')
    told = "; ".join(f"{plain(row.name, 60)} {plain(row.said, 60)}" for row in rows[:12])
    return svg(key, title, told, width, 10 + pitch * len(rows), body)


def svg(key: str, title: str, told: str, width: float, height: float, body: Iterable[str]) -> str:
    """A picture of `body` with its title and description; `key` makes its ids its own."""
    mark = _text(key)
    return (
        f'<svg class="plot" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'aria-labelledby="{mark}-title {mark}-desc"><title id="{mark}-title">{_text(title)}</title>'
        f'<desc id="{mark}-desc">{_text(told)}</desc>{"".join(body)}</svg>'
    )


def _empty(key: str, title: str) -> str:
    nothing = "nothing was measured"
    return svg(key, title, nothing, 360, 40, [f'<text class="tick" x="8" y="24">{nothing}</text>'])


def _text(said: str) -> str:
    return html.escape(plain(said), quote=True)


def _tip(said: str) -> str:
    return f"<title>{_text(said)}</title>"


def _short(said: str, room: int) -> str:
    """At most `room` characters; of a long node name the end tells it apart."""
    word = plain(said)
    return html.escape(word if len(word) <= room else f"…{word[1 - room :]}", quote=True)


def _is_drawable(value: float) -> bool:
    """Whether a figure can be one: no probe measures below 0, or beyond what a picture's numbers can hold."""
    return value == 0 or 1e-30 < value < 1e30


def _finite(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points that can be drawn, in order; a logarithmic axis has no 0."""
    return tuple(sorted((x, y) for x, y in points if x > 0 and _is_drawable(x) and _is_drawable(y)))


def _path(points: Iterable[tuple[float, float]], at: At) -> str:
    return "M" + "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in points)


def _band(usual: Sequence[Series], at: At) -> list[str]:
    """From the lowest to the highest of many lines, and their median."""
    by_x: dict[float, list[float]] = {}
    for s in usual:
        for x, y in s.points:
            by_x.setdefault(x, []).append(y)
    low = [(x, min(ys)) for x, ys in sorted(by_x.items())]
    high = [(x, max(ys)) for x, ys in sorted(by_x.items(), reverse=True)]
    middle = [(x, statistics.median(ys)) for x, ys in sorted(by_x.items())]
    return [
        f'<path class="band" d="{_path([*low, *high], at)}Z"/>',
        f'<path class="line" d="{_path(middle, at)}">{_tip(f"median of {len(usual):,}")}</path>',
    ]


def _apart(
    labels: Iterable[tuple[float, str, str]], gap: float, lowest: float
) -> list[tuple[float, str, str]]:
    """Labels beside their lines, moved so that none covers another; those without room are counted."""
    placed: list[tuple[float, str, str]] = []
    ordered = sorted(labels, key=lambda label: label[0])
    room = int(lowest // gap)
    if len(ordered) > room:
        odd = [label for label in ordered if label[2] == "name-off"][-(room - 2) :]
        rest = len(ordered) - len(odd)
        ordered = [(0.0, f"and {rest:,} more", "tick"), *odd]
    bottom = lowest
    for y, text, style in reversed(ordered):
        bottom = min(y, bottom)
        placed.append((bottom, text, style))
        bottom -= gap
    # what was pushed over the top comes down again
    top = 0.0
    result = []
    for y, text, style in reversed(placed):
        top = max(y, top)
        result.append((top, text, style))
        top += gap
    return result


def _ticks(highest: float) -> list[float]:
    """From 0 in even round steps to the first one that is not below `highest`."""
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    pace = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * (1 - 1e-9))
    return [float(f"{pace * n:.12g}") for n in range(math.ceil(highest / pace - 1e-9) + 1)]


def _cells(
    names: Sequence[str], ratios: Mapping[tuple[str, str], float], groups: Mapping[str, str]
) -> tuple[list[str], dict[tuple[str, str], float]]:
    """The rows of a heat map and the lowest ratio of each cell, its two names in the order of the rows."""
    rows = list(dict.fromkeys(names))
    of = {name: name for name in rows}
    if len(rows) > CELLS_SHOWN:
        block = math.ceil(len(rows) / 64)
        blocks = {n: f"{rows[k - k % block]}…" for k, n in enumerate(rows)}
        of = {name: groups.get(name) or blocks[name] for name in rows}
        rows = list(dict.fromkeys(of.values()))
    place = {row: number for number, row in enumerate(rows)}
    cells: dict[tuple[str, str], float] = {}
    for (a, b), ratio in ratios.items():
        if a not in of or b not in of or not _is_drawable(ratio):
            continue
        first, second = sorted((of[a], of[b]), key=place.__getitem__)
        cells[first, second] = min(ratio, cells.get((first, second), math.inf))
    return rows, cells


def _runs(found: Iterable[tuple[int, int]], corner: float, edge: float) -> str:
    """Cells of one shade as one path, neighbours in a row together: 256 nodes are 65,536 cells."""
    by_row: dict[int, list[int]] = {}
    for row, column in found:
        by_row.setdefault(row, []).append(column)
    pieces = []
    for row, columns in by_row.items():
        columns.sort()
        start = before = columns[0]
        for column in [*columns[1:], -1]:
            if column != before + 1:
                x, y, wide = corner + start * edge, corner + row * edge, (before - start + 1) * edge
                pieces.append(f"M{x:.1f} {y:.1f}h{wide:.1f}v{edge:.1f}h{-wide:.1f}z")
                start = column
            before = column
    return "".join(pieces)


def _legend(y: float) -> list[str]:
    body = []
    for shade, word in enumerate(STEP_WORDS):
        x = 8 + shade * 84
        body.append(f'<rect class="s{shade}" x="{x}" y="{y:.1f}" width="12" height="12"/>')
        short = word.replace(" to ", "–").replace("below ", "< ").replace(" and more", "+")
        body.append(f'<text class="tick" x="{x + 16}" y="{y + 10:.1f}">{html.escape(short)}</text>')
    return body


def _digits(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1,234."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


# text


def text_bars(rows: Sequence[Bar], width: int = 80) -> list[str]:
    """Bars for a terminal: name, bar, number."""
    rows = [row for row in rows if _is_drawable(row.value)]
    names = max((len(plain(row.name, 30)) for row in rows), default=0)
    said = max((len(plain(row.said, 20)) for row in rows), default=0)
    longest = max((row.value for row in rows), default=0.0) or 1.0
    room = max(4, width - names - said - 4)
    return [
        f"{plain(row.name, 30):<{names}}  {_text_bar(row.value / longest, room)}  {plain(row.said, 20)}"
        for row in rows
    ]


def _text_bar(part: float, room: int) -> str:
    """A bar in eighths of a column."""
    eighths = round(part * room * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(room)


def text_heat_map(
    names: Sequence[str],
    ratios: Mapping[tuple[str, str], float],
    groups: Mapping[str, str] | None = None,
    width: int = 80,
) -> list[str]:
    """A heat map for a terminal, a digit a cell: tenths of what was expected, `#` all of it, `.` unmeasured.

    No lines when it does not fit into `width` columns.
    """
    rows, cells = _cells(names, ratios, groups or {})
    label = min(20, max((len(plain(row, 20)) for row in rows), default=0))
    if not cells or label + 1 + len(rows) > width:
        return []
    body = []
    for a in rows:
        digits = ""
        for b in rows:
            ratio = cells.get((a, b), cells.get((b, a)))
            digits += "." if ratio is None else "#" if ratio >= STEPS[-1] else str(max(0, int(ratio * 10)))
        body.append(f"{plain(a, 20):<{label}} {digits}")
    return body
