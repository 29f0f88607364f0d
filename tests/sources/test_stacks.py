"""Stacks: real py-spy on real ranks, recorded py-spy output, folding and hostile output."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import LocalHost, RecordedHost
from clustertools.sources.processes import processes
from clustertools.sources.stacks import (
    Frame,
    Stack,
    fold,
    parse_dump,
    py_spy_path,
    rank_set,
    render,
    same,
    stacks,
)

STAT = "{pid} (python) {state} 1 7 7 0 -1 4194560 9 0 0 0 1 1 0 0 20 0 3 0 500 900 5 0 0"
# what py-spy 0.4.3 printed for a thread of a real process
FRAME = {
    "name": "outer", "filename": "/srv/train.py", "module": None, "short_filename": "train.py", "line": 6,
    "locals": None, "is_entry": False, "is_shim_entry": False,
}  # fmt: skip
THREAD = {
    "pid": 6700, "thread_id": 139923000441728, "thread_name": "MainThread", "os_thread_id": 6700,
    "active": False, "owns_gil": False, "frames": [FRAME], "process_info": None,
}  # fmt: skip
# standard error of py-spy 0.4.3 for a shell, without its backtrace
NOT_PYTHON = "Error: Failed to find python version from target process\n\nStack backtrace:\n   0: anyhow\n"
REFUSED = (
    "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'\n"
)

WAIT = (Frame("all_reduce", "/site/distributed_c10d.py", 2810), Frame("main", "/srv/train.py", 60))
LOAD = (Frame("load", "/srv/data.py", 41), Frame("main", "/srv/train.py", 58))

Write = Callable[[dict[int, str], dict[int, dict[str, object]]], RecordedHost]


@pytest.fixture
def recorded(tmp_path: Path) -> Write:
    """A host with processes (pid to state) and what py-spy says about each."""

    def write(states: dict[int, str], answers: dict[int, dict[str, object]]) -> RecordedHost:
        (tmp_path / "host.yaml").write_text("name: n1\ntime: 2000\n")
        (tmp_path / "commands").mkdir(exist_ok=True)
        proc = tmp_path / "files" / "proc"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "stat").write_text("btime 1000\n")
        for pid, state in states.items():
            (proc / str(pid)).mkdir(exist_ok=True)
            (proc / str(pid) / "stat").write_text(STAT.format(pid=pid, state=state))
        for pid, answer in answers.items():
            argv = f"python -m clustertools.sources.stacks --json --nonblocking --pid {pid}".split()
            (tmp_path / "commands" / f"{pid}.yaml").write_text(json.dumps({"argv": argv, **answer}))
        return RecordedHost(tmp_path)

    return write


def says(*frames: Frame) -> dict[str, object]:
    listed = [{**FRAME, "name": f.function, "filename": f.file, "line": f.line} for f in frames]
    return {"stdout": json.dumps([{**THREAD, "frames": listed}])}


def stack(rank: int, frames: tuple[Frame, ...], state: str = "S", wchan: str = "") -> Stack:
    return Stack(100 + rank, rank, "MainThread", frames, state, wchan)


def test_the_rank_that_is_elsewhere_comes_first() -> None:
    groups = fold([stack(r, LOAD if r == 5 else WAIT) for r in range(8)])
    assert [(g.ranks, g.count) for g in groups] == [((5,), 1), ((0, 1, 2, 3, 4, 6, 7), 7)]
    assert render(groups) == (
        "rank 5: load (data.py:41) < main (train.py:58)\n"
        "ranks 0-4,6-7: all_reduce (distributed_c10d.py:2810) < main (train.py:60)"
    )


def test_a_stopped_rank_is_odd_even_where_all_stand_at_the_same_line() -> None:
    groups = fold([stack(0, WAIT), stack(1, WAIT, "T"), stack(2, WAIT, "R"), stack(3, LOAD)])
    assert [g.ranks for g in groups] == [(1,), (3,), (0, 2)]
    assert render(groups).startswith("rank 1 (stopped by a signal, state T): all_reduce")


def test_the_kernel_function_of_a_rank_in_state_d_is_named() -> None:
    groups = fold(
        [stack(0, LOAD, "S", "futex"), stack(1, LOAD, "D", "nfs_wait"), stack(2, LOAD, "S", "poll")]
    )
    assert [g.ranks for g in groups] == [(1,), (0, 2)]
    assert "rank 1 (waits in the kernel, state D, in nfs_wait):" in render(groups)


def test_long_stacks_are_cut_and_unseen_ranks_told() -> None:
    deep = tuple(Frame("f", "/a.py", n) for n in range(1, 31))
    text = render(fold([stack(0, deep)]), {1: "gone", 2: "gone"}, depth=2)
    assert text == "rank 0: f (a.py:1) < f (a.py:2) < 28 more\nranks 1-2: not seen: gone"


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 5], "0-2,5"), ([7, 5, 6, 6, 1], "1,5-7"), ([0, 1], "0-1")],
)
def test_rank_set(ranks: list[int], text: str) -> None:
    assert rank_set(ranks) == text


def test_same_means_same_place_and_same_process() -> None:
    first = [stack(0, WAIT), stack(1, LOAD)]
    assert same(first, list(reversed(first)))
    assert not same(first, [stack(0, WAIT), stack(1, WAIT)])
    assert not same(first, first[:1])
    assert not same([], [])
    other = dataclasses.replace(first[0], pid=999)
    assert not same(first, [other, first[1]])
    moved = (dataclasses.replace(WAIT[0], line=2811), WAIT[1])
    assert not same(first, [stack(0, moved), first[1]])


def test_the_main_thread_is_chosen() -> None:
    worker = {**THREAD, "thread_name": "pin_memory", "os_thread_id": 6702, "frames": []}
    assert parse_dump(json.dumps([worker, THREAD]), 6700) == (
        "MainThread",
        (Frame("outer", "/srv/train.py", 6),),
    )
    # in another pid namespace the kernel's id says nothing
    assert parse_dump(json.dumps([worker, THREAD]), 1)[0] == "MainThread"
    unnamed = {**THREAD, "thread_name": None}
    assert parse_dump(json.dumps([worker, unnamed]), 6700)[1]
    assert parse_dump(json.dumps([worker]), 6700) == ("pin_memory", ())
    assert parse_dump("[]", 6700) == ("", ())


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[1]", "[{}]", "[" * 20000, '[{"frames": [{"name": 1}]}]', '[{"frames": 3}]', "\0"],
)
def test_another_form_is_unparsable(text: str) -> None:
    with pytest.raises(Unparsable):
        parse_dump(text, 1)


@settings(max_examples=100)
@given(st.integers(0, 400), st.text(max_size=30), st.booleans())
def test_mangled_output(cut: int, noise: str, drop: bool) -> None:
    text = json.dumps([THREAD, THREAD])
    mangled = text[:cut] + noise + ("" if drop else text[cut:])
    with contextlib.suppress(Unparsable):
        parse_dump(mangled, 1)


def test_one_refused_rank_does_not_hide_the_others(recorded: Write) -> None:
    host = recorded(
        {10: "S", 11: "S", 12: "S", 13: "Z"},
        {
            10: says(*WAIT),
            11: {"returncode": 1, "stderr": REFUSED},
            12: {"error": "did not answer within 10 s"},
        },
    )
    report = stacks(host, {0: 10, 1: 11, 2: 12, 3: 13, 4: 14})
    assert [s.rank for s in report.stacks] == [0]
    assert set(report.unseen) == {1, 2, 3, 4}
    assert "not allowed" in report.unseen[1]
    assert "dead" in report.unseen[3]
    assert "gone" in report.unseen[4]


def test_all_refused_says_what_to_try(recorded: Write) -> None:
    host = recorded({10: "S"}, {10: {"returncode": 1, "stderr": REFUSED}})
    with pytest.raises(Unobservable, match="ptrace_scope"):
        stacks(host, {0: 10})
    host = recorded({10: "S"}, {10: {"returncode": 127, "stderr": "py-spy is not installed\n"}})
    with pytest.raises(Unobservable, match="pip install"):
        stacks(host, {0: 10})
    assert stacks(host, {}).stacks == ()


def test_the_kernel_stack_stands_in_for_programs_that_are_not_python(recorded: Write) -> None:
    host = recorded({10: "D"}, {10: {"returncode": 1, "stderr": NOT_PYTHON}})
    proc = host.folder / "files/proc/10"
    (proc / "wchan").write_text("nfs_wait")
    assert stacks(host, {0: 10}).stacks[0].frames == (Frame("nfs_wait", "kernel", 0),)
    (proc / "stack").write_text("[<0>] nfs_wait+0x63/0x90 [nfs]\n[<0>] vfs_read+0xbb/0x360\n")
    found = stacks(host, {0: 10}).stacks
    assert [f.function for f in found[0].frames] == ["nfs_wait", "vfs_read"]
    assert render(fold(found)) == (
        "rank 0 (waits in the kernel, state D, in nfs_wait): nfs_wait (kernel) < vfs_read (kernel)"
    )


WORKER = """
import os, time
def collective():
    open(__file__ + ".0", "w").close()
    while True: time.sleep(0.05)
