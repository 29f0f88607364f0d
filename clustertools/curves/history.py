"""A whole run in a few dozen points: medians of blocks of rows, made coarser as the run grows longer. Pure.

history = History(); history.add(row)      True when another point is complete
history.points                             64 at most, evenly spaced in rows
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clustertools.curves import Row

#: Rows of a block, of which the median is taken: one or two outliers do not move it.
BLOCK_ROWS = 8
#: When there are so many points, each two are made one.
POINTS_AT_MOST = 64


class Point(NamedTuple):
    """`step` is its first row's; the others are None where the rows had none of it."""

    step: int
    loss: float
    grad_norm: float | None
    param_norm: float | None
    learning_rate: float | None


class History:
    """The points of one run so far, and the rows of the block that is not full yet."""

    __slots__ = ("_blocks", "_grads", "_losses", "_numbers", "_step", "_sums", "width")

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        # the points one after the other, nan for None: a tenth of the memory of tuples
        self._numbers = array("d")
        self._keep([Point(*p) for p in saved.get("points", ())])
        #: Blocks that make a point now.
        self.width: int = saved.get("width", 1)
        # of the point that is not complete: its first step, its blocks, of each metric the sum and how many
        self._step: int | None = saved.get("step")
        self._blocks: int = saved.get("blocks", 0)
        self._sums: list[list[float]] = [list(s) for s in saved.get("sums", _nothing())]
        self._losses: list[float] = list(saved.get("losses", ()))
        self._grads: list[float] = list(saved.get("grads", ()))

    def state(self) -> dict[str, Any]:
        """JSON-ready; `History(state)` goes on from it."""
        return {
            "points": [list(p) for p in self.points], "width": self.width, "step": self._step,
            "blocks": self._blocks, "sums": [list(s) for s in self._sums], "losses": list(self._losses),
            "grads": list(self._grads),
        }  # fmt: skip

    @property
    def points(self) -> list[Point]:
        numbers = iter(self._numbers.tolist())
        return [
            Point(int(step), loss, *(None if x != x else x for x in others))
            for step, loss, *others in zip(*[numbers] * len(Point._fields), strict=True)
        ]

    @property
    def count(self) -> int:
        """How many points there are."""
        return len(self._numbers) // len(Point._fields)

    def _keep(self, points: Sequence[Point]) -> None:
        self._numbers = array("d", [math.nan if x is None else x for point in points for x in point])

    def add(self, row: Row) -> bool:
        """Whether the row completed a point."""
        values = row.values
        loss = values.get("loss")
        # x - x is 0 for all that is finite
        if loss is None or loss - loss != 0.0:
            return False
        losses = self._losses
        losses.append(loss)
        grad = values.get("grad_norm")
        if grad is not None and grad - grad == 0.0:
            self._grads.append(grad)
        if len(losses) < BLOCK_ROWS:
            if self._step is None:
                self._step = row.step
            return False
        return self._end_block(values)

    def _end_block(self, values: Mapping[str, float]) -> bool:
        """The medians of the losses and grad norms; what else the last row of the block has."""
        losses, grads = self._losses, self._grads
        losses.sort()
        grads.sort()
        half = BLOCK_ROWS // 2
        medians = (
            (losses[half - 1] + losses[half]) / 2, grads[len(grads) // 2] if len(grads) >= half else None,
            values.get("param_norm"), values.get("learning_rate"),
        )  # fmt: skip
        for told, value in zip(self._sums, medians, strict=True):
            if value is not None and value - value == 0.0:
                told[0] += value
                told[1] += 1
        losses.clear()
        grads.clear()
        self._blocks += 1
        if self._blocks < self.width:
            return False
        loss, *others = (_short(total / n) if n else None for total, n in self._sums)
        assert self._step is not None
        assert loss is not None
        self._numbers.extend((self._step, loss, *(math.nan if x is None else x for x in others)))
        self._step, self._blocks, self._sums = None, 0, _nothing()
        if self.count == POINTS_AT_MOST:
            points = self.points
            self._keep([_one_of(points[i], points[i + 1]) for i in range(0, POINTS_AT_MOST, 2)])
            self.width *= 2
        return True

    def back_to(self, step: int) -> None:
        """The run went back: what was logged from `step` on is void."""
        self._keep([p for p in self.points if p.step < step])
        self._step, self._blocks, self._sums, self._losses, self._grads = None, 0, _nothing(), [], []


def _nothing() -> list[list[float]]:
    return [[0.0, 0] for _ in Point._fields[1:]]


def _short(value: float) -> float:
    """Five digits: enough for a level, and short in a saved state."""
    return float(f"{value:.5g}")


def _one_of(first: Point, second: Point) -> Point:
    others = (
        b if a is None else a if b is None else _short((a + b) / 2)
        for a, b in zip(first[2:], second[2:], strict=True)
    )
    return Point(first.step, _short((first.loss + second.loss) / 2), *others)


def smooth(values: Sequence[float]) -> list[float]:
    """The median of each value and its two neighbours; at the ends, of the first and last three."""
    if len(values) < 3:
        return list(values)
    inner = [sorted(values[i - 1 : i + 2])[1] for i in range(1, len(values) - 1)]
    return [inner[0], *inner, inner[-1]]
