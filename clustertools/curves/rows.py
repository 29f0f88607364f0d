"""Rows out of the records of a log: one for each step, of one rank, of the living branch of the run. Pure.

rows = Rows()
rows.add(Point(step=100, values={"loss": 2.1}))     the rows that this record completes
rows.flush()                                        at the end: the row that waited for more of its step
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.curves import Restart, Row
from clustertools.sources.training_values import Event, Point

#: Rows with one record each until a source no longer counts as one that logs a step in several records.
_WHOLE_AFTER = 16
#: Rows with the same names until a loss that is left out of one says something. Our choice: a loss that is
#: logged every tenth step beside values of every step must never come near it.
_USUAL_AFTER = 20
#: Rows without the loss until that counts as usual too.
_ADOPT_AFTER = 200
#: Steps of another rank without one of the leader's until it leads.
_LEADER_SILENT = 5
#: Ranks that may each print a part of a step.
_RANKS_AT_MOST = 8
#: Rows whose loss is remembered, to tell a step that is logged twice from one that is trained twice.
_RECENT = 64

#: What makes a row without a loss a training step that should have one.
_COMPANIONS = frozenset(
    ("grad_norm", "learning_rate", "step_seconds", "loss_scale", "throughput_tokens_per_second", "param_norm")
)
#: Where nothing is called the loss, what is taken for it: the first of these that is there.
_LOSSES = (
    "total_loss loss_total train_total_loss train_loss_total loss_sum nll_loss train_nll_loss ce_loss "
    "train_ce_loss cross_entropy cross_entropy_loss mlm_loss masked_lm_loss sft_loss dpo_loss policy_loss "
    "train_policy_loss actor_loss actor_pg_loss pg_loss"
).split()
#: Words in a name of a loss that is not what the model is trained on as a whole.
_NOT_THE_LOSS = frozenset(
    (
        "val valid validation eval evaluation test dev holdout aux auxiliary z zloss router routing load "
        "balance balancing balanced moe expert experts scale scaling scaler reward rewards kl entropy value "
        "vf critic mtp epoch mean avg best min max ema smooth smoothed std var num count weight weights coef "
        "reg regularization regularisation penalty vs ratio diff delta step steps time ms seconds"
    ).split()
)

_Held = list[Any]  # step, values, missing, time, records


class Rows:
    """Puts the records of a step together and leaves out what is no step of the run.

    Whole records are passed on at once. Only of a source that logs a step in several records (TensorBoard, a
    progress bar beside a line of metrics) a row is held until the next step begins. Of several ranks one
    leads; a value of another rank that is no number becomes a row of its own. An evaluation goes with the
    next row. A lower step is a restart when the run goes on from it, not when one late line tells of it.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved: Mapping[str, Any] = state or {}
        self._last: int | None = saved.get("last")
        # the ranks that are followed: one, or those that print different parts of a step
        self._ranks: list[int] = list(saved.get("ranks", ()))
        self._challenger: list[int] | None = _copy(saved.get("challenger"))
        # None: not known yet whether the source logs a step in several records
        self._fragmented: bool | None = saved.get("fragmented")
        self._single = int(saved.get("single", 0))
        self._held: _Held | None = _restored(saved.get("held"))
        self._names = frozenset(saved.get("names", ()))
        self._back: list[_Held] = [_restored(held) for held in saved.get("back", ())]
        self._resumed = bool(saved.get("resumed", False))
        self._doubled = bool(saved.get("doubled", False))
        # said without a step: of the step that is logged next, and of the one that waits
        self._pending: dict[str, float] = dict(saved.get("pending", {}))
        self._added: dict[str, float] = dict(saved.get("added", {}))
        self._evaluation: list[Any] | None = _copy(saved.get("evaluation"))
        self._usual = frozenset(saved.get("usual", ()))
        self._streak = int(saved.get("streak", 0))
        self._absent = int(saved.get("absent", 0))
        self._loss: str | None = saved.get("loss")
        self._counting = bool(saved.get("counting", False))
        self._epoch: float | None = saved.get("epoch")
        self._offset = int(saved.get("offset", 0))
        self._bad_step: int | None = saved.get("bad_step")
        self._recent: deque[tuple[int, float | None]] = deque(
            ((int(step), loss) for step, loss in saved.get("recent", ())), maxlen=_RECENT
        )

    def state(self) -> dict[str, Any]:
        """JSON-ready; `Rows(state)` goes on from it."""
        return {
            "last": self._last, "ranks": list(self._ranks), "challenger": _copy(self._challenger),
            "fragmented": self._fragmented, "single": self._single, "held": _copy(self._held),
            "names": sorted(self._names), "back": [_copy(held) for held in self._back],
            "resumed": self._resumed, "doubled": self._doubled, "pending": dict(self._pending),
            "added": dict(self._added),
            "evaluation": _copy(self._evaluation), "usual": sorted(self._usual), "streak": self._streak,
            "absent": self._absent, "loss": self._loss, "counting": self._counting, "epoch": self._epoch,
            "offset": self._offset, "bad_step": self._bad_step,
            "recent": [list(entry) for entry in self._recent],
        }  # fmt: skip

    def add(self, item: Point | Event) -> list[Row | Restart]:
        """What is complete with this record: mostly one row or none."""
        if isinstance(item, Event):
            # a marker is the reader's guess from the same steps: judged here, where ranks are known apart
            self._resumed |= item.kind == "resumed"
            return []
        values, step, found = item.values, item.step, list[Row | Restart]()
        if "eval_loss" in values and "loss" not in values:
            self._evaluated(item, found)
            return found
        if item.rank is not None and item.rank not in self._ranks and not self._leads(item, found):
            return found
        if step is None:
            step = self._stepless(item)
            if step is None:
                return found
        elif self._counting:
            # real steps from here on; rows that were counted are never more than steps
            self._counting, self._resumed = False, True
        raw, last = step, self._last
        step += self._offset
        if last is not None and step <= last and self._next_epoch(raw, values):
            step = raw + self._offset
        held: _Held = [step, values, item.missing, item.time, 1]
        if last is None or step > last:
            if self._back:
                self._drop_back(found)  # the run went on: that line was only late
            self._begin(held, found)
        elif step == last and (not self._back or self._is_part(values)):
            self._again(held, found)
        else:
            self._lower(held, found)
        return found

    def flush(self) -> list[Row | Restart]:
        """What waits for more, when no more is to come."""
        found: list[Row | Restart] = []
        if self._back and not self._doubled:
            self._restart(self._back, found)  # one row since the run went back
        self._drop_back(found)
        self._release(found)
        if self._evaluation is not None:
            self._tell_evaluation(found)
        return found

    # ------------------------------------------------------------------ a step, and more of the same step

    def _begin(self, held: _Held, found: list[Row | Restart]) -> None:
        """A step higher than all before."""
        self._release(found)
        if self._pending:
            self._added, self._pending = self._pending, {}
        self._last, self._resumed, self._challenger = held[0], False, None
        if (epoch := held[1].get("epoch")) is not None:
            self._epoch = epoch
        if self._fragmented is False:
            self._emit(held, found)
        else:
            self._held = held
            self._hurry(found)

    def _hurry(self, found: list[Row | Restart]) -> None:
        """A loss that is no number waits for nothing: the run may end with it."""
        if self._held is not None and not math.isfinite(self._held[1].get("loss", 0.0)):
            self._release(found)

    def _is_part(self, values: Mapping[str, float]) -> bool:
        """Whether a record of the last step brings only what that step does not have yet."""
        return self._held is not None and self._held[1].keys().isdisjoint(values)

    def _again(self, held: _Held, found: list[Row | Restart]) -> None:
        """The same step once more: another part of it, or the same record again (another rank, a re-log)."""
        if self._back:
            self._drop_back(found)
        mine, values = self._held, held[1]
        fresh = values.keys() - (self._names if mine is None else mine[1].keys())
        if not fresh:
            self._doubled = True
            self._unheard(held, found)
            return
        self._fragmented, self._single = True, 0
        if mine is not None:
            _merge(mine, held)
            self._hurry(found)
            return
        # it came after its row was passed on: what is new of it goes after
        self._names |= fresh
        found.append(Row(held[0], {n: v for n, v in values.items() if n in fresh}, (), held[3]))

    def _release(self, found: list[Row | Restart]) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        if held[4] > 1:
            self._single = 0
        else:
            self._single += 1
            if self._fragmented is None or self._single >= _WHOLE_AFTER:
                self._fragmented = False
        self._emit(held, found)

    def _emit(self, held: _Held, found: list[Row | Restart]) -> None:
        step, values, missing, time, _ = held
        if "loss" not in values:
            values = self._with_loss(values)
        elif self._loss != "loss":
            self._loss = "loss"
        if values.keys() == self._usual:
            self._streak += 1
            self._absent = 0
        else:
            missing = self._unusual(values, missing)
        self._names = self._usual if values.keys() == self._usual else frozenset(values)
        self._recent.append((step, values.get("loss")))
        if self._added:
            values = {**self._added, **values}
            self._added = {}
        if self._evaluation is not None and "eval_loss" not in values:
            values = {**values, **self._evaluation[1]}
        self._evaluation = None
        found.append(Row(step, values, missing, time))

    def _unusual(self, values: Mapping[str, float], missing: tuple[str, ...]) -> tuple[str, ...]:
        """Other names than in the rows before. A loss that was in all of them and is left out is missing."""
        if "loss" not in values and _COMPANIONS.isdisjoint(values):
            return missing  # no training step: a score, a count
        gone = self._usual - values.keys()
        if gone == {"loss"} and self._streak >= _USUAL_AFTER and self._absent < _ADOPT_AFTER:
            self._absent += 1
            return missing if "loss" in missing else (*missing, "loss")
        if gone or self._streak < _USUAL_AFTER:
            self._usual, self._streak, self._absent = frozenset(values), 1, 0
        return missing

    def _with_loss(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """With what stands for the loss in a source that calls nothing so; one choice for all its rows."""
        if self._loss == "loss":
            return values
        if self._loss is None or self._loss not in values:
            name = loss_name(values)
            if name is None or (self._loss is not None and self._loss != "perplexity"):
                return values
            self._loss = name
        value = values[self._loss]
        if self._loss == "perplexity":
            value = math.log(value) if 0 < value < math.inf else (math.inf if value == math.inf else math.nan)
        return {**values, "loss": value}

    # ------------------------------------------------------------------ evaluations, ranks, no steps

    def _evaluated(self, point: Point, found: list[Row | Restart]) -> None:
        before = self._evaluation
        values = {n: v for n, v in point.values.items() if n != "epoch"}
        held = self._held
        if held is not None and point.step is not None and point.step + self._offset == held[0]:
            _merge(held, [held[0], values, (), point.time, 0])
            return
        if before is not None and before[0] == point.step:
            before[1] = {**values, **before[1]}
            return
        if before is not None and self._held is None:
            self._tell_evaluation(found)
        self._evaluation = [point.step, values, point.time]

    def _tell_evaluation(self, found: list[Row | Restart]) -> None:
        """An evaluation with no training step after it: a row of its own."""
        assert self._evaluation is not None
        (step, values, time), self._evaluation = self._evaluation, None
        step = self._last if step is None else step + self._offset
        if step is not None:
            self._last = step if self._last is None else max(step, self._last)
            found.append(Row(self._last, values, (), time))

    def _leads(self, point: Point, found: list[Row | Restart]) -> bool:
        """Whether a record of a rank that was not followed so far is to be followed."""
        rank, step, other = point.rank, point.step, self._challenger
        assert rank is not None
        if not self._ranks:
            self._ranks = [rank]
            return True
        if step is None:
            return False
        if step + self._offset == self._last and len(self._ranks) < _RANKS_AT_MOST:
            known = self._names if self._held is None else self._held[1].keys()
            if not known >= point.values.keys():
                self._ranks.append(rank)  # it prints another part of the step
                return True
        self._unheard([step, point.values, point.missing, point.time, 1], found)
        if self._last is not None and step <= self._last and not self._resumed:
            return False
        if other is None:
            self._challenger = [rank, step, 1]
        elif other[0] == rank and step > other[1]:
            other[1:] = [step, other[2] + 1]
            if other[2] >= _LEADER_SILENT:
                self._ranks = [rank]
                return True
        return False

    def _unheard(self, held: _Held, found: list[Row | Restart]) -> None:
        """A record that is left out. What in it is no number is told all the same, once a step."""
        step, values, missing, time, _ = held
        bad = {n: values[n] for n in ("loss", "grad_norm") if n in values and not math.isfinite(values[n])}
        if not bad and "loss" not in missing:
            return
        mine = self._held
        if mine is not None and mine[0] == step:
            mine[1] = {**mine[1], **bad}
            return
        # told at the step of the leader, who may lag behind or be ahead
        last = self._last
        if last is None or last == self._bad_step:
            return
        self._bad_step = last
        self._release(found)
        found.append(Row(last, bad, ("loss",) if "loss" in missing else (), time))

    def _stepless(self, point: Point) -> int | None:
        """The step of a record that tells none: the epoch where each has another whole one, else a count."""
        values, last = point.values, self._last
        if (last is not None and not self._counting) or ("loss" not in values and loss_name(values) is None):
            # what a loss scaler says goes with the step that is logged next
            for name in ("skipped_iterations", "loss_scale"):
                if name in values:
                    before = self._pending.get(name, 0.0) if name == "skipped_iterations" else 0.0
                    self._pending[name] = values[name] + before
            return None
        self._counting = True
        epoch = values.get("epoch", 0.5)
        whole = math.isfinite(epoch) and epoch == int(epoch)
        if whole and (last is None or (self._epoch == last and epoch != last)):
            return int(epoch)
        return 1 if last is None else last + 1

    def _next_epoch(self, raw: int, values: Mapping[str, float]) -> bool:
        """Whether the source counts its steps anew in every epoch: they go on from the last one's then."""
        epoch, known, last = values.get("epoch"), self._epoch, self._last
        if epoch is None or known is None or last is None or self._resumed or self._counting:
            return False
        if not (math.isfinite(epoch) and epoch == int(epoch) and epoch == known + 1):
            return False
        steps = [step for step, _ in self._recent]
        stride = max(1, steps[-1] - steps[-2]) if len(steps) > 1 else 1
        self._offset = last + stride - raw
        return True

    # ------------------------------------------------------------------ steps that go down

    def _lower(self, held: _Held, found: list[Row | Restart]) -> None:
        """A step not above the last one: the next record tells whether the run went back or it was late."""
        step, values = held[0], held[1]
        if self._resumed:
            self._restart([held], found)
            return
        back = self._back
        if back and back[-1][0] == step:
            _merge(back[-1], held)
            return
        if self._fragmented and self._is_late_part(values):
            return
        loss = values.get("loss")
        if loss is not None and (step, loss) in self._recent:
            return  # the same step with the same loss: logged twice, not trained twice
        if back and step < back[-1][0]:
            self._drop_back(found)
            back = self._back
        back.append(held)
        assert self._last is not None
        # two writers in one file lag behind each other; a run that goes back goes on below the last step
        if len(back) > 1 and (step < self._last or not self._doubled):
            self._restart(back, found)

    def _is_late_part(self, values: Mapping[str, float]) -> bool:
        """Whether this is a part of an earlier step that comes late: it is taken for the step that waits."""
        if not self._names.isdisjoint(values) or ("loss" in values and self._loss is None):
            return False
        if self._held is not None and self._held[1].keys().isdisjoint(values):
            self._held[1] = {**self._held[1], **values}
        return True

    def _drop_back(self, found: list[Row | Restart]) -> None:
        back, self._back = self._back, []
        for held in back:
            self._unheard(held, found)

    def _restart(self, rows: list[_Held], found: list[Row | Restart]) -> None:
        self._release(found)
        if self._evaluation is not None:
            self._tell_evaluation(found)  # of the branch that ends here
        self._back, self._resumed, self._bad_step = [], False, None
        found.append(Restart(rows[0][0], self._last))
        self._last, self._epoch = None, None
        self._recent.clear()
        for held in rows:
            self._begin(held, found)


def loss_name(values: Mapping[str, float]) -> str | None:
    """Which of `values` stands for the training loss where none is called so; None when none can.

    One rule: a whole before a part, cross entropy before other parts, then the shortest name with the word
    loss in it that is no evaluation, auxiliary loss, loss scale or reward; then the perplexity.
    """
    for name in _LOSSES:
        if name in values:
            return name
    worded = [(n, n.split("_")) for n in values if "loss" in n]
    others = [n for n, words in worded if "loss" in words and _NOT_THE_LOSS.isdisjoint(words)]
    if others:
        return min(others, key=lambda n: (len(n), n))
    return "perplexity" if "perplexity" in values else None


def _merge(mine: _Held, other: _Held) -> None:
    """Take what is new of another record of the same step; what is no number counts more than a number."""
    values = dict(other[1])
    for name, value in mine[1].items():
        if name not in values or math.isfinite(values[name]) or name not in ("loss", "grad_norm"):
            values[name] = value
    mine[1] = values
    mine[2] = tuple(n for n in dict.fromkeys((*mine[2], *other[2])) if n not in values)
    mine[3] = mine[3] if mine[3] is not None else other[3]
    mine[4] += other[4]


def _restored(saved: Any) -> Any:
    """A record that waits, as it was before its state was JSON."""
    return saved and [saved[0], dict(saved[1]), tuple(saved[2]), saved[3], saved[4]]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return [_copy(v) for v in value] if isinstance(value, (list, tuple)) else value


def rows_of(items: Iterator[Point | Event]) -> Iterator[Row | Restart]:
    """All rows of a source that has ended."""
    rows = Rows()
    for item in items:
        yield from rows.add(item)
    yield from rows.flush()
