"""At which NUMA node each GPU is: the first half at node 0."""

from __future__ import annotations

from tests.lab.parts import Shape

PROVENANCE = "numa_node as Documentation/ABI/testing/sysfs-bus-pci has it"


def files(shape: Shape) -> dict[str, str]:
    half = len(shape.gpus) // 2
    return {
        f"/sys/bus/pci/devices/{address}/numa_node": f"{int(number >= half)}\n"
        for number, address in enumerate(shape.gpus)
    }
