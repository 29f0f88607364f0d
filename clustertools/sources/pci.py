"""Which NVIDIA GPUs and NVSwitches sit on the PCI bus, by sysfs alone: needs no driver and cannot hang.

nvidia_devices(host)   # ("0000:18:00.0", "0000:3b:00.0", ...)
nvswitches(host)       # ("0000:07:00.0", ...)
"""

from __future__ import annotations

from clustertools.errors import Absent
from clustertools.host import Host
from clustertools.model import pci_address

#: PCI vendor id of NVIDIA (the PCI ID repository, pci-ids.ucw.cz).
NVIDIA_VENDOR = 0x10DE
AMD_VENDOR = 0x1002
#: "Processing accelerator", the class of AMD's Instinct cards.
_ACCELERATOR = 0x1200
#: PCI base class and subclass: VGA controller and 3D controller (PCI Code and ID Assignment). Data centre
#: GPUs are 3D controllers. NVSwitches are bridges (0x0680), network functions 0x02xx: neither is a GPU.
GPU_CLASSES = frozenset((0x0300, 0x0302))
#: "Bridge, other": what an NVSwitch is. On HGX B200 and later the host sees none.
NVSWITCH_CLASSES = frozenset((0x0680,))


def nvidia_devices(host: Host) -> tuple[str, ...]:
    """PCI addresses of the NVIDIA GPUs, as `model.pci_address` writes them, in bus order.

    Empty on a machine without one. A GPU that fell off the bus may still be listed: the kernel removes it
    only when it is rescanned. Raises Unobservable when a device is listed but cannot be read.
    """
    return _devices(host, NVIDIA_VENDOR, GPU_CLASSES)


def nvswitches(host: Host) -> tuple[str, ...]:
    """PCI addresses of the NVSwitches, likewise."""
    return _devices(host, NVIDIA_VENDOR, NVSWITCH_CLASSES)


def amd_devices(host: Host) -> tuple[str, ...]:
    """PCI addresses of AMD's Instinct GPUs, in bus order; graphics cards for a screen are none."""
    return _devices(host, AMD_VENDOR, frozenset((_ACCELERATOR,)))


def _devices(host: Host, wanted: int, classes: frozenset[int]) -> tuple[str, ...]:
    found = []
    for path in host.glob("/sys/bus/pci/devices/*/vendor"):
        folder = path.rsplit("/", 1)[0]
        try:
            # vendor "0x10de", class "0x030200"
            if (
                hexadecimal(host.read(path)) != wanted
                or hexadecimal(host.read(f"{folder}/class")) >> 8 not in classes
            ):
                continue
        except Absent:
            continue  # it was removed between the listing and the look
        found.append(pci_address(folder.rsplit("/", 1)[1]))
    return tuple(sorted(found))


def hexadecimal(text: str) -> int:
    """The number of a sysfs attribute such as "0x10de"; 0 for anything else."""
    try:
        return int(text.strip(), 16)
    except ValueError:
        return 0
