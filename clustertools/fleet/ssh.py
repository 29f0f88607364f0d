"""Many nodes over ssh: one connection to each, kept until the end, and one thread that looks after them all.

    with SshTransport(SshSettings()) as transport:
        for answer in transport.run(("gpu1", "gpu2"), ("uptime",)):
            ...

Who a node is and how to get there stands in the user's own ssh configuration. Host keys are always checked,
whatever StrictHostKeyChecking says; nothing is ever asked, and no password is ever sent.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet.gathering import TAIL_BYTES, Mailbox, Sink, Spoken, Whole, receive
from clustertools.fleet.pump import Timer
from clustertools.fleet.remote_command import command_line, kill_line
from clustertools.fleet.ssh_link import Hub, Link
from clustertools.fleet.ssh_target import SshSettings, hang_up
from clustertools.text import plain

if TYPE_CHECKING:
    from clustertools.fleet.ssh_wire import Wire

__all__ = ["SshConversation", "SshSettings", "SshTransport"]

#: A program whose input was closed may take so long to end by itself.
GRACE_SECONDS = 2.0
#: Ending a program takes a second session on its node; a node that does not give one does not keep us.
KILL_SECONDS = 5.0
#: Lines that a program does not read: more than this is a program that has stopped to listen.
UNREAD_BYTES = 16 << 20
READ_BYTES = 1 << 20


class SshTransport:
    """As Transport. Connections are made when they are needed, and kept."""

    name = "ssh"

    def __init__(self, settings: SshSettings | None = None) -> None:
        """Raises ConfigError for an ssh configuration that cannot be read."""
        self._programs: set[_Program] = set()
        self._hub = Hub(settings or SshSettings(), self._fault)
        self._is_closed = False

    def __enter__(self) -> SshTransport:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        """As Transport.run. The deadline begins when the node is connected. At the deadline the program is
        ended on its node with all its children; so it is when the caller stops to listen.

        Raises ConfigError for a command that cannot be sent, and for a node's ssh configuration.
        """
        names = tuple(dict.fromkeys(nodes))
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        programs = [
            self._program(node, argv, Whole(), answers.put, timeout_seconds, stdin=stdin) for node in names
        ]
        self._hub.pump.call(self._begin, programs)
        try:
            for _ in names:
                yield answers.get()
        finally:
            self._hub.pump.call(self._abandon, programs, "nobody waits for it any more")

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> SshConversation:
        """As Transport.talk. Raises ConfigError as `run` does."""
        names = tuple(dict.fromkeys(nodes))
        mailbox = Mailbox(on_room=lambda: self._hub.pump.call(self._go_on, programs))
        programs = [
            self._program(n, argv, Spoken(n, mailbox), lambda a: mailbox.put([a]), None, mailbox=mailbox)
            for n in names
        ]
        self._hub.pump.call(self._begin, programs)
        return SshConversation(self, programs, mailbox)

    def _program(
        self, node: str, argv: Sequence[str], sink: Sink, tell: Callable[[Answer], None],
        timeout_seconds: float | None, *, stdin: bytes = b"", mailbox: Mailbox | None = None,
    ) -> _Program:  # fmt: skip
        if self._is_closed:
            raise ConfigError("the transport is closed")
        mark = secrets.token_hex(12)
        command = command_line(argv, node, mark)
        program = _Program(self._hub.link(node), tuple(argv), command, mark, sink, tell, timeout_seconds)
        program.mailbox = mailbox
        program.input += stdin
        program.is_input_whole = mailbox is None
        return program

    def _begin(self, programs: Sequence[_Program]) -> None:
        for program in programs:
            self._programs.add(program)
            program.gone = self._programs.discard
            # each by itself: what goes wrong with one is not to keep the next from its begin
            self._hub.pump.call(program.begin)

    def _go_on(self, programs: Sequence[_Program]) -> None:
        for program in programs:
            program.drain()

    def _abandon(self, programs: Sequence[_Program], why: str) -> None:
        for program in programs:
            program.end(Fate.LOST, why)

    def _fault(self, exc: Exception) -> None:
        """An error of our own on the pump's thread: whoever waits is told, instead of waiting for ever."""
        why = f"a fault in clustertools itself: {type(exc).__name__}: {exc}"
        for program in tuple(self._programs):
            program.tell_now(Fate.LOST, why)
        self._hub.give_up(why)

    def close(self) -> None:
        """End what still runs, on its nodes too, and close the connections."""
        if self._is_closed:
            return
        self._is_closed = True
        over = threading.Event()

        def watch() -> None:
            if self._programs and time.monotonic() < until:
                self._hub.pump.after(0.02, watch)
            else:
                self._hub.close()
                over.set()

        until = time.monotonic() + KILL_SECONDS
        self._hub.pump.call(lambda: self._abandon(tuple(self._programs), "the transport was closed"))
        self._hub.pump.call(watch)
        over.wait(KILL_SECONDS + 1.0)
        self._hub.pump.stop()
        self._hub.workers.stop()


