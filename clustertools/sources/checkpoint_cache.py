"""What was found in files that have not changed since: by path, size, time of change and inode."""

from __future__ import annotations

import contextlib
import json
import os
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


class FileCache:
    """Results in a JSON file. One that cannot be read is empty; one that cannot be written is not kept.

    `save` keeps what was asked for since it was opened, so files that are gone leave it.
    """

    def __init__(self, path: str, now: float) -> None:
        self._path, self._now = path, now
        self._old: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            with open(path, "rb") as file:
                told = json.loads(file.read())
            if isinstance(told, dict) and told.get("schema") == _SCHEMA and isinstance(told["files"], dict):
                self._old = told["files"]

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
            self._kept[self._key(entry, how)] = asdict(report)

    def save(self) -> None:
        """Rewrite the file by rename. A cache that cannot be written costs time and nothing else."""
        partial = f"{self._path}.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):
            with open(partial, "w", encoding="utf-8") as file:
                json.dump({"schema": _SCHEMA, "files": self._kept}, file)
            os.replace(partial, self._path)
