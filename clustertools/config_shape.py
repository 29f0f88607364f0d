"""Between dataclasses and YAML: reading with every complaint, writing back, and the JSON Schema.

One rule gives the YAML key of a field: its name without `_seconds`, `_bytes`, `_bits_per_second` or
`_bytes_per_second`, since the value carries that unit (`interval_seconds` is `interval: 5m`). Two fields
that would share a key keep their full names.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from clustertools.config_lines import Node, Problems, join
from clustertools.config_units import Unit, unit_of
from clustertools.model import Status

T = TypeVar("T")

#: Stands for a value that was wrong; the problem is already noted.
WRONG: Any = object()


def option(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field of a config dataclass: its default, one line of explanation, and the range of a number."""
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """One field of a dataclass, as the YAML sees it."""

    name: str
    key: str
    kind: Any
    unit: Unit | None
    field: dataclasses.Field[Any]

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def default(self) -> Any:
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return self.field.default


@functools.cache
def slots(record: type) -> dict[str, Slot]:
    """The fields of a dataclass by their YAML key."""
    hints = typing.get_type_hints(record)
    fields = [f for f in dataclasses.fields(record) if f.init]
    units = {f.name: unit_of(f.name) if _numeric(hints[f.name]) else None for f in fields}
    bare = {f.name: f.name.removesuffix(u.suffix) if (u := units[f.name]) else f.name for f in fields}
    keys = [*bare.values()]
    found = (
        Slot(
            f.name, bare[f.name] if keys.count(bare[f.name]) == 1 else f.name, hints[f.name], units[f.name], f
        )
        for f in fields
    )
    return {slot.key: slot for slot in found}


def _numeric(kind: Any) -> bool:
    """Whether numbers are in there: a `report_bytes: bool` has no unit."""
    return kind in (int, float) or any(_numeric(arg) for arg in typing.get_args(kind))


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or what there is to choose from."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(known)}" if 0 < len(known) <= 12 else ""


