"""What /proc knows: processes, their trees and activity, and which of them are a job's ranks.

    seen = processes(host)
    ranks(host, job.pids)      {0: 4711, 1: 4712}

Formats: proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5) of the Linux man pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host

#: USER_HZ, the unit of the times in /proc/PID/stat: 100 on every architecture that has GPUs (time(7)).
TICKS_PER_SECOND = 100
#: PF_KTHREAD of the kernel's include/linux/sched.h: a thread of the kernel itself.
_KERNEL_THREAD = 0x00200000
#: Programs that carry a rank's environment without being the rank.
_LAUNCHERS = frozenset(
    (
        "sh bash dash zsh ksh csh tcsh fish env time timeout nohup numactl taskset srun sbatch "
        "slurmstepd mpirun mpiexec orterun prterun orted prted hydra_pmi_proxy mpispawn tini dumb-init "
        "sudo su runuser tee nsys ncu apptainer singularity starter starter-suid enroot"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `cpu_seconds` is user plus system time of all its threads.

    `read_bytes` and `write_bytes` went through system calls (page cache included); these two and `wchan`,
    the kernel function that it sleeps in, are None when the file is denied, as it is for others' processes.
    """

    pid: int
    ppid: int
    pgid: int
    sid: int
    state: str
    start_ticks: int
    start_time: float
    cpu_seconds: float
    threads: int
    rss_bytes: int | None
    command: str
    argv: tuple[str, ...] | None
    wchan: str | None
    read_bytes: int | None
    write_bytes: int | None
    is_kernel: bool = False

    @property
    def is_python(self) -> bool:
        """By its first word; a process that rewrote its title (setproctitle) does not show it."""
        return bool(self.argv) and _program(self).startswith(("python", "pypy"))

    @property
    def is_stopped(self) -> bool:
        """Stopped by a signal or held by a debugger: it cannot run."""
        return self.state in ("T", "t")


@dataclass(frozen=True, slots=True)
class Rank:
    """Who a process is among its peers; `source` names the variable that said so. -1: not known."""

    rank: int
    local_rank: int = -1
    world_size: int = -1
    node_rank: int = -1
    source: str = ""


@dataclass(frozen=True, slots=True)
class Activity:
    """What processes did between two looks. `io_bytes` is None when nobody's could be read."""

    cpu_seconds: float
    per_pid: Mapping[int, float] = field(default_factory=dict)
    io_bytes: int | None = None


#: (rank, local rank, world size, node) by launcher, the most telling first: under `srun torchrun` the workers
#: have torchrun's RANK and also SLURM_PROCID, which is then the node's.
_RANK_VARIABLES = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", ""),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", ""),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODEID"),
)
#: Every variable that `rank_of` reads; all that a recording may keep of an environment.
RANK_VARIABLES = frozenset(name for family in _RANK_VARIABLES for name in family if name) | {"NODE_RANK"}


def programs(host: Host) -> dict[str, list[int]]:
    """The pids of everything that runs, by the kernel's name for it (at most 15 characters).

    Raises Unobservable when /proc cannot be read at all.
    """
    found: dict[str, list[int]] = {}
    for path in host.glob("/proc/[0-9]*/comm"):
        try:
            found.setdefault(host.read(path).strip(), []).append(int(path.split("/")[2]))
        except Unobservable:
            # it ended in between
            continue
    if not found:
        raise Unobservable("/proc shows no process; is it mounted?")
    return found


def processes(host: Host, pids: Iterable[int] | None = None, *, brief: bool = False) -> dict[int, Process]:
    """The processes `pids` (all when None) that exist, by pid. `brief`: by /proc/PID/stat alone, a fifth of
    the cost; what other files say is then None, or empty.

    One that ends while we look is left out. Raises Unobservable when /proc cannot be read at all, and
    Unparsable when the kernel writes /proc/PID/stat in another form.
    """
    boot_time = _boot_time(host)
    if pids is None:
        pids = [int(path.rsplit("/", 1)[1]) for path in host.glob("/proc/[0-9]*")]
        if not pids:
            raise Unobservable("/proc shows no process; is it mounted?")
    found = {}
    for pid in pids:
        one = _process(host, pid, boot_time, brief)
        if one is not None:
            found[pid] = one
    return found


