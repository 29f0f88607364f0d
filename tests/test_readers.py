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

from clustertools.cli.read import as_printed
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


#: What terminals and people do to an output before it is a file.
DRESSED = {
    "line ends of DOS": lambda text: text.replace("\n", "\r\n"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "empty lines before": lambda text: "\n\n" + text,
    "a prompt": lambda text: f"$ ibstat\n{text.rstrip()}\n$ ",
    "root's prompt": lambda text: f"# /usr/sbin/ibstat -v\n{text.rstrip()}\n# \n",
    "a prompt with the host": lambda text: (
        f"root@gpu-017:~# ibstat\n{text.rstrip()}\n\nroot@gpu-017:~# exit\n"
    ),
    "a prompt in brackets": lambda text: f"[root@gpu-017 ~]# x | tee y\n{text.rstrip()}\n[root@gpu-017 ~]#",
    "colours": lambda text: "\n".join(
        line and f"{line[:9]}\x1b[1;32m{line[9:]}\x1b[0m" for line in text.split("\n")
    ),
    "colours without their escapes": lambda text: f"[1;32m{text[:9]}[0m{text[9:]}",
    "a window's title": lambda text: f"\x1b]0;root@gpu-017: ~\x07root@gpu-017:~# ibstat\n{text}",
}


@EVERY_SAMPLE
def test_what_terminals_and_people_add_changes_nothing(path: Path) -> None:
    reader = readers()[path.parent.name]
    text = path.read_text(encoding="utf-8", errors="replace")
    plain, first = as_printed(text)
    expected = read_tolerantly(reader, plain, first)
    for how, dress in DRESSED.items():
        found, line = as_printed(dress(text))
        assert [reader.KIND for reader in recognised(found)] == [path.parent.name], how
        assert read_tolerantly(reader, found, line) == expected, how


@EVERY_SAMPLE
def test_a_line_that_nobody_knows_does_not_lose_the_rest(path: Path) -> None:
    reader = readers()[path.parent.name]
    text, _ = as_printed(path.read_text(encoding="utf-8", errors="replace"))
    if text.lstrip()[:1] in "{[<":
        return  # JSON and XML are whole or nothing
    expected, _ = read_tolerantly(reader, text)
    lines = text.splitlines()
    place = (len(lines) + 1) // 2
    strange = "!! what is this line"
    found, unparsed = read_tolerantly(reader, "\n".join([*lines[:place], strange, *lines[place:]]))
    assert [line["text"] for line in unparsed] in ([], [strange])
    # where it is not told as unknown it was passed over, or it is part of the text of a record
    assert found == expected or strange in str(found)


@pytest.mark.parametrize("kind", list(readers()))
def test_every_reader_has_its_fields_and_samples(kind: str) -> None:
    reader = readers()[kind]
    assert reader.__doc__
    assert reader.FIELDS
    assert all(reader.FIELDS.values())
    samples = [path for path in SAMPLES if path.parent.name == kind]
    assert len(samples) >= 2, f"a reader comes with two real outputs or more in tests/tools/{kind}/"
    assert (TOOLS / kind / "README.md").read_text().strip(), "where they are from"


def test_every_sample_is_of_a_kind_that_there_is() -> None:
    assert {path.parent.name for path in SAMPLES} <= readers().keys()


@pytest.mark.parametrize("kind", list(readers()))
@given(text=st.text(max_size=400))
@settings(max_examples=30, deadline=None)
def test_no_reader_breaks_on_anything(kind: str, text: str) -> None:
    reader = readers()[kind]
    assert reader.recognise(text) in (True, False)
    with contextlib.suppress(Unparsable):
        read_tolerantly(reader, text)
