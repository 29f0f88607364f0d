"""A whole run in a few dozen points: medians of blocks of rows, made coarser as the run grows longer. Pure.

history = History(); history.add(row)      True when another point is complete
history.points                             64 at most, evenly spaced in rows
"""

from __future__ import annotations

import math
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

    __slots__ = ("_block", "_blocks", "_grads", "_losses", "_lr", "_norm", "_step", "points", "width")

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self.points: list[Point] = [Point(*p) for p in saved.get("points", ())]
        #: Blocks that make a point now.
        self.width: int = saved.get("width", 1)
        self._blocks: list[Point] = [Point(*p) for p in saved.get("blocks", ())]
        self._step: int = saved.get("step", 0)
        self._losses: list[float] = list(saved.get("losses", ()))
        self._grads: list[float] = list(saved.get("grads", ()))
        self._norm: float | None = saved.get("norm")
        self._lr: float | None = saved.get("lr")
        self._block: int = saved.get("block", 0)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `History(state)` goes on from it."""
        return {
            "points": [list(p) for p in self.points], "width": self.width,
            "blocks": [list(p) for p in self._blocks], "step": self._step, "losses": list(self._losses),
            "grads": list(self._grads), "norm": self._norm, "lr": self._lr, "block": self._block,
        }  # fmt: skip

    def add(self, row: Row) -> bool:
        """Whether the row completed a point."""
        values = row.values
        loss = values.get("loss")
        # x - x is 0 for all that is finite
        if loss is None or loss - loss != 0.0:
            return False
        losses = self._losses
        if not losses:
            self._step = row.step
        losses.append(loss)
        grad = values.get("grad_norm")
        if grad is not None and grad - grad == 0.0:
            self._grads.append(grad)
        if len(losses) < BLOCK_ROWS:
            return False
        self._norm, self._lr = values.get("param_norm"), values.get("learning_rate")
        return self._end_block()

    def _end_block(self) -> bool:
        losses, grads = sorted(self._losses), sorted(self._grads)
        half = BLOCK_ROWS // 2
        loss = (losses[half - 1] + losses[half]) / 2
        grad = grads[len(grads) // 2] if len(grads) >= half else None
        self._losses, self._grads = [], []
        block = Point(self._step, float(f"{loss:.6g}"), _short(grad), _short(self._norm), _short(self._lr))
        # as a binary counter: two of a kind make one of the next, so that 2**k blocks need k places
        self._block += 1
        blocks, count = self._blocks, self._block
        while count % 2 == 0 and blocks:
            block = _one_of(blocks.pop(), block)
            count //= 2
        if self._block < self.width:
            blocks.append(block)
            return False
        self._block, self._blocks = 0, []
        self.points.append(block)
        if len(self.points) == POINTS_AT_MOST:
            points = self.points
            self.points = [_one_of(points[i], points[i + 1]) for i in range(0, POINTS_AT_MOST, 2)]
            self.width *= 2
        return True

    def back_to(self, step: int) -> None:
        """The run went back: what was logged from `step` on is void."""
        self.points = [p for p in self.points if p.step < step]
        self._blocks, self._losses, self._grads, self._block = [], [], [], 0


def _short(value: float | None) -> float | None:
    """Four digits: enough for a level, and short in a saved state."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _one_of(first: Point, second: Point) -> Point:
    loss = float(f"{(first.loss + second.loss) / 2:.6g}")
    return Point(first.step, loss, *(_mean(a, b) for a, b in zip(first[2:], second[2:], strict=True)))


def _mean(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return _short((a + b) / 2)


def smooth(values: Sequence[float]) -> list[float]:
    """The median of each value and its two neighbours; at the ends, of the first and last three."""
    if len(values) < 3:
        return list(values)
    inner = [sorted(values[i - 1 : i + 2])[1] for i in range(1, len(values) - 1)]
    return [inner[0], *inner, inner[-1]]
