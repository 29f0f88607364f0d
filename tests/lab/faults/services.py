"""Nodes whose processes, services or place in Slurm are not as they should be."""

from __future__ import annotations

from typing import Any

from tests.lab import whole_node
from tests.lab.host_faults import Machine
from tests.lab.parts import services as room

_H100, _CPU = whole_node.DGX_H100, whole_node.CPU
_DNS = tuple(f"dns:{server}" for server in room.NAME_SERVERS)
_SILENT = "no answer within 3 s"
_JOB = "0::/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0\n"
_BOOT = "00000000-0000-4000-8000-000000009001"
_SESSION = "0::/user.slice/user-{}.slice/session-4.scope\n"


def _process(pid: int, comm: str, uid: int, cgroup: str, **how: Any) -> dict[str, str]:
    return {
        f"/proc/{pid}/comm": f"{comm}\n",
        f"/proc/{pid}/stat": room.stat(pid, comm, **how),
        f"/proc/{pid}/status": room.status(comm, uid, 4 << 20),
        f"/proc/{pid}/cgroup": cgroup,
    }


_ASKED = (*_DNS, "tcp:198.18.0.9:2049")

MACHINES = (
    Machine(
        "host-services-down",
        "munge has failed, containerd hangs, the name servers and the file server are silent, jobs may pin "
        "64 KiB and start hardly a thread",
        ("ServiceDown", "UnitFailed", "ContainerRuntimeSilent", "DnsSilent", "HostUnreachable", "MemlockLow",
         "NofileLow", "TaskTableFull", "FileTableFull", "ModuleMissing", "ConntrackFull", "SlurmNodeDown"),
        files={
            "/proc/2210/limits": room.limits("65536", 4096),
            "/proc/loadavg": "812.20 700.18 301.12 1/31500 412083\n",
            "/proc/sys/kernel/pid_max": "32768\n",
            "/proc/sys/fs/file-nr": "97280\t0\t100000\n",
            "/proc/modules": "nvme 53248 9 - Live 0x0000000000000000\n"
            "nvidia 62771200 605 - Live 0x0000000000000000 (POE)\n",
            "/proc/sys/net/netfilter/nf_conntrack_count": "261000\n",
            "/lib/modules/5.15.0-1053-nvidia/modules.builtin": "kernel/drivers/block/loop.ko\n",
        },
        commands={
            room.show_argv(_H100): {
                "seconds": 0.06, "stdout": room.shown(
                    _H100, room.unit("munge.service", "failed", "failed", Result="exit-code"),
                    room.unit("sssd.service", "failed", "failed", Result="timeout"),
                ),
            },
            (*room.PROBE, "3", *_ASKED): {
                "seconds": 3.05, "stdout": room.answered(*_ASKED, **dict.fromkeys(_ASKED, _SILENT)),
            },
            (*room.PROBE, "5", "grpc:/run/containerd/containerd.sock"): {
                "seconds": 5.05, "stdout": room.answered(
                    "grpc:/run/containerd/containerd.sock",
                    **{"grpc:/run/containerd/containerd.sock": "no answer within 5 s"},
                ),
            },
            (*room.NODE, "{node}"): {
                "seconds": 0.02, "stdout": room.node_line(
                    _H100, "DOWN*+DRAIN", "Not responding [slurm@2026-08-06T06:40:01]"
                ),
            },
        },
    ),
    Machine(
        "host-kernel-new-no-driver",
        "booted into a new kernel, for which no NVIDIA module was built; Slurm sees 0 of 8 GPUs",
        ("DriverNotForKernel", "SlurmNodeInvalid", "ConfigurationDrift"),
        files={
            "/proc/sys/kernel/osrelease": "5.15.0-1060-nvidia\n",
            "/proc/modules": "nvme 53248 9 - Live 0x0000000000000000\n"
            "mlx5_core 2191360 1 - Live 0x0000000000000000\n",
            "/lib/modules/5.15.0-1053-nvidia/updates/dkms/nvidia.ko": "",
        },
        globs={"/sys/bus/pci/drivers/vfio-pci/*:*": ()},
        commands={
            (*room.NODE, "{node}"): {
                "seconds": 0.02, "stdout": room.node_line(
                    _H100, "IDLE+DRAIN+INVALID_REG",
                    "gres/gpu count reported lower than configured (0 < 8) [slurm@2026-08-06T06:01:01]",
                ),
            },
        },
    ),
    Machine(
        "host-stray-processes",
        "a user without a job here trains in a login shell, another one's old job left a process, and an "
        "nvidia-smi has been hanging in the driver since five minutes",
        ("StrayProcess", "OrphanedProcess", "DriverTaskStuck"),
        files={
            **_process(51000, "python3", 1005, _SESSION.format(1005), ticks=720000, start=1000000),
            **_process(52000, "wandb-service", 1006, "0::/system.slice/slurmd.service\n", start=1200000),
            **_process(53000, "python3", 1006, _JOB,
                       ppid=2210, start=8900000),
            **_process(54000, "nvidia-smi", 0, "0::/system.slice/cron.service\n", state="D", start=8990000),
            "/proc/54000/status": "Name:\tnvidia-smi\nState:\tD (disk sleep)\nUid:\t0\t0\t0\t0\n"
            "voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n",
            "/proc/54000/wchan": "rwsem_down_write_slowpath",
            "/proc/54000/stack": "[<0>] os_acquire_rwlock_write+0x3a/0x50 [nvidia]\n",
        },
        about={
            "boot_id": _BOOT,
            "past": {
                "host_processes": {
                    "blocked": {
                        "boot_id": _BOOT,
                        "tasks": {"54000:8990000": {"since": 1785999690.0, "switches": 9}},
                    },
                },
            },
        },
    ),
    Machine(
        "slurm-head-bad-nodes",
        "six of sixteen nodes are down or drained, and the backup controller does not answer",
        ("SlurmControllerDown", "SlurmNodesBad"),
        base="cpu-healthy",
        commands={
            ("scontrol", "ping"): {
                "seconds": 4.1, "returncode": 1, "stdout": "Slurmctld(primary) at head-1 is UP\n"
                "Slurmctld(backup) at head-2 is DOWN\n",
            },
            room.NODE: {
                "seconds": 0.03, "stdout": "".join(
                    room.node_line(_CPU, "DOWN*" if n < 4 else "IDLE+DRAIN" if n < 7 else "ALLOCATED",
                                   "Not responding [slurm@2026-08-06T06:40:01]" if n < 4 else
                                   "gpu 3 xid 79 [root@2026-08-06T06:40:01]" if n < 7 else "",
                                   name=f"gpu-{n:03d}")
                    for n in range(1, 17)
                ),
            },
        },
    ),
    Machine(
        "slurm-head-down",
        "no slurmctld answers",
        ("SlurmControllerDown",),
        base="cpu-healthy",
        unknown=("slurm_controller",),
        commands={
            ("scontrol", "ping"): {
                "seconds": 5.0, "returncode": 1, "stdout": "Slurmctld(primary) at head-1 is DOWN\n"
                + "*" * 41 + "\n** RESTORE SLURMCTLD DAEMON TO SERVICE **\n" + "*" * 41 + "\n",
            },
        },
    ),
)  # fmt: skip
