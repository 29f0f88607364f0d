"""Instances of a cloud that are not all that their type promises."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts import efa
from tests.lab.parts.efa_provider import SAID
from tests.lab.whole_node import cpu_node

_FIRST = efa.ADDRESSES[:3]

MACHINES = (
    Machine(
        "efa-lost",
        "of four EFA devices one is not there and one is down",
        ("EfaMissing", "EfaPortDown"),
        base="cpu-healthy",
        files={
            **efa.device(_FIRST[0], 0), **efa.device(_FIRST[1], 0),
            **efa.device(_FIRST[2], 0, state="1: DOWN"),
        },
        commands={("fi_info", "-p", "efa"): {"seconds": 0.2, "stdout": SAID}},
        globs={f"{efa.CLASS}/{efa.name(pci)}/device/net/*": () for pci in _FIRST},
        about={"expect": {**cpu_node().expect, "efa_devices": 4}},
    ),
)  # fmt: skip
