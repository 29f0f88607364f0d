"""RDMA adapters in sysfs: the rails of the shape, and the adapter for storage and management beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.lab.parts import Hca, Shape

PROVENANCE = (
    "sysfs of RDMA devices written from the kernel's ABI/stable/sysfs-class-infiniband and "
    "drivers/infiniband/core/sysfs.c; ibv_devinfo in the form of rdma-core's devinfo.c"
)

CLASS = "/sys/class/infiniband"
#: HCA type, PSID and firmware by rate, as NVIDIA's firmware pages list them.
CARDS = {
    400: ("MT4129", "MT_0000000838", "28.39.1002"),
    200: ("MT4123", "MT_0000000223", "20.39.1002"),
    100: ("MT4123", "MT_0000000222", "20.39.1002"),
}
SPEEDS = {400: "4X NDR", 200: "4X HDR", 100: "2X HDR"}
COUNTERS = (
    "symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors",
    "port_rcv_remote_physical_errors", "port_xmit_discards", "port_xmit_constraint_errors",
    "port_rcv_constraint_errors", "local_link_integrity_errors", "excessive_buffer_overrun_errors",
    "port_xmit_wait", "port_xmit_data", "port_rcv_data",
)  # fmt: skip
HARDWARE_COUNTERS = ("local_ack_timeout_err", "rnr_nak_retry_err", "packet_seq_err", "out_of_sequence")
#: What an idle day leaves: traffic of storage and of the subnet manager, the link's start.
COUNTED = {"link_downed": 1, "port_xmit_data": 918273645, "port_rcv_data": 5546372819, "port_xmit_wait": 4021}


def adapters(shape: Shape) -> tuple[Hca, ...]:
    """The rails, then the adapter that every node has for storage and management."""
    rate = 400 if shape.intel else 200
    return (*shape.hcas, Hca(f"mlx5_{len(shape.hcas)}", "0000:c1:00.0", "ibs0", min(rate, 200), numa=1))


def port(
    *, state: str = "4: ACTIVE", phys_state: str = "5: LinkUp", rate: str = "400 Gb/sec (4X NDR)",
    link_layer: str = "InfiniBand", lid: str = "0x11", sm_lid: str = "0x1",
) -> dict[str, str]:  # fmt: skip
    """The files of a port's state, by name."""
    return {
        "state": f"{state}\n", "phys_state": f"{phys_state}\n", "rate": f"{rate}\n",
        "link_layer": f"{link_layer}\n", "lid": f"{lid}\n", "sm_lid": f"{sm_lid}\n",
    }  # fmt: skip


def adapter(hca: Hca, number: int) -> dict[str, str]:
    """One adapter with one port, whose LID is 0x10 above its number."""
    folder = f"{CLASS}/{hca.name}"
    kind, board, firmware = CARDS[hca.rate_gbps]
    about = {
        "board_id": board, "hca_type": kind, "fw_ver": firmware, "node_type": "1: CA",
        "device/numa_node": str(hca.numa), f"device/net/{hca.netdev}/type": "32",
        "device/uevent": f"DRIVER=mlx5_core\nPCI_CLASS=20700\nPCI_ID=15B3:1021\nPCI_SLOT_NAME={hca.pci}",
        "ports/1/pkeys/0": "0xffff", "ports/1/pkeys/1": "0x0000",
    }  # fmt: skip
    files = {f"{folder}/{name}": f"{text}\n" for name, text in about.items()}
    state = port(
        rate=f"{hca.rate_gbps} Gb/sec ({SPEEDS[hca.rate_gbps]})", lid=f"{0x10 + number:#x}",
        link_layer=hca.link_layer,
    )  # fmt: skip
    files |= {f"{folder}/ports/1/{name}": text for name, text in state.items()}
    if hca.link_layer == "Ethernet":
        files |= _roce(hca, number)
    files |= {f"{folder}/ports/1/counters/{name}": f"{COUNTED.get(name, 0)}\n" for name in COUNTERS}
    files |= {f"{folder}/ports/1/hw_counters/{name}": "0\n" for name in HARDWARE_COUNTERS}
    files |= {
        f"/sys/class/infiniband_verbs/uverbs{number}/ibdev": f"{hca.name}\n",
        f"/sys/class/infiniband_mad/umad{number}/ibdev": f"{hca.name}\n",
        f"/dev/infiniband/uverbs{number}": "",
        f"/dev/infiniband/umad{number}": "",
    }
    return files


