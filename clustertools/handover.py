"""What the launcher is given after a preflight: files of nodes, words for Slurm, and the launch itself.

    plan = launch(report, ("srun", "--ntasks-per-node=8", "train.sh"), environ=os.environ)
    if isinstance(plan, Refused): print(plan.reason)
    else: start(plan)              # does not come back: the launcher takes our place

Planning is pure. A launch is planned only on nodes that were found good, unless the terms of the report say
otherwise, and only for a command that can know which nodes these are.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from clustertools.errors import ConfigError
from clustertools.model import Status
from clustertools.preflight_report import Decision, Report, Verdict, folded, is_host_name
from clustertools.text import plain

GOOD_VARIABLE = "CLUSTERTOOLS_GOOD_NODES"
EXCLUDE_VARIABLE = "CLUSTERTOOLS_EXCLUDE"
COUNT_VARIABLE = "CLUSTERTOOLS_NNODES"

#: Commands that take Slurm's words for nodes.
_SLURM = frozenset({"srun", "sbatch", "salloc"})

# "{good_nodes}" but not "${count}" of a shell, "{{count}}" of a template, or JSON such as {"count": 3}
_PLACEHOLDER = re.compile(r"(?<![${])\{(good_nodes_comma|good_nodes|count|exclude|hostfile)\}(?!\})")
#: A command with one of these knows where to run; "{count}" alone says only on how many.
_NAMING = frozenset({"good_nodes", "good_nodes_comma", "exclude", "hostfile"})


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch that is allowed: `argv` with its placeholders filled, what is added to its environment, and
    why it is allowed, in a sentence with the nodes."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    nodes: tuple[str, ...]
    sentence: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """No launch, and why. `status` gives the exit code."""

    reason: str
    status: Status


def launch(
    report: Report, argv: Sequence[str], *, environ: Mapping[str, str], hostfile: str = ""
) -> Launch | Refused:
    """The launch of `argv` on the nodes that the report's verdict allows, or why there is none.

    `environ` is the launcher's own: in a Slurm allocation (SLURM_JOB_ID) a step gets only nodes of it.
    `hostfile` is where the hostfile was, or will be, written. Raises ConfigError for a command that cannot be
    meant: none, or one with {hostfile} when there is no such file.
    """
    if not argv or not argv[0]:
        raise ConfigError("no command to launch was given after --")
    used = {name for word in argv for name in _PLACEHOLDER.findall(word)}
    if "hostfile" in used and not hostfile:
        raise ConfigError("the command has {hostfile}, but no file was named: add --hostfile FILE")
    verdict = report.verdict
    if verdict.decision is Decision.NO_GO:
        return Refused(verdict.sentence, verdict.status)
    nodes = verdict.launch_nodes
    odd = [name for name in (*nodes, *verdict.excluded) if not is_host_name(name)]
    if odd:
        return Refused(f"not names of hosts, so no launcher is given them: {folded(odd)}", Status.UNKNOWN)
    command = os.path.basename(argv[0])
    # sbatch and salloc ask for an allocation of their own, wherever they are called
    allocation = () if command in ("sbatch", "salloc") else _allocation(environ)
    outside = [name for name in nodes if allocation and name not in allocation]
    if outside:
        job = plain(environ.get("SLURM_JOB_ID", ""), 40)
        return Refused(f"not in the allocation of job {job}: {folded(outside)}", Status.UNKNOWN)
    words, by_slurm = list(argv), command in _SLURM
    whole = allocation or tuple(dict.fromkeys(report.asked))
    is_reduced = set(whole) != set(nodes)
    # a launcher inside an allocation of only good nodes needs no words; outside, Slurm would pick others
    if by_slurm and not used & _NAMING and (is_reduced or not allocation):
        # in an allocation what is good and left over is kept out too: see slurm_words
        out = [n for n in whole if n not in set(nodes)] if allocation else verdict.excluded
        words[1:1] = slurm_words(nodes, out)
    elif is_reduced and not used & _NAMING:
        return Refused(
            f"the launch would be on {folded(nodes)} only, and nothing in the command says so: put "
            "{good_nodes}, {good_nodes_comma} or {hostfile} into it, where its launcher or script takes the "
            f"nodes (left out: {folded(n for n in whole if n not in set(nodes))})",
            Status.UNKNOWN,
        )
    values = {
        "good_nodes": folded(nodes),
        "good_nodes_comma": ",".join(nodes),
        "count": str(len(nodes)),
        "exclude": folded(verdict.excluded),
        "hostfile": hostfile,
    }
    filled = tuple(_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in words)
    environment = {
        GOOD_VARIABLE: values["good_nodes"],
        EXCLUDE_VARIABLE: values["exclude"],
        COUNT_VARIABLE: values["count"],
    }
    warnings = verdict.warnings
    if allocation and is_reduced:
        fewer, problem = _fewer_tasks(environ, len(allocation), len(nodes))
        environment.update(fewer)
        warnings = (*warnings, problem) if problem else warnings
    return Launch(filled, environment, nodes, verdict.sentence, warnings)


def slurm_words(nodes: Sequence[str], excluded: Iterable[str] = ()) -> tuple[str, ...]:
    """Words for srun, sbatch or salloc that bind it to `nodes`.

    --nodelist alone is a minimum: with a larger --nodes behind it, as the user may have written, srun 22.05
    adds other nodes of the allocation in silence (tried). With --exclude it refuses.
    """
    out = folded(_hosts(excluded))
    words = (f"--nodes={len(nodes)}", f"--nodelist={folded(_hosts(nodes))}")
    return (*words, f"--exclude={out}") if out else words


def _allocation(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The nodes of the Slurm allocation that we stand in; empty outside of one."""
    listed = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""
    if not environ.get("SLURM_JOB_ID") or not listed:
        return ()
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    try:
        return tuple(NodeSet(listed, resolver=RESOLVER_NOGROUP))
    except NodeSetException as exc:
        raise ConfigError(f"SLURM_JOB_NODELIST is not a list of nodes: {plain(str(exc))}") from exc


