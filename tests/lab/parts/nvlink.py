"""Fabric manager as systemd shows it, and its log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.lab.parts import Shape
from tests.lab.parts.pcie import NVSWITCHES

PROVENANCE = (
    "fabric manager's unit in the form of systemctl show (systemd 249), its log in that of the lines in the "
    "tests of leptonai/gpud"
)
LOG = "/var/log/fabricmanager.log"
STARTED = (
    "[Aug 05 2026 06:00:41] [INFO] [tid 5183] Fabric Manager version {driver} is running with the following "
    "configuration options\n"
    "[Aug 05 2026 06:00:41] [INFO] [tid 5183] Logging level = 4\n"
    "[Aug 05 2026 06:01:09] [INFO] [tid 5183] Successfully configured all the available NVSwitches to route "
    "GPU NVLink traffic. NVLink Peer-to-Peer support will be enabled once the GPUs are successfully "
    "registered with the NVLink fabric.\n"
)


def show(unit: str) -> tuple[str, ...]:
    """The question about a unit."""
    return ("systemctl", "show", unit, "--property=LoadState,ActiveState,SubState,Result")


FABRIC_MANAGER = show("nvidia-fabricmanager.service")
IMEX = show("nvidia-imex.service")
IMEX_STATE = ("nvidia-imex-ctl", "-q")
NOT_FOUND = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n"
RUNS = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n"


def files(shape: Shape) -> dict[str, str]:
    return {LOG: STARTED.format(driver=shape.driver)} if shape.node_class in NVSWITCHES else {}


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    if shape.gpu == "nvidia":
        # the trays of a rack are one IMEX domain; other nodes have no such daemon
        tray = shape.node_class == "gb200-4"
        found[IMEX] = {"seconds": 0.006, "stdout": RUNS if tray else NOT_FOUND}
        if tray:
            found[IMEX_STATE] = {"seconds": 0.02, "stdout": "READY\n"}
    if shape.node_class in NVSWITCHES:
        found[FABRIC_MANAGER] = {"seconds": 0.006, "stdout": RUNS}
    return found


def expect(shape: Shape) -> dict[str, object]:
    """The NVSwitches of its class, and who joins them."""
    if shape.node_class == "gb200-4":
        return {"imex": True}
    if shape.node_class not in NVSWITCHES:
        return {}
    return {"nvswitches": len(NVSWITCHES[shape.node_class][1]), "fabric_manager": True}
