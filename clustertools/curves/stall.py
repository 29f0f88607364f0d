"""Whether a run has stopped to learn, from the points of its whole history. Pure.

A run that learns ever more slowly is no stall: all do, and one that has converged, a noise floor, a short
fine-tuning or a reward that hovers look flat as well. What is told is a break: the loss fell steadily and
for long, every curve that fits what was lets expect more, and from one point on it does not fall any more, at
a learning rate that still moves the weights. Where the log does not tell the rate the break must be wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from clustertools.curves.history import Point, smooth

#: Points without which nothing is judged (each of 8 rows and more), and the share of them that is warm-up.
POINTS_AT_LEAST, WARM_UP = 32, 0.05
#: The learning rate is spent below this share of its highest, as the kind is defined.
SPENT_RATE = 0.1
#: The flat part: at least this share of the run so far, so many points, and this share of what was before;
#: with less than the last one the gap has to be wider.
FLAT_SHARE, FLAT_POINTS, FLAT_OF_BEFORE_AT_LEAST, FLAT_OF_BEFORE = 0.10, 6, 0.15, 0.35
#: Our choices, from made runs with and without a stall. `GAP_SIGMAS`, `GAP_SHARE`: how far the flat level
#: lies above the most careful of the fits; where the learning rate is not logged, UNKNOWN_RATE times that.
#: `KEPT_PACE`: the fall while the rows doubled last, as a share of that while they doubled before.
#: `FALL_SIGMAS`: how far above the noise it must be.
UNKNOWN_RATE = 1.5
GAP_SIGMAS, GAP_SHARE, KEPT_PACE, FALL_SIGMAS = 8.0, 0.01, (0.5, 1.6), 8.0
#: No point may hold more of a fall than this: a stair, a leap, a new mix of data.
STAIR_SHARE = 0.4
#: A fit that promises less than this share of the level follows a first fall, not what came after it.
CREDIBLE_SHARE = 0.5
#: A loss that rises by more than this in the flat part does something else than stall.
RISING_SHARE = 0.02
#: Exponents of the power laws that are fitted, and decay lengths (shares of the run) of the exponentials.
_POWERS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_DECAYS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
#: Fits that are hardly worse than the best one count as well.
_NEARLY_BEST = 1.4


@dataclass(frozen=True, slots=True)
class Stall:
    """`since`: the point from which nothing was learned; `level`: of the flat part; `expected`: what the fall
    before promised for now; `sigma`: noise of a point."""

    since: int
    level: float
    expected: float
    sigma: float


def stalled(points: Sequence[Point]) -> Stall | None:
    """The stall that the run is in at its last point, or None."""
    count = len(points)
    if count < POINTS_AT_LEAST:
        return None
    losses = [p.loss for p in points]
    if _clearly_falls(losses):
        return None
    first = max(2, math.ceil(WARM_UP * count))
    sigma = noise(losses[first:])
    start = _flat_from(losses, first, sigma)
    if start is None or rate_holds(points, start) is False:
        return None
    is_known = points[-1].learning_rate is not None
    flat = count - start
    if flat < max(FLAT_POINTS, FLAT_SHARE * count, FLAT_OF_BEFORE_AT_LEAST * start):
        return None
    before = losses[first:start]
    if not _fell_steadily(losses, first, start, sigma):
        return None
    level = sorted(losses[start:])[flat // 2]
    expected, spread = careful_forecast(before, first, count - 1 - flat / 3)
    late = sorted(losses[-max(3, flat // 2) :])
    if min(losses) > 0 and expected < CREDIBLE_SHARE * level:
        return None
    gap = late[len(late) // 2] - expected
    weight = max(1.0, FLAT_OF_BEFORE * start / flat) ** 2 * (1.0 if is_known else UNKNOWN_RATE)
    if gap < weight * max(GAP_SIGMAS * max(sigma, spread), GAP_SHARE * abs(level)):
        return None
    return Stall(start, level, expected, max(sigma, spread))


def _clearly_falls(losses: Sequence[float]) -> bool:
    """Whether the last points lie below those before the shortest flat part: so it is with most runs."""
    place = round(len(losses) / (1 + FLAT_OF_BEFORE_AT_LEAST))
    then, now = sorted(losses[place - 3 : place + 3]), sorted(losses[-6:])
    return now[3] < then[3] - GAP_SHARE * abs(then[3])


def noise(losses: Sequence[float]) -> float:
    """The robust sigma of a point, from how it differs from the mean of its neighbours."""
    if len(losses) < 5:
        return math.inf
    off = sorted(abs(losses[i] - (losses[i - 1] + losses[i + 1]) / 2) for i in range(1, len(losses) - 1))
    return 1.4826 * off[len(off) // 2] / math.sqrt(1.5)


def _flat_from(losses: Sequence[float], first: int, sigma: float) -> int | None:
    """The point from which on the losses are level; None when the last ones still fall or have risen."""
    count = len(losses)
    tail = max(FLAT_POINTS, math.ceil(FLAT_SHARE * count))
    recent = sorted(losses[-tail:])
    level = recent[tail // 2]
    eased = smooth(losses)
    start = count - tail
    # back to where the losses were above the level for good
    while start > first and abs(eased[start - 1] - level) <= 2 * sigma:
        start -= 1
    flat = losses[start:]
    third = len(flat) // 3
    if third < 2:
        return None
    early, late = sorted(flat[:third])[third // 2], sorted(flat[-third:])[third // 2]
    # still falling, even slowly, is no stall; rising by a little is one
    return None if late < early - 1.0 * sigma or late > early + RISING_SHARE * abs(early) else start


def rate_holds(points: Sequence[Point], start: int) -> bool | None:
    """Whether the learning rate from `start` on can teach, and neither leapt nor fell off near there.

    None when the log does not tell it.
    """
    rates = [p.learning_rate for p in points]
    known = [r for r in rates if r is not None]
    if len(known) < len(rates):
        return False if known else None
    highest = max(known)
    now = known[start:]
    if highest <= 0 or min(now) < SPENT_RATE * highest:
        return False
    near = known[max(0, 2 * start - len(points)) :]
    if max(now) > 1.25 * min(known[max(0, start - 3)], now[0]):
        return False
    return all(b >= 0.67 * a for a, b in zip(near, near[3:], strict=False))


def _fell_steadily(losses: Sequence[float], first: int, start: int, sigma: float) -> bool:
    """Whether the loss fell up to `start` as such curves do: about as much in each doubling of the rows.

    That tells a law from a step: a curve that came down in one sweep is flat after it by itself.
    """
    eased = smooth(losses[:start])
    marks = [max(first, round(start / 2**octave)) for octave in (3, 2, 1)]
    if marks[0] == marks[1]:
        return False
    at = [_around(eased, mark) for mark in marks] + [_around(eased, start - 1)]
    far, middle, near = (a - b for a, b in pairwise(at))
    if near < FALL_SIGMAS * sigma:
        return False
    if not (KEPT_PACE[0] * middle <= near <= KEPT_PACE[1] * middle and middle <= 2 * KEPT_PACE[1] * far):
        return False
    window = eased[marks[2] :]
    return max(a - b for a, b in pairwise(window)) <= STAIR_SHARE * near


def _around(eased: Sequence[float], place: int) -> float:
    few = sorted(eased[max(0, place - 1) : place + 2])
    return few[len(few) // 2]


def careful_forecast(losses: Sequence[float], first: int, place: float) -> tuple[float, float]:
    """What the curve promised for `place`, and its spread about the fit.

    The most careful of the fits that are hardly worse than the best: the one that promises least.
    """
    places = [first + i + 0.5 for i in range(len(losses))]
    span = places[-1] - places[0]
    fits: list[tuple[float, float]] = []
    for power in _POWERS:
        fits.append(_fit([t**-power for t in places], losses, place**-power))
    for decay in _DECAYS:
        rate = 1 / (decay * span)
        fits.append(
            _fit([math.exp(-rate * (t - first)) for t in places], losses, math.exp(-rate * (place - first)))
        )
    best = min(error for error, _ in fits)
    promised = max(value for error, value in fits if error <= _NEARLY_BEST * best + 1e-30)
    return promised, math.sqrt(best / max(1, len(losses) - 3))


def _fit(shape: Sequence[float], losses: Sequence[float], at: float) -> tuple[float, float]:
    """Least squares of a + b * shape: the sum of squares left, and the value where shape is `at`."""
    n = len(shape)
    mean_x, mean_y = sum(shape) / n, sum(losses) / n
    xx = sum((x - mean_x) ** 2 for x in shape)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in zip(shape, losses, strict=True))
    slope = xy / xx if xx > 0 else 0.0
    error = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(shape, losses, strict=True))
    return error, mean_y + slope * (at - mean_x)
