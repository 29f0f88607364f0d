"""Who is tested with whom: the most suspicious with the most trusted, all nodes in every round."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

#: How many trusted nodes are looked at for one that was not a partner before.
_TRIES = 12


def groups(
    nodes: Sequence[str],
    suspicion: Mapping[str, float],
    size: int,
    met: Collection[tuple[str, str]],
    switch: Mapping[str, str],
    near: bool,
    rng: random.Random,
) -> list[tuple[str, ...]]:
    """Disjoint groups of `size` (the last ones may be larger), each with one head and trusted partners.

    `near`: partners below the same switch where there are any, else below different ones. `met`: pairs that
    were tested together before.
    """
    order = sorted(nodes, key=lambda n: (-round(suspicion[n], 1), rng.random()))
    if not near or not switch:
        return _deal(order, size, met, switch, rng)
    by_switch: dict[str, list[str]] = {}
    for node in order:
        by_switch.setdefault(switch.get(node, ""), []).append(node)
    made: list[tuple[str, ...]] = []
    left: list[str] = []
    for name, members in sorted(by_switch.items()):
        if not name or len(members) < size:
            left += members
            continue
        # The most trusted stay over: to leave a suspect without a test costs a round.
        surplus = len(members) % size
        left += members[len(members) - surplus :]
        made += _deal(members[: len(members) - surplus], size, met, {}, rng)
    if len(left) >= size:
        left.sort(key=lambda n: -round(suspicion[n], 1))
        made += _deal(left, size, met, {}, rng)
    elif left and made:
        made[-1] = (*made[-1], *left)
    return made


def _deal(
    order: Sequence[str],
    size: int,
    met: Collection[tuple[str, str]],
    switch: Mapping[str, str],
    rng: random.Random,
) -> list[tuple[str, ...]]:
    """Heads from the front, partners from the back; what is left over joins the least suspicious heads."""
    count = len(order) // size
    if count == 0:
        return []
    if len(order) == 3 and size == 2:
        return [(order[0], order[2])]  # three together would tell nothing of who
    heads, rest = list(order[:count]), list(order[count:])
    rest.reverse()
    seats = [[head] for head in heads]
    for _ in range(size - 1):
        for group in seats:
            group.append(rest.pop(_partner(group[0], rest, met, switch)))
    for group, node in zip(reversed(seats), rest, strict=False):
        group.append(node)
    for group in seats:
        rng.shuffle(group)
    return [tuple(group) for group in seats]


def _partner(
    head: str, rest: Sequence[str], met: Collection[tuple[str, str]], switch: Mapping[str, str]
) -> int:
    """The place of the first of the most trusted that is new to `head` and, if it can be, not near it."""
    fallback = 0
    for place, node in enumerate(rest[:_TRIES]):
        if ((head, node) if head < node else (node, head)) in met:
            continue
        if head not in switch or switch[head] != switch.get(node):
            return place
        fallback = fallback or place
    return fallback


def pack(wanted: Sequence[tuple[str, ...]], free: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """As many of the wanted groups as can run at once, in their order."""
    taken: set[str] = set()
    made = []
    for group in wanted:
        if all(free(node) and node not in taken for node in group):
            taken.update(group)
            made.append(group)
    return made
