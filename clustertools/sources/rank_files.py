"""What the ranks of a job leave on their node: dumps of PyTorch's flight recorder, torchrun's error files.

    for said in gather(host, FilesRequest(LookRequest("4711"))): ...      a NodeFile each, then a Gathered

A rank whose job set TORCH_NCCL_DEBUG_INFO_PIPE_FILE listens on a named pipe, and dumps when something is
written to it. That is done to a job that is about to be ended, never by merely watching. As a program
(`python -m clustertools.sources.rank_files`) it reads a request, one line, and prints lines of JSON.

Root reads only plain files of the job's own user here: names that a job chose may lead anywhere.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import glob
import json
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from clustertools.errors import ClustertoolsError, ConfigError, Unobservable, Unparsable
from clustertools.host import Host, LocalHost
from clustertools.model import to_data
from clustertools.sources.flight_recorder import MOST_BYTES, Dump, read_dump
from clustertools.sources.job_look import LookOrder, LookRequest, job_pids, own_processes, read_request
from clustertools.sources.processes import environ, processes, ranks

#: PyTorch's names, the newest first (FlightRecorder.cpp, ProcessGroupNCCL.hpp; 2.3 to 2.13).
PREFIX_VARIABLES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
PIPE_VARIABLE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
#: Where dumps lie when nothing was said, below the home; before 2.7 in /tmp.
_PREFIXES_AT_HOME = (".cache/torch/comm_lib_trace_rank_", ".cache/torch/nccl_trace_rank_")
_PREFIX_IN_TMP = "/tmp/nccl_trace_rank_"  # noqa: S108 - PyTorch's, and read only if the job's user owns it
#: torchrun's folders: LOG_DIR/RUN_xxxx/attempt_0/RANK/error.json (torch/distributed/elastic/multiprocessing).
ERROR_VARIABLE = "TORCHELASTIC_ERROR_FILE"
ERROR_FILES = ("error.json", "stderr.log", "stdout.log")
MOST_RANKS = 64
MOST_ERROR_FILES = 64
TAIL_BYTES = 64 << 10
#: A line is at most so long; a transport keeps a megabyte.
PIECE_BYTES = 500_000
#: A dump is whole when it can be read; until then it is looked at so often.
_PERIOD_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class FilesRequest:
    """What to bring. `ask_dumps`: ask the ranks for dumps, and wait for them at most `seconds`. `most_bytes`:
    of all files together, packed.
    """

    look: LookRequest
    ask_dumps: bool = True
    seconds: float = 8.0
    most_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True)
class NodeFile:
    """One file of the node, or its end. `name` is ours, `path` the node's."""

    name: str
    path: str
    data: bytes = b""
    is_tail: bool = False


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was found beside the files: what the dumps say, and what is missing, and why."""

    dumps: tuple[Dump, ...] = ()
    world_size: int = 0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFiles:
    """What all nodes of a job gave, by node; `unseen` is node -> why it gave nothing."""

    files: Mapping[str, tuple[NodeFile, ...]] = field(default_factory=dict)
    gathered: Mapping[str, Gathered] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class BringsFiles(Protocol):
    """A looker that also brings what ranks leave on their nodes; a node that gives nothing is in `unseen`."""

    def bring(self, order: LookOrder, *, ask_dumps: bool = True) -> JobFiles: ...


@dataclass(slots=True)
class _Rank:
    """A rank here: where it listens and where its dump will lie."""

    rank: int
    user: int
    pipe: str = ""
    dumps: tuple[str, ...] = ()
    before: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def gather(
    host: Host, request: FilesRequest, *, own: set[int] | None = None
) -> Iterator[NodeFile | Gathered]:
    """The files, then what was found beside them. Raises Unobservable when nobody can see the processes."""
    unseen: list[str] = []
    pids = job_pids(host, request.look, unseen.append, without=own or ())
    inside = processes(host, pids)
    by_rank: Mapping[int, int] = {}
    try:
        by_rank = ranks(host, inside, inside)
    except Unobservable as exc:
        unseen.append(str(exc))
    world = 0
    listening = []
    errors: dict[str, int] = {}
    for rank, pid in sorted(by_rank.items())[:MOST_RANKS]:
        try:
            variables, user = environ(host, pid), _user(host, pid)
        except Unobservable as exc:
            unseen.append(f"rank {rank}: {exc}")
            continue
        size = variables.get("WORLD_SIZE", variables.get("SLURM_NTASKS", ""))
        world = max(world, int(size) if re.fullmatch(r"[0-9]{1,7}", size) else 0)
        listening.append(_rank(rank, user, variables))
        if os.path.isabs(path := variables.get(ERROR_VARIABLE, "")):
            errors[path] = user
    left = request.most_bytes
    for file in _error_files(errors, unseen):
        left -= len(file.data)
        yield file
    since = min((one.start_time for one in inside.values()), default=0.0)
    dumps = []
    for rank, found, file in _dumps(listening, request, since, unseen):
        if found is not None:
            dumps.append(found)
        packed = len(zlib.compress(file.data, 1))
        if packed <= left:
            left -= packed
            yield file
        else:
            unseen.append(
                f"the dump of rank {rank} ({len(file.data)} bytes) was read and not brought: too large"
            )
    yield Gathered(tuple(dumps), world, tuple(unseen))


def _user(host: Host, pid: int) -> int:
    # Uid:	1000	1000	1000	1000
    match = re.search(r"^Uid:\s+\d+\s+(\d{1,10})\s", host.read(f"/proc/{pid}/status"), re.MULTILINE)
    if match is None:
        raise Unparsable(f"/proc/{pid}/status has no line Uid")
    return int(match[1])


def _rank(rank: int, user: int, variables: Mapping[str, str]) -> _Rank:
    prefixes = [variables[name] for name in PREFIX_VARIABLES if os.path.isabs(variables.get(name, ""))][:1]
    home = variables.get("HOME", "")
    if not prefixes:
        prefixes = [f"{home}/{name}" for name in _PREFIXES_AT_HOME if os.path.isabs(home)] + [_PREFIX_IN_TMP]
    stem = variables.get(PIPE_VARIABLE, "")
    pipe = f"{stem}{rank}.pipe" if os.path.isabs(stem) else ""
    paths = tuple(f"{prefix}{rank}" for prefix in prefixes)
    return _Rank(rank, user, pipe, paths, {path: _stamp(path) for path in paths})


def _stamp(path: str) -> tuple[int, int]:
    try:
        told = os.lstat(path)
    except OSError:
        return (0, 0)
    return (told.st_mtime_ns, told.st_size)


# flight recorder


def _dumps(
    listening: list[_Rank], request: FilesRequest, since: float, unseen: list[str]
) -> Iterator[tuple[int, Dump | None, NodeFile]]:
    """Those that were there since the job began, and those that were asked for, as they become whole."""
    asked: dict[int, _Rank] = {}
    for one in listening if request.ask_dumps else ():
        if not one.pipe:
            continue
        try:
            _ask(one)
            asked[one.rank] = one
        except OSError as exc:
            # nobody reads from the pipe: the rank is gone, or its PyTorch made no recorder
            why = "it does not listen" if exc.errno == errno.ENXIO else exc.strerror
            unseen.append(f"rank {one.rank} was not asked for its dump ({one.pipe}): {why}")
    until = time.monotonic() + request.seconds
    while asked and time.monotonic() < until:
        time.sleep(_PERIOD_SECONDS)
        for one in tuple(asked.values()):
            fresh = next((p for p in one.dumps if _stamp(p) not in ((0, 0), one.before[p])), "")
            with contextlib.suppress(OSError, Unparsable):
                if fresh:
                    data = read_owned(fresh, one.user, MOST_BYTES)
                    found = read_dump(data, one.rank)
                    yield one.rank, found, NodeFile(f"flight-recorder-rank{one.rank}", fresh, data)
                    del asked[one.rank]
    for rank in asked:
        unseen.append(f"rank {rank} was asked for its dump and gave none within {request.seconds:g} s")
    told = {one.rank for one in listening if one.pipe} - asked.keys()
    for one in listening:
        if one.rank not in told:
            yield from _old(one, since, unseen)


def _ask(one: _Rank) -> None:
    """Write to the rank's pipe, as PyTorch's documentation has it; what is no pipe is left alone."""
    pipe = os.open(one.pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        told = os.fstat(pipe)
        if not stat.S_ISFIFO(told.st_mode) or told.st_uid not in (one.user, os.geteuid()):
            raise OSError(errno.EPERM, "it is no pipe of the job's user")
        os.write(pipe, b"1")
    finally:
        os.close(pipe)


def _old(one: _Rank, since: float, unseen: list[str]) -> Iterator[tuple[int, Dump | None, NodeFile]]:
    """A dump that its own watchdog wrote in this start of the job."""
    for path in one.dumps:
        if _stamp(path)[0] < since * 1e9 or _stamp(path) == (0, 0):
            continue
        try:
            data = read_owned(path, one.user, MOST_BYTES)
        except OSError as exc:
            unseen.append(f"{path}: {exc.strerror}")
            continue
        found = None
        try:
            found = read_dump(data, one.rank)
        except Unparsable as exc:
            unseen.append(f"{path}: {exc}")
        yield one.rank, found, NodeFile(f"flight-recorder-rank{one.rank}", path, data)


# torchrun


def _error_files(errors: Mapping[str, int], unseen: list[str]) -> Iterator[NodeFile]:
    """The error files of all attempts of the runs that are here, with what their workers said at last."""
    count = 0
    folders = {os.path.dirname(os.path.dirname(os.path.dirname(path))): user for path, user in errors.items()}
    for folder, user in folders.items():
        for name in ERROR_FILES:
            for path in sorted(glob.glob(f"{glob.escape(folder)}/attempt_*/*/{name}"), reverse=True):
                if count >= MOST_ERROR_FILES:
                    unseen.append(f"there are more than {MOST_ERROR_FILES} files of torchrun in {folder}")
                    return
                try:
                    data = read_owned(path, user, TAIL_BYTES, tail=True)
                except OSError as exc:
                    unseen.append(f"{path}: {exc.strerror}")
                    continue
                if data:
                    count += 1
                    short = re.sub(r"[^A-Za-z0-9.]+", "-", path.removeprefix(folder)).strip("-")
                    yield NodeFile(f"torchrun-{short}", path, data, is_tail=len(data) >= TAIL_BYTES)


def read_owned(path: str, user: int, most_bytes: int, *, tail: bool = False) -> bytes:
    """The bytes of a plain file of that user, at most so many; with `tail` its last ones. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        told = os.fstat(file)
        if not stat.S_ISREG(told.st_mode) or told.st_uid not in (user, os.geteuid() or user):
            raise OSError(errno.EPERM, "it is no plain file of the job's user")
        if told.st_size > most_bytes:
            if not tail:
                raise OSError(errno.EFBIG, f"it has {told.st_size} bytes, more than are brought")
            os.lseek(file, -most_bytes, os.SEEK_END)
        pieces, left = [], most_bytes
        while left > 0 and (piece := os.read(file, min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(file)


# how they travel


def lines_of(said: NodeFile | Gathered) -> Iterator[str]:
    """As lines of JSON: a file in pieces, packed."""
    if isinstance(said, Gathered):
        yield json.dumps({"schema": 1, "kind": "files", **to_data(said)}, allow_nan=False)
        return
    packed = zlib.compress(said.data, 6)
    for place in range(0, max(1, len(packed)), PIECE_BYTES):
        piece = base64.b64encode(packed[place : place + PIECE_BYTES]).decode()
        is_last = place + PIECE_BYTES >= len(packed)
        yield json.dumps({
            "schema": 1, "kind": "file", "name": said.name, "path": said.path, "is_tail": said.is_tail,
            "is_last": is_last, "data": piece,
        })  # fmt: skip


def unpacked(data: Mapping[str, Any], pieces: dict[str, bytearray], most_bytes: int) -> NodeFile | None:
    """The file whose last piece `data` is; `pieces` keeps the others. Raises ValueError for what is no piece.

    `most_bytes` bounds what comes out of a few bytes that were packed by a stranger.
    """
    name, path, piece = data.get("name"), data.get("path"), data.get("data")
    if not (isinstance(name, str) and isinstance(path, str) and isinstance(piece, str)):
        raise ValueError("a piece without a name, a path or data")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,150}", name):
        raise ValueError("a name that is none of ours")
    so_far = pieces.setdefault(name, bytearray())
    so_far += base64.b64decode(piece, validate=True)
    if data.get("is_last") is not True:
        return None
    try:
        content = zlib.decompressobj().decompress(bytes(pieces.pop(name)), most_bytes)
    except zlib.error as exc:
        raise ValueError("a file that cannot be unpacked") from exc
    return NodeFile(name, path, content, data.get("is_tail") is True)


def files_request_text(request: FilesRequest) -> str:
    return json.dumps({"schema": 1, **to_data(request), "look": {"schema": 1, **to_data(request.look)}})


def read_files_request(text: str) -> FilesRequest:
    """The inverse of `files_request_text`. Raises ConfigError."""
    try:
        data: Any = json.loads(text)
        if data["schema"] != 1:
            raise ValueError("another schema")
        return FilesRequest(
            read_request(json.dumps(data["look"])), data["ask_dumps"] is True,
            min(60.0, float(data["seconds"])), min(64 << 20, int(data["most_bytes"])),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise ConfigError(f"the request for files cannot be read: {exc}") from exc


def main() -> int:
    """One request on standard input, lines of JSON on standard output."""
    host = LocalHost()
    try:
        request = read_files_request(sys.stdin.readline(1 << 20))
        for said in gather(host, request, own=own_processes(host)):
            for line in lines_of(said):
                print(line, flush=True)
    except ClustertoolsError as exc:
        print(f"clustertools: {exc}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
