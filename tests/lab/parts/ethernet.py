"""Network interfaces in sysfs: the loopback, the node's own Ethernet, and those of the RoCE adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.lab.parts import Shape

PROVENANCE = (
    "network interfaces written from the kernel's ABI/testing/sysfs-class-net and mlx5/counters.rst; "
    "/proc/net/route in the form of Linux 6.18"
)

CLASS = "/sys/class/net"
#: The interface for log-ins, images and metrics, of 25 Gb/s.
OWN = "eno1"
ROUTE = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def link(name: str, **changes: str) -> dict[str, str]:
    """The files of an Ethernet interface of 25 Gb/s that has a link."""
    about = {
        "type": "1", "flags": "0x1003", "operstate": "up", "mtu": "1500", "speed": "25000", "duplex": "full",
        "carrier_down_count": "1", "address": "02:00:00:00:00:01", "device/uevent": "DRIVER=ice",
        "statistics/rx_crc_errors": "0", "statistics/rx_frame_errors": "0",
        "statistics/tx_carrier_errors": "0", **changes,
    }  # fmt: skip
    return {f"{CLASS}/{name}/{path}": f"{text}\n" for path, text in about.items()}


def route(*names: str) -> str:
    """/proc/net/route with the default route through the first, and each one's own network."""
    lines = [f"{names[0]}\t00000000\t010012C6\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"]
    lines += [f"{name}\t000012C6\t00000000\t0001\t0\t0\t100\t0000FFFF\t0\t0\t0\n" for name in names]
    return ROUTE + "".join(lines)


def statistics(**changes: int) -> str:
    """What ethtool -S prints of a RoCE port, of its many lines those that matter here."""
    counted = {"rx_discards_phy": 0, "tx_pause_storm_warning_events": 0, "tx_pause_storm_error_events": 0}
    for priority in (0, 3):
        for name in (
            "rx_prio{}_pause",
            "rx_prio{}_pause_duration",
            "tx_prio{}_pause",
            "tx_prio{}_pause_duration",
            "rx_prio{}_buf_discard",
            "rx_prio{}_cong_discard",
        ):
            counted[name.format(priority)] = 0
    return "NIC statistics:\n" + "".join(f"     {name}: {n}\n" for name, n in (counted | changes).items())


def _rails(shape: Shape) -> list[str]:
    return [hca.netdev for hca in shape.hcas if hca.link_layer == "Ethernet"]


def files(shape: Shape) -> dict[str, str]:
    found = {f"{CLASS}/lo/type": "772\n", **link(OWN), "/proc/net/route": route(OWN, *_rails(shape))}
    for hca in shape.hcas:
        if hca.link_layer == "Ethernet":
            about = {"device/uevent": "DRIVER=mlx5_core", f"device/infiniband/{hca.name}/node_type": "1: CA"}
            found |= link(hca.netdev, speed="400000", mtu="9000", **about)
    return found


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    return {("ethtool", "-S", name): {"seconds": 0.01, "stdout": statistics()} for name in _rails(shape)}


def expect(shape: Shape) -> dict[str, object]:
    return {"interfaces": {OWN: {"speed_bits_per_second": 25 * 10**9, "mtu_bytes": 1500}}}
