"""Nodes with GPUs that are not as they should be: left in use, unlike their peers, half upgraded."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts.gpu import FOLDERS, device_files, stat_command, stat_line
from tests.lab.profiles import DGX_H100

_GIB = 1 << 30
_LIBRARIES = {
    f"{FOLDERS[0]}/{name}.*": (f"{FOLDERS[0]}/{name}.1", f"{FOLDERS[0]}/{name}.570.158.01")
    for name in ("libcuda.so", "libnvidia-ml.so")
}

MACHINES = (
    Machine(
        "h100-gpu-leftovers",
        "prolog of job 4813 on GPUs 0 to 2: a rank of the job before still holds GPU 0, one that cannot be "
        "killed GPU 1, and GPU 2 has memory in use that nobody holds; GPU 7 works for another job",
        ("GpuProcessLeft", "GpuProcessUndead", "GpuMemoryLeft", "GpuDebugEnvironment"),
        values=(
            f"0.processes=20117:{60 * _GIB}", f"0.memory_used={60 * _GIB}",
            f"1.processes=20118:{60 * _GIB}", f"1.memory_used={60 * _GIB}",
            f"2.memory_used={40 * _GIB}",
            f"7.processes=30001:{70 * _GIB}", f"7.memory_used={70 * _GIB}",
        ),
        files={
            "/proc/self/environ": "SLURM_JOB_ID=4813\0SLURM_JOB_GPUS=0,1,2\0",
            "/proc/20117/stat": stat_line(20117, "pt_main_thread", "R", 1),
            "/proc/20117/environ": "RANK=0\0CUDA_LAUNCH_BLOCKING=1\0",
            "/proc/20118/stat": stat_line(20118, "pt_main_thread", "D", 1),
            "/proc/20118/environ": "RANK=1\0",
            "/proc/20118/wchan": "_nv_rwsem_down",
        },
    ),
    Machine(
        "h100-gpu-unrepairable",
        "GPU 4's memory is beyond repair, says the driver; a channel of GPU 6 is repaired at its next reset",
        ("MemoryUnrepairable", "MemoryRepairPending"),
        values=("4.memory_unrepairable=1", "6.repair_pending.channel=1"),
    ),
    Machine(
        "h100-gpu-odd-one",
        "GPU 5 is a replacement that was never set up: other firmware, a lower power limit and clock, no "
        "persistence mode, ECC to be switched off, MIG to be switched on; its infoROM is corrupt",
        ("GpuVbiosMismatch", "GpuFirmwareMismatch", "GpuInforomCorrupted", "GpuPersistenceOff", "GpuMigMode",
         "GpuComputeMode", "GpuClockLimited", "GpuPowerLimited", "EccModePending"),
        values=(
            "5.vbios=96.00.30.00.01", "5.inforom=G520.0200.00.03", "5.inforom_valid=0", "5.persistence=0",
            "5.mig_pending=1", "5.compute_mode=2", "5.application_clock=1305", "5.power_limit_mw=500000",
            "5.ecc_pending=0",
        ),
    ),
    Machine(
        "h100-gpu-unlike-peers",
        "under one load: GPU 2 is 27 degrees hotter than the others, GPU 6 does not leave its idle clock",
        ("GpuTemperatureSpread", "GpuClockSpread"),
        values=(
            "throttle=0x4", "temperature=58", "power_mw=640000", "sm_clock=1755", "utilisation=100",
            "2.temperature=85", "2.margin=2", "6.sm_clock=345", "6.throttle=0x0", "6.power_mw=190000",
            "6.temperature=39",
        ),
    ),
    Machine(
        "h100-driver-half-upgraded",
        "the driver's packages were upgraded under the loaded module, GPU 7 went to nouveau at boot, "
        "/dev/nvidia3 is missing and /dev/nvidia5 closed to users",
        ("GpuLibraryVersion", "GpuWrongDriver", "GpuDeviceFile", "GpuContainerSpecStale"),
        without=(f"{FOLDERS[0]}/libcuda.so.570.133.20",),
        globs={
            **_LIBRARIES,
            "/sys/bus/pci/drivers/nvidia/*:*": tuple(
                f"/sys/bus/pci/drivers/nvidia/{address}" for address in DGX_H100[:7]
            ),
            "/sys/bus/pci/drivers/nouveau/*:*": (f"/sys/bus/pci/drivers/nouveau/{DGX_H100[7]}",),
        },
        commands={
            stat_command(8): {
                "returncode": 1,
                "seconds": 0.002,
                "stdout": "".join(
                    f"{600 if name.endswith('5') else 666} {name}\n"
                    for name in device_files(8)
                    if name != "/dev/nvidia3"
                ),
                "stderr": "stat: cannot statx '/dev/nvidia3': No such file or directory\n",
            },
        },
    ),
)  # fmt: skip
