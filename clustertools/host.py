"""The one window onto a machine: run a command, read a file, look at its size, list names, tell the time.

    host = LocalHost()
    host.run("uname", "-r").stdout
    host.read("/proc/meminfo")

Everything that the checks know comes through these calls, so a folder of recorded answers (`RecordedHost`)
stands in for any machine, and `recorder.Recorder` makes such a folder from a live one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob as globbing
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.hanging_files import FileChildren, NoAnswer, mount_that_may_hang

#: More output than this from one command is cut: a broken tool must not fill our memory.
OUTPUT_CAP_BYTES = 32 << 20
DEFAULT_TIMEOUT_SECONDS = 10.0
#: First word of an argv that means "this Python, isolated": recordings then do not depend on its path.
PYTHON = "python"
#: A Slurm prolog starts without PATH.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Children of ours that a watchdog starts for every run it looks at: starting Python costs more than they do.
WARM_MODULES = frozenset({"clustertools.sources.checkpoints", "clustertools.sources.tensorboard"})


def running_archive() -> str:
    """The path of the zip archive that this runs from; empty when clustertools is installed."""
    return _ARCHIVE


def own_python(*words: str) -> list[str]:
    """The argv of this Python, isolated, with `words`; a module of ours is found in a zip archive as well."""
    ours = words[:1] == ("-m",) and words[1].startswith("clustertools.")
    return [sys.executable, "-I", *([_ARCHIVE] if _ARCHIVE and ours else []), *words]


# what zipimport calls it; absolute, since the folder that we run in may change
_ARCHIVE = getattr(__spec__ and __spec__.loader, "archive", "")
_ARCHIVE = os.path.abspath(_ARCHIVE) if _ARCHIVE else ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. `truncated`: it said more than we kept."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_seconds: float = 0.0
    truncated: bool = False

    def check(self) -> Completed:
        """Itself, or Unobservable when the exit code is not 0, with the last line of its complaint."""
        if self.returncode == 0:
            return self
        said = (self.stderr.strip() or self.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Unobservable(f"{_short(self.argv)} failed with exit code {self.returncode}: {said[:200]}")


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells a rotated, truncated or growing file from an unchanged one."""

    size_bytes: int
    mtime: float
    inode: int
    is_dir: bool = False


class Host(Protocol):
    """What a machine can be asked. Whatever cannot be answered raises Unobservable."""

    @property
    def name(self) -> str: ...
    @property
    def boot_id(self) -> str: ...
    def run(
        self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = ""
    ) -> Completed: ...
    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str: ...
    def stat(self, path: str) -> FileStat: ...
    def glob(self, pattern: str) -> list[str]: ...
    def now(self) -> float: ...


