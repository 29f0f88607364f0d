"""Any file of training metrics as one stream of points and events, its format recognised by what is in it.

with open_metrics("trainer_state.json") as metrics:       "-" is the standard input
    for item in metrics:                      Point or Event, in the order in which they were logged
        ...
    metrics.format, metrics.notes, metrics.unread          what was recognised, and what was passed over
"""

from __future__ import annotations

import codecs
import glob
import heapq
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO

from clustertools.errors import Absent, ConfigError, Unobservable, Unparsable
from clustertools.sources.metrics_bytes import Bytes, binary_kind
from clustertools.sources.metrics_document import (
    ArrayReader,
    Records,
    document_points,
    document_shape,
    series_name,
)
from clustertools.sources.tensorboard import EventReader
from clustertools.sources.training_log import FORMATS, LogReader
from clustertools.sources.training_loggers import read_mlflow
from clustertools.sources.training_records import json_value
from clustertools.sources.training_values import Event, Point
from clustertools.sources.wandb_file import WandbReader

#: A JSON document that is no array of records has to be in memory as a whole, ten times its size. Our choice.
DOCUMENT_CAP_BYTES = 128 << 20
#: Event files and metric files of one folder that are read side by side.
_FILES_AT_MOST = 256
_Items = Iterator[Point | Event]

# 1700000000123 2.5 100
_MLFLOW = re.compile(rb"\d{10,13} \S{1,40} \d{1,15}\r?$")
# [{"step": 1, ...   [[1700000000.1, 1, 2.5], ...   []
_ARRAY = re.compile(r"\s*\[\s*(?:\{\s*(?:\"|\}|$)|\[\s*(?:[-\d\"]|$)|\]\s*$|-?\d[^\]]*,\s|$)")


