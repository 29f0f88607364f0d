"""Errors on NVLinks: replays, recoveries, damaged packets, and the bit error rates that Blackwell tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus, nvlink_ber
from clustertools.stats import Rate

#: Counters of a link, by what they count in words. Blackwell has the last three, others the first three.
LINK_COUNTERS = {
    "replay_errors": "replays",
    "recovery_errors": "recoveries",
    "crc_errors": "CRC errors",
    "receive_errors": "receive errors",
    "recovery_events": "recoveries",
    "recovery_failed_events": "failed recoveries",
}
#: The same of all of a GPU's links together, for a driver that does not tell them apart.
GPU_COUNTERS = {
    "nvlink_replay_errors": "replays",
    "nvlink_recovery_errors": "recoveries",
    "nvlink_crc_flit_errors": "CRC errors",
    "nvlink_crc_data_errors": "CRC errors",
}
FIELDS = ("nvlinks", *GPU_COUNTERS)
_HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Limits:
    """Growth since the last look, and over how many looks."""

    #: DCGM fails at this rate of CRC errors.
    crc_per_second: float = 100.0
    #: Imbue's cluster-health tells of a link from 5 errors on; DCGM fails at the first replay.
    replays: int = 5
    #: DCGM and gcm fail at the first recovery; the link was down for a moment, and came back.
    recoveries: int = 1
    #: NVIDIA's resiliency extension samples 30 windows and fails a port with errors in more than 15.
    windows: int = 30
    bad_windows: int = 15
    #: A link without errors says 15e-255. DCGM warns of a symbol error rate whose exponent is under 238 on
    #: some boards and under 255 on the others.
    ber_exponent: int = 238


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "NvlinkErrors": "an NVLink had replays, recoveries or damaged packets since the last look",
        "NvlinkUnstable": "an NVLink has errors in most of the last looks, or could not recover",
        "NvlinkBitErrors": "an NVLink's error correction leaves more bit errors than the maker accepts",
    },
)
def nvlink_errors(ctx: Context) -> Iterator[Finding | Reading]:
    """Judges how the error counters grow from look to look; totals say nothing about when it was.

    One look with errors is a warning. A link is called unstable when more than half of the last 30 looks
    found new errors on it, or when it could not recover. A first look finds only bit error rates.
    """
    found = [g for g in gpus(ctx.host) if g.nvlinks or g.error]
    if not found:
        raise ctx.skip("no NVLink")
    counters: dict[str, float] = {}
    for gpu in found:
        if why := gpu.blind(*FIELDS):
            ctx.unseen(why)
        counters |= _counters(gpu)
        for name in GPU_COUNTERS:
            if (count := getattr(gpu, name)) is not None:
                yield ctx.reading(f"{name}_total", count, gpu.part)
    rates = ctx.rates(counters)
    windows = _windows(ctx, rates, counters)
    for gpu in found:
        own = {key: rate for key, rate in rates.items() if key.split()[0] == gpu.part}
        yield from _grown(ctx, gpu, own, windows)
        yield from _bit_errors(ctx, gpu)


def _counters(gpu: Gpu) -> dict[str, float]:
    """All error counters of a GPU by "part link counter"; the link is `-` where they are of all links."""
    found = {
        f"{gpu.part} {link.link} {name}": float(count)
        for link in gpu.nvlinks
        for name in LINK_COUNTERS
        if (count := getattr(link, name)) is not None
    }
    if found:
        return found
    return {
        f"{gpu.part} - {name}": float(count)
        for name in GPU_COUNTERS
        if (count := getattr(gpu, name)) is not None
    }


def _windows(ctx: Context, rates: Mapping[str, Rate], counters: Mapping[str, float]) -> dict[str, str]:
    """Per "part link" the last looks, the newest last: `1` with new errors, `0` without."""
    before = ctx.past.get("windows") or {}
    grew = {key.rsplit(" ", 1)[0] for key, rate in rates.items() if rate.delta > 0}
    seen = {key.rsplit(" ", 1)[0] for key in rates}
    known = {key.rsplit(" ", 1)[0] for key in counters} | set(before)
    windows = {}
    for port in known:
        looks = str(before.get(port, "")) + ("1" if port in grew else "0" if port in seen else "")
        windows[port] = looks[-ctx.limits.windows :]
    # a port without errors is not worth a line of memory
    ctx.remember["windows"] = {port: looks for port, looks in windows.items() if "1" in looks}
    return windows


def _grown(
    ctx: Context, gpu: Gpu, rates: Mapping[str, Rate], windows: Mapping[str, str]
) -> Iterator[Finding]:
    words = {**LINK_COUNTERS, **GPU_COUNTERS}
    said: list[str] = []
    failed = False
    for key, rate in sorted(rates.items()):
        _, link, name = key.split()
        where = "all links" if link == "-" else f"link {link}"
        if rate.delta > 0 and _worth_telling(ctx.limits, name, rate):
            said.append(f"{where}: {rate.delta:.0f} {words[name]} ({rate.per_second:.3g}/s)")
        failed |= name == "recovery_failed_events" and rate.delta > 0
    bad = {
        port.split()[1]: looks.count("1")
        for port, looks in windows.items()
        if port.split()[0] == gpu.part and looks.count("1") > ctx.limits.bad_windows
    }
    if failed or bad:
        often = [
            f"{'all links' if link == '-' else f'link {link}'}: errors in {count} of the last looks"
            for link, count in sorted(bad.items())
        ]
        yield ctx.critical(
            "NvlinkUnstable", gpu.part,
            f"GPU {gpu.index}: "
            + ("an NVLink could not recover" if failed else "NVLink errors go on and on"),
            evidence=(*often, *said)[:20], remedy=Remedy.RESET_GPU,
            clears=_HOUR_SECONDS if failed else "recovery",
        )  # fmt: skip
    elif said:
        yield ctx.warning(
            "NvlinkErrors", gpu.part, f"GPU {gpu.index}: NVLink errors since the last look",
            evidence=tuple(said[:20]), remedy=Remedy.INSPECT, clears=_HOUR_SECONDS,
        )  # fmt: skip


def _worth_telling(limits: Limits, name: str, rate: Rate) -> bool:
    if "crc" in name:
        return rate.per_second >= limits.crc_per_second
    least = limits.recoveries if "recovery" in name else limits.replays
    return rate.delta >= least


def _bit_errors(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    over = []
    for link in gpu.nvlinks:
        for kind in ("effective", "symbol"):
            raw = getattr(link, f"{kind}_ber_raw")
            mantissa, exponent = nvlink_ber(raw) if raw is not None else (0, 255)
            # a mantissa of 0 is a rate of 0
            if link.active and mantissa and exponent < ctx.limits.ber_exponent:
                over.append(f"link {link.link}: {kind} bit error rate {mantissa}e-{exponent}")
    if over:
        yield ctx.warning(
            "NvlinkBitErrors", gpu.part,
            f"GPU {gpu.index}: {len(over)} NVLink bit error rates are above 1e-{ctx.limits.ber_exponent}, "
            "where a good link has none",
            evidence=tuple(over[:20]), remedy=Remedy.INSPECT,
        )  # fmt: skip
