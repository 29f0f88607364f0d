"""One thread that holds the state of many connections, and a few that do what blocks.

What happens to a connection (a socket is ready, a worker is done, a deadline passes) becomes a call on the
pump's thread, one after the other: that state needs no locks. Nothing may block there.
"""

from __future__ import annotations

import heapq
import itertools
import os
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Timer:
    """A call that is to come; `cancel` takes it back."""

    __slots__ = ("call", "is_cancelled")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.is_cancelled = call, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Pump:
    """The thread. `on_fault` is told (on it) of an error in a call; the others go on."""

    def __init__(self, on_fault: Callable[[Exception], None]) -> None:
        self._on_fault = on_fault
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._woken, self._bell = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._bell, False)
        self._selector.register(self._woken, READ)
        self._is_asleep, self._is_over = False, False
        self._thread = threading.Thread(target=self._serve, name="ssh-pump", daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """From any thread: have it called on the pump's."""
        self._calls.append((function, args))
        if self._is_asleep and not self._is_over:
            self._is_asleep = False
            os.write(self._bell, b".")

    def after(self, seconds: float, call: Callable[[], object]) -> Timer:
        """On the pump's thread: have it called later."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), timer))
        return timer

    def watch(self, sock: socket.socket, events: int, call: Callable[[], object]) -> None:
        """On the pump's thread: call whenever that socket is ready; the last one counts."""
        if sock in self._selector.get_map():
            self._selector.modify(sock, events, call)
        else:
            self._selector.register(sock, events, call)

    def forget(self, sock: socket.socket) -> None:
        """On the pump's thread, before the socket is closed or handed on; one closed by a worker is gone."""
        if sock.fileno() >= 0 and sock in self._selector.get_map():
            self._selector.unregister(sock)

    def stop(self) -> None:
        self.call(self._end)
        self._thread.join(5.0)

    def _end(self) -> None:
        self._is_over = True

    def _serve(self) -> None:
        while not self._is_over:
            self._is_asleep = True
            # a call that came before the flag was up did not ring
            wait = 0.0 if self._calls else self._until_next()
            ready = self._selector.select(wait)
            self._is_asleep = False
            for key, _ in ready:
                if key.fd == self._woken:
                    os.read(self._woken, 4096)
                else:
                    self._do(key.data)
            while self._calls:
                function, args = self._calls.popleft()
                self._do(function, *args)
            now = time.monotonic()
            while self._timers and (self._timers[0][0] <= now or self._timers[0][2].is_cancelled):
                timer = heapq.heappop(self._timers)[2]
                if not timer.is_cancelled:
                    self._do(timer.call)
        self._selector.close()
        os.close(self._woken)
        os.close(self._bell)

    def _until_next(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _do(self, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except Exception as exc:  # noqa: BLE001 - one connection's fault must not stop all the others; it is told
            self._on_fault(exc)


class Workers:
    """Threads for what blocks, at most `width`; they come when they are needed, and end with the process."""

    def __init__(self, width: int) -> None:
        self._width, self._threads, self._idle = width, 0, 0
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def do(self, work: Callable[[], object]) -> None:
        """Have it called on one of them. It must not raise: what goes wrong is its own to tell."""
        with self._lock:
            self._work.put(work)
            self._idle -= 1
            if self._idle < 0 and self._threads < self._width:
                self._threads += 1
                # daemon: one that hangs in a name service must not keep the process from ending
                threading.Thread(target=self._serve, name="ssh-worker", daemon=True).start()

    def stop(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._work.get()
            if work is None:
                return
            work()
