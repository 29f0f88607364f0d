"""Writes down every answer of a machine, in the layout that RecordedHost reads.

    recorder = Recorder(LocalHost(), folder)
    run(check, recorder)
    recorder.save({"what": "..."}, scrub)

Of an environment (/proc/PID/environ) only the variables that were named are ever kept: it holds secrets that
no pattern recognises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clustertools.errors import Absent, Unobservable
from clustertools.host import DEFAULT_TIMEOUT_SECONDS, Completed, FileStat, Host, PassingHost, dump_yaml

Scrub = Callable[[str], str]

_ENVIRON = re.compile(r"/proc/(?:\d+|self|thread-self)(?:/task/\d+)?/environ")


class Recorder(PassingHost):
    """A host that passes everything on to `host` and remembers the answers.

    What one look saw is kept together: the longest text of a file, the last answer of a command.
    `keep_variables` are the names of environment variables that may be written.
    """

    def __init__(self, host: Host, folder: str | Path, *, keep_variables: Iterable[str] = ()) -> None:
        super().__init__(host)
        self.folder = Path(folder)
        self.began = host.now()
        self.globs: dict[str, list[str]] = {}
        self.stats: dict[str, list[float]] = {}
        self.errors: dict[str, str] = {}
        self.absent: set[str] = set()
        self.commands: dict[tuple[str, ...], dict[str, Any]] = {}
        self.files: dict[str, str] = {}
        self._keep_variables = frozenset(keep_variables)

    def run(self, *argv: str, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stdin: str = "") -> Completed:
        entry: dict[str, Any] = {"argv": list(argv)}
        self.commands[argv] = entry
        try:
            done = self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)
        except Unobservable as exc:
            entry.update(error=str(exc), absent=isinstance(exc, Absent))
            raise
        entry.update(
            returncode=done.returncode,
            seconds=round(done.elapsed_seconds, 3),
            stdout=done.stdout,
            stderr=done.stderr,
        )
        return done

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        try:
            text = self.host.read(path, offset, limit)
        except Unobservable as exc:
            self._not_seen(path, exc)
            raise
        whole = text if not offset else self.host.read(path, 0, offset + len(text.encode()))
        if _ENVIRON.fullmatch(path):
            whole = self._allowed(whole)
        # a look at the first bytes must not replace the whole that was read before
        if limit is None or len(whole) >= len(self.files.get(path, "")):
            self.files[path] = whole
        return text

    def stat(self, path: str) -> FileStat:
        try:
            info = self.host.stat(path)
        except Unobservable as exc:
            self._not_seen(path, exc)
            raise
        self.stats[path] = [info.size_bytes, info.mtime, info.inode, float(info.is_dir)]
        return info

    def glob(self, pattern: str) -> list[str]:
        try:
            found = self.host.glob(pattern)
        except Unobservable as exc:
            self.errors[pattern] = str(exc)
            raise
        self.globs[pattern] = list(found)
        return found

    def _not_seen(self, path: str, exc: Unobservable) -> None:
        if isinstance(exc, Absent):
            self.absent.add(path)
        else:
            self.errors[path] = str(exc)

    def _allowed(self, environment: str) -> str:
        kept = (e for e in environment.split("\0") if e.partition("=")[0] in self._keep_variables)
        return "".join(f"{entry}\0" for entry in kept)

    def forget(self, unwanted: Callable[[str], bool]) -> None:
        """Leave out what was seen of the paths that are `unwanted`."""
        for known in (self.files, self.stats, self.errors):
            for path in [p for p in known if unwanted(p)]:
                del known[path]
        self.absent = {p for p in self.absent if not unwanted(p)}
        self.globs = {g: [p for p in paths if not unwanted(p)] for g, paths in self.globs.items()}

    def save(self, about: Mapping[str, Any], scrub: Scrub = lambda text: text) -> list[Path]:
        """Write the folder, every text and every path through `scrub` first. Returns the files written."""
        folder = self.folder
        (folder / "commands").mkdir(parents=True, exist_ok=True)
        (folder / "files").mkdir(exist_ok=True)
        about = {"name": self.name, "boot_id": self._boot_id(), "time": self.began, **about}
        written = [dump_yaml(folder / "host.yaml", scrubbed(about, scrub))]
        for number, entry in enumerate(self.commands.values(), 1):
            slug = re.sub(r"[^a-z0-9]+", "-", scrub(" ".join(entry["argv"][:3])).lower()).strip("-")[:40]
            path = folder / "commands" / f"{number:03d}-{slug}.yaml"
            written.append(dump_yaml(path, scrubbed(entry, scrub)))
        stats = dict(self.stats)
        for name, text in self.files.items():
            # whatever a check asked for, nothing is written outside the folder
            path = folder / "files" / os.path.normpath("/" + scrub(name)).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = scrub(text).encode("utf-8", "replace")
            path.write_bytes(kept)
            written.append(path)
            if name in stats and stats[name][0] == len(text.encode("utf-8", "replace")):
                stats[name] = [len(kept), *stats[name][1:]]
        absent = sorted(self.absent - set(self.files) - set(self.stats))
        listings = {"globs": self.globs, "stats": stats, "errors": self.errors, "absent": absent}
        written.insert(1, dump_yaml(folder / "listings.yaml", scrubbed(listings, scrub)))
        return written

    def _boot_id(self) -> str:
        try:
            return self.boot_id
        except Unobservable:
            return ""


def scrubbed(value: Any, scrub: Scrub) -> Any:
    """Plain data with every text, keys too, through `scrub`."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrubbed(k, scrub): scrubbed(v, scrub) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(v, scrub) for v in value]
    return value
