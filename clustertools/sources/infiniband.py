"""RDMA devices as the kernel shows them in /sys/class/infiniband: InfiniBand, RoCE, Omni-Path, iWARP, EFA.

    for device in devices(ctx.host, ctx.unseen):
        for port in device.ports: ...

Formats: the kernel's Documentation/ABI/stable/sysfs-class-infiniband and drivers/infiniband/core/sysfs.c. No
command is run and no device opened, so nothing here needs root, and nothing hangs with a tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.model import pci_address

CLASS = "/sys/class/infiniband"

#: What a counter of the port counts up to (InfiniBand Architecture 1.4, PortCounters; the widths also in the
#: kernel's core/sysfs.c). There it stands still: it does not wrap.
SATURATES = {
    "symbol_error": 0xFFFF, "link_error_recovery": 0xFF, "link_downed": 0xFF, "port_rcv_errors": 0xFFFF,
    "port_rcv_remote_physical_errors": 0xFFFF, "port_xmit_discards": 0xFFFF,
    "port_xmit_constraint_errors": 0xFF, "port_rcv_constraint_errors": 0xFF,
    "local_link_integrity_errors": 0xF, "excessive_buffer_overrun_errors": 0xF,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Port:
    """A port of an RDMA device. `state` is "ACTIVE", "DOWN", "INIT" ..., `phys_state` "LinkUp", "Polling" ...

    `link_layer` is "InfiniBand", "Ethernet", or "Unknown" (EFA). A port that is down has the rate it had, or
    a placeholder. `lid` is 0 or 0xffff until a subnet manager has given one; Ethernet has none.
    """

    device: str
    number: int
    state: str
    phys_state: str
    link_layer: str
    rate_bits_per_second: float
    width: int
    speed: str
    lid: int = 0
    sm_lid: int = 0

    @property
    def part(self) -> str:
        return f"{self.device}/{self.number}"

    @property
    def folder(self) -> str:
        return f"{CLASS}/{self.device}/ports/{self.number}"

    @property
    def is_active(self) -> bool:
        """It can carry traffic."""
        return self.state in ("ACTIVE", "ACTIVE_DEFER")

    @property
    def is_ethernet(self) -> bool:
        return self.link_layer == "Ethernet"

    @property
    def rate(self) -> str:
        """The rate for people: 400 Gb/s (4X NDR)."""
        lanes = f"{self.width}X {self.speed}".strip()
        return f"{self.rate_bits_per_second / 1e9:g} Gb/s ({lanes})"


@dataclass(frozen=True, slots=True)
class Device:
    """An RDMA device. `pci` is empty for one without hardware of its own; `driver` is the PCI driver's name.

    `model` is what tells card types apart: the board id, else the HCA type, else the driver.
    `is_software`: soft-RoCE and soft-iWARP, which live upon a network interface that others look at.
    `is_spare_function`: a virtual function whose physical function is a device here too, so it is there to
    be given to a virtual machine. In that machine itself a virtual function is a device like any other.
    """

    name: str
    ports: tuple[Port, ...]
    pci: str = ""
    driver: str = ""
    model: str = ""
    firmware: str = ""
    numa_node: int = -1
    netdevs: tuple[str, ...] = ()
    is_software: bool = False
    is_spare_function: bool = False

    @property
    def is_efa(self) -> bool:
        return self.driver == "efa"

    @property
    def kind(self) -> tuple[str, str]:
        """Card type and PCI function: what should be cabled alike. A second port is often left free."""
        return self.model, self.pci.rpartition(".")[2]

    @property
    def place(self) -> str:
        """Where it is, for the evidence."""
        numa = f", NUMA node {self.numa_node}" if self.numa_node >= 0 else ""
        netdev = f", network interface {' '.join(self.netdevs)}" if self.netdevs else ""
        return f"{self.name}: PCI {self.pci or 'none'}{numa}{netdev}"


def devices(host: Host, unseen: Callable[[str], None]) -> list[Device]:
    """Every RDMA device, by name in natural order. What cannot be read is told to `unseen` and left out.

    A device or port that vanishes in between is no longer there, which is an answer.
    """
    names = [path.rsplit("/", 1)[1] for path in host.glob(f"{CLASS}/*")]
    if not names:
        return []
    numbers = _below(host, f"{CLASS}/*/ports/*")
    netdevs = _below(host, f"{CLASS}/*/device/net/*")
    physical = _below(host, f"{CLASS}/*/device/physfn/uevent")
    soft = _below(host, f"{CLASS}/*/parent")  # an attribute of rxe: the interface below it
    found = []
    for name in sorted(names, key=_natural):
        try:
            device = _device(host, name, numbers.get(name, []), unseen)
        except Absent:
            continue
        except Unobservable as exc:
            unseen(f"{name}: {exc}")
            continue
        # siw has no device at all; in older kernels rxe had that of the interface, but no attribute
        is_software = name in soft or not device.driver or name.startswith(("rxe", "siw"))
        found.append(replace(device, netdevs=tuple(netdevs.get(name, ())), is_software=is_software))
    present = {device.pci for device in found}
    return [
        replace(d, is_spare_function=_physical_function(host, d.name) in present) if d.name in physical else d
        for d in found
    ]


def _below(host: Host, pattern: str) -> dict[str, list[str]]:
    """The last part of each path that matches, by device."""
    found: dict[str, list[str]] = {}
    for path in host.glob(pattern):
        found.setdefault(path[len(CLASS) + 1 :].split("/", 1)[0], []).append(path.rsplit("/", 1)[1])
    return found


def fabric_devices(host: Host, unseen: Callable[[str], None]) -> list[Device]:
    """The devices of `devices` that have hardware and ports to judge: without software, EFA and spares."""
    return [
        d for d in devices(host, unseen) if not (d.is_software or d.is_efa or d.is_spare_function) and d.ports
    ]


def _device(host: Host, name: str, numbers: list[str], unseen: Callable[[str], None]) -> Device:
    folder = f"{CLASS}/{name}"
    about = _uevent(optional(host, f"{folder}/device/uevent"))
    driver = about.get("DRIVER", "")
    ports = []
    for number in sorted(int(n) for n in numbers if n.isdecimal()):
        try:
            ports.append(_port(host, name, number))
        except Absent:
            continue
        except Unobservable as exc:
            unseen(f"{name}/{number}: {exc}")
    numa = optional(host, f"{folder}/device/numa_node")
    model = optional(host, f"{folder}/board_id") or optional(host, f"{folder}/hca_type") or driver
    return Device(
        name, tuple(ports), _address(about), driver, model, optional(host, f"{folder}/fw_ver"),
        int(numa) if re.fullmatch("-?[0-9]{1,4}", numa) else -1,
    )  # fmt: skip


def _port(host: Host, device: str, number: int) -> Port:
    folder = f"{CLASS}/{device}/ports/{number}"
    rate, width, speed = parse_rate(host.read(f"{folder}/rate"))
    state, phys_state = (parse_state(host.read(f"{folder}/{name}")) for name in ("state", "phys_state"))
    layer = host.read(f"{folder}/link_layer").strip()
    if layer != "InfiniBand":  # a LID is of InfiniBand alone; elsewhere the files say 0x0
        return Port(device, number, state, phys_state, layer, rate, width, speed)
    lid, sm_lid = (parse_lid(host.read(f"{folder}/{name}")) for name in ("lid", "sm_lid"))
    return Port(device, number, state, phys_state, layer, rate, width, speed, lid, sm_lid)


def _uevent(text: str) -> dict[str, str]:
    # DRIVER=mlx5_core   PCI_CLASS=20700   PCI_ID=15B3:1021   PCI_SLOT_NAME=0000:19:00.0    (a line each)
    return dict(line.partition("=")[::2] for line in text.splitlines())


def _address(about: Mapping[str, str]) -> str:
    try:
        return pci_address(about.get("PCI_SLOT_NAME", ""))
    except ValueError:
        return ""


def _physical_function(host: Host, name: str) -> str:
    return _address(_uevent(optional(host, f"{CLASS}/{name}/device/physfn/uevent")))


def optional(host: Host, path: str) -> str:
    """The text of a file that not every driver has; empty where it is not there."""
    try:
        return host.read(path).strip()
    except Absent:
        return ""


def parse_rate(text: str) -> tuple[float, int, str]:
    """Bits per second, lanes and speed name. Raises Unparsable.

    The speed is empty for single data rate in kernels before 6.x, and what a later kernel knows beyond XDR.
    """
    # 400 Gb/sec (4X NDR)     2.5 Gb/sec (1X SDR)     10 Gb/sec (4X)     40 Gb/sec (4X FDR10)
    match = re.fullmatch(
        r"([0-9]{1,5}(?:\.[0-9])?) Gb/sec \(([0-9]{1,3})X(?: ([A-Z0-9]{1,8}))?\)", text.strip()
    )
    if match is None:
        raise Unparsable("the rate of an RDMA port has an unknown form", text)
    return float(match[1]) * 1e9, int(match[2]), match[3] or ""


def parse_state(text: str) -> str:
    """The name of a port's state or physical state. Raises Unparsable."""
    # 4: ACTIVE     5: LinkUp     7: Phy Test     0: <unknown>
    match = re.fullmatch(r"[0-9]{1,3}: ([A-Za-z_<> ]{1,40})", text.strip())
    if match is None:
        raise Unparsable("the state of an RDMA port has an unknown form", text)
    return match[1]


