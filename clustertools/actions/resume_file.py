"""The small file by which a job script learns where to go on, for jobs that Slurm begins anew as they were.

# in the job script; the first start finds no such file
[ -r "$RESUME_FILE" ] && . "$RESUME_FILE"
python train.py ${CLUSTERTOOLS_RESUME_FROM:+--resume "$CLUSTERTOOLS_RESUME_FROM"}
"""

from __future__ import annotations

import os
import re
import shlex

from clustertools.actions.replace import replace_text, why_not
from clustertools.errors import ActionFailed
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec, resume_words

_HEADER = "# written by clustertools"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def write_resume_file(spec: RunSpec, attempt: Attempt) -> str:
    """Name the attempt's checkpoint in `spec.resume_file`; in words, what was done. Raises ActionFailed.

    All variables are always set, empty when there is none: what an earlier start was told must not stay.
    A file that somebody else wrote is kept beside it; one of ours is replaced.
    """
    path = spec.resume_file
    if not os.path.isabs(path):
        raise ActionFailed(f"{spec.name}: the file to resume from needs a full path, not {path!r}")
    if not _VARIABLE.fullmatch(spec.resume_variable):
        raise ActionFailed(f"{spec.resume_variable!r} is not the name of a shell variable")
    text = resume_text(spec, attempt)
    try:
        old = _read(path)
        if old == text:
            return f"{path} names it already"
        foreign = old is not None and not old.startswith(_HEADER)
        kept = replace_text(path, text, keep_old=foreign, run_writes=False)
    except OSError as exc:
        raise ActionFailed(f"could not write {path}: {why_not(path, exc)}") from exc
    return f"wrote {path}" + (f"; what was there is kept as {kept}" if kept else "")


def resume_text(spec: RunSpec, attempt: Attempt) -> str:
    """The content: assignments that a POSIX shell reads as they are, whatever is in the path."""
    told = resume_words(spec, attempt)
    about = "".join(c if c.isprintable() else "?" for c in f"attempt {attempt.number} of {attempt.run}")
    return (
        f"{_HEADER} for {about}\n"
        + "".join(f"{name}={shlex.quote(value)}\n" for name, value in told.items())
        + f"export {' '.join(told)}\n"
    )


def _read(path: str) -> str | None:
    """What is there now; None when nothing is. Something that is no text of ours comes back as it can."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(handle, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16)
