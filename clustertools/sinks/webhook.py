"""A webhook: each message as one JSON object, or as the one line of text that chat services take.

    {"version": 1, "event": "opened", "status": "CRITICAL", "key": "GpuLost:alps/gpu-017", "keys": [...],
     "code": "GpuLost", "place": "gpu-017", "title": "...", "lines": [...], "evidence": [...],
     "runbook": "...", "time": 1790000000.0, "delivery": "5d41402abc4b2a76"}

`delivery` is the same in both copies of a message that was sent twice. Fields are added within a version,
never taken away. The text form, {"text": ...}, is what the incoming webhooks of Slack, Mattermost, Google
Chat and others understand; it is escaped for Slack's markup, so that nobody's log line mentions a channel.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from clustertools.errors import ConfigError
from clustertools.sinks.http import Service
from clustertools.sinks.message import Message
from clustertools.sinks.secret import Secret, may_carry_secrets
from clustertools.text import plain, plain_block

VERSION = 1
#: Slack cuts a text at 40,000 characters and Google Chat refuses one beyond 4,096 bytes.
_TEXT_CHARACTERS = 3500

Body = Literal["event", "text"]


class WebhookSink:
    """Posts to one address, which is a secret (`address`) or not (`url`). Raises ConfigError.

    `token`, where there is one, travels as `Authorization: Bearer`.
    """

    burst = 20

    def __init__(
        self,
        *,
        name: str = "webhook",
        url: str = "",
        address: Secret | None = None,
        token: Secret | None = None,
        body: Body = "event",
        service: Service | None = None,
    ) -> None:
        if bool(url) == bool(address):
            raise ConfigError(f"sink {name}: give exactly one of url, webhook_file and webhook_env")
        if token and url and not may_carry_secrets(url):
            raise ConfigError(f"sink {name}: url must begin with https://, the token travels with each call")
        self.name = name
        self._url = url
        self._address = address
        self._token = token
        self._body = body
        self._service = service or Service(f"the webhook {name}")

    def deliver(self, message: Message, reference: str) -> str:
        """Post it; a webhook has no threads, so the reference is "". Raises DeliveryFailed."""
        url = self._address.address() if self._address else self._url
        body = event(message) if self._body == "event" else {"text": text(message)}
        self._service.send(url, body, token=self._token.read() if self._token else "")
        return ""


def event(message: Message) -> dict[str, Any]:
    """The message as data, each text printable. JSON needs no other escaping."""
    return {
        "version": VERSION,
        "event": message.kind,
        "status": message.status.name,
        "key": plain(message.key),
        "keys": [plain(key) for key in message.keys],
        "code": plain(message.code),
        "place": plain(message.place),
        "title": plain(message.title),
        "lines": [plain(line) for line in message.lines],
        "evidence": [plain(line) for line in message.evidence],
        "runbook": plain_block(message.runbook),
        "time": message.time,
        "delivery": delivery(message),
    }


def delivery(message: Message) -> str:
    """What marks the two copies of a message that was sent twice as the same."""
    identity = json.dumps([message.keys, message.kind, message.time, message.title])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def text(message: Message) -> str:
    """The whole message as lines of text in Slack's escaping: without its markup, mentions or links."""
    lines = [message.title, *message.lines, *(f"| {line}" for line in message.evidence)]
    shown = "\n".join(plain(line) for line in lines)
    shown = shown if len(shown) <= _TEXT_CHARACTERS else shown[: _TEXT_CHARACTERS - 1] + "…"
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # "@channel", "@here": chat services other than Slack take them without the angle brackets
    return re.sub(r"(?<!\w)@(?=\w)", "@\N{ZERO WIDTH SPACE}", shown)
