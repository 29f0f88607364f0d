"""A pretended cluster for the search of the guilty: faulty nodes, slow paths and boundaries, noise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence

from clustertools.isolate import ALL_REDUCE, Conclusion, GroupResult, Question, Round, next_step
from clustertools.measurement import Grade

Pair = tuple[str, str]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"n{i:04}" for i in range(count))


def leaves(nodes: Sequence[str], width: int) -> dict[str, tuple[str, ...]]:
    return {node: (f"leaf{i // width}", "spine") for i, node in enumerate(nodes)}


class Cluster:
    """Runs rounds. `flip`: share of groups whose grade is turned around, without a ratio; None: ratios with
    the relative spread `sigma`, and a ratio of every two nodes with pairs traffic."""

    def __init__(
        self,
        *,
        faulty: Iterable[str] = (),
        slow_paths: Iterable[Pair] = (),
        across: tuple[Iterable[str], Iterable[str]] = ((), ()),
        cut: Iterable[str] = (),
        cannot: Iterable[str] = (),
        flip: float | None = None,
        sigma: float = 0.02,
        outlier: float = 0.0,
        slowness: float = 0.4,
        at_most: Callable[[int], float] = lambda count: 1.0,
        seed: int = 0,
    ) -> None:
        self.faulty, self.cut, self.cannot = set(faulty), set(cut), set(cannot)
        self.slow_paths = {frozenset(p) for p in slow_paths}
        self.sides = set(across[0]), set(across[1])
        self.flip, self.sigma, self.outlier, self.slowness = flip, sigma, outlier, slowness
        self.at_most = at_most
        self.rng = random.Random(f"cluster {seed}")

    def pair(self, a: str, b: str) -> float:
        one, other = self.sides
        slow = (
            {a, b} & self.faulty
            or frozenset((a, b)) in self.slow_paths
            or (a in one and b in other)
            or (b in one and a in other)
        )
        return self.slowness if slow else 1.0

    def noisy(self, ratio: float) -> float:
        if self.rng.random() < self.outlier:
            return self.rng.uniform(0.1, 1.2)
        return max(0.01, ratio * self.rng.gauss(1.0, self.sigma))

    def result(self, group: Sequence[str], traffic: str) -> GroupResult:
        nodes = tuple(group)
        if self.cannot & set(nodes):
            return GroupResult(nodes, Grade.COULD_NOT_RUN)
        if self.cut & set(nodes):
            return GroupResult(nodes, Grade.BAD_HARDWARE, detail="no end within the deadline")
        if traffic == ALL_REDUCE:
            pairs = list(zip(nodes, (*nodes[1:], nodes[0]), strict=True))
        else:
            pairs = list(itertools.combinations(nodes, 2))
        true = min((self.pair(a, b) for a, b in pairs if a != b), default=1.0) * self.at_most(len(nodes))
        if self.flip is not None:
            bad = (true < 0.8) != (self.rng.random() < self.flip)
            return GroupResult(nodes, Grade.SLOW if bad else Grade.GOOD)
        measured = {}
        if traffic != ALL_REDUCE:
            measured = {(a, b): self.noisy(self.pair(a, b) * self.at_most(len(nodes))) for a, b in pairs}
        ratio = min(measured.values()) if measured else self.noisy(true)
        return GroupResult(nodes, Grade.SLOW if ratio < 0.8 else Grade.GOOD, ratio, measured)

    def run(self, asked: Round) -> list[GroupResult]:
        return [self.result(group, asked.traffic) for group in asked.groups]


def search(
    question: Question, cluster: Cluster, history: Iterable[tuple[Round, Sequence[GroupResult]]] = ()
) -> tuple[Conclusion, list[tuple[Round, Sequence[GroupResult]]]]:
    """Asks until it concludes; every round has disjoint groups of at least two of the question's nodes."""
    so_far = list(history)
    while True:
        step = next_step(question, so_far)
        if isinstance(step, Conclusion):
            return step, so_far
        assert len(so_far) < question.budget_rounds
        used = [node for group in step.groups for node in group]
        assert len(used) == len(set(used)), "a node in two groups of one round"
        assert set(used) <= set(question.nodes)
        assert all(len(group) > 1 for group in step.groups)
        so_far.append((step, cluster.run(step)))


def guilty(conclusion: Conclusion, kind: str = "node") -> set[tuple[str, ...]]:
    return {s.names for s in conclusion.suspects if s.kind == kind}
