"""Whether fabric manager runs where there are NVSwitches, and all of these are there."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.fabric_manager import PROCESS, runs, unit
from clustertools.sources.pci import nvidia_devices, nvswitches

UNIT = "nvidia-fabricmanager.service"


@check(
    stages={"preflight", "watch", "prolog"},
    confirm=2,  # a restart takes seconds
    codes={
        "FabricManagerDown": "there are NVSwitches and fabric manager does not run: CUDA does not start",
        "NvswitchMissing": "fewer NVSwitches on the PCI bus than this class of node has",
    },
)
def fabric_manager(ctx: Context) -> Iterator[Finding | Reading]:
    """Asks systemd for nvidia-fabricmanager on machines whose PCI bus shows NVSwitches.

    Elsewhere (PCIe cards, HGX B200 whose switches the host does not see) only when `expect["fabric_manager"]`
    says so; false there means that something else configures the switches. `expect["nvswitches"]` is their
    number. Fabric manager may also run in a container: then its process is seen, not its unit.
    """
    switches = nvswitches(ctx.host)
    expected = ctx.expect.get("nvswitches")
    wanted = ctx.expect.get("fabric_manager")
    ours = ctx.expect.get("gpu_count") != 0 and bool(nvidia_devices(ctx.host))
    if not switches and not expected and not wanted:
        raise ctx.skip("no NVSwitch on the PCI bus")
    yield ctx.reading("nvswitch_pci_devices", len(switches))
    if expected is not None and len(switches) < expected:
        yield ctx.critical(
            "NvswitchMissing", "", f"{len(switches)} NVSwitches on the PCI bus, {expected} expected",
            evidence=switches, remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip
    if wanted is False or not (ours or wanted):
        ctx.note("fabric manager is not looked for here")
        return
    try:
        service = unit(ctx.host, UNIT)
    except Absent as exc:
        if runs(ctx.host, PROCESS):
            return
        if wanted is None:
            # in a container its process is out of sight; nvlink_fabric sees what it did
            ctx.note(f"{exc}, and no process {PROCESS} is to be seen")
            return
        yield _down(ctx, f"{exc}, and no process {PROCESS} runs")
        return
    if service.active or runs(ctx.host, PROCESS):
        return
    yield _down(ctx, service.state if service.known else "it is not installed")


def _down(ctx: Context, state: str) -> Finding:
    return ctx.critical(
        "FabricManagerDown", "", f"fabric manager does not run: {state}",
        evidence=(f"systemctl status {UNIT}",), remedy=Remedy.INSPECT,
    )  # fmt: skip
