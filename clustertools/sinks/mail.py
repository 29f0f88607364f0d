"""Mail by SMTP: plain text, one thread for each incident, TLS verified unless the server is this machine.

The first mail of an incident has a Message-ID made of what it says; later ones answer it (In-Reply-To,
References), so mail programs show them together, and one that was sent twice is one to most of them. Nothing
in a header comes from anybody but us unprintable or with a line break in it; the body has no markup at all.

Sources: RFC 5322 (threads), RFC 2919 (List-Id), RFC 3834 (Auto-Submitted), RFC 8314 (TLS from the start).
"""

from __future__ import annotations

import email.policy
import email.utils
import hashlib
import json
import re
import smtplib
import socket
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Literal

from clustertools.errors import ConfigError, DeliveryFailed
from clustertools.sinks.http import TIMEOUT_SECONDS, tls
from clustertools.sinks.in_time import in_time
from clustertools.sinks.message import Message
from clustertools.sinks.secret import Secret, hide, is_this_machine
from clustertools.text import plain, plain_block

Tls = Literal["starttls", "tls", "none"]
#: RFC 6409 and RFC 8314; without TLS it can only be a relay.
PORTS = {"starttls": 587, "tls": 465, "none": 25}
#: A longer subject is cut by most mail programs, and one of 998 bytes is no longer legal.
_SUBJECT_CHARACTERS = 180
# "oncall@example.org"; one address and nothing else, no name beside it, no quoted strings
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
# "<4f2a...@example.org>"
_MESSAGE_ID = re.compile(r"<[\w.+-]+@[\w.-]+>")


