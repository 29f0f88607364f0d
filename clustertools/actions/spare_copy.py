"""A copy of the only checkpoint of a run that overwrites it in place (nanoGPT's `ckpt.pt`).

Such a run opens its file anew at each save, so the old content is gone before the new one is there: a kill in
between leaves nothing. A second name of the same file (a hard link) would be emptied with it; only a copy
lasts. It is made at a restart, from what was just verified, and never of a run that nobody restarts.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

from clustertools.actions.replace import why_not
from clustertools.errors import ActionFailed
from clustertools.sources.checkpoint_layouts import step_of
from clustertools.sources.checkpoints import CheckpointReport

#: Copied within a pass of the watchdog; larger runs keep several checkpoints.
COPY_BYTES = 8 << 30
_MARK = ".kept-by-clustertools"


def keep_copy(chosen: CheckpointReport, all_of_them: Sequence[CheckpointReport]) -> str:
    """Keep a copy of `chosen` beside it when it is the run's only one; in words, what was done ("": nothing).

    A copy that cannot be made stops nothing: the run is as well off as before.
    """
    others = [r for r in all_of_them if r.path not in (chosen.path, kept_name(chosen.path))]
    overwritten = chosen.files == 1 and step_of(chosen.name) is None and _MARK not in chosen.name
    if others or not overwritten or os.path.isdir(chosen.path) or os.path.islink(chosen.path):
        return ""
    target = kept_name(chosen.path)
    try:
        if os.path.exists(target) and os.stat(target).st_mtime_ns == os.stat(chosen.path).st_mtime_ns:
            return ""
        room = shutil.disk_usage(os.path.dirname(chosen.path)).free
        if chosen.size_bytes > COPY_BYTES or room < 2 * chosen.size_bytes:
            return f"no copy of {chosen.name} was kept: it is too large, or the storage too full"
        _copy(chosen.path, target)
    except OSError as exc:
        return f"no copy of {chosen.name} was kept: {why_not(chosen.path, exc)}"
    return f"kept a copy of {chosen.name} as {os.path.basename(target)}"


def put_back(path: str) -> str:
    """Where `path` is our copy, give the run's own file, which was set aside, its content again; in words.

    Raises ActionFailed.
    """
    name = os.path.basename(path)
    own = os.path.join(os.path.dirname(path), name.replace(_MARK, ""))
    if _MARK not in name or os.path.lexists(own):
        return ""
    try:
        _copy(path, own)
    except OSError as exc:
        raise ActionFailed(f"could not put {path} back: {why_not(path, exc)}") from exc
    return f"put {name} back as {os.path.basename(own)}. "


def kept_name(path: str) -> str:
    """`ckpt.pt` as `ckpt.kept-by-clustertools.pt`: found and verified as every other checkpoint."""
    stem, ending = os.path.splitext(path)
    return f"{stem}{_MARK}{ending}"


def _copy(source: str, target: str) -> None:
    """Copy by rename, with owner and times; the blocks are shared where the file system can."""
    partial = f"{target}.{os.getpid()}.tmp"
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        new = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            info = os.fstat(handle)
            _copy_bytes(handle, new, info.st_size)
            if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(new, info.st_uid, info.st_gid)
            os.fchmod(new, info.st_mode & 0o777)
            os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns))
            os.fsync(new)
        finally:
            os.close(new)
        os.replace(partial, target)
    except BaseException:  # whatever it was, it is raised again
        if os.path.lexists(partial):
            os.unlink(partial)
        raise
    finally:
        os.close(handle)


def _copy_bytes(source: int, target: int, size: int) -> None:
    copied = 0
    while copied < size:
        try:
            count = os.copy_file_range(source, target, min(1 << 30, size - copied))
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP) or copied:
                raise
            count = os.sendfile(target, source, None, min(1 << 30, size - copied))
        if count == 0:
            raise OSError(errno.EIO, "it became shorter while it was copied", None)
        copied += count
