"""What the kernel wrote about storage becomes findings that end with time, or with the server's return."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.storage_log import RULES, Limits, storage_log

from clustertools.model import Finding, Status, Verdict
from clustertools.sources.kernel_groups import MOST_GROUPS
from tests.checks.kernel_node import Node

Run = Callable[..., Verdict]


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


@pytest.mark.parametrize(
    ("text", "code", "status", "part"),
    [
        ("EXT4-fs error (device sda1): x: inode #2", "HostFilesystemError", Status.CRITICAL, "fs@sda1"),
        ("EXT4-fs (md0): Remounting filesystem read-only", "HostFilesystemError", Status.CRITICAL, "fs@md0"),
        (
            "EXT4-fs (dm-0): I/O error while writing superblock",
            "HostFilesystemError",
            Status.CRITICAL,
            "fs@dm-0",
        ),
        ("Aborting journal on device sda1-8.", "HostFilesystemError", Status.CRITICAL, "fs@sda1"),
        ("BTRFS info (device sdb1): forced readonly", "HostFilesystemError", Status.CRITICAL, "fs@sdb1"),
        ("I/O error, dev nvme0n1, sector 8 op 0x0:(READ)", "HostIoError", Status.WARNING, "disk@nvme0n1"),
        (
            "Buffer I/O error on dev dm-0, logical block 13, lost async page write",
            "HostIoError",
            Status.WARNING,
            "disk@dm-0",
        ),
        (
            "nvme nvme4: I/O tag 22 (2016) opcode 0x2 (Admin Cmd) QID 0 timeout, reset controller",
            "NvmeTimeout",
            Status.WARNING,
            "disk@nvme4",
        ),
        ("nvme nvme0: I/O 12 QID 5 timeout, aborting", "NvmeTimeout", Status.WARNING, "disk@nvme0"),
        (
            "nvme nvme4: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff",
            "NvmeTimeout",
            Status.WARNING,
            "disk@nvme4",
        ),
        ("nvme nvme4: Disabling device after reset failure: -19", "DiskGone", Status.CRITICAL, "disk@nvme4"),
        ("block nvme0n1: no available path - failing I/O", "DiskGone", Status.CRITICAL, "disk@nvme0n1"),
        ("sd 0:0:1:0: [sdb] tag#0 rejecting I/O to dead device", "DiskGone", Status.CRITICAL, "disk@0:0:1:0"),
        (
            "md/raid0md0: Disk failure on nvme0n1p1 detected, failing array.",
            "RaidDiskFailed",
            Status.WARNING,
            "raid@md0",
        ),
        (
            "md/raid1:md0: Disk failure on sda1, disabling device.",
            "RaidDiskFailed",
            Status.WARNING,
            "raid@md0",
        ),
        (
            "md/raid:md5: not enough operational devices (3/8 failed)",
            "RaidDiskFailed",
            Status.WARNING,
            "raid@md5",
        ),
        ("nfs: server nas01 not responding, timed out", "NfsNotResponding", Status.WARNING, "nfs@nas01"),
        ("NFS: nfs4_reclaim_open_state: Lock reclaim failed!", "NfsLocksLost", Status.WARNING, ""),
        (
            "LustreError: 167-0: fs1-OST0003-osc-ff: This client was evicted by fs1-OST0003; in progress",
            "LustreEvicted",
            Status.WARNING,
            "lustre@fs1-OST0003",
        ),
    ],
)
def test_an_event(text: str, code: str, status: Status, part: str) -> None:
    finding = only(Node().say(text).look(storage_log))
    assert (finding.code, finding.status, finding.subject.part) == (code, status, part)
    assert finding.evidence == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "EXT4-fs (md0): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.",
        "EXT4-fs (sda1): re-mounted. Opts: errors=remount-ro",
        "md/raid1:md0: active with 2 out of 2 mirrors",
        "nvme nvme0: 64/0/0 default/read/poll queues",
        " nfs_wb_all+0x2c/0x190 [nfs]",  # one frame of a trace says little
        "Lustre: fs1-OST0003-osc-ff: Connection restored to 198.18.0.1@o2ib (at 198.18.0.1@o2ib)",
    ],
)
def test_ordinary_lines_are_none(text: str) -> None:
    assert Node().say(text).look(storage_log).status is Status.OK


def test_a_recorded_node_whose_disks_fail(run: Run) -> None:
    verdict = run("storage_log", host="host-disks-failing")
    assert {f.subject.part for f in verdict.findings if f.status is Status.CRITICAL} == {
        "disk@nvme4",
        "fs@sda1",
    }
    assert run("storage_log", host="h100-healthy").status is Status.OK


def test_an_nfs_server_that_is_back_ends_it() -> None:
    node = (
        Node()
        .say("nfs: server a not responding, still trying")
        .say("nfs: server b not responding, still trying")
    )
    assert len(node.look(storage_log).findings) == 2
    assert only(node.say("nfs: server a OK").look(storage_log)).subject.part == "nfs@b"


def test_the_frames_of_hung_tasks_add_up() -> None:
    node = Node().say(" nfs_wb_all+0x2c/0x190 [nfs]")
    assert node.look(storage_log).findings == ()
    assert only(node.say(" nfs_wb_all+0x2c/0x190 [nfs]").look(storage_log)).code == "NfsWritebackHung"


def test_names_out_of_the_log_are_made_plain() -> None:
    finding = only(
        Node().say("nfs: server $(reboot);`x`/../é not responding, still trying").look(storage_log)
    )
    assert finding.subject.part == "nfs@__reboot___x__..__"


def test_it_ends_with_its_time() -> None:
    node = Node().say("I/O error, dev sda, sector 8 op 0x0:(READ)")
    assert only(node.look(storage_log)).code == "HostIoError"
    node.seconds += Limits().disk_seconds + 1
    assert node.look(storage_log).status is Status.OK


def test_a_storm_is_one_finding_with_its_span() -> None:
    node = Node()
    for number in range(500):
        node.say(f"I/O error, dev sda, sector {number} op 0x0:(READ)", 0.1)
    finding = only(node.look(storage_log))
    assert "500 times in 50 s" in finding.summary
    assert len(finding.evidence) == Limits().evidence_lines


def test_memory_stays_bounded() -> None:
    node = Node()
    for number in range(400):
        node.say(f"nfs: server host{number} not responding, still trying", 0.01)
        node.say(f"nfs: server other{number} OK", 0.01)
    node.look(storage_log)
    assert len(node.memory["standing"]) == MOST_GROUPS
    assert len(node.memory["ended"]) <= MOST_GROUPS


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    node = Node()
    node.ring = None
    assert node.look(storage_log).status is Status.UNKNOWN


@pytest.mark.parametrize(
    "memory", [{"standing": [{"kind": 3}]}, {"standing": 7}, {"ended": 7}, {"cursor": []}]
)
def test_a_memory_that_makes_no_sense_means_a_first_look(memory: dict[str, object]) -> None:
    node = Node().say("I/O error, dev sda, sector 8")
    node.memory = {"boot_id": "boot-1", "cursor": "kmsg:boot-1:999999999:99", **memory}
    assert only(node.look(storage_log)).code == "HostIoError"


def test_each_kind_names_a_limit_that_exists() -> None:
    for rule in RULES.values():
        assert getattr(Limits(), rule.limit) > 0
        assert rule.code in storage_log.codes