class Reader:
    """Turns a tree into a value of a type, and notes everything that is wrong on the way.

    `whole` says that the tree is all there is: only then is a missing key a problem.
    """

    def __init__(self, problems: Problems, *, whole: bool = True) -> None:
        self.problems = problems
        self.whole = whole

    def wrong(self, node: Node, path: str, text: str) -> Any:
        self.problems.add(node.origin, path, text)
        return WRONG

    def read(self, kind: Any, node: Node, path: str, slot: Slot | None = None) -> Any:
        """`node` as a `kind`, or WRONG. Units and ranges are those of `slot`."""
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self._union(args, node, path, slot)
        if origin is Literal:
            return self._choice(args, node, path)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            return self.record(kind, node, path)
        shape = origin or kind
        if isinstance(shape, type) and shape in (tuple, list, set, frozenset):
            return self._sequence(shape, args[0] if args else Any, node, path, slot)
        if isinstance(shape, type) and issubclass(shape, Mapping):
            return self._mapping(args or (str, Any), node, path, slot)
        if kind is Any:
            return node.plain
        return self._scalar(kind, node, path, slot)

    def record(self, kind: type[T], node: Node, path: str) -> T:
        """`node` as a dataclass. An empty node is one with all defaults."""
        known = slots(typing.cast(type, kind))
        entries = self._entries(node, path)
        if entries is WRONG:
            return WRONG  # type: ignore[no-any-return]
        values: dict[str, Any] = {}
        for key, value in entries.items():
            slot = known.get(key)
            if slot is None:
                self.wrong(value, join(path, key), f"unknown key{_key_advice(key, known)}")
            elif value.value is not None or _optional(slot.kind) or slot.required:
                values[slot.name] = self.read(slot.kind, value, join(path, key), slot)
            elif not _sectional(slot.kind):
                self.wrong(value, join(path, key), "has no value; write one or remove the key")
        missing = [s for s in known.values() if s.required and s.key not in entries]
        if self.whole:
            for slot in missing:
                self.wrong(node, path, f"{slot.key} is missing: {slot.field.metadata.get('doc', '')}")
        if missing or any(v is WRONG for v in values.values()):
            return WRONG  # type: ignore[no-any-return]
        try:
            return kind(**values)
        except ValueError as exc:  # a limit class may check itself
            return self.wrong(node, path, str(exc))  # type: ignore[no-any-return]

    def _entries(self, node: Node, path: str) -> Any:
        if node.value is None:
            return {}
        if not isinstance(node.value, dict):
            return self.wrong(node, path, f"expected a mapping (key: value), not {node.shown}")
        return node.value

    def _mapping(self, kinds: tuple[Any, ...], node: Node, path: str, slot: Slot | None) -> Any:
        entries = self._entries(node, path)
        if entries is WRONG:
            return WRONG
        key_kind, kind = kinds
        values = {
            self._key(key_kind, k, v, path): self._item(kind, v, join(path, k), slot, k)
            for k, v in entries.items()
        }
        return WRONG if any(v is WRONG for pair in values.items() for v in pair) else values

    def _key(self, kind: Any, key: str, node: Node, path: str) -> Any:
        if kind is not int:
            return key
        return (
            int(key)
            if re.fullmatch(r"[0-9]{1,9}", key)
            else self.wrong(node, join(path, key), "expected a whole number as key")
        )

    def _item(self, kind: Any, node: Node, path: str, slot: Slot | None, key: str) -> Any:
        # a free mapping (`expect`): the key itself says the unit, and a text value is read with it
        unit = unit_of(key) if kind is Any else None
        if unit is None or not isinstance(node.value, str):
            return self.read(kind, node, path, slot)
        try:
            return unit.parse(node.text)
        except ValueError as exc:
            return self.wrong(node, path, str(exc))

    def _sequence(self, shape: type, kind: Any, node: Node, path: str, slot: Slot | None) -> Any:
        if isinstance(node.value, dict):
            return self.wrong(node, path, "expected a list, not a mapping")
        items = node.value if isinstance(node.value, list) else [node]  # one item needs no brackets
        values = [self.read(kind, item, f"{path}[{i}]", slot) for i, item in enumerate(items)]
        return WRONG if any(v is WRONG for v in values) else shape(values)

    def _union(self, args: tuple[Any, ...], node: Node, path: str, slot: Slot | None) -> Any:
        choices = [a for a in args if a is not type(None)]
        if node.value is None and len(choices) < len(args):
            return None
        if len(choices) == 1:
            return self.read(choices[0], node, path, slot)
        for choice in choices:
            quiet = Reader(Problems(), whole=self.whole)
            value = quiet.read(choice, node, path, slot)
            if value is not WRONG:
                return value
        return self.wrong(node, path, f"expected {' or '.join(map(_name, choices))}, not {node.shown}")

    def _choice(self, choices: tuple[Any, ...], node: Node, path: str) -> Any:
        for choice in choices:
            if node.value == choice or node.text == choice:
                return choice
        known = [str(c) for c in choices]
        near = difflib.get_close_matches(node.text.lower(), known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return self.wrong(node, path, f"expected one of {', '.join(known)}, not {node.shown}{hint}")

    def _scalar(self, kind: Any, node: Node, path: str, slot: Slot | None) -> Any:
        if isinstance(node.value, (dict, list)) or node.value is None:
            return self.wrong(node, path, f"expected {_name(kind)}, not {node.shown}")
        if kind in (int, float) and slot is not None and slot.unit is not None:
            return self._quantity(kind, node, path, slot)
        if kind is str:
            return node.text if not isinstance(node.value, bool) else self._quoted(node, path)
        if kind is bool:
            answer = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
            value = answer.get(node.text.lower(), WRONG)
        elif kind is Status:
            value = Status.__members__.get(node.text.upper(), WRONG)
        elif kind is int and type(node.value) is int:
            value = node.value
        elif kind is float and type(node.value) in (int, float):
            value = float(node.value)
        else:
            value = WRONG
        if value is WRONG:
            return self.wrong(node, path, f"expected {_name(kind)}, not {node.shown}")
        return self._ranged(value, node, path, slot)

    def _quoted(self, node: Node, path: str) -> Any:
        return self.wrong(
            node, path, f'expected text, not {node.text}; write "{node.text}" if that is the text'
        )

    def _quantity(self, kind: type, node: Node, path: str, slot: Slot) -> Any:
        assert slot.unit is not None
        try:
            value = slot.unit.parse(node.text)
        except ValueError as exc:
            return self.wrong(node, path, str(exc))
        if kind is int and value != int(value):
            return self.wrong(node, path, f"{node.text!r} is not a whole number of {slot.unit.suffix[1:]}")
        return self._ranged(kind(value), node, path, slot)

    def _ranged(self, value: Any, node: Node, path: str, slot: Slot | None) -> Any:
        least = slot.field.metadata.get("at_least") if slot else None
        most = slot.field.metadata.get("at_most") if slot else None
        show = slot.unit.format if slot and slot.unit else "{:g}".format
        if least is not None and value < least:
            return self.wrong(node, path, f"must be at least {show(least)}, not {node.text}")
        if most is not None and value > most:
            return self.wrong(node, path, f"must be at most {show(most)}, not {node.text}")
        return value


def _key_advice(key: str, known: Mapping[str, Slot]) -> str:
    for slot in known.values():
        if slot.name == key and slot.unit:
            return f"; write {slot.key}, with the unit in its value ({slot.unit.what})"
    return nearest(key, known)


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _sectional(kind: Any) -> bool:
    """Whether an empty value means "nothing below it": a section with all its lines commented out."""
    shape = typing.get_origin(kind) or kind
    return isinstance(shape, type) and (
        dataclasses.is_dataclass(shape) or issubclass(shape, (Mapping, tuple, list, set, frozenset))
    )


def _name(kind: Any) -> str:
    if kind is Status:
        return "one of " + ", ".join(s.name for s in Status)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(kind, "a mapping" if dataclasses.is_dataclass(kind) else str(kind))


def leaves(
    value: Any, keys: tuple[str, ...] = (), unit: Unit | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in `value` with the keys that lead to it, spelled as in YAML. None is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for key, slot in slots(type(value)).items():
            yield from leaves(getattr(value, slot.name), (*keys, key), slot.unit)
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*keys, str(key)), unit)
    elif value is not None:
        yield keys, written(value, unit)


