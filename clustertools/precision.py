"""How often each check was right: what it fired, and what became of it. Pure.

    scores(firings(store.transitions(), deeds))

Right or wrong is only what a person said (`clustertools resolve KEY --true` or `--false-alarm WHY`). That an
incident ended by itself proves neither, and that an action helped proves little: a restart ends any alarm
about a run, a false one too. Both are counted beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustertools.model import Action, Outcome, Transition
from clustertools.stats import wilson

#: What people say of an incident: the kind of their mark -> whether the alarm was right.
JUDGEMENTS: Mapping[str, bool] = {"true-alarm": True, "false-alarm": False}
#: What may repair something; a drain only keeps others away.
REPAIRS = frozenset({"restart", "requeue", "reset_gpu", "reboot"})


@dataclass(frozen=True, slots=True)
class Firing:
    """One life of an incident. `right` is None when nobody said; `ended_at` is 0 while it is open."""

    key: str
    check: str
    code: str
    opened_at: float
    ended_at: float = 0.0
    observed: bool = False
    acknowledged: bool = False
    helped: bool = False
    by_itself: bool = False
    right: bool | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The firings of one code of one check, counted."""

    check: str
    code: str
    fired: int = 0
    confirmed: int = 0
    false: int = 0
    open: int = 0
    acknowledged: int = 0
    helped: int = 0
    by_itself: int = 0
    observed: int = 0

    @property
    def judged(self) -> int:
        return self.confirmed + self.false

    @property
    def precision(self) -> float | None:
        """The share of true alarms among those that a person judged; None when none was."""
        return self.confirmed / self.judged if self.judged else None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95 % confidence; (0, 1) when nothing was judged."""
        return wilson(self.confirmed, self.judged)


def firings(
    transitions: Iterable[Transition], deeds: Iterable[tuple[Action, Outcome | None, float]]
) -> list[Firing]:
    """The lives of all incidents, in order of their beginning.

    `deeds` are the stored actions with their outcome and time, people's marks among them. A return inside the
    flap window is the same life.
    """
    by_key: dict[str, list[Firing]] = {}
    for change in transitions:
        incident, lives = change.incident, by_key.setdefault(change.incident.key, [])
        # a symptom that outlived its root is told again as opened, with its old beginning
        is_new = change.kind == "opened" and not any(f.opened_at == incident.opened_at for f in lives)
        if is_new or not lives:
            began = incident.opened_at or change.time
            finding = incident.finding
            lives.append(Firing(incident.key, finding.check, finding.code, began, observed=incident.observed))
        ended = change.time if change.kind == "resolved" else 0.0
        lives[-1] = dataclasses.replace(
            lives[-1],
            ended_at=ended,
            acknowledged=lives[-1].acknowledged or bool(incident.acknowledged_by),
        )
    told = sorted(deeds, key=lambda d: d[2])
    for action, outcome, time in told:
        lives = by_key.get(action.because, [])
        # a mark is about the last life that had begun by then
        number = max((n for n, f in enumerate(lives) if f.opened_at <= time), default=None)
        if number is not None:
            lives[number] = _with(lives[number], action, outcome, time)
    found = [_settled(firing) for lives in by_key.values() for firing in lives]
    return sorted(found, key=lambda f: (f.opened_at, f.key))


def _with(firing: Firing, action: Action, outcome: Outcome | None, time: float) -> Firing:
    if action.kind in JUDGEMENTS:
        return dataclasses.replace(firing, right=JUDGEMENTS[action.kind], why=action.preview)
    if action.kind == "ack":
        return dataclasses.replace(firing, acknowledged=True)
    repaired = action.kind in REPAIRS and outcome is not None and outcome.ok
    if repaired and (not firing.ended_at or time <= firing.ended_at):
        return dataclasses.replace(firing, helped=True)
    return firing


def _settled(firing: Firing) -> Firing:
    """A repair helped only when the incident ended; one that ended without any did so by itself."""
    ended = bool(firing.ended_at)
    return dataclasses.replace(
        firing, helped=firing.helped and ended, by_itself=ended and not firing.helped and firing.right is None
    )


def scores(found: Iterable[Firing]) -> list[Score]:
    """The firings counted by check and code, the most frequent first."""
    counted: dict[tuple[str, str], list[Firing]] = {}
    for firing in found:
        counted.setdefault((firing.check, firing.code), []).append(firing)
    every = [_score(check, code, some) for (check, code), some in counted.items()]
    return sorted(every, key=lambda s: (-s.fired, s.check, s.code))


def _score(check: str, code: str, some: Sequence[Firing]) -> Score:
    return Score(
        check, code, len(some),
        confirmed=sum(f.right is True for f in some),
        false=sum(f.right is False for f in some),
        open=sum(not f.ended_at for f in some),
        acknowledged=sum(f.acknowledged for f in some),
        helped=sum(f.helped for f in some),
        by_itself=sum(f.by_itself for f in some),
        observed=sum(f.observed for f in some),
    )  # fmt: skip


def earned(found: Iterable[Score]) -> dict[str, tuple[int, float]]:
    """Code -> (judged firings, share of true ones), over all checks that declare it."""
    totals: dict[str, tuple[int, int]] = {}
    for score in found:
        judged, confirmed = totals.get(score.code, (0, 0))
        totals[score.code] = (judged + score.judged, confirmed + score.confirmed)
    return {code: (n, true / n if n else 0.0) for code, (n, true) in totals.items()}
