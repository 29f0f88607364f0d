"""A node whose memory runs out for every job, and whose clock is an hour off."""

from __future__ import annotations

from tests.lab.host_faults import CHRONY, Machine, Record, at
from tests.lab.whole_node import tracking


def _killed(seconds: float, pid: int) -> tuple[Record, ...]:
    """A process killed because the whole node had no memory left (mm/oom_kill.c)."""
    return (
        (6, at(seconds), "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0-1,"
         f"global_oom,task_memcg=/slurm/uid_1000/job_4812/step_0,task=python3,pid={pid},uid=1000"),
        (3, at(seconds + 0.01), f"Out of memory: Killed process {pid} (python3) total-vm:58720256kB, "
         "anon-rss:50331648kB, file-rss:12kB, shmem-rss:0kB, UID:1000 pgtables:131072kB oom_score_adj:0"),
    )  # fmt: skip


MACHINES = (
    Machine(
        "host-out-of-memory",
        "data loaders take the whole node's memory, and one worker after the other is killed; the clock was "
        "set by hand, an hour off",
        ("HostOomKill", "ClockOffset"),
        base="cpu-healthy",
        kernel=tuple(record for n in range(24) for record in _killed(88000 + 60 * n, 31100 + n)),
        commands={CHRONY: {"seconds": 0.003, "stdout": tracking("3600.250016000")}},
    ),
)  # fmt: skip
