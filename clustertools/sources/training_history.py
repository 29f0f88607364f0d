"""What a run's log said around each step, kept small, to compare with after a restart. Pure.

history.add(point)            while it trains
history.between("learning_rate", 1510)     what it was at that step before, or None
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from clustertools.sources.training_values import Point

#: Steps that are remembered. When they are too many, every second one of the older half goes.
STEPS_AT_MOST = 128
#: Values that continue over a restart, by canonical name.
KEPT = ("loss", "learning_rate", "samples")
#: Losses on either side of a step that say what is usual there.
_AROUND = 10


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

    def between(self, name: str, step: int) -> tuple[float, float] | None:
        """The lowest and highest of what `name` was in the lines beside `step`; None where none came so far.

        A little beyond the last line: of what it would have become there.
        """
        known = self._known(name, step)
        if not known:
            return None
        place = bisect.bisect_left(known, (step, -math.inf))
        (s0, v0), (s1, v1) = known[-2:]
        if step > s1:
            beside = v1, v1 + (v1 - v0) * (step - s1) / (s1 - s0)
        else:
            beside = known[max(0, place - 1)][1], known[place][1]
        return min(beside), max(beside)

    def around(self, name: str, step: int) -> list[float]:
        """What `name` was in the lines around `step`; none where the log had not come so far."""
        known = self._known(name, step)
        place = bisect.bisect_left(known, (step, -math.inf))
        return [value for _, value in known[max(0, place - _AROUND) : place + _AROUND]]

    def _known(self, name: str, step: int) -> list[tuple[int, float]]:
        column = 1 + KEPT.index(name)
        known = [(row[0], row[column]) for row in self._rows if row[column] is not None]
        reach = 5 * (self.stride or 1)
        within = len(known) >= 3 and known[0][0] <= step <= known[-1][0] + reach
        return known if within else []

    def state(self) -> list[list[Any]]:
        """JSON-ready; `History(state)` goes on from it."""
        return [list(row) for row in self._rows]


def _rounded(value: float | None) -> float | None:
    """Short in the store, and None for what is no number: nothing can be compared with it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")
