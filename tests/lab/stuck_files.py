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


@contextlib.contextmanager
def stuck(folder: Path) -> Iterator[Path]:
    """A FUSE mount with a `file` in it: its server takes a request and waits for a second, stopped one.

    A request that a server has taken is waited for uninterruptibly (fs/fuse/dev.c, request_wait_answer). What
    waits goes on when the context ends.
    """
    real, inner, outer = (folder / name for name in ("real", "inner", "outer"))
    for each in (real, inner, outer):
        each.mkdir()
    (real / "file").write_text("x")
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for source, point in ((real, inner), (inner, outer)):
            argv = ["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", str(source), str(point)]
            servers.append(subprocess.Popen(argv))
            until = time.monotonic() + 5
            while not (point / "file").exists() and time.monotonic() < until:
                time.sleep(0.02)
        servers[0].send_signal(signal.SIGSTOP)
        yield outer
    finally:
        for server in servers:
            server.send_signal(signal.SIGCONT)
        for point in (outer, inner):
            subprocess.run(["umount", "-l", str(point)], check=False)
        for server in servers:
            server.terminate()
            server.wait(5)
