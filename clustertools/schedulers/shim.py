"""The process that stands between a training command and whoever watches it.

`python -m clustertools.schedulers.shim FOLDER` reads FOLDER/spec.json, starts the command, waits for it, and
writes how it ended to FOLDER/exit.json. It outlives the watchdog, so a watchdog that is killed loses neither
the job nor its exit code. It is the reaper of every process that the command leaves behind, so none survives
the command. A second shim for the same folder ends at once: an attempt is started at most once.

Its own environment is the command's: nothing of it is written to a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_LEFTOVER_GRACE_SECONDS = 3.0
#: Room for exit.json, taken at the start: how a command ended must be written on a full disk too.
_EXIT_BYTES = 1024


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace `path` by `data` in one step, on the disk before it is visible. Only its owner may read it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot: with the pid, its identity. 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    # a zombie has ended, it only was not collected yet
    return 0 if fields[0] in "ZX" else int(fields[19])


def descendants(root: int) -> list[int]:
    """Processes below `root`, nearest first; zombies too."""
    found, level = [], [root]
    while level:
        children: list[int] = []
        for pid in level:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    text = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
                    children += [int(word) for word in text.split()]
        found += children
        level = children
    return found


def claim(folder: Path, who: dict[str, Any]) -> bool:
    """Take the attempt in `folder`; False when somebody has it. Only who takes it may start the command."""
    try:
        file = os.open(folder / "claimed", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(file, json.dumps(who).encode())
        os.fsync(file)
    finally:
        os.close(file)
    return True


def main(folder: Path) -> int:
    """Run the attempt in `folder` to its end. 0 also when another shim already has it."""
    pid = os.getpid()
    if not claim(folder, {"shim_pid": pid, "shim_ticks": start_ticks(pid), "boot_id": boot_id()}):
        return 0
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    partial = _reserve(folder)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    if (folder / "cancelled").exists():
        _write_exit(folder, partial, {"returncode": None, "reason": "it was stopped before it began"})
        return 0
    try:
        child = _start(spec)
    except OSError as exc:
        what = f"could not start {spec['command'][0]}"
        if exc.filename == spec["cwd"]:
            what = f"{what} in {spec['cwd']}"
        elif exc.filename == spec["log_path"]:
            what = f"{what}: its log {spec['log_path']}"
        reason = f"{what}: {exc.strerror}"
        # as a shell says it: 127 not found, 126 found but not to be run
        missing = isinstance(exc, FileNotFoundError)
        _say(spec["log_path"], f"clustertools: {reason}\n")
        _write_exit(folder, partial, {"returncode": 127 if missing else 126, "reason": reason})
        return 0
    with contextlib.suppress(OSError):
        # on a full disk the command is found below its shim
        write_json(folder / "running.json", {"pid": child.pid, "pid_ticks": start_ticks(child.pid)})
    returncode = _wait(child)
    leftovers = _end_leftovers()
    _write_exit(folder, partial, {"returncode": returncode, "leftovers": leftovers})
    return 0


def _start(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    with open(spec["log_path"], "ab", buffering=0) as log:
        return subprocess.Popen(
            spec["command"], cwd=spec["cwd"] or None, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_default_signals,
        )  # fmt: skip


def _default_signals() -> None:
    # what the shim ignores must not be inherited
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _say(path: str, text: str) -> None:
    """A last word in the command's log, where a person looks first; its absence stops nothing."""
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as log:
        log.write(text)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for the command and collect whatever orphans end meanwhile; its exit code."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


def _end_leftovers() -> int:
    """End and reap every process that the command left; the number there were."""
    first = [pid for pid in descendants(os.getpid()) if start_ticks(pid)]
    asked: set[int] = set()
    deadline = time.monotonic() + _LEFTOVER_GRACE_SECONDS
    while left := descendants(os.getpid()):
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in asked:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                    # a stopped process acts on SIGTERM only once it goes on
                    os.kill(pid, signal.SIGCONT)
                asked.add(pid)
        if time.monotonic() > deadline + _LEFTOVER_GRACE_SECONDS:
            break  # stuck in the kernel: the watchdog names it
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    return len(first)


def _reserve(folder: Path) -> Path:
    """A file with room for exit.json under another name."""
    path = folder / ".exit"
    with (
        contextlib.suppress(OSError),
        open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file,
    ):
        file.write(b" " * _EXIT_BYTES)
        file.flush()
        os.fsync(file.fileno())
    return path


def _write_exit(folder: Path, partial: Path, data: dict[str, Any]) -> None:
    text = json.dumps({"ended_at": time.time(), **data}).encode()
    file = os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        # over the blanks of the reserved room, not truncated: this needs no new space
        os.pwrite(file, text.ljust(_EXIT_BYTES), 0)
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(partial, folder / "exit.json")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
