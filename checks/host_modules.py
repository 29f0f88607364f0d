"""Kernel modules: those that this class of node needs, and an NVIDIA module that fits the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.pci import nvidia_devices

#: Where packages, DKMS and distributions put the module, below /lib/modules/RELEASE.
_PLACES = ("updates/dkms", "extra", "extra/*", "updates", "weak-updates/*", "kernel/drivers/video",
           "kernel/drivers/video/nvidia", "kernel/nvidia-*", "kernel/nvidia-*/bits", "misc",
           "video")  # fmt: skip
#: Bits of /proc/sys/kernel/tainted that say something about the health of the kernel
#: (Documentation/admin-guide/tainted-kernels.rst). P, O and E come with NVIDIA's and vendors' modules.
_TAINTS = {1: "a module was forced in", 3: "a module was forced out", 4: "a machine check", 5: "a bad page",
           7: "the kernel failed (oops)", 9: "a warning of the kernel", 14: "a soft lockup",
           15: "it was live patched"}  # fmt: skip


@check(
    stages={"preflight", "watch"},
    codes={
        "ModuleMissing": "a kernel module that this class of node needs is not loaded",
        "DriverNotForKernel": "the NVIDIA module was built for another kernel than the one that runs",
    },
    interval_seconds=300,
)
def host_modules(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether `expect["modules"]` are loaded or built in, and why an NVIDIA module is not.

    The kernel's taints are told as a note.
    """
    loaded = _loaded(ctx)
    release = ctx.host.read("/proc/sys/kernel/osrelease").strip()
    wanted = [str(name).replace("-", "_") for name in ctx.expect.get("modules", ())]
    missing = [name for name in wanted if name not in loaded]
    if missing:
        built_in = _built_in(ctx, release)
        for name in missing:
            if name not in built_in:
                yield ctx.critical(
                    "ModuleMissing", f"module@{name}", f"the kernel module {name} is not loaded",
                    remedy=Remedy.INSPECT,
                )  # fmt: skip
    yield from _nvidia(ctx, loaded, release)
    taints = int(_digits(ctx, "/proc/sys/kernel/tainted"))
    told = [text for bit, text in _TAINTS.items() if taints >> bit & 1]
    if told:
        ctx.note(f"the kernel is tainted: {', '.join(told)}")


def _digits(ctx: Context, path: str) -> str:
    text = ctx.host.read(path).strip()
    if not re.fullmatch(r"\d{1,19}", text):
        raise Unparsable(f"{path} is not a number", text)
    return text


def _loaded(ctx: Context) -> set[str]:
    found: set[str] = set()
    try:
        text = ctx.host.read("/proc/modules")
    except Absent:
        ctx.note("this kernel has no loadable modules")
        return found
    for line in text.splitlines():
        # nvidia 62771200 605 nvidia_uvm,nvidia_modeset, Live 0x0000000000000000 (POE)
        match = re.match(r"(\w+) \d+ ", line)
        if match is None:
            raise Unparsable("/proc/modules has an unknown line", line)
        found.add(match[1])
    return found


def _built_in(ctx: Context, release: str) -> set[str]:
    # kernel/drivers/block/loop.ko
    try:
        text = ctx.host.read(f"/lib/modules/{release}/modules.builtin")
    except Absent:
        return set()
    return {line.rsplit("/", 1)[-1].removesuffix(".ko").replace("-", "_") for line in text.splitlines()}


def _nvidia(ctx: Context, loaded: set[str], release: str) -> Iterator[Finding]:
    """Told only when the cause is plain: no module for this kernel, but one for another."""
    if "nvidia" in loaded or not nvidia_devices(ctx.host):
        return
    if ctx.host.glob("/sys/bus/pci/drivers/vfio-pci/*:*"):
        ctx.note("GPUs are handed to virtual machines here, so no NVIDIA module is needed")
        return
    kernels = set()
    for place in _PLACES:
        for path in ctx.host.glob(f"/lib/modules/*/{place}/nvidia.ko*"):
            kernels.add(path.split("/")[3])
    if kernels and release not in kernels:
        yield ctx.critical(
            "DriverNotForKernel",
            "module@nvidia",
            f"no NVIDIA module for the running kernel {release}; there is one for "
            f"{', '.join(sorted(kernels)[:5])}",
            remedy=Remedy.INSPECT,
        )
