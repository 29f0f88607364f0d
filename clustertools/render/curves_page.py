"""The curves of runs, with what happened in them, as one HTML file: no script, nothing from elsewhere.

Everything that is not ours is printable text (`plain`) before the template escapes it, and the page forbids
scripts to the browser besides. Each picture says in its description what it shows; the table has all of it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from clustertools.curves import CurveEvent
from clustertools.render.curves import Curve, Mark, Picture, Scale, Told, number_text
from clustertools.render.plot import STYLE, svg
from clustertools.text import plain

#: Series that come first, in this order.
FIRST = (
    "loss", "eval_loss", "grad_norm", "loss_scale", "param_norm", "skipped_iterations", "nan_iterations",
    "step_seconds", "throughput_tokens_per_second", "learning_rate",
)  # fmt: skip
#: Rows of the table of events; the JSON lines have all.
ROWS_SHOWN = 500
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 220, 64, 12, 22, 26
_WORST_FIRST = ("page", "notice", "daily")


@dataclass(frozen=True, slots=True)
class _Section:
    told: Told
    rows: Sequence[tuple[int, CurveEvent]]
    more: int
    pictures: Sequence[tuple[str, Any]]
    others: Sequence[tuple[str, Any]]
    series: Sequence[tuple[str, ...]]
    left_out: int
    counts: Sequence[tuple[str, int]]


def page(runs: Sequence[Told]) -> str:
    """The whole HTML document."""
    import jinja2  # only for a page
    import markupsafe

    def printable(value: Any) -> Any:
        if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
            return plain(value, 2000)
        return value

    environment = jinja2.Environment(
        autoescape=True, finalize=printable, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    source = resources.files(__package__).joinpath("curves.html").read_text(encoding="utf-8")
    sections = [_section(run, place, markupsafe.Markup) for place, run in enumerate(runs)]
    worst = next((s for s in _WORST_FIRST for run in runs for e in run.events if e.severity == s), "none")
    return environment.from_string(source).render(
        sections=sections,
        several=len(sections) > 1,
        worst=worst,
        tone={"page": "bad", "notice": "warn", "daily": "warn"}.get(worst, "good"),
        answer=_answer([event for run in runs for event in run.events]),
        style=markupsafe.Markup(STYLE),  # noqa: S704  # ours
        steps=_steps,
        number=number_text,
    )


def _answer(events: Sequence[CurveEvent]) -> str:
    counts = [(word, sum(e.severity == word for e in events)) for word in _WORST_FIRST]
    said = {
        "page": ("page", "pages"),
        "notice": ("notice", "notices"),
        "daily": ("for the day", "for the day"),
    }
    parts = [f"{count:,} {said[word][count != 1]}" for word, count in counts if count]
    return ", ".join(parts) or "Nothing happened"


def _section(told: Told, place: int, safe: Any) -> _Section:
    picture = told.picture
    numbers = {event.number: row + 1 for row, event in enumerate(told.events)}
    in_events = {event.metric for event in told.events}
    names = sorted(picture.curves, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
    drawn = [
        (name, safe(_series_svg(picture, name, numbers, f"run{place}-{number}")))
        for number, name in enumerate(names)
        if picture.curves[name].low <= picture.curves[name].high
    ]
    first = [item for item in drawn if item[0] in FIRST or item[0] in in_events]
    return _Section(
        told=told,
        rows=[(number + 1, event) for number, event in enumerate(told.events[:ROWS_SHOWN])],
        more=max(0, len(told.events) - ROWS_SHOWN),
        pictures=first or drawn[:4],
        others=[item for item in drawn if item not in (first or drawn[:4])],
        series=[_series_row(name, picture.curves[name]) for name in names],
        left_out=len(picture.left_out),
        counts=[(w, sum(e.severity == w for e in told.events)) for w in _WORST_FIRST],
    )


def _steps(event: CurveEvent) -> str:
    if event.end_step is None:
        return f"{event.step:,} and on"
    return f"{event.step:,}" if event.end_step == event.step else f"{event.step:,} to {event.end_step:,}"


def _series_row(name: str, curve: Curve) -> tuple[str, ...]:
    known = [
        number_text(v) if math.isfinite(v) else "" for v in (curve.first, curve.last, curve.low, curve.high)
    ]
    return name, f"{curve.rows:,}", *known, f"{curve.not_finite:,}" if curve.not_finite else ""


def _series_svg(picture: Picture, name: str, numbers: dict[int, int], key: str) -> str:
    """One series with all events: its own as coloured spans with their numbers, those of others as lines."""
    curve, scale = picture.curves[name], picture.curves[name].scale(name)
    begin = picture.first_x or 0.0
    span = max(picture.last_x - begin, 1.0)
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at_x(x: float) -> float:
        return _LEFT + min(1.0, max(0.0, (x - begin) / span)) * across

    def at_y(y: float) -> float:
        return _TOP + (1 - scale.part(y)) * down

    body = []
    for tick in _y_ticks(scale):
        y = at_y(tick)
        body.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        body.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick)}</text>'
        )
    body += _x_labels(picture, at_x)
    shown = [mark for mark in picture.marks.values() if mark.event.number in numbers]
    body += [_others(mark, at_x) for mark in shown if mark.event.metric != name]
    for x, restart in picture.restarts:
        tip = f"the run went back to step {restart.step:,}"
        body.append(
            f'<path class="back" d="M{at_x(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"><title>{tip}</title></path>'
        )
    own = sorted((mark for mark in shown if mark.event.metric == name), key=lambda mark: mark.x)
    body += [_own(mark, at_x, picture.last_x) for mark in own]
    for stroke in curve.strokes(breaks=picture.breaks):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in _thinned((at_x(x), at_y(y)) for x, y in stroke))
        body.append(f'<path class="line" d="M{path}{"h0.1" if len(stroke) == 1 else ""}"/>')
    body += _labels(own, numbers, at_x)
    return svg(key, name.replace("_", " "), _description(picture, name, own), _WIDTH, _HEIGHT, body)


def _description(picture: Picture, name: str, own: Sequence[Mark]) -> str:
    curve, scale = picture.curves[name], picture.curves[name].scale(name)
    said = (
        f"{curve.rows:,} rows, from {number_text(curve.first)} to {number_text(curve.last)}, lowest "
        f"{number_text(curve.low)}, highest {number_text(curve.high)}"
        f"{', on a logarithmic axis' if scale.is_log else ''}"
    )
    events = "; ".join(f"{m.event.kind} at step {m.event.step:,}" for m in own[:20])
    return f"{said}. {events or 'No event'}{' and more' if len(own) > 20 else ''}."


def _own(mark: Mark, at_x: Any, last_x: float) -> str:
    start, end = at_x(mark.x), at_x(last_x if mark.end_x is None else mark.end_x)
    tip = html.escape(plain(f"{mark.event.kind}: {mark.event.message}"), quote=True)
    return (
        f'<rect class="span {mark.event.severity}" x="{start - 1:.1f}" y="{_TOP}" '
        f'width="{max(2.0, end - start + 2):.1f}" height="{_HEIGHT - _TOP - _BOTTOM}">'
        f"<title>{tip}</title></rect>"
    )


def _others(mark: Mark, at_x: Any) -> str:
    tip = html.escape(plain(f"{mark.event.metric}: {mark.event.kind}"), quote=True)
    x = at_x(mark.x)
    return f'<path class="faint" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"><title>{tip}</title></path>'


def _labels(own: Sequence[Mark], numbers: dict[int, int], at_x: Any) -> list[str]:
    """The numbers of the table above the spans; where there is no room, only the pages have theirs."""
    taken: list[float] = []
    body = []
    for mark in sorted(own, key=lambda m: (_WORST_FIRST.index(m.event.severity), m.x)):
        x = at_x(mark.x)
        if all(abs(x - other) > 16 for other in taken):
            taken.append(x)
            body.append(
                f'<text class="label {mark.event.severity}" x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">'
                f"{numbers[mark.event.number]}</text>"
                f'<path class="arrow {mark.event.severity}" d="M{x - 3:.1f} {_TOP - 6}h6l-3 5z"/>'
            )
    return body


def _x_labels(picture: Picture, at_x: Any) -> list[str]:
    """Round steps below the axis; after a restart they begin again."""
    begin = picture.first_x or 0.0
    pace = _pace((picture.last_x - begin) / 7)
    body: list[str] = []
    last = -100.0
    ends = [x for x, _ in picture.pieces[1:]] + [picture.last_x + 1]
    for (start, shift), end in zip(picture.pieces, ends, strict=True):
        step = math.ceil((start - shift) / pace) * pace
        while step + shift < end:
            x = at_x(step + shift)
            if x - last >= 64:
                last = x
                text = f'x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{step:,.0f}</text>'
                body.append(
                    f'<path class="grid" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/><text class="tick" {text}'
                )
            step += pace
    return body


def _pace(rough: float) -> float:
    """A whole round number of steps not below `rough`."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1.0)))
    return next(max(1.0, power * nice) for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough or nice == 10)


def _y_ticks(scale: Scale) -> list[float]:
    if scale.is_log:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        every = max(1, math.ceil(len(powers) / 6))
        factors = (1, 3) if len(powers) < 4 else (1,)
        ticks = [10.0**p * f for p in powers if p % every == 0 for f in factors]
        return [t for t in ticks if scale.low <= t <= scale.high]
    span = scale.high - scale.low
    if not span or not math.isfinite(span):
        return [scale.high]
    power = 10.0 ** math.floor(math.log10(span / 4))
    pace = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= span / 4 or nice == 10)
    first = math.ceil(scale.low / pace)
    return [float(f"{n * pace:.12g}") for n in range(first, first + 6) if n * pace <= scale.high]


def _thinned(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points in one column of pixels the highest and the lowest, in their order."""
    kept: list[tuple[float, float]] = []
    column: list[tuple[float, float]] = []
    for point in points:
        if column and int(point[0]) != int(column[0][0]):
            kept += _extremes(column)
            column = []
        column.append(point)
    return kept + _extremes(column)


def _extremes(column: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(column) <= 2:
        return list(column)
    places = {column.index(pick(column, key=lambda p: p[1])) for pick in (min, max)}
    return [column[place] for place in sorted(places)]
