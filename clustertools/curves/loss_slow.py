"""Rises of a series over tens of rows, too slow for any row of them to be out. Streaming. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

#: Rows of which the median is one block: as often as a level looks at its centre.
BLOCK_ROWS = 8
#: A block is held against the medians of so many blocks that ended so many blocks ago, and of as many before
#: them twice: the lowest of the three counts. They reach from 24 to 240 rows back, so that what rises within
#: tens of rows has not moved them yet, and a loss that falls is held against the newest.
_BACK_BLOCKS, _SKIP_BLOCKS, _TIMES_BACK = 9, 3, 3
#: Blocks that are kept, and how many of them are known before anything is told: what a young run does over
#: hundreds of rows is not known sooner.
_KEPT_BLOCKS, _KNOWN_BLOCKS = 40, 40
#: A rise has to be 10 % of the level (loss.md section 4), three times what the run ever rose lately, and ten
#: of the sigmas that a median of eight rows has.
_LIFT, _TIMES, _SPREADS = 0.10, 3.0, 4.5
#: Blocks in a row that have to show it.
_BLOCKS_OUT = 2


class Slow:
    """The blocks of one series."""

    __slots__ = ("before", "is_log", "middles", "out", "rates", "spreads")

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        #: of each block its median, how fast that has come up from those before, the spread of the level, and
        #: the median of the blocks before
        self.middles = array("d", saved.get("middles", ()))
        self.rates = array("d", saved.get("rates", ()))
        self.spreads = array("d", saved.get("spreads", ()))
        self.before = array("d", saved.get("before", ()))
        #: the steps of the last blocks that show a rise
        self.out: list[int] = list(saved.get("out", ()))
        self.is_log: bool = saved.get("is_log", True)

    def state(self) -> dict[str, Any]:
        kept = {name: list(getattr(self, name)) for name in self.__slots__ if name != "is_log"}
        return {**kept, "is_log": self.is_log}

    def _forget(self) -> None:
        self.out = []
        del self.middles[:], self.rates[:], self.spreads[:], self.before[:]

    def _keep(self, *block: float) -> None:
        for series, value in zip((self.middles, self.rates, self.spreads, self.before), block, strict=True):
            series.append(value)
            del series[:-_KEPT_BLOCKS]

    def add(
        self, step: int, values: Sequence[float], spread: float, is_log: bool
    ) -> tuple[int, float] | None:
        """The rows of the next block, `step` that of the last one. Returns the step from which on the series
        has risen and what it had been, once that is sure. `is_log`: the values are logarithms."""
        middle = sorted(values)[len(values) // 2]
        if is_log != self.is_log:
            self.is_log = is_log
            self._forget()
        count = len(self.middles)
        lately = sorted(self.middles[-_BACK_BLOCKS - _SKIP_BLOCKS + 1 :][:_BACK_BLOCKS])
        if len(lately) < _BACK_BLOCKS:
            self._keep(middle, 0.0, spread, middle)
            return None
        medians = [lately[_BACK_BLOCKS // 2]]
        for times in range(1, _TIMES_BACK):
            if count >= times * _BACK_BLOCKS + _BACK_BLOCKS + _SKIP_BLOCKS - 1:
                medians.append(self.before[-times * _BACK_BLOCKS])
        before, back = min(medians), len(medians) * _BACK_BLOCKS
        gap = middle - before
        self._keep(middle, gap / back, spread, medians[0])
        if count + 1 < _KNOWN_BLOCKS or gap <= _LIFT * (1.0 if is_log else abs(before)):
            self.out = []
            return None
        fastest, known_spread = max(self.rates[:-_BACK_BLOCKS]), self.spreads[-_BACK_BLOCKS - 1]
        if gap <= max(_TIMES * back * fastest, _SPREADS * known_spread):
            self.out = []
            return None
        self.out.append(step)
        if len(self.out) < _BLOCKS_OUT:
            return None
        first = self.out[0]
        self._forget()
        return first, before
