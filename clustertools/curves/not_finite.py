"""Losses and gradients that are no number, and iterations that a run skipped because of it. Pure.

What a nan looks like differs by framework: `nan` or `inf` in the loss; no loss in the line at all
(Megatron-LM prints the mean only if it is above zero: megatron/training/training.py, training_log); a loss of
0.0 beside a grad norm of nan (Hugging Face Trainer). What is no nan: an fp16 step that overflowed and was
skipped, a record that never has a loss, a value that a table says nan for because it was not recorded.

An event's `step` is the row that is bad itself; when only the gradients of the row just before were nan, that
row, because its step is what spoilt the weights. Where rows are many steps apart the first nan may be any
step since the row before: a rollback has to go before that one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from clustertools.curves import Change, CurveEvent, News, Options, Restart, Row, Severity, Story

#: So many rows that are numbers again end the event. Our choice: as many as part two alarms in the scoring.
CALM_ROWS = 10
#: Skipped iterations that wake somebody: in a row, or within so many iterations.
IN_A_ROW, OFTEN, OFTEN_ITERATIONS = 3, 10, 1000
#: A scaler that grows its scale every so many steps overflows as often (DeepSpeed's loss_scale_window is 100
#: in many published configurations): skips that are all further apart than this are its breath, no fault.
BREATH_ITERATIONS = 50
#: The first search for a loss scale is over after so many iterations without a skip; until then so many may
#: be skipped: from 2**32 to 1 with one of hysteresis, and two more at the floor.
SEARCH_CALM_ITERATIONS, SEARCH_SKIPS_AT_MOST = 50, 35
#: Losses that were numbers before a single nan is believed at once: some tables say nan for "not recorded".
KNOWN_ROWS = 5
#: A table with the loss alone that leaves it out of a row: a nan after so many rows with it. Our choice.
WHOLE_ROWS = 50
#: A row of training has at least one of these; where they are gone too the row is another kind of record.
_BESIDE = (
    "learning_rate", "grad_norm", "step_seconds", "throughput_tokens_per_second", "tokens", "samples",
    "tflops_per_gpu",
)  # fmt: skip

#: What a counter of skipped iterations counts: those since the line before, or all since the start.
_LINE, _ALL = 1.0, 2.0
#: A counter that stays up for so many skips, were they by line, counts all.
LATE_AT_MOST = 20
#: So many rows in a row that have no loss and nothing beside it are believed to be training after all.
STRANGE_ROWS = 5

_Sort = Literal["good", "bad", "skip", "nothing"]


@dataclass(slots=True)
class _Memory:
    """All that is known between rows; JSON-ready but for the event.

    `held`: rows with nan that are not believed yet: first step, how many, finite ones since. `sparse`: the
    longest run of nan between two values in a series that is not recorded every row (0: it is).
    """

    losses: int = 0
    loss: float = math.nan
    step: int | None = None
    beside: list[str] | None = None
    strange: int = 0
    empty_at: int = 0
    zeros: int = 0
    zero_rows: int = 0
    zero_step: int = 0
    held: list[int] = field(default_factory=list)
    held_value: float = math.nan
    sparse: int = 0
    gap: int = 0
    grad_step: int | None = None
    scale: float | None = None
    scaled: bool = False
    counters: dict[str, list[float]] = field(default_factory=dict)
    search: bool = True
    calm: int = 0
    searched: int = 0
    streak: int = 0
    streak_step: int = 0
    skips: list[int] = field(default_factory=list)
    bad_rows: int = 0
    last_bad: int = 0
    good_step: int | None = None
    good_rows: int = 0
    calm_needed: int = 0


class NotFinite:
    """The detector of kind `nan`: one event a disturbance."""

    def __init__(self, state: Mapping[str, Any] | None = None, options: Options | None = None) -> None:
        saved = dict(state or {})
        event, skipping = saved.pop("event", None), saved.pop("skipping", None)
        self._event = CurveEvent(**event) if event else None
        self._skipping = CurveEvent(**skipping) if skipping else None
        self._m = _Memory(**saved)
        self._is_calm = self._nothing_waits()

    def state(self) -> dict[str, Any]:
        """JSON-ready; `NotFinite(state)` goes on from it."""
        return {
            **asdict(self._m),
            "event": asdict(self._event) if self._event else None,
            "skipping": asdict(self._skipping) if self._skipping else None,
        }

    def add(self, row: Row, story: Story, told: list[News]) -> None:
        values = row.values
        loss, norm = values.get("loss"), values.get("grad_norm", 0.0)
        m = self._m
        # x - x is 0 for all that is finite
        if self._is_calm and loss and loss - loss == 0.0 and norm - norm == 0.0 and not row.missing:
            scale = values.get("loss_scale")
            if not values.get("skipped_iterations") and not values.get("nan_iterations") and scale == m.scale:
                m.loss, m.step = loss, row.step
                m.losses += 1
                return
        self._look(row, loss, norm, story, told)
        m.step = row.step
        self._is_calm = self._nothing_waits()

    def _nothing_waits(self) -> bool:
        m = self._m
        return not (
            m.held or m.gap or m.search or m.streak or m.zero_rows or m.strange or m.grad_step is not None
            or self._event or self._skipping or m.losses < KNOWN_ROWS
            or any(counter[1] for counter in m.counters.values())
        )  # fmt: skip

    def _look(self, row: Row, loss: float | None, norm: float, story: Story, told: list[News]) -> None:
        m = self._m
        steps = max(1, row.step - m.step) if m.step is not None else 1
        halved = self._halvings(row.values.get("loss_scale"))
        skipped, nans = self._new("skipped_iterations", row, steps), self._new("nan_iterations", row, steps)
        skipped = max(skipped, halved, self._new("skipped_steps_total", row, steps))
        sort = self._sort(row, loss, norm, skipped, nans, steps)
        if sort == "nothing":
            return
        if sort == "bad":
            self._bad(row, loss, norm, story, told)
            return
        if not math.isfinite(norm):
            skipped = max(skipped, 1)
            self._bad_gradients(row, norm, story, told)
        elif sort == "good":
            m.grad_step = None
        if sort == "good" and loss is not None:
            self._good(row, loss, story, told)
        self._skips(row, skipped, steps, story, told)

    def _bad_gradients(self, row: Row, norm: float, story: Story, told: list[News]) -> None:
        """The next loss tells whether the step was skipped, unless it is known that no scaler skips any."""
        m = self._m
        if m.grad_step is None:
            m.grad_step = row.step
        if self._event is not None:
            m.last_bad, m.good_rows, m.good_step = row.step, 0, None
        elif m.scale == 1.0 and not m.scaled:
            self._begin(row.step, row, "grad_norm", norm, "notice", story, told)

    # what a row is

    def _sort(
        self, row: Row, loss: float | None, norm: float, skipped: int, nans: int, steps: int
    ) -> _Sort:  # fmt: skip
        m = self._m
        if loss is None:
            if "loss" in row.missing:
                return "skip" if skipped and (m.step is None or skipped >= steps) else "bad"
            if (nans and not skipped) or (not row.values and self._is_rare()):
                return "bad"
            return "skip" if skipped or not math.isfinite(norm) else "nothing"
        if math.isinf(loss):
            return "bad"
        if math.isnan(loss):
            m.strange = 0 if self._is_training(row) else m.strange + 1
            return "nothing" if 0 < m.strange < STRANGE_ROWS else "bad"
        if loss == 0.0 and math.isnan(norm) and not m.zeros:
            return "bad"
        return "bad" if nans and not skipped else "good"

    def _is_rare(self) -> bool:
        """Whether a row without any value comes after so many with a loss that the loss is left out of it."""
        m = self._m
        since, m.empty_at = m.losses - m.empty_at, m.losses
        return since >= WHOLE_ROWS

    def _is_training(self, row: Row) -> bool:
        """Whether a row whose loss is nan has what the rows with a loss had beside it.

        The grad norm alone tells little: it is nan with the loss.
        """
        names, values = self._m.beside or [], row.values
        if any(not math.isnan(values.get(n, math.nan)) for n in names):
            return True
        return all(n == "grad_norm" for n in names) and math.isnan(values.get("eval_loss", math.nan))

    def _new(self, name: str, row: Row, steps: int) -> int:
        """How many were skipped since the row before, whether the log counts by row or from the start on.

        Megatron-LM counts by printed line and begins at 0 again, DeepSpeed counts all. A counter that went
        down counts by line; one that is above the steps since the line before counts all. Until that is
        known only what it grew by is taken, and the rest made up for when it goes down.
        """
        value = row.values.get(name)
        counter = self._m.counters.get(name)
        if value is None or not math.isfinite(value):
            if counter is not None and not counter[3] and counter[0] != _ALL:
                counter[:2] = [_LINE, 0.0]  # only said when there was one
            return 0
        if counter is None:
            kind = _ALL if name == "skipped_steps_total" else _LINE if self._m.losses and value == 1 else 0.0
            counter = self._m.counters[name] = [kind, 0.0, 0.0, 0.0]
        kind, last, late, zeros = counter
        new = max(0.0, value - last)
        if kind == 0.0 and value < last:
            kind, new = _LINE, value + late
        elif kind == 0.0 and value > steps and self._m.step is not None:
            kind = _ALL
        elif kind == _LINE or (kind == 0.0 and "loss" not in row.values):
            new = value
        late = late + value - new if kind == 0.0 else 0.0
        if late > LATE_AT_MOST:
            kind, late = _ALL, 0.0
        counter[:] = [kind, value, late, float(zeros or value == 0)]
        return int(new)

    def _halvings(self, scale: float | None) -> int:
        """How often the loss scale was halved: a step was skipped each time, whatever the counters say.

        Megatron-LM over DeepSpeed printed 0 skipped iterations beside five overflows (BigScience tr8b-104B).
        """
        m = self._m
        if scale is None or not 0.0 < scale < math.inf:
            return 0
        halved = 0
        if m.scale is not None and scale != m.scale:
            m.scaled = True
            halved = max(0, round(math.log2(m.scale) - math.log2(scale)))
            if scale > 4 * m.scale:
                # no growth: the run was started anew with the first scale, which is too high again
                m.search, m.searched, m.calm = True, 0, 0
        m.scaled = m.scaled or scale > 1.0
        m.scale = scale
        return halved

    # losses

    def _good(self, row: Row, loss: float, story: Story, told: list[News]) -> None:
        m = self._m
        if self._is_zero_for_nan(row, loss):
            if m.zero_rows >= 3 and (self._event is None or self._event.metric != "loss"):
                self._begin(m.zero_step, row, "loss", 0.0, "page", story, told)
            return
        m.losses += 1
        m.loss = loss
        m.strange = 0
        # what *all* rows with a loss have beside it, as far as they are looked at
        m.beside = [n for n in (_BESIDE if m.beside is None else m.beside) if n in row.values]
        self._release(row, story, told)
        if self._event is None or m.grad_step is not None:
            return
        if m.good_rows == 0:
            m.good_step = row.step
        m.good_rows += 1
        if m.good_rows >= CALM_ROWS and self._event is not None:
            self._over("recovered", told)

    def _is_zero_for_nan(self, row: Row, loss: float) -> bool:
        """A loss of exactly zero where it was well above: what the Trainer prints when all losses are nan."""
        m = self._m
        if loss != 0.0:
            m.zero_rows = 0
            return False
        if m.zeros or m.losses < KNOWN_ROWS or (m.zero_rows == 0 and not m.loss > 0.1):
            m.zeros += m.zero_rows == 0
            return False
        if m.zero_rows == 0:
            m.zero_step = row.step
        m.zero_rows += 1
        if self._event is not None:
            m.last_bad, m.good_rows = row.step, 0
        return True

    def _bad(self, row: Row, loss: float | None, norm: float, story: Story, told: list[News]) -> None:
        m = self._m
        value = math.nan if loss is None or loss == 0.0 else loss
        first, m.grad_step = m.grad_step if m.grad_step is not None else row.step, None
        if self._event is not None:
            m.bad_rows += 1
            m.last_bad, m.good_rows, m.good_step = row.step, 0, None
            if self._event.metric != "loss":
                severity: Severity = "page"
                grown = replace(
                    self._event, metric="loss", value=value, severity=severity, confidence=0.99,
                    message=self._sentence("loss", self._event.step, value),
                )  # fmt: skip
                self._tell("grew", grown, told)
            return
        if (m.losses >= KNOWN_ROWS and not m.sparse) or math.isinf(value) or "loss" in row.missing:
            self._begin(first, row, "loss", value, "page", story, told)
            return
        m.gap += 1
        if not m.held or (m.sparse and m.gap == 1):
            m.held = [first, m.held[1] if m.held else 0, 0, row.step]
            m.held_value = value
        m.held[1] += 1
        m.held[2] = 0
        m.held[3] = row.step
        is_known = m.losses > 0 or "learning_rate" in row.values or not math.isfinite(norm)
        if is_known and m.gap > max(2, 3 * m.sparse):
            self._begin(m.held[0], row, "loss", m.held_value, "page", story, told)

    def _release(self, row: Row, story: Story, told: list[News]) -> None:
        """A number after rows of nan that were not believed yet."""
        m = self._m
        if m.gap and m.held:
            if m.held[1] > m.gap or m.sparse:
                # nan again and again from the start: this series is not recorded every row
                m.sparse = max(m.sparse, m.gap)
            m.gap = 0
        if not m.held:
            return
        m.held[2] += 1
        if m.held[2] < 3:
            return
        held, m.held, was_sparse, m.sparse = m.held, [], m.sparse, 0
        if was_sparse == 0:
            self._begin(held[0], row, "loss", m.held_value, "page", story, told, last_bad=held[3])

    def _begin(
        self, first: int, row: Row, metric: str, value: float, severity: Severity, story: Story,
        told: list[News], last_bad: int | None = None,
    ) -> None:  # fmt: skip
        m = self._m
        m.held, m.gap, m.bad_rows, m.good_rows, m.good_step = [], 0, 1, 0, None
        m.last_bad = row.step if last_bad is None else last_bad
        if self._event is not None:
            return
        event = CurveEvent(
            story.number(), "nan", metric, first, row.step, value, m.loss, 0.99 if metric == "loss" else 0.8,
            severity, self._sentence(metric, first, value),
        )  # fmt: skip
        self._tell("began", event, told)

    def _sentence(self, metric: str, first: int, value: float) -> str:
        m = self._m
        what = "grad norm" if metric == "grad_norm" else "loss"
        told = f"{value:g}" if value != 0.0 else "printed as 0, which stands for nan"
        before = f"; the last loss that was a number: {m.loss:.4g}" if math.isfinite(m.loss) else ""
        where = f", logged at step {m.step}" if m.step is not None and m.step < first and before else ""
        return f"{what} is {told} from step {first} on{before}{where}"

    def _over(self, change: Change, told: list[News]) -> None:
        m, event = self._m, self._event
        assert event is not None
        back = m.good_step if change == "recovered" else None
        message = event.message
        if back is not None:
            what = "grad norm" if event.metric == "grad_norm" else "loss"
            was = "nan" if event.value == 0.0 else f"{event.value:g}"
            during = f"at step {event.step}"
            if m.last_bad > event.step:
                during = f"from step {event.step} to {m.last_bad}"
            message = f"{what} was {was} {during} and is a number again since step {back}"
        self._tell(change, replace(event, end_step=m.last_bad, recovered_step=back, message=message), told)
        self._event, m.good_rows, m.good_step = None, 0, None

    def _tell(self, change: Change, event: CurveEvent, told: list[News]) -> None:
        self._event = event
        told.append(News(change, event))

    # skipped iterations

    def _skips(self, row: Row, skipped: int, steps: int, story: Story, told: list[News]) -> None:
        m = self._m
        if not skipped:
            if not any(late for _, _, late, _ in m.counters.values()):
                m.streak = 0
            m.calm += steps
            if m.search and m.calm >= SEARCH_CALM_ITERATIONS:
                m.search = False
            if self._skipping is not None and m.calm >= m.calm_needed:
                self._end_skipping("recovered", row.step, told)
            return
        m.calm = 0
        if m.streak == 0:
            m.streak_step = row.step
        # of some skipped between two rows it is not known whether they were in a row: most of them must be
        m.streak = m.streak + skipped if 2 * skipped >= steps else 0
        if not m.search:
            m.skips = [s for s in m.skips if s > row.step - OFTEN_ITERATIONS]
            m.skips = (m.skips + [row.step] * min(skipped, OFTEN))[-OFTEN:]
        if self._skipping is not None:
            self._skipping = replace(self._skipping, value=self._skipping.value + skipped)
            return
        if m.search:
            m.searched += skipped
            if m.searched > SEARCH_SKIPS_AT_MOST and (m.scale is None or m.scale <= 1.0 or m.streak):
                self._begin_skipping(m.streak_step, row, m.searched, "in a row", story, told)
        elif m.streak >= IN_A_ROW:
            self._begin_skipping(m.streak_step, row, m.streak, "in a row", story, told)
        elif len(m.skips) >= OFTEN and not self._is_breath():
            self._begin_skipping(m.skips[0], row, OFTEN, f"in {OFTEN_ITERATIONS} iterations", story, told)

    def _is_breath(self) -> bool:
        """Whether the scaler tries a higher scale now and then. Where the scale is logged it tells more."""
        skips = self._m.skips
        return self._m.scaled or min(b - a for a, b in itertools.pairwise(skips)) >= BREATH_ITERATIONS

    def _begin_skipping(
        self, first: int, row: Row, count: int, how: str, story: Story, told: list[News]
    ) -> None:
        m = self._m
        m.calm_needed = CALM_ROWS if how == "in a row" else OFTEN_ITERATIONS
        scale = f"; the loss scale is {m.scale:g}" if m.scale is not None and m.scaled else ""
        message = (
            f"{count} iterations {how} were skipped because their gradients were inf or nan, "
            f"from step {first} on{scale}"
        )
        event = CurveEvent(
            story.number(), "nan", "skipped_iterations", first, row.step, float(count), 0.0, 0.9, "page",
            message,
        )  # fmt: skip
        self._skipping = event
        told.append(News("began", event))

    def _end_skipping(self, change: Change, step: int, told: list[News]) -> None:
        event, m = self._skipping, self._m
        assert event is not None
        last = m.skips[-1] if m.skips else event.alarm_step
        back = step if change == "recovered" else None
        message = f"{event.value:.0f} iterations were skipped from step {event.step} to {last}"
        message += " and none since" if back is not None else ""
        self._skipping = None
        ended = replace(event, end_step=last, recovered_step=back, message=message)
        told.append(News(change, ended))

    # the end of a log or a branch

    def restart(self, restart: Restart, story: Story, told: list[News]) -> None:
        self._close(story, told)
        m = self._m
        m.step = m.grad_step = None
        m.search, m.searched, m.calm, m.streak, m.zero_rows = True, 0, 0, 0, 0
        m.skips = []
        for counter in m.counters.values():
            counter[1] = 0.0 if counter[0] == 1.0 else counter[1]
        self._is_calm = False

    def finish(self, story: Story, told: list[News]) -> None:
        self._close(story, told)

    def _close(self, story: Story, told: list[News]) -> None:
        m = self._m
        row = Row(m.step if m.step is not None else 0, {})
        if m.held and m.losses and not m.sparse and self._event is None:
            self._begin(m.held[0], row, "loss", m.held_value, "page", story, told, last_bad=m.held[3])
            m.good_rows, m.good_step = int(m.step != m.last_bad), m.step
        if m.grad_step is not None and self._event is None and not m.search and not m.scaled:
            self._begin(m.grad_step, row, "grad_norm", math.nan, "notice", story, told)
        m.held, m.gap = [], 0
        if self._event is not None:
            self._over("recovered" if m.good_rows else "ended", told)
        if self._skipping is not None:
            self._end_skipping("ended", row.step, told)
