"""`dcgmi health -c -j`: what DCGM's background watches found. Format: NVIDIA/DCGM, dcgmi/Health.cpp."""

from __future__ import annotations

import json
from typing import Any

from clustertools.errors import Unparsable

KIND = "dcgm-health"
FIELDS = {
    "overall": "Healthy, Warning or Failure, the worst of all watches",
    "incidents[].entity": "what it is about, as DCGM numbers it: GPU 3, NvSwitch 0",
    "incidents[].system": "the watch: PCIe system, Memory system, Thermal system ...",
    "incidents[].health": "Warning or Failure",
    "incidents[].text": "DCGM's own sentence",
}
_HEADER = "Health Monitor Report"


def recognise(text: str) -> bool:
    return text.lstrip()[:1] == "{" and _HEADER in text and "Overall Health" in text


def read(text: str) -> dict[str, Any]:
    """`overall` and `incidents`. Raises Unparsable for anything that is not this report."""
    try:
        report = json.loads(text)
        body = report["body"]
        incidents = [
            {
                "entity": f"{group} {number}",
                "system": str(system),
                "health": str(told.get("value", "")),
                "text": " ".join(str(line) for line in told.get("overflow", []))[:500],
            }
            for group, entities in body.items()
            if group != "Overall Health"
            for number, entity in entities["children"].items()
            for system, told in entity["children"]["Errors"]["children"].items()
        ]
        overall = body["Overall Health"]["value"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("dcgmi's health report has an unknown form", text) from exc
    if overall not in ("Healthy", "Warning", "Failure"):
        raise Unparsable("dcgmi's health report has an unknown form", str(overall))
    return {"overall": overall, "incidents": incidents}
