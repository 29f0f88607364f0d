"""The node's NVMe drives: all of them there, alive, with a namespace."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy

_CLASS = "/sys/class/nvme"


@check(
    stages={"preflight", "watch", "prolog"},
    cost_seconds=0.05,
    confirm=2,
    codes={
        "NvmeMissing": "the node has fewer NVMe drives than its class should have, or than before",
        "NvmeDead": "an NVMe drive does not answer any more: its driver gave up",
        "NvmeNotLive": "an NVMe drive is being reset, or connected, for longer than that takes",
        "NvmeNoNamespace": "an NVMe drive offers no namespace: there is nothing to store on",
    },
)
def disk_nvme(ctx: Context) -> Iterator[Finding | Reading]:
    """NVMe controllers on PCIe by sysfs, compared with `expect["nvme_count"]` and with the last look.

    States are those of drivers/nvme/host (`state`: live, resetting, connecting, deleting, dead). Drives over
    a network are not counted. A device bound to the driver without a controller is one that was given up.
    """
    alive, silent = _states(ctx)
    bound = {path.rsplit("/", 1)[1] for path in ctx.host.glob("/sys/bus/pci/drivers/nvme/[0-9a-f]*:*")}
    working = {path.split("/")[5] for path in ctx.host.glob("/sys/bus/pci/devices/*/nvme/nvme*")}
    given_up = sorted(bound - working)
    wanted = ctx.expect.get("nvme_count")
    if not (alive or silent or given_up or wanted):
        raise ctx.skip("no NVMe drive")
    yield ctx.reading("nvme_drives_total", len(alive))
    for address in given_up:
        yield ctx.critical(
            "NvmeDead", f"nvme@{address}",
            f"the NVMe drive at {address} is on the bus, but its driver gave it up", remedy=Remedy.REPLACE,
        )  # fmt: skip
    for name, state in silent.items():
        if state in ("dead", "deleting (no IO)"):
            yield ctx.critical(
                "NvmeDead", f"nvme@{name}", f"{name} is {state}: it answers no command", remedy=Remedy.REPLACE
            )
        else:
            yield ctx.warning("NvmeNotLive", f"nvme@{name}", f"{name} is {state}, not live")
    yield from _missing(ctx, len(alive) + len(silent))
    spaces = {path.split("/")[4] for path in ctx.host.glob(f"{_CLASS}/nvme*/nvme*n[0-9]*")}
    for name in sorted(alive - spaces):
        yield ctx.warning(
            "NvmeNoNamespace", f"nvme@{name}", f"{name} is live, but has no namespace",
            evidence=(f"`nvme list-ns --all /dev/{name}` shows those that are not attached",),
        )  # fmt: skip


def _states(ctx: Context) -> tuple[set[str], dict[str, str]]:
    """Names of the live controllers, and the others with their state."""
    alive, silent = set(), {}
    for path in ctx.host.glob(f"{_CLASS}/nvme[0-9]*/state"):
        name = path.split("/")[4]
        try:
            # pcie      tcp, rdma, fc, loop, apple-nvme
            if ctx.host.read(f"{_CLASS}/{name}/transport").strip() != "pcie":
                continue
            state = ctx.host.read(path).strip()[:40]
        except Absent:
            continue  # it was removed between the listing and the look
        if state in ("live", "new"):
            alive.add(name)
        else:
            silent[name] = state
    return alive, silent


def _missing(ctx: Context, count: int) -> Iterator[Finding]:
    wanted = ctx.expect.get("nvme_count")
    boot = ctx.host.boot_id
    before = int(ctx.past.get("count", 0)) if ctx.past.get("boot_id") == boot else 0
    ctx.remember |= {"count": max(count, before), "boot_id": boot}
    if wanted is not None and count < int(wanted):
        yield ctx.critical(
            "NvmeMissing", "nvme", f"{count} NVMe drives, {int(wanted)} expected", remedy=Remedy.INSPECT
        )
    elif wanted is None and count < before:
        yield ctx.warning(
            "NvmeMissing", "nvme", f"{count} NVMe drives, {before} earlier since this boot",
            remedy=Remedy.INSPECT,
        )  # fmt: skip
    elif wanted is not None and count > int(wanted):
        ctx.note(f"{count} NVMe drives, {int(wanted)} expected: the expectation may be old")
