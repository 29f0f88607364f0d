"""How many seconds a step took, as a row of a log tells it. Pure.

signal = StepSeconds()
signal.of(row)          0.35, or None where the row does not tell it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clustertools.curves import Row
from clustertools.sources.step_times import SIZES

_SIZES = frozenset(SIZES)
#: From the surest to the least sure. A log is always read in the surest way that it has shown: what is told
#: as work per second is turned over, and the log's own clock comes last, for all pauses are in it.
WAYS = (
    "step_seconds", "throughput_tokens_per_second", "samples_per_second", "tflops_per_gpu", "clock",
)  # fmt: skip
_CLOCK = len(WAYS) - 1
#: What is not between these is no time of a step, nor the inverse of a throughput.
_LEAST, _MOST = 1e-15, 1e15
#: Rows after a start of the run that tell nothing of its pace: compiling, cold caches.
SKIPPED_AT_START = 3
#: Stamps of whole seconds are compared over so many seconds: one more or less is then 2.5 %.
COARSE_SECONDS = 40.0
#: A log interval is another one when so many rows in a row have it: a row that is missing is none.
_STRIDE_ROWS = 3


class StepSeconds:
    """Follows one run. `changed` says, until it is set back, that the rows from now on cannot be compared
    with those before: told in another way, another batch size or sequence length, another log interval.
    """

    __slots__ = (
        "_coarse", "_last", "_other", "_sizes", "_skip", "_step", "_stride", "_time", "_way", "changed",
        "first_step",
    )  # fmt: skip

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self._way: int = saved.get("way", len(WAYS))
        self._skip: int = saved.get("skip", SKIPPED_AT_START)
        #: The row before: its step and its stamp; and the step of the last row that a time was told of.
        self._step: int | None = saved.get("step")
        self._time: float | None = saved.get("time")
        #: Steps from row to row; another distance, and how many rows in a row have had that one.
        self._stride: int = saved.get("stride", 0)
        self._other: list[int] = list(saved.get("other", (0, 0)))
        self._coarse: bool = saved.get("coarse", True)
        self._sizes: dict[str, float] = dict(saved.get("sizes", {}))
        self._last: int | None = saved.get("last")
        #: The first row that the time told last is about.
        self.first_step: int | None = saved.get("first_step")
        self.changed: bool = saved.get("changed", False)

    def state(self) -> dict[str, Any]:
        return {
            "way": self._way, "skip": self._skip, "step": self._step, "time": self._time,
            "stride": self._stride, "other": list(self._other), "coarse": self._coarse,
            "sizes": dict(self._sizes), "last": self._last,
            "first_step": self.first_step, "changed": self.changed,
        }  # fmt: skip

    def restart(self) -> None:
        """A new start of the run: its first rows are not timed."""
        self._skip = SKIPPED_AT_START
        self._step = self._time = self._last = self.first_step = None

    @property
    def metric(self) -> str:
        """What the seconds were told as; `step_seconds` also for the log's clock."""
        return WAYS[self._way] if self._way < _CLOCK else WAYS[0]

    @property
    def quantum(self) -> float:
        """By how much the log's way to tell it makes it uncertain, as a share."""
        return 1 / COARSE_SECONDS if self._way == _CLOCK and self._coarse else 0.0

    def of(self, row: Row) -> float | None:
        """Seconds a step (of throughput: its inverse), or None."""
        values, step = row.values, row.step
        before, self._step = self._step, step
        if before is not None:
            steps = step - before
            if steps != self._stride:
                self._other_stride(steps)
            elif self._other[1]:
                self._other[1] = 0
        else:
            steps = 0
        if not _SIZES.isdisjoint(values):
            self._compare_sizes(values)
        seconds = values.get("step_seconds") if self._way == 0 else self._by_other_ways(row, steps)
        if seconds is None or not _LEAST < seconds < _MOST:
            return None
        if self._skip:
            self._skip -= 1
            return None
        if self._way != _CLOCK:
            self.first_step = step
        return seconds

    def _by_other_ways(self, row: Row, steps: int) -> float | None:
        for way, name in enumerate(WAYS[: self._way + 1]):
            if way == _CLOCK:
                break
            told = row.values.get(name)
            if told is None or not 0.0 < told < math.inf:
                continue
            self._goes(way)
            return told if way == 0 else 1.0 / told
        if row.time is None or not math.isfinite(row.time) or self._way < _CLOCK:
            return None
        self._goes(_CLOCK)
        return self._by_clock(row.step, row.time, steps)

    def _goes(self, way: int) -> None:
        if way != self._way:
            self.changed = self._way < len(WAYS)
            self._way = way

    def _by_clock(self, step: int, time: float, steps: int) -> float | None:
        if self._coarse and time % 1.0 != 0.0:
            self._coarse = False
        before, last = self._time, self._last
        if before is None or last is None or time < before or steps <= 0:
            self._time, self._last = time, step
            return None
        lasted = time - before
        if self._coarse and lasted < COARSE_SECONDS:
            return None
        self.first_step = last + 1 if step - last > steps else step
        self._time, self._last = time, step
        return lasted / (step - last)

    def _other_stride(self, steps: int) -> None:
        if steps <= 0:
            return
        rows = self._other[1] + 1 if steps == self._other[0] else 1
        self._other = [steps, rows]
        if self._stride == 0 or rows >= _STRIDE_ROWS:
            self.changed = self.changed or self._stride != 0
            self._stride, self._other = steps, [0, 0]

    def _compare_sizes(self, values: Mapping[str, float]) -> None:
        for name in _SIZES:
            if name in values and (now := values[name]) == now:
                if self._sizes.get(name, now) != now:
                    self.changed = True
                self._sizes[name] = now
