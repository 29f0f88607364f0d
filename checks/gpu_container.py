"""Whether containers can be given the GPUs: the runtime and the device specification that are configured."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.pci import nvidia_devices

CONFIGS = ("/etc/docker/daemon.json", "/etc/containerd/config.toml")
CONFIG_FOLDERS = ("/etc/containerd/conf.d/*.toml", "/etc/crio/crio.conf.d/*.conf")
#: Where the Container Device Interface's specifications are (its SPEC.md); nvidia-ctk writes one of all GPUs.
SPECIFICATIONS = ("/etc/cdi/nvidia*", "/var/run/cdi/nvidia*")
#: BinaryName = "/usr/bin/nvidia-container-runtime"     "path": "/usr/bin/nvidia-container-runtime"
_RUNTIME = re.compile(
    r"""^[ \t]*["']?(?:BinaryName|path|runtime_path)["']?[ \t]*[:=][ \t]*"""
    r"""["'](/[^"'\n]{0,200}nvidia-container[^"'\n]{0,60})""",
    re.MULTILINE,
)
#: - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20
#:   hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20
_LIBRARY = re.compile(r"""["']?hostPath["']?: *["']?(/[^"'\s,]{0,200}/libcuda\.so\.[0-9.]{1,20})""")


@check(
    stages={"preflight", "daily"},
    codes={
        "GpuContainerRuntime": "a container runtime is configured to start NVIDIA's, which is not installed",
        "GpuContainerSpecStale": "the specification by which containers get GPUs is of another driver",
    },
)
def gpu_container(ctx: Context) -> Iterator[Finding | Reading]:
    """Looks whether what Docker, containerd, CRI-O and the device specification name is there.

    A node whose containers need no such thing (enroot, Apptainer) has none of these files and is left alone.
    """
    if not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    named = 0
    for config in [*CONFIGS, *(path for pattern in CONFIG_FOLDERS for path in ctx.host.glob(pattern))]:
        for program in sorted(set(_RUNTIME.findall(_text(ctx, config)))):
            named += 1
            if not _is_there(ctx, program):
                yield ctx.warning(
                    "GpuContainerRuntime", "runtime", f"{config} names {program}, which is not there",
                    remedy=Remedy.INSPECT,
                )  # fmt: skip
    for specification in [path for pattern in SPECIFICATIONS for path in ctx.host.glob(pattern)]:
        libraries = sorted(set(_LIBRARY.findall(_text(ctx, specification))))
        named += len(libraries)
        gone = [library for library in libraries if not _is_there(ctx, library)]
        if gone:
            yield ctx.warning(
                "GpuContainerSpecStale", "specification",
                f"{specification} names {gone[0]}, which is not there: the driver was changed since",
                remedy=Remedy.INSPECT,
            )  # fmt: skip
    if not named:
        raise ctx.skip("no container runtime or device specification here names NVIDIA's GPUs")


def _text(ctx: Context, path: str) -> str:
    try:
        return ctx.host.read(path, limit=4 << 20)
    except Absent:
        return ""


def _is_there(ctx: Context, path: str) -> bool:
    try:
        ctx.host.stat(path)
    except Absent:
        return False
    return True
