"""Whether the grad norm or the parameter norm grows while the loss has stopped to improve. Pure.

The growth by itself says nothing: of 46 public runs 23 rise by 1.5 to 7.6 times after warm-up, and 8 of the
19 among them in which nothing is wrong. It counts when what the loss had been gaining is gone: it is a stall
by clustertools.curves.stall, or has turned and rises again. Or when it is far faster than ever before in this
run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from clustertools.curves.history import Point, smooth
from clustertools.curves.stall import POINTS_AT_LEAST, Stall, noise, rate_holds

Norm = Literal["grad_norm", "param_norm"]

#: Smoothed value over its low after warm-up, as the kinds are defined.
RATIO = 2.0
#: The norm's warm-up: a share of the run, in which it falls from its first values.
WARM_UP = 0.1
#: A leap within one point is no slow growth: so much of the growth (of its logarithm) may come from one. Half
#: of it has to have come since the loss stopped to improve: a parameter norm grows in every run.
LEAP_SHARE = 0.5
#: The loss has turned: so far above its lowest (in sigmas and as a share), for this share of the run at
#: least, after it had fallen by so many sigmas before. Our choice.
TURN_SIGMAS, TURN_SHARE, TURN_LENGTH, FELL_SIGMAS = 6.0, 0.01, 0.10, 20.0


#: Far faster than ever: so many times within an eighth or a quarter of the run, and never before after
#: warm-up more than so many times within as long; no more of it in one point than this share. Our choice.
AWAY_RATIO, AWAY_BEFORE, AWAY_LEAP_SHARE = 4.0, 1.5, 0.4
#: Or so many times in all, from a third of the run in which it kept its level: more than any of those 46 did.
AWAY_IN_ALL = 10.0


@dataclass(frozen=True, slots=True)
class Rise:
    """`since`: the point from which it holds; `value`, `low`: smoothed norm; `alone`: the loss is fine."""

    since: int
    value: float
    low: float
    alone: bool = False


def risen(points: Sequence[Point], norm: Norm, stall: Stall | None) -> Rise | None:
    """The rise of a norm at the last point, or None."""
    values = [p.grad_norm if norm == "grad_norm" else p.param_norm for p in points]
    if None in values or len(values) < POINTS_AT_LEAST:
        return None
    known = [v for v in values if v is not None]
    warm = max(2, round(WARM_UP * len(values)))
    if max(known[-3:]) < RATIO * min(known[warm:]):
        return None
    eased = smooth(smooth(known))
    low = min(eased[warm:])
    if low <= 0 or eased[-1] < RATIO * low:
        return None
    place = eased.index(low, warm)
    way = eased[place:]
    if max(b / a for a, b in pairwise(way) if a > 0) > (eased[-1] / low) ** LEAP_SHARE:
        return None
    turn = stall.since if stall is not None else _turned(points)
    if turn is None:
        away = _away(eased, warm)
        return None if away is None else Rise(away, eased[-1], eased[away], alone=True)
    half = (low * eased[-1]) ** 0.5
    if eased[turn] > half:
        return None
    high = next(i for i in range(place, len(eased)) if eased[i] > half)
    return Rise(max(high, turn), eased[-1], low)


def _away(eased: Sequence[float], warm: int) -> int | None:
    """The point at which the norm left its own pace; None when it did not, or there is too little before."""
    count = len(eased)
    third = eased[warm : count // 3]
    if (
        eased[-1] >= AWAY_IN_ALL * max(third)
        and max(third) <= AWAY_BEFORE * min(third)
        and _is_gradual(eased[warm:])
    ):
        return next(at for at in range(warm, count) if min(eased[at:]) >= AWAY_BEFORE * max(third))
    for span in (count // 8, count // 4):
        start = count - 1 - span
        if eased[-1] < AWAY_RATIO * eased[start] or start - span - warm < 2 * span:
            continue
        if max(eased[at + span] / eased[at] for at in range(warm, start - span)) > AWAY_BEFORE:
            continue
        if _is_gradual(eased[start:]):
            return next(at for at in range(start, count) if eased[at] >= AWAY_BEFORE * eased[start])
    return None


def _is_gradual(eased: Sequence[float]) -> bool:
    leap: float = max(b / a for a, b in pairwise(eased))
    return leap <= math.pow(eased[-1] / eased[0], AWAY_LEAP_SHARE)


def _turned(points: Sequence[Point]) -> int | None:
    """The point from which on the loss rose, slowly, after it had fallen; None when it did not."""
    losses = [p.loss for p in points]
    count = len(losses)
    first = max(2, round(WARM_UP * count))
    sigma = noise(losses[first:])
    eased = smooth(losses)
    low = min(eased[first:])
    place = eased.index(low, first)
    if count - place < max(TURN_LENGTH * count, 5) or low <= 0 or rate_holds(points, place) is False:
        return None
    if eased[first] - low < max(FELL_SIGMAS * sigma, 0.1 * low):
        return None
    risen_by = eased[-1] - low
    if risen_by < max(TURN_SIGMAS * sigma, TURN_SHARE * low):
        return None
    way = eased[place:]
    if max(b - a for a, b in pairwise(way)) > LEAP_SHARE * risen_by:
        return None
    third = len(way) // 3
    # it rises all along: not up once and then down again
    parts = [sorted(way[i * third : (i + 1) * third])[third // 2] for i in range(3)]
    return place if parts[0] < parts[1] < parts[2] else None
