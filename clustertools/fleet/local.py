"""This machine as a node: for a node that checks itself, for tests, and where there is no cluster yet."""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from clustertools.errors import ConfigError
from clustertools.fleet import NODE_VARIABLE, Answer, Fate, Line
from clustertools.fleet.gathering import Mailbox, Sink, Spoken, Whole, receive
from clustertools.host import DEFAULT_PATH

#: A program whose input was closed may take so long to end by itself.
GRACE_SECONDS = 2.0
#: The exit codes of a shell for a program that does not exist or cannot be started: as over ssh.
NOT_FOUND, NOT_STARTED = 127, 126


class LocalTransport:
    """Runs programs on this machine, under the names given; without one it is called by its host name.

    Several names are several nodes that happen to be one machine.
    """

    name = "local"

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes or (os.uname().nodename.split(".")[0],)
        self._children: set[_Child] = set()

    def __enter__(self) -> LocalTransport:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        """As Transport.run. The program is killed with its process group at the deadline, and when the caller
        stops to listen."""
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        mine = []
        try:
            for node in dict.fromkeys(nodes):
                child = self._start(node, argv, Whole(), answers.put, timeout_seconds, is_open=False)
                if child is not None:
                    mine.append(child)
                    child.send(stdin, is_last=True)
            for _ in dict.fromkeys(nodes):
                yield answers.get()
        finally:
            for child in mine:
                child.end("nobody waits for it any more")
                self._children.discard(child)

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> LocalConversation:
        mailbox = Mailbox()
        children = []
        for node in dict.fromkeys(nodes):
            put = lambda answer: mailbox.put([answer])  # noqa: E731
            child = self._start(node, argv, Spoken(node, mailbox), put, None, is_open=True, mailbox=mailbox)
            if child is not None:
                children.append(child)
        return LocalConversation(tuple(nodes), children, mailbox)

    def _start(
        self, node: str, argv: Sequence[str], sink: Sink, tell: Callable[[Answer], None],
        timeout_seconds: float | None, *, is_open: bool, mailbox: Mailbox | None = None,
    ) -> _Child | None:  # fmt: skip
        if not argv:
            raise ConfigError("no command was given to run")
        if node not in self.nodes:
            here = ", ".join(self.nodes)
            tell(
                Answer(
                    node, Fate.UNREACHABLE, reason=f"the local transport reaches this machine only: {here}"
                )
            )
            return None
        environment = {**os.environ, NODE_VARIABLE: node}
        environment.setdefault("PATH", DEFAULT_PATH)
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, env=environment,
            )  # fmt: skip
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or str(exc)
            code = NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_STARTED
            sink.err(f"{argv[0]}: {why}\n".encode())
            tell(Answer(node, Fate.COMPLETED, sink.completed(argv, code, 0.0)))
            return None
        child = _Child(node, tuple(argv), process, sink, tell, timeout_seconds, mailbox)
        self._children.add(child)
        return child

    def close(self) -> None:
        for child in tuple(self._children):
            child.end("the transport was closed")
        self._children.clear()


class LocalConversation:
    """One program for each name of this machine."""

    def __init__(self, nodes: Sequence[str], children: Sequence[_Child], mailbox: Mailbox) -> None:
        self._left, self._children, self._mailbox = set(nodes), children, mailbox

    def send(self, text: str) -> None:
        for child in self._children:
            child.send((text.rstrip("\n") + "\n").encode())

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        return receive(self._mailbox, self._left, seconds)

    def close(self) -> None:
        for child in self._children:
            child.send(b"", is_last=True)
        until = time.monotonic() + GRACE_SECONDS
        for child in self._children:
            child.wait(max(0.0, until - time.monotonic()))
            child.end("the conversation was closed")


