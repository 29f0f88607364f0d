"""What a kernel line says about the host: memory that ran out, stuck tasks, broken hardware, file systems.

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
    "pcie-fatal",
    "slot-power",
    "nfs-silent",
    "nfs-back",
    "gpu-lost",
]


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One event. `what` is the task, device or server that the line names, where it names one."""

    kind: Kind
    what: str
    pid: int | None
    text: str


_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}(?:\.[0-7])?"

# The shapes are those of the Linux kernel's own messages (5.x and 6.x), each with such a line above it.
# Case makes no difference. The first that matches a line decides.
_SHAPES: tuple[tuple[Kind, str], ...] = (
    # Out of memory: Killed process 1234 (python) total-vm:1024kB, anon-rss:...
    # Memory cgroup out of memory: Killed process 1234 (python) total-vm:1024kB, anon-rss:...
    ("oom-kill", r"out of memory[^:]{0,40}: Kill(?:ed)? process (?P<pid>\d{1,10}) \((?P<what>.{0,64}?)\)"),
    # oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=...,task=python,pid=1234,uid=1000
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
    # pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0
    # pcieport 0000:3a:00.0: AER: Multiple Uncorrectable (Fatal) error message received from 0000:3b:00.0
    (
        "pcie-fatal",
        r"AER: (?:Multiple )?Uncorrect(?:ed|able) \(Fatal\) error (?:message )?received:? (?:from )?"
        rf"(?P<what>{_ADDRESS})",
    ),
    # nvidia 0000:3b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, ...
    ("pcie-fatal", rf"(?P<what>{_ADDRESS}): PCIe Bus Error: severity=Uncorrect(?:ed|able) \(Fatal\)"),
    # mlx5_core 0000:1a:00.0: mlx5_pcie_event:301:(pid 0): Detected insufficient power on the PCIe slot (27W).
    ("slot-power", rf"(?P<what>{_ADDRESS}): .{{0,80}}insufficient power on the PCIe slot"),
    # nfs: server nas01 not responding, still trying
    ("nfs-silent", r"nfs: server (?P<what>\S{1,255}) not responding"),
    # nfs: server nas01 OK
    ("nfs-back", r"nfs: server (?P<what>\S{1,255}) OK\b"),
    # NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.
    ("gpu-lost", rf"NVRM: .{{0,200}}?(?P<what>{_ADDRESS}).{{0,200}}fallen off the bus"),
)
# one pass over a line decides that most say nothing
_WORTH_A_LOOK = (
    r"out of memory|oom-kill|blocked for more|lockup|detected.{0,20} stall|Kernel panic|Oops|BUG|"
    r"Machine Check|Hardware Error|EDAC|Memory failure|-fs |XFS|BTRFS|error, dev|I/O error|Fatal|"
    r"insufficient power|nfs: server|fallen off"
)


@functools.cache
def _shapes() -> tuple[re.Pattern[str], tuple[tuple[Kind, re.Pattern[str]], ...]]:
    # compiled when a line is first looked at: importing this module must cost a cold start nothing
    compiled = tuple((kind, re.compile(shape, re.IGNORECASE)) for kind, shape in _SHAPES)
    return re.compile(_WORTH_A_LOOK, re.IGNORECASE), compiled


def parse_host_event(text: str) -> HostEvent | None:
    """The event that a line reports; None for all others, which are most."""
    text = text[:_LOOKED_AT]
    worth_a_look, shapes = _shapes()
    if worth_a_look.search(text) is None:
        return None
    for kind, shape in shapes:
        match = shape.search(text)
        if match:
            pid = match.groupdict().get("pid")
            return HostEvent(kind, match["what"], int(pid) if pid else None, text)
    return None
