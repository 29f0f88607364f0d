"""Looks at the nodes of jobs: of a real gloo job on a real Slurm, and what nodes may say wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clustertools.actions.capture import evidence, recorded
from clustertools.fleet import Answer, Fate, Line, job_looks
from clustertools.fleet.job_looks import FleetLooker, FleetSettings, LocalLooker, read_look
from clustertools.fleet.shipping import Archive
from clustertools.host import Completed, LocalHost
from clustertools.model import Job
from clustertools.sources.job_look import GpuActivity, JobLook, LookOrder, LookRequest, NodeLook, text_of
from tests.lab.slurm import Slurm, cluster, needs_slurm

in_slurm = [pytest.mark.slow, pytest.mark.torch, pytest.mark.root, needs_slurm, pytest.mark.timeout(180)]

#: A thread does what NCCL's monitor does of itself: it dumps, in its own time, when its pipe is written to.
TRAIN = """
import os, sys, threading, time, torch, torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
def listen():
    pipe = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + f"{rank}.pipe"
    os.mkfifo(pipe)
    file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    while not os.read(file, 9):
        time.sleep(0.1)
    data = _dump_fr_trace(True, False, False)  # the first with stacks takes three seconds
    with open(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + str(rank), "wb", buffering=0) as out:
        out.write(data[:500])
        time.sleep(0.5)
        out.write(data[500:])
threading.Thread(target=listen, daemon=True).start()
x = torch.ones(8)
def train_step():
    dist.all_reduce(x)
    time.sleep(0.01)
open(sys.argv[1] + str(rank), "w").close()
while True:
    train_step()
