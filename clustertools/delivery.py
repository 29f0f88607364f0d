"""The outbox of the store: which sink is owed which message, and what each returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clustertools.model import from_data, to_data
from clustertools.sinks import Sink, SinkRule, wants
from clustertools.sinks.message import Message
from clustertools.sinks.outbox import DeliverySummary, Pending, deliver_due
from clustertools.store import Store

#: A sink that fails rests as a whole, until the message that failed is due again: Slack's Retry-After holds
#: for the channel, and news stay in their order. A message that failed this often no longer holds the others.
TRIES_THAT_HOLD = 4
#: No wait is longer (`sinks.outbox`, and Retry-After up to an hour): later than that, the clock was set back.
LONGEST_WAIT_SECONDS = 4500.0


@dataclass(frozen=True)
class Mail:
    """The sinks of a site by name and what each wants to hear. Without sinks nothing is kept for anybody."""

    sinks: Mapping[str, Sink] = field(default_factory=dict)
    rules: Mapping[str, SinkRule] = field(default_factory=dict)

    def enqueue(self, store: Store, message: Message, now: float) -> None:
        """Owe a message to every sink that wants it. Part of the caller's transaction."""
        for name in self.sinks:
            told = any(_reference(store, name, key) is not None for key in message.keys)
            if wants(self.rules.get(name, SinkRule()), message, told=told):
                store.enqueue(name, message.key, to_data(message), now)
                for key in message.keys:
                    if _reference(store, name, key) is None:
                        store.put_cursor(f"told:{name}", key, {"reference": ""})

    def heard(self, store: Store, key: str) -> bool:
        """Whether any sink was told of this incident, or is about to be."""
        return any(_reference(store, name, key) is not None for name in self.sinks)

    def references(self, store: Store, keys: Iterable[str]) -> dict[str, str]:
        """What ties an incident to its threads: only incidents of the same threads may be told as one."""
        return {key: "|".join(_reference(store, name, key) or "" for name in self.sinks) for key in keys}

    def deliver(self, store: Store, now: float) -> DeliverySummary:
        """Send what is due. Raises StoreError when it cannot be written down that something was sent."""
        return deliver_due(StoreOutbox(store), self.sinks, now)


def _reference(store: Store, sink: str, key: str) -> str | None:
    """What the sink returned for an incident; "" when a message is on its way, None when it never heard."""
    kept = store.cursor(f"told:{sink}", key)
    return str(kept["reference"]) if kept else None


def _waits(due: float, now: float) -> bool:
    return now < due <= now + LONGEST_WAIT_SECONDS


class StoreOutbox:
    """`sinks.outbox.Outbox` over the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[int, tuple[str, tuple[str, ...]]] = {}

    def due(self, now: float, limit: int) -> list[Pending]:
        held: set[tuple[str, str]] = set()
        rows = self._store.waiting()
        resting = {row[1] for row in rows if _waits(row[3], now) and 0 < row[4] <= TRIES_THAT_HOLD}
        found: list[Pending] = []
        for number, sink, data, due, tries in rows:
            try:
                message = from_data(Message, data)
            except (TypeError, ValueError, KeyError) as exc:
                # written by another version: one message is lost, loudly, and the others go on
                self.failed(number, f"unreadable in the outbox: {exc}", None, now)
                continue
            mine = {(sink, key) for key in message.keys}
            if _waits(due, now) or sink in resting or mine & held:
                held |= mine
            elif len(found) < limit:
                references = (_reference(self._store, sink, key) for key in message.keys)
                found.append(Pending(number, sink, message, next((r for r in references if r), ""), tries))
                self._keys[number] = (sink, message.keys)
        return found

    def sent(self, id: int, reference: str, now: float) -> None:
        sink, keys = self._keys[id]
        with self._store.transaction():
            self._store.delivered(id, now)
            for key in keys:
                self._store.put_cursor(f"told:{sink}", key, {"reference": reference})

    def failed(self, id: int, reason: str, next_try: float | None, now: float) -> None:
        with self._store.transaction():
            self._store.not_delivered(id, reason, next_try, now)
