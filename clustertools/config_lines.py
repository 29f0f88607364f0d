"""YAML text as a tree that remembers the line of every value, so that every complaint can name it.

Only plain YAML is read: mappings, lists and scalars. Tags are refused, nothing is ever constructed from one;
depth and size are bounded, so a hostile file is an error and not a full memory. Scalars follow the YAML 1.2
core rules: `no`, `12:30` and `2024-01-01` are text, not a boolean, a number in base 60 and a date.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clustertools.errors import ConfigError

#: A config for a large site is some 50 kB; a megabyte is a mistake or an attack.
LARGEST_BYTES = 1 << 20
DEEPEST = 20
MOST_VALUES = 50_000

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it was written. `value` is a dict or list of Nodes, or a plain scalar.

    `text` is a scalar as it was typed, for fields that are text: a cluster called 007 stays 007.
    `origin` is "FILE:LINE", or "-o" for one from the command line.
    """

    value: Any
    origin: str
    text: str = ""

    @property
    def plain(self) -> Any:
        """The value as Python data, without origins."""
        if isinstance(self.value, dict):
            return {k: v.plain for k, v in self.value.items()}
        return [v.plain for v in self.value] if isinstance(self.value, list) else self.value

    @property
    def shown(self) -> str:
        """What stands there, short enough for a message."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        return "nothing" if self.value is None else repr(self.text[:40])


@dataclass(slots=True)
class Problems:
    """Every complaint so far, each once, in the order found."""

    found: dict[str, None] = field(default_factory=dict)

    def add(self, origin: str, path: str, text: str) -> None:
        """`origin` and `path` may be empty; `text` says what is wrong and what to write."""
        self.found[": ".join(x for x in (origin, path, text) if x)] = None

    def stop(self) -> None:
        """Raises ConfigError with all of them, when there is any."""
        if self.found:
            raise ConfigError(*self.found)


class _TooMuch(yaml.MarkedYAMLError):
    """The file is deeper than any config needs to be."""


class _Loader(yaml.SafeLoader):
    """Composes nodes and never constructs; knows its depth."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooMuch(problem=f"more than {DEEPEST} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# "0", "-12", "1.5", ".5", "1e-3". Not 010, which is 8 or 10 depending on whom one asks; not .inf
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?")
_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str | None]], ...] = (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(_INT.pattern + "$"), list("-+0123456789")),
    ("float", re.compile(r"(?!0[0-9])" + _FLOAT.pattern + "$"), list("-+0123456789.")),
    ("merge", re.compile(r"<<$"), ["<"]),
)
for _name, _regexp, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _regexp, _first)


class Dumper(yaml.SafeDumper):
    """Quotes what our rules or YAML 1.1 would take for something else, escapes what cannot be seen."""

    yaml_implicit_resolvers = {
        first: [*_Loader.yaml_implicit_resolvers.get(first, []), *known]
        for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _represent_text)


def read_file(path: Path, problems: Problems, *, must_exist: bool = True) -> Node | None:
    """The tree of one YAML file; None when it is empty, or unusable (then `problems` says why)."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        if must_exist:
            problems.add(str(path), "", "no such file")
        return None
    except OSError as exc:
        problems.add(str(path), "", f"cannot be read: {exc.strerror}")
        return None
    if len(raw) > LARGEST_BYTES:
        problems.add(str(path), "", f"larger than {LARGEST_BYTES >> 20} MiB, which no config needs")
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        problems.add(f"{path}:{line}", "", "not UTF-8 text; save the file as UTF-8")
        return None
    return read_text(text, str(path), problems)


def read_text(text: str, name: str, problems: Problems, *, numbered: bool = True) -> Node | None:
    """The tree of YAML `text` from `name`; None when it is empty, or unusable (then `problems` says why)."""
    try:
        root = yaml.compose(text, Loader=_Loader)  # a SafeLoader that does not even construct
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f":{mark.line + 1}" if mark and numbered else ""
        problems.add(f"{name}{line}", "", _syntax_advice(exc))
        return None
    except yaml.reader.ReaderError as exc:
        line = f":{text.count(chr(10), 0, exc.position) + 1}" if numbered else ""
        problems.add(f"{name}{line}", "", f"the character U+{exc.character:04X} is not allowed in YAML")
        return None
    except (ValueError, OverflowError) as exc:  # PyYAML on "\UFFFFFFFF", which is no character
        problems.add(name, "", f"not YAML: {exc}")
        return None
    if root is None:
        return None
    return _Converter(name, problems, numbered).convert(root, "", _line_of(root))


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_advice(exc: yaml.MarkedYAMLError) -> str:
    said = exc.problem or exc.context or "not YAML"
    if "'\\t'" in said:
        return "a tab character; indent with spaces"
    if "mapping values are not allowed" in said:
        return "not YAML: a second ':' on the line, or wrong indentation; put text that holds ': ' in quotes"
    if "expected a single document" in (exc.context or ""):
        return "a second document begins here; one file holds one document"
    began = exc.context_mark
    where = f" ({exc.context}, begun on line {began.line + 1})" if exc.context and began else ""
    return f"not YAML: {said}{where}"


class _Converter:
    """Turns PyYAML's nodes into ours, and refuses what config has no use for."""

    def __init__(self, name: str, problems: Problems, numbered: bool) -> None:
        self.name, self.problems, self.numbered = name, problems, numbered
        self.count = 0
        self.open: set[int] = set()

    def origin(self, line: int) -> str:
        return f"{self.name}:{line}" if self.numbered else self.name

    def convert(self, node: yaml.Node, path: str, line: int) -> Node | None:
        """`line` is the one to blame: that of the key, for a value in a mapping."""
        self.count += 1
        if self.count > MOST_VALUES:
            if self.count == MOST_VALUES + 1:
                self.problems.add(self.origin(line), path, f"more than {MOST_VALUES} values; fewer aliases")
            return None
        if id(node) in self.open:
            self.problems.add(self.origin(line), path, "an alias that contains itself")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return Node(self._mapping(node, path), self.origin(line))
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                items = (self.convert(v, f"{path}[{i}]", _line_of(v)) for i, v in enumerate(node.value))
                return Node([v for v in items if v is not None], self.origin(line))
            if isinstance(node, yaml.ScalarNode) and node.tag in _SCALAR_TAGS | {_TAG + "merge"}:
                return Node(_scalar(node), self.origin(line), node.value)
        finally:
            self.open.discard(id(node))
        tag = node.tag.replace(_TAG, "!!")[:60]
        self.problems.add(self.origin(line), path, f"the tag {tag} is not allowed; write a plain value")
        return None

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Node]:
        values: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        first: dict[str, int] = {}
        for key, value in node.value:
            line = _line_of(key)
            if (
                not isinstance(key, yaml.ScalarNode)
                or not key.value
                or key.tag not in _SCALAR_TAGS | {_TAG + "merge"}
            ):
                self.problems.add(self.origin(line), path, "a key must be one plain word")
                continue
            if key.tag == _TAG + "merge":
                merged = {**self._merged(value, path), **merged}
                continue
            name = str(key.value)
            inside = join(path, name)
            if name in first:
                self.problems.add(
                    self.origin(line), inside, f"written twice; the first is on line {first[name]}"
                )
                continue
            first[name] = line
            if isinstance(value, yaml.ScalarNode) and is_secret(name):
                self.problems.add(self.origin(line), inside, secret_advice(name))
                continue
            converted = self.convert(value, inside, line)
            if converted is not None:
                values[name] = converted
        return {**merged, **values}

    def _merged(self, value: yaml.Node, path: str) -> dict[str, Node]:
        """The keys that `<<: *anchor` brings in; those written beside it win."""
        result: dict[str, Node] = {}
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            converted = self.convert(source, path, _line_of(source))
            if converted is None:
                continue
            if not isinstance(converted.value, dict):
                self.problems.add(self.origin(_line_of(value)), path, "<< takes a mapping or a list of them")
                continue
            result = {**converted.value, **result}
        return result