class _Child:
    """One process with its own group, and the one thread that reads, writes and ends it."""

    def __init__(
        self, node: str, argv: tuple[str, ...], process: subprocess.Popen[bytes], sink: Sink,
        tell: Callable[[Answer], None], timeout_seconds: float | None, mailbox: Mailbox | None,
    ) -> None:  # fmt: skip
        self.node, self.argv, self.process, self.sink, self.mailbox = node, argv, process, sink, mailbox
        self._tell, self._timeout_seconds = tell, timeout_seconds
        self._began = time.monotonic()
        self._pending, self._is_last, self._lock = bytearray(), False, threading.Lock()
        self._why_ended, self._is_over = "", False
        self._woken, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        self._thread = threading.Thread(target=self._serve, name=f"local-{node}", daemon=True)
        self._thread.start()

    def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Queue input for the program. What it does not read is kept for it; ending it drops that."""
        with self._lock:
            self._pending += data
            self._is_last = self._is_last or is_last
        self._ring()

    def end(self, why: str) -> None:
        """Kill the program if it still runs, and wait for the thread."""
        self._why_ended = why
        self._ring()
        self.wait(GRACE_SECONDS)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _ring(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._is_over:
                os.write(self._bell, b".")

    def _serve(self) -> None:
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        until = None if self._timeout_seconds is None else self._began + self._timeout_seconds
        is_late = False
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, self.sink.out)
            selector.register(process.stderr, selectors.EVENT_READ, self.sink.err)
            selector.register(self._woken, selectors.EVENT_READ)
            open_streams = 2
            while open_streams and not self._why_ended:
                if self.mailbox is not None and not self.mailbox.has_room:
                    self.mailbox.wait_for_room(0.2)
                    continue
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    is_late = True
                    break
                self._write(selector)
                for key, _ in selector.select(left):
                    if key.fd == self._woken:
                        os.read(self._woken, 4096)
                    elif key.data is not None:
                        data = os.read(key.fd, 1 << 16)
                        if data:
                            key.data(data)
                        else:
                            selector.unregister(key.fileobj)
                            open_streams -= 1
        self._close(until, is_late)

    def _write(self, selector: selectors.BaseSelector) -> None:
        """Give the program what it takes of its input, and close it after the last of it."""
        stdin = self.process.stdin
        assert stdin is not None
        if stdin.closed:
            return
        with self._lock:
            try:
                if self._pending:
                    del self._pending[: os.write(stdin.fileno(), self._pending[: 1 << 16])]
            except BlockingIOError:
                pass  # tried again when the selector says so
            except BrokenPipeError:  # it does not listen any more, which is its right
                self._pending.clear()
                self._is_last = True
            is_waiting, is_over = bool(self._pending), self._is_last and not self._pending
        is_registered = stdin in selector.get_map()
        if is_over:
            if is_registered:
                selector.unregister(stdin)
            stdin.close()
        elif is_waiting and not is_registered:
            selector.register(stdin, selectors.EVENT_WRITE)
        elif is_registered and not is_waiting:
            selector.unregister(stdin)

    def _close(self, until: float | None, is_late: bool) -> None:
        """Wait for the end of the process, or bring it about, and say how it ended."""
        process = self.process
        how = ""
        # both its streams are closed; that it ends now is usual, not certain
        while not is_late and not self._why_ended:
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                is_late = until is not None and time.monotonic() >= until
        if is_late or self._why_ended:
            how = _kill(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        with self._lock:
            self._is_over = True
            os.close(self._woken)
            os.close(self._bell)
        elapsed = time.monotonic() - self._began
        if is_late or self._why_ended:
            seconds = self._timeout_seconds or 0.0
            reason = self._why_ended or f"it did not end within {seconds:g} s"
            fate = Fate.TIMEOUT if is_late else Fate.LOST
            self._tell(Answer(self.node, fate, None, f"{reason}; {how}", self.sink.said(), elapsed))
        else:
            done = self.sink.completed(self.argv, process.returncode, elapsed)
            self._tell(Answer(self.node, Fate.COMPLETED, done, elapsed_seconds=elapsed))


def _kill(process: subprocess.Popen[bytes]) -> str:
    """SIGKILL for the process and its group; in words, whether that worked."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        # Popen would wait for it again when it is collected; forget it instead
        process.returncode = -signal.SIGKILL
        return f"process {process.pid} cannot be killed (it hangs in the kernel, state D)"
    return "it was killed"
