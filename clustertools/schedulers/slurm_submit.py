"""A run that cannot be requeued is submitted anew: by the config's own sbatch command, as the job's owner."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import DEFAULT_PATH, Completed, Host
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec, resume_words
from clustertools.schedulers.slurm_orders import marked, own_exclusions, refused
from clustertools.schedulers.slurm_states import Mark
from clustertools.sources.slurm_queue import Row

#: sbatch reads the script, and a site's submit filter looks at it.
SUBMIT_SECONDS = 30.0

# sbatch(1): options that stand alone, or take a value only after "="
_FLAGS = frozenset(
    (
        "--contiguous --exclusive --get-user-env --help --hold --ignore-pbs --nice --no-kill --no-requeue "
        "--overcommit --oversubscribe --parsable --propagate --quiet --reboot --requeue --share --spread-job "
        "--test-only --usage --use-min-nodes --verbose --version --wait"
    ).split()
)
_SHORT_FLAGS = "hHkOQsvVW"


def submit_anew(host: Host, spec: RunSpec, attempt: Attempt, before: Row | None) -> str:
    """Run the config's sbatch command for an attempt; its job's number. Raises ActionFailed, Unobservable.

    It is run as the owner of the job before it, never as root for somebody else, and gets what is in the
    config and nothing of our own environment, where secrets may be.
    """
    kept_off = own_exclusions(host, before) if before and attempt.excluded else ()
    argv = sbatch_words(spec, attempt, before, kept_off)
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
        raise refused(Completed(tuple(argv), done.returncode, done.stdout, done.stderr), argv[:1])
    # 4711 or 4711;cluster, with what a submit filter printed before it
    numbers = re.findall(r"^(\d+)(?:;\S*)?\s*$", done.stdout, re.MULTILINE)
    if not numbers:
        raise ActionFailed(f"sbatch for {spec.name} gave no job number: {done.stdout.strip()[:160]!r}")
    return str(numbers[-1])


def sbatch_words(spec: RunSpec, attempt: Attempt, before: Row | None, kept_off: Sequence[str]) -> list[str]:
    """The command with what makes it idempotent and keeps it off the excluded nodes.

    Ours stand for what the command says by the same option: a comment and exclusions are kept beside ours.
    Raises ActionFailed for a command that is not sbatch.
    """
    words = list(spec.command if attempt.resume_path or not spec.first_command else spec.first_command)
    if os.path.basename(words[0]) != "sbatch":
        raise ActionFailed(
            f"the command of {spec.name} has to be sbatch itself, not {words[0]}: "
            "only so it never starts twice"
        )
    if spec.resume == "placeholder":
        step = "" if attempt.resume_step is None else str(attempt.resume_step)
        words = [w.replace("{checkpoint}", attempt.resume_path).replace("{step}", step) for w in words]
    options, script = _options(words[1:])
    comments = _values(options, "--comment")
    excluded = dict.fromkeys([*_values(options, "--exclude", "-x"), *kept_off, *attempt.excluded])
    comment = before.comment if before else (comments or [""])[-1]
    ours = ["--parsable", f"--comment={marked(comment, Mark('start', 0, attempt.token))}"]
    ours += [f"--exclude={','.join(excluded)}"] if excluded else []
    theirs = [o for o in options if not _is(o, "--comment", "--exclude", "-x", "--wait", "-W", "--parsable")]
    return [words[0], *ours, *(word for option in theirs for word in option), *script]


def _options(words: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The options before the script, each with the word that is its value, and the rest."""
    options, at = [], 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        word = words[at]
        if word.startswith("--"):
            takes_next = "=" not in word and word not in _FLAGS
        else:
            takes_next = len(word) == 2 and word[1] not in _SHORT_FLAGS
        options.append(list(words[at : at + 1 + takes_next]))
        at += 1 + takes_next
    return options, list(words[at:])


def _is(option: Sequence[str], *names: str) -> bool:
    word = option[0].partition("=")[0]
    return word in names or (not word.startswith("--") and word[:2] in names)


def _values(options: Sequence[Sequence[str]], *names: str) -> list[str]:
    found = []
    for option in options:
        if _is(option, *names):
            attached = option[0].partition("=")[2] if option[0].startswith("--") else option[0][2:]
            found.append(option[1] if len(option) > 1 else attached)
    return found


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
    for name, value in resume_words(spec, attempt).items():
        # that of an earlier attempt would resume from the wrong place
        environment.pop(name, None)
        if value and spec.resume != "none":
            environment[name] = value
    return environment
