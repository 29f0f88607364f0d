"""What a kernel line says about the host: memory, stuck tasks, hardware, file systems, disks, networks.

    event = parse_host_event("Out of memory: Killed process 1234 (python) total-vm:...")
    event.kind, event.what, event.pid      # "oom-kill", "python", 1234

A crash of one user program ("segfault at ...") is no event: that is for the program's own log.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

_LOOKED_AT = 4096

Kind = Literal[
    "oom-kill",
    "hung-task",
    "lockup",
    "oops",
    "machine-check",
    "machine-check-corrected",
    "filesystem-error",
    "io-error",
    "nvme-timeout",
    "disk-dead",
    "raid-degraded",
    "pcie-fatal",
    "pcie-narrow",
    "slot-power",
    "nfs-silent",
    "nfs-back",
    "nfs-locks",
    "nfs-writeback",
    "lustre-evicted",
    "nic-hot",
    "nic-module",
    "nic-unplugged",
    "nic-plugged",
    "nic-health",
    "nic-recovered",
    "nic-command",
    "nic-transmit",
    "carrier-lost",
    "carrier-back",
    "netdevice-stuck",
    "peermem",
    "gpu-lost",
]


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One event. `what` is the task, device or server that the line names, where it names one.

    `job` is the Slurm job whose memory ran out, by the path of its cgroup.
    """

    kind: Kind
    what: str
    pid: int | None
    text: str
    job: str = ""


_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-7])?"

