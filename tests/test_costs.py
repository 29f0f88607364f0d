"""What checks cost, against what they say they cost: a prolog and a health check pay for it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustertools import check as checking
from clustertools.cli import main
from clustertools.cli.check import orders_for
from clustertools.host import RecordedHost
from clustertools.shared_host import SharedHost

HEALTHY = Path(__file__).parent / "hosts" / "h100-healthy"


def cost_seconds(name: str) -> float:
    """The best of a few runs: this machine may be busy with other things."""
    spent = []
    for _ in range(3):
        host = RecordedHost(HEALTHY)
        orders = orders_for(host, None)
        began = time.perf_counter()
        checking.run(orders.checks[name], SharedHost(host), expect=orders.expect)
        spent.append(time.perf_counter() - began)
    return min(spent)


@pytest.mark.slow
def test_no_check_takes_longer_than_it_declares():
    checks = checking.discover(site_folders=(), job_checks=False)
    over = {name: cost for name, c in checks.items() if (cost := cost_seconds(name)) > c.cost_seconds}
    assert over == {}


def test_every_stage_that_slurm_waits_for_fits_its_deadline():
    """By what the checks declare: with all at their worst, Slurm still need not kill a health check."""
    checks = checking.discover(site_folders=(), job_checks=False).values()
    declared = {
        s: sum(c.cost_seconds for c in checks if s in c.stages) for s in ("watch", "prolog", "epilog")
    }
    assert declared["watch"] < 30, declared
    assert declared["prolog"] < 12, declared
    assert declared["epilog"] < 12, declared


@pytest.mark.slow
def test_all_passive_checks_together_stay_under_a_second(capsys: pytest.CaptureFixture[str]):
    """From a cold process to its end, on a recorded node: what our own code costs."""
    spent = []
    for _ in range(7):
        began = time.perf_counter()
        argv = [sys.executable, "-I", "-m", "clustertools", "check", "--host", str(HEALTHY)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        spent.append(time.perf_counter() - began)
    assert done.returncode == 0, done.stdout
    with capsys.disabled():
        print(f"\nstage watch on {HEALTHY.name}: {min(spent):.2f} s; {done.stdout.splitlines()[-1]}")
    assert min(spent) < 1.0


@pytest.mark.slow
def test_the_list_says_measured_declared_needs_and_stage(capsys: pytest.CaptureFixture[str]):
    assert main(["checks", "list", "--stage", "prolog", "--cost", "--host", str(HEALTHY), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows
    for row in rows:
        assert 0 < row["cost_seconds"] < 60
        assert row["declared_cost_seconds"] > 0
        assert "prolog" in row["stages"]
        assert isinstance(row["needs"], list)
    assert main(["checks", "list", "--stage", "prolog", "--cost", "--host", str(HEALTHY)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " of " in lines[0]
    assert lines[-1].endswith("together")
