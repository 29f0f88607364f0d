"""Which checks are found, and what finding them costs: a look at a node imports nothing of runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clustertools import check as checking
from clustertools.cli import main
from tests.conftest import HOSTS

#: What only checks of runs read.
OF_RUNS = {f"clustertools.sources.{name}" for name in ("checkpoints", "training_log", "stacks")}


def modules_after(program: str) -> set[str]:
    """What a fresh interpreter has imported at the end of `program`."""
    code = f"{program}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_a_look_at_a_node_imports_nothing_of_runs() -> None:
    look = "import sys; from clustertools.cli import main; main(['check', '--list'])"
    seen = modules_after(look)
    assert "clustertools.checks.host_storage" in seen
    assert not {m for m in seen if m.startswith("clustertools.checks.job_")}
    assert not OF_RUNS & seen
    assert not {"statistics", "decimal"} & seen


def test_without_job_checks_there_are_those_of_a_node_only() -> None:
    everything = checking.discover(site_folders=())
    node = checking.discover(site_folders=(), job_checks=False)
    assert {name: c for name, c in everything.items() if c.stages != {"job"}} == node
    assert {"job_exit", "job_progress"} <= set(everything) - set(node)


def test_a_job_check_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gpu_count", "job_exit", "--host", str(HOSTS / "h100-healthy"), "--json"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "no job to look at" in told[1]


def test_a_check_that_would_be_passed_over_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job_odd.py").write_text(
        "from clustertools.check import check\n"
        "@check(codes={'Odd': 'x'}, stages={'job', 'watch'})\n"
        "def job_odd(ctx):\n    '''Looks.'''\n    return ()\n"
    )
    program = f"from clustertools.check import discover; discover(({str(tmp_path)!r},))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "job_odd: job_... is a check of runs, whose only stage is job" in done.stderr
