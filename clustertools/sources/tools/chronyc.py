"""`chronyc tracking` and `chronyc sources`: how the clock is kept, by chrony 2 to 4.

`chronyc -c tracking` is read by `clustertools.sources.clock`, which the checks use; here are the two tables
that a person pastes. Forms: chronyc(1).
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "chronyc"
FIELDS = {
    "tracking.reference": "the server that is followed: its ID and name",
    "tracking.stratum": "distance from a reference clock; 16: not synchronised",
    "tracking.reference_time": "when the last measurement was used, as printed",
    "tracking.offset_seconds": "how far the system's clock is from NTP's; negative: slow",
    "tracking.last_offset_seconds": "estimated at the last update",
    "tracking.rms_offset_seconds": "long-term average",
    "tracking.frequency_ppm": "by how much the clock would run wrong by itself; negative: slow",
    "tracking.residual_frequency_ppm": "what the last measurements say beside it",
    "tracking.skew_ppm": "error bound of the frequency",
    "tracking.root_delay_seconds": "of the network to the reference clock",
    "tracking.root_dispersion_seconds": "error that adds up on the way from the reference clock",
    "tracking.update_interval_seconds": "between the last two updates",
    "tracking.leap_status": "Normal, Insert second, Delete second, Not synchronised",
    "sources[].name": "host or address",
    "sources[].mode": "server, peer or local",
    "sources[].state": "selected, combined, not combined, unreachable, false (a falseticker) or variable",
    "sources[].stratum": "the source's",
    "sources[].poll_seconds": "how often it is asked",
    "sources[].reach": "of the last eight questions, a bit for each that was answered: 255 is all",
    "sources[].last_answer_seconds": "ago; null: never",
    "sources[].offset_seconds": "as it was measured",
    "sources[].error_seconds": "margin of the measurement",
}  # fmt: skip

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_MODES = {"^": "server", "=": "peer", "#": "local"}
_STATES = {
    "*": "selected", "+": "combined", "-": "not combined", "?": "unreachable", "x": "false", "~": "variable",
}  # fmt: skip


_WORDS = {"Reference ID": "reference", "Ref time (UTC)": "reference_time", "Leap status": "leap_status"}
_NUMBERS = {
    "Stratum": "stratum", "System time": "offset_seconds", "Last offset": "last_offset_seconds",
    "RMS offset": "rms_offset_seconds", "Frequency": "frequency_ppm",
    "Residual freq": "residual_frequency_ppm", "Skew": "skew_ppm", "Root delay": "root_delay_seconds",
    "Root dispersion": "root_dispersion_seconds", "Update interval": "update_interval_seconds",
}  # fmt: skip


def recognise(text: str) -> bool:
    head = text[:4000]
    return bool(re.search(r"^Reference ID\s+: ", head, re.M) or re.search(r"^MS Name/IP address", head, re.M))


def read(text: str) -> dict[str, Any]:
    """{"tracking": {"stratum": 3, ...}, "sources": [...]}, each where the text has it."""
    tracking: dict[str, Any] = {}
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
            tracking |= _tracked(row[1], row[2].strip(), line)
        elif line.strip() and not re.match(
            # the legend of -v, "210 Number of sources = 2"
            r"MS Name/IP|=====|[ .'|/\\]|\d{3} (?:OK|Number of sources)",
            line,
        ):
            raise Unparsable("chronyc printed an unknown line", line)
    if not tracking and not sources:
        raise Unparsable("neither the tracking nor the sources of chronyc", text)
    return {"tracking": tracking, "sources": sources}


def _tracked(name: str, value: str, line: str) -> dict[str, Any]:
    """One line of `tracking`."""
    if name in _WORDS:
        return {_WORDS[name]: value}
    # 3      0.000001592 seconds slow of NTP time      -0.000001617 seconds      12.345 ppm fast
    number = re.fullmatch(
        r"([+-]?\d{1,12}(?:\.\d{1,12})?)(?: (?:seconds|ppm))?(?: (slow|fast)(?: of NTP time)?)?", value
    )
    if name not in _NUMBERS or number is None:
        raise Unparsable("chronyc printed an unknown line", line)
    told = float(number[1]) * (-1 if number[2] == "slow" else 1)
    return {_NUMBERS[name]: int(told) if name == "Stratum" else told}


def _source(mode: str, state: str, name: str, *rest: str) -> dict[str, Any]:
    stratum, poll, reach, last, _, _, measured, unit, error, error_unit = rest
    return {
        "name": name, "mode": _MODES[mode], "state": _STATES[state], "stratum": int(stratum),
        "poll_seconds": 2.0 ** int(poll), "reach": int(reach, 8), "last_answer_seconds": seconds(last),
        "offset_seconds": int(measured) * _UNITS[unit], "error_seconds": int(error) * _UNITS[error_unit],
    }  # fmt: skip


def seconds(word: str) -> int | None:
    """The time since an answer as chronyc and ntpq print it; None for "-" and where there is none."""
    # 23    12m    5h    3d    2y    -
    match = re.fullmatch(r"(\d{1,9})([mhdy]?)", word)
    steps = {"": 1, "m": 60, "h": 3600, "d": 86400, "y": 365 * 86400}
    return int(match[1]) * steps[match[2]] if match else None
