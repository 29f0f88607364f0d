"""The commands `clustertools config check`, `show`, `schema` and `sample`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clustertools import cli
from clustertools.config_sample import SAMPLE


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """`write("policy: {mode: ask}")` is a config file with that text."""

    def write_file(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    """`command("config", "check", ...)` gives the exit code and what was said on stdout and stderr."""
    monkeypatch.setenv("CLUSTERTOOLS_ETC", str(tmp_path / "none"))
    monkeypatch.delenv("CLUSTERTOOLS_CONFIG", raising=False)

    def run_command(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_command


def test_config_check(command: Any, write: Any) -> None:
    path = str(write("cluster: a\npolcy: {}\nchecks: {gpu_ecc: {interval: 5}}\n"))
    code, out, err = command("config", "check", "--config", path)
    assert (code, out) == (3, "")
    assert f"{path}:2: polcy: unknown key; did you mean policy?" in err
    assert f"{path}:3: checks.gpu_ecc.interval: 5 has no unit" in err
    code, out, err = command("config", "check", "--json", "--config", path)
    assert code == 3
    assert [json.loads(out)[k] for k in ("schema", "kind", "ok")] == [1, "config-check", False]


def test_config_check_knows_the_limits_of_the_checks(command: Any, write: Any) -> None:
    path = str(write("checks: {gpu_ecc: {limits: {nonsense: 1}}, gpu_eccc: {}}\n"))
    code, _, err = command("config", "check", "--config", path)
    assert code == 3
    assert "checks.gpu_ecc.limits.nonsense: unknown key" in err
    assert "checks.gpu_eccc: there is no check of this name; did you mean gpu_ecc?" in err


def test_config_that_is_fine(command: Any, write: Any) -> None:
    path = str(write("cluster: a\n"))
    assert command("config", "check", "--config", path) == (0, f"config is fine: {path}\n", "")
    code, out, _ = command("config", "show", "--origin", "--config", path, "-o", "policy.mode=ask")
    assert code == 0
    assert f"cluster: a  # {path}:1\n" in out
    assert "mode: ask  # -o\n" in out
    code, out, _ = command("config", "show", "--json", "--origin", "--config", path)
    assert json.loads(out)["origins"]["cluster"] == f"{path}:1"


def test_config_schema_and_sample(command: Any, write: Any) -> None:
    code, out, _ = command("config", "schema")
    assert code == 0
    assert "gpu_ecc" in json.loads(out)["properties"]["checks"]["properties"]
    code, out, _ = command("config", "sample")
    assert (code, out) == (0, SAMPLE)
