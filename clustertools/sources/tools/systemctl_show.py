"""`systemctl show`: what systemd knows of its units, a block of `Key=value` a unit, a blank line between.

Form: systemctl(1), "show"; the properties are those of systemd.unit and systemd.service since version 235.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clustertools.errors import Unparsable

KIND = "systemctl-show"
FIELDS = {
    "units[].*": "every property of the unit that was printed, as text; `NRestarts` is n_restarts",
}
#: What the typed reader needs, in one call: `systemctl show --property=... UNIT... '*.service'`.
PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "NRestarts")


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit. `restarts` counts those that systemd did by itself since the unit was started by hand."""

    name: str
    load_state: str
    active_state: str
    sub_state: str = ""
    file_state: str = ""
    result: str = ""
    restarts: int | None = None


def recognise(text: str) -> bool:
    head = text[:20000]
    return all(re.search(rf"^{key}=", head, re.MULTILINE) for key in ("Id", "LoadState", "ActiveState"))


def read(text: str) -> dict[str, Any]:
    """{"units": [{"id": "slurmd.service", "load_state": "loaded", ...}]}; every property as text."""
    units = [{_key(key): value for key, value in block.items()} for block in _blocks(text)]
    if not units or not all("id" in unit for unit in units):
        raise Unparsable("systemctl show has a unit without Id", text)
    return {"units": units}


def units(text: str) -> list[Unit]:
    """The units by their names, each once. Raises Unparsable for a block without the states."""
    found = {}
    for block in _blocks(text):
        restarts = block.get("NRestarts", "")
        try:
            found[block["Id"]] = Unit(
                block["Id"], block["LoadState"], block["ActiveState"], block.get("SubState", ""),
                block.get("UnitFileState", ""), block.get("Result", ""),
                int(restarts) if re.fullmatch(r"\d{1,10}", restarts) else None,
            )  # fmt: skip
        except KeyError as exc:
            raise Unparsable(f"systemctl show has a unit without {exc.args[0]}", str(block)) from exc
    return list(found.values())


def _blocks(text: str) -> Iterator[dict[str, str]]:
    block: dict[str, str] = {}
    for line in [*text.split("\n"), ""]:
        if not line.strip():
            if block:
                yield block
            block = {}
            continue
        # ActiveState=active
        key, separator, value = line.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z0-9]{1,80}", key):
            raise Unparsable("systemctl show has an unknown line", line)
        block[key] = value.strip()


def _key(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
