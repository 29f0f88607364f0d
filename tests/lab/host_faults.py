"""What is wrong with each of the faulty recorded hosts, as its difference from a healthy one."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clustertools.host import PYTHON
from tests.lab.parts import storage
from tests.lab.whole_node import TIB, meminfo, pressure, sized, tracking

NVML = (PYTHON, "-m", "clustertools.sources.nvidia", "--json")
CHRONY = ("chronyc", "-c", "tracking")
CLOCK = (PYTHON, "-m", "clustertools.sources.clock")
GPU_CHECKS = (
    "gpu_count", "gpu_balance", "gpu_ecc", "gpu_environment", "gpu_identity", "gpu_leftovers", "gpu_recovery",
    "gpu_remap", "gpu_settings", "gpu_throttle",
    "nvlink_errors", "nvlink_fabric", "nvlink_links", "pcie_errors",
)  # fmt: skip

Record = tuple[int, int, str]


@dataclass(frozen=True)
class Machine:
    """One recorded host: what is wrong, and what it answers otherwise than its base.

    `unknown` are the checks that cannot look there. `absent` and `globs` are listings, as in
    `tests.lab.parts`. `values` are the NVML stand-in's, `kernel` the records that follow those of the boot,
    `mounts` the answers of the mounts in its table, `lacks` the address of a GPU that NVML does not list.
    What checks remember of an earlier look goes into `about` under `past`, by check; `profile` is that of
    other GPUs than its base has.
    """

    name: str
    what: str
    codes: tuple[str, ...] = ()
    base: str = "h100-healthy"
    unknown: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    kernel: tuple[Record, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    lacks: str = ""
    mounts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    commands: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    globs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    profile: str = ""

    @property
    def number(self) -> int:
        """Lasts, whatever machines there are beside it."""
        return zlib.crc32(self.name.encode()) % 9000

    @property
    def boot_id(self) -> str:
        return f"00000000-0000-4000-8000-{self.number:012d}"


def at(seconds: float) -> int:
    """Microseconds since boot, as the kernel's ring has them."""
    return round(seconds * 1e6)


def xid(seconds: float, pci: str, number: int, text: str, who: str = "pid=148733, name=python3") -> Record:
    """An Xid line as the driver prints it."""
    return (3, at(seconds), f"NVRM: Xid (PCI:{pci}): {number}, {who}, {text}")


NOBODY = "pid='<unknown>', name=<unknown>"


def torn_down(seconds: float, pci: str, channels: Iterable[int], who: str) -> tuple[Record, ...]:
    """Xid 45, a line for each channel of a job that is gone."""
    return tuple(xid(seconds + n / 10, pci, 45, f"Ch {c:08x}", who) for n, c in enumerate(channels))


def storm(seconds: float, pci: str, who: str) -> tuple[Record, ...]:
    """180 page faults in 3.6 s, an address after the other."""
    text = (
        "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC{} GPCCLIENT_T1_{} faulted @ "
        "0x7f2b_{:08x}. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
    )
    return tuple(
        xid(seconds + n / 50, pci, 31, text.format(n % 7, n % 9, n << 12), who)
        for n in range(180)
    )  # fmt: skip


LOST = "0000:3a:00"
FELL = "GPU has fallen off the bus."
RECOVERY = "GPU recovery action changed from 0x0 (None) to {}"
DUMP = (
    "NVRM: A GPU crash dump has been created. If possible, please run\\x0aNVRM: nvidia-bug-report.sh as root "
    "to collect this data before\\x0aNVRM: the NVIDIA kernel module is unloaded."
)
REMAP = "Row Remapper: New row (0x0000000000a4c2d1) marked for remapping, reset gpu to activate."

