"""Delivery out of the outbox: what is due, in which order, and what happens when a sink says no.

    summary = deliver_due(outbox, {"slack": SlackSink(...)}, now)

The outbox itself is a table of the store, behind a small protocol.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from clustertools.errors import DeliveryFailed
from clustertools.sinks import Sink
from clustertools.sinks.message import Message
from clustertools.text import in_words, plain

FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 600.0
#: At ten minutes each about a day: older news is history, and the incident itself is still in `status`.
MOST_TRIES = 150


@dataclass(frozen=True, slots=True)
class Pending:
    """A message that waits for one sink, with what the latest delivery for its incident returned."""

    id: int
    sink: str
    message: Message
    reference: str
    tries: int


class Outbox(Protocol):
    """What waits to be sent. Each call is durable when it returns; StoreError when it cannot be."""

    def due(self, now: float, limit: int) -> list[Pending]:
        """At most `limit`, oldest first, whose next try is not after `now`.

        A message is left out while an older one to the same sink about the same incident still waits for
        its next try: the end of a story is never told before its beginning.
        """
        ...

    def in_context(self, message: Message, sink: str, reference: str) -> Message:
        """The message with what is true now: `together`, `left_open` and `taken_by`."""
        ...

    def sent(self, id: int, reference: str, now: float) -> None:
        """Delivered. `reference` belongs to every key of the message and replaces an older one."""
        ...

    def failed(self, id: int, reason: str, next_try: float | None, now: float) -> None:
        """Not delivered; to be tried again at `next_try`, or (None) given up."""
        ...


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """What one round did: messages `sent`, tries that `failed`, of those `given_up`, and what still waits.

    `sentences` are for people, one for each sink that has something to tell.
    """

    sent: int = 0
    failed: int = 0
    waiting: int = 0
    given_up: int = 0
    sentences: tuple[str, ...] = ()


def deliver_due(
    outbox: Outbox,
    sinks: Mapping[str, Sink],
    now: float,
    *,
    limit: int = 50,
    budget_seconds: float = 30.0,
    monotonic: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> DeliverySummary:
    """Send what is due, oldest first. Never raises for a sink's failure; StoreError passes through.

    After a failure that may pass, the rest of that sink's messages wait: it is down, and their order is kept.
    A message that can never be delivered is given up and said so in the sentences. No new message is begun
    when `budget_seconds` are over: the watchdog has more to do than to talk.
    """
    began = monotonic()
    told: dict[str, _Told] = {}
    for pending in outbox.due(now, limit):
        round_ = told.setdefault(pending.sink, _Told())
        sink = sinks.get(pending.sink)
        burst = sink.burst if sink is not None else 0
        full = bool(burst) and round_.sent + round_.given_up >= burst
        if round_.closed or full or monotonic() - began >= budget_seconds:
            round_.waiting += 1
            continue
        try:
            if sink is None:
                raise DeliveryFailed(f"no sink {pending.sink!r} is configured", permanent=True)
            reference = _send(outbox, sink, pending, round_.references)
        except DeliveryFailed as exc:
            next_try = _next_try(exc, pending.tries, now, jitter)
            outbox.failed(pending.id, plain(str(exc)), next_try, now)
            round_.note_failure(pending.message, str(exc), next_try, now)
        else:
            outbox.sent(pending.id, reference, now)
            round_.sent += 1
            round_.references.update(dict.fromkeys(pending.message.keys, reference))
    return DeliverySummary(
        sent=sum(t.sent for t in told.values()),
        failed=sum(t.failed for t in told.values()),
        waiting=sum(t.waiting for t in told.values()),
        given_up=sum(t.given_up for t in told.values()),
        sentences=tuple(s for name, t in told.items() for s in t.sentences(name)),
    )


class _Told:
    """What became of one sink's messages in this round."""

    def __init__(self) -> None:
        self.sent = self.failed = self.waiting = self.given_up = 0
        self.closed = False
        self.references: dict[str, str] = {}
        self._losses: list[str] = []
        self._trouble = ""

    def note_failure(self, message: Message, reason: str, next_try: float | None, now: float) -> None:
        self.failed += 1
        if next_try is None:
            self.given_up += 1
            self._losses.append(f"gave up telling {plain(message.title, 160)!r}: {plain(reason, 300)}")
            return
        self.waiting += 1
        self.closed = True
        self._trouble = f"{plain(reason, 300)}; next try in {in_words(math.ceil(next_try - now))}"

    def sentences(self, name: str) -> list[str]:
        # one wrong token refuses every message alike: three examples are enough
        said = [f"{name}: {loss}" for loss in self._losses[:3]]
        if len(self._losses) > 3:
            said.append(f"{name}: gave up telling {len(self._losses) - 3} more")
        if self._trouble:
            said.append(f"{name}: {self._trouble}")
        counts = [f"{self.sent} sent"] if self.sent else []
        counts += [f"{self.waiting} waiting"] if self.waiting else []
        return [*said, f"{name}: {', '.join(counts)}"] if counts else said


def continues(message: Message) -> tuple[str, ...]:
    """The incidents whose thread it goes on with: an opening begins one, unless it joins another's."""
    if message.joins:
        return (message.joins,)
    return () if message.kind == "opened" else message.keys


def _send(outbox: Outbox, sink: Sink, pending: Pending, learned: Mapping[str, str]) -> str:
    """Deliver, with the thread that an earlier message of this very round opened.

    Raises DeliveryFailed, or StoreError when nobody can say what is true now.
    """
    known = {learned[key] for key in continues(pending.message) if key in learned}
    reference = known.pop() if len(known) == 1 else pending.reference
    message = outbox.in_context(pending.message, pending.sink, reference)
    try:
        return sink.deliver(message, reference)
    except DeliveryFailed:
        raise
    except Exception as exc:
        # one sink's bug must silence neither the other sinks nor the watchdog
        raise DeliveryFailed(f"the sink broke: {type(exc).__name__}: {exc}") from exc


def _next_try(exc: DeliveryFailed, tries: int, now: float, jitter: Callable[[], float]) -> float | None:
    """5 s, doubled each time up to 10 min, a quarter more or less; never before the sink's own wish."""
    if exc.permanent or tries + 1 >= MOST_TRIES:
        return None
    wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(tries, 20))
    return now + max(wait * (0.75 + 0.5 * jitter()), exc.retry_after_seconds or 0.0)
