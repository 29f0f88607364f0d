"""How likely each thing is faulty, given tests of groups that are bad when at least one member is.

Belief propagation on the graph of things and tests. Who was tested beside a faulty node is not blamed for it:
what a test says about one member depends on how far the others already explain its result. Exact where the
graph has no loops, close to it where groups are shuffled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Log odds beyond this are not told apart; keeps exp() finite.
_LIMIT = 40.0
#: A good result whose members are all below this says the same to each, whatever the others' state.
_QUIET = -3.0
_SWEEPS = 60
_SETTLED = 1e-3
#: How many nodes' worth the share of faulty nodes that is usual weighs against what is found.
_USUAL_WEIGHT = 100.0


@dataclass(frozen=True, slots=True)
class Test:
    """One group's evidence. `weight`: log likelihood ratio of the results, some member faulty over none."""

    members: tuple[int, ...]
    weight: float


def probability(log_odds: float) -> float:
    if log_odds < -_LIMIT:
        return 0.0
    return 1.0 / (1.0 + math.exp(-log_odds)) if log_odds < _LIMIT else 1.0


def log_odds(share: float) -> float:
    share = min(max(share, 1e-9), 1 - 1e-9)
    return math.log(share / (1 - share))


def _log_clean(odds: float) -> float:
    """Log of the probability that a thing with these log odds of being faulty is not."""
    if odds > _LIMIT:
        return -odds
    return -math.log1p(math.exp(odds))


def posterior(
    prior: Sequence[float | None], tests: Sequence[Test], usual_share: float
) -> tuple[list[float], float]:
    """The log odds of each thing, and the share of faulty ones among those whose prior is None.

    `prior` holds log odds; None stands for the usual share, which is learned from the results: an unlucky
    cluster is believed to be one.
    """
    shared = [i for i, odds in enumerate(prior) if odds is None]
    base = log_odds(usual_share)
    belief = [base if odds is None else odds for odds in prior]
    sent: list[list[float]] = []
    for test in tests:
        start = min(test.weight, 0.0)
        sent.append([start] * len(test.members))
        for i in test.members:
            belief[i] += start
    waiting = list(range(len(tests)))
    running: list[int] = []
    share = usual_share
    while True:
        loud = {
            t for t in waiting if tests[t].weight > 0 or any(belief[i] > _QUIET for i in tests[t].members)
        }
        if not loud:
            return belief, share
        waiting = [t for t in waiting if t not in loud]
        running += sorted(loud)
        for sweep in range(_SWEEPS):
            moved = max(_update(belief, tests[t], sent[t], sweep) for t in running)
            if shared and sweep % 2:
                found = sum(probability(belief[i]) for i in shared if belief[i] > -12)
                share = (usual_share * _USUAL_WEIGHT + found) / (_USUAL_WEIGHT + len(shared))
                shift = log_odds(share) - base
                if abs(shift) > _SETTLED:
                    base += shift
                    moved = max(moved, abs(shift))
                    for i in shared:
                        belief[i] += shift
            if moved < _SETTLED and sweep % 2:
                break


def _update(belief: list[float], test: Test, sent: list[float], sweep: int) -> float:
    """One test speaks to all its members anew. How far the furthest belief moved."""
    members = test.members
    without = [belief[i] - said for i, said in zip(members, sent, strict=True)]
    clean = [_log_clean(odds) for odds in without]
    total = sum(clean)
    ratio = math.exp(min(test.weight, _LIMIT))
    keep = 0.0 if sweep < 20 else 0.5  # what swings for long is damped
    moved = 0.0
    for place, i in enumerate(members):
        others_clean = math.exp(min(total - clean[place], 0.0))
        says = math.log(ratio / (others_clean + (1.0 - others_clean) * ratio))
        change = (says - sent[place]) * (1.0 - keep)
        sent[place] += change
        belief[i] += change
        moved = max(moved, abs(change))
    return moved
