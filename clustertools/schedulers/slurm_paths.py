"""Where a job of Slurm writes: sbatch's patterns in the names of its files, filled in. Pure.

Patterns: "filename pattern" in sbatch(1); `expand_stdio_fields` in Slurm's src/common/slurm_protocol_api.c.
Which of them squeue has filled in by itself depends on its version.
"""

from __future__ import annotations

import dataclasses
import glob
import posixpath
import re
from functools import partial

from clustertools.schedulers import RunSpec
from clustertools.sources.slurm_queue import Row

_PATTERN = re.compile(r"%(\d*)([%AaJjNnstux])")


def expanded(path: str, row: Row, first_node: str = "") -> str:
    """`path` with its %-patterns filled in and, when it is relative, below the job's working directory.

    What differs by node, step or task is that of the batch script: the first node, task 0.
    """
    if not path:
        return ""
    # sbatch: "if the file name contains a backslash, the symbols after % are not replaced"
    if "\\" in path:
        filled = path.replace("\\", "")
    else:
        filled = _PATTERN.sub(lambda match: _value(match, row, first_node), path)
    return posixpath.normpath(posixpath.join(row.folder or "/", filled))


def _value(match: re.Match[str], row: Row, first_node: str) -> str:
    if match[2] == "%":
        return "%"
    values = {
        "A": row.array_id or row.id,
        # NO_VAL is what Slurm itself writes for a job that is no task
        "a": str(4294967294 if row.task is None else row.task),
        "J": row.id, "j": row.id, "N": first_node, "n": "0", "s": "batch", "t": "0", "u": row.user,
        "x": row.name,
    }  # fmt: skip
    value = values[match[2]]
    # %4j is 0004; more than ten digits are never asked for
    return value.zfill(min(int(match[1] or 0), 10)) if value.isdecimal() else value


def output_paths(row: Row, first_node: str = "") -> tuple[str, ...]:
    """The files that a job's own output goes to, none for a job without a script."""
    if not row.is_batch:
        return ()
    found = {expanded(_default(path, row), row, first_node): None for path in (row.stdout, row.stderr)}
    return tuple(path for path in found if path and path != "/dev/null")


def _default(path: str, row: Row) -> str:
    # before 24.05 squeue gives a task of an array the name that a job without tasks would have
    if row.task is not None and path == posixpath.join(row.folder, f"slurm-{row.id}.out"):
        return posixpath.join(row.folder, f"slurm-{row.array_id}_{row.task}.out")
    return path


def with_paths(template: RunSpec, name: str, row: Row, first_node: str = "") -> RunSpec:
    """The run that a job is: the template with the job's files, and its own working directory.

    A log path with `*`, `?` or `[` is a pattern: that of a job's own output is escaped.
    """
    fill = partial(expanded, row=row, first_node=first_node)
    own = tuple(glob.escape(path) for path in output_paths(row, first_node))
    return dataclasses.replace(
        template, name=name, cwd=template.cwd or row.folder,
        log_paths=tuple(fill(path) for path in template.log_paths) or own,
        metrics_path=fill(template.metrics_path), checkpoint_dir=fill(template.checkpoint_dir),
        resume_file=fill(template.resume_file), kill_switch=fill(template.kill_switch),
    )  # fmt: skip
