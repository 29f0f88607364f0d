"""Linux software RAID (md): arrays that lost a device, or all they had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools.mdadm import mdstat

#: How many devices each level may lose. RAID 10 depends on which, and is told by its own state.
_MAY_LOSE = {"raid4": 1, "raid5": 1, "raid6": 2}


@check(
    stages={"preflight", "watch"},
    cost_seconds=0.02,
    codes={
        "MdDegraded": "a RAID array lost a device: its data has less protection, or none",
        "MdFailed": "a RAID array lost more than it can: its data is gone or read-only",
        "MdInactive": "a RAID array was found but not started",
    },
)
def disk_raid(ctx: Context) -> Iterator[Finding | Reading]:
    """Each array of /proc/mdstat: devices wanted and working, failed members, rebuilds.

    Containers of the firmware's RAID (metadata "external:") are never active and have no data of their own.
    """
    try:
        arrays = mdstat(ctx.host.read("/proc/mdstat"))
    except Absent as exc:
        raise ctx.skip("the kernel has no software RAID") from exc
    if not arrays:
        raise ctx.skip("no RAID array")
    for array in arrays:
        metadata = str(array.get("metadata", ""))
        if metadata.startswith("external:") and not metadata.startswith("external:/"):
            continue
        yield from _judge(ctx, array)


def _judge(ctx: Context, array: Mapping[str, Any]) -> Iterator[Finding | Reading]:
    part, name = f"raid@{array['name']}", f"{array['name']} ({array['level'] or 'not started'})"
    failed = [member["name"] for member in array["members"] if member["failed"]]
    evidence = (f"failed: {', '.join(failed)}",) if failed else ()
    wanted, working = array.get("devices"), array.get("working")
    if "action_done_ratio" in array:
        yield ctx.reading("raid_rebuild_ratio", array["action_done_ratio"], part)
        ctx.note(f"{name}: {array['action']} at {array['action_done_ratio']:.0%}")
    if array["broken"] or (wanted and wanted - working > _MAY_LOSE.get(array["level"], wanted - 1)):
        yield ctx.critical(
            "MdFailed", part, f"{name} lost more devices than it can", evidence=evidence,
            remedy=Remedy.REPLACE,
        )  # fmt: skip
    elif not array["active"]:
        yield ctx.warning("MdInactive", part, f"{name} is not active", evidence=evidence)
    elif wanted and working < wanted:
        action = f"; {array['action']} runs" if array.get("action") else ""
        yield ctx.warning(
            "MdDegraded", part, f"{working} of {wanted} devices of {name} work{action}", evidence=evidence,
            remedy=Remedy.REPLACE,
        )  # fmt: skip
    elif failed:
        yield ctx.warning(
            "MdDegraded", part, f"{name} works, but {', '.join(failed)} failed and is still in it",
            remedy=Remedy.REPLACE,
        )  # fmt: skip