def parse_lid(text: str) -> int:
    """A local identifier. Raises Unparsable."""
    # 0x1c
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text.strip()):
        raise Unparsable("the LID of an RDMA port has an unknown form", text)
    return int(text, 16)


def counters(
    host: Host,
    of: Iterable[Port],
    names: Collection[str],
    unseen: Callable[[str], None],
    kind: str = "counters",
) -> dict[Port, dict[str, int]]:
    """Those of the counters `names` that each port has, of `kind` "counters" or "hw_counters".

    Each driver has a set of its own. A virtual function may list counters that nobody may read: a port none
    of whose counters answers has none.
    """
    by_folder = {f"{port.folder}/{kind}": port for port in of}
    found: dict[Port, dict[str, int]] = {port: {} for port in by_folder.values()}
    refused: dict[Port, str] = {}
    for path in host.glob(f"{CLASS}/*/ports/*/{kind}/*") if by_folder else ():
        folder, _, name = path.rpartition("/")
        port = by_folder.get(folder)
        if port is None or name not in names:
            continue
        try:
            text = host.read(path).strip()
        except Absent:
            continue
        except Unobservable as exc:
            refused[port] = str(exc)
            continue
        # 12    or, where the hardware does not keep it:    N/A (no PMA)
        if re.fullmatch("[0-9]{1,20}", text):
            found[port][name] = int(text)
        elif not text.startswith("N/A"):
            unseen(f"{port.part}: the counter {name} has an unknown form: {text[:40]!r}")
    for port, why in refused.items():
        if found[port]:
            unseen(f"{port.part}: {why}")
    return found


