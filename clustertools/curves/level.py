"""Where one series of a run is, how much it scatters, and how far out its single rows go. Streaming. Pure.

level = Level(floor=0.05)
level.take(2.31)       a row that belongs to the level
level.high             above it a row may be out of it; infinite before enough rows are known
level.z(5.1)           in robust sigmas
level.chance(8.0)      in how many rows out of one a row comes so far out by itself, as this run shows

A series that is positive is looked at in logarithms: what a loss scatters shrinks with it, and one that is
fitted to nothing falls through decades. From its first value that is zero or below on, it is taken as it is.

The centre is the median of the last rows, carried on along their slope where they have one. The spread is
that of the rows against the centre that was known when they came: what a trend, a schedule or a slow wave
does to it is in there, so no model of them is needed.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

#: The centre is the median of so many rows: odd, so that it is a value of the series and quanta stay whole.
CENTRE_ROWS = 15
#: Rows against their centre that make the spread: enough that the upper twentieth is more than a handful. In
#: a young run the younger half counts: what a loss does while it falls from its first values ends soon.
SPREAD_ROWS, _YOUNG_ROWS = 80, 12
#: Where the last rows scatter so much less that the others must be of another time (the loss has fallen by
#: half, the log interval has changed), so many times their spread counts.
_LATELY_ROWS, _LATELY_TIMES = 24, 2.0
#: A tail shorter than this (half as much again as the level) counts as so many times the bulk at most.
_TAIL_SHORT, _TAIL_TIMES = 0.25, 1.5
#: Rows that are kept as they came: for the slope, the quantum and how rows hang together.
_RECENT_ROWS = 36
#: The centre is looked at anew after so many rows, the spread after six times as many.
_SETTLE_ROWS, _SPREAD_TIMES = 8, 6
#: The slope is taken from three medians of so many rows; it has to be the same way between both pairs, and
#: the smaller one counts, so that a step, as at the end of an epoch, is none.
_SLOPE_ROWS = 9
#: Rows before anything can be out: the centre's, and one more.
READY_ROWS = 16
#: Robust sigmas from which on a row may be out, and from which on it is counted as out by itself when nothing
#: comes of it. The lowest tenth of real spikes peaks at 8.7 (loss.md section 1).
HIGH_SIGMAS, OUT_SIGMAS = 4.0, 6.0
#: At 2 sigmas a twentieth of the rows is out by itself, on any series.
_EDGE_SIGMAS, _EDGE_RATE = 2.0, 0.05
#: Heights of single rows fall off as a power law: 3 where a run has shown none (a t distribution of 3 degrees
#: of freedom, the heaviest of them that has a variance), with the weight of so many rows seen. 1.5 at least.
_TAIL_POWER, _TAIL_WEIGHT, _TAIL_HEAVIEST = 3.0, 4.0, 1.5
#: The tallest of so many single rows is worth knowing, and what is so many times as tall is beyond them.
_TALLEST_OUTS, _TALLEST_TIMES = 5, 1.5
#: Rows that hang together tell as much of their spread as so many that do not, at least.
_COUNT_AT_LEAST = 4.0
#: How rows hang together is known to about so much from so few of them.
_CARRY_LESS = 0.3
#: As if one row out had been seen in so many, before the run's own record counts.
_RATE_ROWS = 2000.0
#: The record forgets by half in so many rows: the data of a run change.
_FORGET_ROWS = 4096
#: More than any loss; its logarithm.
_HUGE, _HUGE_LOG = 1e300, 690.0


class Level:
    """The running level of one series. Amortised constant work a row, bounded memory.

    `floor` is the share of the level that a row must be above it to be out, however small the spread is.
    """

    __slots__ = (  # noqa: RUF023 - in the order in which they are set
        "floor", "is_log", "low", "rows", "wait", "centre", "slope", "spread", "bulk", "bias", "scale",
        "quantum", "carry", "high", "recent", "gaps", "outs", "heights", "tallest", "watched", "reach",
    )  # fmt: skip

    def __init__(self, floor: float, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self.floor = floor
        self.is_log: bool = saved.get("is_log", True)
        self.low: float = saved.get("low", 0.0)
        self.rows: int = saved.get("rows", 0)
        self.wait: int = saved.get("wait", _SETTLE_ROWS)
        self.centre: float = saved.get("centre", 0.0)
        self.slope: float = saved.get("slope", 0.0)
        self.spread: float = saved.get("spread", 0.0)
        self.bulk: float = saved.get("bulk", 0.0)
        self.bias: float = saved.get("bias", 0.0)
        self.scale: float = saved.get("scale", 0.0)
        self.quantum: float = saved.get("quantum", 0.0)
        self.carry: float = saved.get("carry", 0.0)
        self.high: float = saved.get("high", math.inf)
        self.recent = array("d", saved.get("recent", ()))
        self.gaps = array("d", saved.get("gaps", ()))
        self.outs: float = saved.get("outs", 0.0)
        self.heights: float = saved.get("heights", 0.0)
        self.tallest: float = saved.get("tallest", 0.0)
        self.watched: float = saved.get("watched", 0.0)
        self.reach: float = saved.get("reach", 0.0)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Level(floor, state)` goes on from it."""
        names = (name for name in self.__slots__ if name != "floor")
        return {n: list(v) if isinstance(v := getattr(self, n), array) else v for n in names}

    @property
    def is_ready(self) -> bool:
        return self.rows >= READY_ROWS

    def take(self, value: float) -> None:
        """A row of the level. One that is out by itself is to be taken as `high`: it widens the spread if
        many come, and one does nothing."""
        if self.is_log:
            if value <= 0.0:
                self._take_as_it_is()
            else:
                value = math.log(value)
        self.recent.append(value)
        if self.slope:
            self.centre += self.slope
            self.high = self.high * math.exp(self.slope) if self.is_log else self.high + self.slope
        self.wait -= 1
        if not self.wait:
            self._settle()

    def _take_as_it_is(self) -> None:
        self.is_log, self.low = False, -_HUGE
        self.quantum = self.bulk = self.spread = self.bias = 0.0
        self.renew()

    @property
    def base(self) -> float:
        """What the series has been, as it was logged."""
        return self.raised(0.0)

    def raised(self, sigmas: float) -> float:
        """So many sigmas above the level, as it would be logged."""
        place = self.centre + (self.bias + sigmas * self.spread if sigmas else 0.0)
        return math.exp(min(place, _HUGE_LOG)) if self.is_log else place

    def z(self, value: float) -> float:
        """Robust sigmas above the level."""
        if self.is_log:
            if value <= 0.0:
                return -math.inf
            value = math.log(value)
        return (value - self.centre - self.bias) / self.spread if self.spread > 0 else math.inf

    def lift(self, value: float) -> float:
        """How far above the level, as a share of it."""
        base = self.base
        scale = base if self.is_log else self.scale
        return (value - base) / scale if scale > 0 else math.inf

    def bulks(self, value: float) -> float:
        """How far above the level in sigmas of its bulk, as one who looks at a window would have them."""
        return self.lift(value) * self.scale / self.bulk if self.bulk > 0 else math.inf

    def chance(self, z: float) -> float:
        """In how many rows out of one a row comes this many sigmas out by itself.

        A power law over the heights at which single rows were out until now (what the statistics of extremes
        call peaks over a threshold), where a run that has shown little is held near what runs do in general.
        """
        if z <= _EDGE_SIGMAS:
            return 1.0
        if z < OUT_SIGMAS:
            share = (z - _EDGE_SIGMAS) / (OUT_SIGMAS - _EDGE_SIGMAS)
            edge = max(_EDGE_RATE, self.rate)
            return edge * math.exp(share * math.log(self.rate / edge))
        power = (_TAIL_WEIGHT + self.outs) / (_TAIL_WEIGHT / _TAIL_POWER + self.heights)
        if not math.isfinite(z):
            return 0.0
        chance = self.rate * math.exp(-max(power, _TAIL_HEAVIEST) * math.log(z / OUT_SIGMAS))
        if self.outs >= _TALLEST_OUTS and z > _TALLEST_TIMES * self.tallest:
            # many rows of one size say little of how far others go: beyond all of them the general law holds
            beyond = math.exp(-_TAIL_POWER * math.log(z / (_TALLEST_TIMES * self.tallest)))
            chance = min(chance, beyond / (_RATE_ROWS + self.watched))
        return chance

    @property
    def rate(self) -> float:
        """Which share of the rows is out by itself."""
        return min(0.5, (1.0 + self.outs) / (_RATE_ROWS + self.watched))

    def note_reach(self, value: float) -> None:
        """A row that was out, above or below: a series around zero goes that far."""
        self.reach = max(self.reach, abs(value - self.centre))

    def note_single(self, z: float) -> None:
        """Rows that were out by themselves, `z` at most: it is kept in mind how far."""
        if z >= OUT_SIGMAS:
            self.outs += 1.0
            self.tallest = max(self.tallest, z)
            self.heights += math.log(min(z / OUT_SIGMAS, 1e6))

    def renew(self) -> None:
        """From here on rows are of another kind, as when the log interval changes: the level is learned anew.
        How far out single rows go stays known."""
        self.rows, self.wait, self.slope, self.high = 0, _SETTLE_ROWS, 0.0, math.inf
        del self.recent[:], self.gaps[:]

    def accept(self, values: Sequence[float]) -> None:
        """A new level holds: these are its rows."""
        if self.is_log and min(values) <= 0.0:
            self._take_as_it_is()
        first = [math.log(value) for value in values[:CENTRE_ROWS]] if self.is_log else values[:CENTRE_ROWS]
        self.recent, self.gaps = array("d", first), self.gaps[-SPREAD_ROWS // 4 :]
        self.centre = sorted(self.recent)[len(self.recent) // 2]
        self.wait = _SETTLE_ROWS
        for value in values[CENTRE_ROWS:]:
            self.take(value)
        self._settle()

    def _settle(self) -> None:
        """The centre anew from the last rows, and now and then the spread."""
        recent = self.recent
        count = _SETTLE_ROWS - self.wait
        self.rows += count
        rows, self.wait = self.rows, _SETTLE_ROWS
        if rows > _SETTLE_ROWS and count:  # the first rows have no centre yet to be held against
            slope = self.slope
            first = self.centre - slope * count
            if slope:
                self.gaps.extend(value - first - slope * k for k, value in enumerate(recent[-count:]))
            else:
                self.gaps.extend([value - first for value in recent[-count:]])
            self.watched += count
        slope = self.slope = self._slope()
        last = list(recent[-CENTRE_ROWS:])
        if slope:  # each row carried on to the first of those to come
            ahead = len(last)
            last = [value + slope * (ahead - k) for k, value in enumerate(last)]
        last.sort()
        self.centre = last[len(last) // 2]
        if rows < CENTRE_ROWS:
            return
        del recent[:-_RECENT_ROWS]
        del self.gaps[: -min(SPREAD_ROWS, max(_YOUNG_ROWS, rows // 2))]
        if rows < SPREAD_ROWS or rows // _SETTLE_ROWS % _SPREAD_TIMES == 0:
            self._respread()
        self.scale = 1.0 if self.is_log else max(abs(self.centre), self.spread)
        if self.scale > 0:  # of a series of zeros nothing is known
            base = self.base
            self.high = max(
                self.raised(HIGH_SIGMAS), base + self.floor * (base if self.is_log else self.scale)
            )
            if not self.is_log:
                self.low = self.centre - OUT_SIGMAS * self.spread

    def _slope(self) -> float:
        """Per row, of a series that falls; else 0: a rise is not followed, it may be the beginning of one."""
        recent = self.recent
        count = len(recent)
        part = min(_SLOPE_ROWS, count // 3)
        if part < 3:
            return 0.0
        half = part // 2
        second = sorted(recent[count - 2 * part : count - part])[half]
        before = second - sorted(recent[count - 3 * part : count - 2 * part])[half]
        if before >= 0:
            return 0.0
        after = sorted(recent[count - part :])[half] - second
        return max(before, after) / part if after < 0 else 0.0

    def _respread(self) -> None:
        count = len(self.gaps)
        if not count:
            return
        middle = sorted(self.gaps)[count // 2]
        bulk, tail = _spreads(self.gaps, self.is_log)
        values = sorted(set(self.recent))
        if len(values) > 1 and 2 * len(values) <= len(self.recent):
            self.quantum = min(b - a for a, b in itertools.pairwise(values))
        # few rows know their spread badly: half as much again at 16, nothing to speak of at 100; those that
        # hang together count for fewer
        counting = max(_COUNT_AT_LEAST, count * (1.0 - self.carry) / (1.0 + self.carry))
        wide = max(bulk, tail) * (1.0 + 8.0 / counting)
        if count > 2 * _LATELY_ROWS:
            bulk_lately, tail_lately = _spreads(self.gaps[-_LATELY_ROWS:], self.is_log)
            wide = min(wide, _LATELY_TIMES * max(bulk_lately, tail_lately))
            bulk = min(bulk, _LATELY_TIMES * bulk_lately)
        self.bulk = max(bulk, self.quantum)
        self.spread = max(wide, self.quantum)
        # a series that rises is not out for it; one that falls may stop to
        self.bias = max(middle, 0.0)
        self.carry += 0.25 * (self._carry() - self.carry)
        if self.watched > _FORGET_ROWS:
            self.watched, self.outs, self.heights = self.watched / 2, self.outs / 2, self.heights / 2

    def _carry(self) -> float:
        """How much of a row's height over the level the next row has again.

        From how often the series turns: differences of rows that know nothing of each other go the same way
        twice in a third of all cases, those of a slow wave always. A trend does not matter to it.
        """
        recent = self.recent
        steps = [b - a for a, b in itertools.pairwise(recent) if a != b]
        pairs = len(steps) - 1
        if pairs < 2 * _SETTLE_ROWS:
            return 0.0
        same = sum((a > 0) == (b > 0) for a, b in itertools.pairwise(steps)) / pairs
        return min(1.0, max(0.0, 1.0 + 2.0 * math.sin(math.pi * (same - 0.5)) - _CARRY_LESS))


def _spreads(gaps: Sequence[float], is_log: bool) -> tuple[float, float]:
    """Sigmas of the bulk of the rows, by its quarters, and of their tail, by its outer twentieth on the wider
    side.

    A heavy tail is up to 1.3 times its bulk (a t distribution of 3 degrees of freedom). One that is longer,
    but short beside the level, comes from a few rows on the way back from a spike. Where it is long beside
    the level as well, or there is no level but zero, rows are of two kinds, as in policy training: it counts.
    """
    known = sorted(gaps)
    count = len(known)
    middle, far = known[count // 2], min(count - 1, (19 * count) // 20)
    bulk = (known[(3 * count) // 4] - known[count // 4]) / 1.349
    if is_log:
        tail = (known[far] - middle) / 1.645
        if bulk and tail < _TAIL_SHORT:
            tail = min(tail, _TAIL_TIMES * bulk)
    else:
        tail = max(known[far] - middle, middle - known[count - 1 - far]) / 1.645
    return bulk, tail
