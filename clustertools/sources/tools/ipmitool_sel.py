"""`ipmitool sel list`, `sel elist` and both with -c: the event log of the BMC.

Forms met: 1.8.18 prints `06/14/2023 | 10:01:17`, 1.8.19 the year in two digits and a zone after the time; an
event from before the BMC knew the time has ` Pre-Init ` and seconds. `elist` names the sensor, `list` gives
its number. A state that is neither asserted nor deasserted has no last column. Event texts are those of the
IPMI specification 2.0, tables 42-2 and 42-3, as ipmitool words them.
"""

from __future__ import annotations

import csv
import datetime
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ipmitool-sel"

FIELDS = {
    "events[].record": "number of the record, hexadecimal",
    "events[].time": "seconds since 1970, the BMC's clock taken for UTC; absent when it did not know the "
    "time",
    "events[].sensor": "name or number of the sensor",
    "events[].event": "what happened, in ipmitool's words",
    "events[].asserted": "whether it began; absent where it is neither",
    "events[].detail": "what else was printed: the reading",
}  # fmt: skip

_EMPTY = "SEL has no entries"
_DATE = r"[0-9]{1,2}/[0-9]{1,2}/(?:[0-9]{4}|[0-9]{2})"
_TIME = r"[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?: ?[AP]M)?(?: [A-Za-z0-9+:-]{1,8})?"


def recognise(text: str) -> bool:
    """Is its first line an event of the BMC, or the word that there are none?"""
    first = text.lstrip("\n").partition("\n")[0]
    if first.strip() == _EMPTY:
        return True
    #    1 | 06/14/2023 | 10:01:17 | Power Supply PS2 Status | Power Supply AC lost | Asserted
    # 1,09/07/2021,12:12:35,Drive Slot / Bay #0x42,Drive Present,Deasserted
    return bool(
        re.match(
            rf"\s*[0-9a-f]{{1,4}} ?[|,] ?(?:{_DATE}| ?Pre-Init ?) ?[|,] ?(?:{_TIME}|[0-9]{{10}}) ?[|,]", first
        )
    )


def read(text: str) -> dict[str, Any]:
    """`events`, in the log's order: record (hex), time (seconds, UTC assumed; absent when the BMC did not
    know it), sensor, event, asserted (absent where it is neither), detail.

    Raises Unparsable for a line of another form.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if [line.strip() for line in lines] == [_EMPTY]:
        return {"events": []}
    return {"events": [_event(line) for line in lines]}


def _event(line: str) -> dict[str, Any]:
    if len(line) > 2000:
        raise Unparsable("ipmitool sel has a line that is far too long", line)
    fields = _split(line)
    if len(fields) < 2 or not re.fullmatch("[0-9a-f]{1,4}", fields[0]):
        raise Unparsable("ipmitool sel has a line of an unknown form", line)
    if not re.fullmatch(rf"{_DATE}|Pre-Init", fields[1]):
        # "   9 | Linux kernel panic: Fatal excep" and "1a | OEM record df | 0002f0 | 123456": no times
        return {"record": fields[0], "sensor": "", "event": " ".join(fields[1:])[:200], "detail": ""}
    if len(fields) < 4:
        raise Unparsable("ipmitool sel has a line of an unknown form", line)
    found: dict[str, Any] = {"record": fields[0], "sensor": fields[3][:80], "event": "", "detail": ""}
    at = _time(fields[1], fields[2])
    if at is not None:
        found["time"] = at
    rest = fields[4:]
    for n, word in enumerate(rest):
        if word in ("Asserted", "Deasserted"):
            found["asserted"] = word == "Asserted"
            rest, found["detail"] = rest[:n], " ".join(rest[n + 1 :])[:200]
            break
    # an event's own text can hold a bar: "Uncorrectable ECC (UnCorrectable ECC |  DIMMD7)"
    found["event"] = " | ".join(rest)[:200]
    return found


def _split(line: str) -> list[str]:
    """The fields of either form; a line without bars is CSV."""
    if "|" in line and re.match(r"\s*[0-9a-f]{1,4} \|", line):
        return [field.strip() for field in line.split("|")]
    try:
        return [field.strip() for field in next(csv.reader([line]))]
    except (csv.Error, StopIteration):
        return []


def _time(date: str, clock: str) -> float | None:
    """Seconds since 1970. The zone is passed over: a BMC keeps one clock, and the age is asked in days."""
    if date == "Pre-Init":
        return None
    month, day, year = (int(n) for n in date.split("/"))
    match = re.match(r"([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?: ?([AP]M))?", clock)
    if match is None:
        return None
    hour = int(match[1]) % 12 + (12 if match[4] == "PM" else 0) if match[4] else int(match[1])
    try:
        at = datetime.datetime(
            year if year > 99 else 2000 + year if year < 70 else 1900 + year, month, day, hour,
            int(match[2]), int(match[3]), tzinfo=datetime.timezone.utc,
        )  # fmt: skip
    except ValueError:
        return None
    return at.timestamp()