GPU_FAULTS = (
    Machine(
        "h100-dbe-gpu3",
        "GPU 3 had an uncorrectable (double bit) error in HBM; the job on it was killed",
        ("EccUncorrected", "XidEccUncorrectable"),
        values=("3.ecc.uncorrected.volatile=1", "3.ecc.uncorrected.volatile.dram=1",
                "3.ecc.uncorrected.aggregate=1", "3.ecc.uncorrected.aggregate.dram=1"),
        kernel=(xid(88120.443901, "0000:5d:00", 48, "DBE (double bit error) ECC Error"),),
    ),
    Machine(
        "h100-gpu-missing",
        "GPU 5 was not found at boot: it is neither on the PCI bus nor in NVML",
        ("GpuMissing",),
        without=("/sys/bus/pci/devices/0000:ab:00.0",),
        lacks="0000:ab:00.0",
    ),
    Machine(
        "h100-remap-pending",
        "GPU 6 will remap a bad memory row at its next reset, and asks for that reset",
        ("RemapPending", "GpuRecoveryAction", "XidRemapRecorded"),
        values=("6.remap.uncorrectable=1", "6.remap.pending=1", "6.field.230=4"),
        kernel=(xid(90233.120877, "0000:ba:00", 63, REMAP, "pid=151020, name=python3"),),
    ),
    Machine(
        "h100-throttled",
        "under load; GPU 1 is too hot and slows down, GPU 4 is held down by the power supply's brake signal, "
        "the others are at their power cap, which is no fault",
        ("GpuThrottledThermal", "GpuThrottledPowerBrake", "GpuTooHot"),
        values=(
            "throttle=0x4", "temperature=64", "margin=23", "field.82=74", "power_mw=699100", "sm_clock=1755",
            "utilisation=100", "memory_utilisation=38",
            "1.temperature=90", "1.margin=-3", "1.throttle=0x48", "1.sm_clock=1005", "1.power_mw=402300",
            "1.violation.1=734000000000",
            "4.throttle=0x88", "4.sm_clock=990", "4.power_mw=351800",
        ),
    ),
    Machine(
        "a100-remap-failed",
        "GPU 2 could not remap a bad memory row: a bank has no spare rows left",
        ("RemapFailed", "RemapHistogramLow"),
        base="a100-healthy",
        values=("2.remap.uncorrectable=9", "2.remap.failed=1", "2.remap.histogram=636,2,1,0,1"),
    ),
    Machine(
        "h100-nvml-hang",
        "NVML hangs in the driver: nobody can say how the GPUs are",
        unknown=GPU_CHECKS,
        commands={NVML: {"seconds": 60.0}},
    ),
    Machine(
        "h100-xid79",
        f"GPU 2 ({LOST}) fell off the PCIe bus under load; its job was torn down",
        ("XidGpuLost", "GpuLost"),
        # what the lost GPU itself would say is not known; gpu_count judges that it does not answer
        unknown=GPU_CHECKS[1:],
        values=("2.lost=1",),
        kernel=(
            (3, at(88120.4), f"NVRM: GPU at PCI:{LOST}: GPU-00000000-0000-4000-8000-000000000002"),
            (3, at(88120.4), "NVRM: GPU Board Serial Number: 9999999000002"),
            xid(88120.4, LOST, 79, FELL, NOBODY),
            (3, at(88120.4), f"NVRM: GPU {LOST}.0: {FELL}"),
            (3, at(88120.4), DUMP),
            xid(88120.5, LOST, 154, RECOVERY.format("0x2 (Node Reboot Required)"), NOBODY),
            *torn_down(88123.2, LOST, range(8, 14), "pid=148733, name=python3"),
        ),
    ),
    Machine(
        "h100-xid-storm",
        "one job floods the log with page faults of GPU 5 (Xid 31); its kill leaves many Xid 45; the node is "
        "well",
        ("XidMmuFault",),
        kernel=(
            *storm(88600, "0000:ab:00", "pid=20117, name=python3"),
            *torn_down(88610, "0000:ab:00", range(40), "pid=20117, name=python3"),
        ),
    ),
    Machine(
        "h100-xid48-45",
        "GPU 3 had an uncorrectable memory error: Xid 48, a row to be remapped (63), the channels of the job "
        "torn down (45); the driver asks for a reset (154)",
        ("XidEccUncorrectable", "EccUncorrected", "RemapPending", "GpuRecoveryAction"),
        values=("3.ecc.uncorrected.volatile=1", "3.ecc.uncorrected.volatile.dram=1",
                "3.ecc.uncorrected.aggregate=1", "3.ecc.uncorrected.aggregate.dram=1",
                "3.remap.uncorrectable=1", "3.remap.pending=1", "3.field.230=4"),
        kernel=(
            xid(86799.8, "0000:5d:00", 63, REMAP, NOBODY),
            xid(86800, "0000:5d:00", 48, "An uncorrectable double bit error (DBE) has been detected on GPU "
                "in the framebuffer at physical address 0x1e8f40000 partition 9, subpartition 0."),
            xid(86800.1, "0000:5d:00", 154, RECOVERY.format("0x4 (Drain and Reset)"), NOBODY),
            *torn_down(86802.6, "0000:5d:00", range(16, 22), "pid=148733, name=python3"),
            *torn_down(87700, "0000:9a:00", (16,), "pid=171, name=python3"),
        ),
    ),
)  # fmt: skip