def _boot_time(host: Host) -> float:
    # btime 1763692401
    match = re.search(r"^btime (\d{1,12})$", host.read("/proc/stat"), re.MULTILINE)
    if match is None:
        raise Unparsable("/proc/stat has no line btime")
    return float(match[1])


def _process(host: Host, pid: int, boot_time: float, brief: bool) -> Process | None:
    text = _optional(host, pid, "stat")
    if not text:
        return None
    # 4711 (pt_main_thread) S 4700 4700 4700 0 -1 4194560 ...: the name may hold anything, ")" and "\n" too
    head, _, rest = text.rpartition(")")
    number, _, command = head.partition("(")
    try:
        state, *words = rest.split()
        values = [int(word) for word in words[:21]]
        if int(number) != pid or len(state) != 1 or len(values) < 21:
            raise ValueError(text)
    except ValueError as exc:
        raise Unparsable(f"/proc/{pid}/stat has an unknown form", text) from exc
    is_kernel = bool(values[5] & _KERNEL_THREAD)
    argv: tuple[str, ...] | None = ()
    rss: int | None = 0
    read = written = wchan = None
    if brief:
        argv = rss = None
    elif not is_kernel:
        argv = _argv(_optional(host, pid, "cmdline"))
        rss = _rss(_optional(host, pid, "status"))
        read, written = _io(_optional(host, pid, "io"))
    if not brief and (not is_kernel or state == "D"):
        # "0" means that it runs in user space, or that the kernel does not tell
        wchan = _optional(host, pid, "wchan")
    return Process(
        pid, values[0], values[1], values[2], state, values[18], boot_time + values[18] / TICKS_PER_SECOND,
        (values[10] + values[11]) / TICKS_PER_SECOND, values[16], rss, command, argv,
        wchan.strip() if wchan else wchan, read, written, is_kernel,
    )  # fmt: skip


def _optional(host: Host, pid: int, name: str) -> str | None:
    """The file's text; None when it is denied or the process is gone."""
    try:
        return host.read(f"/proc/{pid}/{name}")
    except Unobservable:
        return None


