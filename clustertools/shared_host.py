"""A host for one pass: a command that several checks run is run once.

    shared = SharedHost(LocalHost())
    for check in checks:
        run(check, shared)

The GPU checks all ask the same NVML child; without this each would start its own. Make a new one for each
pass: within it the answers do not grow old.
"""

from __future__ import annotations

import threading
import time

from clustertools.errors import Absent, Unobservable
from clustertools.host import DEFAULT_TIMEOUT_SECONDS, Completed, Host, PassingHost


class _Slot:
    """One command's answer; its lock is held while the command runs, so that others wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answer: Completed | Unobservable | None = None
        self.offered_seconds = 0.0

    def told(self, timeout_seconds: float) -> Completed | Unobservable | None:
        """The answer, if it is also one for a caller who would wait so long."""
        lasting = isinstance(self.answer, (Completed, Absent))
        return self.answer if lasting or timeout_seconds <= self.offered_seconds else None


class SharedHost(PassingHost):
    """Passes everything on to `host`, and remembers what `run` answered for the same argv and stdin.

    That nobody could look is remembered as well: a driver that hangs would otherwise cost every check its
    whole deadline. Who offers to wait longer than the one before it, though, is given a new try. Safe to use
    from several threads. Files are read anew each time, but for the kernel's ring: five checks go through it.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._slots: dict[tuple[tuple[str, ...], str], _Slot] = {}
        self._lock = threading.Lock()
        self._ring_lock = threading.Lock()
        self._ring: str | Unobservable | None = None

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        """The text of `path`. Raises what the host raises."""
        if path != "/dev/kmsg" or offset or limit is not None:
            return self.host.read(path, offset, limit)
        with self._ring_lock:
            if self._ring is None:
                try:
                    self._ring = self.host.read(path)
                except Unobservable as exc:
                    self._ring = exc
        if isinstance(self._ring, str):
            return self._ring
        raise type(self._ring)(*self._ring.args) from self._ring

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        """The answer to `argv`, from the first who asked. Raises what it raised then."""
        with self._lock:
            slot = self._slots.setdefault((argv, stdin), _Slot())
        deadline = time.monotonic() + timeout_seconds
        # whoever runs it now has a deadline of its own, which may be later than ours
        if not slot.lock.acquire(timeout=timeout_seconds):
            raise Unobservable(f"{' '.join(argv[:4])} did not answer within {timeout_seconds:g} s")
        try:
            answer = slot.told(timeout_seconds)
            if answer is None:
                answer = self._ask(argv, max(0.0, deadline - time.monotonic()), stdin)
                slot.answer, slot.offered_seconds = answer, timeout_seconds
        finally:
            slot.lock.release()
        if isinstance(answer, Completed):
            return answer
        # a new exception each time: one that is raised twice would gather both tracebacks
        raise type(answer)(*answer.args) from answer

    def _ask(self, argv: tuple[str, ...], timeout_seconds: float, stdin: str) -> Completed | Unobservable:
        try:
            return self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)
        except Unobservable as exc:
            return exc