_KIB_OF_DIMM = 64 << 20
_CLOCK = "/sys/devices/system/clocksource/clocksource0"
_EDAC = "/sys/devices/system/edac/mc"
_CGROUP = "/slurm/uid_1000/job_4812"
OUT_OF_MEMORY = (
    (6, at(89800), "python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0"),
    (6, at(89800.01), "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=step_0,mems_allowed=0-1,"
     f"oom_memcg={_CGROUP},task_memcg={_CGROUP}/step_0,task=python3,pid=31177,uid=1000"),
    (3, at(89800.02), "Memory cgroup out of memory: Killed process 31177 (python3) total-vm:1288490188kB, "
     "anon-rss:943718400kB, file-rss:12kB, shmem-rss:0kB, UID:1000 pgtables:1953125kB oom_score_adj:0"),
    (6, at(89800.5), "oom_reaper: reaped process 31177 (python3), now anon-rss:0kB, file-rss:0kB, "
     "shmem-rss:0kB"),
    (4, at(89900), "nfs: server nas01 not responding, still trying"),
    (3, at(90021), "INFO: task python3:31201 blocked for more than 120 seconds."),
    (3, at(90021), "      Not tainted 5.15.0-113-generic #123-Ubuntu"),
    (4, at(90100), "nfs: server nas01 OK"),
    (6, at(90110), "python3[31233]: segfault at 0 ip 00007f3c1f2a1b40 sp 00007ffd3b0e4f60 error 4 in "
     "libtorch_cpu.so[7f3c10000000+f000000]"),
)  # fmt: skip

