"""What the rounds so far say about nodes, paths and switches: results become tests of things.

A thing is what can be guilty: a node; the way out of a switch (in every group that reaches beyond it); the
inside of a switch (in every group with a node below it); the path between two nodes that were seen bad
together; or something hidden in a large group that none of its parts shows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.isolate.belief import Test, log_odds, posterior, probability
from clustertools.isolate.question import (
    ALL_REDUCE,
    PAIRS,
    SMALLEST_ERROR,
    GroupResult,
    History,
    Noise,
    Question,
    Round,
    trusted,
)
from clustertools.measurement import Grade

#: Priors of what is not a node. Links and switches fail less often than nodes (Llama 3 report: 8 % of the
#: interruptions are switch or cable, 43 % GPU, memory, NIC and host), and there are many paths.
SWITCH_SHARE = 0.002
PATH_SHARE = 0.002
PATHS_EXPECTED = 0.1
HIDDEN_SHARE = 0.02
#: The weight from which a path may be what a larger group shows, and from which it may be named: 50 to 1.
CONFIRMED = 4.0
#: A run that names a node may mean its victim: a slow neighbour, the rank that waits.
BLAME_ERROR = 0.1
#: Fewer ratios than this say nothing of what is usual in a round.
ENOUGH_TO_COMPARE = 3

HARD = frozenset((Grade.WRONG_DATA, Grade.BAD_HARDWARE))
BAD = HARD | {Grade.SLOW}
DECISIVE = BAD | {Grade.GOOD}

Thing = tuple[str, ...]


@dataclass(slots=True)
class Seen:
    """All that one set of nodes showed together."""

    nodes: tuple[str, ...]
    traffic: str
    weight: float = 0.0
    bad: int = 0
    good: int = 0
    grades: list[Grade] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def add(self, grade: Grade, weight: float, ratio: float | None = None) -> None:
        self.weight += weight
        if weight > 0:
            self.bad += 1
            self.grades.append(grade if grade in BAD else Grade.SLOW)
        else:
            self.good += 1
        if ratio is not None:
            self.ratios.append(ratio)


def usual(ratios: list[float], slow_at: float) -> float:
    """What good groups of a round reach, in the unit of `ratios`; 1 when there is too little to compare.

    The median; where that is slow and some groups are clearly faster, those: many nodes may be faulty.
    """
    if len(ratios) < ENOUGH_TO_COMPARE:
        return 1.0
    middle = statistics.median(ratios)
    if middle <= 0:
        return 1.0
    fast = [r for r in ratios if r * slow_at > middle]
    return statistics.median(fast) if middle < slow_at and fast else middle


def ratio_weight(ratio: float, expected: float, noise: Noise, sigma: float) -> float:
    """Log likelihood ratio, slow over good, of a measured ratio.

    Good: normal around the usual. Slow: anything from 0 to `slow_at`, blurred by the same spread. Either may
    be an outlier that means nothing.
    """
    x = min(max(ratio / expected, 0.0), 1.5)
    outlier = trusted(noise.outlier)
    z = (min(x, 1.0) - 1.0) / sigma
    good = math.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))
    slow = 0.5 * math.erfc((x - noise.slow_at) / (sigma * math.sqrt(2))) / noise.slow_at
    anything = outlier / 1.5
    weight = math.log(((1 - outlier) * slow + anything) / ((1 - outlier) * good + anything))
    limit = math.log((1 - outlier) / outlier)
    return min(max(weight, -limit), limit)


def spread(ratios: list[float], expected: float, noise: Noise) -> float:
    """The relative spread of the good ratios of a round: as configured, or wider where peers show it."""
    sigma = max(noise.sigma, SMALLEST_ERROR)
    if len(ratios) < 8:
        return sigma
    deviation = statistics.median(abs(r / expected - 1.0) for r in ratios)
    return min(max(sigma, 1.4826 * deviation), max(sigma, 0.15))


def valid(ratio: float | None) -> bool:
    return ratio is not None and math.isfinite(ratio) and ratio >= 0


class Evidence:
    """The history, read once: per set of nodes what it showed, and the odds of every thing."""

    def __init__(self, question: Question, history: History) -> None:
        self.question = question
        self.seen: dict[tuple[str, ...], Seen] = {}
        self.together: dict[tuple[str, ...], Seen] = {}
        self.tested: dict[str, int] = {}
        self.could_not: dict[str, int] = {}
        self.pointed_at: dict[str, list[Grade]] = {}
        self.bad_results = 0
        self.good_results = 0
        self.pairs_without_ratios = False
        self.failed_together: set[frozenset[str]] = set()
        self.measured_pairs: set[tuple[str, str]] = set()
        self.levels = _switches_by_level(question)
        self._expected = _expectations(history, question.noise)
        for asked, results in history:
            self._read(asked, results)
        groups = {frozenset(result.nodes) for _, results in history for result in results}
        best = max(self._expected.values(), default=1.0)
        #: Ratios of more than one group were compared, and none was what is expected.
        self.slow_alike = len(groups) >= ENOUGH_TO_COMPARE and 0 < best < question.noise.slow_at
        self.odds: dict[Thing, float] = {}
        self.share = question.usual_share
        self._solve()

    # -- reading ---------------------------------------------------------------------------------------

    def _read(self, asked: Round, results: Sequence[GroupResult]) -> None:
        ratios, pairs = _ratios(results)
        noise = self.question.noise
        ratio_usual = self._usual(ratios, "groups")
        pair_usual = self._usual(pairs, "pairs")
        ratio_sigma, pair_sigma = spread(ratios, ratio_usual, noise), spread(pairs, pair_usual, noise)
        for result in results:
            nodes = tuple(dict.fromkeys(result.nodes))
            if not nodes or result.grade not in DECISIVE:
                self._could_not(nodes, result.grade)
                continue
            for node in nodes:
                self.tested[node] = self.tested.get(node, 0) + 1
            hard = result.grade in HARD
            if result.blamed and result.grade in BAD:
                for node in set(result.blamed) & set(nodes):
                    self.pointed_at.setdefault(node, []).append(result.grade)
            measured = list(_pairs(result, nodes)) if result.pair_ratios else []
            if len(measured) >= ENOUGH_TO_COMPARE and _all_slow(measured, pair_usual, noise.slow_at):
                # All alike: the load of the group, or all of it. Nothing is known of any one pair.
                self.failed_together.add(frozenset(nodes))
                self._note(nodes, asked.traffic).add(result.grade, noise.weight(bad=True))
                continue
            for pair, ratio in measured:
                self.measured_pairs.add(pair)
                weight = ratio_weight(ratio, pair_usual, noise, pair_sigma)
                self._note(pair, asked.traffic).add(result.grade, weight, ratio / pair_usual)
            if hard and len(nodes) > 2:
                self.failed_together.add(frozenset(nodes))
            if hard or result.ratio is None or not valid(result.ratio):
                weight, shown = noise.weight(result.grade in BAD, hard), None
            else:
                weight = ratio_weight(result.ratio, ratio_usual, noise, ratio_sigma)
                shown = result.ratio / ratio_usual
            if measured and not hard:
                # Its pairs say it all, except to who asks for the group as a whole.
                if len(nodes) > 2:
                    together = self.together.setdefault(tuple(sorted(nodes)), Seen(nodes, asked.traffic))
                    together.add(result.grade, weight, shown)
                continue
            if not hard and asked.traffic == PAIRS and len(nodes) > 2:
                self.pairs_without_ratios = True
            self._note(nodes, asked.traffic).add(result.grade, weight, shown)

    def _could_not(self, nodes: tuple[str, ...], grade: Grade) -> None:
        if grade is not Grade.COULD_NOT_RUN:
            return
        if len(nodes) > 2:
            self.failed_together.add(frozenset(nodes))
        for node in nodes:
            self.could_not[node] = self.could_not.get(node, 0) + 1

    def _usual(self, ratios: list[float], kind: str) -> float:
        """What is usual in this round; where all of it is slow, what was usual in the best round."""
        here = usual(ratios, self.question.noise.slow_at)
        if here < self.question.noise.slow_at and len(ratios) >= ENOUGH_TO_COMPARE:
            return max(here, self._expected.get(kind, here))
        return here

    def _note(self, nodes: tuple[str, ...], traffic: str) -> Seen:
        key = tuple(sorted(nodes))
        if key not in self.seen:
            self.seen[key] = Seen(nodes, traffic)
        return self.seen[key]

    # -- solving ---------------------------------------------------------------------------------------

    def large(self, nodes: tuple[str, ...]) -> bool:
        """A group in which something may hide that its parts do not show."""
        return len(nodes) > max(2 * self.question.smallest_group, 4)

    def _solve(self) -> None:
        question = self.question
        known = dict.fromkeys(question.nodes)
        known.update(dict.fromkeys(node for seen in self.seen.values() for node in seen.nodes))
        things: dict[Thing, int] = {("node", node): i for i, node in enumerate(known)}
        prior: list[float | None] = [
            log_odds(min(max(question.prior[n], 1e-6), 0.999)) if n in question.prior else None for n in known
        ]

        def index(thing: Thing, share: float) -> int:
            if thing not in things:
                things[thing] = len(prior)
                prior.append(log_odds(share))
            return things[thing]

        pairs = sum(len(seen.nodes) == 2 for seen in self.seen.values())
        path_share = min(PATH_SHARE, PATHS_EXPECTED / max(pairs, 1))
        divided = {**_between(self, path_share), **_splits(self)}
        tests = []
        paths: set[tuple[str, ...]] = set()
        for key, seen in sorted(self.seen.items(), key=lambda item: len(item[0])):
            members = [things["node", node] for node in key]
            members += [index(switch, SWITCH_SHARE) for switch in self._switches(key)]
            members += [index(thing, share) for thing, share in divided.get(key, ())]
            if len(key) == 2 and seen.bad:
                members.append(index(("path", *key), path_share))
                if seen.weight >= CONFIRMED:
                    paths.add(key)
            elif seen.bad and self.large(key):
                members += [index(("path", *p), path_share) for p in _shown(seen) if p in paths]
                members.append(index(("hidden", *key), HIDDEN_SHARE))
            tests.append(Test(tuple(members), seen.weight))
        for node, grades in self.pointed_at.items():
            weight = sum(
                math.log((1 - e) / e)
                for e in (trusted(question.noise.hard_error) if g in HARD else BLAME_ERROR for g in grades)
            )
            tests.append(Test((things["node", node],), weight))
        odds, self.share = posterior(prior, tests, question.usual_share)
        self.odds = {thing: odds[i] for thing, i in things.items()}
        self.bad_results = sum(seen.bad for seen in self.seen.values())
        self.good_results = sum(seen.good for seen in self.seen.values())

    def _switches(self, nodes: tuple[str, ...]) -> Iterator[Thing]:
        """The switches that the group's traffic must leave, and those that it is below of at all."""
        for level in self.levels:
            used = sorted({level[node] for node in nodes if node in level})
            if len(used) < 2:
                continue
            if len(set(level.values())) == 2:
                yield ("switch", *used)  # of two, the way out of one is the way out of the other
            else:
                yield from (("switch", name) for name in used)
        if self.levels:
            used = sorted({self.levels[0][node] for node in nodes if node in self.levels[0]})
            yield from (("inside", name) for name in used)

    def ways_out(self) -> set[Thing]:
        """Every way out of a switch that this topology has."""
        found: set[Thing] = set()
        for level in self.levels:
            names = sorted(set(level.values()))
            found |= {("switch", *names)} if len(names) == 2 else {("switch", name) for name in names}
        return found

    # -- asking ----------------------------------------------------------------------------------------

    def node(self, node: str) -> float:
        """The log odds that the node is faulty."""
        return self.odds["node", node]

    def chance(self, thing: Thing) -> float:
        return probability(self.odds[thing])

    def of_kind(self, kind: str) -> Iterator[tuple[Thing, float]]:
        return ((thing, probability(odds)) for thing, odds in self.odds.items() if thing[0] == kind)

    def whole(self, nodes: tuple[str, ...]) -> Seen:
        """What this very set of nodes showed as one group."""
        key = tuple(sorted(nodes))
        return self.seen.get(key) or self.together.get(key) or Seen(nodes, "")

    def below(self, switch: str) -> tuple[str, ...]:
        return tuple(n for n in self.question.nodes if switch in self.question.topology.get(n, ()))


