"""Processes, services, limits, modules and the IP network of a node; compute nodes run slurmd, the node
without GPUs is the head node with slurmctld."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clustertools.host import PYTHON
from clustertools.sources.tools.systemctl_show import PROPERTIES
from tests.lab.parts import Shape

PROVENANCE = (
    "processes, tables and limits written from proc(5), proc_pid_stat(5) and proc_pid_limits(5); scontrol "
    "recorded from Slurm 22.05.8, names changed; systemctl show written from systemd 252"
)

NAME_SERVERS = ("198.18.0.53", "198.18.0.54")
SHOW = ("systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}")
UNITS = ("*.service", "*.mount")
PROBE = (PYTHON, "-m", "clustertools.sources.endpoints", "--deadline")
NODE = ("scontrol", "--oneliner", "show", "node")
_KERNEL_THREAD = 0x00200000 | 0x8040


def services(shape: Shape) -> list[str]:
    """What its node class expects to run."""
    return ["slurmd", "munge"] if shape.gpu else ["slurmctld", "munge"]


def stat(
    pid: int, comm: str, state: str = "S", *, ppid: int = 1, ticks: int = 0, threads: int = 1,
    start: int = 900, kernel: bool = False,
) -> str:  # fmt: skip
    """/proc/PID/stat; `ticks` of user time, `start` in ticks since the boot."""
    flags = _KERNEL_THREAD if kernel else 4194560
    head = f"{pid} ({comm}) {state} {ppid} {pid} {pid} 0 -1 {flags} 0 0 0 0 {ticks} 0 0 0 20 0 {threads} 0"
    return f"{head} {start} 0 0 18446744073709551615" + " 0" * 27 + "\n"


def status(comm: str, uid: int = 0, rss_kib: int = 9216) -> str:
    """The head of /proc/PID/status, with its user and its memory."""
    return f"Name:\t{comm}\nState:\tS (sleeping)\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nVmRSS:\t{rss_kib} kB\n"


def limits(memlock: str = "unlimited", nofile: int = 131072) -> str:
    """/proc/PID/limits with these hard limits."""
    rows = {
        "Max cpu time": ("unlimited", "seconds"), "Max processes": ("8255342", "processes"),
        "Max open files": (str(nofile), "files"), "Max locked memory": (memlock, "bytes"),
        "Max nice priority": ("0", ""),
    }  # fmt: skip
    head = f"{'Limit':<26}{'Soft Limit':<21}{'Hard Limit':<21}{'Units':<10}\n"
    return head + "".join(f"{n:<26}{v:<21}{v:<21}{unit:<10}\n" for n, (v, unit) in rows.items())


def unit(name: str, active: str = "active", sub: str = "running", **properties: object) -> str:
    """A unit's block of `systemctl show`."""
    told: Mapping[str, object] = {
        "NRestarts": 0, "Result": "success", "Id": name, "LoadState": "loaded", "ActiveState": active,
        "SubState": sub, "UnitFileState": "enabled", **properties,
    }  # fmt: skip
    return "".join(f"{key}={value}\n" for key, value in told.items())


def shown(shape: Shape, *changed: str) -> str:
    """What systemctl shows of a healthy node, and blocks that replace those of the same unit."""
    names = [f"{name}.service" for name in services(shape)]
    blocks = {name: unit(name) for name in [*names, "ssh.service", "chrony.service", "containerd.service"]}
    blocks["systemd-networkd-wait-online.service"] = unit(
        "systemd-networkd-wait-online.service", "failed", "failed", Result="exit-code"
    )
    # mounts have no count of restarts
    blocks["home.mount"] = unit("home.mount", sub="mounted").split("\n", 1)[1]
    for block in changed:
        blocks[next(line[3:] for line in block.splitlines() if line.startswith("Id="))] = block
    return "\n".join([blocks[name] for name in names] + list(blocks.values()))


def show_argv(shape: Shape) -> tuple[str, ...]:
    """The question that the expectations lead to."""
    return (*SHOW, *(f"{name}.service" for name in services(shape)), *UNITS)


def answered(*what: str, **errors: str) -> str:
    """What the endpoint probe prints; `errors` by what was asked."""
    return "".join(
        json.dumps({"what": w, "error": errors.get(w, ""), "denied": False, "elapsed_seconds": 0.0011}) + "\n"
        for w in what
    )


def node_line(shape: Shape, state: str = "IDLE", reason: str = "", name: str = "{node}") -> str:
    """A line of `scontrol --oneliner show node`, as Slurm 22.05 prints it."""
    gres = f"gpu:h100:{len(shape.gpus)}(S:0-1)" if shape.gpus else "(null)"
    line = (
        f"NodeName={name} Arch=x86_64 CoresPerSocket={shape.cores_per_socket}  CPUAlloc=0 "
        f"CPUEfctv={shape.cpus} CPUTot={shape.cpus} CPULoad=0.20 AvailableFeatures=ib ActiveFeatures=ib "
        f"Gres={gres} NodeAddr={name} NodeHostName={name} Version=22.05.8 "
        f"OS=Linux {shape.kernel} #53-Ubuntu SMP Wed Jun 5 17:58:22 UTC 2024  RealMemory=2000000 AllocMem=0 "
        f"FreeMem=1775000 Sockets={shape.sockets} Boards=1 State={state} "
        f"ThreadsPerCore={shape.threads_per_core} TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A "
        "Partitions=batch  BootTime=2026-08-05T06:00:00 SlurmdStartTime=2026-08-05T06:01:12 "
        "LastBusyTime=2026-08-06T02:11:40 "
        f"CfgTRES=cpu={shape.cpus},mem=2000000M,billing={shape.cpus} AllocTRES= CapWatts=n/a CurrentWatts=0 "
        "AveWatts=0 ExtSensorsJoules=n/s ExtSensorsWatts=0 ExtSensorsTemp=n/s"
    )
    return f"{line} Reason={reason}\n" if reason else line + "\n"


