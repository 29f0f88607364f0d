"""What `make demo` runs: one machine, a real training job, a real hang, found, explained and repaired.

Everything printed was observed: the job is real (two ranks of DistributedDataParallel over gloo), the freeze
is a real SIGSTOP, the torn checkpoint is a real file cut short, the restart is the real watchdog's. The
kernel line about a lost GPU is written by this script and says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
CLI = [str(BIN / "clustertools")]
COLOR = (sys.stdout.isatty() and not os.environ.get("NO_COLOR")) or bool(os.environ.get("FORCE_COLOR"))
STEPS, FREEZE_AT, SAVE_EVERY = 160, 65, 20
#: Below this address no real device sits on the machines this was tried on; no node has 255 buses in use.
FAKE_GPU = "0000:ff:1f"
LINE = f"NVRM: Xid (PCI:{FAKE_GPU}): 79, pid=4242, name=clustertools-demo, GPU has fallen off the bus."


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOR else text


def chapter(number: int, title: str) -> None:
    print(f"\n{paint(f'== {number}. {title}', '1;36')}", flush=True)


def say(text: str) -> None:
    print(paint(f"-- {text}", "36"), flush=True)


def run(*arguments: str) -> int:
    """Run a command with its output on this terminal; shown before it runs."""
    print(paint(f"$ clustertools {' '.join(arguments)}", "1"), flush=True)
    environment = {**os.environ, "FORCE_COLOR": "1"} if COLOR else dict(os.environ)
    return subprocess.run([*CLI, *arguments], env=environment, check=False).returncode


def ranks(marker: str) -> dict[int, int]:
    """Rank -> pid of the training processes that were started with `marker` in their command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in argv and b"RANK=" in b"".join(v[:5] for v in variables if v[:5] == b"RANK="):
            rank = next(v for v in variables if v.startswith(b"RANK="))
            found[int(rank[5:])] = int(entry.name)
    return found


