"""Slow troubles of a run, told once a day: it learns nothing any more, or a norm grows beside it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from clustertools.curves import Change, CurveEvent, Kind, News, Options, Restart, Row, Story
from clustertools.curves.history import History, smooth
from clustertools.curves.stall import Stall, stalled
from clustertools.curves.trend import Norm, risen

#: Every second point is judged; what has looked bad so many times running is told.
POINTS_TO_BELIEVE = 2
_KINDS: Mapping[Norm, tuple[Kind, str]] = {
    "grad_norm": ("grad_rise", "grad norm"),
    "param_norm": ("param_norm_rise", "parameter norm"),
}
#: A norm that has come down to this share of what was told has recovered.
RECOVERED_SHARE = 0.75


class Slow:
    """The detector of kinds `stall`, `grad_rise` and `param_norm_rise`."""

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved = state or {}
        self._history = History(saved.get("history"))
        #: For each metric how many points running it has looked bad.
        self._seen: dict[str, int] = dict(saved.get("seen", {}))
        self._open = {e["metric"]: CurveEvent(**e) for e in saved.get("open", ())}
        #: A loss below this has learned again.
        self._learned: float | None = saved.get("learned")
        self._step: int = saved.get("step", 0)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Slow(state)` goes on from it."""
        return {
            "history": self._history.state(), "seen": dict(self._seen), "learned": self._learned,
            "open": [asdict(e) for e in self._open.values()], "step": self._step,
        }  # fmt: skip

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        if self._history.add(row):
            self._step = row.step
            if self._history.count % 2 == 0:
                self._judge(row.step, story, told)

    def _judge(self, step: int, story: Story, told: list[News]) -> None:
        points = self._history.points
        stall = stalled(points)
        if "loss" in self._open:
            self._follow_stall(told)
        elif self._believed("loss", stall is not None) and stall is not None:
            self._learned = stall.level - max(4 * stall.sigma, 0.005 * abs(stall.level))
            first = points[(stall.since + len(points)) // 2].step
            message = (
                f"loss stands at {stall.level:.4g}: nothing was learned since about step "
                f"{points[stall.since].step}; its curve until then promised {stall.expected:.4g} by now, "
                "and the learning rate is not spent"
            )
            self._begin("stall", "loss", first, step, stall.level, stall.expected, message, story, told)
        for norm in _KINDS:
            self._judge_norm(norm, stall, step, story, told)

    def _judge_norm(self, norm: Norm, stall: Stall | None, step: int, story: Story, told: list[News]) -> None:
        points = self._history.points
        kind, name = _KINDS[norm]
        if norm in self._open:
            value = points[-1].grad_norm if norm == "grad_norm" else points[-1].param_norm
            event = self._open[norm]
            if value is not None and value > event.value:
                self._open[norm] = replace(event, value=value)
            elif value is not None and value < RECOVERED_SHARE * event.value:
                self._over(norm, "recovered", told)
            return
        rise = risen(points, norm, stall)
        if not self._believed(norm, rise is not None) or rise is None:
            return
        why = "and the loss does not improve any more"
        if rise.alone:
            why = "faster than ever before in this run, while the loss does not show it yet"
        message = (
            f"{name} {rise.value:.3g}, {rise.value / rise.low:.1f} times the {rise.low:.3g} it had, {why}"
        )
        first = points[(rise.since + len(points)) // 2].step
        self._begin(kind, norm, first, step, rise.value, rise.low, message, story, told)

    def _believed(self, metric: str, is_bad: bool) -> bool:
        self._seen[metric] = self._seen.get(metric, 0) + 1 if is_bad else 0
        return self._seen[metric] >= POINTS_TO_BELIEVE

    def _begin(
        self, kind: Kind, metric: str, first: int, step: int, value: float, baseline: float, message: str,
        story: Story, told: list[News],
    ) -> None:  # fmt: skip
        event = CurveEvent(story.number(), kind, metric, first, step, value, baseline, 0.7, "daily", message)
        self._open[metric] = event
        self._seen[metric] = 0
        told.append(News("began", event))

    def _follow_stall(self, told: list[News]) -> None:
        recent = smooth([p.loss for p in self._history.points[-3:]])
        if self._learned is not None and recent[-1] < self._learned:
            self._over("loss", "recovered", told)

    def _over(self, metric: str, change: Change, told: list[News]) -> None:
        event = self._open.pop(metric)
        back = self._step if change == "recovered" else None
        told.append(News(change, replace(event, end_step=self._step, recovered_step=back)))

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        self.finish(story, told)
        self._history.back_to(restart.step)
        self._seen.clear()

    def finish(self, story: Story, told: list[News]) -> None:
        for metric in list(self._open):
            self._over(metric, "ended", told)
