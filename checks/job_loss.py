"""Whether the loss of a run is still a number, and whether its curves do what those of a healthy run do.

Nothing is trained from the first nan or inf on, and whatever is saved after it is lost as well. In fp16
single iterations overflow and are skipped while the loss scale is searched for: normal, as long as it ends.
Spikes, divergences and their early signs are told by `curves.watch`, as `clustertools metrics scan` does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from clustertools.catalog import skip_data
from clustertools.check import Context, check
from clustertools.curves import CurveEvent, Kind, News, Options, Severity
from clustertools.curves.open_events import LASTING, OpenEvents, Told
from clustertools.curves.packing import packed, unpacked
from clustertools.curves.watch import CurveWatch
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.training_run import read_run
from clustertools.sources.training_values import Event, Point, canonical

#: So many starts are remembered with the step at which their loss was lost.
_STARTS_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class As:
    """What an event is called here, and how grave it is."""

    code: str
    status: Status


#: Kind and urgency of an event -> what it is told as. A loss that is no number is LossNotFinite, found below;
#: that steps take longer is told by job_slow, which also looks for the node.
TOLD_AS: dict[tuple[Kind, Severity], As] = {
    ("nan", "page"): As("StepsNotFinite", Status.CRITICAL),
    ("nan", "notice"): As("StepsNotFinite", Status.WARNING),
    ("spike", "page"): As("LossSpike", Status.CRITICAL),
    ("spike", "notice"): As("LossSpike", Status.WARNING),
    ("divergence", "page"): As("LossDiverged", Status.CRITICAL),
    ("restart", "page"): As("LossRestarted", Status.CRITICAL),
    ("level_shift", "page"): As("LossLevelShift", Status.CRITICAL),
    ("slow_bump", "notice"): As("LossSlowBump", Status.WARNING),
    ("grad_burst", "notice"): As("GradNormBurst", Status.WARNING),
    ("grad_rise", "daily"): As("GradNormRise", Status.WARNING),
    ("param_norm_rise", "daily"): As("ParamNormRise", Status.WARNING),
    ("loss_scale_collapse", "page"): As("LossScaleCollapse", Status.CRITICAL),
    ("loss_scale_collapse", "notice"): As("LossScaleCollapse", Status.WARNING),
    ("stall", "daily"): As("TrainingStall", Status.WARNING),
}
_CODES: dict[Kind, str] = {kind: told.code for (kind, _), told in TOLD_AS.items()}
#: When nothing more is told of what lasts, it stays for a day, or until a person says that it is over.
_LASTING_SECONDS = 86400.0
#: A divergence may be told sooner, while it still rises. Nothing is undone before so many rows: BLOOM's first
#: spike took thirty to come back, those of IDEFICS some tens.
_ACT_ROWS = 50
#: A look that brings more than this still reads what was there before anybody looked.
_HISTORY_ITEMS = 200


@dataclass(frozen=True)
class Limits:
    """`lines_in_a_row`: one inf by itself may be a step that a gradient scaler skips in silence, the next
    line tells. `skipped_in_a_row`: a loss scale of 2**32 takes about 16 halvings to where training begins;
    the collapses of GLM-130B took 30 to 40 (main-log-en.md): after more than that no scale is found any more.
    `extra`: metrics beside the known ones that are watched like a loss; `kinds_off`: kinds of curve events
    that nobody is told of. Both come from `jobs.NAME.loss` of the config.
    """

    lines_in_a_row: int = 2
    skipped_in_a_row: int = 50
    extra: tuple[str, ...] = ()
    kinds_off: tuple[str, ...] = ()


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


@dataclass
class Curves:
    """What is known of the run's curves between two looks. `watch` is the packed state of the detectors,
    `isolated` how many single rows were out so far. `diverged_step` is the first bad step of a
    divergence that has not come back; it outlives the way back, as `Losses.first_bad_step` does. `bad_rows`:
    rows since the last disturbance of the loss began."""

    watch: str = ""
    isolated: int = 0
    events: dict[str, Any] = field(default_factory=dict)
    attempt: int = -1
    last_step: int | None = None
    diverged_step: int | None = None
    bad_rows: int = 0
    went_back: bool = False
    waits: bool = False
    catching_up: bool = True

    def add(self, items: Iterable[Point | Event], options: Options, off: Iterable[str]) -> None:
        """Let the detectors see `items`; without any nothing is done, and nothing is paid for."""
        items = list(items)
        if not items:
            return
        many = len(items) > _HISTORY_ITEMS
        history = self.catching_up and (many or not self.watch)
        self.catching_up = self.catching_up and many
        try:
            watch, events = (
                CurveWatch(unpacked(self.watch) if self.watch else None, options),
                OpenEvents(self.events),
            )
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            # written by another version: the level of the run is learned anew
            watch, events, history = CurveWatch(None, options), OpenEvents(), True
        for item in self._of_this_start(items):
            for news in watch.add(item):
                self._news(news, item, events, off, history=history)
            if isinstance(item, Point) and item.step is not None and not item.evaluation:
                self._step(item.step)
                self.bad_rows += 1
        self.watch, self.events, self.isolated = packed(watch.state()), events.state(), watch.story.isolated

    def begin(self, attempt: int) -> None:
        """A new start of the run: what it trains on is not known yet."""
        self.waits = self.attempt >= 0
        self.attempt = attempt

    def _of_this_start(self, items: list[Point | Event]) -> Iterator[Point | Event]:
        """The items; a line that is no news in the log may be the first step of a new start all the same."""
        for item in items:
            first = self.waits and isinstance(item, Point) and not item.evaluation
            if first and item.step is not None and item.step <= (self.last_step or 0):
                yield Event("resumed", item.step)
            yield item

    def _news(
        self, news: News, item: Point | Event, events: OpenEvents, off: Iterable[str], *, history: bool
    ) -> None:
        event = news.event
        if event.kind not in _CODES or event.kind in off or (event.kind, event.metric) == ("nan", "loss"):
            return
        back = news.change == "ended" and item.step is not None and item.step <= event.step
        if event.metric == "loss" and news.change == "began":
            self.bad_rows = 0
        # of other metrics people are told; what is undone for them is theirs to say
        if event.kind in ("divergence", "restart") and event.metric == "loss":
            if news.change in ("began", "grew"):
                self.diverged_step, self.went_back = event.step, False
            else:
                self.diverged_step, self.went_back = (event.step, True) if back else (None, False)
        elif event.kind == "level_shift" and event.step == self.diverged_step:
            self.diverged_step = None
        events.take(news, went_back=back, history=history)

    def _step(self, step: int) -> None:
        self.waits = False
        self.last_step = step
        if self.went_back and self.diverged_step is not None and step >= self.diverged_step:
            self.diverged_step, self.went_back = None, False


@check(
    limits=Limits,
    stages={"job"},
    interval_seconds=0.0,
    timeout_seconds=60.0,
    codes={
        "LossNotFinite": "the loss of a run is nan or infinite: nothing is trained any more",
        "LossSpike": "the loss of a run left its level; most spikes come back by themselves",
        "LossDiverged": "the loss of a run left its level and did not come back",
        "LossRestarted": "the loss of a run is where it was at its first steps: the weights are lost",
        "LossLevelShift": "the loss of a run jumped to another level and holds it",
        "LossSlowBump": "the loss of a run rose and fell over tens of logged rows",
        "GradNormBurst": "the gradient norm of a run leapt; an early sign, if the loss follows",
        "GradNormRise": "the gradient norm of a run grows while the loss stops to improve",
        "ParamNormRise": "the parameter norm of a run grows while the loss stops to improve",
        "LossScaleCollapse": "the fp16 loss scale of a run falls and falls: an early sign of a spike",
        "StepsNotFinite": "gradients of a run are nan or infinite, and its steps are skipped",
        "TrainingStall": "a run learns nothing more although its learning rate is not spent",
    },
)
def job_loss(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether the run's loss is finite and stays at its level; the step from which on it did not is kept."""
    job, limits = ctx.job, ctx.limits
    if job is None or job.state not in ("running", "completing", "ended"):
        raise ctx.skip(f"the job is {job.state if job else 'not known'}")
    news = read_run(ctx.host, job, ctx.past.get("logs", {}))
    losses, curves = _remembered(ctx.past)
    if losses.attempt != job.attempt:
        losses.begin(job.attempt)
    if curves.attempt != job.attempt:
        curves.begin(job.attempt)
    losses.add(news.items, limits)
    curves.add(news.items, Options(tuple(map(canonical, limits.extra))), limits.kinds_off)
    events = OpenEvents(curves.events)
    told = [] if curves.waits else list(events.told())
    curves.events = events.state()
    # not `asdict`, which copies all that the detectors know
    ctx.remember.update({"logs": news.memory, "losses": asdict(losses), "curves": dict(vars(curves))})
    if losses.first_bad_step is not None:
        ctx.remember["first_bad_step"] = losses.first_bad_step
    if curves.diverged_step is not None and (curves.went_back or curves.bad_rows >= _ACT_ROWS):
        ctx.remember["diverged_step"] = curves.diverged_step
    if not news.paths:
        raise ctx.skip("no log can be read yet")
    yield from _not_finite(ctx, losses)
    yield from _curve_findings(ctx, told, news.format or "")
    for kind, sentence in events.over.items():
        ctx.over(_CODES[kind], sentence)  # type: ignore[index]
    yield ctx.reading("loss_isolated_rows", float(curves.isolated))
    if losses.waits and not losses.in_a_row:
        raise ctx.skip("a new start after a loss that was not a number: it has told no finite one yet")
    if curves.waits and not events.is_empty():
        raise ctx.skip("a new start after trouble with its loss: it has told no step yet")


