"""Any file of training metrics as one stream of points and events, its format recognised by what is in it.

with open_metrics("trainer_state.json") as metrics:       "-" is the standard input
    for item in metrics:                      Point or Event, in the order in which they were logged
        ...
    metrics.format, metrics.notes, metrics.unread          what was recognised, and what was passed over
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

from clustertools.errors import Absent, Unobservable
from clustertools.sources.training_log import LogReader
from clustertools.sources.training_values import Event, Point

#: Bytes that are read at once.
_BLOCK_BYTES = 1 << 18


class Metrics:
    """The records of one source, read once, from its beginning to its end, in flat memory.

    `format` names what was recognised, `notes` are sentences for people on what was chosen or passed over.
    `unread` counts records that could not be read: half lines, damaged ones, lines over 1 MiB. All of them
    are final when the iteration has ended. Iterating raises Unparsable when nothing in it is a metric,
    Unobservable when the source cannot be read further.
    """

    def __init__(self, path: str, file: BinaryIO, format: str | None = None) -> None:
        self.path = path
        self.format: str | None = format
        self.notes: list[str] = []
        self.unread = 0
        self.bytes_read = 0
        self._file = file
        self._wanted = format

    def __iter__(self) -> Iterator[Point | Event]:
        reader = LogReader(self._wanted)
        while data := self._read():
            yield from reader.feed(data)
        yield from reader.close()
        self.format = reader.format
        self.unread += reader.cut_lines

    def _read(self) -> bytes:
        data = self._file.read(_BLOCK_BYTES)
        self.bytes_read += len(data)
        return data

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_metrics(path: str, format: str | None = None) -> Metrics:
    """The metrics in `path`: a file, a folder of a run, or `-` for the standard input.

    `format` is one of `training_log.FORMATS` for a text log whose family cannot be told by itself. Raises
    Absent when there is nothing of that name, Unparsable when it is of no kind that can be read, ConfigError
    for a format that does not exist, Unobservable otherwise; each says what to try.
    """
    if path == "-":
        return Metrics(path, sys.stdin.buffer, format)
    try:
        return Metrics(path, open(path, "rb"), format)
    except FileNotFoundError as exc:
        raise Absent(f"there is no {path}") from exc
    except OSError as exc:
        raise Unobservable(f"{path} cannot be read: {os.strerror(exc.errno or 0)}") from exc
