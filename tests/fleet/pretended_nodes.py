"""Nodes that are folders of this machine: each has a home and a PATH of its own, and nothing else of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clustertools.fleet import NODE_VARIABLE, Answer, Conversation, Fate
from clustertools.host import Completed

#: The interpreter below the virtual environment: it has none of our dependencies.
BARE = os.path.realpath(sys.executable)


class PretendedNodes:
    """A transport whose nodes are environments. `asked` holds (argv, bytes sent) of every program started."""

    name = "pretended"

    def __init__(self, nodes: Mapping[str, Mapping[str, str]]) -> None:
        self.nodes = nodes
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    def run(
        self, nodes: Sequence[str], argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 60.0
    ) -> Iterator[Answer]:
        for node in nodes:
            environment = self.nodes[node]
            self.asked.append((node, tuple(argv), len(stdin)))
            program = argv[0]
            if "/" not in program:
                folders = [Path(folder) for folder in environment["PATH"].split(":")]
                program = next((str(f / program) for f in folders if (f / program).exists()), "")
            if not program:
                missing = Completed(tuple(argv), 127, "", f"sh: {argv[0]}: command not found\n")
                yield Answer(node, Fate.COMPLETED, missing)
                continue
            try:
                done = subprocess.run(
                    [program, *argv[1:]],
                    input=stdin,
                    capture_output=True,
                    env={**environment, NODE_VARIABLE: node},
                    cwd="/",
                    timeout=timeout_seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired as exc:
                said = (exc.stdout or b"").decode("utf-8", "replace")
                yield Answer(node, Fate.TIMEOUT, None, f"no end within {timeout_seconds:g} s", said)
                continue
            out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
            yield Answer(node, Fate.COMPLETED, Completed(tuple(argv), done.returncode, out, err))

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> Conversation:
        raise NotImplementedError

    def close(self) -> None:
        pass


def program(path: Path, text: str) -> Path:
    """Write an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def pretended_node(folder: Path) -> dict[str, str]:
    """The environment of a node that has a home and `python3`, and nothing else on its PATH."""
    (folder / "home").mkdir(parents=True)
    program(folder / "bin/python3", f'#!/bin/sh\nexec {BARE} "$@"\n')
    return {"HOME": str(folder / "home"), "PATH": str(folder / "bin")}
