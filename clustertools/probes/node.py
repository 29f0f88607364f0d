"""What the node is that a prober runs on: its name, addresses, GPUs and tools, as its greeting tells them.

The GPUs are asked for in a forked child, through the driver's own library: a process that has once called
cuInit can no longer fork children that use CUDA, and the call can hang in a sick driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from clustertools.host import DEFAULT_PATH
from clustertools.measurement import Ending
from clustertools.probes.children import Progress
from clustertools.probes.orders import Order, Report

#: Programs of others that a probe can use instead of its own code.
TOOLS = (
    "all_reduce_perf", "all_gather_perf", "reduce_scatter_perf", "alltoall_perf", "sendrecv_perf",
    "nvbandwidth", "ib_write_bw", "dcgmi",
)  # fmt: skip
#: cuInit of eight GPUs takes seconds when no process keeps the driver loaded.
DEVICES_SECONDS = 60.0
_SIOCGIFADDR = 0x8915
#: A lookup takes a millisecond; one that waits for a lost answer, seconds.
SLOW_NAMES_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Here:
    """This node, as the probes need to know it."""

    node: str
    torch: str | None = None
    cuda: bool = False
    devices: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    #: What could not be found out, and why.
    problems: tuple[str, ...] = ()

    def hello(self, now: float) -> dict[str, Any]:
        return {
            "node": self.node,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "torch": self.torch,
            "cuda": self.cuda,
            "devices": list(self.devices),
            "addresses": dict(self.addresses),
            "time": now,
            "tools": list(self.tools),
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class Task:
    """What one child of an order does. `lingers`: see children.Child."""

    label: str
    work: Callable[[Progress], Report]
    lingers: bool = False


class Probe(Protocol):
    """The form of each probe's module."""

    def tasks(self, order: Order, here: Here) -> list[Task]:
        """What to start. Raises BadOrder for parameters that make no sense, Unobservable where it cannot."""
        ...

    def stuck(self, order: Order, here: Here, since_seconds: float, at: tuple[int, int, int, int]) -> Report:
        """What a child that had to be killed at the deadline was doing: its Progress, and for how long."""
        ...

    def gather(self, reports: Sequence[Report]) -> Report:
        """The reports of all children as the node's; `orders.together` where nothing more is to be done."""
        ...


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """By which name the head knows this node: by the head (fleet.NODE_VARIABLE), Slurm, or its own."""
    for variable in ("CLUSTERTOOLS_NODE", "SLURMD_NODENAME"):
        if name := environ.get(variable, ""):
            return name
    return os.uname().nodename.split(".")[0]


def addresses() -> dict[str, str]:
    """Network interface -> its IPv4 address, or else its IPv6 address; loopback and link-local left out."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # has no IPv4 address
            found[name] = socket.inet_ntoa(told[20:24])
    try:
        with open("/proc/net/if_inet6", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []  # a kernel without IPv6
    for line in lines:
        # fe80000000000000021122fffe334455 02 40 20 80     eth0
        words = line.split()
        if len(words) == 6 and words[3] == "00":
            text = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
            found.setdefault(words[5], text)
    return {name: text for name, text in found.items() if not text.startswith("127.") and text != "::1"}


def interface_towards(address: str, port: int) -> str:
    """The interface whose address this node uses to reach `address`; empty when that cannot be told."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing: it only asks the routing table
            own = probe.getsockname()[0]
    except OSError:
        return ""
    if own.startswith("127.") or own == "::1":
        return "lo"
    return next((name for name, text in addresses().items() if text == own), "")


def tools(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The programs of TOOLS that are on this node."""
    path = environ.get("PATH", DEFAULT_PATH)
    return tuple(name for name in TOOLS if shutil.which(name, path=path))


def look_for_devices(_: Progress) -> Report:
    """Run in a child: the GPUs that CUDA gives, in its order; and whether torch can use them."""
    devices, problem = _driver_devices()
    report = Report(Ending.DONE, private={"cuda": False, "devices": devices})
    report.evidence += [problem] if problem else []
    report.evidence += _name_server()
    torch = sys.modules.get("torch")
    if torch is not None:
        report.private["cuda"] = bool(torch.cuda.is_available())
        if report.private["cuda"] and not devices:  # a GPU of another maker, under the same interface
            report.private["devices"] = [
                {"index": n, "name": torch.cuda.get_device_name(n), "pci": "", "uuid": ""}
                for n in range(torch.cuda.device_count())
            ]
    return report


def _name_server() -> list[str]:
    """A complaint when looking up the name of an own address takes long: torch's store does so often."""
    own = next(iter(addresses().values()), "127.0.0.1")
    began = time.monotonic()
    with contextlib.suppress(OSError):  # that there is no such name is a quick answer
        socket.gethostbyaddr(own)
    took = time.monotonic() - began
    if took < SLOW_NAMES_SECONDS:
        return []
    return [
        f"the name server took {took:.1f} s to look up {own}; torch asks it for the address of every rank, "
        "so that collectives of many ranks start late"
    ]


def _driver_devices() -> tuple[list[dict[str, Any]], str]:
    """The GPUs by libcuda, and what went wrong. No such library is an answer: a node without GPUs."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [], ""
    if error := cuda.cuInit(0):
        # 100 is CUDA_ERROR_NO_DEVICE: the driver is there, and no GPU
        return [], "" if error == 100 else f"cuInit failed with CUDA error {error}"
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices: list[dict[str, Any]] = []
    for index in range(count.value):
        handle = ctypes.c_int(0)
        name, pci = ctypes.create_string_buffer(128), ctypes.create_string_buffer(32)
        identity = (ctypes.c_ubyte * 16)()
        calls = (
            cuda.cuDeviceGet(ctypes.byref(handle), index),
            cuda.cuDeviceGetName(name, 128, handle),
            cuda.cuDeviceGetPCIBusId(pci, 32, handle),
            cuda.cuDeviceGetUuid(ctypes.byref(identity), handle),
        )
        if any(calls):
            return devices, f"the driver failed on GPU {index} with CUDA error {max(calls)}"
        text = bytes(identity).hex()
        cut = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        devices.append(
            {
                "index": index,
                "name": name.value.decode("utf-8", "replace"),
                "pci": pci.value.decode("ascii", "replace").lower(),
                "uuid": "GPU-" + "-".join(cut),
            }
        )
    return devices, ""
