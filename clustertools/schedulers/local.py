"""Runs on this machine, without a scheduler: one folder per attempt, one shim per command.

    <folder>/<run>/<number>-<token>/  spec.json  claimed  running.json  exit.json  cancelled  output.log

Nothing here depends on the watchdog being alive: what is running is told by the folder and by the process
table together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import own_python
from clustertools.model import Attempt, Job, JobState, Subject
from clustertools.schedulers import RunSpec, resume_words
from clustertools.schedulers.shim import boot_id, claim, descendants, start_ticks, write_json

#: Every process of an attempt carries this in its environment: what its shim lost is found by it.
MARK = "CLUSTERTOOLS_ATTEMPT"
#: How long a started shim may take to claim its folder before the attempt counts as lost.
CLAIM_SECONDS = 30.0


#: How long it may take to note the command's pid after the claim; on a full disk the note is never written.
NOTE_SECONDS = 5.0


class LocalScheduler:
    """Runs of this machine under `folder`."""

    kind = "local"
    supported = frozenset({"capture", "cancel", "restart", "notify", "silence"})

    def __init__(self, folder: str | Path, node: str) -> None:
        self.folder = Path(folder)
        self.node = node
        self._shims: list[subprocess.Popen[bytes]] = []

    def log_path(self, attempt: Attempt) -> Path:
        """Where the output of an attempt goes."""
        return self._attempt_folder(attempt) / "output.log"

    def _attempt_folder(self, attempt: Attempt) -> Path:
        return self.folder / attempt.run / f"{attempt.number:03d}-{attempt.token}"

    def found(self, run: str) -> tuple[Attempt, ...]:
        """The attempts of a run that left folders here: what is known of them when the state was lost."""
        attempts = []
        for folder in sorted((self.folder / run).glob("[0-9]*-*")):
            number, _, token = folder.name.partition("-")
            with contextlib.suppress(ValueError):
                attempts.append(Attempt(run, int(number), token, started_at=_changed_at(folder)))
        return tuple(sorted(attempts, key=lambda a: (a.number, a.started_at)))

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        """Start an attempt. Raises ActionFailed when it could not be started; it never starts later then."""
        folder = self._attempt_folder(attempt)
        try:
            # what a run prints and is told is nobody else's business
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "claimed").exists():
                write_json(folder / "spec.json", self._launch(spec, attempt))
                shim = subprocess.Popen(
                    own_python("-m", "clustertools.schedulers.shim", str(folder)),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True, cwd="/", env=_environment(spec, attempt),
                )  # fmt: skip
                self._shims.append(shim)
        except (OSError, ValueError) as exc:
            # ValueError: a NUL in a word or a variable
            said = f"{exc.strerror}: {exc.filename}" if isinstance(exc, OSError) else str(exc)
            raise ActionFailed(f"could not start {spec.name}: {said}") from exc
        return f"{attempt.run}#{attempt.number}"

    def _launch(self, spec: RunSpec, attempt: Attempt) -> dict[str, Any]:
        """What the shim needs, with the place to resume from filled in."""
        words = spec.command if attempt.resume_path or not spec.first_command else spec.first_command
        if spec.resume == "placeholder":
            step = "" if attempt.resume_step is None else str(attempt.resume_step)
            words = tuple(
                w.replace("{checkpoint}", attempt.resume_path).replace("{step}", step) for w in words
            )
        return {"command": list(words), "cwd": spec.cwd, "log_path": str(self.log_path(attempt))}

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest attempt as the folder and the process table tell it. Raises Unobservable.

        An attempt that no shim has claimed in time is claimed here, so that a late shim cannot start it
        after it was given up.
        """
        if not attempts:
            raise Unobservable(f"run {spec.name} was never started here")
        self._shims = [shim for shim in self._shims if shim.poll() is None]
        attempt = attempts[-1]
        folder = self._attempt_folder(attempt)
        job = Job(
            f"{attempt.run}#{attempt.number}", attempt.run, "pending", attempt.number, (self.node,),
            started_at=attempt.started_at,
            log_paths=spec.log_paths or (str(self.log_path(attempt)),), metrics_path=spec.metrics_path,
            checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps, attempts=attempts,
        )  # fmt: skip
        claimed = _claimed(folder)
        if claimed is None:
            if attempt.end:
                return _ended(job, attempt.ended_at, None, attempt.end)
            # from its submit, which may have come long after it was written down
            asked_at = max(attempt.started_at, _changed_at(folder))
            if not folder.exists() or time.time() - asked_at < CLAIM_SECONDS:
                return job
            _give_up(folder, "it was never started")
            claimed = _claimed(folder) or {}
        return self._claimed_job(job, attempt, claimed)

    def _claimed_job(self, job: Job, attempt: Attempt, claimed: Mapping[str, Any]) -> Job:
        folder = self._attempt_folder(attempt)
        # in this order: a shim that is gone has written its last word, so what is read after is all there is
        supervised = _is_alive(claimed)
        ended = _read_json(folder / "exit.json")
        cancelled = _read_json(folder / "cancelled").get("why", "")
        if ended:
            reason = cancelled or str(ended.get("reason", ""))
            return _ended(job, float(ended["ended_at"]), ended["returncode"], reason)
        if supervised:
            running = _read_json(folder / "running.json")
            if running:
                pids: tuple[int, ...] = (int(running["pid"]),)
            elif time.time() - _changed_at(folder / "claimed") < NOTE_SECONDS:
                return job
            else:
                pids = tuple(pid for pid in descendants(int(claimed["shim_pid"])) if start_ticks(pid))[:1]
            state: JobState = "running" if pids else "pending"
            return dataclasses.replace(job, state=state, pids=pids, exit_reason=cancelled)
        if not claimed and time.time() - _changed_at(folder / "claimed") < CLAIM_SECONDS:
            return job  # being claimed right now
        left = self._marked(attempt.token)
        if left:
            # its shim was killed: the command goes on, but nobody will see how it ends
            return dataclasses.replace(job, state="running", pids=tuple(left), exit_reason=cancelled)
        why = "its supervisor was killed: nobody saw how it ended"
        if claimed.get("boot_id", boot_id()) != boot_id():
            why = "the machine was rebooted"
        elif not (folder / "running.json").exists():
            why = "its supervisor was killed before it began"
        return _ended(job, 0.0, None, cancelled or why)

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        attempt = job.attempts[-1]
        folder = self._attempt_folder(attempt)
        try:
            if _claimed(folder) is None and folder.exists() and _give_up(folder, why):
                return  # it had not begun, and now never will
            if folder.exists() and not (folder / "cancelled").exists():
                write_json(folder / "cancelled", {"why": why, "at": time.time()})
        except OSError as exc:
            # who asked is lost on a full disk; the processes end all the same
            if not force and not self.leftovers(spec, job):
                raise ActionFailed(f"could not stop {spec.name}: {exc.strerror}: {exc.filename}") from exc
        shim = _claimed(folder) or {}
        left = self.leftovers(spec, job)
        targets = [(pid, signal.SIGKILL if force else signal.SIGTERM) for pid in left]
        if _is_alive(shim):
            # one that was stopped collects nobody; one that nothing is left for is stuck itself
            stuck = force and not left
            targets.append((int(shim["shim_pid"]), signal.SIGKILL if stuck else signal.SIGCONT))
        for pid, number in targets:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                # a stopped process acts on SIGTERM only once it goes on
                os.kill(pid, signal.SIGCONT)

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        attempt = job.attempts[-1]
        shim = _claimed(self._attempt_folder(attempt)) or {}
        found = set(self._marked(attempt.token))
        if _is_alive(shim):
            found |= set(descendants(int(shim["shim_pid"])))
            found.discard(int(shim["shim_pid"]))
        return sorted(pid for pid in found if start_ticks(pid))

    def _marked(self, token: str) -> list[int]:
        """Living processes that carry the attempt's mark, wherever their parents went."""
        mark = f"{MARK}={token}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
                # a zombie's environment is empty
                if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
        return found

    def preview(self, kind: str, target: Subject, options: Mapping[str, Any]) -> str:
        run = shlex.quote(target.run or target.node)
        if kind == "restart":
            return (
                f"stop every process of {run}, find its last verified checkpoint, start it again from there"
            )
        if kind == "capture":
            return f"save stacks, process states, kernel lines and log tails of {run}"
        if kind == "cancel":
            return f"SIGTERM, then SIGKILL, to every process of {run}"
        return f"{kind} {run}"