class MailSink:
    """Sends through one server (`host` or `host:port`). Raises ConfigError with every problem.

    `password` is used with `user`, and only where TLS protects it or the server is this machine.
    """

    burst = 20

    def __init__(
        self,
        server: str,
        *,
        sender: str,
        to: Sequence[str],
        name: str = "mail",
        tls: Tls = "starttls",
        user: str = "",
        password: Secret | None = None,
        cluster: str = "",
        ca_file: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        host, port = _host_and_port(server, PORTS[tls])
        problems = [] if host else [f"sink {name}: server {server!r} must be HOST or HOST:PORT"]
        problems += [
            f"sink {name}: {address!r} is not a mail address such as oncall@example.org"
            for address in (sender, *to)
            if not _ADDRESS.fullmatch(address)
        ]
        if not to:
            problems.append(f"sink {name}: to names nobody")
        if bool(user) != bool(password):
            problems.append(f"sink {name}: user and token_file or token_env belong together")
        if tls == "none" and user and not is_this_machine(host):
            problems.append(f"sink {name}: tls: none would send the password of {user} unencrypted")
        if problems:
            raise ConfigError(*problems)
        self.name = name
        self._host, self._port, self._tls = host, port, tls
        self._sender, self._to = sender, tuple(to)
        self._user, self._password = user, password
        self._cluster = re.sub(r"[^A-Za-z0-9-]+", "-", cluster).strip("-") or "cluster"
        self._ca_file = ca_file
        self._timeout_seconds = timeout_seconds

    def deliver(self, message: Message, reference: str) -> str:
        """Send it; returns the Message-ID of the first mail of its thread. Raises DeliveryFailed."""
        mail = self.mail(message, reference)
        password = self._password.read() if self._password else ""
        try:
            refused = in_time(
                lambda: self._send(mail, password), 6 * self._timeout_seconds, self.name
            )  # a greeting, TLS, the login, and each command may take their time
        except smtplib.SMTPRecipientsRefused as exc:
            code, said = next(iter(exc.recipients.values()))
            raise _no(code, said, f"the mail server refused {_names(exc.recipients)}", password) from None
        except smtplib.SMTPResponseException as exc:
            raise _no(exc.smtp_code, exc.smtp_error, "the mail server refused it", password) from None
        except smtplib.SMTPNotSupportedError as exc:
            raise DeliveryFailed(
                f"the mail server cannot do that: {plain(str(exc), 200)}; see `tls` and `user`",
                permanent=True,
            ) from None
        except (smtplib.SMTPException, OSError, ValueError) as exc:
            raise self._unreachable(exc, password) from None
        if refused:
            raise DeliveryFailed(
                f"the mail server refused {_names(refused)}; the others got it", permanent=True
            )
        return reference if _MESSAGE_ID.fullmatch(reference) else str(mail["Message-ID"])

    def mail(self, message: Message, reference: str = "") -> EmailMessage:
        """The mail itself."""
        mail = EmailMessage(policy=email.policy.SMTP)
        mail["From"] = f"clustertools <{self._sender}>"
        mail["To"] = ", ".join(self._to)
        mail["Subject"] = plain(f"[{self._cluster}] {message.title}", _SUBJECT_CHARACTERS)
        mail["Date"] = email.utils.formatdate(message.time, localtime=False)
        mail["Message-ID"] = f"<{_identity(message)}@{self._sender.partition('@')[2]}>"
        if _MESSAGE_ID.fullmatch(reference):
            mail["In-Reply-To"] = reference
            mail["References"] = reference
        mail["List-Id"] = f"<{self._cluster}.clustertools.{self._sender.partition('@')[2]}>"
        # nobody's holiday answer, and no answer to one
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"
        mail.set_content(text(message))
        return mail

    def _send(self, mail: EmailMessage, password: str) -> dict[str, tuple[int, bytes]]:
        context = tls(self._ca_file)
        where = (self._host, self._port)
        if self._tls == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=self._timeout_seconds, context=context)
        else:
            server = smtplib.SMTP(*where, timeout=self._timeout_seconds)
        with server:
            if self._tls == "starttls":
                server.starttls(context=context)  # raises where the server does not offer it
            if self._user:
                server.login(self._user, password)
            return server.send_message(mail, self._sender, list(self._to))

    def _unreachable(self, exc: Exception, password: str) -> DeliveryFailed:
        where = f"the mail server {self._host}:{self._port}"
        if isinstance(exc, (TimeoutError, socket.timeout)):
            return DeliveryFailed(f"{where} did not answer in time")
        if isinstance(exc, ssl.SSLCertVerificationError):
            return DeliveryFailed(f"the certificate of {where} was not accepted: {exc.verify_message}")
        words = (exc.strerror if isinstance(exc, OSError) else "") or str(exc) or type(exc).__name__
        return DeliveryFailed(f"could not reach {where}: {plain(hide(words, password), 200)}")


def text(message: Message) -> str:
    """The body: plain text, each line printable."""
    parts = ["\n".join(plain(line) for line in (message.title, *message.lines))]
    if message.evidence:
        parts.append("\n".join(f"| {plain(line)}" for line in message.evidence))
    if message.runbook:
        parts.append(plain_block(message.runbook))
    return "\n\n".join(parts) + "\n"


def _identity(message: Message) -> str:
    said = json.dumps([message.keys, message.kind, message.time, message.title])
    return f"clustertools.{hashlib.sha256(said.encode()).hexdigest()[:32]}"


def _host_and_port(server: str, port: int) -> tuple[str, int]:
    """The two; "" for the host when `server` is neither HOST nor HOST:PORT nor [IPv6]:PORT."""
    # "smtp.example.org", "smtp.example.org:2525", "[::1]:25"
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", server)
    return (match[1].strip("[]"), int(match[2] or port)) if match else ("", port)


def _names(refused: dict[str, tuple[int, bytes]]) -> str:
    code, said = next(iter(refused.values()))
    return f"{plain(', '.join(refused), 200)}: {code} {plain(said.decode('utf-8', 'replace'), 200)}"


def _no(code: int, said: bytes | str, what: str, password: str) -> DeliveryFailed:
    """A refusal: 4xx passes (RFC 5321, 4.2.1), 5xx is for ever."""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return DeliveryFailed(f"{what}: {code} {plain(hide(words, password), 200)}", permanent=code >= 500)