def _fewer_tasks(environ: Mapping[str, str], before: int, after: int) -> tuple[dict[str, str], str]:
    """What srun takes from its environment (srun(1), INPUT ENVIRONMENT VARIABLES), for fewer nodes.

    The number of tasks of the whole allocation would make every smaller step fail: "More processors requested
    than permitted" (tried with 22.05). SLURM_JOB_NODELIST is not among them: srun does not choose by it.
    """
    smaller = {name: str(after) for name in ("SLURM_NNODES", "SLURM_JOB_NUM_NODES") if name in environ}
    tasks = environ.get("SLURM_NTASKS") or environ.get("SLURM_NPROCS") or ""
    if not tasks:
        return smaller, ""
    if not tasks.isascii() or not tasks.isdigit() or int(tasks) % before:
        return smaller, f"SLURM_NTASKS={plain(tasks, 40)} does not divide by {before} nodes: say -n yourself"
    fewer = str(int(tasks) // before * after)
    names = ("SLURM_NTASKS", "SLURM_NPROCS")
    return {**smaller, **{name: fewer for name in names if name in environ}}, ""


def command_problem(argv: Sequence[str]) -> str:
    """Why `argv` cannot be started here, or "": to be asked before minutes are spent on a preflight."""
    if not argv or not argv[0]:
        return "no command to launch was given after --"
    if shutil.which(argv[0]) is None:
        return f"cannot launch {plain(argv[0], 200)}: not found, or not executable; name it by its full path"
    return ""


def start(plan: Launch, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Become the launcher: same process, terminal, group and signals, and its exit code is ours.

    Nothing of ours is needed once it runs, and what Slurm, a shell or a person sends reaches it as if we had
    never been there. Raises ConfigError when it cannot be started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these, and what is ignored stays so over exec: pipelines of the job count on SIGPIPE
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(plan.argv[0], plan.argv, {**environ, **plan.environment})  # noqa: S606  # the purpose
    except (OSError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"cannot launch {plain(plan.argv[0], 200)}: {said}") from exc


def write_good_nodes(path: Path, verdict: Verdict) -> None:
    """One node a line: those to launch on; after a NO GO those that are known to be good."""
    names = verdict.launch_nodes or verdict.good_nodes
    write_whole(path, "".join(f"{name}\n" for name in _hosts(names)))


def write_excluded(path: Path, verdict: Verdict) -> None:
    """The nodes that must not be used, folded on one line, as Slurm's --exclude takes them; may be empty."""
    write_whole(path, f"{folded(_hosts(verdict.excluded))}\n")


def write_hostfile(path: Path, verdict: Verdict, slots: int = 0) -> None:
    """`HOST slots=N` a line (Open MPI, DeepSpeed), or the bare name without `slots`.

    After a NO GO a file of an earlier preflight is taken away: a launcher must not find it.
    """
    if verdict.decision is Decision.NO_GO:
        _refuse_odd_target(path)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    end = f" slots={slots}" if slots else ""
    write_whole(path, "".join(f"{name}{end}\n" for name in _hosts(verdict.launch_nodes)))


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part.

    Only a regular file is replaced, and its permissions are kept. Raises ConfigError.
    """
    mode = _refuse_odd_target(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as out:
                if mode is not None:
                    os.fchmod(out.fileno(), mode)
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(new, path)  # a link that came to be there meanwhile is replaced, not followed
        except BaseException:  # whatever it was, it is raised again
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            raise
    except OSError as exc:
        raise ConfigError(f"cannot write {plain(str(path))}: {exc.strerror or exc}") from exc


def _refuse_odd_target(path: Path) -> int | None:
    """The permissions of the file at `path`, None when there is none. Raises ConfigError if it is no file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"cannot write {plain(str(path))}: {exc.strerror or exc}") from exc
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(
            f"cannot write {plain(str(path))}: it is there and not a regular file; name another"
        )
    return stat.S_IMODE(found.st_mode)


def _hosts(names: Iterable[str]) -> list[str]:
    """`names`, when each can be a host's name: a line break or an option in one would be another node."""
    every = list(names)
    odd = [name for name in every if not is_host_name(name)]
    if odd:
        raise ConfigError(f"not names of hosts, so no launcher is given them: {folded(odd)}")
    return every
