"""Whether a run goes on: its last step, its phase, its pace, and how long it may be silent.

tracker.add(found.items, now)          on every look that could read the log, also when nothing was new
tracker.silent_seconds(now) > tracker.limit_seconds(minimum=600, factor=5)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

from clustertools.sources.training_values import Event, Point

Phase = Literal["starting", "training", "evaluating", "saving", "finished"]

#: How long the first sign may take when no start of this run was seen: load, compile, warm up.
#: nvidia-resiliency-ext documents 3600 s as its first-heartbeat limit.
STARTING_SECONDS = 3600.0
#: Silence allowed in a phase that was not lived through yet. DLRover (common/event/context.py) lets an
#: evaluation take 120 min and a checkpoint 15 min.
UNLEARNED_SECONDS: Mapping[str, float] = {
    "training": STARTING_SECONDS, "evaluating": 7200.0, "saving": 900.0,
}  # fmt: skip
#: As many recent intervals are remembered: the slow first steps are forgotten after some hundred lines.
_RECENT = 64
#: A log that is written in bursts, since its writer's buffer has to fill first: so many lines at once, which
#: cover at least half of the silence before them. The buffer fills at the pace of the log, so the next burst
#: takes about as long as the one before; twice as long is too long.
_BURST_LINES = 3
_BURST_SHARE = 0.5
_BURST_FACTOR = 2.0
_SILENT_PHASES: tuple[Phase, ...] = ("starting", "training", "evaluating", "saving")


class ProgressTracker:
    """Follows one run's points and events. Pure: the observer's clock is handed in, nothing is read.

    `first_step`, `last_step`: of this start of the run; `highest_step`: of all. `last_advance_time`: when the
    observer last saw a new step. `steps_back`: how often the run went back. `first_non_finite_step`: since
    the run last went back behind it.
    """

    def __init__(self) -> None:
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.highest_step: int | None = None
        self.total_steps: int | None = None
        self.phase: Phase = "starting"
        self.steps_back = 0
        self.first_non_finite_step: int | None = None
        self.last_advance_time: float | None = None
        self.last_sign_time: float | None = None
        self.last_checkpoint_step: int | None = None
        self._empty_look_time: float | None = None
        self._log_time: float | None = None
        self._last_epoch: float | None = None
        self._stride = 1
        self._paces: list[float] = []
        self._silences: dict[str, list[float]] = {phase: [] for phase in _SILENT_PHASES}
        self._last_done: dict[str, int] = {}
        self._every: dict[str, int] = {}
        self._bursts: list[float] = []

    def begin(self, now: float) -> None:
        """A new start of the run was made (a job began, or began again): silence counts from here."""
        self.phase = "starting"
        self.last_sign_time = now
        self._log_time = self._empty_look_time = None

    def away(self, now: float) -> None:
        """The run was not allowed to run until now: nothing is learned of that silence."""
        self.last_sign_time = now
        self._log_time = self._empty_look_time = None

    def add(self, items: Iterable[Point | Event], now: float) -> bool:
        """Take in what one look at the log gave, and say whether it is a sign that the run lives.

        `now` is the observer's clock. At the first look at an old file give its time of change instead,
        or a run that has hung for hours would be granted the whole limit again.
        """
        if self.last_sign_time is None:
            self.last_sign_time = now
        fresh = list(items)
        if not fresh:
            self._empty_look_time = now
            return False
        # silence that was seen: it lasted at least until the last look that found nothing. The time between
        # two looks does not count, for the observer may have been away
        seen = 0.0
        if self._empty_look_time is not None:
            seen = max(0.0, self._empty_look_time - self.last_sign_time)
        paced = self.last_step, self.last_advance_time
        self._burst(fresh, seen)
        news, before, self._paces = False, self._paces, []
        for item in fresh:
            if self._event(item, seen) if isinstance(item, Event) else self._point(item, seen, now):
                news, seen = True, 0.0
        told, self._paces = self._paces, [*before, *self._paces][-_RECENT:]
        if not news:
            # a thread that goes on to print the last step is no sign of life
            self._empty_look_time = now
            return False
        if not told:
            self._pace_by_clock(*paced, now)
        self.last_sign_time = now
        self._empty_look_time = None
        return True

    def _burst(self, fresh: list[Point | Event], seen: float) -> None:
        """Remember how long a burst of lines was waited for: they were made during that silence."""
        points = [i for i in fresh if isinstance(i, Point) and not i.evaluation and i.step is not None]
        if seen <= 0 or len(points) < _BURST_LINES:
            return
        first, last = points[0], points[-1]
        if first.time is not None and last.time is not None:
            covered = last.time - first.time
        else:
            steps = [b.step - a.step for a, b in pairwise(points)]  # type: ignore[operator]
            told = [p.values.get("step_seconds", 0.0) for p in points[1:]]
            covered = sum(max(0, n) * s for n, s in zip(steps, told, strict=True) if math.isfinite(s))
        if covered >= _BURST_SHARE * seen:
            self._bursts.append(seen)
            del self._bursts[:-_RECENT]

    def _event(self, event: Event, seen: float) -> bool:
        if event.kind == "restart_marker":
            self._went_back(event)
            return True
        phase: Phase = {
            "checkpoint_started": "saving", "checkpoint_saved": "training", "evaluation": "evaluating",
            "resumed": "starting", "finished": "finished",
        }[event.kind]  # type: ignore[assignment]  # fmt: skip
        if event.kind == "checkpoint_saved":
            self.last_checkpoint_step = event.step if event.step is not None else self.last_step
            self._period("saving", self.last_checkpoint_step)
            # a save without an announced start happened in the silence before this line; one in the
            # background ends during something else, which goes on
            spent: Phase = "saving" if self.phase in ("saving", "training") else self.phase
            phase = "training" if self.phase == "saving" else self.phase
        else:
            spent = self.phase
        self._silence(spent, event.time, seen)
        self.phase = phase
        return True

    def _went_back(self, event: Event) -> None:
        self.steps_back += 1
        self.first_step, self.last_step = event.step, None
        self._log_time = event.time
        self._last_epoch = None
        self._last_done.clear()
        first = self.first_non_finite_step
        if first is not None and event.step is not None and event.step <= first:
            self.first_non_finite_step = None

    def _point(self, point: Point, seen: float, now: float) -> bool:
        """Take in a point; whether it is a sign that the run lives."""
        if point.total_steps:
            self.total_steps = point.total_steps
        if point.non_finite and self.first_non_finite_step is None:
            self.first_non_finite_step = point.step if point.step is not None else self.last_step
        if point.evaluation:
            # frameworks without a word at the start: the silence before the result was the evaluation
            self._period("evaluating", point.step if point.step is not None else self.last_step)
            self._silence("evaluating", point.time, seen)
            self.phase = "training"
            return True
        earlier = self._log_time
        spent = self.phase
        if not self._advance(point, now):
            return point.step is None and "skipped_iterations" in point.values
        # the marker of a restart comes before its first point: that silence was a start
        self._silence("training" if spent == "finished" else spent, point.time, seen, point)
        self._pace(point, earlier if spent == "training" else None)
        self.phase = "training"
        return True

    def _advance(self, point: Point, now: float) -> bool:
        """Whether the point is a step further, or an epoch's fraction where the log has no steps."""
        epoch = point.values.get("epoch")
        if point.step is None:
            if epoch is None or epoch == self._last_epoch:
                return False
            self.steps_back += self._last_epoch is not None and epoch < self._last_epoch
        elif self.last_step is not None and point.step <= self.last_step:
            return False
        if point.step is not None:
            if self.last_step is not None:
                self._stride = point.step - self.last_step
            self.first_step = point.step if self.first_step is None else self.first_step
            self.last_step = point.step
            self.highest_step = max(point.step, self.highest_step or 0)
        self._last_epoch = epoch if epoch is not None else self._last_epoch
        self.last_advance_time = now
        return True

    def _silence(self, phase: Phase, log_time: float | None, seen: float, point: Point | None = None) -> None:
        """Remember how long it was quiet before this sign: by the log's clock, or as it was seen to be."""
        lasted = seen
        if log_time is not None:
            if self._log_time is not None:
                lasted = max(lasted, log_time - self._log_time)
            self._log_time = log_time
        elif point is not None and phase == "training":
            lasted = max(lasted, point.values.get("step_seconds", 0.0) * self._stride)
        if phase != "finished" and lasted > 0 and math.isfinite(lasted):
            recent = self._silences[phase]
            recent.append(lasted)
            del recent[:-_RECENT]

    def _pace(self, point: Point, earlier: float | None) -> None:
        seconds = point.values.get("step_seconds")
        if seconds is None and point.time is not None and earlier is not None:
            seconds = (point.time - earlier) / self._stride
        if seconds is not None and math.isfinite(seconds) and seconds > 0:
            self._paces.append(seconds)
            del self._paces[:-_RECENT]

    def _pace_by_clock(self, step: int | None, at: float | None, now: float) -> None:
        """Without any time in the log, the pace is what the observer's clock says."""
        if step is None or at is None or self.last_step is None or self.last_step <= step or now <= at:
            return
        self._paces.append((now - at) / (self.last_step - step))
        del self._paces[:-_RECENT]

    def _period(self, what: str, step: int | None) -> None:
        if step is None:
            return
        before = self._last_done.get(what)
        if before is not None and step > before:
            self._every[what] = step - before
        self._last_done[what] = step

    def _due(self, what: str) -> bool:
        """Whether an evaluation or a save comes before the next training step, as far apart as the last."""
        every, last = self._every.get(what), self._last_done.get(what)
        if every is None or last is None or self.last_step is None:
            return False
        return self.last_step + self._stride > last + every

    @property
    def step_seconds(self) -> float | None:
        """The median of recent step times; None until there is one."""
        return statistics.median(self._paces) if self._paces else None

    @property
    def step_seconds_max(self) -> float | None:
        """The longest of recent step times."""
        return max(self._paces, default=None)

    @property
    def silence_phases(self) -> tuple[Phase, ...]:
        """The phases in which the run may be now, as far as the log can tell."""
        if self.phase != "training":
            return (self.phase,)
        due: list[Phase] = ["training"]
        due += [p for p in ("evaluating", "saving") if self._due(p)]
        return tuple(due)

    def silent_seconds(self, now: float) -> float:
        """How long the log has told nothing new; 0 before the first look."""
        return max(0.0, now - self.last_sign_time) if self.last_sign_time is not None else 0.0

    def limit_seconds(self, minimum: float, factor: float, starting: float = STARTING_SECONDS) -> float:
        """How long silence may last now: the longest of this phase so far times `factor`, at least `minimum`.

        A phase not lived through yet has its own default. Where an evaluation or a checkpoint is due, what
        they took before counts too. A finished run may be silent for ever.
        """
        if self.phase == "finished":
            return math.inf
        limits = [minimum, max(self._bursts, default=0.0) * min(factor, _BURST_FACTOR)]
        for phase in self.silence_phases:
            learned = max(self._silences[phase], default=0.0) * factor
            if phase == "training" and self._paces:
                # looks that are rarer than the lines never see a silence, but they see the pace
                learned = max(learned, max(self._paces) * self._stride * factor)
            if phase == "starting":
                learned = max(learned, starting)
            limits.append(learned or UNLEARNED_SECONDS.get(phase, starting))
        return max(limits)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `from_state` goes on from it."""
        return {name: _copied(value) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ProgressTracker:
        """Raises ValueError when `state` is not one of this version."""
        tracker = cls()
        if set(state) != set(vars(tracker)):
            raise ValueError("a progress tracker's state of another version")
        for name, value in state.items():
            setattr(tracker, name, _copied(value))
        return tracker


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value
