"""Tasks of the NVIDIA driver, and processes on its GPUs, that hang in the kernel for long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.gpu_processes import state_of
from clustertools.sources.pci import nvidia_devices


@dataclass(frozen=True)
class Limits:
    """From when on a task counts as stuck."""

    #: The kernel's own limit for a hung task (kernel.hung_task_timeout_secs); a reset of a GPU takes less.
    stuck_seconds: float = 120.0


#: nvidia-smi, nvidia-persiste(nced), nv-hostengine, nv-fabricmanage(r), nvidia-cuda-mps, the kernel threads
#: nv_queue, nvidia-modeset/, UVM global queue, irq/130-nvidia, dcgm-exporter, dcgmi
OURS = re.compile(r"nv[-_]|nvidia|UVM |irq/[0-9]+-nvidia|dcgm")


@check(
    limits=Limits,
    stages={"watch", "preflight"},
    cost_seconds=0.2,
    codes={"GpuTaskStuck": "a task of the NVIDIA driver or its tools hangs in the kernel"},
)
def gpu_tasks(ctx: Context) -> Iterator[Finding | Reading]:
    """Looks at the state of the driver's threads and tools in /proc: are they in D, look after look?

    NVML itself may hang where these do, so it is not asked. A state D for a moment is normal: since when a
    task is in it is remembered from look to look.
    """
    if not nvidia_devices(ctx.host):
        raise ctx.skip("no NVIDIA device on the PCI bus")
    now = ctx.host.now()
    paths = ctx.host.glob("/proc/[0-9]*/stat")
    if not paths:
        raise Unobservable("/proc shows no process; is it mounted?")
    since: dict[str, float] = {}
    stuck = []
    for path in paths:
        pid = int(path.split("/")[2])
        told = state_of(ctx.host, pid)
        if told is None or told[1] != "D" or not OURS.match(told[0]):
            continue
        key = f"{pid}@{told[3]}"
        since[key] = ctx.past.get("since", {}).get(key, now)
        if now - since[key] >= ctx.limits.stuck_seconds:
            stuck.append((pid, told[0], now - since[key]))
    ctx.remember["since"] = since
    yield ctx.reading("gpu_tasks_in_kernel", len(since))
    if stuck:
        longest = max(seconds for _, _, seconds in stuck)
        yield ctx.warning(
            "GpuTaskStuck", "",
            f"{len(stuck)} tasks of the NVIDIA driver hang in the kernel, for {longest:.0f} s and more",
            evidence=tuple(f"{name} (pid {n}) for {s:.0f} s{_waits(ctx, n)}" for n, name, s in stuck[:8]),
            remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip


def _waits(ctx: Context, pid: int) -> str:
    try:
        return f" in {re.sub(r'[^A-Za-z0-9_.]', '', ctx.host.read(f'/proc/{pid}/wchan'))[:64]}"
    except Unobservable:
        return ""
