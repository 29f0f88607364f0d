"""One node's look at a job: whose processes are the job's, what is denied or hangs, and how much is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.errors import ConfigError, Unobservable
from clustertools.host import LocalHost, PassingHost, RecordedHost
from clustertools.sources import job_look
from clustertools.sources.job_look import (
    LookRequest,
    NodeLook,
    fitted,
    job_pids,
    look,
    own_processes,
    read_request,
    request_text,
    text_of,
)
from clustertools.sources.processes import Process
from clustertools.sources.stacks import Frame, Stack

HOSTS = Path(__file__).parent.parent / "hosts"


class Node(PassingHost):
    """A node of a few processes: pid -> (parent, name, environment, cgroup). None: denied."""

    def __init__(self, **processes: tuple[int, str, str | None, str]) -> None:
        super().__init__(LocalHost("n1"))
        self.processes = {name.removeprefix("p"): told for name, told in processes.items()}

    def glob(self, pattern: str) -> list[str]:
        assert pattern == "/proc/[0-9]*"
        return [f"/proc/{pid}" for pid in self.processes]

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path == "/proc/stat":
            return "btime 1763692401\n"
        _, _, pid, what = path.split("/")
        parent, name, environment, cgroup = self.processes[pid]
        if what == "stat":
            return f"{pid} ({name}) S {parent} " + "0 " * 48
        if what == "cgroup":
            return cgroup
        assert what == "environ"
        if environment is None:
            raise Unobservable(f"{path}: Permission denied")
        return environment.replace(" ", "\0")


V2 = "0::/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0\n"
NODE = Node(
    p1=(0, "systemd", None, "0::/init.scope\n"),
    p10=(1, "slurmstepd", "A=1", V2),
    p11=(10, "python", "SLURM_JOB_ID=4711 RANK=0", V2),
    # it wrote its title over its environment, and its child left the cgroup
    p12=(11, "title", "", V2),
    p13=(12, "loader", "", "0::/\n"),
    p14=(1, "daemon", "SLURM_JOB_ID=4711", "0::/\n"),
    p20=(1, "python", "SLURM_JOB_ID=47110 SLURM_JOBID=47110", "0::/x/job_4711/\n"),
    p21=(1, "python", "SLURM_JOB_ID=4714 SLURM_ARRAY_JOB_ID=4710 SLURM_ARRAY_TASK_ID=3", "0::/\n"),
    p22=(1, "title", "", V2.replace("4711", "4714")),
    p23=(1, "python", "SLURM_JOB_ID=4716 SLURM_HET_JOB_ID=4715", "0::/\n"),
    p24=(1, "python", "SLURM_JOB_ID=4712 SLURM_ARRAY_JOB_ID=4710 SLURM_ARRAY_TASK_ID=30", "0::/\n"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("job", "pids"),
    [("4711", {11, 12, 13, 14}), ("4710_3", {21, 22}), ("4715+1", {23}), ("4714", {21, 22}), ("471", set())],
)
def test_the_processes_of_a_job_are_found_by_cgroup_environment_and_parents(job, pids):
    assert set(job_pids(NODE, LookRequest(job), lambda _: None)) == pids


def test_what_looks_like_the_job_and_is_ours_is_left_out():
    assert set(job_pids(NODE, LookRequest("4711"), lambda _: None, without={14})) == {11, 12, 13}


def test_what_is_denied_is_unseen_only_where_nothing_was_found():
    told: list[str] = []
    assert job_pids(NODE, LookRequest("4711"), told.append)
    assert told == []
    assert job_pids(NODE, LookRequest("9"), told.append) == []
    assert "environment of 1 processes may not be read" in told[0]


@pytest.mark.parametrize("job", ["abc", "4711; rm", "4711_", "-1", "4711_1_1", "9" * 40])
def test_what_is_no_number_of_a_job_is_refused(job):
    with pytest.raises(ConfigError):
        look(NODE, LookRequest(job))


def test_a_look_that_names_nothing_is_refused():
    with pytest.raises(ConfigError):
        look(NODE, LookRequest())


class Hanging(PassingHost):
    """The command line of a process that sits in the driver does not come."""

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        if path.endswith("/cmdline"):
            time.sleep(30)
        return super().read(path, offset, limit)


@pytest.mark.slow
def test_a_part_that_hangs_holds_up_neither_the_others_nor_us():
    began = time.monotonic()
    seen = look(Hanging(LocalHost("here")), LookRequest(roots=(os.getpid(),), seconds=1.5, stacks=False))
    assert time.monotonic() - began < 10
    assert seen.processes == ()
    assert seen.port_bytes
    assert "processes: no answer within 1.5 s" in seen.unseen


def test_a_part_that_breaks_is_unseen(monkeypatch):
    monkeypatch.setattr(job_look.infiniband, "devices", lambda *_: 1 / 0)
    seen = look(LocalHost("here"), LookRequest(roots=(os.getpid(),), stacks=False))
    assert [one.pid for one in seen.processes if one.pid == os.getpid()]
    assert "network ports: the look itself failed: ZeroDivisionError: division by zero" in seen.unseen


def test_a_node_shows_its_gpus_and_what_its_kernel_said():
    seen = look(RecordedHost(HOSTS / "h100-xid-lemon"), LookRequest(roots=(1,), stacks=False))
    assert len(seen.gpus) == 8
    first = seen.gpus[0]
    assert first.pci.count(":") == 2
    assert None not in (first.power_watts, first.power_limit_watts, first.sm_clock_mhz)
    assert 0 <= (first.utilization_ratio or 0.0) <= 1
    assert any("NVRM: Xid" in line for line in seen.kernel)
    since = look(RecordedHost(HOSTS / "h100-xid-lemon"), LookRequest(roots=(1,), kernel_since=9e9))
    assert since.kernel == ()


def test_a_port_counts_bytes_and_the_kernel_words_of_four_octets():
    class Ports(PassingHost):
        def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
            if path == "/proc/net/dev":
                return (
                    "Inter-|   Receive\n    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n"
                    "  eth0: 1296 13 0 0 0 0 0 0 77 13 0 0 0 0 0 0\n"
                )
            return super().read(path, offset, limit)

    seen = look(Ports(RecordedHost(HOSTS / "h100-ib-links")), LookRequest(roots=(1,), stacks=False))
    assert (seen.port_bytes["eth0 in"], seen.port_bytes["eth0 out"]) == (1296, 77)
    assert "lo in" not in seen.port_bytes
    told = {name: n for name, n in seen.port_bytes.items() if name.startswith("mlx5")}
    raw = (
        HOSTS / "h100-healthy/files/sys/class/infiniband/mlx5_0/ports/1/counters/port_rcv_data"
    ).read_text()
    assert told["mlx5_0/1 in"] == 4 * int(raw)


def test_a_look_that_is_too_long_loses_the_least_telling():
    frames = tuple(Frame(f"function{i}", "/a/long/path" * 5, i) for i in range(64))
    stack = [Stack(100 + r, r, "MainThread", frames, "S") for r in range(64)]
    inside = [
        Process(100 + i, 1, 1, 1, "S", 1, 1.0, 1.0, 1, 1, "python", ("x" * 400,), "", 1, 1)
        for i in range(256)
    ]  # fmt: skip
    seen = NodeLook(
        "n1", 1.0, ranks={str(r): 100 + r for r in range(64)}, processes=tuple(inside), stacks=tuple(stack),
        kernel=("y" * 500,) * 200,
    )  # fmt: skip
    assert len(text_of(seen)) > job_look.MOST_BYTES
    short = fitted(seen)
    assert len(text_of(short)) <= job_look.MOST_BYTES
    assert {one.pid for one in short.processes} == {100 + r for r in range(64)}
    assert len(short.stacks) == 64
    assert short.stacks[0].frames[0] == frames[0]
    assert any("was cut" in text for text in short.unseen)
    assert fitted(short) == short


def test_the_request_is_read_as_it_was_written():
    request = LookRequest("4711_3", "pretrain", (), False, 5.5, 9.0)
    assert read_request(request_text(request)) == request
    for text in ("", "[]", "{}", request_text(request).replace('"4711_3"', "5"), "{" * 100_000):
        with pytest.raises(ConfigError):
            read_request(text)


@pytest.fixture
def python() -> Iterator[int]:
    program = "import time\ndef waits():\n time.sleep(99)\nprint(1, flush=True)\nwaits()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()
    child.stdout.close()


def test_without_ranks_the_topmost_python_is_looked_into(python):
    seen = look(LocalHost("here"), LookRequest(roots=(python,)))
    assert seen.ranks == {}
    assert [(one.pid, one.rank) for one in seen.stacks] == [(python, -1)]


@pytest.mark.slow
def test_the_program_answers_in_one_line(python):
    words = [sys.executable, "-m", "clustertools.sources.job_look"]
    request = request_text(LookRequest(roots=(python,), stacks=False)) + "\n"
    done = subprocess.run(words, input=request, capture_output=True, text=True, timeout=60, check=True)
    (line,) = done.stdout.splitlines()
    assert [one["pid"] for one in json.loads(line)["processes"]] == [python]
    wrong = subprocess.run(words, input="what?\n", capture_output=True, text=True, timeout=60, check=False)
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert "the request for a look cannot be read" in wrong.stderr


def test_own_processes_are_those_above_and_below_us(python):
    mine = own_processes(LocalHost())
    assert {os.getpid(), os.getppid(), python} <= mine