def _all_slow(measured: Sequence[tuple[tuple[str, str], float]], expected: float, slow_at: float) -> bool:
    return max(ratio for _, ratio in measured) < slow_at * max(expected, 1.0)


def _ratios(results: Sequence[GroupResult]) -> tuple[list[float], list[float]]:
    """The ratios of a round's groups, and of its pairs."""
    judged = [r for r in results if r.grade in DECISIVE]
    ratios = [r.ratio for r in judged if r.ratio is not None and valid(r.ratio)]
    return ratios, [x for r in judged if r.pair_ratios for _, x in _pairs(r, r.nodes)]


def _expectations(history: History, noise: Noise) -> dict[str, float]:
    """The best that was usual in any round, for groups and for pairs."""
    best: dict[str, float] = {}
    for _, results in history:
        for kind, ratios in zip(("groups", "pairs"), _ratios(results), strict=True):
            if len(ratios) >= ENOUGH_TO_COMPARE:
                best[kind] = max(best.get(kind, 0.0), usual(ratios, noise.slow_at))
    return best


def _pairs(result: GroupResult, nodes: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], float]]:
    """Each pair's ratio once, the worse of its two directions."""
    worst: dict[tuple[str, str], float] = {}
    for (a, b), ratio in result.pair_ratios.items():
        if a != b and a in nodes and b in nodes and valid(ratio):
            key = (a, b) if a < b else (b, a)
            worst[key] = min(ratio, worst.get(key, ratio))
    return iter(sorted(worst.items()))


