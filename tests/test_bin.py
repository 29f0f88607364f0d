"""The shell entry points: short, found from anywhere, without PATH, and with the right exit codes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

BIN = Path(__file__).parent.parent / "bin"
NAMES = ("ct-preflight", "ct-watchdog", "ct-oncall", "ct-prolog", "ct-epilog", "ct-healthcheck")

#: What each passes on.
WORDS = {
    "ct-preflight": "preflight",
    "ct-watchdog": "watch",
    "ct-oncall": "status",
    "ct-prolog": "node-health --stage prolog --act --no-color",
    "ct-epilog": "node-health --stage epilog --act --no-color",
    "ct-healthcheck": "node-health --stage watch --act --no-color",
}


@pytest.fixture
def installed(tmp_path: Path):
    """The scripts beside a stand-in interpreter that prints its words and exits as it is told."""

    def install(name: str, code: int) -> Path:
        script = tmp_path / name
        script.write_text((BIN / name).read_text())
        for stand_in in ("python", "clustertools"):
            (tmp_path / stand_in).write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
            (tmp_path / stand_in).chmod(0o755)
        script.chmod(0o755)
        return script

    return install


def run(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # a Slurm prolog has no PATH, and nothing else either
    return subprocess.run([str(script), *words], env={}, capture_output=True, text=True, check=False)


def test_all_are_here_short_and_executable():
    assert sorted(p.name for p in BIN.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert len((BIN / name).read_text().splitlines()) <= 15
        assert (BIN / name).stat().st_mode & 0o111
        assert (BIN / name).read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_called(installed, name):
    assert run(installed(name, 0)).stdout.strip() == f"-I -m clustertools {WORDS[name]}"


def test_words_are_passed_on(installed):
    assert run(installed("ct-watchdog", 0), "--once", "a b").stdout.strip().endswith("watch --once a b")
    assert run(installed("ct-oncall", 0), "show", "K").stdout.strip().endswith("clustertools show K")


@pytest.mark.parametrize(("code", "prolog"), [(0, 0), (1, 0), (2, 2), (3, 0), (130, 0)])
def test_exit_codes(installed, code, prolog):
    # a non-zero prolog drains the node: only CRITICAL may; the health check's code means nothing to Slurm
    assert run(installed("ct-prolog", code)).returncode == prolog
    assert run(installed("ct-healthcheck", code)).returncode == 0
    assert run(installed("ct-epilog", code)).returncode == 0
    assert run(installed("ct-preflight", code)).returncode == code


@pytest.mark.parametrize(
    ("name", "code"), [("ct-prolog", 0), ("ct-epilog", 0), ("ct-healthcheck", 0), ("ct-preflight", 3)]
)
def test_without_an_installation(tmp_path, name, code):
    script = tmp_path / name
    script.write_text((BIN / name).read_text().replace("/opt/clustertools", str(tmp_path / "opt")))
    script.chmod(0o755)
    done = run(script)
    assert done.returncode == code
    assert "no clustertools" in done.stderr


def test_through_a_link(installed, tmp_path):
    script = installed("ct-preflight", 1)
    link = tmp_path / "elsewhere" / "prolog.d"
    link.mkdir(parents=True)
    (link / "10-ct").symlink_to(script)
    assert run(link / "10-ct").returncode == 1


def test_beside_a_virtual_environment(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for stand_in in ("python", "clustertools"):
        (tmp_path / ".venv" / "bin" / stand_in).write_text("#!/bin/sh\nexit 2\n")
        (tmp_path / ".venv" / "bin" / stand_in).chmod(0o755)
    script = tmp_path / "bin" / "ct-prolog"
    script.write_text((BIN / "ct-prolog").read_text())
    script.chmod(0o755)
    assert run(script).returncode == 2