def _environment(spec: RunSpec, attempt: Attempt) -> dict[str, str]:
    """What the command finds in its environment. It may hold secrets: it goes to the process, to no file."""
    environment = {**os.environ, **spec.environment, MARK: attempt.token}
    environment.setdefault("PYTHONUNBUFFERED", "1")  # a buffered log arrives minutes late
    environment["CLUSTERTOOLS_RUN"] = attempt.run
    environment["CLUSTERTOOLS_RESTART_COUNT"] = str(attempt.number - 1)
    for name, value in resume_words(spec, attempt).items():
        # that of an earlier attempt, or of a run around this one, would resume from the wrong place
        environment.pop(name, None)
        if value and spec.resume != "none":
            environment[name] = value
    return environment


def _ended(job: Job, at: float, exit_code: int | None, reason: str) -> Job:
    return dataclasses.replace(job, state="ended", ended_at=at, exit_code=exit_code, exit_reason=reason)


def _give_up(folder: Path, why: str) -> bool:
    """Claim an attempt for nobody, so that it never starts; False when it was claimed, or may not be."""
    try:
        if not claim(folder, {}):
            return False
        write_json(folder / "exit.json", {"returncode": None, "ended_at": time.time(), "reason": why})
    except OSError:
        return False
    return True


def _claimed(folder: Path) -> dict[str, Any] | None:
    """Who took the attempt: the shim's pid, start and boot; empty while it is being written; None: nobody."""
    try:
        text = (folder / "claimed").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise Unobservable(f"{folder / 'claimed'}: {exc.strerror}") from exc
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _changed_at(path: Path) -> float:
    """When the file was last written; 0 when there is none."""
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0
    except OSError as exc:
        raise Unobservable(f"{path}: {exc.strerror}") from exc


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty when there is none. Raises Unobservable when it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise Unobservable(f"{path}: {exc}") from exc


def _is_alive(shim: Mapping[str, Any]) -> bool:
    """Whether the very process that claimed the attempt still runs: same boot, same pid, same start."""
    if not shim.get("shim_ticks") or shim["boot_id"] != boot_id():
        return False
    return start_ticks(int(shim["shim_pid"])) == int(shim["shim_ticks"])
