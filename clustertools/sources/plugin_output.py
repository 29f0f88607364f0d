"""What a monitoring plugin prints: one line for people, more lines, and numbers behind a `|`.

    told = read("DISK OK - free space: / 3326 MB (56%); | /=2643MB;5948;5958;0;5968")
    told.summary           "DISK OK - free space: / 3326 MB (56%);"
    told.values            (Value("root_bytes", 2771386368.0),)

Format: the Monitoring Plugins Development Guidelines, "Plugin Output" and "Performance data", and the chapter
"Nagios Plugin API" of Nagios Core's manual, for output of several lines. Thresholds and ranges behind a value
are the plugin's own affair: its exit code says what they came to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.text import plain

#: Nagios Core keeps 8 KiB of what a plugin says (MAX_PLUGIN_OUTPUT_LENGTH); what is behind this is not read.
OUTPUT_CHARACTERS = 64 << 10
LINES, LINE_CHARACTERS = 20, 300
#: More series than this of one program would flood a time series database.
VALUES = 100
LABEL_CHARACTERS = 60

#: Unit -> (end of our name, factor). Sizes are powers of 1024, as check_disk and check_swap count them.
_UNITS: dict[str, tuple[str, float]] = {
    "": ("", 1.0),
    "s": ("_seconds", 1.0), "ms": ("_seconds", 1e-3), "us": ("_seconds", 1e-6),
    "%": ("_ratio", 0.01), "c": ("_total", 1.0),
    "b": ("_bytes", 1.0), "kb": ("_bytes", 2.0**10), "mb": ("_bytes", 2.0**20), "gb": ("_bytes", 2.0**30),
    "tb": ("_bytes", 2.0**40), "pb": ("_bytes", 2.0**50),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """One number; `name` is safe in any metric and ends in the unit that the value is in."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class PluginOutput:
    """`lines` is the long text. `strange` counts the performance data of an unknown form."""

    summary: str
    lines: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    strange: int = 0


def read(text: str) -> PluginOutput:
    """Any text is an answer: what is no performance data is counted, and all else is for people."""
    first, _, rest = text[:OUTPUT_CHARACTERS].strip("\r\n").partition("\n")
    summary, _, numbers = first.partition("|")
    # behind the first "|" of the further lines all that follows are numbers
    more, _, further = rest.partition("|")
    lines = [shown for line in more.splitlines()[: 4 * LINES] if (shown := plain(line, LINE_CHARACTERS))]
    found, strange = _values(f"{numbers}\n{further}")
    return PluginOutput(plain(summary), tuple(lines[:LINES]), tuple(found), strange)


def _values(text: str) -> tuple[list[Value], int]:
    found: dict[str, Value] = {}
    strange = 0
    for label, word in _pairs(text):
        value = _value(label, word)
        if value is None or len(found) >= VALUES:
            strange += 1
            continue
        name, count = value.name, 1
        while name in found:  # "/a-b" and "/a_b" are one name
            count += 1
            name = f"{_stem(label)}_{count}{value.name[len(_stem(label)) :]}"
        found[name] = Value(name, value.value)
    return list(found.values()), strange


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Label and what is behind its `=`; a word without one has no label."""
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        is_quoted = text[at] == "'"
        label, after = _quoted(text, at) if is_quoted else ("", at)
        end = after
        while end < len(text) and not text[end].isspace():
            end += 1
        word = text[after:end]
        if is_quoted:
            yield (label, word[1:]) if word.startswith("=") else ("", "")
        else:
            label, equals, word = word.rpartition("=")
            yield (label, word) if equals else ("", "")
        at = end


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The label that begins with the quote at `at`, where '' stands for a quote, and the place behind it."""
    close = at + 1
    while (close := text.find("'", close)) >= 0:
        if text[close + 1 : close + 2] != "'":
            return text[at + 1 : close].replace("''", "'"), close + 1
        close += 2
    return "", at  # never closed


def _value(label: str, word: str) -> Value | None:
    # 0.270634s;;;0.000000     2643MB;5948;5958;0;5968     U     -3.2     1.2e-05;@10:20
    match = re.match(
        r"([-+]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][-+]?\d{1,3})?)([a-zA-Zµ%]{0,3})(?:;|$)", word
    )
    unit = _UNITS.get(match[2].lower().replace("µs", "us")) if match else None
    if not label or match is None or unit is None:
        return None
    number = float(match[1]) * unit[1]
    return Value(_stem(label) + unit[0], number) if math.isfinite(number) else None


def _stem(label: str) -> str:
    """The label as a part of a metric's name: /var/log is var_log, / is root."""
    safe = re.sub(r"[^a-z0-9]+", "_", label[: 4 * LABEL_CHARACTERS].lower()).strip("_")[:LABEL_CHARACTERS]
    return safe or "root"
