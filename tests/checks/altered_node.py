"""A recorded node with some answers altered by the test, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clustertools.errors import Absent
from clustertools.host import Completed, FileStat, PassingHost, RecordedHost
from tests.conftest import HOSTS

Answer = str | Exception | Completed


class AlteredNode(PassingHost):
    """The recording `base`, except for `files`, `globs` and `commands` (by their words, or the first ones).

    An answer that is an exception is raised; a file that is None was removed.
    """

    def __init__(self, base: str = "h100-healthy") -> None:
        recorded = RecordedHost(HOSTS / base)
        super().__init__(recorded)
        self.expect: Mapping[str, Any] = recorded.about["expect"]
        self.files: dict[str, str | Exception | None] = {}
        self.commands: dict[tuple[str, ...], Answer] = {}
        self.globs: dict[str, list[str]] = {}
        self.time = recorded.now()
        self.boot = recorded.boot_id

    @property
    def boot_id(self) -> str:
        return self.boot

    def now(self) -> float:
        return self.time

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        for count in range(len(argv), 0, -1):
            answer = self.commands.get(argv[:count])
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer if isinstance(answer, Completed) else Completed(argv, 0, answer, "")
        return self.host.run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path not in self.files:
            return self.host.read(path, offset, limit)
        text = self.files[path]
        if text is None:
            raise Absent(f"{path}: no such file")
        if isinstance(text, Exception):
            raise text
        return text

    def stat(self, path: str) -> FileStat:
        return self.host.stat(path)

    def glob(self, pattern: str) -> list[str]:
        return self.globs[pattern] if pattern in self.globs else self.host.glob(pattern)
