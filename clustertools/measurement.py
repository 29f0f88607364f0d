"""What an active test measured, and what is to be thought of it: the values that the preflight hands around.

A probe gives a Trial (it ran and gave Figures, or it did not), `performance` compares figures with what is
possible, usual and known and gives a Grade, `isolate` finds whom a bad trial is to be blamed on.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Grade(str, enum.Enum):
    """What a node, a part or a group is worth. Never mixed: each has its own cause and its own repair."""

    GOOD = "good"
    SLOW = "slow"
    WRONG_DATA = "wrong-data"
    BAD_HARDWARE = "bad-hardware"
    #: The test itself failed: no torch, no tool, a time-out that says nothing of the hardware.
    COULD_NOT_RUN = "could-not-run"
    #: Not looked at: no budget left, not asked for, not reached.
    UNTESTED = "untested"


class Ending(str, enum.Enum):
    """How one run of a probe ended, before anybody judges its figures."""

    DONE = "done"
    #: A known answer was missed.
    WRONG_DATA = "wrong-data"
    #: A rank died, or the library gave up with an error of the network or the device.
    CRASH = "crash"
    #: No end within the deadline.
    HANG = "hang"
    COULD_NOT_RUN = "could-not-run"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a probe measured on one node, or on one group of nodes.

    `metric` ends in its unit; `size_bytes` is the message or buffer (0: does not apply); `variant` is what
    else must be equal for two figures to be comparable ("nccl float32 8 ranks", "bfloat16 8192").
    """

    probe: str
    nodes: tuple[str, ...]
    metric: str
    value: float
    part: str = ""
    size_bytes: int = 0
    variant: str = ""
    higher_is_better: bool = True

    @property
    def comparable(self) -> tuple[str, str, int, str, int]:
        """Figures with this in common may be compared with each other, between nodes and between days."""
        return self.probe, self.metric, self.size_bytes, self.variant, len(self.nodes)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one probe on one node or group.

    `blamed` are nodes that the trial itself points at (whose rank gave wrong data, whose rank never came),
    `node_seconds` is each node's own share of the time where the probe can tell.
    """

    probe: str
    nodes: tuple[str, ...]
    ending: Ending
    figures: tuple[Figure, ...] = ()
    detail: str = ""
    evidence: tuple[str, ...] = ()
    blamed: tuple[str, ...] = ()
    node_seconds: Mapping[str, float] = field(default_factory=dict)
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure's grade, and what decided: `bound`, `peers`, `baseline` or `catalogue`.

    `ratio` is the figure over what it was held against (1 is as expected, below 1 is worse, whichever
    direction is better); `against` says that in words with its number.
    """

    figure: Figure
    grade: Grade
    decided_by: str
    ratio: float
    against: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """What is to be blamed: a `node`, a `path` between two nodes, a `boundary` between two sets of nodes.

    `names` are one node, two nodes, or the folded names of the two sets. `confidence` is a probability.
    """

    kind: str
    names: tuple[str, ...]
    grade: Grade
    confidence: float
    because: str
