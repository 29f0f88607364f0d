"""A host whose devices sit where they should not."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.profiles import DGX_H100

MACHINES = (
    Machine(
        "h100-numa-mixed",
        "a BIOS update left GPU 4 at the other socket: five GPUs at NUMA node 0, three at node 1",
        ("GpuNumaWrong",),
        files={f"/sys/bus/pci/devices/{DGX_H100[4]}/numa_node": "0\n"},
    ),
)
