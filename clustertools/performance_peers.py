"""Where a value stands among its like: populations, a middle, and the line of the slow. Pure.

    standings = stand([401e9, 398e9, 404e9, 281e9, 400e9], noise=0.03, margin=0.10)
    standings[3].verdict                      # "slow"

Values are positive and better when higher. All is done on logarithms of ratios, so that the unit does not
matter and a factor is a distance. Nothing here knows what was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clustertools.stats import median_and_spread

Verdict = Literal["alike", "slow", "undecided", "alone"]

#: How many measurements the usual noise of a kind of figure is worth beside what this set itself shows. A
#: spread from four values is off by a factor of two as often as not (moderated variance as in G. K. Smyth,
#: "Linear models and empirical Bayes methods", 2004).
_PRIOR_WEIGHT = 10.0
#: A median absolute deviation tells as much of a spread as 37 % as many values by the ordinary formula would.
_MAD_EFFICIENCY = 0.37
#: The variance of a median is this many times that of a mean.
_MEDIAN_VARIANCE = math.pi / 2
#: More than this share of a set at one lower level is a second population, not that many slow ones.
_MOST_BLAMED = 1 / 3
#: Ashman's D (K. Ashman, C. Bird, S. Zepf, 1994) above which two groups are apart. 2 is the usual figure for
#: a known mixture; the best cut through one normal population gives 2.7, through an even one 3.5.
_APART = 4.0
#: So few groups are held against the best of them, and slow is what is so many usual spreads below it.
_FEW, _FEW_SIGMAS = 4, 3.5
#: Up to this many, each is held against the others without itself; beyond, one value moves nothing.
_LEAVE_OUT = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """One value among its peers. `deviation` is the logarithm of value over `middle`; below `-line` is slow.

    `population` numbers the group that it was held against, the slowest first; `count` is that group's size.
    """

    verdict: Verdict
    deviation: float
    line: float
    middle: float
    count: int
    population: int


def stand(
    values: Sequence[float], *, noise: float, margin: float, false_alarms: float = 0.01
) -> list[Standing]:
    """Each value's standing, in order.

    `noise` is the usual spread of such figures, as a standard deviation of the logarithm; `margin` the share
    below the middle that matters in practice; `false_alarms` the chance that any value of a sound set is
    called slow, however many there are.
    """
    if not values:
        return []
    middle = statistics.median(values)
    devs = [math.log(value / middle) for value in values]
    order = sorted(range(len(values)), key=devs.__getitem__)
    found: dict[int, Standing] = {}
    for number, group in enumerate(_populations(order, devs, noise, -math.log1p(-margin))):
        for index, standing in zip(
            group, _in_one([values[i] for i in group], noise, margin, false_alarms, number), strict=True
        ):
            found[index] = standing
    return [found[index] for index in range(len(values))]


def stand_of_groups(
    values: Sequence[float], *, noise: float, margin: float, false_alarms: float = 0.01
) -> list[Standing]:
    """As `stand`, of groups of nodes: each is held against the fastest population, however many are slower.

    One bad node slows every group that it is in, which may be most of them. What a group reaches, others of
    its size could: so of two that differ the slower is slow, and of few that contradict each other the best
    is the measure. Whose fault it is, the groups alone do not say.
    """
    standings = stand(values, noise=noise, margin=margin, false_alarms=false_alarms)
    fastest = max((one.population for one in standings), default=0)
    top = [one for one in standings if one.population == fastest]
    few = len(values) <= _FEW
    if not values or (fastest == 0 and not few and all(one.verdict != "undecided" for one in standings)):
        return standings
    if few or any(one.verdict == "undecided" for one in top):
        middle, line = max(values), max(-math.log1p(-margin), _FEW_SIGMAS * noise)
    else:
        reached = [value for value, one in zip(values, standings, strict=True) if one.population == fastest]
        middle, line = statistics.median(reached), max(one.line for one in top)
    told = []
    for value in values:
        deviation = math.log(value / middle)
        verdict: Verdict = "slow" if deviation < -line else "alike"
        told.append(Standing(verdict, deviation, line, middle, len(top), 0))
    return told


def _in_one(
    values: Sequence[float], noise: float, margin: float, false_alarms: float, number: int
) -> list[Standing]:
    """The standings of values of one population."""
    count = len(values)
    middle = statistics.median(values)
    least = -math.log1p(-margin)
    if count == 1:
        return [Standing("alone", 0.0, least, middle, 1, number)]
    devs = [math.log(value / middle) for value in values]
    everyone = _centre_and_cut(devs, count, noise, false_alarms) if count > _LEAVE_OUT else None
    standings = []
    for index, dev in enumerate(devs):
        others = [*devs[:index], *devs[index + 1 :]] if everyone is None else devs
        centre, cut = everyone or _centre_and_cut(others, count, noise, false_alarms)
        line, below = max(least, cut), dev - centre
        verdict: Verdict = "alike" if below >= -line else "slow"
        standings.append(Standing(verdict, below, line, middle * math.exp(centre), count, number))
    # neither of two outvotes the other, nor two of four the rest
    if 2 * sum(s.verdict == "slow" for s in standings) >= count:
        return [Standing("undecided", s.deviation, s.line, s.middle, count, number) for s in standings]
    return standings


def _centre_and_cut(devs: Sequence[float], tested: int, noise: float, alarms: float) -> tuple[float, float]:
    """The median of these, and how far below it one of `tested` must be to be no accident."""
    centre, spread = median_and_spread(devs)
    spread, weight = _moderated(spread, len(devs), noise)
    distance = _student(1 - alarms / tested, weight)
    return centre, distance * spread * math.sqrt(1 + _MEDIAN_VARIANCE / len(devs))


def _moderated(spread: float, count: int, noise: float) -> tuple[float, float]:
    """A spread from `count` values, drawn towards the usual one, and its degrees of freedom."""
    own = _MAD_EFFICIENCY * (count - 1)
    weight = _PRIOR_WEIGHT + own
    drawn = math.sqrt((_PRIOR_WEIGHT * noise**2 + own * spread**2) / weight)
    # a set that is wider than usual is so for a reason, and is taken as it is
    return max(drawn, spread), weight


def _student(probability: float, freedom: float) -> float:
    """Student's t for a probability. Abramowitz and Stegun 26.7.5, within 3 % for 10 degrees of freedom."""
    z = statistics.NormalDist().inv_cdf(min(probability, 1 - 1e-12))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _populations(order: Sequence[int], devs: Sequence[float], noise: float, least: float) -> list[list[int]]:
    """The indices in groups that are clearly apart, the slowest first; mostly one group."""
    cut = _best_cut([devs[index] for index in order], noise, least)
    if cut is None:
        return [list(order)]
    return [*_populations(order[:cut], devs, noise, least), *_populations(order[cut:], devs, noise, least)]


def _best_cut(rising: Sequence[float], noise: float, least: float) -> int | None:
    """How many belong to a lower population, where there is one that is too large to be a few slow ones."""
    count = len(rising)
    fewest = math.floor(_MOST_BLAMED * count) + 1
    if count < 4 or fewest > count - 2:
        return None
    # a value far off must not decide where the cut is
    middle = rising[count // 2]
    held = [min(max(value, middle - math.log(2)), middle + math.log(2)) for value in rising]
    total, below, best, cut = math.fsum(held), math.fsum(held[: fewest - 1]), -1.0, fewest
    for low in range(fewest, count - 1):
        below += held[low - 1]
        between = low * (count - low) * ((total - below) / (count - low) - below / low) ** 2
        if between > best:
            best, cut = between, low
    (low_middle, low_spread), (high_middle, high_spread) = (
        median_and_spread(rising[:cut]), median_and_spread(rising[cut:])
    )  # fmt: skip
    apart = high_middle - low_middle
    # a population is close together: its own spread counts, however few it has
    together = math.sqrt((max(low_spread, noise) ** 2 + max(high_spread, noise) ** 2) / 2)
    return cut if apart > least and apart > _APART * together else None
