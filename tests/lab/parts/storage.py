"""Drives, arrays, and the clients of network file systems, as a healthy node shows them."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.parts import Shape

PROVENANCE = (
    "drives from the kernel's ABI documents (sysfs-class-nvme, block/stat.rst) and md.c; smartctl 7.3 as "
    "prometheus-community/smartctl_exporter records it (testdata, Samsung PM9A3), serial numbers changed; "
    "Lustre's health_check and state after its manual; mountstats of Linux 5.15 after nfs/super.c"
)
SCAN = ("smartctl", "--json=c", "--scan")
LUSTRE = "fs1"
ZFS_POOL = """\
  pool: scratch
 state: ONLINE
  scan: scrub repaired 0B in 01:12:11 with 0 errors on Sun Aug  2 01:36:13 2026
config:

\tNAME         STATE     READ WRITE CKSUM
\tscratch      ONLINE       0     0     0
\t  mirror-0   ONLINE       0     0     0
\t    nvme2n1  ONLINE       0     0     0
\t    nvme3n1  ONLINE       0     0     0

errors: No known data errors
"""
FILES = ("/etc/slurm/slurm.conf", "/etc/munge/munge.key")
STAT = ("stat", "-L", "-c", "%a %U %G %s %Y %F\t%n", "--", *FILES)


def drives(shape: Shape) -> int:
    """Those for data and the two that hold the system."""
    return shape.nvmes + 2


def asked(number: int) -> tuple[str, ...]:
    """How the check asks a drive."""
    return (
        "smartctl", "--json=c", "--info", "--health", "--attributes", "--nocheck=standby", "--device=nvme",
        f"/dev/nvme{number}",
    )  # fmt: skip


def scan(numbers: list[int]) -> str:
    """What `smartctl --scan` finds."""
    devices = [
        {"name": f"/dev/nvme{n}", "info_name": f"/dev/nvme{n}", "type": "nvme", "protocol": "NVMe"}
        for n in numbers
    ]
    return json.dumps({"json_format_version": [1, 0], "smartctl": {"exit_status": 0}, "devices": devices})


def health(number: int, exit_status: int = 0, **changes: int) -> str:
    """The health of one drive; `changes` are fields of its log."""
    log = {
        "critical_warning": 0, "temperature": 34, "available_spare": 100, "available_spare_threshold": 10,
        "percentage_used": 3, "data_units_read": 62679808, "data_units_written": 639454618,
        "host_reads": 1615291761, "host_writes": 16276566236, "controller_busy_time": 5203,
        "power_cycles": 4, "power_on_hours": 4369, "unsafe_shutdowns": 1, "media_errors": 0,
        "num_err_log_entries": 0, "warning_temp_time": 0, "critical_comp_time": 0,
    } | changes  # fmt: skip
    warning = log["critical_warning"]
    told = {
        "json_format_version": [1, 0],
        "smartctl": {"version": [7, 3], "exit_status": exit_status},
        "device": {"name": f"/dev/nvme{number}", "type": "nvme", "protocol": "NVMe"},
        "model_name": "SAMSUNG MZQL23T8HCLS-00A07", "serial_number": f"SERIAL{number + 1:06d}",
        "firmware_version": "GDC5602Q", "nvme_total_capacity": 3840755982336,
        "smart_status": {"passed": warning == 0, "nvme": {"value": warning}},
        "nvme_smart_health_information_log": log,
        "temperature": {"current": log["temperature"]}, "power_on_time": {"hours": log["power_on_hours"]},
    }  # fmt: skip
    return json.dumps(told)


def mdstat(shape: Shape, *, system: str = "", data: str = "") -> str:
    """/proc/mdstat: the system's mirror, and the stripe over the data drives where there are any."""
    first = shape.nvmes
    mirror = system or (
        f"md0 : active raid1 nvme{first + 1}n1p2[1] nvme{first}n1p2[0]\n"
        "      1843200000 blocks super 1.2 [2/2] [UU]\n      bitmap: 2/14 pages [8KB], 65536KB chunk\n\n"
    )
    members = " ".join(f"nvme{n}n1[{n}]" for n in reversed(range(shape.nvmes)))
    stripe = f"md1 : active raid0 {members}\n      30005842944 blocks super 1.2 512k chunks\n\n"
    return (
        "Personalities : [raid0] [raid1] [linear] [multipath] [raid6] [raid5] [raid4] [raid10] \n"
        + ((data or stripe) if shape.nvmes else "") + mirror + "unused devices: <none>\n"
    )  # fmt: skip


