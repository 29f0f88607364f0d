"""Processes and memory left on GPUs that should be idle: before a job, after it, before a launch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.gpu_processes import Holder, holder
from clustertools.sources.nvidia import Gpu, gpus


@dataclass(frozen=True)
class Limits:
    """What may be in use on an idle GPU."""

    #: gcm takes 15 MiB. Driver, MIG instances and a display server need more (own choice).
    memory_bytes: float = 1 << 30
    #: Share of a GPU's memory that a job cannot do without: when Slurm says that the GPU is this job's, what
    #: holds so much of it makes the job fail at its start (own choice).
    critical_ratio: float = 0.10


#: Hold a context on purpose, for as long as the node is up (by the kernel's name, 15 characters).
SERVICES = frozenset(
    ("nvidia-cuda-mps", "nvidia-cuda-mps-server", "nvidia-persistenced", "nvidia-persiste", "nv-hostengine",
     "dcgm-exporter", "nv-fabricmanager", "nv-fabricmanage", "Xorg", "Xwayland", "gnome-shell")
)  # fmt: skip
#: What the job's GPUs are called in the environment of its prolog, epilog and batch script (sbatch(1), prolog
#: and epilog guide of Slurm).
JOB_GPUS, JOB_ID = "SLURM_JOB_GPUS", "SLURM_JOB_ID"
#: What Slurm sets for a job that has a share of a GPU (gres/shard, gres/mps): others may work on it too.
SHARES = ("SLURM_SHARDS_ON_NODE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")


@check(
    limits=Limits,
    stages={"prolog", "epilog", "preflight"},
    timeout_seconds=30.0,
    needs=("idle",),
    codes={
        "GpuProcessLeft": "a process holds a GPU that should be idle",
        "GpuProcessUndead": "a process that is dead, or hangs in the kernel, holds a GPU that should be idle",
        "GpuMemoryLeft": "memory of a GPU that should be idle is in use, by no process that is seen",
    },
)
def gpu_leftovers(ctx: Context) -> Iterator[Finding | Reading]:
    """Looks for compute processes and used memory on the GPUs of the job, or on all where no job is named.

    Inside a Slurm job, its prolog or epilog only the GPUs of SLURM_JOB_GPUS are looked at: on a shared node
    the others are somebody else's. Without such a job the whole node is taken to be idle. A GPU that jobs
    share, by MIG, MPS or Slurm's shards, is never idle for sure and not judged.
    """
    mine, of_job = _of_job(ctx, gpus(ctx.host))
    for gpu in mine:
        if gpu.mig_enabled:
            ctx.note(f"GPU {gpu.index} is divided by MIG: its other instances may be in use")
            continue
        if why := gpu.blind("processes", "memory_used_bytes"):
            ctx.unseen(why)
        left = [h for p in gpu.processes or () if (h := holder(ctx.host, p)).command not in SERVICES]
        used = _used(gpu)
        yield ctx.reading("gpu_processes_left", len(left), gpu.part)
        if used is not None:
            yield ctx.reading("memory_left_bytes", used, gpu.part)
        much = (gpu.memory_total_bytes or 0) * ctx.limits.critical_ratio
        tell = ctx.critical if of_job and used and used > much > 0 else ctx.warning
        undead = [h for h in left if h.state in ("Z", "X", "D")]
        if undead:
            yield tell(
                "GpuProcessUndead", gpu.part,
                f"GPU {gpu.index}: {_names(undead)}: cannot be killed, and holds {_size(used)}",
                evidence=tuple(h.story for h in undead), remedy=Remedy.REBOOT_NODE,
            )  # fmt: skip
        alive = [h for h in left if h not in undead]
        if alive:
            yield tell(
                "GpuProcessLeft", gpu.part, f"GPU {gpu.index}: {_names(alive)} holds {_size(used)}",
                evidence=tuple(h.story for h in alive), remedy=Remedy.INSPECT,
            )  # fmt: skip
        if not left and not gpu.display_active and used is not None and used > ctx.limits.memory_bytes:
            yield tell(
                "GpuMemoryLeft", gpu.part,
                f"GPU {gpu.index}: {_size(used)} in use, and no process that is seen from here holds it",
                remedy=Remedy.RESET_GPU,
            )  # fmt: skip


def _of_job(ctx: Context, found: list[Gpu]) -> tuple[list[Gpu], bool]:
    """The GPUs to be looked at, and whether Slurm says that they are one job's.

    Raises Unparsable where the job's cannot be told from the others.
    """
    try:
        text = ctx.host.read("/proc/self/environ")
    except Unobservable:
        text = ""
    environment = dict(entry.partition("=")[::2] for entry in text.split("\0"))
    if not environment.get(JOB_ID):
        return found, False
    named = environment.get(JOB_GPUS, "")
    if not named:
        raise ctx.skip(f"job {environment[JOB_ID][:20]} has no GPUs of its own ({JOB_GPUS} is not set)")
    if any(environment.get(name) for name in SHARES):
        raise ctx.skip(f"job {environment[JOB_ID][:20]} has a share of its GPUs, others may work on them")
    # 0,1,2 or 0-3
    numbers: set[int] = set()
    for word in named.split(","):
        match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", word.strip())
        if match is None:
            raise Unparsable(f"{JOB_GPUS} has an unknown form", named)
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    mine = [g for g in found if (g.index if g.minor is None else g.minor) in numbers]
    if len(mine) != len(numbers):
        raise Unparsable(f"{JOB_GPUS} names GPUs that NVML does not list", named)
    ctx.note(f"only the GPUs of job {environment[JOB_ID][:20]} were looked at: {named}")
    return mine, True


def _used(gpu: Gpu) -> int | None:
    """Bytes in use without what the driver keeps for itself."""
    if gpu.memory_allocated_bytes is not None:
        return gpu.memory_allocated_bytes
    return gpu.memory_used_bytes


def _names(found: list[Holder]) -> str:
    shown = ", ".join(h.name for h in found[:5])
    return f"{shown} and {len(found) - 5} more" if len(found) > 5 else shown


def _size(used: int | None) -> str:
    return "memory" if used is None else f"{used / 2**30:.1f} GiB"
