"""`clustertools read`: recognising, reading what can be read, and saying what cannot."""

from __future__ import annotations

import gzip
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from clustertools.cli import main, read
from clustertools.errors import Unparsable
from clustertools.sources import tools


def _reader(kind: str, first: str) -> types.ModuleType:
    """A reader of lines `NAME=NUMBER` under a heading."""
    module = types.ModuleType(kind)
    module.KIND, module.FIELDS = kind, {"values": "by name"}  # type: ignore[attr-defined]
    module.recognise = lambda text: text.startswith(first)  # type: ignore[attr-defined]

    def read(text: str) -> dict[str, Any]:
        heading, *lines = text.splitlines()
        if heading != first:
            raise Unparsable("no heading", text)
        values = {}
        for line in lines:
            name, mark, value = line.partition("=")
            if not mark:
                raise Unparsable("a line of an unknown form", line)
            values[name] = float(value)
        return {"values": values}

    module.read = read  # type: ignore[attr-defined]
    return module


@pytest.fixture(autouse=True)
def two_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [_reader("alpha", "# alpha"), _reader("beta", "# beta"), _reader("alphabet", "# alpha")]
    monkeypatch.setattr(tools, "_modules", lambda: iter(known[:2]))


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    code = main(["read", *words])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_a_file_is_recognised_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf# beta\nspeed=1.5\n")
    code, told, err = _run(capsys, str(path))
    assert (code, err) == (0, "")
    assert told == {"schema": 1, "kind": "beta", "values": {"speed": 1.5}, "unparsed": []}


def test_what_is_not_understood_is_said_with_its_line_and_the_rest_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"# alpha\na=1\nwarning: it is hot\nb=2\nwarning: it is hot\n"))
    code, told, err = _run(capsys, str(path))
    assert code == 1
    assert told["values"] == {"a": 1, "b": 2}
    assert told["unparsed"] == [
        {"line": 3, "text": "warning: it is hot"}, {"line": 5, "text": "warning: it is hot"},
    ]  # fmt: skip
    assert "line 3 was not understood: 'warning: it is hot'" in err


def test_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"# beta\nx=2")))
    assert _run(capsys)[1]["values"] == {"x": 2}


def test_what_nobody_knows_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_text("hello\n")
    code, told, err = _run(capsys, str(path))
    assert (code, told) == (3, None)
    assert "is not recognised as the output of any tool" in err
    assert _run(capsys, "--kind", "beta", str(path))[0] == 3
    assert "there is no kind 'gamma'" in _run(capsys, "--kind", "gamma", str(path))[2]
    assert "No such file" in _run(capsys, str(tmp_path / "none"))[2]
    path.write_text("")
    assert _run(capsys, str(path))[0] == 3


def test_too_many_strange_lines_are_another_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_text("# beta\n" + "".join(f"strange {n}\n" for n in range(60)))
    code, told, err = _run(capsys, str(path))
    assert (code, told) == (3, None)
    assert "a line of an unknown form" in err


def test_two_kinds_that_fit_are_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting = [_reader("alpha", "# alpha"), _reader("alphabet", "# alpha")]
    monkeypatch.setattr(tools, "_modules", lambda: iter(fitting))
    path = tmp_path / "x"
    path.write_text("# alpha\na=1\n")
    code, _, err = _run(capsys, str(path))
    assert code == 3
    assert "may be of several kinds (alpha, alphabet)" in err
    assert _run(capsys, "--kind", "alphabet", str(path))[0] == 0


def test_the_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["alpha", "beta"]


def test_what_was_cut_out_of_a_document_is_read_without_its_indentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n    $ alpha\n    # alpha\n    a=1\n    what\n")
    code, told, _ = _run(capsys, str(path))
    assert (code, told["values"], told["unparsed"]) == (1, {"a": 1}, [{"line": 5, "text": "what"}])


def test_prompts_and_colours_are_no_part_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"root@gpu-017:~# alpha\r\n\x1b[1m# alpha\x1b[0m\r\na=1\r\nwhat\r\nroot@gpu-017:~# \r\n")
    code, told, _ = _run(capsys, str(path))
    assert (code, told["values"], told["unparsed"]) == (1, {"a": 1}, [{"line": 4, "text": "what"}])


def test_a_guid_keeps_all_of_its_digits() -> None:
    told = {"ports": [{"guid": 0xE41D2D0300000011, "peer": {"guid": None}, "lid": 3}]}
    assert read._with_guids_in_hexadecimal(told) == {
        "ports": [{"guid": "0xe41d2d0300000011", "peer": {"guid": None}, "lid": 3}]
    }


def test_errors_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.txt"
    path.write_text("# beta\nx=1\n")
    assert "by its content it is beta" in _run(capsys, "--kind", "alpha", str(path))[2]
    path.write_text("\n$ alpha\n")
    assert "is empty" in _run(capsys, str(path))[2]
    path.write_text("# alpha\none\ntwo\n" * 40)
    assert "line of an unknown form: 'one'" in _run(capsys, str(path))[2]
