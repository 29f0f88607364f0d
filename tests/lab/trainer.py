"""A training program without PyTorch that starts in a moment, saves, resumes, and misbehaves when told to.

    trainer.py DIR --steps 30 --do stop@12 --do exit:3@20/1 --do crash@start/2

DIR gets checkpoints/, starts.txt (one line for each start), finished.txt and lock. An order is
KIND[:VALUE]@STEP[/ATTEMPTS]; STEP is a number, `start` or `end`; ATTEMPTS are numbers of
CLUSTERTOOLS_RESTART_COUNT, 0 unless told, `*` for all. Kinds:

    stop         SIGSTOP to itself, again after every SIGCONT
    sleep        stand at one line for ever
    exit:N       end with this exit code
    signal:N     end by this signal
    deaf         ignore SIGTERM from here on
    orphan       leave a sleeper behind: forked twice, in a session of its own
    deaf-orphan  the same, ignoring SIGTERM
    torn         save a checkpoint that is cut short
    stubborn     a torn checkpoint at every save from here on
    hostile      save a checkpoint that runs a command when it is loaded
    quiet        go on, but print no step any more
    print:N      print N bytes of something else
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.checkpoint_builders import hostile, megatron_checkpoint, torch_zip

TRACKER = "latest_checkpointed_iteration.txt"


class Order:
    """One misbehaviour, when it is due, and on which attempts."""

    def __init__(self, text: str) -> None:
        what, _, attempts = text.partition("/")
        kind, _, self.step = what.partition("@")
        self.kind, _, value = kind.partition(":")
        self.value = int(value or 0)
        self.attempts = attempts or "0"

    def is_due(self, step: object) -> bool:
        attempt = os.environ.get("CLUSTERTOOLS_RESTART_COUNT", "0")
        return self.step == str(step) and (self.attempts == "*" or attempt in self.attempts.split(","))


class Trainer:
    """One start of the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.folder)
        self.checkpoints = self.folder / "checkpoints"
        self.orders = [Order(text) for text in options.do]
        self.quiet = self.stubborn = False

    def run(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        # held by every process of this start, leftovers included, until the last one is gone
        self.lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        os.set_inheritable(self.lock, True)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _append(self.folder / "two-copies.txt", f"{os.getpid()}")
            return 99
        begin = self._resume()
        attempt = os.environ.get("CLUSTERTOOLS_RESTART_COUNT", "-")
        _append(self.folder / "starts.txt", f"{attempt} {begin} {os.getpid()}")
        self._obey("start")
        for step in range(begin + 1, self.options.steps + 1):
            # a quiet one works on: each time it is looked at, it stands elsewhere
            _deep(random.randrange(300) if self.quiet else 0, self.options.step_seconds)
            if not self.quiet:
                took = 1000 * self.options.step_seconds
                print(
                    f"step {step}/{self.options.steps} | loss {2 + 1 / step:.4f} | time {took:.1f}ms",
                    flush=True,
                )
            if step % self.options.save_every == 0:
                self._save(step)
            self._obey(step)
        self._obey("end")
        _append(self.folder / "finished.txt", str(self.options.steps))
        return 0

    def _resume(self) -> int:
        """The step to go on from, by the way that was told. A checkpoint that cannot be read ends it all."""
        how, given = self.options.resume, ""
        if how == "env":
            given = os.environ.get("CLUSTERTOOLS_RESUME_FROM", "")
        elif how == "placeholder":
            given = self.options.resume_from
        elif how == "tracker" and (self.checkpoints / TRACKER).exists():
            given = str(self.checkpoints / f"iter_{int((self.checkpoints / TRACKER).read_text()):07d}")
        elif how == "newest":
            given = max((str(p) for p in self.checkpoints.glob("step_*.pt")), default="")
        if not given:
            return 0
        path = Path(given)
        import zipfile

        for file in path.rglob("*.pt") if path.is_dir() else [path]:
            try:
                broken = zipfile.ZipFile(file).testzip()
            except (OSError, zipfile.BadZipFile) as exc:
                broken = str(exc)
            if broken:
                print(f"cannot load {file}: {broken}", flush=True)
                sys.exit(66)
        print(f"resumed from {path.name}", flush=True)
        return int("".join(c for c in path.name if c.isdigit()))

    def _path(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}.pt"

    def _save(self, step: int) -> None:
        if self.options.resume == "tracker":
            megatron_checkpoint(self.checkpoints, step, 1, 1, age=0)
            (self.checkpoints / TRACKER).write_text(str(step))
            return
        new = torch_zip(self.checkpoints / f".saving-{step}", 64, age=0, step=step)
        os.replace(new, self._path(step))
        if self.stubborn:
            os.truncate(self._path(step), 300)

    def _torn(self, step: int) -> None:
        if self.options.resume != "tracker":
            os.truncate(torch_zip(self._path(step), 64, age=0, step=step), 700)
            return
        where = megatron_checkpoint(self.checkpoints, step, 1, 1, age=0)
        os.truncate(next(where.rglob("model_optim_rng.pt")), 300)
        (self.checkpoints / TRACKER).write_text(str(step))

    def _obey(self, step: object) -> None:
        for order in self.orders:
            if order.is_due(step):
                getattr(self, "do_" + order.kind.replace("-", "_"))(order.value, step)

    def do_stop(self, value: int, step: object) -> None:
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)

    def do_sleep(self, value: int, step: object) -> None:
        while True:
            time.sleep(3600)

    def do_exit(self, value: int, step: object) -> None:
        sys.exit(value)

    def do_signal(self, value: int, step: object) -> None:
        os.kill(os.getpid(), value)

    def do_deaf(self, value: int, step: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def do_orphan(self, value: int, step: object, *, deaf: bool = False) -> None:
        if os.fork():
            os.wait()
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
        _append(self.folder / "orphans.txt", str(os.getpid()))
        time.sleep(600)
        os._exit(0)

    def do_deaf_orphan(self, value: int, step: object) -> None:
        self.do_orphan(value, step, deaf=True)

    def do_torn(self, value: int, step: object) -> None:
        self._torn(int(str(step)))

    def do_hostile(self, value: int, step: object) -> None:
        self._path(int(str(step))).write_bytes(hostile(self.folder / "EXECUTED"))

    def do_quiet(self, value: int, step: object) -> None:
        self.quiet = True

    def do_stubborn(self, value: int, step: object) -> None:
        self.stubborn = True

    def do_print(self, value: int, step: object) -> None:
        left = value
        while left > 0:
            left -= os.write(1, (b"%07d something else\n" % left * 100)[:left])


def _deep(depth: int, seconds: float) -> None:
    if depth:
        _deep(depth - 1, seconds)
    else:
        time.sleep(seconds)


def _append(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def launch(workers: int, words: list[str]) -> int:
    """Like torchrun: one process for each rank; rank 0 trains, the others wait for it."""
    ranks = []
    for rank in range(workers):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
        argv = [sys.executable, *_SWITCHES, __file__, *words, "--workers", "0", *(["--wait"] if rank else [])]
        ranks.append(os.posix_spawn(sys.executable, argv, {**os.environ, **place}))
    _, status = os.waitpid(ranks[0], 0)
    for pid in ranks[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


#: Without site packages Python starts in a few milliseconds.
_SWITCHES = ("-S", "-E")


def command(folder: Path, *words: str) -> list[str]:
    """The command line that starts the program on `folder`."""
    return [sys.executable, *_SWITCHES, __file__, str(folder), *words]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--step-seconds", type=float, default=0.03)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument(
        "--resume", default="env", choices=("env", "placeholder", "tracker", "newest", "none")
    )
    parser.add_argument("--resume-from", default="")
    parser.add_argument("--do", action="append", default=[])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--wait", action="store_true")
    options, words = parser.parse_args(), sys.argv[1:]
    if options.workers:
        return launch(options.workers, words)
    if options.wait:
        time.sleep(600)
    return Trainer(options).run()


if __name__ == "__main__":
    sys.exit(main())
