"""The loss scale of fp16 training when it falls and falls: gradients overflow, and the loss goes next. Pure.

GLM-130B's scale began to fall 30 to 40 steps before its loss rose (THUDM/GLM-130B, logs/main-log-en.md),
tr1-13B went from 65536 to 4096 in two lines of ten iterations and tr8-104B fell for 2000 iterations before
(bigscience-workshop/bigscience, chronicles.md), OPT-175B's stood at its floor and trained nothing.

Normal is: the search after a start (2**32 takes 16 halvings), and one halving each time the scale had been
doubled, every 100 to 2000 iterations. So what counts is the net fall since the highest scale of late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from clustertools.curves import Change, CurveEvent, News, Options, Restart, Row, Severity, Story

#: Net halvings that are a collapse, and the iterations in which they came. Our choice, from the runs above:
#: 4 in 20, 5 in 7, all that there were in 40; the last for the slow one. At least two rows are looked at.
FALLS = ((3, 100), (4, 500), (5, 3000))
#: A scale counts as one that was had when it held for so long: a doubling that overflows at once is a breath.
HELD_TO_COUNT_ITERATIONS = 20
#: Halvings that wake somebody, as a scale of 1 or less does: there is nothing left to scale.
PAGE_HALVINGS = 6
FLOOR = 1.0
#: A start, or a scale that leaps up, is followed by a search: over when the scale held for so long, at the
#: soonest after so many iterations.
SEARCH_HELD_ITERATIONS, SEARCH_ITERATIONS = 50, 200
#: Recovered: so many doublings from the lowest scale. A level that held for so long is the new one.
RECOVERED_DOUBLINGS, HELD_ITERATIONS = 2, 3000
#: Changes of the scale that are remembered.
_CHANGES_AT_MOST = 40


class Scale:
    """The detector of kind `loss_scale_collapse`."""

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved = state or {}
        self._scale: float | None = saved.get("scale")
        self._step: int | None = saved.get("step")
        # [row's step, scale from it on, step of the row before]
        self._changes: list[list[float]] = [list(c) for c in saved.get("changes", ())]
        self._search_from: int | None = saved.get("search_from")
        self._is_searching: bool = saved.get("is_searching", True)
        self._highest: float = saved.get("highest", 0.0)
        event = saved.get("event")
        self._event = CurveEvent(**event) if event else None

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Scale(state)` goes on from it."""
        return {
            "scale": self._scale, "step": self._step, "changes": [list(c) for c in self._changes],
            "search_from": self._search_from, "is_searching": self._is_searching, "highest": self._highest,
            "event": asdict(self._event) if self._event else None,
        }  # fmt: skip

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        scale = row.values.get("loss_scale")
        if scale is None:
            return
        if scale == self._scale and not self._is_searching and self._event is None:
            self._step = row.step
            return
        if not 0.0 < scale < math.inf:
            return
        before = self._step if self._step is not None else row.step
        self._step = row.step
        if self._scale is None:
            self._begin_search(row.step, scale)
            # told for the first time long after the start: the log names the scale only when it falls
            self._is_searching = story.rows <= SEARCH_ITERATIONS
        elif scale != self._scale:
            self._change(row.step, before, scale, story, told)
        else:
            self._hold(row.step, told)

    def _begin_search(self, step: int, scale: float) -> None:
        self._scale = self._highest = scale
        self._changes = [[step, scale, step]]
        self._search_from, self._is_searching = step, True

    def _hold(self, step: int, told: list[News]) -> None:
        held = step - self._changes[-1][0]
        if self._is_searching:
            assert self._search_from is not None
            if held >= SEARCH_HELD_ITERATIONS and step - self._search_from >= SEARCH_ITERATIONS:
                self._is_searching = False
                self._changes = self._changes[-1:]
        if self._event is not None and held >= HELD_ITERATIONS and self._changes[-1][1] > FLOOR:
            self._over("ended", None, told)

    def _change(self, step: int, before: int, scale: float, story: Story, told: list[News]) -> None:
        assert self._scale is not None
        was, self._scale = self._scale, scale
        if scale > 4 * was:
            if self._event is not None:
                self._over("ended", None, told)
            self._begin_search(step, scale)
            return
        assert self._search_from is not None
        if scale > was and step - self._search_from >= SEARCH_ITERATIONS:
            self._is_searching = False  # it grew: one was found
        self._changes = [*self._changes, [step, scale, before]][-_CHANGES_AT_MOST:]
        if self._event is not None:
            self._go_on(step, scale, told)
        elif scale < was:
            self._fall(step, scale, story, told)

    def _fall(self, step: int, scale: float, story: Story, told: list[News]) -> None:
        if self._is_searching:
            if scale <= FLOOR and self._highest >= 64 * FLOOR:
                self._begin(step, self._changes[0], scale, story, told)
            return
        for halvings, iterations in FALLS:
            top = self._top(step - iterations)
            if top[1] >= scale * 2**halvings:
                self._begin(step, top, scale, story, told)
                return
        if scale <= FLOOR and self._top(step - HELD_ITERATIONS)[1] >= 8 * FLOOR:
            self._begin(step, self._top(step - HELD_ITERATIONS), scale, story, told)

    def _top(self, since: int) -> list[float]:
        """The last change to the highest scale that still held at step `since` or later."""
        changes = self._changes
        top = changes[-2]
        for place in range(len(changes) - 3, -1, -1):
            # a change is the end of the one before: the row before it still had the scale
            if changes[place + 1][2] < since:
                break
            grew = place > 0 and changes[place - 1][1] < changes[place][1]
            held = changes[place + 1][0] - changes[place][0] >= HELD_TO_COUNT_ITERATIONS
            if changes[place][1] > top[1] and (held or not grew):
                top = changes[place]
        return top

    def _begin(self, step: int, top: list[float], scale: float, story: Story, told: list[News]) -> None:
        first = int(self._changes[self._changes.index(top) + 1][0])
        event = CurveEvent(
            story.number(), "loss_scale_collapse", "loss_scale", first, step, scale, top[1], 0.9,
            self._severity(top[1], scale), self._sentence(top[1], scale, first, step),
        )  # fmt: skip
        self._tell("began", event, told)

    def _severity(self, top: float, scale: float) -> Severity:
        return "page" if scale <= FLOOR or scale * 2**PAGE_HALVINGS <= top else "notice"

    def _sentence(self, top: float, scale: float, first: int, step: int) -> str:
        halvings = round(math.log2(top) - math.log2(scale))
        floor = ": hardly any gradient is left to train with" if scale <= FLOOR else ""
        during = f"between steps {first} and {step}" if step > first else f"at step {step}"
        return (
            f"loss scale fell from {top:g} to {scale:g} ({halvings} halvings) {during}: the gradients "
            f"overflow again and again, and the loss may rise next{floor}"
        )

    def _go_on(self, step: int, scale: float, told: list[News]) -> None:
        event = self._event
        assert event is not None
        if scale < event.value:
            severity = self._severity(event.baseline, scale)
            message = self._sentence(event.baseline, scale, event.step, step)
            self._event = replace(event, value=scale, severity=severity, message=message)
            if severity != event.severity:
                self._tell("grew", self._event, told)
        elif scale >= event.value * 2**RECOVERED_DOUBLINGS or scale * 2 >= event.baseline:
            self._over("recovered", step, told)

    def _over(self, change: Change, back: int | None, told: list[News]) -> None:
        event = self._event
        assert event is not None
        falls = [b for a, b in zip(self._changes, self._changes[1:], strict=False) if b[1] < a[1]]
        last = max(int(falls[-1][0]) if falls else event.alarm_step, event.alarm_step)
        message = f"loss scale fell from {event.baseline:g} to {event.value:g} from step {event.step} on"
        message += f" and grows again, {self._scale:g} at step {back}" if back is not None else ""
        self._tell(change, replace(event, end_step=last, recovered_step=back, message=message), told)
        self._event = None
        self._changes = self._changes[-1:]

    def _tell(self, change: Change, event: CurveEvent, told: list[News]) -> None:
        self._event = event
        told.append(News(change, event))

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        self.finish(story, told)
        # the scale may be searched for anew, or come out of the checkpoint
        self._scale = self._step = self._search_from = None
        self._is_searching, self._changes = True, []

    def finish(self, story: Story, told: list[News]) -> None:
        if self._event is not None:
            self._over("ended", None, told)
