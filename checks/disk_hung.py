"""Disks that take requests and complete none, and SCSI disks that the kernel has put off line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unparsable
from clustertools.model import Finding, Reading, Remedy

#: Real disks; what lies on top of others (dm, md, loop) waits for these. nvme0c0n1 is a path of nvme0n1.
_DISK = re.compile(r"(sd[a-z]+|vd[a-z]+|xvd[a-z]+|hd[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+)")


@dataclass(frozen=True)
class Limits:
    # the kernel gives up an NVMe request after 30 s (nvme_core.io_timeout) and a SCSI one after 30 s
    # (scsi_device timeout), and tries up to five times again
    silent_seconds: float = 60.0


@check(
    limits=Limits,
    stages={"watch"},
    cost_seconds=0.02,
    codes={
        "DiskHung": "a disk has requests in flight and has completed none for a minute or more",
        "ScsiDiskOffline": "the kernel has given up a SCSI disk: everything sent to it fails",
    },
)
def disk_hung(ctx: Context) -> Iterator[Finding | Reading]:
    """Requests in flight at each disk (/sys/block/*/stat) against those completed since the last look.

    Never CRITICAL: some kernels leak a count in flight. What a hung disk does to the node is told by the
    mounts that hang and the tasks that are blocked.
    """
    disks = [p for p in ctx.host.glob("/sys/block/*/stat") if _DISK.fullmatch(p.split("/")[3])]
    if not disks:
        raise ctx.skip("no disk")
    before = ctx.past.get("silent", {})
    silent: dict[str, list[float]] = {}
    for path in disks:
        name = path.split("/")[3]
        try:
            completed, flying = _requests(ctx, path)
        except Absent:
            continue  # it was removed between the listing and the look
        yield ctx.reading("disk_requests_in_flight_total", flying, f"disk@{name}")
        if flying > 0:
            then = before.get(name)
            since = then[1] if then and then[0] == completed else ctx.host.now()
            silent[name] = [completed, since]
            seconds = ctx.host.now() - since
            if seconds >= ctx.limits.silent_seconds:
                yield ctx.warning(
                    "DiskHung", f"disk@{name}",
                    f"{flying} requests wait at {name}, and none was completed in {seconds:.0f} s "
                    f"(limit {ctx.limits.silent_seconds:.0f} s)",
                    remedy=Remedy.INSPECT, since=since,
                )  # fmt: skip
        yield from _offline(ctx, name)
    ctx.remember["silent"] = silent


def _requests(ctx: Context, path: str) -> tuple[int, int]:
    """How many requests were completed, and how many are in flight. Format: the kernel's block/stat.rst."""
    words = ctx.host.read(path).split()
    # reads merged sectors ms  writes merged sectors ms  in_flight ms ms  [discards merged sectors ms
    # [flushes ms]]
    if len(words) < 11 or not all(re.fullmatch("-?[0-9]{1,20}", word) for word in words):
        raise Unparsable(f"{path} has an unknown form", " ".join(words))
    numbers = [int(word) for word in words]
    return numbers[0] + numbers[4] + sum(numbers[11:12]) + sum(numbers[15:16]), numbers[8]


def _offline(ctx: Context, name: str) -> Iterator[Finding]:
    if not name.startswith("sd"):
        return
    try:
        state = ctx.host.read(f"/sys/block/{name}/device/state").strip()
        size = ctx.host.read(f"/sys/block/{name}/size").strip()
    except Absent:
        return
    # an empty slot, as the virtual media of a BMC, has no size
    if state in ("offline", "transport-offline") and size != "0":
        yield ctx.warning(
            "ScsiDiskOffline", f"disk@{name}", f"{name} is {state}: the kernel sends it nothing any more",
            remedy=Remedy.INSPECT,
        )  # fmt: skip
