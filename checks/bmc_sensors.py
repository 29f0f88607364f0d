"""The BMC's sensors: temperatures, fans, power supplies, and the lamps of the chassis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import ipmitool_chassis, ipmitool_sdr

#: What a power supply says that is wrong with it (IPMI 2.0 table 42-3, sensor type 8, and type 0Bh for
#: redundancy). An empty bay says nothing at all.
_POWER = (
    "Failure detected", "Power Supply AC lost", "AC lost or out-of-range", "AC out-of-range, but present",
    "Redundancy Lost", "Redundancy Degraded", "Config Error",
)  # fmt: skip
_CRITICAL_STATES = frozenset(("cr", "ucr", "lcr", "nr", "unr", "lnr"))
#: Names of the readings by unit.
_READINGS = {
    "celsius": "bmc_temperature_celsius", "rpm": "bmc_fan_rpm", "watts": "bmc_power_watts",
}  # fmt: skip


@check(
    stages={"daily", "preflight"},
    timeout_seconds=60.0,
    interval_seconds=86400.0,
    cost_seconds=10.0,
    needs={"root"},
    codes={
        "BmcTemperature": "a temperature is beyond the limit that the board's maker set",
        "BmcFan": "a fan is slower than the board's maker allows",
        "BmcPowerSupply": "a power supply has no power, has failed, or is not redundant any more",
        "BmcSensor": "another sensor of the board is beyond its critical limit",
        "BmcChassis": "the chassis tells a fault of a drive, of its cooling or of its power",
    },
)
def bmc_sensors(ctx: Context) -> Iterator[Finding | Reading]:
    """Sensors beyond the critical thresholds that the board itself has (`ipmitool sdr elist`), and its lamps.

    Thresholds of makers are not always right, so only a temperature that the board calls non-recoverable is
    CRITICAL. A sensor that gives no reading (an empty bay) is passed over.
    """
    if not ctx.host.glob("/dev/ipmi[0-9]*"):
        raise ctx.skip("no /dev/ipmi0: no BMC here, or the module ipmi_devintf is not loaded")
    try:
        text = ctx.host.run("ipmitool", "sdr", "elist", timeout_seconds=45.0).check().stdout
    except Absent as exc:
        raise ctx.skip("ipmitool is not installed") from exc
    for sensor in ipmitool_sdr.read(text)["sensors"]:
        yield from _judge(ctx, sensor)
    told = ipmitool_chassis.read(
        ctx.host.run("ipmitool", "chassis", "status", timeout_seconds=15.0).check().stdout
    )
    yield ctx.reading("bmc_chassis_intrusion_total", float(told.get("intrusion", False)))
    faults = [name.replace("_", " ") for name, on in told.items() if on is True and name != "intrusion"]
    if faults:
        yield ctx.warning(
            "BmcChassis", "bmc", f"the chassis tells: {', '.join(faults)}", remedy=Remedy.INSPECT
        )


def _judge(ctx: Context, sensor: Mapping[str, Any]) -> Iterator[Finding | Reading]:
    name, state, unit = sensor["name"], sensor.get("state", ""), sensor.get("unit", "")
    part = f"bmc@{name}"
    if "value" in sensor and unit in _READINGS:
        yield ctx.reading(_READINGS[unit], sensor["value"], part)
    wrong = [event for event in sensor["events"] if event in _POWER]
    if wrong:
        yield ctx.warning("BmcPowerSupply", part, f"{name}: {', '.join(wrong)}", remedy=Remedy.INSPECT)
        return
    if state not in _CRITICAL_STATES or ("value" not in sensor and not sensor["events"]):
        return
    text = f"{name}: {sensor.get('value', '')} {unit} {', '.join(sensor['events'])}".strip()
    text = f"{text} is beyond the board's limit ({state})"
    if unit == "celsius" and state in ("unr", "nr") and sensor.get("value", 0) > 0:
        yield ctx.critical("BmcTemperature", part, text, remedy=Remedy.INSPECT)
    elif unit == "celsius" and not state.startswith("l"):  # nothing is too cold: a device that is not there
        yield ctx.warning("BmcTemperature", part, text, remedy=Remedy.INSPECT)
    elif unit == "rpm":
        yield ctx.warning("BmcFan", part, text, remedy=Remedy.INSPECT)
    elif unit == "celsius":
        ctx.note(f"{text}: passed over")
    elif sensor.get("entity", "").startswith("10.") or "power suppl" in name.lower():
        yield ctx.warning("BmcPowerSupply", part, text, remedy=Remedy.INSPECT)
    else:
        yield ctx.warning("BmcSensor", part, text, remedy=Remedy.INSPECT)
