"""What kernel lines say about the host."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.sources.kernel_events import parse_host_event

LINES = [
    ("Out of memory: Killed process 1234 (python) total-vm:1024kB, anon-rss:1kB", "oom-kill", "python", 1234),
    (
        "Memory cgroup out of memory: Killed process 77 (pt_main_thread) total-vm:1kB",
        "oom-kill",
        "pt_main_thread",
        77,
    ),
    (
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0-1,oom_memcg=/slurm/uid_1,"
        "task_memcg=/slurm/uid_1/job_2,task=python,pid=77,uid=1000",
        "oom-kill",
        "python",
        77,
    ),
    ("INFO: task nvidia-smi:1234 blocked for more than 120 seconds.", "hung-task", "nvidia-smi", 1234),
    ("INFO: task kworker/0:1:9 blocked for more than 241 seconds.", "hung-task", "kworker/0:1", 9),
    ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1234]", "lockup", "CPU#3", None),
    ("watchdog: Watchdog detected hard LOCKUP on cpu 3", "lockup", "cpu 3", None),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", "lockup", "rcu_preempt", None),
    ("Kernel panic - not syncing: Fatal exception", "oops", "Kernel panic", None),
    ("Oops: 0000 [#1] PREEMPT SMP NOPTI", "oops", "Oops", None),
    ("Internal error: Oops: 96000004 [#1] SMP", "oops", "Oops", None),
    (
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "oops",
        "kernel NULL pointer dereference",
        None,
    ),
    ("kernel BUG at fs/ext4/inode.c:1234!", "oops", "fs/ext4/inode.c:1234", None),
    (
        "mce: [Hardware Error]: CPU 12: Machine Check Exception: 5 Bank 4: be00000000800400",
        "machine-check",
        "CPU 12",
        None,
    ),
    ("{1}[Hardware Error]: event severity: fatal", "machine-check", "fatal", None),
    (
        "{1}[Hardware Error]: event severity: corrected",
        "machine-check-corrected",
        "event severity: corrected",
        None,
    ),
    (
        "mce: [Hardware Error]: Machine check events logged",
        "machine-check-corrected",
        "Machine check events logged",
        None,
    ),
    ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0", "machine-check", "MC0", None),
    (
        "EDAC MC0: 2 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
        "machine-check-corrected",
        "MC0",
        None,
    ),
    (
        "Memory failure: 0x1a2b3c: recovery action for dirty LRU page: Recovered",
        "machine-check",
        "Memory failure",
        None,
    ),
    (
        "EXT4-fs error (device sda1): ext4_lookup:1855: inode #2: comm ls: deleted",
        "filesystem-error",
        "sda1",
        None,
    ),
    ("EXT4-fs (sda1): Remounting filesystem read-only", "filesystem-error", "sda1", None),
    ("XFS (dm-0): Corruption detected. Unmount and run xfs_repair", "filesystem-error", "dm-0", None),
    ('XFS (sda1): metadata I/O error in "xfs_da_read_buf" at daddr 0x1', "filesystem-error", "sda1", None),
    ("XFS (dm-0): Filesystem has been shut down due to log error (0x2).", "filesystem-error", "dm-0", None),
    ("BTRFS error (device sda1): bad tree block start", "filesystem-error", "sda1", None),
    ("blk_update_request: I/O error, dev sda, sector 1234", "io-error", "sda", None),
    ("critical medium error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0", "io-error", "nvme0n1", None),
    ("Buffer I/O error on dev sda1, logical block 0, async page read", "io-error", "sda1", None),
    (
        "pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0",
        "pcie-fatal",
        "0000:3b:00.0",
        None,
    ),
    (
        "nvidia 0000:3b:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer",
        "pcie-fatal",
        "0000:3b:00.0",
        None,
    ),
    (
        "mlx5_core 0000:1a:00.0: mlx5_pcie_event:301:(pid 0): Detected insufficient power on the PCIe slot",
        "slot-power",
        "0000:1a:00.0",
        None,
    ),
    ("nfs: server nas01 not responding, still trying", "nfs-silent", "nas01", None),
    ("nfs: server nas01 OK", "nfs-back", "nas01", None),
    ("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", "gpu-lost", "0000:3b:00.0", None),
]


@pytest.mark.parametrize(("text", "kind", "what", "pid"), LINES)
def test_an_event(text: str, kind: str, what: str, pid: int | None) -> None:
    event = parse_host_event(text)
    assert event is not None
    assert (event.kind, event.what, event.pid) == (kind, what, pid)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "python[1234]: segfault at 0 ip 00007f error 4 in libtorch.so[7f+1]",
        "EXT4-fs (vda): mounted filesystem r/w with ordered data mode",
        "EXT4-fs (vda): re-mounted r/w",
        "XFS (dm-0): Mounting V5 Filesystem",
        "pcieport 0000:3a:00.0: AER: Corrected error received: 0000:3b:00.0",
        "pcieport 0000:3a:00.0: AER: Uncorrected (Non-Fatal) error received: 0000:3b:00.0",
        "EDAC MC0: Giving out device to module skx_edac controller Skylake",
        "mce: CPU supports 20 MCE banks",
        "nfs: Deprecated parameter 'intr'",
        "Out of memory: OOM victim 12 (python) is already exiting. Skip killing the task",
        "debug: BUGGY firmware",
    ],
)
def test_no_event(text: str) -> None:
    assert parse_host_event(text) is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([line[0] for line in LINES]), st.text(max_size=200), st.integers(0, 120))
def test_any_text_is_answered(line: str, noise: str, cut: int) -> None:
    parse_host_event(line[:cut] + noise)
    parse_host_event(noise + line[cut:])


@pytest.mark.parametrize(
    "unit", ["NVRM: ", "0000:3b:00", "oom-kill:constraint=", "XFS (a): ", "a", "\0", "(", "nfs: server "]
)
def test_a_megabyte_is_answered_at_once(unit: str) -> None:
    began = time.perf_counter()
    parse_host_event("NVRM: fallen off EDAC oom-kill:constraint=" + unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - began < 0.5
