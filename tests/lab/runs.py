"""`clustertools run` over the trainer: with short times, in a folder of its own, and nothing left behind.

lab = RunLab(tmp_path); done = lab.run("--do", "stop@12"); lab.starts() == ["0 0", "1 10"]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import trainer

CHECKS = Path(__file__).parents[2] / "checks"
#: Short, and still long enough that a step of 20 ms on a busy machine is no hang.
TIMES = (
    "--interval", "100ms", "--hang-after", "400ms", "--stack-gap", "200ms", "--startup", "20s",
    "--grace", "2s",
)  # fmt: skip


def until(true: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for something; AssertionError with `what` when it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def marked(word: str) -> list[int]:
    """Living processes with this word in their environment, such as `CLUSTERTOOLS_RUN=demo`."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if word.encode() in text.split(b"\0"):
            found.append(int(entry))
    return found


class RunLab:
    """One run of the trainer under `clustertools run`, with its state and its work under `folder`."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self.work = folder / "work"
        self.state = folder / "state"
        # found by it in the process table: no other test may have the same
        self.name = name or f"lab-{os.getpid()}-{folder.name}"[:60]
        self.config = folder / "config.yaml"
        self.watchdogs: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        node = sorted(p.stem for p in CHECKS.glob("[a-z]*.py") if not p.stem.startswith("job_"))
        # what ails this machine is not the question here
        self.config.write_text("checks:\n" + "".join(f"  {n}: {{enabled: false}}\n" for n in node))

    @property
    def folder(self) -> Path:
        return self.state / "runs" / self.name

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    def options(self, *more: str) -> list[str]:
        words = ["--name", self.name, "--state", str(self.state), "--config", str(self.config), *TIMES]
        return [*words, "--checkpoints", str(self.checkpoints), *more]

    def argv(self, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        """The whole command line; `words` are the trainer's."""
        start = [sys.executable, "-m", "clustertools", "run", *self.options(*options)]
        return [*start, "--", *self.command(*words)]

    def command(self, *words: str) -> list[str]:
        return trainer.command(self.work, "--step-seconds", "0.02", *words)

    def start(self, *words: str, options: tuple[str, ...] = (), **more: object) -> subprocess.Popen[bytes]:
        """Begin it, and go on with the test."""
        return self.popen(self.argv(*words, options=options), **more)

    def popen(self, argv: list[str], **more: object) -> subprocess.Popen[bytes]:
        """Any command line that becomes a watchdog of this run."""
        pipe = subprocess.PIPE
        given = {"stdout": pipe, "stderr": pipe, "start_new_session": True, **more}
        # tests that were begun in the background ignore it, and so would the watchdog
        given["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        watchdog: subprocess.Popen[bytes] = subprocess.Popen(argv, **given)  # type: ignore[call-overload]
        self.watchdogs.append(watchdog)
        return watchdog

    def run(
        self, *words: str, options: tuple[str, ...] = (), timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """To its end. What it printed is text here."""
        return subprocess.run(
            self.argv(*words, options=options), capture_output=True, text=True, timeout=timeout, check=False
        )

    def starts(self) -> list[str]:
        """`attempt step` of every start of the trainer."""
        return [" ".join(line.split()[:2]) for line in self._lines("starts.txt")]

    def trainer_pid(self) -> int:
        """The process of the newest start."""
        return int(self._lines("starts.txt")[-1].split()[2])

    def _lines(self, name: str) -> list[str]:
        path = self.work / name
        return path.read_text().splitlines() if path.exists() else []

    def orphans(self) -> list[int]:
        return [int(line) for line in self._lines("orphans.txt")]

    @property
    def finished(self) -> list[str]:
        return self._lines("finished.txt")

    @property
    def two_copies(self) -> bool:
        return bool(self._lines("two-copies.txt"))

    def attempt_folders(self) -> list[Path]:
        return sorted((self.folder / "attempts" / self.name).glob("*"))

    def shim_pid(self) -> int:
        """The shim of the newest attempt."""
        return int(json.loads((self.attempt_folders()[-1] / "claimed").read_text())["shim_pid"])

    def left(self, seconds: float = 3.0) -> list[int]:
        """Processes of this run that still live after `seconds`: a shim ends just after its run."""
        end = time.monotonic() + seconds
        while (found := marked(f"CLUSTERTOOLS_RUN={self.name}")) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def clean_up(self) -> None:
        """End what a test that failed has left."""
        for watchdog in self.watchdogs:
            watchdog.kill()
            watchdog.wait()
            for stream in (watchdog.stdout, watchdog.stderr):
                if stream:
                    stream.close()
        end = time.monotonic() + 10
        while (left := self.left(0)) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
