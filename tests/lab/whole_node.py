"""What a healthy node answers, apart from its GPUs: the ground on which the recorded hosts stand.

Written from the formats of the Linux man pages and kernel documentation, with the values of a node that idles
a day after its boot. Sizes are those of the makers' data sheets. chrony's line was recorded from chrony 4.3,
its time and address changed. Addresses, ids and serial numbers are the stand-ins of `clustertools.redact`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.lab import parts, profiles
from tests.lab.parts import Hca, Shape

#: When every recording was made, and when its machine was booted: 25 h before.
TIME = 1786000000.0
BOOT_TIME = 1785909600
GIB = 1 << 30
TIB = 1 << 40

PROVENANCE = (
    "written from proc(5), proc_pid_mountinfo(5), the kernel documentation (accounting/psi.rst, "
    "admin-guide/RAS/main.rst, ABI dev-kmsg) and the NVIDIA driver's line formats; chronyc -c tracking "
    "recorded from chrony 4.3, its time and address changed"
)
NVML_PROVENANCE = "; NVML recorded from the stand-in of tests/lab, profile {profile}"


@dataclass(frozen=True)
class Node:
    """A node's files, the answers of its mounts in the order of the mount table, and its chronyd."""

    files: Mapping[str, str]
    mounts: Mapping[str, Mapping[str, object]]
    chrony: str
    boot: Sequence[tuple[int, int, str]]
    expect: Mapping[str, object] = field(default_factory=dict)
    gpus: Sequence[str] = ()
    commands: Mapping[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    absent: Sequence[str] = ()
    globs: Mapping[str, Sequence[str]] = field(default_factory=dict)


def kernel_log(records: Sequence[tuple[int, int, str]]) -> str:
    """/dev/kmsg of (priority, microseconds since boot, text): `priority,sequence,microseconds,flags;text`."""
    return "".join(f"{p},{n},{at},-;{text}\n" for n, (p, at, text) in enumerate(records))


def tracking(offset_seconds: str = "-0.000001592") -> str:
    """The line of `chronyc -c tracking`; the last answer of its source is 20 s old."""
    reference = TIME - 19.176789884
    return (
        f"C6120009,198.18.0.9,3,{reference:.9f},{offset_seconds},0.000001617,0.000032410,-0.651,-0.000,0.012,"
        "0.000258690,0.000403229,64.2,Normal\n"
    )


def meminfo(total_kib: int, **changes: int) -> str:
    """/proc/meminfo of Linux 5.15; `changes` are in KiB, `Active_anon` for `Active(anon)`."""
    kib = {
        "MemTotal": total_kib, "MemFree": total_kib * 86 // 100, "MemAvailable": total_kib * 92 // 100,
        "Buffers": 812344, "Cached": 162040012, "SwapCached": 0, "Active": 48220132, "Inactive": 156102220,
        "Active_anon": 1204420, "Inactive_anon": 40812448, "Active_file": 47015712,
        "Inactive_file": 115289772, "Unevictable": 31400, "Mlocked": 28328, "SwapTotal": 8388604,
        "SwapFree": 8388604, "Dirty": 1288, "Writeback": 0, "AnonPages": 41220480, "Mapped": 2204112,
        "Shmem": 1102028, "KReclaimable": 18220480, "Slab": 31220480, "SReclaimable": 18220480,
        "SUnreclaim": 13000000, "KernelStack": 62112, "PageTables": 180444, "NFS_Unstable": 0, "Bounce": 0,
        "WritebackTmp": 0, "CommitLimit": 8388604 + total_kib // 2, "Committed_AS": 61220188,
        "VmallocTotal": 34359738367, "VmallocUsed": 2202044, "VmallocChunk": 0, "Percpu": 1210880,
        "HardwareCorrupted": 0, "AnonHugePages": 22020096, "ShmemHugePages": 0, "ShmemPmdMapped": 0,
        "FileHugePages": 0, "FilePmdMapped": 0, "Hugetlb": 0, "DirectMap4k": 1265388, "DirectMap2M": 61480960,
        "DirectMap1G": total_kib // 1048576 * 1048576,
    }  # fmt: skip
    lines = {
        name.replace("_anon", "(anon)").replace("_file", "(file)"): n for name, n in (kib | changes).items()
    }
    text = [f"{name + ':':<16}{n:>8} kB" for name, n in lines.items()]
    huge = ["HugePages_Total:       0", "HugePages_Free:        0", "HugePages_Rsvd:        0"]
    huge += ["HugePages_Surp:        0", "Hugepagesize:       2048 kB"]
    place = next(n for n, line in enumerate(text) if line.startswith("Hugetlb:"))
    return "\n".join([*text[:place], *huge, *text[place:], ""])


def pressure(some: str = "0.00", full: str = "0.00") -> str:
    """/proc/pressure/memory with the same share in every window."""
    return "".join(
        f"{kind} avg10={share} avg60={share} avg300={share} total={total}\n"
        for kind, share, total in (("some", some, 81234567), ("full", full, 71234567))
    )


def sized(total_bytes: int, used: float, inodes: int, inodes_used: float = 0.01) -> dict[str, object]:
    """A mount's answer, of which the share `used` is in use."""
    return {
        "total_bytes": total_bytes, "free_bytes": round(total_bytes * (1 - used)), "used_ratio": used,
        "inodes": inodes, "inodes_free": round(inodes * (1 - inodes_used)), "elapsed_seconds": 0.0002,
    }  # fmt: skip


def answers(mounts: Mapping[str, Mapping[str, object]]) -> str:
    """What the mount probe prints for these."""
    return "".join(json.dumps({"path": path, **told}) + "\n" for path, told in mounts.items())


MOUNTS = """\
22 29 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 29 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 29 0:5 / /dev rw,nosuid,relatime shared:2 - devtmpfs udev rw,size=1056675428k,nr_inodes=264168857,mode=755
25 24 0:22 / /dev/pts rw,nosuid,noexec,relatime shared:3 - devpts devpts rw,gid=5,mode=620,ptmxmode=000
26 29 0:23 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,size=211342556k,mode=755,inode64
29 1 9:0 / / rw,relatime shared:1 - ext4 /dev/md0 rw,errors=remount-ro
30 24 0:24 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64
31 26 0:25 / /run/lock rw,nosuid,nodev,noexec,relatime shared:6 - tmpfs tmpfs rw,size=5120k,inode64
32 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 29 7:1 / /snap/core20/2318 ro,nodev,relatime shared:33 - squashfs /dev/loop1 ro,errors=continue
34 29 259:1 / /boot/efi rw,relatime shared:34 - vfat /dev/nvme1n1p1 rw,fmask=0077,dmask=0077,codepage=437
"""
RAID = "35 29 9:1 / /raid rw,relatime shared:35 - ext4 /dev/md1 rw,stripe=1024\n"
HOME = (
    "36 29 0:46 / /home rw,relatime shared:36 - nfs4 198.18.0.9:/export/home "
    "rw,vers=4.2,rsize=1048576,wsize=1048576,hard,proto=tcp,timeo=600,sec=sys,addr=198.18.0.9\n"
)
FSTAB = """\
# file system, mount point, type, options
/dev/md0 / ext4 errors=remount-ro 0 1
/dev/nvme1n1p1 /boot/efi vfat umask=0077 0 1
{raid}198.18.0.9:/export/home /home nfs4 hard,_netdev 0 0
/swap.img none swap sw 0 0
"""
RAID_FSTAB = "/dev/md1 /raid ext4 defaults,nofail 0 2\n"


def _host_files(shape: Shape) -> dict[str, str]:
    cpus = shape.cpus
    clock = "/sys/devices/system/clocksource/clocksource0"
    return {
        "/proc/meminfo": meminfo(shape.memory_kib),
        "/proc/pressure/memory": pressure(),
        "/proc/vmstat": "nr_free_pages 454220311\npswpin 0\npswpout 0\noom_kill 0\n",
        "/proc/loadavg": f"0.20 0.18 0.12 1/{cpus * 12} 412083\n",
        "/proc/stat": (
            f"cpu  220418 1042 88127 {cpus * 9040000} 4021 0 812 0 0 0\nctxt 918822177\n"
            f"btime {BOOT_TIME}\nprocesses 412083\nprocs_running 1\nprocs_blocked 0\n"
        ),
        f"{clock}/current_clocksource": "tsc\n",
        f"{clock}/available_clocksource": "tsc hpet acpi_pm \n",
    }


def _boot(shape: Shape, gpus: Sequence[tuple[str, str]]) -> list[tuple[int, int, str]]:
    """What such a machine writes at boot."""
    kernel, driver = shape.kernel, shape.driver
    vendor, kind = ("1002", "120000") if shape.gpu == "amd" else ("10de", "030200")
    records = [
        (
            6,
            0,
            f"Linux version {kernel} (buildd@lcy02-amd64-007) (gcc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0)",
        ),
        (6, 0, f"Command line: BOOT_IMAGE=/boot/vmlinuz-{kernel} root=/dev/md0 ro console=ttyS0,115200"),
        (6, 402118, f"smpboot: CPU0: {shape.cpu}"),
    ]
    records += [
        (6, 1204418, f"pci {address}: [{vendor}:{device}] type 00 class 0x{kind}") for address, device in gpus
    ]
    records += [
        (6, 4880912, "md/raid1:md0: active with 2 out of 2 mirrors"),
        (
            6,
            5120077,
            "EXT4-fs (md0): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.",
        ),
    ]
    if shape.gpu == "nvidia":
        open_module = f"NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build"
        if int(driver.split(".")[0]) < 560:  # before, the module of choice was the closed one
            open_module = f"NVIDIA UNIX x86_64 Kernel Module  {driver}  Sun Feb 25 17:09:09 UTC 2024"
        records += [
            (5, 21330102, "nvidia: module license 'NVIDIA' taints kernel."),
            (4, 21330110, "Disabling lock debugging due to kernel taint"),
            (6, 21391744, "nvidia-nvlink: Nvlink Core is being initialized, major device number 510"),
            (6, 22840913, f"NVRM: loading {open_module}"),
        ]
    records += [
        (6, 25730122, "mlx5_core 0000:c1:00.0: firmware version: 28.39.1002"),
        (6, 31200876, "mlx5_core 0000:c1:00.0 ibs0: Link up"),
    ]
    return records


def _pci(shape: Shape) -> dict[str, str]:
    # the adapter for storage and management, those of the rails, and the GPUs as 3D controllers
    adapters = ("0000:c1:00.0", *(hca.pci for hca in shape.hcas))
    gpu = ("0x1002", "0x120000") if shape.gpu == "amd" else ("0x10de", "0x030200")
    devices = {**dict.fromkeys(adapters, ("0x15b3", "0x020700", "0x1021"))}
    devices |= dict.fromkeys(shape.gpus, (*gpu, f"0x{shape.gpu_device}"))
    files = {}
    for address, (vendor, kind, device) in devices.items():
        files[f"/sys/bus/pci/devices/{address}/device"] = f"{device}\n"
        files[f"/sys/bus/pci/devices/{address}/vendor"] = f"{vendor}\n"
        files[f"/sys/bus/pci/devices/{address}/class"] = f"{kind}\n"
    return files


def _dimms(controllers: int, dimms: int) -> dict[str, str]:
    """EDAC as Intel's i10nm driver fills it: memory controllers, four to a socket, each with its DIMMs."""
    files = {}
    for mc in range(controllers):
        for dimm in range(dimms):
            folder = f"/sys/devices/system/edac/mc/mc{mc}/dimm{dimm}"
            label = f"CPU_SrcID#{mc // 4}_MC#{mc % 4}_Chan#{dimm // 2}_DIMM#{dimm % 2}"
            files |= {f"{folder}/dimm_ce_count": "0\n", f"{folder}/dimm_ue_count": "0\n"}
            files[f"{folder}/dimm_label"] = f"{label}\n"
    return files


def _controllers(name: str) -> dict[str, str]:
    """EDAC as AMD's driver fills it: by chip selects, not DIMMs, so what counts is the memory controller."""
    files = {}
    for mc in range(2):
        folder = f"/sys/devices/system/edac/mc/mc{mc}"
        files |= {f"{folder}/mc_name": f"{name}\n", f"{folder}/ue_count": "0\n", f"{folder}/ce_count": "0\n"}
    return files


#: The rails of a DGX: an adapter beside each GPU.
H100_HCAS = tuple(
    Hca(f"mlx5_{n}", address, f"ibp{int(address[5:7], 16)}s0", 400, numa=n // 4)
    for n, address in enumerate(
        ("0000:19:00.0", "0000:2b:00.0", "0000:3b:00.0", "0000:5e:00.0",
         "0000:9b:00.0", "0000:ac:00.0", "0000:bb:00.0", "0000:dc:00.0")
    )
)  # fmt: skip
A100_HCAS = tuple(
    Hca(f"mlx5_{n}", address, f"ibp{int(address[5:7], 16)}s0", 200, numa=n // 4)
    for n, address in enumerate(
        ("0000:0c:00.0", "0000:12:00.0", "0000:4b:00.0", "0000:54:00.0",
         "0000:8d:00.0", "0000:94:00.0", "0000:ba:00.0", "0000:cc:00.0")
    )
)  # fmt: skip

DGX_H100 = Shape(
    "h100-8", "nvidia", "NVIDIA H100 80GB HBM3", profiles.DGX_H100, "2330", "570.133.20", 5, H100_HCAS, 8,
    True, "Intel(R) Xeon(R) Platinum 8480C", 2, 56, 2, 2113425548, "5.15.0-1053-nvidia", "DGXH100", "NVIDIA",
)  # fmt: skip
DGX_A100 = Shape(
    "a100-8", "nvidia", "NVIDIA A100-SXM4-80GB", profiles.DGX_A100, "20b2", "535.161.08", 4, A100_HCAS, 8,
    False, "AMD EPYC 7742 64-Core Processor", 2, 64, 2, 2113517896, "5.15.0-1053-nvidia",
    "DGXA100 920-23687-2530-000", "NVIDIA",
)  # fmt: skip
DGX_H200 = dataclasses.replace(
    DGX_H100, node_class="h200-8", gpu_name="NVIDIA H200", gpu_device="2335", product="DGXH200"
)
DGX_B200 = Shape(
    "b200-8", "nvidia", "NVIDIA B200", profiles.DGX_B200, "2901", "570.133.20", 5, H100_HCAS, 8,
    True, "Intel(R) Xeon(R) Platinum 8570", 2, 56, 2, 2113425548, "6.8.0-1024-nvidia", "DGXB200", "NVIDIA",
)  # fmt: skip
GB200_HCAS = tuple(
    Hca(f"mlx5_{n}", address, f"ibp{n}s0", 400, numa=n // 2)
    for n, address in enumerate(("0000:03:00.0", "0002:03:00.0", "0010:03:00.0", "0012:03:00.0"))
)
GB200_TRAY = Shape(
    "gb200-4", "nvidia", "NVIDIA GB200", profiles.TRAY_GB200, "2941", "570.133.20", 5, GB200_HCAS, 4,
    False, "Neoverse-V2", 2, 72, 1, 1006632960, "6.8.0-1024-nvidia-64k", "GB200 NVL", "NVIDIA",
    installed_gib=960,
)  # fmt: skip
MI300X_HCAS = tuple(
    Hca(f"rdma{n}", address, f"ens{n}np0", 400, "Ethernet", numa=n // 4)
    for n, address in enumerate(
        ("0000:06:00.0", "0000:23:00.0", "0000:43:00.0", "0000:63:00.0",
         "0000:86:00.0", "0000:a3:00.0", "0000:c3:00.0", "0000:e3:00.0")
    )
)  # fmt: skip
MI300X = Shape(
    "mi300x-8", "amd", "AMD Instinct MI300X", profiles.OAM_MI300X, "74a1", "", 5, MI300X_HCAS, 8,
    False, "AMD EPYC 9554 64-Core Processor", 2, 64, 2, 2113517896, "6.8.0-52-generic",
    "AS -8125GS-TNMR2", "Supermicro",
)  # fmt: skip
CPU = Shape("cpu", installed_gib=512)


def _assembled(shape: Shape, node: Node) -> Node:
    """`node` with what the parts of its shape answer."""
    return dataclasses.replace(
        node,
        files={**parts.together("files", shape), **node.files},
        gpus=shape.gpus,
        commands={**parts.together("commands", shape), **node.commands},
        absent=parts.absent(shape),
        globs=parts.together("globs", shape),
        expect={**node.expect, **parts.together("expect", shape)},
    )


def dgx(shape: Shape) -> Node:
    """A DGX: 2 TB of memory, the system on RAID 1, 8 drives as RAID 0 at /raid."""
    listed = [(address, shape.gpu_device) for address in shape.gpus]
    # 32 DIMMs of 64 GB on 8 controllers
    edac = _dimms(8, 4) if shape.intel else _controllers("F17h_M30h")
    raid = 8 * 3_840_755_982_336
    node = Node(
        files={
            **_host_files(shape), **_pci(shape), **edac,
            "/proc/self/mountinfo": MOUNTS + RAID + HOME, "/etc/fstab": FSTAB.format(raid=RAID_FSTAB),
        },
        mounts={
            "/run": sized(211342556 * 1024, 0.0001, 264178443),
            "/": sized(1_888_000_000_000, 0.06, 117_000_000),
            "/dev/shm": sized(shape.memory_kib * 512, 0.0005, 264178443),
            "/boot/efi": {**sized(535_805_952, 0.012, 0), "inodes_free": 0},
            "/raid": sized(raid, 0.31, 1_875_000_000),
            "/home": {**sized(220 * TIB, 0.58, 8_000_000_000, 0.2), "elapsed_seconds": 0.0019},
        },
        chrony=tracking(),
        boot=_boot(shape, listed),
        expect={
            "gpu_count": len(shape.gpus), "memory_bytes": shape.installed_gib * GIB,
            "mounts": ["/", "/raid", "/home"],
        },
    )  # fmt: skip
    return _assembled(shape, node)


def cpu_node(shape: Shape = CPU) -> Node:
    """A node without GPUs: 512 GiB, the system on a RAID 1, homes by NFS."""
    total_kib = shape.memory_kib
    node = Node(
        files={
            **_host_files(shape), **_pci(shape), **_controllers("F19h"),
            "/proc/meminfo": meminfo(total_kib, Cached=22040012, Inactive=16102220, Inactive_file=4289772),
            "/proc/self/mountinfo": MOUNTS + HOME, "/etc/fstab": FSTAB.format(raid=""),
        },
        mounts={
            "/run": sized(211342556 * 1024, 0.0001, 264178443),
            "/": sized(1_888_000_000_000, 0.04, 117_000_000),
            "/dev/shm": sized(total_kib * 512, 0.0001, 66044610),
            "/boot/efi": {**sized(535_805_952, 0.012, 0), "inodes_free": 0},
            "/home": {**sized(220 * TIB, 0.58, 8_000_000_000, 0.2), "elapsed_seconds": 0.0019},
        },
        chrony=tracking(),
        boot=_boot(shape, ()),
        expect={"memory_bytes": shape.installed_gib * GIB, "mounts": ["/", "/home"]},
    )  # fmt: skip
    return _assembled(shape, node)
