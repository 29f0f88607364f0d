"""The tool as one zip archive, and how it comes onto nodes that have nothing but Python.

    with SshTransport(...) as transport:
        tool = Tool.install(transport, nodes)
        for answer in transport.run(tool.nodes, tool.argv("check", "--request", "-"), stdin=request): ...
        tool.missing                                  # node -> why it could not be installed there

The archive lies in a cache on the node under its hash, so the second look sends nothing. What happens on the
node is `bootstrap`, whose text goes along in the argv.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clustertools import __version__
from clustertools.errors import ConfigError
from clustertools.fleet import Answer, Fate, Transport
from clustertools.host import running_archive
from clustertools.text import plain

#: Distribution -> its package, which nodes need. All are pure Python, or work without their compiled part.
DEPENDENCIES = {"click": "click", "PyYAML": "yaml", "ClusterShell": "ClusterShell", "nvidia-ml-py": "pynvml"}
_OURS = ("clustertools", "clustertools.checks", "clustertools.playbooks")
#: The earliest time that a zip archive can hold: equal content gives equal bytes.
_TIME = (1980, 1, 1, 0, 0, 0)
#: What a node's own Python is called.
PYTHON3 = "python3"
_SHEBANG = b"#!/usr/bin/env python3\n"
#: How long a node may take to say whether it has the archive, and to take it over a slow link.
ASK_SECONDS, STORE_SECONDS = 30.0, 120.0
#: So many nodes are sent the archive at once without a thought of whether their homes are one.
FEW = 16

#: Read by Pythons of any age: an old one must be able to say so.
_MAIN = """\
import sys

if sys.version_info < (3, 10):
    sys.stderr.write("clustertools: Python %d.%d found, 3.10 or newer is needed\\n" % sys.version_info[:2])
    sys.exit(3)
import os

sys.path[0] = os.path.abspath(sys.path[0])  # what is imported later is found from any folder
from clustertools.__main__ import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """One runnable zip archive: `python3 FILE check`. The same content always has the same `sha256`."""

    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def build_archive(target: Path) -> Archive:
    """Write the archive to `target`, whole or not at all. Raises ConfigError when it cannot be built."""
    built = archive()
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(built.data)
        half.chmod(0o755)
        half.replace(target)
    except OSError as exc:
        with contextlib.suppress(OSError):
            half.unlink()
        raise ConfigError(f"could not write the archive {target}: {exc.strerror}") from exc
    return built


@functools.cache
def archive() -> Archive:
    """The archive of this very clustertools; where it runs from one, that one. Raises ConfigError."""
    try:
        running = running_archive()
        return Archive(Path(running).read_bytes() if running else _packed(_contents()))
    except OSError as exc:
        raise ConfigError(f"cannot build the archive for the nodes: {exc}") from exc


def _contents() -> dict[str, bytes]:
    files = {"__main__.py": _MAIN.encode()}
    for package in _OURS:
        files |= dict(_files(package, (".py", ".yaml", ".txt", ".html")))
    for package in DEPENDENCIES.values():
        files |= dict(_files(package, (".py",)))
    for distribution in ("gpu-clustertools", *DEPENDENCIES):
        files |= dict(_notices(distribution))
    return files


