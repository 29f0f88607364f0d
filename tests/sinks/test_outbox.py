"""Delivery out of the outbox: order, patience, giving up, and a store that forgets nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import DeliveryFailed, StoreError
from clustertools.model import Status
from clustertools.sinks.message import Kind, Message
from clustertools.sinks.outbox import (
    MOST_TRIES,
    DeliverySummary,
    Pending,
    continues,
    deliver_due,
)
from clustertools.sinks.slack import SlackSink
from tests.lab.slack_stub import Answer, SlackStub


def message(key: str, kind: Kind = "opened", *, keys: tuple[str, ...] = (), text: str = "") -> Message:
    return Message(key, kind, Status.CRITICAL, text or f"{kind} {key}", time=1.0, keys=keys)


@dataclass
class MemoryOutbox:
    """The Outbox protocol in memory."""

    rows: list[Pending] = field(default_factory=list)
    next_try: dict[int, float] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    references: dict[tuple[str, str], str] = field(default_factory=dict)
    breaks_at: int = -1

    def add(self, sink: str, messages: Iterable[Message]) -> None:
        for item in messages:
            id_ = len(self.rows)
            self.rows.append(Pending(id_, sink, item, "", 0))
            self.next_try[id_], self.states[id_] = 0.0, "waiting"

    def due(self, now: float, limit: int) -> list[Pending]:
        found: list[Pending] = []
        blocked: set[tuple[str, str]] = set()
        for row in self.rows:
            stories = {(row.sink, key) for key in row.message.keys}
            if self.states[row.id] != "waiting":
                continue
            if self.next_try[row.id] > now or stories & blocked:
                blocked |= stories
            else:
                known = (self.references.get((row.sink, key)) for key in continues(row.message))
                reference = next((r for r in known if r), "")
                found.append(dataclasses.replace(row, reference=reference))
        return found[:limit]

    def in_context(self, message: Message, sink: str, reference: str) -> Message:
        return message

    def sent(self, id: int, reference: str, now: float) -> None:
        if id == self.breaks_at:
            raise StoreError("the disk is gone")
        row = self.rows[id]
        self.states[id] = "sent"
        self.references.update({(row.sink, key): reference for key in row.message.keys})

    def failed(self, id: int, reason: str, next_try: float | None, now: float) -> None:
        self.rows[id] = dataclasses.replace(self.rows[id], tries=self.rows[id].tries + 1)
        self.states[id] = "waiting" if next_try is not None else "failed"
        self.reasons[id] = reason
        self.next_try[id] = next_try or 0.0


@dataclass
class FakeSink:
    """Delivers into a list; `fails` decides what is refused."""

    name: str = "fake"
    burst: int = 0
    fails: Callable[[Message], Exception | None] = lambda m: None
    got: list[tuple[str, str]] = field(default_factory=list)

    def deliver(self, message: Message, reference: str) -> str:
        failure = self.fails(message)
        if failure is not None:
            raise failure
        self.got.append((message.title, reference))
        return reference or f"thread {message.key}"


DOWN = DeliveryFailed("no route to host")


def rounds(outbox: MemoryOutbox, sink: FakeSink, now: float = 0.0, **options: object) -> DeliverySummary:
    return deliver_due(outbox, {"fake": sink}, now, jitter=lambda: 0.5, **options)  # type: ignore[arg-type]


def test_everything_due_is_sent_in_order_with_its_thread() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    outbox.add("fake", [message("a"), message("b"), message("a", "outcome")])
    summary = rounds(outbox, sink)
    assert sink.got == [("opened a", ""), ("opened b", ""), ("outcome a", "thread a")]
    assert (summary.sent, summary.failed, summary.waiting) == (3, 0, 0)
    assert summary.sentences == ("fake: 3 sent",)
    assert rounds(outbox, sink) == DeliverySummary()


def test_a_later_message_of_any_folded_incident_finds_the_thread() -> None:
    outbox, sink = MemoryOutbox(), FakeSink()
    outbox.add("fake", [message("a", keys=("a", "b", "c")), message("c", "outcome")])
    rounds(outbox, sink)
    outbox.add("fake", [message("b", "resolved")])
    rounds(outbox, sink)
    assert sink.got[1:] == [("outcome c", "thread a"), ("resolved b", "thread a")]


def test_a_sink_that_is_down_is_asked_once_and_the_rest_waits() -> None:
    outbox, asked = MemoryOutbox(), []

    def down(told: Message) -> DeliveryFailed:
        asked.append(told.key)
        return DOWN

    outbox.add("fake", [message(k) for k in "abc"])
    summary = rounds(outbox, FakeSink(fails=down))
    assert asked == ["a"]
    assert (summary.sent, summary.failed, summary.waiting, summary.given_up) == (0, 1, 3, 0)
    assert summary.sentences == ("fake: no route to host; next try in 5 s", "fake: 3 waiting")


def test_one_sink_down_does_not_hold_up_another() -> None:
    outbox = MemoryOutbox()
    good, bad = FakeSink("good"), FakeSink("bad", fails=lambda m: DOWN)
    outbox.add("bad", [message("a")])
    outbox.add("good", [message("a")])
    summary = deliver_due(outbox, {"good": good, "bad": bad}, 0.0)
    assert (summary.sent, summary.waiting) == (1, 1)


def test_the_wait_doubles_up_to_ten_minutes() -> None:
    outbox, sink = MemoryOutbox(), FakeSink(fails=lambda m: DOWN)
    outbox.add("fake", [message("a")])
    waits, now = [], 0.0
    for _ in range(10):
        rounds(outbox, sink, now)
        waits.append(outbox.next_try[0] - now)
        now = outbox.next_try[0]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


@pytest.mark.parametrize(("jitter", "wait"), [(0.0, 3.75), (1.0, 6.25)])
def test_jitter_is_a_quarter(jitter: float, wait: float) -> None:
    outbox, sink = MemoryOutbox(), FakeSink(fails=lambda m: DOWN)
    outbox.add("fake", [message("a")])
    deliver_due(outbox, {"fake": sink}, 0.0, jitter=lambda: jitter)
    assert outbox.next_try[0] == wait


def test_the_sinks_own_wish_is_a_floor() -> None:
    outbox = MemoryOutbox()
    outbox.add("fake", [message("a")])
    rounds(outbox, FakeSink(fails=lambda m: DeliveryFailed("slow down", retry_after_seconds=90)))
    assert outbox.next_try[0] == 90


def test_a_permanent_failure_is_given_up_loudly_and_stops_nobody() -> None:
    outbox = MemoryOutbox()
    refused = DeliveryFailed("Slack refused it: not_in_channel: invite the bot", permanent=True)
    sink = FakeSink(fails=lambda m: refused if m.key == "a" else None)
    outbox.add("fake", [message("a"), message("b"), message("a", "resolved")])
    summary = rounds(outbox, FakeSink(fails=sink.fails))
    assert outbox.states == {0: "failed", 1: "sent", 2: "failed"}
    assert (summary.sent, summary.given_up, summary.waiting) == (1, 2, 0)
    assert summary.sentences[0] == (
        "fake: gave up telling 'opened a': Slack refused it: not_in_channel: invite the bot"
    )


def test_a_wrong_token_is_not_told_fifty_times() -> None:
    outbox = MemoryOutbox()
    outbox.add("fake", [message(str(n)) for n in range(50)])
    summary = rounds(outbox, FakeSink(fails=lambda m: DeliveryFailed("invalid_auth", permanent=True)))
    assert len(summary.sentences) == 4
    assert summary.sentences[-1] == "fake: gave up telling 47 more"


def test_after_about_a_day_it_gives_up() -> None:
    outbox = MemoryOutbox()
    outbox.rows = [Pending(0, "fake", message("a"), "", MOST_TRIES - 1)]
    outbox.next_try, outbox.states = {0: 0.0}, {0: "waiting"}
    assert rounds(outbox, FakeSink(fails=lambda m: DOWN)).given_up == 1


def test_a_sink_that_left_the_config() -> None:
    outbox = MemoryOutbox()
    outbox.add("pager", [message("a")])
    summary = rounds(outbox, FakeSink())
    assert summary.given_up == 1
    assert "no sink 'pager' is configured" in summary.sentences[0]


def test_a_bug_in_a_sink_does_not_reach_the_watchdog() -> None:
    outbox = MemoryOutbox()
    outbox.add("fake", [message("a")])
    summary = rounds(outbox, FakeSink(fails=lambda m: ZeroDivisionError("oops")))
    assert "the sink broke: ZeroDivisionError: oops" in summary.sentences[0]
    assert summary.waiting == 1


def test_not_more_than_a_burst_each_round() -> None:
    outbox, sink = MemoryOutbox(), FakeSink(burst=3)
    outbox.add("fake", [message(k) for k in "abcdefg"])
    assert [rounds(outbox, sink).sent for _ in range(4)] == [3, 3, 1, 0]


def test_a_slow_sink_does_not_hold_the_watchdog() -> None:
    clock = [0.0]

    def slow(told: Message) -> None:
        clock[0] += 20

    outbox = MemoryOutbox()
    outbox.add("fake", [message(k) for k in "abcdefg"])
    summary = rounds(outbox, FakeSink(fails=slow), monotonic=lambda: clock[0], budget_seconds=30)
    assert (summary.sent, summary.waiting) == (2, 5)


def test_a_crash_before_the_commit_sends_that_one_again_and_no_other() -> None:
    outbox, sink = MemoryOutbox(breaks_at=1), FakeSink()
    outbox.add("fake", [message(k) for k in "abc"])
    with pytest.raises(StoreError):
        rounds(outbox, sink)
    outbox.breaks_at = -1
    rounds(outbox, sink)
    assert [title for title, _ in sink.got] == ["opened a", "opened b", "opened b", "opened c"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    st.lists(st.sampled_from(["ok", "down", "slow"]), max_size=30),
)
def test_the_order_within_an_incident_holds_whatever_fails(keys: list[str], fate: list[str]) -> None:
    fates = iter(fate)

    def fails(told: Message) -> DeliveryFailed | None:
        word = next(fates, "ok")
        return (
            None if word == "ok" else DeliveryFailed(word, retry_after_seconds=7 if word == "slow" else None)
        )

    outbox, sink = MemoryOutbox(), FakeSink(fails=fails, burst=4)
    outbox.add("fake", [message(k, "note", text=f"{k} {n:02}") for n, k in enumerate(keys)])
    for step in range(60):
        deliver_due(outbox, {"fake": sink}, step * 700.0)
    assert set(outbox.states.values()) == {"sent"}
    for key in "abc":
        told = [title for title, _ in sink.got if title.startswith(key)]
        assert told == sorted(told)


# Slack at the other end


def test_a_story_with_slack_that_asks_to_slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    outbox, clock = MemoryOutbox(), [0.0]
    with SlackStub() as slack:
        sink = SlackSink(
            "C1",
            token_env="T",
            environ={"T": slack.token},
            base_url=slack.base_url,
            monotonic=lambda: clock[0],
        )
        slack.script.append(Answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "60"}))
        outbox.add("slack", [message("a"), message("b"), message("a", "outcome")])
        assert deliver_due(outbox, {"slack": sink}, 0.0).waiting == 3
        clock[0] = 10.0
        deliver_due(outbox, {"slack": sink}, 10.0)  # "b" is due, but Slack said a minute
        assert len(slack.requests) == 1
        clock[0] = 100.0
        assert deliver_due(outbox, {"slack": sink}, 100.0).sent == 3
        outbox.add("slack", [message("a", "resolved")])
        assert deliver_due(outbox, {"slack": sink}, 110.0).sent == 1
        first = slack.first_messages[0]
        assert "resolved a" in first.text
        assert [r.text.split()[-2] for r in slack.replies(first)] == ["outcome", "resolved"]
