"""Which nodes differ from the others, fact by fact. Pure.

    drift({"gpu-001": {"kernel": "5.15"}, ...})    [Drift("kernel", "5.15", 15, {"5.4": ("gpu-007",)})]

A node's facts are flat, name to text. What a node could not find out is not in there, and is no difference.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: Facts that name one machine, not a kind of machine.
OWN = (
    "hostname", "*.serial", "*.uuid", "*.address", "*.mac", "machine_id", "boot_id", "boot_time",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drift:
    """One fact on which nodes differ. `common` is what most have; None when no value has a majority's lead.

    `others` maps each other value to the nodes that have it. With a tie it holds all values.
    """

    fact: str
    common: str | None
    common_nodes: int
    others: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...] = ()


def drift(
    nodes: Mapping[str, Mapping[str, str]], *, ignore: Iterable[str] = OWN, only: Iterable[str] = ("*",)
) -> list[Drift]:
    """The facts on which these nodes differ, sorted by name; `ignore` and `only` are patterns of names.

    A value that more nodes share than any other is the common one. Two values with the same number of nodes
    are a tie: then nobody is said to be wrong. `unknown` are the nodes that do not tell the fact, where
    others differ; a fact that only some nodes tell and all alike is no drift.
    """
    ignored, wanted = _any_of(ignore), _any_of(only)
    names = {name for facts in nodes.values() for name in facts}
    found = []
    for name in sorted(names):
        if ignored.match(name) or not wanted.match(name):
            continue
        counts = Counter(facts[name] for facts in nodes.values() if name in facts)
        if len(counts) < 2:
            continue
        (common, most), (_, second) = counts.most_common(2)
        tie = most == second
        others: dict[str, list[str]] = {}
        unknown = []
        for node, facts in nodes.items():
            value = facts.get(name)
            if value is None:
                unknown.append(node)
            elif tie or value != common:
                others.setdefault(value, []).append(node)
        fewest = sorted(others.items(), key=lambda item: (len(item[1]), item[0]))
        found.append(
            Drift(
                name, None if tie else common, 0 if tie else most,
                {value: tuple(sorted(who)) for value, who in fewest}, tuple(sorted(unknown)),
            )
        )  # fmt: skip
    return found


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")


def folded(names: Iterable[str]) -> str:
    """Node names in one text: gpu-[001-003,007],login1. Numbers keep their width."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    plain = set()
    for name in set(names):
        # gpu-017, rack3-gpu017.cluster: the last number before the first dot counts
        match = re.fullmatch(r"([^.]*?)(\d{1,9})([^\d.]*(?:\..*)?)", name)
        if match is None:
            plain.add(name)
        else:
            groups.setdefault((match[1], match[3], len(match[2])), []).append(int(match[2]))
    told = []
    for (head, tail, width), numbers in sorted(groups.items()):
        runs = _runs(sorted(numbers), width)
        several = len(numbers) > 1
        told.append(f"{head}[{','.join(runs)}]{tail}" if several else f"{head}{runs[0]}{tail}")
    return ",".join([*told, *sorted(plain)])


def _runs(numbers: list[int], width: int) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [f"{a:0{width}}" if a == b else f"{a:0{width}}-{b:0{width}}" for a, b in runs]
