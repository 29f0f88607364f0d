"""`ethtool -m`: what the EEPROM of a transceiver says: SFP (SFF-8472), QSFP (SFF-8636), OSFP (CMIS).

Format: a tab, a name padded to 41, a colon, a value; written by sfpdiag.c, qsfp.c, cmis.c and sff-common.c of
ethtool. Version 6.14 and later pad and order likewise and can also print JSON.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ethtool-module"

FIELDS = {
    "identifier": "form of the module: 0x18 (QSFP-DD ...)",
    "connector": "as the module says",
    "vendor": "name of the maker",
    "part_number": "the maker's",
    "serial_number": "the maker's",
    "revision": "the maker's",
    "technology": "of the transmitter",
    "firmware": "version that runs (CMIS)",
    "state": "of the module (CMIS)",
    "temperature_celsius": "temperature; null when the module does not measure it. `values` by lane; "
    "`low`, `high` (alarm), `low_warning`, `high_warning`: limits of the module, null where it has none",
    "voltage_volts": "supply voltage; null when the module does not measure it. `values` by lane; `low`, "
    "`high` (alarm), `low_warning`, `high_warning`: limits of the module, null where it has none",
    "bias_milliamperes": "current of the laser; null when the module does not measure it. `values` by "
    "lane; `low`, `high` (alarm), `low_warning`, `high_warning`: limits of the module, null where it has "
    "none",
    "tx_power_dbm": "power sent; null when the module does not measure it. `values` by lane; `low`, "
    "`high` (alarm), `low_warning`, `high_warning`: limits of the module, null where it has none",
    "rx_power_dbm": "power received, no light being null; null when the module does not measure it. "
    "`values` by lane; `low`, `high` (alarm), `low_warning`, `high_warning`: limits of the module, null "
    "where it has none",
    "alarms[]": "alarms that are on, by the tool's names",
    "warnings[]": "warnings that are on",
    "flags.*": "by lane, true where it is set: rx_loss_of_signal, tx_fault ... (CMIS)",
}  # fmt: skip

#: What is measured: our name, the words of the present value (SFP; QSFP and CMIS), the words of its limits.
_MEASURED = (
    ("temperature_celsius", ("Module temperature",), "Module temperature"),
    ("voltage_volts", ("Module voltage",), "Module voltage"),
    ("bias_milliamperes", ("Laser bias current", "Laser tx bias current"), "Laser bias current"),
    ("tx_power_dbm", ("Laser output power", "Transmit avg optical power"), "Laser output power"),
    (
        "rx_power_dbm",
        ("Receiver signal average optical power", "Rcvr signal avg optical power", "Receiver signal OMA"),
        "Laser rx power",
    ),
)
_IDENTITY = (
    ("identifier", "Identifier"), ("connector", "Connector"), ("vendor", "Vendor name"),
    ("part_number", "Vendor PN"), ("serial_number", "Vendor SN"), ("revision", "Vendor rev"),
    ("technology", "Transmitter technology"), ("firmware", "Active firmware version"),
    ("state", "Module State"),
)  # fmt: skip
#: Rx loss of signal                         : [ Yes, No, ... ] or None
_LANE_FLAGS = {
    "Rx loss of signal": "rx_loss_of_signal", "Tx loss of signal": "tx_loss_of_signal",
    "Rx loss of lock": "rx_loss_of_lock", "Tx loss of lock": "tx_loss_of_lock", "Tx fault": "tx_fault",
}  # fmt: skip


def recognise(text: str) -> bool:
    """By the first line, which has the form of the module."""
    return bool(re.match(r"\s*Identifier\s+: 0x[0-9a-fA-F]{2} \(", text[:400]))


def read(text: str) -> dict[str, Any]:
    """Identity, and of each measured thing `values` by lane, `low` and `high` (alarm), `low_warning`,
    `high_warning`; `alarms` and `warnings` that are on; `flags` by lane (CMIS).

    A limit that the module does not have (all of them 0) is None. Raises Unparsable for an unknown line.
    """
    fields: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        # 	Laser tx bias current (Channel 1)         : 6.750 mA
        name, colon, value = line.partition(":")
        if not colon or len(line) > 500:
            raise Unparsable("ethtool -m printed a line of an unknown form", line)
        fields.append((re.sub(r"\s+", " ", name).strip(), value.strip()))
    first = dict(reversed(fields))
    if "Identifier" not in first:
        raise Unparsable("ethtool -m printed no identifier", text)
    found: dict[str, Any] = {name: first.get(key) for name, key in _IDENTITY}
    for name, now, limits in _MEASURED:
        found[name] = _measured(fields, first, now, limits)
    found["alarms"], found["warnings"] = (
        [name for name, value in fields if value == "On" and re.search(rf"(high|low) {word}\b", name)]
        for word in ("alarm", "warning")
    )
    found["flags"] = {
        _LANE_FLAGS[name]: re.findall("Yes|No", value)
        for name, value in fields
        if name in _LANE_FLAGS and value.startswith("[")
    }
    found["flags"] = {name: [word == "Yes" for word in lanes] for name, lanes in found["flags"].items()}
    return found


def _measured(
    fields: list[tuple[str, str]], first: dict[str, str], now: tuple[str, ...], limits: str
) -> dict[str, Any] | None:
    # Transmit avg optical power (Channel 1)   Rcvr signal avg optical power(Channel 1)   Laser bias current
    values = [
        _number(value) for name, value in fields if re.sub(r" ?\((Channel|Chan|Lane) \d+\)$", "", name) in now
    ]
    if not values:
        return None
    sides = {
        side: _number(first[key]) if (key := f"{limits} {words} threshold") in first else None
        for side, words in (
            ("low", "low alarm"), ("high", "high alarm"), ("low_warning", "low warning"),
            ("high_warning", "high warning"),
        )
    }  # fmt: skip
    if not any(value not in (None, 0.0, float("-inf")) for value in sides.values()):
        sides = dict.fromkeys(sides)
    return {"values": values, **sides}


def _number(value: str) -> float:
    # 30.56 degrees C / 87.01 degrees F   1.3924 mW / 1.44 dBm    0.0000 mW / -inf dBm    6.750 mA    3.2350 V
    match = re.match(
        r"-?\d{1,9}(?:\.\d{1,9})? (?:mW / (-?(?:\d{1,9}(?:\.\d{1,9})?|inf)) dBm|degrees C|mA|V)", value
    )
    if match is None:
        raise Unparsable("ethtool -m printed a value of an unknown form", value)
    return float(match[1]) if match[1] else float(value.split()[0])