def _packed(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO(_SHEBANG)
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            out.writestr(entry, data)
    return packed.getvalue()


def _files(package: str, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(name in the archive, content) of a package or a single module, wherever it is installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ConfigError(f"cannot build the archive for the nodes: {package} is not installed here")
    below = package.replace(".", "/")
    if spec.submodule_search_locations is None:
        yield f"{below}.py", Path(spec.origin or "").read_bytes()
        return
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in root.rglob("*"):
        # what `setup` prints has endings of all kinds
        ours = path.suffix in endings or path.parent.name == "share"
        if ours and "__pycache__" not in path.parts and path.is_file():
            yield f"{below}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _notices(distribution: str) -> Iterator[tuple[str, bytes]]:
    """The licence texts of a distribution, and what it says of itself: author, licence, home."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return  # a checkout that is not installed: its licence lies beside it
    about = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    folder = f"licences/{distribution}"
    yield f"{folder}/METADATA", about.encode()
    for path in found.files or ():
        # licenses/LICENSE.txt, COPYING.LGPLv2.1; never a module called notices.py
        if (
            re.match(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", path.name, re.IGNORECASE)
            and path.suffix != ".py"
        ):
            yield f"{folder}/{path.name}", Path(str(found.locate_file(path))).read_bytes()


@functools.cache
def bootstrap() -> str:
    """The program text for `python3 -c`: `bootstrap.py` without its comments and docstrings."""
    spec = importlib.util.find_spec("clustertools.fleet.bootstrap")
    assert spec is not None
    tree = ast.parse(spec.loader.get_data(spec.origin or ""))  # type: ignore[union-attr]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@dataclass(frozen=True, slots=True)
class Ready:
    """A node that can run the tool: by which Python, and from which archive or installed command.

    `refused` says of each better place for the archive why it could not be used.
    """

    interpreter: str
    path: str
    is_installed: bool = False
    was_sent: bool = False
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """clustertools on a set of nodes. `missing` has an Answer, with its reason, for each node without it."""

    python: str
    digest: str
    command: str
    ready: Mapping[str, Ready]
    missing: Mapping[str, Answer]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that can run it."""
        return tuple(self.ready)

    @classmethod
    def install(
        cls,
        transport: Transport,
        nodes: Sequence[str],
        *,
        python: str = PYTHON3,
        installed: str | None = "clustertools",
    ) -> Tool:
        """Ask every node for the archive, and send it to those that lack it; a node's trouble stays its own.

        Where `python` is older than 3.10, a newer one of that node is looked for. A node that has the command
        `installed`, of our version, is sent nothing; with None, and with a `python` of the caller's choice,
        every node is. Raises ConfigError when no archive can be built.
        """
        command = (installed or "") if python == PYTHON3 else ""
        tool = cls(python, archive().sha256, command, {}, {})
        installing = _Installing(transport, tool)
        lacking = installing.ask(nodes)
        if len(lacking) > FEW:
            # with a home that all share, one node writes for all of them
            installing.store(lacking[:1])
            if not installing.ask(lacking[1:2]):
                lacking = installing.ask(lacking[2:])
            else:
                lacking = lacking[1:]
        installing.store(lacking)
        for node in nodes:
            if node not in installing.ready and node not in installing.missing:
                lost = Answer(node, Fate.LOST, reason="the transport said nothing of this node")
                installing.missing[node] = lost
        return replace(tool, ready=installing.ready, missing=installing.missing)

    @classmethod
    def there(cls, nodes: Sequence[str], command: str = "clustertools") -> Tool:
        """The tool on nodes where `command` is installed, or is all that sshd lets us run. Asks nobody."""
        return cls("", "", command, {node: Ready("", command, is_installed=True) for node in nodes}, {})

    def argv(self, *words: str, python: str = "") -> tuple[str, ...]:
        """One argv for all nodes that runs `clustertools WORDS`.

        With the path of a `python`, say the job's own with its torch, it is run by that one and by no other;
        raises ValueError when the nodes may lack the archive, since the command was installed on them.
        """
        if not self.digest and not python:
            return (self.command, *words)
        if not python or python == PYTHON3:
            return (*self._bootstrap("run"), *words)
        if self.command:
            raise ValueError(
                "another Python needs the archive on each node: install the tool with installed=None"
            )
        return (python, *self._bootstrap("with")[1:], *words)

    def _bootstrap(self, mode: str) -> tuple[str, ...]:
        return (self.python, "-I", "-c", bootstrap(), mode, self.digest, __version__, self.command)


class _Installing:
    """One installation under way: which nodes are ready, and which will not be."""

    def __init__(self, transport: Transport, tool: Tool) -> None:
        self.transport, self.tool = transport, tool
        self.ready: dict[str, Ready] = {}
        self.missing: dict[str, Answer] = {}

    def ask(self, nodes: Sequence[str]) -> list[str]:
        """Those that could run the tool and lack it, the quickest first."""
        lacking = []
        argv = self.tool._bootstrap("ask")
        for answer in self.transport.run(nodes, argv, timeout_seconds=ASK_SECONDS) if nodes else ():
            told = _told(answer)
            if told.get("state") == "absent":
                lacking.append(answer.node)
            elif told.get("state") == "ready":
                self.ready[answer.node] = _ready(told)
            else:
                self.missing[answer.node] = replace(answer, reason=_why(answer, told))
        return lacking

    def store(self, nodes: Sequence[str]) -> None:
        """Send the archive."""
        argv, data = self.tool._bootstrap("store"), archive().data
        run = self.transport.run
        for answer in run(nodes, argv, stdin=data, timeout_seconds=STORE_SECONDS) if nodes else ():
            told = _told(answer)
            if told.get("state") == "ready":
                self.ready[answer.node] = replace(_ready(told), was_sent=True)
            else:
                self.missing[answer.node] = replace(answer, reason=_why(answer, told))


def _told(answer: Answer) -> Mapping[str, Any]:
    """What the bootstrap printed; a login script may have printed before it. Empty when it did not."""
    for line in reversed(answer.completed.stdout.splitlines() if answer.completed else []):
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and told.get("clustertools_bootstrap") == 1:
            return told
    return {}


def _ready(told: Mapping[str, Any]) -> Ready:
    installed = str(told.get("installed") or "")
    problems = told.get("problems")
    refused = tuple(plain(str(one), 300) for one in problems) if isinstance(problems, list) else ()
    return Ready(
        str(told.get("interpreter")), installed or str(told.get("path")), bool(installed), refused=refused
    )


def _why(answer: Answer, told: Mapping[str, Any]) -> str:
    """Why the tool is not there, in the node's words or the transport's."""
    problems = told.get("problems")
    if isinstance(problems, list) and problems:
        return plain("; ".join(map(str, problems)), 600)
    if answer.completed is None:
        return answer.reason
    said = _last_line(answer.completed.stderr) or _last_line(answer.completed.stdout) or "it said nothing"
    code = answer.completed.returncode
    return f"Python did not run there (exit code {code}): {plain(said, 300)}"


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _main(words: Iterable[str]) -> int:
    """`make pyz`: write the archive to the path that is given."""
    for word in words:
        built = build_archive(Path(word))
        sys.stdout.write(f"{word}  {len(built.data)} bytes  sha256 {built.sha256}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
