"""What is mounted, and whether it answers: each mount is asked by a process of its own.

    for answer in probe(host, ["/", "/lustre"]): ...

A server that is away blocks statvfs(2) in the kernel, for ever on a hard NFS mount, and a thread cannot be
taken back from there. So a child (`python -m clustertools.sources.mounts --deadline S PATH...`) forks once a
mount, waits until the deadline, and prints one JSON line a mount, also for those that did not answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from clustertools.errors import Unparsable
from clustertools.host import PYTHON, Host

#: Types whose data lies on a server that can be away; `fuse.*` counts as well, whatever it leads to.
_NETWORK = frozenset(
    (
        "nfs nfs4 lustre gpfs beegfs ceph cifs smb3 smbfs 9p afs pvfs2 orangefs panfs wekafs vast glusterfs "
        "fuse fuseblk dfs daos quobyte moosefs virtiofs"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo. `options` are the mount's, `super_options` the file system's own.

    A read-only bind of a writable file system has `ro` in the first and `rw` in the second.
    """

    id: int
    point: str
    fs_type: str
    device: str
    source: str
    root: str
    options: frozenset[str]
    super_options: frozenset[str]

    @property
    def is_network(self) -> bool:
        """Whether a server stands behind it that can be away."""
        return self.fs_type in _NETWORK or self.fs_type.startswith("fuse.")

    @property
    def is_read_only(self) -> bool:
        """It takes no writes. After an error newer kernels leave `rw` and add `emergency_ro`."""
        return bool({"ro", "emergency_ro"} & self.super_options)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one mount said. `hung`: nothing in time; `stuck_pid` is then a process that cannot even be killed.

    `error` is the errno's name (`ESTALE`), empty when it answered. Sizes are what df prints: `free_bytes` is
    free for users, `used_ratio` leaves out what only root may use.
    """

    path: str
    hung: bool = False
    error: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    used_ratio: float = 0.0
    inodes: int = 0
    inodes_free: int = 0
    elapsed_seconds: float = 0.0
    stuck_pid: int = 0


def mounts(host: Host) -> list[Mount]:
    """Everything mounted, in order of mounting; only the uppermost of several on one point.

    Format: proc_pid_mountinfo(5). Raises Unparsable for a line of another form.
    """
    found: dict[str, Mount] = {}
    for line in host.read("/proc/self/mountinfo").splitlines():
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2 or not re.fullmatch("[0-9]{1,9}", fields[0]):
            raise Unparsable("/proc/self/mountinfo has a line of an unknown form", line)
        point = _unescape(fields[4])
        found.pop(point, None)
        found[point] = Mount(
            int(fields[0]), point, rest[0], fields[2], _unescape(rest[1]), _unescape(fields[3]),
            frozenset(fields[5].split(",")), frozenset(rest[2].split(",") if len(rest) > 2 else ()),
        )  # fmt: skip
    return list(found.values())


def in_container(host: Host) -> bool:
    """Whether /dev holds what was chosen for a container (a tmpfs) and not what the kernel put there."""
    return not any(mount.point == "/dev" and mount.fs_type == "devtmpfs" for mount in mounts(host))


def _unescape(text: str) -> str:
    # /mnt/my\040disk
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def probe(host: Host, paths: Iterable[str], *, deadline_seconds: float = 5.0) -> list[Answer]:
    """Ask each path for its size, all at once; one answer a path, also for those that hang.

    Raises Unobservable when the child itself failed, Unparsable when it did not say a line for each path.
    """
    paths = list(paths)
    if not paths:
        return []
    done = host.run(
        PYTHON, "-m", "clustertools.sources.mounts", "--deadline", f"{deadline_seconds:g}", *paths,
        timeout_seconds=deadline_seconds + 5,
    ).check()  # fmt: skip
    answers = [_answer(line) for line in done.stdout.splitlines()]
    if sorted(a.path for a in answers) != sorted(paths):
        raise Unparsable(f"the mount probe answered for {len(answers)} of {len(paths)} paths", done.stdout)
    return answers


def _answer(line: str) -> Answer:
    try:
        data = json.loads(line)
        # {"path": "/", "total_bytes": 1000, "free_bytes": 400, "used_ratio": 0.58, ...}
        answer = Answer(**data)
        numbers = (answer.total_bytes, answer.free_bytes, answer.inodes, answer.inodes_free, answer.stuck_pid)
        if not all(isinstance(n, int) for n in numbers) or not isinstance(answer.path, str):
            raise TypeError(line)
        float(answer.used_ratio), float(answer.elapsed_seconds), answer.error.upper()
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("the mount probe printed an unknown line", line) from exc
    return answer


# ------------------------------------------------------------------ the child


def _ask(path: str) -> Answer:
    """One mount's answer; blocks for as long as the mount does."""
    began = time.monotonic()
    try:
        size = os.statvfs(path)
        os.stat(path)
        # a directory's first entries come from the server, where sizes may come from a cache
        with contextlib.suppress(PermissionError, NotADirectoryError), os.scandir(path) as entries:
            next(entries, None)
    except OSError as exc:
        return Answer(path, error=errno.errorcode.get(exc.errno or 0, str(exc.errno)))
    used = size.f_blocks - size.f_bfree
    return Answer(
        path,
        total_bytes=size.f_blocks * size.f_frsize,
        free_bytes=size.f_bavail * size.f_frsize,
        used_ratio=round(used / (used + size.f_bavail), 6) if used + size.f_bavail > 0 else 0.0,
        inodes=size.f_files,
        inodes_free=size.f_ffree,
        elapsed_seconds=round(time.monotonic() - began, 6),
    )


def _print(answer: Answer) -> None:
    data = {name: value for name in Answer.__slots__ if (value := getattr(answer, name)) or name == "path"}
    print(json.dumps(data), flush=True)


def _start(path: str) -> tuple[int, int]:
    """Fork a process that asks `path`; its pid and the pipe on which the answer comes."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # keep no pipe of our parent's: a process stuck in the kernel would hold it open for ever
        devnull = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(devnull, fd)
        os.dup2(writer, 3)
        os.closerange(4, 4096)
        answer = _ask(path)
        os.write(3, json.dumps({name: getattr(answer, name) for name in Answer.__slots__}).encode())
        os._exit(0)
    os.close(writer)
    return pid, reader


def _reap(pid: int) -> int:
    """Kill a process that hangs; its pid when it does not die."""
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return 0
        time.sleep(0.01)
    return pid


def main(arguments: list[str]) -> int:
    """`--deadline SECONDS PATH...`: a JSON line for each path as it answers, then for those that hang."""
    if len(arguments) < 2 or arguments[0] != "--deadline":
        print("usage: --deadline SECONDS PATH...", file=sys.stderr)
        return 3
    end = time.monotonic() + float(arguments[1])
    waiting, ready = {}, select.poll()
    for path in arguments[2:]:
        pid, reader = _start(path)
        waiting[reader] = (pid, path)
        ready.register(reader, select.POLLIN)
    while waiting and (left := end - time.monotonic()) > 0:
        for reader, _ in ready.poll(left * 1000):
            ready.unregister(reader)
            pid, path = waiting.pop(reader)
            text = os.read(reader, 65536).decode()
            os.waitpid(pid, 0)
            _print(
                Answer(**json.loads(text)) if text else Answer(path, error="the process that asked it died")
            )
    for pid, path in waiting.values():
        _print(Answer(path, hung=True, stuck_pid=_reap(pid)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
