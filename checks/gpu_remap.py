"""Bad rows and pages of GPU memory that were, must be, or cannot be replaced by spare ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus


@dataclass(frozen=True)
class Limits:
    """Counts from which a GPU is reported."""

    #: DCGM's memory test warns from this many rows remapped for uncorrectable errors.
    uncorrectable_rows: int = 512
    #: Banks that may have few spare rows left, or none. No public system judges this; a bank without spare
    #: rows is one whose next bad row cannot be remapped, so the first is worth a look.
    banks_low: int = 0
    banks_none: int = 0
    #: Page retirement (V100 and older): the AWS check watches from 60 pages for single bit errors (the table
    #: holds 63 or 64), DCGM fails from 15 for double bit errors.
    retired_pages_corrected: int = 60
    retired_pages_uncorrected: int = 15


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    timeout_seconds=30.0,
    codes={
        "RemapPending": "a memory row must be remapped, which happens at the next GPU reset",
        "RemapFailed": "a memory row could not be remapped",
        "RemapManyRows": "very many memory rows of a GPU are remapped",
        "RemapHistogramLow": "a memory bank has few or no spare rows left",
        "PagesRetiredPending": "a memory page must be retired, which happens at the next GPU reset",
        "MemoryUnrepairable": "the driver says that a GPU's memory can no longer be repaired",
        "MemoryRepairPending": "a memory channel or a TPC of a GPU is repaired at the next GPU reset",
        "PagesRetiredMany": "the table of retired memory pages is nearly full",
    },
)
def gpu_remap(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads row remapping (A100 and later) or page retirement (V100 and older) of each GPU, and its repairs.

    Whether memory is beyond repair, and which repairs wait for a reset, drivers tell from about 580 on.
    """
    found = gpus(ctx.host)
    fields = (
        "remap_pending", "remap_failed", "remapped_uncorrectable", "remap_histogram",
        "retired_pages_pending", "retired_pages_corrected", "retired_pages_uncorrected",
        "memory_unrepairable", "channel_repair_pending",
    )  # fmt: skip
    if all(g.remap_pending is None and g.retired_pages_pending is None for g in found) and not any(
        g.blind(*fields) for g in found
    ):
        raise ctx.skip(f"{found[0].name or 'this GPU'} neither remaps rows nor retires pages")
    for gpu in found:
        if why := gpu.blind(*fields):
            ctx.unseen(why)
        for name in ("remapped_correctable", "remapped_uncorrectable"):
            if (count := getattr(gpu, name)) is not None:
                yield ctx.reading(f"{name}_rows", count, gpu.part)
        yield from _repairs(ctx, gpu)
        yield from _rows(ctx, gpu)
        yield from _banks(ctx, gpu)
        yield from _pages(ctx, gpu)


def _repairs(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    if gpu.memory_unrepairable:
        # DCGM's diagnostic fails a GPU for this flag
        yield ctx.critical(
            "MemoryUnrepairable", gpu.part, f"GPU {gpu.index}: its memory is damaged beyond repair",
            remedy=Remedy.REPLACE,
        )  # fmt: skip
    pending = [
        name
        for name, waits in (("memory channel", gpu.channel_repair_pending), ("TPC", gpu.tpc_repair_pending))
        if waits
    ]
    if pending:
        yield ctx.warning(
            "MemoryRepairPending", gpu.part,
            f"GPU {gpu.index}: the repair of a {' and a '.join(pending)} waits for a GPU reset",
            remedy=Remedy.DRAIN_AND_RESET,
        )  # fmt: skip


def _rows(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    rows = (
        f"remapped rows: {gpu.remapped_correctable} correctable, {gpu.remapped_uncorrectable} uncorrectable"
    )
    if gpu.remap_failed:
        yield ctx.critical(
            "RemapFailed", gpu.part, f"GPU {gpu.index}: a memory row could not be remapped",
            evidence=(rows,), remedy=Remedy.REPLACE,
        )  # fmt: skip
    if gpu.remap_pending:
        # gpud, gcm and Azure all fail a node for this: the bad row stays in use until the reset
        yield ctx.critical(
            "RemapPending", gpu.part,
            f"GPU {gpu.index}: a row remap waits for a GPU reset; until then its page is set aside",
            evidence=(rows,), remedy=Remedy.DRAIN_AND_RESET,
        )  # fmt: skip
    limit = ctx.limits.uncorrectable_rows
    if gpu.remapped_uncorrectable is not None and gpu.remapped_uncorrectable >= limit:
        yield ctx.warning(
            "RemapManyRows", gpu.part,
            f"GPU {gpu.index}: {gpu.remapped_uncorrectable} rows remapped for uncorrectable errors "
            f"(limit {limit})",
            remedy=Remedy.REPLACE,
        )  # fmt: skip


def _banks(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    banks = gpu.remap_histogram
    if banks and (banks.none > ctx.limits.banks_none or banks.low > ctx.limits.banks_low):
        yield ctx.warning(
            "RemapHistogramLow", gpu.part,
            f"GPU {gpu.index}: {banks.none} memory banks have no spare rows left, {banks.low} few",
            evidence=(
                f"banks by spare rows: max {banks.max}, high {banks.high}, partial {banks.partial}, "
                f"low {banks.low}, none {banks.none}",
            ),
            remedy=Remedy.INSPECT,
        )  # fmt: skip


def _pages(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    corrected, uncorrected = gpu.retired_pages_corrected or 0, gpu.retired_pages_uncorrected or 0
    pages = f"retired pages: {corrected} for single bit, {uncorrected} for double bit errors"
    if gpu.remap_pending is None and gpu.retired_pages_pending:
        yield ctx.critical(
            "PagesRetiredPending", gpu.part,
            f"GPU {gpu.index}: a page retirement waits for a GPU reset; until then the bad page is in use",
            evidence=(pages,), remedy=Remedy.DRAIN_AND_RESET,
        )  # fmt: skip
    limits = ctx.limits
    if corrected > limits.retired_pages_corrected or uncorrected >= limits.retired_pages_uncorrected:
        yield ctx.warning(
            "PagesRetiredMany", gpu.part,
            f"GPU {gpu.index}: {pages} (limits {limits.retired_pages_corrected} and "
            f"{limits.retired_pages_uncorrected})",
            remedy=Remedy.REPLACE,
        )  # fmt: skip
