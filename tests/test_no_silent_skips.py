"""Under CI=true a skip is a failure, unless this machine is known to lack the component."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="needs Slurm: no slurmd here")
def test_slurm(): ...

def test_inside():
    pytest.skip("no GPU on this machine")

@pytest.mark.xfail(reason="known")
def test_expected():
    assert False

def test_fine(): ...
"""


@pytest.fixture
def outcome(tmp_path: Path):
    def run(source: str, **environment: str) -> tuple[int, str]:
        (tmp_path / "test_it.py").write_text(source)
        inherited = {k: v for k, v in os.environ.items() if k not in ("CI", "CLUSTERTOOLS_MAY_SKIP")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.lab.no_silent_skips", "-p", "no:cacheprovider",
             "--rootdir", str(tmp_path), "-q", str(tmp_path)],
            cwd=REPOSITORY, env={**inherited, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


@pytest.mark.slow
def test_a_skip_is_no_failure_on_a_desk_but_is_said(outcome):
    code, said = outcome(SKIPPING)
    assert code == 0
    assert "NOT TESTED on this machine (1): needs Slurm: no slurmd here" in said
    assert "NOT TESTED on this machine (1): no GPU on this machine" in said


def test_a_skip_fails_under_ci(outcome):
    code, said = outcome(SKIPPING, CI="true")
    assert code == 1
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in said
    assert "skipped, which is a failure under CI=true: needs Slurm" in said


@pytest.mark.slow
def test_a_component_on_the_list_may_lack(outcome):
    code, said = outcome(SKIPPING, CI="true", CLUSTERTOOLS_MAY_SKIP="slurm, gpu")
    assert code == 0
    assert "NOT TESTED on this machine (1): needs Slurm: no slurmd here" in said
    code, said = outcome(SKIPPING, CI="true", CLUSTERTOOLS_MAY_SKIP="slurm,")
    assert code == 1
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in said


@pytest.mark.slow
def test_a_module_that_skips_itself_fails_too(outcome):
    code, said = outcome("import pytest\npytest.importorskip('no_such_module')\n", CI="1")
    assert code != 0
    assert "no_such_module" in said
