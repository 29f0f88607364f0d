"""Robust numbers: medians, rates of counters that wrap or are reset. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: A normal distribution's standard deviation is this many median absolute deviations.
MAD_TO_SIGMA = 1.4826


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and robust standard deviation (MAD times 1.4826). Raises ValueError on no values."""
    if not values:
        raise ValueError("the median of nothing")
    import statistics  # with decimal and fractions: 4 ms of every look, which seldom needs a median

    middle = statistics.median(values)
    return middle, MAD_TO_SIGMA * statistics.median(abs(v - middle) for v in values)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share, by Wilson's score: honest for few trials, where the usual one is not.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927; z is 1.96 for
    95 %. Without trials nothing is known: (0, 1).
    """
    if trials <= 0:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / trials + weight / (4 * trials)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Rate:
    """Growth of a counter between two looks. `reset`: it went down, so what it counted before is lost."""

    delta: float
    per_second: float
    reset: bool


def counter_rate(
    before: float, after: float, seconds: float, *, width_bits: int | None = None
) -> Rate | None:
    """The rate between two readings of a counter `seconds` apart; None when no time has passed.

    A counter that went down was reset (a driver reload, a cleared port), unless its width is given and it is
    nearer to a wrap: then the growth across the wrap is counted. After a reset the new value is the growth.
    """
    if seconds <= 0:
        return None
    if after >= before:
        return Rate(after - before, (after - before) / seconds, False)
    if width_bits is not None:
        limit = float(2**width_bits)
        if before > 0.5 * limit and after < 0.5 * limit:
            grown = limit - before + after
            return Rate(grown, grown / seconds, False)
    return Rate(after, after / seconds, True)
