"""Forked children: each with its own session, capped output, a place to say how far it is, and a sure end.

A child dies with its parent (PR_SET_PDEATHSIG), also when that is killed with SIGKILL. What it starts itself
stays in its process group and dies with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.errors import Absent, Unobservable
from clustertools.host import DEFAULT_PATH, Completed
from clustertools.measurement import Ending
from clustertools.probes.orders import Report

#: What is kept of a child's own printing: its last words are what explains an end.
OUTPUT_TAIL_BYTES = 64 << 10
REPORT_CAP_BYTES = 16 << 20
#: A killed process that is still there after this sits in the kernel.
KILL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_ON_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Progress:
    """How far a child is: written by it into memory that it shares with its parent, at the cost of nothing.

    Read after the child was killed, it tells where it hung.
    """

    _FORM = struct.Struct("<dqqqq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FORM.size)

    def at(self, stage: int, size_bytes: int = 0, iteration: int = 0, peer: int = 0) -> None:
        self._FORM.pack_into(self._memory, 0, time.monotonic(), stage, size_bytes, iteration, peer)

    def read(self) -> tuple[float, int, int, int, int]:
        """(time by the monotonic clock, stage, size, iteration, peer) of the last `at`."""
        since, stage, size, iteration, peer = self._FORM.unpack_from(self._memory, 0)
        return since, stage, size, iteration, peer

    def close(self) -> None:
        self._memory.close()


@dataclass(slots=True)
class Child:
    """One forked child, from its parent's side."""

    pid: int
    label: str
    report_fd: int
    output_fd: int
    progress: Progress
    #: It serves others, and need not end before the order is answered.
    lingers: bool = False
    said: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)
    #: As os.waitstatus_to_exitcode gives it: negative for a signal.
    exit_code: int | None = None
    killed: bool = False
    #: Of its two pipes; none: it is ending, and can be waited for closely.
    open_pipes: int = 2

    @property
    def gone(self) -> bool:
        return self.exit_code is not None

    def take(self, fd: int) -> bool:
        """Read what is there on one of its two pipes; False at the end of it."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if fd == self.report_fd:
            self.said += data[: max(0, REPORT_CAP_BYTES - len(self.said))]
        else:
            self.printed += data
            del self.printed[:-OUTPUT_TAIL_BYTES]
        return bool(data)

    def last_words(self, lines: int = 8) -> list[str]:
        text = self.printed.decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def reap(self) -> bool:
        """Whether it has ended. What it left in its group is killed then."""
        if self.exit_code is not None:
            return True
        try:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
        except ChildProcessError:
            self.exit_code = -signal.SIGKILL
            return True
        # before its number can be given to somebody else
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)
        return True

    def kill(self) -> None:
        """SIGKILL to its group, without waiting for the end."""
        if not self.gone:
            self.killed = True
            # its session is made by the child itself, which may not have come to that yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        for fd in (self.report_fd, self.output_fd):
            os.close(fd)
        self.report_fd = self.output_fd = -1
        self.progress.close()

    def state(self) -> str:
        """Its one letter in /proc, D for a sleep that nothing interrupts; empty when it cannot be read."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                # 4321 (python3 (x)) D 1 4321 ...
                return file.read().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return ""


def start(
    work: Callable[[Progress], Report], label: str, *, close: Iterable[int] = (), lingers: bool = False
) -> Child:
    """Fork a child that does `work` and reports. `close` are descriptors that it must not keep open."""
    report_read, report_write = os.pipe()
    output_read, output_write = os.pipe()
    progress = Progress()
    progress.at(0)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # a signal that comes between fork and the return of this function must not lose the child
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ON_END)
    pid = os.fork()
    if pid == 0:
        _be_child(
            work, progress, report_write, output_write, parent, before, [*close, report_read, output_read]
        )
    os.close(report_write)
    os.close(output_write)
    os.set_blocking(report_read, False)
    os.set_blocking(output_read, False)
    child = Child(pid, label, report_read, output_read, progress, lingers)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child


def _be_child(
    work: Callable[[Progress], Report],
    progress: Progress,
    report_fd: int,
    output_fd: int,
    parent: int,
    mask: Iterable[int],
    close: Iterable[int],
) -> None:
    """The whole life of a child. Never returns."""
    code = 70  # EX_SOFTWARE: our own fault, since all that can go wrong in `work` is reported
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != parent:
            os._exit(code)
        # not SIGPIPE: gloo must be told that a peer is gone, not be ended by it
        for number in _ON_END:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        for fd in (*close, nothing, output_fd):
            if fd > 2:
                os.close(fd)
        try:
            report = work(progress)
        except Exception as exc:  # noqa: BLE001 - every end of a probe is a report
            traceback.print_exc()
            report = Report(Ending.CRASH, f"{type(exc).__name__}: {exc}")
        sys.stdout.flush()
        sys.stderr.flush()
        rest = memoryview(report.as_json().encode())
        while rest:
            rest = rest[os.write(report_fd, rest) :]
        code = 0
    finally:
        # neither our parent's handlers nor the threads of a communication library may run on from here
        os._exit(code)


def end_all(children: Iterable[Child], seconds: float = KILL_SECONDS) -> list[Child]:
    """Kill them all; those that are still there after `seconds` sit in the kernel and are given back."""
    left = [child for child in children if not child.reap()]
    for child in left:
        child.kill()
    until = time.monotonic() + seconds
    while left and time.monotonic() < until:
        time.sleep(0.005)
        left = [child for child in left if not child.reap()]
    return left


def run_tool(
    argv: Sequence[str], timeout_seconds: float, environment: Mapping[str, str] | None = None
) -> Completed:
    """Run a program from within a child, in its group, so that it ends with it at the latest.

    Raises Absent when there is no such program, Unobservable at the deadline; it is killed then.
    """
    began = time.monotonic()
    try:
        program = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": DEFAULT_PATH, **os.environ, "LC_ALL": "C", **(environment or {})},
            preexec_fn=die_with_parent,
        )
    except FileNotFoundError as exc:
        raise Absent(f"{argv[0]} is not installed") from exc
    except OSError as exc:
        raise Unobservable(f"could not start {argv[0]}: {exc.strerror}") from exc
    assert program.stdout is not None
    assert program.stderr is not None
    kept = {program.stdout: bytearray(), program.stderr: bytearray()}
    truncated = False
    with program, selectors.DefaultSelector() as selector:
        for pipe in kept:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = began + timeout_seconds - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if left <= 0:
                program.kill()
                raise Unobservable(f"{argv[0]} did not end within {timeout_seconds:g} s; it was killed")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                buffer = kept[key.fileobj]  # type: ignore[index]
                room = REPORT_CAP_BYTES - len(buffer)
                truncated = truncated or len(data) > room
                buffer += data[: max(0, room)]
        try:
            program.wait(max(0.1, began + timeout_seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            raise Unobservable(f"{argv[0]} did not end within {timeout_seconds:g} s; it was killed") from None
    return Completed(
        tuple(argv),
        program.returncode,
        kept[program.stdout].decode("utf-8", "replace"),
        kept[program.stderr].decode("utf-8", "replace"),
        time.monotonic() - began,
        truncated,
    )
