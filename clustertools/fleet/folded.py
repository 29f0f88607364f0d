"""The answers of many nodes in few lines: those that say the same stand together. Pure.

The most common answer comes first and the odd ones last, next to the prompt, where a person looks; after them
the nodes that could not be asked, by what stopped them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clustertools.fleet import Answer, Fate
from clustertools.fleet.nodesets import fold
from clustertools.text import in_words, plain

#: What is shown of one answer; `--json` has all of it.
SHOWN_LINES = 200
LINE_CHARACTERS = 1000

# "SHA256:9NIb2fSq+x", "127.0.1.3", "port 2200", "1.25 s": what differs between nodes with the same trouble
_OWN = re.compile(r"SHA256:\S+|[0-9a-fA-F:]*:[0-9a-fA-F:]+|\d+(?:\.\d+)*")


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that answered the same. `returncode` is None for those that could not be asked."""

    nodes: tuple[str, ...]
    fate: Fate
    returncode: int | None
    text: str
    truncated: bool = False

    @property
    def is_good(self) -> bool:
        return self.fate is Fate.COMPLETED and self.returncode == 0


def group(answers: Iterable[Answer]) -> list[Group]:
    """The answers, each distinct one once: good ones, failed ones, those not asked; the largest first.

    Nodes that could not be asked are together when only their own names, addresses and keys differ.
    """
    found: dict[tuple[object, ...], list[Answer]] = {}
    for answer in answers:
        done = answer.completed
        if done is not None:
            key: tuple[object, ...] = (done.returncode, done.stdout, done.stderr, done.truncated)
        else:
            reason = _OWN.sub("#", answer.reason.replace(answer.node, "#"))
            key = (answer.fate, reason, answer.said)
        found.setdefault(key, []).append(answer)
    groups = [_group(alike) for alike in found.values()]
    return sorted(groups, key=lambda g: (not g.is_good, g.returncode is None, -len(g.nodes), g.nodes))


def _group(alike: Sequence[Answer]) -> Group:
    first = alike[0]
    nodes = tuple(answer.node for answer in alike)
    done = first.completed
    if done is not None:
        both = [part.rstrip("\n") for part in (done.stdout, done.stderr)]
        text = "\n".join(part for part in both if part)
        return Group(nodes, first.fate, done.returncode, text, done.truncated)
    differ = len({answer.reason for answer in alike}) > 1
    text = f"{first.reason} (here: {first.node})" if differ else first.reason
    return Group(nodes, first.fate, None, text + (f"\n{first.said}" if first.said else ""))


def lines(groups: Iterable[Group]) -> list[str]:
    """The groups for a terminal or a file: a line each when the answer is one line, else a head and a block.

    Whatever the nodes printed comes out without its terminal escapes.
    """
    told = []
    for one in groups:
        head = f"{fold(one.nodes)} ({len(one.nodes)})"
        if one.returncode is None:
            head += f" {one.fate.value}"
        elif one.returncode:
            head += f" exit code {one.returncode}" if one.returncode > 0 else f" signal {-one.returncode}"
        block = [printable(line) for line in one.text.splitlines()]
        left_out = len(block) - SHOWN_LINES
        block = block[:SHOWN_LINES]
        if left_out > 0:
            block.append(f"… and {left_out} lines more (--json has them)")
        if one.truncated:
            block.append("… and more, which was not kept")
        if len(block) <= 1:
            told.append(f"{head}: {block[0] if block else 'no output' if one.is_good else 'it said nothing'}")
        else:
            told += [f"{head}:", *("  " + line for line in block)]
    return told


def summary(groups: Sequence[Group], elapsed_seconds: float) -> str:
    """The last line: how many nodes were fine, failed, and could not be asked, and why."""
    total = sum(len(one.nodes) for one in groups)
    good = sum(len(one.nodes) for one in groups if one.is_good)
    failed = sum(len(one.nodes) for one in groups if not one.is_good and one.returncode is not None)
    parts = [f"{total} node{'s' if total != 1 else ''}: {good} fine"]
    if failed:
        parts.append(f"{failed} failed")
    for fate in Fate:
        count = sum(len(one.nodes) for one in groups if one.returncode is None and one.fate is fate)
        if count:
            parts.append(f"{count} {fate.value}")
    return f"{', '.join(parts)}, in {elapsed_seconds:.1f} s"


def progress(
    done: int, bad: int, total: int, elapsed_seconds: float, deadline_seconds: float | None = None
) -> str:
    """One line about work under way. The estimate takes the nodes that are left for like those that are done,
    and for no slower than the deadline allows."""
    text = f"{done} of {total} nodes" + (f", {bad} bad" if bad else "")
    text += f", {in_words(elapsed_seconds)}"
    left = None if deadline_seconds is None else max(0.0, deadline_seconds - elapsed_seconds)
    if 0 < done < total:
        guess = elapsed_seconds * (total - done) / done
        left = guess if left is None else min(guess, left)
        return f"{text}, about {in_words(max(1.0, left))} to go"
    if not done and left is not None:
        return f"{text}, at most {in_words(left)} to go"
    return text


def printable(line: str) -> str:
    """A line of a node for a terminal: without escapes and control characters, with its blanks, not too long.

    `plain` makes one blank of many; tables need theirs.
    """
    cut = line[: 4 * LINE_CHARACTERS].expandtabs()
    whole = " ".join(plain(word, LINE_CHARACTERS) for word in cut.split(" ")).rstrip()
    return whole if len(whole) <= LINE_CHARACTERS else whole[: LINE_CHARACTERS - 1] + "…"
