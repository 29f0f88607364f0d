"""`mlxlink` (MFT) and `mstlink` (mstflint): one port's link, bit error ratios, and cable or transceiver.

Formats as mlxlink/modules/mlxlink_commander.cpp of mstflint writes them, as text and with --json; the names
of the fields are the same in both. Seen: MFT 4.16 to 4.35.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from clustertools.errors import Unparsable

KIND = "mlxlink"

FIELDS = {
    "link": "state, physical_state, speed, width, fec as printed; null: not told",
    "recommendation": "what the firmware says of the link: No issue was observed",
    "status_opcode": "its number",
    "firmware": "version of the adapter",
    "ber": "bit error ratios raw, effective, symbol; the errors behind them; minutes since the counters "
    "were cleared; raw_errors_per_lane",
    "module": "cable or transceiver: identity; temperature_celsius, voltage_millivolts, "
    "bias_milliamperes, rx_power_dbm, tx_power_dbm with values by lane and the module's limits low and "
    "high; flags by lane",
}  # fmt: skip

_SECTIONS = ("Operational Info", "Physical Counters and BER Info", "Module Info", "Troubleshooting Info")
_TEXT_LIMIT = 1 << 20
_NOTHING = ("N/A", "", "NA", "-")


def recognise(text: str) -> bool:
    """By the heading that every call prints, or by it as a key of the JSON."""
    return bool(re.search(r'"(Operational|Module) Info"\s*:|^\W*Operational Info\W*\n-+', text[:20000], re.M))


def read(text: str) -> dict[str, Any]:
    """`link` (state, physical_state, speed, width, fec), `ber` (raw, effective, symbol, errors, minutes),
    `module` (temperature_celsius, rx_power_dbm ..., each with values, low and high; identity, flags by lane),
    `recommendation`, `status_opcode`, `firmware`.

    What the port does not tell is None or left out. Raises Unparsable for another form, and when the tool
    says itself that it failed.
    """
    if len(text) > _TEXT_LIMIT:
        raise Unparsable("mlxlink printed too much", text[:200])
    sections = _json(text) if text.lstrip().startswith("{") else _plain(text)
    if not any(name in sections for name in _SECTIONS):
        raise Unparsable("mlxlink printed none of the known sections", text)
    link, counters = sections.get("Operational Info", {}), sections.get("Physical Counters and BER Info", {})
    trouble, tool = sections.get("Troubleshooting Info", {}), sections.get("Tool Information", {})
    found: dict[str, Any] = {
        "link": {
            "state": _word(link, "State"), "physical_state": _word(link, "Physical state"),
            "speed": _word(link, "Speed"), "width": _word(link, "Width"), "fec": _word(link, "FEC"),
        },
        "recommendation": _word(trouble, "Recommendation"),
        "status_opcode": _integer(trouble, "Status Opcode"),
        "firmware": _word(tool, "Firmware Version"),
    }  # fmt: skip
    if counters:
        found["ber"] = _ber(counters)
    if "Module Info" in sections:
        found["module"] = _module(sections["Module Info"])
    return found


def _json(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
        status, output = data.get("status", {}), data["result"]["output"]
        if status.get("code", 0) != 0:
            raise Unparsable("mlxlink failed", str(status.get("message", status)))
        if not all(isinstance(section, dict) for section in output.values()):
            raise TypeError("a section is not a map")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("mlxlink printed JSON of an unknown form", text) from exc
    return dict(output)


def _plain(text: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    name, above = "", [""]
    for raw in text.splitlines():
        line = re.sub(r"\x1b\[[0-9;]{0,8}m", "", raw[:2000]).rstrip()
        # Temperature [C]                    : 54 [-5..75]
        key, colon, value = line.partition(" : ") if " : " in line else line.partition(" :")
        if line and not line.strip("-"):
            # another program's line can stand between a heading and its rule
            name = next((one for one in above if one.endswith((" Info", " Information"))), above[-1])
            sections.setdefault(name, {})
            above = [""]
        elif colon and name:
            sections[name][key.strip()] = value.strip()
        elif line:
            above.append(line.strip())
    return sections


def _word(section: Mapping[str, Any], key: str) -> str | None:
    value = section.get(key)
    if not isinstance(value, str) or value.strip() in _NOTHING:
        return None
    return value.strip()[:200]


def _integer(section: Mapping[str, Any], key: str) -> int | None:
    value = _word(section, key)
    return int(value) if value and re.fullmatch(r"\d{1,20}", value) else None


def _number(text: str, key: str) -> float | None:
    text = text.strip()
    if text in _NOTHING:
        return None
    # 61    -9.914    15E-255    -inf
    if re.fullmatch(r"-?(\d{1,20}(\.\d{1,9})?([eE][-+]?\d{1,4})?|inf)", text):
        return float(text)
    raise Unparsable(f"mlxlink: {key} is not a number", text)


def _lanes(section: Mapping[str, Any], key: str) -> list[str]:
    """The values of the lanes: {"values": [...]} in JSON, with commas in text."""
    value = section.get(key)
    if isinstance(value, Mapping):
        value = value.get("values")
    if isinstance(value, list):
        return [str(lane).strip() for lane in value[:32]]
    return [lane.strip() for lane in value.split(",")[:32]] if isinstance(value, str) else []


def _measured(section: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Values of the lanes and the module's own limits; without limits when it has none (0..0)."""
    value = section.get(key)
    if not isinstance(value, str):
        return None
    # 3.583,3.253,3.233,2.658 [-9.914..6.999]
    match = re.fullmatch(r"([^\[\]]*?)\s*(?:\[(\S{1,20}?)\.\.(\S{1,20})\])?", value.strip())
    if match is None:
        raise Unparsable(f"mlxlink: {key} has an unknown form", value)
    low, high = ((_number(side, key) if side else None) for side in (match[2], match[3]))
    if not (low or high):
        low = high = None
    values = [_number(lane, key) for lane in match[1].split(",")[:32]]
    if all(lane is None for lane in values):
        return None
    return {"values": values, "low": low, "high": high}


