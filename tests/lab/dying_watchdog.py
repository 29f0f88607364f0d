"""`clustertools watch` that kills itself with SIGKILL at each commit about an action, one after the other.

    dying_watchdog.py POINTS ARGUMENTS OF watch...

POINTS is a file of the points at which it died already. At each commit it dies twice: once before it, and,
started again, once after it; the third time it goes on to the next. Started again often enough, it has died
at every point of a restart and has come to its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from clustertools import cli
from clustertools.cli import assemble
from tests.lab.crashing_watchdog import TellingStore


class DyingStore(TellingStore):
    """The real store; its process ends before and after each commit, if it did not yet."""

    points = Path()

    def commit_of(self, news: list[str]) -> None:
        point = "; ".join(news)
        if "action" not in point:
            super().commit_of(news)
            return
        self.once(f"before {point}")
        super().commit_of(news)
        self.once(f"after {point}")

    def once(self, point: str) -> None:
        if point in self.points.read_text().splitlines():
            return
        with open(self.points, "a", encoding="utf-8") as out:
            out.write(point + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.die(point)


if __name__ == "__main__":
    DyingStore.points = Path(sys.argv[1])
    assemble.Store = DyingStore  # type: ignore[misc]
    sys.exit(cli.main(["watch", *sys.argv[2:]]))
