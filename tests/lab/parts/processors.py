"""Processors, memory modules and NUMA nodes of a healthy node."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.parts import Shape

PROVENANCE = (
    "lscpu --json as util-linux 2.38 prints it; cpufreq, thermal_throttle, NUMA and buddyinfo after the "
    "kernel's ABI documents and proc(5); dmidecode 3.3 after its own form (kellyjonbrazil/jc, fixtures), "
    "with the values of the makers' data sheets"
)
DMIDECODE = ("dmidecode", "-t", "memory")
LSCPU = ("lscpu", "--json")
#: Policies that are recorded; a real node has one for each CPU.
POLICIES = 4
BASE_KHZ, HIGHEST_KHZ = 2_000_000, 3_800_000


def lscpu(shape: Shape, sockets: int = 0) -> str:
    """What lscpu prints, the part about flags and caches left out."""
    sockets = sockets or shape.sockets
    cpus = sockets * shape.cores_per_socket * shape.threads_per_core
    fields = {
        "Architecture:": "x86_64", "CPU op-mode(s):": "32-bit, 64-bit", "CPU(s):": cpus,
        "On-line CPU(s) list:": f"0-{cpus - 1}",
        "Vendor ID:": "GenuineIntel" if shape.intel else "AuthenticAMD", "Model name:": shape.cpu,
        "Thread(s) per core:": shape.threads_per_core, "Core(s) per socket:": shape.cores_per_socket,
        "Socket(s):": sockets, "NUMA node(s):": sockets,
    }  # fmt: skip
    return json.dumps({"lscpu": [{"field": name, "data": str(value)} for name, value in fields.items()]})


def node_memory(number: int, kib: int) -> str:
    """The first lines of a NUMA node's meminfo."""
    return (
        f"Node {number} MemTotal:       {kib} kB\nNode {number} MemFree:        {kib * 86 // 100} kB\n"
        f"Node {number} MemUsed:        {kib * 14 // 100} kB\n"
    )


def dimms(count: int, gib: int = 64, speed: int = 4800, odd: dict[int, tuple[int, int]] | None = None) -> str:
    """dmidecode of `count` modules; `odd` has another size (0: an empty socket) and speed by place."""
    text = "# dmidecode 3.3\nGetting SMBIOS data from sysfs.\nSMBIOS 3.3.0 present.\n\n"
    for n in range(count):
        size, run = (odd or {}).get(n, (gib, speed))
        told = f"{size} GB" if size else "No Module Installed"
        text += (
            f"Handle 0x{0x40 + n:04X}, DMI type 17, 92 bytes\nMemory Device\n\tTotal Width: 80 bits\n"
            f"\tData Width: 64 bits\n\tSize: {told}\n\tForm Factor: DIMM\n"
            f"\tLocator: CPU{n * 2 // count}_DIMM_{'ABCDEFGH'[n // 2 % 8]}{n % 2 + 1}\n"
            f"\tType: {'DDR5' if size else 'Unknown'}\n\tSpeed: {f'{speed} MT/s' if size else 'Unknown'}\n"
            f"\tManufacturer: {'Samsung' if size else 'NO DIMM'}\n"
            f"\tConfigured Memory Speed: {f'{run} MT/s' if size else 'Unknown'}\n\n"
        )
    return text


def modules(shape: Shape) -> int:
    """Modules of 64 GB."""
    return round(shape.memory_kib / (64 << 20))


def files(shape: Shape) -> dict[str, str]:
    cpu, nodes = "/sys/devices/system/cpu", "/sys/devices/system/node"
    every = f"0-{shape.cpus - 1}\n"
    told = {
        f"{cpu}/online": every, f"{cpu}/present": every, f"{cpu}/smt/control": "on\n",
        "/proc/buddyinfo": (
            "Node 0, zone      DMA    0    0    0    0    0    0    0    0    1    1      3 \n"
            "Node 0, zone   Normal  653   33  705  580  390  283  221   68   22  901  88136 \n"
            "Node 1, zone   Normal  612  121  701  233  190  183  101   58   12  811  99136 \n"
        ),
    }  # fmt: skip
    for n in range(POLICIES):
        folder = f"{cpu}/cpufreq/policy{n}"
        told |= {
            f"{folder}/scaling_governor": "performance\n", f"{folder}/cpuinfo_max_freq": f"{HIGHEST_KHZ}\n",
            f"{folder}/scaling_max_freq": f"{HIGHEST_KHZ}\n",
        }  # fmt: skip
        if shape.intel:
            told[f"{folder}/base_frequency"] = f"{BASE_KHZ}\n"
    for n in range(shape.sockets):
        share = shape.cores_per_socket
        told[f"{nodes}/node{n}/meminfo"] = node_memory(n, shape.memory_kib // shape.sockets)
        told[f"{nodes}/node{n}/cpulist"] = f"{n * share}-{(n + 1) * share - 1}\n"
        if shape.intel:
            name = f"{cpu}/cpu{n * share}/thermal_throttle/package_throttle_total_time_ms"
            told[name] = f"{120 + n}\n"
    return told


def commands(shape: Shape) -> dict[tuple[str, ...], dict[str, Any]]:
    return {
        LSCPU: {"seconds": 0.05, "stdout": lscpu(shape)},
        DMIDECODE: {"seconds": 0.05, "stdout": dimms(modules(shape))},
    }


def globs(shape: Shape) -> dict[str, list[str]]:
    return {
        "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_[0-9]*": [],
        "/sys/fs/cgroup/memory/slurm/uid_[0-9]*/job_[0-9]*": [],
    }


def expect(shape: Shape) -> dict[str, object]:
    return {
        "cpu_sockets": shape.sockets, "cpu_cores": shape.sockets * shape.cores_per_socket,
        "cpu_count": shape.cpus, "cpu_governor": "performance",
        "dimms": {"count": modules(shape), "size_bytes": 64 << 30},
    }  # fmt: skip