def netdev(host: Host, device: Device, port: Port) -> str:
    """The network interface of a port; empty where it has none that is certain.

    A function may have several: two ports of one, or the representors of virtual functions.
    """
    if len(device.netdevs) == 1:
        return device.netdevs[0]
    try:
        return host.read(f"{port.folder}/gid_attrs/ndevs/0").strip()
    except Unobservable:
        return ""


def ports(found: list[Device]) -> Iterator[tuple[Device, Port]]:
    """Each port with its device."""
    for device in found:
        for port in device.ports:
            yield device, port


def gid_types(host: Host, port: Port, entries: int = 16) -> dict[int, tuple[str, str]]:
    """Type and GID by index, of the first `entries` of the table that are filled. Types: "RoCE v2", ...

    A table has up to 1024 entries, filled from the beginning: two or more a port, two more for each address.
    """
    found = {}
    for index in range(entries):
        try:
            kind = host.read(f"{port.folder}/gid_attrs/types/{index}").strip()
            gid = host.read(f"{port.folder}/gids/{index}").strip()
        except Absent:
            break
        except Unobservable:
            continue  # EINVAL: an entry that is not filled
        if gid.strip("0:"):
            found[index] = (kind, gid)
    return found


def pkeys(host: Host, port: Port, entries: int = 32) -> frozenset[int]:
    """The partition keys of the first `entries` of the table, membership bit included."""
    found = set()
    for index in range(entries):
        try:
            text = host.read(f"{port.folder}/pkeys/{index}").strip()
        except Absent:
            break
        # 0xffff
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,4}", text):
            raise Unparsable(f"{port.part}: a P_Key has an unknown form", text)
        found.add(int(text, 16))
    return frozenset(found - {0})


def _natural(name: str) -> list[tuple[int, str]]:
    # mlx5_2 before mlx5_10
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"([0-9]{1,18})", name)]
