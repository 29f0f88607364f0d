"""A machine in memory whose kernel log a test writes line by line."""

from __future__ import annotations

import json
from typing import Any

from clustertools import check as checking
from clustertools.check import Check
from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, FileStat
from clustertools.model import Verdict

BOOT = 1_700_000_000


class Node:
    """A Host of which only the kernel log, the boot and the PCI bus exist."""

    name = "gpu-001"

    def __init__(self, *gpus: str) -> None:
        self.gpus = gpus
        self.boot_id = "boot-1"
        self.seconds = 100.0
        self.ring: list[str] | None = []
        self.sequence = 0
        self.memory: dict[str, Any] = {}

    def say(self, text: str, after: float = 1.0) -> Node:
        assert self.ring is not None
        self.seconds += after
        self.ring.append(f"3,{self.sequence},{int(self.seconds * 1e6)},-;{text}")
        self.sequence += 1
        return self

    def xid(self, code: int, text: str = "", gpu: str = "0000:3b:00", after: float = 1.0) -> Node:
        return self.say(f"NVRM: Xid (PCI:{gpu}): {code}, pid=77, name=python, {text}", after)

    def lose(self, records: int) -> Node:
        self.sequence += records
        return self

    def reboot(self) -> Node:
        self.boot_id += "+"
        self.ring, self.sequence, self.seconds = [], 0, self.seconds + 300
        return self

    def look(self, check: Check, limits: Any = None, remember: bool = True) -> Verdict:
        """Run the check; its memory goes through JSON, as between a node and the watchdog."""
        verdict = checking.run(check, self, limits=limits, past=self.memory if remember else None)
        assert "Traceback" not in verdict.detail, verdict.detail
        if remember:
            self.memory = json.loads(json.dumps(dict(verdict.memory)))
        return verdict

    def now(self) -> float:
        return BOOT + self.seconds

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path == "/proc/stat":
            return f"btime {BOOT}\n"
        if path == "/dev/kmsg":
            if self.ring is None:
                raise Unobservable("/dev/kmsg: Operation not permitted")
            return "\n".join(self.ring)
        for gpu in self.gpus:
            if path.startswith(f"/sys/bus/pci/devices/{gpu}/"):
                return "0x10de\n" if path.endswith("vendor") else "0x030200\n"
        raise Absent(path)

    def glob(self, pattern: str) -> list[str]:
        if pattern == "/sys/bus/pci/devices/*/vendor":
            return [f"/sys/bus/pci/devices/{gpu}/vendor" for gpu in self.gpus]
        return []

    def stat(self, path: str) -> FileStat:
        raise Absent(path)

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        raise AssertionError(f"no child may be started: {argv}")
