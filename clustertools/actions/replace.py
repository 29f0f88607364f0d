"""Replaces a small file of a run in one step: a reader finds the old one or the new one, never half of one.

The folder belongs to the run's user and the watchdog may have more rights than that user, so no name in it is
trusted: new files are made exclusively and changed through their handles, and links are never followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable

from clustertools.errors import ActionFailed
from clustertools.sources.checkpoint_layouts import OURS

_BEFORE = OURS[1]
#: For a file that was not there before: anybody may read where a run resumes.
_NEW_MODE = 0o644


def replace_text(path: str, text: str, *, keep_old: bool = True, run_writes: bool = True) -> str:
    """Make `text` the content of `path`, with the owner and mode of the old file; the old one's new name.

    A file that is new belongs to whom the folder belongs to. The old one stays as
    `NAME.before-clustertools-1` (2, 3 ...) when `keep_old`; "" when there was none or it was not kept.
    Raises OSError, and ActionFailed when the run could not write the file afterwards and has to
    (`run_writes`).
    """
    return _replace(path, lambda partial: _write(partial, path, text, run_writes), keep_old=keep_old)


def replace_link(path: str, target: str) -> str:
    """Make the link `path` point to `target`; the name under which the old one is kept. Raises OSError."""
    return _replace(path, lambda partial: os.symlink(target, partial), keep_old=True)


def _replace(path: str, make: Callable[[str], object], *, keep_old: bool) -> str:
    partial = f"{path}.clustertools-{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    try:
        make(partial)
        kept = _keep(path) if keep_old and os.path.lexists(path) else ""
        os.replace(partial, path)
    except BaseException:  # whatever it was, it is raised again
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    _sync_folder(os.path.dirname(path) or ".")
    return kept


def _write(partial: str, path: str, text: str, run_writes: bool) -> None:
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        _take_over_owner(path, file.fileno(), run_writes)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _take_over_owner(path: str, handle: int, run_writes: bool) -> None:
    """Owner and mode of the old file: the run must be able to write it at its next save."""
    try:
        old = os.lstat(path)
        mode = _NEW_MODE if stat.S_ISLNK(old.st_mode) else stat.S_IMODE(old.st_mode) & 0o777
    except FileNotFoundError:
        old, mode = os.stat(os.path.dirname(path) or "."), _NEW_MODE
    mine = os.fstat(handle)
    if (old.st_uid, old.st_gid) != (mine.st_uid, mine.st_gid):
        try:
            os.fchown(handle, old.st_uid, old.st_gid)
        except PermissionError as exc:
            if run_writes and old.st_uid != mine.st_uid:
                raise ActionFailed(
                    f"{path} belongs to user {old.st_uid}, who could not write it after a repair by "
                    f"user {mine.st_uid}; repair it as that user"
                ) from exc
            mode |= 0o044
    os.fchmod(handle, mode)


def _keep(path: str) -> str:
    """Keep the old file under the first free name; that name."""
    for number in range(1, 10_000):
        kept = f"{path}{_BEFORE}{number}"
        try:
            if os.path.islink(path):
                os.symlink(os.readlink(path), kept)
            else:
                _link_or_copy(path, kept)
            return os.path.basename(kept)
        except FileExistsError:
            continue
    raise ActionFailed(f"{path} was replaced 9999 times: look at what breaks it")


def _link_or_copy(path: str, kept: str) -> None:
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError as exc:
        # file systems without hard links, and files of others where the kernel protects links to them;
        # a full disk or a forbidden folder stays an error
        if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(handle, "rb") as old, open(kept, "xb") as new:
            shutil.copyfileobj(old, new)


def _sync_folder(folder: str) -> None:
    """Make the rename last through a power failure, where the file system lets folders be synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def why_not(path: str, exc: OSError) -> str:
    """Why something beside `path` could not be changed, and what to try."""
    folder = os.path.dirname(path) or "."
    if exc.errno == errno.EROFS:
        return f"{folder} is mounted read-only on this machine: run the watchdog where it is writable"
    if exc.errno in (errno.EACCES, errno.EPERM):
        with contextlib.suppress(OSError):
            info = os.stat(folder)
            return (
                f"{folder} belongs to user {info.st_uid} (mode {stat.S_IMODE(info.st_mode):o}) and the "
                f"watchdog runs as user {os.geteuid()}: let it write there, or choose another kind of resume"
            )
    return f"{exc.filename or path}: {exc.strerror or exc}"
