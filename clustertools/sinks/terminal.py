"""Messages as blocks of text on a stream: a terminal, a file, the journal."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import TextIO

from clustertools.errors import DeliveryFailed
from clustertools.model import Status
from clustertools.sinks.message import Message
from clustertools.text import plain

# SGR codes: bold red, yellow, magenta, green
_COLOURS = {Status.CRITICAL: "1;31", Status.WARNING: "33", Status.UNKNOWN: "35"}
_GOOD = "32"


def use_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """NO_COLOR (no-color.org) says no, FORCE_COLOR yes; else only a terminal that is not dumb has colour."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def render(message: Message, *, colour: bool = False) -> str:
    """The block: the title, then everything else indented under it. Ends with a line break."""
    title = plain(message.title)
    if colour:
        good = message.kind == "resolved" or title.startswith("DONE ")
        code = _GOOD if good else _COLOURS.get(message.status, "1")
        word, _, rest = title.partition(" ")
        title = f"\x1b[{code}m{word}\x1b[0m {rest}".rstrip()
    # `plain` again: whoever made the message, this is the last place before a person's terminal
    lines = [title, *(f"  {plain(line)}" for line in message.lines)]
    lines += [f"  | {plain(line)}" for line in message.evidence]
    return "\n".join(lines) + "\n"


class TerminalSink:
    """Writes each message to a stream (standard error unless told otherwise) and flushes."""

    burst = 0

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        name: str = "terminal",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._stream = stream
        self._environ = os.environ if environ is None else environ

    def deliver(self, message: Message, reference: str) -> str:
        """Write the block. Raises DeliveryFailed when the stream is closed or its reader is gone."""
        stream = sys.stderr if self._stream is None else self._stream
        try:
            text = render(message, colour=use_colour(stream, self._environ))
            # a terminal in the C locale knows no "·"; news in a poorer dress is still news
            encoding = stream.encoding or "utf-8"
            stream.write(text.encode(encoding, "replace").decode(encoding))
            stream.flush()
        except (OSError, ValueError, LookupError) as exc:
            # a full disk under a redirected stream may have room again; a reader that left does not return
            passing = isinstance(exc, OSError) and exc.errno not in (errno.EPIPE, errno.EBADF)
            raise DeliveryFailed(f"could not write to the terminal: {exc}", permanent=not passing) from exc
        return ""