def nfs(point: str = "/home", source: str = "198.18.0.9:/export/home") -> str:
    """/proc/self/mountstats with one NFS mount."""
    return (
        "device proc mounted on /proc with fstype proc\n"
        f"device {source} mounted on {point} with fstype nfs4 statvers=1.1\n"
        "\topts:\trw,vers=4.2,rsize=1048576,wsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys\n"
        "\tage:\t83520\n\tevents:\t52472 472680 16671 57552 2104 9565 749555 0 168 24103 1 267134 \n"
        "\tbytes:\t2021340783 39056395530 0 0 1788561151 39087991255 442605 9557343 \n"
        "\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)\n"
        "\txprt:\ttcp 940 0 2 0 1 938505 938505 0 12756069 0 32 254729 10823602\n\tper-op statistics\n"
        "\t        NULL: 1 1 0 44 24 0 0 0 0\n"
        "\t        READ: 34096 34096 0 7103096 1792122744 2272 464840 467945 0\n"
        "\t       WRITE: 322308 322308 0 39161277084 56725504 401718334 10139998 411864389 0\n\n"
    )


def target(state: str = "FULL", at: int = 1785909700) -> str:
    """The `state` file of a Lustre target."""
    history = f" - [ {at - 1}, CONNECTING ]\n - [ {at}, {state} ]\n"
    return f"current_state: {state}\nstate_history:\n{history}"


def files(shape: Shape) -> dict[str, str]:
    told = {"/proc/mdstat": mdstat(shape), "/proc/self/mountstats": nfs()}
    for n in range(drives(shape)):
        told |= {f"/sys/class/nvme/nvme{n}/state": "live\n", f"/sys/class/nvme/nvme{n}/transport": "pcie\n"}
        told[f"/sys/block/nvme{n}n1/stat"] = (
            f"  {209211 + n}    41257 10806466    85820    88713   147082  6249664    35569        0    33632"
            "   129756    60179       31  1197832     7418    21512      948\n"
        )
    told["/sys/fs/lustre/health_check"] = "healthy\n"
    told[f"/proc/fs/lustre/mdc/{LUSTRE}-MDT0000-mdc-ffff9c0e4d3a2000/state"] = target()
    for n in range(2):
        folder = f"/proc/fs/lustre/osc/{LUSTRE}-OST{n:04x}-osc-ffff9c0e4d3a2000"
        told[f"{folder}/state"] = target("IDLE" if n else "FULL")
    told["/sys/module/zfs/version"] = "2.1.5-1ubuntu6~22.04.4\n"
    return told


def commands(shape: Shape) -> dict[tuple[str, ...], dict[str, Any]]:
    numbers = list(range(drives(shape)))
    told: dict[tuple[str, ...], dict[str, Any]] = {SCAN: {"seconds": 0.01, "stdout": scan(numbers)}}
    told |= {asked(n): {"seconds": 0.02, "stdout": health(n)} for n in numbers}
    pools = "no pools available\n" if shape.gpus else ZFS_POOL
    told["zpool", "status"] = {"seconds": 0.02, "stdout": pools}
    told[STAT] = {
        "seconds": 0.002,
        "stdout": f"644 root root 4211 1785909000 regular file\t{FILES[0]}\n"
        f"400 munge munge 1024 1785009000 regular file\t{FILES[1]}\n",
    }
    return told


def globs(shape: Shape) -> dict[str, list[str]]:
    addresses = [f"0000:{0x40 + n:02x}:00.0" for n in range(drives(shape))]
    return {
        "/sys/fs/fuse/connections/[0-9]*/waiting": [],
        "/sys/kernel/debug/lustre/osc/*/state": [],
        "/sys/kernel/debug/lustre/mdc/*/state": [],
        "/sys/class/nvme/nvme*/nvme*n[0-9]*": [
            f"/sys/class/nvme/nvme{n}/nvme{n}n1" for n in range(drives(shape))
        ],
        "/sys/bus/pci/drivers/nvme/[0-9a-f]*:*": [f"/sys/bus/pci/drivers/nvme/{a}" for a in addresses],
        "/sys/bus/pci/devices/*/nvme/nvme*": [
            f"/sys/bus/pci/devices/{a}/nvme/nvme{n}" for n, a in enumerate(addresses)
        ],
    }


def expect(shape: Shape) -> dict[str, object]:
    return {
        "nvme_count": drives(shape),
        "files": [FILES[0], {"path": FILES[1], "owner": "munge", "mode": "0400"}],
    }
