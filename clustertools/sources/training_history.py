"""What a run's log said around each step, kept small, to compare with after a restart. Pure.

history.add(point)            while it trains
history.expected("learning_rate", 1510)     the values of that step as they were before, or None
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from clustertools.sources.training_values import Point
from clustertools.stats import median_and_spread

#: Steps that are remembered. When they are too many, every second one of the older half goes.
STEPS_AT_MOST = 128
#: Values that continue over a restart, by canonical name.
KEPT = ("loss", "learning_rate", "samples")
#: Losses on either side of a step that say what is usual there.
_AROUND = 10


@dataclass(frozen=True, slots=True)
class Usual:
    """What a value was at a step: `low` to `high` between its neighbours, and how much it scatters."""

    low: float
    high: float
    spread: float = 0.0
    count: int = 0


class History:
    """Steps in rising order with the values that the log told of them."""

    def __init__(self, rows: Iterable[Iterable[Any]] = ()) -> None:
        self._rows: list[list[Any]] = [list(row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def last_step(self) -> int | None:
        return self._rows[-1][0] if self._rows else None

    @property
    def stride(self) -> int | None:
        """Steps between two lines of the log, as it is most of the time; None until that is known."""
        steps = [row[0] for row in self._rows[-STEPS_AT_MOST // 4 :]]
        if len(steps) < 3:
            return None
        return int(statistics.median_low([b - a for a, b in pairwise(steps)]))

    def add(self, point: Point) -> None:
        """Take in what a line says of a step. Lines of the same step are put together."""
        if point.step is None or point.evaluation:
            return
        values = [_rounded(point.values.get(name)) for name in KEPT]
        last = self.last_step
        if last is not None and point.step < last:
            return
        if last == point.step:
            row = self._rows[-1]
            row[1:] = [new if old is None else old for old, new in zip(row[1:], values, strict=True)]
        elif any(v is not None for v in values):
            self._rows.append([point.step, *values])
        if len(self._rows) > STEPS_AT_MOST:
            half = len(self._rows) // 2
            self._rows = self._rows[:half:2] + self._rows[half:]

    def cut(self, step: int) -> None:
        """Forget what was after `step`: the run went back there."""
        self._rows = [row for row in self._rows if row[0] <= step]

    def expected(self, name: str, step: int) -> Usual | None:
        """What `name` was at `step`; None where the log had not come so far, or too few lines tell.

        The loss is what is usual around the step, the others lie between those of the lines beside it.
        """
        column = 1 + KEPT.index(name)
        known = [(row[0], row[column]) for row in self._rows if row[column] is not None]
        if len(known) < 3:
            return None
        place = bisect.bisect_left(known, (step, -math.inf))
        beyond = step - known[-1][0]
        if step < known[0][0] or beyond > 5 * (self.stride or 1):
            return None
        if name == "loss":
            near = [value for _, value in known[max(0, place - _AROUND) : place + _AROUND]]
            middle, spread = median_and_spread(near)
            return Usual(middle, middle, spread, len(near))
        before, after = known[max(0, place - 1)], known[min(place, len(known) - 1)]
        if beyond > 0:
            # it goes on as it went between the last two lines
            (s0, v0), (s1, v1) = known[-2:]
            ahead = v1 + (v1 - v0) * (step - s1) / (s1 - s0)
            return Usual(min(v1, ahead), max(v1, ahead), 0.0, 2)
        return Usual(min(before[1], after[1]), max(before[1], after[1]), 0.0, 2)

    def state(self) -> list[list[Any]]:
        """JSON-ready; `History(state)` goes on from it."""
        return [list(row) for row in self._rows]


def _rounded(value: float | None) -> float | None:
    """Short in the store, and None for what is no number: nothing can be compared with it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")
