"""The other end of each InfiniBand cable of this node, and the subnet manager behind it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.model import Finding, Remedy
from clustertools.sources.fabric import COUNTERS, Fabric, LocalPort, Port, local_ports, neighbour, too_fast
from clustertools.sources.tools import perfquery, sminfo

_DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Limits:
    """Growth of the counters of the switch's port, from one look to the next, above which it is reported."""

    # NVIDIA/NVSentinel, its InfiniBand counters: 120 symbol errors in an hour
    symbol_errors_per_hour: float = 120
    # as many packets: NVSentinel has 10 a second, which a link that loses one job a day never reaches
    receive_errors_per_hour: float = 120
    # NVSentinel takes any growth of these as fatal
    integrity_errors: int = 0


@check(
    limits=Limits,
    stages={"preflight", "daily"},
    timeout_seconds=60.0,
    cost_seconds=1.0,
    needs={"root"},
    codes={
        "IbSubnetManagerSilent": "the subnet manager does not answer through a port that is active",
        "IbSubnetManagerNotMaster": "the subnet manager that a port was told of is not the master",
        "IbPeerLost": "a port has lost the switch port that it was cabled to",
        "IbPeerChanged": "a port is cabled to another switch port than at the last look",
        "IbPeerErrors": "the switch port at the other end of a cable counts errors in what this node sends",
    },
)
def ib_peer(ctx: Context) -> Iterator[Finding]:
    """For each port: does a subnet manager answer, which switch port is at the other end, what it counts.

    Three to five management datagrams a port. The switch's counters tell what a node's own cannot: damage to
    what it sends. Peers are remembered, since a port that is down no longer tells where its cable goes.
    """
    ports = local_ports(ctx.host)
    if not ports:
        raise ctx.skip("no InfiniBand port with a umad device (module ib_umad)")
    yield from _managers(ctx, [port for port in ports if port.state == "ACTIVE"])
    yield from _peers(ctx, ports)


def _managers(ctx: Context, active: list[LocalPort]) -> Iterator[Finding]:
    """The subnet manager, through each active port; one that waits for a manager is told by ib_ports."""
    for port in active:
        done = ctx.host.run("sminfo", *port.argv, timeout_seconds=15)
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode != 0 and re.search(r"open|ermission|umad_init|ABI", done.stderr):
            done.check()
        if done.returncode != 0 or not done.stdout.strip():
            yield ctx.warning(
                "IbSubnetManagerSilent", port.name,
                f"{port.name}: no subnet manager answers; links that are up stay up, others will not come up",
                evidence=(said[:200],) if said else (), remedy=Remedy.INSPECT,
            )  # fmt: skip
            continue
        manager = sminfo.read(done.stdout)
        if manager["state_name"] != "MASTER":
            yield ctx.warning(
                "IbSubnetManagerNotMaster", port.name,
                f"{port.name}: the subnet manager at LID {manager['lid']} (0x{manager['guid']:016x}) is "
                f"{manager['state_name']}, not MASTER",
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _peers(ctx: Context, ports: list[LocalPort]) -> Iterator[Finding]:
    """Who is at the other end of each cable; remembered, since a port that is down no longer tells."""
    before: Mapping[str, Mapping[str, Any]] = ctx.past.get("peers") or {}
    peers = ctx.remember["peers"] = {name: dict(peer) for name, peer in before.items()}
    counters: dict[str, float] = {}
    for port in ports:
        then = before.get(port.name)
        now = _peer(ctx, port) if port.has_link else None
        if now is None:
            if then and not port.has_link:
                yield ctx.warning(
                    "IbPeerLost", port.name,
                    f"{port.name} is {port.physical_state or port.state}: its cable leads to {_where(then)}",
                    remedy=Remedy.INSPECT,
                )  # fmt: skip
            continue
        peers[port.name] = now
        ctx.note(f"{port.name} is cabled to {_where(now)}")
        if then and (then["guid"], then["port"]) != (now["guid"], now["port"]):
            yield ctx.warning(
                "IbPeerChanged", port.name,
                f"{port.name} is now cabled to {_where(now)}, at the last look it was {_where(then)}",
                clears=_DAY_SECONDS,
            )  # fmt: skip
        counters |= _counters(ctx, port, now)
    grown: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for key, rate in ctx.rates(counters, name="errors").items():
        name, counter = key.rsplit(" ", 1)
        grown[name][counter] = (rate.delta, rate.per_second)
    for name, found in grown.items():
        if over := too_fast(ctx.limits, found):
            yield ctx.warning(
                "IbPeerErrors", name,
                f"{name}: {_where(peers[name])} at the other end counts {', '.join(over)}; the errors are in "
                "what this node sends",
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _peer(ctx: Context, port: LocalPort) -> dict[str, Any] | None:
    other = neighbour(ctx.host, port)[1]
    if other is None:
        ctx.unseen(f"{port.name} has a link, but iblinkinfo names no peer")
        return None
    name = next(iter(Fabric({other.id: _as_switch(other)}).switches.values()))
    return {"switch": name, "guid": f"0x{other.guid:016x}", "port": other.number, "lid": other.lid}


def _as_switch(port: Port) -> Port:
    return Port(port.guid, port.number, port.node, "switch")


def _counters(ctx: Context, port: LocalPort, peer: Mapping[str, Any]) -> dict[str, float]:
    argv = ("perfquery", *port.argv, str(peer["lid"]), str(peer["port"]))
    try:
        told = perfquery.read(ctx.host.run(*argv, timeout_seconds=15).check().stdout)
    except Unobservable as exc:
        ctx.unseen(f"counters of {_where(peer)}: {exc}")
        return {}
    found = told["ports"][0]["counters"]
    return {f"{port.name} {name}": float(found[name]) for name in COUNTERS if name in found}


def _where(peer: Mapping[str, Any]) -> str:
    return f"switch {peer['switch']} ({peer['guid']}) port {peer['port']}"
