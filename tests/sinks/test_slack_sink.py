"""The Slack sink against a loopback server that answers as Slack does. slack_sdk is the real one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import ConfigError, DeliveryFailed
from clustertools.model import Status
from clustertools.sinks.message import Message
from clustertools.sinks.slack import SlackSink, Thread, blocks, escaped
from tests.lab.slack_stub import Answer, SlackStub

OPENED = Message(
    key="XidGpuLost:gpu-017",
    kind="opened",
    status=Status.CRITICAL,
    title="CRITICAL gpu-017 · GPU 0000:3b:00.0 fell off the bus (Xid 79) · 12:02:11",
    lines=("next: drain gpu-017", "look: clustertools show XidGpuLost:gpu-017"),
    evidence=("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",),
    runbook="Reboot it.",
    time=1_700_000_000.0,
)
RESOLVED = dataclasses.replace(
    OPENED,
    kind="resolved",
    title="RESOLVED gpu-017 · GPU 0000:3b:00.0 fell off the bus (Xid 79) · 14:12:11",
    lines=("resolved, it lasted 2 h 10 m",),
    evidence=(),
    runbook="",
)
WORSENED = dataclasses.replace(OPENED, kind="worsened", title="CRITICAL gpu-017 · worse: two GPUs · 12:10:00")
REOPENED = dataclasses.replace(OPENED, kind="reopened", title="CRITICAL gpu-017 · again: lost · 15:00:00")
DONE = Message(OPENED.key, "outcome", Status.CRITICAL, "DONE drain gpu-017 · 12:02:14", ("State=DRAINED",))

MakeSink = Callable[..., SlackSink]


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackStub]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with SlackStub() as server:
        yield server


@pytest.fixture
def sink(slack: SlackStub) -> MakeSink:
    def make(channel: str = "#oncall", **options: Any) -> SlackSink:
        environ = {"SLACK_TOKEN": slack.token, "SLACK_HOOK": slack.webhook, **options.pop("environ", {})}
        if "webhook_env" not in options and "token_file" not in options:
            options.setdefault("token_env", "SLACK_TOKEN")
        options.setdefault("base_url", slack.base_url)
        return SlackSink(
            channel, environ=environ, timeout_seconds=options.pop("timeout_seconds", 5), **options
        )

    return make


def failure_of(sink: SlackSink, message: Message = OPENED, reference: str = "") -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        sink.deliver(message, reference)
    return caught.value


# one thread for each incident


def test_the_first_message_opens_a_thread(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    (first,) = slack.messages
    assert reference == f"C1:{first.ts}"  # the channel's ID, though the config names it
    assert [b["type"] for b in first.body["blocks"]] == ["header", "section", "section", "section"]
    assert first.body["blocks"][0]["text"]["text"].endswith(OPENED.title)
    assert first.body["text"].splitlines()[0].endswith(OPENED.title)
    for piece in (*OPENED.lines, *OPENED.evidence, OPENED.runbook):
        assert piece in first.text


def test_outcomes_are_replies_and_leave_the_first_message_alone(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    assert sink().deliver(DONE, reference) == reference
    (first,) = slack.first_messages
    assert [r.body["text"] for r in slack.replies(first)] == ["DONE drain gpu-017 · 12:02:14\nState=DRAINED"]
    assert first.edits == 0


def test_recovery_edits_the_first_message_and_replies(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    assert sink().deliver(RESOLVED, reference) == reference
    (first,) = slack.first_messages
    assert first.edits == 1
    assert "RESOLVED gpu-017" in first.text
    assert "it lasted 2 h 10 m" in first.text
    assert "CRITICAL" not in first.text
    assert len(slack.replies(first)) == 1


def test_worse_edits_replies_and_shows_in_the_channel(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    sink().deliver(WORSENED, reference)
    (first,) = slack.first_messages
    assert "worse: two GPUs" in first.text
    assert slack.replies(first)[0].body["reply_broadcast"] is True


def test_a_return_uses_the_old_thread_and_a_new_incident_a_new_one(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    sink().deliver(RESOLVED, reference)
    assert sink().deliver(REOPENED, reference) == reference
    assert "again: lost" in slack.first_messages[0].text
    assert sink().deliver(OPENED, "") != reference
    assert len(slack.first_messages) == 2


def test_one_recovery_of_many_does_not_turn_the_folded_message_green(
    slack: SlackStub, sink: MakeSink
) -> None:
    keys = ("XidGpuLost:a", "XidGpuLost:b", "XidGpuLost:c")
    reference = sink().deliver(dataclasses.replace(OPENED, key=keys[0], keys=keys), "")
    assert Thread.parse(f"{reference}:3") == Thread.parse(reference) == Thread("C1", slack.messages[0].ts)
    one = dataclasses.replace(
        RESOLVED, key=keys[0], keys=keys[:1], headline="lost", together=keys, left_open=2
    )
    assert sink().deliver(one, reference) == reference
    (first,) = slack.first_messages
    assert first.body["text"].startswith("\N{LARGE RED CIRCLE} CRITICAL 2 of 3 XidGpuLost · lost · ")
    assert len(slack.replies(first)) == 1
    last = dataclasses.replace(one, key=keys[2], keys=keys[1:], left_open=0)
    sink().deliver(last, reference)
    assert first.body["text"].startswith("\N{LARGE GREEN CIRCLE} RESOLVED all 3 XidGpuLost · lost · ")
    assert "all are resolved\nXidGpuLost:a, XidGpuLost:b, XidGpuLost:c" in first.text


def test_an_opening_that_joins_a_thread_is_a_reply_and_counts_in_its_first_message(
    slack: SlackStub, sink: MakeSink
) -> None:
    reference = sink().deliver(OPENED, "")
    more = dataclasses.replace(
        OPENED, key="XidGpuLost:b", keys=("XidGpuLost:b", "XidGpuLost:c"), joins=OPENED.key, headline="lost",
        together=(OPENED.key, "XidGpuLost:b", "XidGpuLost:c"), left_open=3,
    )  # fmt: skip
    assert sink().deliver(more, reference) == reference
    (first,) = slack.first_messages
    assert first.body["text"].startswith("\N{LARGE RED CIRCLE} CRITICAL 3 XidGpuLost · lost · ")
    assert len(slack.replies(first)) == 1


def test_a_deleted_thread_is_begun_anew(slack: SlackStub, sink: MakeSink) -> None:
    gone = "C1:1600000000.000001"
    for message in (DONE, RESOLVED):
        assert sink().deliver(message, gone) not in ("", gone)
    assert len(slack.first_messages) == 2


def test_a_workspace_that_forbids_edits_still_gets_the_reply(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    slack.script.append(Answer(200, {"ok": False, "error": "edit_window_closed"}))
    assert sink().deliver(RESOLVED, reference) == reference
    assert len(slack.replies(slack.messages[0])) == 1


def test_a_reference_of_another_sink_is_not_taken_for_a_thread(slack: SlackStub, sink: MakeSink) -> None:
    assert sink().deliver(DONE, "pagerduty-7").startswith("C1:")


def test_the_same_message_twice_can_be_recognised(slack: SlackStub, sink: MakeSink) -> None:
    sink().deliver(OPENED, "")
    sink().deliver(OPENED, "")
    sink().deliver(WORSENED, "")
    marks = [m.body["metadata"]["event_payload"]["delivery"] for m in slack.messages]
    assert marks[0] == marks[1] != marks[2]
    assert slack.messages[0].body["metadata"]["event_type"] == "clustertools_message"


# hostile text


HOSTILE = Message(
    key="K:<!channel>\x1b[2J",
    kind="opened",
    status=Status.CRITICAL,
    title="<!channel> & <@U1> *bold* \x1b[31mred\x1b[0m \x00 @here " + "t" * 400,
    lines=tuple(f"{n} <https://evil.example|click> ``` & " + "x" * 10_000 for n in range(16)),
    evidence=("```\n<!here> `x` ~s~ <#C2> http://evil.example", "\x00\x1b]0;t\x07" + "&" * 10_000) * 5,
    runbook="<!here>\n" + "r" * 5000,
    time=1.0,
)


def test_hostile_text_is_escaped_bounded_and_accepted(slack: SlackStub, sink: MakeSink) -> None:
    sink().deliver(HOSTILE, "")
    assert len(slack.requests) == 1  # nothing was refused: the stub holds Slack's limits
    body = slack.messages[0].body
    shown = json.dumps([body["text"], body["blocks"]], ensure_ascii=False)
    assert "<" not in shown
    assert ">" not in shown
    assert not any(ord(c) < 32 and c != "\n" for c in slack.messages[0].text + body["text"])
    header, *sections = body["blocks"]
    assert len(header["text"]["text"]) <= 150
    assert all(len(s["text"]["text"]) <= 3000 for s in sections)
    assert len(sections[-1]["text"]["text"]) < 3000  # a runbook is a hint here, not the whole book
    assert (body["parse"], body["link_names"], body["mrkdwn"]) == ("none", False, False)
    for block in body["blocks"]:
        if block["text"]["type"] == "plain_text":
            assert block["text"]["emoji"] is False
        else:
            inner = block["text"]["text"].removeprefix("```\n").removesuffix("\n```")
            assert "`" not in inner
            assert block["text"]["verbatim"] is True


def test_an_edit_is_as_careful(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    sink().deliver(dataclasses.replace(HOSTILE, kind="worsened"), reference)
    path, body = slack.requests[1]
    assert path == "/api/chat.update"
    assert "<" not in json.dumps(body)
    assert (body["parse"], body["link_names"]) == ("none", False)


def test_an_entity_is_never_cut_in_two() -> None:
    for limit in range(1, 30):
        text = escaped("a<b&c>" * 5, limit)
        assert len(text) <= limit
        assert text.count("&") == text.count(";")
    assert escaped("\U0001f534" * 10, 10) == "\U0001f534" * 4 + "…"


def test_a_long_title_is_told_whole_below_the_header() -> None:
    long = dataclasses.replace(OPENED, title="CRITICAL " + "n" * 200)
    header, section, *_ = blocks(long)
    assert header["text"]["text"].endswith("…")
    assert "n" * 200 in section["text"]["text"]


def test_blocks_that_slack_refuses_become_bare_text(slack: SlackStub, sink: MakeSink) -> None:
    slack.script.append(Answer(200, {"ok": False, "error": "invalid_blocks"}))
    assert sink().deliver(OPENED, "")
    assert slack.messages[0].body["blocks"] == []
    assert OPENED.title in slack.messages[0].body["text"]


# when Slack says no


def test_slowing_down_is_honoured_without_sleeping(slack: SlackStub, sink: MakeSink) -> None:
    clock = [100.0]
    careful = sink(monotonic=lambda: clock[0])
    slack.script.append(Answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "7"}))
    failure = failure_of(careful)
    assert (failure.permanent, failure.retry_after_seconds) == (False, 7.0)
    clock[0] = 104.0
    assert failure_of(careful).retry_after_seconds == pytest.approx(3.0)
    assert len(slack.requests) == 1  # the second try did not bother Slack
    clock[0] = 107.5
    assert careful.deliver(OPENED, "")


@pytest.mark.parametrize(("header", "seconds"), [("soon", 30.0), ("0", 1.0), ("99999999", 3600.0)])
def test_strange_retry_after(slack: SlackStub, sink: MakeSink, header: str, seconds: float) -> None:
    slack.script.append(Answer(429, "", {"retry-after": header}))
    assert failure_of(sink()).retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("channel", "error", "hint"),
    [
        ("nope", "channel_not_found", "/invite"),
        ("C-alien", "not_in_channel", "/invite"),
        ("C-old", "is_archived", "unarchive"),
    ],
)
def test_a_wrong_channel_is_permanent(
    slack: SlackStub, sink: MakeSink, channel: str, error: str, hint: str
) -> None:
    failure = failure_of(sink(channel))
    assert failure.permanent
    assert error in str(failure)
    assert hint in str(failure)


def test_a_wrong_token_is_permanent(slack: SlackStub, sink: MakeSink) -> None:
    failure = failure_of(sink(environ={"SLACK_TOKEN": "xoxb-wrong"}))
    assert failure.permanent
    assert "invalid_auth" in str(failure)
    assert "xoxb-wrong" not in str(failure)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, "oops"),
        Answer(503, {"ok": False, "error": "service_unavailable"}),
        Answer(200, {"ok": False, "error": "internal_error"}),
        Answer(200, "<html>please log in to the proxy</html>"),
        Answer(403, "<html>blocked by the proxy</html>"),
        Answer(200, []),
        Answer(200, '"just a string"'),
        Answer(200, {"ok": False}),
        Answer(200, ""),
        Answer(200, {"ok": True}, {"content-type": "application/json; charset=no-such"}),
    ],
    ids=str,
)
def test_what_may_pass_is_not_permanent(slack: SlackStub, sink: MakeSink, answer: Answer) -> None:
    slack.script.append(answer)
    failure = failure_of(sink())
    assert not failure.permanent
    assert failure.retry_after_seconds is None


def test_an_answer_that_does_not_come(slack: SlackStub, sink: MakeSink) -> None:
    slack.script.append(Answer(wait_seconds=30))
    failure = failure_of(sink(timeout_seconds=0.2))
    assert not failure.permanent
    assert "in time" in str(failure)
    assert len(slack.requests) == 1  # no retry inside


@pytest.mark.parametrize("options", [{}, {"webhook_env": "SLACK_HOOK"}], ids=["token", "webhook"])
def test_an_answer_that_drips_in_for_ever(slack: SlackStub, sink: MakeSink, options: dict[str, str]) -> None:
    slack.script.append(Answer(body="x" * 1000, drip_seconds=0.05))
    failure = failure_of(sink(timeout_seconds=0.15, **options))
    assert not failure.permanent
    assert "in time" in str(failure)


def test_a_connection_that_breaks_is_not_tried_again_inside(slack: SlackStub, sink: MakeSink) -> None:
    slack.script += [Answer(0), Answer(0)]
    failure = failure_of(sink())
    assert not failure.permanent
    assert "could not reach Slack" in str(failure)
    assert len(slack.requests) == 1


def test_nobody_listens(sink: MakeSink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    failure = failure_of(sink(base_url=f"http://127.0.0.1:{port}/api/"))
    assert not failure.permanent
    assert "could not reach Slack: Connection refused" in str(failure)


def test_a_failure_between_edit_and_reply_repeats_only_the_edit(slack: SlackStub, sink: MakeSink) -> None:
    reference = sink().deliver(OPENED, "")
    edited = slack.answer("/api/chat.update", f"Bearer {slack.token}", {
        "channel": "C1", "ts": reference.split(":")[1], "text": "x"})  # fmt: skip
    slack.script += [edited, Answer(500, "")]
    failure_of(sink(), RESOLVED, reference)
    sink().deliver(RESOLVED, reference)
    assert len(slack.replies(slack.messages[0])) == 1


# webhooks


def test_a_webhook_posts_each_message_by_itself(slack: SlackStub, sink: MakeSink) -> None:
    hook = sink("", webhook_env="SLACK_HOOK")
    assert [hook.deliver(m, "") for m in (OPENED, DONE, RESOLVED)] == ["", "", ""]
    assert [m.channel for m in slack.messages] == ["webhook"] * 3
    hook.deliver(HOSTILE, "")
    assert "<" not in json.dumps(slack.messages[-1].body)


@pytest.mark.parametrize(
    ("answer", "permanent"),
    [
        (Answer(404, "no_service"), True),
        (Answer(410, "channel_is_archived"), True),
        (Answer(404, "<html>not here</html>"), True),
        (Answer(403, "action_prohibited"), True),
        (Answer(403, "<html>blocked</html>"), False),
        (Answer(500, "rollup_error"), False),
        (Answer(502, "<html>bad gateway</html>"), False),
        (Answer(200, "<html>log in</html>"), False),
    ],
    ids=str,
)
def test_a_webhook_that_says_no(slack: SlackStub, sink: MakeSink, answer: Answer, permanent: bool) -> None:
    slack.script.append(answer)
    failure = failure_of(sink("", webhook_env="SLACK_HOOK"))
    assert failure.permanent is permanent
    assert "secretwebhookpart" not in str(failure)


def test_a_webhook_slows_down_and_loses_its_blocks_like_the_rest(slack: SlackStub, sink: MakeSink) -> None:
    slack.script.append(Answer(429, "rate_limited", {"Retry-After": "12"}))
    assert failure_of(sink("", webhook_env="SLACK_HOOK")).retry_after_seconds == 12.0
    slack.script.append(Answer(400, "invalid_blocks"))
    sink("", webhook_env="SLACK_HOOK").deliver(OPENED, "")
    assert "blocks" not in slack.messages[0].body


# secrets


def test_the_secret_shows_nowhere(
    slack: SlackStub, sink: MakeSink, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    for options in ({}, {"webhook_env": "SLACK_HOOK"}):
        for answer in (Answer(500, "x"), Answer(404, "no_service"), Answer(wait_seconds=5), None):
            if answer is not None:
                slack.script.append(answer)
            speaker = sink("C1", timeout_seconds=0.2, **options)
            told += [repr(speaker), str(speaker)]
            try:
                speaker.deliver(OPENED, "")
            except DeliveryFailed as exc:
                told += [str(exc), repr(exc), "".join(traceback.format_exception(exc))]
    told += [caplog.text, *capfd.readouterr()]
    for text in told:
        assert slack.token not in text
        assert "secretwebhookpart" not in text


@pytest.mark.parametrize("secret", ["two words", "", "  \n", "tök", "xoxb-1\nxoxb-2", "a\x00b"])
def test_a_secret_that_is_none(sink: MakeSink, secret: str) -> None:
    failure = failure_of(sink(environ={"SLACK_TOKEN": secret}))
    assert "must be one word" in str(failure)
    assert not failure.permanent  # a person may mend it while the message waits


@pytest.mark.parametrize(
    "url", ["http://hooks.example/services/T/B/x", "file:///etc/passwd", "hooks/x", "https://[x"]
)
def test_a_webhook_url_that_would_not_be_safe(sink: MakeSink, url: str) -> None:
    failure = failure_of(sink("", webhook_env="SLACK_HOOK", environ={"SLACK_HOOK": url}))
    assert "does not begin with https://" in str(failure)
    assert url not in str(failure)


def test_the_token_file_is_read_anew_each_time(slack: SlackStub, sink: MakeSink, tmp_path: Path) -> None:
    file = tmp_path / "token"
    rotating = sink(token_file=str(file))
    assert "No such file" in str(failure_of(rotating))
    file.write_text(slack.token + "\n")
    assert rotating.deliver(OPENED, "")


def test_a_token_file_that_others_can_read_is_told(sink: MakeSink, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("xoxb-1")
    os.chmod(file, 0o644)
    speaker = sink(token_file=str(file))
    assert "mode 0644" in speaker.secret_problems()[0]
    os.chmod(file, 0o600)
    assert speaker.secret_problems() == []
    os.chmod(file, 0o440)
    under_systemd = sink(token_file=str(file), environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert under_systemd.secret_problems() == []
    file.unlink()
    assert "could not read" in speaker.secret_problems()[0]


def test_a_wrong_config_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as failure:
        SlackSink(token_env="A", webhook_env="B", base_url="http://slack.example/", timeout_seconds=0)
    assert len(failure.value.problems) == 4
    with pytest.raises(ConfigError):
        SlackSink("C1")
