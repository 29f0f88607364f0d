"""What people are told, kept in the store: which sink is owed which message, and what each returned.

Incidents of one code that open within a quarter of an hour are one story: from the third on they are told in
the thread of those before, whether they came in one pass or in several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools import notices
from clustertools.errors import DeliveryFailed
from clustertools.model import Incident, Status, from_data, to_data
from clustertools.sinks import Sink, SinkRule, wants
from clustertools.sinks.message import FOLD_FROM, Message, named, note
from clustertools.sinks.outbox import DeliverySummary, Pending, continues, deliver_due
from clustertools.sinks.standing import Standing, StandingSink
from clustertools.store import Store
from clustertools.text import in_words, plain

#: A sink that fails rests as a whole, until the message that failed is due again: Slack's Retry-After holds
#: for the channel, and news stay in their order. A message that failed this often no longer holds the others.
TRIES_THAT_HOLD = 4
#: No wait is longer (`sinks.outbox`, and Retry-After up to an hour): later than that, the clock was set back.
LONGEST_WAIT_SECONDS = 4500.0
#: How long after the first incident of a code others join its story.
JOIN_SECONDS = 900.0
#: Waits of a standing sink that failed: doubled up to a minute, a dead man's switch counts in minutes.
_STANDING_WAIT_SECONDS = (5.0, 60.0)


@dataclass(frozen=True)
class Mail:
    """The sinks of a site by name and what each wants to hear. Without sinks nothing is kept for anybody.

    `standing` are those that are told how things stand after each pass, instead of each change.
    """

    sinks: Mapping[str, Sink] = field(default_factory=dict)
    rules: Mapping[str, SinkRule] = field(default_factory=dict)
    standing: Mapping[str, StandingSink] = field(default_factory=dict)

    def enqueue(self, store: Store, message: Message, now: float) -> None:
        """Owe a message to every sink that wants it. Part of the caller's transaction."""
        for name, sink in self.sinks.items():
            told = any(_reference(store, name, key) is not None for key in message.keys)
            if message.kind == "changed" and not (told and getattr(sink, "edits", False)):
                continue
            if wants(self._rule(name), message, told=told):
                self._owe(store, name, _joined(store, name, message, now), now)

    def _owe(self, store: Store, name: str, message: Message, now: float) -> None:
        store.enqueue(name, message.key, to_data(message), now)
        for key in message.keys:
            if _reference(store, name, key) is None:
                store.put_cursor(f"told:{name}", key, {"reference": ""})

    def _rule(self, name: str) -> SinkRule:
        return self.rules.get(name, SinkRule())

    def heard(self, store: Store, key: str) -> bool:
        """Whether any sink was told of this incident, or is about to be."""
        return any(_reference(store, name, key) is not None for name in self.sinks)

    def references(self, store: Store, keys: Iterable[str]) -> dict[str, str]:
        """What ties an incident to its threads: only incidents of the same threads may be told as one."""
        return {key: "|".join(_reference(store, name, key) or "" for name in self.sinks) for key in keys}

    def deliver(self, store: Store, now: float) -> DeliverySummary:
        """Send what is due. Raises StoreError when it cannot be written down that something was sent."""
        return deliver_due(StoreOutbox(store), self.sinks, now)

    def after_pass(self, store: Store, now: float, *, complete: Callable[[], bool]) -> list[str]:
        """Remind, and bring the standing sinks up to date; sentences about those that failed.

        `complete()`: everything that is to be seen was seen. Raises StoreError.
        """
        reminding = [name for name in self.sinks if self._rule(name).remind_seconds > 0]
        if not reminding and not self.standing:
            return []
        open_now = {key: i for key, i in store.incidents().items() if i.state == "open"}
        patterns = [s.pattern for s in store.silences(now)]
        quiet = frozenset(k for k, i in open_now.items() if notices.is_quiet(i, patterns, now))
        with store.transaction():
            for name in reminding:
                self._remind(store, name, [i for k, i in open_now.items() if k not in quiet], now)
        here = Standing(now, complete, open_now, quiet, store.verdicts)
        said = [_keep_up(store, sink, here) for sink in self.standing.values()]
        return [sentence for sentence in said if sentence]

    def _remind(self, store: Store, name: str, incidents: Sequence[Incident], now: float) -> None:
        """Owe a reminder of what is CRITICAL and in nobody's hands, one for each thread."""
        every = self._rule(name).remind_seconds
        threads: dict[str, dict[str, Incident]] = {}
        told = {i.key: store.cursor(f"told:{name}", i.key) for i in incidents}
        for incident in incidents:
            is_bad = incident.finding.status is Status.CRITICAL and not incident.observed
            if told[incident.key] and is_bad:
                thread = str(told[incident.key]["reference"]) or incident.key
                threads.setdefault(thread, {})[incident.key] = incident
        for group in threads.values():
            # a reminder of before it opened anew is of another story
            last = max(max(float(told[key].get("reminded", 0.0)), i.opened_at) for key, i in group.items())
            if 0 <= now - last < every:
                continue
            first = next(iter(group.values()))
            since = in_words(now - min(i.opened_at for i in group.values()))
            text = f"CRITICAL {named(group, 3)} · open for {since}, and nobody has it"
            reminder = note(first.key, Status.CRITICAL, text, now, lines=(first.finding.summary,))
            self._owe(store, name, dataclasses.replace(reminder, keys=tuple(group)), now)
            for key in group:
                store.put_cursor(f"told:{name}", key, {**told[key], "reminded": now})


