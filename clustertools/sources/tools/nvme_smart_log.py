"""`nvme smart-log --output-format=json` (nvme-cli): the health log of one NVMe drive.

nvme-cli 1.x prints the critical warning as a number, with -H and in 2.x also as an object; the temperature is
in kelvin; large counters are numbers, or texts since they can have 128 bits.
"""

from __future__ import annotations

from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.json_object import inside, is_object_with, json_object, number
from clustertools.sources.tools.smartctl import health_log

KIND = "nvme-smart-log"

FIELDS = {
    "critical_warning": "the bits of the NVMe health log",
    "warnings[]": "those that are set, by name: spare_below_threshold, temperature, "
    "reliability_degraded, read_only, backup_failed, persistent_memory_unreliable",
    "spare_ratio": "spare blocks that are left, of 1",
    "spare_threshold_ratio": "below this the drive warns",
    "used_ratio": "of the endurance that the maker promises; over 1 is possible",
    "media_errors": "data that could not be read back",
    "error_log_entries": "all entries ever, most of no importance",
    "unsafe_shutdowns": "power lost without notice",
    "read_bytes": "in the drive's life",
    "written_bytes": "in the drive's life",
    "warning_temperature_minutes": "time above the warning temperature",
    "critical_temperature_minutes": "time above the critical temperature",
    "temperature_celsius": "now",
    "power_on_hours": "in the drive's life",
}  # fmt: skip

#: nvme-cli's name to smartctl's.
_NAMES = {
    "avail_spare": "available_spare", "spare_thresh": "available_spare_threshold",
    "percent_used": "percentage_used",
}  # fmt: skip
_KELVIN = 273


def recognise(text: str) -> bool:
    """Is this nvme-cli's JSON of a health log?"""
    return is_object_with(text, "critical_warning", "avail_spare", "percent_used")


def read(text: str) -> dict[str, Any]:
    """The same plain values as the NVMe part of `smartctl`. Raises Unparsable for another JSON."""
    data = json_object(text, "nvme smart-log")
    if not {"critical_warning", "avail_spare", "percent_used"} <= data.keys():
        raise Unparsable("this is JSON, but not of nvme smart-log", text[:200])
    log = {_NAMES.get(key, key): value for key, value in data.items()}
    warning = inside(data, "critical_warning")
    if isinstance(warning, dict):
        log["critical_warning"] = warning.get("value")
    if number(log, "critical_warning") is None:
        raise Unparsable("nvme smart-log has a critical_warning of an unknown form", str(warning))
    found = health_log(log)
    kelvin = number(data, "temperature")
    found["temperature_celsius"] = None if kelvin is None else kelvin - _KELVIN
    found["power_on_hours"] = number(data, "power_on_hours")
    return {key: value for key, value in found.items() if value is not None}
