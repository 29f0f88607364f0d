"""The BMC of a healthy node: an old event log, sensors within their limits."""

from __future__ import annotations

from typing import Any

from tests.lab.parts import Shape

PROVENANCE = (
    "the BMC's answers in the form of ipmitool 1.8.18 and 1.8.19, as ipmi_sim (OpenIPMI) gives them, with "
    "the sensor names of a DGX; times are those of this recording"
)
INFO = ("ipmitool", "sel", "info")
EVENTS = ("ipmitool", "sel", "elist", "last", "200")
SENSORS = ("ipmitool", "sdr", "elist")
CHASSIS = ("ipmitool", "chassis", "status")

#: An uncorrectable error of last year was repaired, a cable was moved and put back.
OLD_EVENTS = """\
   1 | 06/14/2025 | 10:01:17 | Event Logging Disabled SEL | Log area reset/cleared | Asserted
   2 | 09/03/2025 | 21:14:02 | Memory #0x88 | Uncorrectable ECC (DIMMD7) | Asserted
   3 | 08/02/2026 | 07:11:40 | Power Supply PSU3_Status | Power Supply AC lost | Asserted
   4 | 08/02/2026 | 07:12:31 | Power Supply PSU3_Status | Power Supply AC lost | Deasserted
   5 |  Pre-Init  |0000000123| System Event #0x01 | Timestamp Clock Sync | Asserted
   6 | 08/05/2026 | 06:01:09 | System ACPI Power State ACPI_STATE | S0/G0: working | Asserted
"""
HEALTHY = """\
TEMP_AMBIENT     | 30h | ok  |  7.1 | 24 degrees C
TEMP_CPU0        | 31h | ok  |  3.0 | 48 degrees C
TEMP_CPU1        | 32h | ok  |  3.1 | 47 degrees C
SPD_FAN_SYS0_F   | 40h | ok  | 29.1 | 7840 RPM
SPD_FAN_SYS0_R   | 41h | ok  | 29.2 | 7680 RPM
PSU0_Status      | 50h | ok  | 10.1 | Presence detected
PSU1_Status      | 51h | ok  | 10.2 | Presence detected
PSU5_Status      | 55h | ns  | 10.6 | No Reading
PWR_PSU0         | 60h | ok  | 10.1 | 412 Watts
VOLT_BAT         | 70h | ok  |  7.2 | 3.06 Volts
PSU_Redundancy   | 78h | ok  | 19.1 | Fully Redundant
"""
LAMPS = """\
System Power         : on
Power Overload       : false
Power Interlock      : inactive
Main Power Fault     : false
Power Control Fault  : false
Power Restore Policy : always-on
Last Power Event     : command
Chassis Intrusion    : inactive
Front-Panel Lockout  : inactive
Drive Fault          : false
Cooling/Fan Fault    : false
"""


def log_info(entries: int, used: str = "1%", overflow: str = "false") -> str:
    """`ipmitool sel info`."""
    return (
        f"SEL Information\nVersion          : 1.5 (v1.5, v2 compliant)\nEntries          : {entries}\n"
        f"Free Space       : 15760 bytes \nPercent Used     : {used}\n"
        f"Last Add Time    : 08/05/2026 06:01:09\nLast Del Time    : Not Available\n"
        f"Overflow         : {overflow}\nSupported Cmds   : 'Delete' 'Reserve' \n"
    )


def commands(shape: Shape) -> dict[tuple[str, ...], dict[str, Any]]:
    return {
        INFO: {"seconds": 0.1, "stdout": log_info(6)},
        EVENTS: {"seconds": 4.0, "stdout": OLD_EVENTS},
        SENSORS: {"seconds": 6.0, "stdout": HEALTHY},
        CHASSIS: {"seconds": 0.1, "stdout": LAMPS},
    }


def globs(shape: Shape) -> dict[str, list[str]]:
    return {"/dev/ipmi[0-9]*": ["/dev/ipmi0"]}
