"""The next round, or the end: first every node in pairs, then what only larger groups show."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from clustertools.isolate import paths
from clustertools.isolate.belief import probability
from clustertools.isolate.conclude import CLEARED, behind, conclude, named, one_of_two, unheard
from clustertools.isolate.evidence import Evidence
from clustertools.isolate.grouping import groups, pack
from clustertools.isolate.question import PAIRS, Conclusion, History, Question, Round
from clustertools.measurement import Grade

#: A node whose every group could not run, this often, is not tried again.
GIVE_UP_AFTER = 3
#: So many rounds with so many groups, or so many more rounds, all bad: there is no good partner. With
#: fewer, each group may have had a faulty node by chance.
ALIKE_ROUNDS, ALIKE_GROUPS, ALIKE_LONG = 2, 12, 5
#: No search ends with a node between this and the confidence that is asked for.
IN_DOUBT = 0.2
#: Who is named takes no good partner from the others: from here on, or among so few nodes at once.
BEYOND_DOUBT = 0.999
FEW = 8
#: Who is still in doubt after so many tests stays so: a fault that comes and goes.
ENOUGH_TESTS = 10
#: A path or switch is tested again from this probability on; a measured pair, from the second on.
WORTH_A_TEST, WORTH_REPEATING = 0.1, 1e-4


def next_step(question: Question, history: History) -> Round | Conclusion:
    """What to run next, given every round so far with its results, in order; or the conclusion.

    Pure: the same question and history give the same step. Results may lack groups, repeat them, name
    strangers or hold grades that are no evidence; none of it raises.
    """
    evidence = Evidence(question, history)
    if len(history) < question.budget_rounds:
        asked = _wanted(question, history, evidence)
        if asked is not None and asked.groups:
            return asked
    found = conclude(question, history, evidence)
    if len(history) == 1 < question.budget_rounds and any(s.grade is Grade.SLOW for s in found.suspects):
        first = history[0][0]
        return Round(first.groups, first.traffic, "once more: one bad moment of a node looks like this, too")
    return found


def so_far(question: Question, history: History) -> Conclusion:
    """The best answer that the results allow now, wherever the search stands."""
    return conclude(question, history, Evidence(question, history))


def _wanted(question: Question, history: History, evidence: Evidence) -> Round | None:
    able = [node for node in question.nodes if not _given_up(evidence, node)]
    if len(able) < 2 or _all_alike(question, history, evidence):
        return None
    guilty = {name for name, _ in named(question, evidence)}
    good = tuple(node for node in able if node not in guilty)
    if not _settled(question, evidence, able):
        return _everyone(question, history, evidence, able)
    if len(good) > 2 and (pairs := _never_good(question, evidence, good)):
        return Round(tuple(pairs), PAIRS, "pairs that were never good, although each node is with others")
    if _small(question, good) and len(good) > 2 and not _covered(evidence, good):
        return Round((good,), PAIRS, "every path between the nodes that are not suspected")
    return paths.wanted(question, evidence, good)


def _given_up(evidence: Evidence, node: str) -> bool:
    return not evidence.tested.get(node) and evidence.could_not.get(node, 0) >= GIVE_UP_AFTER


def _all_alike(question: Question, history: History, evidence: Evidence) -> bool:
    """Nothing good was seen in so many rounds that none is to be expected."""
    if not evidence.bad_results or not unheard(evidence):
        return False
    if evidence.slow_alike or len(history) >= ALIKE_LONG:
        return True
    return len(history) >= ALIKE_ROUNDS and evidence.bad_results >= ALIKE_GROUPS


def _small(question: Question, nodes: Sequence[str]) -> bool:
    """All pairs of these can be measured in one round."""
    return question.pairs_measured and len(nodes) <= question.pairs_together


def _never_good(question: Question, evidence: Evidence, good: Sequence[str]) -> list[tuple[str, ...]]:
    """Pairs of good nodes that were measured and never good: cheap to repeat, and few where it matters."""
    if any(
        p >= question.confidence for kind in ("switch", "inside", "split") for _, p in evidence.of_kind(kind)
    ):
        return []  # that is why
    wanted = [
        thing[1:]
        for thing, chance in evidence.of_kind("path")
        if thing[1:] in evidence.measured_pairs
        and not evidence.seen[thing[1:]].good
        and WORTH_REPEATING < chance < question.confidence
    ]
    return pack(wanted, set(good).__contains__)


def _covered(evidence: Evidence, nodes: tuple[str, ...]) -> bool:
    """Half of all pairs of these were measured, or there is no measuring them."""
    if evidence.pairs_without_ratios or frozenset(nodes) in evidence.failed_together:
        return True
    pairs = {pair for pair in evidence.measured_pairs if pair[0] in nodes and pair[1] in nodes}
    return 2 * 2 * len(pairs) >= len(nodes) * (len(nodes) - 1)


def _settled(question: Question, evidence: Evidence, able: list[str]) -> bool:
    """Nobody is untested, and few faults are still to be expected among those that are not named."""
    if any(not evidence.tested.get(node) for node in able):
        return False
    if len(able) == 2 and one_of_two(question, evidence, able) >= question.confidence:
        return True
    others = [p for kind in ("switch", "inside", "split", "path") for _, p in evidence.of_kind(kind)]
    if any(WORTH_A_TEST < p < question.confidence for p in others):
        return False
    if question.topology and any(way not in evidence.odds for way in evidence.ways_out()):
        return False
    hopeless = behind(question, evidence)
    hopeless |= {node for node in able if evidence.tested[node] >= ENOUGH_TESTS}
    chances = [probability(evidence.node(node)) for node in able if node not in hopeless]
    doubtful = [p for p in chances if p < question.confidence]
    expected = sum(question.prior.get(node, evidence.share) for node in able)
    return sum(doubtful) <= question.missed_share * expected and max(doubtful, default=0.0) < IN_DOUBT


def _everyone(question: Question, history: History, evidence: Evidence, able: list[str]) -> Round:
    unmeasured = evidence.pairs_without_ratios or bool(evidence.failed_together)
    if _small(question, able) and len(able) > 2 and not unmeasured:
        again = " again" if evidence.measured_pairs else ""
        return Round((tuple(able),), PAIRS, f"every two of the {len(able)} nodes{again}")
    number = len(history)
    rng = random.Random(f"{question.seed}/{number}")
    met = {key for key in evidence.seen if len(key) == 2}
    level = {node: question.topology[node][0] for node in able if question.topology.get(node)}
    once_more = pack(list(_doubtful_paths(question, evidence)), lambda node: node in able)
    busy = {node for pair in once_more for node in pair}
    free = [node for node in able if node not in busy]
    beyond = question.confidence if len(able) <= FEW else max(question.confidence, BEYOND_DOUBT)
    doubtful = [node for node in free if probability(evidence.node(node)) < beyond]
    free = doubtful if len(doubtful) > 1 else free
    suspicion = {node: evidence.node(node) for node in free}
    near = number % 2 == 0
    made = groups(free, suspicion, question.smallest_group, met, level, near, rng)
    if not history:
        why = "every node with a neighbour" if level else "every node with another"
    else:
        count = sum(CLEARED < probability(odds) < question.confidence for odds in suspicion.values())
        why = f"{count} nodes in doubt, each with one that is trusted; all others re-shuffled"
    return Round((*once_more, *made), PAIRS, why)


def _doubtful_paths(question: Question, evidence: Evidence) -> Iterator[tuple[str, ...]]:
    for thing, chance in sorted(evidence.of_kind("path"), key=lambda item: -item[1]):
        if WORTH_A_TEST < chance < question.confidence:
            yield thing[1:]
