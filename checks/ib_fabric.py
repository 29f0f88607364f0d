"""The whole InfiniBand fabric: who is missing, which links are down, narrow, slow or miscabled."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.fabric import (
    COUNTERS,
    Fabric,
    LocalPort,
    Port,
    changes,
    local_ports,
    neighbour,
    parse,
    too_fast,
)
from clustertools.sources.tools import ibqueryerrors
from clustertools.stats import counter_rate


@dataclass(frozen=True)
class Limits:
    """Growth of a switch port's counters above which it is reported; rates are from one look to the next."""

    # NVIDIA/NVSentinel, its InfiniBand counters: 120 symbol errors in an hour
    symbol_errors_per_hour: float = 120
    # as many packets: NVSentinel has 10 a second, which a link that loses one job a day never reaches
    receive_errors_per_hour: float = 120
    # NVSentinel: 5 link error recoveries in a minute
    link_recoveries_per_hour: float = 300
    # gpud (leptonai/gpud) calls three losses of a link in 12 hours flapping; between switches nobody reboots
    link_downs: int = 3
    # a host that reboots takes its link down once or twice: own choice, three reboots between two looks
    host_link_downs: int = 6
    # NVSentinel takes any growth of these as fatal
    integrity_errors: int = 0
    # NVSentinel: 100 discarded packets a second
    discards_per_second: float = 100
    # own choice: from this many hosts gone, and half of those at a leaf, the leaf is to be looked at
    leaf_hosts: int = 3


#: PortCounters of the IBTA specification stop at their highest value and tell nothing more.
FULL = {"SymbolErrorCounter": 65535, "LinkDownedCounter": 255, "LinkErrorRecoveryCounter": 255}
_HOUR_SECONDS = 3600.0
_DAY_SECONDS = 86400.0
#: What is told of one kind at most; a fabric that fell apart must not become ten thousand incidents.
AT_MOST = 40


@check(
    limits=Limits,
    stages={"preflight", "daily"},
    timeout_seconds=180.0,
    cost_seconds=2.0,
    needs={"root"},
    codes={
        "IbSubnetManagerDuplicate": "more than one subnet manager is master of one fabric",
        "IbFabricHostMissing": "a host or one of its adapters is not in the fabric",
        "IbFabricSwitchMissing": "a switch of the golden topology is not in the fabric",
        "IbLeafFailing": "many hosts at one leaf switch are gone at once: look at the leaf, not at them",
        "IbFabricLinkDown": "a link of the golden topology is down",
        "IbFabricLinkNotActive": "a link is up, but the subnet manager has not made it active",
        "IbFabricLinkNarrow": "a link runs with fewer lanes than both of its ends have",
        "IbFabricLinkSlow": "a link runs at a lower speed than both of its ends, or its twins, can",
        "IbFabricPortErrors": "a switch port counts errors faster than a good cable makes them",
        "IbFabricMiscabled": "a cable is not where the golden topology has it",
    },
)
def ib_fabric(ctx: Context) -> Iterator[Finding | Reading]:
    """Sweeps the fabric from this node and compares it with itself, with the past and with what is expected.

    A sweep asks every switch: let one or two nodes do it, not a thousand. It is done where
    `expect["ib_fabric_sweep"]` is true, or `ib_fabric_hosts` (the machines that must be there) or
    `ib_fabric_golden` (a file with `iblinkinfo -l` or `ibnetdiscover` of the good fabric) is given.
    """
    ports = local_ports(ctx.host)
    if not ports:
        raise ctx.skip("no InfiniBand port with a umad device (module ib_umad)")
    if not any(ctx.expect.get(f"ib_fabric_{key}") for key in ("sweep", "hosts", "golden")):
        raise ctx.skip("no ib_fabric_sweep, ib_fabric_hosts or ib_fabric_golden is expected of this node")
    golden = _golden(ctx)
    seen: list[Fabric] = []
    is_whole = True
    for port in ports:
        # the rails may be one fabric or several: look from a port only when no earlier look has met it
        if port.has_link and not (seen and _is_in(ctx, port, seen)):
            blind = len(ctx.blind)
            seen.append(_swept(ctx, port))
            is_whole = is_whole and len(ctx.blind) == blind
            yield from _capped(ctx, _masters(ctx, port))
            yield from _capped(ctx, _errors(ctx, port, seen[-1]))
    if not seen:
        raise Unobservable("no local port has a link, so the fabric cannot be seen from here")
    whole = Fabric({key: port for fabric in seen for key, port in fabric.ports.items()})
    yield ctx.reading("ib_fabric_switches_total", len(whole.switches), "fabric")
    yield ctx.reading("ib_fabric_hosts_total", len(whole.hosts()), "fabric")
    yield ctx.reading("ib_fabric_links_total", len(whole.links()), "fabric")
    yield from _capped(ctx, _links(ctx, whole))
    if not is_whole:
        ctx.note("what is missing was not judged: a part of the fabric did not answer")
        return
    told: set[str] = set()
    if golden is not None:
        yield from _capped(ctx, _against_golden(ctx, golden, whole, told))
    yield from _capped(ctx, _expected_hosts(ctx, whole, told))


