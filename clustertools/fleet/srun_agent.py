"""Runs one program on a node of a Slurm step and tells the head of it in lines; stands alone, Python 3.6 on.

srun merges what its tasks say, tells one exit code for all, and knows one input for all. So srun starts this
(`python3 -c SOURCE MARK SECONDS CAP WORD...`), and this starts the program once all nodes are there.

From the head, each line goes to all nodes:   go [NODES THAT SHALL NOT]   d BASE64 (input)   e (end of input)
The end of the lines means that the head is gone: the program is ended.
To the head, each line begins with MARK and is short, for srun keeps lines up to 1024 bytes whole:
    h NODE STEP   it is there         b          it still is              o, e BASE64   output, errors
    x CODE CUT SECONDS   the program ended            t DETAIL   it was ended at its deadline
"""

import base64
import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time

BEAT_SECONDS = 5.0
PIECE_BYTES = 600
#: How long a program may take to end once its input has ended, and once it was killed.
MOMENT_SECONDS = 2.0


class HeadGone(Exception):
    """The lines from the head have ended, or the step is being ended."""


class Head:
    """The lines to the head and from it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.unfinished = b""
        self.is_gone = False

    def tell(self, *lines: str) -> None:
        data = "".join(f"{self.mark} {line}\n" for line in lines).encode()
        while data and not self.is_gone:
            data = data[os.write(1, data) :]

    def lines(self) -> "list[bytes]":
        """What came, in whole lines. Raises HeadGone at the end."""
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise HeadGone
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        return lines

    def wait_until_heard(self) -> None:
        """Until the lines end: of a task that has ended, Slurm cuts what it still holds anywhere."""
        os.set_blocking(0, True)
        while True:
            self.lines()


class Program:
    """The program and its pipes. `seconds`: its deadline, `cap`: bytes of each output; 0 for none."""

    def __init__(self, head: Head, words: "list[str]", seconds: float, cap: int) -> None:
        self.head, self.cap = head, cap
        environment = dict(os.environ, CLUSTERTOOLS_NODE=os.environ["SLURMD_NODENAME"])
        environment.pop("SLURM_PTY_PORT", None)  # it is srun's, see there
        pipes = [os.pipe() for _ in range(3)]
        (theirs, self.input), (self.output, out), (self.errors, err) = pipes
        self.child = subprocess.Popen(
            words, stdin=theirs, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        for end in (theirs, out, err):
            os.close(end)
        self.pending = bytearray()
        self.input_ends = False
        self.said = {"o": 0, "e": 0}
        self.began = now = time.monotonic()
        self.until = now + seconds if seconds else float("inf")
        self.next_beat = now + BEAT_SECONDS
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, "head")
        for fd in (self.input, self.output, self.errors):
            os.set_blocking(fd, False)
        self.selector.register(self.output, selectors.EVENT_READ, "o")
        self.selector.register(self.errors, selectors.EVENT_READ, "e")
        # its end wakes the selector
        wake, woken = os.pipe()
        for fd in (wake, woken):
            os.set_blocking(fd, False)
        self.selector.register(wake, selectors.EVENT_READ, "wake")
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Until the program ends, of itself or at its deadline."""
        while self.child.poll() is None:
            now = time.monotonic()
            if now >= self.until:
                self.head.tell("t " + self.end())
                return
            if now >= self.next_beat:
                self.head.tell("b")
                self.next_beat = now + BEAT_SECONDS
            for key, _ in self.selector.select(max(0.0, min(self.next_beat, self.until) - now)):
                if key.data == "head":
                    self.obey(self.head.lines())
                elif key.data == "input":
                    self.feed()
                elif key.data == "wake":
                    os.read(key.fd, 4096)
                else:
                    self.pass_on(key)
        # what it started and left behind ends with it, as the end of the step would have it
        self.end()
        cut = bool(self.cap) and max(self.said.values()) > self.cap
        self.head.tell(f"x {self.child.returncode} {int(cut)} {time.monotonic() - self.began:.3f}")

    def obey(self, lines: "list[bytes]") -> None:
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"d":
                self.pending += base64.b64decode(rest)
            elif word == b"e":
                self.input_ends = True
        wants = self.input >= 0 and (self.pending or self.input_ends)
        if wants and self.input not in self.selector.get_map():
            self.selector.register(self.input, selectors.EVENT_WRITE, "input")

    def feed(self) -> None:
        try:
            if self.pending:
                del self.pending[: os.write(self.input, self.pending[: 1 << 16])]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to read: its own affair
            self.pending.clear()
            self.input_ends = True
        if not self.pending:
            self.selector.unregister(self.input)
            if self.input_ends:
                self.close_input()

    def close_input(self) -> None:
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def pass_on(self, key: selectors.SelectorKey) -> bool:
        """Tell one piece of output; False when there is none now."""
        try:
            data = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self.selector.unregister(key.fd)
            return False
        room = max(0, self.cap - self.said[key.data]) if self.cap else len(data)
        self.said[key.data] += len(data)
        data = data[:room]
        pieces = (data[i : i + PIECE_BYTES] for i in range(0, len(data), PIECE_BYTES))
        self.head.tell(*(f"{key.data} {base64.b64encode(piece).decode()}" for piece in pieces))
        return True

    def drain(self) -> None:
        """What lies in the pipes; who else holds them open is not waited for."""
        until = time.monotonic() + MOMENT_SECONDS
        for key in [k for k in self.selector.get_map().values() if k.data in ("o", "e")]:
            while self.pass_on(key) and time.monotonic() < until:
                pass

    def wait(self) -> bool:
        until = time.monotonic() + MOMENT_SECONDS
        while self.child.poll() is None and time.monotonic() < until:
            self.drain()
            time.sleep(0.02)
        return self.child.poll() is not None

    def let_go(self) -> None:
        """The head is gone: the program's input ends, and a moment later it does."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.head.is_gone = True
        self.close_input()
        self.wait()
        self.end()

    def end(self) -> str:
        """Kill the program and all that it started; what became of it, in words."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        if not self.wait():
            return f"process {self.child.pid} cannot be killed (it hangs in the kernel, state D)"
        end_orphans()
        self.drain()
        return "it was killed"


