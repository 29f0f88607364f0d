"""`zpool status` of OpenZFS, plain or with --json (2.3 and later): pools, their devices and errors."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.json_object import inside, is_object_with, json_object, text_of

KIND = "zpool-status"

FIELDS = {
    "pools[].name": "of the pool",
    "pools[].state": "ONLINE, DEGRADED, FAULTED, UNAVAIL, SUSPENDED ...",
    "pools[].status": "what ZFS says is the matter",
    "pools[].scan": "the last scrub or resilver, or its state",
    "pools[].devices[]": "name, state, read_errors, write_errors, checksum_errors, note, of all below "
    "the pool",
    "pools[].has_data_errors": "whether files or metadata are lost",
    "pools[].errors": "as printed",
}  # fmt: skip

_STATES = "ONLINE|DEGRADED|FAULTED|OFFLINE|UNAVAIL|REMOVED|SUSPENDED|AVAIL|INUSE|SPLIT"
#: A longer line is no line of this tool.
_LINE = 4096
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def recognise(text: str) -> bool:
    """Is this what zpool prints of its pools?"""
    if is_object_with(text, "pools", "output_version"):
        return True
    return bool(re.match(r"\s*pool: \S+\n\s*state: ", text)) or text.strip() == "no pools available"


def read(text: str) -> dict[str, Any]:
    """`pools`: name, state, what it says (`status`), devices that are not well or had errors, data errors.

    Raises Unparsable for a pool without a state.
    """
    if text.lstrip()[:1] == "{":
        return {"pools": _json(text)}
    if text.strip() == "no pools available":
        return {"pools": []}
    if not recognise(text) or any(len(line) > _LINE for line in text.splitlines()):
        raise Unparsable("not what zpool status prints", text[:200])
    return {
        "pools": [
            _pool(part) for part in re.split(r"^\s*(?=pool: )", text, flags=re.MULTILINE) if part.strip()
        ]
    }


def _pool(text: str) -> dict[str, Any]:
    fields: dict[str, str] = {}
    devices: list[dict[str, Any]] = []
    name = ""
    for line in text.splitlines():
        # "  state: ONLINE"    keys stand at most 8 columns in; "        sdh     ONLINE       0     0     0"
        match = re.match(r" {0,8}(pool|state|status|action|see|scan|scrub|config|errors): ?(.*)$", line)
        if match:
            name = match[1]
            fields[name] = match[2].strip()
        elif name == "config":
            devices += _device(line)
        elif name:
            fields[name] = f"{fields[name]} {line.strip()}".strip()
    state = fields.get("state", "")
    if not re.fullmatch(_STATES, state):
        raise Unparsable("zpool status has a pool in an unknown state", text[:200])
    return {
        "name": fields["pool"], "state": state, "status": fields.get("status", "")[:300],
        "scan": fields.get("scan", fields.get("scrub", ""))[:300],
        "devices": [d for d in devices if d["name"] != fields["pool"]],
        "has_data_errors": not fields.get("errors", "No known data errors").startswith("No known"),
        "errors": fields.get("errors", "")[:300],
    }  # fmt: skip


def _device(line: str) -> list[dict[str, Any]]:
    #       c1t1d0  UNAVAIL      4     1     0  cannot open        a spare has a state and no counts
    match = re.match(
        rf"\s+(\S{{1,200}})\s+({_STATES})(?:\s+([0-9.]+[KMGT]?)\s+([0-9.]+[KMGT]?)\s+([0-9.]+[KMGT]?))?(?:\s+(.*))?$",
        line,
    )
    if match is None:
        return []
    counts = [_count(match[n]) for n in (3, 4, 5)]
    return [
        {"name": match[1], "state": match[2], "read_errors": counts[0], "write_errors": counts[1],
         "checksum_errors": counts[2], "note": (match[6] or "").strip()[:200]}
    ]  # fmt: skip


def _count(text: str | None) -> int:
    # 12      1.2K
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([KMGT]?)", text or "0")
    return round(float(match[1]) * _UNITS[match[2]]) if match else 0


def _json(text: str) -> list[dict[str, Any]]:
    data = json_object(text, "zpool status")
    pools = inside(data, "pools")
    if not isinstance(pools, dict):
        raise Unparsable("zpool status --json has no pools", text[:200])
    found = []
    for name, pool in pools.items():
        state = text_of(pool, "state") if isinstance(pool, dict) else ""
        if not re.fullmatch(_STATES, state):
            raise Unparsable("zpool status has a pool in an unknown state", str(pool)[:200])
        devices: list[dict[str, Any]] = []
        waiting = [pool.get("vdevs"), pool.get("logs"), pool.get("l2cache"), pool.get("spares")]
        while waiting and len(devices) < 10_000:
            group = waiting.pop()
            for device in group.values() if isinstance(group, dict) else ():
                if isinstance(device, dict) and text_of(device, "state"):
                    devices.append(_json_device(device))
                    waiting.append(device.get("vdevs"))
        errors = str(pool.get("error_count", "0"))
        found.append(
            {"name": str(name)[:200], "state": state, "status": text_of(pool, "status"),
             "scan": text_of(pool, "scan_stats", "state"),
             "devices": [d for d in devices if d["name"] != name],
             "has_data_errors": _count(errors) > 0, "errors": f"{errors} data errors"}
        )  # fmt: skip
    return found


def _json_device(device: dict[str, Any]) -> dict[str, Any]:
    def count(key: str) -> int:
        return _count(str(device.get(key, "0")))

    return {
        "name": text_of(device, "name"), "state": text_of(device, "state"),
        "read_errors": count("read_errors"), "write_errors": count("write_errors"),
        "checksum_errors": count("checksum_errors"), "note": text_of(device, "path"),
    }  # fmt: skip
