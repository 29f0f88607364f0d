"""Looking that ends in time, whatever a check does, and that always says which check hung on what.

    for verdict in bounded.look(checks, lambda check, host: checking.run(check, host), host, seconds=45): ...

A check's commands and network files have deadlines of their own (`LocalHost`), but its own code has none: it
may spin, a file of /sys may block in a driver, a library may crash. So the checks run one after the other in
a forked child, which hands back each verdict, while the parent holds the clock. A check that outlives its
deadline is killed with its child, or left behind when it cannot be killed (state D); a new child asks the
next ones. What it was waiting for stands in memory that both can see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pickle  # between this process and its own fork only
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from clustertools.check import Check
from clustertools.host import DEFAULT_TIMEOUT_SECONDS, Completed, FileStat, Host, PassingHost
from clustertools.model import Status, Subject, Verdict
from clustertools.shared_host import SharedHost

#: How much later than a check's own deadline it is killed: a command that hangs is given 0.5 s to die, and
#: what the check made of the rest is worth more than what we know from outside.
GRACE_SECONDS = 0.9
#: The most that ending a child takes.
_KILL_SECONDS = 0.6
_BOARD_BYTES = 512
_ORDER = struct.Struct("=id")  # which check, and its own deadline
_LENGTH = struct.Struct("=q")

Ask = Callable[[Check, Host], Verdict]


class _Told(PassingHost):
    """A host that writes each question onto the board before it asks, and wipes it after the answer."""

    def __init__(self, host: Host, board: mmap.mmap) -> None:
        super().__init__(host)
        self._board = board

    @contextlib.contextmanager
    def _asking(self, text: str) -> Iterator[None]:
        _write(self._board, text)
        try:
            yield
        finally:
            self._board[0] = 0

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        with self._asking(" ".join(argv[:6])):
            return self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        with self._asking(f"reading {path}"):
            return self.host.read(path, offset, limit)

    def stat(self, path: str) -> FileStat:
        with self._asking(f"stat of {path}"):
            return self.host.stat(path)

    def glob(self, pattern: str) -> list[str]:
        with self._asking(f"listing {pattern}"):
            return self.host.glob(pattern)


def _write(board: mmap.mmap, text: str) -> None:
    data = text.encode("utf-8", "replace")[: _BOARD_BYTES - 1]
    board[1 : 1 + len(data)] = data
    board[1 + len(data) : 2 + len(data)] = b"\0" if len(data) < _BOARD_BYTES - 1 else b""
    board[0] = 1


def _waited_for(board: mmap.mmap) -> str:
    """What is on the board; empty when no question was open."""
    if not board[0]:
        return ""
    return board[1:_BOARD_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")


def look(
    checks: Sequence[Check], ask: Ask, host: Host, *, seconds: float | None = None, cluster: str = ""
) -> Iterator[Verdict]:
    """One verdict a check, in their order, as they come, within `seconds` together.

    `ask` runs one check on the host that it is handed; all share their answers, as in `SharedHost`. Each
    check has its own deadline, and of `seconds` what leaves those after it their declared cost. What hung,
    crashed or did not start in time is UNKNOWN.
    """
    end = time.monotonic() + seconds if seconds is not None else None
    child: _Child | None = None
    try:
        for number, check in enumerate(checks):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                yield _unknown(check, host, cluster, f"not started: the {seconds:g} s were over")
                continue
            own, hard = _deadlines(check, left, [c.cost_seconds for c in checks[number + 1 :]])
            began = time.monotonic()
            try:
                child = child or _Child(checks, ask, host)
                verdict = child.run(number, own, hard)
            except OSError as exc:
                verdict = f"could not start a process to look with: {exc.strerror}"
            if isinstance(verdict, str):
                left_behind = child.end() if child else ""
                child = None
                reason = f"{verdict}; {left_behind}" if left_behind else verdict
                verdict = _unknown(check, host, cluster, reason, time.monotonic() - began)
            yield verdict
    finally:
        if child is not None:
            child.end()


def _deadlines(check: Check, left: float | None, others: Sequence[float]) -> tuple[float, float]:
    """(the check's own deadline, when it is killed), in seconds from now.

    A check may use half of what the declared costs of the others leave, so that several that hang do not take
    the look away from those that would answer; the last one may use all.
    """
    if left is None:
        return check.timeout_seconds, check.timeout_seconds + GRACE_SECONDS
    spare = left - sum(others)
    share = max(spare / 2, min(2 * check.cost_seconds, spare), left / 8) if others else left
    own = min(check.timeout_seconds, max(share - GRACE_SECONDS - _KILL_SECONDS, share / 2))
    return own, min(own + GRACE_SECONDS, left)


def _unknown(check: Check, host: Host, cluster: str, reason: str, elapsed_seconds: float = 0.0) -> Verdict:
    subject = Subject(cluster=cluster, node=host.name)
    return Verdict(
        check.name, subject, Status.UNKNOWN, blind=reason, elapsed_seconds=elapsed_seconds, time=host.now()
    )  # fmt: skip


class _Child:
    """A forked copy of this process that runs the checks it is told to, one at a time."""

    def __init__(self, checks: Sequence[Check], ask: Ask, host: Host) -> None:
        """Raises OSError when there is no room for another process."""
        self._board = mmap.mmap(-1, _BOARD_BYTES)  # anonymous memory, shared with the fork
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            for fd in (orders, self._orders, self._answers, answers):
                os.close(fd)
            raise
        if self._pid == 0:
            _serve(checks, ask, SharedHost(_Told(host, self._board)), orders, answers)
        os.close(orders)
        os.close(answers)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)

    def run(self, number: int, own_seconds: float, hard_seconds: float) -> Verdict | str:
        """The verdict of one check; in words why there is none. After that the child is of no more use."""
        until = time.monotonic() + hard_seconds
        try:
            os.write(self._orders, _ORDER.pack(number, own_seconds))
            data = self._read(_LENGTH.size, until)
            data = self._read(_LENGTH.unpack(data)[0], until)
        except TimeoutError:
            return f"did not end within {hard_seconds:.3g} s: {self._doing()}"
        except (EOFError, BrokenPipeError):
            waited = _waited_for(self._board)
            return f"the process that looked {self._how_it_ended()}" + (f" at: {waited}" if waited else "")
        verdict: Verdict = pickle.loads(data)  # noqa: S301 - our own fork wrote it
        return verdict

    def _read(self, size: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            # not select(): whoever holds a thousand connections has descriptors that it cannot wait for
            if not self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            piece = os.read(self._answers, min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _doing(self) -> str:
        waited = _waited_for(self._board)
        what = f"it waited for {waited}" if waited else "its own code did not come back"
        return what + _place_in_kernel(self._pid)

    def _how_it_ended(self) -> str:
        for _ in range(50):
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    self._pid = 0
                    code = os.waitstatus_to_exitcode(status)
                    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            time.sleep(0.01)
        return "closed its pipe"

    def end(self) -> str:
        """End the child; in words, what is left of it: nothing, as a rule."""
        os.close(self._orders)  # the end of its orders: one that is idle goes by itself
        os.close(self._answers)
        # SIGTERM lets it end the commands that it started; one that is stuck may not hear it
        for number, seconds in ((0, 0.05), (signal.SIGTERM, 0.25), (signal.SIGKILL, _KILL_SECONDS - 0.3)):
            if self._pid == 0:
                break
            os.kill(self._pid, number)
            self._reap(seconds)
        left = ""
        if self._pid:
            left = f"process {self._pid} cannot be killed{_place_in_kernel(self._pid)}"
        self._board.close()
        return left

    def _reap(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._pid:
            pid, _ = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
            elif time.monotonic() > until:
                return
            else:
                time.sleep(0.002)


def _place_in_kernel(pid: int) -> str:
    """ " (state D in fuse_wait)": where a process sleeps; empty when it runs or nobody knows."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # 1234 (python3 (x)) D 1 ...
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{pid}/wchan", encoding="utf-8", errors="replace") as file:
            place = file.read().strip()
    except (OSError, IndexError):
        return ""
    if state == "R":
        return ""
    return f" (state {state}{f' in {place}' if place not in ('', '0') else ''})"


def _serve(checks: Sequence[Check], ask: Ask, host: Host, orders: int, answers: int) -> NoReturn:
    """The child's whole life. Never returns into the code that forked it."""
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _let_go({orders, answers})
        while len(order := os.read(orders, _ORDER.size)) == _ORDER.size:
            number, seconds = _ORDER.unpack(order)
            check = dataclasses.replace(checks[number], timeout_seconds=seconds)
            data = _packed(ask(check, host), check)
            for piece in (_LENGTH.pack(len(data)), data):
                view = memoryview(piece)
                while view:
                    view = view[os.write(answers, view) :]
    except BaseException:  # noqa: BLE001 - nobody above us: an orderly end is all there is to do
        os._exit(1)
    os._exit(0)


def _packed(verdict: Verdict, check: Check) -> bytes:
    try:
        return pickle.dumps(verdict)
    except Exception as exc:  # noqa: BLE001 - what a check remembers may be anything
        blind = f"{check.name}'s answer cannot be passed on: {exc}"
        return pickle.dumps(
            dataclasses.replace(
                verdict, status=Status.UNKNOWN, findings=(), readings=(), blind=blind, memory={}
            )
        )


def _let_go(keep: set[int]) -> None:
    """Close every inherited file but `keep`, and the standard streams.

    A child that hangs for ever must hold neither a lock nor the pipe whose end our caller waits for.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    sys.stdout = sys.stderr = open(nowhere, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in {nowhere, *keep}:
            with contextlib.suppress(OSError):
                os.close(int(name))