def _joined(store: Store, sink: str, message: Message, now: float) -> Message:
    """The message, told in the thread of the earlier ones of its code where there are enough of them."""
    if message.kind != "opened" or message.joins:
        return message
    recent = store.cursor(f"recent:{sink}", message.code)
    is_recent = bool(recent) and 0 <= now - float(recent["at"]) < JOIN_SECONDS
    count = (int(recent["count"]) if is_recent else 0) + len(message.keys)
    # what is worse than the story so far deserves a message of its own, and those after it join that
    begins = not is_recent or message.status > Status[recent["status"]]
    if begins:
        recent = {"key": message.key, "at": now, "status": message.status.name}
    store.put_cursor(f"recent:{sink}", message.code, {**recent, "count": count})
    if begins or count < FOLD_FROM or recent["key"] in message.keys:
        return message
    return dataclasses.replace(message, joins=str(recent["key"]))


def _keep_up(store: Store, sink: StandingSink, here: Standing) -> str:
    """Bring one standing sink up to date; a sentence when that failed."""
    cursor = f"keeps:{sink.name}"
    kept = store.cursor(cursor)
    if _waits(float(kept.get("next", 0.0)), here.now):
        return ""
    memory, tries, problem = kept.get("memory", {}), 0, ""
    try:
        after: Mapping[str, Any] = sink.keep_up(here, memory)
    except DeliveryFailed as exc:
        after, tries, problem = memory, int(kept.get("tries", 0)) + 1, f"{sink.name}: {plain(str(exc), 300)}"
        first, longest = _STANDING_WAIT_SECONDS
        wait = max(min(longest, first * 2.0 ** min(tries, 10)), exc.retry_after_seconds or 0.0)
    except Exception as exc:  # noqa: BLE001 - one sink's bug must silence neither the others nor the watchdog
        after, tries, wait = memory, int(kept.get("tries", 0)) + 1, _STANDING_WAIT_SECONDS[1]
        problem = f"{sink.name}: the sink broke: {type(exc).__name__}: {plain(str(exc), 200)}"
    else:
        wait = 0.0
    left = {"memory": dict(after), "tries": tries, "next": here.now + wait if wait else 0.0}
    if left != kept:
        with store.transaction():
            store.put_cursor(cursor, "", left)
    return problem


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
        self._marks: Mapping[str, tuple[str, str]] | None = None
        self._told: dict[str, dict[str, str]] = {}

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
            mine = {(sink, key) for key in (*message.keys, message.joins) if key}
            if _waits(due, now) or sink in resting or mine & held:
                held |= mine
            elif len(found) < limit:
                references = (_reference(self._store, sink, key) for key in continues(message))
                found.append(Pending(number, sink, message, next((r for r in references if r), ""), tries))
                self._keys[number] = (sink, message.keys)
        return found

    def in_context(self, message: Message, sink: str, reference: str) -> Message:
        if self._marks is None:
            self._marks = self._store.marks()  # nothing changes them while we deliver
        others = []
        if reference:
            if sink not in self._told:
                kept = self._store.cursors(f"told:{sink}")
                self._told[sink] = {key: str(each["reference"]) for key, each in kept.items()}
            others = [key for key, known in self._told[sink].items() if known == reference]
        every = tuple(dict.fromkeys((*others, *message.keys)))
        marks = self._marks
        return dataclasses.replace(
            message,
            together=every if len(every) > 1 else (),
            left_open=sum(marks[key][0] == "open" for key in every if key in marks),
            taken_by=next((marks[key][1] for key in message.keys if key in marks), ""),
        )

    def sent(self, id: int, reference: str, now: float) -> None:
        sink, keys = self._keys[id]
        with self._store.transaction():
            self._store.delivered(id, now)
            for key in keys:
                kept = self._store.cursor(f"told:{sink}", key)
                self._store.put_cursor(f"told:{sink}", key, {**kept, "reference": reference})
        if sink in self._told:
            self._told[sink].update(dict.fromkeys(keys, reference))

    def failed(self, id: int, reason: str, next_try: float | None, now: float) -> None:
        with self._store.transaction():
            self._store.not_delivered(id, reason, next_try, now)
