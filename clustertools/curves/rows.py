"""Rows out of the records of a log: one for each step, the run's own branch only. Pure.

rows = Rows()
rows.add(Point(step=100, values={"loss": 2.1}))     [Row(99, ...)] once the row of 99 is whole
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clustertools.curves import Restart, Row
from clustertools.sources.training_values import Event, Point


class Rows:
    """Puts the records of a step together."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._last: int | None = (state or {}).get("last")

    def add(self, item: Point | Event) -> list[Row | Restart]:
        if isinstance(item, Event):
            if item.kind == "restart_marker" and item.step is not None:
                before, self._last = self._last, None
                return [Restart(item.step, before)]
            return []
        if item.step is None or item.evaluation:
            return []
        self._last = item.step
        return [Row(item.step, item.values, item.missing, item.time)]

    def flush(self) -> list[Row | Restart]:
        """The row that waits for more records of its step, when no more are to come."""
        return []

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Rows(state)` goes on from it."""
        return {"last": self._last}
