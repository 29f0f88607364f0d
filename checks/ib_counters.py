"""Error counters of the InfiniBand and RoCE ports, by their growth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.infiniband import SATURATES, Device, Port, counters, fabric_devices, ports
from clustertools.stats import Rate

_HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Limits:
    """Growth above which a port is reported. Figures of NVSentinel (NVIDIA/NVSentinel), unless told."""

    #: 1e-12, the bit error rate that the InfiniBand Architecture allows, is about 120 symbols an hour.
    symbol_errors_per_hour: float = 120
    symbol_errors_critical_per_second: float = 10
    #: 5 a minute.
    link_recoveries_per_second: float = 5 / 60
    receive_errors_per_second: float = 10
    transmit_discards_per_second: float = 100
    acknowledge_timeouts_per_second: float = 1
    #: Any: the link lost data or credits that its own error handling could not bring back.
    integrity_errors: float = 0
    #: Own choice. The name says error, but each is a retry that went on (NVIDIA's list of mlx5 counters):
    #: storage over RDMA has some. NVSentinel takes any for fatal.
    receiver_not_ready_per_second: float = 10
    #: Own choice: packets of a partition that this port is not in. A scan for it sends a few.
    constraint_errors_per_second: float = 10


#: Counters of the port that are read. Left out are VL15_dropped, which every sweep of a subnet manager moves,
#: and port_rcv_switch_relay_errors, which on an adapter counts its own multicasts.
PORT_COUNTERS = (*SATURATES, "port_xmit_wait", "port_xmit_data", "port_rcv_data")
#: Of the transport, as mlx5, mlx4 and bnxt_re name them (drivers/infiniband/hw/*/counters.c, hw_counters.c).
TRANSPORT_COUNTERS = (
    "local_ack_timeout_err", "rnr_nak_retry_err", "packet_seq_err", "out_of_sequence",
    "req_transport_retries_exceeded",
)  # fmt: skip

_INTEGRITY = ("local_link_integrity_errors", "excessive_buffer_overrun_errors")
_CONSTRAINT = ("port_xmit_constraint_errors", "port_rcv_constraint_errors")


@check(
    limits=Limits,
    stages={"watch", "preflight", "epilog"},
    confirm=2,
    codes={
        "IbSymbolErrors": "a link has more bit errors than it may have: cable, optic or port is failing",
        "IbLinkRecovery": "a link retrains again and again",
        "IbReceiveErrors": "a port receives broken packets",
        "IbRemotePhysicalErrors": "a port receives packets that were broken already further away",
        "IbIntegrityErrors": "a link lost data or flow-control credits",
        "IbTransmitDiscards": "a port throws away what it should send: the way ahead is blocked or down",
        "IbConstraintErrors": "a port drops packets of another partition",
        "IbAcknowledgeTimeouts": "what a port sends is not acknowledged in time",
        "IbReceiverNotReady": "receivers again and again have no buffers for what a port sends",
    },
)
def ib_counters(ctx: Context) -> Iterator[Finding | Reading]:
    """Growth of the error counters since the last look, and of bit errors over an hour.

    Needs what it remembered: the first look tells nothing. A counter at its end (symbol_error 65535,
    link_error_recovery 255, ...) stands still until somebody clears it, which is noted.
    """
    found = list(ports(fabric_devices(ctx.host, ctx.unseen)))
    if not found:
        if ctx.blind:
            return
        raise ctx.skip("no InfiniBand or RoCE adapter")
    of = [port for _, port in found]
    read = counters(ctx.host, of, PORT_COUNTERS, ctx.unseen)
    transport = counters(ctx.host, of, TRANSPORT_COUNTERS, ctx.unseen, "hw_counters")
    grown = ctx.rates(_keyed(read))
    # these have 32 bits in mlx5 and wrap
    grown |= ctx.rates(_keyed(transport), width_bits=32, name="transport")
    hourly = _this_hour(ctx, {key: n for key, n in _keyed(read).items() if key.endswith(" symbol_error")})
    for device, port in found:
        _note_saturated(ctx, port, read[port])
        yield from _readings(ctx, port, grown)
        if port.is_active:
            yield from _judge(ctx, device, port, grown, hourly)


def _keyed(of: Mapping[Port, Mapping[str, int]]) -> dict[str, int]:
    return {f"{port.part} {name}": n for port, found in of.items() for name, n in found.items()}


def _this_hour(ctx: Context, now: Mapping[str, int]) -> dict[str, Rate]:
    """Growth since a look that is kept until it is an hour old."""
    grown = ctx.rates(now, name="hour")
    if grown and ctx.host.now() - ctx.past["hour"]["time"] < _HOUR_SECONDS:
        ctx.remember["hour"] = ctx.past["hour"]
    return grown


def _note_saturated(ctx: Context, port: Port, read: Mapping[str, int]) -> None:
    full = sorted(name for name, n in read.items() if n == SATURATES.get(name))
    if full:
        ctx.note(f"{port.part}: {', '.join(full)} cannot count further; clear with perfquery -R")


def _readings(ctx: Context, port: Port, grown: Mapping[str, Rate]) -> Iterator[Reading]:
    # data in words of four bytes (sysfs-class-infiniband); waiting in ticks, whose length is the device's own
    told = {"port_xmit_data": ("ib_transmit_bytes", 4), "port_rcv_data": ("ib_receive_bytes", 4)}
    told |= {name: (f"ib_{name}", 1) for name in ("port_xmit_wait", *TRANSPORT_COUNTERS)}
    for name, (reading, factor) in told.items():
        rate = grown.get(f"{port.part} {name}")
        if rate is not None and rate.delta >= 0:
            yield ctx.reading(f"{reading}_per_second", rate.per_second * factor, port.part)
    errors = [rate.delta for name in SATURATES if (rate := grown.get(f"{port.part} {name}"))]
    if errors:
        yield ctx.reading("ib_port_new_errors_total", sum(errors), port.part)


def _judge(
    ctx: Context, device: Device, port: Port, grown: Mapping[str, Rate], hourly: Mapping[str, Rate]
) -> Iterator[Finding]:
    limits = ctx.limits
    yield from _symbols(ctx, device, port, grown, hourly)

    def over(
        code: str, names: tuple[str, ...], limit: float, what: str, *, total: bool = False
    ) -> Iterator[Finding]:
        rates = {name: rate for name in names if (rate := grown.get(f"{port.part} {name}"))}
        seen = sum(rate.delta if total else rate.per_second for rate in rates.values())
        if seen > limit:
            unit = "since the last look" if total else "a second"
            yield ctx.warning(
                code, port.part, f"{port.part}: {seen:.4g} {what} {unit} (limit {limit:g})",
                evidence=(*(f"{name}: +{rate.delta:g}" for name, rate in rates.items()), device.place),
                remedy=Remedy.INSPECT, clears=_HOUR_SECONDS if total else "recovery",
            )  # fmt: skip

    yield from over(
        "IbLinkRecovery", ("link_error_recovery",), limits.link_recoveries_per_second, "times retrained"
    )
    per_second = limits.receive_errors_per_second
    yield from over("IbReceiveErrors", ("port_rcv_errors",), per_second, "packets received with errors")
    yield from over(
        "IbRemotePhysicalErrors", ("port_rcv_remote_physical_errors",), per_second, "packets that came broken"
    )
    yield from over(
        "IbIntegrityErrors", _INTEGRITY, limits.integrity_errors, "integrity or overrun errors", total=True
    )
    yield from over(
        "IbTransmitDiscards",
        ("port_xmit_discards",),
        limits.transmit_discards_per_second,
        "discarded packets",
    )
    yield from over(
        "IbConstraintErrors", _CONSTRAINT, limits.constraint_errors_per_second, "packets of another partition"
    )
    yield from over(
        "IbAcknowledgeTimeouts", ("local_ack_timeout_err",), limits.acknowledge_timeouts_per_second,
        "acknowledgements timed out",
    )  # fmt: skip
    yield from over(
        "IbReceiverNotReady", ("rnr_nak_retry_err",), limits.receiver_not_ready_per_second,
        "retries because a receiver was not ready",
    )  # fmt: skip


def _symbols(
    ctx: Context, device: Device, port: Port, grown: Mapping[str, Rate], hourly: Mapping[str, Rate]
) -> Iterator[Finding]:
    key, limits = f"{port.part} symbol_error", ctx.limits
    now, hour, downed = grown.get(key), hourly.get(key), grown.get(f"{port.part} link_downed")
    if downed and downed.delta:
        return  # a link that comes up has some while it trains; ib_flaps tells that it was down
    if now and now.per_second > limits.symbol_errors_critical_per_second:
        yield ctx.critical(
            "IbSymbolErrors", port.part,
            f"{port.part}: {now.per_second:.4g} symbol errors a second "
            f"(limit {limits.symbol_errors_critical_per_second:g})",
            evidence=(f"symbol_error: +{now.delta:g}", device.place), remedy=Remedy.INSPECT,
        )  # fmt: skip
    elif hour and hour.delta > limits.symbol_errors_per_hour:
        yield ctx.warning(
            "IbSymbolErrors", port.part,
            f"{port.part}: {hour.delta:g} symbol errors within an hour "
            f"(limit {limits.symbol_errors_per_hour:g})",
            evidence=(device.place,), remedy=Remedy.INSPECT, clears=_HOUR_SECONDS,
        )  # fmt: skip