def _processes(shape: Shape) -> dict[str, str]:
    daemon = (2210, services(shape)[0])
    told = {
        1: "systemd",
        2: "kthreadd",
        871: "kswapd0",
        1544: "sshd",
        1881: "containerd",
        daemon[0]: daemon[1],
    }
    files = {}
    for pid, comm in told.items():
        kernel = comm in ("kthreadd", "kswapd0")
        files[f"/proc/{pid}/comm"] = f"{comm}\n"
        files[f"/proc/{pid}/stat"] = stat(pid, comm, ppid=0 if pid < 3 else 1, ticks=40, kernel=kernel)
        if not kernel:
            files[f"/proc/{pid}/status"] = status(comm)
    files["/proc/1881/limits"] = limits()
    if daemon[1] == "slurmd":
        files["/proc/2210/limits"] = limits()
    return files


def files(shape: Shape) -> dict[str, str]:
    modules = "nvme 53248 9 - Live 0x0000000000000000\nmlx5_core 2191360 1 mlx5_ib, Live 0x0000000000000000\n"
    modules += "ib_uverbs 163840 1 mlx5_ib, Live 0x0000000000000000\n" if shape.hcas else ""
    if shape.gpu == "nvidia":
        modules += "nvidia_uvm 4931584 4 - Live 0x0000000000000000 (POE)\n"
        modules += "nvidia 62771200 605 nvidia_uvm, Live 0x0000000000000000 (POE)\n"
    elif shape.gpu == "amd":
        modules += "amdgpu 19574784 24 - Live 0x0000000000000000 (OE)\n"
    return {
        **_processes(shape),
        "/proc/uptime": f"90400.22 {90400 * shape.cpus}.10\n",
        "/proc/modules": modules,
        "/proc/sys/kernel/osrelease": f"{shape.kernel}\n",
        "/etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.4 LTS"\nID=ubuntu\nID_LIKE=debian\n',
        "/proc/sys/net/core/rmem_max": "67108864\n",
        "/proc/sys/kernel/tainted": "12289\n" if shape.gpu == "nvidia" else "0\n",
        "/proc/sys/kernel/pid_max": "4194304\n",
        "/proc/sys/kernel/threads-max": "16510685\n",
        "/proc/sys/fs/file-nr": "8480\t0\t9223372036854775807\n",
        "/proc/sys/net/netfilter/nf_conntrack_count": "214\n",
        "/proc/sys/net/netfilter/nf_conntrack_max": "262144\n",
        "/etc/login.defs": "UID_MIN\t\t\t 1000\nUID_MAX\t\t\t60000\n",
        "/etc/resolv.conf": "".join(f"nameserver {server}\n" for server in NAME_SERVERS)
        + "search example.org\n",
    }


def commands(shape: Shape) -> dict[tuple[str, ...], dict[str, Any]]:
    dns = [f"dns:{server}" for server in NAME_SERVERS]
    reachable = [f"tcp:{place}" for place in expect(shape)["reachable"]]
    told = {
        (*SHOW, *UNITS): {"seconds": 0.06, "stdout": shown(shape)},
        show_argv(shape): {"seconds": 0.06, "stdout": shown(shape)},
        (*PROBE, "3", *dns): {"seconds": 0.05, "stdout": answered(*dns)},
        (*PROBE, "3", *dns, *reachable): {"seconds": 0.05, "stdout": answered(*dns, *reachable)},
        (*PROBE, "5", "grpc:/run/containerd/containerd.sock"): {
            "seconds": 0.05, "stdout": answered("grpc:/run/containerd/containerd.sock"),
        },
        (*NODE, "{node}"): {"seconds": 0.02, "stdout": node_line(shape)},
    }  # fmt: skip
    if not shape.gpu:
        lines = "".join(node_line(shape, name=f"gpu-{n:03d}") for n in range(1, 17))
        told[("scontrol", "ping")] = {"seconds": 0.02, "stdout": "Slurmctld(primary) at head-1 is UP\n"}
        told[NODE] = {"seconds": 0.03, "stdout": lines}
    return told


def globs(shape: Shape) -> dict[str, list[str]]:
    scope = "/sys/fs/cgroup/system.slice/{}slurmstepd.scope"
    return {scope.format("*"): [scope.format("")] if shape.gpu else [], "/sys/fs/cgroup/freezer/slurm*": []}


def expect(shape: Shape) -> dict[str, Any]:
    return {
        "services": services(shape), "modules": ["nvme", "mlx5-core"], "reachable": ["198.18.0.9:2049"],
        "memlock_bytes": "unlimited", "nofile": 65536, "kernel": shape.kernel, "os_release": "Ubuntu 22.04*",
        "sysctls": {"net.core.rmem_max": 67108864},
    }  # fmt: skip
