"""Processes of ordinary users that run outside every Slurm job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from clustertools.check import Context, check
from clustertools.errors import Absent, Unobservable
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.cgroup import job_owner, slurm_job, systemd_path
from clustertools.sources.processes import Process, processes
from clustertools.text import plain

#: shadow's own default where /etc/login.defs does not say.
_UID_MIN = 1000
#: No ordinary users: 65534 is nobody, 65535 and 2^32-1 are no user, 61184 to 65519 belong to systemd's
#: dynamic services (systemd.io/UIDS-GIDS).
_NOBODY = frozenset((65534, 65535, 2**32 - 2, 2**32 - 1))
_DYNAMIC = range(61184, 65520)
#: Keep a login alive and do no work; they outlive it by seconds or for ever (by the kernel's name).
_SESSION = frozenset(
    "systemd (sd-pam) dbus-daemon dbus-broker dbus-broker-lau ssh-agent gpg-agent scdaemon gnome-keyring-d "
    "pipewire wireplumber pulseaudio".split()
)
#: Through these people come to a node. What runs in another service, or in a container of a daemon, an
#: administrator has put there.
_DOORS = re.compile(r"^/(user\.slice/.*|system\.slice/(sshd?(@.*)?|crond?|atd|slurmd)\.service.*|)$")
#: Where Slurm keeps its jobs: cgroup version 2 and version 1 (cgroup_v2.html and cgroup.conf(5) of Slurm).
_CGROUPS = ("/sys/fs/cgroup/system.slice/*slurmstepd.scope", "/sys/fs/cgroup/freezer/slurm*")


@dataclass(frozen=True)
class Limits:
    # own choice: a login to look at a job, or what a job starts at its end, is over by then
    age_seconds: float = 600.0
    # user ids that may always have processes here: administrators, monitoring
    allowed_users: tuple[int, ...] = ()


@dataclass
class _Seen:
    """What the node's processes are: ordinary users' outside of jobs, and since when each user has a job."""

    outside: list[tuple[int, Process]] = field(default_factory=list)
    owners: dict[int, float] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)


@check(
    limits=Limits,
    stages={"epilog", "daily"},
    codes={
        "StrayProcess": "a user who has no job on the node has processes there",
        "OrphanedProcess": "a process runs outside of its user's job, and is older than that",
    },
    confirm=2,
    # 0.13 ms a process, measured over 89 on one VM; a thread of the kernel is one file and surely less
    cost_seconds=0.5,
)
def host_stray(ctx: Context) -> Iterator[Finding | Reading]:
    """Processes of ordinary users that came by a login, by cron or out of a job, and belong to no job.

    Whose a job is follows from the processes in its cgroup, or from the cgroup's path. Where Slurm uses no
    cgroups, or a job shows no process of its user, nothing can be proven and nothing is said. Users are named
    by number. An allocation without any step or `PrologFlags=Contain` leaves no trace on a node: whoever
    holds one and is logged in there looks like a stray.
    """
    running = processes(ctx.host, brief=True)
    if not any(one.command == "slurmd" for one in running.values()):
        raise ctx.skip("no slurmd runs here")
    seen = _sorted(ctx, running)
    if not seen.jobs and not any(ctx.host.glob(pattern) for pattern in _CGROUPS):
        raise ctx.skip("Slurm keeps no cgroups here, so nothing proves which processes are a job's")
    if any(_below_step(one, running) for _, one in seen.outside):
        raise ctx.skip("processes of Slurm's steps are in no job's cgroup, so nothing can be proven")
    if nameless := seen.jobs - seen.owned:
        raise ctx.skip(f"job {min(nameless)} shows no process of its user, so that nobody knows whose it is")
    now, limits = ctx.host.now(), ctx.limits
    stray: dict[int, list[Process]] = {}
    orphans: dict[int, list[Process]] = {}
    for uid, one in seen.outside:
        if now - one.start_time < limits.age_seconds:
            continue
        if uid not in seen.owners:
            stray.setdefault(uid, []).append(one)
        elif one.ppid == 1 and one.start_time < seen.owners[uid]:
            orphans.setdefault(uid, []).append(one)
    every = [one for found in (stray, orphans) for each in found.values() for one in each]
    yield ctx.reading("stray_processes_total", len(every))
    yield ctx.reading("stray_processes_cpu_seconds", sum(one.cpu_seconds for one in every))
    yield ctx.reading("stray_processes_memory_bytes", _memory(ctx, every))
    for uid, found in sorted(stray.items()):
        yield _finding(ctx, "StrayProcess", uid, found, "has no job here, but")
    for uid, found in sorted(orphans.items()):
        yield _finding(ctx, "OrphanedProcess", uid, found, "has, from before its job here and outside of it,")


def _sorted(ctx: Context, running: Mapping[int, Process]) -> _Seen:
    least, seen, denied = _uid_min(ctx), _Seen(), 0
    for one in running.values():
        if one.is_kernel or one.state in "ZX":
            continue
        try:
            # Uid:	1000	1000	1000	1000
            match = re.search(r"^Uid:\t(\d{1,10})\t", ctx.host.read(f"/proc/{one.pid}/status"), re.MULTILINE)
            uid = int(match[1]) if match else 0
            is_ordinary = uid >= least and uid not in _NOBODY and uid not in _DYNAMIC
            # a step's own process is root's, and shows that there is a job
            if not is_ordinary and one.command != "slurmstepd":
                continue
            cgroup = ctx.host.read(f"/proc/{one.pid}/cgroup")
        except Absent:
            continue  # it ended
        except Unobservable:
            denied += 1
            continue
        if job := slurm_job(cgroup):
            seen.jobs.add(job)
            owner = uid if is_ordinary else job_owner(cgroup)
            if owner is not None:
                seen.owned.add(job)
                seen.owners[owner] = min(one.start_time, seen.owners.get(owner, one.start_time))
        elif is_ordinary and one.command not in _SESSION:
            user = _came_as(uid, systemd_path(cgroup))
            if user >= least and user not in ctx.limits.allowed_users:
                seen.outside.append((user, one))
    if denied:
        ctx.unseen(f"{denied} processes may not be looked at; run as root")
    return seen


def _came_as(uid: int, path: str) -> int:
    """Who brought the process here; 0, as for root, where no user did.

    Root may have become that user, and a container of a user's own runs under borrowed numbers.
    """
    if not _DOORS.match(path):
        return 0
    # /user.slice/user-1005.slice/session-3.scope
    match = re.match(r"/user\.slice/user-(\d{1,10})\.slice/", path)
    return int(match[1]) if match else uid


def _uid_min(ctx: Context) -> int:
    try:
        # UID_MIN			 1000
        match = re.search(r"^UID_MIN\s+(\d{1,9})\s*$", ctx.host.read("/etc/login.defs"), re.MULTILINE)
    except Absent:
        match = None
    return int(match[1]) if match else _UID_MIN


def _below_step(one: Process, running: Mapping[int, Process]) -> bool:
    """Whether a step of Slurm is among its parents."""
    parents: set[int] = set()
    while one.ppid in running and one.ppid not in parents:
        parents.add(one.ppid)
        one = running[one.ppid]
        if one.command == "slurmstepd":
            return True
    return False


def _memory(ctx: Context, found: list[Process]) -> int:
    told = processes(ctx.host, [one.pid for one in found])
    return sum(one.rss_bytes or 0 for one in told.values())


def _finding(ctx: Context, code: str, uid: int, found: list[Process], what: str) -> Finding:
    found = sorted(found, key=lambda one: -one.cpu_seconds)
    names = [f"{plain(one.command, 20)} (pid {one.pid})" for one in found]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    now = ctx.host.now()
    return ctx.warning(
        code, f"uid@{uid}", f"user {uid} {what} {len(found)} process{'es' * (len(found) > 1)}: {shown}",
        evidence=tuple(
            f"{name}: for {(now - one.start_time) / 3600:.1f} h, {one.cpu_seconds:.0f} s of processor"
            for name, one in zip(names[:10], found, strict=False)
        ),
        remedy=Remedy.INSPECT,
    )  # fmt: skip
