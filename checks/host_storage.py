"""File systems of the node: they answer, take writes, and have room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.check import Context, check
from clustertools.errors import Absent, ConfigError
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.mounts import Answer, Mount, mounts, probe
from clustertools.sources.processes import processes

_GIB = 1 << 30

#: Without data of anybody's: the kernel's own. autofs would be mounted by our look.
_PSEUDO = frozenset(
    (
        "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs "
        "mqueue nfsd nsfs proc pstore ramfs rootfs rpc_pipefs securityfs selinuxfs sysfs tracefs fuse.lxcfs "
        "fuse.portal fuse.gvfsd-fuse fuse.snapfuse"
    ).split()
)
#: Read-only images: always 100 % full.
_IMAGES = frozenset("squashfs iso9660 erofs cramfs udf".split())
#: Layers and volumes of containers: they lie on a disk that is looked at anyway.
_CONTAINERS = (
    "/var/lib/docker/", "/var/lib/containers/", "/var/lib/containerd/", "/run/containerd/",
    "/var/lib/kubelet/", "/run/user/", "/run/credentials/", "/run/netns/", "/sys/", "/proc/", "/snap/",
    "/run/snapd/",
)  # fmt: skip
_SHM = "/dev/shm"  # noqa: S108 - looked at, nothing is written there
#: The tmpfs that jobs use; services get small ones of their own, also read-only ones to hide folders.
_TMPFS = (_SHM, "/tmp", "/var/tmp", "/run")  # noqa: S108
#: Kernels and the boot loader: their fill does not concern a job.
_BOOT = ("/boot", "/efi")


@dataclass(frozen=True)
class Limits:
    # Meta's gcm warns at 80 % and alarms at 85 %, Imbue's scripts fail at 95 %;
    # 85 % of a disk of 30 TB leaves 4.5 TB free, so these are nearer to the end
    full_warning_ratio: float = 0.90
    full_critical_ratio: float = 0.98
    # NVIDIA Resiliency Extension probes a path with 5 s; the deadline of all mounts together
    hung_seconds: float = 5.0
    # Docker gives 64 MiB. PyTorch's data loaders and NCCL share memory there: NVIDIA's containers want 1 GiB
    shm_warning_bytes: float = 1 << 30
    # a drive less in a stripe of eight is 12 %; what the file system takes for itself is under 2 %
    smaller_ratio: float = 0.05


@check(
    limits=Limits,
    stages={"preflight", "watch", "prolog"},
    codes={
        "HostDiskFull": "a file system is full or nearly so",
        "HostInodesFull": "a file system has no or few inodes left: no new file can be made",
        "HostMountReadOnly": "a file system that should take writes went read-only",
        "HostMountHung": "a mount does not answer: every process that touches it stops",
        "HostMountStale": "a mount answers with an error until it is mounted again",
        "HostMountMissing": "a file system that this node class should have is not mounted",
        "HostMountWrong": "a file system is mounted in another way than this node class should have it",
        "HostFilesystemSmall": "a file system is smaller than this node class should have it",
        "HostShmSmall": f"{_SHM} is too small for data loaders and NCCL",
    },
    # a server that fails over is away for some seconds
    confirm=2,
)
def host_storage(ctx: Context) -> Iterator[Finding | Reading]:
    """Every mount with data on it: answers in time, takes writes where it should, has bytes and inodes left.

    Kernel file systems, images, container layers and second mounts of the same file system are left out.
    `expect["mounts"]` lists the mount points that this node class must have: paths, or mappings with
    `point` and, as far as wanted, `type`, `source`, `options` (a list; each must be set) and `size_bytes`.
    """
    table = mounts(ctx.host)
    mounted = {mount.point: mount for mount in table}
    wanted = _wanted(ctx.expect.get("mounts", ()))
    for point, rule in wanted.items():
        if point not in mounted:
            yield ctx.critical(
                "HostMountMissing", f"mount@{point}", f"{point} is not mounted", remedy=Remedy.INSPECT
            )
        elif wrong := _differences(mounted[point], rule):
            yield ctx.warning("HostMountWrong", f"mount@{point}", f"{point} is mounted with {wrong}")
    chosen = _chosen(table, set(wanted))
    yield from _read_only(ctx, chosen)

    stuck = _still_stuck(ctx)
    asked = [mount.point for mount in chosen if mount.point not in stuck]
    answers = {a.path: a for a in probe(ctx.host, asked, deadline_seconds=ctx.limits.hung_seconds)}
    for mount in chosen:
        answer = answers.get(mount.point) or Answer(mount.point, hung=True, stuck_pid=stuck[mount.point][0])
        yield from _judge(ctx, mount, answer)
        yield from _small(ctx, answer, wanted.get(mount.point, {}))
    _remember_stuck(ctx, answers, stuck)


def _wanted(told: Any) -> dict[str, Mapping[str, Any]]:
    """What is wanted of each mount point. Raises ConfigError for a rule without one."""
    rules: dict[str, Mapping[str, Any]] = {}
    for one in told:
        rule = one if isinstance(one, Mapping) else {"point": one}
        unknown = set(rule) - {"point", "type", "source", "options", "size_bytes"}
        if unknown or not str(rule.get("point", "")).startswith("/"):
            raise ConfigError(f"expect.mounts: each is a path or a mapping with `point`, not {one!r}")
        rules[str(rule["point"])] = rule
    return rules


def _differences(mount: Mount, rule: Mapping[str, Any]) -> str:
    """In words, what is otherwise than the rule wants it; nothing when all is as it should be."""
    texts = []
    if "type" in rule and mount.fs_type != rule["type"]:
        texts.append(f"type {mount.fs_type}, not {rule['type']}")
    if "source" in rule and mount.source != rule["source"]:
        texts.append(f"source {mount.source}, not {rule['source']}")
    told = rule.get("options", ())
    options = [word.strip() for word in (told.split(",") if isinstance(told, str) else told)]
    # `rw` is also an option of the mount when only the file system is read-only
    have = (mount.options | mount.super_options) - ({"rw"} if mount.is_read_only else set())
    missing = [option for option in options if option not in have]
    if missing:
        texts.append(f"without {', '.join(missing)}")
    return " and ".join(texts)


def _small(ctx: Context, answer: Answer, rule: Mapping[str, Any]) -> Iterator[Finding]:
    wanted = float(rule.get("size_bytes", 0))
    if wanted and 0 < answer.total_bytes < wanted * (1 - ctx.limits.smaller_ratio):
        yield ctx.warning(
            "HostFilesystemSmall",
            f"mount@{answer.path}",
            f"{answer.path} has {answer.total_bytes / _GIB:.1f} GiB, {wanted / _GIB:.1f} GiB expected "
            f"(limit {ctx.limits.smaller_ratio:.0%} less)",
        )


def _chosen(table: list[Mount], wanted: set[str]) -> list[Mount]:
    """The mounts that matter; of several mounts of one file system the one with the shortest path."""
    by_device: dict[str, Mount] = {}
    extra = []
    for mount in table:
        if mount.point in wanted:
            extra.append(mount)
        elif _matters(mount):
            other = by_device.get(mount.device)
            if other is None or (len(mount.point), mount.point) < (len(other.point), other.point):
                by_device[mount.device] = mount
    devices = {mount.device for mount in extra}
    return extra + [mount for mount in by_device.values() if mount.device not in devices]


def _matters(mount: Mount) -> bool:
    if mount.fs_type in _PSEUDO or mount.fs_type in _IMAGES or (mount.point + "/").startswith(_CONTAINERS):
        return False
    if mount.fs_type == "tmpfs":
        return mount.point in _TMPFS
    if mount.fs_type == "overlay":
        return mount.point == "/"
    return True


def _read_only(ctx: Context, chosen: list[Mount]) -> Iterator[Finding]:
    """A file system that is read-only now and was not, or that /etc/fstab does not want so."""
    writable = {m.point: m.id for m in chosen if not m.is_read_only}
    # a remount keeps the mount's id; another id is another mount, which may be read-only on purpose
    before: Mapping[str, int] = ctx.past.get("writable", {})
    turned = {m.point: m.id for m in chosen if m.is_read_only and before.get(m.point) == m.id}
    ctx.remember["writable"] = writable | turned
    fstab = _fstab(ctx)
    for mount in chosen:
        if not mount.is_read_only:
            continue
        options = ",".join(sorted(mount.super_options))
        if "emergency_ro" in mount.super_options:
            why = "the kernel made it read-only after an error"
        elif mount.point in turned:
            why = "it took writes before"
        elif "ro" not in fstab.get(mount.point, {"ro"}):
            why = "/etc/fstab mounts it for writing"
        else:
            continue
        yield ctx.critical(
            "HostMountReadOnly",
            f"mount@{mount.point}",
            f"{mount.point} ({mount.fs_type} on {mount.source}) is read-only, but {why}",
            evidence=(f"options: {options}",),
            remedy=Remedy.INSPECT,
        )


def _fstab(ctx: Context) -> dict[str, set[str]]:
    """Options by mount point."""
    try:
        text = ctx.host.read("/etc/fstab")
    except Absent:
        return {}
    # UUID=0a3407de / ext4 rw,discard,errors=remount-ro 0 1
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return {fields[1]: set(fields[3].split(",")) for fields in lines if len(fields) >= 4}


def _still_stuck(ctx: Context) -> dict[str, list[int]]:
    """Mounts where an earlier look still hangs in the kernel: asking again would only add another process."""
    past: Mapping[str, Any] = ctx.past.get("stuck", {})
    seen = processes(ctx.host, [pid for pid, _ in past.values()]) if past else {}
    return {
        point: [pid, ticks]
        for point, (pid, ticks) in past.items()
        if pid in seen and seen[pid].start_ticks == ticks and seen[pid].state == "D"
    }


def _remember_stuck(ctx: Context, answers: Mapping[str, Answer], stuck: dict[str, list[int]]) -> None:
    fresh = {a.path: a.stuck_pid for a in answers.values() if a.stuck_pid}
    seen = processes(ctx.host, fresh.values()) if fresh else {}
    stuck |= {path: [pid, seen[pid].start_ticks] for path, pid in fresh.items() if pid in seen}
    if stuck:
        ctx.remember["stuck"] = stuck


def _judge(ctx: Context, mount: Mount, answer: Answer) -> Iterator[Finding | Reading]:
    part, name = f"mount@{mount.point}", f"{mount.point} ({mount.fs_type} on {mount.source})"
    if answer.hung:
        how = f"; process {answer.stuck_pid} hangs in it and cannot be killed" if answer.stuck_pid else ""
        yield ctx.critical(
            "HostMountHung",
            part,
            f"{name} did not answer within {ctx.limits.hung_seconds:g} s{how}",
            remedy=Remedy.REBOOT_NODE if answer.stuck_pid else Remedy.INSPECT,
        )
    elif answer.error in ("EACCES", "EPERM"):
        # a user's own FUSE mount is closed even to root
        if mount.fs_type.startswith("fuse"):
            ctx.note(f"{name} belongs to a user and is closed to others")
        else:
            ctx.unseen(f"{name} may not be looked at ({answer.error})")
    elif answer.error in ("ENOENT", "ENOTDIR"):
        ctx.note(f"{name} was unmounted or covered in between")
    elif answer.error:
        yield ctx.critical(
            "HostMountStale", part, f"{name} answers with {_meaning(answer.error)}", remedy=Remedy.INSPECT
        )
    else:
        yield from _room(ctx, mount, answer)


def _meaning(error: str) -> str:
    known = {
        "ESTALE": "ESTALE: the server no longer knows this file handle",
        "ENOTCONN": "ENOTCONN: the program that serves it is gone",
        "ESHUTDOWN": "ESHUTDOWN: its server or its connection was shut down",
        "EIO": "EIO: an input/output error, as after a disk failed or the file system shut itself down",
    }
    return known.get(error, error)


def _room(ctx: Context, mount: Mount, answer: Answer) -> Iterator[Finding | Reading]:
    part = f"mount@{mount.point}"
    yield ctx.reading("mount_answer_seconds", answer.elapsed_seconds, part)
    if mount.is_read_only or answer.total_bytes <= 0:
        return
    yield ctx.reading("mount_used_ratio", answer.used_ratio, part)
    yield ctx.reading("mount_free_bytes", answer.free_bytes, part)
    free = f"{answer.free_bytes / _GIB:.1f} GiB of {answer.total_bytes / _GIB:.1f} GiB free"
    if mount.point == _SHM and answer.total_bytes < ctx.limits.shm_warning_bytes:
        yield ctx.warning(
            "HostShmSmall",
            part,
            f"{_SHM} has {answer.total_bytes / _GIB:.2f} GiB "
            f"(limit {ctx.limits.shm_warning_bytes / _GIB:.1f} GiB); data loaders will die with a bus error",
        )
    if not (mount.point + "/").startswith(tuple(f"{b}/" for b in _BOOT)):
        yield from _full(ctx, "HostDiskFull", mount, answer.used_ratio, "space", free)
    if answer.inodes > 0:
        used = 1 - answer.inodes_free / answer.inodes
        yield from _full(ctx, "HostInodesFull", mount, used, "inodes", f"{answer.inodes_free} left")


def _full(ctx: Context, code: str, mount: Mount, ratio: float, of: str, left: str) -> Iterator[Finding]:
    part = f"mount@{mount.point}"
    text = f"{mount.point} ({mount.fs_type} on {mount.source}) has {ratio:.1%} of its {of} in use"
    if ratio >= ctx.limits.full_critical_ratio:
        yield ctx.critical(code, part, f"{text} (limit {ctx.limits.full_critical_ratio:.0%}): {left}")
    elif ratio >= ctx.limits.full_warning_ratio:
        yield ctx.warning(code, part, f"{text} (limit {ctx.limits.full_warning_ratio:.0%}): {left}")
