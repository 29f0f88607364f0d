"""What a collective must give, element by element, its bandwidth, and whom wrong elements point at. Pure.

All values are small whole numbers whose sums, in any order, are exact in every type down to bfloat16 (8 bits
of significand: whole numbers up to 256).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: So many ranks at most have something else than 0 in one element, each at most 3: sums stay below 256.
_CONTRIBUTORS = 64
_VALUES = 3
#: A prime, so that a block that is shifted or swapped with another differs.
_BLOCK_PERIOD = 251

#: Bus bandwidth over S / t, by nccl-tests doc/PERFORMANCE.md; S is each collective's own size column.
BUS_FACTORS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "pairs")


def bus_factor(collective: str, ranks: int) -> float:
    """What algorithm bandwidth is to be multiplied with to be comparable with a link's."""
    if collective == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if collective in ("all_gather", "reduce_scatter", "all_to_all"):
        return (ranks - 1) / ranks
    if collective == "pairs":
        return 1.0
    raise ValueError(f"no such collective: {collective}")


def elements(collective: str, size_bytes: int, element_bytes: int, ranks: int) -> int:
    """How many elements each rank's part of the message has.

    all_reduce, pairs: of its whole buffer. The others: of one block, of which there is one for each rank, so
    that all of them together are `size_bytes` (rounded down, as nccl-tests does, to whole blocks).
    """
    total = max(1, size_bytes // element_bytes)
    return total if collective in ("all_reduce", "pairs") else max(1, total // ranks)


def _stride(ranks: int) -> int:
    return -(-ranks // _CONTRIBUTORS)


def contribution(rank: int, ranks: int) -> list[int]:
    """One period of what `rank` puts into a sum; element i is that of place i modulo the length."""
    stride = _stride(ranks)
    values = [0] * (stride * _VALUES)
    for place in range(-rank % stride, len(values), stride):
        values[place] = (place // stride + rank) % _VALUES + 1
    return values


def expected_sum(ranks: int) -> list[int]:
    """One period of what the contributions of all ranks come to."""
    stride = _stride(ranks)
    values = [0] * (stride * _VALUES)
    for rank in range(ranks):
        for place in range(-rank % stride, len(values), stride):
            values[place] += (place // stride + rank) % _VALUES + 1
    return values


def block(source: int, target: int = 0) -> list[int]:
    """One period of what `source` sends to `target`: every block tells whose it is."""
    start = 7 * source + 3 * target
    return [(start + place) % _BLOCK_PERIOD + 1 for place in range(_BLOCK_PERIOD)]


def rounds(members: int) -> list[list[tuple[int, int]]]:
    """Every two of `members` meet once; within a round everybody is in at most one pair (circle method)."""
    seats: list[int | None] = [*range(members), *([None] if members % 2 else [])]
    half = len(seats) // 2
    met = []
    for _ in range(len(seats) - 1):
        pairs = []
        for one, other in zip(seats[:half], reversed(seats[half:]), strict=True):
            if one is not None and other is not None:
                pairs.append((min(one, other), max(one, other)))
        met.append(sorted(pairs))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return met


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rank saw wrong: in whose data, and whether what it gave itself was wrong already."""

    rank: int
    wrong: int
    sources: Mapping[int, int]
    own_data_wrong: bool = False


def guilty(seen: Sequence[Seen], ranks: int) -> tuple[list[int], str]:
    """The ranks that wrong data point at, and why. None when it may as well be the way between two.

    A rank whose own input is wrong is guilty for itself. Where blocks tell their owner, an owner whose block
    several saw wrong is guilty, and so is a receiver that alone saw several owners' blocks wrong. Wrong sums
    that only a minority saw arrived wrong there; those that all saw were wrong before they were handed on.
    """
    own = [one.rank for one in seen if one.own_data_wrong]
    if own:
        return own, "its own input was no longer what it had written"
    receivers: dict[int, list[int]] = {}
    for one in seen:
        for source in one.sources:
            receivers.setdefault(source, []).append(one.rank)
    if receivers:
        senders = [source for source, by in receivers.items() if len(by) > 1]
        if senders:
            return sorted(senders), "several ranks received wrong data from it"
        alone = [one.rank for one in seen if len(one.sources) > 1]
        if alone:
            return sorted(alone), "it received wrong data from several ranks"
        return [], "one rank received wrong data from one other: either of them, or the way between"
    bad = [one.rank for one in seen if one.wrong]
    if bad and 2 * len(bad) < ranks:
        return bad, "only it has a wrong sum"
    return [], "the sum is wrong on most ranks and every input is right: it went wrong on its way"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank). Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, -(-int(share * 1000) * len(ranked) // 1000) - 1))]
