"""How long steps take, over a run's history: whether they became slower, and by how much. Pure.

times = StepTimes(state)
times.add(items, nodes=64)          what the log says since the last look
times.slow(limits...)               Slow(ratio=1.056, ...) or None

Steps are timed as the log tells it (seconds per step, else its own clock, else tokens per second), gathered
into stretches of some minutes, and a stretch counts by its median: evaluations, saves and the first lines
after a start do not show in it. Stretches are compared only with those of the same batch size, sequence
length and number of nodes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from clustertools.sources.training_values import Event, Point

#: A stretch has at least so many lines, steps and seconds.
STRETCH_LINES = 3
STRETCH_STEPS = 10
STRETCH_SECONDS = 120.0
#: Lines after a start, an evaluation or a save that are not timed: warm-up, compiling, cold caches.
SKIPPED_AT_START = 3
#: Stretches that are remembered of one kind of steps, and kinds.
STRETCHES_AT_MOST = 96
KINDS_AT_MOST = 4
#: A run's usual pace is what a quarter of its stretches reach: those with a slow node do not move it soon.
USUAL_QUANTILE = 0.25
#: Names under which logs tell what changes the work of one step.
SIZES = (
    "global_batch_size", "batch_size", "bsz", "micro_batch_size", "sequence_length", "seq_length", "seqlen",
    "seq_len", "curriculum_seqlen",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slow:
    """Steps take `ratio` times what they did: `now_seconds` instead of `usual_seconds`. Where the log only
    tells tokens per second, these are their inverse. `since_start`: this start of the run never was faster.
    """

    ratio: float
    usual_seconds: float
    now_seconds: float
    noise: float
    stretches: int
    since_start: bool


@dataclass
class _Kind:
    """Stretches of steps that can be compared, oldest first: those at the usual pace, and the slow ones
    since, which do not count as usual. `of_start`: how many of this start of the run were usual."""

    usual: list[float] = field(default_factory=list)
    slow: list[float] = field(default_factory=list)
    of_start: int = 0


class StepTimes:
    """Follows one run. `state()` is JSON-ready and `StepTimes(state)` goes on from it."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._kinds: dict[str, _Kind] = {
            key: _Kind(list(v[0]), list(v[1]), int(v[2])) for key, v in state.get("kinds", {}).items()
        }
        self._open: list[list[float]] = [list(row) for row in state.get("open", ())]
        self._key: str = state.get("key", "")
        self._last: list[Any] = list(state.get("last", (None, None)))
        self._skip: int = state.get("skip", SKIPPED_AT_START)
        self._way: str = state.get("way", "")

    def state(self) -> dict[str, Any]:
        return {
            "kinds": {key: [k.usual, k.slow, k.of_start] for key, k in self._kinds.items()},
            "open": self._open, "key": self._key, "last": self._last, "skip": self._skip, "way": self._way,
        }  # fmt: skip

    def begin(self) -> None:
        """A new start of the run: its first lines are not timed, and it has shown nothing yet."""
        self._open, self._last, self._skip = [], [None, None], SKIPPED_AT_START
        for kind in self._kinds.values():
            kind.of_start = 0

    def add(self, items: Iterable[Point | Event], nodes: int, least: float) -> None:
        """Take in what the log says. From `least` on, such as 0.05 more, a stretch is not the usual pace."""
        for item in items:
            if isinstance(item, Event):
                if item.kind in ("restart_marker", "resumed"):
                    self.begin()
                # what comes next waited for it
                self._last = [None, None]
                self._skip = max(self._skip, 1) if item.kind != "checkpoint_started" else self._skip
            elif item.evaluation:
                self._last = [None, None]
                self._skip = max(self._skip, 1)
            elif item.step is not None:
                self._point(item, nodes, least)

    def _point(self, point: Point, nodes: int, least: float) -> None:
        step, at = self._last
        assert point.step is not None
        if step is not None and point.step <= step:
            return
        self._last = [point.step, point.time]
        steps = point.step - step if step is not None else 1
        seconds = self._seconds(point, steps, at)
        if seconds is None:
            return
        if self._skip > 0:
            self._skip -= 1
            return
        sizes = [f"{name}={point.values[name]:g}" for name in SIZES if name in point.values]
        key = " ".join([self._way, f"nodes={nodes}", *sizes])
        if key != self._key:
            self._key, self._open = key, []
        self._open.append([seconds, steps])
        if self._is_full():
            self._close(least)

    def _seconds(self, point: Point, steps: int, at: float | None) -> float | None:
        """Seconds a step; always told in the same way in one log, the surest that it has."""
        told = point.values.get("step_seconds")
        if told is not None:
            way, seconds = "told", told
        elif point.time is not None and self._way != "told":
            way, seconds = "clock", math.nan if at is None else (point.time - at) / steps
        elif (
            self._way in ("", "speed") and (speed := point.values.get("throughput_tokens_per_second", 0)) > 0
        ):
            way, seconds = "speed", 1 / speed
        else:
            return None
        if way != self._way:
            self._way, self._open = way, []
        return seconds if math.isfinite(seconds) and seconds > 0 else None

    def _is_full(self) -> bool:
        steps = sum(n for _, n in self._open)
        lasted = STRETCH_SECONDS if self._way == "speed" else sum(s * n for s, n in self._open)
        many = len(self._open) >= STRETCH_LINES and steps >= STRETCH_STEPS
        return many and (lasted >= STRETCH_SECONDS or len(self._open) >= 400)

    def _close(self, least: float) -> None:
        middle = statistics.median(seconds for seconds, _ in self._open)
        self._open = []
        kind = self._kinds.pop(self._key, _Kind())
        self._kinds[self._key] = kind
        while len(self._kinds) > KINDS_AT_MOST:
            self._kinds.pop(next(iter(self._kinds)))
        if kind.usual and middle > self._usual(kind) * (1 + self._limit(kind, least)):
            kind.slow = [*kind.slow, middle][-STRETCHES_AT_MOST:]
            return
        # back again: single slow stretches belong to the usual course of things
        kind.usual = [*kind.usual, *kind.slow[:1], middle][-STRETCHES_AT_MOST:]
        kind.slow = []
        kind.of_start += 1

    @staticmethod
    def _usual(kind: _Kind) -> float:
        ordered = sorted(kind.usual)
        return ordered[int(USUAL_QUANTILE * (len(ordered) - 1))]

    @staticmethod
    def _noise(kind: _Kind) -> float:
        """How much stretches that follow each other differ, as a share; steps up or down count once."""
        known = kind.usual
        if len(known) < 3:
            return 0.0
        return 1.4826 / math.sqrt(2) * statistics.median(abs(b - a) for a, b in pairwise(known)) / known[-1]

    def _limit(self, kind: _Kind, least: float) -> float:
        return max(least, 6 * self._noise(kind))

    def slow(self, persistent: int, at_least: int) -> Slow | None:
        """How much slower the newest steps are, once `persistent` stretches in a row were, and at least
        `at_least` are known at the usual pace; else None."""
        kind = self._kinds.get(self._key)
        if kind is None or len(kind.slow) < persistent or len(kind.usual) < at_least:
            return None
        usual, now = self._usual(kind), statistics.median(kind.slow[-persistent:])
        return Slow(now / usual, usual, now, self._noise(kind), len(kind.slow), kind.of_start == 0)

    def accept(self) -> None:
        """The slow pace is the usual one from now on."""
        if kind := self._kinds.get(self._key):
            kind.usual, kind.slow = kind.slow, []
