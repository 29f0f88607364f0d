"""`clustertools run` that kills itself with SIGKILL at one commit of its store.

    crashing_watchdog.py NUMBER before|after ARGUMENTS OF run...

NUMBER counts the commits that change something: an attempt, an action, an incident, a message. Of those that
only note that nothing happened, the first after each change counts too: there is no end to the others.
NUMBER 0 never kills. The last line on stderr names the point: `crash point 7 before: action advance stop`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from clustertools import cli
from clustertools.cli import assemble
from clustertools.store import Store


class TellingStore(Store):
    """The real store, which says what is new in each of its commits: `commit_of(news)` makes it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.news: list[str] = []
        self.known: dict[tuple[str, int], tuple[str, str]] = {}
        self.steps: dict[str, tuple[str, str]] = {}

    def commit(self) -> None:
        news, self.news = self.news, []
        self.commit_of(news)

    def commit_of(self, news: list[str]) -> None:
        super().commit()

    @staticmethod
    def die(point: str) -> None:
        """End this process here and now, as the power cut would; the last line on stderr says where."""
        sys.stderr.write(f"\ncrash point {point}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def put_attempt(self, attempt: Any) -> None:
        # not the steps: they change with every pass
        about = (attempt.job_id, attempt.end)
        if self.known.get((attempt.token, attempt.number)) != about:
            self.news.append(f"attempt {attempt.number} {attempt.job_id and 'started'} {attempt.end}".strip())
        self.known[attempt.token, attempt.number] = about
        super().put_attempt(attempt)

    def put_action(self, action: Any, state: str, now: float) -> None:
        self.news.append(f"action {action.kind} {state}")
        super().put_action(action, state, now)

    def advance_action(self, id: str, state: str, step: str, detail: Any, now: float) -> None:
        if self.steps.get(id, ("", "planned")) != (step, state):
            self.news.append(f"action goes to {step or 'its first step'}")
        self.steps[id] = (step, state)
        super().advance_action(id, state, step, detail, now)

    def finish_action(self, outcome: Any, now: float) -> None:
        self.news.append("action ends")
        super().finish_action(outcome, now)

    def put_cursor(self, name: str, subject: str, data: Any) -> None:
        if name == "reported":
            self.news.append("the end was reported")
        super().put_cursor(name, subject, data)

    def add_transition(self, transition: Any) -> int:
        self.news.append(f"{transition.incident.finding.code} {transition.kind}")
        return super().add_transition(transition)

    def enqueue(self, sink: str, key: str, message: Any, now: float) -> int:
        self.news.append("message queued")
        return super().enqueue(sink, key, message, now)

    def delivered(self, id: int, now: float) -> None:
        self.news.append("message delivered")
        super().delivered(id, now)


class CrashingStore(TellingStore):
    """Its process ends at one commit, before or after it."""

    count = 0
    idle_counted = False
    number, when = 0, ""

    def commit_of(self, news: list[str]) -> None:
        kind = CrashingStore
        counts = bool(news) or not kind.idle_counted
        kind.idle_counted = not news
        kind.count += counts
        mine = counts and kind.count == kind.number
        point = f"{kind.number} {kind.when}: {'; '.join(news) or 'nothing new'}"
        if mine and kind.when == "before":
            self.die(point)
        super().commit_of(news)
        if mine:
            self.die(point)


if __name__ == "__main__":
    CrashingStore.number, CrashingStore.when = int(sys.argv[1]), sys.argv[2]
    assemble.Store = CrashingStore  # type: ignore[misc]
    code = cli.main(["run", *sys.argv[3:]])
    sys.stderr.write(f"\ncommits: {CrashingStore.count}\n")
    sys.exit(code)
