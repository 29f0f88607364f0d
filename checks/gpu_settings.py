"""Modes and limits that somebody may have set on a GPU: persistence, MIG, compute mode, clocks, power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, alike, gpus


@dataclass(frozen=True)
class Limits:
    """How far below what should be a setting may be."""

    #: Power limits are told in steps of a few watts.
    power_limit_ratio: float = 0.98
    #: Clocks come in steps of 15 MHz.
    clock_slack_mhz: float = 15.0


SEEN = ("persistence", "mig_enabled", "compute_mode", "power_limit_watts", "application_sm_clock_mhz")


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    confirm=2,
    timeout_seconds=30.0,
    codes={
        "GpuPersistenceOff": "persistence mode is off: the driver unloads the GPU's state between jobs",
        "GpuMigMode": "MIG mode is not the expected one, or a change of it waits for a GPU reset",
        "GpuComputeMode": "the compute mode is not the expected one, or lets no process compute",
        "GpuClockLimited": "application or maximum clock of a GPU is lower than it should be",
        "GpuPowerLimited": "the power limit of a GPU is lower than it should be",
    },
)
def gpu_settings(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares settings with what is expected; without an expectation with the peers and the card's defaults.

    Expected are `gpu_persistence`, `gpu_mig`, `gpu_compute_mode`, `gpu_sm_clock_max_mhz` and
    `gpu_power_limit_watts`. A power limit that all GPUs share is somebody's decision and only a note. Locked
    clocks (nvidia-smi -lgc) no driver tells; `gpu_balance` sees a GPU that is slower than its peers.
    """
    found = gpus(ctx.host)
    for gpu in found:
        if why := gpu.blind(*SEEN):
            ctx.unseen(why)
        if gpu.power_limit_watts is not None:
            yield ctx.reading("power_limit_watts", gpu.power_limit_watts, gpu.part)
        yield from _mig(ctx, gpu)
        yield from _compute_mode(ctx, gpu)
        yield from _clocks(ctx, gpu)
    yield from _persistence(ctx, found)
    yield from _power(ctx, found)


def _persistence(ctx: Context, found: list[Gpu]) -> Iterator[Finding]:
    wanted = ctx.expect.get("gpu_persistence")
    if wanted is None:
        # a desktop or a cloud machine with one card does without; gpud and the AWS check fail any that is off
        on = {id(g) for group in alike(found) if any(g.persistence for g in group) for g in group}
        linked = {id(g) for g in found if len(found) > 1 and any(link.active for link in g.nvlinks)}
        judged = [g for g in found if id(g) in on | linked]
    else:
        judged = found if wanted else []
    for gpu in judged:
        if gpu.persistence is False:
            yield ctx.warning(
                "GpuPersistenceOff", gpu.part,
                f"GPU {gpu.index}: persistence mode is off: first use takes seconds, ECC counts are lost",
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _mig(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    wanted = ctx.expect.get("gpu_mig")
    words = {True: "on", False: "off"}
    said = ""
    if gpu.mig_enabled is not None and wanted is not None and gpu.mig_enabled != bool(wanted):
        said = f"MIG mode is {words[gpu.mig_enabled]}, expected {words[bool(wanted)]}"
    elif gpu.mig_pending is not None and gpu.mig_pending != gpu.mig_enabled:
        said = f"MIG mode will be {words[gpu.mig_pending]} after the next GPU reset"
    if said:
        yield ctx.warning("GpuMigMode", gpu.part, f"GPU {gpu.index}: {said}", remedy=Remedy.RESET_GPU)


def _compute_mode(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    wanted, mode = ctx.expect.get("gpu_compute_mode"), gpu.compute_mode
    if mode is None or (mode != "prohibited" if wanted is None else mode == str(wanted).lower()):
        return
    said = "lets no process compute" if wanted is None else f"is not {wanted}"
    yield ctx.warning(
        "GpuComputeMode", gpu.part, f"GPU {gpu.index}: compute mode {mode} {said}", remedy=Remedy.INSPECT
    )


def _clocks(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    said, slack = [], ctx.limits.clock_slack_mhz
    wanted, top = ctx.expect.get("gpu_sm_clock_max_mhz"), gpu.sm_clock_max_mhz
    if wanted is not None and top is not None and top < wanted - slack:
        said.append(f"its SM clock can reach {top} MHz, expected {wanted} MHz")
    clock, default = gpu.application_sm_clock_mhz, gpu.application_sm_clock_default_mhz
    if clock is not None and default is not None and clock < default - slack:
        said.append(f"its application clock is set to {clock} MHz, by default it is {default} MHz")
    if said:
        yield ctx.warning(
            "GpuClockLimited", gpu.part, f"GPU {gpu.index}: {'; '.join(said)}", remedy=Remedy.INSPECT
        )


def _power(ctx: Context, found: list[Gpu]) -> Iterator[Finding]:
    ratio = ctx.limits.power_limit_ratio
    wanted = ctx.expect.get("gpu_power_limit_watts")
    for group in alike(found):
        known = [g for g in group if g.power_limit_watts is not None]
        if not known:
            continue
        usual = Counter(g.power_limit_watts or 0.0 for g in known).most_common(1)[0][0]
        for gpu in known:
            limit = gpu.power_limit_watts or 0.0
            should, whose = (usual, "its peers have") if wanted is None else (float(wanted), "expected")
            if limit < should * ratio:
                yield ctx.warning(
                    "GpuPowerLimited", gpu.part,
                    f"GPU {gpu.index}: power limit {limit:.0f} W, {whose} {should:.0f} W",
                    remedy=Remedy.INSPECT,
                )  # fmt: skip
        default = known[0].power_default_limit_watts
        if wanted is None and default and usual < default * ratio:
            ctx.note(
                f"the power limit of the {known[0].name} is {usual:.0f} W, by default it is {default:.0f} W"
            )
