"""JSON that a tool printed: one object, its numbers taken out with care. Not a reader itself."""

from __future__ import annotations

import json
import math
from typing import Any

from clustertools.errors import Unparsable


def json_object(text: str, tool: str) -> dict[str, Any]:
    """The object that `text` is. Raises Unparsable for anything else; `tool` is for its sentence."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable(f"{tool} did not print JSON", text[:200]) from exc
    if not isinstance(data, dict):
        raise Unparsable(f"{tool} printed JSON that is not an object", text[:200])
    return data


def is_object_with(text: str, *keys: str) -> bool:
    """Whether `text` is one JSON object with all of `keys`. Never raises."""
    if text.lstrip()[:1] != "{" or any(f'"{key}"' not in text for key in keys):
        return False
    try:
        data = json_object(text, "it")
    except Unparsable:
        return False
    return all(key in data for key in keys)


def inside(data: dict[str, Any], *path: str) -> Any:
    """What is at `path` in nested objects, or None where a step is missing."""
    found: Any = data
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def number(data: dict[str, Any], *path: str) -> float | int | None:
    """The finite number at `path`; numbers in quotes count (nvme-cli writes large ones so); else None."""
    found = inside(data, *path)
    if isinstance(found, str):
        try:
            found = float(found) if "." in found else int(found[:40])
        except ValueError:
            return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return found if isinstance(found, int) or math.isfinite(found) else None


def text_of(data: dict[str, Any], *path: str) -> str:
    """The text at `path`, at most 200 characters, or nothing."""
    found = inside(data, *path)
    return found.strip()[:200] if isinstance(found, str) else ""