class SshConversation:
    """As Conversation: one program on each node, over one channel each."""

    def __init__(self, transport: SshTransport, programs: Sequence[_Program], mailbox: Mailbox) -> None:
        self._transport, self._programs, self._mailbox = transport, programs, mailbox
        self._left = {program.node for program in programs}

    def send(self, text: str) -> None:
        data = (text.rstrip("\n") + "\n").encode("utf-8", "surrogateescape")
        self._transport._hub.pump.call(self._send, data, False)

    def _send(self, data: bytes, is_last: bool) -> None:
        for program in self._programs:
            program.send(data, is_last)

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        return receive(self._mailbox, self._left, seconds)

    def close(self) -> None:
        """End the input; programs that are still there a moment later are ended on their nodes."""
        if self._transport._is_closed:
            return
        over = threading.Event()

        def watch() -> None:
            if all(program.is_told for program in self._programs):
                over.set()
            elif time.monotonic() < until:
                pump.after(0.02, watch)
            else:
                self._transport._abandon(self._programs, "the conversation was closed")
                pump.after(0.02, last)

        def last() -> None:
            if all(program.is_told for program in self._programs) or time.monotonic() > until + KILL_SECONDS:
                over.set()
            else:
                pump.after(0.02, last)

        until = time.monotonic() + GRACE_SECONDS
        pump = self._transport._hub.pump
        pump.call(self._send, b"", True)
        pump.call(watch)
        over.wait(GRACE_SECONDS + KILL_SECONDS + 1.0)


