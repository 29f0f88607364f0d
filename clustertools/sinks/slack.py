"""Slack: one thread for each incident, and its first message edited when the incident changes or ends.

With a bot token (scope `chat:write`) the first message of an incident opens a thread; everything later is a
reply; a recovery, a return and a worsening also edit the first message, which is the one that people see.
What only changed in its words edits it without a reply.
With an incoming webhook there are no threads: each message is a post of its own.

Sent twice: when we die between Slack's answer and our commit, the outbox sends that message once more. Slack
has no key that would refuse the second (`client_msg_id` is for clients, not for bots). Each post therefore
carries message metadata, event type `clustertools_message`, whose `delivery` is the same in both copies.
Edits may be repeated without harm, which is why the edit goes before the reply.

Sources: Slack's references of chat.postMessage, chat.update, Block Kit, message formatting and rate limits
(docs.slack.dev), and its note of 2016-05-17 on the errors of incoming webhooks.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from clustertools.errors import ConfigError, DeliveryFailed
from clustertools.model import Status
from clustertools.sinks.http import retry_after
from clustertools.sinks.in_time import in_time
from clustertools.sinks.message import Message, of_thread
from clustertools.sinks.secret import Secret, hide, may_carry_secrets
from clustertools.text import plain, plain_block

if TYPE_CHECKING:
    from slack_sdk import WebClient

T = TypeVar("T")

API = "https://slack.com/api/"

#: Block Kit: a header holds 150 characters, the text of a section 3,000. All blocks of a message together
#: were refused (`msg_blocks_too_long`) from about 13,000 on (slackapi/bolt-js issue 2509), so: small.
HEADER_CHARACTERS = 150
SECTION_CHARACTERS = 3000
_EVIDENCE_CHARACTERS = 1500
_RUNBOOK_CHARACTERS = 900

#: Slack's rate limit: about one message a second and channel, short bursts allowed.
BURST = 10

#: An opening that comes into a thread joins those before it.
_EDITS = frozenset({"opened", "resolved", "reopened", "worsened", "changed"})
_LIGHTS = {Status.CRITICAL: "\U0001f534", Status.WARNING: "\U0001f7e1", Status.UNKNOWN: "⚪"}
_GREEN = "\U0001f7e2"

#: Refusals that pass by themselves. Any other refusal is about this message or this configuration.
_PASSING = frozenset(
    "fatal_error internal_error message_limit_exceeded org_login_required ratelimited rate_limited "
    "request_timeout rollup_error service_unavailable team_added_to_org".split()
)
_THREAD_IS_GONE = frozenset({"cannot_reply_to_message", "message_not_found", "thread_not_found"})
_NOT_EDITABLE = frozenset({"cant_update_message", "edit_window_closed", "update_failed"})
_BLOCKS_REFUSED = frozenset(
    {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_too_long"}
)
_REINSTALL = "install the app again and put its bot token (xoxb-...) where the config says"
_HINTS = {
    "account_inactive": _REINSTALL,
    "action_prohibited": "an administrator of the workspace restricts posting here: ask them",
    "channel_is_archived": "unarchive the channel or name another one",
    "channel_not_found": "name the channel by its ID (C...) and invite the bot: /invite @BOT",
    "invalid_auth": _REINSTALL,
    "invalid_token": "the webhook was deleted or is mistyped: make a new one",
    "is_archived": "unarchive the channel or name another one",
    "missing_scope": "add the scope chat:write to the app and install it again",
    "no_active_hooks": "the webhook is disabled: make a new one",
    "no_service": "the webhook was deleted or disabled: make a new one",
    "no_team": "the workspace of the webhook is gone",
    "not_authed": _REINSTALL,
    "not_in_channel": "invite the bot to the channel: /invite @BOT",
    "restricted_action": "an administrator of the workspace restricts posting here: ask them",
    "token_expired": _REINSTALL,
    "token_revoked": _REINSTALL,
}
# "channel_not_found": what Slack's own refusals look like, and no proxy's error page does
_REFUSAL = re.compile(r"[a-z][a-z0-9_]{2,60}")

# slack_sdk logs requests, at DEBUG with the webhook's URL, which is a secret; what matters is in our errors
_SILENT = logging.getLogger("clustertools.sinks.slack.sdk")
_SILENT.setLevel(logging.CRITICAL + 1)
_SILENT.propagate = False


class Refused(DeliveryFailed):
    """Slack understood and said no; `error` is its word for it."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text, permanent=True)
        self.error = error


