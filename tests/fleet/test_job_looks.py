"""Looks at the nodes of jobs: of a real gloo job on a real Slurm, and what nodes may say wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clustertools.fleet.job_looks import FleetLooker, FleetSettings, LocalLooker, read_look
from clustertools.host import LocalHost
from clustertools.sources.job_look import GpuActivity, JobLook, LookOrder, LookRequest, NodeLook, text_of
from tests.lab.slurm import Slurm, cluster, needs_slurm

in_slurm = [pytest.mark.slow, pytest.mark.torch, pytest.mark.root, needs_slurm, pytest.mark.timeout(180)]

TRAIN = """
import os, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
x = torch.ones(8)
def train_step():
    dist.all_reduce(x)
    time.sleep(0.01)
open(sys.argv[1] + str(rank), "w").close()
while True:
    train_step()
"""
JOB = """#!/bin/sh
export WORLD_SIZE=2 OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo
exec srun --kill-on-bad-exit=1 sh -c 'export RANK=$SLURM_PROCID LOCAL_RANK=0; exec {python} {script} {meet}'
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Slurm]:
    with (
        tempfile.TemporaryDirectory(prefix="looks-", dir="/tmp", ignore_cleanup_errors=True) as name,
        cluster(Path(name), nodes=3, extra="SlurmdTimeout=120") as slurm,
    ):
        yield slurm


@pytest.fixture(scope="module")
def training(lab: Slurm) -> Iterator[str]:
    """The number of a job of two ranks on n1 and n2, of which rank 1 was stopped."""
    script, meet = lab.folder / "train.py", lab.folder / "meet"
    script.write_text(TRAIN)
    batch = lab.folder / "train.sh"
    batch.write_text(JOB.format(python=sys.executable, script=script, meet=meet))
    options = ("--parsable", "--nodes=2", "--ntasks=2", "--nodelist=n1,n2", f"--output={lab.folder}/out")
    number = lab.run("sbatch", *options, str(batch)).strip()
    try:
        lab.wait(lambda: all(Path(f"{meet}{rank}").exists() for rank in (0, 1)), "both ranks train", 40)
        for pid in processes_of_rank(lab, 1):
            os.kill(pid, signal.SIGSTOP)
        yield number
    finally:
        lab.run("scancel", "--signal=KILL", "--full", number, check=False)


@pytest.fixture
def home(lab: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(lab.conf))
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab.folder / "cache"))


def words_running(mark: str) -> list[list[str]]:
    """The command lines of this machine, nodes included, that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if mark in words:
            found.append(words)
    return found


def order(job: str, *nodes: str, how: str = "srun") -> LookOrder:
    return LookOrder(LookRequest(job, "pretrain", kernel_since=time.time()), nodes, how)


class TestOverSlurm:
    pytestmark = in_slurm

    def test_the_stopped_rank_is_named_on_its_node(self, lab, training, home):
        # by itself, as root, it goes by srun
        seen = FleetLooker(FleetSettings(installed=None)).look([order(training, "n1", "n2", how="auto")])
        first, second = seen["pretrain"].nodes
        assert seen["pretrain"].unseen == {}
        assert (first.node, second.node) == ("n1", "n2")
        assert (set(first.ranks), set(second.ranks)) == ({"0"}, {"1"})
        states = {one.rank: one.state for look in (first, second) for one in look.stacks}
        assert states[1] == "T"
        assert states[0] != "T"
        # py-spy was found beside the job's own Python: the archive brings none
        for look in (first, second):
            assert "train_step" in [frame.function for frame in look.stacks[0].frames]
            assert look.boot_id == LocalHost().boot_id
            assert any(name.endswith(" in") for name in look.port_bytes)
            assert not look.unseen
            commands = {one.command for one in look.processes}
            assert "slurmstepd" not in commands
            assert not any("job_look" in " ".join(one.argv or ()) for one in look.processes)

    def test_a_frozen_node_holds_up_neither_the_other_nor_us(self, lab, training, home):
        lab.freeze_node("n2")
        began = time.monotonic()
        try:
            settings = FleetSettings(installed=None, deadline_seconds=25)
            seen = FleetLooker(settings).look([order(training, "n1", "n2")])["pretrain"]
        finally:
            lab.freeze_node("n2", signal.SIGCONT)
            for pid in processes_of_rank(lab, 1):
                os.kill(pid, signal.SIGSTOP)
        assert time.monotonic() - began < 27
        assert [one.node for one in seen.nodes] == ["n1"]
        assert set(seen.nodes[0].ranks) == {"0"}
        assert set(seen.unseen) == {"n2"}
        assert seen.unseen["n2"]
        lab.wait(lambda: not words_running("clustertools.sources.job_look"), "nothing is left behind")

    def test_a_job_that_holds_no_such_node_is_told_with_both_reasons(self, lab, training, home):
        settings = FleetSettings(installed=None, ssh_config=lab.folder / "ssh_config", deadline_seconds=20)
        (lab.folder / "ssh_config").write_text("Host *\n  HostName 127.0.0.1\n  Port 1\n")
        looks = FleetLooker(settings).look(
            [order(training, "n3", how="auto"), replace(order("999", "n1"), request=LookRequest("999", "b"))]
        )
        assert not looks["pretrain"].nodes
        assert "refused" in looks["pretrain"].unseen["n3"].lower()
        assert f"job {training} does not hold n3" in looks["pretrain"].unseen["n3"]
        assert "no such job" in looks["b"].unseen["n1"]


def processes_of_rank(lab: Slurm, rank: int) -> list[int]:
    """The processes of a rank, by this machine's numbers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        is_ours = words[:2] == [sys.executable.encode(), str(lab.folder / "train.py").encode()]
        if is_ours and f"RANK={rank}".encode() in variables:
            found.append(int(path.name))
    return found


