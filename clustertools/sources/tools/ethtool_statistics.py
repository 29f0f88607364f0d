"""What `ethtool -S INTERFACE` prints: the driver's own counters of a network interface."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ethtool-statistics"

FIELDS = {
    "counters.*": "by the driver's own names, as it counts them",
}  # fmt: skip

#      rx_prio3_pause: 41927      [0]: rx_bytes: 209487403324      rxq0: rx_pkts: 388868940376
_LINE = re.compile(r"\s*(\S(?:.{0,100}?\S)?)\s*: (-?[0-9]{1,20})\s*")


def recognise(text: str) -> bool:
    return text.lstrip()[:100].startswith("NIC statistics:")


def read(text: str) -> dict[str, Any]:
    """`counters` by the driver's names. Raises Unparsable for a line that is no counter."""
    return {"counters": statistics(text)}


def statistics(text: str) -> dict[str, int]:
    """The counters by name; the same name twice (a driver's fault) gives the last."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "NIC statistics:":
        raise Unparsable("ethtool -S: no statistics", text)
    found = {}
    for line in lines[1:]:
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise Unparsable("ethtool -S: a line of an unknown form", line)
        found[match[1]] = int(match[2])
    return found
