"""Drives, file servers, processors, memory modules and boards that fail."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts import bmc, processors, storage
from tests.lab.whole_node import DGX_A100, DGX_H100, TIME, meminfo

_CPU, _NODES = "/sys/devices/system/cpu", "/sys/devices/system/node"
_NVME = "/sys/class/nvme"
_OST = f"/proc/fs/lustre/osc/{storage.LUSTRE}-OST0001-osc-ffff9c0e4d3a2000"
_ALL = range(storage.drives(DGX_H100))
_BOUND = "/sys/bus/pci/drivers/nvme/[0-9a-f]*:*"
_WORKING = "/sys/bus/pci/devices/*/nvme/nvme*"
_BROKEN_STRIPE = (
    "md1 : broken raid0 "
    + " ".join(f"nvme{n}n1[{n}]" + ("(F)" if n == 3 else "") for n in reversed(range(8)))
    + "\n      30005842944 blocks super 1.2 512k chunks\n\n"
)  # fmt: skip
_HALF_MIRROR = (
    "md0 : active raid1 nvme9n1p2[2] nvme8n1p2[0]\n      1843200000 blocks super 1.2 [2/1] [U_]\n"
    "      [=>...................]  recovery =  5.2% (95846400/1843200000) "
    "finish=115.9min speed=251234K/sec\n\n"
)


def _without(pattern: str, word: str) -> dict[str, tuple[str, ...]]:
    return {pattern: tuple(path for path in storage.globs(DGX_H100)[pattern] if word not in path)}


POOL_GONE = """\
  pool: scratch
 state: SUSPENDED
status: One or more devices are faulted in response to IO failures.
action: Make sure the affected devices are connected, then run 'zpool clear'.
   see: https://openzfs.github.io/openzfs-docs/msg/ZFS-8000-HC
  scan: scrub repaired 0B in 01:12:11 with 0 errors on Sun Aug  2 01:36:13 2026
config:

\tNAME         STATE     READ WRITE CKSUM
\tscratch      UNAVAIL      0     0     0  insufficient replicas
\t  mirror-0   UNAVAIL      4     1     0  insufficient replicas
\t    nvme2n1  FAULTED      3   1.2K     0  too many errors
\t    nvme3n1  REMOVED      0     0     0

errors: List of errors unavailable: pool I/O is currently suspended
"""

MACHINES = (
    Machine(
        "h100-drives-failing",
        "nvme3 died and took the stripe /raid with it, nvme6 was given up by its driver, nvme5 went "
        "read-only, nvme4 is worn out",
        ("NvmeDead", "NvmeMissing", "MdFailed", "DiskFailing", "DiskWorn"),
        files={
            f"{_NVME}/nvme3/state": "dead\n",
            "/proc/mdstat": storage.mdstat(DGX_H100, data=_BROKEN_STRIPE),
        },
        without=(f"{_NVME}/nvme6", "/sys/block/nvme6n1"),
        globs=_without(_WORKING, "nvme6"),
        commands={
            storage.SCAN: {"seconds": 0.01, "stdout": storage.scan([n for n in _ALL if n not in (3, 6)])},
            storage.asked(5): {
                "returncode": 8, "seconds": 0.02,
                "stdout": storage.health(5, 8, critical_warning=8, media_errors=214),
            },
            storage.asked(4): {
                "returncode": 8, "seconds": 0.02,
                "stdout": storage.health(
                    4, 8, critical_warning=1, available_spare=7, percentage_used=112
                ),
            },
        },
    ),
    Machine(
        "h100-lustre-away",
        "an object server of Lustre does not answer for 15 minutes, and an assertion failed in the client",
        ("LustreUnhealthy", "LustreTargetAway"),
        files={
            "/sys/fs/lustre/health_check": "LBUG\nNOT HEALTHY\n",
            f"{_OST}/state": storage.target("DISCONN", int(TIME) - 900),
        },
    ),
    Machine(
        "h100-bmc-events",
        "the BMC logged an uncorrectable memory error, a fatal bus error and a processor that shut down by "
        "heat; a power supply lost its feed; the air is far too hot",
        ("BmcUncorrectableError", "BmcBusError", "BmcOverheated", "BmcPowerLost", "BmcLogFull",
         "BmcTemperature", "BmcPowerSupply", "BmcChassis"),
        commands={
            bmc.INFO: {"seconds": 0.1, "stdout": bmc.log_info(11, "92%")},
            bmc.EVENTS: {
                "seconds": 4.0,
                "stdout": bmc.OLD_EVENTS + """\
   7 | 08/05/2026 | 22:10:11 | Memory #0x88 | Uncorrectable ECC (DIMMA2) | Asserted
   8 | 08/05/2026 | 22:10:12 | Critical Interrupt #0xa1 | Bus Fatal Error | Asserted
   9 | 08/05/2026 | 23:41:57 | Processor CPU1_Status | Thermal Trip | Asserted
   a | 08/06/2026 | 01:02:44 | Power Supply PSU2_Status | Power Supply AC lost | Asserted
   b | 08/06/2026 | 01:02:45 | Power Supply PSU_Redundancy | Redundancy Lost | Asserted
