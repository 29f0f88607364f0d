"""What `rdma link` of iproute2 prints, as text and with -j. Format: iproute2, rdma/link.c."""

from __future__ import annotations

import json
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "rdma-link"

FIELDS = {
    "ports[].device": "mlx5_0",
    "ports[].number": "from 1",
    "ports[].state": "ACTIVE, DOWN ...",
    "ports[].phys_state": "LINK_UP, POLLING ...",
    "ports[].lid": "local identifier, of InfiniBand",
    "ports[].sm_lid": "of the subnet manager",
    "ports[].netdev": "network interface of the port, where there is one",
}  # fmt: skip

# link mlx5_0/1 state ACTIVE physical_state LINK_UP netdev ens1f0np0
# link mlx5_0/1 subnet_prefix fe80:0000:0000:0000 lid 70 sm_lid 8 lmc 0 state ACTIVE physical_state LINK_UP
# 0/1: mlx5_0/1: state ACTIVE physical_state LINK_UP       (iproute2 before 5.1)
_LINE = re.compile(r"(?:link |[0-9]{1,6}/[0-9]{1,6}: )([^\s/]{1,64})/([0-9]{1,3}):? (.{1,1000}?)\s*")
_FIELDS = frozenset("subnet_prefix lid sm_lid lmc state physical_state netdev netdev_index caps".split())


def recognise(text: str) -> bool:
    start = text.lstrip()[:2000]
    if start.startswith("["):
        return '"physical_state"' in start and '"port"' in start
    return _LINE.match(start) is not None and " physical_state " in start


def read(text: str) -> dict[str, Any]:
    """`ports`: device, number, state, physical state, LIDs where there are some, network interface."""
    if text.lstrip().startswith("["):
        return {"ports": [_entry(entry) for entry in _json(text)]}
    ports = []
    for line in text.splitlines():
        #     caps: <CM, AUTOMIG, ...>       (with -d)
        if not line.strip() or line.lstrip().startswith("caps:"):
            continue
        match = _LINE.fullmatch(line.strip())
        words = match[3].split() if match else []
        names, values = words[::2], words[1::2]
        if match is None or len(names) != len(values) or not set(names) <= _FIELDS:
            raise Unparsable("rdma link: a line of an unknown form", line)
        told = dict(zip(names, values, strict=True))
        ports.append(_entry({"ifname": match[1], "port": int(match[2]), **told}))
    if not ports:
        raise Unparsable("rdma link: no port", text)
    return {"ports": ports}


def _json(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable("rdma link: not JSON", text) from exc
    if not isinstance(found, list):
        raise Unparsable("rdma link: not a list", text)
    return found


def _entry(entry: Any) -> dict[str, Any]:
    try:
        port = {
            "device": str(entry["ifname"]), "number": int(entry["port"]), "state": str(entry["state"]),
            "phys_state": str(entry["physical_state"]),
        }  # fmt: skip
        port |= {name: int(entry[name]) for name in ("lid", "sm_lid") if name in entry}
    except (KeyError, TypeError, ValueError) as exc:
        raise Unparsable("rdma link: an entry of an unknown form", str(entry)) from exc
    return port | ({"netdev": str(entry["netdev"])} if "netdev" in entry else {})
