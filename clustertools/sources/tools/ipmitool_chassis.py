"""`ipmitool chassis status`: power, intrusion and the fault lamps of the chassis (IPMI 2.0, section 28.2)."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ipmitool-chassis"

FIELDS = {
    "power": "on or off",
    "power_overload": "whether the supply is overloaded",
    "power_interlock": "whether an interlock holds the power off",
    "main_power_fault": "whether the main supply failed",
    "power_control_fault": "whether the power could not be switched",
    "intrusion": "whether the chassis is or was open",
    "drive_fault": "whether a drive failed",
    "cooling_fault": "whether cooling or a fan failed",
}  # fmt: skip

#: Its name to ours, and the word for "nothing is wrong".
_FAULTS = {
    "Power Overload": ("power_overload", "false"),
    "Power Interlock": ("power_interlock", "inactive"),
    "Main Power Fault": ("main_power_fault", "false"),
    "Power Control Fault": ("power_control_fault", "false"),
    "Chassis Intrusion": ("intrusion", "inactive"),
    "Drive Fault": ("drive_fault", "false"),
    "Cooling/Fan Fault": ("cooling_fault", "false"),
}


def recognise(text: str) -> bool:
    """Is this the status of a chassis?"""
    return (
        re.match(r"System Power +: \S+ *\n(Power|Main|Last|Chassis|Drive|Cooling)[A-Za-z /-]* *:", text)
        is not None
    )


def read(text: str) -> dict[str, Any]:
    """`power` ("on", "off"), and whether each fault is told. Raises Unparsable without the power."""
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())
    }
    if not fields.get("System Power"):
        raise Unparsable("ipmitool chassis status does not tell the power", text[:200])
    told = {ours: fields[name] != good for name, (ours, good) in _FAULTS.items() if fields.get(name)}
    return {"power": fields["System Power"], **told}
