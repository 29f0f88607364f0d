"""One disturbance of a series, from the row at which it is told until the series is back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clustertools.curves import Change, CurveEvent, Kind, News, Severity

#: Back in so many rows is a spike, later a divergence (loss.md section 4).
SPIKE_ROWS = 50
#: A level that is still there after so many rows is where the run is now.
ACCEPT_ROWS = 200
#: So many rows back in a row, and it is over: a spike comes down through its level and up again.
BACK_ROWS = 3
#: What begins within so many rows of the end of another is still that one. The scoring of loss.md section 4
#: takes alarms less than ten points apart for one as well.
AGAIN_ROWS = 10
_PAGES: frozenset[Kind] = frozenset({"divergence", "restart", "level_shift"})
#: A spike with this much grad norm wakes somebody (loss.md section 4).
PAGE_GRAD_RATIO = 10.0
_NAMES = {"grad_norm": "grad norm"}


@dataclass(slots=True)
class Disturbance:
    """What is known of it. `height` is what was told of it last; `values` its rows, the last ones of many."""

    number: int
    kind: Kind
    metric: str
    step: int
    alarm_step: int
    baseline: float
    back: float
    grad_back: float
    peak: float
    confidence: float
    end_step: int
    rows: int = 1
    back_rows: int = 0
    back_step: int | None = None
    sign_step: int | None = None
    grad_ratio: float = 0.0
    told_height: float = 0.0
    severity: Severity = "notice"
    over: bool = False
    values: list[float] = field(default_factory=list)
    held: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> Disturbance | None:
        return cls(**saved) if saved else None

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self) -> None:
        """How urgent it is now. It never becomes less."""
        pages = self.kind in _PAGES or (self.kind == "spike" and self.grad_ratio >= PAGE_GRAD_RATIO)
        if pages:
            self.severity = "page"

    def news(self, change: Change) -> News:
        self.judge()
        self.told_height = self.peak - self.baseline
        closed = change in ("recovered", "ended")
        event = CurveEvent(
            number=self.number, kind=self.kind, metric=self.metric, step=self.step,
            alarm_step=self.alarm_step, value=self.peak, baseline=self.baseline, confidence=self.confidence,
            severity=self.severity, message=self.sentence(change), end_step=self.end_step if closed else None,
            recovered_step=self.back_step if change == "recovered" else None, sign_step=self.sign_step,
        )  # fmt: skip
        return News(change, event)

    def sentence(self, change: Change) -> str:
        name = _NAMES.get(self.metric, "loss" if self.metric == "loss" else "a watched metric")
        text = f"{name} {self.peak:.4g}, {_against(self.peak, self.baseline)}, from step {self.step}"
        if self.kind == "restart":
            text = f"{name} {self.peak:.4g} from step {self.step} on, as in the first steps of the run"
            text += f"; its level was {self.baseline:.4g}: the weights may be lost"
        elif self.kind == "divergence":
            text += ", not back since"
        elif self.kind == "level_shift":
            text += ", and stays there"
        elif self.kind == "slow_bump":
            text += ", risen slowly"
        if self.metric == "loss" and self.grad_ratio >= 2.0:
            text += f"; grad norm {self.grad_ratio:.3g} times its level"
        elif self.kind == "grad_burst":
            text += "; the loss did not move"
        if self.sign_step is not None and self.sign_step < self.step:
            text += f"; the grad norm was out at step {self.sign_step}"
        if change == "recovered":
            text += f"; back at step {self.back_step}"
        elif change == "ended":
            text += "; that is its level now" if self.kind != "grad_burst" else "; not back"
        return text


def _against(peak: float, baseline: float) -> str:
    """The peak beside its level, in the words that fit: a ratio says nothing near zero."""
    if baseline > 0 and peak / baseline < 1e4:
        ratio = peak / baseline
        if ratio < 1.3:
            return f"{100 * (ratio - 1):.2g} % above its level of {baseline:.4g}"
        return f"{ratio:.2g} times its level of {baseline:.4g}"
    return f"its level is {baseline:.4g}"
