"""All detectors over the rows of one run. Pure.

watch = CurveWatch(); watch.add(point); watch.finish(); CurveWatch(watch.state())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from clustertools.curves import Detector, News, Options, Restart, Row, Story
from clustertools.curves.loss import LossWatch
from clustertools.curves.not_finite import NotFinite
from clustertools.curves.pace import Pace
from clustertools.curves.rows import Rows
from clustertools.curves.scale import Scale
from clustertools.curves.slow import Slow
from clustertools.curves.together import Together
from clustertools.sources.training_values import Event, Point

#: Name in the saved state -> what makes the detector, from its saved state or anew (None).
DETECTORS: Mapping[str, Callable[[Any, Options], Detector]] = {
    "loss": LossWatch,
    "pace": Pace,
    "not_finite": NotFinite,
    "scale": Scale,
    "slow": Slow,
}


class CurveWatch:
    """The rows of one run, watched. Constant work and memory a row; see clustertools.curves."""

    __slots__ = ("_adds", "_detectors", "_rows", "_together", "story")

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved: Mapping[str, Any] = state or {}
        self.story = Story(**saved.get("story", {}))
        self._rows = Rows(saved.get("rows"))
        self._together = Together(saved.get("together"))
        made = saved.get("detectors", {})
        self._detectors = {
            name: make(made.get(name), options or Options()) for name, make in DETECTORS.items()
        }
        # looked up once, not for every row
        self._adds = tuple(detector.add for detector in self._detectors.values())

    def add(self, item: Point | Event) -> list[News]:
        """What the next record of the run's logs brings."""
        told: list[News] = []
        for row in self._rows.add(item):
            self._take(row, told)
        return self._together.tell(told, self.story.rows) if told else told

    def add_row(self, row: Row | Restart) -> list[News]:
        """The same for a row that is whole, or for the run having gone back."""
        told: list[News] = []
        self._take(row, told)
        return self._together.tell(told, self.story.rows) if told else told

    def finish(self) -> list[News]:
        """The log has ended: what is open is judged by what is known, and all of it is closed."""
        told: list[News] = []
        for row in self._rows.flush():
            self._take(row, told)
        for detector in self._detectors.values():
            detector.finish(self.story, told)
        return [*self._together.tell(told, self.story.rows), *self._together.finish()]

    def _take(self, row: Row | Restart, told: list[News]) -> None:
        story = self.story
        if isinstance(row, Restart):
            for detector in self._detectors.values():
                detector.restart(row, story, told)
            return
        story.rows += 1
        for add in self._adds:
            add(row, story, told)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `CurveWatch(state)` goes on from it."""
        detectors = {name: detector.state() for name, detector in self._detectors.items()}
        return {
            "story": asdict(self.story), "rows": self._rows.state(), "together": self._together.state(),
            "detectors": detectors,
        }  # fmt: skip
