"""GPUs that were lost to their driver or wait for a reset, and a node that booted without its data."""

from __future__ import annotations

from clustertools.checks.nvlink_imex import ASK

from tests.lab.host_faults import GPU_CHECKS, Machine
from tests.lab.profiles import DGX_A100
from tests.lab.whole_node import HOME, MOUNTS

MACHINES = (
    Machine(
        "h100-driver-down",
        "the kernel module nvidia is not loaded: the GPUs are on the bus, and no program can use them",
        ("GpuDriverDown",),
        unknown=tuple(name for name in GPU_CHECKS if name != "gpu_count"),
        values=("init=9",),
    ),
    Machine(
        "h100-gpus-reset-needed",
        "GPU 2 refuses calls until it is reset, the hardware holds the clocks of GPU 1 down, and the SRAM of "
        "GPU 5 had more errors than the maker accepts",
        ("GpuResetRequired", "GpuRecoveryAction", "GpuThrottledHw", "EccSramThreshold"),
        unknown=("gpu_ecc",),
        values=(
            "2.err.nvmlDeviceGetEccMode=16", "2.field.230=1",
            "1.throttle=0x8", "1.sm_clock=990", "1.power_mw=402300", "1.utilisation=100",
            "5.sram_threshold_exceeded=1", "5.ecc.uncorrected.aggregate=6",
            "5.ecc.uncorrected.aggregate.sram=6",
        ),
    ),
    Machine(
        "v100-page-pending",
        "a node with eight V100; a page of GPU 1 is to be retired at its next reset",
        ("PagesRetiredPending",),
        base="a100-healthy",
        profile="V100",
        values=("p2p=0", "1.retired_pending=1", "1.field.30=1"),
        files={f"/sys/bus/pci/devices/{address}/device": "0x1db5\n" for address in DGX_A100},
    ),
    Machine(
        "h100-raid-not-mounted",
        "the stripe of data drives was not mounted at boot: jobs would write to the system's disk",
        ("HostMountMissing",),
        files={"/proc/self/mountinfo": MOUNTS + HOME},
    ),
    Machine(
        "gb200-imex-waits",
        "the IMEX daemon of a tray runs and waits for its peers to come back",
        ("ImexNotReady",),
        base="gb200-healthy",
        commands={ASK: {"seconds": 0.02, "stdout": "WAITING_FOR_RECOVERY\n"}},
    ),
)  # fmt: skip
