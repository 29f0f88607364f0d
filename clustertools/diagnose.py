"""Why a run ended or stands still, and who is guilty: root before cascade, out of all that was seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.catalog.failures import Advice, FailureLine
from clustertools.model import Incident, Job, RankState


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of one run's trouble.

    `rank_nodes` is where each rank lives. `odd_ranks` are those whose stacks differ from all others', with
    what they do (rank -> frame). `recorded` comes from flight recorder dumps, of `world_size` ranks.
    `incidents` are the open ones of the run's nodes.
    """

    job: Job
    lines: Sequence[FailureLine] = ()
    rank_nodes: Mapping[int, str] = field(default_factory=dict)
    odd_ranks: Mapping[int, str] = field(default_factory=dict)
    recorded: Sequence[RankState] = ()
    world_size: int = 0
    incidents: Sequence[Incident] = ()
    unseen_nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A node that may be guilty. `confidence` from 0 to 1; at CERTAIN and above it may be left out."""

    node: str
    confidence: float
    why: str
    rank: int | None = None


#: From here on a node is blamed; below it is only named.
CERTAIN = 0.7


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What it was, as far as the evidence goes. `cause` "" and no suspects is an answer: nobody knows.

    `lines` prove it, the root first.
    """

    cause: str = ""
    advice: Advice = "none"
    summary: str = ""
    suspects: tuple[Suspect, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def blamed(self) -> tuple[str, ...]:
        return tuple(s.node for s in self.suspects if s.node and s.confidence >= CERTAIN)


def diagnose(evidence: Evidence) -> Diagnosis:
    """What it was, as far as the evidence goes."""
    return Diagnosis()
