"""The events of a run, from it and its twins. No detector has a say in it.

The twin goes on from the same state with the same data and no fault; a second twin goes on with other data,
and what the two differ by is the noise: sigma is the robust spread of that difference over sqrt(2). A row's
excess is what the faulty run's loss is above its twin's, less what the twin has learned since the fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.lab.loss_runs.faults import LASTING
from tests.lab.loss_runs.training import Fault, Line, Recipe

#: An event: the excess is a tenth of the level and ten sigmas (loss.md section 4's figures for clean means).
SHARE, SIGMAS = 0.10, 10.0
#: And this many times the largest difference of two clean twins: noise with heavy tails needs more.
TAIL = 1.5
#: Its rows are those at half of that; gaps of so many rows do not part it.
GAP = 5
#: A spike is back within so many rows.
BACK = 50
#: A grad burst: times the median, and robust sigmas. Half of it is no event and no clean row either.
BURST, BURST_SIGMAS = 5.0, 40.0


@dataclass
class Labels:
    events: list[dict[str, Any]] = field(default_factory=list)
    ignore: list[list[int]] = field(default_factory=list)
    isolated: list[int] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Branches:
    """What came of one fault: the rows before it, the rows from it on, and the two twins'."""

    recipe: Recipe
    fault: Fault
    first: Sequence[Line]
    before: Sequence[Line]
    faulty: Sequence[Line]
    twin: Sequence[Line]
    other: Sequence[Line]


