"""Cables and transceivers of the network adapters: light, heat, faults, firmware, bit errors."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.tools import ethtool_module, mlxlink

#: A lane without light: modules tell -40 dBm or no number at all.
_DARK_DBM = -30.0


@dataclass(frozen=True)
class Limits:
    """Bit error ratios above which a link is reported; heat and light have the module's own alarms."""

    # what is left after correction. The InfiniBand specification allows one error in 10^12 bits; NVIDIA
    # tests its cables to one in 10^15 (DGX SuperPOD cabling guide), ibdiagnet's --ber_thresh has 10^-12
    effective_ber: float = 1e-12
    symbol_ber: float = 1e-12
    # what the wire does, on a link without forward error correction: the same 10^-12
    raw_ber_without_fec: float = 1e-12
    # on one with it: a tenth of the 2.4 * 10^-4 that RS(544,514) can still correct (IEEE 802.3bs, clause 119)
    raw_ber_with_fec: float = 2.4e-5
    # own choice: soon after the counters were cleared one error weighs much; ibdiagnet's manual waits 5-10
    minutes_counted: float = 10


@dataclass(frozen=True)
class Module:
    """What one port's tool told: the module's data, and the link's where the tool knows it."""

    part: str
    module: Mapping[str, Any]
    is_up: bool
    ber: Mapping[str, Any]
    fec: str
    said: str = ""


@check(
    limits=Limits,
    stages={"daily"},
    timeout_seconds=120.0,
    cost_seconds=15.0,
    needs={"root"},
    codes={
        "IbTransceiverHot": "a transceiver is hotter than its own alarm limit",
        "IbTransceiverRxPower": "a transceiver receives too little or too much light",
        "IbTransceiverTxPower": "a transceiver sends too little or too much light",
        "IbTransceiverFault": "a transceiver reports a fault of itself, or its supply is out of its limits",
        "IbTransceiverFirmware": "transceivers of one kind have different firmware",
        "IbBerHigh": "a link has more bit errors than its specification allows",
    },
)
def ib_transceivers(ctx: Context) -> Iterator[Finding | Reading]:
    """Asks `mlxlink -m -c` of each adapter, or `ethtool -m` where the Mellanox tools are not installed.

    A second or two a port. Copper cables have neither light nor temperature and are passed over; so are lanes
    that a link does not use, and virtual functions.
    """
    modules = list(_modules(ctx))
    for module in modules:
        yield from _readings(ctx, module)
        yield from _out_of_limits(ctx, module)
        yield from _bit_errors(ctx, module)
    yield from _firmware(ctx, modules)


# ------------------------------------------------------------------ asking


def _modules(ctx: Context) -> Iterator[Module]:
    ports = ctx.host.glob("/sys/class/infiniband/*/ports/[0-9]*/phys_state")
    if not ports:
        raise ctx.skip("no RDMA adapter")
    mlxlink_there = True
    asked = 0
    for path in ports:
        device, number = path.split("/")[4], path.split("/")[6]
        if ctx.host.glob(f"/sys/class/infiniband/{device}/device/physfn"):
            continue
        part = f"{device}/{number}"
        found = None
        if mlxlink_there and device.startswith("mlx5"):
            try:
                found = _by_mlxlink(ctx, device, part)
                asked += 1
            except Absent:
                mlxlink_there = False
        if not mlxlink_there or not device.startswith("mlx5"):
            try:
                found = _by_ethtool(ctx, device, part, path)
                asked += 1
            except Absent as exc:
                ctx.note(f"{part}: {exc}")
        if found is not None:
            yield found
    if not asked:
        raise ctx.skip("neither mlxlink (MFT) nor ethtool is there to ask the transceivers")