""",
            },
            bmc.SENSORS: {
                "seconds": 6.0,
                "stdout": bmc.HEALTHY.replace("| ok  |  7.1 | 24 degrees", "| unr |  7.1 | 61 degrees")
                + "PSU2_Status      | 52h | ok  | 10.3 | Presence detected, Power Supply AC lost\n",
            },
            bmc.CHASSIS: {
                "seconds": 0.1,
                "stdout": bmc.LAMPS.replace("Main Power Fault     : false", "Main Power Fault     : true"),
            },
        },
    ),
    Machine(
        "h100-socket-missing",
        "the second processor was not found at boot: half of the CPUs and of the memory is gone",
        ("CpuMissing", "DimmMissing", "HostMemoryMissing"),
        files={
            f"{_CPU}/online": "0-111\n", f"{_CPU}/present": "0-111\n",
            "/proc/meminfo": meminfo(DGX_H100.memory_kib // 2),
        },
        without=(f"{_NODES}/node1", f"{_CPU}/cpu56"),
        commands={
            processors.LSCPU: {"seconds": 0.05, "stdout": processors.lscpu(DGX_H100, 1)},
            processors.DMIDECODE: {"seconds": 0.05, "stdout": processors.dimms(16)},
        },
    ),
    Machine(
        "cpu-pool-gone",
        "both drives of the ZFS pool failed, and slurm.conf is not there",
        ("ZpoolFailed", "HostFileMissing", "HostFileWrong"),
        base="cpu-healthy",
        commands={
            ("zpool", "status"): {"seconds": 0.02, "stdout": POOL_GONE},
            storage.STAT: {
                "returncode": 1, "seconds": 0.002,
                "stdout": f"644 root root 1024 1785009000 regular file\t{storage.FILES[1]}\n",
                "stderr": f"stat: cannot statx '{storage.FILES[0]}': No such file or directory\n",
            },
        },
    ),
    Machine(
        "a100-hardware-worn",
        "half of the system's mirror is being rebuilt, a drive is reset, CPUs are off line and capped, a "
        "small module is in the wrong socket",
        ("MdDegraded", "NvmeNotLive", "NvmeNoNamespace", "DiskHot", "DiskErrors", "CpuOffline", "CpuThreads",
         "CpuGovernor", "CpuCapped", "NumaMemoryUneven", "DimmMixed", "DimmSlow", "BmcFan"),
        base="a100-healthy",
        files={
            "/proc/mdstat": storage.mdstat(DGX_A100, system=_HALF_MIRROR),
            f"{_NVME}/nvme2/state": "resetting\n",
            f"{_CPU}/online": "0-251\n",
            f"{_CPU}/cpufreq/policy1/scaling_governor": "powersave\n",
            f"{_CPU}/cpufreq/policy1/scaling_max_freq": "1500000\n",
            f"{_NODES}/node1/meminfo": processors.node_memory(1, DGX_A100.memory_kib // 2 - (192 << 20)),
        },
        globs=_without("/sys/class/nvme/nvme*/nvme*n[0-9]*", "nvme7n1"),
        commands={
            storage.asked(1): {
                "returncode": 8, "seconds": 0.02,
                "stdout": storage.health(1, 8, critical_warning=2, temperature=84),
            },
            storage.asked(0): {"returncode": 64, "seconds": 0.02, "stdout": """\
{"json_format_version": [1, 0], "smartctl": {"version": [7, 2], "exit_status": 64},
 "device": {"name": "/dev/nvme0", "type": "sat", "protocol": "ATA"}, "model_name": "SAMSUNG MZ7KH480HAHQ0D3",
 "serial_number": "SERIAL000900", "smart_status": {"passed": true}, "ata_smart_attributes": {"revision": 1,
 "table": [{"id": 197, "name": "Current_Pending_Sector", "value": 100, "worst": 100, "thresh": 0,
 "when_failed": "", "raw": {"value": 16, "string": "16"}}]}}
"""},
            processors.DMIDECODE: {
                "seconds": 0.05,
                "stdout": processors.dimms(32, speed=3200, odd={7: (16, 2666)}),
            },
            bmc.SENSORS: {
                "seconds": 6.0, "stdout": bmc.HEALTHY.replace("| ok  | 29.1 | 7840", "| lcr | 29.1 | 840"),
            },
        },
    ),
)  # fmt: skip
