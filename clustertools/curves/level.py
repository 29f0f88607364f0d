"""Where one series of a run is, how much it scatters, and how far out its single rows go. Streaming. Pure.

level = Level()
level.take(2.31)                 a row that belongs to the level
level.high                       above it a row is *out*; infinite before enough rows are known
level.z(5.1), level.rarity(5.1)  in robust sigmas; how many rows out of one come so far out by themselves

The centre is the median of the last rows. The spread is that of the rows against the centre that was known
when they came: what a trend, a schedule or a slow wave does to it is in there, so no model of them is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: The centre is the median of so many rows: odd, so that it is a value of the series and quanta stay whole.
CENTRE_ROWS = 15
#: Rows against their centre that make the spread. 95 % of it must be more than a handful.
SPREAD_ROWS = 96
#: The centre is looked at anew after so many rows, the spread after four times as many.
_SETTLE_ROWS = 8
#: Rows before anything can be out: the centre's, and one more.
READY_ROWS = 16
#: Robust sigmas from which on a row is out. The lowest tenth of real spikes peaks at 8.7 (loss.md section 1);
#: what comes by chance is told apart by the grad norm, the next row and the record of such rows.
OUT_SIGMAS = 6.0
#: Heights of single rows fall off as a power law; 3 where a run has shown none (a t distribution of 3 degrees
#: of freedom, as heavy as a tail with a variance can be), with the weight of so many rows seen.
_TAIL_POWER, _TAIL_WEIGHT = 3.0, 4.0
#: As if one row out had been seen in so many, before the run's own record counts.
_RATE_ROWS = 2000.0
#: The record forgets by half in so many rows: the data of a run change.
_FORGET_ROWS = 4096


class Level:
    """The running level of one series. Amortised constant work a row, bounded memory.

    `floor` is the share of the level that a row must be above it to be out, however small the spread is.
    """

    __slots__ = (  # noqa: RUF023 - in the order in which they are set
        "floor", "rows", "wait", "centre", "spread", "bias", "scale", "quantum", "high", "recent", "gaps",
        "outs", "heights", "watched",
    )  # fmt: skip

    def __init__(self, floor: float, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self.floor = floor
        self.rows: int = saved.get("rows", 0)
        self.wait: int = saved.get("wait", _SETTLE_ROWS)
        self.centre: float = saved.get("centre", 0.0)
        self.spread: float = saved.get("spread", 0.0)
        self.bias: float = saved.get("bias", 0.0)
        self.scale: float = saved.get("scale", 0.0)
        self.quantum: float = saved.get("quantum", 0.0)
        self.high: float = saved.get("high", math.inf)
        self.recent: list[float] = list(saved.get("recent", ()))
        self.gaps: list[float] = list(saved.get("gaps", ()))
        self.outs: float = saved.get("outs", 0.0)
        self.heights: float = saved.get("heights", 0.0)
        self.watched: float = saved.get("watched", 0.0)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Level(floor, state)` goes on from it."""
        names = (name for name in self.__slots__ if name != "floor")
        return {n: list(v) if isinstance(v := getattr(self, n), list) else v for n in names}

    @property
    def is_ready(self) -> bool:
        return self.rows >= READY_ROWS

    def take(self, value: float) -> None:
        """A row of the level. One that is out by itself is to be taken as `high`: it widens the spread if
        many come, and one does nothing."""
        self.recent.append(value)
        self.rows += 1
        self.wait -= 1
        if not self.wait:
            self._settle()

    def z(self, value: float) -> float:
        """Robust sigmas above the level."""
        return (value - self.centre - self.bias) / self.spread if self.spread > 0 else math.inf

    def lift(self, value: float) -> float:
        """How far above the level, as a share of it."""
        return (value - self.centre) / self.scale if self.scale > 0 else math.inf

    def rarity(self, value: float) -> float:
        """In how many rows out of one a single row comes out as far as this one, as the run itself shows.

        A power law over the heights at which single rows were out until now (the largest-value theory calls
        it peaks over a threshold), with a run that has shown little held near what runs do in general.
        """
        height = self.z(value) / OUT_SIGMAS
        if height <= 1.0:
            return 1.0
        power = (_TAIL_WEIGHT + self.outs) / (_TAIL_WEIGHT / _TAIL_POWER + self.heights)
        return self.rate * math.exp(-power * math.log(height)) if math.isfinite(height) else 0.0

    @property
    def rate(self) -> float:
        """Which share of the rows is out by itself."""
        return (1.0 + self.outs) / (_RATE_ROWS + self.watched)

    def note_single(self, value: float) -> None:
        """A row that was out by itself: it is kept in mind how far."""
        self.outs += 1.0
        self.heights += math.log(max(1.0, min(self.z(value) / OUT_SIGMAS, 1e6)))

    def accept(self, values: Sequence[float]) -> None:
        """A new level holds: these are its rows."""
        self.recent, self.gaps = list(values[:CENTRE_ROWS]), self.gaps[-SPREAD_ROWS // 4 :]
        self.centre = sorted(self.recent)[len(self.recent) // 2]
        self.wait = _SETTLE_ROWS
        for value in values[CENTRE_ROWS:]:
            self.take(value)
        self._settle()

    def _settle(self) -> None:
        """The centre anew from the last rows, and now and then the spread."""
        recent, rows = self.recent, self.rows
        new = recent[-(_SETTLE_ROWS - self.wait) :] if self.wait < _SETTLE_ROWS else []
        self.wait = _SETTLE_ROWS
        if rows > _SETTLE_ROWS:  # the first centre comes from the first rows: they say nothing against it
            centre = self.centre
            self.gaps += [value - centre for value in new]
        if rows < CENTRE_ROWS:
            middle = sorted(recent)
            self.centre = middle[len(middle) // 2]
            return
        self.centre = sorted(recent[-CENTRE_ROWS:])[CENTRE_ROWS // 2]
        self.watched += len(new)
        if rows < SPREAD_ROWS or rows // _SETTLE_ROWS % 4 == 0 or not math.isfinite(self.high):
            self._respread()
        if self.scale > 0:  # of a series of zeros nothing is known
            self.high = self.centre + max(self.bias + OUT_SIGMAS * self.spread, self.floor * self.scale)

    def _respread(self) -> None:
        del self.gaps[:-SPREAD_ROWS], self.recent[: -4 * CENTRE_ROWS]
        gaps = sorted(self.gaps)
        count = len(gaps)
        if not count:
            return
        middle = gaps[count // 2]
        # quarters for the bulk, the upper twentieth for a tail that is heavier than its bulk
        bulk = (gaps[(3 * count) // 4] - gaps[count // 4]) / 1.349
        tail = (gaps[min(count - 1, (19 * count) // 20)] - middle) / 1.645
        values = sorted(set(self.recent))
        if len(values) > 1 and 2 * len(values) <= len(self.recent):
            self.quantum = min(b - a for a, b in itertools.pairwise(values))
        # few rows know their spread badly: half as much again at 16, nothing to speak of at 100
        self.spread = max(bulk, tail, self.quantum) * (1.0 + 8.0 / count)
        self.scale = max(sorted(abs(v) for v in self.recent)[len(self.recent) // 2], self.spread)
        # a series that rises is not out for it; one that falls may stop to
        self.bias = max(middle, 0.0)
        if self.watched > _FORGET_ROWS:
            self.watched, self.outs, self.heights = self.watched / 2, self.outs / 2, self.heights / 2
