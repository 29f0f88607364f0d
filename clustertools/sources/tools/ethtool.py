"""What `ethtool INTERFACE` prints: what a network interface can do and does. Format: ethtool, common.c."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ethtool"

FIELDS = {
    "interface": "name",
    "speed_bits_per_second": "speed of the link; null when there is none or it is not known",
    "best_bits_per_second": "the fastest mode that the interface supports; null when it reports none",
    "duplex": "full, half, unknown; \"\" where it is not told",
    "autonegotiation": "whether it is on",
    "can_negotiate": "whether the interface can",
    "link": "whether a link was detected",
}  # fmt: skip

# 	Supported link modes:   1000baseKX/Full       Speed: 25000Mb/s     Supported ports: [ FIBRE ]
_FIELD = re.compile(r"\s+([A-Z][A-Za-z0-9 /-]{1,60}):\s*(.{0,300}?)\s*")
# 25000baseCR/Full     10baseT/Half     400000baseCR4/Full
_MODE = re.compile(r"([0-9]{2,7})base[A-Za-z0-9_-]{1,20}/(?:Full|Half)")
_NAMES = {
    "Auto-negotiation": "autonegotiation", "Supports auto-negotiation": "can_negotiate",
    "Link detected": "link",
}  # fmt: skip


def recognise(text: str) -> bool:
    return text.startswith("Settings for ")


def read(text: str) -> dict[str, Any]:
    """Interface, speed and the best speed it supports in bits per second (None: unknown), duplex, link.

    Complaints of the tool ("netlink error: Operation not permitted", "Cannot get wake-on-lan settings: ...")
    and fields that only later versions have do no harm: they are left out.
    """
    lines = text.splitlines()
    # Settings for enp65s0f0:
    title = re.fullmatch(r"Settings for (\S{1,64}):\s*", lines[0]) if lines else None
    if title is None:
        raise Unparsable("ethtool: no settings", text)
    found: dict[str, Any] = {
        "interface": title[1], "speed_bits_per_second": None, "best_bits_per_second": None, "duplex": "",
    }  # fmt: skip
    field, modes, known = "", [], 0
    for line in lines[1:]:
        if match := _FIELD.fullmatch(line):
            field, value = match[1], match[2]
            known += 1
        else:
            value = line.strip()  # the next of a list of modes
        if field == "Supported link modes":
            modes += [int(n) for n in _MODE.findall(value)]
        elif field == "Speed" and match:
            found["speed_bits_per_second"] = _speed(value, line)
        elif field == "Duplex" and match:
            found["duplex"] = value.lower().split(" ")[0].rstrip("!")
        elif field in _NAMES and match:
            found[_NAMES[field]] = value in ("yes", "on", "Yes")
    if not known:
        raise Unparsable("ethtool: no field", text)
    if modes:
        found["best_bits_per_second"] = max(modes) * 10**6
    return found


def _speed(value: str, line: str) -> int | None:
    # 25000Mb/s    Unknown!    Unknown! (65535)
    if value.startswith("Unknown!"):
        return None
    match = re.fullmatch(r"([0-9]{1,8})Mb/s", value)
    if match is None:
        raise Unparsable("ethtool: a speed of an unknown form", line)
    return int(match[1]) * 10**6
