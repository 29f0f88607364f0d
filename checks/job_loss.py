"""Whether the loss of a run is still a number.

Nothing is trained from the first nan or inf on, and whatever is saved after it is lost as well. In fp16
single iterations overflow and are skipped while the loss scale is searched for: normal, as long as it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.training_run import read_run
from clustertools.sources.training_values import Event, Point

#: So many starts are remembered with the step at which their loss was lost.
_STARTS_AT_MOST = 8


@dataclass(frozen=True)
class Limits:
    """`lines_in_a_row`: one inf by itself may be a step that a gradient scaler skips in silence, the next
    line tells. `skipped_in_a_row`: a loss scale of 2**32 takes about 16 halvings to where training begins;
    the collapses of GLM-130B took 30 to 40 (main-log-en.md): after more than that no scale is found any more.
    """

    lines_in_a_row: int = 2
    skipped_in_a_row: int = 50


@dataclass
class Losses:
    """What is known of the run's losses. `first_bad_step` outlives the start of the run that met it, until a
    later one has passed it: what was saved from there on must not be resumed from.
    """

    attempt: int = -1
    finite_step: int | None = None
    finite_loss: float | None = None
    is_clean: bool = True
    first_bad_step: int | None = None
    bad_line: str = ""
    in_a_row: int = 0
    skipped: int = 0
    waits: bool = False
    lost: list[list[int]] = field(default_factory=list)

    def begin(self, attempt: int) -> None:
        """A new start of the run: what it trains on is not known yet."""
        self.waits = self.waits or self.in_a_row > 0
        self.attempt, self.in_a_row, self.skipped = attempt, 0, 0
        self.finite_step = self.finite_loss = None
        self.is_clean = True

    def add(self, items: Iterable[Point | Event], limits: Limits) -> None:
        for item in items:
            if isinstance(item, Event):
                if item.kind == "restart_marker":
                    self.begin(self.attempt)
            elif not item.evaluation:
                self._point(item, limits)

    def _point(self, point: Point, limits: Limits) -> None:
        loss = point.values.get("loss")
        if point.skipped and not (loss is not None and math.isfinite(loss)):
            self.skipped += point.skipped
            if self.skipped > limits.skipped_in_a_row:
                self._bad(point, f"{self.skipped} iterations in a row were skipped", limits.lines_in_a_row)
        elif point.non_finite:
            told = "left out" if loss is None else f"{loss:g}"
            norm = point.values.get("grad_norm")
            self._bad(point, f"loss {told}" + (f", grad norm {norm:g}" if norm is not None else ""), 1)
        elif loss is not None:
            self.in_a_row = self.skipped = 0
            self.waits = False
            self.finite_loss = loss
            self.is_clean = math.isfinite(point.values.get("grad_norm", 0.0)) or bool(point.skipped)
            if point.step is not None:
                self.finite_step = point.step
                if self.first_bad_step is not None and point.step >= self.first_bad_step:
                    self.first_bad_step = None

    def _bad(self, point: Point, line: str, lines: int) -> None:
        self.in_a_row += lines
        if self.in_a_row > lines:
            return
        self.bad_line = line
        # lines may be many steps apart, and gradients that were nan had spoilt the step before
        first = point.step
        if self.finite_step is not None:
            first = self.finite_step + self.is_clean
        if first is not None:
            known = self.first_bad_step
            self.first_bad_step = first if known is None else min(first, known)
            self.lost = [pair for pair in self.lost if pair[0] != self.attempt]
            self.lost = [*self.lost, [self.attempt, first]][-_STARTS_AT_MOST:]


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    timeout_seconds=60.0,
    codes={"LossNotFinite": "the loss of a run is nan or infinite: nothing is trained any more"},
)
def job_loss(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether the run's loss is finite; the step at which it stopped to be is remembered."""
    job, limits = ctx.job, ctx.limits
    if job is None or job.state not in ("running", "completing", "ended"):
        raise ctx.skip(f"the job is {job.state if job else 'not known'}")
    news = read_run(ctx.host, job, ctx.past.get("logs", {}))
    losses = _remembered(ctx.past)
    if losses.attempt != job.attempt:
        losses.begin(job.attempt)
    losses.add(news.items, limits)
    ctx.remember.update({"logs": news.memory, "losses": asdict(losses)})
    if losses.first_bad_step is not None:
        ctx.remember["first_bad_step"] = losses.first_bad_step
    if not news.paths:
        raise ctx.skip("no log can be read yet")
    if losses.in_a_row >= limits.lines_in_a_row or (losses.in_a_row and job.state == "ended"):
        first = losses.first_bad_step
        where = f"from step {first} on" if first is not None else "at a step that the log does not tell"
        yield ctx.critical(
            "LossNotFinite", "", f"the loss of {job.run} is not a number {where}: {losses.bad_line}",
            evidence=tuple(_evidence(losses)), remedy=Remedy.RESTART_APP, nodes=job.nodes,
            since=job.started_at,
        )  # fmt: skip
    elif losses.waits:
        raise ctx.skip("a new start after a loss that was not a number: it has told no finite one yet")


def _remembered(past: Any) -> Losses:
    try:
        return Losses(**past.get("losses", {}))
    except TypeError:
        return Losses()  # written by another version: the log tells the rest


def _evidence(losses: Losses) -> Iterator[str]:
    if losses.finite_step is not None:
        yield f"last finite loss: {losses.finite_loss:g} at step {losses.finite_step}"
    if losses.first_bad_step is not None:
        yield f"checkpoints of step {losses.first_bad_step} and later are not to be resumed from"
    for attempt, step in losses.lost:
        if attempt != losses.attempt:
            yield f"attempt {attempt} lost it at step {step}"
