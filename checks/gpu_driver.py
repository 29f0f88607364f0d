"""The NVIDIA driver as installed: which driver holds the GPUs, libraries, device files, versions that fit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy, gpu_part, pci_address
from clustertools.sources.pci import nvidia_devices

#: What a CUDA program and NVML load; gpud and DCGM's diagnostic look for these two.
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
#: Where distributions and the maker's installer put them; a site's own folders ldconfig knows.
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib")
LOADED = "/sys/module/nvidia/version"


@check(
    stages={"preflight", "watch"},
    # without nvidia-persistenced the device files are made at the first use after a boot
    confirm=2,
    codes={
        "GpuWrongDriver": "a GPU is held by another kernel driver than its peers: nouveau, vfio-pci or none",
        "GpuLibraryMissing": "a library of the NVIDIA driver is not where programs look for it",
        "GpuLibraryVersion": "the driver's libraries are not of the version of the loaded kernel module",
        "GpuDeviceFile": "a GPU's device file is missing, or not as the driver was told to make it",
    },
)
def gpu_driver(ctx: Context) -> Iterator[Finding | Reading]:
    """Looks at what is installed and loaded, without asking the driver anything.

    Where the module nvidia is not loaded `gpu_count` says what that means. In a container, and on a host
    whose driver is in one (/run/nvidia/driver), libraries and device files are not judged.
    """
    devices = nvidia_devices(ctx.host)
    if not devices:
        raise ctx.skip("no NVIDIA device on the PCI bus")
    try:
        version = ctx.host.read(LOADED).strip()
    except Absent:
        raise ctx.skip("the kernel module nvidia is not loaded") from None
    yield from _holders(ctx, devices)
    if ctx.host.glob("/run/nvidia/driver/usr") or _in_container(ctx):
        ctx.note("libraries and device files are a container's: not judged")
        return
    yield from _libraries(ctx, version)
    yield from _files(ctx)


def _in_container(ctx: Context) -> bool:
    # 612 598 0:98 / /proc/driver/nvidia rw,... - tmpfs ...; and an overlay as root is a container's
    table = ctx.host.read("/proc/self/mountinfo")
    return " /proc/driver/nvidia" in table or bool(re.search(r" / / \S+ .*- overlay ", table))


def _holders(ctx: Context, devices: tuple[str, ...]) -> Iterator[Finding]:
    """Devices by the kernel driver that they are bound to, as the links of /sys/bus/pci/drivers show it."""
    held = {}
    for driver in ("nvidia", "nouveau", "nova_core", "vfio-pci"):
        for path in ctx.host.glob(f"/sys/bus/pci/drivers/{driver}/*:*"):
            held[pci_address(path.rsplit("/", 1)[1])] = driver
    ours = [d for d in devices if held.get(d) == "nvidia"]
    if not ours:
        ctx.note("no GPU is bound to the driver nvidia")  # another driver may do so under another name
        return
    for device in devices:
        holder = held.get(device, "no driver")
        if holder in ("nvidia", "vfio-pci"):
            continue  # vfio-pci: lent to a virtual machine on purpose
        yield ctx.warning(
            "GpuWrongDriver", gpu_part(device),
            f"{device} is held by {holder}, {len(ours)} other GPUs by nvidia",
            remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip


def _libraries(ctx: Context, version: str) -> Iterator[Finding]:
    try:
        # 	libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1
        known = ctx.host.run("ldconfig", "-p").check().stdout
    except Absent:
        known = ""
    installed: dict[str, set[str]] = {}
    for library in LIBRARIES:
        base = library.removesuffix(".1")
        there = [path for folder in FOLDERS for path in ctx.host.glob(f"{folder}/{base}.*")]
        # libcuda.so.570.133.20 is the library itself, libcuda.so.1 a link to it
        versions = (path.rsplit(".so.", 1)[1] for path in there)
        installed[library] = {v for v in versions if re.fullmatch(r"[0-9]+(\.[0-9]+)+", v)}
        if any(path.endswith(f"/{library}") for path in there) or f"\t{library} (" in known:
            continue
        if not known:
            ctx.unseen(f"{library}: no ldconfig here, and it is in none of {', '.join(FOLDERS)}")
            continue
        yield ctx.warning(
            "GpuLibraryMissing", library,
            f"{library} is not on the loader's path, the kernel module is of version {version}",
            remedy=Remedy.INSPECT,
        )  # fmt: skip
    for library, versions_there in installed.items():
        if versions_there and version not in versions_there:
            yield ctx.warning(
                "GpuLibraryVersion", library,
                f"the loaded kernel module is of version {version}, {library} of "
                f"{', '.join(sorted(versions_there))}: new processes cannot use the GPUs",
                remedy=Remedy.REBOOT_NODE,
            )  # fmt: skip


def _files(ctx: Context) -> Iterator[Finding]:
    """Device files of the GPUs that the driver made, with the mode that its own parameters name."""
    try:
        parameters = ctx.host.read("/proc/driver/nvidia/params")
    except Absent:
        ctx.note("/proc/driver/nvidia/params is not there: device files are not judged")
        return
    # ModifyDeviceFiles: 1     DeviceFileMode: 438, which is 0666
    told = dict(re.findall(r"^(\w+): (\d{1,10})$", parameters, re.MULTILINE))
    if not told:
        raise Unparsable("/proc/driver/nvidia/params has an unknown form", parameters)
    mode = int(told["DeviceFileMode"]) if told.get("ModifyDeviceFiles") == "1" else None
    wanted = {"/dev/nvidiactl": ""}
    for path in ctx.host.glob("/proc/driver/nvidia/gpus/*/information"):
        # Device Minor: 	 0
        minor = re.search(r"^Device Minor:\s+(\d{1,4})\s*$", ctx.host.read(path), re.MULTILINE)
        if minor:
            address = pci_address(path.split("/")[-2])
            wanted[f"/dev/nvidia{minor[1]}"] = gpu_part(address)
    found = ctx.host.run("stat", "-L", "-c", "%a %n", "--", *wanted)
    # 666 /dev/nvidia0
    modes = {name: int(bits, 8) for bits, name in re.findall(r"^([0-7]{1,5}) (\S+)$", found.stdout, re.M)}
    if not modes and found.returncode and "No such file" not in found.stderr:
        raise Unobservable(f"stat of {len(wanted)} device files failed: {found.stderr.strip()[:200]}")
    for name, part in wanted.items():
        if name not in modes:
            yield ctx.warning("GpuDeviceFile", part or name, f"{name} does not exist", remedy=Remedy.INSPECT)
        elif mode is not None and modes[name] & 0o777 != mode:
            yield ctx.warning(
                "GpuDeviceFile", part or name,
                f"{name} has mode {modes[name]:o}, the driver was told {mode:o} (NVreg_DeviceFileMode)",
                remedy=Remedy.INSPECT,
            )  # fmt: skip
