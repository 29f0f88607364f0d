"""`sminfo` of infiniband-diags: the subnet manager that a port knows, and what it is doing."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.iblinkinfo import is_complaint

KIND = "sminfo"

FIELDS = {
    "lid": "of the subnet manager",
    "guid": "of its port, in hexadecimal",
    "activity_count": "grows while it works",
    "priority": "0 to 15",
    "state": "0 to 3",
    "state_name": "NOTACTIVE, DISCOVERING, STANDBY or MASTER",
}  # fmt: skip


def recognise(text: str) -> bool:
    """By the words before the LID."""
    return "sminfo: sm lid " in text[:4000]


def read(text: str) -> dict[str, Any]:
    """lid, guid, activity_count, priority, state (0 to 3) and state_name (MASTER, STANDBY ...).

    Raises Unparsable when it says something else.
    """
    for line in text.splitlines():
        if not line.strip() or is_complaint(line):
            continue
        # sminfo: sm lid 1 sm guid 0x2c90300000001, activity count 386 priority 0 state 3 SMINFO_MASTER
        match = re.fullmatch(
            r"sminfo: sm lid (\d{1,6}) sm guid 0x([0-9a-f]{1,16}), activity count (\d{1,10}) "
            r"priority (\d{1,3}) state (\d{1,3}) (?:SMINFO_)?(\w+)\s*",
            line,
        )
        if match is None:
            raise Unparsable("sminfo printed a line of an unknown form", line)
        return {
            "lid": int(match[1]), "guid": int(match[2], 16), "activity_count": int(match[3]),
            "priority": int(match[4]), "state": int(match[5]), "state_name": match[6],
        }  # fmt: skip
    raise Unparsable("sminfo printed nothing", text)