def _by_mlxlink(ctx: Context, device: str, part: str) -> Module | None:
    try:
        done = ctx.host.run("mlxlink", "-d", device, "-m", "-c", "--json", timeout_seconds=30)
        told = mlxlink.read(done.stdout or done.check().stdout)
    except Absent:
        raise
    except Unobservable as exc:
        ctx.unseen(f"{part}: {exc}")
        return None
    link = told["link"]
    is_up = link["state"] == "Active"
    said = told["recommendation"] or ""
    if not is_up and said:
        ctx.note(f"{part} is {link['state'] or 'down'}: {said}")
    return Module(part, told.get("module", {}), is_up, told.get("ber", {}), link["fec"] or "", said)


def _by_ethtool(ctx: Context, device: str, part: str, phys_state: str) -> Module | None:
    netdevs = ctx.host.glob(f"/sys/class/infiniband/{device}/device/net/*")
    if not netdevs:
        ctx.note(f"{part} has no network device that ethtool could be asked for")
        return None
    try:
        done = ctx.host.run("ethtool", "-m", netdevs[0].rsplit("/", 1)[1], timeout_seconds=15)
    except Absent:
        raise
    except Unobservable as exc:
        ctx.unseen(f"{part}: {exc}")
        return None
    if done.returncode != 0:
        said = done.stderr.strip()[:160]
        # netlink error: Operation not supported     Cannot get module EEPROM information: No such device
        if re.search(r"not supported|No such device|Invalid argument|not present|No data", said):
            ctx.note(f"{part} has no transceiver that can be read: {said}")
        else:
            ctx.unseen(f"{part}: ethtool -m failed: {said}")
        return None
    try:
        told = ethtool_module.read(done.stdout)
        is_up = ctx.host.read(phys_state).strip().endswith("LinkUp")
    except Unobservable as exc:
        ctx.unseen(f"{part}: {exc}")
        return None
    return Module(part, told, is_up, {}, "")


# ------------------------------------------------------------------ judging


def _lit(module: Module, name: str) -> list[float]:
    """The values of the lanes in use: those with light in either direction."""
    measured = module.module.get(name)
    if not measured:
        return []
    values = list(measured["values"])
    if not name.endswith("power_dbm"):
        return [v for v in values if v is not None]
    other = module.module.get("tx_power_dbm" if name.startswith("rx") else "rx_power_dbm")
    others = list(other["values"]) if other and len(other["values"]) == len(values) else values
    lanes = zip(values, others, strict=True)
    return [v for v, o in lanes if v is not None and max(v, v if o is None else o) > _DARK_DBM]


def _readings(ctx: Context, module: Module) -> Iterator[Reading]:
    for name, reading, pick in (
        ("temperature_celsius", "ib_transceiver_temperature_celsius", max),
        ("rx_power_dbm", "ib_transceiver_rx_power_dbm", min),
        ("tx_power_dbm", "ib_transceiver_tx_power_dbm", min),
    ):
        values = [v for v in _lit(module, name) if v != float("-inf")]
        if values and module.module[name]["high"] is not None:
            yield ctx.reading(reading, pick(values), module.part)
    for name in ("raw", "effective", "symbol"):
        if (ratio := module.ber.get(name)) is not None:
            yield ctx.reading(f"ib_{name}_bit_error_ratio", ratio, module.part)


def _out_of_limits(ctx: Context, module: Module) -> Iterator[Finding]:
    who = _who(module)
    for name, code, unit in (
        ("temperature_celsius", "IbTransceiverHot", "C"),
        ("rx_power_dbm", "IbTransceiverRxPower", "dBm"),
        ("tx_power_dbm", "IbTransceiverTxPower", "dBm"),
    ):
        bad = _beyond(module, name, only_high=unit == "C")
        if not bad:
            continue
        what = name.rsplit("_", 1)[0].replace("_", " ")
        text = f"{module.part}: {what} {', '.join(bad)} {unit}; {who}"
        if unit == "dBm" and not module.is_up:
            ctx.note(f"{text}; the link is down, which may be the cause")
            continue
        yield ctx.warning(code, module.part, text, remedy=Remedy.INSPECT)
    faults = [f"{n.split('_')[0]} {', '.join(b)} {u}" for n, u in (
        ("voltage_millivolts", "mV"), ("voltage_volts", "V"), ("bias_milliamperes", "mA"),
    ) if module.is_up and (b := _beyond(module, n))]  # fmt: skip
    flags = module.module.get("flags", {})
    if _is_optical(module):
        faults += [
            name.replace("_", " ")
            for name in ("module_firmware_fault", "datapath_firmware_fault", "tx_fault")
            if any(flags.get(name, ()))
        ]
    if faults:
        yield ctx.warning(
            "IbTransceiverFault", module.part, f"{module.part}: {'; '.join(faults)}; {who}",
            remedy=Remedy.REPLACE,
        )  # fmt: skip