class Metrics:
    """The records of one source, read once, from its beginning to its end, in flat memory.

    `format` names what was recognised, `notes` are sentences for people on what was chosen or passed over.
    `unread` counts records that could not be read: half lines, damaged ones, lines over 1 MiB. All of them
    are final when the iteration has ended. Iterating raises Unparsable when nothing in it is a metric,
    Unobservable when the source cannot be read further.
    """

    def __init__(self, path: str, source: Bytes | None, format: str | None = None) -> None:
        self.path = path
        self.format: str | None = format
        self.notes: list[str] = []
        self.unread = 0
        self.points = 0
        self._source = source
        self._wanted = format
        self._parts: list[Metrics] = []
        self._merge: Callable[[list[Metrics]], _Items] | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes that were read of the file, packed as it may be."""
        return (self._source.bytes_read if self._source else 0) + sum(p.bytes_read for p in self._parts)

    def __iter__(self) -> _Items:
        for item in self._items():
            self.points += isinstance(item, Point)
            yield item
        if self._source is not None:
            self.notes += self._source.notes
        if not self.points:
            count = f" ({self.unread} records could not be)" if self.unread else ""
            raise Unparsable(
                f"{_shown(self.path)} has no metrics that could be read{count}; a log of another kind may be "
                "named with --format, and CSV needs a header line with a column named step"
            )

    def _items(self) -> _Items:
        if self._merge is not None:
            yield from self._merge(self._parts)
            self._gather()
            return
        assert self._source is not None
        head = self._source.head()
        kind = self._wanted or recognise(head)
        read = {
            "tensorboard": self._binary, "wandb": self._binary, "mlflow": self._mlflow,
            "json array": self._array, "json": self._document,
        }.get(kind, self._text)  # fmt: skip
        yield from read(kind)

    def _gather(self) -> None:
        for part in self._parts:
            self.unread += part.unread
            self.notes += part.notes

    def _text(self, kind: str) -> _Items:
        reader = LogReader(self._wanted)
        reader.name_series(series_name(os.path.basename(self.path)))
        assert self._source is not None
        self._note_csv(self._source.head())
        while data := self._source.read():
            yield from reader.feed(data)
            self.format, self.unread = reader.format, reader.unread
        yield from reader.close()
        self.format, self.unread = reader.format, reader.unread

    def _note_csv(self, head: bytes) -> None:
        line = head.partition(b"\n")[0].decode("utf-8", "replace")
        runs = dict.fromkeys(re.findall(r"(?:^|[,;\t\"])([^,;\t\"]{1,200}) - [^,;\t\"]{1,200}", line))
        if len(runs) > 1:
            first = next(iter(runs))
            self.notes.append(f"there are {len(runs)} runs in this export; only {first} is read")

    def _binary(self, kind: str) -> _Items:
        self.format = kind
        reader = EventReader() if kind == "tensorboard" else WandbReader()
        assert self._source is not None
        try:
            while data := self._source.read():
                yield from reader.feed(data)
            yield from reader.feed(b"")
        except Unparsable as exc:
            self.unread += 1
            self.notes.append(f"damaged from byte {reader.position} on, what follows cannot be read: {exc}")
        else:
            if reader.pending_bytes:
                self.notes.append(f"the last {reader.pending_bytes} bytes are half a record")
        self.unread += reader.damaged

    def _mlflow(self, kind: str) -> _Items:
        self.format = "mlflow"
        assert self._source is not None
        key, rest = os.path.basename(self.path), ""
        while data := self._source.read():
            text = rest + data.decode("utf-8", "replace")
            points, used = read_mlflow(key, text[-(1 << 20) :])
            yield from points
            rest = text[-(1 << 20) :].encode()[used:].decode("utf-8", "replace")
        points, _ = read_mlflow(key, rest + "\n")
        yield from points

    def _array(self, kind: str) -> _Items:
        self.format = kind
        assert self._source is not None
        reader = ArrayReader()
        records = Records(series_name(os.path.basename(self.path)))
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        while data := self._source.read():
            for element in reader.feed(decoder.decode(data)):
                if point := records.point(element):
                    yield point
        reader.close()
        self.unread += reader.unread + records.unread

    def _document(self, kind: str) -> _Items:
        assert self._source is not None
        pieces, size = [], 0
        while data := self._source.read():
            size += len(data)
            if size > DOCUMENT_CAP_BYTES:
                raise Unparsable(
                    f"{_shown(self.path)} is a JSON document over {DOCUMENT_CAP_BYTES >> 20} MiB, which "
                    "would have to be in memory as a whole; make JSON Lines of it with"
                    " jq -c '.log_history[]' FILE"
                )
            pieces.append(data)
        text = b"".join(pieces).decode("utf-8-sig", "replace")
        pieces.clear()
        value = json_value(text)
        name = series_name(os.path.basename(self.path))
        if value is None:
            yield from self._salvage(text, name)
            return
        self.format = document_shape(value) or kind
        for point in document_points(value, name):
            if point is None:
                self.unread += 1
            else:
                yield point

    def _salvage(self, text: str, name: str) -> _Items:
        """The records in the first array of objects of a document that is damaged or was cut off."""
        self.notes.append("the JSON is damaged or cut off; what could be read of its records is told")
        self.unread += 1
        self.format = "json array"
        match = re.search(r"\[\s*\{", text)
        reader, records = ArrayReader(), Records(name)
        for element in reader.feed(text[match.start() :] if match else ""):
            if point := records.point(element):
                yield point
        self.unread += reader.unread + records.unread

    def close(self) -> None:
        for part in self._parts:
            part.close()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def recognise(head: bytes) -> str:
    """What a file is by its first bytes, unpacked: "tensorboard", "wandb", "mlflow", "json array" (records
    one by one), "json" (to be read as a whole), else "text", of which LogReader tells more.
    """
    kind = binary_kind(head)
    if kind:
        return kind
    text = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    if text.startswith("["):
        return "json array" if _ARRAY.match(text[:4096]) else "text"
    if text.startswith("{"):
        return _object_kind(text)
    lines = [line for line in head[:4096].split(b"\n")[:-1] if line.strip()][:4]
    return "mlflow" if lines and all(map(_MLFLOW.match, lines)) else "text"


def _object_kind(text: str) -> str:
    """JSON Lines when one of the first lines is an object with numbers, else a document."""
    lines = text.split("\n")
    for line in lines[:5]:
        data = json_value(line.strip()) if line.strip().startswith("{") else None
        if isinstance(data, dict) and data:
            # one object with arrays or objects in it, and nothing after it, is a document
            alone = len([x for x in lines if x.strip()]) == 1
            return "json" if alone and document_shape(data) not in ("", "json record") else "text"
    if text.startswith("{'"):
        return "text"  # a Python dict: the Trainer's
    damaged = lines[0].rstrip()
    if len(lines) > 1 and len(damaged) > 8 and not damaged.endswith(("{", "[", ",", "}")):
        return "text"
    return "json"


def open_metrics(path: str, format: str | None = None) -> Metrics:
    """The metrics in `path`: a file, a folder of a run, or `-` for the standard input.

    `format` is one of `training_log.FORMATS` for a text log whose family cannot be told by itself. Raises
    Absent when there is nothing of that name, Unparsable when it is of no kind that can be read, ConfigError
    for a format that does not exist, Unobservable otherwise; each says what to try.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"there is no log format {format!r}; choose from {', '.join(sorted(FORMATS))}")
    if path == "-" or path == "/dev/stdin":
        return _opened(path, sys.stdin.buffer, format)
    try:
        if os.path.isdir(path):
            return _open_folder(path, format)
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise Unparsable(f"{path} is neither a file nor a folder nor a pipe")
        return _opened(path, _file(path), format)
    except FileNotFoundError as exc:
        raise Absent(
            f"there is no {path}; give a log or metrics file, a run's folder, or - to read from a pipe"
        ) from exc
    except OSError as exc:
        raise Unobservable(f"{path} cannot be read: {os.strerror(exc.errno or 0)}") from exc


