"""Words for people: text that others wrote made printable, and durations. Pure."""

from __future__ import annotations

import re
import unicodedata

LINE_CHARACTERS = 500
BLOCK_CHARACTERS = 3000

# "\x1b[31m" colours, "\x1b]0;title\x07" a window title, "\x1bP...\x1b\\" a device string, "\x1bc" a reset;
# \x9b and \x9d are the one-byte forms of "\x1b[" and "\x1b]"
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[PX^_][^\x1b]*\x1b\\"
    r"|\x1b[ -/]*[0-~]"
)
#: Control, format (bidirectional overrides, zero width), surrogate, private and unassigned characters.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def plain(text: str, limit: int = LINE_CHARACTERS) -> str:
    """`text` as one printable line of at most `limit` characters.

    Terminal escapes, control characters, invisible and text-reversing ones are dropped; every kind of white
    space becomes one blank. A longer text ends in "…".
    """
    # nothing beyond this can matter, and a 10 MB line must not cost 10 MB of work
    cut = text[: 20 * limit + 1000]
    seen = (c for c in _ESCAPE.sub("", cut) if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    line = " ".join("".join(seen).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def plain_block(text: str, limit: int = BLOCK_CHARACTERS) -> str:
    """`text` with its line breaks, each line through `plain`; at most `limit` characters."""
    lines = [plain(line, limit) for line in text[: 4 * limit].strip().splitlines()]
    block = "\n".join(lines)
    return block if len(block) <= limit else block[: limit - 1].rstrip() + "…"


def in_words(seconds: float) -> str:
    """A duration for people: `45 s`, `2 m 10 s`, `3 h 5 m`, `2 d 4 h`."""
    left = max(0, round(seconds))
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if left >= size:
            rest = left % size // small
            return f"{left // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{left} s"