def _is_in(ctx: Context, port: LocalPort, fabrics: list[Fabric]) -> bool:
    here, _ = neighbour(ctx.host, port)
    return any(here.id in fabric.ports for fabric in fabrics)


def _swept(ctx: Context, port: LocalPort) -> Fabric:
    done = ctx.host.run("iblinkinfo", "-l", *port.argv, timeout_seconds=90).check()
    fabric = parse(done.stdout)
    if done.truncated or fabric.unlisted:
        ctx.unseen(f"the sweep is not whole: {len(fabric.unlisted)} ports are peers of others and not listed")
    if failed := _failed(done.stderr) + _failed("\n".join(fabric.complaints)):
        ctx.unseen(f"{len(failed)} queries of the fabric failed, as {failed[0]}")
    return fabric


def _failed(text: str) -> list[str]:
    # src/query_smp.c:229; umad (DR path slid 0; dlid 0; 0,1,3 Attr 0x11:0) bad status 110; ... timed out
    lines = [line for line in text.splitlines() if re.search(r"bad status|timed out|[Ff]ailed", line)]
    return [line[:160] for line in lines]


def _golden(ctx: Context) -> Fabric | None:
    path = ctx.expect.get("ib_fabric_golden")
    if not path:
        return None
    try:
        return parse(ctx.host.read(str(path)))
    except Unobservable as exc:
        ctx.unseen(f"the golden topology: {exc}")
        return None


def _capped(ctx: Context, findings: Iterable[Finding]) -> Iterator[Finding]:
    """At most AT_MOST of each code, and a note of how many more there were."""
    more: dict[str, int] = defaultdict(int)
    for finding in findings:
        more[finding.code] += 1
        if more[finding.code] <= AT_MOST:
            yield finding
    for code, number in more.items():
        if number > AT_MOST:
            ctx.note(f"{code}: {number - AT_MOST} more of them are not listed")


def _part(label: str) -> str:
    return f"fabric/{label}"


def _nodes(*ports: Port) -> tuple[str, ...]:
    return tuple(sorted({port.host for port in ports if port.host}))


def _masters(ctx: Context, port: LocalPort) -> Iterator[Finding]:
    """Two masters split a fabric. The master's database (SA) lists the managers that it knows."""
    try:
        text = ctx.host.run("saquery", *port.argv, "SMIR", timeout_seconds=20).check().stdout
    except Unobservable as exc:
        ctx.note(f"the list of subnet managers could not be had: {exc}")
        return
    # GUID..................0x0002c90300000001  ...  SMState...............3
    pairs = re.findall(
        r"\bGUID\.+(0x[0-9a-fA-F]{1,16})\s(?:(?!\bGUID\.)[^\x00]){0,400}?SMState\.+(\d{1,3})", text
    )
    masters = sorted({guid for guid, state in pairs if state == "3"})
    if len(masters) > 1:
        yield ctx.warning(
            "IbSubnetManagerDuplicate", "fabric/sm",
            f"{len(masters)} subnet managers are master: {', '.join(masters[:4])}", remedy=Remedy.INSPECT,
        )  # fmt: skip


