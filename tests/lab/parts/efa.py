"""Elastic Fabric Adapters in sysfs, four beside each GPU of a p5.48xlarge."""

from __future__ import annotations

PROVENANCE = (
    "EFA devices written from the kernel's drivers/infiniband/hw/efa/efa_verbs.c, at the addresses of "
    "aws-ofi-nccl's topology of a p5.48xlarge"
)
CLASS = "/sys/class/infiniband"
#: The bus of the first of the four before each GPU: 0000:4f:00.0 to 0000:52:00.0 before 0000:53:00.0.
BUSES = (0x4F, 0x60, 0x71, 0x82, 0x93, 0xA4, 0xB5, 0xC6)
ADDRESSES = tuple(f"0000:{first + n:02x}:00.0" for first in BUSES for n in range(4))
COUNTERS = (
    "tx_bytes", "tx_pkts", "rx_bytes", "rx_pkts", "rx_drops", "send_bytes", "recv_bytes", "rdma_read_wr_err",
    "rdma_write_wr_err", "retrans_bytes", "retrans_pkts", "retrans_timeout_events",
    "unresponsive_remote_events", "impaired_remote_conn_events",
)  # fmt: skip


def name(pci: str) -> str:
    """rdmap79s0 at 0000:4f:00.0, as udev calls it."""
    return f"rdmap{int(pci[5:7], 16)}s0"


def device(pci: str, numa: int, state: str = "4: ACTIVE", counters: bool = False) -> dict[str, str]:
    """One device with its port: no board, no LID, no counters of InfiniBand, and its own only if asked."""
    folder = f"{CLASS}/{name(pci)}"
    port = {
        "state": state, "phys_state": "5: LinkUp" if "ACTIVE" in state else "3: Disabled",
        "rate": "100 Gb/sec (4X EDR)", "link_layer": "Unknown", "lid": "0x0", "sm_lid": "0x0",
        **{f"hw_counters/{counter}": "0" for counter in (COUNTERS if counters else ())},
    }  # fmt: skip
    about = {
        "node_type": "8: <unknown>", "fw_ver": "0.0.0.0", "device/numa_node": str(numa),
        "device/uevent": f"DRIVER=efa\nPCI_CLASS=20000\nPCI_ID=1D0F:EFA2\nPCI_SLOT_NAME={pci}",
        **{f"ports/1/{file}": text for file, text in port.items()},
    }  # fmt: skip
    return {f"{folder}/{file}": f"{text}\n" for file, text in about.items()}
