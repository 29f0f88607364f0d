"""One disturbance, one event: what several detectors say of the same thing is told once. Pure.

- A loss that is no number ends the spike, bump, level shift or divergence that was open: what comes of it is
  known. While it lasts and is young, no other of these begins.
- Grad bursts and watched extra metrics that begin while a young event of the loss is open are part of it.
- A stall or a rising grad norm is no news while the loss has diverged, is lost or no number.
- After an event has recovered or ended nothing more is told of it; at the end of the log all are closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from clustertools.curves import CurveEvent, News

#: An event of the loss is young for so many rows: a spike is over in 50, or is none (loss.md, section 4).
YOUNG_ROWS = 50
_OF_THE_LOSS = frozenset(("spike", "slow_bump", "level_shift", "divergence", "restart", "nan"))
_ENDED_BY_NAN = frozenset(("spike", "slow_bump", "level_shift", "divergence"))
_LOST = frozenset(("divergence", "restart", "nan"))
_CLOSED = ("recovered", "ended")


class Together:
    """Follows the events of one run that are open. `tell` is only asked where there is news."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        #: Number -> the row at which it was told first, the event as it was told last.
        self._open: dict[int, tuple[int, CurveEvent]] = {
            event["number"]: (row, CurveEvent(**event)) for row, event in saved.get("open", ())
        }

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Together(state)` goes on from it."""
        return {"open": [[row, asdict(event)] for row, event in self._open.values()]}

    def tell(self, told: list[News], rows: int) -> list[News]:
        """Those of the news that are to be told, `rows` rows into the log."""
        return [news for one in told for news in self._one(one, rows)]

    def finish(self) -> list[News]:
        """Closes what no detector has closed."""
        left = [
            News(
                "ended",
                replace(event, end_step=event.alarm_step if event.end_step is None else event.end_step),
            )
            for _, event in self._open.values()
        ]
        self._open.clear()
        return left

    def _one(self, news: News, rows: int) -> Iterator[News]:
        event = news.event
        if news.change == "began":
            if self._is_part_of_another(event, rows):
                return
            if event.kind == "nan" and event.metric == "loss":
                yield from self._end_by_nan(event)
            self._open[event.number] = (rows, event)
        elif event.number not in self._open:
            return
        elif news.change in _CLOSED:
            del self._open[event.number]
        else:
            self._open[event.number] = (self._open[event.number][0], event)
        yield news

    def _is_part_of_another(self, event: CurveEvent, rows: int) -> bool:
        for began, other in self._open.values():
            if other.metric != "loss" or other.kind not in _OF_THE_LOSS:
                continue
            young = rows - began <= YOUNG_ROWS
            if event.kind in ("stall", "grad_rise") and other.kind in _LOST:
                return True
            if young and event.kind == "grad_burst":
                return True
            if young and event.kind in _ENDED_BY_NAN and (event.metric != "loss" or other.kind == "nan"):
                return True
        return False

    def _end_by_nan(self, nan: CurveEvent) -> Iterator[News]:
        for _, other in list(self._open.values()):
            if other.kind in _ENDED_BY_NAN and other.metric == "loss":
                del self._open[other.number]
                end = max(other.step, nan.step)
                yield News(
                    "ended", replace(other, end_step=end, message=f"{other.message}; then it was no number")
                )
