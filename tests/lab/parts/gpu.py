"""What the NVIDIA driver shows of itself beside NVML: module, device files, libraries, its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.lab.parts import Shape

PROVENANCE = (
    "/proc/driver/nvidia as published from drivers 535 to 590; ldconfig and stat as of glibc 2.35 and "
    "coreutils 8.32"
)
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib")
DCGM_HEALTHY = '{"body":{"Overall Health":{"value":"Healthy"}},"header":["Health Monitor Report"]}\n'
#: A node whose containers get GPUs by the Container Device Interface (nvidia-ctk cdi generate).
CDI = """\
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{driver}
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{driver}
"""
PARAMETERS = """\
ResmanDebugLevel: 4294967295
RmLogonRC: 1
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
EnableMSI: 1
RegistryDwords: ""
"""


def information(name: str, address: str, minor: int, vbios: str, driver: str) -> str:
    """/proc/driver/nvidia/gpus/ADDRESS/information."""
    return (
        f"Model: \t\t {name}\nIRQ:   \t\t {210 + minor}\n"
        f"GPU UUID: \t GPU-00000000-0000-4000-8000-{minor:012d}\nVideo BIOS: \t {vbios}\nBus Type: \t PCIe\n"
        f"DMA Size: \t 52 bits\nDMA Mask: \t 0xfffffffffffff\nBus Location: \t {address}\n"
        f"Device Minor: \t {minor}\nGPU Firmware: \t {driver}\nGPU Excluded:\t No\n"
    )


def stat_line(
    pid: int, name: str, state: str, parent: int = 2, started: int = 2211, flags: int = 4194560
) -> str:
    """/proc/PID/stat of proc_pid_stat(5)."""
    return (
        f"{pid} ({name}) {state} {parent} {pid} {pid} 0 -1 {flags} 412 0 0 0 11 30 0 0 20 0 1 0 {started} 0 "
        "0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0\n"
    )


def device_files(count: int) -> list[str]:
    return ["/dev/nvidiactl", *(f"/dev/nvidia{n}" for n in range(count))]


def ldconfig(*libraries: str) -> str:
    lines = [f"\t{name} (libc6,x86-64) => /lib/x86_64-linux-gnu/{name}\n" for name in libraries]
    return f"{len(lines)} libs found in cache `/etc/ld.so.cache'\n" + "".join(lines)


def stat_command(count: int) -> tuple[str, ...]:
    return ("stat", "-L", "-c", "%a %n", "--", *device_files(count))


def files(shape: Shape) -> dict[str, str]:
    if shape.gpu != "nvidia":
        return {}
    proc = "/proc/driver/nvidia"
    vbios = "96.00.89.00.01" if "H100" in shape.gpu_name else "92.00.45.00.03"
    return {
        "/etc/cdi/nvidia.yaml": CDI.format(driver=shape.driver),
        f"{FOLDERS[0]}/libcuda.so.{shape.driver}": "",
        "/sys/module/nvidia/version": f"{shape.driver}\n",
        f"{proc}/params": PARAMETERS,
        **{
            f"{proc}/gpus/{address}/information": information(shape.gpu_name, address, n, vbios, shape.driver)
            for n, address in enumerate(shape.gpus)
        },
        "/proc/893/stat": stat_line(893, "irq/210-nvidia", "S", flags=2129984),
        "/proc/2201/stat": stat_line(2201, "nvidia-persistenced"[:15], "S", 1),
    }


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    if shape.gpu != "nvidia":
        return {}
    modes = "".join(f"666 {name}\n" for name in device_files(len(shape.gpus)))
    libraries = ldconfig("libnvidia-ml.so.1", "libcuda.so.1", "libc.so.6")
    return {
        ("ldconfig", "-p"): {"seconds": 0.004, "stdout": libraries},
        ("dcgmi", "health", "-c", "-j"): {"seconds": 0.1, "stdout": DCGM_HEALTHY},
        stat_command(len(shape.gpus)): {"seconds": 0.002, "stdout": modes},
    }


def globs(shape: Shape) -> dict[str, list[str]]:
    if shape.gpu != "nvidia":
        return {}
    found: dict[str, list[str]] = {
        "/run/nvidia/driver/usr": [],
        "/etc/containerd/conf.d/*.toml": [],
        "/etc/crio/crio.conf.d/*.conf": [],
        "/var/run/cdi/nvidia*": [],
    }
    for driver in ("nvidia", "nouveau", "nova_core", "vfio-pci"):
        folder = f"/sys/bus/pci/drivers/{driver}"
        found[f"{folder}/*:*"] = [f"{folder}/{a}" for a in shape.gpus] if driver == "nvidia" else []
    for folder in FOLDERS:
        for name in ("libcuda.so", "libnvidia-ml.so"):
            here = folder == FOLDERS[0]
            found[f"{folder}/{name}.*"] = (
                [f"{folder}/{name}.1", f"{folder}/{name}.{shape.driver}"] if here else []
            )
    return found


def absent(shape: Shape) -> list[str]:
    return ["/etc/docker/daemon.json", "/etc/containerd/config.toml"] if shape.gpu == "nvidia" else []
