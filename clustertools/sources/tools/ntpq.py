"""`ntpq -p`: the peers of ntpd, offsets in milliseconds. Form: ntpq(8) of ntp 4.2 and ntpsec 1."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.chronyc import seconds

KIND = "ntpq"
FIELDS = {
    "peers[].name": "host or address, cut as printed",
    "peers[].state": "selected, selected by PPS, combined, outlier, false, backup, excess or rejected",
    "peers[].source": "what the peer follows: an address, .GPS., .INIT. (no answer yet), .POOL.",
    "peers[].stratum": "16: not synchronised",
    "peers[].last_answer_seconds": "ago; null: never",
    "peers[].poll_seconds": "how often it is asked",
    "peers[].reach": "of the last eight questions, a bit for each that was answered: 255 is all",
    "peers[].delay_seconds": "there and back",
    "peers[].offset_seconds": "of its clock from ours",
    "peers[].jitter_seconds": "of the offset",
}
#: The tally code before each peer.
_TALLY = {
    "*": "selected", "o": "selected by PPS", "+": "combined", "-": "outlier", "x": "false", "#": "backup",
    ".": "excess", " ": "rejected",
}  # fmt: skip


def recognise(text: str) -> bool:
    return bool(re.search(r"^\s+remote\s+refid\s+st\s+t\s+when\s+poll\s+reach", text[:4000], re.M))


def read(text: str) -> dict[str, Any]:
    """{"peers": [{"name", "state", "stratum", "reach", "offset_seconds", ...}]}."""
    peers = []
    for line in text.splitlines():
        if len(line) > 1000:
            raise Unparsable("ntpq printed an endless line", line)
        # *time1.example.o 198.18.0.1       2 u   33   64  377    0.412   -0.031   0.018
        # +45.79.36.123 (t 216.218.254.202  2 u    1   64    1   68.172  1589483   4.878
        row = re.fullmatch(
            r"([*o+\-x#. ])(\S+(?: \S{1,15})??)\s+(\S+)\s+(\d{1,2})\s+([a-zA-Z-])\s+(\S+)\s+(\d+[mhd]?)\s+"
            r"([0-7]{1,3})\s+(-?\d+(?:\.\d+)?)\s+(-?\d+(?:\.\d+)?)\s+(-?\d+(?:\.\d+)?)\s*",
            line,
        )
        if row:
            peers.append(
                {
                    "name": row[2], "state": _TALLY[row[1]], "source": row[3], "stratum": int(row[4]),
                    "last_answer_seconds": seconds(row[6]), "poll_seconds": seconds(row[7]),
                    "reach": int(row[8], 8), "delay_seconds": float(row[9]) / 1e3,
                    "offset_seconds": float(row[10]) / 1e3, "jitter_seconds": float(row[11]) / 1e3,
                }
            )  # fmt: skip
        elif line.strip() and not re.match(r"\s+remote\s+refid|=====", line):
            raise Unparsable("ntpq printed an unknown line", line)
    if not recognise(text):
        raise Unparsable("not the table of ntpq -p", text)
    return {"peers": peers}