@dataclass(frozen=True, slots=True)
class Thread:
    """A first message: `C024BE91L:1700000000.000100`."""

    channel: str
    ts: str

    def __str__(self) -> str:
        return f"{self.channel}:{self.ts}"

    @classmethod
    def parse(cls, reference: str) -> Thread | None:
        """The thread that a kept reference means; None when it is empty or of another sink."""
        # "C024BE91L:1700000000.000100"; the count behind it, ":31", was written by an earlier version
        match = re.fullmatch(r"([^:\s]+):(\d+\.\d+)(?::\d{1,6})?", reference)
        return cls(match[1], match[2]) if match else None


class SlackSink:
    """Delivers to one channel. Exactly one of the four places of the secret is given.

    The secret is read anew for each message, so a rotated token needs no restart. `slack_sdk` is imported
    by the first delivery. Raises ConfigError.
    """

    def __init__(
        self,
        channel: str = "",
        *,
        token_file: str = "",
        token_env: str = "",
        webhook_file: str = "",
        webhook_env: str = "",
        base_url: str = API,
        timeout_seconds: float = 10.0,
        name: str = "slack",
        burst: int = BURST,
        environ: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        given = [x for x in (token_file, token_env, webhook_file, webhook_env) if x]
        problems = []
        if len(given) != 1:
            problems.append(
                f"sink {name}: give exactly one of token_file, token_env, webhook_file and webhook_env"
            )
        if (token_file or token_env) and not channel:
            problems.append(f"sink {name}: a bot token needs a channel, best its ID (C...)")
        if not may_carry_secrets(base_url):
            problems.append(
                f"sink {name}: base_url must begin with https://, the token travels with each call"
            )
        if timeout_seconds <= 0:
            problems.append(f"sink {name}: timeout_seconds must be more than 0")
        if problems:
            raise ConfigError(*problems)
        self.name = name
        self.burst = burst
        self.channel = channel
        self._is_webhook = bool(webhook_file or webhook_env)
        self._place = Secret(
            "Slack webhook URL" if self._is_webhook else "Slack token",
            token_file or webhook_file, token_env or webhook_env, os.environ if environ is None else environ,
        )  # fmt: skip
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._not_before = 0.0

    def __repr__(self) -> str:
        kind = "webhook" if self._is_webhook else f"channel {self.channel}"
        return f"SlackSink({self.name}, {kind}, secret from {self._place.place})"

    def deliver(self, message: Message, reference: str) -> str:
        """Tell Slack; returns the thread (`channel:ts`), or "" from a webhook. Raises DeliveryFailed."""
        pause = self._not_before - self._monotonic()
        if pause > 0:
            raise DeliveryFailed("Slack asked us to slow down", retry_after_seconds=pause)
        secret = self._secret()
        try:
            if self._is_webhook:
                return self._deliver_webhook(message, secret)
            return self._deliver_thread(message, Thread.parse(reference), secret)
        except DeliveryFailed as exc:
            if exc.retry_after_seconds:
                self._not_before = self._monotonic() + exc.retry_after_seconds
            raise

    def secret_problems(self) -> list[str]:
        """What is wrong with the secret's place, in sentences: missing, empty, readable by others."""
        try:
            self._secret()
        except DeliveryFailed as exc:
            return [str(exc)]
        return [f"sink {self.name}: {problem}" for problem in self._place.readable_by_others()]

    def _secret(self) -> str:
        return self._place.address() if self._is_webhook else self._place.read()

    # bot token

    def _deliver_thread(self, message: Message, thread: Thread | None, token: str) -> str:
        client = self._client(token)
        if thread is None:
            return "" if message.kind == "changed" else self._post_first(client, message, token)
        try:
            # one recovery of 31 must not turn the message about all 31 green
            first = of_thread(message) if message.kind in _EDITS else None
            if first is not None:
                self._edit(client, first, thread, token)
            if message.kind == "changed":
                return str(thread)
            more: dict[str, Any] = {"thread_ts": thread.ts, "channel": thread.channel}
            if message.kind == "worsened" or _is_more_than(message, message.joins):
                more["reply_broadcast"] = True  # threads are easily missed, and this one matters
            self._post(client, message, token, **more)
        except Refused as exc:
            if exc.error not in _THREAD_IS_GONE:
                raise
            return self._post_first(client, message, token)
        return str(thread)

    @property
    def edits(self) -> bool:
        """Whether what was told can be changed: not through a webhook."""
        return not self._is_webhook

    def _post_first(self, client: WebClient, message: Message, token: str) -> str:
        answer = self._post(client, message, token, channel=self.channel)
        thread = Thread(str(answer.get("channel") or self.channel), str(answer.get("ts", "")))
        return str(thread) if Thread.parse(str(thread)) else ""

    def _post(self, client: WebClient, message: Message, token: str, **more: Any) -> Mapping[str, Any]:
        fields = {**_QUIET, "mrkdwn": False, "unfurl_links": False, "unfurl_media": False, **more}
        fields["metadata"] = {"event_type": "clustertools_message", "event_payload": _payload(message)}
        return self._dressed(client.chat_postMessage, message, token, **fields)

    def _edit(self, client: WebClient, message: Message, thread: Thread, token: str) -> None:
        try:
            fields = {**_QUIET, "channel": thread.channel, "ts": thread.ts}
            self._dressed(client.chat_update, message, token, **fields)
        except Refused as exc:
            if exc.error not in _NOT_EDITABLE:
                raise
            # the workspace allows no late edits: the reply that follows tells the same

    def _dressed(
        self, method: Callable[..., Any], message: Message, token: str, **fields: Any
    ) -> Mapping[str, Any]:
        """The call with blocks; should Slack refuse the blocks, the same news as bare text."""
        try:
            return self._call(method, token, text=_text(message), blocks=blocks(message), **fields)
        except Refused as exc:
            if exc.error not in _BLOCKS_REFUSED:
                raise
        # an empty list removes the blocks of a message that is edited
        return self._call(method, token, text=_text(message, 600), blocks=[], **fields)

    def _call(self, method: Callable[..., Any], token: str, **fields: Any) -> Mapping[str, Any]:
        from slack_sdk.errors import SlackApiError, SlackClientError

        try:
            data = self._in_time(lambda: method(**fields)).data
        except SlackApiError as exc:
            raise _no(exc.response.status_code, exc.response.headers, exc.response.data) from None
        except (SlackClientError, *_TRANSPORT) as exc:
            raise _unreachable(exc, token) from None
        if not isinstance(data, Mapping):
            raise DeliveryFailed("Slack answered in an unknown form")
        return data

    def _client(self, token: str) -> WebClient:
        try:
            from slack_sdk import WebClient
        except ImportError as exc:
            raise DeliveryFailed("slack_sdk is not installed here", permanent=True) from exc
        # no retries inside: waiting is the outbox's business, the watchdog's loop must go on
        return WebClient(
            token=token,
            base_url=self._base_url,
            timeout=self._timeout_seconds,  # type: ignore[arg-type]
            retry_handlers=[],
            logger=_SILENT,
        )

    def _in_time(self, call: Callable[[], T]) -> T:
        """What `call` gives or raises, or TimeoutError after three timeouts."""
        return in_time(call, 3 * self._timeout_seconds, self.name)

    # webhook

    def _deliver_webhook(self, message: Message, url: str) -> str:
        body = {**_QUIET, "unfurl_links": False, "unfurl_media": False}
        try:
            self._send(url, {**body, "text": _text(message), "blocks": blocks(message)})
        except Refused as exc:
            if exc.error not in _BLOCKS_REFUSED:
                raise
            self._send(url, {**body, "text": _text(message, 600)})
        return ""

    def _send(self, url: str, body: dict[str, Any]) -> None:
        try:
            from slack_sdk.errors import SlackClientError
            from slack_sdk.webhook import WebhookClient
        except ImportError as exc:
            raise DeliveryFailed("slack_sdk is not installed here", permanent=True) from exc
        try:
            client = WebhookClient(
                url,
                timeout=self._timeout_seconds,  # type: ignore[arg-type]
                retry_handlers=[],
                logger=_SILENT,
            )
            answer = self._in_time(lambda: client.send_dict(body))
        except (SlackClientError, *_TRANSPORT) as exc:
            raise _unreachable(exc, url) from None
        said = str(answer.body).strip()
        if answer.status_code == 200 and said == "ok":
            return
        if answer.status_code in (404, 410) and not _REFUSAL.fullmatch(said):
            said = "no_service"
        raise _no(answer.status_code, answer.headers, {"error": said})


#: What urllib and the reading of an answer raise. A timeout is an OSError; a page in another encoding or
#: JSON of another shape (a proxy's login page) ends as one of the last four.
_TRANSPORT = (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError, LookupError)

#: No names, channels or addresses are turned into links or mentions (chat.update would do so by default).
_QUIET: dict[str, Any] = {"parse": "none", "link_names": False}


def _unreachable(exc: Exception, secret: str) -> DeliveryFailed:
    """The failure in words, without the secret that a library may have put into its text."""
    reason = getattr(exc, "reason", exc) if isinstance(exc, OSError) else exc
    if isinstance(reason, TimeoutError):
        return DeliveryFailed("Slack did not answer in time")
    if isinstance(reason, OSError):
        words = reason.strerror or str(reason) or type(reason).__name__
    else:
        words = f"{type(reason).__name__}: {reason}"
    return DeliveryFailed(f"could not reach Slack: {plain(hide(words, secret), 200)}")


def _no(status: int, headers: Mapping[str, Any], data: Any) -> DeliveryFailed:
    """What a refusal means: slow down, come back, or never."""
    error = data.get("error") if isinstance(data, Mapping) else None
    if status == 429 or error in ("ratelimited", "rate_limited", "message_limit_exceeded"):
        return DeliveryFailed("Slack asked us to slow down", retry_after_seconds=_retry_after(headers))
    if status >= 500 or not isinstance(error, str) or not _REFUSAL.fullmatch(error):
        return DeliveryFailed(f"Slack answered with HTTP status {status} and no reason that is known")
    if error in _PASSING:
        return DeliveryFailed(f"Slack has trouble of its own: {error}")
    return Refused(error, f"Slack refused it: {error}" + (f": {_HINTS[error]}" if error in _HINTS else ""))


def _retry_after(headers: Mapping[str, Any]) -> float:
    value = {str(k).lower(): v for k, v in headers.items()}.get("retry-after", "")
    value = value[0] if isinstance(value, list) and value else value
    return retry_after({"retry-after": str(value)})


def _is_more_than(message: Message, joined: str) -> bool:
    """Whether an opening that joins a thread is the worse name of what the thread is about."""
    mine, _, place = message.key.partition(":")
    theirs, _, other = joined.partition(":")
    return message.status is Status.CRITICAL and place == other and mine != theirs


# what it looks like


def escaped(text: str, limit: int) -> str:
    """`text` for Slack: `&`, `<` and `>` as entities, cut with "…" so that the whole is at most `limit` long.

    Length is counted in UTF-16 units after escaping, the strictest of the ways to count it.
    """
    pieces: list[str] = []
    left = limit - 1
    for character in text:
        piece = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(character, character)
        left -= len(piece) + (ord(character) > 0xFFFF)
        if left < 0:
            return "".join(pieces) + "…"
        pieces.append(piece)
    return "".join(pieces)


def blocks(message: Message) -> list[dict[str, Any]]:
    """The message in Block Kit. All text is of type plain_text, which knows no bold, no links and no
    mentions; only evidence is in a code block, with its back quotes replaced."""
    title = _with_light(message)
    shown = [{"type": "header", "text": _plain_text(title, HEADER_CHARACTERS)}]
    lines = [plain(line) for line in message.lines]
    if len(escaped(title, 2 * HEADER_CHARACTERS)) > HEADER_CHARACTERS:
        lines.insert(0, title)
    if lines:
        shown.append({"type": "section", "text": _plain_text("\n".join(lines), SECTION_CHARACTERS)})
    if message.evidence:
        quoted = "\n".join(plain(line) for line in message.evidence).replace("`", "'")
        code = f"```\n{escaped(quoted, _EVIDENCE_CHARACTERS)}\n```"
        shown.append({"type": "section", "text": {"type": "mrkdwn", "text": code, "verbatim": True}})
    if message.runbook:
        text = plain_block(message.runbook, _RUNBOOK_CHARACTERS)
        shown.append({"type": "section", "text": _plain_text(text, SECTION_CHARACTERS)})
    return shown


def _plain_text(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escaped(text, limit) or "-", "emoji": False}


def _with_light(message: Message) -> str:
    if message.kind == "outcome":
        return plain(message.title)
    light = _GREEN if message.kind == "resolved" else _LIGHTS.get(message.status, "")
    return f"{light} {plain(message.title)}".strip()


def _text(message: Message, limit: int = SECTION_CHARACTERS) -> str:
    """The bare text: what a notification shows, and all there is when blocks are refused."""
    return escaped("\n".join([_with_light(message), *(plain(line) for line in message.lines)]), limit)


def _payload(message: Message) -> dict[str, Any]:
    """What marks the two copies of a message that was sent twice as the same."""
    identity = json.dumps([message.keys, message.kind, message.time, message.title])
    return {
        "delivery": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "key": plain(message.key, 200),
        "kind": message.kind,
        "incidents": len(message.keys),
    }