def dataset():
    open(__file__ + ".1", "w").close()
    while True: time.sleep(0.05)
collective() if os.environ["RANK"] != "1" else dataset()
"""


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[dict[int, int]]:
    """Two real Python processes; rank 1 is in another function and stopped."""
    program = tmp_path / "train.py"
    program.write_text(WORKER)
    children = [
        subprocess.Popen([sys.executable, str(program)], env={**os.environ, "RANK": str(r)}) for r in (0, 1)
    ]
    until = time.monotonic() + 30
    while not all(Path(f"{program}.{r}").exists() for r in (0, 1)) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)  # from the note to the sleep is a moment
    children[1].send_signal(signal.SIGSTOP)
    yield {rank: child.pid for rank, child in enumerate(children)}
    for child in children:
        child.kill()
        child.wait()


def _py_spy() -> bool:
    try:
        return os.geteuid() == 0 and bool(py_spy_path())
    except Unobservable:
        return shutil.which("py-spy") is not None


@pytest.mark.root
@pytest.mark.skipif(not _py_spy(), reason="needs py-spy and root")
def test_real_ranks_one_of_them_stopped(two_ranks: dict[int, int]) -> None:
    host = LocalHost()
    deadline = time.monotonic() + 5
    while processes(host, [two_ranks[1]])[two_ranks[1]].state != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    report = stacks(host, two_ranks)
    assert not report.unseen
    groups = fold(report.stacks)
    assert [g.ranks for g in groups] == [(1,), (0,)]
    assert [g.frames[0].function for g in groups] == ["dataset", "collective"]
    assert render(groups).startswith("rank 1 (stopped by a signal, state T): dataset (train.py:8) < <module>")
    assert same(report.stacks, stacks(host, two_ranks).stacks)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(not _py_spy(), reason="needs py-spy and root")
def test_native_frames_and_a_stopped_rank_together(two_ranks: dict[int, int]) -> None:
    report = stacks(LocalHost(), two_ranks, native=True)
    assert [s.rank for s in report.stacks] == [0, 1]
    functions = [f.function for f in report.stacks[0].frames]
    assert "collective" in functions
    assert any("sleep" in f for f in functions)
    assert "dataset" in [f.function for f in report.stacks[1].frames]
