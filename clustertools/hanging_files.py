"""Files that may hang their reader: which those are, and children that read them and may be lost.

    children = FileChildren([sys.executable, "-m", "clustertools.hanging_files"])
    header, data = children.ask("/nfs", {"op": "read", "path": "/nfs/run7/log", "limit": 4096}, 10.0)

A file system whose server is away holds whoever asks, some not even to be killed. So a child asks: at the
deadline it is killed or, where that cannot be done, left behind. There is one for each mount, used again and
again: to start one costs more than most questions. A mount that goes on not to answer is left alone for a
while: a thousand logs below it must not cost a thousand deadlines.

The program reads a question a line and answers with a line about the answer and its bytes.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: So many questions in a row without an answer, and the mount is left alone for AWAY_SECONDS.
IN_A_ROW = 3
AWAY_SECONDS = 20.0
#: After a question without an answer the next ones are given less time.
IMPATIENT_SECONDS = 2.0
#: A path that held its reader is not asked for again for AWAY_SECONDS, and when others on its mount answered
#: since, for so long: one of the servers behind a parallel file system may be away alone.
PATH_SECONDS = 300.0
#: So many children that cannot be killed, and no further one is sent after them until one comes back.
LOST_AT_MOST = 4
_PIECE_BYTES = 1 << 18
#: So much fits into a pipe that nobody reads yet.
_PIPE_BYTES = 4096
#: Reading from these cannot hang on a server that is away; all else is read by a child with a deadline.
_LOCAL_FILE_SYSTEMS = frozenset(
    (
        "ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs ramfs overlay proc sysfs devtmpfs devpts cgroup cgroup2 "
        "debugfs tracefs securityfs efivarfs pstore bpf squashfs erofs vfat iso9660 rootfs"
    ).split()
)


class NoAnswer(Exception):
    """The file system did not answer; the text says what was asked and what became of the child."""


def mount_of(path: str, mountinfo: str) -> tuple[str, str]:
    """(mount point, file system type) of the mount that holds `path`, by the text of /proc/self/mountinfo."""
    best = ("/", "rootfs")
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, right.split()[0])
    return best


def mount_that_may_hang(path: str) -> str:
    """The mount point that holds `path` when its file system has a server that can be away; else "".

    Looks at the mount table only, and reads that again only when the kernel says that it changed.
    """
    if path.startswith(("/proc/", "/sys/", "/dev/")):
        return ""
    point, kind = _mounts().of(os.path.abspath(path))
    return "" if kind in _LOCAL_FILE_SYSTEMS else point


class _MountTable:
    """The mount table of this process, kept as long as the kernel says that it is the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text = ""
        self._by_folder: dict[str, tuple[str, str]] = {}
        try:
            self._file = open("/proc/self/mountinfo", encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError:
            self._poll = None
            return
        # fs/proc_namespace.c, mounts_poll: POLLERR and POLLPRI after every change
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLERR | select.POLLPRI)

    def of(self, path: str) -> tuple[str, str]:
        """(mount point, file system type) of `path`; what cannot be told is local."""
        with self._lock:
            if self._poll is None:
                return "/", "rootfs"
            if self._poll.poll(0) or not self._text:
                self._file.seek(0)
                self._text = self._file.read()
                self._by_folder.clear()
            # all in one folder are on one mount, unless they are mount points themselves
            folder = os.path.dirname(path)
            if f" {path} " in self._text:
                return mount_of(path, self._text)
            if folder not in self._by_folder:
                self._by_folder[folder] = mount_of(path, self._text)
            return self._by_folder[folder]


@functools.cache
def _mounts() -> _MountTable:
    return _MountTable()