class PassingHost:
    """Passes every question on to another host; what wraps a host overrides what it changes."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def boot_id(self) -> str:
        return self.host.boot_id

    def now(self) -> float:
        return self.host.now()

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        return self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        return self.host.read(path, offset, limit)

    def stat(self, path: str) -> FileStat:
        return self.host.stat(path)

    def glob(self, pattern: str) -> list[str]:
        return self.host.glob(pattern)


class LocalHost:
    """This machine. No shell; each child has its own process group, a deadline and capped output."""

    def __init__(self, name: str = "") -> None:
        self.name = name or os.uname().nodename.split(".")[0]

    @functools.cached_property
    def boot_id(self) -> str:
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def now(self) -> float:
        return time.time()

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        """Run `argv` to its end. Raises Absent when there is no such program, Unobservable at the deadline.

        At the deadline the whole process group is killed. A child that cannot be killed (it sits in the
        kernel, state D) is left behind and named in the error: waiting for it would hang us as well.
        """
        if argv[:2] == (PYTHON, "-m") and argv[2] in WARM_MODULES:
            return self._run_warm(argv, timeout_seconds, stdin)
        words = own_python(*argv[1:]) if argv[0] == PYTHON else list(argv)
        began = time.monotonic()
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=_child_environment(),
            )
        except FileNotFoundError as exc:
            raise Absent(f"{argv[0]} is not installed") from exc
        except OSError as exc:
            raise Unobservable(f"could not start {argv[0]}: {exc.strerror}") from exc
        try:
            out, err, truncated, timed_out = _communicate(child, stdin, began + timeout_seconds)
        except BaseException:  # whatever it was, it is raised again
            _kill_group(child)
            raise
        if timed_out:
            fate = _kill_group(child)
            raise Unobservable(f"{_short(argv)} did not answer within {timeout_seconds:g} s; {fate}")
        _close_pipes(child)
        return Completed(
            argv,
            child.returncode,
            out.decode("utf-8", "replace"),
            err.decode("utf-8", "replace"),
            time.monotonic() - began,
            truncated,
        )

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        """The text of `path` from byte `offset`, at most `limit` bytes.

        `/dev/kmsg` gives the ring's records, one a line. Files on network and FUSE mounts are read in a child
        with a deadline, since their server may be away.
        """
        if path == "/dev/kmsg":
            return _read_kmsg()
        cap = min(limit, OUTPUT_CAP_BYTES) if limit is not None else OUTPUT_CAP_BYTES
        mount = mount_that_may_hang(path)
        if mount:
            question = {"op": "read", "path": path, "offset": offset, "limit": cap}
            return self._ask_child(mount, question)[1].decode("utf-8", "replace")
        try:
            with open(path, "rb", buffering=0) as file:
                if offset:
                    file.seek(offset)
                return _read_capped(file, cap).decode("utf-8", "replace")
        except OSError as exc:
            raise _unobservable(path, exc) from exc

    def stat(self, path: str) -> FileStat:
        mount = mount_that_may_hang(path)
        if mount:
            size, mtime, inode, is_dir = self._ask_child(mount, {"op": "stat", "path": path})[0]["stat"]
            return FileStat(size, mtime, inode, is_dir)
        try:
            info = os.stat(path)
        except OSError as exc:
            raise _unobservable(path, exc) from exc
        return FileStat(info.st_size, info.st_mtime, info.st_ino, os.path.isdir(path))

    def glob(self, pattern: str) -> list[str]:
        """Paths that match, sorted; none is an answer, not an error."""
        mount = mount_that_may_hang(fixed_part(pattern))
        if mount:
            found: list[str] = json.loads(self._ask_child(mount, {"op": "glob", "path": pattern})[1])
            return found
        return sorted(globbing.glob(pattern))

    @functools.cached_property
    def _children(self) -> FileChildren:
        return FileChildren(own_python("-m", "clustertools.hanging_files"), _child_environment())

    def _ask_child(self, mount: str, question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        try:
            return self._children.ask(mount, question, DEFAULT_TIMEOUT_SECONDS)
        except NoAnswer as exc:
            raise Unobservable(str(exc)) from exc
        except OSError as exc:
            raise _unobservable(str(question["path"]), exc) from exc

    def _run_warm(self, argv: tuple[str, ...], timeout_seconds: float, stdin: str) -> Completed:
        """Run one of WARM_MODULES in a copy of a process that has it loaded already."""
        began = time.monotonic()
        question = {
            "op": "main", "module": argv[2], "arguments": argv[3:], "stdin": stdin, "limit": OUTPUT_CAP_BYTES,
        }  # fmt: skip
        try:
            told, data = self._children.ask(argv[2], question, timeout_seconds)
        except NoAnswer as exc:
            raise Unobservable(f"{_short(argv)}: {exc}") from exc
        except OSError as exc:
            raise Unobservable(f"could not start {_short(argv)}: {exc.strerror}") from exc
        out, errors = data[: told["out"]].decode("utf-8", "replace"), data[told["out"] :]
        return Completed(
            argv, told["code"], out, errors.decode("utf-8", "replace"), time.monotonic() - began, told["cut"]
        )


def _child_environment() -> dict[str, str]:
    environment = dict(os.environ)
    environment.setdefault("PATH", DEFAULT_PATH)
    environment["LC_ALL"] = "C"
    # the tools answer in the format that their options ask for, not in one a login script chose
    for name in ("SQUEUE_FORMAT", "SINFO_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "GREP_OPTIONS"):
        environment.pop(name, None)
    return environment


def _communicate(
    child: subprocess.Popen[bytes], stdin: str, deadline: float
) -> tuple[bytes, bytes, bool, bool]:
    """Read both pipes up to the cap until the child ends or the deadline passes."""
    assert child.stdout is not None
    assert child.stderr is not None
    kept = {child.stdout: bytearray(), child.stderr: bytearray()}
    truncated = False
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        pending = memoryview(stdin.encode())
        if child.stdin:
            selector.register(child.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(kept[child.stdout]), bytes(kept[child.stderr]), truncated, True
            for key, _ in selector.select(left):
                if key.fileobj is child.stdin:
                    with contextlib.suppress(BrokenPipeError):
                        pending = pending[os.write(key.fd, pending[:65536]) :]
                        if pending:
                            continue
                    selector.unregister(child.stdin)
                    child.stdin.close()
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                buffer = kept[key.fileobj]  # type: ignore[index]
                room = OUTPUT_CAP_BYTES - len(buffer)
                truncated = truncated or len(data) > room
                buffer += data[: max(0, room)]
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(kept[child.stdout]), bytes(kept[child.stderr]), truncated, True
    return bytes(kept[child.stdout]), bytes(kept[child.stderr]), truncated, False


def _kill_group(child: subprocess.Popen[bytes]) -> str:
    """SIGKILL the child's group; in words, whether that worked."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _close_pipes(child)
    try:
        child.wait(0.5)
    except subprocess.TimeoutExpired:
        # Popen would wait for it again when it is collected; forget it instead
        child.returncode = -signal.SIGKILL
        return f"process {child.pid} cannot be killed (it hangs in the kernel, state D)"
    return "it was killed"


