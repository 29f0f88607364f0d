"""The Elastic Fabric Adapters of an EC2 instance: all of them there, and delivering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.infiniband import Device, counters, devices, ports
from clustertools.sources.mounts import in_container


@dataclass(frozen=True)
class Limits:
    """Growth above which a device is reported; awslabs' check warns of any around its own loopback."""

    #: Own choices, for a device in use: a few of each belong to a peer that ends or restarts.
    drops_per_second: float = 10
    #: A timeout moves the traffic to another path.
    retransmit_timeouts_per_second: float = 1
    #: A connection of which the device lowered the rate, or whose peer does not answer.
    impaired_per_second: float = 0.1


COUNTERS = (
    "rx_drops", "retrans_timeout_events", "unresponsive_remote_events", "impaired_remote_conn_events",
    "retrans_pkts", "tx_bytes", "rx_bytes", "rdma_read_wr_err", "rdma_write_wr_err",
)  # fmt: skip


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    confirm=2,
    codes={
        "EfaMissing": "an instance has fewer EFA devices than its type",
        "EfaPortDown": "an EFA device is not active",
        "EfaDrops": "an EFA device drops received packets",
        "EfaRetransmitTimeouts": "what an EFA device sends times out and is sent another way",
        "EfaPeersUnresponsive": "peers of an EFA device do not answer, or their connections are slowed down",
    },
)
def efa_devices(ctx: Context) -> Iterator[Finding | Reading]:
    """Counts the EFA devices, and judges the growth of their counters (drivers/infiniband/hw/efa).

    How many there should be is `expect["efa_devices"]`. None at all is a warning only: an instance may be
    started without.
    """
    found = [device for device in devices(ctx.host, ctx.unseen) if device.is_efa]
    wanted = int(ctx.expect.get("efa_devices") or 0)
    if not wanted and not found:
        if ctx.blind:
            return
        raise ctx.skip("no EFA device")
    if len(found) < wanted and not ctx.blind:
        if in_container(ctx.host):
            ctx.note("a container may have been given fewer EFA devices than the instance has")
        else:
            told = ctx.critical if found else ctx.warning
            yield told(
                "EfaMissing", "efa", f"{len(found)} EFA devices of {wanted}",
                evidence=tuple(device.place for device in found), remedy=Remedy.REPLACE,
            )  # fmt: skip
    yield from _ports(ctx, found)


def _ports(ctx: Context, found: list[Device]) -> Iterator[Finding | Reading]:
    of = list(ports(found))
    read = counters(ctx.host, [port for _, port in of], COUNTERS, ctx.unseen, "hw_counters")
    grown = ctx.rates({f"{p.part} {name}": n for p, values in read.items() for name, n in values.items()})
    limits = ctx.limits
    for device, port in of:
        if not port.is_active:
            yield ctx.critical(
                "EfaPortDown", port.part, f"{port.part} is in state {port.state}", evidence=(device.place,),
                remedy=Remedy.INSPECT,
            )  # fmt: skip
        for name in COUNTERS:
            if rate := grown.get(f"{port.part} {name}"):
                yield ctx.reading(f"efa_{name}_per_second", rate.per_second, port.part)
        for code, names, limit, what in (
            ("EfaDrops", ("rx_drops",), limits.drops_per_second, "dropped packets"),
            (
                "EfaRetransmitTimeouts", ("retrans_timeout_events",), limits.retransmit_timeouts_per_second,
                "retransmission timeouts",
            ),
            (
                "EfaPeersUnresponsive", ("unresponsive_remote_events", "impaired_remote_conn_events"),
                limits.impaired_per_second, "unresponsive peers or impaired connections",
            ),
        ):  # fmt: skip
            rates = {name: rate for name in names if (rate := grown.get(f"{port.part} {name}"))}
            per_second = sum(rate.per_second for rate in rates.values())
            if per_second > limit:
                yield ctx.warning(
                    code, port.part, f"{port.part}: {per_second:.3g} {what} a second (limit {limit:g})",
                    evidence=(*(f"{name}: +{rate.delta:g}" for name, rate in rates.items()), device.place),
                    remedy=Remedy.INSPECT,
                )  # fmt: skip
