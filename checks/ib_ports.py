"""The ports of the node's InfiniBand and RoCE adapters: there, up, at their rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.infiniband import Device, Port, fabric_devices, netdev, ports
from clustertools.sources.mounts import in_container

Pair = tuple[Device, Port]

#: Up to EDR no cable splits a port: one that runs with a single lane has lost three. From HDR on it may be
#: meant (NVIDIA's HDR100, NDR200 and NDR100 splitter cables).
FOUR_LANES = frozenset(("", "SDR", "DDR", "QDR", "FDR10", "FDR", "EDR"))


@dataclass(frozen=True)
class Limits:
    #: Ports of one card type that must be up before one that is down or slower than they is held against
    #: them. NVSentinel compares with one; own choice, as one or two free ports are often meant so.
    peers: int = 3


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    # a port that goes down and comes back within a pass is ib_flaps' business
    confirm=2,
    codes={
        "IbPortMissing": "the node has fewer RDMA ports than its class should have",
        "IbLinkDown": "a port that the node needs is down",
        "IbNoSubnetManager": "a port has a link, but no subnet manager has made it active",
        "IbLinkSlow": "a port runs at a lower rate or with fewer lanes than it should",
        "IbLinkLayerWrong": "a port speaks Ethernet instead of InfiniBand, or the other way round",
        "IbUncabled": "a port has no link while all others of the same card type have one",
    },
)
def ib_ports(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares the state, rate and link layer of the RDMA ports with the class, or else with each other.

    `expect["ib_ports"]` ports must be active at `expect["ib_rate_bits_per_second"]` or more, of the link
    layer `expect["ib_link_layer"]`; others may be free or slow. Without it a port that is down is only held
    against others of its card type, the second port of a card apart, and `expect["ib_ports_built_in"]`
    ports must be there, cabled or not: that much the hardware catalogue knows. Not judged are soft-RoCE,
    EFA, virtual functions that wait for their machine, and Ethernet ports whose interface somebody has
    switched off.
    """
    wanted, built_in = ctx.expect.get("ib_ports"), ctx.expect.get("ib_ports_built_in", 0)
    if wanted is not None:
        built_in = 0  # the site says what it needs; it may have taken cards out
    found = list(ports(fabric_devices(ctx.host, ctx.unseen)))
    if not found and not wanted and not built_in:
        if ctx.blind:
            return
        raise ctx.skip("no InfiniBand or RoCE adapter")
    for _, port in found:
        yield ctx.reading("ib_port_active_ratio", port.is_active, port.part)
        yield ctx.reading("ib_port_rate_bits_per_second", port.rate_bits_per_second, port.part)
    if wanted:
        yield from _expected(ctx, found, int(wanted))
    elif len(found) + len(ctx.blind) < int(built_in) and not in_container(ctx.host):
        yield ctx.critical(
            "IbPortMissing", "rdma", f"{len(found)} RDMA ports, {built_in} are built into this machine",
            evidence=tuple(f"{port.part} of {device.place}" for device, port in found),
            remedy=Remedy.INSPECT,
        )  # fmt: skip
    yield from _compared(ctx, found, bool(wanted))


def _expected(ctx: Context, found: list[Pair], wanted: int) -> Iterator[Finding]:
    """Too few good ports: what is wrong with those that could be meant."""
    good = [pair for pair in found if pair[1].is_active and not _shortcoming(ctx, pair[1])]
    # a port that nobody could read may be a good one
    missing = wanted - len(good) - len(ctx.blind)
    if missing <= 0:
        return
    suspects = _suspects(found, good, missing)
    for device, port in suspects:
        code, said = _trouble(ctx, port)
        yield ctx.critical(
            code, port.part, f"{port.part} {said}", evidence=_evidence(device, port), remedy=Remedy.INSPECT
        )
    if len(suspects) < missing and in_container(ctx.host):
        ctx.note("a container may have been given fewer RDMA ports than the node has")
    elif len(suspects) < missing:
        listed = tuple(f"{p.part}: {p.state}, {p.phys_state}, {p.rate}, {p.link_layer}" for _, p in found)
        rest = f", {len(suspects)} more are down or slow" if suspects else ""
        yield ctx.critical(
            "IbPortMissing", "rdma",
            f"{len(good)} of {wanted} RDMA ports are active{_at_rate(ctx)}{rest}",
            evidence=listed, remedy=Remedy.INSPECT,
        )  # fmt: skip


def _suspects(found: list[Pair], good: list[Pair], missing: int) -> list[Pair]:
    """The ports to blame, when they are no more than are missing; none when nobody can tell which.

    Where some are good it is those like them: a node's storage or management ports are of another kind.
    """
    bad = [pair for pair in found if pair not in good]
    kinds = {(device.kind, port.number) for device, port in good}
    alike = [(d, p) for d, p in bad if not kinds or (d.kind, p.number) in kinds]
    return alike if len(alike) <= missing else []


