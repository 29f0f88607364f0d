"""What is done to jobs, and by which command: hold, let go, end, submit. Each order may be given twice.

A batch job that may be requeued is ended by `scontrol requeuehold`: there is no moment in which a second copy
could start, and its number, options and script stay. What we do is written at the job first (slurm_states),
where it is found again by whoever comes after us.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import DEFAULT_PATH, Completed, Host
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec
from clustertools.schedulers.slurm_runs import Place
from clustertools.schedulers.slurm_states import (
    Mark,
    held_by_us,
    is_ended,
    is_held,
    mark_of,
    state_of,
    unmarked,
)
from clustertools.sources.slurm_queue import Queue, Row, answer, node_names, read_queue, slurm_command

#: scontrol and scancel answer within milliseconds, or wait for MessageTimeout (10 s, slurm.conf(5)).
ORDER_SECONDS = 12.0
#: sbatch reads the script, and a site's submit filter looks at it.
SUBMIT_SECONDS = 30.0

# slurmctld is away, or busy: nobody knows whether the order arrived
_AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Zero Bytes were transmitted|"
    r"slurm_receive_msg|Communication connection failure|Transport endpoint|Resource temporarily unavailable|"
    r"standby mode|Slurm backup controller",
    re.IGNORECASE,
)
_GONE = re.compile(r"Invalid job id|already finished|already completed|already completing", re.IGNORECASE)
_DENIED = re.compile(r"Access/permission denied|Invalid user id", re.IGNORECASE)


def scontrol(host: Host, *words: str) -> None:
    """Give one order. Raises ActionFailed when slurmctld refuses, Unobservable when it does not answer."""
    done = host.run(*slurm_command("scontrol", *words), timeout_seconds=ORDER_SECONDS)
    if done.returncode:
        raise _refused(done, words)


def _refused(done: Completed, words: Sequence[str]) -> Exception:
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1][:200]
    order = shlex.join(words[:3])
    if _AWAY.search(done.stderr):
        return Unobservable(f"slurmctld did not answer `{order}`: {said}")
    if _DENIED.search(said):
        said += "; clustertools needs to be the job's owner, or an operator of Slurm (docs/slurm.md)"
    return ActionFailed(f"Slurm refused `{order}`: {said}")


def stop(host: Host, spec: RunSpec, place: Place, now: float) -> None:
    """End a job: hold it where it can be requeued, else cancel it. Raises ActionFailed, Unobservable."""
    # what the last look told may be half a minute old: an ended job must not be held, nor be ended twice
    fresh = read_queue(host, (place.row.id,)).rows
    row = next((row for row in fresh if row.id == place.row.id), None)
    if row is None or is_ended(row) or held_by_us(row, now) or state_of(row, now) == "completing":
        return
    _write_mark(host, row, Mark("stop", row.restarts))
    if may_requeue(spec, row) and state_of(row, now) == "running":
        try:
            scontrol(host, "requeuehold", row.id)
            return
        except ActionFailed as exc:
            # a site forbids it, or the job was told --no-requeue since
            if "disabled" not in str(exc):
                raise
    scancel(host, row.id)


def scancel(host: Host, job_id: str) -> None:
    """Cancel a job; one that is over already is no failure."""
    done = host.run(*slurm_command("scancel", job_id), timeout_seconds=ORDER_SECONDS)
    if (done.returncode or _AWAY.search(done.stderr)) and not _GONE.search(done.stderr):
        raise _refused(done, ("scancel", job_id))


def may_requeue(spec: RunSpec, row: Row) -> bool:
    """Whether the job is begun anew by itself: it has a script, Slurm allows it, and the config wants it."""
    return row.is_batch and row.may_requeue and spec.again != "submit"


def _write_mark(host: Host, row: Row, mark: Mark, *more: str) -> None:
    """Write a mark at the job, together with other changes, and keep what people wrote there.

    In the administrator's comment where we may, else in the job's own, which is its owner's to change.
    """
    if mark_of(row) == mark and not more:
        return
    try:
        scontrol(host, "update", f"JobId={row.id}", f"AdminComment={_marked(row.admin_comment, mark)}", *more)
    except ActionFailed as exc:
        if not _DENIED.search(str(exc)):
            raise
        scontrol(host, "update", f"JobId={row.id}", f"Comment={_marked(row.comment, mark)}", *more)


def _marked(comment: str, mark: Mark) -> str:
    return f"{unmarked(comment)} {mark}".strip()


def begin_again(host: Host, place: Place, attempt: Attempt, settle_seconds: float, queue: Queue) -> str:
    """Let a job that is over start once more, without the excluded nodes; its number stays.

    Raises Unobservable while its last incarnation is still on its way out, ActionFailed when it cannot be.
    """
    row, now = place.row, queue.at
    if state_of(row, now) == "completing":
        # what is set now would be undone when the end is complete
        raise Unobservable(f"job {row.id} is still completing")
    if is_ended(row):
        scontrol(host, "requeuehold", row.id)
        restarts = row.restarts + 1
    elif held_by_us(row, now):
        restarts = row.restarts
    else:
        held = f"held by somebody else ({row.reason})" if is_held(row) else row.state.lower()
        raise ActionFailed(f"job {row.id} is {held}: it is not started a second time")
    # by itself Slurm waits for the life of a job's credential, 120 s by default, before a restart
    when = f"StartTime=now+{_settled(settle_seconds)}"
    mark = Mark("start", restarts, attempt.token)
    _write_mark(host, row, mark, when, *_exclusion(host, row, attempt.excluded))
    for other in place.others:
        if attempt.excluded:
            scontrol(host, "update", f"JobId={other.id}", *_exclusion(host, other, attempt.excluded))
    scontrol(host, "release", row.id)
    return row.id


def let_go(host: Host, row: Row) -> str:
    """The end of a start that broke off: everything is written at the job, it is only still held."""
    scontrol(host, "release", row.id)
    return row.id


def _exclusion(host: Host, row: Row, excluded: Sequence[str]) -> tuple[str, ...]:
    """The words that exclude nodes from a job beside those that its owner excluded already."""
    if not excluded:
        return ()
    options = ("--noheader", "--local", "--states=all", f"--jobs={row.id}", "--format=%x")
    said = answer(host, "squeue", *options, timeout_seconds=ORDER_SECONDS).stdout
    own = [line for line in said.split() if line != "(null)"]
    names = dict.fromkeys([*(node for folded in own for node in node_names(host, folded)), *excluded])
    left = set(_partition_nodes(host, row)) - names.keys()
    if len(left) < row.node_count:
        raise ActionFailed(
            f"without {', '.join(excluded)} partition {row.partition} has {len(left)} nodes left for job "
            f"{row.id}, which needs {row.node_count}"
        )
    return (f"ExcNodeList={','.join(names)}",)


def _partition_nodes(host: Host, row: Row) -> tuple[str, ...]:
    options = ("--noheader", "--local", "--Node", "--format=%N", f"--partition={row.partition}")
    said = answer(host, "sinfo", *options, timeout_seconds=ORDER_SECONDS).stdout
    return tuple(dict.fromkeys(said.split()))


def previewed(
    kind: str, spec: RunSpec, row: Row | None, excluded: Sequence[str], settle_seconds: float
) -> list[list[str]]:
    """The commands of a step on a job, as they would be given; JOB where its number is not known."""
    job_id = row.id if row else "JOB"
    exclude = [f"ExcNodeList={','.join(excluded)}"] if excluded else []
    if kind == "exclude":
        return [["scontrol", "update", f"JobId={job_id}", *exclude]]
    again = row is None or may_requeue(spec, row)
    end = [["scontrol", "requeuehold", job_id] if again else ["scancel", job_id]]
    if kind == "cancel":
        return end
    if not again:
        return [
            *end,
            [*spec.command[:1], *(f"--exclude={','.join(excluded)}" for _ in exclude), *spec.command[1:]],
        ]
    when = f"StartTime=now+{_settled(settle_seconds)}"
    return [*end, ["scontrol", "update", f"JobId={job_id}", *exclude, when], ["scontrol", "release", job_id]]


def _settled(seconds: float) -> int:
    return max(1, round(seconds))


def submit_anew(spec: RunSpec, attempt: Attempt, before: Row | None) -> str:
    """Run the config's sbatch command for an attempt; its job's number. Raises ActionFailed, Unobservable.

    It is run as the owner of the job before it, never as root for somebody else, and gets what is in the
    config and nothing of our own environment, where secrets may be.
    """
    argv = sbatch_words(spec, attempt, before)
    who = _owner(before)
    environment = _environment(spec, attempt, who)
    try:
        done = subprocess.run(
            argv, env=environment, cwd=spec.cwd or "/", stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=SUBMIT_SECONDS, check=False, start_new_session=True,
            **_identity(who),
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise Unobservable(f"sbatch for {spec.name} did not answer within {SUBMIT_SECONDS:g} s") from exc
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        said = f"{exc.strerror}: {exc.filename}" if isinstance(exc, OSError) else str(exc)
        raise ActionFailed(f"could not run the command of {spec.name}: {said}") from exc
    if done.returncode:
        raise _refused(Completed(tuple(argv), done.returncode, done.stdout, done.stderr), argv[:1])
    # 4711 or 4711;cluster, with what a submit filter printed before it
    numbers = re.findall(r"^(\d+)(?:;\S*)?\s*$", done.stdout, re.MULTILINE)
    if not numbers:
        raise ActionFailed(f"sbatch for {spec.name} gave no job number: {done.stdout.strip()[:160]!r}")
    return str(numbers[-1])


def sbatch_words(spec: RunSpec, attempt: Attempt, before: Row | None) -> list[str]:
    """The command with what makes it idempotent and keeps it off the excluded nodes."""
    words = list(spec.command if attempt.resume_path or not spec.first_command else spec.first_command)
    if os.path.basename(words[0]) != "sbatch":
        raise ActionFailed(
            f"the command of {spec.name} has to be sbatch itself, not {words[0]}: "
            "only so it never starts twice"
        )
    if spec.resume == "placeholder":
        step = "" if attempt.resume_step is None else str(attempt.resume_step)
        words = [w.replace("{checkpoint}", attempt.resume_path).replace("{step}", step) for w in words]
    comment = _marked(before.comment if before else "", Mark("start", 0, attempt.token))
    ours = ["--parsable", f"--comment={comment}"]
    if attempt.excluded:
        theirs = [w.removeprefix("--exclude=") for w in words if w.startswith("--exclude=")]
        ours.append(f"--exclude={','.join(dict.fromkeys([*theirs, *attempt.excluded]))}")
        words = [w for w in words if not w.startswith("--exclude=")]
    return [words[0], *ours, *words[1:]]


def _owner(before: Row | None) -> pwd.struct_passwd | None:
    """Whom to run as; None: as ourselves."""
    if before is None or before.user_id in (-1, os.geteuid()):
        return None
    if os.geteuid() != 0:
        raise ActionFailed(f"job {before.id} is {before.user}'s: only they, or root, can submit it again")
    try:
        return pwd.getpwuid(before.user_id)
    except KeyError as exc:
        raise ActionFailed(f"user {before.user} of job {before.id} is not known on this machine") from exc


def _identity(who: pwd.struct_passwd | None) -> dict[str, Any]:
    if who is None:
        return {}
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": os.getgrouplist(who.pw_name, who.pw_gid)}


def _environment(spec: RunSpec, attempt: Attempt, who: pwd.struct_passwd | None) -> dict[str, str]:
    # sbatch hands all of its environment to the job
    me = who or pwd.getpwuid(os.geteuid())
    environment = {
        "PATH": os.environ.get("PATH", DEFAULT_PATH) if who is None else DEFAULT_PATH,
        "HOME": me.pw_dir, "USER": me.pw_name, "LOGNAME": me.pw_name, "SHELL": me.pw_shell or "/bin/sh",
        **{name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "SLURM_CONF") if name in os.environ},
        **spec.environment,
        "CLUSTERTOOLS_RUN": attempt.run,
        "CLUSTERTOOLS_RESTART_COUNT": str(attempt.number - 1),
    }  # fmt: skip
    step = "" if attempt.resume_step is None else str(attempt.resume_step)
    for name, value in resume_values(spec, attempt.resume_path, step).items():
        environment.pop(name, None)
        if value:
            environment[name] = value
    return environment


def resume_values(spec: RunSpec, path: str, step: str) -> Mapping[str, str]:
    """What the run's command learns of the place to resume from; empty values are left out."""
    told = spec.resume != "none"
    return {spec.resume_variable: path if told else "", "CLUSTERTOOLS_RESUME_STEP": step if told else ""}
