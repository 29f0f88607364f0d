"""What other people's tools print, one module each: text in, plain values out. No command is run here.

A module of this package is a reader of one kind of output:

    KIND = "ibstat"                       its name for `clustertools read --kind`
    def recognise(text) -> bool           is this its output? By what only that tool prints; never raises
    def read(text) -> dict                plain values with the unit in the name, "schema" not included

`read` raises Unparsable, with the line, for what it does not know, and never guesses a figure. A check that
needs the same output calls `read`, or the typed function below it, with what `ctx.host.run` gave.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class Reader(Protocol):
    """The form of each module here."""

    KIND: str

    def recognise(self, text: str) -> bool: ...

    def read(self, text: str) -> dict[str, Any]: ...


def readers() -> Mapping[str, Reader]:
    """Every reader by its kind, sorted."""
    return {reader.KIND: reader for reader in sorted(_modules(), key=lambda found: str(found.KIND))}


def _modules() -> Iterator[Any]:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        if hasattr(module, "KIND"):
            yield module
