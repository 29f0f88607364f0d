"""Failure lines in the logs of training jobs, as they grow: what they say, when, and whom they are from.

    look = read_failures(host, "/scratch/train.log", {}, now=host.now())
    look.lines                  FailureLine(signature="GpuMemoryUncorrectable", rank=5, node="n3", ...)
    read_failures(host, path, look.memory, now=...)       only what is new

Which lines those are is in `catalog/failures.yaml`. Failures that the run trained on after are dropped: a
program may print an exception that it handles.
"""

from __future__ import annotations

import base64
import calendar
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clustertools.catalog.failures import KERNEL, FailureLine, Signature, anchors, matched
from clustertools.errors import Absent
from clustertools.host import FileStat, Host
from clustertools.model import from_data, to_data
from clustertools.sources.training_log import LogReader
from clustertools.sources.training_values import Line, Point
from clustertools.text import plain

#: A longer line is cut here: what a signature matches stands near its beginning.
LINE_CAP_BYTES = 1 << 16
_BLOCK_BYTES = 4 << 20
#: Bytes of one `read_failures`; the rest is read at the next look.
READ_CAP_BYTES = 64 << 20
#: Kept of one log: one line of each signature, rank and node, and so many of one signature.
LINES_AT_MOST = 2000
LINES_OF_ONE_AT_MOST = 1024
TEXT_CHARACTERS = 300
#: So many new steps after a failure say that the run went on: one rank may finish a step or two alone.
STEPS_AFTER = 3
#: Clocks of nodes differ, and stamps are cut to the second.
_CLOCKS_SECONDS = 2.0
_HEAD_BYTES = 256
#: Tracebacks that are remembered as begun from one look to the next.
_FRAMES_AT_MOST = 16
_STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class FailureLook:
    """What a look at a log gave. `lines` are all that are known so far, `memory` is for the next look.

    `anew`: the file was replaced or cut since. `behind_bytes` are not read yet.
    """

    lines: tuple[FailureLine, ...]
    memory: Mapping[str, Any]
    anew: bool = False
    behind_bytes: int = 0


def read_failures(
    host: Host,
    path: str,
    memory: Mapping[str, Any],
    *,
    now: float,
    nodes: Sequence[str] = (),
    since: float = 0.0,
    mixed: bool = False,
) -> FailureLook:
    """The failure lines in the log at `path`, going on from the look that gave `memory` ({} at first).

    `nodes` are the job's: with them a line's prefix is known for a node's name. `since`: when the attempt
    began; what is told with an earlier time, and all that stands before it, is of another one. `mixed`: what
    is new may hold the end of the attempt before, so that of lines without a time only those count that stand
    after one with a time. Raises Absent when there is no such file, Unobservable when it cannot be read.
    """
    info = host.stat(path)
    reader, offset = _remembered(memory, path, nodes)
    seen = [info.inode, info.size_bytes, info.mtime]
    if reader is not None and memory.get("seen") == seen and offset >= info.size_bytes:
        return FailureLook(tuple(reader.lines()), memory)
    anew = False
    if reader is not None:
        anew = (
            info.inode != memory["seen"][0] or info.size_bytes < offset or not _same_head(host, path, memory)
        )
    if reader is None or anew:
        kept = reader.kept if reader is not None else {}
        reader, offset = FailureReader(path, nodes), max(0, info.size_bytes - READ_CAP_BYTES)
        reader.kept = dict(kept)
        reader.position = offset
        reader.drop_line = offset > 0
    reader.since, reader.sure = since, anew or not mixed
    if info.size_bytes > offset:
        length = min(READ_CAP_BYTES, info.size_bytes - offset)
        for place in range(offset, offset + length, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, offset + length - place)
            reader.feed(host.read(path, place, size).encode("utf-8", "replace"), now=now, at=place)
        offset += length
    return FailureLook(
        tuple(reader.lines()), _memory(host, path, info, reader, offset, memory, anew), anew,
        max(0, info.size_bytes - offset),
    )  # fmt: skip


def _remembered(
    memory: Mapping[str, Any], path: str, nodes: Sequence[str]
) -> tuple[FailureReader | None, int]:
    try:
        return FailureReader.from_state(memory["reader"], path, nodes), int(memory["offset"])
    except (KeyError, TypeError, ValueError):
        # the first look, or the memory of another version: the newest part is read (again)
        return None, 0


def _same_head(host: Host, path: str, memory: Mapping[str, Any]) -> bool:
    """Whether the file still begins as it did: one that was written anew in place does not."""
    length, text = memory.get("head") or (0, "")
    return not length or host.read(path, 0, int(length)) == text