def _shown(seen: Seen) -> Iterator[tuple[str, str]]:
    """The pairs of nodes whose path the traffic of a group uses."""
    nodes = seen.nodes
    if seen.traffic == ALL_REDUCE:
        found = zip(nodes, (*nodes[1:], nodes[0]), strict=True)
    else:
        found = ((a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :])  # type: ignore[assignment]
    for a, b in found:
        yield (a, b) if a < b else (b, a)


def _switches_by_level(question: Question) -> list[Mapping[str, str]]:
    """For each level, node -> switch, leaving out switches that too few nodes could tell from a node."""
    levels: list[dict[str, str]] = []
    for node in question.nodes:
        for height, switch in enumerate(question.topology.get(node, ())):
            while len(levels) <= height:
                levels.append({})
            levels[height][node] = switch
    for level in levels:
        sizes: dict[str, int] = {}
        for switch in level.values():
            sizes[switch] = sizes.get(switch, 0) + 1
        for node in [n for n, switch in level.items() if sizes[switch] < 3]:
            del level[node]
    return [level for level in levels if len(set(level.values())) > 1]


#: The most nodes in which it is looked for two camps that do not get on.
_CAMPS_AMONG = 128
#: This share of the pairs inside a camp is good, and of those across is bad.
_CAMPS_CLEAR = 0.8


