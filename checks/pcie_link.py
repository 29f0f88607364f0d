"""Whether GPUs, network adapters, drives and NVSwitches have the PCIe lanes and the speed that they could."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import NotApplicable, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import gpus
from clustertools.sources.pcie import AMD_GPU, VGA, Bus, Device, bus, generation

#: A node without one of these loses its place in a job; without a drive it is slower.
VITAL = ("gpu", "nic", "nvswitch")
NAMES = {"gpu": "GPU", "nic": "network adapter", "nvme": "NVMe drive", "nvswitch": "NVSwitch",
         "bridge": "PCIe bridge"}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    #: A GPU lowers its generation when it idles. From this utilisation on it does not (own choice; NVIDIA's
    #: documentation of `pcie.link.gen.current` says only that it may be reduced when the GPU is not in use).
    busy_percent: int = 50


@dataclass(frozen=True)
class Shortfall:
    """A link that does less than both its ends can. `sure`: both were seen, and are no software."""

    device: Device
    what: str
    now: float
    possible: float
    sure: bool

    @property
    def code(self) -> str:
        return "PcieWidthReduced" if self.what == "lanes" else "PcieSpeedReduced"

    def __str__(self) -> str:
        name = f"{NAMES[self.device.kind]} {self.device.address}"
        if self.what == "lanes":
            return f"{name}: {self.now:g} PCIe lanes of {self.possible:g}"
        return f"{name}: PCIe generation {generation(self.now)} of {generation(self.possible)}"


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    confirm=2,  # a link that trains anew is narrow for a moment
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "PcieWidthReduced": "a PCIe link runs with fewer lanes than both its ends have",
        "PcieSpeedReduced": "a PCIe link runs at a lower generation than both its ends can",
        "PcieDeviceGone": "a PCIe device that was there since boot is gone",
    },
)
def pcie_link(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares each link's lanes and speed with what both its ends can, and with the same cards of the node.

    `expect["pcie_width"]` and `expect["pcie_generation"]` are those of the GPUs. A GPU's speed is judged only
    while it works. A card that is worse off than most of its kind is critical; lanes that are missing on all
    or on the only one are a warning, and a speed that is low on all is the way the board is set up. In a
    virtual machine the far end is not to be seen: only the kind is compared.
    """
    tree = bus(ctx.host)
    endpoints = tree.endpoints
    if not endpoints:
        raise ctx.skip("no GPU, network adapter or NVMe drive on the PCI bus")
    yield from _gone(ctx, tree, endpoints)
    busy = _busy(ctx, tree)
    seen = [d for d in endpoints if d.link.width]
    if not seen:
        ctx.note("no device tells of its PCIe link (a virtual machine)")
        return
    yield ctx.reading("pcie_links", len(seen))
    bridges = [d for d in tree.by_address.values() if d.kind == "bridge" and d.link.width]
    for what in ("lanes", "speed"):
        judged = [*seen, *_uplinks(bridges)]
        if what == "speed":
            judged = [d for d in judged if _speed_tells(d, busy)]
        yield from _expected(ctx, judged, what)
        short = {d.address: s for d in judged if (s := _shortfall(tree, d, what))}
        for found in short.values():
            if (finding := _judged(ctx, found, judged, short)) is not None:
                yield finding


def _shortfall(tree: Bus, device: Device, what: str) -> Shortfall | None:
    link, port = device.link, tree.port(device)
    now, own = (link.width, link.width_max) if what == "lanes" else (link.speed, link.speed_max)
    if not now or not own:
        return None
    far = None
    if port is not None and not port.virtual:
        far = port.link.width_max if what == "lanes" else port.link.speed_max
    possible = min(own, far) if far else own
    return Shortfall(device, what, now, possible, bool(far)) if now < possible else None