def _memory(
    host: Host,
    path: str,
    info: FileStat,
    reader: FailureReader,
    offset: int,
    old: Mapping[str, Any],
    anew: bool,
) -> dict[str, Any]:
    head = [] if anew else list(old.get("head") or ())
    wanted = min(_HEAD_BYTES, info.size_bytes)
    if wanted and (not head or int(head[0]) < wanted):
        head = [wanted, host.read(path, 0, wanted)]
    seen = [info.inode, info.size_bytes, info.mtime]
    return {"seen": seen, "offset": offset, "head": head, "reader": reader.state()}


@dataclass
class _Block:
    """Where a rank's, or torchrun's, lines belong together: its last frame, the failure that is told."""

    frame: str = ""
    own_frame: str = ""
    host: str = ""
    rank: int | None = None
    time: float | None = None


_Key = tuple[str, "int | None", str, str]


@dataclass
class FailureReader:
    """Turns the bytes of one log into failure lines, however they are cut into pieces."""

    path: str
    nodes: Sequence[str] = ()
    position: int = 0
    drop_line: bool = False
    since: float = 0.0
    sure: bool = True
    kept: dict[_Key, FailureLine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pending = bytearray()
        self._pending_start = 0
        self._frames: dict[str, _Block] = {}
        self._told: _Block | None = None  # the entry of torchrun's list of failures that is being read
        self._steps: LogReader | None = None
        self._after: list[tuple[int, int]] = []
        self._now = 0.0
        self._words = tuple(anchor.encode() for anchor in (*anchors(), *_CONTEXT))

    def lines(self) -> list[FailureLine]:
        """Every failure that the run did not train on after, in the order of the file."""
        return sorted(self.kept.values(), key=lambda line: line.order)

    def feed(self, data: bytes, *, now: float, at: int | None = None) -> None:
        """Take in what was appended. `at` is its place in the file (bytes may be decoded lossily)."""
        self._now = now
        if at is not None:
            self.position = at
        began, had = self.position, bool(self.kept)
        for begin in range(0, len(data), _BLOCK_BYTES):
            self._block(data[begin : begin + _BLOCK_BYTES].replace(b"\r", b"\n"))
        if self.kept:
            self._follow_steps(data, began, had)

    def state(self) -> dict[str, Any]:
        """JSON-ready; `from_state` goes on from it."""
        return {
            "version": _STATE_VERSION, "position": self.position, "drop_line": self.drop_line,
            "kept": [to_data(line) for line in self.lines()],
            "pending": base64.b64encode(self._pending).decode(), "pending_start": self._pending_start,
            "after": [list(pair) for pair in self._after],
            "told": asdict(self._told) if self._told else None,
            "frames": {key: asdict(block) for key, block in list(self._frames.items())[-_FRAMES_AT_MOST:]},
            "steps": self._steps.state() if self._steps else None,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], path: str, nodes: Sequence[str]) -> FailureReader:
        """Raises KeyError, TypeError or ValueError when `state` is none that this version wrote."""
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"a failure reader's state of version {state['version']}")
        reader = cls(path, nodes, int(state["position"]), bool(state["drop_line"]))
        for data in state["kept"]:
            line = from_data(FailureLine, data)
            reader.kept[_key(line)] = line
        reader._pending = bytearray(base64.b64decode(state["pending"]))
        reader._pending_start = int(state["pending_start"])
        reader._after = [(int(place), int(step)) for place, step in state["after"]]
        reader._steps = LogReader.from_state(state["steps"]) if state["steps"] else None
        reader._told = _Block(**state["told"]) if state["told"] else None
        reader._frames = {key: _Block(**block) for key, block in state["frames"].items()}
        return reader

    # bytes into lines

    def _block(self, block: bytes) -> None:
        base = self.position
        self.position += len(block)
        end = block.rfind(b"\n")
        if end < 0:
            self._keep(block, base)
            return
        begin = 0
        if self._pending or self.drop_line:
            first = block.find(b"\n")
            self._keep(block[:first], base)
            whole, start = bytes(self._pending), self._pending_start
            self._pending.clear()
            if self.drop_line:
                self.drop_line = False
            else:
                self._scan(whole + b"\n", start)
            begin = first + 1
        self._scan(block[begin : end + 1], base + begin)
        if end + 1 < len(block):
            self._keep(block[end + 1 :], base + end + 1)

    def _keep(self, piece: bytes, start: int) -> None:
        if not self._pending:
            self._pending_start = start
        self._pending += piece[: max(0, LINE_CAP_BYTES - len(self._pending))]

    def _scan(self, lines: bytes, base: int) -> None:
        """Look at the lines that have an anchor; all others cost next to nothing."""
        end = len(lines)
        begin = 0
        hits = {word: lines.find(word) for word in self._words}
        hits = {word: place for word, place in hits.items() if place >= 0}
        while hits:
            hit = min(hits.values())
            start = max(begin, lines.rfind(b"\n", 0, hit) + 1)
            stop = lines.find(b"\n", hit)
            stop = end if stop < 0 else stop
            self._line(lines[start : min(stop, start + LINE_CAP_BYTES)], base + start)
            begin = stop
            for word in [word for word, place in hits.items() if place < stop]:
                place = lines.find(word, stop)
                if place < 0:
                    del hits[word]
                else:
                    hits[word] = place

    # one line

    def _line(self, raw: bytes, place: int) -> None:
        text = raw[:LINE_CAP_BYTES].decode("utf-8", "replace")
        line = Line.of(text, place)
        node, body = self._node(line.text.lstrip())
        rank = line.rank
        if len(self.nodes) > 1 and _LOCAL_RANK.match(text):
            rank = None  # it counts from 0 on each node
        if match := _RANK.search(text[:300]):
            rank = int(match["rank"] or match["named"])
        key = f"{node}/{rank}"
        if self._context(body, key) or (key in self._frames and line.text.startswith("    ")):
            return  # in a traceback what is indented is source text
        found = matched(body)
        if found is None:
            return
        row, match_ = found
        at = _time(text[:300], self._now)
        self._tell(row, match_, body, place, at, rank, node)

    def _node(self, body: str) -> tuple[str, str]:
        """The node that the line is from, by its prefix or by the words of Slurm and NCCL, and the rest."""
        # "n3: text" pdsh, "n3:1234:1300 [0] NCCL WARN" NCCL
        if (match := _NODE_PREFIX.match(body)) and (match["nccl"] or match["node"] in self.nodes):
            return _short(match["node"]), body if match["nccl"] else body[match.end() :].lstrip()
        # "srun: error: n2: task 1: Killed", "slurmstepd-n2: error: ...", "*** STEP 4711.0 ON n2 CANCELLED"
        if match := _SLURM_NODE.search(body[:300]):
            name = match["task"] or match["daemon"] or match["on"]
            return ("" if "[" in name else name), body
        return "", body

    def _context(self, body: str, key: str) -> bool:
        """Take in a line that tells of others: a frame of a traceback, an entry of torchrun's list."""
        # File "/home/u/train.py", line 42, in main
        if match := _FRAME.match(body):
            frame = self._frames.setdefault(key, _Block())
            frame.frame = f"{_file(match['file'])}, line {match['line']}, in {match['function']}"
            if not _LIBRARY.search(match["file"]):
                frame.own_frame = frame.frame
            return True
        if body.startswith("Traceback (most recent call last)"):
            if len(self._frames) >= LINES_OF_ONE_AT_MOST:
                self._frames.clear()
            self._frames[key] = _Block()
            return True
        if body.startswith(("Root Cause (first observed failure)", "Failures:")):
            self._told = _Block()
            return True
        if body.startswith("======"):
            self._told = None
            return True
        #   time      : 2026-11-21_19:48:26        host, rank and exitcode follow, a line each
        if self._told is not None and (match := _ENTRY.match(body)):
            name, value = match["name"], match["value"].strip()
            if name == "time":
                self._told = _Block(time=_time(value, self._now))
            elif name == "host":
                self._told.host = "" if value.startswith("localhost") else _short(value)
            elif value.split(" ")[0].isdigit():
                self._told.rank = int(value.split(" ")[0])
            return True
        return False

    def _tell(
        self,
        row: Signature,
        match: re.Match[str],
        body: str,
        place: int,
        at: float | None,
        rank: int | None,
        node: str,
    ) -> None:
        told, frame = self._told, self._frames.pop(f"{node}/{rank}", None)
        if told is not None:
            at, rank = (told.time if at is None else at), (told.rank if rank is None else rank)
            node = node or told.host
        elif rank is None and len(self.nodes) <= 1 and (local := _LOCAL.search(body)):
            rank = int(local["rank"])  # torchrun's line of one node: its ranks are those of the run
        if at is not None and at < self.since - _CLOCKS_SECONDS:
            self.kept.clear()
            self.sure = True  # what comes after the end of another attempt is of this one
            return
        self.sure = self.sure or at is not None
        if not self.sure:
            return
        text = plain(body, TEXT_CHARACTERS)
        if frame is not None and (where := _where(frame)):
            text = f"{plain(body, TEXT_CHARACTERS - 100)} ({where})"
        named = match.groupdict()
        for about in _names(named.get("about") or ""):
            line = FailureLine(
                row.name, row.role, row.advice, text, self.path, place, at, rank, node, about
            )  # fmt: skip
            if _key(line) in self.kept or len(self.kept) >= LINES_AT_MOST:
                continue
            if sum(key[0] == row.name for key in self.kept) < LINES_OF_ONE_AT_MOST:
                self.kept[_key(line)] = line

    # what the run trained on after

    def _follow_steps(self, data: bytes, base: int, had: bool) -> None:
        """Drop failures that new steps came after."""
        first = min(line.order for line in self.kept.values())
        begin = 0 if had and self._steps is not None else max(0, first - base)
        if self._steps is None:
            self._steps = LogReader()
            self._steps.begin_inside(base + begin)
        for item in self._steps.feed(data[begin:], base + begin):
            if isinstance(item, Point) and item.step is not None and not item.evaluation:
                self._after.append((item.offset_bytes, item.step))
        last = max(line.order for line in self.kept.values())
        survived = last
        for key, line in list(self.kept.items()):
            if len({step for place, step in self._after if place > line.order}) >= STEPS_AFTER:
                del self.kept[key]
            else:
                survived = min(survived, line.order)
        self._after = [pair for pair in self._after if pair[0] > survived][-64:]
        if not self.kept:
            self._steps, self._after = None, []