def _not_finite(ctx: Context, losses: Losses) -> Iterator[Finding]:
    job = ctx.job
    assert job is not None
    if losses.in_a_row >= ctx.limits.lines_in_a_row or (losses.in_a_row and job.state == "ended"):
        first = losses.first_bad_step
        where = f"from step {first} on" if first is not None else "at a step that the log does not tell"
        yield ctx.critical(
            "LossNotFinite", "", f"the loss of {job.run} is not a number {where}: {losses.bad_line}",
            evidence=tuple(_evidence(losses)), remedy=Remedy.RESTART_APP, nodes=job.nodes,
            since=job.started_at,
        )  # fmt: skip


def _curve_findings(ctx: Context, told: Iterable[Told], format: str) -> Iterator[Finding]:
    """One finding for each code; of several events the newest speaks, the others are evidence."""
    by_kind: dict[Kind, list[Told]] = {}
    for each in told:
        for kind in each.kinds:
            by_kind.setdefault(kind, []).append(each)
    for kind, each_of in by_kind.items():
        yield _curve_finding(ctx, kind, each_of, format)


def _curve_finding(ctx: Context, kind: Kind, each_of: list[Told], format: str) -> Finding:
    job = ctx.job
    assert job is not None
    newest = max(each_of, key=lambda t: t.event.number)
    event = newest.event
    # by what it is called here: the early sign that became a spike is a sign all the same
    grave = [TOLD_AS.get((kind, t.event.severity)) for t in each_of]
    say = ctx.critical if any(one and one.status is Status.CRITICAL for one in grave) else ctx.warning
    evidence = [*_about(event, format), *(t.event.message for t in each_of if t is not newest)]
    if newest.ended:
        evidence.insert(0, newest.ended)
    return say(
        _CODES[kind], "", event.message,
        evidence=tuple(evidence), nodes=job.nodes, since=job.started_at,
        clears=_LASTING_SECONDS if kind in LASTING else "recovery",
        # a later event of the same code is news as well; what goes by another name now says nothing new
        edition=event.number * 100 + min(newest.edition, 99) if kind == event.kind else 0,
        daily=all(t.event.severity == "daily" for t in each_of),
    )  # fmt: skip


