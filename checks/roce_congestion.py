"""Congestion and loss on RoCE ports: pause frames, missing buffers, retransmissions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.infiniband import Device, Port, counters, fabric_devices, netdev, ports
from clustertools.sources.tools.ethtool_statistics import statistics
from clustertools.stats import Rate


@dataclass(frozen=True)
class Limits:
    """Growth above which a port is reported."""

    #: Own choice. NVIDIA/daqiri (issue 250) found a stream 22 % slower with its port paused 22 % of the time;
    #: below a tenth it is the congestion control at work.
    paused_ratio: float = 0.10
    #: NVSentinel (NVIDIA/NVSentinel).
    slow_restarts_per_second: float = 10
    #: As NVSentinel's limit for port_xmit_discards: a packet lost in a class that is meant to lose none.
    discards_per_second: float = 100
    #: Own choice: each one costs a go-back of the whole window; adaptive routing alone causes some.
    out_of_sequence_per_second: float = 1000
    adaptive_retransmissions_per_second: float = 100
    out_of_buffer_per_second: float = 100


#: Names in hw_counters of mlx5 (drivers/infiniband/hw/mlx5/counters.c) and bnxt_re.
HARDWARE_COUNTERS = (
    "out_of_buffer", "out_of_sequence", "packet_seq_err", "roce_adp_retrans", "roce_adp_retrans_to",
    "roce_slow_restart", "np_cnp_sent", "rp_cnp_handled", "np_ecn_marked_roce_packets",
    "rx_icrc_encapsulated",
)  # fmt: skip

# rx_prio3_pause  tx_prio3_pause_duration  rx_prio3_buf_discard  rx_global_pause_duration  rx_discards_phy
# tx_pause_storm_error_events: of mlx5 (the kernel's device_drivers/ethernet/mellanox/mlx5/counters.rst)
_WANTED = re.compile(
    r"[rt]x_(?:prio[0-7]|global)_pause(?:_duration)?|rx_prio[0-7]_(?:buf|cong)_discard|rx_discards_phy|"
    r"tx_pause_storm_(?:warning|error)_events"
)


@check(
    limits=Limits,
    stages={"watch", "daily"},
    confirm=2,
    cost_seconds=0.3,
    codes={
        "RocePausedBySwitch": "the switch keeps a RoCE port from sending for a large share of the time",
        "RocePausesSwitch": "a RoCE port keeps its switch from sending: the host does not take what it gets",
        "RoceDiscards": "a RoCE port drops packets that it has received for lack of buffers",
        "RoceRetransmits": "packets of RoCE are lost or overtaken so often that it costs speed",
        "RoceOutOfBuffer": "packets of RoCE find no receive buffer posted",
    },
)
def roce_congestion(ctx: Context) -> Iterator[Finding | Reading]:
    """Growth since the last look of what the adapter counts, from hw_counters and `ethtool -S`.

    Needs what it remembered: the first look tells nothing. Marked packets and congestion notifications are
    how congestion control works, so they are told as readings only. Without ethtool, or where a driver has
    no such counters, what is there is judged.
    """
    found = [(d, p) for d, p in ports(fabric_devices(ctx.host, ctx.unseen)) if p.is_ethernet]
    if not found:
        if ctx.blind:
            return
        raise ctx.skip("no RoCE adapter")
    active = [(d, p) for d, p in found if p.is_active]
    hardware = counters(ctx.host, [p for _, p in active], HARDWARE_COUNTERS, ctx.unseen, "hw_counters")
    told = {f"{p.part} {name}": n for p, read in hardware.items() for name, n in read.items()}
    # these have 32 bits in mlx5 and wrap; those of ethtool have 64
    grown = ctx.rates(told, width_bits=32)
    ethernet = {}
    for device, port in active:
        for name, n in _driver_statistics(ctx, device, port).items():
            ethernet[f"{port.part} {name}"] = n
    grown |= ctx.rates(ethernet, name="ethtool")
    for device, port in active:
        mine = {key.partition(" ")[2]: r for key, r in grown.items() if key.partition(" ")[0] == port.part}
        yield from _readings(ctx, port, mine)
        yield from _pauses(ctx, device, port, mine)
        yield from _losses(ctx, device, port, mine)


def _driver_statistics(ctx: Context, device: Device, port: Port) -> dict[str, int]:
    name = netdev(ctx.host, device, port)
    if not name:
        return {}
    try:
        done = ctx.host.run("ethtool", "-S", name)
    except Absent:
        ctx.note("ethtool is not installed: pause frames are not known")
        return {}
    except Unobservable as exc:
        ctx.unseen(str(exc))
        return {}
    if done.returncode:  # "no stats available", or an interface in another network namespace
        ctx.note(f"{port.part}: ethtool -S {name} has no statistics")
        return {}
    return {key: n for key, n in statistics(done.stdout).items() if _WANTED.fullmatch(key)}


def _readings(ctx: Context, port: Port, grown: Mapping[str, Rate]) -> Iterator[Reading]:
    for name in HARDWARE_COUNTERS:
        rate = grown.get(name)
        if rate is not None and rate.delta >= 0:
            yield ctx.reading(f"roce_{name.removeprefix('roce_')}_per_second", rate.per_second, port.part)
    for side in ("rx", "tx"):
        if (ratio := _paused(grown, side)) is not None:
            yield ctx.reading(f"roce_{side}_paused_ratio", ratio, port.part)


def _paused(grown: Mapping[str, Rate], side: str) -> float | None:
    """The share of the time for which the most paused priority stood still; None where nobody counts it.

    rx: what the switch asked of us; tx: what we asked of it. The durations are in microseconds.
    """
    shares = [
        rate.per_second / 1e6
        for name, rate in grown.items()
        if name.startswith(f"{side}_") and name.endswith("_pause_duration")
    ]
    return min(1.0, max(shares)) if shares else None


def _pauses(ctx: Context, device: Device, port: Port, grown: Mapping[str, Rate]) -> Iterator[Finding]:
    for side, code, said in (
        ("rx", "RocePausedBySwitch", "was not allowed to send"),
        ("tx", "RocePausesSwitch", "made the switch wait"),
    ):
        ratio = _paused(grown, side) or 0.0
        # the adapter's own watchdog: it sent pause frames without end, because the host stood still
        storms = grown.get("tx_pause_storm_error_events") if side == "tx" else None
        if ratio > ctx.limits.paused_ratio or (storms and storms.delta > 0):
            storm = ", its watchdog counted a pause storm" if storms and storms.delta > 0 else ""
            yield ctx.warning(
                code, port.part,
                f"{port.part} {said} {ratio:.0%} of the time (limit {ctx.limits.paused_ratio:.0%}){storm}",
                evidence=(*_grew(grown, f"{side}_", "pause"), device.place), remedy=Remedy.INSPECT,
            )  # fmt: skip


def _grew(grown: Mapping[str, Rate], start: str, word: str) -> tuple[str, ...]:
    names = sorted(name for name in grown if name.startswith(start) and word in name and grown[name].delta)
    return tuple(f"{name}: +{grown[name].delta:g}" for name in names[:8])


def _losses(ctx: Context, device: Device, port: Port, grown: Mapping[str, Rate]) -> Iterator[Finding]:
    limits = ctx.limits
    discards = tuple(name for name in grown if "discard" in name)
    sequence = ("out_of_sequence", "packet_seq_err")
    for code, names, limit, what in (
        ("RoceDiscards", discards, limits.discards_per_second, "packets dropped"),
        ("RoceRetransmits", ("roce_slow_restart",), limits.slow_restarts_per_second, "slow restarts"),
        ("RoceRetransmits", sequence, limits.out_of_sequence_per_second, "packets out of sequence"),
        (
            "RoceRetransmits", ("roce_adp_retrans", "roce_adp_retrans_to"),
            limits.adaptive_retransmissions_per_second, "adaptive retransmissions",
        ),
        ("RoceOutOfBuffer", ("out_of_buffer",), limits.out_of_buffer_per_second, "packets without a buffer"),
    ):  # fmt: skip
        # the counters of a kind overlap (a discard counts for its priority and for the port)
        rates = [(grown[name].per_second, name) for name in names if name in grown]
        rate, name = max(rates, default=(0.0, ""))
        if rate > limit:
            yield ctx.warning(
                code, port.part, f"{port.part}: {rate:.4g} {what} a second (limit {limit:g})",
                evidence=(f"{name}: +{grown[name].delta:g}", device.place), remedy=Remedy.INSPECT,
            )  # fmt: skip
            if code == "RoceRetransmits":
                return
