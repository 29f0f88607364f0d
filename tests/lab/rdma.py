"""A machine in memory with RDMA adapters, whose files the test changes."""

from __future__ import annotations

from tests.lab.memory_host import MemoryHost
from tests.lab.parts import Hca
from tests.lab.parts.infiniband import CLASS, adapter, port


class RdmaHost(MemoryHost):
    """`count` adapters mlx5_0, mlx5_1, ... of one port, active InfiniBand at `rate_gbps`."""

    def __init__(self, count: int = 8, rate_gbps: int = 400, link_layer: str = "InfiniBand") -> None:
        super().__init__()
        self.files["/proc/self/mountinfo"] = "24 29 0:5 / /dev rw - devtmpfs udev rw\n"
        for number in range(count):
            hca = Hca(
                f"mlx5_{number}", f"0000:{0x10 + number:02x}:00.0", f"net{number}", rate_gbps, link_layer
            )
            self.files |= adapter(hca, number)
            if link_layer == "Ethernet":
                self.files |= {
                    f"/sys/class/net/net{number}/flags": "0x1003\n",
                    f"/sys/class/net/net{number}/carrier_down_count": "1\n",
                }

    def port(self, device: str, **changes: str) -> None:
        """Set the state of port 1, as `parts.infiniband.port` takes it."""
        self.files |= {f"{CLASS}/{device}/ports/1/{name}": text for name, text in port(**changes).items()}

    def down(self, device: str, phys_state: str = "2: Polling") -> None:
        self.port(
            device, state="1: DOWN", phys_state=phys_state, rate="10 Gb/sec (4X SDR)", lid="0xffff",
            link_layer=str(self.files[f"{CLASS}/{device}/ports/1/link_layer"]).strip(),
        )  # fmt: skip

    def up(self, device: str, rate: str = "400 Gb/sec (4X NDR)") -> None:
        layer = str(self.files[f"{CLASS}/{device}/ports/1/link_layer"]).strip()
        self.port(device, rate=rate, link_layer=layer)

    def set(self, device: str, **files: str) -> None:
        """Set files of the device, `fw_ver`, or of its port, `counters__symbol_error`."""
        for name, text in files.items():
            path = name.replace("__", "/")
            place = f"{CLASS}/{device}/{path}" if "/" not in path else f"{CLASS}/{device}/ports/1/{path}"
            self.files[place] = f"{text}\n"

    def move(self, device: str, pci: str) -> None:
        """Give the device another PCI address."""
        path = f"{CLASS}/{device}/device/uevent"
        self.files[path] = f"DRIVER=mlx5_core\nPCI_SLOT_NAME={pci}\n"

    def remove(self, prefix: str) -> None:
        for path in [p for p in self.files if p == prefix or p.startswith(prefix + "/")]:
            del self.files[path]

    def break_reading(self, path: str, error: Exception) -> None:
        self.files[path] = error
