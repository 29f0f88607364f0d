"""The middle stage: each node under load by itself, all nodes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools import performance
from clustertools.fleet import Fate
from clustertools.fleet.probing import Hello, Probers
from clustertools.measurement import Ending, Grade, Judged, Trial
from clustertools.model import Status
from clustertools.preflight.asked import Asked, Budget, Progress, Tell
from clustertools.preflight.record import Record
from clustertools.preflight_report import Remark, Untested

NAME = "node"


@dataclass(frozen=True, slots=True)
class Load:
    """One probe as the preflight uses it: its order, how long it may take, and which nodes it is for."""

    probe: str
    parameters: Callable[[Asked, bool], Mapping[str, Any]]
    timeout_seconds: float
    fits: Callable[[Asked, Hello], bool] = lambda asked, hello: True


def load(asked: Asked, record: Record, probers: Probers, budget: Budget, tell: Tell) -> None:
    """Run the probes that fit into the budget on every node that is left, and grade what they measure."""


def write_down(trials: Mapping[str, Trial], record: Record, probe: str) -> list[Trial]:
    """Each node's trial at its record, and those that were done.

    When more than half of several nodes end badly in the same probe, that is no fault of each of them: a
    server, a library, the probe itself. They could not be tested, and the cluster is told of.
    """
    bad = [t for t in trials.values() if t.ending in (Ending.CRASH, Ending.HANG)]
    common = len(bad) > 1 and 2 * len(bad) > len(trials)
    if common:
        detail = f"{probe}: {len(bad)} of {len(trials)} nodes ended badly: look for what they have in common"
        names = tuple(node for t in bad for node in t.nodes)
        record.remarks.append(Remark(detail, Status.CRITICAL, names, tuple(t.detail for t in bad[:3])))
    for node, trial in trials.items():
        if common and trial in bad:
            reason = f"{probe} ended badly here as on most nodes: {trial.detail}"
            record[node].think(Grade.COULD_NOT_RUN, reason, f"probe {probe}")
        else:
            record[node].tried(trial, NAME)
    return [t for t in trials.values() if t.ending is Ending.DONE]