"""
JOB = """#!/bin/sh
export WORLD_SIZE=2 OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo TORCH_FR_BUFFER_SIZE=64
export TORCH_FR_DUMP_TEMP_FILE={meet}-trace TORCH_NCCL_DEBUG_INFO_PIPE_FILE={meet}-pipe
export TORCHELASTIC_ERROR_FILE={meet}-log/none_x/attempt_1/0/error.json
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

    def test_the_evidence_of_all_nodes_is_saved_before_a_kill(
        self, lab, training, home, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(job_looks, "DUMP_SECONDS", 3.0)
        error = lab.folder / "meet-log" / "none_x" / "attempt_0" / "0" / "error.json"
        error.parent.mkdir(parents=True)
        error.write_text("the first attempt died")
        job = Job(
            training, "pretrain", "running", nodes=("n1", "n2"), log_paths=(f"{lab.folder}/out",),
            started_at=time.time() - 60,
        )  # fmt: skip
        looker = FleetLooker(FleetSettings(installed=None))
        told = evidence(LocalHost(), job, tmp_path / "e", looker=looker, how="srun")
        text = {path.name: path.read_text(errors="replace") for path in (tmp_path / "e").iterdir()}
        assert told["stacks.txt"].startswith("rank 1 (stopped by a signal, state T): ")
        assert "n2: ranks 1" in text["stacks.txt"]
        assert f"JobId={training} " in text["slurm-job.txt"]
        # the rank that runs gave its dump, the stopped one could not
        dumps = recorded(tmp_path / "e")
        (state,) = dumps.states
        assert (state.rank, state.group, dumps.world_size) == (0, "default_pg (0)", 2)
        assert dumps.rank_nodes == {0: "n1"}
        assert state.last_enqueued == state.last_completed + 1
        dump = tmp_path / "e" / "n1-flight-recorder-rank0"
        assert dump.read_bytes() == (lab.folder / "meet-trace0").read_bytes()
        assert "rank 0 not done with all_reduce" in text["flight-recorder.txt"]
        assert "rank 1 was asked for its dump and gave none within" in text["missing.txt"]
        assert text["n1-torchrun-attempt-0-0-error.json"] == "the first attempt died"

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
        steps = ("squeue", "--noheader", "--steps", f"--jobs={training}", "--format=%j")
        lab.wait(lambda: "env" not in lab.run(*steps).split(), "slurmctld keeps no step of ours")

    def test_root_looks_into_the_job_of_another_user(self, lab, home, monkeypatch):
        """As that user, with nothing of root's environment: their file may be run, as py-spy is here."""
        monkeypatch.setenv("SLACK_TOKEN", "hush")
        spy = lab.folder / "venv" / "bin" / "py-spy"
        spy.parent.mkdir(parents=True)
        spy.write_text(f"#!/bin/sh\nid -u > {lab.folder}/spied; env >> {lab.folder}/spied; echo []\n")
        spy.chmod(0o755)
        (lab.folder / "spied").touch()
        (lab.folder / "spied").chmod(0o666)
        batch = lab.folder / "alone.sh"
        variables = f"RANK=0 VIRTUAL_ENV={spy.parent.parent}"
        batch.write_text(f"#!/bin/sh\nexport {variables}\nexec python3 -c 'import time; time.sleep(600)'\n")
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        options = ("--parsable", "--nodelist=n3", "--output=/dev/null", "--chdir=/tmp")
        number = lab.run(*user, "sbatch", *options, str(batch)).strip()
        lab.wait(lambda: "RUNNING" in lab.run("squeue", "-h", "-j", number, "-o", "%T"), "the job runs")
        seen = FleetLooker(FleetSettings(installed=None)).look([order(number, "n3", how="auto")])["pretrain"]
        (node,) = seen.nodes
        assert seen.unseen == {}
        assert set(node.ranks) == {"0"}
        user, *environment = (lab.folder / "spied").read_text().splitlines()
        assert user == "65534"
        assert {line.partition("=")[0] for line in environment} <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_"}

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


class Pretended:
    """A way to nodes that answer, or that hold whoever asks until they are let go."""

    name = "srun"

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.hold, self.now, self.most, self.closed = hold, 0, 0, 0
        self.lock = threading.Lock()

    def __enter__(self) -> Pretended:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def talk(self, nodes: Sequence[str], argv: Sequence[str]) -> Pretended:
        if self.hold:
            self.hold.wait(60)
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.nodes = nodes
        return self

    def send(self, text: str) -> None:
        pass

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        time.sleep(0.05)
        yield Line("n1", "{ hello")
        yield Line("n1", text_of(replace(NODE, time=6.0)))
        yield Line("elsewhere", text_of(NODE))
        yield Answer("n1", Fate.COMPLETED, Completed((), 0, "", ""))
        yield Answer("n1", Fate.LOST, reason="twice")
        yield Answer("n2", Fate.COMPLETED, Completed((), 1, "", "Traceback\n\x1b[2Jboom\n"))
        yield Answer("n3", Fate.TIMEOUT, reason="no end within 3 s")

    def close(self) -> None:
        with self.lock:
            self.now -= 1
            self.closed += 1


def test_many_jobs_are_looked_at_side_by_side_and_not_all_at_once(monkeypatch):
    srun = Pretended()
    monkeypatch.setattr(job_looks, "SrunTransport", lambda *_, **__: srun)
    monkeypatch.setattr(job_looks, "archive", lambda: Archive(b""))
    orders = [LookOrder(LookRequest("1", f"run{i}"), ("n1", "n2", "n3", "n4"), "srun") for i in range(20)]
    looks = FleetLooker(FleetSettings(at_once=4)).look(orders)
    assert 2 <= srun.most <= 4
    assert srun.closed == 20
    assert len(looks) == 20
    for look in looks.values():
        assert look.nodes == (replace(NODE, time=6.0),)
        assert look.unseen == {
            "n2": "the look broke off with exit code 1: boom",
            "n3": "no end within 3 s",
            "n4": "no answer in time",
        }


def test_a_way_that_hangs_does_not_hold_us(monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(job_looks, "SrunTransport", lambda *_, **__: Pretended(hold))
    monkeypatch.setattr(job_looks, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(job_looks, "START_SECONDS", 0.1)
    began = time.monotonic()
    try:
        settings = FleetSettings(deadline_seconds=0.8, at_once=1)
        orders = [LookOrder(LookRequest("1", run), ("n1",), "srun") for run in ("a", "b")]
        looks = FleetLooker(settings).look(orders)
        assert time.monotonic() - began < 10
    finally:
        hold.set()
    assert looks == {run: JobLook((), {"n1": "no answer within 0.8 s"}) for run in ("a", "b")}


def test_a_job_of_this_machine_is_looked_at_here():
    looks = LocalLooker(LocalHost("here")).look(
        [LookOrder(LookRequest(run="a", roots=(os.getpid(),), stacks=False)), LookOrder(LookRequest(run="b"))]
    )
    assert os.getpid() in {one.pid for one in looks["a"].nodes[0].processes}
    assert looks["b"] == JobLook((), {"here": "the look names neither a job nor processes"})
