"""`iblinkinfo` of infiniband-diags: every port of the fabric, its width, speed and peer.

Formats as print_port() of infiniband-diags/iblinkinfo.c (rdma-core) writes them, with -l (a line holds all)
and without (a heading for each node); unchanged in form from 1.5 to 58. Other tools of the package repeat
the line, so its reader is shared.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "iblinkinfo"

FIELDS = {
    "ports[].guid": "of the port, in hexadecimal; of a switch, one for all its ports; null where it is not "
    "printed",
    "ports[].name": "of the node, as its description says",
    "ports[].kind": "ca, switch or router; \"\" where it is not printed",
    "ports[].lid": "local identifier",
    "ports[].port": "number of the port at the node",
    "ports[].width": "lanes that are up: 4; null when the link is down",
    "ports[].lane_gbps": "Gb/s of one lane: 53.125 is HDR, 106.25 NDR; null when the link is down",
    "ports[].state": "logical state: Active, Down, Initialize, Armed; \"\" where it is not printed",
    "ports[].physical_state": "LinkUp, Polling, Disabled ...; \"\" where it is not printed",
    "ports[].peer": "the other end: guid, lid, port, name; null when there is none",
    "ports[].could_be": "what both ends could do and do not: width, lane_gbps",
    "complaints[]": "lines of standard error that were among the output",
}  # fmt: skip

#: Names are 64 bytes in the NodeDescription; a line that is much longer is none of these tools'.
LINE_LIMIT = 1024


def recognise(text: str) -> bool:
    """Whether a line has the arrow that only these tools print; ibqueryerrors names its own "Link info"."""
    return any(
        "==(" in line and ")==>" in line and "GUID" not in line and "Link info:" not in line
        for line in text[:20000].splitlines()
    )


def is_complaint(line: str) -> bool:
    """A line that belongs to standard error and got in between: libibmad and umad write there."""
    # ibwarn: [1234] mad_rpc: ...   or   src/query_smp.c:229; umad (DR path slid 0; ...) bad status 110
    return line.startswith(("ibwarn:", "ibpanic:", "src/", "./src/", "/src/", "WARN:", "iberror:"))


def read(text: str) -> dict[str, Any]:
    """`ports`: a map for each port, `peer` being the other end (None: nothing there); `complaints`.

    `guid` is the port's GUID; a switch has one for all of its ports. Without -l the peer has no GUID.
    Raises Unparsable for a line of another form.
    """
    ports: list[dict[str, Any]] = []
    complaints: list[str] = []
    kind, name, guid = "", "", None
    for line in text.splitlines():
        if not line.strip():
            continue
        if is_complaint(line):
            complaints.append(line[:200])
            continue
        if len(line) > LINE_LIMIT:
            raise Unparsable("iblinkinfo printed a line that is too long", line)
        # Switch: 0xe41d2d0300000010 leaf001:     Switch 0x0008f10500651b4e Voltaire 4036 # 36 Ports:
        heading = re.fullmatch(r"(CA|Switch|Router|\?\?):? (?:(0x[0-9a-f]{1,16}) )?(.*):\s*", line)
        if heading:
            kind, name = heading[1].lower(), heading[3]
            guid = int(heading[2], 16) if heading[2] else None
            continue
        port = read_line(line)
        if port is None:
            raise Unparsable("iblinkinfo printed a line of an unknown form", line)
        if kind:
            port["kind"], port["name"] = kind, name
            port["guid"] = guid if port["guid"] is None else port["guid"]
        ports.append(port)
    return {"ports": ports, "complaints": complaints}


def read_line(line: str) -> dict[str, Any] | None:
    """The two ends in one line, or None when it is of another form."""
    left, arrow, right = line.partition("==>")
    # 0x0002c90300007001 "   node0007 mlx5_0"     10    1[  ] ==( 4X        53.125 Gbps Active/  LinkUp)
    # or without -l:                              11    6[  ] ==(                Down/ Polling)
    near = re.fullmatch(
        r'\s*(?:0x([0-9a-fA-F]{1,16}) )?(?:\s*"(.*)")?\s*(\d{1,6})\s+(\d{1,3})\[ *(\d*) *\]\s+==\((.*)\)\s*',
        left,
    )
    if not arrow or near is None:
        return None
    link = _link(near[6])
    if link is None:
        return None
    peer = _peer(right)
    if peer is False:
        return None
    return {
        "guid": int(near[1], 16) if near[1] else None, "name": (near[2] or "").strip(), "kind": "",
        "lid": int(near[3]), "port": int(near[4]), **link, "peer": peer or None,
        **({"could_be": _could_be(right)} if peer else {"could_be": {}}),
    }  # fmt: skip


def _link(text: str) -> dict[str, Any] | None:
    # " 4X        53.125 Gbps Active/  LinkUp) (HOQ:0 VL_Stall:7", the end only with -p
    text = re.sub(r"\) \(HOQ:\d+ VL_Stall:\d+$", "", text)
    # " 4X   10.0 Gbps (FDR10) Active/  LinkUp"
    up = re.fullmatch(
        r"\s*(\d{1,2})X\s+(\d{1,4}(?:\.\d{1,6})?) Gbps(?: \((\w+)\))?\s+(\w+) ?/\s*(\w[\w ]*?)\s*", text
    )
    if up:
        return {
            "width": int(up[1]), "lane_gbps": float(up[2]), "state": up[4], "physical_state": up[5],
        }  # fmt: skip
    # "              Down/Disabled"
    down = re.fullmatch(r"\s*(\w+) ?/\s*(\w[\w ]*?)\s*", text)
    if down:
        return {"width": None, "lane_gbps": None, "state": down[1], "physical_state": down[2]}
    return None


def _peer(text: str) -> dict[str, Any] | bool | None:
    """The other end; None when there is none, False for another form."""
    #              [  ] "" ( )     or      "Port not available"
    if re.fullmatch(r'\s*(\[ *\] "" \( *\)|"Port not available")\s*', text):
        return None
    #   0xe41d2d0300000010     11    4[  ] "leaf001" (Could be 12X )
    far = re.fullmatch(
        r'\s*(?:0x([0-9a-fA-F]{1,16}) )?\s*(\d{1,6})\s+(\d{1,3})\[ *(\d*) *\] "(.*)" \((.*)\)\s*', text
    )
    if far is None:
        return False
    return {
        "guid": int(far[1], 16) if far[1] else None, "lid": int(far[2]), "port": int(far[3]),
        "name": far[5].strip(),
    }  # fmt: skip


def _could_be(text: str) -> dict[str, Any]:
    """What both ends could do and do not: `width`, `lane_gbps`."""
    said = text.rpartition('" (')[2]
    found: dict[str, Any] = {}
    # Could be 12X Could be 53.125 Gbps)
    if width := re.search(r"Could be (\d{1,2})X", said):
        found["width"] = int(width[1])
    if speed := re.search(r"Could be (\d{1,4}(?:\.\d{1,6})?) Gbps", said):
        found["lane_gbps"] = float(speed[1])
    elif "Could be FDR10" in said:
        found["lane_gbps"] = 10.3125
    return found
