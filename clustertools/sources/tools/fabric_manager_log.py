"""The log of NVIDIA's fabric manager, /var/log/fabricmanager.log, and of IMEX, which has the same form.

Form: logs in the tests of leptonai/gpud and in public reports, versions 450 to 580. A message may go on in
lines without a time.
"""

from __future__ import annotations

import calendar
import datetime
import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.fabric_manager import parse_line

KIND = "fabric-manager-log"
FIELDS = {
    "versions[]": "of each start, in order: fabric manager's or IMEX's own",
    "records[].time_seconds": "since 1970; the log's clock, which has no zone, is taken for UTC",
    "records[].level": "debug, info, warning, error, critical",
    "records[].thread": "number of the thread",
    "records[].text": "the message, with the lines that continue it",
    "records[].event": "what is known of it: kind (fatal, non-fatal, link-fatal, link-non-fatal, multicast, "
    "topology, start), part, the NVSwitch that it names, and code, the SXid",
    "events[]": "every event, part and code once: with count, and first and last as places in `records`",
    "left_out_records": "records beyond the first 200000",
}

#: A busy node of a shared fabric writes some ten thousand lines a day.
MOST_RECORDS = 200_000
TEXT_CHARACTERS = 4096
_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
# [Feb 25 2025 13:59:45] [INFO] [tid 1803] Received an inband message:  Message header details: ...
_RECORD = re.compile(
    r"\[([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d{4}) (\d\d):(\d\d):(\d\d)\] \[([A-Z]{2,10})\] \[tid (\d{1,10})\] ?"
)
# Fabric Manager version 535.161.08 is running with ...     IMEX version 570.133.20 is running with ...
_VERSION = re.compile(r"(?:Fabric Manager|IMEX) version (\S{1,40}) is running")


def recognise(text: str) -> bool:
    """Whether one of the first lines is a record."""
    return any(_RECORD.match(line[:200]) for line in text[:20000].split("\n")[:20])


def read(text: str) -> dict[str, Any]:
    """Every record, what it says, and how often. Raises Unparsable when no line is one of this log."""
    records: list[dict[str, Any]] = []
    versions: list[str] = []
    count = 0
    for line in text.split("\n"):
        line = line[:TEXT_CHARACTERS].replace("\0", "").rstrip("\r")
        match = _RECORD.match(line)
        if match:
            count += 1
            if count <= MOST_RECORDS:
                records.append(_record(match, line[match.end() :]))
                if version := _VERSION.match(records[-1]["text"]):
                    versions.append(version[1])
        elif line.strip() and records and len(records[-1]["text"]) < TEXT_CHARACTERS:
            records[-1]["text"] = f"{records[-1]['text']}\n{line}"[:TEXT_CHARACTERS]
    if not records:
        raise Unparsable("no line of this text is one of fabric manager's log", text[:200])
    for record in records:
        event = parse_line(record["text"])
        if event:
            told = {"kind": event.kind, "part": event.part, "code": event.code}
            record["event"] = {key: value for key, value in told.items() if value not in ("", None)}
    return {
        "versions": versions, "records": records, "events": _counted(records),
        "left_out_records": count - len(records),
    }  # fmt: skip


def _record(match: re.Match[str], text: str) -> dict[str, Any]:
    month, day, year, hour, minute, second, level, thread = match.groups()
    try:
        time: float | None = datetime.datetime(
            int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second),
            tzinfo=datetime.timezone.utc,
        ).timestamp()  # fmt: skip
    except (KeyError, ValueError):
        time = None
    return {"time_seconds": time, "level": level.lower(), "thread": int(thread), "text": text}


def _counted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, record in enumerate(records):
        if event := record.get("event"):
            key = (event["kind"], event.get("part"), event.get("code"))
            one = found.setdefault(key, {**event, "count": 0, "first": number})
            one["count"] += 1
            one["last"] = number
    return list(found.values())
