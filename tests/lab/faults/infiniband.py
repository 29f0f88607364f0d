"""Nodes whose RDMA adapters or network interfaces are in trouble."""

from __future__ import annotations

from tests.lab import whole_node
from tests.lab.host_faults import Machine
from tests.lab.parts import infiniband
from tests.lab.parts.infiniband import CLASS, port


def _port(device: str, **changes: str) -> dict[str, str]:
    return {f"{CLASS}/{device}/ports/1/{name}": text for name, text in port(**changes).items()}


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
        "rail 7 is on the PCI bus, but its driver made no RDMA device of it; rail 4 was set to Ethernet; "
        "rail 1 was left with an old firmware, rail 2 in another partition; umad0 is not there, nor "
        "nvidia_peermem",
        ("IbPortMissing", "IbLinkLayerWrong", "IbFirmwareMixed", "IbPkeyWrong", "IbDeviceFileMissing",
         "IbDriverMissing", "GpuDirectMissing"),
        base="a100-healthy",
        files={
            f"/sys/bus/pci/devices/{_LOST.pci}/uevent": "DRIVER=mlx5_core\nPCI_CLASS=20700\n",
            f"{CLASS}/mlx5_1/fw_ver": "20.31.2006\n",
            f"{CLASS}/mlx5_2/ports/1/pkeys/0": "0x8001\n",
            f"/sys/class/net/{whole_node.A100_HCAS[4].netdev}/carrier_down_count": "1\n",
            **_port("mlx5_4", rate="200 Gb/sec (4X HDR)", link_layer="Ethernet", lid="0x0", sm_lid="0x0"),
        },
        without=(
            f"{CLASS}/{_LOST.name}", "/dev/infiniband/umad0", "/sys/module/nvidia_peermem",
            "/sys/class/infiniband_verbs/uverbs7", "/sys/class/infiniband_mad/umad7",
        ),
        absent=("/sys/module/nv_peer_mem/initstate",),
        globs={f"/sys/bus/pci/devices/{_LOST.pci}/physfn": ()},
    ),
)  # fmt: skip
