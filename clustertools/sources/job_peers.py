"""Which node of a slow job differs from its peers, by what two looks at all of them show. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.sources.job_look import GpuActivity, JobLook, NodeLook

#: Nodes whose port bytes are kept until the next look.
NODES_AT_MOST = 512
#: Fewer nodes than this have no peers to be compared with.
PEERS_AT_LEAST = 3
#: More nodes than this share that stand out are the room or the job, not a node.
OUTLIERS_AT_MOST = 0.25
#: A clock below this share of its peers' median costs as much of a step: the wait of all for the slowest.
SLOW_CLOCK_SHARE = 0.93
#: Power and port bytes differ with the place of a rank in a pipeline, so they only hint.
ODD_POWER_SHARE = 0.25
ODD_BYTES_SHARE = 0.5
HOT_CELSIUS = 12.0
#: What holds a GPU's clocks below what the load asks for: heat, the power brake, the board. The power cap by
#: software is how a GPU lives within its limit. Names as NVML has them, in whatever spelling.
_THROTTLED = re.compile(r"thermal|brake|hw[ _]?slowdown|hardware[ _]slowdown", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outlier:
    """A node unlike its peers: `confidence` that it is what they wait for, from 0 to 1, and why."""

    node: str
    confidence: float
    why: tuple[str, ...]


def ports(look: JobLook) -> dict[str, list[Any]]:
    """What went through the ports of each node, to be compared with the next look: [time, boot, bytes]."""
    seen = [n for n in look.nodes if n.port_bytes][:NODES_AT_MOST]
    return {n.node: [n.time, n.boot_id, sum(n.port_bytes.values())] for n in seen}


def outliers(before: Mapping[str, list[Any]], now: JobLook) -> list[Outlier]:
    """The nodes that stand out among at least three that were seen, the surest first.

    `before` are the `ports` of an earlier look ({}: there was none).
    """
    nodes = now.nodes
    if len(nodes) < PEERS_AT_LEAST:
        return []
    found: dict[str, list[tuple[float, str]]] = {}
    for rule in (_throttled, _clocks, _heat, _power):
        told = rule(nodes)
        if len(told) <= max(1, OUTLIERS_AT_MOST * len(nodes)):
            for name, confidence, why in told:
                found.setdefault(name, []).append((confidence, why))
    told = _bytes(before, now)
    if len(told) == 1:
        found.setdefault(told[0][0], []).append(told[0][1:])
    result = []
    for name, reasons in found.items():
        doubt = 1.0
        for confidence, _ in reasons:
            doubt *= 1 - confidence
        result.append(Outlier(name, round(1 - doubt, 2), tuple(why for _, why in reasons)))
    return sorted(result, key=lambda o: (-o.confidence, o.node))


_Told = list[tuple[str, float, str]]


def _throttled(nodes: Iterable[NodeLook]) -> _Told:
    found = []
    for node in nodes:
        reasons = sorted({r for gpu in node.gpus for r in gpu.throttle_reasons if _THROTTLED.search(r)})
        if reasons:
            which = ",".join(
                str(gpu.index) for gpu in node.gpus if any(map(_THROTTLED.search, gpu.throttle_reasons))
            )
            found.append((node.node, 0.75, f"GPU {which} is throttled: {', '.join(reasons)}"))
    return found


def _values(
    nodes: Iterable[NodeLook],
    value: Callable[[GpuActivity], float | None],
    pick: Callable[[Iterable[float]], float],
) -> dict[str, float]:
    found = {}
    for node in nodes:
        known = [v for gpu in node.gpus if (v := value(gpu)) is not None]
        if known:
            found[node.node] = pick(known)
    return found


def _clocks(nodes: Iterable[NodeLook]) -> _Told:
    slowest = _values(nodes, lambda gpu: gpu.sm_clock_mhz, min)
    usual = _middle(slowest)
    if usual is None:
        return []
    return [
        (name, 0.6, f"a GPU runs at {clock:.0f} MHz, on the other nodes at {usual:.0f}")
        for name, clock in slowest.items()
        if clock < SLOW_CLOCK_SHARE * usual
    ]


def _heat(nodes: Iterable[NodeLook]) -> _Told:
    hottest = _values(nodes, lambda gpu: gpu.temperature_celsius, max)
    usual = _middle(hottest)
    if usual is None:
        return []
    return [
        (name, 0.3, f"a GPU has {degrees:.0f} °C, on the other nodes {usual:.0f}")
        for name, degrees in hottest.items()
        if degrees > usual + HOT_CELSIUS
    ]


def _power(nodes: Iterable[NodeLook]) -> _Told:
    drawn = _values(nodes, lambda gpu: gpu.power_watts, statistics.median)
    usual = _middle(drawn)
    if usual is None:
        return []
    return [
        (name, 0.3, f"its GPUs draw {watts:.0f} W, those of the other nodes {usual:.0f}")
        for name, watts in drawn.items()
        if abs(watts - usual) > ODD_POWER_SHARE * usual
    ]


def _bytes(before: Mapping[str, list[Any]], now: JobLook) -> _Told:
    rates = {}
    for name, (at, boot, total) in ports(now).items():
        known = before.get(name)
        if known and known[1] == boot and at > known[0] and total >= known[2]:
            rates[name] = (total - known[2]) / (at - known[0])
    usual = _middle(rates)
    if not usual:
        return []
    return [
        (name, 0.3, f"{rate / usual:.0%} of the bytes of the other nodes go through its ports")
        for name, rate in rates.items()
        if abs(rate - usual) > ODD_BYTES_SHARE * usual
    ]


def _middle(values: Mapping[str, float]) -> float | None:
    return statistics.median(values.values()) if len(values) >= PEERS_AT_LEAST else None