# The shapes are those of the Linux kernel's own messages (5.x and 6.x), each with such a line above it.
# Case makes no difference. The first that matches a line decides.
_SHAPES: tuple[tuple[Kind, str], ...] = (
    # Out of memory: Killed process 1234 (python) total-vm:1024kB, anon-rss:...
    # Memory cgroup out of memory: Killed process 1234 (python) total-vm:1024kB, anon-rss:...
    ("oom-kill", r"out of memory[^:]{0,40}: Kill(?:ed)? process (?P<pid>\d{1,10}) \((?P<what>.{0,64}?)\)"),
    # oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=...,
    #   task_memcg=/slurm/uid_1000/job_4812/step_0,task=python,pid=1234,uid=1000
    ("oom-kill", r"oom-kill:constraint=.*?,task=(?P<what>[^,]{0,64}),pid=(?P<pid>\d{1,10})\b"),
    # INFO: task nvidia-smi:1234 blocked for more than 120 seconds.
    ("hung-task", r"INFO: task (?P<what>\S{1,64}):(?P<pid>\d{1,10}) blocked for more than \d+ seconds"),
    # watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1234]
    ("lockup", r"soft lockup - (?P<what>CPU#\d{1,5}) stuck for \d+s"),
    # watchdog: Watchdog detected hard LOCKUP on cpu 3
    ("lockup", r"detected hard LOCKUP on (?P<what>cpu \d{1,5})"),
    # rcu: INFO: rcu_preempt self-detected stall on CPU
    ("lockup", r"INFO: (?P<what>rcu\w{0,20}) (?:self-)?detected (?:expedited )?stalls? on"),
    # Kernel panic - not syncing: Fatal exception
    ("oops", r"(?P<what>Kernel panic) - not syncing"),
    # Oops: 0000 [#1] PREEMPT SMP NOPTI
    # Internal error: Oops: 96000004 [#1] SMP
    ("oops", r"\b(?P<what>Oops): (?:general protection fault|[0-9a-f]{4,16}\b)"),
    # BUG: kernel NULL pointer dereference, address: 0000000000000008
    # BUG: unable to handle page fault for address: ffffc90000000000
    ("oops", r"\bBUG: (?P<what>kernel NULL pointer dereference|unable to handle)"),
    # kernel BUG at fs/ext4/inode.c:1234!
    ("oops", r"kernel BUG at (?P<what>\S{1,80})!"),
    # mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 4: be00000000800400
    ("machine-check", r"(?P<what>CPU \d{1,5}): Machine Check(?: Exception)?: [0-9a-f]{1,16} Bank"),
    # {1}[Hardware Error]: event severity: fatal
    ("machine-check", r"\[Hardware Error\]: +event severity: (?P<what>fatal|recoverable)"),
    # [Hardware Error]: Uncorrected, software restartable error.
    ("machine-check", r"\[Hardware Error\]: +(?P<what>Uncorrected|Deferred)\b"),
    # EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0
    ("machine-check", r"EDAC (?P<what>MC\d{1,3}): \d+ UE\b"),
    # Memory failure: 0x1a2b3c: recovery action for dirty LRU page: Recovered
    ("machine-check", r"(?P<what>Memory failure): 0x[0-9a-f]{1,16}: "),
    # mce: [Hardware Error]: Machine check events logged
    # {2}[Hardware Error]: event severity: corrected
    # [Hardware Error]: Corrected error, no action required.
    (
        "machine-check-corrected",
        r"\[Hardware Error\]: +"
        r"(?P<what>Machine check events logged|event severity: corrected|Corrected error)",
    ),
    # EDAC MC0: 2 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0
    ("machine-check-corrected", r"EDAC (?P<what>MC\d{1,3}): \d+ CE\b"),
    # EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm ls: deleted inode referenced: 12
    ("filesystem-error", r"EXT[234]-fs (?:error|panic) \(device (?P<what>[^)]{1,40})\)"),
    # EXT4-fs (sda1): Remounting filesystem read-only
    ("filesystem-error", r"\((?P<what>[^)]{1,40})\): Remounting filesystem read-only"),
    # EXT4-fs (dm-0): I/O error while writing superblock
    ("filesystem-error", r"EXT[234]-fs \((?P<what>[^)]{1,40})\): I/O error while writing superblock"),
    # Aborting journal on device sda1-8.
    ("filesystem-error", r"Aborting journal on device (?P<what>[^ .]{1,40}?)(?:-\d+)?\.?$"),
    # BTRFS info (device sda1): forced readonly
    ("filesystem-error", r"BTRFS.{0,20} \(device (?P<what>[^)]{1,40})\).{0,40}forced readonly"),
    # XFS (dm-0): Corruption detected. Unmount and run xfs_repair
    # XFS (sda1): metadata I/O error in "xfs_da_read_buf+0x..." at daddr 0x1 len 8 error 5
    ("filesystem-error", r"XFS \((?P<what>[^)]{1,40})\): (?:Corruption|metadata (?:I/O error|corruption))"),
    # XFS (dm-0): Filesystem has been shut down due to log error (0x2).
    # XFS (dm-0): log I/O error -5
    (
        "filesystem-error",
        r"XFS \((?P<what>[^)]{1,40})\): (?:.{0,40}has been shut ?down|.{0,40}log I/O error)",
    ),
    # BTRFS error (device sda1): bad tree block start
    # BTRFS: error (device sda1) in btrfs_commit_transaction:2300: errno=-5 IO failure
    ("filesystem-error", r"BTRFS:? (?:error|critical) \(device (?P<what>[^)]{1,40})\)"),
    # blk_update_request: I/O error, dev sda, sector 1234
    # critical medium error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0
    ("io-error", r"(?:I/O|critical medium|critical target) error, dev (?P<what>[^ ,]{1,40}), sector"),
    # Buffer I/O error on dev sda1, logical block 0, async page read
    ("io-error", r"Buffer I/O error on dev(?:ice)? (?P<what>[^ ,]{1,40}), logical block"),
    # kworker/u203:1: attempt to access beyond end of device
    # dm-0: rw=2049, sector=8, nr_sectors = 8 limit=4      (the line after it, which names the device)
    ("io-error", r"(?P<what>)attempt to access beyond end of device"),
    # nvme nvme4: I/O tag 22 (2016) opcode 0x2 (Admin Cmd) QID 0 timeout, reset controller
    # nvme nvme0: I/O 12 QID 5 timeout, aborting
    (
        "nvme-timeout",
        r"nvme (?P<what>nvme\d{1,4}): I/O .{0,80} timeout, (?:reset controller|aborting|disable)",
    ),
    # nvme nvme4: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff
    ("nvme-timeout", r"nvme (?P<what>nvme\d{1,4}): controller is down; will reset"),
    # nvme nvme4: Disabling device after reset failure: -19
    # nvme nvme4: Removing after probe failure status: -19
    (
        "disk-dead",
        r"nvme (?P<what>nvme\d{1,4}): (?:Disabling device after reset|Removing after probe) failure",
    ),
    # block nvme0n1: no available path - failing I/O
    ("disk-dead", r"block (?P<what>nvme\w{1,20}): no available path - failing I/O"),
    # sd 0:0:0:0: [sda] rejecting I/O to dead device          sd 0:0:0:0: rejecting I/O to dead device
    ("disk-dead", r"(?P<what>\b\d+:\d+:\d+:\d+): .{0,20}rejecting I/O to dead device"),
    # md/raid1:md0: Disk failure on sda1, disabling device.
    # md/raid0md0: Disk failure on nvme0n1p1 detected, failing array.
    ("raid-degraded", r"md/raid\d{0,2}:?(?P<what>md\w{1,20}): Disk failure on \S{1,40}"),
    # md/raid:md5: not enough operational devices (3/8 failed)
    ("raid-degraded", r"md/raid\d{0,2}:?(?P<what>md\w{1,20}): not enough operational"),
    # pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0
    # pcieport 0000:3a:00.0: AER: Multiple Uncorrectable (Fatal) error message received from 0000:3b:00.0
    (
        "pcie-fatal",
        r"AER: (?:Multiple )?Uncorrect(?:ed|able) \(Fatal\) error (?:message )?received:? (?:from )?"
        rf"(?P<what>{_ADDRESS})",
    ),
    # nvidia 0000:3b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, ...
    ("pcie-fatal", rf"(?P<what>{_ADDRESS}): PCIe Bus Error: severity=Uncorrect(?:ed|able) \(Fatal\)"),
    # pci 0000:3b:00.0: 63.008 Gb/s available PCIe bandwidth, limited by 16.0 GT/s PCIe x4 link at
    #   0000:3a:00.0 (capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)
    ("pcie-narrow", rf"(?P<what>{_ADDRESS}): .{{0,20}}available PCIe bandwidth, limited by"),
    # mlx5_core 0000:1a:00.0: mlx5_pcie_event:301:(pid 0): Detected insufficient power on the PCIe slot (27W).
    ("slot-power", rf"(?P<what>{_ADDRESS}): .{{0,80}}insufficient power on the PCIe slot"),
    # nfs: server nas01 not responding, still trying
    # lockd: server nas01 not responding, still trying
    ("nfs-silent", r"(?:nfs|lockd): server (?P<what>\S{1,255}) not responding"),
    # nfs: server nas01 OK
    ("nfs-back", r"(?:nfs|lockd): server (?P<what>\S{1,255}) OK\b"),
    # NFS: nfs4_reclaim_open_state: Lock reclaim failed!
    ("nfs-locks", r"(?P<what>)nfs4_reclaim_open_state: Lock reclaim failed"),
    #  nfs_wb_all+0x2c/0x190 [nfs]      in the stack of a task that hangs
    (
        "nfs-writeback",
        r"\b(?P<what>nfs_lock_and_join_requests|nfs_wb_all|nfs_page_async_flush|nfs_writepages_callback)"
        r"\+0x[0-9a-f]",
    ),
    # LustreError: 167-0: fs1-OST0003-osc-ffff8: This client was evicted by fs1-OST0003; in progress ...
    ("lustre-evicted", r"LustreError: .{0,120}This client was evicted by (?P<what>[\w.-]{1,64})"),
    # mlx5_core 0000:5c:00.0: Port module event[error]: module 0, Cable error, High Temperature
    # mlx5_core 0000:5c:00.0: mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 0, ...
    (
        "nic-hot",
        rf"(?:mlx5_core (?P<what>{_ADDRESS}).{{0,80}})?Port module event.{{0,60}}High Temperature",
    ),
    ("nic-module", rf"mlx5_core (?P<what>{_ADDRESS}).{{0,80}}Port module event\[error\]"),
    # mlx5_core 0000:5c:00.0: Port module event: module 0, Cable unplugged
    ("nic-unplugged", rf"mlx5_core (?P<what>{_ADDRESS}).{{0,80}}Port module event: .{{0,40}}Cable unplugged"),
    ("nic-plugged", rf"mlx5_core (?P<what>{_ADDRESS}).{{0,80}}Port module event: .{{0,40}}Cable plugged"),
    # mlx5_core 0000:5c:00.0: poll_health:739:(pid 0): device's health compromised - reached miss count
    # mlx5_core 0000:5c:00.0: print_health_info:426:(pid 0): synd 0x8: unrecoverable hardware error
    # mlx5_core 0000:5c:00.0: mlx5_health_try_recover:338:(pid 87): health recovery failed
    (
        "nic-health",
        rf"mlx5_core (?P<what>{_ADDRESS}).{{0,120}}"
        r"(?:health compromised|reached miss count|unrecoverable hardware error|health recovery failed)",
    ),
    # mlx5_core 0000:5c:00.0: mlx5_health_try_recover:344:(pid 87): health recovery succeeded
    ("nic-recovered", rf"mlx5_core (?P<what>{_ADDRESS}).{{0,120}}health recovery succe"),
    # mlx5_core 0000:5c:00.0: wait_func:1151:(pid 967): CREATE_MKEY(0x200) timeout. Will cause a leak of a
    #   command resource
    ("nic-command", rf"mlx5_core (?P<what>{_ADDRESS}).{{0,120}}leak of a command resource"),
    # NETDEV WATCHDOG: ens1f0np0 (mlx5_core): transmit queue 3 timed out
    # mlx5_core 0000:5c:00.0 ens1f0np0: NETDEV WATCHDOG: CPU: 3: transmit queue 2 timed out 5120 ms
    ("nic-transmit", r"NETDEV WATCHDOG: (?P<what>[^ ]{1,32}) \([^)]{1,32}\): transmit queue \d+ timed out"),
    ("nic-transmit", r"(?P<what>[^ :]{1,32}): NETDEV WATCHDOG: CPU: \d+: transmit queue \d+ timed out"),
    # mlx5_core 0000:5c:00.0 ens1f0np0: TX timeout detected
    ("nic-transmit", rf"{_ADDRESS} (?P<what>[^ :]{{1,32}}): TX timeout detected"),
    # mlx5_core 0000:5c:00.0 ens1f0np0: Link down       ixgbe 0000:3b:00.0 eth0: NIC Link is Down
    ("carrier-lost", rf"{_ADDRESS} (?P<what>[^ :]{{1,32}}): (?:NIC )?Link (?:is )?down\b"),
    # mlx5_core 0000:5c:00.0 ens1f0np0: Link up         ixgbe 0000:3b:00.0 eth0: NIC Link is Up 10 Gbps
    ("carrier-back", rf"{_ADDRESS} (?P<what>[^ :]{{1,32}}): (?:NIC )?Link (?:is )?up\b"),
    # unregister_netdevice: waiting for eth0 to become free. Usage count = 1
    ("netdevice-stuck", r"unregister_netdevice: waiting for (?P<what>\S{1,32}) to become free"),
    # nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further processing
    ("peermem", r"(?P<what>)nv_get_p2p_free_callback.{0,20}ERROR detected invalid context"),
    # NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.
    ("gpu-lost", rf"NVRM: .{{0,200}}?(?P<what>{_ADDRESS}).{{0,200}}fallen off the bus"),
)
# A line without any of these says nothing, as most do; plain words, as `in` finds them sooner than a pattern.
_WORDS = (
    "out of memory", "oom-kill", "blocked for more", "lockup", "stall", "kernel panic", "oops", "bug",
    "machine check", "hardware error", "edac", "memory failure", "-fs ", "xfs", "btrfs", "error, dev", "i/o",
    "journal on", "fatal", "beyond end", "will reset", "failure", "md/raid", "pcie bandwidth",
    "insufficient power", ": server ", "nfs4_reclaim", "nfs_", "evicted by", "module event", "health",
    "unrecoverable", "command resource", "netdev watchdog", "timeout", " link ", "become free",
    "invalid context", "fallen off",
)  # fmt: skip


@functools.cache
def _shape(number: int) -> re.Pattern[str]:
    # compiled when a line first needs it: importing this module must cost a cold start nothing
    return re.compile(_SHAPES[number][1], re.IGNORECASE)


@functools.lru_cache(maxsize=16384)  # several checks go through the same ring in one pass
def parse_host_event(text: str) -> HostEvent | None:
    """The event that a line reports; None for all others, which are most."""
    text = text[:_LOOKED_AT]
    lower = text.lower()
    if not any(word in lower for word in _WORDS):
        return None
    for number, (kind, _) in enumerate(_SHAPES):
        match = _shape(number).search(text)
        if match:
            pid = match.groupdict().get("pid")
            job = re.search(r"task_memcg=[^,]{0,200}/job_(\d{1,12})\b", text) if kind == "oom-kill" else None
            return HostEvent(
                kind, match["what"] or "", int(pid) if pid else None, text, job[1] if job else ""
            )
    return None