HOST_FAULTS = (
    Machine(
        "host-clock-off",
        "the clock is 2.5 s off from its source, and is read from the HPET since the TSC was found unstable",
        ("ClockOffset", "ClockSourceUnstable"),
        files={
            f"{_CLOCK}/current_clocksource": "hpet\n",
            f"{_CLOCK}/available_clocksource": "hpet acpi_pm \n",
        },
        commands={CHRONY: {"seconds": 0.003, "stdout": tracking("2.500016000")}},
    ),
    Machine(
        "host-clock-unsynchronised",
        "no time service runs and the kernel has never been told the time",
        ("ClockUnsynchronised",),
        base="cpu-healthy",
        without=("/sys/devices/system/edac",),
        files={
            "/proc/1/comm": "init\n", "/proc/310/comm": "sshd\n",
            f"{_CLOCK}/available_clocksource": "tsc kvm-clock \n",
        },
        commands={
            CHRONY: {"error": "chronyc is not installed", "absent": True},
            CLOCK: {
                "seconds": 0.05, "stdout": '{"status": 64, "offset": 0, "maxerror_us": 16000000}\n',
            },
        },
        about={
            "node_class": "vm",
            "provenance": "its clock recorded live on a virtual machine without a time service, names "
            "changed; for the rest see cpu-healthy",
        },
    ),
    Machine(
        "host-memory-dimm-failing",
        "one DIMM had two uncorrectable errors, another many corrected ones; a channel with two DIMMs is "
        "gone",
        ("HostMemoryUncorrected", "HostMemoryMissing"),
        files={
            "/proc/meminfo": meminfo(2113425548 - 2 * _KIB_OF_DIMM),
            f"{_EDAC}/mc0/dimm1/dimm_ce_count": "431\n",
            f"{_EDAC}/mc1/dimm0/dimm_ue_count": "2\n",
        },
        without=(f"{_EDAC}/mc7/dimm2", f"{_EDAC}/mc7/dimm3"),
    ),
    Machine(
        "host-memory-low",
        "a data loader has filled /dev/shm; 0.3 GiB of memory are left and everything waits for it",
        ("HostMemoryLow",),
        files={
            "/proc/meminfo": meminfo(
                2113425548, MemFree=310204, MemAvailable=301120, Cached=1620400128, AnonPages=401220480,
                Shmem=1611020288, SwapTotal=0, SwapFree=0,
            ),
            "/proc/pressure/memory": pressure("91.20", "74.35"),
        },
        mounts={"/dev/shm": sized(2 * TIB, 0.75, 264178443)},
        globs={
            "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_[0-9]*": (
                "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_4812",
            )
        },
    ),
    Machine(
        "host-oom",
        "a data loader filled the memory of its cgroup and was killed; a task then hung on NFS, whose server "
        "came back",
        ("HostHungTask", "HostOomKill"),
        base="cpu-healthy",
        kernel=OUT_OF_MEMORY,
    ),
    Machine(
        "host-storage-trouble",
        "/scratch is full, / has no inodes left, /data went read-only after an error, /lustre hangs, /home "
        "is stale, /dev/shm is small",
        ("HostDiskFull", "HostInodesFull", "HostMountReadOnly", "HostMountHung", "HostMountStale",
         "HostShmSmall"),
        files={
            "/etc/fstab": """\
# file system, mount point, type, options
/dev/md0 / ext4 defaults 0 1
/dev/md1 /scratch xfs defaults,noatime 0 0
/dev/nvme8n1 /data ext4 defaults,errors=remount-ro 0 0
""",
            "/proc/self/mountinfo": """\
22 29 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 29 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 29 0:5 / /dev rw,nosuid,relatime shared:2 - devtmpfs udev rw,size=1056675428k,nr_inodes=264168857,mode=755
29 1 9:0 / / rw,relatime shared:1 - ext4 /dev/md0 rw,errors=remount-ro
30 24 0:24 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,size=65536k
31 29 9:1 / /scratch rw,noatime shared:30 - xfs /dev/md1 rw,attr2,inode64,logbufs=8,logbsize=32k,noquota
32 29 9:1 /containers /var/lib/enroot rw,noatime shared:30 - xfs /dev/md1 rw,attr2,inode64,logbufs=8,noquota
33 29 259:9 / /data rw,relatime shared:31 - ext4 /dev/nvme8n1 rw,errors=remount-ro,emergency_ro
34 29 7:1 / /snap/core20/2318 ro,nodev,relatime shared:33 - squashfs /dev/loop1 ro,errors=continue
35 29 0:52 / /lustre rw,relatime shared:40 - lustre 198.18.0.1@o2ib:198.18.0.2@o2ib:/fs1 rw,checksum,flock
36 29 0:53 / /home rw,relatime shared:41 - nfs4 198.18.0.9:/export/home rw,vers=4.2,hard,proto=tcp
37 29 0:54 / /datasets ro,relatime shared:42 - nfs4 198.18.0.9:/export/datasets ro,vers=4.2,hard,proto=tcp
38 29 0:60 / /var/lib/docker/overlay2/0c1d/merged rw,relatime - overlay overlay rw,lowerdir=l,upperdir=u
39 29 0:61 / /mnt/my\\040cache rw,relatime shared:43 - ext4 /dev/nvme9n1 rw
""",
        },
        mounts={
            "/": {**sized(944892805120, 0.4, 58605568), "inodes_free": 120},
            "/dev/shm": sized(64 << 20, 0.01, 1000),
            "/scratch": {**sized(30064771072000, 0.999, 2000000000), "free_bytes": 30064771072},
            "/data": sized(3758096384000, 0.997, 200000),
            "/lustre": {"hung": True},
            "/home": {"error": "ESTALE"},
            "/datasets": {"total_bytes": 966367641600000, "used_ratio": 1.0, "elapsed_seconds": 0.004},
            "/mnt/my cache": sized(3758096384000, 0.14, 200000),
        },
        about={
            "expect": {
                "gpu_count": 8, "memory_bytes": 2 * TIB, "mounts": ["/", "/scratch", "/lustre", "/home"],
                "files": list(storage.FILES), "kernel": "5.15.0-1053-nvidia",
            },
            "provenance": "mount table written from proc_pid_mountinfo(5); emergency_ro as Linux 6.18 shows "
            "it after an injected ext4 error; answers in the form of this project's probe; for the rest see "
            "h100-healthy",
        },
    ),
)  # fmt: skip
