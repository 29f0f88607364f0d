"""Rises of a series over tens of rows, too slow for any row of them to be out. Streaming. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Rows of which the median is one block: as often as a level looks at its centre.
BLOCK_ROWS = 8
#: A block is held against the medians of so many blocks that ended so many blocks ago, and of as many before
#: them twice: the lowest of the three counts. They reach from 24 to 240 rows back, so that what rises within
#: tens of rows has not moved them yet, and a loss that falls is held against the newest.
_BACK_BLOCKS, _SKIP_BLOCKS, _TIMES_BACK = 9, 3, 3
#: Blocks that are kept, and how many of them are known before anything is told.
_KEPT_BLOCKS, _KNOWN_BLOCKS = 40, 24
#: A rise has to be 10 % of the level (loss.md section 4), twice as much as the run ever rose lately, and ten
#: of the sigmas that a median of eight rows has.
_LIFT, _TIMES, _SPREADS = 0.10, 2.0, 4.5
#: Blocks in a row that have to show it.
_BLOCKS_OUT = 2


class Slow:
    """The blocks of one series."""

    __slots__ = ("blocks", "out")

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        #: of each block its median, how fast that has come up from those before, the spread of the level, and
        #: the median of the blocks before
        self.blocks: list[list[float]] = [list(block) for block in saved.get("blocks", ())]
        #: the steps of the last blocks that show a rise
        self.out: list[int] = list(saved.get("out", ()))

    def state(self) -> dict[str, Any]:
        return {"blocks": self.blocks, "out": self.out}

    def add(self, step: int, values: list[float], spread: float) -> tuple[int, float] | None:
        """The rows of the next block, `step` that of the last one. Returns the step from which on the series
        has risen and what it had been, once that is sure."""
        middle = sorted(values)[len(values) // 2]
        blocks = self.blocks
        lately = [block[0] for block in blocks[-_BACK_BLOCKS - _SKIP_BLOCKS + 1 :]][:_BACK_BLOCKS]
        if len(lately) < _BACK_BLOCKS:
            blocks.append([middle, 0.0, spread, middle])
            return None
        lately.sort()
        medians = [lately[_BACK_BLOCKS // 2]]
        for times in range(1, _TIMES_BACK):
            if len(blocks) >= times * _BACK_BLOCKS + _BACK_BLOCKS + _SKIP_BLOCKS - 1:
                medians.append(blocks[-times * _BACK_BLOCKS][3])
        before, back = min(medians), len(medians) * _BACK_BLOCKS
        gap = middle - before
        blocks.append([middle, gap / back, spread, medians[0]])
        del blocks[:-_KEPT_BLOCKS]
        if len(blocks) < _KNOWN_BLOCKS or gap <= _LIFT * abs(before):
            self.out = []
            return None
        known = blocks[:-_BACK_BLOCKS]
        if gap <= max(_TIMES * back * max(block[1] for block in known), _SPREADS * known[-1][2]):
            self.out = []
            return None
        self.out.append(step)
        if len(self.out) < _BLOCKS_OUT:
            return None
        first = self.out[0]
        self.out, self.blocks = [], []
        return first, before