def written(value: Any, unit: Unit | None = None) -> Any:
    """A value as YAML has it: numbers with their unit, names of statuses, plain lists."""
    if isinstance(value, Status):
        return value.name
    if isinstance(value, (tuple, list, set, frozenset)):
        return [written(v, unit) for v in value]
    if isinstance(value, Mapping):
        return {str(k): written(v, unit) for k, v in value.items()}
    return unit.format(value) if unit and type(value) in (int, float) else value


def schema(kind: Any, slot: Slot | None = None) -> dict[str, Any]:
    """The JSON Schema of a type, with the keys and the units of YAML."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    shape = origin or kind
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema(a, slot) for a in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record_schema(kind)
    if shape in (tuple, list, set, frozenset):
        item = schema(args[0] if args else Any, slot)
        return {"anyOf": [{"type": "array", "items": item}, item]}
    if isinstance(shape, type) and issubclass(shape, Mapping):
        return {"type": "object", "additionalProperties": schema(args[1] if args else Any, slot)}
    if slot is not None and slot.unit is not None and kind in (int, float):
        return {"type": "string", "pattern": slot.unit.pattern}
    return _scalar_schema(kind, slot)


def _scalar_schema(kind: Any, slot: Slot | None) -> dict[str, Any]:
    plain: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"}, int: {"type": "integer"}, float: {"type": "number"},
        str: {"type": ["string", "number"]}, type(None): {"type": "null"},
        Status: {"enum": [s.name for s in Status] + [s.name.lower() for s in Status]},
    }  # fmt: skip
    result = dict(plain.get(kind, {}))
    if kind in (int, float) and slot is not None:
        bounds = {"minimum": "at_least", "maximum": "at_most"}
        result |= {k: v for k, m in bounds.items() if (v := slot.field.metadata.get(m)) is not None}
    return result


def _record_schema(kind: type) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key, slot in slots(kind).items():
        properties[key] = schema(slot.kind, slot)
        if slot.field.metadata.get("doc"):
            properties[key]["description"] = slot.field.metadata["doc"]
        if not slot.required and slot.default is not None and not dataclasses.is_dataclass(slot.default):
            properties[key]["default"] = written(slot.default, slot.unit)
    result: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [key for key, slot in slots(kind).items() if slot.required]
    return {**result, "required": required} if required else result
