"""What `ibstatus` of infiniband-diags prints: a script over sysfs (rdma-core, infiniband-diags/scripts)."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.infiniband import parse_lid, parse_rate, parse_state

KIND = "ibstatus"

FIELDS = {
    "ports[].device": "mlx5_0",
    "ports[].number": "from 1",
    "ports[].gid": "the default GID",
    "ports[].lid": "local identifier",
    "ports[].sm_lid": "of the subnet manager",
    "ports[].state": "ACTIVE, DOWN, INIT, ARMED",
    "ports[].phys_state": "LinkUp, Polling, Disabled ...",
    "ports[].rate_bits_per_second": "of all lanes",
    "ports[].width": "lanes",
    "ports[].speed": "of a lane: NDR, HDR ...; \"\" where it is not told",
    "ports[].link_layer": "InfiniBand or Ethernet",
}  # fmt: skip

# Infiniband device 'mlx5_0' port 1 status:
_PORT = re.compile(r"\s*Infiniband device '([^']{1,64})' port ([0-9]{1,3}) status:\s*")
# 	base lid:	 0x97
_FIELD = re.compile(r"\s*([a-z_ ]{2,20}):\s*(.{0,100}?)\s*")


def recognise(text: str) -> bool:
    return _PORT.match(text[:200]) is not None


def read(text: str) -> dict[str, Any]:
    """`ports`: each with the device, number, states, LIDs, rate in bits per second, lanes and speed."""
    ports: list[dict[str, Any]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if match := _PORT.fullmatch(line):
            ports.append({"device": match[1], "number": int(match[2])})
            continue
        match = _FIELD.fullmatch(line)
        if match is None or not ports:
            raise Unparsable("ibstatus: a line of an unknown form", line)
        name, value, port = match[1], match[2], ports[-1]
        if name == "default gid":
            port["gid"] = value
        elif name in ("base lid", "sm lid"):
            port["lid" if name == "base lid" else "sm_lid"] = parse_lid(value)
        elif name in ("state", "phys state"):
            port[name.replace(" ", "_")] = parse_state(value)
        elif name == "rate":
            rate, width, speed = parse_rate(value)
            port |= {"rate_bits_per_second": rate, "width": width, "speed": speed}
        elif name == "link_layer":
            port["link_layer"] = value
        else:
            raise Unparsable("ibstatus: an unknown field", line)
    if not ports:
        raise Unparsable("ibstatus: no port", text)
    return {"ports": ports}