class FileChildren:
    """The children of this process. Safe to use from several threads; those of one mount wait in line."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._argv, self._environment = list(argv), environment
        self._mounts: dict[str, _Mount] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _end_all, self._mounts)

    def ask(
        self, mount: str, question: Mapping[str, Any], timeout_seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        """The answer and its bytes. Raises NoAnswer, and OSError as the file system gave it.

        A question without a `path` runs a module: how long that may take says nothing of the next one.
        """
        with self._lock:
            if mount not in self._mounts:
                self._mounts[mount] = _Mount(mount, self._argv, self._environment)
            place = self._mounts[mount]
        header, data = place.ask(question, timeout_seconds)
        if "errno" in header:
            raise OSError(header["errno"], header["error"])
        return header, data

    def children(self) -> list[int]:
        """The pids of those that are waiting for a question."""
        return [m.child.pid for m in self._mounts.values() if m.child is not None]


def _end_all(mounts: Mapping[str, _Mount]) -> None:
    for mount in mounts.values():
        mount.end()


class _Mount:
    """What is known of one mount, and the child that asks there."""

    def __init__(self, point: str, argv: Sequence[str], environment: Mapping[str, str] | None) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self._point, self._argv, self._environment = point, argv, environment
        self._lock = threading.Lock()
        self._lost: list[subprocess.Popen[bytes]] = []
        self._silent: dict[str, float] = {}
        self._answered_at = 0.0
        self._unanswered = 0
        self._away_until = 0.0

    def ask(self, question: Mapping[str, Any], timeout_seconds: float) -> tuple[dict[str, Any], bytes]:
        if not self._lock.acquire(timeout=timeout_seconds):
            raise NoAnswer(f"{self._point} is busy with another question for {timeout_seconds:g} s")
        try:
            path = str(question.get("path", ""))
            self._refuse(path)
            if self._unanswered and path:
                timeout_seconds = min(timeout_seconds, IMPATIENT_SECONDS)
            try:
                answer = self._exchange(question, timeout_seconds)
            except TimeoutError:
                raise NoAnswer(self._note_silence(path, timeout_seconds)) from None
            self._unanswered = 0
            if path:
                self._answered_at = time.monotonic()
                self._silent.pop(path, None)
            return answer
        finally:
            self._lock.release()

    def _refuse(self, path: str) -> None:
        """Raise NoAnswer when asking now would only cost time."""
        self._lost = [child for child in self._lost if child.poll() is None]
        now = time.monotonic()
        if len(self._lost) >= LOST_AT_MOST:
            pids = ", ".join(str(child.pid) for child in self._lost)
            raise NoAnswer(f"{self._point} is not asked: processes {pids} hang in it and cannot be killed")
        if now < self._away_until:
            raise NoAnswer(
                f"{self._point} did not answer {self._unanswered} times in a row; asked again soon"
            )
        since = self._silent.get(path)
        if since is None:
            return
        if self._answered_at > since and now < since + PATH_SECONDS:
            raise NoAnswer(f"{path} did not answer before, unlike others on {self._point}; asked again later")
        if now < since + AWAY_SECONDS:
            raise NoAnswer(f"{path} did not answer before; asked again soon")

    def _note_silence(self, path: str, waited_seconds: float) -> str:
        fate = self._abandon()
        self._unanswered += 1
        now = time.monotonic()
        if not path:
            return f"no answer within {waited_seconds:g} s; {fate}"
        if self._unanswered >= IN_A_ROW:
            # it is the mount, and no path's own fault
            self._away_until = now + AWAY_SECONDS
            self._silent.clear()
        else:
            self._silent[path] = now
        return f"{path} did not answer within {waited_seconds:g} s; {fate}"

    def _exchange(self, question: Mapping[str, Any], timeout_seconds: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_seconds
        for last_try in (False, True):
            child = self._running()
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps(question).encode() + b"\n")
                child.stdin.flush()
                return self._answer(child, deadline)
            except (BrokenPipeError, EOFError) as exc:
                # it was killed from outside, perhaps for memory, before or by this question
                self._abandon()
                if last_try:
                    raise NoAnswer(f"the reader of {self._point} died twice over one question") from exc
        raise AssertionError("not reached")

    def _running(self) -> subprocess.Popen[bytes]:
        if self.child is None or self.child.poll() is not None:
            self.child = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True, cwd="/", env=self._environment,
            )  # fmt: skip
        return self.child

    def _answer(self, child: subprocess.Popen[bytes], deadline: float) -> tuple[dict[str, Any], bytes]:
        assert child.stdout is not None
        buffer = bytearray()
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        header: dict[str, Any] | None = None
        while header is None or len(buffer) < header["size"]:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise TimeoutError
            piece = os.read(child.stdout.fileno(), _PIECE_BYTES)
            if not piece:
                raise EOFError
            buffer += piece
            if header is None and (end := buffer.find(b"\n")) >= 0:
                header = json.loads(buffer[:end])
                del buffer[: end + 1]
        return header, bytes(buffer)

    def _abandon(self) -> str:
        """Kill the child and what it started; in words, whether that worked."""
        child, self.child = self.child, None
        if child is None:
            return "its reader was gone"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # what was not sent any more
                stream.close()  # type: ignore[union-attr]
        try:
            child.wait(0.5)
        except subprocess.TimeoutExpired:
            self._lost.append(child)
            return f"process {child.pid} cannot be killed (it hangs in the kernel, state D)"
        return "its reader was killed"

    def end(self) -> None:
        self._abandon()
        for child in self._lost:
            # Popen would wait for it again when it is collected; forget it instead
            child.returncode = -signal.SIGKILL


# the program


def answer(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What a question is answered with. Raises OSError."""
    return _OPERATIONS[question["op"]](question)


