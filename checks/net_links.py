"""Ethernet links of the node: up, at their speed, whole bonds, without flapping and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.link_history import advance
from clustertools.sources.net_interfaces import Interface, bond, errors, interface, layout, routed
from clustertools.sources.tools import ethtool

#: SMBIOS chassis types of what is carried about and unplugged: portable, laptop, notebook, hand-held, docking
#: station, sub-notebook, tablet, convertible, detachable (System Management BIOS reference, 7.4.1).
PORTABLE = frozenset(("8", "9", "10", "11", "12", "14", "30", "31", "32"))


@dataclass(frozen=True)
class Limits:
    #: NVSentinel: carrier_changes by more than 2; gpud takes 3 returns in 12 hours for InfiniBand.
    flaps: int = 3
    flap_window_seconds: float = 12 * 3600
    #: Own choice: a good link has none in a day.
    errors_per_second: float = 1
    #: Below this a link that could do more fell back (a broken pair in the cable); above, a slower switch may
    #: be meant.
    least_bits_per_second: float = 10**9


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    confirm=2,
    codes={
        "NetLinkDown": "a network interface that the node uses has no link",
        "NetLinkSlow": "a network interface runs at a lower speed than it should",
        "NetMtuWrong": "a network interface has another MTU than its class should have",
        "NetAddressWrong": "a network interface has another hardware address than expected",
        "NetBondDegraded": "a bond runs without one of its members",
        "NetCarrierFlapping": "a network link goes down and comes back again and again",
        "NetErrors": "a network interface receives broken frames",
    },
)
def net_links(ctx: Context) -> Iterator[Finding | Reading]:
    """Looks at the interfaces that matter: those expected, else bonds and what carries or carried an address.

    `expect["interfaces"]` is a list of names, or a map from names to what they should be:
    `speed_bits_per_second`, `mtu_bytes`, `address`. Without it an interface must have led somewhere since
    this boot. Whether the ports of RDMA adapters are up, IPoIB's and those of RoCE, is for ib_ports and
    ib_flaps to say; interfaces of containers and wireless ones are nobody's.
    """
    expected = _expected(ctx)
    found = layout(ctx.host)
    boot = ctx.host.boot_id
    past = ctx.past if ctx.past.get("boot_id") == boot else {}
    used = found.carriers(routed(ctx.host)) | set(found.bonds)
    used |= {name for name in past.get("used", ()) if name in found.hardware}
    members = {member for name in found.bonds for member in found.below.get(name, ())} & found.hardware
    ctx.remember.update(boot_id=boot, used=sorted(used), links={})
    if not used and not expected:
        raise ctx.skip("no Ethernet interface that carries an address")
    seen: dict[str, Interface] = {}
    for name in sorted(used | members | set(expected)):
        try:
            seen[name] = interface(ctx.host, name)
        except Absent:
            if name in expected:
                yield _down(ctx, name, f"the interface {name} is not there", critical=True)
        except Unobservable as exc:
            ctx.unseen(str(exc))
    for name, link in seen.items():
        yield from _settings(ctx, link, expected.get(name, {}))
        if name in expected or name not in found.rdma:
            yield from _state(ctx, link, name in expected, is_member=name in members)
            yield from _flaps(ctx, link, past.get("links", {}))
    for name in found.bonds:
        yield from _bond(ctx, name, seen, expected)
    yield from _errors(ctx, seen, found.hardware)


def _expected(ctx: Context) -> dict[str, Mapping[str, Any]]:
    told = ctx.expect.get("interfaces") or {}
    if isinstance(told, Mapping):
        return {str(name): about or {} for name, about in told.items()}
    return {str(name): {} for name in told}


def _down(ctx: Context, name: str, summary: str, *, critical: bool) -> Finding:
    tell = ctx.critical if critical else ctx.warning
    return tell("NetLinkDown", f"net@{name}", summary, remedy=Remedy.INSPECT)


def _state(
    ctx: Context, link: Interface, is_expected: bool, *, is_member: bool
) -> Iterator[Finding | Reading]:
    yield ctx.reading("net_link_up_ratio", link.is_up, f"net@{link.name}")
    if link.speed_bits_per_second:
        yield ctx.reading("net_link_speed_bits_per_second", link.speed_bits_per_second, f"net@{link.name}")
    if link.is_up or (is_member and not is_expected):
        return  # what a member lacks is told of its bond
    said = f"{link.name} has no link (it is {link.operstate})" if link.is_enabled else f"{link.name} is off"
    if is_expected:
        yield _down(ctx, link.name, said, critical=True)
    elif not link.is_enabled:
        ctx.note(f"{said}: somebody wants it so")
    elif _is_portable(ctx):
        ctx.note(f"{said}; this machine is one to carry about")
    else:
        yield _down(ctx, link.name, f"{said}; it carries or carried an address", critical=False)


def _is_portable(ctx: Context) -> bool:
    try:
        return ctx.host.read("/sys/class/dmi/id/chassis_type").strip() in PORTABLE
    except Absent:
        return False


def _settings(ctx: Context, link: Interface, wanted: Mapping[str, Any]) -> Iterator[Finding]:
    part, speed = f"net@{link.name}", link.speed_bits_per_second
    if speed and speed < float(wanted.get("speed_bits_per_second", 0)):
        yield _slow(ctx, link, f"it should run at {float(wanted['speed_bits_per_second']) / 1e9:g} Gb/s")
    elif speed and speed < ctx.limits.least_bits_per_second and (best := _best(ctx, link.name)) > speed:
        yield _slow(ctx, link, f"it can do {best / 1e9:g} Gb/s")
    elif speed and link.duplex == "half" and _best(ctx, link.name):
        yield _slow(ctx, link, "in one direction at a time (half duplex)")
    mtu = wanted.get("mtu_bytes", wanted.get("mtu"))
    if mtu is not None and link.mtu_bytes != int(mtu):
        yield ctx.warning(
            "NetMtuWrong", part, f"{link.name} has an MTU of {link.mtu_bytes} bytes, {int(mtu)} expected",
            remedy=Remedy.INSPECT,
        )  # fmt: skip
    address = str(wanted.get("address", "")).lower()
    if address and link.address.lower() != address:
        yield ctx.warning(
            "NetAddressWrong", part, f"{link.name} has the hardware address {link.address}, not {address}",
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _slow(ctx: Context, link: Interface, why: str) -> Finding:
    speed = (link.speed_bits_per_second or 0) / 1e9
    return ctx.warning(
        "NetLinkSlow", f"net@{link.name}", f"{link.name} runs at {speed:g} Gb/s, {why}", remedy=Remedy.INSPECT
    )


def _best(ctx: Context, name: str) -> int:
    """The best speed that the interface supports, in bits per second; 0 where nobody can tell."""
    try:
        done = ctx.host.run("ethtool", name)
        return int(ethtool.read(done.stdout)["best_bits_per_second"] or 0) if done.returncode == 0 else 0
    except Absent:
        return 0


def _flaps(ctx: Context, link: Interface, past: Mapping[str, Any]) -> Iterator[Finding]:
    limits = ctx.limits
    history = advance(
        past.get(link.name), up=link.is_up, downs=link.carrier_losses, now=ctx.host.now(),
        drop_seconds=limits.flap_window_seconds, window_seconds=limits.flap_window_seconds,
    )  # fmt: skip
    ctx.remember["links"][link.name] = history
    returns = len(history["returns"])
    if returns >= limits.flaps:
        yield ctx.warning(
            "NetCarrierFlapping", f"net@{link.name}",
            f"{link.name} lost its link and found it again {returns} times in "
            f"{limits.flap_window_seconds / 3600:g} hours (limit {limits.flaps - 1})",
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _bond(
    ctx: Context, name: str, seen: Mapping[str, Interface], expected: Mapping[str, Any]
) -> Iterator[Finding]:
    try:
        found = bond(ctx.host, name)
    except Absent:
        return  # it was taken down in between
    out = [member for member, takes_part in found.members.items() if not takes_part]
    total = len(found.members)
    if out and name in seen and seen[name].is_enabled:
        states = (f"{m}: {seen[m].operstate}" for m in found.members if m in seen)
        yield ctx.warning(
            "NetBondDegraded", f"net@{name}",
            f"{name} ({found.mode}) runs with {total - len(out)} of {total} members, "
            f"without {' '.join(out)}",
            evidence=tuple(states), remedy=Remedy.INSPECT,
        )  # fmt: skip
    speeds = Counter(s for m in found.members if m in seen and (s := seen[m].speed_bits_per_second))
    fastest = max(speeds, default=0)
    for member in found.members:
        speed = seen[member].speed_bits_per_second if member in seen else None
        if speed and speed < fastest and "speed_bits_per_second" not in expected.get(member, {}):
            yield _slow(ctx, seen[member], f"another member of {name} at {fastest / 1e9:g} Gb/s")


def _errors(ctx: Context, seen: Mapping[str, Interface], hardware: frozenset[str]) -> Iterator[Finding]:
    counted = {
        f"{name} {counter}": n
        for name in seen
        if name in hardware
        for counter, n in errors(ctx.host, name, ctx.unseen).items()
    }
    for key, rate in ctx.rates(counted).items():
        name, _, counter = key.partition(" ")
        if rate.per_second > ctx.limits.errors_per_second:
            yield ctx.warning(
                "NetErrors", f"net@{name}",
                f"{name}: {rate.per_second:.3g} {counter} a second (limit {ctx.limits.errors_per_second:g})",
                remedy=Remedy.INSPECT,
            )  # fmt: skip
