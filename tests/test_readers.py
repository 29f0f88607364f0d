"""All readers of tools' output together: each sample is taken by its own reader alone, and wholly described.

The samples are in tests/tools/KIND/: real outputs, with a README that says where they are from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import read_tolerantly, readers, recognised

TOOLS = Path(__file__).parent / "tools"
SAMPLES = sorted(path for path in TOOLS.glob("*/*") if path.is_file() and path.name != "README.md")
EVERY_SAMPLE = pytest.mark.parametrize("path", SAMPLES, ids=lambda p: f"{p.parent.name}/{p.name}")


def paths(value: Any, at: str = "") -> Iterator[str]:
    """The leaves of plain values as FIELDS names them: `ports[].rate`, a map of free keys as `values.*`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{at}[]")
        if not value:
            yield f"{at}[]"
    else:
        yield at


def described(path: str, fields: set[str]) -> bool:
    """Whether FIELDS has the leaf, or a list or map that holds it whole."""
    parts = path.replace("[]", ".[]").split(".")
    for count in range(1, len(parts) + 1):
        head = ".".join(parts[:count]).replace(".[]", "[]")
        if head in fields or (count < len(parts) and f"{head}.*" in fields):
            return True
    # an empty list: what it would hold is described
    return path.endswith("[]") and any(field.startswith(path.removesuffix("[]")) for field in fields)


@EVERY_SAMPLE
def test_a_sample_is_taken_by_its_own_reader_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    assert [reader.KIND for reader in recognised(text)] == [path.parent.name]


@EVERY_SAMPLE
def test_a_sample_is_read_to_the_last_line_and_every_value_is_described(path: Path) -> None:
    reader = readers()[path.parent.name]
    data, unparsed = read_tolerantly(reader, path.read_text(encoding="utf-8", errors="replace"))
    assert not unparsed
    fields = set(reader.FIELDS)
    assert not {leaf for leaf in paths(data) if not described(leaf, fields)}
    assert not {"schema", "kind", "unparsed"} & data.keys(), "the command's own fields"


def test_every_reader_has_its_fields_and_a_sample() -> None:
    kinds = readers()
    assert {path.parent.name for path in SAMPLES} <= kinds.keys()
    for kind, reader in kinds.items():
        assert reader.__doc__, kind


@pytest.mark.parametrize("kind", list(readers()))
@given(text=st.text(max_size=400))
@settings(max_examples=30, deadline=None)
def test_no_reader_breaks_on_anything(kind: str, text: str) -> None:
    reader = readers()[kind]
    assert reader.recognise(text) in (True, False)
    with contextlib.suppress(Unparsable):
        read_tolerantly(reader, text)
