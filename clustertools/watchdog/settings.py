"""What a site decided about the watchdog, and what one of its passes gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clustertools.check import Check
from clustertools.model import Action, Job, Outcome, Status, Transition, Verdict, worst
from clustertools.policy import Budgets


@dataclass(frozen=True)
class Settings:
    """What a site decided. The defaults only look."""

    cluster: str = ""
    mode: str = "observe"
    playbook_modes: Mapping[str, str] = field(default_factory=dict)
    budgets: Budgets = field(default_factory=Budgets)
    interval_seconds: float = 30.0
    blind_confirm: int = 3
    flap_window_seconds: float = 1800.0
    limits: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, float] = field(default_factory=dict)
    confirm: Mapping[str, int] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    observe_only: frozenset[str] = frozenset()
    class_size: int = 1
    pause_file: str = ""

    def spacing(self, check: Check) -> float:
        """The least time between two runs of a check; 0 for one that runs in every pass."""
        interval = float(self.intervals.get(check.name, check.interval_seconds))
        return interval if interval > 0.5 * self.interval_seconds else 0.0


@dataclass(frozen=True)
class Pass:
    """What one pass saw and did. `sentence` is its log line."""

    verdicts: tuple[Verdict, ...]
    transitions: tuple[Transition, ...]
    planned: tuple[Action, ...]
    steps: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    jobs: tuple[Job, ...]
    blind: tuple[str, ...]
    sentence: str

    @property
    def status(self) -> Status:
        return worst(v.status for v in self.verdicts)