def _judged(
    ctx: Context, found: Shortfall, judged: Sequence[Device], short: dict[str, Shortfall]
) -> Finding | None:
    device = found.device
    kind = [d for d in judged if (d.vendor, d.device, d.kind) == (device.vendor, device.device, device.kind)]
    well = [d for d in kind if d.address not in short]
    evidence: tuple[str, ...] = (f"of {len(kind)} of this kind in the node {len(well)} are well",)
    if device.above:
        evidence += (f"behind {', '.join(device.above)}",)
    if len(well) > len(kind) / 2:
        # a desktop's card may sit in a slot of fewer lanes than its connector has
        vital = device.kind in VITAL and device.pci_class != VGA
        vital |= device.kind == "bridge" and found.sure
        say = ctx.critical if vital else ctx.warning
        return say(
            found.code, device.part, f"{found}, unlike the others", evidence=evidence, remedy=Remedy.INSPECT
        )
    if found.sure and found.what == "lanes":
        return ctx.warning(found.code, device.part, str(found), evidence=evidence, remedy=Remedy.INSPECT)
    ctx.note(f"{found} (all of its kind, or nothing to compare it with)")
    return None


def _expected(ctx: Context, judged: Sequence[Device], what: str) -> Iterator[Finding]:
    wanted = ctx.expect.get("pcie_width" if what == "lanes" else "pcie_generation")
    if wanted is None:
        return
    for device in judged:
        now = device.link.width if what == "lanes" else generation(device.link.speed)
        if device.kind == "gpu" and now and now < wanted:
            words = f"{now} PCIe lanes" if what == "lanes" else f"PCIe generation {now}"
            yield ctx.critical(
                "PcieWidthReduced" if what == "lanes" else "PcieSpeedReduced", device.part,
                f"GPU {device.address}: {words}, {wanted} expected", remedy=Remedy.INSPECT,
            )  # fmt: skip


def _uplinks(bridges: Sequence[Device]) -> list[Device]:
    """The upper ends of switches. A bridge with a link of its own towards the root stands an odd number of
    bridges below it; the others (root ports, lower ends of switches) tell of the link below them."""
    return [b for b in bridges if len(b.above) % 2]


def _speed_tells(device: Device, busy: frozenset[str]) -> bool:
    if device.kind == "gpu":
        return device.address in busy
    # the bridges inside an AMD card go slow with it
    return device.vendor != AMD_GPU


def _busy(ctx: Context, tree: Bus) -> frozenset[str]:
    """The addresses of the GPUs that work now. None where nobody can tell: their lanes are judged anyway."""
    if not any(d.kind == "gpu" for d in tree.endpoints):
        return frozenset()
    try:
        listed = gpus(ctx.host)
    except (Unobservable, NotApplicable):
        ctx.note("whether the GPUs work is not known: the generation of their links was not judged")
        return frozenset()
    least = ctx.limits.busy_percent
    return frozenset(g.pci for g in listed if (g.gpu_utilisation_percent or 0) >= least)


def _gone(ctx: Context, tree: Bus, endpoints: Sequence[Device]) -> Iterator[Finding]:
    """What was seen since boot and is gone; `gpu_count` tells of GPUs where it knows their number."""
    boot = ctx.host.boot_id
    same = ctx.past.get("boot_id") == boot
    known: dict[str, Any] = dict(ctx.past.get("devices") or {}) if same else {}
    for device in endpoints:
        port = tree.port(device)
        real = port is not None and not port.virtual
        known[device.address] = [device.kind, device.part, real]
    ctx.remember.update(boot_id=boot, devices=known)
    here = {d.address for d in endpoints}
    for address, (kind, part, real) in known.items():
        if address in here or (kind == "gpu" and "gpu_count" in ctx.expect):
            continue
        # a virtual machine's host may take an adapter away for its own maintenance
        say = ctx.critical if real and kind in VITAL else ctx.warning
        yield say(
            "PcieDeviceGone", str(part),
            f"{NAMES[str(kind)]} {address} was there since boot and is gone from the PCI bus",
            remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip
