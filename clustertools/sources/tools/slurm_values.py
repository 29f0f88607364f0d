"""How Slurm's tools write times, limits, exit codes and absent values; as text and in JSON.

Text: slurm's src/common/parse_time.c (`secs2time_str`) and src/common/slurm_protocol_defs.c. JSON: plain
numbers up to data_parser 0.0.38, {"set", "infinite", "number"} since 0.0.39.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

from clustertools.errors import Unparsable

#: What stands for no value.
_NOTHING = frozenset(("", "(null)", "N/A", "n/a", "n/s", "None", "Unknown", "None assigned", "NONE", "none"))
#: Slurm's INFINITE and NO_VAL of 16, 32 and 64 bits (slurm.h).
_NO_NUMBER = frozenset((0xFFFF, 0xFFFE, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFE))
# 365-00:00:00   12:30   1-02:03   00:00:33.250
_SPAN = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?(?:\.\d+)?")


def text_or_none(text: str) -> str | None:
    """The text, or None where Slurm says that there is none."""
    return None if text.strip() in _NOTHING else text.strip()


def seconds(text: str) -> float | None:
    """A span of time, `days-hours:minutes:seconds` or `minutes:seconds`; None: without end, or unset."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        return None
    days, first, second, third = (int(group) if group else None for group in match.groups())
    assert first is not None
    if days is not None:
        return days * 86400.0 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600.0 + (second or 0) * 60 + third
    return first * 60.0 + (second or 0)


def exit_code(text: str) -> tuple[int | None, int | None]:
    """`1:0` is exit code 1 and no signal; (None, None) for anything else."""
    code, mark, signal = text.strip().partition(":")
    return (int(code), int(signal)) if mark and code.isdigit() and signal.isdigit() else (None, None)


def count(text: str) -> int | None:
    """A number, `4`, or the least of a range, `1-1`; None for anything else."""
    match = re.fullmatch(r"(\d+)(?:-\d+)?", text.strip())
    return int(match[1]) if match else None


def snake(heading: str) -> str:
    """A column's heading as a name: `NODELIST(REASON)` nodelist_reason, `TIME_LIMI` time_limi."""
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")


# JSON


def document(text: str, what: str, *keys: str) -> dict[str, Any]:
    """The JSON object of a tool, which must have one of `keys`. Raises Unparsable."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable(f"{what}: not whole JSON", text) from exc
    if not isinstance(data, dict) or not any(isinstance(data.get(key), list) for key in keys):
        raise Unparsable(f"{what}: JSON of another tool", text)
    return data


def is_document(text: str, *keys: str) -> bool:
    """Whether `text` is Slurm's JSON with a list under one of `keys`."""
    if text.lstrip()[:1] != "{" or not re.search(r'"Slurm"|"slurm"|openapi|data_parser', text[:4000]):
        return False
    try:
        document(text, "", *keys)
    except Unparsable:
        return False
    return True


def number(value: Any) -> float | None:
    """A number of either form; None where it is unset or without end."""
    if isinstance(value, dict):
        return number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value in _NO_NUMBER:
        return None
    return value


def words(value: Any) -> list[str]:
    """States: one word in old versions, a list since."""
    return [str(word).upper() for word in value] if isinstance(value, list) else [str(value or "").upper()]


def moment(value: Any) -> str | None:
    """Seconds since 1970 as ISO text in UTC; None for 0, which means never."""
    at = number(value)
    try:
        return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%FT%TZ") if at else None
    except (OverflowError, ValueError, OSError):
        return None
