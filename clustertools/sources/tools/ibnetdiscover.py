"""`ibnetdiscover` of infiniband-diags: the fabric as a topology file, or with -p as a list of its ports.

Formats as infiniband-diags/ibnetdiscover.c (rdma-core) writes them; ibsim reads the first as its input, so
fabrics are often kept in this form.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.iblinkinfo import FIELDS as PORT_FIELDS
from clustertools.sources.tools.iblinkinfo import LINE_LIMIT, is_complaint

KIND = "ibnetdiscover"

FIELDS = {
    "nodes[].kind": "switch, ca or router",
    "nodes[].guid": "of the node, in hexadecimal",
    "nodes[].name": "its description",
    "nodes[].port_count": "its ports",
    "nodes[].lid": "of a switch; 0 for others",
    **PORT_FIELDS,
}  # fmt: skip

#: Gb/s of one lane, as the names are used by these tools (libibmad, mad_dump_linkspeed*).
LANE_GBPS = {
    "SDR": 2.5, "DDR": 5.0, "QDR": 10.0, "FDR10": 10.3125, "FDR": 14.0625, "EDR": 25.78125, "HDR": 53.125,
    "NDR": 106.25, "XDR": 212.5,
}  # fmt: skip
_KINDS = {"Switch": "switch", "SW": "switch", "Ca": "ca", "CA": "ca", "Rt": "router", "RT": "router"}


def recognise(text: str) -> bool:
    """By the head of the topology file, or by a line of the list."""
    # # Topology file: generated on Sat Nov 21 13:34:44 2026
    if "# Topology file: generated" in text[:4000]:
        return True
    first = [line for line in text[:4000].splitlines() if not is_complaint(line)][:5]
    return any(_listed(line) is not None or _SUMMARY.fullmatch(line) is not None for line in first)


def read(text: str) -> dict[str, Any]:
    """`nodes` (kind, guid, name, port_count, lid) and `ports` as `iblinkinfo` gives them; `complaints`.

    The list of -p tells nothing of a node but its ports. Raises Unparsable for a line of another form.
    """
    nodes: list[dict[str, Any]] = []
    ports: list[dict[str, Any]] = []
    complaints: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if is_complaint(line):
            complaints.append(line[:200])
            continue
        if len(line) > LINE_LIMIT:
            raise Unparsable("ibnetdiscover printed a line that is too long", line)
        listed = _listed(line)
        if listed is not None:
            ports.append(listed)
        elif (node := _node(line)) is not None:
            nodes.append(node)
        elif line.startswith("[") and nodes and (port := _port(line, nodes[-1])) is not None:
            ports.append(port)
        elif not _KNOWN.match(line):
            raise Unparsable("ibnetdiscover printed a line of an unknown form", line)
    return {"nodes": nodes, "ports": ports, "complaints": complaints}


#: vendid=0x2c9, switchguid=0xe41d2d0300000010(e41d2d0300000010); Chassis, DR path and remarks: -g and -s
_KNOWN = re.compile(
    r"(vendid|devid|sysimgguid|caguid|switchguid|rtguid)=0x[0-9a-f]+(\([0-9a-f]+\))?\s*(#.*)?$"
    r"|Chassis \d+|Non-Chassis Nodes|DR path |Ports:|\s*Spine Nodes|\s*Line Nodes"
)


# Switch	 : 0xe41d2d0300000010 ports 5 devid 0xd2f0 vendid 0x2c9 "leaf001"      of -l, -H, -S and -R
_SUMMARY = re.compile(
    r'(Switch|Ca|Rt)\s+: 0x([0-9a-f]{1,16}) ports (\d{1,3}) devid \w{1,10} vendid \w{1,10} "(.*)"\s*'
)


def _listed(line: str) -> dict[str, Any] | None:
    # SW    11  4 0xe41d2d0300000010 4x HDR - CA    10  1 0x0002c90300007001 ( 'leaf001' - 'node0007 mlx5_0' )
    # SW    11  2 0xe41d2d0300000010 4x HDR                                    'leaf001'
    match = re.fullmatch(
        r"(CA|SW|RT|\?\?)\s+(\d{1,6})\s+(\d{1,3}) 0x([0-9a-f]{1,16}) (\d{1,2}|\?\?)x (\w+|\?\?\?)"
        r"(?: - (CA|SW|RT|\?\?)\s+(\d{1,6})\s+(\d{1,3}) 0x([0-9a-f]{1,16}) \( '(.*)' - '(.*)' \)"
        r"| +'(.*)')\s*",
        line,
    )
    if match is None:
        return None
    there = match[10] is not None
    peer = {
        "guid": int(match[10], 16), "lid": int(match[8]), "port": int(match[9]), "name": match[12],
        "kind": _KINDS.get(match[7], ""),
    } if there else None  # fmt: skip
    return {
        "guid": int(match[4], 16), "name": match[11] if there else match[13],
        "kind": _KINDS.get(match[1], ""), "lid": int(match[2]), "port": int(match[3]),
        **_rate(match[5], match[6], there), "peer": peer,
        "could_be": {},
    }  # fmt: skip


def _rate(width: str, speed: str, up: bool) -> dict[str, Any]:
    """An unconnected port is listed with the width and speed that it had: they mean nothing."""
    known = up and width.isdigit() and speed in LANE_GBPS
    return {
        "width": int(width) if known else None, "lane_gbps": LANE_GBPS[speed] if known else None,
        "state": "" if up else "Down", "physical_state": "",
    }  # fmt: skip


def _node(line: str) -> dict[str, Any] | None:
    # Switch	6 "S-e41d2d0300000010"		# "leaf001" enhanced port 0 lid 11 lmc 0
    # Ca	1 "H-0002c90300007000"		# "node0007 mlx5_0"
    match = re.fullmatch(r'(Switch|Ca|Rt)\s+(\d{1,3}) "[SHR]-([0-9a-f]{1,16})"\s+# "(.*)"(.*)', line)
    if match is None:
        if (told := _SUMMARY.fullmatch(line)) is None:
            return None
        return {
            "kind": _KINDS[told[1]], "guid": int(told[2], 16), "name": told[4], "port_count": int(told[3]),
            "lid": 0,
        }  # fmt: skip
    lid = re.search(r" lid (\d{1,6})", match[5])
    return {
        "kind": _KINDS[match[1]], "guid": int(match[3], 16), "name": match[4], "port_count": int(match[2]),
        "lid": int(lid[1]) if lid else 0,
    }  # fmt: skip


def _port(line: str, node: dict[str, Any]) -> dict[str, Any] | None:
    # [1]	"H-0002c90300004000"[1](2c90300004001) 		# "node0004 mlx5_0" lid 7 4xHDR
    # [1](2c90300007001) 	"S-e41d2d0300000010"[4]		# lid 10 lmc 0 "leaf001" lid 11 4xHDR
    match = re.fullmatch(
        r'\[(\d{1,3})\](?:\[ext \d+\])?(?:\(([0-9a-f]{1,16})\))?\s*"([SHR])-([0-9a-f]{1,16})"\[(\d{1,3})\]'
        r'(?:\[ext \d+\])?(?:\(([0-9a-f]{1,16})\))?\s*# (?:lid (\d{1,6}) lmc \d+ )?"(.*)" lid (\d{1,6})'
        r"(?: (\d{1,2}|\?\?)x(\w+|\?\?\?))?.*",
        line,
    )
    if match is None:
        return None
    peer = {
        "guid": int(match[6] or match[4], 16), "lid": int(match[9]), "port": int(match[5]), "name": match[8],
        "kind": {"S": "switch", "H": "ca", "R": "router"}[match[3]],
    }  # fmt: skip
    return {
        "guid": int(match[2], 16) if match[2] else node["guid"], "name": node["name"], "kind": node["kind"],
        "lid": int(match[7] or node["lid"]), "port": int(match[1]),
        **_rate(match[10] or "", match[11] or "", True), "peer": peer, "could_be": {},
    }  # fmt: skip
