"""PagerDuty's Events API v2: an incident is triggered, acknowledged and resolved under one dedup_key.

The key is the incident's own, so that an event that was sent twice changes nothing. Incidents that were
told as one are one alert, resolved when the last of them is over. What became of our actions is not sent:
the API knows no notes, and a trigger after the end would open the alert again.

Source: PagerDuty's reference of the Events API v2 (its schema is PagerDuty/api-schema, events-v2).
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import Any

from clustertools.errors import ConfigError
from clustertools.model import Status
from clustertools.sinks.http import Service
from clustertools.sinks.message import Message
from clustertools.sinks.secret import Secret, may_carry_secrets
from clustertools.text import plain, plain_block

API = "https://events.pagerduty.com"

#: Longest summary and dedup_key that the API takes.
SUMMARY_CHARACTERS = 1024
KEY_CHARACTERS = 255
_SEVERITY = {
    Status.CRITICAL: "critical",
    Status.UNKNOWN: "error",
    Status.WARNING: "warning",
    Status.SKIPPED: "info",
    Status.OK: "info",
}
# "https://wiki.example.org/gpu": in a runbook, which a person of the site wrote
_LINK = re.compile(r"https://[\w.~:/?#@!$&*+,;=%-]+[\w/]")


class PagerDutySink:
    """Delivers to one service of PagerDuty, named by its routing key. Raises ConfigError.

    `url` is for those whose account is elsewhere: https://events.eu.pagerduty.com.
    """

    burst = 20

    def __init__(
        self, key: Secret, *, name: str = "pagerduty", url: str = "", service: Service | None = None
    ) -> None:
        url = url or API
        if not may_carry_secrets(url):
            raise ConfigError(f"sink {name}: url must begin with https://, the key travels with each event")
        self.name = name
        self._key = key
        self._url = f"{url.rstrip('/')}/v2/enqueue"
        self._service = service or Service("PagerDuty")

    def deliver(self, message: Message, reference: str) -> str:
        """Send the event that the message calls for, if any; returns the dedup_key. Raises DeliveryFailed."""
        dedup_key = reference or dedup_key_of(message.key)
        action = _action(message, bool(reference))
        if action:
            routing_key = self._key.read()
            body = {"routing_key": routing_key, "event_action": action, "dedup_key": dedup_key}
            if action == "trigger":
                body |= _details(message)
            self._service.send(self._url, body, hidden=routing_key)
        return dedup_key


def dedup_key_of(key: str) -> str:
    """The incident's key, or for one that is too long its beginning and a digest of all of it."""
    shown = plain(key, 10_000)
    if len(shown) <= KEY_CHARACTERS and shown == key:
        return key
    return f"{shown[: KEY_CHARACTERS - 20]}:{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _action(message: Message, told: bool) -> str:
    """The API's verb for it; "" when there is nothing to send."""
    if message.kind == "resolved":
        return "" if message.left_open else "resolve"
    if message.kind in ("opened", "reopened", "worsened"):
        return "trigger"
    if message.kind == "note" and told and message.left_open:
        # a reminder, or somebody gave it back, is a further trigger of the same alert
        return "acknowledge" if message.taken_by else "trigger"
    return ""


def _details(message: Message) -> dict[str, Any]:
    when = datetime.datetime.fromtimestamp(message.time, datetime.timezone.utc)
    return {
        "client": "clustertools",
        "payload": {
            "summary": plain(message.title, SUMMARY_CHARACTERS) or "-",
            "source": plain(message.place, 200) or "clustertools",
            "severity": _SEVERITY[message.status],
            "timestamp": when.isoformat(timespec="milliseconds"),
            "class": plain(message.code, 200),
            "custom_details": {
                "incidents": [plain(key) for key in message.keys[:50]],
                "news": [plain(line) for line in message.lines],
                "evidence": [plain(line) for line in message.evidence],
                "runbook": plain_block(message.runbook),
            },
        },
        # only out of the runbook: a link that a log line holds is nobody's advice
        "links": [
            {"href": link, "text": "runbook"} for link in dict.fromkeys(_LINK.findall(message.runbook))
        ][:5],
    }
