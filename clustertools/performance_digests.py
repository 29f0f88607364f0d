"""Who computed something else than the others, from digests of results that must be equal bit by bit. Pure.

The same kernel on the same kind of GPU from the same library gives the same bits each time, so a digest needs
no known answer and no tolerance. What must be equal for that stands in `kind`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clustertools.measurement import Grade


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of one result. `kind` names all that must be equal: GPU, library versions, type, size, seed.

    Several digests of one part are repetitions: they must agree among themselves as well.
    """

    node: str
    part: str
    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class DigestVerdict:
    """What is thought of one part's digests of one kind; UNTESTED where nobody can say who is right."""

    node: str
    part: str
    kind: str
    grade: Grade
    against: str


def compare_digests(digests: Iterable[Digest]) -> list[DigestVerdict]:
    """One verdict for each part and kind, in the order of their first digest.

    A part that contradicts itself computes wrong, whatever the others say. Of the rest, what more than half
    have is right, and who has something else is wrong; without such a majority nobody is blamed.
    """
    kinds: dict[str, dict[tuple[str, str], list[str]]] = {}
    for one in digests:
        kinds.setdefault(one.kind, {}).setdefault((one.node, one.part), []).append(one.value)
    return [verdict for kind, parts in kinds.items() for verdict in _of_one_kind(kind, parts)]


def _of_one_kind(kind: str, parts: dict[tuple[str, str], list[str]]) -> Iterable[DigestVerdict]:
    steady = {who: values[0] for who, values in parts.items() if len(set(values)) == 1}
    counts = Counter(steady.values())
    common, most = counts.most_common(1)[0] if counts else ("", 0)
    for (node, part), values in parts.items():
        if len(set(values)) > 1:
            against = f"{len(set(values))} answers to the same question in {len(values)} tries"
            yield DigestVerdict(node, part, kind, Grade.WRONG_DATA, against)
        elif len(steady) < 2:
            yield DigestVerdict(node, part, kind, Grade.UNTESTED, "nobody to compare with")
        elif 2 * most <= len(steady):
            against = f"{len(counts)} different answers from {len(steady)}, none from more than half"
            yield DigestVerdict(node, part, kind, Grade.UNTESTED, against)
        elif values[0] == common:
            against = f"the same bits as {most - 1} of {len(steady) - 1} others"
            yield DigestVerdict(node, part, kind, Grade.GOOD, against)
        else:
            yield DigestVerdict(node, part, kind, Grade.WRONG_DATA, _told_minority(values, steady, most))


def _told_minority(values: Sequence[str], steady: dict[tuple[str, str], str], most: int) -> str:
    same = sum(value == values[0] for value in steady.values())
    against = f"other bits than {most} of {len(steady)}"
    if same > 1:
        # broken chips seldom err alike
        return f"{against}, the same as {same - 1} more: compare their library versions before the chips"
    return against
