"""Passes on what a command prints, byte for byte, from the file that it prints into.

    relay = Relay(1); relay.follow(path); ...; relay.finish(lambda: False)

It works in a thread of its own: a pager that stands still, or a terminal that is gone, must not keep anybody
from watching the run.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

SLICE_SECONDS = 0.1
_PIECE_BYTES = 1 << 16
#: What is shown of the past when a run is taken up that already prints.
TAIL_BYTES = 1 << 14


class Relay:
    """From one file after the other to the file descriptor `target`; with None it does nothing."""

    def __init__(self, target: int | None) -> None:
        self.broken = ""
        self._target = target
        self._paths: list[tuple[Path, bool]] = []
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def follow(self, path: Path, *, tail: bool = False) -> None:
        """Go on with `path` when the files before it are through. `tail`: begin near its end."""
        if self._target is None or (self._paths and self._paths[-1][0] == path):
            return
        self._paths.append((path, tail))
        if not self._thread.is_alive():
            self._thread.start()

    def finish(self, hurry: Callable[[], bool]) -> None:
        """Wait until everything is passed on, or `hurry` says that there is no time."""
        self._finished.set()
        while self._thread.is_alive() and not hurry():
            self._thread.join(SLICE_SECONDS)

    def _run(self) -> None:
        at = 0
        offset: int | None = None
        while True:
            # asked before the read: what was written until then is read for certain
            last = self._finished.is_set()
            path, tail = self._paths[at]
            try:
                with open(path, "rb") as file:
                    if offset is None:
                        offset = _line_near_end(file.fileno()) if tail else 0
                    file.seek(offset)
                    data = file.read(_PIECE_BYTES)
            except OSError:
                data = b""  # not written yet
            if data:
                try:
                    self._write(data)
                except OSError as exc:
                    self.broken = exc.strerror or str(exc)
                    return
                offset = (offset or 0) + len(data)
            elif at + 1 < len(self._paths):
                at, offset = at + 1, None
            elif last:
                return
            else:
                self._finished.wait(SLICE_SECONDS)

    def _write(self, data: bytes) -> None:
        assert self._target is not None
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._target, left) :]
            except BlockingIOError:
                # somebody made the terminal non-blocking
                ready = select.poll()
                ready.register(self._target, select.POLLOUT)
                ready.poll(1000)


def _line_near_end(file: int) -> int:
    size = os.fstat(file).st_size
    begin = max(0, size - TAIL_BYTES)
    if not begin:
        return 0
    text = os.pread(file, TAIL_BYTES, begin)
    return begin + text.find(b"\n") + 1
