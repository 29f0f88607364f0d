"""Whether a run that began anew goes on where its checkpoint says.

A restart can look well and be wrong: the run begins from nothing because the tracker was never written
(verl #7952), the weights are loaded and the optimiser is not, the learning rate warms up a second time, the
same data is read again. The log tells within a few lines, when what it said before is remembered.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clustertools.check import Context, check
from clustertools.model import Attempt, Finding, Job, Reading
from clustertools.sources.training_history import History
from clustertools.sources.training_run import RunNews, read_run
from clustertools.sources.training_values import Event, Point
from clustertools.stats import median_and_spread

#: So many lines around a step say what loss is usual there.
_LOSSES_AT_LEAST = 6


@dataclass(frozen=True)
class Limits:
    """What is no continuation.

    The median loss of the first `lines` lines lies `loss_spreads` times its scatter, and `loss_share` of
    itself, above what it was at that step; a spike of one line does not count. The learning rate differs by
    `rate_share`: some logs round it to two digits. The count of samples differs by `samples_share`.
    """

    lines: int = 3
    loss_spreads: float = 6.0
    loss_share: float = 0.1
    rate_share: float = 0.1
    samples_share: float = 0.05


@dataclass
class Start:
    """A restart that is being looked at: where it should go on, what it told so far, and what is wrong."""

    resume_step: int | None = None
    saved_step: int | None = None
    first_step: int | None = None
    losses: list[list[float]] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lines: int = 0

    def is_over(self, limits: Limits) -> bool:
        return len(self.losses) >= limits.lines or self.lines >= 4 * limits.lines


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    timeout_seconds=60.0,
    codes={
        "JobResumeWrong": "after a restart steps, loss, learning rate or data do not go on where they were"
    },
)
def job_resume(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether steps, loss, learning rate and data position continue after a restart."""
    job = ctx.job
    if job is None or job.state not in ("running", "completing", "ended"):
        raise ctx.skip(f"the job is {job.state if job else 'not known'}")
    news = read_run(ctx.host, job, ctx.past.get("logs", {}))
    memory = _Memory.of(ctx.past)
    anew = memory.attempt not in (None, job.attempt)
    if anew:
        memory.start = _expected(job, memory)
    memory.attempt, memory.job_id = job.attempt, job.id
    _take_in(news, memory, ctx.limits, left_over=anew and not news.begun)
    ctx.remember.update(memory.state(), logs=news.memory)
    start = memory.start
    if start is None or not start.wrong or job.state == "ended":
        return
    from_where = f"step {start.resume_step}" if start.resume_step is not None else "its last checkpoint"
    yield ctx.critical(
        "JobResumeWrong", "",
        f"run {job.run} (attempt {job.attempt}) does not go on from {from_where}: {start.wrong[0]}",
        evidence=tuple(start.wrong), nodes=job.nodes, since=job.started_at,
    )  # fmt: skip


@dataclass
class _Memory:
    attempt: int | None = None
    job_id: str = ""
    saved_step: int | None = None
    history: History = field(default_factory=History)
    start: Start | None = None
    #: Whether the log counts the steps that checkpoints are named by: a bar may count batches.
    counts_alike: bool | None = None

    @classmethod
    def of(cls, past: Mapping[str, Any]) -> _Memory:
        try:
            start = Start(**past["start"]) if past.get("start") else None
        except TypeError:
            start = None  # written by another version: this start was looked at by that one
        return cls(
            past.get("attempt"), past.get("job_id", ""), past.get("saved_step"),
            History(past.get("history", ())), start, past.get("counts_alike"),
        )  # fmt: skip

    def saved(self, step: int) -> None:
        """A checkpoint of this step was saved, the log says."""
        self.saved_step = step
        if self.history.stride and self.history.last_step is not None:
            self.counts_alike = abs(step - self.history.last_step) <= 2 * self.history.stride

    def state(self) -> dict[str, Any]:
        return {
            "attempt": self.attempt, "job_id": self.job_id, "saved_step": self.saved_step,
            "history": self.history.state(), "start": asdict(self.start) if self.start else None,
            "counts_alike": self.counts_alike,
        }  # fmt: skip


def _expected(job: Job, memory: _Memory) -> Start | None:
    """What the new start should go on from; None where a person may have meant it to begin otherwise."""
    now: Attempt | None = next((a for a in reversed(job.attempts) if a.number == job.attempt), None)
    if now is not None and now.resume_step is not None:
        return Start(now.resume_step, memory.saved_step)
    if memory.job_id and job.id.split("#")[0] == memory.job_id.split("#")[0]:
        # the very same job again: its scheduler requeued it, and the script chose by itself
        return Start(None, memory.saved_step)
    memory.history, memory.saved_step = History(), None
    return None


