"""What programs on nodes print, gathered: whole and capped for a command, line by line for a conversation.

Every transport feeds one of the two sinks as bytes come in: `Whole` for `run`, `Spoken` for `talk`.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from clustertools.fleet import Answer, Line
from clustertools.host import OUTPUT_CAP_BYTES, Completed

#: What is kept of the standard error of a program that converses, and of its words in an Answer.
TAIL_BYTES = 64 << 10
#: A longer line is cut: JSON that long is a mistake, and must not fill our memory.
LINE_CAP_BYTES = 1 << 20
#: So much may wait for a slow reader; then the nodes have to wait.
WAITING_LINES = 20_000
WAITING_CHARACTERS = 64 << 20

CUT = " … (cut: a line of more than 1 MiB)"


class Sink(Protocol):
    """Takes what a program prints, and says at the end what that was."""

    def out(self, data: bytes) -> None: ...
    def err(self, data: bytes) -> None: ...
    def completed(self, argv: Sequence[str], returncode: int, elapsed_seconds: float) -> Completed: ...
    def said(self) -> str: ...


class Whole:
    """Everything up to the cap; what comes after it is dropped, so that the program can end."""

    def __init__(self, cap_bytes: int = OUTPUT_CAP_BYTES) -> None:
        self._out, self._err, self._cap, self._truncated = bytearray(), bytearray(), cap_bytes, False

    def out(self, data: bytes) -> None:
        self._keep(self._out, data)

    def err(self, data: bytes) -> None:
        self._keep(self._err, data)

    def _keep(self, buffer: bytearray, data: bytes) -> None:
        room = self._cap - len(buffer)
        self._truncated = self._truncated or len(data) > room
        buffer += data[: max(0, room)]

    def completed(self, argv: Sequence[str], returncode: int, elapsed_seconds: float) -> Completed:
        return Completed(
            tuple(argv),
            returncode,
            self._out.decode("utf-8", "replace"),
            self._err.decode("utf-8", "replace"),
            elapsed_seconds,
            self._truncated,
        )

    def said(self) -> str:
        both = (part.decode("utf-8", "replace").strip() for part in (self._out, self._err))
        return "\n".join(part for part in both if part)


class Lines:
    """Cuts a stream of bytes into lines, each at most LINE_CAP_BYTES long."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest, self._is_cut = "", False

    def feed(self, data: bytes, *, is_end: bool = False) -> list[str]:
        """The lines that are whole now; at the end also the last one, though nothing closed it."""
        # only "\n" ends a line: splitlines would also cut at what JSON may hold bare, like U+2028
        *whole, rest = self._decoder.decode(data, is_end).split("\n")
        found = []
        for line in whole:
            found.append(self._closed(line))
        self._rest, self._is_cut = self._capped(rest)
        if is_end and self._rest:
            found.append(self._closed(""))
        return found

    def _closed(self, end: str) -> str:
        text, is_cut = self._capped(end)
        self._rest, self._is_cut = "", False
        return text + CUT if is_cut else text.removesuffix("\r")

    def _capped(self, more: str) -> tuple[str, bool]:
        room = LINE_CAP_BYTES - len(self._rest)
        return self._rest + more[: max(0, room)], self._is_cut or len(more) > room


class Mailbox:
    """What has been said and not been read yet. Answers always fit; lines only while there is room.

    Whoever reads from a node asks `has_room` first, and stops reading that node without it: its program then
    waits, as in a pipe. `on_room` is called when there is room again.
    """

    def __init__(self, on_room: Callable[[], None] = lambda: None) -> None:
        self._items: deque[Line | Answer] = deque()
        self._changed = threading.Condition()
        self._characters = 0
        self._is_full = False
        self._on_room = on_room

    @property
    def has_room(self) -> bool:
        return not self._is_full

    def put(self, items: Sequence[Line | Answer]) -> None:
        if not items:
            return
        with self._changed:
            self._items.extend(items)
            self._characters += sum(len(i.text) for i in items if isinstance(i, Line))
            self._is_full = len(self._items) >= WAITING_LINES or self._characters >= WAITING_CHARACTERS
            self._changed.notify_all()

    def wait_for_room(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_full, seconds)

    def take(self, seconds: float) -> Line | Answer | None:
        """The oldest one, as soon as there is one; None when there is none for `seconds`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), seconds):
                return None
            item = self._items.popleft()
            if isinstance(item, Line):
                self._characters -= len(item.text)
            # half empty before the nodes go on: otherwise each line read would wake them for one line
            was_full = self._is_full
            if len(self._items) <= WAITING_LINES // 2 and self._characters <= WAITING_CHARACTERS // 2:
                self._is_full = False
            if was_full and not self._is_full:
                self._changed.notify_all()
        if was_full and not self._is_full:
            self._on_room()
        return item

    def __len__(self) -> int:
        return len(self._items)


class Spoken:
    """Puts the lines of one node's standard output into the mailbox; keeps the end of its standard error."""

    def __init__(self, node: str, mailbox: Mailbox) -> None:
        self.node, self.mailbox = node, mailbox
        self._lines, self._err, self._is_ended = Lines(), bytearray(), False

    def out(self, data: bytes) -> None:
        self.mailbox.put([Line(self.node, text) for text in self._lines.feed(data)])

    def err(self, data: bytes) -> None:
        self._err += data
        del self._err[:-TAIL_BYTES]

    def _end(self) -> str:
        if not self._is_ended:
            self._is_ended = True
            self.mailbox.put([Line(self.node, text) for text in self._lines.feed(b"", is_end=True)])
        return self._err.decode("utf-8", "replace")

    def completed(self, argv: Sequence[str], returncode: int, elapsed_seconds: float) -> Completed:
        return Completed(tuple(argv), returncode, "", self._end(), elapsed_seconds)

    def said(self) -> str:
        return self._end().strip()


def receive(mailbox: Mailbox, left: set[str], seconds: float) -> Iterator[Line | Answer]:
    """What is in the mailbox, and comes into it within `seconds`, until each node of `left` gave its Answer.

    A node's Answer takes it out of `left`.
    """
    until = time.monotonic() + seconds
    while left or len(mailbox):
        item = mailbox.take(max(0.0, until - time.monotonic()))
        if item is None:
            return
        if isinstance(item, Answer):
            left.discard(item.node)
        yield item
