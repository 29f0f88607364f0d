"""Whether a run is started again, where, and from when: by published evidence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clustertools.diagnose import Diagnosis
from clustertools.model import Attempt, Job


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a run that ended or hangs.

    `restart`: begin it anew, without `exclude`; from a checkpoint before `before_step`, when that is set.
    `hold`: not now, but ask again (a resource is away). `stop`: not without a person. `leave`: nothing is to
    be done (it ended well, a person ended it, the scheduler begins it anew by itself).
    `counts`: it spends the run's budget. `why` is a sentence for people.
    """

    kind: Literal["restart", "hold", "stop", "leave"]
    why: str
    exclude: tuple[str, ...] = ()
    before_step: int | None = None
    counts: bool = True


def decide(
    attempts: Sequence[Attempt],
    job: Job,
    diagnosis: Diagnosis,
    *,
    codes: frozenset[str],
    now: float,
    without_progress: int = 3,
    on_time_limit: Literal["leave", "restart"] = "leave",
    first_bad_step: int | None = None,
) -> Decision:
    """Whether to start the run again."""
    return Decision("restart", "it is in trouble", diagnosis.blamed, first_bad_step)
