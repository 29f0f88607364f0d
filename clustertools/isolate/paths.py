"""A large group is bad and none of its nodes is: which two, or which two sets, do not get on.

A ring uses its neighbours' paths only, so these are tested first, every second one at the same time. Else the
space of pairs is halved: inside both halves, then across them in four quarters, and so on into the bad one.
"""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.isolate.belief import probability
from clustertools.isolate.evidence import CONFIRMED, Evidence, Thing
from clustertools.isolate.grouping import pack
from clustertools.isolate.question import ALL_REDUCE, PAIRS, Question, Round
from clustertools.measurement import Grade, Suspect

#: A group that may hide something is looked at again from this probability on.
WORTH_A_TEST = 0.1
#: After so many runs of one group their majority has to do.
OFTEN = 5

Nodes = tuple[str, ...]


def wanted(question: Question, evidence: Evidence, good: Nodes) -> Round | None:
    """The next round of the search between good nodes, None when there is nothing more to search."""
    step = _step(question, evidence, good)
    return step if isinstance(step, Round) else None


def found(question: Question, evidence: Evidence, good: Nodes) -> list[Suspect]:
    """The path or boundary where the search between good nodes ended."""
    step = _step(question, evidence, good)
    return [step] if isinstance(step, Suspect) else []


def _step(question: Question, evidence: Evidence, good: Nodes) -> Round | Suspect | None:
    hidden = sorted(evidence.of_kind("hidden"), key=lambda item: (len(item[0]), item[0]))
    doubtful = [(thing, p) for thing, p in hidden if p > WORTH_A_TEST]
    if not doubtful:
        return None
    return _Search(question, evidence, good).of(doubtful[0][0])


