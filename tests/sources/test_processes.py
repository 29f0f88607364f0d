"""Processes, their trees, their ranks and what they did, from the real /proc and from hostile ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Completed, FileStat, LocalHost
from clustertools.sources.processes import (
    Process,
    Rank,
    activity,
    environ,
    processes,
    rank_of,
    ranks,
    tree,
)

STAT = "{pid} ({name}) {state} {ppid} 7 7 0 -1 4194560 9 0 0 0 {user} {system} 0 0 20 0 3 0 {start} 900 5 0 0"


class Proc:
    """A host whose /proc holds what the test says; a value None is a file that may not be read."""

    name, boot_id = "n1", "boot"

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self.files = {"stat": "cpu 1 2 3\nbtime 1000\n", **files}

    def now(self) -> float:
        return 2000.0

    def run(self, *argv: str, timeout_seconds: float = 10, stdin: str = "") -> Completed:
        raise Absent(argv[0])

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        name = path.removeprefix("/proc/")
        if name not in self.files:
            raise Absent(path)
        text = self.files[name]
        if text is None:
            raise Unobservable(f"{path}: Permission denied")
        return text

    def stat(self, path: str) -> FileStat:
        raise Absent(path)

    def glob(self, pattern: str) -> list[str]:
        return sorted({f"/proc/{name.split('/')[0]}" for name in self.files if name[0].isdigit()})


def stat(pid: int, ppid: int = 1, name: str = "python3", state: str = "S", start: int = 500) -> str:
    return STAT.format(pid=pid, ppid=ppid, name=name, state=state, user=300, system=50, start=start)


def program(pid: int, ppid: int, words: str, variables: str = "", **more: int) -> dict[str, str | None]:
    return {
        f"{pid}/stat": stat(pid, ppid, **more),  # type: ignore[arg-type]
        f"{pid}/cmdline": words.replace(" ", "\0") + "\0",
        f"{pid}/environ": variables.replace(" ", "\0") + "\0",
    }


def test_one_process_in_full() -> None:
    files = {
        "42/stat": stat(42),
        "42/cmdline": "python3\0train.py\0",
        "42/status": "Name:\tpython3\nVmRSS:\t    2048 kB\n",
        "42/io": "rchar: 100\nwchar: 20\nsyscr: 1\n",
        "42/wchan": "futex_wait_queue",
    }
    assert processes(Proc(files)) == {
        42: Process(
            42, 1, 7, 7, "S", 500, 1005.0, 3.5, 3, 2048 * 1024, "python3", ("python3", "train.py"),
            "futex_wait_queue", 100, 20,
        )
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a b", "a) R 1 (b", "((", ") S 1 1 1", "two\nlines", "\ufffd", ""])
def test_any_command_name(name: str) -> None:
    one = processes(Proc({"42/stat": stat(42, 9, name)}))[42]
    assert (one.command, one.ppid, one.state) == (name, 9, "S")


def test_denied_files_are_none_and_the_dead_are_left_out() -> None:
    files = {"42/stat": stat(42), "42/cmdline": None, "42/status": None, "42/io": None, "42/wchan": None}
    one = processes(Proc(files), [42, 43])
    assert list(one) == [42]
    assert (one[42].argv, one[42].rss_bytes, one[42].wchan, one[42].read_bytes) == (None, None, None, None)


def test_kernel_threads_are_told_by_their_flag() -> None:
    one = processes(Proc({"42/stat": stat(42, 2, "kworker/0:1").replace("4194560", "69238880")}))[42]
    assert one.is_kernel
    assert not one.is_python


def test_no_proc_is_not_no_processes() -> None:
    with pytest.raises(Unobservable, match="mounted"):
        processes(Proc({}))
    with pytest.raises(Unparsable, match="btime"):
        processes(Proc({"stat": "cpu 1\n"}))


@pytest.mark.parametrize("text", ["42 (a) S", "43 (a) S 1", "nonsense", "42 (a) SS " + "1 " * 30])
def test_another_form_is_unparsable(text: str) -> None:
    with pytest.raises(Unparsable):
        processes(Proc({"42/stat": text}))


@settings(max_examples=100)
@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_hostile_texts(one: str, two: str, three: str) -> None:
    files = {"42/stat": one + "(" + two + ")" + three, "42/cmdline": two, "42/status": three, "42/io": one}
    for texts in (files, {**files, "42/stat": stat(42), "42/environ": one}):
        try:
            processes(Proc(texts))
            ranks(Proc(texts), [42])
        except Unobservable:
            pass


def test_tree_has_parents_first_and_survives_loops() -> None:
    files = {
        f"{pid}/stat": stat(pid, ppid) for pid, ppid in [(10, 1), (11, 10), (12, 11), (13, 10), (99, 99)]
    }
    seen = processes(Proc(files))
    assert tree(seen, [10, 11, 5]) == [10, 11, 13, 12]
    assert tree(seen, [99]) == [99]


def test_ranks_are_the_workers_not_agent_shell_or_data_loaders() -> None:
    host = Proc(
        {
            **program(10, 1, "bash run.sh", "SLURM_PROCID=0 SLURM_NTASKS=1"),
            **program(11, 10, "/usr/bin/python3 torchrun train.py", "SLURM_PROCID=0"),
            **program(12, 11, "python3 train.py", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 SLURM_PROCID=0"),
            **program(13, 11, "python3 train.py", "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 SLURM_PROCID=0"),
            **program(14, 12, "python3 train.py", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2"),
            **program(15, 14, "python3 -c helper", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2"),
        }
    )
    assert ranks(host, [10]) == {0: 12, 1: 13}
    assert rank_of(host, 13) == Rank(1, 1, 2, -1, "RANK")
    assert rank_of(host, 10) == Rank(0, -1, 1, -1, "SLURM_PROCID")


def test_a_pod_operator_gives_the_agent_a_rank_too() -> None:
    host = Proc(
        {
            **program(11, 1, "python3 torchrun train.py", "RANK=0 WORLD_SIZE=2"),
            **program(12, 11, "python3 train.py", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=4 GROUP_RANK=0"),
            **program(13, 11, "python3 train.py", "RANK=1 LOCAL_RANK=1 WORLD_SIZE=4 GROUP_RANK=0"),
        }
    )
    assert ranks(host, [11]) == {0: 12, 1: 13}


@pytest.mark.parametrize(
    "variables",
    [
        "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=8",
        "PMI_RANK=3 PMI_SIZE=8",
        "SLURM_PROCID=3 SLURM_NTASKS=8",
    ],
)
def test_ranks_of_other_launchers(variables: str) -> None:
    host = Proc(
        {
            **program(10, 1, "sh -c all_reduce_perf", variables),
            **program(11, 10, "./all_reduce_perf -b 8", variables),
        }
    )
    assert ranks(host, [10]) == {3: 11}
    found = rank_of(host, 11)
    assert found is not None
    assert (found.rank, found.world_size) == (3, 8)


def test_a_wrapper_of_a_site_is_not_the_rank() -> None:
    host = Proc(
        {
            **program(10, 1, "/opt/site/launch-it train.py", "RANK=2 LOCAL_RANK=2"),
            **program(11, 10, "/opt/conda/bin/python3.11 train.py", "RANK=2 LOCAL_RANK=2"),
        }
    )
    assert ranks(host, [10]) == {2: 11}


def test_the_topmost_counts_also_when_pids_wrapped_around() -> None:
    host = Proc(
        {
            **program(900, 1, "python3 train.py", "RANK=0 LOCAL_RANK=0"),
            **program(15, 900, "python3 train.py", "RANK=0 LOCAL_RANK=0"),
        }
    )
    assert ranks(host, [900]) == {0: 900}


def test_a_new_attempt_beside_an_old_zombie() -> None:
    host = Proc(
        {
            **program(10, 1, "python3 torchrun"),
            **program(11, 10, "python3 train.py", "RANK=0 LOCAL_RANK=0"),
            **program(12, 10, "python3 train.py", "RANK=0 LOCAL_RANK=0", start=900),
        }
    )
    host.files["11/stat"] = stat(11, 10, state="Z")
    assert ranks(host, [10]) == {0: 12}


def test_unreadable_environments_are_not_no_ranks() -> None:
    host = Proc({**program(10, 1, "python3 train.py"), "10/environ": None})
    with pytest.raises(Unobservable, match="as root"):
        ranks(host, [10])
    assert ranks(host, [77]) == {}
    with pytest.raises(Absent):
        rank_of(host, 77)


@pytest.mark.parametrize("value", ["", "-1", "x", "1e3", "9" * 50, "١"])
def test_a_rank_that_is_no_number(value: str) -> None:
    assert rank_of(Proc({"42/environ": f"RANK={value}\0"}), 42) is None


def test_activity_counts_new_processes_and_not_recycled_pids() -> None:
    def look(pid: int, cpu: int, io: int | None, start: int = 500) -> dict[int, Process]:
        text = STAT.format(pid=pid, ppid=1, name="p", state="R", user=cpu, system=0, start=start)
        files = {f"{pid}/stat": text, f"{pid}/io": None if io is None else f"rchar: {io}\nwchar: 1\n"}
        return processes(Proc(files))

    before = look(1, 100, 50) | look(2, 900, None)
    after = look(1, 350, 80) | look(2, 40, None, start=800) | look(3, 10, 7)
    done = activity(before, after)
    assert done.per_pid == {1: 2.5, 2: 0.4, 3: 0.1}
    assert done.cpu_seconds == pytest.approx(3.0)
    assert done.io_bytes == 30 + 7 + 1
    assert activity(look(2, 1, None), look(2, 1, None)).io_bytes is None


@pytest.fixture
def ranked(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real agent with two real ranks, one of which has a child that inherits its rank."""
    worker = tmp_path / "worker (1) x.py"
    worker.write_text(
        "import os, subprocess, sys, time\n"
        "if os.environ['RANK'] == '1' and len(sys.argv) == 1:\n"
        "    subprocess.Popen([sys.executable, __file__, 'loader'])\n"
        "time.sleep(60)\n"
    )
    agent = (
        "import os, subprocess, sys, time\n"
        "kids = [subprocess.Popen([sys.executable, sys.argv[1]], env={**os.environ, 'RANK': str(r), "
        "'LOCAL_RANK': str(r), 'WORLD_SIZE': '2'}) for r in (0, 1)]\n"
        "print(*(k.pid for k in kids), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", agent, str(worker)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        yield child
        os.killpg(child.pid, 9)


def test_real_ranks(ranked: subprocess.Popen[str]) -> None:
    assert ranked.stdout is not None
    first, second = map(int, ranked.stdout.readline().split())
    host = LocalHost()
    deadline = time.monotonic() + 10
    while len(tree(processes(host), [ranked.pid])) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ranks(host, [ranked.pid]) == {0: first, 1: second}
    assert environ(host, first)["WORLD_SIZE"] == "2"


def test_this_very_process() -> None:
    me = processes(LocalHost(), [os.getpid()])[os.getpid()]
    assert me.is_python
    assert abs(me.cpu_seconds - sum(os.times()[:2])) < 1
    assert me.rss_bytes is not None
    assert me.rss_bytes > 1 << 20
    assert me.state == "R"
    assert time.time() - 3600 < me.start_time <= time.time() + 1
