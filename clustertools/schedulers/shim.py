"""The process that stands between a training command and whoever watches it.

`python -m clustertools.schedulers.shim FOLDER` reads FOLDER/spec.json, starts the command, waits for it, and
writes how it ended to FOLDER/exit.json. It outlives the watchdog, so a watchdog that is killed loses neither
the job nor its exit code. It is the reaper of every process that the command leaves behind, so none survives
the command. A second shim for the same folder ends at once: an attempt is started at most once.
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


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace `path` by `data` in one step, on the disk before it is visible."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(new, "w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot: with the pid, its identity. 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def descendants(root: int) -> list[int]:
    """Living processes below `root`, nearest first."""
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


def main(folder: Path) -> int:
    """Run the attempt in `folder` to its end. 0 also when another shim already has it."""
    try:
        os.close(os.open(folder / "claimed", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return 0
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    me = {"shim_pid": os.getpid(), "shim_ticks": start_ticks(os.getpid()), "boot_id": boot_id}
    with open(spec["log_path"], "ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                spec["command"], cwd=spec["cwd"] or None, env=spec["environment"], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_default_signals,
            )  # fmt: skip
        except OSError as exc:
            log.write(f"clustertools: could not start {spec['command'][0]}: {exc.strerror}\n".encode())
            write_json(folder / "exit.json", {"returncode": 127, "ended_at": time.time(), "leftovers": 0})
            return 0
    write_json(folder / "running.json", {**me, "pid": child.pid, "pid_ticks": start_ticks(child.pid)})
    returncode = child.wait()
    leftovers = _end_leftovers()
    write_json(
        folder / "exit.json", {"returncode": returncode, "ended_at": time.time(), "leftovers": leftovers}
    )
    return 0


def _default_signals() -> None:
    # what the shim ignores must not be inherited
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _end_leftovers() -> int:
    """End and reap every process that the command left; the number there were."""
    first = descendants(os.getpid())
    deadline = time.monotonic() + _LEFTOVER_GRACE_SECONDS
    number = signal.SIGTERM
    while left := descendants(os.getpid()):
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)
        if number == signal.SIGKILL and time.monotonic() > deadline + _LEFTOVER_GRACE_SECONDS:
            break  # stuck in the kernel: the watchdog names it
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)
    return len(first)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