def _take_in(news: RunNews, memory: _Memory, limits: Limits, *, left_over: bool) -> None:
    """Compare the lines of a new start; remember those of one that trains.

    `left_over`: the log was known before the start, so its lines up to the step back are the old one's.
    """
    restarts = any(isinstance(i, Event) and i.kind == "restart_marker" for i in news.items)
    last = memory.history.last_step
    for item in news.items:
        if isinstance(item, Event):
            if item.kind == "checkpoint_saved" and item.step is not None and not left_over:
                memory.saved(item.step)
            elif item.kind == "restart_marker":
                if (not left_over and memory.start is None) or (memory.start and memory.start.lines):
                    # within one start of the job: its launcher began the workers anew
                    memory.start = Start(None, memory.saved_step)
                left_over = False
            continue
        if item.evaluation or item.step is None or item.step < 1:
            continue  # a progress bar stands at 0 before it jumps to where the run goes on
        start = memory.start
        old = left_over and (restarts or (last is not None and item.step > last))
        if start is not None and start.resume_step is not None and not restarts:
            # the last lines were lost with their buffer: the checkpoint is further than the log
            old = old and not (last or 0) <= start.resume_step < item.step
        if old or start is None or start.is_over(limits):
            memory.history.add(item)
            continue
        _compare(item, start, memory, limits, _counts_steps(news, item))
        if start.is_over(limits) and not start.wrong:
            memory.history.cut(item.step - 1)
            memory.history.add(item)


def _counts_steps(news: RunNews, point: Point) -> bool:
    """Whether the log's steps are those of the checkpoints: a bar of an unknown loop may count batches."""
    return news.format != "progress_bar" or point.total_steps is not None


def _compare(point: Point, start: Start, memory: _Memory, limits: Limits, counts_steps: bool) -> None:
    assert point.step is not None
    history = memory.history
    start.lines += 1
    if start.first_step is None:
        start.first_step = point.step
        if counts_steps and memory.counts_alike is not False:
            start.wrong += _wrong_step(point.step, start, memory)
    if "learning_rate" in point.values and "learning_rate" not in start.compared:
        start.compared.append("learning_rate")
        start.wrong += _wrong_rate(point, history, limits)
    if "samples" in point.values and "samples" not in start.compared:
        start.compared.append("samples")
        start.wrong += _wrong_samples(point, history, limits)
    if "loss" in point.values:
        start.losses.append([point.step, point.values["loss"]])
        if len(start.losses) == limits.lines:
            start.wrong += _wrong_loss(start.losses, history, limits)


def _wrong_step(first: int, start: Start, memory: _Memory) -> list[str]:
    stride, resume, saved = memory.history.stride, start.resume_step, start.saved_step
    if resume is not None:
        if first < resume - 1:
            return [f"its first step is {first}, the checkpoint that it was given is of step {resume}"]
        if memory.counts_alike and stride and first > resume + 3 * stride:
            return [f"its first step is {first}, beyond the checkpoint that it was given, of step {resume}"]
    elif saved is not None and saved > 10 * (stride or 1) and first <= 2 * (stride or 1):
        return [f"it began at step {first}, though a checkpoint of step {saved} was saved before"]
    return []


def _wrong_rate(point: Point, history: History, limits: Limits) -> list[str]:
    usual = history.between("learning_rate", point.step or 0)
    now = point.values["learning_rate"]
    if usual is None or _within(now, usual, limits.rate_share * max(map(abs, usual))):
        return []
    return [f"the learning rate is {now:g} at step {point.step}, it was {usual[1]:g} there before"]


def _wrong_samples(point: Point, history: History, limits: Limits) -> list[str]:
    usual = history.between("samples", point.step or 0)
    now = point.values["samples"]
    if usual is None or _within(now, usual, limits.samples_share * usual[1]):
        return []
    return [f"{now:.0f} samples were consumed at step {point.step}, it was {usual[1]:.0f} there before"]


def _within(value: float, usual: tuple[float, float], slack: float) -> bool:
    return usual[0] - slack <= value <= usual[1] + slack


def _wrong_loss(losses: list[list[float]], history: History, limits: Limits) -> list[str]:
    first = int(losses[0][0])
    before = history.around("loss", first)
    if len(before) < _LOSSES_AT_LEAST:
        return []
    usual, spread = median_and_spread(before)
    now = statistics.median(loss for _, loss in losses)
    if not now > usual + max(limits.loss_spreads * spread, limits.loss_share * abs(usual)):
        return []  # nor when it is nan, which is another check's
    return [
        f"the loss is {now:.4g} in the {len(losses)} lines from step {first} on, "
        f"it was {usual:.4g} there before (scatter {spread:.2g})"
    ]
