"""Real probers on this machine, one process a node, as the head would start them; and orders to them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(group: int) -> list[int]:
    """Who is left of a prober: its children have sessions of their own, so by the parents they had."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"CLUSTERTOOLS_TEST_PROBER={group}".encode() in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


class Prober:
    """One prober under the name `node`."""

    count = 0

    def __init__(
        self,
        node: str,
        *options: str,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = (sys.executable,),
        program: Sequence[str] = ("-m", "clustertools.probes.serve"),
    ) -> None:
        Prober.count += 1
        self.node = node
        #: Marks this prober and whatever it starts.
        self.mark = os.getpid() * 1000 + Prober.count
        self.process = subprocess.Popen(
            # ended by the kernel when the tests are
            ["setpriv", "--pdeathsig", "KILL", *python, *program, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "CLUSTERTOOLS_NODE": node,
                "CLUSTERTOOLS_TEST_PROBER": str(self.mark),
                **(environment or {}),
            },
        )
        self.poll = select.poll()
        self.poll.register(self.process.stdout, select.POLLIN)  # type: ignore[arg-type]
        self.buffer = b""

    def say(self, order: Mapping[str, Any] | str) -> None:
        assert self.process.stdin is not None
        text = order if isinstance(order, str) else json.dumps(order)
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, seconds: float = SECONDS) -> dict[str, Any]:
        """The next line; empty at the end of all lines."""
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = until - time.monotonic()
            assert left > 0, f"{self.node} said nothing within {seconds} s"
            if self.poll.poll(left * 1000):
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    return {}
                self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self, order: Mapping[str, Any] | str, seconds: float = SECONDS) -> dict[str, Any]:
        self.say(order)
        return self.hear(seconds)

    def others(self) -> list[int]:
        """Its children and theirs, as long as they are there."""
        return [pid for pid in processes_of(self.mark) if pid != self.process.pid]

    def gone(self, seconds: float = 5.0) -> bool:
        """Whether it and all that it started end within `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None and not self.others():
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pid in self.others():
            os.kill(pid, signal.SIGKILL)


def probers(*nodes: str, options: Sequence[str] = (), **settings: Any) -> Iterator[list[Prober]]:
    """Started together, greeted, and gone in the end: the body of a fixture."""
    started = [Prober(node, *options, **settings) for node in nodes]
    try:
        for prober in started:
            assert prober.hear()["hello"]["node"] == prober.node
        yield started
    finally:
        for prober in started:
            prober.close()


def collective(number: int, nodes: Sequence[str], **settings: Any) -> dict[str, Any]:
    """An order to one group of nodes on this machine."""
    group = {"nodes": list(nodes), "address": "127.0.0.1", "port": settings.pop("port", 0) or free_port()}
    return {
        "id": number, "probe": "collective", "groups": [group], "collective": "all_reduce",
        "sizes_bytes": [1 << 16], "warmup": 1, "iterations": 3, "dtype": "float32", "backend": "auto",
        "ranks_per_node": 1, "timeout_seconds": 30, **settings,
    }  # fmt: skip


def all_ask(those: Sequence[Prober], order: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The order to all of them at once, and each one's answer by node."""
    for prober in those:
        prober.say(order)
    return {prober.node: prober.hear() for prober in those}
