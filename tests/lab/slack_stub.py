"""A loopback server that answers as Slack's Web API and its incoming webhooks do, from memory.

    with SlackStub() as slack:
        SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
        slack.script.append(Answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "7"}))

It keeps channels and messages, refuses what Slack refuses (a wrong token, an unknown channel, a text that is
too long for its block), and plays `script` first, one answer for each request.
"""

from __future__ import annotations

import collections
import http.server
import itertools
import json
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

WEBHOOK_PATH = "/services/T000/B000/secretwebhookpart"


@dataclass(frozen=True)
class Answer:
    """What to say to one request. `wait_seconds`: say nothing for that long first.

    Status 0 closes the connection without a word. `drip_seconds`: then one byte at a time, that far apart.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    drip_seconds: float = 0.0


@dataclass
class Posted:
    """A message as the channel holds it, after all edits."""

    channel: str
    ts: str
    thread_ts: str
    body: dict[str, Any]
    edits: int = 0

    @property
    def text(self) -> str:
        """Everything that a person would read, in one string."""
        shown = [block["text"]["text"] for block in self.body.get("blocks") or ()]
        return "\n".join(shown or [self.body.get("text", "")])


class SlackStub:
    """The server; its attributes are what a test sets and looks at."""

    token = "xoxb-loopback-secret-token"

    def __init__(self) -> None:
        self.script: collections.deque[Answer] = collections.deque()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.messages: list[Posted] = []
        self.channels = {"C1": "C1", "#oncall": "C1", "C2": "C2"}
        self.refused_channels = {"C-alien": "not_in_channel", "C-old": "is_archived"}
        self.released = threading.Event()
        self._clock = itertools.count(1_700_000_000)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> SlackStub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        return self.origin + "/api/"

    @property
    def webhook(self) -> str:
        return self.origin + WEBHOOK_PATH

    @property
    def first_messages(self) -> list[Posted]:
        return [m for m in self.messages if not m.thread_ts]

    def replies(self, first: Posted) -> list[Posted]:
        return [m for m in self.messages if m.thread_ts == first.ts]

    # what Slack would say

    def answer(self, path: str, authorization: str, body: dict[str, Any]) -> Answer:
        if path.startswith("/services/"):
            return self._webhook(path, body)
        if authorization != f"Bearer {self.token}":
            return _refuse("invalid_auth")
        channel = body.get("channel", "")
        if channel in self.refused_channels:
            return _refuse(self.refused_channels[channel])
        if channel not in self.channels:
            return _refuse("channel_not_found")
        wrong = _wrong_blocks(body)
        if wrong:
            return _refuse(wrong)
        if path == "/api/chat.postMessage":
            return self._post(self.channels[channel], body)
        if path == "/api/chat.update":
            return self._update(channel, body)
        return _refuse("unknown_method")

    def _post(self, channel: str, body: dict[str, Any]) -> Answer:
        thread = body.get("thread_ts", "")
        if thread and not any(m.ts == thread for m in self.messages):
            return _refuse("thread_not_found")
        posted = Posted(channel, f"{next(self._clock)}.000100", thread, body)
        self.messages.append(posted)
        return Answer(
            body={"ok": True, "channel": channel, "ts": posted.ts, "message": {"text": body["text"]}}
        )

    def _update(self, channel: str, body: dict[str, Any]) -> Answer:
        # an edit wants the channel's ID, a name will not do
        if channel != self.channels[channel]:
            return _refuse("channel_not_found")
        for message in self.messages:
            if message.channel == channel and message.ts == body["ts"]:
                message.body = {**message.body, **body}
                message.edits += 1
                return Answer(body={"ok": True, "channel": channel, "ts": message.ts, "text": body["text"]})
        return _refuse("message_not_found")

    def _webhook(self, path: str, body: dict[str, Any]) -> Answer:
        if path != WEBHOOK_PATH:
            return Answer(404, "no_service")
        wrong = _wrong_blocks(body)
        if wrong:
            return Answer(400, wrong)
        self.messages.append(Posted("webhook", f"{next(self._clock)}.000100", "", body))
        return Answer(200, "ok")

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                body = json.loads(raw)
                stub.requests.append((self.path, body))
                if stub.script:
                    answer = stub.script.popleft()
                else:
                    answer = stub.answer(self.path, self.headers.get("authorization", ""), body)
                if answer.wait_seconds:
                    stub.released.wait(answer.wait_seconds)
                if answer.status == 0:
                    self.close_connection = True
                    return
                said = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
                try:
                    self.send_response(answer.status)
                    kind = "text/html" if isinstance(answer.body, str) else "application/json"
                    for name, value in {"content-type": kind, **answer.headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(said.encode())))
                    self.end_headers()
                    for byte in said.encode() if answer.drip_seconds else b"":
                        self.wfile.write(bytes([byte]))
                        if stub.released.wait(answer.drip_seconds):
                            return
                    self.wfile.write(b"" if answer.drip_seconds else said.encode())
                except OSError:
                    self.close_connection = True  # the client gave up waiting

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: the test looks at `requests`."""

        return Handler


def _refuse(error: str) -> Answer:
    return Answer(200, {"ok": False, "error": error})


def _wrong_blocks(body: dict[str, Any]) -> str:
    """Slack's limits: 150 characters in a header, 3,000 in a section, none empty, about 13,000 in all."""
    blocks = body.get("blocks") or []
    limits = {"header": 150, "section": 3000}
    for block in blocks:
        if not 1 <= len(block["text"]["text"]) <= limits[block["type"]]:
            return "invalid_blocks"
    if len(json.dumps(blocks, ensure_ascii=False)) > 13_000:
        return "msg_blocks_too_long"
    return "" if body.get("text") or blocks else "no_text"
