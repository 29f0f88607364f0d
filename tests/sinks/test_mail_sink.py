"""Mail against a real SMTP conversation on this machine: threads, TLS, logins, refusals, hostile text."""

from __future__ import annotations

import dataclasses
import email
import email.policy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import ConfigError, DeliveryFailed
from clustertools.model import Status
from clustertools.sinks.mail import MailSink
from clustertools.sinks.message import Message
from clustertools.sinks.secret import Secret
from tests.lab.service_stub import MailStub, self_signed

OPENED = Message(
    "GpuLost:alps/gpu-017", "opened", Status.CRITICAL, "CRITICAL gpu-017 · a GPU is gone · 12:02:11",
    ("next: drain gpu-017",), ("NVRM: Xid 79",), "Reboot it.\nThen look.", 1_790_000_000.0, "gpu-017",
)  # fmt: skip
RESOLVED = dataclasses.replace(OPENED, kind="resolved", title="RESOLVED gpu-017", evidence=(), runbook="")
TO = ("oncall@example.org", "night.shift+gpu@example.org")


def sink_to(server, **more):
    options = {"sender": "clustertools@example.org", "to": TO, "tls": "none", "cluster": "alps"}
    return MailSink(server.address, **{**options, "timeout_seconds": 5.0, **more})


def password(text=MailStub.password):
    return Secret("mail password", "", "P", {"P": text})


def failure_of(sink, message=OPENED) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        sink.deliver(message, "")
    return caught.value


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("tls"))


def test_an_incident_is_one_thread():
    with MailStub() as server:
        sink = sink_to(server)
        reference = sink.deliver(OPENED, "")
        assert sink.deliver(RESOLVED, reference) == reference
        assert sink.deliver(OPENED, "C1:170000.1") == reference  # of another sink; the same mail again
    first, second, again = (session.mail for session in server.mails)
    assert server.mails[0].to == list(TO)
    assert server.mails[0].sender == "clustertools@example.org"
    assert first["Subject"] == "[alps] CRITICAL gpu-017 · a GPU is gone · 12:02:11"
    assert first["From"] == "clustertools <clustertools@example.org>"
    assert first["Message-ID"] == reference == again["Message-ID"]
    assert first["In-Reply-To"] is again["In-Reply-To"] is None
    assert second["In-Reply-To"] == second["References"] == reference
    assert second["Message-ID"] != reference
    assert first["List-Id"] == "<alps.clustertools.example.org>"
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["Date"] == "Mon, 21 Sep 2026 14:13:20 -0000"
    assert first.get_content_type() == "text/plain"
    assert first.get_content().replace("\r\n", "\n") == (
        f"{OPENED.title}\nnext: drain gpu-017\n\n| NVRM: Xid 79\n\nReboot it.\nThen look.\n"
    )


@settings(deadline=None, max_examples=20)
@given(st.text(max_size=80), st.text(max_size=80))
def test_nothing_hostile_reaches_a_header(title, line):
    sink = MailSink("localhost", sender="a@example.org", to=["b@example.org"], tls="none")
    for evil in (title, f"{title}\r\nBcc: all@example.org\r\n\r\n.\r\n{line}"):
        mail = sink.mail(dataclasses.replace(OPENED, title=evil, lines=(evil, line)), f"<x@y>\r\nBcc: {line}")
        read = email.message_from_bytes(mail.as_bytes(), policy=email.policy.default)
        assert set(read.keys()) == {
            "From", "To", "Subject", "Date", "Message-ID", "List-Id", "Auto-Submitted",
            "X-Auto-Response-Suppress", "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
        }  # fmt: skip
        assert read["To"] == "b@example.org"


def test_a_dot_alone_does_not_end_the_mail():
    with MailStub() as server:
        sink_to(server).deliver(dataclasses.replace(OPENED, lines=(".", "MAIL FROM:<x@y>")), "")
    assert len(server.mails) == 1
    assert "MAIL FROM:<x@y>" in server.mails[0].mail.get_content()


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_login_over_tls(certificate, tls):
    with MailStub(tls=tls, certificate=certificate) as server:
        sink = sink_to(
            server, tls=tls, user=server.user, password=password(), ca_file=str(certificate)
        )  # fmt: skip
        sink.deliver(OPENED, "")
        (session,) = server.mails
        assert session.encrypted
        assert session.user == server.user
        wrong = failure_of(
            sink_to(
                server, tls=tls, user=server.user, password=password("not-it-HUSH"), ca_file=str(certificate)
            )
        )
        assert wrong.permanent
        assert "535 no, not with (secret)" in str(wrong)
        untrusted = failure_of(sink_to(server, tls=tls, user=server.user, password=password()))
        assert "certificate" in str(untrusted)
        assert "not accepted" in str(untrusted)
    assert len(server.mails) == 1


def test_a_server_without_starttls_gets_nothing():
    with MailStub() as server:
        failure = failure_of(sink_to(server, tls="starttls", user="u", password=password()))
    assert failure.permanent
    assert "AUTH" not in server.commands
    assert "MAIL" not in server.commands


@pytest.mark.parametrize(
    ("refuse", "permanent", "said"),
    [
        ({"MAIL": "451 try later"}, False, "refused it: 451 try later"),
        ({"MAIL": "550 never"}, True, "refused it: 550 never"),
        ({"greeting": "421 busy"}, False, "421 busy"),
        ({TO[0]: "550 who?", TO[1]: "550 who?"}, True, "refused oncall@example.org, night.shift"),
        ({TO[0]: "451 grey", TO[1]: "451 grey"}, False, "451 grey"),
        ({"DATA": "554 spam"}, True, "554 spam"),
        ({TO[1]: "550 who?"}, True, "night.shift+gpu@example.org: 550 who?; the others got it"),
    ],
)
def test_what_a_server_says_no_to(refuse, permanent, said):
    with MailStub() as server:
        server.refuse.update(refuse)
        failure = failure_of(sink_to(server))
    assert failure.permanent is permanent
    assert said in str(failure)


def test_nobody_there():
    failure = failure_of(MailSink("127.0.0.1:1", sender="a@example.org", to=TO, tls="none"))
    assert not failure.permanent
    assert "could not reach the mail server 127.0.0.1:1" in str(failure)


def test_a_config_that_cannot_be_used():
    with pytest.raises(ConfigError) as caught:
        MailSink("a b", sender="x", to=["a@b.org, c@d.org", "me <a@b.org>", "a@b.org\r\nBcc: c@d.org"])
    said = "\n".join(caught.value.problems)
    assert "'a b' must be HOST or HOST:PORT" in said
    assert said.count("is not a mail address") == 4
    for more, problem in (
        ({"to": []}, "names nobody"),
        ({"to": TO, "user": "u"}, "belong together"),
        ({"to": TO, "tls": "none", "user": "u", "password": password()}, "unencrypted"),
    ):
        with pytest.raises(ConfigError, match=problem):
            MailSink("smtp.example.org", sender="a@example.org", **more)
