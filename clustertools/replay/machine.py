"""A recorded host whose answers change with a clock that is only counted: a machine in a recording."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.host import PYTHON, FileStat, RecordedHost, fixed_part
from clustertools.sources import checkpoints
from clustertools.sources.processes import RANK_VARIABLES, TICKS_PER_SECOND

KMSG = "/dev/kmsg"
#: Kernel level 3, "error": what the NVIDIA driver uses for an Xid.
_KMSG_LEVEL = 3
_PROCESS = ("command", "argv", "parent", "state", "cpu_seconds", "started", "rank", "world", "wchan", "stack")


@dataclass
class Clock:
    """The time of a replay: it passes when it is set."""

    time: float

    def __call__(self) -> float:
        return self.time


@dataclass
class _File:
    data: bytes
    mtime: float
    inode: int


class ReplayHost(RecordedHost):
    """A RecordedHost with a clock and with changes. They are kept in memory: the folder stays as it is."""

    def __init__(self, folder: str | Path, clock: Clock | None = None) -> None:
        super().__init__(folder)
        self.start = super().now()
        self.clock = clock or Clock(self.start)
        self._inodes = itertools.count(1)
        self._known = dict(self._globs)
        self._sizes = dict(self._stats)
        self._unreadable: dict[str, str] = {}
        self._prefixes: list[tuple[tuple[str, ...], Mapping[str, Any]]] = []
        self._processes: dict[int, dict[str, Any]] = {}
        self._tree: dict[str, _File] = {}
        self._expected: set[str] = set()
        #: Every folder that there ever was: one that was emptied is empty, not unknown.
        self._folders: set[str] = {"/"}
        for root in reversed(self.roots):  # what the recording says itself counts before what its base says
            for path in sorted(root.rglob("*")):
                name = "/" + path.relative_to(root).as_posix()
                self._folders.add(name if path.is_dir() else os.path.dirname(name))
                if not path.is_file() or (root != self.roots[0] and self._taken_away(name)):
                    continue
                told = self._stats.get(name)
                mtime = float(told[1]) if told else self.start
                inode = int(told[2]) if told else next(self._inodes)
                self._tree[name] = _File(path.read_bytes(), mtime, inode)

    # the port

    def now(self) -> float:
        return self.clock()

    def _answer(self, argv: tuple[str, ...]) -> Mapping[str, Any] | None:
        exact = self._commands.get(argv)
        if exact is not None:
            return exact
        return next((entry for words, entry in self._prefixes if argv[: len(words)] == words), None)

    def _refuse(self, path: str) -> None:
        for held, why in self._unreadable.items():
            if path == held or path.startswith(held.rstrip("/") + "/"):
                raise Unobservable(f"{path}: {why}")
        if path in self._errors and path not in self._tree:
            raise Unobservable(self._errors[path])

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        self._refuse(path)
        file = self._tree.get(path)
        if file is None:
            raise self._missing(path)
        return file.data[offset : None if limit is None else offset + limit].decode("utf-8", "replace")

    def stat(self, path: str) -> FileStat:
        self._refuse(path)
        if path in self._sizes:
            size, mtime, inode, is_dir = self._sizes[path]
            return FileStat(int(size), float(mtime), int(inode), bool(is_dir))
        file = self._tree.get(path)
        if file is not None:
            return FileStat(len(file.data), file.mtime, file.inode)
        if any(name.startswith(path.rstrip("/") + "/") for name in self._tree):
            return FileStat(0, self.start, 0, True)
        raise self._missing(path)

    def _missing(self, path: str) -> Unobservable:
        """Not there, where the recording knows the place; else nobody looked."""
        known = path in self._absent or path in self._expected or self._taken_away(path)
        known = known or os.path.dirname(path) in self._folders or path.startswith("/proc/")
        return (Absent if known else Unobservable)(f"{path} is not in the recording {self.folder.name}")

    def glob(self, pattern: str) -> list[str]:
        self._refuse(pattern)
        found = {*self._known.get(pattern, ()), *_matching(pattern, self._tree)}
        folder = fixed_part(pattern)
        if not found and pattern not in self._known and folder not in self._folders:
            raise Unobservable(f"{pattern} is not in the recording {self.folder.name}")
        return sorted(found)

    # changes

    def expect(self, paths: Iterable[str]) -> None:
        """Files that the timeline makes: until it does, they are known not to be there."""
        self._expected.update(paths)

    def set(self, path: str, text: str) -> None:
        """Give a file new content; the same inode, as when it is written anew in place."""
        old = self._tree.get(path)
        inode = old.inode if old else next(self._inodes)
        self._tree[path] = _File(text.encode("utf-8", "replace"), self.now(), inode)
        self._folders.update(str(above) for above in PurePosixPath(path).parents)
        self._sizes.pop(path, None)

    def append(self, path: str, text: str) -> None:
        """Add lines to a file; it is made when it is not there."""
        old = self._tree.get(path)
        before = old.data if old else b""
        inode = old.inode if old else next(self._inodes)
        text = text if text.endswith("\n") else text + "\n"
        self._tree[path] = _File(before + text.encode("utf-8", "replace"), self.now(), inode)
        self._folders.update(str(above) for above in PurePosixPath(path).parents)
        self._sizes.pop(path, None)

    def remove(self, path: str) -> None:
        """Take away a file, or a folder with everything in it."""
        inside = path.rstrip("/") + "/"
        for name in [n for n in self._tree if n == path or n.startswith(inside)]:
            del self._tree[name]
        for name in [n for n in self._sizes if n == path or n.startswith(inside)]:
            del self._sizes[name]
        self._known = {
            pattern: [n for n in names if n != path and not n.startswith(inside)]
            for pattern, names in self._known.items()
        }

    def unreadable(self, path: str, why: str) -> None:
        """From now on nobody can look at `path` and what is below it."""
        self._unreadable[path] = why

    def readable(self, path: str) -> None:
        self._unreadable.pop(path, None)

    def answer(self, entry: Mapping[str, Any]) -> None:
        """Another answer of a command. `prefix`: for every argv that begins like this; `hang`: none."""
        argv = tuple(str(word) for word in entry["argv"])
        told = {k: v for k, v in entry.items() if k not in ("prefix", "hang")}
        if entry.get("hang"):
            told["seconds"] = math.inf
        if entry.get("prefix"):
            for known in [a for a in self._commands if a[: len(argv)] == argv]:
                del self._commands[known]
            self._prefixes.insert(0, (argv, told))
        else:
            self._commands[argv] = told

    def kernel_log(self, records: Iterable[str | Mapping[str, Any]]) -> None:
        """Add records to the ring, each a text, or a mapping with `level` and `text`."""
        file = self._tree.get(KMSG)
        lines = file.data.decode("utf-8", "replace").splitlines() if file else []
        # 6,339,5140900,-;NET: ...
        numbers = [int(line.split(",")[1]) for line in lines if re.match(r"\d+,\d+,\d+,", line)]
        sequence = max(numbers, default=-1)
        since_boot = max(0, round((self.now() - self._boot_time()) * 1e6))
        for record in records:
            level, text = (_KMSG_LEVEL, record) if isinstance(record, str) else _leveled(record)
            sequence += 1
            lines.append(f"{level},{sequence},{since_boot},-;{text}")
        self.set(KMSG, "".join(f"{line}\n" for line in lines))

    def boot(self, boot_id: str) -> None:
        """The machine starts anew: another boot id, an empty kernel log, no process of before."""
        self.boot_id = boot_id
        self._processes.clear()
        for name in _matching("/proc/[0-9]*", self._tree):
            self.remove(name)
        self.set(KMSG, "")
        self.set("/proc/stat", f"btime {int(self.now())}\n")
        self.process(1, {"command": "systemd", "argv": ["/sbin/init"], "parent": 0})

    def _boot_time(self) -> float:
        file = self._tree.get("/proc/stat")
        # btime 1763692401
        match = re.search(rb"^btime (\d{1,12})$", file.data, re.MULTILINE) if file else None
        if match is None:
            self.append("/proc/stat", f"btime {int(self.start - 86400)}")
            return self.start - 86400
        return float(match[1])

    def process(self, pid: int, told: Mapping[str, Any] | str) -> None:
        """A process as /proc shows it, and its Python stack as py-spy would tell it; "gone" takes it away."""
        if isinstance(told, str):
            self._processes.pop(pid, None)
            self.remove(f"/proc/{pid}")
            return
        unknown = set(told) - set(_PROCESS)
        if unknown:
            raise ConfigError(f"process {pid}: {sorted(unknown)} not known; there is {', '.join(_PROCESS)}")
        folder = f"/proc/{pid}"
        # the next change may say only what changed
        told = self._processes[pid] = {**self._processes.get(pid, {}), **told}
        self.set(f"{folder}/stat", _stat(pid, told, self.start - self._boot_time()))
        argv = told.get("argv") or [told.get("command", "python3")]
        self.set(f"{folder}/cmdline", "".join(f"{word}\0" for word in argv))
        self.set(f"{folder}/status", "VmRSS:\t  314572 kB\n")
        self.set(f"{folder}/wchan", str(told.get("wchan", "0")))
        if "rank" in told:
            values = {"RANK": told["rank"], "LOCAL_RANK": told["rank"], "WORLD_SIZE": told.get("world", 1)}
            assert values.keys() <= RANK_VARIABLES
            self.set(f"{folder}/environ", "".join(f"{k}={v}\0" for k, v in values.items()))
        if "stack" in told:
            self._stack(pid, str(told["stack"]))

    def _stack(self, pid: int, text: str) -> None:
        argv = (PYTHON, "-m", "clustertools.sources.stacks", "--json", "--nonblocking", "--pid", str(pid))
        frames = []
        for call in text.split(" < "):
            # all_reduce (distributed_c10d.py:2810)
            match = re.fullmatch(r"(\S+) \((.+):(\d{1,7})\)", call.strip())
            if match is None:
                raise ConfigError(f"process {pid}: {call!r} is not of the form function (file.py:12)")
            frames.append({"name": match[1], "filename": match[2], "line": int(match[3])})
        thread = {"thread_name": "MainThread", "os_thread_id": pid, "frames": frames}
        self._commands[argv] = {"argv": list(argv), "stdout": json.dumps([thread])}

    def checkpoints(self, folder: str, listed: Any) -> None:
        """What a look at a checkpoint folder tells: a list, newest first; `hang`; or an `error`."""
        argv = [PYTHON, "-m", "clustertools.sources.checkpoints", folder]
        if listed == "hang":
            self.answer({"argv": argv, "prefix": True, "hang": True})
            return
        data: dict[str, Any] = {"schema": checkpoints.SCHEMA}
        if isinstance(listed, Mapping):
            data |= {"error": f"{folder}: {listed.get('error')}", "absent": bool(listed.get("absent"))}
        else:
            reports = [_report(folder, item, self.now()) for item in listed]
            data |= {"checkpoints": reports, "tracker": None, "not_looked_at": 0}
        self.answer({"argv": argv, "prefix": True, "stdout": json.dumps(data)})


def _leveled(record: Mapping[str, Any]) -> tuple[int, str]:
    return int(record.get("level", _KMSG_LEVEL)), str(record["text"])


def _stat(pid: int, told: Mapping[str, Any], up_seconds: float) -> str:
    """/proc/PID/stat as proc_pid_stat(5) has it, with 52 fields."""
    ticks = int(float(told.get("cpu_seconds", 100.0)) * TICKS_PER_SECOND)
    started = int(max(1.0, up_seconds + float(told.get("started", -60.0))) * TICKS_PER_SECOND)
    words = [str(told.get("state", "S")), int(told.get("parent", 1)), pid, pid, 0, -1, 0, 0, 0, 0, 0]
    words += [ticks, 0, 0, 0, 20, 0, 1, 0, started, 0, 78643, *[0] * 28]
    name = str(told.get("command", "python3"))[:15]
    return f"{pid} ({name}) {' '.join(map(str, words))}\n"


def _report(folder: str, item: Mapping[str, Any], now: float) -> dict[str, Any]:
    step = item.get("step")
    name = str(item.get("name", f"step-{step}"))
    verdict = str(item.get("verdict", "good"))
    reason = str(item.get("reason", "4 files are whole, by structure and sizes" if verdict == "good" else ""))
    return {
        "path": os.path.join(folder, name), "step": step, "layout": str(item.get("layout", "dcp")),
        "verdict": verdict, "reason": reason, "size_bytes": int(item.get("size_bytes", 4_000_000)),
        "mtime": now - float(item.get("age_seconds", 0.0)), "deep": bool(item.get("deep")), "files": 4,
    }  # fmt: skip


def _matching(pattern: str, names: Iterable[str]) -> set[str]:
    """The names and folders that match a pattern, word by word, as the shell does it."""
    words = pattern.strip("/").split("/")
    found = set()
    for name in names:
        parts = name.strip("/").split("/")
        if len(parts) < len(words):
            continue
        hidden = any(p.startswith(".") and not w.startswith(".") for p, w in zip(parts, words, strict=False))
        fits = all(fnmatch.fnmatchcase(p, w) for p, w in zip(parts, words, strict=False))
        if fits and not hidden:
            found.add("/" + "/".join(parts[: len(words)]))
    return found
