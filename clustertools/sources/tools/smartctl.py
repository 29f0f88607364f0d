"""`smartctl --json` of one drive (smartmontools 7.0 and later): NVMe, ATA and SCSI.

The keys are those of smartmontools' JSON; the bits of `exit_status` are in smartctl(8), those of
`critical_warning` in the NVM Express base specification, "SMART / Health Information" log page.
"""

from __future__ import annotations

from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.json_object import inside, is_object_with, json_object, number, text_of

KIND = "smartctl"

FIELDS = {
    "device": "/dev/nvme0",
    "protocol": "NVMe, ATA or SCSI",
    "model": "of the drive",
    "serial": "its number",
    "firmware": "its version",
    "exit_status": "of smartctl, a bit mask",
    "capacity_bytes": "size",
    "temperature_celsius": "now",
    "power_on_hours": "in the drive's life",
    "passed": "the drive's own judgement",
    "problem": "why smartctl could not look",
    "reallocated_sectors": "ATA",
    "pending_sectors": "ATA",
    "uncorrectable_sectors": "ATA",
    "failed_attributes[]": "ATA attributes below their threshold now",
    "grown_defects": "SCSI",
    "critical_warning": "the bits of the NVMe health log",
    "warnings[]": "those that are set, by name: spare_below_threshold, temperature, "
    "reliability_degraded, read_only, backup_failed, persistent_memory_unreliable",
    "spare_ratio": "spare blocks that are left, of 1",
    "spare_threshold_ratio": "below this the drive warns",
    "used_ratio": "of the endurance that the maker promises; over 1 is possible",
    "media_errors": "NVMe: data that could not be read back; SCSI: errors that were not corrected",
    "error_log_entries": "all entries ever, most of no importance",
    "unsafe_shutdowns": "power lost without notice",
    "read_bytes": "in the drive's life",
    "written_bytes": "in the drive's life",
    "warning_temperature_minutes": "time above the warning temperature",
    "critical_temperature_minutes": "time above the critical temperature",
}  # fmt: skip

#: NVMe: bit of the critical warning to what it says.
WARNINGS = (
    "spare_below_threshold", "temperature", "reliability_degraded", "read_only", "backup_failed",
    "persistent_memory_unreliable",
)  # fmt: skip
#: One data unit of NVMe is 1000 blocks of 512 bytes.
_DATA_UNIT_BYTES = 512_000
#: ATA attributes whose raw value is a plain count with nearly all makers.
_COUNTS = {5: "reallocated_sectors", 197: "pending_sectors", 198: "uncorrectable_sectors"}


def recognise(text: str) -> bool:
    """Is this smartctl's JSON?"""
    return is_object_with(text, "smartctl", "json_format_version")


def read(text: str) -> dict[str, Any]:
    """The drive's identity and health in plain values; what it does not tell is left out.

    Raises Unparsable when it is not smartctl's JSON. `problem` is why smartctl could not look at the drive.
    """
    data = json_object(text, "smartctl")
    status = number(data, "smartctl", "exit_status")
    if status is None or "json_format_version" not in data:
        raise Unparsable("this is JSON, but not of smartctl", text[:200])
    found: dict[str, Any] = {
        "device": text_of(data, "device", "name"),
        "protocol": text_of(data, "device", "protocol"),
        "model": text_of(data, "model_name") or text_of(data, "scsi_model_name"),
        "serial": text_of(data, "serial_number"),
        "firmware": text_of(data, "firmware_version"),
        "exit_status": int(status),
        "capacity_bytes": number(data, "user_capacity", "bytes") or number(data, "nvme_total_capacity"),
        "temperature_celsius": number(data, "temperature", "current"),
        "power_on_hours": number(data, "power_on_time", "hours"),
        "passed": inside(data, "smart_status", "passed"),
        "problem": _problem(data, int(status)),
    }
    if isinstance(inside(data, "nvme_smart_health_information_log"), dict):
        found |= health_log(data["nvme_smart_health_information_log"])
    found |= _ata(data) | _scsi(data)
    if not isinstance(found["passed"], bool):
        del found["passed"]
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _problem(data: dict[str, Any], status: int) -> str:
    """Bits 0 and 1 say that the command line or the drive's opening failed, bit 2 that an inquiry did."""
    if not status & 0b11:
        return ""
    messages = inside(data, "smartctl", "messages")
    told = [text_of(m, "string") for m in messages or () if isinstance(m, dict)]
    return "; ".join(filter(None, told))[:300] or f"smartctl ended with status {status}"


def health_log(log: dict[str, Any]) -> dict[str, Any]:
    """The NVMe health log under smartctl's names. Ratios are of 1; `warnings` names the bits that are set."""
    bits = number(log, "critical_warning") or 0

    def ratio(key: str) -> float | None:
        percent = number(log, key)
        return None if percent is None else percent / 100

    def bytes_of(key: str) -> float | int | None:
        units = number(log, key)
        return None if units is None else units * _DATA_UNIT_BYTES

    return {
        "critical_warning": bits,
        "warnings": [name for n, name in enumerate(WARNINGS) if int(bits) >> n & 1],
        "spare_ratio": ratio("available_spare"),
        "spare_threshold_ratio": ratio("available_spare_threshold"),
        "used_ratio": ratio("percentage_used"),
        "media_errors": number(log, "media_errors"),
        "error_log_entries": number(log, "num_err_log_entries"),
        "unsafe_shutdowns": number(log, "unsafe_shutdowns"),
        "read_bytes": bytes_of("data_units_read"),
        "written_bytes": bytes_of("data_units_written"),
        "warning_temperature_minutes": number(log, "warning_temp_time"),
        "critical_temperature_minutes": number(log, "critical_comp_time"),
    }


def _ata(data: dict[str, Any]) -> dict[str, Any]:
    """The attribute table: counts of bad sectors, and the attributes that are under their threshold now."""
    table = inside(data, "ata_smart_attributes", "table")
    if not isinstance(table, list):
        return {}
    found: dict[str, Any] = {"failed_attributes": []}
    for row in table:
        if not isinstance(row, dict):
            continue
        number_of, raw = number(row, "id"), number(row, "raw", "value")
        if number_of in _COUNTS and raw is not None:
            found[_COUNTS[int(number_of)]] = raw
        # "when_failed": "now" | "past" | ""
        if text_of(row, "when_failed").lower() in ("now", "failing_now"):
            found["failed_attributes"].append(text_of(row, "name"))
    return found


def _scsi(data: dict[str, Any]) -> dict[str, Any]:
    """SAS drives: grown defects and errors that could not be corrected."""
    kinds = ("read", "write", "verify")
    errors = [number(data, "scsi_error_counter_log", kind, "total_uncorrected_errors") for kind in kinds]
    known = [n for n in errors if n is not None]
    return {
        "grown_defects": number(data, "scsi_grown_defect_list"),
        "media_errors": sum(known),
    } if known else {}  # fmt: skip