class Training:
    """`clustertools run` as a child: its job's steps as a bar, its own words as they come."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder / "checkpoints"
        command = [
            str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", str(HERE / "train_ddp.py"),
            "--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--checkpoints", str(self.checkpoints),
        ]  # fmt: skip
        arguments = [
            "run", "--name", "demo", "--state", str(folder / "state"), "--checkpoints", str(self.checkpoints),
            "--hang-after", "6s", "--stack-gap", "2s", "--startup", "90s", "--interval", "1s",
            "--grace", "3s",
        ]  # fmt: skip
        shown = " ".join(arguments) + " -- torchrun --standalone --nproc-per-node 2 examples/train_ddp.py ..."
        print(paint(f"$ clustertools {shown}", "1"), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if COLOR:
            environment["FORCE_COLOR"] = "1"
        self.child = subprocess.Popen(
            [*CLI, *arguments, "--", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=environment,
        )  # fmt: skip
        self.step = 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self._output, self._words)]
        for thread in self.threads:
            thread.start()

    def _output(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            # step 42/160 | loss 0.0602 | grad_norm 0.470 | step_time 0.057
            match = re.match(r"step (\d+)/(\d+) \| loss (\S+)", line)
            with self.lock:
                if match:
                    self.step = int(match[1])
                    self._bar(match[3])
                elif line.startswith(("resuming", "training complete")):
                    self._print(f"   job: {line.rstrip()}")

    def _bar(self, loss: str) -> None:
        if COLOR:
            filled = 40 * self.step // STEPS
            bar = "#" * filled + "." * (40 - filled)
            print(f"\r   training [{bar}] step {self.step}/{STEPS} loss {loss} ", end="", flush=True)
        elif self.step % SAVE_EVERY == 0:
            print(f"   training: step {self.step}/{STEPS}, loss {loss}", flush=True)

    def _words(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            with self.lock:
                self._print(line.rstrip())

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if COLOR else text, flush=True)

    def wait_for_step(self, step: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.step < step:
            if self.child.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the job did not reach step {step}; see its output above")
            time.sleep(0.05)

    def wait(self, seconds: float) -> int:
        code = self.child.wait(seconds)
        for thread in self.threads:
            thread.join(5)
        return code

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait(60)


def tear_newest(folder: Path) -> Path:
    """Leave a newest checkpoint that was cut short, as a full disk or a killed writer leaves one."""
    newest = max(folder.glob("step_*.pt"))
    step = int(newest.stem.partition("_")[2]) + 5
    torn = folder / f"step_{step:06d}.pt"
    data = newest.read_bytes()
    torn.write_bytes(data[: len(data) * 2 // 3])
    return torn


def events(state: Path) -> Iterator[dict[str, object]]:
    answer = subprocess.run(
        [*CLI, "timeline", "demo", "--state", str(state), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in answer.stdout.splitlines():
        yield json.loads(line)


def cost(state: Path) -> None:
    """What the hang cost, from what the store knows of the attempts."""
    text = "\n".join(str(e.get("text", "")) for e in events(state))
    # attempt 1 at step 65: clustertools: JobHung:run:demo
    ends = [int(n) for n in re.findall(r"attempt \d+ at step (\d+)", text)]
    # attempt 2 from step 60 (/tmp/...)
    resumed = [int(n) for n in re.findall(r"attempt \d+ from step (\d+)", text)]
    lost = sum(end - begin for end, begin in zip(ends, resumed, strict=False))
    found = re.search(r"no new step for (\d+) s", text)
    again = re.search(r"training again: step \d+ after (\d+) s", text)
    say(
        f"cost: {lost} of {STEPS} steps trained twice; "
        f"found after {found[1] if found else '?'} s of silence, "
        f"training again {again[1] if again else '?'} s after the restart was started"
    )


def lost_gpu(folder: Path) -> None:
    """A kernel line about a lost GPU: in this machine's log where that is ours to write, else recorded."""
    state = folder / "node-state"
    has_gpu = any(p.read_text().strip() == "0x10de" for p in Path("/sys/bus/pci/devices").glob("*/vendor"))
    writable = os.geteuid() == 0 and os.access("/dev/kmsg", os.W_OK) and not has_gpu
    if not writable:
        say("this kernel log is not ours to write to (no root, or real GPUs): a recorded run instead")
        recorded_run()
        return
    say("a first pass, so that only what comes now is news")
    subprocess.run([*CLI, "watch", "--once", "-q", "--state", str(state)], capture_output=True, check=False)
    say(f"writing into /dev/kmsg: {LINE}")
    with open("/dev/kmsg", "w", encoding="ascii") as kmsg:
        kmsg.write(f"<3>{LINE}\n")
    run("watch", "--once", "--state", str(state))
    run("show", f"XidGpuLost:{os.uname().nodename.partition('.')[0]}/gpu@{FAKE_GPU}.0", "--state", str(state))
    say("one machine has nowhere to go; the same fault on a recorded cluster, where it may act:")
    recorded_run()


def recorded_run() -> None:
    run("replay", str(HERE.parent / "tests" / "runs" / "xid79-during-run"), "--act")
    run("explain", "xid 79")


def main() -> int:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="clustertools-demo-"))
    training = None
    try:
        chapter(1, "Is this machine healthy? Every passive check, once")
        run("check")

        chapter(2, "A real training job under the watchdog")
        training = Training(folder)
        training.wait_for_step(FREEZE_AT, 60)

        chapter(3, "Rank 1 freezes, and the newest checkpoint is torn")
        victim = ranks(str(training.checkpoints))[1]
        os.kill(victim, signal.SIGSTOP)
        torn = tear_newest(training.checkpoints)
        with training.lock:
            print(flush=True)
            say(f"SIGSTOP to rank 1 (pid {victim}); {torn.name} was cut to {torn.stat().st_size:,} bytes")
            say("from here on nobody helps the watchdog")
        if training.wait(100) != 0:
            raise SystemExit("the job did not recover; see above")

        chapter(4, "Which checkpoints are whole")
        run("checkpoints", str(training.checkpoints), "--deep")

        chapter(5, "A GPU falls off the bus")
        lost_gpu(folder)

        chapter(6, "What happened, and what it cost")
        run("timeline", "demo", "--state", str(folder / "state"))
        cost(folder / "state")
        say(f"the whole demo took {time.monotonic() - began:.0f} s; everything above was observed")
        return 0
    finally:
        if training is not None:
            training.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
