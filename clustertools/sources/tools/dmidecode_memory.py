"""`dmidecode -t memory` (or `-t 17`): the sockets for memory modules, and what is in them.

A DMI type 17 record a socket, in the form of SMBIOS 2.1 to 3.7. dmidecode 3.x prints sizes in GB, older ones
in MB.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "dmidecode-memory"

FIELDS = {
    "sockets": "places for memory modules",
    "modules[].place": "name of the socket, as printed on the board",
    "modules[].bank": "the bank's name",
    "modules[].size_bytes": "size",
    "modules[].type": "DDR4, DDR5 ...",
    "modules[].maker": "manufacturer",
    "modules[].part_number": "the maker's part number",
    "modules[].speed_transfers_per_second": "what the module can do",
    "modules[].configured_transfers_per_second": "what it runs at",
}  # fmt: skip

_UNITS = {"kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40, "bytes": 1}
_EMPTY = ("No Module Installed", "Not Installed", "None")
#: What boards write where they know nothing.
_NOTHING = frozenset(("", "Unknown", "Not Specified", "NO DIMM", "None", "<OUT OF SPEC>"))
#: Flash and other chips that are listed as memory devices, and are not main memory.
_NOT_MAIN = frozenset(("Flash", "ROM", "EEPROM", "FEPROM", "EPROM", "CDRAM"))


def recognise(text: str) -> bool:
    """Is this dmidecode with memory devices?"""
    return "DMI type 17," in text and "\nMemory Device" in text


def read(text: str) -> dict[str, Any]:
    """`modules`: what is installed, and `sockets`, the number of them all.

    Raises Unparsable without a memory device, or for one whose size has an unknown form.
    """
    modules, sockets = [], 0
    for record in re.split(r"^Handle 0x", text, flags=re.MULTILINE)[1:]:
        # 0040, DMI type 17, 92 bytes
        if "DMI type 17," not in record.partition("\n")[0]:
            continue
        fields = {
            name.strip(): value.strip()
            for name, colon, value in (line.partition(":") for line in record.splitlines()[1:])
            if colon
        }
        if fields.get("Type") in _NOT_MAIN:
            continue
        sockets += 1
        size = _size(fields.get("Size", ""), record)
        if size:
            modules.append(_module(fields, size))
    if not sockets:
        raise Unparsable("dmidecode lists no memory device", text[:200])
    return {"sockets": sockets, "modules": modules}


def _size(text: str, record: str) -> int:
    """Bytes; 0 for an empty socket."""
    # Size: 64 GB      Size: 65536 MB      Size: No Module Installed      Size: Unknown
    if text in _EMPTY or text == "Unknown":
        return 0
    match = re.fullmatch(r"([0-9]{1,12}) (bytes|kB|KB|MB|GB|TB)", text)
    if match is None:
        raise Unparsable("dmidecode has a memory device with a size of an unknown form", text or record[:200])
    return int(match[1]) * _UNITS[match[2]]


def _module(fields: dict[str, str], size: int) -> dict[str, Any]:
    bank = fields.get("Bank Locator", "")
    place = fields.get("Locator", "")
    found: dict[str, Any] = {
        "place": place[:80],
        "bank": "" if bank in _NOTHING else bank[:80],
        "size_bytes": size,
        "type": fields.get("Type", ""),
        "maker": fields.get("Manufacturer", "")[:80],
        "part_number": fields.get("Part Number", "")[:80],
        "speed_transfers_per_second": _speed(fields.get("Speed", "")),
        # "Configured Clock Speed" until dmidecode 3.1
        "configured_transfers_per_second": _speed(
            fields.get("Configured Memory Speed") or fields.get("Configured Clock Speed", "")
        ),
    }
    return {key: value for key, value in found.items() if value not in _NOTHING and value != 0}


def _speed(text: str) -> int:
    # 4800 MT/s     or, wrongly so named, 2666 MHz
    match = re.fullmatch(r"([0-9]{1,6}) (?:MT/s|MHz)", text)
    return int(match[1]) * 1_000_000 if match else 0
