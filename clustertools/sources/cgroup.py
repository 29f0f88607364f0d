"""Which Slurm job a process belongs to, by its cgroup: what the kernel says, not what the job says of itself.

slurm_job(host.read("/proc/1234/cgroup"))      # "4812"
job_of(host, 1234, "python3", before=1763.0)   # "4812", if that is still the same process
"""

from __future__ import annotations

import re

from clustertools.errors import Unobservable
from clustertools.host import Host
from clustertools.sources.processes import processes

#: The kernel keeps so many characters of a task's name (TASK_COMM_LEN less the end).
COMMAND_CHARACTERS = 15
#: Clocks of the kernel log and of /proc may differ by so much.
SLACK_SECONDS = 5.0

# 0::/system.slice/slurmstepd.scope/job_4812/step_0/user/task_0       (version 2)
# 5:memory:/slurm/uid_1000/job_4812/step_0                            (version 1)
# 0::/system.slice/gpu-017_slurmstepd.scope/job_4812/step_batch/user/task_0
_JOB = r"slurm[^\n]{0,200}?/job_(?P<job>\d{1,12})(?:/|$)"


def slurm_job(cgroup: str) -> str:
    """The job's number in the text of /proc/PID/cgroup; empty when it is of no job."""
    match = re.search(_JOB, cgroup[:8192], re.MULTILINE)
    return match["job"] if match else ""


def job_owner(cgroup: str) -> int | None:
    """The user id that the path names; version 2 names none."""
    # 5:memory:/slurm/uid_1000/job_4812/step_0
    match = re.search(r"slurm[^\n]{0,200}?/uid_(\d{1,10})/job_\d", cgroup[:8192])
    return int(match[1]) if match else None


def systemd_path(cgroup: str) -> str:
    """Where systemd put the process; "" when the text does not say.

    With version 2 there is one hierarchy, with version 1 systemd keeps its own; a hybrid has both, and the
    empty one of version 2 says "/".
    """
    # 1:name=systemd:/user.slice/user-1000.slice/session-3.scope
    # 0::/system.slice/cron.service
    found = dict(re.findall(r"^\d{1,4}:(name=systemd|):(/[^\n]{0,4000})$", cgroup[:8192], re.MULTILINE))
    return str(found.get("name=systemd") or found.get("", ""))


def job_of(host: Host, pid: int, command: str, before: float) -> str:
    """The job of the process that had this number and name at the time `before`; empty when nobody knows.

    A number is used again: a process that began later, or bears another name, is not the one.
    """
    try:
        found = processes(host, [pid]).get(pid)
        if found is None or found.start_time > before + SLACK_SECONDS:
            return ""
        if command and found.command[:COMMAND_CHARACTERS] != command[:COMMAND_CHARACTERS]:
            return ""
        return slurm_job(host.read(f"/proc/{pid}/cgroup"))
    except Unobservable:
        return ""  # it is to help a reader; what was found stands without it
