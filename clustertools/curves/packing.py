"""The saved state of a curve watch as one short text: numbers as bytes, not as digits. Pure.

text = packed(watch.state())         CurveWatch(unpacked(text)) goes on from it

Hundreds of numbers as decimal digits and back are most of what a look at a run without trouble costs.
"""

from __future__ import annotations

import base64
import json
from array import array
from typing import Any

#: Stands for a list of floats: base64 of IEEE 754 doubles in the machine's own order.
_DOUBLES = "f64"
#: Shorter lists are left as they are.
_MANY = 8


def packed(state: Any) -> str:
    """JSON-ready data as text. The machine that reads it has to have the byte order of this one."""
    return json.dumps(_pack(state))


def unpacked(text: str) -> Any:
    """The data again, exactly. Raises ValueError for a text that is none of ours."""
    return json.loads(text, object_hook=_unpack)


def _pack(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pack(inner) for key, inner in value.items()}
    if isinstance(value, list) and len(value) > _MANY:
        if all(type(inner) is float for inner in value):
            return {_DOUBLES: base64.b64encode(array("d", value)).decode()}
        return [_pack(inner) for inner in value]
    return value


def _unpack(value: dict[str, Any]) -> Any:
    if _DOUBLES not in value:
        return value
    numbers = array("d")
    numbers.frombytes(base64.b64decode(value[_DOUBLES], validate=True))
    return numbers.tolist()
