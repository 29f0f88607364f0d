"""Linux software RAID: /proc/mdstat, and `mdadm --detail` of one array.

mdstat's form is that of drivers/md/md.c (`md_seq_show`) and of each level's `status`; mdadm's is Detail.c.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "mdadm"

FIELDS = {
    "arrays[].name": "md0",
    "arrays[].level": "raid1, raid5, container ...; \"\" where it is not told",
    "arrays[].active": "whether it runs",
    "arrays[].broken": "whether it lost more than it can (mdstat)",
    "arrays[].state[]": "clean, degraded, recovering ... (--detail)",
    "arrays[].devices": "members that it should have",
    "arrays[].working": "and has",
    "arrays[].failed": "members that failed (--detail)",
    "arrays[].size_bytes": "of all blocks (mdstat)",
    "arrays[].metadata": "form of the superblock (mdstat)",
    "arrays[].action": "resync, recovery, reshape, check, with pending or delayed; rebuild of --detail",
    "arrays[].action_done_ratio": "of 1",
    "arrays[].members[]": "name, failed, spare and, of --detail, removed: a place without a device",
}  # fmt: skip

#: A longer line is no line of this tool.
_LINE = 4096
_LEVELS = "linear|raid0|raid1|raid4|raid5|raid6|raid10|multipath|faulty|container"


def recognise(text: str) -> bool:
    """Is this /proc/mdstat or `mdadm --detail`?"""
    return text.startswith("Personalities :") or bool(re.match(r"/dev/\S+:\n\s+(Version|Container) :", text))


def read(text: str) -> dict[str, Any]:
    """`arrays`: for each its level, devices wanted and working, members with their state, and any rebuild.

    Raises Unparsable for text that is neither.
    """
    if text.startswith("Personalities :"):
        return {"arrays": mdstat(text)}
    if recognise(text) and all(len(line) <= _LINE for line in text.splitlines()):
        return {"arrays": [_detail(text)]}
    raise Unparsable("neither /proc/mdstat nor mdadm --detail", text[:200])


def mdstat(text: str) -> list[dict[str, Any]]:
    """The arrays of /proc/mdstat."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if line.startswith(("Personalities :", "unused devices:", "read_ahead")) or not line.strip():
            continue
        # md0 : active raid1 nvme1n1p2[1] nvme0n1p2[0](F)      or "inactive", "active (auto-read-only)"
        match = re.match(
            rf"(md\S+) : (active|inactive|broken)(?: \((?:auto-)?read-only\))?"
            rf"(?: ({_LEVELS}))?((?: \S+)*)\s*$",
            line,
        )
        if match:
            found.append(
                {"name": match[1], "active": match[2] == "active", "broken": match[2] == "broken",
                 "level": match[3] or "", "members": _members(match[4], line)}
            )  # fmt: skip
        elif line[0].isspace() and found:
            found[-1] |= _about(line)
        else:
            raise Unparsable("/proc/mdstat has a line of an unknown form", line)
    return found


def _members(text: str, line: str) -> list[dict[str, Any]]:
    members = []
    for word in text.split():
        # nvme0n1p2[0]      sdb1[2](F)      sdc[3](S)      sdd[1](W)(R)
        match = re.fullmatch(r"([^\[\]]{1,64})\[([0-9]{1,5})\]((?:\([A-Z]\))*)", word)
        if match is None:
            raise Unparsable("/proc/mdstat has a member of an unknown form", line)
        members.append({"name": match[1], "failed": "(F)" in match[3], "spare": "(S)" in match[3]})
    return members


def _about(line: str) -> dict[str, Any]:
    """What the indented lines under an array add; those about bitmaps and reshapes say nothing of health."""
    told: dict[str, Any] = {}
    # 1843200000 blocks super 1.2 [2/1] [_U]
    if match := re.search(r"\[([0-9]{1,5})/([0-9]{1,5})\] \[([U_]+)\]", line):
        told |= {"devices": int(match[1]), "working": int(match[2])}
    if match := re.match(r"\s+([0-9]{1,18}) blocks(?: super (\S{1,64}))?", line):
        told |= {"size_bytes": int(match[1]) * 1024, "metadata": match[2] or "0.90"}
    # [=>...................]  recovery =  5.2% (82101312/1564531200) finish=115.9min speed=213025K/sec
    if match := re.search(r"(resync|recovery|reshape|check) *= *([0-9]{1,3}\.[0-9]+)%", line):
        told |= {"action": match[1], "action_done_ratio": float(match[2]) / 100}
    # resync=PENDING      resync=DELAYED
    elif match := re.search(r"(resync|recovery|reshape|check)=(PENDING|DELAYED|REMOTE)", line):
        told["action"] = f"{match[1]} {match[2].lower()}"
    return told


def _detail(text: str) -> dict[str, Any]:
    fields = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(" : ") for line in text.splitlines())
        if colon
    }
    # State : clean, degraded, recovering
    state = [word.strip() for word in fields.get("State", "").split(",") if word.strip()]
    found: dict[str, Any] = {
        "name": text.partition(":")[0].removeprefix("/dev/"), "level": fields.get("Raid Level", ""),
        "state": state, "active": "inactive" not in state, "members": _detail_members(text),
    }  # fmt: skip
    if not found["level"]:
        raise Unparsable("mdadm --detail does not tell the level", text[:200])
    for name, key in (
        ("Raid Devices", "devices"),
        ("Active Devices", "working"),
        ("Failed Devices", "failed"),
    ):
        if re.fullmatch("[0-9]{1,5}", fields.get(name, "")):
            found[key] = int(fields[name])
    # Rebuild Status : 20% complete
    for name in ("Rebuild Status", "Resync Status", "Check Status", "Reshape Status"):
        if match := re.match(r"([0-9]{1,3})% complete", fields.get(name, "")):
            found |= {"action": name.split()[0].lower(), "action_done_ratio": int(match[1]) / 100}
    return found


def _detail_members(text: str) -> list[dict[str, Any]]:
    """Under "Number Major Minor RaidDevice State": devices, and `removed` where one should be."""
    members = []
    for line in text.partition("RaidDevice State")[2].splitlines():
        #    0     254        1        0      active sync   /dev/vda1
        match = re.match(
            r"\s+(?:[0-9]+|-)\s+[0-9]+\s+[0-9]+\s+(?:[0-9]+|-)\s+(.*?)(?:\s+(/dev/\S+))?\s*$", line
        )
        if match:
            words = match[1].split()
            members.append(
                {"name": (match[2] or "").removeprefix("/dev/"), "failed": "faulty" in words,
                 "spare": "spare" in words, "removed": "removed" in words}
            )  # fmt: skip
    return members
