"""What an ssh_config says of one host, for files with a thousand hosts: each is read once and has an index.

paramiko goes through all of the file for each host, and knows no `Include`; it is asked only where the file
has `Match` or looks names up (CanonicalizeHostname). Format: ssh_config(5).
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clustertools.errors import ConfigError

#: As ssh(1): an Include inside of an Include, and so on.
DEPTH = 16

# "HostName gpu1.example", "Port=2200", "  Include conf.d/*"
_SETTING = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*\S)\s*$")


@dataclass(slots=True)
class _Block:
    """A Host or Match line and what stands below it, as text and read."""

    text: str
    patterns: tuple[str, ...]
    settings: list[tuple[str, str]] = field(default_factory=list)

    def is_for(self, host: str) -> bool:
        """`!` refuses whatever else matches."""
        found = False
        for pattern in self.patterns:
            if fnmatch.fnmatchcase(host, pattern.removeprefix("!")):
                if pattern.startswith("!"):
                    return False
                found = True
        return found


class ConfigText:
    """The ssh_config files with everything that they include.

    `read_hard` is asked, with the text of the blocks that may matter and the host, where Match is used.
    Raises ConfigError when a file that has to be there is not, or cannot be read.
    """

    def __init__(
        self, paths: list[tuple[Path, bool]], read_hard: Callable[[str, str], Mapping[str, Any]]
    ) -> None:
        """`paths`: files in the order in which they count, and whether each has to be there."""
        self._read_hard = read_hard
        self._blocks: list[_Block] = []
        self._always: list[int] = []
        self._by_name: dict[str, list[int]] = {}
        self._is_hard = False
        for path, is_required in paths:
            # what stands before the first block of a file is for all hosts, whatever came before it
            self._open("Host", "*")
            for line in _lines(path, is_required, DEPTH, "Host *"):
                self._take(path, line)

    def _take(self, path: Path, line: str) -> None:
        if not line.strip() or line.lstrip().startswith("#"):
            return
        found = _SETTING.match(line)
        if not found:
            raise ConfigError(f"{path}: the line {line.strip()!r} cannot be read")
        keyword, value = found[1].lower(), found[2]
        if keyword in ("host", "match"):
            self._open(found[1], value)
            return
        if keyword == "canonicalizehostname" and value.lower() != "no":
            self._is_hard = True
        if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1]:
            value = value[1:-1]
        block = self._blocks[-1]
        block.text += line + "\n"
        block.settings.append((keyword, value))

    def _open(self, keyword: str, rest: str) -> None:
        number = len(self._blocks)
        try:
            names = tuple(shlex.split(rest))
        except ValueError as exc:
            raise ConfigError(f"ssh_config: the line {keyword} {rest!r} cannot be read: {exc}") from exc
        is_match = keyword.lower() == "match"
        self._is_hard = self._is_hard or is_match
        self._blocks.append(_Block(f"{keyword} {rest}\n", () if is_match else names))
        if is_match or any(c in name for name in names for c in "*?!"):
            self._always.append(number)
        else:
            for name in names:
                self._by_name.setdefault(name, []).append(number)

    def of(self, host: str) -> Mapping[str, Any]:
        """What it says of the host, by keyword in lower case. The first value counts; of `identityfile` all.

        Raises ValueError where paramiko cannot read it.
        """
        wanted = [self._blocks[n] for n in sorted({*self._always, *self._by_name.get(host, ())})]
        if self._is_hard:
            return self._read_hard("".join(block.text for block in wanted), host)
        says: dict[str, Any] = {}
        files: list[str] = []
        for block in wanted:
            if block.is_for(host):
                for keyword, value in block.settings:
                    if keyword == "identityfile":
                        files.append(value)
                    else:
                        says.setdefault(keyword, value)
        return {**says, "identityfile": list(dict.fromkeys(files))} if files else says


def _lines(path: Path, is_required: bool, depth: int, block: str) -> Iterator[str]:
    """The lines of a file, with the lines of the files that it includes in their place."""
    try:
        text = path.read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError) as exc:
        if is_required:
            raise ConfigError(f"the ssh configuration {path} does not exist") from exc
        return
    except OSError as exc:
        raise ConfigError(f"the ssh configuration {path} cannot be read: {exc.strerror}") from exc
    for line in text.splitlines():
        found = _SETTING.match(line)
        if not found or found[1].lower() != "include":
            if found and found[1].lower() in ("host", "match"):
                block = line
            yield line
            continue
        if depth <= 0:
            raise ConfigError(f"{path}: more than {DEPTH} files include each other; the last was {found[2]}")
        for pattern in shlex.split(found[2]):
            # a relative name is looked for beside the user's own configuration, as ssh(1) does
            whole = os.path.join(os.path.expanduser("~/.ssh"), os.path.expanduser(pattern))
            for name in sorted(glob.glob(whole)):
                yield from _lines(Path(name), False, depth - 1, block)
                # a block that the other file began ends with it
                yield block