def _argv(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    # words end in NUL; a title written over them (setproctitle) may be padded with more of them
    return tuple(text.rstrip("\0").split("\0")) if text.strip("\0") else ()


def _rss(status: str | None) -> int | None:
    if status is None:
        return None
    # VmRSS:	  314572 kB        (a zombie has none; stat counts pages, whose size differs: 64 KiB on Grace)
    match = re.search(r"^VmRSS:\s*(\d{1,15}) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _io(text: str | None) -> tuple[int | None, int | None]:
    # rchar: 323934931
    values = dict(re.findall(r"^(rchar|wchar): (\d{1,20})$", text or "", re.MULTILINE))
    return (
        int(values["rchar"]) if "rchar" in values else None,
        int(values["wchar"]) if "wchar" in values else None,
    )


def tree(processes: Mapping[int, Process], roots: Iterable[int]) -> list[int]:
    """The roots that exist and all below them, parents before children, each once."""
    children: dict[int, list[int]] = {}
    for pid, one in processes.items():
        children.setdefault(one.ppid, []).append(pid)
    waiting = [pid for pid in roots if pid in processes]
    seen: dict[int, None] = {}
    while waiting:
        pid = waiting.pop(0)
        if pid not in seen:
            seen[pid] = None
            waiting.extend(sorted(children.get(pid, ())))
    return list(seen)


def environ(host: Host, pid: int) -> dict[str, str]:
    """The environment that `pid` was started with. It holds secrets: read what you need, keep nothing.

    Changes that the process made to its own environment do not show. Raises Absent when the process is gone,
    Unobservable when it belongs to somebody else.
    """
    text = host.read(f"/proc/{pid}/environ")
    return {name: value for name, sep, value in (e.partition("=") for e in text.split("\0")) if sep and name}


def rank_of(host: Host, pid: int) -> Rank | None:
    """The rank that the environment of `pid` names, None when it names none. Raises as `environ` does.

    Read are the variables of torchrun, Open MPI, PMI (MPICH, Intel MPI) and Slurm, in this order.
    """
    return _rank(environ(host, pid))


def _rank(variables: Mapping[str, str]) -> Rank | None:
    for rank, local, world, node in _RANK_VARIABLES:
        number = _number(variables.get(rank))
        if number >= 0:
            place = _number(variables.get(node))
            if rank == "RANK" and place < 0:
                place = _number(variables.get("NODE_RANK"))
            return Rank(
                number, _number(variables.get(local)), _number(variables.get(world)), place, source=rank
            )
    return None


def _number(text: str | None) -> int:
    # 0
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else -1


def ranks(host: Host, roots: Iterable[int], seen: Mapping[int, Process] | None = None) -> dict[int, int]:
    """Rank to pid of the training processes below `roots`; empty when there is none (yet).

    Launchers and shells that only pass the variables on are not ranks, and neither are the data loaders that
    inherit them: of the processes that name a rank, the topmost counts. `seen` saves a second look at /proc.
    Raises Unobservable when there are processes below `roots` but no environment may be read.
    """
    seen = processes(host) if seen is None else seen
    named: dict[int, Rank] = {}
    below = [pid for pid in tree(seen, roots) if not seen[pid].is_kernel and seen[pid].state not in "ZX"]
    denied = 0
    for pid in below:
        try:
            rank = rank_of(host, pid)
        except Absent:
            continue
        except Unobservable:
            denied += 1
            continue
        if rank is not None and _program(seen[pid]) not in _LAUNCHERS:
            named[pid] = rank
    if denied and denied == len(below):
        raise Unobservable(
            f"the environment of the {denied} processes of this job may not be read, so their ranks "
            "are not known; run as their user or as root"
        )
    return {named[pid].rank: pid for pid in sorted(_topmost(seen, _workers(named)), reverse=True)}


def _workers(named: Mapping[int, Rank]) -> dict[int, Rank]:
    """Only those that got their rank from the most telling launcher, and without that launcher itself."""
    order = [family[0] for family in _RANK_VARIABLES]
    source = min((r.source for r in named.values()), key=order.index, default="")
    chosen = {pid: rank for pid, rank in named.items() if rank.source == source}
    # Kubeflow's operator gives RANK (the pod's) to the torchrun agent too; only workers have LOCAL_RANK
    local = {pid: rank for pid, rank in chosen.items() if rank.local_rank >= 0}
    return local or chosen


def _topmost(seen: Mapping[int, Process], named: Mapping[int, Rank]) -> list[int]:
    """One pid for each rank: a Python process before others, then the topmost, then the oldest."""
    found = []
    for number in {rank.rank for rank in named.values()}:
        same = [pid for pid, rank in named.items() if rank.rank == number]
        same = [pid for pid in same if seen[pid].is_python] or same
        top = [pid for pid in same if not any(up in same for up in _ancestors(seen, pid))]
        found.append(min(top or same, key=lambda pid: (seen[pid].start_ticks, pid)))
    return found


def _ancestors(seen: Mapping[int, Process], pid: int) -> list[int]:
    found: list[int] = []
    above = seen[pid].ppid
    while above in seen and above not in found:
        found.append(above)
        above = seen[above].ppid
    return found


def _program(one: Process) -> str:
    """The base name of its first word, else the kernel's name for it."""
    first = one.argv[0] if one.argv else one.command
    # a login shell calls itself "-bash"
    return first.rsplit("/", 1)[-1].lstrip("-")


def activity(before: Mapping[int, Process], after: Mapping[int, Process]) -> Activity:
    """What the processes in `after` did since `before`. A new one counts whole; one that ended, not at all.

    A pid is the same process only if it started at the same tick.
    """
    per_pid, io, readable = {}, 0, False
    for pid, new in after.items():
        old = before.get(pid)
        if old is not None and old.start_ticks != new.start_ticks:
            old = None
        per_pid[pid] = max(0.0, new.cpu_seconds - (old.cpu_seconds if old else 0.0))
        for now, then in (
            (new.read_bytes, old.read_bytes if old else 0),
            (new.write_bytes, old.write_bytes if old else 0),
        ):
            if now is not None and then is not None:
                readable = True
                io += max(0, now - then)
    return Activity(sum(per_pid.values()), per_pid, io if readable else None)
