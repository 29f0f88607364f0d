"""What RDMA needs beside a link: equal firmware, partitions, GIDs, MTU, device files, driver, GPU access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Remedy, pci_address
from clustertools.sources.infiniband import (
    Device,
    Port,
    fabric_devices,
    gid_types,
    optional,
    pkeys,
    ports,
)
from clustertools.sources.mounts import in_container
from clustertools.sources.tools import ibv_devinfo

Pair = tuple[Device, Port]
#: PCI class of an InfiniBand controller (PCI Code and ID Assignment: network controller, 07).
INFINIBAND_CLASS = "0x0207"


@dataclass(frozen=True)
class Limits:
    #: Ports of one card type that must agree before one that differs is held against them; own choice.
    peers: int = 3


@check(
    limits=Limits,
    stages={"preflight", "daily"},
    cost_seconds=0.5,
    codes={
        "IbFirmwareMixed": "an adapter has another firmware than its like, or than its class should have",
        "IbPkeyWrong": "a port is not in the partitions of its like, or of its class",
        "RoceGidMissing": "a RoCE port has no address that RoCE v2 can use",
        "IbMtuLow": "a port sends smaller packets than its like, or than its class should",
        "IbDeviceFileMissing": "an RDMA device cannot be opened by programs",
        "IbDriverMissing": "an InfiniBand adapter on the PCI bus is no RDMA device",
        "GpuDirectMissing": "the adapters cannot read the GPUs' memory: neither nvidia_peermem nor dma-buf",
    },
)
def ib_configuration(ctx: Context) -> Iterator[Finding]:
    """Compares how the adapters are set up with the class, or else with each other.

    Expectations: `ib_firmware` (a version, or a list of those accepted), `ib_pkeys` (a list that each
    InfiniBand port must have), `ib_mtu` (bytes). The MTU is what ibv_devinfo prints, if it is installed.
    """
    found = fabric_devices(ctx.host, ctx.unseen)
    yield from _drivers(ctx, found)
    if not found:
        if ctx.blind:
            return
        raise ctx.skip("no InfiniBand or RoCE adapter")
    active = [(device, port) for device, port in ports(found) if port.is_active]
    yield from _firmware(ctx, found)
    yield from _partitions(ctx, [pair for pair in active if pair[1].link_layer == "InfiniBand"])
    yield from _gids(ctx, [pair for pair in active if pair[1].is_ethernet])
    yield from _mtu(ctx, active)
    yield from _device_files(ctx, found)
    yield from _gpu_direct(ctx)


def _odd(ctx: Context, of: Sequence[tuple[Hashable, Any, Hashable]]) -> Iterator[tuple[Any, Hashable, int]]:
    """Of (group, item, value): the items whose value is not that of most in their group, with it and them."""
    groups: dict[Hashable, list[tuple[Any, Hashable]]] = {}
    for group, item, value in of:
        groups.setdefault(group, []).append((item, value))
    for members in groups.values():
        usual, count = Counter(value for _, value in members).most_common(1)[0]
        if count >= ctx.limits.peers and 2 * count > len(members):
            yield from ((item, usual, count) for item, value in members if value != usual)


def _firmware(ctx: Context, found: list[Device]) -> Iterator[Finding]:
    wanted = ctx.expect.get("ib_firmware")
    if wanted is not None:
        accepted = [str(w) for w in wanted] if isinstance(wanted, list | tuple) else [str(wanted)]
        wrong = [(d, f"expected {' or '.join(accepted)}") for d in found if d.firmware not in accepted]
    else:
        odd = _odd(ctx, [(d.model, d, d.firmware) for d in found if d.firmware])
        wrong = [(d, f"{count} others of its card type have {usual}") for d, usual, count in odd]
    for device, why in wrong:
        yield ctx.warning(
            "IbFirmwareMixed", device.name,
            f"{device.name} has firmware {device.firmware or '(none told)'}, {why}",
            evidence=(device.place, f"card type {device.model}"), remedy=Remedy.INSPECT,
        )  # fmt: skip


def _partitions(ctx: Context, active: list[Pair]) -> Iterator[Finding]:
    keys = {}
    for device, port in active:
        try:
            keys[port] = (device, pkeys(ctx.host, port))
        except Unobservable as exc:
            ctx.unseen(str(exc))
    wanted = ctx.expect.get("ib_pkeys")
    if wanted:
        must = frozenset(int(str(key), 0) for key in wanted)
        wrong = [
            (device, port, f"lacks {_names(must - has)}")
            for port, (device, has) in keys.items()
            if must - has
        ]
    else:
        odd = _odd(ctx, [(d.kind, (d, port, has), has) for port, (d, has) in keys.items()])
        wrong = [
            (d, p, f"is in {_names(has)}, {count} others of its card type in {_names(usual)}")
            for (d, p, has), usual, count in odd
        ]
    for device, port, why in wrong:
        yield ctx.warning(
            "IbPkeyWrong", port.part, f"{port.part} {why}", evidence=(device.place,), remedy=Remedy.INSPECT
        )


def _names(keys: Any) -> str:
    return "partitions " + (" ".join(f"{key:#06x}" for key in sorted(keys)) or "(none)")


def _gids(ctx: Context, active: list[Pair]) -> Iterator[Finding]:
    """A table that is empty belongs to an interface that was given to a container; it is not judged."""
    routable = []
    for device, port in active:
        # "1: CA"; iWARP has node type "4: RNIC" and no such table
        if not optional(ctx.host, f"/sys/class/infiniband/{device.name}/node_type").endswith("CA"):
            continue
        table = gid_types(ctx.host, port)
        second = [gid for kind, gid in table.values() if kind == "RoCE v2"]
        if table and not second:
            kinds = " ".join(sorted({kind for kind, _ in table.values()}))
            yield ctx.warning(
                "RoceGidMissing", port.part, f"{port.part} has no GID of type RoCE v2, only {kinds}",
                evidence=(device.place,), remedy=Remedy.INSPECT,
            )  # fmt: skip
        elif table:
            routable.append((device.kind, (device, port), any(not g.startswith("fe80") for g in second)))
    for (device, port), usual, count in _odd(ctx, routable):
        if usual:
            yield ctx.warning(
                "RoceGidMissing", port.part,
                f"{port.part} has only link-local GIDs (its interface has no IP address), {count} others of "
                "its card type have a routable one",
                evidence=(device.place,), remedy=Remedy.INSPECT,
            )  # fmt: skip


def _mtu(ctx: Context, active: list[Pair]) -> Iterator[Finding]:
    wanted = ctx.expect.get("ib_mtu")
    say: Callable[[str], None] = ctx.unseen if wanted else ctx.note
    try:
        done = ctx.host.run("ibv_devinfo")
        # it fails where there is no /dev/infiniband: in a container without RDMA
        if done.returncode:
            say(f"the MTU is not known: ibv_devinfo failed with exit code {done.returncode}")
            return
    except Absent:
        say("the MTU is not known: ibv_devinfo is not installed")
        return
    told = {
        f"{device['name']}/{port['number']}": port.get("active_mtu_bytes", 0)
        for device in ibv_devinfo.read(done.stdout)["devices"]
        for port in device["ports"]
    }
    known = [(d, p, told[p.part]) for d, p in active if told.get(p.part)]
    if wanted:
        # beside InfiniBand there may be an Ethernet adapter for everything else, with packets of its own size
        layers = {p.link_layer for _, p, _ in known}
        layer = ctx.expect.get("ib_link_layer") or ("InfiniBand" if "InfiniBand" in layers else "Ethernet")
        known = [(d, p, mtu) for d, p, mtu in known if p.link_layer == layer]
        low = [(d, p, mtu, f"should have {wanted:g}") for d, p, mtu in known if mtu < wanted]
    else:
        odd = _odd(ctx, [((d.kind, p.link_layer), (d, p, mtu), mtu) for d, p, mtu in known])
        low = [
            (d, p, mtu, f"{count} others of its card type have {usual}")
            for (d, p, mtu), usual, count in odd
            if mtu < usual
        ]
    for device, port, mtu, why in low:
        yield ctx.warning(
            "IbMtuLow", port.part, f"{port.part} has an MTU of {mtu} bytes, {why}",
            evidence=(device.place,), remedy=Remedy.INSPECT,
        )  # fmt: skip


def _device_files(ctx: Context, found: list[Device]) -> Iterator[Finding]:
    """/dev/infiniband/uverbsN of each device, umadN of those with InfiniBand.

    A container is given what somebody chose for it. issmN is left out: newer boards have none (issue 1716 of
    NVSentinel).
    """
    if in_container(ctx.host):
        ctx.note("/dev is a container's: its RDMA device files are not judged")
        return
    present = {path.rsplit("/", 1)[1] for path in ctx.host.glob("/dev/infiniband/*")}
    lacking: dict[str, list[str]] = {device.name: [] for device in found}
    for kind, folder in (("uverbs", "infiniband_verbs"), ("umad", "infiniband_mad")):
        files: dict[str, list[str]] = {}
        for path in ctx.host.glob(f"/sys/class/{folder}/{kind}*/ibdev"):
            files.setdefault(optional(ctx.host, path), []).append(path.split("/")[-2])
        for device in found:
            if kind == "umad" and not any(p.link_layer == "InfiniBand" for p in device.ports):
                continue
            names = files.get(device.name, [])
            lacking[device.name] += [f"/dev/infiniband/{name}" for name in names if name not in present]
            if not names:
                lacking[device.name].append(f"a {kind} device (is the module ib_{kind} loaded?)")
    for device in found:
        if lacking[device.name]:
            yield ctx.warning(
                "IbDeviceFileMissing", device.name, f"{device.name} lacks {', '.join(lacking[device.name])}",
                evidence=(device.place,), remedy=Remedy.INSPECT,
            )  # fmt: skip


def _drivers(ctx: Context, found: list[Device]) -> Iterator[Finding]:
    known = {device.pci for device in found}
    for path in ctx.host.glob("/sys/bus/pci/devices/*/class"):
        # 0x020700
        if not optional(ctx.host, path).startswith(INFINIBAND_CLASS):
            continue
        folder = path.rsplit("/", 1)[0]
        address = pci_address(folder.rsplit("/", 1)[1])
        if address in known or ctx.blind or in_container(ctx.host):
            continue
        about = optional(ctx.host, f"{folder}/uevent")
        # a function that is there to be given to a virtual machine, or was given
        if "DRIVER=vfio" in about or "DRIVER=pci-stub" in about or ctx.host.glob(f"{folder}/physfn"):
            continue
        driver = next((x[7:] for x in about.splitlines() if x.startswith("DRIVER=")), "")
        said = f"its driver is {driver}" if driver else "it has no driver"
        yield ctx.warning(
            "IbDriverMissing", f"pci@{address}",
            f"the InfiniBand adapter at {address} is no RDMA device: {said}", remedy=Remedy.INSPECT,
        )  # fmt: skip


def _gpu_direct(ctx: Context) -> Iterator[Finding]:
    version = optional(ctx.host, "/proc/driver/nvidia/version")
    # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build
    # the open module exports GPU memory as dma-buf, which NCCL takes by itself; the closed one does not
    if not version or "Open Kernel Module" in version:
        return
    if not any(optional(ctx.host, f"/sys/module/{n}/initstate") for n in ("nvidia_peermem", "nv_peer_mem")):
        yield ctx.warning(
            "GpuDirectMissing", "rdma",
            "the module nvidia_peermem is not loaded, and the closed NVIDIA driver has no dma-buf: traffic "
            "between GPU and adapter goes through main memory",
            remedy=Remedy.INSPECT,
        )  # fmt: skip
