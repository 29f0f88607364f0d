"""What the metrics of a run do over its steps, and what a person would want to hear of it. Pure.

watch = CurveWatch()                     in clustertools.curves.watch
for item in reader.feed(data):           points and events, as sources.training_log gives them
    for news in watch.add(item): ...
for news in watch.finish(): ...          the end of the log: what is still open is judged
CurveWatch(watch.state())                goes on with the same result as if it had never stopped

A *row* is what was logged of one step. All windows are counted in rows: a log may have a row every step or
every hundred, and change that in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal[
    "nan",  # loss or grad norm is no number, or the loss is left out of the line
    "spike",  # the loss leaves its level and comes back
    "divergence",  # it does not come back
    "restart",  # the loss is where it was at the first steps of the run: the weights are lost
    "level_shift",  # a jump to a level that holds
    "slow_bump",  # up and down over tens of rows
    "grad_burst",  # the grad norm leaps and the loss does not move
    "grad_rise",  # the grad norm grows over a long time while the loss stops to improve
    "param_norm_rise",
    "loss_scale_collapse",  # fp16: the loss scale falls and falls
    "stall",  # nothing is learned any more, though the learning rate is not spent
    "step_time",  # steps take longer than they did
]
#: How urgent: wakes somebody; is told when it happens; can wait for the daily summary.
Severity = Literal["page", "notice", "daily"]
Change = Literal["began", "grew", "recovered", "ended"]


@dataclass(slots=True)
class Row:
    """What was logged of one training step, put together from all records of that step.

    `values` has canonical names (sources.training_values), also `eval_loss` where one came with it. `missing`
    names values that the rows before had and the source left out of this one, as Megatron-LM does with a loss
    that is nan. `time` is seconds since 1970 or since anything: only differences count. Not frozen: it is
    made for every row of every log.
    """

    step: int
    values: Mapping[str, float]
    missing: tuple[str, ...] = ()
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """The run went back: the next row is step `step` or later, and what was logged from it on is void."""

    step: int
    before: int | None = None


@dataclass(frozen=True, slots=True)
class CurveEvent:
    """One thing that a curve did. Told again, with the same `number`, whenever it changes.

    `step` is the first bad one: a rollback has to go before it. `alarm_step` is the row at which it was told
    first, `end_step` the last bad row (None while it goes on), `recovered_step` the row at which all was as
    before (None: not yet, or never). `value` is the worst so far (the peak), `baseline` what it had been.
    `confidence` from 0 to 1. `sign_step`: the row of an earlier sign in another metric, such as the grad norm
    before the loss. `message` is one sentence for people, in plain text without names from outside.
    """

    number: int
    kind: Kind
    metric: str
    step: int
    alarm_step: int
    value: float
    baseline: float
    confidence: float
    severity: Severity
    message: str
    end_step: int | None = None
    recovered_step: int | None = None
    sign_step: int | None = None

    @property
    def is_open(self) -> bool:
        return self.end_step is None


@dataclass(frozen=True, slots=True)
class News:
    """An event that began, grew (another kind or severity, a higher peak worth telling), recovered, or ended
    without recovery: the log ended, the run went back, the new level was accepted."""

    change: Change
    event: CurveEvent


@dataclass(frozen=True, slots=True)
class Options:
    """What a site may say. `extra`: metrics beside the known ones that are to be watched like a loss: a rise
    is bad."""

    extra: tuple[str, ...] = ()


@dataclass(slots=True)
class Story:
    """What the detectors of one run share: the numbers of events, how many rows there were, nuisances.

    `isolated`: single rows that were out, with the next one back and the grad norm unmoved: the data, not the
    model. They are counted and never told.
    """

    rows: int = 0
    events: int = 0
    isolated: int = 0

    def number(self) -> int:
        self.events += 1
        return self.events


class Detector(Protocol):
    """One kind of looking at the rows of a run. Streaming: constant work and memory a row.

    `state` is JSON-ready (nan and infinity as Python's json writes them), and a detector made from it goes on
    with exactly the same results. `add` and `restart` put what is new into `told`.
    """

    def add(self, row: Row, story: Story, told: list[News]) -> None: ...

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None: ...

    def finish(self, story: Story, told: list[News]) -> None: ...

    def state(self) -> Any: ...


def event_json(event: CurveEvent) -> dict[str, Any]:
    """As `metrics scan --json` prints it; numbers that JSON cannot say are the strings nan, inf, -inf."""

    def said(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    first = (
        "kind", "metric", "step", "end_step", "value", "baseline", "confidence", "severity", "message",
        "alarm_step", "recovered_step", "sign_step", "number",
    )  # fmt: skip
    return {name: said(getattr(event, name)) for name in first}