class _Program:
    """One program on one node. It belongs to the pump's thread, and gives exactly one Answer."""

    def __init__(
        self, link: Link, argv: tuple[str, ...], command: bytes, mark: str, sink: Sink,
        tell: Callable[[Answer], None], timeout_seconds: float | None,
    ) -> None:  # fmt: skip
        self.link, self.node, self.argv, self.command, self.mark = link, link.target.node, argv, command, mark
        self.sink, self._tell, self._timeout_seconds = sink, tell, timeout_seconds
        self.mailbox: Mailbox | None = None
        self.gone: Callable[[_Program], object] = lambda program: None
        self.input, self.is_input_whole = bytearray(), True
        self.is_told = False
        self._pump, self._workers = link.hub.pump, link.hub.workers
        self._wire: Wire | None = None
        self._channel: Any = None
        self._timer: Timer | None = None
        self._began = time.monotonic()
        #: A program that ends another one is not ended in the same way.
        self.is_killer = False
        self._is_second = False
        self._end_as = (Fate.LOST, "it was ended")
        self._is_ending = self._is_sending = self._is_input_closed = self._is_rung = False

    def begin(self) -> None:
        self.link.when_open(self._start, lambda fate, reason: self.tell_now(fate, reason))

    def _start(self, wire: Wire) -> None:
        if self._is_ending:
            self.tell_now(Fate.LOST, "it was not started any more")
            return
        self._wire, self._began = wire, time.monotonic()
        if self._timeout_seconds is not None:
            self._timer = self._pump.after(self._timeout_seconds, self._too_late)
        from clustertools.fleet.ssh_wire import start

        is_bare = self.is_input_whole and not self.input
        self._is_input_closed = is_bare
        is_heard = self.mailbox is not None

        def work() -> None:
            # sending may have to wait for an exchange of keys, which is nothing for the pump
            try:
                start(wire, self.command, is_bare, is_heard, self._ring, started)
            except Exception as exc:  # noqa: BLE001 - paramiko raises many things; each is told with its node
                why = plain(str(exc), 160) or type(exc).__name__
                self._pump.call(self.tell_now, Fate.LOST, f"the connection gives no session: {why}")

        def started(channel: Any) -> None:
            self._pump.call(self._started, channel)

        self._workers.do(work)

    def _started(self, channel: Any) -> None:
        if channel is None:
            assert self._wire is not None
            if not self._wire.is_active() and not self._is_second:
                # a kept connection to a node that was started anew in between; nothing began on it
                self._is_second, self._wire = True, None
                if self._timer is not None:
                    self._timer.cancel()
                self.begin()
                return
            exc = self._wire.get_exception()
            why = f": {plain(str(exc), 160)}" if exc is not None and str(exc) else ""
            self.tell_now(Fate.LOST, f"the node gives no session{why}")
            return
        self._channel = channel
        if self._is_ending:
            self._kill(*self._end_as)
            return
        self._flush()
        self.drain()

    def _ring(self) -> None:
        """On paramiko's thread: something came."""
        if not self._is_rung:
            self._is_rung = True
            self._pump.call(self.drain)

    def drain(self) -> None:
        """Take what it said, and see whether it ended."""
        self._is_rung = False
        channel = self._channel
        if channel is None or self.is_told or self._is_ending:
            return
        while channel.recv_ready() or channel.recv_stderr_ready():
            if self.mailbox is not None and not self.mailbox.has_room:
                return  # `on_room` comes back here
            if channel.recv_ready():
                self.sink.out(channel.recv(READ_BYTES))
            if channel.recv_stderr_ready():
                self.sink.err(channel.recv_stderr(READ_BYTES))
        if not channel.closed:
            return
        elapsed = time.monotonic() - self._began
        if channel.exit_status is None:
            self.tell_now(Fate.LOST, "the connection broke before the program ended")
        else:
            done = self.sink.completed(self.argv, channel.exit_status, elapsed)
            self._finish(Answer(self.node, Fate.COMPLETED, done, elapsed_seconds=elapsed))

    def tell_now(self, fate: Fate, reason: str) -> None:
        """Give this answer, unless one was given."""
        if not self.is_told:
            elapsed = time.monotonic() - self._began
            self._finish(Answer(self.node, fate, None, reason, self.sink.said(), elapsed))

    def _finish(self, answer: Answer) -> None:
        if self.is_told:
            return
        self.is_told = True
        if self._timer is not None:
            self._timer.cancel()
        self.gone(self)
        self._tell(answer)

    # input

    def send(self, data: bytes, is_last: bool) -> None:
        """Queue input; what the program does not take yet waits here."""
        self.input += data
        self.is_input_whole = self.is_input_whole or is_last
        if len(self.input) > UNREAD_BYTES:
            self.end(Fate.LOST, f"it has not read its input: more than {UNREAD_BYTES >> 20} MiB wait for it")
        else:
            self._flush()

    def _flush(self) -> None:
        channel = self._channel
        is_nothing = not self.input and not self.is_input_whole
        if channel is None or self._is_sending or self._is_input_closed or self.is_told or is_nothing:
            return
        self._is_sending = True
        data, self.input = bytes(self.input), bytearray()
        is_last = self.is_input_whole

        def work() -> None:
            from clustertools.fleet.ssh_wire import send

            sent = send(channel, data, is_last)
            self._pump.call(self._sent, data[sent:], is_last)

        self._workers.do(work)

    def _sent(self, rest: bytes, was_last: bool) -> None:
        self._is_sending = False
        if rest:
            self.input[:0] = rest
            # its window is full; looked at again instead of waiting, which would hold a worker
            self._pump.after(0.05, self._flush)
        elif was_last:
            self._is_input_closed = True
        else:
            self._flush()

    # its end

    def _too_late(self) -> None:
        self.end(Fate.TIMEOUT, f"it did not end within {self._timeout_seconds:g} s")

    def end(self, fate: Fate, why: str) -> None:
        """End the program on its node, and give that answer when it is known whether that worked."""
        self.drain()  # it may just have ended
        if self._is_over():
            return
        self._is_ending = True
        if self.is_killer:
            self.tell_now(fate, why)
        elif self._wire is None:
            self.tell_now(fate, f"{why}; it was not started")
        elif self._channel is not None:
            self._kill(fate, why)
        else:
            # it is just being started; a node that takes long over that may never do it
            self._end_as = (fate, why)
            self._pump.after(GRACE_SECONDS, self._never_started)

    def _never_started(self) -> None:
        if self._channel is None and not self.is_told and self._wire is not None:
            fate, why = self._end_as
            hang_up(self._wire.sock)
            self.tell_now(fate, f"{why}; the node does not start it, and its connection was closed")

    def _is_over(self) -> bool:
        return self.is_told or self._is_ending

    def _kill(self, fate: Fate, why: str) -> None:
        """A closed channel ends nothing on the node, for there is no terminal: a second session does."""
        wire = self._wire
        assert wire is not None
        channel = self._channel

        def close() -> None:
            # what cannot be closed is on a connection that is gone, which shows below
            with contextlib.suppress(Exception):
                channel.close()

        self._workers.do(close)

        def ended(answer: Answer) -> None:
            if answer.completed is None:
                how = f"whether it was ended is not known: {answer.reason}"
                hang_up(wire.sock)
            elif answer.completed.returncode == 0:
                how = "it was ended"
            else:
                left = plain(answer.completed.stdout + answer.completed.stderr, 200)
                how = f"it could not be ended: {left or 'the node did not say why'}"
            self.tell_now(fate, f"{why}; {how}")

        if not wire.is_active():
            self.tell_now(fate, f"{why}; the connection is gone, so whether it was ended is not known")
            return
        command = kill_line(self.mark)
        killer = _Program(self.link, ("kill",), command, self.mark, Whole(TAIL_BYTES), ended, KILL_SECONDS)
        killer.is_killer = True
        killer._start(wire)