class _Search:
    def __init__(self, question: Question, evidence: Evidence, good: Nodes) -> None:
        self.question, self.evidence, self.good = question, evidence, set(good)
        self.traffic = PAIRS

    def of(self, thing: Thing) -> Round | Suspect | None:
        seen = self.evidence.seen[thing[1:]]
        nodes = tuple(node for node in seen.nodes if node in self.good)
        self.traffic = ALL_REDUCE if seen.traffic == ALL_REDUCE else PAIRS
        if len(nodes) < 2:
            return None
        whole = self.evidence.whole(nodes)
        if self.verdict(nodes) is None or whole.bad + whole.good < 2:
            why = f"the {len(nodes)} nodes together once more: none of them alone is bad"
            return Round((nodes,), self.traffic, why)
        if not self.verdict(nodes):
            return None
        if self.traffic == ALL_REDUCE:
            if asked := self.ring(nodes):
                return asked
        else:
            topology = self.question.topology
            nodes = tuple(sorted(nodes, key=lambda node: (topology.get(node, ())[::-1], node)))
        return self.within(nodes)

    def ring(self, nodes: Nodes) -> Round | None:
        """Each link by itself once, and again where it was bad: disjoint links at the same time."""
        links = zip(nodes, (*nodes[1:], nodes[0]), strict=True)
        left = [link for link in links if 0 <= self.evidence.whole(link).weight < CONFIRMED]
        why = f"the links of the ring of {len(nodes)}, by themselves"
        return Round(tuple(pack(left, lambda node: True)), PAIRS, why) if left else None

    def verdict(self, nodes: Nodes) -> bool | None:
        """Whether this group is bad; None when that is not known well enough."""
        seen = self.evidence.whole(nodes)
        known = abs(seen.weight) >= CONFIRMED or seen.bad + seen.good >= OFTEN
        return seen.weight > 0 if known else None

    def within(self, nodes: Nodes) -> Round | Suspect:
        """The nodes together are bad: in one half, in the other, or across?"""
        if len(nodes) == 2:
            return self.suspect(nodes[:1], nodes[1:], nodes)
        if asked := self.measure(nodes):
            return asked
        halves = _halves(nodes)
        groups = [half for half in halves if len(half) > 1]
        if asked := self.unknown(groups, f"each half of {len(nodes)} nodes by itself"):
            return asked
        for half in groups:
            if self.verdict(half):
                return self.within(half)
        return self.across(*halves, nodes, first=True)

    def across(self, one: Nodes, other: Nodes, together: Nodes, first: bool = False) -> Round | Suspect:
        """Either set is good inside, together they are bad: between which parts?"""
        if len(one) == len(other) == 1:
            return self.suspect(one, other, together)
        if asked := self.measure((*one, *other)):
            return asked
        (a, b), (c, d) = _halves(one), _halves(other)
        bad: list[tuple[Nodes, Nodes]] = []
        for quarters in (((a, c), (b, d)), ((a, d), (b, c))):
            able = [(left, right) for left, right in quarters if left and right]
            why = f"across the boundary between {len(one)} and {len(other)} good nodes, in mixed quarters"
            if asked := self.unknown([self.mixed(*sides) for sides in able], why):
                return asked
            bad += [sides for sides in able if self.verdict(self.mixed(*sides))]
            if bad and not first:
                break
        if not bad or len(bad) > 2:
            return self.suspect(one, other, together)
        if len(bad) == 2 and bad[0][0] == bad[1][0]:
            return self.across(bad[0][0], other, self.mixed(*bad[0]))
        if len(bad) == 2 and bad[0][1] == bad[1][1]:
            return self.across(one, bad[0][1], self.mixed(*bad[0]))
        return self.across(*bad[0], self.mixed(*bad[0]))

    def mixed(self, one: Nodes, other: Nodes) -> Nodes:
        """Both sets as one group; in a ring, alternating, so that its links lead across."""
        if self.traffic != ALL_REDUCE:
            return (*one, *other)
        return tuple(_alternating(one, other))

    def unknown(self, groups: list[Nodes], why: str) -> Round | None:
        left = [group for group in groups if self.verdict(group) is None]
        return Round(tuple(left), self.traffic, why) if left else None

    def measure(self, nodes: Nodes) -> Round | None:
        """Every pair at once, where that is possible and was not done."""
        evidence = self.evidence
        able = self.question.pairs_measured and not evidence.pairs_without_ratios
        few = len(nodes) <= self.question.pairs_together
        if not able or not few or frozenset(nodes) in evidence.failed_together:
            return None
        pairs = [(a, b) if a < b else (b, a) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
        if all(pair in evidence.measured_pairs for pair in pairs):
            return None
        return Round((nodes,), PAIRS, f"every two of the {len(nodes)} nodes that do not get on")

    def suspect(self, one: Nodes, other: Nodes, together: Nodes) -> Suspect:
        seen = self.evidence.whole(together)
        sure = probability(seen.weight)
        grade = max(seen.grades, key=seen.grades.count) if seen.grades else Grade.SLOW
        if len(one) == len(other) == 1:
            because = "bad together, each is good with others"
            return Suspect("path", (*one, *other), grade, sure, because)
        name = " and ".join(self.switch(side) for side in (one, other))
        because = f"between {name}: bad when all of both are loaded together, good in each alone"
        return Suspect("boundary", (",".join(one), ",".join(other)), grade, sure, because)

    def switch(self, side: Nodes) -> str:
        """What all of these are below and have in common, else how they are called."""
        first = self.question.topology.get(side[0], ())
        for switch in first:
            if set(self.evidence.below(switch)) == set(side):
                return switch
        return side[0] if len(side) == 1 else f"{side[0]} and {len(side) - 1} more"


def _halves(nodes: Nodes) -> tuple[Nodes, Nodes]:
    middle = (len(nodes) + 1) // 2
    return nodes[:middle], nodes[middle:]


def _alternating(one: Nodes, other: Nodes) -> Iterator[str]:
    """The members of the shorter one, spread evenly between those of the longer."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    given = 0
    for place, node in enumerate(longer, 1):
        yield node
        due = place * len(shorter) // len(longer)
        yield from shorter[given:due]
        given = due
