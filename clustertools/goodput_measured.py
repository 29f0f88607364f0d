"""Where the time of a run went: trained and kept, trained twice, starting, saving, silent, down. Pure.

    found = measure([Sign("step", 10, 100.0), Sign("step", 20, 160.0), ...])
    found.ettr, found.seconds["rolled back"], found.attempts

A step that was trained again after a restart is lost once: its first training counts as rolled back. What
nobody can tell stays `unknown`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from clustertools.model import Attempt

SignKind = Literal["step", "saving", "saved", "evaluating", "evaluated", "resumed", "restarted", "finished"]
#: Where time goes. `kept` is training that counts; `between` is time beside the steps that the log does not
#: explain; `silent` is an attempt that makes no steps; `down` is no attempt at all; `stopped` is one of the
#: two, where only a log is known.
KINDS = (
    "kept", "rolled back", "starting", "saving", "evaluating", "between", "silent", "down", "stopped",
    "unknown",
)  # fmt: skip
#: So many usual step times may a step take and still be a slow one; what is beyond them was silence.
SLOW_STEPS = 3.0


@dataclass(frozen=True, slots=True)
class Sign:
    """What a log told at one moment. `time` is None where the log has no times."""

    kind: SignKind
    step: int | None = None
    time: float | None = None
    step_seconds: float | None = None


@dataclass(slots=True)
class _Work:
    """Steps trained in one go: those after `after` up to `upto`."""

    after: int
    upto: int
    seconds: float


@dataclass
class _Start:
    """One attempt while it is taken apart."""

    signs: list[Sign] = field(default_factory=list)
    attempt: Attempt | None = None
    base: int | None = None
    work: list[_Work] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    rolled_back_steps: int = 0
    starting_seconds: float | None = None
    lead_seconds: float = 0.0
    saves: list[float] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        return [s.time for s in self.signs if s.time is not None]

    @property
    def began(self) -> float | None:
        """Where only a log is known, its first line may be a step, which began before it."""
        if self.attempt is not None and self.attempt.started_at:
            return self.attempt.started_at
        return min(self.times) - self.lead_seconds if self.times else None

    @property
    def ended(self) -> float | None:
        return (self.attempt.ended_at if self.attempt else 0.0) or max(self.times, default=None)

    @property
    def steps(self) -> list[int]:
        return [s.step for s in self.signs if s.kind == "step" and s.step is not None]

    def spend(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Share:
    """One attempt: its steps (`first` to `last`, those of them that were kept) and its seconds by kind.

    `wall_seconds` is None where no clock tells it. `end` is how it ended, "" when nobody knows.
    """

    number: int
    resume_step: int | None
    first_step: int | None
    last_step: int | None
    kept_steps: int
    rolled_back_steps: int
    wall_seconds: float | None
    seconds: Mapping[str, float]
    end: str = ""


@dataclass(frozen=True, slots=True)
class Goodput:
    """The whole run. `wall_seconds`, `ettr` and every time that is not known are None.

    `save_seconds` is the median of how long saves held training up, `restart_seconds` of the time from the
    last step of an attempt to the first of the next; `interval_seconds` of the time between two saves.
    """

    wall_seconds: float | None
    seconds: Mapping[str, float]
    attempts: tuple[Share, ...]
    kept_steps: int
    rolled_back_steps: int
    step_seconds: float | None = None
    save_seconds: float | None = None
    interval_seconds: float | None = None
    restart_seconds: float | None = None
    failures: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ettr(self) -> float | None:
        """Training that was kept, by all time."""
        if not self.wall_seconds or (not self.seconds["kept"] and self.kept_steps):
            return None
        return min(1.0, self.seconds["kept"] / self.wall_seconds)


def measure(
    signs: Sequence[Sign],
    attempts: Sequence[Attempt] = (),
    *,
    wall_seconds: float | None = None,
    step_seconds: float | None = None,
    until: float = 0.0,
) -> Goodput:
    """Take a run's time apart.

    `signs` are those of its log in their order, `attempts` its starts as a watchdog wrote them down, both by
    one clock. Either may be empty. `wall_seconds` goes before what they tell. `step_seconds` is used where
    the log tells none. `until`: the time up to which a running attempt is reckoned.
    """
    open_ended = [replace(a, ended_at=a.ended_at or until) for a in attempts[-1:]]
    attempts = [*attempts[:-1], *open_ended]
    starts = _starts(signs, attempts)
    pace = _pace(starts) or step_seconds
    stride = _stride(starts)
    for start in starts:
        _base(start, stride)
        if start.attempt is not None and not start.steps and (start.attempt.last_step or not start.times):
            _by_attempt(start, pace)
        else:
            _take_apart(start, pace)
    for earlier, later in _pairs(starts):
        _gap(earlier, later)
    _roll_back(starts)
    return _sum(starts, wall_seconds, pace)


def _starts(signs: Iterable[Sign], attempts: Sequence[Attempt]) -> list[_Start]:
    """Cut the signs where the run began anew: where the log says so, and where an attempt began."""
    starts = [_Start(attempt=a) for a in attempts] or [_Start()]
    place, fresh = 0, _Start()
    cut: list[_Start] = [fresh]
    for sign in signs:
        moved = False
        if attempts and sign.time is not None:
            # an attempt's clock and its log's may differ by a little
            while place + 1 < len(attempts) and sign.time >= attempts[place + 1].started_at - 1.0:
                place, moved = place + 1, True
        anew = sign.kind in ("restarted", "resumed") and cut[-1].steps
        if anew or (moved and (cut[-1].steps or cut[-1].times)):
            cut.append(_Start())
        elif moved:
            cut[-1].attempt = None  # a line without a time came before it
        if attempts:
            cut[-1].attempt = cut[-1].attempt or attempts[place]
        cut[-1].signs.append(sign)
    if not attempts:
        return [start for start in cut if start.signs]
    return _matched(starts, [start for start in cut if start.signs])


def _matched(starts: list[_Start], cut: list[_Start]) -> list[_Start]:
    """The attempts in their order, each with the part of the log that is its own.

    A log without times can only be matched from its end: the newest attempt wrote the newest part.
    """
    if not any(part.times for part in cut):
        older = cut[: max(0, len(cut) - len(starts))]
        for part in older:
            part.attempt = None
        for start, part in zip(reversed(starts), reversed(cut), strict=False):
            start.signs = part.signs
        return [*older, *starts]
    found: list[_Start] = []
    for start in starts:
        found += _parts(start, [part for part in cut if part.attempt is start.attempt])
    return found


def _parts(start: _Start, mine: list[_Start]) -> list[_Start]:
    """An attempt as the log shows it: torchrun begins its workers anew and tells nobody."""
    attempt = start.attempt
    if not mine or attempt is None:
        return [start]
    for number, part in enumerate(mine):
        first, last = number == 0, part is mine[-1]
        part.attempt = replace(
            attempt,
            started_at=attempt.started_at if first else min(part.times, default=attempt.started_at),
            ended_at=attempt.ended_at if last else max(part.times, default=attempt.ended_at),
            resume_step=attempt.resume_step if first else None,
            end=attempt.end if last else "began anew by itself",
            ended_by=attempt.ended_by if last else "itself",
        )
    return mine


def _pairs(starts: Sequence[_Start]) -> Iterable[tuple[_Start, _Start]]:
    return itertools.pairwise(starts)


def _pace(starts: Iterable[_Start]) -> float | None:
    """The usual time of a step: as the log tells it, else by the clock, where nothing else happened."""
    told: list[float] = []
    by_clock: list[float] = []
    with_events: list[float] = []
    for start in starts:
        before: Sign | None = None
        eventful = False
        for sign in start.signs:
            if sign.kind != "step" or sign.step is None:
                eventful = True
                continue
            if sign.step_seconds:
                told.append(sign.step_seconds)
            if before is not None and before.time is not None and sign.time is not None:
                steps = sign.step - (before.step or 0)
                if steps > 0 and sign.time > before.time:
                    (with_events if eventful else by_clock).append((sign.time - before.time) / steps)
            if before is None or sign.step > (before.step or 0):
                before, eventful = sign, False
    found = told or by_clock or with_events
    return statistics.median(found) if found else None


def _stride(starts: Iterable[_Start]) -> int:
    """How many steps lie between two lines of the log."""
    found = [b - a for start in starts for a, b in itertools.pairwise(start.steps) if b > a]
    return round(statistics.median(found)) if found else 1


def _base(start: _Start, stride: int) -> None:
    """The step of the checkpoint that the attempt began from."""
    told = [s.step for s in start.signs if s.kind == "resumed" and s.step is not None]
    if start.attempt is not None and start.attempt.resume_step is not None:
        told.insert(0, start.attempt.resume_step)
    first = start.steps[0] if start.steps else None
    if told:
        start.base = told[0] if first is None else min(told[0], max(0, first - 1))
    elif first is not None:
        start.base = max(0, first - stride)


def _by_attempt(start: _Start, pace: float | None) -> None:
    """What the scheduler and the watchdog alone know of an attempt."""
    attempt = start.attempt
    assert attempt is not None
    steps = 0
    if attempt.last_step is not None:
        base = attempt.resume_step
        if base is None:
            base = max(0, (attempt.first_step or 1) - 1)
        start.base, steps = base, max(0, attempt.last_step - base)
    trained = steps * (pace or 0.0)
    wall = max(0.0, attempt.ended_at - attempt.started_at) if attempt.ended_at else None
    if steps:
        start.work.append(_Work(start.base or 0, attempt.last_step or 0, trained))
        start.spend("kept", trained)
    if wall is not None:
        # it started, saved, trained more slowly or hung: nobody wrote down which
        start.spend("unknown", wall - trained)


def _take_apart(start: _Start, pace: float | None) -> None:
    """Follow the log from sign to sign."""
    clock = start.attempt.started_at if start.attempt and start.attempt.started_at else None
    step, seen_step = start.base or 0, False
    explicit: dict[str, float] = {}
    hinted: list[str] = []
    phase, pending = "starting", 0.0
    for sign in start.signs:
        passed, timed = 0.0, clock is not None and sign.time is not None
        if sign.time is not None:
            passed = max(0.0, sign.time - clock) if clock is not None else 0.0
            clock = max(clock or sign.time, sign.time)
        if phase in ("saving", "evaluating"):
            explicit[phase] = explicit.get(phase, 0.0) + passed
        else:
            pending += passed
        if sign.kind == "step" and sign.step is not None:
            if sign.step <= step:
                continue  # another rank, or a second file, tells the same
            steps = sign.step - step
            passed = pending + sum(explicit.values())
            work = _trained(sign, steps, pace, passed if timed else None, alone=seen_step and not hinted)
            start.work.append(_Work(step, sign.step, work))
            start.spend("kept", work)
            if timed:
                _beside(start, seen_step, work, pending, explicit, hinted, steps * (pace or 0.0))
            elif not seen_step:
                start.lead_seconds = work
            step, seen_step, phase, pending = sign.step, True, "training", 0.0
            explicit, hinted = {}, []
        elif sign.kind in ("saving", "evaluating"):
            if not seen_step:
                continue  # a checkpoint before the first step belongs to the start
            phase = sign.kind
            hinted.append(sign.kind)
        elif sign.kind in ("saved", "evaluated"):
            hinted.append("saving" if sign.kind == "saved" else "evaluating")
            phase = "training" if seen_step else "starting"
        elif sign.kind == "finished":
            phase = "finished"
    if not start.times:
        if start.began is not None and start.ended is not None:
            start.spend("unknown", start.ended - start.began - sum(w.seconds for w in start.work))
        return
    if start.attempt is not None and start.ended is not None and clock is not None:
        pending += max(0.0, start.ended - clock)
    for kind, seconds in explicit.items():
        start.spend(kind, seconds)
    start.spend("starting" if not seen_step else "between" if phase == "finished" else "silent", pending)


def _trained(sign: Sign, steps: int, pace: float | None, passed: float | None, *, alone: bool) -> float:
    """How much of the time since the last step was training.

    Where something else happened too (loading, compiling, a save), only the usual time of the steps counts.
    """
    usual = pace or sign.step_seconds or 0.0
    work = steps * usual
    if alone and sign.step_seconds:
        work = steps * sign.step_seconds
    elif alone and passed is not None:
        work = passed
    if work > SLOW_STEPS * steps * usual:
        work = steps * usual
    return work if passed is None else min(work, passed)


def _beside(
    start: _Start, seen_step: bool, work: float, pending: float, explicit: Mapping[str, float],
    hinted: Sequence[str], usual: float,
) -> None:  # fmt: skip
    """Share out the time between two steps that was not training."""
    left = pending + sum(explicit.values()) - work
    for kind, seconds in explicit.items():
        # what ran in the background while steps went on held nothing up
        spent = min(seconds, max(0.0, left))
        start.spend(kind, spent)
        if kind == "saving":
            start.saves.append(spent)
        left -= spent
    if left <= 0:
        return
    if not seen_step:
        start.spend("starting", left)
        start.starting_seconds = left
    elif len(set(hinted)) == 1 and not explicit:
        start.spend(hinted[0], left)
        if hinted[0] == "saving":
            start.saves.append(left)
    else:
        start.spend("silent" if left > (SLOW_STEPS - 1) * usual else "between", left)


def _gap(earlier: _Start, later: _Start) -> None:
    """The time between two attempts; it counts with the earlier one, which caused it."""
    if earlier.ended is None or later.began is None:
        return
    one, other = earlier.attempt, later.attempt
    known = one is not None and other is not None and one.number != other.number
    earlier.spend("down" if known else "stopped", later.began - earlier.ended)


def _roll_back(starts: Sequence[_Start]) -> None:
    """Move what a later attempt trained again from kept to rolled back, each step once."""
    for place, later in enumerate(starts):
        if later.base is None:
            continue
        for earlier in starts[:place]:
            for work in earlier.work:
                lost = work.upto - max(work.after, later.base)
                if lost <= 0:
                    continue
                seconds = work.seconds * lost / (work.upto - work.after)
                earlier.seconds["kept"] -= seconds
                earlier.spend("rolled back", seconds)
                earlier.rolled_back_steps += lost
                work.seconds -= seconds
                work.upto -= lost
            earlier.work = [work for work in earlier.work if work.upto > work.after]


def _sum(starts: Sequence[_Start], wall_seconds: float | None, pace: float | None) -> Goodput:
    seconds = {kind: math.fsum(s.seconds[kind] for s in starts) for kind in KINDS}
    notes = []
    told = _wall(starts)
    wall = wall_seconds if wall_seconds is not None else told
    if wall is not None:
        known = math.fsum(seconds.values())
        seconds["unknown"] += max(0.0, wall - known)
        if known > 1.01 * wall + 1:
            notes.append(f"the parts add up to {known:.0f} s, more than the {wall:.0f} s there were")
    elif any(s.steps for s in starts):
        notes.append("the log has no times: say how long the run took to learn its ETTR")
    saves = [s for start in starts for s in start.saves]
    return Goodput(
        wall,
        seconds,
        tuple(_share(n, start) for n, start in enumerate(starts, 1)),
        kept_steps=sum(w.upto - w.after for s in starts for w in s.work),
        rolled_back_steps=sum(s.rolled_back_steps for s in starts),
        step_seconds=pace,
        save_seconds=statistics.median(saves) if saves else None,
        interval_seconds=_interval(starts),
        restart_seconds=_restart(starts),
        failures=_failures(starts),
        notes=tuple(notes),
    )


def _wall(starts: Sequence[_Start]) -> float | None:
    if not starts or starts[0].began is None or starts[-1].ended is None:
        return None
    # a log whose only time is its last line's tells nothing
    return max(0.0, starts[-1].ended - starts[0].began) or None


def _share(number: int, start: _Start) -> Share:
    attempt = start.attempt
    steps = start.steps
    ended, began = start.ended, start.began
    return Share(
        attempt.number if attempt else number,
        start.base,
        steps[0] if steps else attempt.first_step if attempt else None,
        max(steps) if steps else attempt.last_step if attempt else None,
        sum(w.upto - w.after for w in start.work),
        start.rolled_back_steps,
        ended - began if ended is not None and began is not None else None,
        {kind: value for kind, value in start.seconds.items() if value},
        (attempt.ended_by or attempt.end) if attempt else "",
    )


def _interval(starts: Iterable[_Start]) -> float | None:
    found = []
    for start in starts:
        times = [s.time for s in start.signs if s.kind == "saved" and s.time is not None]
        found += [b - a for a, b in itertools.pairwise(times) if b > a]
    return statistics.median(found) if found else None


def _restart(starts: Sequence[_Start]) -> float | None:
    """From the last step of an attempt to the end of the next one's start."""
    found = []
    for earlier, later in _pairs(starts):
        last = [s.time for s in earlier.signs if s.kind == "step" and s.time is not None]
        if last and later.began is not None:
            found.append(max(0.0, later.began - last[-1]) + (later.starting_seconds or 0.0))
    return statistics.median(found) if found else None


def _failures(starts: Sequence[_Start]) -> int:
    """Ends that cost a restart: not those that a person, the time limit or other jobs made."""
    free = ("person", "time-limit", "preempted")
    ends = [s for s in starts if s.attempt is not None]
    if ends:
        done = [s for s in ends if s.attempt and s.attempt.end and s.attempt.ended_by not in free]
        last = ends[-1].attempt
        well = last is not None and last.end in ("exit code 0", "ended well", "COMPLETED")
        return len(done) - (1 if well and done and done[-1] is ends[-1] else 0)
    return max(0, len(starts) - 1)