def _links(ctx: Context, fabric: Fabric) -> Iterator[Finding]:
    """What a link says of itself: not active, too narrow, too slow."""
    waiting = []
    twins = _twins(fabric)
    for near, far in fabric.links():
        part, text = _part(fabric.label(near)), f"{fabric.label(near)} - {fabric.label(far)}"
        states = {near.state, far.state} - {"Active", ""}
        if states and near.state and near.physical_state == "LinkUp":
            waiting.append(part)
            # a host that boots passes through Init: only what was so at the last look too
            if part in (ctx.past.get("not_active") or ()):
                yield ctx.warning(
                    "IbFabricLinkNotActive", part, f"{text}: {near.state}, not Active, for two looks",
                    remedy=Remedy.INSPECT, nodes=_nodes(near, far),
                )  # fmt: skip
        width = near.width or far.width
        speed = near.lane_gbps or far.lane_gbps
        if not width or not speed:
            continue
        # 12X and 8X exist on paper only: no adapter or switch of today trains more than 4 lanes
        could = min(4, max(near.could_width or 0, far.could_width or 0))
        if could > width:
            yield ctx.warning(
                "IbFabricLinkNarrow", part, f"{text}: {width}X, both ends could have {could}X",
                remedy=Remedy.INSPECT, nodes=_nodes(near, far),
            )  # fmt: skip
        fast = max(
            near.could_lane_gbps or 0,
            far.could_lane_gbps or 0,
            twins.get(frozenset((near.guid, far.guid)), 0),
        )
        if fast > speed:
            yield ctx.warning(
                "IbFabricLinkSlow", part,
                f"{text}: {speed:g} Gb/s a lane, it could be {fast:g}",
                remedy=Remedy.INSPECT, nodes=_nodes(near, far),
            )  # fmt: skip
    ctx.remember["not_active"] = waiting


def _twins(fabric: Fabric) -> dict[frozenset[int], float]:
    """The fastest of the parallel links between two switches: the others are the same hardware."""
    found: dict[frozenset[int], float] = {}
    for near, far in fabric.links():
        if near.kind == far.kind == "switch" and near.lane_gbps:
            key = frozenset((near.guid, far.guid))
            found[key] = max(found.get(key, 0.0), near.lane_gbps)
    return found


def _errors(ctx: Context, port: LocalPort, fabric: Fabric) -> Iterator[Finding]:
    """Growth of the switch ports' counters; those that have no errors are not listed by the tool."""
    argv = ("ibqueryerrors", "--switch", *port.argv)
    try:
        done = ctx.host.run(*argv, timeout_seconds=90)
        # 1 means that there are errors; what it could not do has no summary, and the reader says so
        told = ibqueryerrors.read(done.stdout)
    except Unobservable as exc:
        ctx.unseen(f"counters of the switches: {exc}")
        return
    if told.get("query_failures"):
        ctx.unseen(f"{told['query_failures']} ports did not tell their counters")
    now = {
        f"0x{entry['guid']:016x}/{number}": {n: v for n, v in entry["counters"].items() if n in COUNTERS}
        for node in told["nodes"]
        for number, entry in node["ports"].items()
    }
    key = f"fabric_errors {port.name}"
    past = ctx.past.get(key) or {}
    ctx.remember[key] = {"time": ctx.host.now(), "ports": now}
    seconds = ctx.host.now() - past["time"] if past else 0.0
    for name, counters in now.items():
        guid, number = int(name.split("/")[0], 16), int(name.split("/")[1])
        here, other = fabric.ports.get((guid, number)), fabric.peer((guid, number))
        before = past.get("ports", {}).get(name, {})
        # a counter that was not listed was 0
        rates = {c: counter_rate(before.get(c, 0), v, seconds) for c, v in counters.items()}
        grown = {c: (rate.delta, rate.per_second) for c, rate in rates.items() if rate}
        over = too_fast(ctx.limits, grown, host_link=bool(other and other.host))
        over += [
            f"{c} is full ({v}): it counts no more until it is cleared"
            for c, v in counters.items() if v >= FULL.get(c, 1 << 63)
        ]  # fmt: skip
        if over:
            label = fabric.label(here) if here else name
            leads = f" (leads to {fabric.label(other)})" if other else ""
            yield ctx.warning(
                "IbFabricPortErrors", _part(label), f"{label}{leads}: {', '.join(over)}",
                remedy=Remedy.INSPECT, nodes=_nodes(*([other] if other else [])),
            )  # fmt: skip


