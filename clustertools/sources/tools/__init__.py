"""What other people's tools print, one module each: text in, plain values out. No command is run here.

A module of this package is a reader of one kind of output:

    KIND = "ibstat"                       its name for `clustertools read --kind`
    def recognise(text) -> bool           is this its output? By what only that tool prints; never raises
    def read(text) -> dict                plain values with the unit in the name
    FIELDS = {"devices[].name": "..."}    what each value means: docs/read.md is made of it

`read` raises Unparsable, with the line, for what it does not know, and never guesses a figure. A check that
needs the same output calls `read`, or the typed function below it, with what `ctx.host.run` gave.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from clustertools.errors import Unparsable

#: So many lines of an unknown form are reported; with more it is not this tool's output.
UNPARSED_LIMIT = 50
#: A reader is asked whether it knows a text by so much of its beginning.
_HEAD_CHARACTERS = 1 << 20


class Reader(Protocol):
    """The form of each module here."""

    KIND: str
    FIELDS: Mapping[str, str]

    def recognise(self, text: str) -> bool: ...

    def read(self, text: str) -> dict[str, Any]: ...


def readers() -> Mapping[str, Reader]:
    """Every reader by its kind, sorted."""
    return {reader.KIND: reader for reader in sorted(_modules(), key=lambda found: str(found.KIND))}


def recognised(text: str) -> list[Reader]:
    """The readers that take `text` for theirs; one, when all is well."""
    head = text
    if len(text) > _HEAD_CHARACTERS and text[:1] not in "{[<":
        head = text[: text.rfind("\n", 0, _HEAD_CHARACTERS) + 1] or text[:_HEAD_CHARACTERS]
    return [reader for reader in readers().values() if reader.recognise(head)]


def read_tolerantly(
    reader: Reader, text: str, first_line: int = 1
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `reader` makes of `text` without the lines that it does not know, and these: {"line", "text"}.

    A check must not do this: to it a line of unknown form is blindness. A person who reads a file wants the
    rest. Raises Unparsable when the text as a whole is not understood.
    """
    lines = text.splitlines()
    numbers = list(range(first_line, first_line + len(lines)))
    unparsed: list[dict[str, Any]] = []
    first: Unparsable | None = None
    while True:
        try:
            return reader.read("\n".join(lines) + "\n"), unparsed
        except Unparsable as exc:
            # a sample that is one of the lines is what was not understood; anything else is the whole
            first = first or exc
            if exc.sample not in lines or len(unparsed) >= UNPARSED_LIMIT or len(lines) == 1:
                raise first from exc
            place = lines.index(exc.sample)
            unparsed.append({"line": numbers[place], "text": lines[place]})
            del lines[place], numbers[place]


def _modules() -> Iterator[Any]:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        if hasattr(module, "KIND"):
            yield module
