"""Training progress and metrics from the logs that frameworks write, whichever it is, as they grow.

    reader = LogReader()
    reader.feed(b"iter 100: loss 3.1234, time 250.11ms, mfu 35.20%\\n")     [Point(step=100, ...)]
    follow(host, path, memory)                 what is new in a file since the last look

`python -m clustertools.sources.training_log FILE --json` prints every record, one object a line.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from clustertools.errors import Absent, ConfigError
from clustertools.host import FileStat, Host, PassingHost
from clustertools.sources import training_formats as formats
from clustertools.sources import training_formats_epochs
from clustertools.sources.training_events import event_of
from clustertools.sources.training_progress import ProgressTracker
from clustertools.sources.training_records import csv_row, json_lines, take_header
from clustertools.sources.training_values import Event, Line, Point, StepsBack, from_json, to_json

__all__ = [
    "FORMATS", "Event", "Follow", "LogReader", "Point", "ProgressTracker", "follow", "from_json", "to_json",
]  # fmt: skip

#: A longer line is cut here: it is a dump of something, and it must not fill our memory.
LINE_CAP_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18
#: Bytes of one `follow`; the rest is read on the next pass.
READ_CAP_BYTES = 8 << 20
#: Of a file never seen before, this much from its end: weeks of old steps tell nothing about now.
FIRST_LOOK_BYTES = 4 << 20
#: The first bytes of a file, kept to tell that it was written anew in place.
_HEAD_BYTES = 256
_HEADER_CAP_BYTES = 1 << 16
#: Fields of one OLMo record, and lines of others that may come between them.
_OPEN_LINES_AT_MOST = 1000
_OPEN_AGE_AT_MOST = 200
_STATE_VERSION = 1
#: So many answers are kept for those who ask the same: no more, the first look at a log tells megabytes.
_LATEST = 4

#: A line that no pattern can match has none of these: found with memchr, so such lines cost next to nothing.
_ANCHORS = (
    b"step", b"Step", b"STEP", b"teration", b"loss", b"Loss", b"LOSS", b"%|", b"heckpoint", b'{"', b"{'",
    b"raining", b"rainer.fit", b"esum", b"valuati", b"alidation",
    b" trl:", b" tel:", b"[batch=", b" train ", b" val ",
)  # fmt: skip

FAMILIES = {**formats.FAMILIES, **training_formats_epochs.FAMILIES}
#: What may be asked for by name, and the families that it stands for.
FORMATS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in FAMILIES},
    "hf_trainer": ("hf_trainer", "progress_bar"),
    "lightning": ("progress_bar",),
    "megatron_deepspeed": ("megatron", "deepspeed"),
    "olmo": ("olmo",),
    "olmo_core": ("olmo",),
    "jsonl": ("jsonl",),
    "llamafactory": ("jsonl",),
    "csv": ("csv",),
    "generic": ("generic",),
}
# a line of a surer family renames the format; others write every step of theirs beside it
_SURENESS = {"generic": 0, "progress_bar": 1, "deepspeed": 2}
_SURE = 3


class LogReader:
    """Turns the bytes of a log into points and events, however they are cut into pieces.

    `format` names the family once a line of it was seen; give it to read only that one. A reader made from
    `state()` goes on as the first would have. `cut_lines` counts lines over 1 MiB; their
    rest was lost.
    """

    def __init__(self, format: str | None = None) -> None:
        if format is not None and format not in FORMATS:
            raise ConfigError(f"there is no log format {format!r}; choose from {', '.join(sorted(FORMATS))}")
        self._wanted = format
        self._matchers = [(f, m) for f, m in FAMILIES.items() if self._may(f)]
        self.format: str | None = format
        self.cut_lines = 0
        self.position = 0
        self._begun = False
        self._drop_line = False
        self._pending = bytearray()
        self._pending_start = 0
        self._pending_bytes = 0
        self._memory = formats.Memory()
        self._open: dict[str, dict[str, Any]] = {}
        self._steps = StepsBack()
        self._told: list[list[Any]] = []

    @property
    def unread(self) -> int:
        """Lines that look like records and could not be read, whole or in part."""
        return self.cut_lines + self._memory.unread

    def name_series(self, name: str) -> None:
        """What a series is called in a file that does not name it."""
        self._memory.series = name

    def feed(self, data: str | bytes, at: int | None = None) -> list[Point | Event]:
        """The records that `data` completes. `at` is its place in the file (bytes may be decoded lossily)."""
        if isinstance(data, str):
            data = data.encode("utf-8", "replace")
        if at is not None:
            self.position = at
        found: list[Point | Event] = []
        for begin in range(0, len(data), _BLOCK_BYTES):
            # a carriage return begins the next state of a progress bar: a line of its own
            self._block(data[begin : begin + _BLOCK_BYTES].replace(b"\r", b"\n"), found)
        return found

    def settle(self) -> list[Point | Event]:
        """End records of several lines: their writer has been quiet since, so they are complete."""
        found: list[Point | Event] = []
        for key in list(self._open):
            self._close_record(key, found)
        return found

    def close(self) -> list[Point | Event]:
        """The file will not grow: read the last line, even one without an end."""
        found: list[Point | Event] = []
        self._end_pending(found)
        return found + self.settle()

    def begin_inside(self, offset: int, first_line: str = "") -> None:
        """Start in the middle of a file and of a line, which is dropped; `first_line` may be a CSV header."""
        self.position = offset
        self._begun = True
        self._drop_line = True
        self._first_line(first_line.rstrip("\r\n"))

    def begin_anew(self) -> None:
        """The file was replaced: its next byte is the first of a line. What is known of the run stays."""
        self.position = self._pending_bytes = self._pending_start = 0
        self._pending.clear()
        self._drop_line = False
        self._begun = self.format != "csv" and self._begun
        if self.format == "csv":
            self._memory.columns, self._memory.separator = [], ","
            self.format = self._wanted

    def state(self) -> dict[str, Any]:
        """JSON-ready; `from_state` makes a reader of it that continues here."""
        return {
            "version": _STATE_VERSION,
            "wanted": self._wanted,
            "format": self.format,
            "cut_lines": self.cut_lines,
            "position": self.position,
            "begun": self._begun,
            "drop_line": self._drop_line,
            "pending": base64.b64encode(self._pending).decode(),
            "pending_start": self._pending_start,
            "pending_bytes": self._pending_bytes,
            "memory": {name: _copied(getattr(self._memory, name)) for name in formats.Memory.__slots__},
            "open": {k: dict(v, lines=list(v["lines"])) for k, v in self._open.items()},
            "steps": self._steps.state(),
            "told": [list(t) for t in self._told],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LogReader:
        """Raises KeyError, TypeError or ValueError when `state` is none that this version wrote."""
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"a log reader's state of version {state['version']}")
        reader = cls(state["wanted"])
        reader.format = state["format"]
        reader.cut_lines, reader.position = state["cut_lines"], state["position"]
        reader._begun, reader._drop_line = state["begun"], state["drop_line"]
        reader._pending = bytearray(base64.b64decode(state["pending"]))
        reader._pending_start, reader._pending_bytes = state["pending_start"], state["pending_bytes"]
        reader._memory = formats.Memory(**{k: _copied(v) for k, v in state["memory"].items()})
        reader._open = {k: dict(v, lines=list(v["lines"])) for k, v in state["open"].items()}
        reader._steps = StepsBack(**state["steps"])
        reader._told = [list(t) for t in state["told"]]
        return reader

    def _block(self, block: bytes, found: list[Point | Event]) -> None:
        base, begin = self.position, 0
        self.position += len(block)
        end = block.rfind(b"\n")
        if end < 0:
            self._keep(block, base)
            return
        if self._pending_bytes or self._drop_line:
            first = block.find(b"\n")
            self._keep(block[:first], base)
            self._end_pending(found)
            begin = first + 1
        self._scan(block, begin, end + 1, base, found)
        if end + 1 < len(block):
            self._keep(block[end + 1 :], base + end + 1)

    def _keep(self, piece: bytes, start: int) -> None:
        if not self._pending_bytes:
            self._pending_start = start
        self._pending_bytes += len(piece)
        self._pending += piece[: max(0, LINE_CAP_BYTES - len(self._pending))]

    def _end_pending(self, found: list[Point | Event]) -> None:
        whole, start = bytes(self._pending), self._pending_start
        self.cut_lines += self._pending_bytes > len(whole)
        self._pending.clear()
        self._pending_bytes = 0
        if self._drop_line:
            self._drop_line = False
        elif whole and (self._every_line() or any(anchor in whole for anchor in _ANCHORS)):
            self._line(whole, start, found)

    def _every_line(self) -> bool:
        return not self._begun or bool(self._open) or self.format == "csv"

    def _scan(self, block: bytes, begin: int, end: int, base: int, found: list[Point | Event]) -> None:
        """Read the whole lines of `block[begin:end]`, skipping over all that have no anchor."""
        hits = [-1] * len(_ANCHORS)
        while begin < end:
            if self._every_line():
                stop = block.find(b"\n", begin, end)
                if stop > begin:
                    self._line(block[begin:stop], base + begin, found)
                begin = stop + 1
                continue
            for i, hit in enumerate(hits):
                if hit < begin:
                    hit = block.find(_ANCHORS[i], begin, end)
                    hits[i] = hit if hit >= 0 else end
            hit = min(hits)
            if hit >= end:
                return
            start = max(begin, block.rfind(b"\n", begin, hit) + 1)
            stop = block.find(b"\n", hit, end)
            self._line(block[start:stop], base + start, found)
            begin = stop + 1

    def _first_line(self, text: str) -> None:
        self._begun = True
        if self._wanted in (None, "csv") and take_header(text, self._memory):
            self.format = "csv"

    def _line(self, raw: bytes, offset: int, found: list[Point | Event]) -> None:
        text = raw.decode("utf-8", "replace")
        if not self._begun and text.strip():
            self._first_line(text.removeprefix("\ufeff"))
        if self._memory.columns:
            self._tell("csv", csv_row(Line(text, offset), self._memory), found)
            return
        line = Line.of(text, offset)
        if not line.text.strip():
            return
        if self._may("jsonl") and (answer := self._json(line, found)) is None:
            return
        elif self._may("jsonl") and isinstance(answer, Line):
            line = answer
        line.text = line.text[: formats.TEXT_CAP]
        self._text(line, found)

    def _json(self, line: Line, found: list[Point | Event]) -> Line | None:
        """None when the line was a JSON object; else the line to read as text, perhaps one inside it."""
        stripped = line.text.lstrip()
        if stripped.startswith("{'"):
            return line  # a Python dict: the Trainer's
        if not stripped.startswith("{") and not ('{"' in stripped[:200] and stripped.endswith("}")):
            return line
        if " | {" in stripped[:400]:
            return line  # metaseq: the tag before the object tells what it is
        answer = json_lines(line, self._memory)
        if answer is None:
            return line
        family, records = answer
        if isinstance(records, Line):
            return records
        self._tell(family, records, found)
        return None

    def _may(self, family: str) -> bool:
        return self._wanted is None or family in FORMATS[self._wanted]

    def _text(self, line: Line, found: list[Point | Event]) -> None:
        if self._may("olmo") and self._olmo(line, found):
            return
        for family, matcher in self._matchers:
            if (records := matcher(line, self._memory)) is not None:
                self._tell(family, records, found)
                return
        if event := event_of(line):
            self._tell("", [event], found)
        elif self._may("generic") and self.format in (None, "generic"):
            records = formats.generic(line, self._memory)
            if records:
                self._tell("generic", records, found)

    def _olmo(self, line: Line, found: list[Point | Event]) -> bool:
        """Whether the line belongs to a record of several lines. Each rank may have one open."""
        key = str(line.rank)
        record = self._open.get(key)
        if record is not None and formats.OLMO_FIELD.match(line.text):
            if len(record["lines"]) < _OPEN_LINES_AT_MOST:
                record["lines"].append(line.text)
            return True
        if record is not None:
            self._close_record(key, found)
        for other in list(self._open):
            self._open[other]["age"] += 1
            if self._open[other]["age"] > _OPEN_AGE_AT_MOST:
                self._close_record(other, found)
        if ("[step=" not in line.text and "[batch=" not in line.text) or not formats.OLMO_HEADER.search(
            line.text
        ):
            return False
        self._open[key] = {
            "lines": [line.text], "offset": line.offset_bytes, "rank": line.rank, "time": line.time, "age": 0,
        }  # fmt: skip
        return True

    def _close_record(self, key: str, found: list[Point | Event]) -> None:
        record = self._open.pop(key)
        header = Line(record["lines"][0], record["offset"], record["rank"], record["time"])
        self._tell("olmo", [formats.olmo(record["lines"], header)], found)

    def _tell(self, family: str, records: Iterable[Point | Event], found: list[Point | Event]) -> None:
        """Hand records on, with a marker before a step that went back and without an event said twice."""
        for record in records:
            if isinstance(record, Event):
                # every rank may say that it saves: one event for a step is enough
                if [record.kind, record.step] not in self._told:
                    self._told.append([record.kind, record.step])
                    found.append(record)
                continue
            if not record.evaluation:
                # home-made logs borrow a framework's words for evaluations; their steps are still theirs
                self._name(family)
            if self._repeats(family, record):
                continue
            if not record.evaluation:
                self._told.clear()
                if record.step is not None:
                    self._mark(family, record, found)
            found.append(record)

    def _mark(self, family: str, point: Point, found: list[Point | Event]) -> None:
        key = f"{family}:{'' if point.rank is None else point.rank}"
        assert point.step is not None
        before = self._steps.previous(key, point.step)
        if before is not None:
            text = f"the step went back from {before} to {point.step}"
            found.append(
                Event("restart_marker", point.step, text, "", point.time, point.rank, point.offset_bytes)
            )

    def _repeats(self, family: str, point: Point) -> bool:
        """DeepSpeed under another framework tells each step a second time, with other digits."""
        return (
            family == "deepspeed"
            and self._wanted is None
            and self.format is not None
            and _SURENESS.get(self.format, _SURE) > _SURENESS["deepspeed"]
            and point.step is not None
        )

    def _name(self, family: str) -> None:
        if self._wanted is None and family:
            known = -1 if self.format is None else _SURENESS.get(self.format, _SURE)
            if _SURENESS.get(family, _SURE) > known:
                self.format = family


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Follow:
    """What one look at a growing file gave. Hand `memory` to the next look.

    `rotated`: another file has its name now; `truncated`: it was cut or written anew in place; both were read
    from their start, `note` says so. `behind_bytes`: not read yet, because one look reads 8 MiB at most.
    """

    items: tuple[Point | Event, ...]
    memory: Mapping[str, Any]
    size_bytes: int
    mtime: float
    format: str | None = None
    rotated: bool = False
    truncated: bool = False
    grew: bool = False
    behind_bytes: int = 0
    note: str = ""

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(item for item in self.items if isinstance(item, Point))

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(item for item in self.items if isinstance(item, Event))


def follow(host: Host, path: str, memory: Mapping[str, Any], format: str | None = None) -> Follow:
    """What is new in the log at `path` since the look that gave `memory` ({} at first).

    Raises Absent when there is no such file, Unobservable when it cannot be read. Offsets are counted in
    bytes of the file, never in characters: what is not UTF-8 becomes U+FFFD on the way.
    """
    info = host.stat(path)
    if _is_unchanged(info, memory, format):
        return Follow((), memory, info.size_bytes, info.mtime, memory["reader"]["format"])
    latest = _latest_of(host)
    for place, known, before, found in latest:
        if place == (path, format) and known == info and before == memory:
            return found
    found = _follow(host, path, info, memory, format)
    latest.append(((path, format), info, memory, found))
    return found


_Latest = deque[tuple[tuple[str, str | None], FileStat, Mapping[str, Any], Follow]]
_latest: WeakKeyDictionary[Host, _Latest] = WeakKeyDictionary()


def _latest_of(host: Host) -> _Latest:
    """The last few answers of this machine: several checks of a run follow the same log in turn."""
    while isinstance(host, PassingHost):
        host = host.host
    return _latest.setdefault(host, deque(maxlen=_LATEST))


def _follow(host: Host, path: str, info: FileStat, memory: Mapping[str, Any], format: str | None) -> Follow:
    reader, offset = _remembered(memory, format)
    if reader is None:
        return _first_look(host, path, info, format)
    if info.inode == memory["inode"] and (info.size_bytes, info.mtime) == (memory["size"], memory["mtime"]):
        if offset >= info.size_bytes:
            found = reader.settle()
            return _seen(reader, found, info, offset, memory["head"], grew=False)
        return _go_on(host, path, info, reader, offset, memory["head"], [])
    rotated = info.inode != memory["inode"]
    truncated = not rotated and (info.size_bytes < offset or not _same_head(host, path, memory["head"]))
    if not rotated and not truncated:
        return _go_on(host, path, info, reader, offset, memory["head"], [])
    found = _rest_of_rotated(host, path, memory, reader, offset) if rotated else []
    found += reader.close()
    reader.begin_anew()
    note = f"{path} was {'replaced' if rotated else 'truncated or written anew'}; read from its start"
    return _go_on(host, path, info, reader, 0, [], found, rotated=rotated, truncated=truncated, note=note)


def _is_unchanged(info: FileStat, memory: Mapping[str, Any], format: str | None) -> bool:
    """Whether nothing can be new: most looks at most logs find this, so it is asked before all else."""
    try:
        reader = memory["reader"]
        was = memory["inode"], memory["size"], memory["mtime"], memory["offset"]
        known = reader["version"] == _STATE_VERSION and reader["wanted"] == format and not reader["open"]
    except (KeyError, TypeError):
        return False
    return known and was == (info.inode, info.size_bytes, info.mtime, info.size_bytes)


def _remembered(memory: Mapping[str, Any], format: str | None) -> tuple[LogReader | None, int]:
    if not memory:
        return None, 0
    try:
        reader = LogReader.from_state(memory["reader"])
        known = int(memory["inode"]), float(memory["mtime"]), int(memory["size"]), list(memory["head"])
    except (KeyError, TypeError, ValueError):
        # written by another version: look as if for the first time, the newest part is read again
        return None, 0
    return (reader, int(memory["offset"])) if known and reader._wanted == format else (None, 0)


def _first_look(host: Host, path: str, info: FileStat, format: str | None) -> Follow:
    reader, offset, note = LogReader(format), 0, ""
    if info.size_bytes > FIRST_LOOK_BYTES:
        offset = info.size_bytes - FIRST_LOOK_BYTES
        header, newline, _ = host.read(path, 0, _HEADER_CAP_BYTES).partition("\n")
        reader.begin_inside(offset, header if newline else "")
        note = f"{path} was {info.size_bytes} bytes long when first seen; read from byte {offset}"
    return _go_on(host, path, info, reader, offset, [], [], note=note)


def _head(host: Host, path: str, length: int) -> list[Any]:
    return [length, host.read(path, 0, length)] if length else []


def _same_head(host: Host, path: str, head: list[Any]) -> bool:
    return not head or host.read(path, 0, int(head[0])) == head[1]


def _rest_of_rotated(
    host: Host, path: str, memory: Mapping[str, Any], reader: LogReader, offset: int
) -> list[Point | Event]:
    """The last lines of the file that was renamed, if it is `path`.1, as logrotate does it."""
    try:
        info = host.stat(path + ".1")
        if info.inode != memory["inode"] or info.size_bytes <= offset:
            return []
        return reader.feed(
            host.read(path + ".1", offset, min(READ_CAP_BYTES, info.size_bytes - offset)), offset
        )
    except Absent:
        return []


def _go_on(
    host: Host, path: str, info: FileStat, reader: LogReader, offset: int, head: list[Any],
    found: list[Point | Event], **told: Any,
) -> Follow:  # fmt: skip
    length = max(0, min(READ_CAP_BYTES, info.size_bytes - offset))
    if length:
        found = found + reader.feed(host.read(path, offset, length), offset)
    wanted = min(_HEAD_BYTES, info.size_bytes)
    if not head or int(head[0]) < wanted:
        head = _head(host, path, wanted)
    return _seen(reader, found, info, offset + length, head, grew=length > 0, **told)


def _seen(
    reader: LogReader, found: list[Point | Event], info: FileStat, offset: int, head: list[Any],
    *, grew: bool, **told: Any,
) -> Follow:  # fmt: skip
    memory = {
        "inode": info.inode, "size": info.size_bytes, "mtime": info.mtime, "offset": offset, "head": head,
        "reader": reader.state(),
    }  # fmt: skip
    behind = max(0, info.size_bytes - offset)
    return Follow(
        tuple(found),
        memory,
        info.size_bytes,
        info.mtime,
        reader.format,
        grew=grew,
        behind_bytes=behind,
        **told,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the records of a file; the recognised format and the number of records go to stderr."""
    parser = argparse.ArgumentParser(prog="python -m clustertools.sources.training_log", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--format", choices=sorted(FORMATS))
    options = parser.parse_args(arguments)
    reader, count = LogReader(options.format), 0
    with open(options.file, "rb") as file:
        while True:
            data = file.read(READ_CAP_BYTES)
            for item in reader.feed(data) if data else reader.close():
                count += 1
                print(json.dumps(to_json(item)) if options.json else _sentence(item))
            if not data:
                break
    print(f"format {reader.format or 'not recognised'}, {count} records", file=sys.stderr)
    return 0


def _sentence(item: Point | Event) -> str:
    if isinstance(item, Event):
        return f"{'' if item.step is None else item.step:>10}  {item.kind}: {item.text}"
    values = "  ".join(f"{k}={v:.6g}" for k, v in item.values.items())
    lost = f"  missing: {', '.join(item.missing)}" if item.missing else ""
    return f"{'' if item.step is None else item.step:>10}  {values}{lost}"


if __name__ == "__main__":
    raise SystemExit(main())
