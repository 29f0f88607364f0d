"""Data of a stranger as a value of a type, to the last field; anything else is a TypeError.

    typed(Verdict, json.loads(line))

As `model.from_data`, but nothing is taken as it comes: a text where a number belongs is refused, not kept.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from clustertools.model import Status

T = TypeVar("T")
Reader = Callable[[Any], Any]


def typed(kind: type[T], data: Any) -> T:
    """`data`, as JSON gives it, as a `kind`. Keys that a dataclass does not have are left out.

    A list stands for a tuple, a whole number for a float; numbers are finite, and true is no number.
    Raises TypeError.
    """
    try:
        return typing.cast(T, reader(typing.cast(Any, kind))(data))
    except RecursionError:
        raise TypeError("nested too deep") from None


@functools.cache
def reader(kind: Any) -> Reader:
    """What reads one type; made once for each, since a thousand nodes give a hundred thousand readings."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda data: data
    if origin in (typing.Union, types.UnionType):
        return _first_of([reader(arg) for arg in args])
    if origin is typing.Literal:
        return _one_of(args)
    if origin is tuple:
        return _tuple_of(reader(args[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_of(reader(args[1]))
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(kind)
    return _number if kind is float else _plain(kind)


def _number(data: Any) -> float:
    if type(data) in (int, float) and math.isfinite(data):
        return data  # type: ignore[no-any-return]
    raise TypeError("expected a finite number")


def _plain(kind: type) -> Reader:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise TypeError(f"expected {kind.__name__}")
        return data

    return read


def _first_of(readers: list[Reader]) -> Reader:
    def read(data: Any) -> Any:
        for each in readers:
            try:
                return each(data)
            except TypeError:
                continue
        raise TypeError("none of the types that it may have")

    return read


def _one_of(values: tuple[Any, ...]) -> Reader:
    def read(data: Any) -> Any:
        if isinstance(data, str) and data in values:
            return data
        raise TypeError(f"expected one of {values}")

    return read


def _tuple_of(each: Reader) -> Reader:
    def read(data: Any) -> Any:
        if not isinstance(data, (list, tuple)):
            raise TypeError("expected a list")
        return tuple([each(one) for one in data])

    return read


def _mapping_of(each: Reader) -> Reader:
    def read(data: Any) -> Any:
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise TypeError("expected an object")
        return {key: each(one) for key, one in data.items()}

    return read


def _member(kind: type[enum.Enum]) -> Reader:
    # as in model.to_data: a Status by its name, any other member by its value
    members = {m.name if kind is Status else m.value: m for m in kind}

    def read(data: Any) -> Any:
        if not isinstance(data, str) or data not in members:
            raise TypeError(f"no {kind.__name__}")
        return members[data]

    return read


def _dataclass(kind: type) -> Reader:
    fields = {name: reader(hint) for name, hint in typing.get_type_hints(kind).items()}

    def read(data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise TypeError(f"expected an object for {kind.__name__}")
        return kind(**{name: fields[name](one) for name, one in data.items() if name in fields})

    return read
