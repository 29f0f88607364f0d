"""FUSE file systems: requests that wait for the program that serves them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Finding, Reading
from clustertools.sources.mounts import mounts

_CONNECTIONS = "/sys/fs/fuse/connections"


@dataclass(frozen=True)
class Limits:
    # gpud (leptonai/gpud): over 90 % of the congestion threshold
    congested_ratio: float = 0.9


@check(
    limits=Limits,
    stages={"watch"},
    cost_seconds=0.02,
    confirm=3,
    codes={"FuseCongested": "requests queue up in front of the program that serves a FUSE file system"},
)
def fs_fuse(ctx: Context) -> Iterator[Finding | Reading]:
    """Requests that wait at each FUSE connection, against the connection's own threshold.

    Read is fusectl at /sys/fs/fuse/connections (the kernel's filesystems/fuse.rst). A user's own mount is
    closed to others, and to root in another namespace: it is noted, not judged.
    """
    found = ctx.host.glob(f"{_CONNECTIONS}/[0-9]*/waiting")
    if not found:
        raise ctx.skip("no FUSE file system (or fusectl is not mounted)")
    names = {mount.device.partition(":")[2]: mount.point for mount in mounts(ctx.host)}
    for path in found:
        folder = path.rsplit("/", 1)[0]
        number = folder.rsplit("/", 1)[1]
        try:
            waiting, threshold = _count(ctx, path), _count(ctx, f"{folder}/congestion_threshold")
        except Absent:
            continue  # it was unmounted in between
        except Unparsable:
            raise
        except Unobservable as exc:
            ctx.note(str(exc))
            continue
        # the number of a connection is the minor number of its mount's device
        part = f"mount@{names.get(number, f'fuse-{number}')}"
        yield ctx.reading("fuse_waiting_requests_total", waiting, part)
        if threshold > 0 and waiting > ctx.limits.congested_ratio * threshold:
            yield ctx.warning(
                "FuseCongested", part,
                f"{waiting} requests wait for the program that serves it (limit "
                f"{ctx.limits.congested_ratio:.0%} of {threshold})",
            )  # fmt: skip


def _count(ctx: Context, path: str) -> int:
    text = ctx.host.read(path).strip()
    if not re.fullmatch("[0-9]{1,10}", text):
        raise Unparsable(f"{path} is not a count", text)
    return int(text)
