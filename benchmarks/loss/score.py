"""Alarms against labels: what was found and how late, and what was false. Definitions: benchmarks.loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.loss.runs import GRAD_KINDS, KINDS, LOSS_KINDS, STEP_TIME_KINDS, Labelled, Run

FAMILIES: Mapping[str, frozenset[str]] = {
    "loss": LOSS_KINDS,
    "grad": GRAD_KINDS,
    "loss+grad": LOSS_KINDS | GRAD_KINDS,
    "step_time": STEP_TIME_KINDS,
    "all": KINDS,
}
BEFORE_ROWS, AFTER_ROWS = 1, 5
#: Alarms less than so many rows apart are one.
APART_ROWS = 10


@dataclass
class Alarm:
    """Something told: at which row, of which row, and as what (None: the rule knows no kinds)."""

    row: int
    place: int
    kind: str | None = None
    severity: str = ""
    message: str = ""


@dataclass(frozen=True)
class Found:
    """What became of an event: the first alarm that finds it (None: missed), and the best one's kind."""

    run: Run
    event: Labelled
    alarm: Alarm | None
    right_kind: bool = False

    @property
    def delay_rows(self) -> int:
        return max(0, self.alarm.row - self.event.first) if self.alarm else 0

    @property
    def delay_steps(self) -> int:
        return max(0, self.run.steps[self.alarm.row] - self.event.steps[0]) if self.alarm else 0


@dataclass(frozen=True)
class Wrong:
    """A group of alarms where nothing happened. `isolated`: only for an isolated outlier of the data."""

    run: Run
    alarms: tuple[Alarm, ...]
    isolated: bool = False


@dataclass
class Score:
    """The figures of one detector in one family over many runs."""

    detector: str
    family: str
    found: list[Found] = field(default_factory=list)
    right_groups: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    clean_rows: Counter[str] = field(default_factory=Counter)
    clean_runs: set[str] = field(default_factory=set)
    runs: int = 0
    knows_kinds: bool = False

    @property
    def false(self) -> list[Wrong]:
        return [wrong for wrong in self.wrong if not wrong.isolated]

    def recall(self, kind: str | None = None, sure: bool = False) -> tuple[int, int]:
        """Found and all, of one kind, of the sure ones."""
        wanted = [
            f for f in self.found if (kind is None or f.event.kind == kind) and (f.event.sure or not sure)
        ]
        return sum(f.alarm is not None for f in wanted), len(wanted)

    def precision(self, strict: bool = False) -> float | None:
        """Of the groups of alarms, the share that was right; None when nothing was told."""
        wrong = len(self.wrong if strict else self.false)
        return self.right_groups / (self.right_groups + wrong) if self.right_groups + wrong else None

    def f1(self) -> float:
        found, events = self.recall()
        precision = self.precision() or 0.0
        recall = found / events if events else 0.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def per_10k(self, strict: bool = False, without_worst: bool = False) -> float | None:
        """False alarms per 10,000 clean rows; None when there are no such rows."""
        by_run = Counter(wrong.run.name for wrong in (self.wrong if strict else self.false))
        worst = by_run.most_common(1)[0][0] if without_worst and by_run else None
        rows = sum(n for name, n in self.clean_rows.items() if name != worst)
        return 1e4 * sum(n for name, n in by_run.items() if name != worst) / rows if rows else None

    def clean_alarmed(self) -> int:
        return len({wrong.run.name for wrong in self.false} & self.clean_runs)

    def delays(self, steps: bool = False) -> list[int]:
        return sorted(f.delay_steps if steps else f.delay_rows for f in self.found if f.alarm)

    def right_kinds(self) -> float | None:
        """Of the events found, the share that was told as what it is."""
        found = [f for f in self.found if f.alarm]
        return sum(f.right_kind for f in found) / len(found) if found and self.knows_kinds else None

    def json(self) -> dict[str, Any]:
        found, events = self.recall()
        delays, steps = self.delays(), self.delays(steps=True)
        kinds = sorted({f.event.kind for f in self.found})
        return {
            "detector": self.detector,
            "family": self.family,
            "runs": self.runs,
            "events": events,
            "found": found,
            "recall": _ratio(found, events),
            "recall_sure": _ratio(*self.recall(sure=True)),
            "precision": self.precision(),
            "strict_precision": self.precision(strict=True),
            "f1": self.f1(),
            "clean_rows": sum(self.clean_rows.values()),
            "false_alarms": len(self.false),
            "false_per_10k": self.per_10k(),
            "false_per_10k_without_worst_run": self.per_10k(without_worst=True),
            "false_per_10k_with_isolated": self.per_10k(strict=True),
            "clean_runs": len(self.clean_runs),
            "clean_runs_alarmed": self.clean_alarmed(),
            "delay_rows_median": quantile(delays, 0.5),
            "delay_rows_p90": quantile(delays, 0.9),
            "delay_steps_median": quantile(steps, 0.5),
            "delay_steps_p90": quantile(steps, 0.9),
            "recall_by_kind": {kind: list(self.recall(kind)) for kind in kinds},
            "right_kind": self.right_kinds(),
        }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def quantile(ordered: Sequence[int], q: float) -> int | None:
    """The smallest value that at least the share `q` of the values does not exceed; None of none."""
    if not ordered:
        return None
    return ordered[max(0, -int(-q * len(ordered) // 1) - 1)]


def add(score: Score, run: Run, alarms: Iterable[Alarm]) -> None:
    """Count a run in. Alarms of kinds outside the family say nothing here."""
    if not run.logs(score.family):
        return
    kinds = FAMILIES[score.family]
    alarms = sorted((a for a in alarms if a.kind is None or a.kind in kinds), key=lambda a: (a.place, a.row))
    score.knows_kinds = score.knows_kinds or any(a.kind for a in alarms)
    events = [event for event in run.events if event.kind in kinds]
    score.runs += 1
    score.clean_rows[run.name] += sum(run.clean)
    if not events:
        score.clean_runs.add(run.name)
    for event in events:
        finding = [a for a in alarms if _finds(a, event)]
        first = min(finding, key=lambda a: a.row, default=None)
        score.found.append(Found(run, event, first, any(a.kind == event.kind for a in finding)))
    for group in groups(alarms):
        if any(_finds(alarm, event) for alarm in group for event in events):
            score.right_groups += 1
            continue
        bad = [alarm for alarm in group if run.clean[alarm.place]]
        if bad:
            alone = all(run.isolated & {alarm.place, alarm.place - 1} for alarm in bad)
            score.wrong.append(Wrong(run, tuple(group), alone))


def _finds(alarm: Alarm, event: Labelled) -> bool:
    return event.first - BEFORE_ROWS <= alarm.place <= event.last + AFTER_ROWS


def groups(alarms: Iterable[Alarm]) -> list[list[Alarm]]:
    """Alarms, in the order of their places, less than ten rows apart together."""
    found: list[list[Alarm]] = []
    for alarm in alarms:
        if found and alarm.place - found[-1][-1].place < APART_ROWS:
            found[-1].append(alarm)
        else:
            found.append([alarm])
    return found