def adopt_orphans() -> None:
    """Have processes whose parent ends become ours: Slurm itself loses sight of them without cgroups."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>
    with contextlib.suppress(OSError):  # a system without it leaves them to Slurm
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def end_orphans() -> None:
    """Kill what is left below us, however it set itself apart; the program itself has ended."""
    until = time.monotonic() + MOMENT_SECONDS
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in below(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def below(top: int) -> "list[int]":
    """The processes that descend from `top`."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # 4711 (a name) b) S 4710 ...
            parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = [top]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def wait_for_go(head: Head, node: str) -> "list[bytes] | None":
    """The lines that came after "go"; None when this node shall not."""
    lines = head.lines()
    while not lines:
        lines = head.lines()
    word, _, refused = lines[0].partition(b" ")
    return None if word != b"go" or node in refused.decode().split(",") else lines[1:]


def on_term(*_: object) -> None:
    raise HeadGone


def main(mark: str, seconds: str, cap: str, *words: str) -> None:
    head, node = Head(mark), os.environ["SLURMD_NODENAME"]
    signal.signal(signal.SIGTERM, on_term)
    adopt_orphans()
    with contextlib.suppress(HeadGone, BrokenPipeError):  # srun is gone, and nobody listens
        head.tell(f"h {node} {os.environ.get('SLURM_STEP_ID', '')}")
        lines = wait_for_go(head, node)
        if lines is None:
            return
        try:
            program = Program(head, list(words), float(seconds), int(cap))
        except OSError as exc:  # what a shell says with 127 and 126
            complaint = base64.b64encode(f"{words[0]}: {exc.strerror}\n".encode()).decode()
            head.tell("e " + complaint, f"x {127 if isinstance(exc, FileNotFoundError) else 126} 0 0")
            head.wait_until_heard()
            return
        os.set_blocking(0, False)
        try:
            program.obey(lines)
            program.serve()
            head.wait_until_heard()
        except (HeadGone, BrokenPipeError):
            program.let_go()


if __name__ == "__main__":
    main(*sys.argv[1:])
