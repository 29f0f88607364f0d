"""What was found in files that have not changed since: by path, size, time of change and inode."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from dataclasses import asdict
from typing import Any

from clustertools.sources.checkpoint_files import FileReport, Segment
from clustertools.sources.checkpoint_layouts import Entry

_SCHEMA = 1
#: Time stamps of file systems are this coarse: a younger file may change without showing it.
_RACY_SECONDS = 2.0


def question(deep: bool, segments: tuple[Segment, ...] | None = None) -> str:
    """The name of what was asked about a file: how thoroughly, and by which division."""
    how = "deep" if deep else "quick"
    return how if segments is None else f"{how}-{zlib.crc32(repr(segments).encode()):08x}"


def cache_file(place: str, folder: str) -> str:
    """The file in which results about `folder` are kept: `place` itself or, in a folder, one for each."""
    if not os.path.isdir(place):
        return place
    real = os.path.realpath(folder)
    return os.path.join(place, f"{os.path.basename(real)[:40]}-{zlib.crc32(os.fsencode(real)):08x}.json")


class FileCache:
    """Results in a JSON file. One that cannot be read is empty; one that cannot be written is not kept.

    `save` keeps what was asked for since it was opened, and what others wrote meanwhile; files that are gone
    leave it. A long look saves now and then, so that one that is killed is not begun anew.
    """

    def __init__(self, path: str, now: float, *, every_seconds: float = 15.0) -> None:
        self._path, self._now, self._every_seconds = path, now, every_seconds
        self._old = self._read()
        self._kept: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        self._lock = threading.Lock()

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError):
            with open(self._path, "rb") as file:
                told = json.loads(file.read())
            if isinstance(told, dict) and told.get("schema") == _SCHEMA and isinstance(told["files"], dict):
                return dict(told["files"])
        return {}

    @staticmethod
    def _key(entry: Entry, how: str) -> str:
        return f"{how} {entry.size_bytes} {entry.mtime_ns} {entry.inode} {entry.path}"

    def find(self, entry: Entry, how: str) -> FileReport | None:
        """What was found before. A deep result also answers a question that is not deep."""
        for known in dict.fromkeys((how.replace("quick", "deep"), how)):
            key = self._key(entry, known)
            told = self._kept.get(key) or self._old.get(key)
            with contextlib.suppress(TypeError):
                if told is not None:
                    report = FileReport(**{**told, "name": entry.name})
                    self._kept[key] = told
                    return report
        return None

    def keep(self, entry: Entry, how: str, report: FileReport) -> None:
        """Remember a result that lasts: not of a file that was just written, changed, or not readable."""
        if self._now - entry.mtime > _RACY_SECONDS and report.verdict in ("good", "torn", "hostile"):
            with self._lock:
                self._kept[self._key(entry, how)] = asdict(report)
                due = time.monotonic() - self._saved_at > self._every_seconds
                if due:
                    self._write({**self._old, **self._kept})

    def save(self) -> None:
        """Rewrite the file by rename. A cache that cannot be written costs time and nothing else."""
        with self._lock:
            new = {key: told for key, told in self._read().items() if key not in self._old}
            self._write({**new, **self._kept})

    def _write(self, files: dict[str, Any]) -> None:
        self._saved_at = time.monotonic()
        partial = f"{self._path}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            with open(partial, "w", encoding="utf-8") as file:
                json.dump({"schema": _SCHEMA, "files": files}, file)
            os.replace(partial, self._path)
