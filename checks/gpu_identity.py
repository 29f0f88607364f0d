"""What the GPUs of a node are and which firmware they run: as expected, and all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, alike, gpus, nvml


@dataclass(frozen=True)
class Limits:
    """How much less memory than expected a GPU may have."""

    #: ECC on older cards (6 % of V100's and T4's GDDR), MIG and what the driver reserves all take from it.
    memory_missing_ratio: float = 0.10


#: What must be the same on GPUs of one model, by the code that says that it is not. Imbue's cluster-health
#: and gcm compare the VBIOS so; DCGM's configuration check the infoROM's image.
FIRMWARE = (
    ("vbios", "VBIOS", "GpuVbiosMismatch"),
    ("inforom", "infoROM image", "GpuFirmwareMismatch"),
    ("gsp_firmware", "GSP firmware", "GpuFirmwareMismatch"),
)


@check(
    limits=Limits,
    stages={"preflight", "watch"},
    timeout_seconds=30.0,
    codes={
        "GpuModelMismatch": "a GPU is not the model that it should be, or has less memory",
        "GpuVbiosMismatch": "a GPU's VBIOS is not the expected one, or not that of its peers",
        "GpuFirmwareMismatch": "a GPU's infoROM image or GSP firmware is not that of its peers",
        "GpuDriverVersion": "the NVIDIA driver is not of the expected version",
        "GpuInforomCorrupted": "the checksums of a GPU's infoROM are wrong",
    },
)
def gpu_identity(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares model, memory size, VBIOS, infoROM, GSP firmware and driver with what should be, and peers.

    Expected are `gpu_name`, `gpu_memory_bytes`, `gpu_vbios` (one or a list) and `gpu_driver_version` (one, or
    its beginning: "570" or "570.133"). Peers are GPUs of one model and board maker.
    """
    found = gpus(ctx.host)
    yield from _driver(ctx)
    for gpu in found:
        if why := gpu.blind("name", "vbios", "inforom_valid", "memory_total_bytes"):
            ctx.unseen(why)
        yield from _model(ctx, gpu)
        if gpu.inforom_valid is False:
            yield ctx.warning(
                "GpuInforomCorrupted", gpu.part,
                f"GPU {gpu.index}: its infoROM is corrupt: serial number and ECC history may be wrong",
                remedy=Remedy.REPLACE,
            )  # fmt: skip
    for field, title, code in FIRMWARE:
        if field == "vbios" and "gpu_vbios" in ctx.expect:
            yield from _expected_vbios(ctx, found)
            continue
        for group in alike(found):
            yield from _odd(ctx, group, field, title, code)


def _driver(ctx: Context) -> Iterator[Finding]:
    wanted = ctx.expect.get("gpu_driver_version")
    driver = nvml(ctx.host).driver
    if driver:
        ctx.note(f"driver {driver}")
    if wanted is None or driver is None:
        return
    accepted = [str(w) for w in (wanted if isinstance(wanted, list) else [wanted])]
    if not any(driver == w or driver.startswith(f"{w}.") for w in accepted):
        yield ctx.warning(
            "GpuDriverVersion",
            "",
            f"driver {driver}, expected {' or '.join(accepted)}",
            remedy=Remedy.INSPECT,
        )


def _model(ctx: Context, gpu: Gpu) -> Iterator[Finding]:
    wrong = []
    name = ctx.expect.get("gpu_name")
    if name and gpu.name and str(name).casefold() not in gpu.name.casefold():
        wrong.append(f"it is a {gpu.name}, expected {name}")
    size, total = ctx.expect.get("gpu_memory_bytes"), gpu.memory_total_bytes
    # MIG instances may have taken the memory; a vGPU has its profile's
    if size and total is not None and total < size * (1 - ctx.limits.memory_missing_ratio):
        wrong.append(f"it has {total / 2**30:.1f} GiB of memory, expected {size / 2**30:.1f} GiB")
    if wrong:
        yield ctx.warning(
            "GpuModelMismatch", gpu.part, f"GPU {gpu.index}: {'; '.join(wrong)}", remedy=Remedy.INSPECT
        )


def _expected_vbios(ctx: Context, found: list[Gpu]) -> Iterator[Finding]:
    wanted = ctx.expect["gpu_vbios"]
    accepted = {str(w).upper() for w in (wanted if isinstance(wanted, list) else [wanted])}
    for gpu in found:
        if gpu.vbios and gpu.vbios.upper() not in accepted:
            yield ctx.warning(
                "GpuVbiosMismatch", gpu.part,
                f"GPU {gpu.index}: VBIOS {gpu.vbios}, expected {' or '.join(sorted(accepted))}",
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _odd(ctx: Context, group: list[Gpu], field: str, title: str, code: str) -> Iterator[Finding]:
    values = Counter(value for g in group if (value := getattr(g, field)))
    if len(values) < 2:
        return
    (common, count), *_ = values.most_common()
    listing = tuple(f"GPU {g.index} ({g.pci}): {title} {getattr(g, field)}" for g in group)
    if count * 2 <= sum(values.values()):
        summary = f"the {group[0].name} of this node have {len(values)} different versions of {title}"
        yield ctx.warning(code, field, summary, evidence=listing, remedy=Remedy.INSPECT)
        return
    for gpu in group:
        value = getattr(gpu, field)
        if value and value != common:
            yield ctx.warning(
                code, gpu.part, f"GPU {gpu.index}: {title} {value}, {count} of {len(group)} have {common}",
                evidence=listing, remedy=Remedy.INSPECT,
            )  # fmt: skip