def good(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def spread(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    middle = median(values)
    return 1.4826 * median([abs(value - middle) for value in values])


def smooth(values: Sequence[float], half: int = 15) -> list[float]:
    """The running median over `half` rows to both sides."""
    return [median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def groups(hit: Sequence[bool], gap: int = GAP) -> list[tuple[int, int]]:
    """First and last place of each stretch of hits, over gaps of at most `gap`."""
    found: list[tuple[int, int]] = []
    for at, is_hit in enumerate(hit):
        if not is_hit:
            continue
        if found and at - found[-1][1] <= gap + 1:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return found


def column(lines: Sequence[Line], name: str) -> list[float]:
    return [line[name] for line in lines if good(line.get(name))]


def label_fault(branches: Branches, labels: Labels) -> None:
    """Adds to `labels` what this fault did."""
    told, ignored = len(labels.events), len(labels.ignore)
    _not_finite(branches, labels)
    loss = _loss(branches, labels)
    _grad(branches, labels, loss)
    _slow_kinds(branches, labels)
    _step_time(branches, labels)
    if len(labels.events) == told:
        fault, faulty = branches.fault, branches.faulty
        labels.unmarked.append(fault.cause)
        if len(labels.ignore) == ignored and faulty:
            last = min(len(faulty), max(fault.rows, 1) + 20) - 1
            labels.ignore.append([int(faulty[0]["step"]), int(faulty[last]["step"])])


def _event(labels: Labels, kind: str, lines: Sequence[Line], start: int, end: int, sure: bool = True) -> None:
    steps = int(lines[start]["step"]), int(lines[end]["step"])
    labels.events.append({"kind": kind, "start": steps[0], "end": steps[1], "sure": sure})


def _ignore(labels: Labels, lines: Sequence[Line], start: int, end: int) -> None:
    if lines and end >= start:
        end = min(end, len(lines) - 1)
        labels.ignore.append([int(lines[max(0, start)]["step"]), int(lines[end]["step"])])


def _not_finite(branches: Branches, labels: Labels) -> None:
    lines = branches.faulty
    has_grad = "grad_norm" in branches.recipe.columns
    lost = [not good(line.get("loss")) for line in lines]
    for start, end in groups(lost):
        _event(labels, "nan", lines, start, end)
    skipped = [
        has_grad and not good(line.get("grad_norm")) and not any(lost[max(0, at - 10) : at + 10])
        for at, line in enumerate(lines)
    ]
    for start, end in groups(skipped, 100):
        in_row = max(last - first + 1 for first, last in groups(skipped[start : end + 1], 0))
        if in_row >= 3 or max(sum(skipped[at : at + 1000]) for at in range(start, end + 1)) >= 10:
            _event(labels, "nan", lines, start, end)
        else:
            for at in range(start, end + 1):
                if skipped[at]:
                    _ignore(labels, lines, at, at)


@dataclass(frozen=True)
class Excess:
    """Of each row: what the loss is above where it would be, and what an event takes."""

    above: list[float]
    needed: list[float]
    events: list[tuple[int, int]]
    grey: list[tuple[int, int]]


def _excess(branches: Branches) -> tuple[list[float], list[float], float]:
    before = column(branches.before[-31:], "loss") or column(branches.twin[:5], "loss")
    was = median(before)
    own = [line.get("loss", math.nan) for line in branches.twin]
    level = smooth([*before, *own])[len(before) :]
    apart = [
        two["loss"] - one
        for one, two in zip(own, branches.other, strict=False)
        if good(one) and good(two.get("loss"))
    ]
    sigma = max(spread(apart) / math.sqrt(2), abs(was) * 1e-4, 1e-9)
    above: list[float] = []
    for line, same, usual in zip(branches.faulty, own, level, strict=True):
        loss = line.get("loss", math.nan)
        above.append(loss - same - max(0.0, was - usual) if good(loss) else 0.0)
    tail = TAIL * max(map(abs, apart), default=0.0)
    return (
        above,
        [max(SHARE * abs(usual), SIGMAS * sigma, tail) for usual in level],
        max(sigma, tail / SIGMAS),
    )


def _loss(branches: Branches, labels: Labels) -> Excess:
    above, needed, sigma = _excess(branches)
    lines = branches.faulty
    half = [one >= 0.5 * need for one, need in zip(above, needed, strict=True)]
    events: list[tuple[int, int]] = []
    grey: list[tuple[int, int]] = []
    for start, end in groups(half):
        shares = [
            one / need for one, need in zip(above[start : end + 1], needed[start : end + 1], strict=True)
        ]
        if max(shares) >= 1:
            events.append((start, end))
        else:
            grey.append((start, end))
    # What is nearer than a checkpoint's distance to an event, and alike, is the event's own unrest.
    at_work = branches.fault.rows or (len(lines) if branches.fault.cause in LASTING else 0)
    joined: list[tuple[int, int]] = []
    for start, end in events:
        if joined and start - joined[-1][1] <= (15 if joined[-1][1] >= at_work else BACK):
            joined[-1] = (joined[-1][0], end)
        elif joined and start - joined[-1][1] <= BACK and max(above[start : end + 1]) < 2 * needed[start]:
            grey.append((start, end))
        else:
            joined.append((start, end))
    for start, end in _lasting(above, branches, sigma):
        if any(first <= end + BACK and start <= last + BACK for first, last in joined):
            continue
        # Late unrest that only the mean of eight shows is the same disturbance, dying down.
        (joined if start <= branches.fault.rows + 20 or at_work == len(lines) else grey).append((start, end))
    joined.sort()
    if at_work == len(lines) and joined:
        joined = [(joined[0][0], joined[-1][1])]
    for start, end in joined:
        _loss_event(branches, labels, above, needed, start, end)
    for start, end in grey:
        _ignore(labels, lines, start, end)
    quarter = [one >= 0.25 * need for one, need in zip(above, needed, strict=True)]
    for start, end in groups(quarter):
        if any(start <= one <= end for one, _ in joined):
            _ignore(labels, lines, start, end)
    low = [one <= -need for one, need in zip(above, needed, strict=True)]
    for start, end in groups(low):
        if end - start >= 5:
            _ignore(labels, lines, start, start + 30)
            _ignore(labels, lines, end - 5, end + 10)
    return Excess(above, needed, joined, grey)


def _lasting(above: list[float], branches: Branches, sigma: float) -> list[tuple[int, int]]:
    """Where the mean of eight rows running, cleaner than one row by the root of eight, reaches the need:
    nobody overlooks that, though no single row says it. Six of the eight must be out: else one row did it."""
    was = abs(median(column(branches.twin, "loss") or [0.0]))
    needed = max(SHARE * was, SIGMAS * sigma / math.sqrt(8))
    hit = [False] * len(above)
    for at in range(len(above) - 7):
        part = above[at : at + 8]
        if sum(part) >= 8 * needed and sum(one >= 0.5 * needed for one in part) >= 6:
            first = next(place for place in range(8) if part[place] >= 0.5 * needed)
            hit[at + first : at + 8] = [True] * (8 - first)
    return groups(hit)


def _loss_event(
    branches: Branches, labels: Labels, above: list[float], needed: list[float], start: int, end: int
) -> None:
    lines, fault = branches.faulty, branches.fault
    part = above[start : end + 1]
    peak = start + part.index(max(part))
    if start == end and _is_isolated(branches, start):
        labels.isolated.append(int(lines[start]["step"]))
        return
    if end >= len(lines) - GAP and end - start < 20 and len(lines) >= BACK:
        _ignore(labels, lines, start, end)
        return
    sure = above[peak] >= 1.5 * needed[peak] or (above[peak] >= needed[peak] and end - start >= 3)
    begins = median(column(branches.first[:5], "loss"))
    looks_new = abs(lines[start].get("loss", math.inf) - begins) <= 0.2 * abs(begins)
    if fault.cause == "weights_lost" and looks_new:
        kind = "restart"
    elif end - start + 1 > BACK or end >= len(lines) - GAP:
        third = above[end - (end - start) // 3 : end + 1]
        early = median(above[start + 1 : start + 13] or part)
        holds = 0.6 <= median(third) / early <= 1.67 if early > 0 else False
        quick = above[start] >= 0.5 * early or above[min(start + 2, end)] >= 0.7 * early
        kind = "level_shift" if holds and quick and end - start + 1 > BACK else "divergence"
        sure = sure and end - start + 1 > 20
    elif peak - start >= 10:
        kind = "slow_bump"
    else:
        kind = "spike"
    _event(labels, kind, lines, start, end, sure)


def _is_isolated(branches: Branches, at: int) -> bool:
    """One row out and back. Without grad norms, only a mean of many steps makes it an event."""
    recipe, line = branches.recipe, branches.faulty[at]
    if "grad_norm" not in recipe.columns:
        return not (recipe.logged == "mean" and recipe.steps_at(1) >= 10)
    usual = median(column(branches.before[-60:], "grad_norm") or [1.0])
    near = [one.get("grad_norm", 0.0) for one in branches.faulty[at : at + 2]]
    return good(line.get("grad_norm")) and max(near) < 3 * usual


def _grad(branches: Branches, labels: Labels, loss: Excess) -> None:
    if "grad_norm" not in branches.recipe.columns:
        return
    lines = branches.faulty
    past = column(branches.before[-120:], "grad_norm") or column(branches.twin, "grad_norm")
    usual = median(past)
    sigma = max(spread(past), 0.02 * usual)
    value = [line.get("grad_norm", 0.0) if good(line.get("grad_norm")) else 0.0 for line in lines]
    twin = [line.get("grad_norm", 0.0) for line in branches.twin]
    level = smooth([*past, *twin])[len(past) :]
    hit, near = [], []
    for one, own, mine in zip(value, twin, level, strict=True):
        base = max(usual, mine)
        hit.append(one >= max(BURST * base, base + BURST_SIGMAS * sigma) and one > 2 * own)
        near.append(one >= max(0.6 * BURST * base, base + 0.5 * BURST_SIGMAS * sigma) and one > 2 * own)
    for start, end in groups(near):
        inside = any(first - 10 <= end and start <= last + 10 for first, last in loss.events)
        if inside:
            continue
        if _in_nan(labels, lines, start, end):
            _ignore(labels, lines, start, end)
            continue
        unsure = any(first - 3 <= end and start <= last + 3 for first, last in loss.grey)
        if not any(hit[start : end + 1]) or unsure:
            _ignore(labels, lines, start, end)
            continue
        bad = [at for at in range(start, end + 1) if hit[at]]
        _event(labels, "grad_burst", lines, bad[0], bad[-1])
        _ignore(labels, lines, start, end)


def _in_nan(labels: Labels, lines: Sequence[Line], start: int, end: int) -> bool:
    low, high = lines[start]["step"], lines[end]["step"]
    return any(e["kind"] == "nan" and e["start"] <= high and low <= e["end"] for e in labels.events)


def _collapse(labels: Labels, lines: Sequence[Line], start: int, end: int) -> None:
    """The steps that were skipped on the way are part of it."""
    low, high = int(lines[start]["step"]), int(lines[end]["step"])
    skips = [e for e in labels.events if e["kind"] == "nan" and e["start"] <= high and low <= e["end"]]
    labels.events = [event for event in labels.events if event not in skips]
    first = min([low, *(event["start"] for event in skips)])
    labels.events.append({"kind": "loss_scale_collapse", "start": first, "end": high, "sure": True})


def _slow_kinds(branches: Branches, labels: Labels) -> None:
    lines, fault, recipe = branches.faulty, branches.fault, branches.recipe
    first, last = lines[0]["step"], lines[-1]["step"]
    told = [e for e in labels.events if first <= e["start"] <= last]
    if "loss_scale" in recipe.columns:
        share = [
            line["loss_scale"] / twin["loss_scale"] for line, twin in zip(lines, branches.twin, strict=True)
        ]
        for start, end in groups([one <= 0.5 for one in share]):
            low = next((at for at in range(start, end + 1) if share[at] <= 1 / 16), None)
            if low is not None and low - start > 10:
                _collapse(labels, lines, start, end)
            elif end > start:
                _ignore(labels, lines, start, end)
    for name, kind in (("param_norm", "param_norm_rise"), ("grad_norm", "grad_rise")):
        if name not in recipe.columns or fault.cause not in (
            "decay",
            "rate_creeps",
            "louder",
            "rate",
            "labels",
        ):
            continue
        past, now, twin = (column(part, name) for part in (branches.before, lines, branches.twin))
        if min(len(past), len(now), len(twin)) < 60:
            continue
        low = min(smooth(past)[10:] or past)
        risen = smooth(now)
        over = [
            one >= 2 * low and one >= 1.7 * max(low, usual)
            for one, usual in zip(risen, smooth(twin), strict=False)
        ]
        slow = next((at for at, is_over in enumerate(over) if is_over), 0)
        if slow >= 20 and sum(over) >= 20 and over[-1]:
            begins = next(at for at, one in enumerate(risen) if one >= 1.2 * max(low, median(past[-31:])))
            begun = lines[begins]["step"]
            labels.events = [e for e in labels.events if e["kind"] != "grad_burst" or e["start"] < begun]
            _event(labels, kind, lines, begins, len(lines) - 1, not told)
    if not told and fault.cause in ("frozen", "same_batch", "rate") and len(lines) >= 100:
        tail = len(lines) // 3
        mine, twins = median(column(lines[-tail:], "loss")), median(column(branches.twin[-tail:], "loss"))
        was = median(column(branches.before[-31:], "loss"))
        if mine - twins >= 0.05 * abs(twins) and was - twins >= 0.05 * abs(twins):
            _event(labels, "stall", lines, 0, len(lines) - 1, mine - twins >= 0.15 * abs(twins))


def _step_time(branches: Branches, labels: Labels) -> None:
    """By what was measured: the median of the slow rows against the median of the 200 before."""
    lines, fault = branches.faulty, branches.fault
    if fault.cause != "slow" or "step_seconds" not in branches.recipe.columns:
        return
    end = min(fault.rows or len(lines), len(lines))
    was, now = (
        median(column(branches.before[-200:], "step_seconds")),
        median(column(lines[:end], "step_seconds")),
    )
    if now >= 1.05 * was and end >= 19:
        _event(labels, "step_time", lines, 0, end - 1, now >= 1.065 * was)
        _ignore(labels, lines, end, end + 20)
    else:
        _ignore(labels, lines, 0, end + 20)


def label_rest(lines: Sequence[Line], warm_up: int, labels: Labels) -> None:
    """With hindsight, both neighbours known: single rows out, and what is neither clean nor an event."""
    taken = [(e["start"], e["end"]) for e in labels.events] + [(a, b) for a, b in labels.ignore]
    out = set(_outliers(lines, "loss", 5.0, 0.0))
    far = set(_outliers(lines, "loss", SIGMAS, SHARE))
    steep = set(_outliers(lines, "grad_norm", 0.5 * BURST_SIGMAS, 0.6 * BURST - 1))
    burst = set(_outliers(lines, "grad_norm", BURST_SIGMAS, BURST - 1))
    moved = set(_outliers(lines, "grad_norm", 5.0, 2.0))
    for at in sorted(out | steep):
        step = int(lines[at]["step"])
        if at < warm_up or any(low <= step <= high for low, high in taken) or step in labels.isolated:
            continue
        if at in burst and at not in out:
            labels.events.append({"kind": "grad_burst", "start": step, "end": step, "sure": False})
        elif at in steep or (at in far and (at in moved or at + 1 in moved)):
            labels.ignore.append([step, step])
        elif at in out and at not in moved:
            labels.isolated.append(step)
    _slow_of_itself(lines, labels)
    labels.isolated.sort()
    labels.events.sort(key=lambda e: (e["start"], e["kind"]))
    labels.ignore = without(merged(labels.ignore), lines, labels.events)


def _outliers(lines: Sequence[Line], name: str, sigmas: float, share: float) -> list[int]:
    """Rows above both neighbours' level: by sigmas of the 60 rows around, by a share of the level, and by
    twice what one row in fifty of the 200 around is: a tail that is always there is not an outlier."""
    places = [at for at, line in enumerate(lines) if good(line.get(name))]
    values = [lines[at][name] for at in places]
    found = []
    for at in range(3, len(values) - 3):
        if values[at] < max(values[at - 1], values[at + 1]):
            continue
        around = values[max(0, at - 30) : at] + values[at + 1 : at + 31]
        level = median(around)
        sides = max(median(values[max(0, at - 5) : at]), median(values[at + 1 : at + 6]))
        above = values[at] - max(level, sides)
        wide = sorted(values[max(0, at - 100) : at] + values[at + 1 : at + 101])
        usual_tail = wide[int(0.98 * len(wide))] - level
        if above <= 0 or above < share * abs(level) or above < 2 * usual_tail:
            continue
        if above >= sigmas * max(spread(around), 1e-3 * abs(level), 1e-9):
            found.append(places[at])
    return found


def _slow_of_itself(lines: Sequence[Line], labels: Labels) -> None:
    """Where the machine itself was slower than it had been, by 3.5 %, nothing is said."""
    timed = [(int(line["step"]), line["step_seconds"]) for line in lines if good(line.get("step_seconds"))]
    slow = [(e["start"], e["end"]) for e in labels.events if e["kind"] == "step_time"]
    for at in range(40, len(timed) - 20, 5):
        was = median([value for _, value in timed[max(0, at - 200) : at]])
        now = median([value for _, value in timed[at : at + 20]])
        step, last = timed[at][0], timed[at + 19][0]
        if now >= 1.035 * was and not any(low <= last and step <= high for low, high in slow):
            labels.ignore.append([step, last])


def merged(spans: list[list[int]]) -> list[list[int]]:
    kept: list[list[int]] = []
    for low, high in sorted(spans):
        if kept and low <= kept[-1][1] + 1:
            kept[-1][1] = max(kept[-1][1], high)
        else:
            kept.append([low, high])
    return kept


def without(
    spans: list[list[int]], lines: Sequence[Line], events: Sequence[dict[str, Any]]
) -> list[list[int]]:
    """The rows of the spans that are not in an event."""
    steps = [int(line["step"]) for line in lines]
    kept = []
    for low, high in spans:
        free = [
            low <= step <= high and not any(event["start"] <= step <= event["end"] for event in events)
            for step in steps
        ]
        kept += [[steps[start], steps[end]] for start, end in groups(free, 0)]
    return merged(kept)
