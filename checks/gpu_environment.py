"""Debuggers and profilers that the environment of GPU processes switches on."""

from __future__ import annotations

from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading
from clustertools.sources.gpu_processes import holder
from clustertools.sources.nvidia import gpus
from clustertools.sources.processes import environ

#: What each does to a training process (CUDA programming guide, environment variables; CUDA-GDB manual).
#: gpud and DCGM's diagnostic have such a list too.
VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": "each kernel is waited for",
    "CUDA_DEVICE_WAITS_ON_EXCEPTION": "a GPU exception makes it wait for a debugger instead of failing",
    "NSIGHT_CUDA_DEBUGGER": "a debugger is attached",
    "CUDA_INJECTION32_PATH": "a profiler is loaded into it",
    "CUDA_INJECTION64_PATH": "a profiler is loaded into it",
    "NVTX_INJECTION64_PATH": "a profiler is loaded into it",
    "CUDA_PROFILE": "the old command line profiler is on",
    "COMPUTE_PROFILE": "the old command line profiler is on",
    "OPENCL_PROFILE": "the old command line profiler is on",
}
#: Often set on purpose, and without effect until something fails: told, not reported.
HARMLESS = ("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "CUDA_COREDUMP_FILE", "CUDA_AUTO_BOOST")
OFF = frozenset(("", "0", "false", "off"))


@check(
    stages={"watch"},
    confirm=3,
    timeout_seconds=30.0,
    codes={"GpuDebugEnvironment": "a process on a GPU was started with a debugger's or profiler's variable"},
)
def gpu_environment(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads the environment of each process that NVML lists; only the names of these variables are kept.

    Other users' processes can be read by root only: without it the check sees less, and says so.
    """
    found: dict[str, list[str]] = {}
    denied = read = 0
    for gpu in gpus(ctx.host):
        if why := gpu.blind("processes"):
            ctx.unseen(why)
        for process in gpu.processes or ():
            try:
                variables = environ(ctx.host, process.pid)
            except Absent:
                continue  # it ended, or is of another container
            except Unobservable:
                denied += 1
                continue
            read += 1
            who = f"GPU {gpu.index}: {holder(ctx.host, process).name}"
            for name in (*VARIABLES, *HARMLESS):
                if variables.get(name, "").lower() not in OFF:
                    found.setdefault(name, []).append(who)
    if denied and not read:
        ctx.unseen(f"the environment of the {denied} processes on the GPUs may not be read (needs root)")
    for name in HARMLESS:
        if name in found:
            ctx.note(f"{name} is set for {len(found[name])} processes")
    for name, effect in VARIABLES.items():
        if name in found:
            yield ctx.warning(
                "GpuDebugEnvironment", name, f"{name} is set for {len(found[name])} processes: {effect}",
                evidence=tuple(found[name][:8]),
            )  # fmt: skip
