"""One folder of evidence: private, bounded, written twice without harm, and how long such folders are kept.

    with EvidenceFolder(path, now) as folder:
        folder.add("stacks.txt", text, "n1, n2")
        folder.miss("log-0", "permission denied")

`manifest.json` says of each file where it came from, its bytes and sha256, and of what is missing why.
`missing.txt` says the latter for people.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from clustertools.errors import ActionFailed

MOST_BYTES = 64 << 20
MOST_FILES = 200
#: Of one thing that looked otherwise at another time; those in between tell less than the first and the last.
MOST_VERSIONS = 3
#: An old tail whose end stands in the new one is the same log, further on.
_SEAM_BYTES = 4096
#: All folders together, and how old one gets.
TOTAL_BYTES = 5 << 30
KEPT_SECONDS = 90 * 86400.0
#: 1763692401-JobHung-run-pretrain
_NAME = re.compile(r"(\d{1,12})-(.+)")


@dataclass(frozen=True, slots=True)
class Saved:
    """One file of the folder."""

    source: str
    bytes: int
    sha256: str
    time: float


@dataclass
class EvidenceFolder:
    """A folder that is being filled, a context manager. Raises ActionFailed when it cannot be written.

    What is there stays: another look at the same thing is a file beside it (`stacks-2.txt`), only a log that
    went on takes the place of its own beginning.
    """

    path: Path
    now: float
    because: str = ""
    files: dict[str, Saved] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    #: What this filling told, for people: name -> first line or why not.
    told: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> EvidenceFolder:
        try:
            # stacks, command lines and logs are for the owner's eyes
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as exc:
            raise self._failed(exc) from exc
        self._remember()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        manifest = {
            "schema": 1, "because": self.because, "time": self.now,
            "files": {name: dataclasses.asdict(one) for name, one in sorted(self.files.items())},
            "missing": dict(sorted(self.missing.items())),
        }  # fmt: skip
        lines = "".join(f"{name}: {why}\n" for name, why in sorted(self.missing.items()))
        try:
            self._write("missing.txt", lines.encode("utf-8", "replace"))
            self._write("manifest.json", json.dumps(manifest, indent=1).encode())
        except OSError as exc:
            raise self._failed(exc) from exc

    def add(self, name: str, content: str | bytes, source: str, *, is_log: bool = False) -> str:
        """Save it, and give the name under which it lies; "" when there was no room for it."""
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        digest = hashlib.sha256(data).hexdigest()
        first = data[:400].decode("utf-8", "replace").split("\n")[0][:200]
        self.told[name] = first or "empty"
        self.missing.pop(name, None)
        place = self._place(name, data, digest, is_log)
        if not place:
            return ""
        try:
            if place not in self.files or self.files[place].sha256 != digest:
                self._write(place, data)
                self.files[place] = Saved(source, len(data), digest, self.now)
        except OSError as exc:
            raise self._failed(exc) from exc
        return place

    def miss(self, name: str, why: str) -> None:
        """It could not be seen; what an earlier look saw of it stays."""
        self.told.setdefault(name, f"not seen: {why}")
        if name not in self.files:
            self.missing[name] = f"not seen: {why}"

    def _place(self, name: str, data: bytes, digest: str, is_log: bool) -> str:
        """Under which name it is to lie; "" when it is not to be kept."""
        stem, dot, end = name.rpartition(".")
        names = [name]
        names += [
            f"{stem}-{n}{dot}{end}" if dot and stem else f"{name}-{n}" for n in range(2, MOST_VERSIONS + 1)
        ]
        for each in names:
            old = self.files.get(each)
            if old is None:
                return each if self._has_room(name, len(data)) else ""
            if old.sha256 == digest or (is_log and self._goes_on(each, data)):
                return each if self._has_room(name, max(0, len(data) - old.bytes), new=False) else ""
        self.missing[f"{name} at {self.now:.0f}"] = f"not kept: there are {MOST_VERSIONS} of them"
        return ""

    def _has_room(self, name: str, more: int, *, new: bool = True) -> bool:
        full = len(self.files) + new > MOST_FILES
        if full or sum(one.bytes for one in self.files.values()) + more > MOST_BYTES:
            why = f"{MOST_FILES} files" if full else f"{MOST_BYTES >> 20} MiB"
            self.missing[name] = f"not kept: one incident keeps {why}"
            self.told[name] = f"not seen: {self.missing[name]}"
            return False
        return True

    def _goes_on(self, name: str, data: bytes) -> bool:
        try:
            old = (self.path / name).read_bytes()
        except OSError:
            return True  # it is gone: nothing can be made worse
        return old[-_SEAM_BYTES:] in data

    def _write(self, name: str, data: bytes) -> None:
        half = self.path / f".{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            half.unlink()
        file = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(data)
            half.replace(self.path / name)
        except BaseException:  # whatever it was, it is raised again
            half.unlink()
            raise

    def _remember(self) -> None:
        """What an earlier filling wrote down; where that cannot be read, the files that are there."""
        data = read_manifest(self.path)
        for name, one in data.get("files", {}).items():
            with contextlib.suppress(TypeError):
                self.files[name] = Saved(**one)
        self.missing.update(data.get("missing", {}))
        self.because = self.because or str(data.get("because", ""))
        for path in self.path.iterdir():
            if path.name not in self.files and path.name not in ("manifest.json", "missing.txt"):
                if path.name.startswith("."):
                    path.unlink()  # half of a file, of a filling that broke off
                    continue
                size = path.stat().st_size
                self.files[path.name] = Saved("", size, "", path.stat().st_mtime)

    def _failed(self, exc: OSError) -> ActionFailed:
        return ActionFailed(f"could not save the evidence in {self.path}: {exc.strerror}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty when there is none that can be read."""
    try:
        data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    usable = isinstance(data, dict) and data.get("schema") == 1
    usable = usable and all(isinstance(data.get(key), dict) for key in ("files", "missing"))
    return data if usable else {}


def folder_name(planned_at: float, because: str) -> str:
    """The name of the folder for an incident, by its key."""
    return f"{int(planned_at)}-" + "".join(c if c.isalnum() or c in "-._" else "-" for c in because)[:80]


def tidy(
    root: Path,
    open_keys: Collection[str],
    now: float,
    *,
    total_bytes: int = TOTAL_BYTES,
    kept_seconds: float = KEPT_SECONDS,
) -> list[str]:
    """Remove the oldest folders while there is too much, and those that are too old; gives their names.

    Never one of an open incident, and nothing that is no folder of evidence. To be called once an hour.
    """  # fmt: skip
    kept = {folder_name(0, key).partition("-")[2] for key in open_keys}
    folders = []
    with contextlib.suppress(OSError):
        folders = [p for p in root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    sizes = {p: _size(p) for p in folders}
    total, removed = sum(sizes.values()), []
    for path in sorted(folders, key=lambda p: int(p.name.partition("-")[0])):
        began, _, of = path.name.partition("-")
        is_due = total > total_bytes or now - int(began) > kept_seconds
        if not is_due or of in kept or read_manifest(path).get("because") in open_keys:
            continue
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            total -= sizes[path]
            removed.append(path.name)
    return removed


def _size(folder: Path) -> int:
    size = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(above, name)).st_size
    return size
