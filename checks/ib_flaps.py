"""InfiniBand and RoCE links that went down: for good, or again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.infiniband import Device, Port, counters, fabric_devices, netdev, ports
from clustertools.sources.link_history import History, advance


@dataclass(frozen=True)
class Limits:
    #: gpud (leptonai/gpud): down for 4 minutes with link_downed unchanged.
    drop_seconds: float = 240
    #: gpud: told for 10 minutes more after it came back.
    drop_sticky_seconds: float = 600
    #: gpud: 3 returns in 12 hours. Azure's health checks take 5 lost carriers in 24 hours.
    flaps: int = 3
    flap_window_seconds: float = 12 * 3600


@check(
    limits=Limits,
    stages={"watch"},
    codes={
        "IbLinkDropped": "a link that was up went down and stays down",
        "IbLinkFlapping": "a link goes down and comes back again and again",
    },
)
def ib_flaps(ctx: Context) -> Iterator[Finding | Reading]:
    """Follows each port from look to look, by its state and by the counters of going down.

    Needs what it remembered. Those counters are link_downed, and the network interface's carrier_down_count
    for a RoCE port. A reboot, and a port that was never up since we look, begin anew. A port that somebody
    switches off is dropped like any other: silence it for that time.
    """
    found = list(ports(fabric_devices(ctx.host, ctx.unseen)))
    if not found:
        if ctx.blind:
            return
        raise ctx.skip("no InfiniBand or RoCE adapter")
    boot, now = ctx.host.boot_id, ctx.host.now()
    past = ctx.past if ctx.past.get("boot_id") == boot else {}
    ctx.remember.update(boot_id=boot, links=dict(past.get("links", {})))
    read = counters(ctx.host, [port for _, port in found], ("link_downed",), ctx.unseen)
    for device, port in found:
        downs = read[port].get("link_downed")
        if port.is_ethernet:
            downs = _carrier_losses(ctx, device, port)
        history = advance(
            past.get("links", {}).get(port.part), up=port.is_active, downs=downs, now=now,
            drop_seconds=ctx.limits.drop_seconds, window_seconds=ctx.limits.flap_window_seconds,
        )  # fmt: skip
        ctx.remember["links"][port.part] = history
        yield ctx.reading("ib_link_returns_total", len(history["returns"]), port.part)
        yield from _judge(ctx, device, port, history, now)


def _carrier_losses(ctx: Context, device: Device, port: Port) -> int | None:
    name = netdev(ctx.host, device, port)
    if not name:
        return None
    try:
        return int(ctx.host.read(f"/sys/class/net/{name}/carrier_down_count"))
    except Absent:
        return None  # a kernel before 4.16
    except (Unobservable, ValueError) as exc:
        ctx.unseen(f"{name}: carrier_down_count: {exc}")
        return None


def _judge(ctx: Context, device: Device, port: Port, history: History, now: float) -> Iterator[Finding]:
    limits = ctx.limits
    evidence = (device.place, f"{port.part}: state {port.state}, physical state {port.phys_state}")
    if history["dropped"]:
        yield ctx.critical(
            "IbLinkDropped", port.part,
            f"{port.part} was up and has been down for {(now - history['since']) / 60:.0f} minutes "
            f"(limit {limits.drop_seconds / 60:g})",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
    elif history["recovered_at"] and now - history["recovered_at"] < limits.drop_sticky_seconds:
        yield ctx.warning(
            "IbLinkDropped", port.part,
            f"{port.part} was down for long and came back {(now - history['recovered_at']) / 60:.0f} minutes "
            "ago",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
    returns = len(history["returns"])
    if returns >= limits.flaps:
        yield ctx.warning(
            "IbLinkFlapping", port.part,
            f"{port.part} went down and came back {returns} times in {limits.flap_window_seconds / 3600:g} "
            f"hours (limit {limits.flaps - 1})",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
