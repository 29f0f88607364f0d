"""What `ibv_devinfo`, plain and -v, prints of the RDMA devices: the only place that tells a port's MTU.

Format: rdma-core, libibverbs/examples/devinfo.c; "Device ports:" and many more capabilities are MLNX_OFED's.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "ibv-devinfo"

FIELDS = {
    "devices[].name": "mlx5_0",
    "devices[].transport": "InfiniBand (0), iWARP (1) ...",
    "devices[].firmware": "version",
    "devices[].node_guid": "as printed",
    "devices[].system_image_guid": "as printed",
    "devices[].board_id": "of the maker: MT_0000000838",
    "devices[].vendor_part_id": "PCI device ID, decimal",
    "devices[].ports_total": "number of its ports, as printed",
    "devices[].ports[].number": "from 1",
    "devices[].ports[].state": "PORT_ACTIVE, PORT_DOWN ...",
    "devices[].ports[].max_mtu_bytes": "the largest it can",
    "devices[].ports[].active_mtu_bytes": "what is used; 0: none",
    "devices[].ports[].lid": "local identifier",
    "devices[].ports[].sm_lid": "of the subnet manager",
    "devices[].ports[].link_layer": "InfiniBand or Ethernet",
    "devices[].ports[].phys_state": "LINK_UP, DISABLED ... (-v)",
    "devices[].ports[].width": "4X (-v)",
    "devices[].ports[].speed": "of a lane: 50.0 Gbps (-v)",
    "devices[].ports[].gids[]": "index, gid, type: RoCE v2 ... (-v)",
}  # fmt: skip

# hca_id:	mlx5_0
_DEVICE = re.compile(r"hca_id:\s+(\S{1,64})\s*")
# 		port:	1
_PORT = re.compile(r"\s+port:\s+([0-9]{1,3})\s*")
# 			active_mtu:		4096 (5)
_FIELD = re.compile(r"\s+([a-z_0-9]{2,40}):\s*(.{0,200}?)\s*")
# 			GID[  1]:		::ffff:198.18.0.9, RoCE v2
_GID = re.compile(r"\s+GID\[\s*([0-9]{1,5})\]:\s+([0-9a-fA-F:.]{2,60})(?:, (.{1,40}?))?\s*")
_DEVICE_FIELDS = {
    "transport": "transport", "fw_ver": "firmware", "node_guid": "node_guid", "board_id": "board_id",
    "sys_image_guid": "system_image_guid", "vendor_part_id": "vendor_part_id", "phys_port_cnt": "ports_total",
}  # fmt: skip
_PORT_FIELDS = {
    "state": "state", "max_mtu": "max_mtu_bytes", "active_mtu": "active_mtu_bytes", "sm_lid": "sm_lid",
    "port_lid": "lid", "link_layer": "link_layer", "phys_state": "phys_state", "active_width": "width",
    "active_speed": "speed",
}  # fmt: skip


def recognise(text: str) -> bool:
    return _DEVICE.match(text.lstrip()[:200]) is not None


def read(text: str) -> dict[str, Any]:
    """`devices`: each with its `ports`, of -v also the `gids`. MTUs in bytes; 0 where the tool knows none.

    Of the hundred capabilities that -v prints none is kept; what stands in a port must be of the known form.
    """
    devices: list[dict[str, Any]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if match := _DEVICE.fullmatch(line):
            devices.append({"name": match[1], "ports": []})
        elif not devices:
            raise Unparsable("ibv_devinfo: a line before the first device", line)
        elif match := _PORT.fullmatch(line):
            devices[-1]["ports"].append({"number": int(match[1])})
        elif devices[-1]["ports"]:
            _port_line(devices[-1]["ports"][-1], line)
        elif match := _FIELD.fullmatch(line):
            name = _DEVICE_FIELDS.get(match[1])
            if name:
                devices[-1][name] = match[2]
    if not devices:
        raise Unparsable("ibv_devinfo: no device", text)
    return {"devices": devices}


def _port_line(port: dict[str, Any], line: str) -> None:
    if match := _GID.fullmatch(line):
        port.setdefault("gids", []).append({"index": int(match[1]), "gid": match[2], "type": match[3] or ""})
        return
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Unparsable("ibv_devinfo: a line of an unknown form in a port", line)
    name, value = _PORT_FIELDS.get(match[1]), match[2]
    if name is None:
        return
    if name.endswith("_bytes"):
        # 4096 (5)      invalid MTU (0)
        mtu = re.fullmatch(r"(?:([0-9]{3,5})|invalid MTU) \([0-9]{1,3}\)", value)
        if mtu is None:
            raise Unparsable("ibv_devinfo: an MTU of an unknown form", line)
        port[name] = int(mtu[1] or 0)
    elif name in ("lid", "sm_lid"):
        if not re.fullmatch("[0-9]{1,10}", value):
            raise Unparsable("ibv_devinfo: a LID of an unknown form", line)
        port[name] = int(value)
    else:
        # PORT_ACTIVE (4)     LINK_UP (5)     4X (2)     InfiniBand
        port[name] = re.sub(r" \([0-9]{1,3}\)$", "", value)
