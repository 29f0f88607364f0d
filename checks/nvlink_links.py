"""Whether the NVLinks of the GPUs are up, all of them, at their speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.nvidia import Gpu, gpus
from clustertools.sources.pci import nvswitches


@dataclass(frozen=True)
class Limits:
    #: NVML rounds: it says 26.562 GB/s of an H100's 26.5625, 53.125 of a B200's. The next lower rate of any
    #: generation is far more than this below.
    speed_slack_ratio: float = 0.02


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    confirm=2,  # links train anew for a moment when a GPU is reset
    timeout_seconds=30.0,
    cost_seconds=0.6,
    codes={
        "NvlinkDown": "an NVLink that should be up is not, or none of a node with NVSwitches is",
        "NvlinkSlow": "an NVLink runs below the speed of its node class or of the other links",
    },
)
def nvlink_links(ctx: Context) -> Iterator[Finding | Reading]:
    """Counts each GPU's active NVLinks and compares their number and speed with what they should be.

    That is `expect["nvlinks_per_gpu"]` and `expect["nvlink_bytes_per_second"]` (of one link, one way), or
    else what most GPUs of the same kind in the node have. Links that are down by design are no finding: a
    pair of PCIe cards bridges 12 of its 18, cards without a bridge have none, and MIG switches them off.
    """
    listed = gpus(ctx.host)
    found = []
    for gpu in listed:
        if why := gpu.blind("nvlinks", "nvlink_replay_errors"):
            ctx.unseen(why)
        elif gpu.mig_enabled:
            ctx.note(f"GPU {gpu.index}: in MIG mode NVLink is off")
        elif gpu.nvlinks:
            found.append(gpu)
    if not found:
        if ctx.blind:
            return
        raise ctx.skip(f"{listed[0].name or 'this GPU'} has no NVLink in use")
    for gpu in found:
        yield ctx.reading("nvlinks_active", _active(gpu), gpu.part)
    yield from _down(ctx, found)
    yield from _slow(ctx, found)


def _active(gpu: Gpu) -> int:
    return sum(bool(link.active) for link in gpu.nvlinks)


def _down(ctx: Context, found: Sequence[Gpu]) -> Iterator[Finding]:
    wanted = ctx.expect.get("nvlinks_per_gpu")
    fabric = bool(nvswitches(ctx.host)) or any(g.fabric_state not in (None, "not_supported") for g in found)
    if fabric and len(found) > 1 and not any(map(_active, found)):
        yield ctx.critical(
            "NvlinkDown", "", f"no NVLink of any of the {len(found)} GPUs is up, on a node with NVSwitches",
            remedy=Remedy.REBOOT_NODE,
        )  # fmt: skip
        return
    alike = len({_active(g) for g in found}) == 1
    for gpu in found:
        active, usual = _active(gpu), wanted
        if usual is None:
            peers = [_active(g) for g in found if g.name == gpu.name]
            count, often = Counter(peers).most_common(1)[0]
            # a card without any may have no bridge, or it may have lost it: nobody can tell
            unbridged = active == 0 and not fabric
            usual = count if often > len(peers) / 2 and not unbridged else active
        elif active < usual and alike and (not fabric or (len(found) == 1 and not active)):
            # one GPU alone, or a few of a board, in a virtual machine: the links to the rest are down
            ctx.note(f"GPU {gpu.index}: {active} NVLinks are up of {usual}, as on all GPUs of this machine")
            continue
        if active < usual:
            why = "expected" if wanted is not None else "the other GPUs have"
            down = [link.link for link in gpu.nvlinks if not link.active]
            yield ctx.critical(
                "NvlinkDown", gpu.part, f"GPU {gpu.index}: {active} NVLinks are up, {why} {usual}",
                evidence=(f"links down: {', '.join(map(str, down))}",) if down else (),
                remedy=Remedy.RESET_GPU,
            )  # fmt: skip


def _slow(ctx: Context, found: Sequence[Gpu]) -> Iterator[Finding]:
    wanted = ctx.expect.get("nvlink_bytes_per_second")
    for gpu in found:
        usual = wanted
        if usual is None:
            speeds = Counter(s for g in found if g.name == gpu.name for s in _speeds(g).values())
            usual = speeds.most_common(1)[0][0] if speeds else 0.0
        least = usual * (1 - ctx.limits.speed_slack_ratio)
        slow = {link: speed for link, speed in _speeds(gpu).items() if speed < least}
        if slow:
            yield ctx.warning(
                "NvlinkSlow", gpu.part,
                f"GPU {gpu.index}: {len(slow)} NVLinks run below {usual / 1e9:.3f} GB/s",
                evidence=tuple(f"link {n}: {speed / 1e9:.3f} GB/s" for n, speed in sorted(slow.items())),
                remedy=Remedy.RESET_GPU,
            )  # fmt: skip


def _speeds(gpu: Gpu) -> dict[int, float]:
    return {link.link: link.bytes_per_second for link in gpu.nvlinks if link.active and link.bytes_per_second}
