"""Webhook, PagerDuty, Alertmanager, dead man's switch and metrics, over real connections on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import ConfigError, DeliveryFailed
from clustertools.model import Finding, Incident, Status, Subject
from clustertools.render.prometheus import write_textfile
from clustertools.sinks import SinkRule
from clustertools.sinks.alertmanager import AlertmanagerSink
from clustertools.sinks.deadman import DeadManSink
from clustertools.sinks.http import Service
from clustertools.sinks.message import Message
from clustertools.sinks.metrics import MetricsSink
from clustertools.sinks.pagerduty import KEY_CHARACTERS, PagerDutySink, dedup_key_of
from clustertools.sinks.secret import Secret
from clustertools.sinks.standing import Standing
from clustertools.sinks.webhook import WebhookSink, event, text
from tests.lab.service_stub import Answer, ServiceStub, self_signed

NOW = 1_790_000_000.0
OPENED = Message(
    "GpuLost:alps/gpu-017", "opened", Status.CRITICAL, "CRITICAL gpu-017 · a GPU is gone · 12:02:11",
    ("next: drain gpu-017", "look: clustertools show GpuLost:alps/gpu-017"), ("NVRM: Xid 79",),
    "Reboot it, see https://wiki.example.org/gpu.", NOW, "gpu-017", "a GPU is gone",
)  # fmt: skip
RESOLVED = dataclasses.replace(OPENED, kind="resolved", title="RESOLVED gpu-017", evidence=(), runbook="")
HOSTILE = 'x\r\nBcc: all\x1b[31m <!channel> @here &amp; "quoted" \\ {0} %s </script>\u202e`'
KEY = "R0UT1NGKEY0123456789abcdefABCDEF"


@pytest.fixture
def service(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ServiceStub() as stub:
        yield stub


def secret(value, what="address"):
    return Secret(what, "", "HIDDEN", {"HIDDEN": value})


def failure_of(call) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        call()
    return caught.value


# webhook


def test_a_webhook_gets_the_whole_message_with_a_version(service):
    sink = WebhookSink(address=secret(service.url + "/hook?key=HUSH"), token=secret("T0KEN", "token"))
    assert sink.deliver(OPENED, "") == ""
    (asked,) = service.asked
    assert (asked.method, asked.path) == ("POST", "/hook?key=HUSH")
    assert asked.headers["authorization"] == "Bearer T0KEN"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "version": 1, "event": "opened", "status": "CRITICAL", "key": OPENED.key, "keys": [OPENED.key],
        "code": "GpuLost", "place": "gpu-017", "title": OPENED.title, "lines": list(OPENED.lines),
        "evidence": ["NVRM: Xid 79"], "runbook": OPENED.runbook, "time": NOW,
        "delivery": asked.body["delivery"],
    }  # fmt: skip
    sink.deliver(OPENED, "")
    sink.deliver(RESOLVED, "")
    assert [b["delivery"] == asked.body["delivery"] for b in service.bodies] == [True, True, False]


def test_a_chat_webhook_gets_text_that_mentions_nobody(service):
    sink = WebhookSink(url=service.url, body="text")
    sink.deliver(dataclasses.replace(OPENED, title=HOSTILE, evidence=(HOSTILE,)), "")
    (body,) = service.bodies
    assert body.keys() == {"text"}
    assert "&lt;!channel&gt; @\u200bhere &amp;amp;" in body["text"]
    assert not set(body["text"]) & set("<>\r\x1b\u202e")
    assert "next: drain gpu-017\n" in body["text"]


@settings(deadline=None, max_examples=20)
@given(st.text(max_size=60), st.lists(st.text(max_size=40), max_size=3))
def test_whatever_a_log_says_stays_inside_its_string(title, lines):
    message = dataclasses.replace(OPENED, title=title, lines=tuple(lines), evidence=tuple(lines))
    again = json.loads(json.dumps(event(message)))
    assert again.keys() == event(OPENED).keys()
    assert all("\n" not in line for line in again["lines"] + again["evidence"] + [again["title"]])
    assert not set(text(message)) & set("<>")


@pytest.mark.parametrize(
    ("answer", "permanent", "retry_after", "said"),
    [
        (Answer(200), None, None, ""),
        (Answer(204), None, None, ""),
        (Answer(400, "bad shape"), True, None, "refused it: HTTP status 400: bad shape"),
        (Answer(404), True, None, "refused it: HTTP status 404"),
        (Answer(403, "not with /hook?key=HUSH"), True, None, "status 403: not with (secret)"),
        (Answer(408), False, None, "has trouble: HTTP status 408"),
        (Answer(429, headers={"Retry-After": "7"}), False, 7.0, "slow down"),
        (Answer(429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), False, 30.0, "slow down"),
        (Answer(503, headers={"Retry-After": "9"}), False, 9.0, "has trouble"),
        (Answer(500, "<html>" + "x" * 900), False, None, "has trouble: HTTP status 500: <html>xxx"),
        (Answer(0), False, None, "could not reach"),
    ],
)
def test_what_an_answer_means(service, answer, permanent, retry_after, said):
    service.usual = answer
    sink = WebhookSink(name="chat", address=secret(service.url + "/hook?key=HUSH"))
    if permanent is None:
        assert sink.deliver(OPENED, "") == ""
        return
    failure = failure_of(lambda: sink.deliver(OPENED, ""))
    assert (failure.permanent, failure.retry_after_seconds) == (permanent, retry_after)
    assert said in str(failure)
    assert "the webhook chat" in str(failure)
    assert "HUSH" not in str(failure)
    assert len(str(failure)) < 300


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(service, status):
    with ServiceStub() as other:
        service.usual = Answer(status, headers={"Location": f"{other.url}/take?it"})
        sink = WebhookSink(address=secret(service.url + "/HUSH"), token=secret("T0KEN"))
        failure = failure_of(lambda: sink.deliver(OPENED, ""))
        assert other.asked == []
    assert failure.permanent
    assert "redirects to 127.0.0.1" in str(failure)
    assert "HUSH" not in str(failure)


def test_an_answer_that_drips_in_is_not_waited_for(service):
    service.usual = Answer(200, "x" * 60_000, drip_seconds=0.05)
    sink = WebhookSink(url=service.url, service=Service("the hook", timeout_seconds=0.3))
    failure = failure_of(lambda: sink.deliver(OPENED, ""))
    assert str(failure) == "the hook did not answer in time"
    assert not failure.permanent


def test_nobody_there_and_no_such_name():
    for url, said in (("http://127.0.0.1:1/HUSH", "refused"), ("http://HUSH.invalid/", "could not reach")):
        failure = failure_of(lambda url=url: WebhookSink(url=url).deliver(OPENED, ""))
        assert said in str(failure)
        assert not failure.permanent


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[", "nonsense"]
)
def test_only_http_is_spoken(url):
    failure = failure_of(lambda: WebhookSink(url=url).deliver(OPENED, ""))
    assert "root:" not in str(failure)


def test_a_certificate_is_verified(tmp_path, service):
    mine, alien = self_signed(tmp_path), self_signed(tmp_path, name="elsewhere.example.org")
    with ServiceStub(certificate=mine) as safe:
        trusting = Service("the hook", ca_file=str(mine))
        WebhookSink(address=secret(safe.url), service=trusting).deliver(OPENED, "")
        assert len(safe.asked) == 1
        failure = failure_of(lambda: WebhookSink(address=secret(safe.url)).deliver(OPENED, ""))
        assert "certificate was not accepted: self-signed certificate" in str(failure)
    with ServiceStub(certificate=alien) as wrong:
        other = Service("the hook", ca_file=str(alien))
        failure = failure_of(
            lambda: WebhookSink(address=secret(wrong.url), service=other).deliver(OPENED, "")
        )
        assert "certificate was not accepted" in str(failure)
        assert wrong.asked == []


def test_a_proxy_of_the_environment_is_used(service, monkeypatch):
    monkeypatch.setenv("http_proxy", service.url)
    WebhookSink(url="http://chat.example.org/hook").deliver(OPENED, "")
    (asked,) = service.asked
    assert asked.path == "http://chat.example.org/hook"


def test_secrets_travel_encrypted_or_not_at_all(service):
    failure = failure_of(
        lambda: WebhookSink(address=secret("http://chat.example.org/HUSH")).deliver(OPENED, "")
    )
    assert "does not begin with https://" in str(failure)
    assert "HUSH" not in str(failure)
    plain = {"url": "http://chat.example.org"}
    for make in (
        lambda: WebhookSink(**plain, token=secret("T")),
        lambda: AlertmanagerSink(**plain, token=secret("T")),
        lambda: PagerDutySink(secret("T"), **plain),
    ):
        with pytest.raises(ConfigError, match="must begin with https://"):
            make()


def test_a_secret_is_read_anew_and_never_told(tmp_path, service):
    file = tmp_path / "hook"
    sink = WebhookSink(address=Secret("address of chat", str(file)))
    assert "could not read the address of chat" in str(failure_of(lambda: sink.deliver(OPENED, "")))
    file.write_text("two words\n")
    failure = failure_of(lambda: sink.deliver(OPENED, ""))
    assert "must be one word" in str(failure)
    assert "two" not in str(failure)
    file.write_text(f"{service.url}/rotated\n")
    sink.deliver(OPENED, "")
    assert service.asked[0].path == "/rotated"
    file.chmod(0o644)
    assert "mode 0644" in Secret("x", str(file)).readable_by_others()[0]


# PagerDuty


def pager(service):
    return PagerDutySink(secret(KEY, "routing key"), url=service.url)


def test_the_life_of_a_page(service):
    sink = pager(service)
    reference = sink.deliver(OPENED, "")
    assert reference == OPENED.key
    worse = dataclasses.replace(OPENED, kind="worsened", left_open=1)
    assert sink.deliver(worse, reference) == reference
    taken = Message(
        OPENED.key, "note", Status.CRITICAL, "ada has it until 15:00", left_open=1, taken_by="ada"
    )
    sink.deliver(taken, reference)
    sink.deliver(dataclasses.replace(taken, taken_by=""), reference)
    sink.deliver(dataclasses.replace(OPENED, kind="outcome", title="DONE drain gpu-017"), reference)
    sink.deliver(RESOLVED, reference)
    assert {(r.method, r.path) for r in service.asked} == {("POST", "/v2/enqueue")}
    assert [b["event_action"] for b in service.bodies] == [
        "trigger", "trigger", "acknowledge", "trigger", "resolve",
    ]  # fmt: skip
    assert {(b["dedup_key"], b["routing_key"]) for b in service.bodies} == {(OPENED.key, KEY)}
    first, resolve = service.bodies[0], service.bodies[-1]
    assert first["payload"] == {
        "summary": OPENED.title, "source": "gpu-017", "severity": "critical", "class": "GpuLost",
        "timestamp": "2026-09-21T14:13:20.000+00:00",
        "custom_details": {
            "incidents": [OPENED.key], "news": list(OPENED.lines), "evidence": ["NVRM: Xid 79"],
            "runbook": OPENED.runbook,
        },
    }  # fmt: skip
    assert first["links"] == [{"href": "https://wiki.example.org/gpu", "text": "runbook"}]
    assert resolve.keys() == {"routing_key", "event_action", "dedup_key"}


def test_a_page_about_many_ends_with_the_last(service):
    keys = tuple(f"GpuLost:gpu-{n}" for n in range(31))
    folded = dataclasses.replace(OPENED, key=keys[0], keys=keys)
    reference = pager(service).deliver(folded, "")
    some = dataclasses.replace(RESOLVED, key=keys[5], keys=keys[5:9], left_open=27)
    assert pager(service).deliver(some, reference) == reference == keys[0]
    assert len(service.asked) == 1
    pager(service).deliver(dataclasses.replace(some, left_open=0), reference)
    assert service.bodies[-1]["event_action"] == "resolve"
    assert service.bodies[-1]["dedup_key"] == keys[0]


def test_a_note_about_what_was_never_paged_pages_nobody(service):
    pager(service).deliver(Message("A:n", "note", Status.CRITICAL, "hello", left_open=1), "")
    assert service.asked == []


@pytest.mark.parametrize(
    ("status", "severity"),
    [(Status.CRITICAL, "critical"), (Status.UNKNOWN, "error"), (Status.WARNING, "warning")],
)
def test_severities(service, status, severity):
    pager(service).deliver(dataclasses.replace(OPENED, status=status), "")
    assert service.bodies[0]["payload"]["severity"] == severity


def test_what_pagerduty_says_no_to(service):
    said = json.dumps({"message": "Event object is invalid", "errors": [f"{KEY} is wrong"]})
    service.script += [Answer(400, said), Answer(429), Answer(502)]
    wrong, slow, broken = (failure_of(lambda: pager(service).deliver(OPENED, "")) for _ in range(3))
    assert wrong.permanent
    assert "Event object is invalid" in str(wrong)
    assert KEY not in str(wrong)
    assert (slow.permanent, slow.retry_after_seconds) == (False, 30.0)
    assert not broken.permanent
    assert KEY not in repr(pager(service).__dict__)


def test_long_and_hostile_keys_stay_apart():
    one, other = ("Code:run:" + "x" * 400 + end for end in "ab")
    assert dedup_key_of(one) != dedup_key_of(other)
    assert max(map(len, map(dedup_key_of, (one, other, HOSTILE * 9)))) <= KEY_CHARACTERS
    assert dedup_key_of(one).isprintable()
    assert dedup_key_of(HOSTILE).isprintable()


# Alertmanager


def incident(code="GpuLost", node="gpu-017", *, status=Status.CRITICAL, summary="a GPU is gone", **more):
    found = Finding("gpu_xid", code, Subject(cluster="alps", node=node), status, summary, ("Xid 79",))
    return Incident(found, "open", NOW, NOW, opened_at=NOW, **more)


def standing(*incidents, now=NOW, complete=True, quiet=()):
    return Standing(now, lambda: complete, {i.key: i for i in incidents}, frozenset(quiet))


def test_an_alert_is_sent_again_and_ended(service):
    sink = AlertmanagerSink(service.url)
    lost = incident()
    memory = sink.keep_up(standing(lost), {})
    for seconds in (30, 60, 90, 120):
        memory = json.loads(json.dumps(sink.keep_up(standing(lost, now=NOW + seconds), memory)))
    memory = sink.keep_up(standing(now=NOW + 150), memory)
    memory = sink.keep_up(standing(now=NOW + 180), memory)
    assert {(r.method, r.path) for r in service.asked} == {("POST", "/api/v2/alerts")}
    alerts = [alert for body in service.bodies for alert in body]
    assert {json.dumps(a["labels"], sort_keys=True) for a in alerts} == {
        json.dumps(
            {"alertname": "GpuLost", "cluster": "alps", "node": "gpu-017", "severity": "critical",
             "source": "clustertools"}, sort_keys=True,
        )
    }  # fmt: skip
    assert {a["startsAt"] for a in alerts} == {"2026-09-21T14:13:20.000Z"}
    # sent when new, each minute, and when over; each time good for four gaps
    assert [a["endsAt"][11:19] for a in alerts] == ["14:17:20", "14:18:20", "14:19:20", "14:15:50"]
    assert alerts[0]["annotations"] == {
        "summary": "a GPU is gone", "key": lost.key, "evidence": "Xid 79"
    }  # fmt: skip


def test_cron_that_comes_rarely_keeps_its_alerts_alive(service):
    sink = AlertmanagerSink(service.url)
    memory = sink.keep_up(standing(incident()), {})
    sink.keep_up(standing(incident(), now=NOW + 900), memory)
    assert service.bodies[-1][0]["endsAt"] == "2026-09-21T15:28:20.000Z"  # 900 s + 4 * 900 s


def test_an_alert_of_another_severity_ends_the_first(service):
    sink = AlertmanagerSink(service.url)
    memory = sink.keep_up(standing(incident(status=Status.WARNING)), {})
    sink.keep_up(standing(incident(), now=NOW + 30), memory)
    ended, began = service.bodies[-1]
    assert (ended["labels"]["severity"], ended["endsAt"]) == ("warning", "2026-09-21T14:13:50.000Z")
    assert began["labels"]["severity"] == "critical"


def test_who_heard_of_it_goes_on_hearing_in_spite_of_a_silence(service):
    sink = AlertmanagerSink(service.url)
    lost, down = incident(), incident("LinkDown")
    memory = sink.keep_up(standing(lost), {})
    memory = sink.keep_up(standing(lost, down, now=NOW + 90, quiet=[lost.key, down.key]), memory)
    (again,) = service.bodies[-1]
    assert (again["labels"]["alertname"], again["endsAt"]) == ("GpuLost", "2026-09-21T14:20:50.000Z")
    memory = sink.keep_up(standing(lost, down, now=NOW + 100), memory)
    assert {a["labels"]["alertname"] for a in service.bodies[-1]} == {"GpuLost", "LinkDown"}


def test_an_alertmanager_hears_what_it_is_meant_for(service):
    sink = AlertmanagerSink(service.url, rule=SinkRule(Status.CRITICAL, only=("Gpu*",)))
    small = incident("GpuWarm", status=Status.WARNING)
    sink.keep_up(standing(incident(), incident("LinkDown"), small), {})
    assert [a["labels"]["alertname"] for a in service.bodies[0]] == ["GpuLost"]


def test_what_alertmanager_refuses_is_tried_again(service):
    service.script.append(Answer(500, "no"))
    sink = AlertmanagerSink(service.url)
    failure_of(lambda: sink.keep_up(standing(incident()), {}))
    assert sink.keep_up(standing(incident()), {})["told"].keys() == {incident().key}


def test_hostile_text_is_only_a_value(service):
    AlertmanagerSink(service.url).keep_up(standing(incident(node=HOSTILE, summary=HOSTILE)), {})
    ((alert,),) = service.bodies
    assert alert["labels"].keys() == {"alertname", "severity", "cluster", "node", "source"}
    assert alert["labels"]["node"].isprintable()


# dead man's switch


def test_only_a_pass_that_saw_everything_calls(service):
    sink = DeadManSink(address=secret(service.url + "/ping/HUSH"))
    memory = sink.keep_up(standing(complete=False), {})
    assert service.asked == []
    memory = sink.keep_up(standing(), memory)
    (asked,) = service.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/ping/HUSH", None)
    for seconds in (1, 30, 59):
        memory = sink.keep_up(standing(now=NOW + seconds), memory)
    assert len(service.asked) == 1
    memory = sink.keep_up(standing(now=NOW + 60), memory)
    memory = sink.keep_up(standing(now=NOW + 120, complete=False), memory)
    assert len(service.asked) == 2
    sink.keep_up(standing(now=NOW - 9000), memory)  # the clock was set back
    assert len(service.asked) == 3


def test_a_dead_mans_switch_by_post_that_fails(service):
    sink = DeadManSink(url=service.url, method="POST")
    service.script.append(Answer(503))
    failure_of(lambda: sink.keep_up(standing(), {}))
    assert sink.keep_up(standing(), {}) == {"at": NOW}
    assert [r.method for r in service.asked] == ["POST", "POST"]


# metrics


def test_metrics_are_replaced_in_one_step(tmp_path: Path):
    file = tmp_path / "clustertools.prom"
    sink = MetricsSink(str(file), write_textfile)
    assert sink.keep_up(standing(), {}) == {}
    assert file.exists()
    assert os.listdir(tmp_path) == ["clustertools.prom"]
    nowhere = MetricsSink(str(tmp_path / "gone" / "x.prom"), write_textfile)
    assert "could not write" in str(failure_of(lambda: nowhere.keep_up(standing(), {})))
