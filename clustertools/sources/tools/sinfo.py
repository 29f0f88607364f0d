"""`sinfo`: partitions and nodes by state (also -N, -l, -R, -o with headings), or by --json."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools import slurm_values as values
from clustertools.sources.tools.scontrol import json_node
from clustertools.sources.tools.slurm_table import rows

KIND = "sinfo"

FIELDS = {
    "groups[].nodes": "the nodes that are alike, as a node set",
    "groups[].node_count": "how many they are",
    "groups[].partition": "their partition, without the mark of the default one",
    "groups[].is_default": "whether it has that mark; null where it is not shown",
    "groups[].partition_available": "up, down, drain, inact",
    "groups[].time_limit_seconds": "of the partition; null: without limit",
    "groups[].states[]": "state, and flags beside it: IDLE, DRAINED, NOT_RESPONDING ...",
    "groups[].reason": "why they are drained or down (-R, -l)",
    "groups[].reason_by": "who set it (-R)",
    "groups[].reason_time": "when, as printed (-R)",
    "groups[].fields": "every column by its heading, as text",
}

#: Marks after a state (sinfo(1), NODE STATE CODES).
_MARKS = {
    "*": "NOT_RESPONDING", "~": "POWERED_DOWN", "#": "POWERING_UP", "!": "POWER_DOWN", "%": "POWERING_DOWN",
    "$": "MAINTENANCE", "@": "REBOOT_REQUESTED", "^": "REBOOT_ISSUED", "-": "PLANNED",
}  # fmt: skip
_LONG = {
    "alloc": "ALLOCATED", "comp": "COMPLETING", "down": "DOWN", "drain": "DRAINED", "drng": "DRAINING",
    "fail": "FAIL", "failg": "FAILING", "futr": "FUTURE", "idle": "IDLE", "inval": "INVAL", "maint": "MAINT",
    "mix": "MIXED", "no_respond": "NOT_RESPONDING", "npc": "PERFCTRS", "plnd": "PLANNED",
    "pow_dn": "POWER_DOWN", "pow_up": "POWER_UP", "resv": "RESERVED", "unk": "UNKNOWN",
}  # fmt: skip


#: NODES of -o %A is "5/3"; the time of a reason can be Unknown.
_FORMS = {"NODES": r"\d", "AVAIL": "up|down|drain|inact", "TIMESTAMP": r"\d|Unknown|N/A|n/a|None"}


def recognise(text: str) -> bool:
    """Whether the heading is sinfo's, or it is its JSON."""
    head = next((line for line in text.splitlines()[:3] if "NODE" in line), "")
    columns = set(re.split(r"[|\s]+", head))
    return (
        ("NODELIST" in columns and bool({"STATE", "REASON", "AVAIL"} & columns) and "JOBID" not in columns)
        or values.is_document(text, "sinfo")
        or (values.is_document(text, "nodes") and '"scontrol"' not in text[:4000])
    )


def read(text: str) -> dict[str, Any]:
    """The groups of nodes. Raises Unparsable for another heading, or a row that does not fit it."""
    if text.lstrip()[:1] == "{":
        return _from_json(text)
    table = rows(text, "sinfo", _FORMS)
    if not recognise(text):
        raise Unparsable("sinfo: no heading with NODELIST and a state or reason", text)
    return {"groups": [_group(row) for row in table]}


def _group(row: dict[str, str]) -> dict[str, Any]:
    partition = row.get("PARTITION", "")
    state = row.get("STATE", "")
    bare = re.sub(r"[*~#!%$@^-]+$", "", state)
    states = [_LONG.get(word, word.upper()) for word in bare.split("+") if word]
    return {
        "nodes": row.get("NODELIST", ""), "node_count": values.count(row.get("NODES", "")),
        "partition": partition.rstrip("*") or None,
        "is_default": partition.endswith("*") if partition else None,
        "partition_available": row.get("AVAIL"),
        "time_limit_seconds": values.seconds(row.get("TIMELIMIT", "")),
        "states": [*states, *(_MARKS[mark] for mark in state[len(bare) :])],
        "reason": values.text_or_none(row.get("REASON", "")), "reason_by": row.get("USER"),
        "reason_time": row.get("TIMESTAMP"), "fields": row,
    }  # fmt: skip


def _from_json(text: str) -> dict[str, Any]:
    data = values.document(text, "sinfo", "sinfo", "nodes")
    try:
        if "sinfo" in data:
            return {"groups": [_json_group(one) for one in data["sinfo"]]}
        nodes = [json_node(node) for node in data["nodes"]]
    except (AttributeError, TypeError, ValueError, IndexError) as exc:
        raise Unparsable("sinfo: JSON of an unknown form", text) from exc
    return {"groups": [_of_node(node) for node in nodes]}


def _of_node(node: dict[str, Any]) -> dict[str, Any]:
    return {
        "nodes": node["name"], "node_count": 1, "partition": ",".join(node["partitions"]) or None,
        "is_default": None, "partition_available": None, "time_limit_seconds": None,
        "states": node["states"], "reason": node["reason"], "reason_by": node["reason_by"],
        "reason_time": node["reason_time"], "fields": {},
    }  # fmt: skip


def _json_group(one: dict[str, Any]) -> dict[str, Any]:
    partition = one.get("partition") or {}
    nodes = one.get("nodes") or {}
    limit = values.number((partition.get("maximums") or {}).get("time"))
    reason = one.get("reason") or {}
    total = values.number(nodes.get("total"))
    available = values.words((partition.get("partition") or {}).get("state"))[0]
    return {
        "nodes": ",".join(nodes.get("nodes") or ()), "node_count": None if total is None else int(total),
        "partition": partition.get("name"), "is_default": None,
        "partition_available": available.lower() or None,
        "time_limit_seconds": None if limit is None else limit * 60,
        "states": values.words((one.get("node") or {}).get("state")),
        "reason": values.text_or_none(str(reason.get("description") or "")),
        "reason_by": reason.get("user") or None, "reason_time": values.moment(reason.get("time")),
        "fields": {},
    }  # fmt: skip
