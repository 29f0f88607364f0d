"""The answer in values and in one sentence, at the end or wherever the search stands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from clustertools.isolate import paths
from clustertools.isolate.belief import log_odds, probability
from clustertools.isolate.evidence import BAD, CONFIRMED, HARD, PATH_SHARE, Evidence, Thing
from clustertools.isolate.question import Conclusion, History, Question
from clustertools.measurement import Grade, Suspect

#: A node is cleared when a good result stands for it and less than this remains.
CLEARED = 0.05
#: A list in a sentence is cut here; the values hold all of it.
SHOWN = 8


def named(question: Question, evidence: Evidence) -> list[tuple[str, float]]:
    """The nodes that are blamed, the surest first. Nobody is where nothing good is there to compare with."""
    if unheard(evidence):
        return []
    tested = [node for node in question.nodes if evidence.tested.get(node)]
    found = [(node, probability(evidence.node(node))) for node in tested]
    return sorted((f for f in found if f[1] >= question.confidence), key=lambda f: (-f[1], f[0]))


def unheard(evidence: Evidence) -> bool:
    """Every group that ran was bad, so there is nothing to compare with."""
    if evidence.slow_alike and not evidence.pointed_at:
        return True
    groups = sum(1 for seen in evidence.seen.values() if seen.bad)
    noise = evidence.question.noise
    allowed = 2 * noise.false_good * (evidence.bad_results + evidence.good_results)
    return (
        groups > 1 and not evidence.pointed_at and evidence.good_results <= allowed and _nobody_good(evidence)
    )


def _nobody_good(evidence: Evidence) -> bool:
    good = {node for seen in evidence.seen.values() if seen.good for node in seen.nodes}
    return len(good) <= 0.2 * len(evidence.tested)


def one_of_two(question: Question, evidence: Evidence, nodes: Sequence[str]) -> float:
    """The probability that one of two nodes or their path is bad, whichever: only a third could tell."""
    prior = sum(question.prior.get(node, question.usual_share) for node in nodes) + PATH_SHARE
    return probability(log_odds(prior) + evidence.whole(tuple(nodes)).weight)


def behind(question: Question, evidence: Evidence) -> set[str]:
    """The nodes below a switch that is blamed as a whole: nothing can be said of them."""
    blamed = [thing[1] for thing, p in evidence.of_kind("inside") if p >= question.confidence]
    return {node for switch in blamed for node in evidence.below(switch)}


def conclude(question: Question, history: History, evidence: Evidence) -> Conclusion:
    tested = [node for node in question.nodes if evidence.tested.get(node)]
    never = tuple(node for node in question.nodes if not evidence.tested.get(node))
    if unheard(evidence):
        return Conclusion((), (), question.nodes, 0.0, _alike(evidence), len(history))
    nodes = named(question, evidence)
    suspects = [
        *(Suspect("node", (n,), _grade(evidence, [n]), p, _because(evidence, n)) for n, p in nodes),
        *_boundaries(question, evidence),
        *_paths(question, evidence),
    ]
    blamed = {node for node, _ in nodes}
    good = tuple(n for n in tested if n not in blamed)
    if not any(s.kind != "node" for s in suspects):
        suspects += paths.found(question, evidence, good)
    chance = {node: probability(evidence.node(node)) for node in tested}
    dark = behind(question, evidence) - blamed
    doubt = sorted((n for n in tested if n not in blamed and chance[n] > CLEARED), key=lambda n: -chance[n])
    doubt += [n for n in tested if n in dark and chance[n] <= CLEARED]
    taken = blamed.union(doubt)
    clear = tuple(n for n in tested if n not in taken)
    sure = math.prod(chance[n] if n in blamed else 1 - chance[n] for n in tested if n not in dark)
    sure *= math.prod(s.confidence for s in suspects if s.kind != "node") if tested else 0.0
    sentence = _sentence(question, evidence, suspects, doubt, never, len(history), clear, sure)
    return Conclusion(tuple(suspects), clear, (*doubt, *never), sure, sentence, len(history))


# -- suspects ---------------------------------------------------------------------------------------------


def _boundaries(question: Question, evidence: Evidence) -> list[Suspect]:
    found: list[Suspect] = []
    for kind in ("switch", "inside", "split"):
        for thing, p in sorted(evidence.of_kind(kind)):
            if p >= question.confidence:
                found.append(_boundary(question, evidence, thing, p))
    return found


def _boundary(question: Question, evidence: Evidence, thing: Thing, p: float) -> Suspect:
    if thing[0] == "split":
        one, other = (tuple(side.split(",")) for side in thing[1:])
        because = (
            f"between {_list(one)} and {_list(other)}: pairs across are bad, pairs inside either are good"
        )
        return Suspect("boundary", thing[1:], _grade(evidence, one, other), p, because)
    members = evidence.below(thing[1])
    others = tuple(n for n in question.nodes if n not in set(members))
    if len(thing) > 2:
        others = evidence.below(thing[2])
        because = f"between {thing[1]} and {thing[2]}: groups across are bad, groups inside either are good"
    elif thing[0] == "inside":
        because = f"{thing[1]} as a whole: every group with a node below it is bad, others are good"
    else:
        because = f"the way out of {thing[1]}: groups that leave it are bad, others good"
    across = None if thing[0] == "inside" else others
    return Suspect(
        "boundary", (",".join(members), ",".join(others)), _grade(evidence, members, across), p, because
    )


def _paths(question: Question, evidence: Evidence) -> list[Suspect]:
    found = []
    for thing, p in evidence.of_kind("path"):
        a, b = thing[1:]
        seen = evidence.seen[a, b]
        if p < question.confidence or seen.weight < CONFIRMED:
            continue
        shown = f", at {min(seen.ratios):.0%} of the usual" if seen.ratios else ""
        because = (
            f"bad together in {seen.bad} of {seen.bad + seen.good} tests{shown}; each is good with others"
        )
        found.append(Suspect("path", (a, b), _worst(seen.grades), p, because))
    return found


def _tests_of(evidence: Evidence, node: str) -> tuple[int, int, list[float]]:
    bad = good = 0
    ratios: list[float] = []
    for seen in evidence.seen.values():
        if node in seen.nodes:
            bad, good = bad + seen.bad, good + seen.good
            ratios += seen.ratios
    return bad, good, ratios


def _because(evidence: Evidence, node: str) -> str:
    bad, good, ratios = _tests_of(evidence, node)
    text = f"bad in {bad} of {bad + good} tests with different partners"
    if ratios:
        text += f", at best {max(ratios):.0%} of the usual" if not good else ""
    if evidence.pointed_at.get(node):
        text += f"; named by {len(evidence.pointed_at[node])} of them"
    return text


def _grade(evidence: Evidence, nodes: Iterable[str], across: Iterable[str] | None = None) -> Grade:
    wanted, beyond = set(nodes), set(across) if across is not None else None
    grades = [g for n in wanted for g in evidence.pointed_at.get(n, ())]
    for seen in evidence.seen.values():
        if wanted & set(seen.nodes) and (beyond is None or beyond & set(seen.nodes)):
            grades += seen.grades
    return _worst(grades)


def _worst(grades: Sequence[Grade]) -> Grade:
    """The commonest bad grade; of equally common ones the harder."""
    counts = Counter(g for g in grades if g in BAD)
    return max(counts, key=lambda g: (counts[g], g in HARD, g.value)) if counts else Grade.SLOW


# -- words ------------------------------------------------------------------------------------------------


def _alike(evidence: Evidence) -> str:
    if evidence.slow_alike and evidence.good_results:
        how = "all groups are slow alike"
    else:
        how = "every group that ran is bad"
    return (
        f"cannot tell: {how}, so there is nothing good to compare with; a configuration, or a fault of the "
        "whole fabric, is likelier than that every node is faulty"
    )


def _percent(share: float) -> str:
    return "over 99%" if share > 0.995 else f"{share:.0%}"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _sentence(
    question: Question,
    evidence: Evidence,
    suspects: Sequence[Suspect],
    doubt: Sequence[str],
    never: Sequence[str],
    rounds: int,
    clear: Sequence[str],
    sure: float,
) -> str:
    count = f"{rounds} round" + ("" if rounds == 1 else "s")
    parts = []
    if len(question.nodes) == 1:
        return "cannot tell: one node alone has nothing to be compared with"
    if suspects:
        parts.append(f"guilty: {_list([_named(s) for s in suspects])}, after {count}")
    elif not evidence.tested:
        parts.append(f"nothing was tested in {count}")
    elif doubt:
        parts.append(f"nothing certain after {count}")
    else:
        parts.append(f"nothing found in {count}: {len(clear)} nodes cleared, {_percent(sure)} sure of it")
    if len(question.nodes) == 2 and len(doubt) == 2:
        parts.append(
            f"{question.nodes[0]}, {question.nodes[1]} or the path between them is bad; which of them, "
            "only a third node can tell"
        )
    elif doubt:
        parts.append(f"undecided: {_list(doubt)}")
    if never and evidence.tested:
        parts.append(f"not tested: {_list(never)}")
    return "; ".join(parts)


def _named(suspect: Suspect) -> str:
    if suspect.kind == "path":
        what = f"the path {suspect.names[0]} - {suspect.names[1]}"
    elif suspect.kind == "boundary":
        what = f"a boundary, {suspect.because.partition(':')[0]}"
    else:
        what = suspect.names[0]
    return f"{what} ({suspect.grade.value}, {_percent(suspect.confidence)})"
