"""What is asked of the search for the guilty, what it asks for in return, and how its answer looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.measurement import Grade, Suspect

ALL_REDUCE = "all_reduce"
PAIRS = "pairs"

#: Below this, an error rate is not believed: one result alone never decides against everything else.
SMALLEST_ERROR = 1e-4
LARGEST_ERROR = 0.45


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a single result may be trusted.

    `false_bad` is the share of results that are bad although all nodes of the group are good, `false_good`
    the share that are good although one is faulty; both hold where a group has a grade and no ratio.
    `hard_error` is the same for crashes, hangs and wrong data, which seldom come from nothing.
    A ratio (measured / expected) is taken for good around what is usual in its round with the relative spread
    `sigma`, and for slow below `slow_at`; `outlier` is the share of ratios that mean nothing.
    """

    false_bad: float = 0.05
    false_good: float = 0.05
    hard_error: float = 0.01
    sigma: float = 0.05
    slow_at: float = 0.9
    outlier: float = 0.01

    def weight(self, bad: bool, hard: bool = False) -> float:
        """Log of how much likelier this result is with a faulty node in the group than without."""
        false_bad = trusted(self.hard_error if hard else self.false_bad)
        false_good = trusted(self.hard_error if hard else self.false_good)
        if bad:
            return math.log((1 - false_good) / false_bad)
        return math.log(false_good / (1 - false_bad))


def trusted(error: float) -> float:
    return min(max(error, SMALLEST_ERROR), LARGEST_ERROR)


@dataclass(frozen=True, slots=True)
class Question:
    """Which nodes, what is known of them, and how sure and how long the search is to be.

    `topology`: node -> its switches, nearest first; may lack nodes or be empty. `prior`: node -> probability
    that it is faulty, from its history or passive evidence; the others share `usual_share`, which is then
    learned from the results. A node is named from `confidence` on; the search ends when the faults that are
    still expected among the others are less than `missed_share` of all. `smallest_group` is the smallest
    group that shows a fault. `budget_rounds` counts all rounds of the history. `pairs_measured`: a round with
    pairs traffic gives a ratio for every two nodes, so that up to `pairs_together` nodes are done in one.
    """

    nodes: tuple[str, ...]
    topology: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prior: Mapping[str, float] = field(default_factory=dict)
    noise: Noise = Noise()
    seed: int = 0
    budget_rounds: int = 16
    confidence: float = 0.8
    missed_share: float = 0.0125
    smallest_group: int = 2
    usual_share: float = 0.01
    pairs_measured: bool = True
    pairs_together: int = 16


@dataclass(frozen=True, slots=True)
class Round:
    """Disjoint groups to run at the same time.

    `all_reduce` sends around the ring in the order of the group, so it shows its neighbours' paths only;
    with `pairs` every two nodes of a group exchange with each other.
    """

    groups: tuple[tuple[str, ...], ...]
    traffic: str
    why: str


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How one group came out. `ratio`: measured / expected, None when unknown; `pair_ratios` the same for two
    nodes; `blamed`: nodes that the run itself points at."""

    nodes: tuple[str, ...]
    grade: Grade
    ratio: float | None = None
    pair_ratios: Mapping[tuple[str, str], float] = field(default_factory=dict)
    blamed: tuple[str, ...] = ()
    detail: str = ""


History = Sequence[tuple[Round, Sequence[GroupResult]]]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The answer, at the end or so far.

    `undecided` are neither named nor cleared, the most suspicious first; `confidence` is the probability that
    all that is named is faulty and that no other node is.
    """

    suspects: tuple[Suspect, ...]
    cleared: tuple[str, ...]
    undecided: tuple[str, ...]
    confidence: float
    sentence: str
    rounds: int
