"""The whole way on virtual nodes under a real Slurm: from a login node and from a job's own script."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netlab import LINK_BITS_PER_SECOND, NetLab, needs_netlab
from tests.lab.preflights import Preflight, drawn, under_slurm
from tests.lab.slurm import Slurm, needs_slurm

pytest.importorskip("torch")
pytestmark = [
    *(pytest.mark.slow, pytest.mark.root, pytest.mark.torch, pytest.mark.timeout(300)),
    needs_netlab,
    needs_slurm,
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetLab]:
    with NetLab(tmp_path_factory.mktemp("netlab"), nodes=6) as made:
        yield made


@pytest.fixture(scope="module")
def slurm(lab: NetLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with lab.slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return drawn(request.node.name)


def test_in_a_job_the_step_runs_on_the_good_nodes_only(
    lab: NetLab, slurm: Slurm, chance: random.Random, tmp_path: Path
):
    guilty = chance.choice(lab.nodes)
    started = tmp_path / "started"
    argv = under_slurm(started, "--at-least", "5", "--seed", str(chance.randrange(10**6)))
    script = f"#!/bin/sh\n{shlex.join(argv)}\necho exit code $?\n"
    with lab.slow(guilty, LINK_BITS_PER_SECOND / 5):
        said = slurm.batch(script, f"-N{len(lab.nodes)}", timeout=200)
    assert "exit code 0" in said
    done = Preflight.of(0, said, started)
    assert done.report["transport"] == "srun", done
    assert done.grades() == {guilty: "slow"}, done
    assert done.started == set(lab.nodes) - {guilty}, done


def test_from_the_login_node_over_the_idle_nodes(
    lab: NetLab, slurm: Slurm, chance: random.Random, tmp_path: Path
):
    """A node that is away for Slurm too is not idle; one cut from the data network is, and is found."""
    away, guilty = chance.sample(lab.nodes, 2)
    slurm.run("scontrol", "update", f"nodename={away}", "state=drain", "reason=in repair")
    started = tmp_path / "started"
    argv = under_slurm(started, "--idle", "--at-least", "4", "--seed", str(chance.randrange(10**6)))
    with lab.cut(guilty):
        # the launch takes its own allocation, after that of the preflight is given back
        told = lab.head(*argv, env={"SLURM_CONF": str(slurm.conf)}, timeout=200)
    done = Preflight.of(told.returncode, told.stdout + told.stderr, started)
    assert done.report["asked"] == [node for node in lab.nodes if node != away], done
    assert done.grades() == {guilty: "bad-hardware"}, done
    assert done.started == set(lab.nodes) - {away, guilty}, done
    assert slurm.run("squeue", "-h") == ""