def _read(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    with open(question["path"], "rb", buffering=0) as file:
        file.seek(question["offset"])
        pieces, left = [], question["limit"]
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    return {}, b"".join(pieces)


def _stat(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    info = os.stat(question["path"])
    is_dir = os.path.isdir(question["path"])
    return {"stat": [info.st_size, info.st_mtime, info.st_ino, is_dir]}, b""


def _glob(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    return {}, json.dumps(sorted(glob.glob(question["path"]))).encode()


def _main(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Run a module's `main` in a copy of this process: its memory, limits and crashes are the copy's own."""
    module = importlib.import_module(question["module"])
    pipes = [os.pipe() for _ in range(3)]
    pid = os.fork()
    if pid == 0:
        (_, out), (_, errors), (_, imported) = pipes
        os.dup2(out, 1)
        os.dup2(errors, 2)
        sys.stdin = io.StringIO(question["stdin"])
        _run_to_its_end(module.main, question["arguments"], imported)
    for _, writing in pipes:
        os.close(writing)
    (out_text, errors_text, names), cut = _to_their_ends([reading for reading, _ in pipes], question["limit"])
    _, status = os.waitpid(pid, 0)
    for name in names.decode().split():
        # what one copy had to load, the next ones have
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "out": len(out_text), "cut": cut}, out_text + errors_text


def _run_to_its_end(main: Callable[[list[str]], int | None], arguments: list[str], imported: int) -> None:
    code, known = 1, set(sys.modules)
    try:
        code = int(main(arguments) or 0)
        os.write(imported, " ".join(sorted(set(sys.modules) - known)).encode()[:_PIPE_BYTES])
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:  # noqa: BLE001 - it must not go on as a second server of questions
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _to_their_ends(ends: Sequence[int], limit: int) -> tuple[list[bytes], bool]:
    """What comes out of pipes until all end, at most `limit` bytes each; whether there was more."""
    kept = {end: bytearray() for end in ends}
    cut, open_ones = False, set(ends)
    while open_ones:
        for end in select.select(list(open_ones), [], [])[0]:
            piece = os.read(end, _PIECE_BYTES)
            if not piece:
                open_ones.discard(end)
                os.close(end)
            room = limit - len(kept[end])
            cut = cut or len(piece) > room
            kept[end] += piece[: max(0, room)]
    return [bytes(kept[end]) for end in ends], cut


_OPERATIONS: Mapping[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], bytes]]] = {
    "read": _read, "stat": _stat, "glob": _glob, "main": _main,
}  # fmt: skip


def main() -> int:
    """Answer questions until there are no more."""
    for line in sys.stdin.buffer:
        try:
            header, data = answer(json.loads(line))
        except OSError as exc:
            header, data = {"errno": exc.errno or 0, "error": exc.strerror or str(exc)}, b""
        sys.stdout.buffer.write(json.dumps({**header, "size": len(data)}).encode() + b"\n" + data)
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
