"""What `ibstat` prints of the RDMA devices. Format: rdma-core, infiniband-diags/ibstat.c."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ibstat"

FIELDS = {
    "devices[].name": "mlx5_0",
    "devices[].kind": "CA, Switch, Router or iWARP RNIC",
    "devices[].type": "of the hardware: MT4129; \"\" where there is none",
    "devices[].ports_total": "number of its ports",
    "devices[].firmware": "version",
    "devices[].hardware": "revision",
    "devices[].node_guid": "as printed",
    "devices[].system_image_guid": "as printed",
    "devices[].ports[].number": "from 1",
    "devices[].ports[].state": "Active, Down, Initializing, Armed",
    "devices[].ports[].phys_state": "LinkUp, Polling, Disabled ...",
    "devices[].ports[].rate_bits_per_second": "as the tool rounds it: 400000000000; of a port that is "
    "down it means nothing",
    "devices[].ports[].lid": "local identifier; 65535 and 0: none was given",
    "devices[].ports[].lmc": "LID mask control",
    "devices[].ports[].sm_lid": "of the subnet manager",
    "devices[].ports[].capability_mask": "as printed",
    "devices[].ports[].port_guid": "as printed",
    "devices[].ports[].link_layer": "InfiniBand or Ethernet",
    "errors[]": "lines of the tool about a device that it could not read",
}  # fmt: skip

# CA 'mlx5_0'    iWARP RNIC 'irdma0'
_DEVICE = re.compile(r"(CA|Switch|Router|iWARP RNIC|\?\?\?) '([^']{1,64})'\s*")
#   Port 1:
_PORT = re.compile(r"\s*Port ([0-9]{1,3}):\s*")
#   Firmware version: 28.39.1002         CA type:        (nothing, of a device that has none)
_FIELD = re.compile(r"\s*([A-Za-z][A-Za-z ]{1,40}): ?(.{0,200}?)\s*")
_DEVICE_FIELDS = {
    "Number of ports": "ports_total", "Firmware version": "firmware", "Hardware version": "hardware",
    "Node GUID": "node_guid", "System image GUID": "system_image_guid",
}  # fmt: skip
_PORT_FIELDS = {
    "State": "state", "Physical state": "phys_state", "Base lid": "lid", "LMC": "lmc", "SM lid": "sm_lid",
    "Capability mask": "capability_mask", "Port GUID": "port_guid", "Link layer": "link_layer",
}  # fmt: skip


def recognise(text: str) -> bool:
    return _DEVICE.match(text.lstrip()[:200]) is not None and "Number of ports:" in text[:2000]


def read(text: str) -> dict[str, Any]:
    """`devices`: each with its `ports`; rates in bits per second, whole gigabits as the tool rounds them.

    What it prints when it fails on a device ("ibpanic: ...") ends up in `errors`: the rest is right.
    """
    devices: list[dict[str, Any]] = []
    errors: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if match := _DEVICE.fullmatch(line):
            devices.append({"name": match[2], "kind": match[1], "type": "", "ports": []})
        # ibpanic: [1400444] main: stat of IB device 'mlx5_8' failed: No such file or directory
        elif line.startswith(("ibpanic:", "ibwarn:")):
            errors.append(line.strip()[:300])
        elif not devices:
            raise Unparsable("ibstat: a line before the first device", line)
        elif match := _PORT.fullmatch(line):
            devices[-1]["ports"].append({"number": int(match[1])})
        elif match := _FIELD.fullmatch(line):
            _field(devices[-1], match[1], match[2], line)
        else:
            raise Unparsable("ibstat: a line of an unknown form", line)
    if not devices and not errors:
        raise Unparsable("ibstat: no device", text)
    return {"devices": devices, "errors": errors}


def _field(device: dict[str, Any], name: str, value: str, line: str) -> None:
    port = device["ports"][-1] if device["ports"] else None
    if port is None and name in _DEVICE_FIELDS:
        key = _DEVICE_FIELDS[name]
        device[key] = _whole(value, line) if key == "ports_total" else value
    elif port is None and name == f"{device['kind']} type":
        device["type"] = value
    elif port is not None and name == "Rate":
        # 400    2.5    40 (FDR10)
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9])?)(?: \(FDR10\))?", value)
        if match is None:
            raise Unparsable("ibstat: a rate of an unknown form", line)
        port["rate_bits_per_second"] = float(match[1]) * 1e9
    elif port is not None and name in _PORT_FIELDS:
        key = _PORT_FIELDS[name]
        port[key] = _whole(value, line) if key in ("lid", "lmc", "sm_lid") else value
    else:
        raise Unparsable("ibstat: an unknown field", line)


def _whole(value: str, line: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", value):
        raise Unparsable("ibstat: not a number", line)
    return int(value)
