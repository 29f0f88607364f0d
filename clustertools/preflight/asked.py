"""What a person asks of a preflight, how far it is, and how much of its time is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clustertools.preflight_report import Stage, Terms

STAGES = ("passive", "node", "fabric")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person wants to know. Sizes and probes that are not named are chosen by what the nodes are.

    `python` runs the probes on the nodes: the job's own, which has PyTorch. `paths_read` hold data and are
    only read; in `paths_written` small files are made and taken away again. `without` are checks and probes
    that are not to count; what is left out stands in the report.
    """

    nodes: tuple[str, ...]
    spares: tuple[str, ...] = ()
    terms: Terms = field(default_factory=Terms)
    stages: tuple[str, ...] = STAGES
    budget_seconds: float = 300.0
    python: str = "python3"
    without: frozenset[str] = frozenset()
    paths_read: tuple[str, ...] = ()
    paths_written: tuple[str, ...] = ()
    interface: str = ""
    sizes_bytes: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    topology: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cluster: str = ""
    job: str = ""
    seed: int = 0
    command: tuple[str, ...] = ()

    @property
    def everyone(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.nodes, *self.spares)))


#: Told of a stage while it runs: how much of it is done.
Tell = Callable[[Stage], None]


class Budget:
    """The time that is left. Every stage takes what it needs of it, and the last ones may find none."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)