def _key(line: FailureLine) -> _Key:
    return (line.signature, line.rank, line.node, line.about)


#: Lines that tell of others begin with one of these.
_CONTEXT = (
    'File "',
    "Traceback (most",
    "Root Cause (",
    "Failures:",
    "======",
    "  time  ",
    "  host  ",
    "  rank  ",
)
_FRAME = re.compile(r'File "(?P<file>[^"]{1,300})", line (?P<line>\d{1,7}), in (?P<function>\S{1,100})')
_LIBRARY = re.compile(r"(?:site|dist)-packages/|/lib/python3|<frozen |<string>")
_ENTRY = re.compile(r"(?P<name>time|host|rank) {1,12}: (?P<value>.{1,200})")
# "[rank3]:" torch's logging, "[Rank 3] Watchdog caught", "[PG ID 1 PG GUID 1 Rank 1] failure detected"
_RANK = re.compile(r"\[rank(?P<rank>\d{1,6})\]:|\[(?:PG [^\]]{1,80} )?Rank (?P<named>\d{1,6})\]")
# "[default7]:" is torchrun's local rank, as long as nobody changes its template
_LOCAL_RANK = re.compile(r"\s*\[default\d{1,6}\]")
# failed (exitcode: -11) local_rank: 1 (pid: 4242) of binary: /usr/bin/python
_LOCAL = re.compile(r"local_rank: (?P<rank>\d{1,6})\b")
_NODE_PREFIX = re.compile(r"(?P<node>[A-Za-z][\w.-]{0,200}):(?: |(?P<nccl>\d{1,9}:\d{1,9} \[\d{1,3}\] ))")
_SLURM_NODE = re.compile(
    r"srun: error: (?P<task>[\w.\[\],-]{1,200}): tasks? [\d,\[\]-]{1,200}: "
    r"|^slurmstepd-(?P<daemon>[\w.-]{1,200}): error: "
    r"|\*\*\* (?:JOB|STEP) \S{1,64} (?:STEPD TERMINATED )?ON (?P<on>[\w.-]{1,200}) "
)


