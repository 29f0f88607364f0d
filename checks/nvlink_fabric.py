"""Whether the GPUs have joined the NVLink fabric, it is well, and each can reach the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus
from clustertools.sources.pci import nvswitches

#: Fields of the health mask, two bits each, 1 is yes (NVML_GPU_FABRIC_HEALTH_MASK_* in nvml.h).
DEGRADED, RECOVERING, UNHEALTHY, TIMEOUT = 0, 2, 4, 6
#: Four bits from here: why the GPU is set up wrongly; 0 is not told, 1 is "it is not".
CONFIGURATION_SHIFT = 8
CONFIGURATIONS = {
    2: "wrong system GUID", 3: "wrong chassis serial number", 4: "no partition", 5: "too few NVLinks",
    6: "incompatible GPU firmware", 7: "invalid location", 8: "invalid GPU state",
}  # fmt: skip
#: nvmlReturn_t that fabrics are known to end with.
STATUSES = {23: "insufficient resources", 999: "unknown error", 3: "not supported", 10: "timeout"}
FIELDS = ("fabric_state", "fabric_status", "fabric_health_mask", "fabric_clique")


@check(
    stages={"preflight", "watch", "prolog"},
    confirm=3,  # after a boot or a reset the GPUs need up to minutes to register
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "FabricNotReady": "a GPU has not registered with the NVLink fabric, or failed to",
        "FabricUnhealthy": "a GPU's path through the NVLink fabric is broken or degraded",
        "FabricRecovering": "the NVLink fabric recovers a route of a GPU",
        "FabricSplit": "GPUs of one node belong to different NVLink domains or cliques",
        "NvlinkPeerUnreachable": "a GPU with NVLinks cannot reach other GPUs of the node over them",
    },
)
def nvlink_fabric(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads the fabric state of each GPU, its health mask and summary, its domain, and peer-to-peer status.

    GPUs without a fabric (PCIe cards, bridged pairs, A100 and before) have no state and are judged by their
    peers only. gpud asks for state completed, status success and a healthy summary; Azure also for a domain
    and clique on machines whose fabric spans nodes, for GPUs had passed an earlier test in "Insufficient
    Resources".
    """
    listed = gpus(ctx.host)
    for gpu in listed:
        if why := gpu.blind(*FIELDS):
            ctx.unseen(why)
    fabric = [g for g in listed if g.fabric_state not in (None, "not_supported") and not g.mig_enabled]
    linked = [g for g in listed if g.nvlink_peers and not g.mig_enabled]
    if not fabric and not linked and not ctx.blind:
        raise ctx.skip("no NVLink fabric, and no GPUs that are linked")
    for gpu in fabric:
        yield from _state(ctx, gpu)
        yield from _health(ctx, gpu)
    yield from _split(ctx, [g for g in fabric if g.fabric_state == "completed"])
    yield from _peers(ctx, linked, len(listed))


def _state(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    if gpu.fabric_state != "completed":
        said = f"state {gpu.fabric_state}".replace("_", " ")
    elif gpu.fabric_status:
        said = f"it ended with {STATUSES.get(gpu.fabric_status, f'error {gpu.fabric_status}')}"
    else:
        return
    yield ctx.critical(
        "FabricNotReady", gpu.part,
        f"GPU {gpu.index}: not registered with the NVLink fabric, {said}: CUDA does not start",
        remedy=Remedy.REBOOT_NODE,
    )  # fmt: skip


def _health(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    mask = gpu.fabric_health_mask or 0

    def yes(shift: int) -> bool:
        return mask >> shift & 3 == 1

    wrong = ["its bandwidth is degraded"] if yes(DEGRADED) else []
    wrong += ["a route is unhealthy"] if yes(UNHEALTHY) else []
    configuration = mask >> CONFIGURATION_SHIFT & 0xF
    if configuration > 1:
        wrong.append(f"set up wrongly: {CONFIGURATIONS.get(configuration, f'reason {configuration}')}")
    if gpu.fabric_health in ("unhealthy", "limited_capacity") and not wrong:
        wrong.append(f"the summary is {gpu.fabric_health.replace('_', ' ')}")
    evidence = (f"health mask {mask:#x}, summary {gpu.fabric_health or 'not told'}",)
    if wrong:
        yield ctx.critical(
            "FabricUnhealthy", gpu.part, f"GPU {gpu.index}: in the NVLink fabric {', '.join(wrong)}",
            evidence=evidence, remedy=Remedy.DRAIN_AND_RESET,
        )  # fmt: skip
    if yes(RECOVERING) or yes(TIMEOUT):
        what = "a route recovers" if yes(RECOVERING) else "it recovers from an access that timed out"
        yield ctx.warning(
            "FabricRecovering", gpu.part, f"GPU {gpu.index}: in the NVLink fabric {what}", evidence=evidence
        )


def _split(ctx: Context, registered: Sequence[Gpu]) -> Iterator[Finding]:
    """All GPUs of a node are of one domain and clique; no UUID where the fabric ends at the node."""
    homes = Counter((g.fabric_cluster, g.fabric_clique) for g in registered if g.fabric_cluster is not None)
    if len(homes) < 2:
        return
    usual = homes.most_common(1)[0][0]
    for gpu in registered:
        if gpu.fabric_cluster is not None and (gpu.fabric_cluster, gpu.fabric_clique) != usual:
            yield ctx.critical(
                "FabricSplit", gpu.part,
                f"GPU {gpu.index}: of another NVLink domain or clique than most GPUs of this node",
                evidence=(f"domain {gpu.fabric_cluster or 'none'}, clique {gpu.fabric_clique}",
                          f"the others: domain {usual[0] or 'none'}, clique {usual[1]}"),
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _peers(ctx: Context, linked: Sequence[Gpu], count: int) -> Iterator[Finding]:
    """Behind NVSwitches each GPU reaches all; in other wirings at least one, when the others do."""
    switched = bool(nvswitches(ctx.host)) or any(g.fabric_state == "completed" for g in linked)
    # switched off on purpose, by a setting of the driver
    linked = [g for g in linked if "disabled_by_regkey" not in (g.nvlink_peers or ())]
    reaching = [g for g in linked if "ok" in (g.nvlink_peers or ())]
    if switched and not reaching and len(linked) > 1:
        yield ctx.critical(
            "NvlinkPeerUnreachable", "", f"none of the {count} GPUs can reach another over NVLink",
            evidence=tuple(f"GPU {g.index}: {', '.join(sorted(set(g.nvlink_peers or ())))}" for g in linked),
            remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip
        return
    away: dict[int, list[int]] = {}
    members = {g.index for g in linked}
    for gpu in linked:
        told = gpu.nvlink_peers or ()
        # a lost GPU is unknown to all, and has its own finding; in MIG mode it is out of reach by design
        far = [n for n, said in enumerate(told) if said not in ("ok", "self", "unknown") and n in members]
        if far and (switched or (gpu not in reaching and len(reaching) > len(linked) / 2)):
            away[gpu.index] = far
    # a GPU that none can reach is told, not the others that cannot reach it
    guilty = [n for n, far in away.items() if len(far) > (len(linked) - 1) / 2] or list(away)
    for gpu in (g for g in linked if g.index in guilty):
        told = gpu.nvlink_peers or ()
        yield ctx.critical(
            "NvlinkPeerUnreachable", gpu.part,
            f"GPU {gpu.index}: cannot reach {len(away[gpu.index])} of the other GPUs over NVLink",
            evidence=tuple(f"GPU {n}: {told[n].replace('_', ' ')}" for n in away[gpu.index]),
            remedy=Remedy.RESET_GPU,
        )  # fmt: skip
