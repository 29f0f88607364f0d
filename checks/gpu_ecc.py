"""Memory errors that the GPUs counted since their driver was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus


@dataclass(frozen=True)
class Limits:
    """Counts above which a GPU is reported."""

    #: Any is one too many: the process that touched it was killed. gcm, Imbue's cluster-health, Google's
    #: Cluster Health Scanner and the AWS check all fail at the first.
    uncorrected_volatile: int = 0
    #: Over the card's life, in SRAM, which cannot be remapped: above 4 the card goes back (the book
    #: "Machine Learning Engineering" by Stas Bekman, quoting NVIDIA's RMA rule).
    sram_uncorrected_aggregate: int = 4
    #: gcm (facebookresearch/gcm), check_nvidia_smi.
    corrected_volatile: int = 50_000_000
    #: Azure/azurehpc-health-checks, the conf files of all its GPU machines.
    dram_corrected_volatile: int = 20_000_000
    sram_corrected_volatile: int = 10_000


COUNTERS = (
    "ecc_uncorrected_volatile",
    "ecc_corrected_volatile",
    "ecc_dram_corrected_volatile",
    "ecc_sram_corrected_volatile",
    "ecc_uncorrected_aggregate",
    "ecc_sram_uncorrected_aggregate",
)


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    timeout_seconds=30.0,
    codes={
        "EccUncorrected": "a GPU reported an uncorrectable memory error since driver load",
        "EccSramThreshold": "a GPU's SRAM had more uncorrectable errors than the maker accepts",
        "EccCorrectedHigh": "a GPU corrects memory errors at a rate that precedes failure",
        "EccDisabled": "ECC is off on a GPU that has it on by default",
        "EccModePending": "ECC is on and will be off after the next GPU reset",
    },
)
def gpu_ecc(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares each GPU's ECC counters with their limits; cards without ECC have nothing to report.

    Whether ECC should be on is what `expect["ecc"]` says, or else the card's own default (off on
    workstation cards), or else what the other GPUs of the node have.
    """
    found = gpus(ctx.host)
    if all(g.ecc_enabled is None and not g.blind("ecc_enabled") for g in found):
        raise ctx.skip(f"{found[0].name or 'this GPU'} has no ECC")
    some_have_it = any(g.ecc_enabled for g in found)
    for gpu in found:
        if why := gpu.blind("ecc_enabled", *COUNTERS):
            ctx.unseen(why)
        for name in COUNTERS:
            count = getattr(gpu, name)
            if count is not None:
                yield ctx.reading(f"{name}_errors_total", count, gpu.part)
        yield from _uncorrected(ctx, gpu)
        yield from _corrected(ctx, gpu)
        wanted = ctx.expect.get("ecc", gpu.ecc_default)
        if gpu.ecc_enabled and gpu.ecc_pending is False and ctx.expect.get("ecc") is not False:
            yield ctx.warning(
                "EccModePending", gpu.part, f"GPU {gpu.index}: ECC is on, but off after the next reset",
                remedy=Remedy.INSPECT,
            )  # fmt: skip
        if gpu.ecc_enabled is False and (some_have_it if wanted is None else wanted):
            pending = ", on after the next reset" if gpu.ecc_pending else ""
            yield ctx.warning(
                "EccDisabled", gpu.part,
                f"GPU {gpu.index}: ECC is off{pending}, memory errors pass unseen into the results",
                remedy=Remedy.RESET_GPU if gpu.ecc_pending else Remedy.INSPECT,
            )  # fmt: skip


def _uncorrected(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    count = gpu.ecc_uncorrected_volatile
    if count is not None and count > ctx.limits.uncorrected_volatile:
        yield ctx.critical(
            "EccUncorrected", gpu.part,
            f"GPU {gpu.index}: {count} uncorrectable memory errors since driver load "
            f"(limit {ctx.limits.uncorrected_volatile})",
            evidence=_places(gpu), remedy=Remedy.RESET_GPU,
        )  # fmt: skip
    total, limit = gpu.ecc_sram_uncorrected_aggregate, ctx.limits.sram_uncorrected_aggregate
    if gpu.ecc_sram_threshold_exceeded or (total is not None and total > limit):
        said = (
            "the driver's own threshold is exceeded" if gpu.ecc_sram_threshold_exceeded else f"limit {limit}"
        )
        yield ctx.critical(
            "EccSramThreshold", gpu.part,
            f"GPU {gpu.index}: {total if total is not None else 'too many'} uncorrectable SRAM errors "
            f"in its life ({said})",
            remedy=Remedy.REPLACE,
        )  # fmt: skip


def _corrected(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    over = []
    for name in ("corrected_volatile", "dram_corrected_volatile", "sram_corrected_volatile"):
        count, limit = getattr(gpu, f"ecc_{name}"), getattr(ctx.limits, name)
        if count is not None and count > limit:
            place = name.split("_")[0].upper() if not name.startswith("corrected") else "memory"
            over.append(f"{count} corrected {place} errors (limit {limit})")
    if over:
        yield ctx.warning(
            "EccCorrectedHigh", gpu.part, f"GPU {gpu.index}: {', '.join(over)} since driver load",
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _places(gpu: Gpu) -> tuple[str, ...]:
    counts = (("DRAM", gpu.ecc_dram_uncorrected_volatile), ("SRAM", gpu.ecc_sram_uncorrected_volatile))
    return tuple(f"uncorrected volatile {place}: {count}" for place, count in counts if count)