def _where(block: _Block) -> str:
    """Where an exception came from: the last line of the program's own code, and of the library if there."""
    if not block.frame or block.frame == block.own_frame:
        return plain(block.frame, 100)
    return plain(f"{block.frame}; called at {block.own_frame}" if block.own_frame else block.frame, 200)


def _file(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _short(name: str) -> str:
    return name.split(".")[0]


def _names(hosts: str) -> Iterator[str]:
    """`n[3-4,7]` as n3, n4, n7; "" as itself: a line that names nobody."""
    head, bracket, rest = hosts.partition("[")
    if not bracket:
        yield from (hosts.split(",") if hosts else [""])
        return
    for part in rest.partition("]")[0].split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            continue
        for number in range(int(first), min(int(last or first), int(first) + 1023) + 1):
            yield f"{head}{number:0{len(first)}d}"


# the times that failures are told with; without a zone they are taken for this machine's local time, as all
# machines of a cluster have one
_STAMPS = (
    # 2026-11-21T19:48:26.123Z   2026-11-21 19:48:26,123   2026-11-21_19:48:26
    re.compile(
        r"(?P<year>20\d\d)-(?P<month>\d\d)-(?P<day>\d\d)[T _](?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
        r"(?:[.,](?P<f>\d{1,9}))?(?P<zone>Z|[+-]\d\d:?\d\d)?"
    ),
    # E1218 20:27:21.426 ProcessGroupNCCL.cpp:629]      W1121 19:48:26.575000 22655 torch/...
    re.compile(r"\b[IWEF](?P<month>\d\d)(?P<day>\d\d) (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)\.(?P<f>\d{1,9})"),
)


def _time(text: str, now: float) -> float | None:
    """The moment that a line tells, in seconds since 1970; None when it tells none."""
    for pattern in _STAMPS:
        if match := pattern.search(text):
            parts = match.groupdict()
            year = int(parts.get("year") or time.localtime(now).tm_year)
            moment = _moment(parts, year)
            if moment is not None and "year" not in parts and moment > now + 2 * 86400:
                moment = _moment(parts, year - 1)  # of December, read in January
            return moment
    return None


def _moment(parts: Mapping[str, str | None], year: int) -> float | None:
    month, day, hour, minute, second = (int(parts[name] or 0) for name in ("month", "day", "h", "m", "s"))
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        return None
    fraction = float(f"0.{parts['f']}") if parts.get("f") else 0.0
    zone = parts.get("zone")
    try:
        if not zone:
            return time.mktime((year, month, day, hour, minute, second, 0, 0, -1)) + fraction
    except (OverflowError, ValueError):
        return None
    digits = zone[1:].replace(":", "")
    shift = 0 if zone == "Z" else int(digits[:2]) * 3600 + int(digits[2:]) * 60
    moment = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0)) + fraction
    return moment + shift if zone[0] == "-" else moment - shift


