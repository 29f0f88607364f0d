"""The parts of an ssh_config that can matter to one host: a file with a thousand hosts is not gone through a
thousand times. Pure but for the reading.

paramiko reads what is left; it knows neither `Include` nor an index. Format: ssh_config(5).
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from clustertools.errors import ConfigError

#: As ssh(1): an Include inside of an Include, and so on.
DEPTH = 16

# "Host gpu1 gpu2", "Match=user root", "  Include conf.d/*"
_BLOCK = re.compile(r"\s*(host|match|include)(?:\s*=\s*|\s+)(.*\S)\s*$", re.IGNORECASE)


class ConfigText:
    """An ssh_config with everything it includes, cut into its Host and Match blocks.

    Raises ConfigError when a file that was named cannot be read.
    """

    def __init__(self, paths: list[tuple[Path, bool]]) -> None:
        """`paths`: files in the order in which they count, and whether each has to be there."""
        self._blocks: list[str] = []
        self._always: list[int] = []
        self._by_name: dict[str, list[int]] = {}
        for path, is_required in paths:
            # what stands before the first block of a file is for all hosts, whatever came before it
            self._open("Host *")
            for line in _lines(path, is_required, DEPTH, "Host *"):
                found = _BLOCK.match(line)
                if found:
                    self._open(f"{found[1]} {found[2]}")
                else:
                    self._blocks[-1] += line + "\n"

    def _open(self, head: str) -> None:
        number = len(self._blocks)
        self._blocks.append(head + "\n")
        kind, _, rest = head.partition(" ")
        try:
            names = shlex.split(rest)
        except ValueError as exc:
            raise ConfigError(f"ssh_config: the line {head!r} cannot be read: {exc}") from exc
        if kind.lower() == "match" or any(c in name for name in names for c in "*?![],"):
            self._always.append(number)
        else:
            for name in names:
                self._by_name.setdefault(name, []).append(number)

    def of(self, host: str) -> str:
        """The text of the blocks that may apply to that host, in their order."""
        wanted = sorted({*self._always, *self._by_name.get(host, ())})
        return "".join(self._blocks[number] for number in wanted)


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
        found = _BLOCK.match(line)
        if not found or found[1].lower() != "include":
            if found:
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
