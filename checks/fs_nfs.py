"""NFS as the client counts it: requests that were not answered in time, and servers that say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading
from clustertools.sources.mountstats import NfsCounts, nfs_counts
from clustertools.stats import Rate


@dataclass(frozen=True)
class Limits:
    # over TCP the client sends again only after `timeo`, 60 s by default, or when the connection broke
    # (nfs(5)); nfsiostat's manual calls several percent a network or server that is overloaded
    retransmitted_ratio: float = 0.05
    # below this many in a look one lost connection would be a finding
    retransmissions: float = 5
    # nothing received for this long while requests were sent. Own choice: half a look of a minute
    silent_seconds: float = 30.0


@check(
    limits=Limits,
    stages={"watch"},
    cost_seconds=0.02,
    confirm=2,
    codes={
        "NfsSlow": "an NFS server answers so late that requests are sent again or time out",
        "NfsNotAnswering": "an NFS server was asked and has answered nothing since the last look",
    },
)
def fs_nfs(ctx: Context) -> Iterator[Finding | Reading]:
    """Growth of the NFS client's counters since the last look, for each mount.

    Needs what the last look counted; the first one only remembers. Whether a mount hangs now is asked by
    `host_storage`; mounts of one server share a connection, so one may speak for the other here.
    """
    mounts = nfs_counts(ctx.host)
    if not mounts:
        raise ctx.skip("no NFS mount")
    # another instance of a mount begins at zero, which `rates` takes for a reset
    counters = {f"{m.point} {name}": float(getattr(m, name)) for m in mounts for name in _COUNTED}
    rates = ctx.rates(counters)
    for mount in mounts:
        yield from _judge(ctx, mount, {name: rates.get(f"{mount.point} {name}") for name in _COUNTED})


_COUNTED = ("operations", "retransmissions", "major_timeouts", "answer_milliseconds", "sent", "received")


def _judge(ctx: Context, mount: NfsCounts, rates: dict[str, Rate | None]) -> Iterator[Finding | Reading]:
    grown = {name: rate.delta for name, rate in rates.items() if rate is not None and not rate.reset}
    if len(grown) < len(_COUNTED):
        return
    rate = rates["operations"]
    assert rate is not None
    part, name = f"mount@{mount.point}", f"{mount.point} ({mount.source})"
    yield ctx.reading("nfs_operations_per_second", rate.per_second, part)
    if grown["operations"] > 0:
        yield ctx.reading(
            "nfs_answer_seconds", grown["answer_milliseconds"] / grown["operations"] / 1000, part
        )
    again, timeouts = grown["retransmissions"], grown["major_timeouts"]
    ratio = again / max(1.0, grown["operations"])
    over = again >= ctx.limits.retransmissions and ratio >= ctx.limits.retransmitted_ratio
    if timeouts > 0 or over:
        yield ctx.warning(
            "NfsSlow", part,
            f"{name}: {again:.0f} of {grown['operations']:.0f} requests were sent again, {timeouts:.0f} "
            f"timed out since the last look (limit {ctx.limits.retransmitted_ratio:.0%}, or any timeout)",
        )  # fmt: skip
    silent = ctx.host.now() - float((ctx.past.get("counters") or {}).get("time", ctx.host.now()))
    if grown["sent"] > 0 and grown["received"] == 0 and silent >= ctx.limits.silent_seconds:
        yield ctx.warning(
            "NfsNotAnswering", part,
            f"{name}: {grown['sent']:.0f} requests were sent in {silent:.0f} s, and nothing came back",
        )  # fmt: skip
