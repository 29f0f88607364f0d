"""What `nvidia-smi topo -m` and `nvidia-smi topo -p2p` print: how each pair of devices is connected.

The heading may be underlined by an escape sequence, also where nobody looks at a terminal. Up to about driver
515 the columns of the network adapters carry their own names, later NIC0 ... with a legend.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nvidia-smi-topo"

FIELDS = {
    "form": "matrix (-m) or p2p",
    "devices[]": "in the order of the columns: GPU0, NIC0, mlx5_0",
    "links.*": "of each device, to each other: NV18, PIX ... or OK, CNS ...",
    "cpu_affinity.*": "of each GPU: 0-55,112-167",
    "numa.*": "node of each GPU",
    "nics.*": "what NIC0 ... are called: mlx5_0",
}

#: The legends of both.
CONNECTIONS = frozenset(("X", "SYS", "NODE", "PHB", "PXB", "PIX", "SOC", "PIB"))
PEERS = frozenset(("OK", "CNS", "GNS", "TNS", "NS", "DR", "U"))
_COLUMNS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")


# 	GPU0	GPU1	NIC0	CPU Affinity	NUMA Affinity	GPU NUMA ID      in excerpts without the tab
_HEADING = re.compile(r"^\s*GPU0\b(?!\s+X\b)", re.MULTILINE)


def recognise(text: str) -> bool:
    """Its heading and its first row."""
    head = _plain(text[:20_000])
    return bool(_HEADING.search(head) and re.search(r"^ ?GPU0\s+X\b", head, re.MULTILINE))


def read(text: str) -> dict[str, Any]:
    """`form` ("matrix", "p2p"); `devices` in order; `links` by device and other device; `cpu_affinity` and
    `numa` of the GPUs; `nics`, the names behind NIC0 ... Raises Unparsable."""
    lines = _plain(text).splitlines()
    start = next((n for n, line in enumerate(lines) if _HEADING.match(line)), None)
    if start is None:
        raise Unparsable("nvidia-smi topo: no heading with GPU0", text)
    heading = lines[start][:20_000]
    columns = [name for name in _COLUMNS if name in heading]
    for name in columns:
        heading = heading.replace(name, " ")
    devices = heading.split()
    if len(set(devices)) != len(devices):
        raise Unparsable("nvidia-smi topo: a device has two columns", lines[start])
    found: dict[str, Any] = {
        "form": "matrix", "devices": devices, "links": {}, "cpu_affinity": {}, "numa": {}, "nics": {},
    }  # fmt: skip
    end = next((n for n in range(start, len(lines)) if re.match(r"\s*Legend:", lines[n])), len(lines))
    for line in lines[start + 1 : end]:
        if line.strip():
            _row(found, line[:20_000], columns)
    if set(found["links"]) != set(devices):
        raise Unparsable("nvidia-smi topo: the rows are not those of the columns", lines[start])
    for line in lines[end:]:
        #   NIC0: mlx5_0
        if match := re.fullmatch(r"\s*(NIC\d{1,3}): (\w{1,40})\s*", line):
            found["nics"][match[1]] = match[2]
    return found


def _row(found: dict[str, Any], line: str, columns: list[str]) -> None:
    # GPU0     X      NV18    PIX     0-55,112-167    0               N/A
    name, *cells = line.split()
    devices = found["devices"]
    values, more = cells[: len(devices)], cells[len(devices) :]
    if (
        name not in devices
        or name in found["links"]
        or len(values) < len(devices)
        or len(more) > len(columns)
    ):
        raise Unparsable("nvidia-smi topo: a row that does not fit the heading", line)
    for value in values:
        if value in PEERS:
            found["form"] = "p2p"
        elif value not in CONNECTIONS and not re.fullmatch(r"NV\d{1,3}", value):
            raise Unparsable(f"nvidia-smi topo: {value[:20]!r} is no known connection", line)
    if values[devices.index(name)] != "X":
        raise Unparsable("nvidia-smi topo: a device is not itself", line)
    found["links"][name] = {d: v for d, v in zip(devices, values, strict=True) if d != name}
    told = dict(zip(columns, more, strict=False))
    if "CPU Affinity" in told:
        found["cpu_affinity"][name] = told["CPU Affinity"]
    if told.get("NUMA Affinity", "").isdigit():
        found["numa"][name] = int(told["NUMA Affinity"])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]{0,12}m", "", text)
