"""Steps that take longer than they did: kind `step_time`. Pure, streaming.

A shift of the pace is told when the newest rows, at most 20, are slower than the 200 before them: by 5 % at
least, and by more than the run's own pace wanders. Evaluations, saves and cold starts are single rows or
short bursts: they count once as what they are, and never make a shift. All ranks wait for the slowest, so
this is how one bad node, a throttled GPU or a full file system shows in a log.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from clustertools.curves import Change, CurveEvent, News, Options, Restart, Row, Severity, Story
from clustertools.curves.pace_signal import StepSeconds

#: The newest rows, and those before them: 20 and 200, as blocks of ten that count by their median.
NEW_ROWS = 20
BLOCK_ROWS = 10
BLOCKS = 20
#: Blocks that must be known before anything is told. While there are few of them, 5 % is not enough.
BLOCKS_AT_LEAST = 4
BLOCKS_ENOUGH = 20
#: 5 % is the BLOOM case (105.2 -> 111.1 s a step); from 20 % on somebody is woken.
NOTICE, PAGE = 0.05, 0.20
#: A great slowdown needs fewer rows: from so many rows in a row that all are slower by so much.
BURSTS = ((3, 1.0), (5, 0.5), (8, 0.25))
#: Wandering of the pace is measured by how far each block is from the 20 blocks before it. A shift has to be
#: beyond so many robust sigmas of that, and beyond the worst but one of them.
WANDER_BLOCKS = 80
WANDER_SIGMAS = 4.5
WANDER_WORST = 1.4
#: A normal distribution's quarters are so many standard deviations apart.
QUARTERS_TO_SIGMA = 1.349
#: The median of 20 rows has a standard error of 0.28 sigmas of a row: so this is four of them.
ROW_SIGMAS = 1.1
#: Back: so many of the last rows are nearer to the usual pace than to the slow one.
BACK_ROWS, BACK_AT_LEAST = 10, 8
#: Told again when it is so much worse.
GREW = 1.3
#: So many slow bursts are remembered.
BURSTS_KEPT = 16
#: After so many slowdowns that went by within HABIT_ROWS, only a worse or a longer one is news.
HABIT_EVENTS, HABIT_ROWS, HABIT_WORSE = 3, 4000, 1.3
#: A pace that returns to what was usual before a faster time is no slowdown, when that time was the shorter.
FASTER_BLOCKS, FASTER_ROWS = 3, 2000
_UNITS = {
    "step_seconds": "s", "throughput_tokens_per_second": "tokens/s", "samples_per_second": "samples/s",
    "tflops_per_gpu": "TFLOP/s",
}  # fmt: skip


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


class Pace:
    """The detector. All of its state is bounded: 20 blocks, 80 distances, at most 20 rows in doubt."""

    __slots__ = (
        "_base", "_before", "_block_end", "_bursts", "_doubt", "_edge", "_event", "_limit", "_middles",
        "_newest", "_noise", "_open", "_past", "_rows", "_signal", "_since", "_slow", "_slow_rows", "_stands",
        "_tops", "_unsure", "_usual", "_wander",
    )  # fmt: skip

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved = state or {}
        self._signal = StepSeconds(saved.get("signal"))
        #: Rows that told a time, of the whole log.
        self._rows: int = saved.get("rows", 0)
        #: Median and second highest of each block at the usual pace, and the rows of the open one.
        self._middles = array("d", saved.get("middles", ()))
        self._tops = array("d", saved.get("tops", ()))
        self._open: list[float] = list(saved.get("open", ()))
        self._wander = array("d", saved.get("wander", ()))
        #: The first block after a start says whether the pace of before still holds.
        self._unsure: bool = saved.get("unsure", False)
        #: Step and seconds of the rows since the first that was slow, while it is not known what they are.
        self._doubt: list[list[float]] = [list(d) for d in saved.get("doubt", ())]
        #: Slow bursts that were too short to be told, the newest last: their rows, how many times as slow.
        self._bursts: list[list[float]] = [list(b) for b in saved.get("bursts", ())]
        #: Row, ratio and length of slowdowns that went by.
        self._past: list[list[float]] = [list(p) for p in saved.get("past", ())]
        #: The usual pace before a faster time: seconds, rows that it had lasted, row at which it ended.
        self._before: list[float] = list(saved.get("before", ()))
        self._since: int = saved.get("since", 0)
        event = saved.get("event")
        self._event: CurveEvent | None = CurveEvent(**event) if event else None
        #: Of the slowdown that goes on: usual seconds, the slow ones, rows, and the newest rows.
        self._usual: float = saved.get("usual", 0.0)
        self._slow: float = saved.get("slow", 0.0)
        self._slow_rows: int = saved.get("slow_rows", 0)
        self._newest: list[list[float]] = [list(n) for n in saved.get("newest", ())]
        #: It goes on for so long that it counts as the usual pace; the last step known to be of it.
        self._stands: bool = saved.get("stands", False)
        self._block_end: int = saved.get("block_end", 0)
        self._base = self._limit = self._noise = 0.0
        self._edge = math.inf
        self._measure()

    def state(self) -> dict[str, Any]:
        return {
            "signal": self._signal.state(), "rows": self._rows, "middles": list(self._middles),
            "tops": list(self._tops), "open": list(self._open), "wander": list(self._wander),
            "unsure": self._unsure, "doubt": [list(d) for d in self._doubt],
            "bursts": [list(b) for b in self._bursts], "past": [list(p) for p in self._past],
            "before": list(self._before), "since": self._since,
            "event": asdict(self._event) if self._event else None, "usual": self._usual, "slow": self._slow,
            "slow_rows": self._slow_rows, "newest": [list(n) for n in self._newest],
            "stands": self._stands, "block_end": self._block_end,
        }  # fmt: skip

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        seconds = self._signal.of(row)
        if self._signal.changed:
            self._signal.changed = False
            self._forget(told)
        if seconds is None:
            return
        self._rows += 1
        if self._event is not None and not self._stands:
            self._go_on(row, seconds, story, told)
        elif self._doubt or seconds > self._edge:
            self._suspect(row, seconds, story, told)
        else:
            self._open.append(seconds)
            if len(self._open) == BLOCK_ROWS:
                self._close_block(row.step, told)

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        self._end(told)
        self._signal.restart()
        self._open.clear()
        self._doubt.clear()
        self._unsure = True
        self._measure()

    def finish(self, story: Story, told: list[News]) -> None:
        self._end(told)

    def _forget(self, told: list[News]) -> None:
        """What comes cannot be compared with what was."""
        self._end(told)
        self._learn_anew()
        self._open, self._doubt = [], []
        self._past = []
        self._unsure = False
        self._measure()

    # the usual pace

    def _close_block(self, step: int, told: list[News]) -> None:
        ordered = sorted(self._open)
        middle, top = 0.5 * (ordered[4] + ordered[5]), ordered[-2]
        self._open.clear()
        if self._stands:
            if middle <= math.sqrt(self._usual * self._slow):
                self._recover(self._block_end, step, told)
                return
            self._block_end = step
        if self._unsure:
            self._unsure = False
            if self._middles and abs(middle / _median(self._middles) - 1) > NOTICE:
                self._learn_anew()
        elif len(self._middles) >= BLOCKS_AT_LEAST:
            self._wander.append(middle / self._base - 1)
            del self._wander[:-WANDER_BLOCKS]
        self._middles.append(middle)
        self._tops.append(top)
        del self._middles[:-BLOCKS], self._tops[:-BLOCKS]
        self._measure()
        if len(self._middles) > FASTER_BLOCKS + BLOCKS_AT_LEAST and max(
            self._middles[-FASTER_BLOCKS:]
        ) < self._base * (1 - self._limit):
            self._follow_faster()

    def _learn_anew(self) -> None:
        del self._middles[:], self._tops[:], self._wander[:]
        self._before, self._since = [], self._rows

    def _follow_faster(self) -> None:
        rows = FASTER_BLOCKS * BLOCK_ROWS
        old = self._middles[:-FASTER_BLOCKS]
        lasted = self._rows - rows - self._since
        self._before = [_median(old), lasted, self._rows - rows]
        del self._middles[:-FASTER_BLOCKS], self._tops[:-FASTER_BLOCKS], self._wander[-FASTER_BLOCKS:]
        self._since = self._rows - rows
        self._measure()

    def _measure(self) -> None:
        """The usual pace, how much it wanders, and from where on a row is slow."""
        self._edge = math.inf
        middles = self._middles
        if not middles:
            return
        base = self._base = _median(middles)
        noise = self._noise = _median([t / m for m, t in zip(middles, self._tops, strict=True)]) - 1
        few = max(0.0, (BLOCKS_ENOUGH - len(middles)) / BLOCKS_ENOUGH)
        limit = max(NOTICE * (1 + few), ROW_SIGMAS * noise * (1 + few), 2 * self._signal.quantum)
        if len(self._wander) < BLOCKS_ENOUGH:
            away = sorted(abs(middle / base - 1) for middle in middles)
            limit = max(limit, WANDER_WORST * away[-2:][0])
        if len(self._wander) >= 2:
            away = sorted(self._wander)
            # a pace that changes all the time, such as with a growing window, is no shift
            drift = away[len(away) // 2]
            spread = (away[3 * len(away) // 4] - away[len(away) // 4]) / QUARTERS_TO_SIGMA
            limit = max(limit, max(0.0, drift) + WANDER_SIGMAS * spread, WANDER_WORST * away[-2])
        self._limit = limit
        if len(middles) >= BLOCKS_AT_LEAST and not self._unsure:
            self._edge = base * (1 + max(0.6 * limit, noise))

    # a slowdown that may be one

    def _suspect(self, row: Row, seconds: float, story: Story, told: list[News]) -> None:
        step = self._signal.first_step
        self._doubt.append([row.step if step is None else step, seconds])
        if seconds <= self._edge:
            self._drop_quiet(told)
            if not self._doubt:
                return
        if self._is_shift():
            self._begin(row, story, told)
        elif len(self._doubt) >= NEW_ROWS:
            # the oldest is no part of a shift
            self._give_back(1, told)
            self._drop_quiet(told)

    def _drop_quiet(self, told: list[News]) -> None:
        """Nothing slow among the newest: what was in doubt belongs to the usual course."""
        rows, edge = self._doubt, self._edge
        first = next((i for i, d in enumerate(rows) if d[1] > edge), len(rows))
        slow = sum(d[1] > edge for d in rows)
        quiet = 0
        while quiet < len(rows) and rows[-1 - quiet][1] <= edge:
            quiet += 1
        if quiet >= 5 or quiet > slow + 1 or first == len(rows):
            self._burst()
            self._give_back(len(rows), told)
        elif first:
            self._give_back(first, told)

    def _burst(self) -> None:
        """A few slow rows went by: so long are those of an evaluation in this run."""
        great = sorted(d[1] / self._base for d in self._doubt if d[1] > self._base * (1 + BURSTS[-1][1]))
        if great:
            self._bursts = [*self._bursts, [len(great), great[len(great) // 2]]][-BURSTS_KEPT:]

    def _give_back(self, count: int, told: list[News]) -> None:
        """The oldest rows in doubt go where they belong: to the usual pace."""
        back, self._doubt = self._doubt[:count], self._doubt[count:]
        for step, seconds in back:
            self._open.append(seconds)
            if len(self._open) == BLOCK_ROWS:
                self._close_block(int(step), told)

    def _is_shift(self) -> bool:
        seconds = [d[1] for d in self._doubt]
        base, slow = self._base, 0
        for value in reversed(seconds):
            if value <= self._edge:
                break
            slow += 1
        for rows, ratio in BURSTS:
            if slow < rows:
                break
            height = min(seconds[-rows:]) / base
            if height >= 1 + max(ratio, 6 * self._noise, 3 * self._limit):
                # as high ones are usual here, such as evaluations of some rows
                usual = max((length for length, other in self._bursts if other >= 0.5 * height), default=0)
                if slow >= usual + 2:
                    return True
        if sum(value > self._edge for value in seconds) <= NEW_ROWS // 2:
            return False
        return _median(seconds) >= base * (1 + self._limit)

    def _is_news(self, ratio: float) -> bool:
        recent = [p for p in self._past if p[0] > self._rows - HABIT_ROWS]
        if len(recent) >= HABIT_EVENTS:
            worst, longest = max(p[1] for p in recent), max(p[2] for p in recent)
            return ratio - 1 > HABIT_WORSE * (worst - 1) or self._slow_rows > HABIT_WORSE * longest
        return True

    # a slowdown that goes on

    def _begin(self, row: Row, story: Story, told: list[News]) -> None:
        slow = [d[1] for d in self._doubt if d[1] > self._edge]
        self._end(told)
        self._usual, self._slow, self._slow_rows = self._base, _median(slow), len(slow)
        if self._before and self._returns():
            self._doubt = []
            self._scale(self._slow / self._base)
            return
        first = self._first_of_shift()
        self._newest = self._doubt[-NEW_ROWS:]
        self._doubt = []
        self._open.clear()
        ratio = self._slow / self._usual
        event = CurveEvent(
            number=0, kind="step_time", metric=self._signal.metric, step=first, alarm_step=row.step,
            value=self._said(self._slow), baseline=self._said(self._usual),
            confidence=self._confidence(ratio), severity=self._severity(ratio), message="",
        )  # fmt: skip
        self._event = event
        self._tell_first(event, ratio, row.step, story, told)

    def _tell_first(self, event: CurveEvent, ratio: float, step: int, story: Story, told: list[News]) -> None:
        """Unless it is one of those that this run has all the time: then only if it outlasts them."""
        if self._is_news(ratio):
            event = replace(event, number=story.number(), alarm_step=step)
            self._event = replace(event, message=self._message(event))
            told.append(News("began", self._event))

    def _first_of_shift(self) -> int:
        """The step from which on the rows are slow: an evaluation just before it is no part of it."""
        middle = max(self._edge, math.sqrt(self._usual * self._slow))
        best, score, first = 0, 0, len(self._doubt) - 1
        for number in range(first, -1, -1):
            seconds = self._doubt[number][1]
            pauses = seconds > 2 * self._slow and number != first  # it would be one before the shift as well
            score += -1 if pauses else 1 if seconds > middle else -2
            if score > best:
                best, first = score, number
        return int(self._doubt[first][0])

    def _returns(self) -> bool:
        """Whether the pace is again what it was before a faster time that was the shorter of the two."""
        seconds, lasted, ended = self._before
        gone = self._rows - ended
        return abs(self._slow / seconds - 1) <= NOTICE and gone < min(lasted, FASTER_ROWS)

    def _go_on(self, row: Row, seconds: float, story: Story, told: list[News]) -> None:
        event = self._event
        assert event is not None
        self._slow_rows += 1
        self._newest.append([row.step, seconds])
        del self._newest[:-NEW_ROWS]
        middle = math.sqrt(self._usual * self._slow)
        if seconds <= middle:
            back = self._newest[-BACK_ROWS:]
            if len(back) == BACK_ROWS and sum(n[1] <= middle for n in back) >= BACK_AT_LEAST:
                end = max(i for i, n in enumerate(self._newest) if n[1] > middle or i == 0)
                self._recover(int(self._newest[end][0]), int(self._newest[end + 1][0]), told)
                return
        if self._slow_rows % BLOCK_ROWS == 0 or self._slow_rows == NEW_ROWS // 2 + 1:
            self._look_again(row, middle, story, told)

    def _look_again(self, row: Row, middle: float, story: Story, told: list[News]) -> None:
        """Worse than was told? And after as many rows as a baseline has, the slow pace is one."""
        event = self._event
        assert event is not None
        slow = _median([n[1] for n in self._newest])
        if slow > middle:
            self._slow = slow
        ratio, worst = slow / self._usual, self._ratio(event)
        severity: Severity = "page" if event.severity == "page" else self._severity(ratio)
        if severity != event.severity or ratio - 1 >= GREW * (worst - 1):
            event = replace(
                event, severity=severity, value=self._said(self._usual * max(ratio, worst)),
                confidence=self._confidence(ratio),
            )  # fmt: skip
            self._event = replace(event, message=self._message(event))
            if event.number:
                told.append(News("grew", self._event))
        if not event.number:
            self._tell_first(event, ratio, row.step, story, told)
        if self._slow_rows >= BLOCKS * BLOCK_ROWS:
            self._stands, self._block_end = True, int(self._newest[-1][0])
            self._scale(self._slow / self._usual)
            self._newest = []

    def _scale(self, factor: float) -> None:
        """The usual pace is another one; how it wanders is as it was."""
        self._middles = array("d", [middle * factor for middle in self._middles])
        self._tops = array("d", [top * factor for top in self._tops])
        self._open.clear()
        self._before, self._since = [], self._rows
        self._measure()

    def _recover(self, end: int, back: int, told: list[News]) -> None:
        event = self._event
        assert event is not None
        self._past = [*self._past, [self._rows, self._ratio(event), self._slow_rows]][-2 * HABIT_EVENTS :]
        if self._stands:
            self._scale(self._usual / self._slow)
        self._close(event, "recovered", end, told, back)

    def _end(self, told: list[News]) -> None:
        """Without recovery."""
        if self._event is None:
            return
        middle = math.sqrt(self._usual * self._slow)
        slow = [int(n[0]) for n in self._newest if n[1] > middle]
        end = self._block_end if self._stands or not slow else slow[-1]
        self._close(self._event, "ended", max(end, self._event.step), told)

    def _close(
        self, event: CurveEvent, change: Change, end: int, told: list[News], back: int | None = None
    ) -> None:
        event = replace(event, end_step=end, recovered_step=back)
        if event.number:
            told.append(News(change, replace(event, message=self._message(event))))
        self._event, self._stands, self._newest = None, False, []

    # what is told

    def _ratio(self, event: CurveEvent) -> float:
        """How many times as long a step takes at worst."""
        by_time = event.metric == "step_seconds"
        return event.value / event.baseline if by_time else event.baseline / event.value

    def _said(self, seconds: float) -> float:
        return seconds if self._signal.metric == "step_seconds" else 1 / seconds

    def _severity(self, ratio: float) -> Severity:
        return "page" if ratio >= 1 + PAGE and self._slow_rows > NEW_ROWS // 2 else "notice"

    def _confidence(self, ratio: float) -> float:
        return round(min(0.99, max(0.5, 1 - 0.4 * self._limit / max(ratio - 1, 1e-9))), 2)

    def _message(self, event: CurveEvent) -> str:
        unit = _UNITS[event.metric]
        longer = 100 * (self._ratio(event) - 1)
        much = f"{longer:.1f} % longer" if longer < 100 else f"{longer / 100 + 1:.1f} times as long"
        when = f"since step {event.step}"
        if event.end_step is not None:
            when = f"from step {event.step} to {event.end_step}"
        took = "take" if event.end_step is None else "took"
        return f"steps {took} {much}: {event.value:.4g} {unit} instead of {event.baseline:.4g}, {when}"
