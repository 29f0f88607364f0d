"""A folder whose readers hang in the kernel, where not even SIGKILL reaches them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"),
    reason="needs root, /dev/fuse and bindfs",
)


class Mounted:
    """A FUSE mount of `real`, as `outer`, until `end`: its server hands each request to a second server.

    While that one is stopped (`freeze`), whoever reads waits in the kernel: a request that a server has taken
    is waited for uninterruptibly (fs/fuse/dev.c, request_wait_answer). `thaw` lets them go on.
    """

    def __init__(self, folder: Path) -> None:
        self.real, self.inner, self.outer = (folder / name for name in ("real", "inner", "outer"))
        for each in (self.real, self.inner, self.outer):
            each.mkdir(parents=True)
        (self.real / "file").write_text("x")
        self.servers: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        for source, point in ((self.real, self.inner), (self.inner, self.outer)):
            argv = ["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", str(source), str(point)]
            self.servers.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *argv]))
            until = time.monotonic() + 5
            while not (point / "file").exists() and time.monotonic() < until:
                time.sleep(0.02)

    def freeze(self) -> None:
        self.servers[0].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.thaw()
        for point in (self.outer, self.inner):
            subprocess.run(["umount", "-l", str(point)], check=False)
        for server in self.servers:
            server.terminate()
            server.wait(5)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Mounted]:
    """A mount that can be frozen. What waits goes on when the context ends."""
    mount = Mounted(folder)
    try:
        mount.begin()
        yield mount
    finally:
        mount.end()


@contextlib.contextmanager
def stuck(folder: Path) -> Iterator[Path]:
    """The same, frozen from the start; there is a `file` in it."""
    with mounted(folder) as mount:
        mount.freeze()
        yield mount.outer
