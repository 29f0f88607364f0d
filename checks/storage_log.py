"""What the kernel log says of disks, RAID arrays, file systems and their servers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.model import Finding, Reading, Remedy, Status
from clustertools.sources.kernel_groups import Group, Rule, Rules, follow

HOUR = 3600.0


@dataclass(frozen=True)
class Limits:
    """How long an event of each kind counts after its last repetition."""

    #: A server that is back says so in the log; this is for the case that the line was lost.
    nfs_seconds: float = HOUR
    #: Disks and file systems: a day, so that no job of the morning starts on last night's fault.
    disk_seconds: float = 24 * HOUR
    #: Lines of evidence in one finding, the first and the last ones.
    evidence_lines: int = 6


# gpud takes all of these as events and escalates after reboots; node-problem-detector those of ext4 and XFS
RULES: Rules = {
    "filesystem-error": Rule(
        "HostFilesystemError", Status.CRITICAL, Remedy.INSPECT, "disk_seconds",
        "a file system is damaged or was made read-only", "fs@",
    ),
    "io-error": Rule(
        "HostIoError", Status.WARNING, Remedy.INSPECT, "disk_seconds",
        "a disk failed to read or write", "disk@",
    ),
    "nvme-timeout": Rule(
        "NvmeTimeout", Status.WARNING, Remedy.INSPECT, "disk_seconds",
        "an NVMe drive did not answer and was reset", "disk@",
    ),
    "disk-dead": Rule(
        "DiskGone", Status.CRITICAL, Remedy.REPLACE, "disk_seconds",
        "the kernel gave up a disk: nothing on it can be read or written", "disk@",
    ),
    # the array may live on with the others, so what is on it is not lost yet
    "raid-degraded": Rule(
        "RaidDiskFailed", Status.WARNING, Remedy.REPLACE, "disk_seconds",
        "a RAID array lost a disk", "raid@",
    ),
    "nfs-silent": Rule(
        "NfsNotResponding", Status.WARNING, Remedy.INSPECT, "nfs_seconds",
        "an NFS server does not respond", "nfs@", ends="nfs-back",
    ),
    "nfs-locks": Rule(
        "NfsLocksLost", Status.WARNING, Remedy.INSPECT, "nfs_seconds",
        "locks on an NFS server could not be had back; programs that held them may write over each other",
    ),
    # a frame of these comes with every trace through NFS: one alone says little, gpud asks for two
    "nfs-writeback": Rule(
        "NfsWritebackHung", Status.WARNING, Remedy.INSPECT, "nfs_seconds",
        "tasks hang in the write-back of an NFS mount", least=2,
    ),
    "lustre-evicted": Rule(
        "LustreEvicted", Status.WARNING, Remedy.INSPECT, "nfs_seconds",
        "a Lustre server threw this client out: what it had open there failed", "lustre@",
    ),
}  # fmt: skip


def _finding(ctx: Context, group: Group) -> Finding:
    rule = RULES[group.kind]  # type: ignore[index]
    say = ctx.critical if rule.status is Status.CRITICAL else ctx.warning
    # while it stands it is reported again on each look, so that it ends by silence
    return say(
        rule.code, group.part, group.summary(rule), time=group.last_time, evidence=group.evidence,
        remedy=rule.remedy,
    )  # fmt: skip


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={rule.code: rule.meaning for rule in RULES.values()},
)
def storage_log(ctx: Context) -> Iterator[Finding | Reading]:
    """Reports what the kernel wrote about storage since the last look, and what of it stands.

    That lines were lost is told by `host_kernel`, which reads the same log.
    """
    followed = follow(ctx.host, ctx.past, RULES, ctx.limits)
    ctx.remember.update(followed.memory)
    for group in followed.groups:
        yield _finding(ctx, group)
