"""The port of sinks that tell how things stand after each pass, rather than each change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from clustertools.model import Incident, Verdict


@dataclass(frozen=True)
class Standing:
    """How things stand after a pass. `open` are the open incidents by key; of those in `quiet` nobody is told
    for now.

    What costs something is only asked for by a sink that wants it: `complete()` says whether every check saw
    everything at its last look, `verdicts()` gives the latest verdict of each.
    """

    now: float
    complete: Callable[[], bool]
    open: Mapping[str, Incident] = field(default_factory=dict)
    quiet: frozenset[str] = frozenset()
    verdicts: Callable[[], Sequence[Verdict]] = tuple


class StandingSink(Protocol):
    """A place that is kept up to date."""

    @property
    def name(self) -> str: ...

    def keep_up(self, standing: Standing, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell it, and return what to be given as `memory` the next time ({} at first), ready for JSON.

        Raises DeliveryFailed; the memory is then what it was.
        """
        ...