def _read_capped(file: io.FileIO, cap: int) -> bytes:
    # in pieces: the kernel allocates what a read of a sysctl file asks for, and refuses megabytes
    pieces, left = [], cap
    while left > 0 and (piece := file.read(min(left, 1 << 18))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream:
            stream.close()


def _short(argv: tuple[str, ...]) -> str:
    return " ".join(argv[:4])


def _unobservable(path: str, exc: OSError) -> Unobservable:
    kind = Absent if exc.errno in (errno.ENOENT, errno.ENOTDIR) else Unobservable
    return kind(f"{path}: {exc.strerror or exc}")


def _read_kmsg() -> str:
    """All records of the kernel's ring, one a line, as `priority,sequence,microseconds,flags;text`.

    A read that fails with EPIPE means that the ring overwrote records under us; the gap shows in the
    sequence numbers, so it is counted by the reader of these lines.
    """
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as exc:
        hint = " (reading the kernel log needs root or CAP_SYSLOG)" if exc.errno == errno.EPERM else ""
        raise Unobservable(f"/dev/kmsg: {exc.strerror}{hint}") from exc
    records: list[str] = []
    try:
        while len(records) < 1_000_000:
            try:
                record = os.read(fd, 16384)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue
            # continuation lines (" KEY=value") are the device dictionary, not text
            records.append(record.decode("utf-8", "replace").split("\n", 1)[0])
    except OSError as exc:
        raise _unobservable("/dev/kmsg", exc) from exc
    finally:
        os.close(fd)
    return "\n".join(records) + ("\n" if records else "")


class RecordedHost:
    """A folder of recorded answers: `host.yaml`, `commands/*.yaml`, `files/` (a partial root).

    What was not recorded raises Unobservable, so a check that asks for more than it did when the recording
    was made shows up as blind, not as healthy. Absent is only what was looked for and not there: when
    `listings.yaml` says so, or when the folder was recorded and the file is not in it. A command recorded as
    slower than the caller's deadline times out, as it would have live.

    With `base: ../FOLDER` in its host.yaml a recording says only what differs from another one; `without`
    lists the files and folders of the base that are not here.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        about = load_yaml(self.folder / "host.yaml")
        if not isinstance(about, Mapping):
            raise ConfigError(f"{self.folder / 'host.yaml'}: expected a mapping with name, boot_id and time")
        base = RecordedHost(self.folder / str(about["base"])) if "base" in about else None
        self.about: Mapping[str, Any] = {**base.about, **about} if base else about
        self.name = str(self.about.get("name", self.folder.name))
        self.boot_id = str(self.about.get("boot_id", "recorded-boot"))
        #: Where files are looked for, the nearest first.
        self.roots: tuple[Path, ...] = (self.folder / "files", *(base.roots if base else ()))
        self._without: tuple[str, ...] = (*about.get("without", ()), *(base._without if base else ()))
        self._commands: dict[tuple[str, ...], Mapping[str, Any]] = dict(base._commands) if base else {}
        for path in sorted(self.folder.glob("commands/*.yaml")):
            entry = load_yaml(path)
            if not isinstance(entry, Mapping) or not isinstance(entry.get("argv"), list):
                raise ConfigError(f"{path}: expected a mapping with argv, a list of words")
            self._commands[tuple(str(word) for word in entry["argv"])] = entry
        listed = self.folder / "listings.yaml"
        listings = load_yaml(listed) if listed.exists() else {}
        self._globs: Mapping[str, list[str]] = {**(base._globs if base else {}), **listings.get("globs", {})}
        self._stats: Mapping[str, list[float]] = {
            **(base._stats if base else {}),
            **listings.get("stats", {}),
        }
        self._errors: Mapping[str, str] = {**(base._errors if base else {}), **listings.get("errors", {})}
        self._absent: frozenset[str] = frozenset(listings.get("absent", ())) | (
            base._absent if base else frozenset()
        )

    def now(self) -> float:
        return float(self.about.get("time", 0.0))

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        entry = self._answer(argv)
        if entry is None:
            raise Unobservable(f"{' '.join(argv[:6])} is not in the recording {self.folder.name}")
        if "error" in entry:
            raise (Absent if entry.get("absent") else Unobservable)(str(entry["error"]))
        seconds = float(entry.get("seconds", 0.0))
        if seconds > timeout_seconds:
            raise Unobservable(f"{_short(argv)} did not answer within {timeout_seconds:g} s")
        return Completed(
            argv,
            int(entry.get("returncode", 0)),
            str(entry.get("stdout", "")),
            str(entry.get("stderr", "")),
            seconds,
        )

    def _answer(self, argv: tuple[str, ...]) -> Mapping[str, Any] | None:
        """What is recorded for `argv`."""
        return self._commands.get(argv)

    def _taken_away(self, path: str) -> bool:
        return any(path == gone or path.startswith(gone.rstrip("/") + "/") for gone in self._without)

    def _has_folder(self, path: str) -> bool:
        return any((root / path.lstrip("/")).is_dir() for root in self.roots)

    def _path(self, path: str) -> Path:
        """Where the recording keeps `path`. Raises Absent when it was not there, Unobservable when nobody
        looked."""
        places = [root / path.lstrip("/") for root in self.roots]
        if not places[0].exists():  # what the recording says itself counts before what its base says
            if path in self._errors:
                raise Unobservable(self._errors[path])
            if path in self._absent or self._taken_away(path):
                raise Absent(f"{path}: no such file")
        found = next((place for place in places if place.exists()), None)
        if found is None:
            kind = Absent if self._has_folder(os.path.dirname(path)) else Unobservable
            raise kind(f"{path} is not in the recording {self.folder.name}")
        return found

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        try:
            data = self._path(path).read_bytes()
        except OSError as exc:
            raise Unobservable(f"{path}: {exc.strerror}") from exc
        return data[offset : None if limit is None else offset + limit].decode("utf-8", "replace")

    def stat(self, path: str) -> FileStat:
        if path in self._stats:
            size, mtime, inode, is_dir = self._stats[path]
            return FileStat(int(size), float(mtime), int(inode), bool(is_dir))
        place = self._path(path)
        info = place.stat()
        return FileStat(info.st_size, self.now(), info.st_ino, place.is_dir())

    def glob(self, pattern: str) -> list[str]:
        """Paths that match, sorted. Raises Unobservable when nobody listed the folder where they would be."""
        if pattern in self._errors:
            raise Unobservable(self._errors[pattern])
        listed = self._globs.get(pattern)
        if listed is None and not self._has_folder(fixed_part(pattern)):
            raise Unobservable(f"{pattern} is not in the recording {self.folder.name}")
        found = set(listed or ())
        for root in self.roots:
            # glob inside the recording; the recording's own path must not be read as a pattern
            found.update("/" + name for name in globbing.glob(pattern.lstrip("/"), root_dir=root))
        return sorted(name for name in found if not self._taken_away(name))


def fixed_part(pattern: str) -> str:
    """The folder above the first part of a pattern that may vary: /proc of /proc/[0-9]*/comm."""
    parts = pattern.split("/")
    fixed = next((n for n, part in enumerate(parts) if globbing.has_magic(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/"


def load_yaml(path: Path) -> Any:
    import yaml

    # the safe loaders build plain values only; the C twin reads a megabyte of output in milliseconds
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return loader(path.read_text(encoding="utf-8")).get_single_data() or {}
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; a recorded host needs this file") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}: not YAML: {exc}") from exc


def dump_yaml(path: Path, value: Any) -> Path:
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    path.write_text(text, encoding="utf-8")
    return path
