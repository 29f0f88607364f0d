"""Nodes whose RDMA adapters or network interfaces are in trouble."""

from __future__ import annotations

from tests.lab import whole_node
from tests.lab.host_faults import Machine
from tests.lab.parts import ethernet, infiniband
from tests.lab.parts.infiniband import CLASS, port


def _port(device: str, **changes: str) -> dict[str, str]:
    return {f"{CLASS}/{device}/ports/1/{name}": text for name, text in port(**changes).items()}


def _bond(name: str, members: tuple[str, ...], out: str) -> dict[str, str]:
    """An 802.3ad bond of which one member has no link."""
    folder = f"{ethernet.CLASS}/{name}"
    files = {
        path: text for path, text in ethernet.link(name, speed="25000").items() if "/device/" not in path
    } | {
        f"{folder}/bonding/mode": "802.3ad 4\n", f"{folder}/bonding/slaves": f"{' '.join(members)}\n",
        f"{folder}/bonding/ad_aggregator": "1\n",
    }  # fmt: skip
    for member in members:
        state = {"operstate": "down", "speed": "-1"} if member == out else {}
        files |= ethernet.link(member, **state)
        files |= {
            f"{folder}/lower_{member}": "",
            f"{ethernet.CLASS}/{member}/bonding_slave/mii_status": "down\n" if member == out else "up\n",
            f"{ethernet.CLASS}/{member}/bonding_slave/ad_aggregator_id": "2\n" if member == out else "1\n",
        }
    return files


_LOST = whole_node.A100_HCAS[7]

MACHINES = (
    Machine(
        "h100-ib-links",
        "rail 3 has no link, rail 5 came up with two of its four lanes, rail 6 has a link but no subnet "
        "manager made it active; rail 2 has an MTU of 2048 bytes",
        ("IbLinkDown", "IbLinkSlow", "IbNoSubnetManager", "IbMtuLow"),
        files={
            **_port("mlx5_3", state="1: DOWN", phys_state="2: Polling", rate="10 Gb/sec (4X SDR)",
                    lid="0xffff", sm_lid="0x0"),
            **_port("mlx5_5", rate="200 Gb/sec (2X NDR)", lid="0x15"),
            **_port("mlx5_6", state="2: INIT", rate="400 Gb/sec (4X NDR)", lid="0xffff", sm_lid="0x0"),
        },
        commands={
            ("ibv_devinfo",): {
                "seconds": 0.06,
                "stdout": infiniband.ibv_devinfo(whole_node.DGX_H100, {"mlx5_2": 2048}),
            },
        },
    ),
    Machine(
        "a100-ib-adapters",
        "rail 7 is on the PCI bus, but its driver made no RDMA device of it; "
        "rail 1 was left with an old firmware, rail 2 in another partition; umad0 is not there, nor "
        "nvidia_peermem",
        ("IbPortMissing", "IbFirmwareMixed", "IbPkeyWrong", "IbDeviceFileMissing",
         "IbDriverMissing", "GpuDirectMissing"),
        base="a100-healthy",
        files={
            f"/sys/bus/pci/devices/{_LOST.pci}/uevent": "DRIVER=mlx5_core\nPCI_CLASS=20700\n",
            f"{CLASS}/mlx5_1/fw_ver": "20.31.2006\n",
            f"{CLASS}/mlx5_2/ports/1/pkeys/0": "0x8001\n",
        },
        without=(
            f"{CLASS}/{_LOST.name}", "/dev/infiniband/umad0", "/sys/module/nvidia_peermem",
            "/sys/class/infiniband_verbs/uverbs7", "/sys/class/infiniband_mad/umad7",
        ),
        absent=("/sys/module/nv_peer_mem/initstate",),
        globs={f"/sys/bus/pci/devices/{_LOST.pci}/physfn": ()},
    ),
    Machine(
        "mi300x-rdma-ports",
        "rail 2 was set to InfiniBand, rail 5 has no link; rail 6 has only GIDs of RoCE v1",
        ("IbLinkLayerWrong", "IbLinkDown", "RoceGidMissing"),
        base="mi300x-healthy",
        files={
            **_port("rdma2", lid="0x22"),
            **_port("rdma5", state="1: DOWN", phys_state="3: Disabled", rate="40 Gb/sec (4X QDR)",
                    link_layer="Ethernet", lid="0x0", sm_lid="0x0"),
            f"{ethernet.CLASS}/ens5np0/operstate": "down\n",
            f"{ethernet.CLASS}/ens5np0/speed": "-1\n",
            **{f"{CLASS}/rdma6/ports/1/gid_attrs/types/{n}": "IB/RoCE v1\n" for n in range(4)},
        },
    ),
    Machine(
        "net-links",
        "the storage interface lost its link, the bond runs with one of its two members, and the node's own "
        "interface came up at 10 Gb/s with small packets",
        ("NetLinkDown", "NetLinkSlow", "NetMtuWrong", "NetBondDegraded"),
        base="cpu-healthy",
        files={
            **ethernet.link(ethernet.OWN, speed="10000"),
            **ethernet.link("ens5np0", operstate="down", speed="-1"),
            **_bond("bond0", ("ens6f0np0", "ens6f1np1"), "ens6f1np1"),
            "/proc/net/route": ethernet.route(ethernet.OWN, "bond0"),
        },
        about={
            "expect": {
                **whole_node.cpu_node().expect,
                "interfaces": {
                    ethernet.OWN: {"speed_bits_per_second": 25 * 10**9, "mtu_bytes": 9000},
                    "ens5np0": {"speed_bits_per_second": 100 * 10**9},
                },
            },
        },
    ),
)  # fmt: skip
