"""Why a checkpoint is not good, and what its files told of themselves: shared by the rules of all layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clustertools.sources.checkpoint_files import FileReport


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a checkpoint is not good; `reason` is a sentence that names the file."""

    verdict: Literal["torn", "incomplete", "hostile", "unknown"]
    reason: str


#: The worst first: a report carries the first one's verdict.
SEVERITY = ("hostile", "torn", "incomplete", "unknown")


@dataclass(frozen=True, slots=True)
class Verified:
    """What is known of the files so far: reports by name within the checkpoint."""

    files: Mapping[str, FileReport]

    def fact(self, key: str) -> int | None:
        """A number that some file told about itself."""
        return next((r.facts[key] for r in self.files.values() if key in r.facts), None)


def few(names: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    shown = ", ".join(n[:80] for n in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