def _scalar(node: yaml.ScalarNode) -> Any:
    """The Python value of a scalar; text whenever it is in doubt (an explicit `!!int x` is the text x)."""
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int" and _INT.fullmatch(text):
        return int(text)
    if kind == "float" and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


# "token", "slack_token", "webhook_url", "api_key"
_SECRET = re.compile(
    r"(?:.*[_-])?(?:token|password|passwd|secret|webhook|webhook[_-]?url|api[_-]?key|routing[_-]?key)"
)


def is_secret(key: str) -> bool:
    """Whether a key of this name would hold a secret itself, not the place where it is kept."""
    return _SECRET.fullmatch(key.lower()) is not None


def secret_advice(key: str) -> str:
    """What to write instead of a secret. The value is never repeated."""
    name = "webhook" if "webhook" in key.lower() else "token"
    return f"a secret does not belong in config; write {name}_file or {name}_env"


# "policy.mode", "jobs.\"llama.70b\".log": words between dots, quoted when they hold a dot
_WORD = re.compile(r'"([^"]+)"|([^."]+)')


def join(path: str, key: str) -> str:
    """`path` with `key` at its end, quoted when it holds a dot: what `split` takes apart."""
    word = f'"{key}"' if "." in key else key
    return f"{path}.{word}" if path else word


def split(path: str) -> list[str]:
    """The keys of `a.b."c.d"`. Raises ValueError when it is not of that form."""
    words, at = [], 0
    while True:
        match = _WORD.match(path, at)
        if match is None:
            raise ValueError(path)
        words.append(match[1] or match[2])
        at = match.end()
        if at == len(path):
            return words
        if path[at] != ".":
            raise ValueError(path)
        at += 1


def read_override(text: str, problems: Problems) -> Node | None:
    """`path.to.key=value` as a tree of its own, its value read as YAML; None when it is not of that form.

    The complaint does not repeat the value: it might be somebody's token.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    try:
        keys = split(path)
    except ValueError:
        keys = []
    if not equals or not keys:
        problems.add(f"-o {path}", "", "not of the form path.to.key=value, as in policy.mode=ask")
        return None
    if is_secret(keys[-1]):
        problems.add(f"-o {path}", "", secret_advice(keys[-1]))
        return None
    if len(keys) > DEEPEST:
        problems.add(f"-o {path[:40]}...", "", f"more than {DEEPEST} levels deep")
        return None
    before = len(problems.found)
    node = read_text(value, f"-o {path}", problems, numbered=False)
    if len(problems.found) > before:
        return None
    node = Node(None, f"-o {path}") if node is None else node
    for key in reversed(keys):
        node = Node({key: node}, f"-o {path}")
    return node


def merge(layers: Iterable[Node]) -> Node:
    """One tree in which the later layer wins: mappings are merged key by key, all else is replaced.

    A key that is there without a value (`checks:` with everything below it commented out) changes nothing
    when an earlier layer has a mapping there.
    """
    result = Node({}, "default")
    for layer in layers:
        result = _over(result, layer)
    return result


def _over(below: Node, above: Node) -> Node:
    if not isinstance(below.value, dict):
        return above
    if above.value is None:
        return below
    if not isinstance(above.value, dict):
        return above
    keys = {**below.value, **above.value}
    return Node(
        {
            k: _over(below.value[k], above.value[k]) if k in below.value and k in above.value else v
            for k, v in keys.items()
        },
        above.origin,
    )