def _between(evidence: Evidence, share: float) -> dict[tuple[str, ...], list[tuple[Thing, float]]]:
    """For pairs across two nearest switches between which more than one pair was bad: that boundary."""
    if not evidence.levels or len(set(evidence.levels[0].values())) == 2:
        return {}
    level = evidence.levels[0]
    across: dict[Thing, list[tuple[str, ...]]] = {}
    for key in evidence.seen:
        switches = sorted({level[node] for node in key if node in level})
        if len(switches) == 2 and len(key) == 2:
            across.setdefault(("switch", *switches), []).append(key)
    found: dict[tuple[str, ...], list[tuple[Thing, float]]] = {}
    for thing, keys in across.items():
        bad = sum(evidence.seen[key].bad > 0 for key in keys)
        if bad > 1:
            for key in keys:
                found.setdefault(key, []).append((thing, share))
    return found


def _splits(evidence: Evidence) -> dict[tuple[str, ...], list[tuple[Thing, float]]]:
    """Where pairs were measured: two camps, good inside and bad across, without a topology that says why."""
    pairs = [key for key in evidence.seen if len(key) == 2]
    nodes = sorted({node for pair in pairs for node in pair})
    if not 4 <= len(nodes) <= _CAMPS_AMONG or 4 * len(pairs) < len(nodes) * (len(nodes) - 1):
        return {}
    good = {pair for pair in pairs if evidence.seen[pair].weight < 0}
    camp = {node: node for node in nodes}

    def root(node: str) -> str:
        while camp[node] != node:
            node = camp[node]
        return node

    for a, b in sorted(good):
        camp[root(a)] = root(b)
    sides: dict[str, list[str]] = {}
    for node in nodes:
        sides.setdefault(root(node), []).append(node)
    if len(large := [side for side in sides.values() if len(side) > 1]) != 2:
        return {}
    one, other = set(large[0]), set(large[1])
    if any(len({level.get(n) for n in side}) == 1 for level in evidence.levels for side in (one, other)):
        return {}  # the topology has a name for it
    inside = [pair for pair in pairs if set(pair) <= one or set(pair) <= other]
    across = [pair for pair in pairs if set(pair) & one and set(pair) & other]
    if sum(pair in good for pair in inside) < _CAMPS_CLEAR * len(inside):
        return {}
    thing = ("split", ",".join(large[0]), ",".join(large[1]))
    return {pair: [(thing, SWITCH_SHARE)] for pair in across}
