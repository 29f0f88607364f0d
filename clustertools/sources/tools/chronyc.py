"""`chronyc tracking` and `chronyc sources`: how the clock is kept, by chrony 2 to 4.

`chronyc -c tracking` is read by `clustertools.sources.clock`, which the checks use; here are the two tables
that a person pastes. Forms: chronyc(1).
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "chronyc"

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_MODES = {"^": "server", "=": "peer", "#": "local"}
_STATES = {
    "*": "selected", "+": "combined", "-": "not combined", "?": "unreachable", "x": "false", "~": "variable",
}  # fmt: skip


def recognise(text: str) -> bool:
    head = text[:4000]
    return bool(re.search(r"^Reference ID\s+: ", head, re.M) or re.search(r"^MS Name/IP address", head, re.M))


def read(text: str) -> dict[str, Any]:
    """{"tracking": {"stratum": "3", ...}, "sources": [...]}, each where the text has it."""
    tracking: dict[str, str] = {}
    sources = []
    for line in text.splitlines():
        if len(line) > 1000:
            raise Unparsable("chronyc printed an endless line", line)
        # ^* time1.example.org             2   6   377    23    -12us[  -20us] +/-   15ms
        source = re.fullmatch(
            r"([\^=#])([*+\-?x~])\s+(\S+)\s+(\d{1,2})\s+(-?\d{1,2})\s+([0-7]{1,3})\s+(\S+)\s+"
            r"([+-]?\d+)(ns|us|ms|s)\[\s*([+-]?\d+)(ns|us|ms|s)\]\s+\+/-\s+(\d+)(ns|us|ms|s)\s*",
            line,
        )
        # System time     : 0.000001592 seconds slow of NTP time
        row = re.fullmatch(r"([A-Z][A-Za-z ()]{3,20}?)\s*: (.{0,200})", line)
        if source:
            sources.append(_source(*source.groups()))
        elif row:
            tracking[row[1].lower().replace(" ", "_")] = row[2].strip()
        elif line.strip() and not re.match(
            r"MS Name/IP|[=.]{10}|  ?[.'|/\\ ]|\d{3} OK|Number of sources", line
        ):
            raise Unparsable("chronyc printed an unknown line", line)
    if not tracking and not sources:
        raise Unparsable("neither the tracking nor the sources of chronyc", text)
    # 0.000001592 seconds slow of NTP time
    offset = re.fullmatch(
        r"(\d{1,12}\.\d{1,12}) seconds (slow|fast) of NTP time", tracking.get("system_time", "")
    )
    told: dict[str, Any] = {"tracking": tracking, "sources": sources}
    if offset:
        told["offset_seconds"] = float(offset[1]) * (-1 if offset[2] == "slow" else 1)
    return told


def _source(mode: str, state: str, name: str, *rest: str) -> dict[str, Any]:
    stratum, poll, reach, last, _, _, measured, unit, error, error_unit = rest
    return {
        "name": name, "mode": _MODES[mode], "state": _STATES[state], "stratum": int(stratum),
        "poll_seconds": 2.0 ** int(poll), "reach": int(reach, 8), "last_answer": last,
        "offset_seconds": int(measured) * _UNITS[unit], "error_seconds": int(error) * _UNITS[error_unit],
    }  # fmt: skip
