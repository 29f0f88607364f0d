"""`ibswitches` of infiniband-diags: the switches of the fabric, one a line."""

from __future__ import annotations

import re
from typing import Any

from clustertools.sources.tools.ibhosts import listed

KIND = "ibswitches"

FIELDS = {
    "switches[].guid": "of the node, in hexadecimal",
    "switches[].port_count": "its ports",
    "switches[].name": "its description",
    "switches[].lid": "local identifier",
}  # fmt: skip


def recognise(text: str) -> bool:
    """By the first line."""
    return bool(re.match(r"\s*(ib\w+:.*\n)*Switch\s{1,9}: 0x[0-9a-f]+ ports \d+ \"", text[:4000]))


def read(text: str) -> dict[str, Any]:
    """`switches`: guid, port_count, name and lid of each. Raises Unparsable for a line of another form."""
    return {"switches": listed(text, "Switch", KIND)}
