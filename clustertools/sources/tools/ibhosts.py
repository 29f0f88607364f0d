"""`ibhosts` of infiniband-diags: the channel adapters of the fabric, one a line."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.iblinkinfo import is_complaint

KIND = "ibhosts"

FIELDS = {
    "adapters[].guid": "of the node, in hexadecimal",
    "adapters[].port_count": "its ports",
    "adapters[].name": "its description",
    "adapters[].lid": "local identifier, where it is printed",
}  # fmt: skip


def recognise(text: str) -> bool:
    """By the first line."""
    return bool(re.match(r"\s*(ib\w+:.*\n)*Ca\s{1,9}: 0x[0-9a-f]+ ports \d+ \"", text[:4000]))


def read(text: str) -> dict[str, Any]:
    """`adapters`: guid, port_count and name of each. Raises Unparsable for a line of another form."""
    return {"adapters": listed(text, "Ca", KIND)}


def listed(text: str, word: str, tool: str) -> list[dict[str, Any]]:
    """The nodes that ibhosts and ibswitches list."""
    found = []
    for line in text.splitlines():
        if not line.strip() or is_complaint(line):
            continue
        # Switch	: 0xe41d2d0300000010 ports 6 "leaf001" enhanced port 0 lid 11 lmc 0
        match = re.fullmatch(rf'{word}\s+: 0x([0-9a-f]{{1,16}}) ports (\d{{1,3}}) "(.*)"(.*)', line)
        if match is None or len(line) > 1024:
            raise Unparsable(f"{tool} printed a line of an unknown form", line)
        lid = re.search(r" lid (\d{1,6})", match[4])
        node = {"guid": int(match[1], 16), "port_count": int(match[2]), "name": match[3].strip()}
        found.append({**node, **({"lid": int(lid[1])} if lid else {})})
    return found