def _opened(path: str, file: BinaryIO, format: str | None) -> Metrics:
    source = Bytes(_shown(path), file)
    try:
        head = source.head()
        if not head.strip():
            raise Unparsable(
                f"{_shown(path)} is empty; a run that has just begun may write its first line later"
            )
    except BaseException:  # Ctrl-C too, while a pipe is waited for: the file is closed, and all goes on up
        source.close()
        raise
    return Metrics(path, source, format)


def _file(path: str) -> BinaryIO:
    return open(path, "rb")


def _shown(path: str) -> str:
    return "the standard input" if path == "-" else path


#: What is looked for in a run's folder, the best first; all files of the first kind that is there.
_IN_FOLDERS = (
    "trainer_state.json", "trainer_log.jsonl", "metrics.csv", "metrics.jsonl", "metrics.json", "run-*.wandb",
    "*.tfevents.*", "metrics/*", "log_history.json", "history.json", "*.jsonl", "*.csv", "main.log",
    "files/output.log", "*.log", "*.out", "log.txt", "*.txt", "files/wandb-summary.json",
)  # fmt: skip
#: Those of which several are one run: each restart adds one, each metric has its own.
_SIDE_BY_SIDE = ("*.tfevents.*", "metrics/*")
_FOLDERS_AT_MOST = 2000
_DEPTH_AT_MOST = 4


def _open_folder(path: str, format: str | None) -> Metrics:
    for folder in _folders(path):
        for pattern in _IN_FOLDERS:
            found = [f for f in glob.glob(os.path.join(glob.escape(folder), pattern)) if os.path.isfile(f)]
            if pattern in _SIDE_BY_SIDE and found:
                return _side_by_side(path, folder, sorted(found), pattern == "metrics/*")
            if found:
                return _newest_of(path, found, format)
    raise Absent(
        f"{path} is a folder without a metrics file that is known by its name "
        f"({', '.join(_IN_FOLDERS[:8])}, *.jsonl, *.csv, *.log, *.out); give the file itself"
    )


def _folders(path: str) -> Iterator[str]:
    """The folder and those in it, level by level, the newest last written first."""
    level = [path]
    seen = 0
    for _ in range(_DEPTH_AT_MOST):
        below: list[tuple[float, str]] = []
        for folder in level:
            seen += 1
            if seen > _FOLDERS_AT_MOST:
                return
            yield folder
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        below.append((-entry.stat(follow_symlinks=False).st_mtime, entry.path))
        level = [name for _, name in sorted(below)]


def _newest_of(path: str, found: list[str], format: str | None) -> Metrics:
    chosen = max(found, key=lambda f: (os.stat(f).st_mtime, f))
    metrics = _opened(chosen, _file(chosen), format)
    others = f"; it has {len(found) - 1} more of its kind" if len(found) > 1 else ""
    metrics.notes.append(f"of {path} the file {os.path.relpath(chosen, path)} is read{others}")
    return metrics


def _side_by_side(path: str, folder: str, found: list[str], mlflow: bool) -> Metrics:
    metrics = Metrics(path, None)
    metrics.format = "mlflow" if mlflow else "tensorboard"
    if len(found) > _FILES_AT_MOST:
        metrics.notes.append(f"{folder} has {len(found)} files, of which the last {_FILES_AT_MOST} are read")
    for name in found[-_FILES_AT_MOST:]:
        try:
            part = Metrics(name, Bytes(name, _file(name)))
        except OSError as exc:
            metrics.notes.append(f"{name} cannot be read: {os.strerror(exc.errno or 0)}")
            continue
        metrics._parts.append(part)
    metrics._merge = _by_time
    metrics.notes.append(f"{len(metrics._parts)} files in {folder} are read as one run")
    return metrics


def _by_time(parts: list[Metrics]) -> _Items:
    """The records of several files of a run in the order in which they were written."""

    def timed(part: Metrics, number: int) -> Iterator[tuple[float, int, int, Point | Event]]:
        last = 0.0
        for i, item in enumerate(part._items()):
            last = max(last, item.time or 0.0)
            yield last, number, i, item

    for *_, item in heapq.merge(
        *(timed(part, n) for n, part in enumerate(parts)), key=lambda entry: entry[:3]
    ):
        yield item
