"""What the driver itself asks to be done about each GPU."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import gpus

#: NVML's recovery actions (nvml.h, NVML_GPU_RECOVERY_ACTION_*) in the words of this house.
REMEDIES = {
    "gpu_reset": Remedy.RESET_GPU,
    "node_reboot": Remedy.REBOOT_NODE,
    # its peers must stop their peer-to-peer traffic before it can be reset
    "drain_p2p": Remedy.DRAIN_AND_RESET,
    # it works at reduced capacity: no new work, then a reset
    "drain_and_reset": Remedy.DRAIN_AND_RESET,
    "recover_imex_domain": Remedy.INSPECT,
    "bus_reset": Remedy.DRAIN_AND_RESET,
    "system_reboot": Remedy.REBOOT_NODE,
}


@check(
    stages={"preflight", "watch", "prolog"},
    timeout_seconds=30.0,
    codes={
        "GpuRecoveryAction": "the driver asks for a reset, a reboot or a drain because of a GPU",
        "GpuResetRequired": "a GPU refuses calls until it is reset",
    },
)
def gpu_recovery(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads each GPU's recovery action (drivers from 570 on) and takes the driver at its word.

    DCGM's background health does not look at it (NVIDIA/DCGM issue 263), so a GPU may wait for a reset that
    nobody hears of.
    """
    found = gpus(ctx.host)
    told = [g.recovery_action for g in found]
    if all(a is None for a in told) and not any(g.blind("recovery_action") for g in found):
        raise ctx.skip("this driver does not tell recovery actions (from 570 on)")
    for gpu in found:
        if gpu.error and gpu.error.name == "RESET_REQUIRED":
            yield ctx.critical(
                "GpuResetRequired", gpu.part,
                f"GPU {gpu.index} refuses calls until it is reset ({gpu.error})",
                remedy=Remedy.RESET_GPU,
            )  # fmt: skip
        elif why := gpu.blind("recovery_action"):
            ctx.unseen(why)
        if gpu.recovery_action not in (None, "none"):
            action = str(gpu.recovery_action)
            name = f"{action}, which is not known here" if action.isdigit() else action.replace("_", " ")
            yield ctx.critical(
                "GpuRecoveryAction", gpu.part, f"GPU {gpu.index}: the driver asks for recovery: {name}",
                remedy=REMEDIES.get(action, Remedy.INSPECT),
            )  # fmt: skip
