"""Whether PCIe switches send traffic between GPUs and adapters the long way, over the root (ACS)."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.lspci import acs
from clustertools.sources.pcie import Bus, bus

#: These send a transfer from one device below a switch to another up to the root. NVIDIA's NCCL guide
#: (troubleshooting, PCI Access Control Services) looks for SrcValid, which is set together with them.
REDIRECT = {"ReqRedir", "CmpltRedir", "UpstreamFwd"}
BRIDGES = ("lspci", "-D", "-vvv", "-d", "*:*:0604")


@check(
    stages={"preflight", "daily"},
    needs={"root"},
    cost_seconds=0.5,
    codes={"PcieAcsRedirect": "a PCIe switch sends peer-to-peer traffic of GPUs over the root (ACS is on)"},
)
def pcie_acs(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads the ACS controls of the lower ends of those switches that a GPU shares with another device.

    GPUDirect RDMA between a GPU and the adapter beside it then takes a detour and loses most of its
    bandwidth. Hosts of virtual machines need ACS, and a virtual machine cannot change it: neither is a fault,
    and the latter is skipped.
    """
    ports = _shared(bus(ctx.host))
    if not ports:
        raise ctx.skip("no GPU shares a PCIe switch with another device, as far as this machine shows")
    try:
        done = ctx.host.run(*BRIDGES, timeout_seconds=10.0).check()
    except Absent:
        raise ctx.skip("lspci is not installed") from None
    bridges, denied = acs(done.stdout)
    if hidden := [port for port in ports if port in denied]:
        raise Unobservable(f"lspci tells the capabilities of {hidden[0]} to root only")
    on = {port: REDIRECT & set(bridges.get(port) or ()) for port in ports}
    on = {port: controls for port, controls in on.items() if controls}
    yield ctx.reading("pcie_acs_redirecting_ports", len(on))
    if on:
        yield ctx.warning(
            "PcieAcsRedirect", "",
            f"ACS is on at {len(on)} of {len(ports)} ports of the PCIe switches that GPUs share",
            evidence=tuple(f"{port}: {', '.join(sorted(on[port]))}" for port in sorted(on))[:16],
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _shared(tree: Bus) -> list[str]:
    """The lower ports of switches below which there are a GPU and something else."""
    below: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {}
    for device in tree.endpoints:
        # root port, upper end, lower end: a device behind a switch has at least three bridges above it
        if len(device.above) < 3 or (port := tree.port(device)) is None or port.virtual:
            continue
        upper = device.above[1]
        below.setdefault(upper, []).append(port.address)
        kinds.setdefault(upper, set()).add(device.kind)
    return sorted(
        {port for upper, ports in below.items() if "gpu" in kinds[upper] and len(ports) > 1 for port in ports}
    )
