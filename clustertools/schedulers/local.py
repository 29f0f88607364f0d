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
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustertools.errors import ActionFailed, Unobservable
from clustertools.model import Attempt, Job, Subject
from clustertools.schedulers import RunSpec
from clustertools.schedulers.shim import descendants, start_ticks, write_json

#: Every process of an attempt carries this in its environment: what its shim lost is found by it.
MARK = "CLUSTERTOOLS_ATTEMPT"
#: How long a started shim may take to claim its folder before the attempt counts as lost.
CLAIM_SECONDS = 30.0


class LocalScheduler:
    """Runs of this machine under `folder`."""

    kind = "local"
    supported = frozenset({"capture", "cancel", "restart", "notify", "silence"})

    def __init__(self, folder: str | Path, node: str) -> None:
        self.folder = Path(folder)
        self.node = node

    def log_path(self, attempt: Attempt) -> Path:
        """Where the output of an attempt goes."""
        return self._attempt_folder(attempt) / "output.log"

    def _attempt_folder(self, attempt: Attempt) -> Path:
        return self.folder / attempt.run / f"{attempt.number:03d}-{attempt.token}"

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        folder = self._attempt_folder(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "claimed").exists():
            write_json(folder / "spec.json", self._launch(spec, attempt))
            try:
                subprocess.Popen(
                    [sys.executable, "-I", "-m", "clustertools.schedulers.shim", str(folder)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True, cwd="/",
                )  # fmt: skip
            except OSError as exc:
                raise ActionFailed(f"could not start {spec.name}: {exc.strerror}") from exc
        return f"{attempt.run}#{attempt.number}"

    def _launch(self, spec: RunSpec, attempt: Attempt) -> dict[str, Any]:
        """What the shim needs, with the place to resume from filled in."""
        words = spec.command if attempt.resume_path or not spec.first_command else spec.first_command
        step = "" if attempt.resume_step is None else str(attempt.resume_step)
        if spec.resume == "placeholder":
            words = tuple(
                w.replace("{checkpoint}", attempt.resume_path).replace("{step}", step) for w in words
            )
        environment = {**os.environ, **spec.environment, MARK: attempt.token}
        environment.setdefault("PYTHONUNBUFFERED", "1")  # a buffered log arrives minutes late
        environment["CLUSTERTOOLS_RUN"] = attempt.run
        environment["CLUSTERTOOLS_RESTART_COUNT"] = str(attempt.number - 1)
        for name, value in ((spec.resume_variable, attempt.resume_path), ("CLUSTERTOOLS_RESUME_STEP", step)):
            environment.pop(name, None)
            if value and spec.resume != "none":
                environment[name] = value
        log_path = str(self.log_path(attempt))
        return {"command": list(words), "cwd": spec.cwd, "environment": environment, "log_path": log_path}

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        """The newest attempt as the folder and the process table tell it. Raises Unobservable."""
        if not attempts:
            raise Unobservable(f"run {spec.name} was never started here")
        attempt = attempts[-1]
        folder = self._attempt_folder(attempt)
        running = _read_json(folder / "running.json")
        ended = _read_json(folder / "exit.json")
        job = Job(
            f"{attempt.run}#{attempt.number}", attempt.run, "pending", attempt.number, (self.node,),
            started_at=attempt.started_at,
            log_paths=spec.log_paths or (str(self.log_path(attempt)),), metrics_path=spec.metrics_path,
            checkpoint_dir=spec.checkpoint_dir, total_steps=spec.total_steps, attempts=attempts,
        )  # fmt: skip
        cancelled = _read_json(folder / "cancelled").get("why", "")
        if ended:
            return _ended(job, ended["ended_at"], ended["returncode"], cancelled)
        if running and _is_alive(running, "shim"):
            pids = (int(running["pid"]),)
            return dataclasses.replace(job, state="running", pids=pids, exit_reason=cancelled)
        left = self._marked(attempt.token) if (folder / "claimed").exists() else []
        if left:
            # its shim was killed: the command goes on, but nobody will see how it ends
            return dataclasses.replace(job, state="running", pids=tuple(left), exit_reason=cancelled)
        if running:
            return _ended(job, 0.0, None, cancelled or "its supervisor was killed or the node rebooted")
        if not folder.exists() or time.time() - attempt.started_at < CLAIM_SECONDS:
            return job
        return _ended(job, 0.0, None, cancelled or "it was never started")

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        attempt = job.attempts[-1]
        folder = self._attempt_folder(attempt)
        if not (folder / "cancelled").exists():
            write_json(folder / "cancelled", {"why": why, "at": time.time()})
        number = signal.SIGKILL if force else signal.SIGTERM
        for pid in self.leftovers(spec, job):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                # a stopped process acts on SIGTERM only once it goes on
                os.kill(pid, signal.SIGCONT)

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        attempt = job.attempts[-1]
        running = _read_json(self._attempt_folder(attempt) / "running.json")
        found = set(self._marked(attempt.token))
        if running and _is_alive(running, "shim"):
            found |= set(descendants(int(running["shim_pid"])))
            found.discard(int(running["shim_pid"]))
        return sorted(pid for pid in found if start_ticks(pid) and not _is_zombie(pid))

    def _marked(self, token: str) -> list[int]:
        """Processes that carry the attempt's mark, wherever their parents went."""
        mark = f"{MARK}={token}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
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


def _ended(job: Job, at: float, exit_code: int | None, reason: str) -> Job:
    return dataclasses.replace(job, state="ended", ended_at=at, exit_code=exit_code, exit_reason=reason)


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty when there is none. Raises Unobservable when it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise Unobservable(f"{path}: {exc}") from exc


def _is_alive(running: Mapping[str, Any], who: str) -> bool:
    """Whether the very process that was written down still runs: same boot, same pid, same start."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    ticks = start_ticks(int(running[f"{who}_pid"]))
    return running["boot_id"] == boot_id and ticks == running[f"{who}_ticks"] and ticks > 0


def _is_zombie(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"