def _ber(section: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in (
        ("raw", "Raw Physical BER"), ("effective", "Effective Physical BER"), ("symbol", "Symbol BER"),
        ("minutes", "Time Since Last Clear [Min]"),
    ):  # fmt: skip
        value = _word(section, key)
        found[name] = None if value is None else _number(value, key)
    for name, key in (
        ("effective_errors", "Effective Physical Errors"), ("symbol_errors", "Symbol Errors"),
        ("link_down_count", "Link Down Counter"), ("link_recovery_count", "Link Error Recovery Counter"),
    ):  # fmt: skip
        found[name] = _integer(section, key)
    found["raw_errors_per_lane"] = [
        int(lane) if re.fullmatch(r"\d{1,20}", lane) else None
        for lane in _lanes(section, "Raw Physical Errors Per Lane")
    ]
    return found


def _module(section: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: _word(section, key)
        for name, key in (
            ("identifier", "Identifier"), ("cable_type", "Cable Type"), ("technology", "Cable Technology"),
            ("vendor", "Vendor Name"), ("part_number", "Vendor Part Number"),
            ("serial_number", "Vendor Serial Number"), ("revision", "Rev"), ("firmware", "FW Version"),
            ("state", "Module State"),
        )
    }  # fmt: skip
    for name, key in (
        ("temperature_celsius", "Temperature [C]"), ("voltage_millivolts", "Voltage [mV]"),
        ("bias_milliamperes", "Bias Current [mA]"), ("rx_power_dbm", "Rx Power Current [dBm]"),
        ("tx_power_dbm", "Tx Power Current [dBm]"),
    ):  # fmt: skip
        found[name] = _measured(section, key)
    found["flags"] = {}
    for name, key in (
        ("module_firmware_fault", "Module FW Fault"), ("datapath_firmware_fault", "DataPath FW Fault"),
        ("tx_fault", "Tx Fault [per lane]"), ("tx_loss_of_signal", "Tx LOS [per lane]"),
        ("rx_loss_of_signal", "Rx LOS [per lane]"), ("tx_loss_of_lock", "Tx CDR LOL [per lane]"),
        ("rx_loss_of_lock", "Rx CDR LOL [per lane]"),
    ):  # fmt: skip
        lanes = _lanes(section, key)
        if lanes and all(lane in ("0", "1") for lane in lanes):
            found["flags"][name] = [lane == "1" for lane in lanes]
    return found
