"""Compares what came out of a recording with what it says must come out: nothing missing, nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.model import Action, Outcome, Transition
from clustertools.policy import HARMLESS
from clustertools.render.story import since_start
from clustertools.replay.scheduler import Call
from clustertools.replay.script import EXPECTED


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that came out, in the words that an expectation uses."""

    at: float
    words: Mapping[str, str]

    def __str__(self) -> str:
        return f"at {since_start(self.at)}: " + ", ".join(f"{k} {v}" for k, v in self.words.items() if v)


def differences(
    expected: Sequence[Mapping[str, Any]],
    transitions: Sequence[Transition],
    actions: Sequence[Action],
    outcomes: Sequence[tuple[Action, Outcome]],
    calls: Sequence[Call],
    start: float,
    tolerance_seconds: float,
) -> list[str]:
    """What is missing and what came out in excess, as sentences.

    An expectation holds when a thing of its kind came out at its time, give or take `tolerance_seconds` (a
    pass), or at any time when it names none. Texts (`code` and `kind` are exact) need only be contained.
    """
    left = _happened(transitions, actions, outcomes, calls, start)
    problems = []
    for wanted in expected:
        near = [h for h in left if _kind(h.words) == _kind(wanted) and _fits(wanted, h)]
        close = [h for h in near if "at" not in wanted or abs(h.at - wanted["at"]) <= tolerance_seconds]
        if close:
            left.remove(min(close, key=lambda h: abs(h.at - wanted.get("at", h.at))))
            continue
        said = ", ".join(f"{k} {v}" for k, v in wanted.items() if k != "at")
        when = f" at {since_start(wanted['at'])}" if "at" in wanted else ""
        instead = f"; it came at {', '.join(since_start(h.at) for h in near)}" if near else ""
        problems.append(f"expected, but did not come{when}: {said}{instead}")
    # what only looks or tells, or tells the same in newer words, may come or not: it changes nothing
    left = [h for h in left if _deed(h.words) not in HARMLESS and h.words.get("kind") != "changed"]
    problems += [f"came, but is not expected, {h}" for h in left]
    return problems


def _happened(
    transitions: Sequence[Transition],
    actions: Sequence[Action],
    outcomes: Sequence[tuple[Action, Outcome]],
    calls: Sequence[Call],
    start: float,
) -> list[Happened]:
    found = []
    for t in transitions:
        finding = t.incident.finding
        found.append(
            Happened(
                t.time - start,
                {
                    "kind": t.kind, "code": finding.code, "subject": str(finding.subject),
                    "status": finding.status.name, "explained_by": t.incident.explained_by,
                },
            )
        )  # fmt: skip
    for a in actions:
        words = {"action": a.kind, "target": str(a.target), "blocked": a.blocked}
        found.append(Happened(a.planned_at - start, words))
    for action, outcome in outcomes:
        words = {"done" if outcome.ok else "failed": action.kind, "target": str(action.target)}
        found.append(Happened(outcome.time - start, words))
    found += [Happened(c.time - start, {"call": c.kind, "what": c.what}) for c in calls]
    return sorted(found, key=lambda h: h.at)


def _kind(words: Mapping[str, Any]) -> str:
    return next(key for key in EXPECTED if key in words)


def _deed(words: Mapping[str, str]) -> str:
    return words.get("action") or words.get("done") or ""


#: Texts of which an expectation names a part; the others are exact.
_PART_OF = frozenset({"subject", "target", "explained_by", "what"})


def _fits(wanted: Mapping[str, Any], came: Happened) -> bool:
    for key, value in wanted.items():
        if key in ("at", "blocked"):
            continue
        word = came.words.get(key, "")
        if not (str(value) in word if key in _PART_OF else str(value) == word):
            return False
    if "action" in wanted:
        blocked, why = wanted.get("blocked", ""), came.words["blocked"]
        # `blocked: true` for any reason, a text for one; without it nothing may have stopped the action
        return bool(why) if blocked is True else (str(blocked) in why if blocked else not why)
    return True
