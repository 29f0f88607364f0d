"""ZFS pools: devices that are gone or count errors, pools that stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import zpool_status

#: States of a pool in which it serves no data (zpoolconcepts(7)).
_GONE = frozenset(("FAULTED", "UNAVAIL", "SUSPENDED", "OFFLINE", "REMOVED"))
_WELL = frozenset(("ONLINE", "AVAIL", "INUSE"))


@check(
    stages={"preflight", "watch"},
    cost_seconds=0.1,
    codes={
        "ZpoolFailed": "a ZFS pool serves no data any more",
        "ZpoolDegraded": "a ZFS pool works with fewer devices than it should have",
        "ZpoolErrors": "a device of a ZFS pool counts errors, or files in it are damaged",
    },
)
def disk_zfs(ctx: Context) -> Iterator[Finding | Reading]:
    """`zpool status`: the state of each pool, of its devices, and their error counts.

    Counts stay until somebody runs `zpool clear`.
    """
    try:
        ctx.host.read("/sys/module/zfs/version")
    except Absent as exc:
        raise ctx.skip("ZFS is not loaded") from exc
    pools = zpool_status.read(ctx.host.run("zpool", "status").check().stdout)["pools"]
    for pool in pools:
        yield from _judge(ctx, pool)


def _judge(ctx: Context, pool: Mapping[str, Any]) -> Iterator[Finding | Reading]:
    part = f"zpool@{pool['name']}"
    bad = [d for d in pool["devices"] if d["state"] not in _WELL]
    counting = [d for d in pool["devices"] if d["read_errors"] or d["write_errors"] or d["checksum_errors"]]
    yield ctx.reading("zpool_devices_not_online_total", len(bad), part)
    evidence = tuple(_line(device) for device in (bad + [d for d in counting if d not in bad])[:8])
    if pool["state"] in _GONE:
        yield ctx.critical(
            "ZpoolFailed", part, f"pool {pool['name']} is {pool['state']}: {pool['status'] or 'no data'}",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
        return
    if pool["state"] != "ONLINE" or bad:
        yield ctx.warning(
            "ZpoolDegraded", part, f"pool {pool['name']} is {pool['state']}: {pool['status'] or 'see below'}",
            evidence=evidence, remedy=Remedy.REPLACE,
        )  # fmt: skip
    if pool["has_data_errors"]:
        yield ctx.warning(
            "ZpoolErrors", part, f"pool {pool['name']} has damaged files: {pool['errors'][:120]}",
            evidence=evidence,
        )  # fmt: skip
    elif counting and not bad:
        yield ctx.warning(
            "ZpoolErrors", part, f"{len(counting)} devices of pool {pool['name']} count errors",
            evidence=evidence,
        )  # fmt: skip


def _line(device: Mapping[str, Any]) -> str:
    counts = (
        f"{device['read_errors']} read, {device['write_errors']} write, {device['checksum_errors']} checksum"
    )
    return f"{device['name']} {device['state']}: {counts} errors {device['note']}".strip()