def _roce(hca: Hca, number: int) -> dict[str, str]:
    """The GIDs of a port with one address: link-local and IPv4, each as RoCE v1 and v2."""
    folder = f"{CLASS}/{hca.name}/ports/1"
    # in the form that the redaction of recordings gives them
    local = f"2001:db8::{number + 1:x}"
    address = f"2001:db8::{number + 0x100:x}"
    files = {}
    for index, gid in enumerate((local, local, address, address)):
        kind = "RoCE v2" if index % 2 else "IB/RoCE v1"
        files |= {f"{folder}/gids/{index}": f"{gid}\n", f"{folder}/gid_attrs/types/{index}": f"{kind}\n"}
    return files


def files(shape: Shape) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, hca in enumerate(adapters(shape)):
        found |= adapter(hca, number)
    if shape.gpu == "nvidia" and int(shape.driver.split(".")[0]) < 560:
        found["/sys/module/nvidia_peermem/initstate"] = "live\n"
    if shape.gpu == "nvidia":
        build = f"Open Kernel Module for x86_64  {shape.driver}  Release Build  (dvs-builder)"
        if int(shape.driver.split(".")[0]) < 560:
            build = f"x86_64 Kernel Module  {shape.driver}  Sun Feb 25 17:09:09 UTC 2024"
        found["/proc/driver/nvidia/version"] = f"NVRM version: NVIDIA UNIX {build}\n"
    return found


def absent(shape: Shape) -> list[str]:
    return [] if shape.gpu == "nvidia" else ["/proc/driver/nvidia/version"]


def ibv_devinfo(shape: Shape, mtu: Mapping[str, int] | None = None) -> str:
    """What ibv_devinfo prints; `mtu` by device, 4096 where it is not told."""
    codes = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
    text = []
    for number, hca in enumerate(adapters(shape)):
        kind, board, firmware = CARDS[hca.rate_gbps]
        active = (mtu or {}).get(hca.name, 4096)
        guid = f"0200:00ff:fe00:{number:04x}"
        text.append(
            f"hca_id:\t{hca.name}\n\ttransport:\t\t\tInfiniBand (0)\n\tfw_ver:\t\t\t\t{firmware}\n"
            f"\tnode_guid:\t\t\t{guid}\n\tsys_image_guid:\t\t\t{guid}\n\tvendor_id:\t\t\t0x02c9\n"
            f"\tvendor_part_id:\t\t\t{kind[2:]}\n\thw_ver:\t\t\t\t0x0\n\tboard_id:\t\t\t{board}\n"
            "\tphys_port_cnt:\t\t\t1\n\t\tport:\t1\n\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n"
            f"\t\t\tmax_mtu:\t\t4096 (5)\n\t\t\tactive_mtu:\t\t{active} ({codes[active]})\n"
            f"\t\t\tsm_lid:\t\t\t1\n\t\t\tport_lid:\t\t{0x10 + number}\n\t\t\tport_lmc:\t\t0x00\n"
            f"\t\t\tlink_layer:\t\t{hca.link_layer}\n"
        )
    return "\n".join(text)


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    return {("ibv_devinfo",): {"seconds": 0.06, "stdout": ibv_devinfo(shape)}}


def expect(shape: Shape) -> dict[str, object]:
    if not shape.hcas:
        return {}
    rails = shape.hcas[0].rate_gbps
    return {
        "ib_ports": sum(hca.rate_gbps == rails for hca in adapters(shape)),
        "ib_rate_bits_per_second": rails * 10**9,
        "ib_link_layer": shape.hcas[0].link_layer, "ib_mtu": 4096,
    }  # fmt: skip
