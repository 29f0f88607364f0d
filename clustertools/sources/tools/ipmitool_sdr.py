"""`ipmitool sdr`, `sdr elist`, `sensor`, and each with -c: the sensors of the BMC with their states.

sdr:       Inlet Temp       | 24 degrees C      | ok
sdr elist: Inlet Temp       | 01h | ok  |  7.1 | 24 degrees C
sensor:    Inlet Temp       | 24.000     | degrees C  | ok    | na | na | na | 60.000 | 70.000 | 80.000
csv:       Inlet Temp,24,degrees C,ok        Inlet Temp,24.000,degrees C,ok,na,na,na,60.000,70.000,80.000
"""

from __future__ import annotations

import csv
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ipmitool-sdr"

FIELDS = {
    "sensors[].name": "as the BMC calls it",
    "sensors[].state": "ok; nc, cr, nr or lnc, lcr, lnr, unc, ucr, unr: beyond a limit, from "
    "non-critical to non-recoverable; ns, na: no reading; absent for a bit mask",
    "sensors[].entity": "IPMI entity and instance, 7.1 (elist)",
    "sensors[].value": "the reading",
    "sensors[].unit": "of the reading: celsius, rpm, volts, watts, amperes, percent",
    "sensors[].events[]": "what a discrete sensor asserts: Presence detected, Power Supply AC lost ...",
}  # fmt: skip

#: ipmitool's words for a sensor's state: lower or upper, non-critical, critical, non-recoverable; not seen.
STATES = frozenset("ok ns nc cr nr na lnr lcr lnc unc ucr unr us".split())
#: What `sensor` writes for a state that is a bit mask.
_MASK = re.compile(r"0x[0-9a-f]{1,8}")
_UNITS = {
    "degrees C": "celsius", "degrees F": "fahrenheit", "RPM": "rpm", "Watts": "watts", "Volts": "volts",
    "Amps": "amperes", "percent": "percent", "unspecified": "",
}  # fmt: skip


def recognise(text: str) -> bool:
    """Is its first line a sensor?"""
    first = text.lstrip("\n").partition("\n")[0]
    try:
        return len(first) < 300 and _sensor(first) is not None
    except Unparsable:
        return False


def read(text: str) -> dict[str, Any]:
    """`sensors`: name, state (`ok`, `ucr` ...; absent for a bit mask), and a value with its unit or the
    events that a discrete sensor asserts.

    Raises Unparsable for a line of another form.
    """
    found = []
    for line in text.splitlines():
        if line.strip():
            if len(line) > 2000:
                raise Unparsable("ipmitool has a line that is far too long", line)
            found.append(_sensor(line))
    return {"sensors": found}


def _sensor(line: str) -> dict[str, Any]:
    fields = [f.strip() for f in line.split("|")] if "|" in line else _csv(line)
    if len(fields) == 3 and fields[2] in STATES:
        return _told(fields[0], fields[2], fields[1])
    if len(fields) == 5 and re.fullmatch("[0-9A-F]{2,4}h", fields[1]) and fields[2] in STATES:
        return _told(fields[0], fields[2], fields[4], fields[3])
    if len(fields) in (4, 5, 6) and fields[3] in STATES:  # csv of sdr, with entity and name of it in elist
        return _told(fields[0], fields[3], f"{fields[1]} {fields[2]}".strip(), *fields[4:5])
    if len(fields) == 10 and (fields[3] in STATES or _MASK.fullmatch(fields[3])):
        state = fields[3] if fields[3] in STATES else ""
        # 40,000: the decimal comma of a locale
        value = f"{fields[1].replace(',', '.')} {fields[2]}"
        value = "" if fields[1] == "na" or fields[2] == "discrete" else value
        return _told(fields[0], state, value)
    raise Unparsable("ipmitool has a sensor of an unknown form", line)


def _csv(line: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line]))]
    except (csv.Error, StopIteration):
        return []


def _told(name: str, state: str, text: str, entity: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"name": name[:80]}
    if state:
        found["state"] = state
    if entity:
        found["entity"] = entity[:40]
    # 24 degrees C     9240 RPM     0.98 Volts     50 Watts, Presence detected
    match = re.fullmatch(r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?) ?([A-Za-z][A-Za-z ]{0,20})?((?:, .*)?)", text)
    if match:
        found |= {"value": float(match[1]), "unit": _UNITS.get(match[2] or "", (match[2] or "").strip())}
        text = match[3]
    events = [word.strip()[:80] for word in text.split(",") if word.strip()]
    found["events"] = [
        e for e in events if e not in ("No Reading", "Disabled", "no reading", "disabled", "Not Readable")
    ]
    return found
