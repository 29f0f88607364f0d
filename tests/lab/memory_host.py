"""A machine in memory: files, commands, processes and a clock that the test moves by hand."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, FileStat

Answer = str | Exception | Callable[..., str]


class MemoryHost:
    """The port `Host` over dictionaries. A file that is an exception raises it; a command likewise."""

    def __init__(self, name: str = "n1", now: float = 1_786_000_000.0) -> None:
        self.name, self.boot_id, self.time = name, "boot-1", now
        self.files: dict[str, str | Exception] = {"/proc/stat": "cpu 1\nbtime 1785900000\n"}
        self.commands: dict[tuple[str, ...], Answer] = {}
        self.inodes: dict[str, int] = {}

    def now(self) -> float:
        return self.time

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        answer = self.commands.get(argv)
        if answer is None:
            raise Absent(f"{' '.join(argv)} is not there")
        if isinstance(answer, Exception):
            raise answer
        return Completed(argv, 0, answer if isinstance(answer, str) else answer(), "")

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        data = self._file(path)
        return data[offset : None if limit is None else offset + limit].decode("utf-8", "replace")

    def stat(self, path: str) -> FileStat:
        return FileStat(len(self._file(path)), self.time, self.inodes.get(path, 1))

    def glob(self, pattern: str) -> list[str]:
        depth = pattern.count("/")
        short = {"/".join(path.split("/")[: depth + 1]) for path in self.files}
        return sorted(path for path in short if fnmatch.fnmatchcase(path, pattern))

    def _file(self, path: str) -> bytes:
        text = self.files.get(path)
        if text is None:
            raise Absent(f"{path}: no such file")
        if isinstance(text, Exception):
            raise text
        return text.encode()

    def process(
        self, pid: int, ppid: int = 1, *, state: str = "S", cpu_seconds: float = 0.0, rank: int | None = None
    ) -> None:
        """Put a process into /proc; with `rank` a Python training process of that rank."""
        stat = (
            f"{pid} (python) {state} {ppid} {pid} {pid} 0 -1 4194560 0 0 0 0 {int(cpu_seconds * 100)} 0 0 0 "
        )
        stat += f"20 0 1 0 {1000 + pid} 0 0" + " 0" * 30
        self.files[f"/proc/{pid}/stat"] = stat
        self.files[f"/proc/{pid}/cmdline"] = "python\0train.py\0"
        self.files[f"/proc/{pid}/wchan"] = "futex_wait_queue"
        variables = {} if rank is None else {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        self.files[f"/proc/{pid}/environ"] = "\0".join(f"{k}={v}" for k, v in variables.items()) + "\0"

    def stack(self, pid: int, frames: Iterable[tuple[str, str, int]] | Exception) -> None:
        """What py-spy says of a process: (function, file, line), innermost first."""
        argv = ("python", "-m", "clustertools.sources.stacks", "--json", "--nonblocking", "--pid", str(pid))
        if isinstance(frames, Exception):
            self.commands[argv] = frames
            return
        listed = [
            {"name": f, "filename": p, "module": None, "short_filename": p, "line": n, "locals": None,
             "is_entry": False}
            for f, p, n in frames
        ]  # fmt: skip
        thread = {
            "pid": pid, "thread_id": 1, "thread_name": "MainThread", "os_thread_id": pid, "active": False,
            "owns_gil": False, "frames": listed, "process_info": None,
        }  # fmt: skip
        self.commands[argv] = json.dumps([thread])


def refused(what: str) -> Unobservable:
    """An answer that is no answer."""
    return Unobservable(what)
