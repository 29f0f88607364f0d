"""The Ethernet interfaces of the node that carry its addresses, and its bonds, from /sys/class/net.

Formats: the kernel's Documentation/ABI/testing/sysfs-class-net and networking/bonding.rst; /proc/net/route.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host

CLASS = "/sys/class/net"
#: ARPHRD_ETHER (linux/if_arp.h); IPoIB has 32, the loopback 772.
ETHERNET = "1"


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. `is_enabled`: somebody wants it up (IFF_UP); `operstate` as the kernel has it.

    `speed_bits_per_second` is None where the driver tells none: virtual machines, links that are down.
    `carrier_losses` is None before Linux 4.16.
    """

    name: str
    is_enabled: bool
    operstate: str
    mtu_bytes: int
    address: str = ""
    speed_bits_per_second: int | None = None
    duplex: str = ""
    carrier_losses: int | None = None

    @property
    def is_up(self) -> bool:
        """It has a link. An interface whose driver never tells is "unknown" all its life."""
        return self.is_enabled and self.operstate in ("up", "unknown")


@dataclass(frozen=True, slots=True)
class Bond:
    """A bond: its mode ("802.3ad", "active-backup"), and whether each member takes part, by name."""

    name: str
    mode: str
    members: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Layout:
    """What there is: Ethernet hardware (some of it RoCE), bonds, what lies below a bridge, VLAN or bond."""

    hardware: frozenset[str]
    rdma: frozenset[str]
    bonds: tuple[str, ...]
    below: dict[str, tuple[str, ...]]

    def carriers(self, names: set[str]) -> set[str]:
        """The hardware and the bonds that carry the interfaces `names`."""
        found: set[str] = set()
        seen: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name in seen:
                continue
            seen.add(name)
            left += self.below.get(name, ())
            if name in self.hardware or name in self.bonds:
                found.add(name)
        return found


def layout(host: Host) -> Layout:
    """The interfaces by kind. Wireless ones, and those on USB (a BMC's), come and go, and are left out."""
    wireless = {path.split("/")[4] for path in host.glob(f"{CLASS}/*/phy80211")}
    hardware = set()
    for path in host.glob(f"{CLASS}/*/device"):
        name = path.split("/")[4]
        try:
            # DEVTYPE=usb_interface
            is_usb = "DEVTYPE=usb" in _text(host, f"{path}/uevent")
            if not is_usb and name not in wireless and host.read(f"{CLASS}/{name}/type").strip() == ETHERNET:
                hardware.add(name)
        except Absent:
            continue
    rdma = {path.split("/")[4] for path in host.glob(f"{CLASS}/*/device/infiniband")}
    bonds = [path.split("/")[4] for path in host.glob(f"{CLASS}/*/bonding/slaves")]
    below: dict[str, tuple[str, ...]] = {}
    for path in host.glob(f"{CLASS}/*/lower_*"):
        upper, lower = path.split("/")[4], path.split("/lower_", 1)[1]
        below[upper] = (*below.get(upper, ()), lower)
    return Layout(frozenset(hardware), frozenset(rdma & hardware), tuple(sorted(bonds)), below)


def routed(host: Host) -> set[str]:
    """The interfaces that an IPv4 route leads to: those with an address. Raises Unobservable."""
    try:
        lines = host.read("/proc/net/route").splitlines()
    except Absent:
        return set()  # a kernel without IPv4
    # Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
    # eth0	00000000	010200C0	0003	0	0	0	00000000	0	0	0
    if lines and not lines[0].startswith("Iface"):
        raise Unparsable("/proc/net/route has an unknown form", lines[0])
    return {line.split()[0] for line in lines[1:] if line.strip()}


def interface(host: Host, name: str) -> Interface:
    """One interface as it is now. Raises Absent when there is none of this name, Unobservable."""
    folder = f"{CLASS}/{name}"
    flags = host.read(f"{folder}/flags").strip()
    if not re.fullmatch("0x[0-9a-f]{1,8}", flags):
        raise Unparsable(f"{folder}/flags has an unknown form", flags)
    speed = _number(host, f"{folder}/speed")
    return Interface(
        name,
        is_enabled=bool(int(flags, 16) & 1),
        operstate=host.read(f"{folder}/operstate").strip(),
        mtu_bytes=_number(host, f"{folder}/mtu") or 0,
        address=_text(host, f"{folder}/address"),
        # in Mb/s; -1 or 2^32-1 where it is not known
        speed_bits_per_second=speed * 10**6 if speed and 0 < speed < 2**31 else None,
        duplex=_text(host, f"{folder}/duplex"),
        carrier_losses=_number(host, f"{folder}/carrier_down_count"),
    )


def bond(host: Host, name: str) -> Bond:
    """A bond's mode and members. A member that has no link, or joined another aggregate, takes no part."""
    folder = f"{CLASS}/{name}/bonding"
    # 802.3ad 4
    mode = host.read(f"{folder}/mode").split(" ")[0].strip()
    aggregate = _number(host, f"{folder}/ad_aggregator") if mode == "802.3ad" else None
    members = {}
    for member in host.read(f"{folder}/slaves").split():
        mine = f"{CLASS}/{member}/bonding_slave"
        joined = _number(host, f"{mine}/ad_aggregator_id") if aggregate else aggregate
        up = _text(host, f"{mine}/mii_status") in ("up", "")
        members[member] = up and (joined == aggregate or joined is None)
    return Bond(name, mode, members)


def _text(host: Host, path: str) -> str:
    try:
        return host.read(path).strip()
    except Unobservable:
        return ""  # EINVAL: a link that is down has no speed and no duplex; or a driver without


def _number(host: Host, path: str) -> int | None:
    text = _text(host, path)
    return int(text) if re.fullmatch("-?[0-9]{1,12}", text) else None


def errors(host: Host, name: str, unseen: Callable[[str], None]) -> dict[str, int]:
    """Counters that only a bad cable, optic or port moves: broken checksums and frames, lost carrier."""
    found = {}
    for counter in ("rx_crc_errors", "rx_frame_errors", "tx_carrier_errors"):
        try:
            found[counter] = int(host.read(f"{CLASS}/{name}/statistics/{counter}"))
        except Absent:
            continue
        except (Unobservable, ValueError) as exc:
            unseen(f"{name}: {counter}: {exc}")
    return found
