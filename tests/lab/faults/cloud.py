"""Instances of a cloud that are not all that their type promises."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts import efa

_GONE, _DOWN = efa.ADDRESSES[5], efa.ADDRESSES[2]

MACHINES = (
    Machine(
        "ec2-efa-lost",
        "of 32 EFA devices the second before GPU 1 is not there, and the third before GPU 0 is down",
        ("EfaMissing", "EfaPortDown"),
        base="ec2-healthy",
        files=efa.device(_DOWN, 0, state="1: DOWN"),
        without=(f"{efa.CLASS}/{efa.name(_GONE)}", f"/sys/bus/pci/devices/{_GONE}"),
    ),
)  # fmt: skip