def _is_optical(module: Module) -> bool:
    kind = " ".join(str(module.module.get(key)) for key in ("cable_type", "technology")).lower()
    return "copper" not in kind and "unequalized" not in kind


def _beyond(module: Module, name: str, *, only_high: bool = False) -> list[str]:
    """The values outside of the alarm limits that the module itself gives, in words."""
    measured = module.module.get(name)
    if not measured or (measured["low"] is None and measured["high"] is None):
        return []
    low, high = measured["low"], measured["high"]
    values = _lit(module, name)
    if name.startswith("bias"):
        values = [v for v in values if v > 0]  # a lane that is not used
    found = [f"{v:g} (alarm above {high:g})" for v in values if high is not None and v > high]
    if not only_high:
        found += [f"{v:g} (alarm below {low:g})" for v in values if low is not None and v < low]
    return found


def _who(module: Module) -> str:
    """The module as a person orders it."""
    words = [module.module.get(key) for key in ("vendor", "part_number", "serial_number")]
    return " ".join(re.sub(r"[^\w.:/+-]+", " ", str(w)).strip()[:40] for w in words if w) or "no identity"


def _bit_errors(ctx: Context, module: Module) -> Iterator[Finding]:
    ber = module.ber
    if not ber or not module.is_up:
        return
    if (ber.get("minutes") or 0) < ctx.limits.minutes_counted:
        ctx.note(f"{module.part}: bit errors have been counted for {ber.get('minutes') or 0:g} min only")
        return
    has_fec = bool(module.fec) and "No FEC" not in module.fec
    raw = ctx.limits.raw_ber_with_fec if has_fec else ctx.limits.raw_ber_without_fec
    # where there are symbol errors (HDR, NDR) those are what is left; before, the effective ones (ibdiagnet)
    limits = {"symbol": ctx.limits.symbol_ber, "effective": ctx.limits.effective_ber, "raw": raw}
    if ber.get("symbol") is not None:
        del limits["effective"]
    over = [f"{name} {ber[name]:.1e} (limit {limit:.1e})" for name, limit in limits.items()
            if ber.get(name) is not None and ber[name] > limit]  # fmt: skip
    if over:
        yield ctx.warning(
            "IbBerHigh", module.part,
            f"{module.part}: bit error ratio {', '.join(over)} over {ber['minutes']:g} min; {_who(module)}",
            evidence=() if module.said in ("", "No issue was observed") else (module.said,),
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _firmware(ctx: Context, modules: list[Module]) -> Iterator[Finding]:
    """Transceivers of one part number with other firmware than most of them."""
    kinds: dict[str, list[Module]] = defaultdict(list)
    for module in modules:
        if module.module.get("firmware") and module.module.get("part_number"):
            kinds[json.dumps([module.module.get("vendor"), module.module["part_number"]])].append(module)
    for alike in kinds.values():
        versions = Counter(module.module["firmware"] for module in alike)
        usual, count = versions.most_common(1)[0]
        for module in alike:
            version = module.module["firmware"]
            if version != usual and versions[version] < count:
                yield ctx.warning(
                    "IbTransceiverFirmware", module.part,
                    f"{module.part}: firmware {version[:40]}, {count} others of this kind have {usual[:40]}; "
                    f"{_who(module)}",
                )  # fmt: skip
        if len(versions) > 1 and list(versions.values()).count(count) > 1:
            ctx.note(f"{len(versions)} firmware versions are as common on one kind of transceiver")