def _against_golden(ctx: Context, golden: Fabric, now: Fabric, told: set[str]) -> Iterator[Finding]:
    """What the golden topology has and the fabric has not. `told` collects the hosts that were named."""
    different = changes(golden, now)
    for guid, name in different.switches_missing.items():
        behind = list(golden.hosts_behind(guid).values())
        told.update(_nodes(*behind))
        yield ctx.critical(
            "IbFabricSwitchMissing", _part(name),
            f"switch {name} (0x{guid:016x}) is not in the fabric; {len(behind)} adapters are behind it",
            remedy=Remedy.INSPECT, nodes=_nodes(*behind),
        )  # fmt: skip
    gone: dict[int, list[Port]] = defaultdict(list)
    for adapter in [
        *different.adapters_missing,
        *(far for _, far in different.links_down if far.kind == "ca"),
    ]:
        leaf = golden.peer(adapter.id)
        if leaf is not None and leaf.guid in different.switches_missing:
            continue
        gone[leaf.guid if leaf is not None and leaf.kind == "switch" else 0].append(adapter)
    for leaf_guid, adapters in gone.items():
        yield from _gone_from_leaf(ctx, golden, leaf_guid, adapters, told)
    for near, far in different.links_down:
        if far.kind != "ca":
            yield ctx.warning(
                "IbFabricLinkDown", _part(golden.label(near)),
                f"{golden.label(near)} - {golden.label(far)} is down", remedy=Remedy.INSPECT,
            )  # fmt: skip
    for port, should, there in different.moved:
        subject = golden.label(should) if port.kind == "ca" else golden.label(port)
        yield ctx.warning(
            "IbFabricMiscabled", _part(subject),
            f"{golden.label(port)} leads to {now.label(there)}, in the golden topology to "
            f"{golden.label(should)}",
            remedy=Remedy.INSPECT, nodes=_nodes(port),
        )  # fmt: skip
    for here, was in different.slower:
        text = f"{now.label(here)}: {here.width}X at {here.lane_gbps:g} Gb/s a lane"
        code = "IbFabricLinkNarrow" if (here.width or 0) < (was.width or 0) else "IbFabricLinkSlow"
        if not (here.could_width or here.could_lane_gbps):  # else it has been told already
            other = now.peer(here.id)
            yield ctx.warning(
                code, _part(now.label(here)),
                f"{text}, in the golden topology {was.width}X at {was.lane_gbps:g}",
                remedy=Remedy.INSPECT, nodes=_nodes(*([other] if other else [])),
            )  # fmt: skip
    if different.new_nodes:
        ctx.note(
            f"{len(different.new_nodes)} nodes are not in the golden topology, as {different.new_nodes[0]}"
        )


def _gone_from_leaf(
    ctx: Context, golden: Fabric, leaf: int, adapters: list[Port], told: set[str]
) -> Iterator[Finding]:
    """Adapters of one leaf that are gone: one by one, or as the leaf's fault when there are many."""
    told.update(_nodes(*adapters))
    behind = len(golden.hosts_behind(leaf)) if leaf else 0
    if leaf and len(adapters) >= max(ctx.limits.leaf_hosts, behind / 2):
        name = golden.switches[leaf]
        yield ctx.warning(
            "IbLeafFailing", _part(name),
            f"{len(adapters)} of the {behind} adapters at {name} are gone while it is there: look at the "
            "switch, or at the power of its rack",
            evidence=tuple(golden.place(a) + " " + golden.label(a) for a in adapters[:8]),
            remedy=Remedy.INSPECT, nodes=_nodes(*adapters),
        )  # fmt: skip
        return
    for adapter in adapters:
        yield ctx.warning(
            "IbFabricHostMissing", _part(golden.place(adapter)),
            f"{golden.label(adapter)} is not in the fabric; its cable is at {golden.place(adapter)}",
            remedy=Remedy.INSPECT, nodes=_nodes(adapter),
        )  # fmt: skip


def _expected_hosts(ctx: Context, fabric: Fabric, told: set[str]) -> Iterator[Finding]:
    """Hosts of `ib_fabric_hosts` that no adapter belongs to, and of which nothing was said yet."""
    expected = ctx.expect.get("ib_fabric_hosts") or ()
    present = {name.split(".")[0] for name in fabric.hosts()}
    for name in sorted({str(name).split(".")[0] for name in expected} - present - told):
        yield ctx.warning(
            "IbFabricHostMissing", _part(name),
            f"{name} is expected, and none of its adapters is in the fabric",
            remedy=Remedy.INSPECT, nodes=(name,),
        )  # fmt: skip
