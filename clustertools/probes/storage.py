"""The storage that a job reads and writes, from this node's side: speed, latency, and whether data come back.

Paths of `data` are only ever read: files that are there, opened for reading. In folders of `checkpoint` the
probe writes files of its own: one of bounded size that never has a name where the file system can do that
(O_TMPFILE), else loses it at once, and small ones that are made and removed one after the other. A guardian
process outlives a probe that is killed, and removes what had a name at that moment.

All nodes do this at the same time when the order names them all: that is the load of a start or a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from clustertools.measurement import Ending
from clustertools.probes.children import Progress
from clustertools.probes.faults import fault_of
from clustertools.probes.known_answers import percentile
from clustertools.probes.node import Here, Task
from clustertools.probes.orders import BadOrder, Order, Report, figure, together

#: Names begin with it while a file of ours has one.
PREFIX = ".clustertools-probe-"
BLOCK_BYTES = 4 << 20
_SIZE_LIMIT_BYTES = 64 << 30
_FILES_LIMIT = 64
#: A data set may hold millions of files in as many folders; only so many names are looked at.
_NAMES_LIMIT = 4096
_STARTING, _OPENING, _READING, _WRITING, _SYNCING, _CREATING = range(6)
_STAGES = ("starting", "looking for and opening files", "reading", "writing", "waiting for fsync",
           "creating and removing small files")  # fmt: skip
gather = together


def tasks(order: Order, here: Here) -> list[Task]:
    """Parameters: `data` (files or folders), `checkpoint` (folders), `size_bytes` for each, `files`.

    One child a path, at the same time: a server that is away hangs only its own.
    """
    size = order.whole("size_bytes", 256 << 20, BLOCK_BYTES, _SIZE_LIMIT_BYTES)
    size -= size % BLOCK_BYTES
    files = order.whole("files", 32, 1, _FILES_LIMIT)
    data, checkpoint = order.texts("data"), order.texts("checkpoint")
    for path in (*data, *checkpoint):
        if not os.path.isabs(path):
            raise BadOrder(f"storage: {path!r} is no absolute path")
    if not data and not checkpoint:
        raise BadOrder("storage: neither data nor checkpoint names a path")
    until = time.monotonic() + order.timeout_seconds
    return [
        Task(f"{kind} {path}", functools.partial(_guarded, work, path, size, files, until))
        for kind, paths, work in (("data", data, _data), ("checkpoint", checkpoint, _checkpoint))
        for path in paths
    ]


def stuck(order: Order, here: Here, since_seconds: float, at: Sequence[int]) -> Report:
    """A path that does not answer may be away for all nodes; so no node is blamed for it."""
    return Report(Ending.HANG, f"{_STAGES[at[0]]} for {since_seconds:.1f} s")


def _guarded(
    work: Callable[..., Report], path: str, size: int, files: int, until: float, at: Progress
) -> Report:
    try:
        return work(path, size, files, until, at)
    except OSError as exc:
        # a full, read-only or failing disk is a finding of the place; the head sees who else has it
        kind = (
            Ending.CRASH if exc.errno in (errno.EIO, errno.ESTALE, errno.EREMOTEIO) else Ending.COULD_NOT_RUN
        )
        return Report(kind, f"{path}: {exc.strerror or exc}")


# reading a data set


def _data(path: str, size: int, files: int, until: float, progress: Progress) -> Report:
    progress.at(_OPENING)
    names = list(islice(_files(path), _NAMES_LIMIT))
    if not names:
        return Report(Ending.COULD_NOT_RUN, f"{path}: no file to read is there")
    # spread over the whole data set, and the same on every node
    chosen = sorted(names)[:: max(1, len(names) // files)][:files]
    opening: list[float] = []
    read, seconds = 0, 0.0
    changed, how = [], ""
    share = max(BLOCK_BYTES, size // len(chosen))
    for name in chosen:
        if time.monotonic() > until - 1.0:
            break
        progress.at(_OPENING)
        began = time.perf_counter()
        fd = _open_to_read(name)
        opening.append(time.perf_counter() - began)
        with _closing(fd):
            progress.at(_READING, read)
            before = _version(fd)
            first, count, took, how = _read(fd, share)
            second = _read(fd, share)[0]
            read, seconds = read + count, seconds + took
            if first != second and before == _version(fd):  # nobody wrote to it meanwhile
                changed.append(name)
    if changed:
        return Report(Ending.WRONG_DATA, f"{changed[0]}: two reads of the same bytes gave different data")
    report = Report(Ending.DONE, evidence=[f"{path}: {len(opening)} files, {read} bytes {how}"])
    if seconds and read:
        report.figures.append(
            figure("read_bytes_per_second", read / seconds, size_bytes=size, part=path, variant="data")
        )
    report.figures += _latency("open", opening, path, "data")
    return report


def _files(path: str) -> Iterator[str]:
    """Ordinary files at or below `path`, three levels deep at most, without following links to folders."""
    if not os.path.isdir(path):
        yield path
        return
    folders = [(path, 0)]
    while folders:
        folder, depth = folders.pop()
        with os.scandir(folder) as entries:
            for entry in islice(entries, _NAMES_LIMIT):
                if entry.is_dir(follow_symlinks=False):
                    if depth < 3:
                        folders.append((entry.path, depth + 1))
                elif entry.is_file():
                    yield entry.path


def _version(fd: int) -> tuple[int, int]:
    now = os.fstat(fd)
    return now.st_size, now.st_mtime_ns


def _open_to_read(path: str, flags: int = 0) -> int:
    try:
        # reading must not even change the time of the last access; only its owner may ask for that
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | flags)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)


def _read(fd: int, limit: int) -> tuple[str, int, float, str]:
    """(digest, bytes, seconds, how) of the first `limit` bytes, past the page cache where that can be."""
    # O_DIRECT wants aligned memory and lengths, which an anonymous map and whole blocks are
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    direct = _past_the_cache(fd)
    how = "read past the page cache (O_DIRECT)" if direct is not None else "read after POSIX_FADV_DONTNEED"
    digest, place, seconds = hashlib.blake2b(digest_size=16), 0, 0.0
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    try:
        while place < limit:
            began = time.perf_counter()
            try:
                count = os.preadv(fd if direct is None else direct, [buffer], place)
            except OSError as exc:
                if exc.errno != errno.EINVAL or direct is None:
                    raise
                # opened, and then not able to: some network file systems
                os.close(direct)
                direct, how = None, "read after POSIX_FADV_DONTNEED"
                continue
            seconds += time.perf_counter() - began
            if not count:
                break
            digest.update(memoryview(buffer)[:count])
            place += count
            if count % 4096:
                break  # the end of the file; nothing more can be read with O_DIRECT from here
    finally:
        if direct is not None:
            os.close(direct)
    return digest.hexdigest(), place, seconds, how


def _past_the_cache(fd: int) -> int | None:
    try:
        return _open_to_read(f"/proc/self/fd/{fd}", os.O_DIRECT)
    except OSError:
        return None  # this file system has no such way to read; the caller has another


# writing a checkpoint


def _checkpoint(path: str, size: int, files: int, until: float, progress: Progress) -> Report:
    stem = os.path.join(path, f"{PREFIX}{uuid.uuid4().hex[:12]}")
    with _guardian([f"{stem}-{n}" for n in range(files + 1)]):
        report = _write(path, f"{stem}-{files}", size, until, progress)
        if report.ending is Ending.DONE:
            report.figures += _creations(path, stem, files, progress)
    return report


def _write(path: str, name: str, size: int, until: float, progress: Progress) -> Report:
    with _closing(_unnamed(path, name)) as fd:
        progress.at(_WRITING)
        base = os.urandom(BLOCK_BYTES)  # what compresses or repeats would flatter a file system
        truth, written = hashlib.blake2b(digest_size=16), 0
        began = time.perf_counter()
        hashing = 0.0
        for number in range(size // BLOCK_BYTES):
            if time.monotonic() > until - 1.0:
                break
            block = number.to_bytes(8, "little") + base[8:]
            paused = time.perf_counter()
            truth.update(block)
            hashing += time.perf_counter() - paused
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(fd, rest) :]
            written += len(block)
            progress.at(_WRITING, written)
        progress.at(_SYNCING, written)
        before = time.perf_counter()
        os.fsync(fd)
        ended = time.perf_counter()
        progress.at(_READING, written)
        if fault_of(0).kind == "wrong":
            os.pwrite(fd, b"\0", written // 2)
            os.fsync(fd)
        digest, count, took, how = _read(fd, written)
    if count != written or digest != truth.hexdigest():
        return Report(Ending.WRONG_DATA, f"{path}: what was read back is not what was written")
    told: list[dict[str, Any]] = [
        figure("write_bytes_per_second", written / (ended - began - hashing), size_bytes=size, part=path),
        figure("read_bytes_per_second", written / took, size_bytes=size, part=path),
        figure("fsync_seconds", ended - before, size_bytes=size, part=path, higher_is_better=False),
    ]
    for one in told:
        one["variant"] = "checkpoint"
    return Report(Ending.DONE, figures=told, evidence=[f"{path}: {written} bytes written, {how}"])


def _unnamed(path: str, name: str) -> int:
    """A new file in `path` that has no name, or has none any more."""
    try:
        return os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        # what file systems say that cannot do this (NFS, Lustre, old kernels), and nothing else
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS):
            raise
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(name)
    return fd


def _creations(path: str, stem: str, files: int, progress: Progress) -> list[dict[str, Any]]:
    seconds = []
    for n in range(files):
        progress.at(_CREATING, 0, n)
        began = time.perf_counter()
        fd = os.open(f"{stem}-{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        os.close(fd)
        seconds.append(time.perf_counter() - began)
        fault_of(0).strike()
        os.unlink(f"{stem}-{n}")
    return _latency("create", seconds, path, "checkpoint")


def _latency(what: str, seconds: Sequence[float], path: str, variant: str) -> list[dict[str, Any]]:
    if not seconds:
        return []
    return [
        figure(
            f"{what}_{name}_seconds",
            percentile(seconds, share),
            part=path,
            variant=f"{variant}, {len(seconds)} files",
            higher_is_better=False,
        )
        for name, share in (("p50", 0.50), ("p99", 0.99))
    ]


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Guardian:
    pid: int
    pipe: int


@contextlib.contextmanager
def _guardian(names: Sequence[str]) -> Iterator[_Guardian]:
    """Have `names` removed when this process ends, however it ends.

    A process in a session of its own, so that what kills us does not kill it; it ends when we do.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(nothing, fd)
            keep = os.dup2(ours, 3)
            os.closerange(4, 4096)
            while os.read(keep, 1):
                continue
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        finally:
            os._exit(0)
    os.close(ours)
    try:
        yield _Guardian(pid, theirs)
    finally:
        os.close(theirs)
        os.waitpid(pid, 0)
