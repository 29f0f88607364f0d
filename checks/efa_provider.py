"""Whether libfabric finds its EFA provider on an instance with Elastic Fabric Adapters."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.host import Completed
from clustertools.model import Finding, Remedy
from clustertools.sources.infiniband import devices

#: On the PATH, or where AWS' EFA installer puts it.
PROGRAMS = ("fi_info", "/opt/amazon/efa/bin/fi_info")
#: What a healthy one takes, of which half is the loader's; it opens every device.
DEADLINE_SECONDS = 10.0


@check(
    stages={"preflight", "daily"},
    cost_seconds=1.0,
    codes={"EfaProviderMissing": "libfabric does not find the efa provider, so NCCL would go over TCP"},
)
def efa_provider(ctx: Context) -> Iterator[Finding]:
    """Asks `fi_info -p efa`, as awslabs' GPU cluster health check does.

    A container of the job may hold another libfabric: what the job itself chose stands in NCCL's log.
    """
    if not any(device.is_efa for device in devices(ctx.host, ctx.unseen)):
        if ctx.blind:
            return
        raise ctx.skip("no EFA device")
    done = _asked(ctx)
    if done is None:
        ctx.note("fi_info is not installed: whether libfabric has its efa provider was not asked")
    # provider: efa          or, with exit code 61: fi_getinfo: -61 (No data available)
    elif "provider: efa" not in done.stdout:
        said = (done.stderr or done.stdout).strip().splitlines()[:3]
        yield ctx.warning(
            "EfaProviderMissing", "efa", "libfabric has no efa provider on a node with EFA devices",
            evidence=tuple(line[:300] for line in said), remedy=Remedy.INSPECT,
        )  # fmt: skip


def _asked(ctx: Context) -> Completed | None:
    for program in PROGRAMS:
        try:
            return ctx.host.run(program, "-p", "efa", timeout_seconds=DEADLINE_SECONDS)
        except Absent:
            continue
    return None
