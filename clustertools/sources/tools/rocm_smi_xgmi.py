"""What `rocm-smi --showxgmierr` prints, as text or with `--json`: errors on the links between AMD's GPUs.

The figure is 0, 1 or 2 (none, one, several) since somebody last asked: to ask is to reset it. So this is for
reading what a person has printed; the check `xgmi_errors` reads counters that stay.
"""

from __future__ import annotations

import json
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "rocm-smi-xgmi"

FIELDS = {
    "gpus[].gpu": "number of the GPU",
    "gpus[].errors": "since somebody last asked: 0, 1, or 2 for several",
}


def recognise(text: str) -> bool:
    """The one phrase that only this prints."""
    return "XGMI Error count" in text[:100_000]


def read(text: str) -> dict[str, Any]:
    """`gpus`: gpu, errors (0, 1, or 2 for several). Raises Unparsable."""
    found = _of_json(text) if text.lstrip().startswith("{") else _of_text(text)
    if not found:
        raise Unparsable("rocm-smi --showxgmierr: no GPU", text)
    return {"gpus": [{"gpu": gpu, "errors": errors} for gpu, errors in sorted(found.items())]}


def _of_json(text: str) -> dict[int, int]:
    # {"card0": {"XGMI Error count": "0"}, "card1": {"XGMI Error count": "2"}}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable("rocm-smi --showxgmierr: not JSON", text) from exc
    found = {}
    for card, told in data.items():
        name = re.fullmatch(r"card(\d{1,3})", card)
        value = str(told.get("XGMI Error count", "")) if isinstance(told, dict) else ""
        if not name or value not in ("0", "1", "2"):
            raise Unparsable("rocm-smi --showxgmierr: a card of unknown form", f"{card}: {told}")
        found[int(name[1])] = int(value)
    return found


def _of_text(text: str) -> dict[int, int]:
    found = {}
    for line in text.splitlines():
        line = line[:500].strip()
        # GPU[0]          : XGMI Error count: 0 (No errors detected since last read)
        match = re.fullmatch(r"GPU\[(\d{1,3})\]\s*: XGMI Error count: ([012]) \([\w ]{1,60}\)", line)
        if match:
            found[int(match[1])] = int(match[2])
        elif line and not re.match(r"=|-|WARNING", line):
            raise Unparsable("rocm-smi --showxgmierr: a line of unknown form", line)
    return found
