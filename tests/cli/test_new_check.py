"""new-check writes files that pass, and the walk-through in docs/new-check.md works as it is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clustertools.cli import main

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture
def empty_tree(tmp_path: Path) -> Path:
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "__init__.py").touch()
    return tmp_path


def test_writes_check_test_and_host(empty_tree, capsys):
    assert main(["new-check", "gpu_fan", "--root", str(empty_tree)]) == 0
    check = (empty_tree / "checks" / "gpu_fan.py").read_text()
    assert "def gpu_fan(ctx: Context)" in check
    assert '"GpuFan"' in check
    assert "@" not in check.replace("@dataclass", "").replace("@check", "")
    assert (empty_tree / "tests" / "checks" / "test_gpu_fan.py").exists()
    assert (empty_tree / "tests" / "hosts" / "gpu-fan-healthy" / "host.yaml").exists()
    assert "pytest" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fan", "GpuFan", "gpu-fan", "../gpu_fan", "gpu_fan/x", "_gpu_fan", ""])
def test_refuses_a_bad_name(empty_tree, name, capsys):
    assert main(["new-check", "--root", str(empty_tree), "--", name]) == 3
    assert "not a check's name" in capsys.readouterr().err
    assert [p.name for p in empty_tree.rglob("*.py")] == ["__init__.py"]


def test_never_overwrites(empty_tree, capsys):
    mine = empty_tree / "checks" / "gpu_fan.py"
    mine.write_text("mine")
    assert main(["new-check", "gpu_fan", "--root", str(empty_tree)]) == 3
    assert "exists already" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert not (empty_tree / "tests").exists()


def test_refuses_a_folder_that_is_not_the_repository(tmp_path, capsys):
    assert main(["new-check", "gpu_fan", "--root", str(tmp_path)]) == 3
    assert "not the repository" in capsys.readouterr().err


def commands(page: Path) -> list[str]:
    """The lines of the page's ```sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def copy_of_the_tree(tmp_path: Path) -> Path:
    """The repository without its history, with a virtual environment that runs the copy's code."""
    tree = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")
    shutil.copytree(REPOSITORY, tree, ignore=ignored, symlinks=True)
    # what an installation does through package-dir in pyproject.toml
    for package in ("checks", "playbooks"):
        (tree / "clustertools" / package).symlink_to(f"../{package}")
    binaries = tree / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, words in (("python", ""), ("pytest", "-m pytest"), ("clustertools", "-m clustertools")):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    (tree / ".venv" / "stamp").touch()
    return tree


def test_the_readme_shows_the_beginning_of_the_walk_through():
    shown = commands(REPOSITORY / "README.md")
    assert len(shown) == 4
    assert commands(REPOSITORY / "docs" / "new-check.md")[:4] == shown


@pytest.mark.slow
def test_the_walk_through(copy_of_the_tree):
    lines = commands(copy_of_the_tree / "docs" / "new-check.md")
    assert lines[0].startswith("make new-check ")
    environment = {**os.environ, "PYTHONPATH": str(copy_of_the_tree), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    told = {}
    for line in lines:
        done = subprocess.run(
            ["sh", "-c", line], cwd=copy_of_the_tree, env=environment, capture_output=True, text=True,
            check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        told[line] = done.stdout
    said = "\n".join(told.values())
    assert "3 passed" in said
    assert "OK        gpu_fan" in said
    assert "GpuFan: one sentence" in said
    assert (copy_of_the_tree / "recorded-here" / "files" / "proc" / "loadavg").exists()