def _about(event: CurveEvent, format: str) -> Iterator[str]:
    yield f"worst {event.value:.6g}, its level {event.baseline:.6g}, first bad step {event.step}"
    if event.sign_step is not None and event.sign_step < event.step:
        yield f"an earlier sign in another metric at step {event.sign_step}"
    yield f"seen at step {event.alarm_step}; {event.confidence:.0%} sure"
    if event.kind == "divergence" and event.is_open:
        yield f"checkpoints of step {event.step} and later were saved after it began"
        yield f"to leave out the data around it: {skip_data.how(format, *skip_data.around(event.step))}"


def _remembered(past: Any) -> tuple[Losses, Curves]:
    """Of what another version wrote, that is left out which cannot be read; the log tells the rest."""
    losses, curves = Losses(), Curves()
    with contextlib.suppress(TypeError):
        losses = Losses(**past.get("losses", {}))
    with contextlib.suppress(TypeError):
        curves = Curves(**past.get("curves", {}))
    return losses, curves


def _evidence(losses: Losses) -> Iterator[str]:
    if losses.finite_step is not None:
        yield f"last finite loss: {losses.finite_loss:g} at step {losses.finite_step}"
    if losses.first_bad_step is not None:
        yield f"checkpoints of step {losses.first_bad_step} and later are not to be resumed from"
    for attempt, step in losses.lost:
        if attempt != losses.attempt:
            yield f"attempt {attempt} lost it at step {step}"