# other places than logs


def kernel_failures(node: str, lines: Sequence[str]) -> tuple[FailureLine, ...]:
    """What the kernel lines of a look (`NodeLook.kernel`) say of failures.

    Each begins with its time: `2026-11-21T19:30:12Z NVRM: Xid (PCI:0000:3b:00): 79, ...`.
    """
    found = []
    for order, text in enumerate(lines):
        stamp, _, said = text.partition(" ")
        known = matched(said)
        if known is None:
            continue
        row, match = known
        about = match.groupdict().get("about") or ""
        told, at = plain(said, TEXT_CHARACTERS), _time(stamp, 0.0)
        path = f"{KERNEL}{node}"
        found.append(
            FailureLine(row.name, row.role, row.advice, told, path, order, at, None, node, about)
        )  # fmt: skip
    return tuple(found)


def error_files(
    host: Host, log_path: str, since: float, *, one_node: bool = False
) -> tuple[FailureLine, ...]:
    """What ranks wrote into torchrun's error.json files below the folder of a log, if it lies there.

    `<log-dir>/<run id>_*/attempt_<k>/<local rank>/error.json`, written where main is decorated with @record.
    """
    folder = log_path.rpartition("/")[0]
    found: list[FailureLine] = []
    for path in host.glob(f"{folder}/*/attempt_*/*/error.json")[:_ERROR_FILES_AT_MOST]:
        try:
            info = host.stat(path)
            if info.mtime >= since:
                found += parse_error_file(host.read(path, 0, LINE_CAP_BYTES), path, one_node=one_node)
        except Absent:
            continue  # it went between the list and the look
    return tuple(found)


_ERROR_FILES_AT_MOST = 256


def parse_error_file(text: str, path: str, *, one_node: bool = False) -> tuple[FailureLine, ...]:
    """The failure that one error.json tells, as a line; none when it tells none that is known.

    {"message": {"message": "KeyError: 'x'", "extraInfo": {"py_callstack": "...", "timestamp": "1700000000"}}}
    """
    try:
        message = json.loads(text)["message"]
        if isinstance(message, str):
            message = {"message": message}
        said, extra = str(message["message"]), message.get("extraInfo") or {}
        at = float(extra["timestamp"]) if extra.get("timestamp") else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
    found = matched(said)
    if found is None:
        return ()
    row, _ = found
    folder = path.split("/")[-2] if "/" in path else ""
    rank = int(folder) if one_node and folder.isdigit() else None  # the rank on its node
    return (FailureLine(row.name, row.role, row.advice, plain(said, TEXT_CHARACTERS), path, 0, at, rank),)
