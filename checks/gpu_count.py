"""Whether every GPU of the node is there and answers."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.host import Host
from clustertools.model import Finding, Reading, Remedy, gpu_part
from clustertools.sources.nvidia import UNUSED, Gpu, NvmlError, is_unused, located, nvml
from clustertools.sources.pci import amd_devices, nvidia_devices

#: NVML errors that are about us and not about the driver: we may not ask, or have nothing to ask with.
NOT_THE_DRIVER = frozenset(("NO_PERMISSION", "PYNVML_NOT_INSTALLED"))

#: What to do about the errors with which NVML refuses to start (nvml.h); a reboot for the others.
REMEDIES = {
    "LIBRARY_NOT_FOUND": Remedy.INSPECT,
    "INSUFFICIENT_POWER": Remedy.INSPECT,
    "CORRUPTED_INFOROM": Remedy.REPLACE,
}
HINTS = {
    "LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 is not installed",
    "DRIVER_NOT_LOADED": "the kernel module nvidia is not loaded",
    "LIB_RM_VERSION_MISMATCH": "the libraries and the loaded kernel module are of different driver versions",
    "INSUFFICIENT_POWER": "a GPU lacks external power",
}


@check(
    stages={"preflight", "watch", "prolog"},
    timeout_seconds=30.0,
    codes={
        "GpuMissing": "fewer GPUs than expected, or one on the PCI bus that the driver does not list",
        "GpuLost": "the driver lists a GPU that no longer answers",
        "GpuDriverDown": "there are GPUs on the PCI bus and the NVIDIA driver does not start",
    },
)
def gpu_count(ctx: Context) -> Iterator[Finding | Reading]:
    """Counts GPUs on the PCI bus and in NVML, and compares with what the node class says it has.

    `expect["gpu_count"]` is the number to be; 0 means that this node's GPUs are not ours to look at (passed
    through to virtual machines, say). gpud, gcm and Azure's node health checks compare with such a number
    too. Without it only the bus and the driver are compared with each other.
    """
    expected = ctx.expect.get("gpu_count")
    devices = nvidia_devices(ctx.host)
    if expected == 0:
        raise ctx.skip("no GPUs are expected on this node (gpu_count: 0)")
    if not devices and (others := amd_devices(ctx.host)):
        # without NVML there is the bus to ask, and no more
        if expected is not None and len(others) < expected:
            yield ctx.critical(
                "GpuMissing", "", f"{len(others)} AMD GPUs on the PCI bus, {expected} expected",
                evidence=others, remedy=Remedy.REBOOT_NODE,
            )  # fmt: skip
        yield ctx.reading("gpu_pci_devices", len(others))
        return
    if not devices and expected is None:
        raise ctx.skip("no NVIDIA device on the PCI bus")
    yield ctx.reading("gpu_pci_devices", len(devices))
    if expected is not None and len(devices) < expected:
        # said before the driver is asked: it may hang for the same reason
        yield ctx.critical(
            "GpuMissing", "", f"{len(devices)} GPUs on the PCI bus, {expected} expected",
            evidence=tuple(devices), remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip
    if not devices:
        return
    answer = nvml(ctx.host)
    if answer.error:
        if not expected and is_unused(ctx.host, answer.error):
            raise ctx.skip(UNUSED)
        yield _driver_down(ctx, answer.error, len(devices))
        return
    gpus = located(answer.gpus, devices)
    lost = [g for g in gpus if g.error and g.error.name != "RESET_REQUIRED"]
    yield ctx.reading("gpu_usable", len(gpus) - len(lost))
    yield from (_lost(ctx, g) for g in lost)
    listed = {g.pci for g in gpus if g.pci}
    unlisted = [address for address in devices if address not in listed]
    # a lost GPU whose address nobody knows is one of these: it has its finding already
    hidden = len(unlisted) - sum(not g.pci for g in gpus)
    if hidden > 0 and expected is None and _is_given_some(ctx.host):
        ctx.note(f"this container was given {len(gpus)} of the {len(devices)} GPUs on the PCI bus")
    elif hidden > 0:
        for address in unlisted:
            yield ctx.critical(
                "GpuMissing", gpu_part(address),
                f"{address} is on the PCI bus, but not one of the {len(gpus)} GPUs that NVML lists",
                evidence=_evidence(gpus), remedy=Remedy.REBOOT_NODE,
            )  # fmt: skip
    if expected is not None and len(gpus) > expected:
        ctx.note(f"{len(gpus)} GPUs, more than the {expected} that the node class says")


def _is_given_some(host: Host) -> bool:
    """Whether this is a container whose runtime shows it only some GPUs.

    NVIDIA's container library then mounts a tmpfs over /proc/driver/nvidia with just these; the PCI bus in
    sysfs is the whole machine's.
    """
    try:
        table = host.read("/proc/self/mountinfo")
    except Unobservable:
        return False
    # 612 598 0:98 / /proc/driver/nvidia rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=555,inode64
    return " /proc/driver/nvidia" in table


def _evidence(gpus: list[Gpu]) -> tuple[str, ...]:
    return tuple(f"GPU {g.index}: {g.pci or 'address unknown'} {g.uuid or ''}".rstrip() for g in gpus)


def _lost(ctx: Context, gpu: Gpu) -> Finding:
    assert gpu.error is not None
    return ctx.critical(
        "GpuLost", gpu.part,
        f"GPU {gpu.index} does not answer: {gpu.error.text or gpu.error.name} ({gpu.error})",
        remedy=Remedy.REBOOT_NODE,
    )  # fmt: skip


def _driver_down(ctx: Context, error: NvmlError, devices: int) -> Finding:
    if error.name in NOT_THE_DRIVER:
        raise Unobservable(f"NVML cannot be asked: {error.text or error.name} ({error})")
    if error.name == "LIBRARY_NOT_FOUND" and ctx.host.glob("/run/nvidia/driver/usr"):
        # where NVIDIA's GPU operator mounts the root of its driver container
        raise Unobservable("the driver's libraries are in a container (/run/nvidia/driver), not on this host")
    hint = HINTS.get(error.name, error.text or "it gave no reason")
    return ctx.critical(
        "GpuDriverDown", "",
        f"{devices} GPUs on the PCI bus, but the NVIDIA driver does not start: {hint} ({error})",
        remedy=REMEDIES.get(error.name, Remedy.REBOOT_NODE),
    )  # fmt: skip
