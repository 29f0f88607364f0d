"""The reader of failure lines: prefixes, pieces, rubbish, several attempts in one log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.sources.failures import FailureReader, kernel_failures, parse_error_file, read_failures
from tests.lab.memory_host import MemoryHost

LOG = "/scratch/train.log"
NOW = 1_795_300_000.0
ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
RECORDED = Path(__file__).parent.parent / "failure_logs"


def read(text, *, nodes=("n1", "n2"), memory=None, host=None, **more):
    host = host or MemoryHost()
    host.files[LOG] = text
    return read_failures(host, LOG, memory or {}, now=NOW, nodes=nodes, **more)


def at(stamp):
    return time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S"))


@pytest.mark.parametrize(
    ("line", "rank", "node"),
    [
        (ECC, None, ""),
        (f"[rank3]: {ECC}", 3, ""),
        (f"[default1]:[rank9]: {ECC}", 9, ""),
        (f"[default1]:{ECC}", None, ""),
        (f"  5: {ECC}", 5, ""),
        (f"[1,7]<stderr>:{ECC}", 7, ""),
        (f"n2: {ECC}", None, "n2"),
        (f"n2: [rank3]: {ECC}", 3, "n2"),
        (f"\x1b[31m[rank3]:\x1b[0m {ECC}", 3, ""),
        (f"100%|####| 3/3 [00:01]\r[rank3]: {ECC}", 3, ""),
        ("n2:123:456 [0] NCCL WARN NET/IB : mlx5_3:1 Got async event : port error", None, "n2"),
        (
            "[2026-11-21 10:46:33] n2:31:33 [1] transport/net_ib.cc:24 NCCL WARN NET/IB: Got completion from "
            "peer 10.0.0.4<405> with status=12 opcode=0 len=0 vendor err 129 (Recv)",
            None,
            "n2",
        ),
        ("[Rank 4] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1) ran for 6 ms", 4, ""),
        ("[PG ID 1 PG GUID 1 Rank 6] failure ... PG status: last enqueued work: 5, last", 6, ""),
        ("srun: error: n2: task 1: Killed", None, "n2"),
        ("srun: error: n2: tasks 4-7: Exited with exit code 1", None, "n2"),
        ("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-21T10:00:00 ***", None, "n1"),
    ],
)
def test_whom_a_line_is_from(line, rank, node):
    (found,) = read(f"noise\n{line}\nnoise\n").lines
    assert (found.rank, found.node) == (rank, node)


@pytest.mark.parametrize(
    ("line", "stamp"),
    [
        ("[rank0]:[E1121 10:02:03.426 ProcessGroupNCCL.cpp:629] [Rank 0] Watchdog caught collective "
         "operation timeout: x", "2026-11-21 10:02:03"),
        (f"2026-11-21 10:02:03,123 - root - ERROR - {ECC}", "2026-11-21 10:02:03"),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T10:02:03 DUE TO TIME LIMIT ***",
         "2026-11-21 10:02:03"),
    ],
)  # fmt: skip
def test_when_a_line_was_written(line, stamp):
    (found,) = read(line + "\n").lines
    assert found.time == pytest.approx(at(stamp), abs=1)


def test_a_zone_counts_and_december_is_last_year():
    (found,) = read(f"2026-11-21T10:02:03+02:00 {ECC}\n").lines
    assert found.time == 1795248123.0
    host = MemoryHost()
    host.files[LOG] = (
        "[E1231 23:59:59.000 x.cpp:1] [Rank 0] Watchdog caught collective operation timeout: x\n"
    )
    new_year = at("2027-01-01 00:10:00")
    (found,) = read_failures(host, LOG, {}, now=new_year).lines
    assert found.time == at("2026-12-31 23:59:59")


def test_slurm_names_the_nodes_that_failed():
    told = read("srun: error: Node failure on n[07-08,11]\n")
    assert [line.about for line in told.lines] == ["n07", "n08", "n11"]


def test_torchruns_list_gives_host_rank_and_time_of_each():
    host = MemoryHost()
    text = (RECORDED / "kill.log").read_text().replace("localhost", "n2.cluster.example")
    host.files[LOG] = text
    found = read_failures(host, LOG, {}, now=NOW, nodes=("n1", "n2")).lines
    (killed,) = [line for line in found if line.signature == "ProcessKilled" and line.rank == 1]
    assert (killed.node, killed.time) == ("n2", at("2026-11-21 19:48:26"))


def test_an_exception_is_told_with_its_place_in_the_program():
    (found,) = [x for x in read((RECORDED / "full.log").read_text()).lines if x.signature == "StorageFull"]
    assert found.text.endswith("called at trainer.py, line 32, in main)")


def test_source_text_in_a_traceback_is_no_failure():
    text = (
        'Traceback (most recent call last):\n  File "/a/t.py", line 1, in f\n'
        "    raise KeyError('no NaN: Loss is nan')\nKeyError: 'x'\n"
    )
    assert [line.signature for line in read(text).lines] == ["CodeError"]


def test_a_failure_that_the_run_trained_on_after_is_dropped():
    steps = "".join(f"iter {n}: loss 3.1, time 250.11ms, mfu 35.20%\n" for n in range(1, 4))
    assert len(read(f"KeyError: 'x'\n{steps[:100]}").lines) == 1
    host = MemoryHost()
    first = read(f"KeyError: 'x'\n{steps[:100]}", host=host)
    again = read(f"KeyError: 'x'\n{steps}{ECC}\n", host=host, memory=first.memory)
    assert [line.signature for line in again.lines] == ["GpuMemoryUncorrectable"]


def test_only_what_was_appended_is_read_and_half_lines_wait():
    host = MemoryHost()
    first = read(f"{ECC[:30]}", host=host)
    assert first.lines == ()
    second = read(f"{ECC}\nKey", host=host, memory=first.memory)
    assert [line.signature for line in second.lines] == ["GpuMemoryUncorrectable"]
    asked = []
    host.read = lambda path, offset=0, limit=None: asked.append(offset) or ""
    assert read_failures(host, LOG, second.memory, now=NOW).lines == second.lines
    assert asked == []


def test_a_log_that_was_written_anew_is_read_from_its_start():
    host = MemoryHost()
    first = read("a long first line of nothing at all\n" * 9, host=host)
    again = read(f"{ECC}\n", host=host, memory=first.memory, mixed=True)
    assert again.anew
    assert len(again.lines) == 1


OLD = (
    "KeyError: 'old'\n"
    "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T10:00:00 DUE TO JOB REQUEUE ***\n"
)


def test_the_end_of_the_attempt_before_is_not_taken_for_this_one():
    since = at("2026-11-21 10:05:00")
    assert read(OLD, since=since, mixed=True).lines == ()
    mine = read(OLD + "KeyError: 'new'\n", since=since, mixed=True).lines
    assert [line.text for line in mine] == ["KeyError: 'new'"]
    # a first attempt, in a log that an older run has written to
    assert [line.text for line in read(OLD + "KeyError: 'new'\n", since=since).lines] == ["KeyError: 'new'"]
    # nothing tells to which attempt it belongs
    assert read("KeyError: 'old or new'\n", since=since, mixed=True).lines == ()
    assert len(read("KeyError: 'x'\n", since=since).lines) == 1


def test_a_line_of_ten_megabytes_is_cut_and_the_next_is_read():
    found = read("x" * (10 << 20) + f"{ECC}\n[rank1]: {ECC}\n").lines
    assert [line.rank for line in found] == [1]
    long = read(f"[rank1]: {ECC} " + "y" * (10 << 20) + "\n").lines
    assert len(long[0].text) <= 400


def test_many_ranks_with_the_same_words_are_bounded():
    told = read("".join(f"[rank{r}]: {ECC}\n" for r in range(3000)))
    assert len(told.lines) < 1100


def test_an_error_file_of_torchrun():
    text = '{"message": {"message": "KeyError: \'x\'", "extraInfo": {"timestamp": "1795290531"}}}'
    (found,) = parse_error_file(text, "/logs/none_ab/attempt_0/3/error.json", one_node=True)
    assert (found.signature, found.time, found.rank) == ("CodeError", 1795290531.0, 3)
    for odd in ("", "[]", '{"message": 3}', '{"message": "all well"}', "[" * 9999):
        assert parse_error_file(odd, "x") == ()


def test_kernel_lines_of_a_look_are_failure_lines_too():
    lines = (
        "2026-11-21T08:02:03Z NVRM: Xid (PCI:0000:3b:00): 119, pid=1, Timeout after 6s",
        "2026-11-21T08:02:04Z nothing to see here",
        "2026-11-21T08:02:05Z Memory cgroup out of memory: Killed process 4242 (python) total-vm:1kB",
    )
    found = kernel_failures("n2", lines)
    assert [(x.signature, x.node) for x in found] == [("XidHardware", "n2"), ("HostOutOfMemory", "n2")]
    assert found[0].time == 1795248123.0


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["kill", "full", "exception-record", "tee"]), st.lists(st.integers(1, 700), max_size=40)
)
def test_however_a_log_is_cut_the_same_is_found(name, sizes):
    data = (RECORDED / f"{name}.log").read_bytes()
    whole = FailureReader("x", ("n1",))
    whole.feed(data, now=NOW)
    pieces, place = FailureReader("x", ("n1",)), 0
    for size in [*sizes, len(data)]:
        pieces = FailureReader.from_state(pieces.state(), "x", ("n1",)) if size % 7 == 0 else pieces
        pieces.feed(data[place : place + size], now=NOW, at=place)
        place += size
    assert pieces.lines() == whole.lines()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80), st.sampled_from([ECC.encode(), b"\n", b"\r", b"[rank", b'  File "'])
        ),
        max_size=30,
    )
)
def test_no_bytes_break_it(parts):
    reader = FailureReader("x", ("n1",))
    for part in parts:
        reader.feed(part, now=NOW)
        reader = FailureReader.from_state(reader.state(), "x", ("n1",))
    assert all(line.signature for line in reader.lines())