NODE = NodeLook("n1", 5.0, "boot", {"0": 7}, gpus=(GpuActivity(0, "0000:3b:00.0", power_watts=70.5),))


def test_what_a_node_says_is_read_as_the_node_that_was_asked():
    assert read_look(text_of(replace(NODE, node="n9")), "n1") == NODE


@pytest.mark.parametrize(
    "line",
    [
        "",
        "welcome to n1",
        "[]",
        "{}",
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps({"schema": 2, "kind": "look", "node": "n1", "time": 1}),
        json.dumps({"schema": 1, "kind": "verdict", "node": "n1", "time": 1}),
        text_of(NODE).replace("5.0", '"5.0"'),
        text_of(NODE).replace("5.0", "NaN"),
        text_of(NODE).replace("70.5", "Infinity"),
        text_of(NODE).replace('{"0": 7}', '{"0": "7"}'),
        text_of(NODE).replace('"gpus": [', '"gpus": [[], '),
        text_of(NODE).replace('"time": 5.0, ', ""),
    ],
)
def test_what_is_no_look_is_none(line):
    assert read_look(line, "n1") is None


def test_no_word_of_a_node_reaches_a_terminal_as_it_is():
    said = replace(
        NODE,
        ranks={"0": 7, "x\x1b[2J": 8, "-1": 9},
        kernel=("\x1b]0;owned\x07NVRM: Xid", "a\nb", "\u202egpj.exe"),
        unseen=("x" * 100_000,),
    )
    read = read_look(text_of(said), "n1")
    assert read.ranks == {"0": 7}
    assert read.kernel == ("NVRM: Xid", "a b", "gpj.exe")
    assert len(read.unseen[0]) <= 2000


def test_nobody_is_asked_where_the_config_says_so():
    looks = FleetLooker().look([order("4711", "n1", "n2", how="none")])
    assert set(looks["pretrain"].unseen) == {"n1", "n2"}
    assert "look: none" in looks["pretrain"].unseen["n1"]
    assert FleetLooker().look([]) == {}


def test_a_job_of_this_machine_is_looked_at_here():
    looks = LocalLooker(LocalHost("here")).look(
        [LookOrder(LookRequest(run="a", roots=(os.getpid(),), stacks=False)), LookOrder(LookRequest(run="b"))]
    )
    assert os.getpid() in {one.pid for one in looks["a"].nodes[0].processes}
    assert looks["b"] == JobLook((), {"here": "the look names neither a job nor processes"})
