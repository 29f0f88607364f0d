"""The PCIe devices that a training job lives on, the links that they hang on, and the bridges above them.

    for device in devices(host): ...        # GPUs, network adapters, NVMe drives, NVSwitches
    device.link.width, device.link.speed    # 16 lanes, 32.0 gigatransfers a second
    device.above                            # the bridges between it and the root, the nearest first

Files as in the kernel's Documentation/ABI/testing/sysfs-bus-pci and sysfs-bus-pci-devices-aer_stats. What
hangs below what follows from the bus numbers of the bridges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from clustertools.errors import Absent, Unparsable
from clustertools.host import Host
from clustertools.model import gpu_part, pci_address

FOLDER = "/sys/bus/pci/devices"
NVIDIA, AMD_GPU = 0x10DE, 0x1002
BRIDGE = 0x0604
#: Base class and subclass (PCI Code and ID Assignment), by what we call it. Display classes and "processing
#: accelerators" (0x1200, AMD Instinct) are GPUs only when they are of a maker of GPUs: a BMC has a VGA too.
KINDS = {
    0x0300: "gpu", 0x0302: "gpu", 0x0380: "gpu", 0x1200: "gpu",
    0x0200: "nic", 0x0207: "nic", 0x0108: "nvme", 0x0680: "nvswitch",
}  # fmt: skip
VGA = 0x0300
#: Makers of bridges that exist in software only: Red Hat (QEMU), VMware, Amazon, Google, Microsoft,
#: Parallels, and Intel's 82371 and 440FX of QEMU, which have no PCIe link anyway.
VIRTUAL = frozenset((0x1B36, 0x15AD, 0x1D0F, 0x1AE0, 0x1414, 0x1AB8))
#: Gigatransfers a second and lane, by generation.
GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6, 128.0: 7}


@dataclass(frozen=True, slots=True)
class Link:
    """What a device says of the link towards the root. None: it does not say, or has no such link."""

    width: int | None = None
    width_max: int | None = None
    speed: float | None = None
    speed_max: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """One function. `kind` is "gpu", "nic", "nvme", "nvswitch" or "bridge"."""

    address: str
    kind: str
    vendor: int
    device: int
    pci_class: int
    link: Link
    above: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        return gpu_part(self.address) if self.kind == "gpu" else f"pci@{self.address}"

    @property
    def virtual(self) -> bool:
        return self.vendor in VIRTUAL


@dataclass(frozen=True, slots=True)
class Bus:
    """All that matters on the PCI bus, by address; `endpoints` without further functions of one card."""

    by_address: Mapping[str, Device]

    @property
    def endpoints(self) -> list[Device]:
        found: dict[str, Device] = {}
        for device in self.by_address.values():
            if device.kind != "bridge":
                # the functions of a card share its link
                found.setdefault(device.address.rsplit(".", 1)[0], device)
        return list(found.values())

    def port(self, device: Device) -> Device | None:
        """The other end of its link: the bridge right above it; None where that is not to be seen."""
        return self.by_address.get(device.above[0]) if device.above else None


def bus(host: Host) -> Bus:
    """Look at the PCI bus. Raises Unobservable where sysfs cannot be listed, Unparsable for a class or a
    link of unknown form. Virtual functions of a card that is shared out are left out."""
    shared = {path.rsplit("/", 2)[1] for path in host.glob(f"{FOLDER}/*/physfn")}
    classes: dict[str, int] = {}
    for path in host.glob(f"{FOLDER}/*/class"):
        name = path.rsplit("/", 2)[1]
        if name not in shared and (text := _read(host, path)) is not None:
            classes[name] = _number(path, text) >> 8
    bridges = _bridges(host, [name for name, kind in classes.items() if kind == BRIDGE])
    found: dict[str, Device] = {}
    needed: set[str] = set()
    for name, pci_class in classes.items():
        if pci_class not in KINDS:
            continue
        device = _device(host, name, pci_class, _chain(name, bridges))
        if device is not None and _matters(device):
            found[device.address] = device
            needed.update(device.above)
    for name in needed:
        bridge = _device(host, name, BRIDGE, _chain(name, bridges))
        if bridge is not None:
            found[bridge.address] = bridge
    return Bus(dict(sorted(found.items())))


def generation(speed: float | None) -> int:
    """1 to 7; 0 for a speed that nobody knows."""
    return GENERATIONS.get(speed or 0.0, 0)


def errors(host: Host, address: str) -> dict[str, dict[str, int]] | None:
    """Counters of Advanced Error Reporting since boot by severity (`correctable`, `nonfatal`, `fatal`), then
    by error (`RxErr`, `BadTLP` ...); None for a device of which the kernel counts none. Raises Unparsable.
    """
    found: dict[str, dict[str, int]] = {}
    for severity in ("correctable", "nonfatal", "fatal"):
        path = f"{FOLDER}/{address}/aer_dev_{severity}"
        if (text := _read(host, path)) is None:
            return None
        counts = {}
        for line in text.splitlines():
            # RxErr 0        and last  TOTAL_ERR_COR 0
            match = re.fullmatch(r"([\w ]{1,40}?) ([0-9]{1,20})", line.strip())
            if match is None:
                raise Unparsable(f"{path} has a line of an unknown form", line)
            if not match[1].startswith("TOTAL_"):
                counts[match[1]] = int(match[2])
        found[severity] = counts
    return found


def _matters(device: Device) -> bool:
    if device.kind == "gpu":
        return device.vendor in (NVIDIA, AMD_GPU)
    return device.kind != "nvswitch" or device.vendor == NVIDIA


def _bridges(host: Host, names: Iterable[str]) -> dict[tuple[str, int], str]:
    """The bridge above each bus, by (domain, number of the bus)."""
    found = {}
    for name in names:
        text = _read(host, f"{FOLDER}/{name}/secondary_bus_number")
        if text is not None and text.strip().isdigit():
            found[name.split(":")[0], int(text)] = name
    return found


def _chain(name: str, bridges: Mapping[tuple[str, int], str]) -> tuple[str, ...]:
    above: list[str] = []
    domain, number, _ = name.split(":")
    while (bridge := bridges.get((domain, int(number, 16)))) and bridge not in above:
        above.append(bridge)
        number = bridge.split(":")[1]
    return tuple(above)


def _device(host: Host, name: str, pci_class: int, above: Sequence[str]) -> Device | None:
    folder = f"{FOLDER}/{name}"
    vendor, device = (_read(host, f"{folder}/{file}") for file in ("vendor", "device"))
    if vendor is None or device is None:
        return None  # it was removed between the listing and the look
    return Device(
        pci_address(name), KINDS.get(pci_class, "bridge"), _number(folder, vendor), _number(folder, device),
        pci_class, _link(host, folder), tuple(above),
    )  # fmt: skip


def _link(host: Host, folder: str) -> Link:
    widths, speeds = [], []
    for when in ("current", "max"):
        text = (_read(host, f"{folder}/{when}_link_width") or "0").strip()
        if not text.isdigit():
            raise Unparsable(f"{folder}/{when}_link_width is no number", text)
        # 0: no link; 63 and 255 are the all-ones of a device that does not answer or sleeps
        widths.append(int(text) if 0 < int(text) < 63 else None)
        text = (_read(host, f"{folder}/{when}_link_speed") or "Unknown").strip()
        # 32.0 GT/s PCIe     or, before Linux 5.7, 16 GT/s; Unknown for a device that sleeps
        match = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9])?) GT/s(?: PCIe)?|Unknown(?: speed)?", text)
        if match is None:
            raise Unparsable(f"{folder}/{when}_link_speed has an unknown form", text)
        speeds.append(float(match[1]) if match[1] else None)
    return Link(widths[0], widths[1], speeds[0], speeds[1])


def _read(host: Host, path: str) -> str | None:
    try:
        return host.read(path)
    except Absent:
        return None


def _number(path: str, text: str) -> int:
    # 0x10de
    match = re.fullmatch(r"0x[0-9a-fA-F]{4,6}", text.strip())
    if match is None:
        raise Unparsable(f"{path} has an unknown form", text)
    return int(match[0], 16)
