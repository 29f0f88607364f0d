"""Spikes, divergences, restarts and new levels of the loss, seen together with the grad norm. Pure.

A row that is out (above Level.high) is told at once when the grad norm is out as well, or when it stands
further out than this run's single rows go. Else the next row has to confirm it, and where single rows are
frequent the one after: never more than two rows later. A row that is out, with the next one back and the grad
norm unmoved, is the data: it is counted and not told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from clustertools.curves import Kind, News, Options, Restart, Row, Story
from clustertools.curves.level import OUT_SIGMAS, Level
from clustertools.curves.loss_event import ACCEPT_ROWS, AGAIN_ROWS, BACK_ROWS, SPIKE_ROWS, Disturbance
from clustertools.curves.loss_slow import BLOCK_ROWS, Slow

#: A loss has to be so far above its level, as a share of it, to be out, and so far to be told: an event has
#: 10 % at its peak (loss.md section 4), by levels that are not quite ours, and the first row is often lower.
LOSS_FLOOR, TOLD_LIFT = 0.04, 0.08
#: A grad norm scatters far more. It is out at 1.5 times its level; a batch that is odd raises it with the
#: loss to about twice (seen in runs of nanoGPT), so that it confirms a loss from 2.5 times on: 56 of 71 loss
#: events reach 3 (loss.md section 1).
GRAD_FLOOR, SIGN_RATIO = 0.5, 2.5
#: A burst of the grad norm alone is 5 times its median and 40 robust sigmas (loss.md section 4). 30 of ours:
#: medians over other windows differ by so much, and a burst of just 40 is one as well.
BURST_RATIO, BURST_SIGMAS = 5.0, 30.0
#: What is told has to be rarer than this by the run's own record: two in 100,000 rows.
RARE = 2e-5
#: ... and so high: 10 % (loss.md section 4); twice the level where there is a grad norm that did not move.
SPOT_LIFT, UNMOVED_LIFT = 0.10, 1.0
#: ... of a series that has a level at all: a loss around zero is noise, and one row of it tells nothing.
SPOT_SPREADS = 4.0
#: ... and goes as far up as down: until it lasts, it has to be so many times as far as it ever went.
REACH_TIMES = 1.5
#: Rows that confirm the highest, and a burst of the grad norm, have to be rarer than this; a grad norm that
#: confirms a loss, rarer than that.
CONFIRMED, SIGN_RARE = 1e-3, 1e-2
#: With the grad norm out, so much of the loss is enough to belong to it; less is not taken for a sign of it.
JOINT_SIGMAS, JOINT_LIFT = 3.0, 0.02
#: After a row that is out, the next ones are with it from here on; so many of them say something by lasting.
AFTER_SIGMAS, WAIT_ROWS = 2.0, 3
#: Rows of which none is high by itself have to be so much rarer, and where more rows are needed so high:
#: blocks of other data last for some rows too.
LASTS_RARE, LASTS_LIFT = 1e-7, 0.25
#: Rows that are out and still tell nothing after so many are how the series is.
GIVE_UP_ROWS = 8
#: A loss that rises by less than this share of what the run began with is fitted to nothing all the same.
FITTED_SHARE = 1e-3
#: A sign in the grad norm belongs to a loss that leaves within so many rows: four in BLOOM's first spike.
SIGN_ROWS = 5
#: Of a long event, so many of its first rows are kept beside the last ones.
FIRST_VALUES = 14
#: As the first rows of the run, each of so many: within 20 %, after the loss had fallen to this share of them
#: (loss.md section 4). A spike that goes as high comes down sooner than the run first did.
RESTART_NEAR, LEARNED_SHARE, FIRST_ROWS = 0.2, 0.7, 6
#: The log interval has changed when as many rows are so many times as many steps, or as few.
INTERVAL_TIMES = 3
#: After a resume the loss is up for some tens of rows by itself (IDEFICS): only what is this high counts.
RESUME_ROWS, RESUME_LIFT = 50, 0.3


class LossWatch:
    """The detector of the loss. See clustertools.curves.Detector."""

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved = state or {}
        self._loss = Joined("loss", saved.get("loss"))
        names = [n for n in (options or Options()).extra if n not in ("loss", "grad_norm")]
        series = saved.get("extra", {})
        self._extra = {name: Joined(name, series.get(name)) for name in names}

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        values = row.values
        loss = values.get("loss")
        grad = values.get("grad_norm")
        joined = self._loss
        level, grads = joined.level, joined.grad
        if loss is not None:
            # the ordinary row; a value that is no number is not at most anything
            is_in = not joined.busy and level.low < loss <= level.high
            if is_in and grad is None:
                joined.take(row.step, loss, story, told)
            elif is_in and grad is not None and 0 < grad <= grads.high:
                joined.take(row.step, loss, story, told)
                grads.take(grad)
            else:
                joined.look(row.step, loss, grad, story, told)
        elif grad is not None:
            joined.look(row.step, None, grad, story, told)
        if not self._extra:
            return
        for name, series in self._extra.items():
            value = values.get(name)
            if value is not None:
                series.look(row.step, value, None, story, told)

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        """To where the log begins: another run in the same file, of which nothing is known yet."""
        first = self._loss.first_step
        for series in (self._loss, *self._extra.values()):
            series.restart(told)
        if first is not None and restart.step <= first:
            self._loss = Joined("loss")
            self._extra = {name: Joined(name) for name in self._extra}

    def finish(self, story: Story, told: list[News]) -> None:
        for series in (self._loss, *self._extra.values()):
            series.finish(told)

    def state(self) -> dict[str, Any]:
        extra = {name: series.state() for name, series in self._extra.items()}
        return {"loss": self._loss.state(), "extra": extra}


class Joined:
    """One series and the grad norm beside it. `busy`: something is going on, so that every row has to come to
    `look`; an ordinary row only to `take`.
    """

    def __init__(self, metric: str, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self.metric = metric
        self.level = Level(LOSS_FLOOR, saved.get("level"))
        self.grad = Level(GRAD_FLOOR, saved.get("grad"))
        self.slow = Slow(saved.get("slow"))
        #: of the last block of rows its last step, and how many steps it was long
        self.block: list[int] = list(saved.get("block", (0, 0)))
        self.first_step: int | None = saved.get("first_step")
        self.firsts: list[float] = list(saved.get("firsts", ()))
        self.now = Disturbance.of(saved.get("now"))
        #: rows that are out and not told: step, value, grad norm over its level, sigmas, chance
        self.waiting: list[list[float]] = [list(row) for row in saved.get("waiting", ())]
        #: the step at which the grad norm went out, the rows since it last was, the highest ratio and sigmas
        self.sign: list[float] | None = saved.get("sign")
        self.resumed: int = saved.get("resumed", 0)
        self.busy: bool = saved.get("busy", True)

    def state(self) -> dict[str, Any]:
        return {
            "level": self.level.state(), "grad": self.grad.state(), "slow": self.slow.state(),
            "block": self.block, "first_step": self.first_step, "firsts": self.firsts,
            "now": self.now.state() if self.now else None, "waiting": self.waiting, "sign": self.sign,
            "resumed": self.resumed, "busy": self.busy,
        }  # fmt: skip

    def take(self, step: int, value: float, story: Story, told: list[News]) -> None:
        """An ordinary row."""
        level = self.level
        level.take(value)
        if level.wait == BLOCK_ROWS:
            steps, before = step - self.block[0], self.block[1]
            if before > 0 and not before < INTERVAL_TIMES * steps < INTERVAL_TIMES**2 * before:
                level.renew()
                self.grad.renew()
                self.slow = Slow()
                self.block = [step, steps]
                return
            self.block = [step, steps]
            risen = self.slow.add(step, level.recent[-BLOCK_ROWS:], level.spread, level.is_log)
            if risen is not None and self.now is None:
                self._rise(*risen, step, value, story, told)

    def look(
        self, step: int, value: float | None, grad: float | None, story: Story, told: list[News]
    ) -> None:
        """A row in full. A value that is no number belongs to another detector, and so does a loss of 0.0
        with a grad norm that is none: so the Hugging Face Trainer prints it."""
        if value is not None and (
            not math.isfinite(value) or (value == 0.0 and grad is not None and math.isnan(grad))
        ):
            value = None
        if grad is not None and not (math.isfinite(grad) and grad > 0):
            grad = None
        ratio = self._grad_sign(step, grad)
        if value is None:
            if ratio >= BURST_RATIO and self.now is None:
                self._burst(step, grad, ratio, story, told)
            self._settle_busy()
            return
        if self.first_step is None:
            self.first_step = step
        if len(self.firsts) < FIRST_ROWS:
            self.firsts.append(value)
        if self.resumed:
            self.resumed -= 1
        if self.now is not None and not self.now.over:
            self._follow(self.now, step, value, grad, ratio, told)
        elif self._is_out(value):
            self._out(step, value, grad, ratio, story, told)
        else:
            self._in(step, value, grad, ratio, story, told)
        self._settle_busy()

    def _settle_busy(self) -> None:
        self.busy = bool(
            self.now or self.waiting or self.sign or self.resumed or len(self.firsts) < FIRST_ROWS
        )

    def _grad_sign(self, step: int, grad: float | None) -> float:
        """Follow the grad norm: how many times its level it is where it is out, else 0."""
        level, sign = self.grad, self.sign
        if sign is not None:
            sign[1] += 1
            if sign[1] > SIGN_ROWS:
                level.note_single(sign[3])
                self.sign = None
        if grad is None:
            return 0.0
        now = self.now
        if grad <= level.high:
            if now is None or now.over or grad <= now.grad_back:
                level.take(grad)
            return 0.0
        ratio = grad / level.base
        z = level.z(grad)
        if now is None or now.over:
            level.take(level.high)  # many of these are how the run is; few change nothing
        if self.sign is None:
            self.sign = [step, 0, ratio, z]
        else:
            self.sign[1:] = [0, max(ratio, self.sign[2]), max(z, self.sign[3])]
        return ratio

    def _is_out(self, value: float) -> bool:
        """Above the level; nearer to it when the row before or the grad norm is out already."""
        level = self.level
        if value > level.high:
            return True
        if not level.is_ready or not (self.waiting or self.sign):
            return False
        z, lift = level.z(value), level.lift(value)
        if self.waiting:
            return z >= AFTER_SIGMAS and lift >= JOINT_LIFT
        return z >= JOINT_SIGMAS and lift >= JOINT_LIFT

    def _out(
        self, step: int, value: float, grad: float | None, ratio: float, story: Story, told: list[News]
    ) -> None:
        level, z = self.level, self.level.z(value)
        known = 0.0  # so much of its height was to be expected, as the rows of some series hang together
        if self.waiting:
            highest = max(row[3] for row in self.waiting)
            known = min(level.carry * self.waiting[-1][3], level.carry ** len(self.waiting) * highest)
        self.waiting.append([step, value, ratio, z, level.chance(z - known)])
        if self._is_told(grad):
            self._begin("spike", story, told)
        elif len(self.waiting) >= GIVE_UP_ROWS:
            self._let_go(story)

    def _let_go(self, story: Story) -> None:
        """What was out and not confirmed was the data."""
        level, waiting = self.level, self.waiting
        story.isolated += max(row[3] for row in waiting) >= OUT_SIGMAS
        for row in waiting:
            level.note_single(row[3])
            level.note_reach(row[1])
            level.take(min(row[1], level.high))
        self.waiting = []

    def _is_told(self, grad: float | None) -> bool:
        """Whether the rows that wait are more than the run's data do now and then."""
        level, waiting = self.level, self.waiting
        peak = max(row[1] for row in waiting)
        lift = level.lift(peak)
        if lift < (RESUME_LIFT if self.resumed else TOLD_LIFT) or self._is_nothing(peak - level.base):
            return False
        if len(waiting) <= WAIT_ROWS and self._is_within_reach(peak):
            return False
        chance = math.prod(row[4] for row in waiting)
        is_high = level.z(peak) >= OUT_SIGMAS
        if self.sign is not None and self.sign[2] >= (SIGN_RATIO if is_high else BURST_RATIO):
            sign = min(1.0, SIGN_ROWS * self.grad.chance(self.sign[3]))
            if chance * sign <= RARE and sign <= SIGN_RARE:
                return True
        lasts = SPOT_LIFT if len(waiting) <= WAIT_ROWS else LASTS_LIFT
        if len(waiting) >= WAIT_ROWS and lift >= lasts and chance <= LASTS_RARE:
            is_high = True  # two sigmas less, three times over
        if chance > RARE or not is_high:
            return False
        if len(waiting) > 1 and chance <= CONFIRMED * min(row[4] for row in waiting):
            return True
        unmoved = grad is not None and self.grad.is_ready
        return lift >= (UNMOVED_LIFT if unmoved else SPOT_LIFT) and level.scale >= SPOT_SPREADS * level.spread

    def _is_within_reach(self, value: float) -> bool:
        """Of a series around zero: not further than it went before, up or down."""
        level = self.level
        return not level.is_log and value - level.base <= REACH_TIMES * level.reach

    def _is_nothing(self, rise: float) -> bool:
        """So little, held against the run's first rows, that nobody would see it."""
        return bool(self.firsts) and rise < FITTED_SHARE * median(self.firsts)

    def _in(
        self, step: int, value: float, grad: float | None, ratio: float, story: Story, told: list[News]
    ) -> None:
        """The loss is at its level."""
        level = self.level
        if self.waiting and self.sign is not None and self._is_told(grad):  # the grad norm came a row later
            self._begin("spike", story, told)
            assert self.now is not None
            self._follow(self.now, step, value, grad, ratio, told)
            return
        if self.waiting:
            self._let_go(story)
        if value < level.low and not level.is_log:  # around zero: what goes down goes up as well
            level.note_single(-level.z(value))
            level.note_reach(value)
        if self.now is not None:  # over, and kept for a while: what comes again soon is the same
            self.now.rows += 1
            if self.now.rows > AGAIN_ROWS:
                self.now = None
        if ratio >= BURST_RATIO and level.is_ready and grad is not None:
            self._burst(step, grad, ratio, story, told)
        self.take(step, value, story, told)

    def _begin(self, kind: Kind, story: Story, told: list[News]) -> None:
        """Tell of the rows that wait, as one disturbance."""
        level = self.level
        first, last = self.waiting[0], self.waiting[-1]
        values = [row[1] for row in self.waiting]
        peak, ratio = max(values), max(row[2] for row in self.waiting)
        sign = None
        if self.sign is not None:
            ratio, sign = max(ratio, self.sign[2]), int(self.sign[0])
        if self.now is not None:  # over, but not for long: it comes again
            known = self.now
            known.over, known.back_rows, known.rows = False, 0, len(values)
            known.peak, known.grad_ratio = max(peak, known.peak), max(ratio, known.grad_ratio)
            if known.kind == "grad_burst":
                self._turn(known, "spike", int(first[0]), peak)
            known.end_step, known.values = int(last[0]), values
            told.append(known.news("grew"))
            self.waiting = []
            return
        chance = math.prod(row[4] for row in self.waiting)
        if self.sign is not None:
            chance *= min(1.0, SIGN_ROWS * self.grad.chance(self.sign[3]))
        self.now = Disturbance(
            number=story.number(), kind=kind, metric=self.metric, step=int(first[0]), alarm_step=int(last[0]),
            baseline=level.base, back=self._back(peak), grad_back=self.grad.high, peak=peak,
            confidence=_sure(chance), end_step=int(last[0]), rows=len(values), sign_step=sign,
            grad_ratio=ratio, values=values,
        )  # fmt: skip
        self.waiting = []
        told.append(self.now.news("began"))

    def _back(self, peak: float) -> float:
        """Up to where the loss is back: what its level scatters, and of a high peak the last twentieth."""
        level, base = self.level, self.level.base
        least = 0.5 * level.floor * (base if level.is_log else level.scale)
        return max(level.raised(4.0), base + max(least, 0.05 * (peak - base)))

    def _burst(self, step: int, grad: float | None, ratio: float, story: Story, told: list[News]) -> None:
        level = self.grad
        if grad is None or not level.is_ready or level.bulks(grad) < BURST_SIGMAS:
            return
        if level.chance(level.z(grad)) > CONFIRMED:
            return
        if self.now is not None:
            known = self.now
            known.over, known.back_rows, known.rows = False, 0, 1
            known.grad_ratio = max(ratio, known.grad_ratio)
            return
        self.now = Disturbance(
            number=story.number(), kind="grad_burst", metric="grad_norm", step=step, alarm_step=step,
            baseline=level.base, back=self._back(self.level.base), grad_back=level.high, peak=grad,
            confidence=_sure(level.chance(level.z(grad))), end_step=step, grad_ratio=ratio,
        )  # fmt: skip
        told.append(self.now.news("began"))

    def _rise(
        self, first: int, before: float, step: int, value: float, story: Story, told: list[News]
    ) -> None:
        """The loss has come up, too slowly for any row of it to be out."""
        level, base = self.level, self.level.base
        if level.is_log:
            before = math.exp(before)
        if self.resumed or self._is_nothing(base - before):
            return
        self.now = Disturbance(
            number=story.number(), kind="slow_bump", metric=self.metric, step=first, alarm_step=step,
            baseline=before, back=before + 0.3 * (base - before) + level.raised(1.0) - base,
            grad_back=self.grad.high, peak=base, confidence=0.8, end_step=step, values=[value],
        )  # fmt: skip
        self.busy = True
        told.append(self.now.news("began"))

    def _follow(
        self, now: Disturbance, step: int, value: float, grad: float | None, ratio: float, told: list[News]
    ) -> None:
        """A row while a disturbance goes on."""
        now.rows += 1
        now.grad_ratio = max(now.grad_ratio, ratio)
        page = now.severity
        if now.kind == "grad_burst":
            if self._is_out(value) and not self._is_within_reach(value):
                self._turn(now, "spike", step, value)
                now.values, now.held = [value], []
                told.append(now.news("grew"))
                return
            out = grad is not None and grad > now.grad_back
            if out and grad is not None:
                now.peak = max(now.peak, grad)
        else:
            out = value > now.back
            if now.kind == "slow_bump":
                self.level.take(min(value, self.level.high))
            now.values.append(value)
            if len(now.values) > SPIKE_ROWS + FIRST_VALUES:
                del now.values[FIRST_VALUES]
            if out:
                now.peak = max(now.peak, value)
        if not out:
            now.back_rows += 1
            now.held.append([value])
            if now.back_rows == 1:
                now.back_step = step
            if now.back_rows >= BACK_ROWS:
                self._over(now, told)
            return
        now.back_rows, now.back_step, now.end_step = 0, None, step
        if now.kind == "grad_burst":
            now.held.append([value])
            if now.rows >= SPIKE_ROWS:  # the grad norm has another level now
                self._ended(now, told)
            return
        now.held = []
        self._grow(now, told, page)

    def _grow(self, now: Disturbance, told: list[News], page: str) -> None:
        """What it is by now, and whether that is news."""
        kind = now.kind
        if kind == "spike" and self._is_restart(now):
            now.kind = "restart"
        elif kind == "spike" and now.rows >= SPIKE_ROWS:
            now.kind = "level_shift" if _holds(now) else "divergence"
        elif _rises(now):
            now.kind = "divergence"
        now.judge()
        if now.kind == "level_shift" or now.rows >= ACCEPT_ROWS:
            if now.kind != kind:
                told.append(now.news("grew"))
            self.level.accept(now.values[-SPIKE_ROWS:])
            self.slow = Slow()
            self._ended(now, told)
        elif (
            now.kind != kind
            or now.severity != page
            or now.peak - now.baseline > 1.5 * max(now.told_height, 0.0)
        ):
            told.append(now.news("grew"))

    def _is_restart(self, now: Disturbance) -> bool:
        """Its first rows are those of the run again, one by one, after it had learned."""
        firsts, values = self.firsts, now.values
        if len(values) != FIRST_ROWS or len(firsts) < FIRST_ROWS or self.metric != "loss":
            return False
        start = median(firsts)
        if start <= 0 or now.baseline > LEARNED_SHARE * start:
            return False
        return all(abs(a - b) <= RESTART_NEAR * abs(b) for a, b in zip(values, firsts, strict=True))

    def _turn(self, now: Disturbance, kind: Kind, step: int, peak: float) -> None:
        """A burst of the grad norm turns out to be the first sign of a loss that leaves."""
        now.sign_step = now.step if now.sign_step is None else now.sign_step
        now.kind, now.metric, now.step, now.end_step = kind, "loss", step, step
        now.baseline, now.peak, now.rows = self.level.base, peak, 1
        now.back, now.back_rows, now.back_step = self._back(peak), 0, None

    def _over(self, now: Disturbance, told: list[News]) -> None:
        told.append(now.news("recovered"))
        if not self.level.is_log:  # around zero, what comes and goes is noise as well: it is told more seldom
            for value in now.values:
                self.level.note_single(self.level.z(value))
                self.level.note_reach(value)
        for held in now.held if now.kind != "slow_bump" else ():
            self.level.take(min(held[0], self.level.high))
        now.over, now.rows, now.values, now.held = True, 0, [], []

    def _ended(self, now: Disturbance, told: list[News]) -> None:
        told.append(now.news("ended"))
        for held in now.held:
            self.level.take(min(held[0], self.level.high))
        self.now = None

    def restart(self, told: list[News]) -> None:
        """The run went back: what was going on is void."""
        self.waiting, self.sign = [], None
        if self.now is not None and not self.now.over:
            self._ended(self.now, told)
        self.now, self.resumed, self.busy = None, RESUME_ROWS, True

    def finish(self, told: list[News]) -> None:
        now = self.now
        if now is not None and not now.over:
            if now.back_rows:
                self._over(now, told)
            else:
                self._ended(now, told)
        self.now = None


def _rises(now: Disturbance) -> bool:
    """It is higher than ever after a while that is long for its kind: nobody has to wait for its end."""
    if now.kind == "spike":
        return now.rows >= SPIKE_ROWS // 2 and min(now.values[-5:]) > max(now.values[:5])
    return now.kind == "slow_bump" and now.rows >= 2 * SPIKE_ROWS and now.values[-1] > 1.5 * now.baseline > 0


def _holds(now: Disturbance) -> bool:
    """The level since is as flat as it was high: it does not come back and does not rise."""
    early, late = median(now.values[2:FIRST_VALUES]), median(now.values[-12:])
    return abs(late - early) <= 0.25 * max(early - now.baseline, late - now.baseline)


def _sure(chance: float) -> float:
    """How sure: 0.5 where such a row comes once in 10, 0.99 where once in 100,000 and rarer."""
    digits = -math.log10(max(chance, 1e-12))
    return round(min(0.99, 0.4 + 0.12 * digits), 2)
