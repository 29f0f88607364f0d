"""One versioned JSON object a line: what `--json` prints and what nodes and the head say to each other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from clustertools.model import to_data

#: Raised when a field changes its meaning or goes away; a new field does not raise it.
SCHEMA = 1


def json_line(kind: str, data: Mapping[str, Any] | Any, *, ascii_only: bool = False) -> str:
    """`data`, a mapping or a value of the model, as {"schema": 1, "kind": kind, ...} on one line."""
    plain = to_data(data)
    if not isinstance(plain, dict):
        plain = {"value": plain}
    line = {"schema": SCHEMA, "kind": kind, **plain}
    try:
        return json.dumps(line, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(line), ensure_ascii=ascii_only)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, so that every reader can parse the line."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list) else value