def _at_rate(ctx: Context) -> str:
    rate = ctx.expect.get("ib_rate_bits_per_second")
    return f" at {float(rate) / 1e9:g} Gb/s" if rate else ""


def _shortcoming(ctx: Context, port: Port) -> str:
    """How an active port falls short of the node's class, as a code; empty when it does not."""
    layer, rate = ctx.expect.get("ib_link_layer"), ctx.expect.get("ib_rate_bits_per_second")
    if layer and port.link_layer.lower() != str(layer).lower():
        return "IbLinkLayerWrong"
    return "IbLinkSlow" if rate and port.rate_bits_per_second < float(rate) else ""


def _trouble(ctx: Context, port: Port) -> tuple[str, str]:
    if port.is_active:
        code = _shortcoming(ctx, port)
        if code == "IbLinkLayerWrong":
            return code, f"speaks {port.link_layer}, not {ctx.expect['ib_link_layer']}"
        return code, f"runs at {port.rate}, should run{_at_rate(ctx)}"
    if _is_waiting(port):
        return "IbNoSubnetManager", _waiting(port)
    return "IbLinkDown", f"is down (state {port.state}, physical state {port.phys_state})"


def _is_waiting(port: Port) -> bool:
    return port.state in ("INIT", "ARMED") and port.link_layer == "InfiniBand"


def _waiting(port: Port) -> str:
    lid = f"its LID is {port.lid:#x}, its subnet manager's {port.sm_lid:#x}"
    return f"has a link but is in state {port.state}: no subnet manager has set it up ({lid})"


def _evidence(device: Device, port: Port) -> tuple[str, ...]:
    return (
        device.place,
        f"{port.part}: state {port.state}, physical state {port.phys_state}, {port.rate}, {port.link_layer}",
    )


def _compared(ctx: Context, found: list[Pair], told: bool) -> Iterator[Finding]:
    """What the ports say about each other. `told`: how many are needed is known, and has been judged."""
    groups: dict[tuple[object, ...], list[Pair]] = {}
    for device, port in found:
        groups.setdefault((device.kind, port.number, port.link_layer), []).append((device, port))
        if not told and _is_waiting(port):
            yield ctx.warning(
                "IbNoSubnetManager", port.part, f"{port.part} {_waiting(port)}",
                evidence=_evidence(device, port), remedy=Remedy.INSPECT,
            )  # fmt: skip
    for group in groups.values():
        active = [pair for pair in group if pair[1].is_active]
        if not told:
            yield from _uncabled(ctx, group, active)
        if "ib_rate_bits_per_second" not in ctx.expect:
            yield from _slower(ctx, active)


def _uncabled(ctx: Context, group: list[Pair], active: list[Pair]) -> Iterator[Finding]:
    for device, port in group:
        if port.state != "DOWN" or len(active) < ctx.limits.peers or 2 * len(active) <= len(group):
            continue
        if _switched_off(ctx, device, port):
            ctx.note(f"{port.part} is down because it is switched off")
            continue
        yield ctx.warning(
            "IbUncabled", port.part,
            f"{port.part} has no link (physical state {port.phys_state}), {len(active)} others of its card "
            "type have one",
            evidence=_evidence(device, port), remedy=Remedy.INSPECT,
        )  # fmt: skip


def _switched_off(ctx: Context, device: Device, port: Port) -> bool:
    """Somebody wants the port down. mlx5 calls every Ethernet port without a carrier Disabled."""
    if not port.is_ethernet:
        return port.phys_state == "Disabled"
    name = netdev(ctx.host, device, port)
    if not name:
        return False
    # 0x1003: flags of the interface (linux/if.h), of which bit 0 is IFF_UP
    flags = ctx.host.read(f"/sys/class/net/{name}/flags").strip()
    return flags.startswith("0x") and int(flags, 16) & 1 == 0


def _slower(ctx: Context, active: list[Pair]) -> Iterator[Finding]:
    rates = Counter(port.rate_bits_per_second for _, port in active)
    for device, port in active:
        usual, count = max(rates.items(), key=lambda item: (item[1], item[0]))
        slow = port.rate_bits_per_second < usual and count >= ctx.limits.peers
        one_lane = port.width == 1 and port.speed in FOUR_LANES and port.link_layer == "InfiniBand"
        if slow or one_lane:
            others = f", {count} others of its card type at {usual / 1e9:g} Gb/s" if slow else ""
            yield ctx.warning(
                "IbLinkSlow", port.part, f"{port.part} runs at {port.rate}{others}",
                evidence=_evidence(device, port), remedy=Remedy.INSPECT,
            )  # fmt: skip
