"""What ranks leave on their node: dumps that are asked for by a pipe, torchrun's files, and traps."""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet.job_looks import LocalLooker, read_files
from clustertools.host import LocalHost
from clustertools.sources import rank_files
from clustertools.sources.job_look import LookOrder, LookRequest
from clustertools.sources.rank_files import (
    FilesRequest,
    Gathered,
    NodeFile,
    files_request_text,
    gather,
    lines_of,
    read_files_request,
    read_owned,
    unpacked,
)

REAL = Path(__file__).parent / "flight_recorder" / "stall" / "rank0"

#: Does what it is told to when its pipe is written to.
RANK = """
import os, sys, time
rank, how, real = sys.argv[1:]
pipe = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + rank + ".pipe"
dump = os.environ["TORCH_FR_DUMP_TEMP_FILE"] + rank
if how != "deaf":
    os.mkfifo(pipe)
    file = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
print("ready", flush=True)
while how == "deaf" or not os.read(file, 9):
    time.sleep(0.02)
data = open(real, "rb").read()
if how == "link":
    os.symlink(real, dump)
elif how == "half":
    open(dump, "wb").write(data[:900])
else:
    with open(dump, "wb", buffering=0) as out:
        for byte in range(0, len(data), 500):
            out.write(data[byte:byte + 500])
            time.sleep(0.05)
time.sleep(600)
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`rank(number, how)` starts one; its pid."""
    started = []

    def start(number: int, how: str = "well", **variables: str) -> int:
        environment = {
            "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "4", "HOME": str(tmp_path),
            "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/trace_", "PATH": os.environ["PATH"],
            "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": f"{tmp_path}/pipe_", **variables,
        }  # fmt: skip
        words = [sys.executable, "-c", RANK, str(number), how, str(REAL)]
        child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child.pid

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


def gathered(*pids: int, **options: Any) -> tuple[dict[str, NodeFile], Gathered]:
    request = FilesRequest(LookRequest(roots=pids), **{"seconds": 2.0, **options})
    *files, about = gather(LocalHost(), request)
    assert isinstance(about, Gathered)
    return {file.name: file for file in files if isinstance(file, NodeFile)}, about


@pytest.mark.slow
def test_a_rank_that_is_asked_dumps_and_the_dump_is_awaited(rank, tmp_path):
    files, about = gathered(rank(0), rank(1))
    assert {name: file.data for name, file in files.items()} == {
        f"flight-recorder-rank{n}": REAL.read_bytes() for n in (0, 1)
    }
    assert [dump.rank for dump in about.dumps] == [0, 1]
    assert about.world_size == 4
    assert about.unseen == ()


def test_nobody_is_asked_by_merely_looking(rank, tmp_path):
    pid = rank(0)
    assert gathered(pid, ask_dumps=False) == ({}, Gathered((), 4, ()))
    assert not (tmp_path / "trace_0").exists()


@pytest.mark.slow
def test_one_that_does_not_listen_and_one_that_gives_half_are_told(rank, tmp_path):
    deaf = rank(0, "deaf")
    os.mkfifo(tmp_path / "pipe_0.pipe")
    files, about = gathered(deaf, rank(1, "half"), rank(2), seconds=1.0)
    assert set(files) == {"flight-recorder-rank2", "flight-recorder-rank1"}
    assert [dump.rank for dump in about.dumps] == [2]
    said = "\n".join(about.unseen)
    assert f"rank 0 was not asked for its dump ({tmp_path}/pipe_0.pipe): it does not listen" in said
    assert "rank 1 was asked for its dump and gave none within 1 s" in said
    assert "the dump of rank 1 cannot be read" in said


def test_a_dump_that_leads_elsewhere_is_not_followed(rank):
    files, about = gathered(rank(0, "link"), seconds=0.6)
    assert files == {}
    assert about.dumps == ()


def test_a_pipe_that_is_a_file_is_left_alone(rank, tmp_path):
    pid = rank(0, "deaf")
    trap = tmp_path / "pipe_0.pipe"
    trap.write_text("precious")
    _, about = gathered(pid)
    assert trap.read_text() == "precious"
    assert "it is no pipe of the job's user" in about.unseen[0]


def test_a_dump_of_this_start_counts_and_an_older_one_does_not(rank, tmp_path):
    old = tmp_path / ".cache" / "torch" / "comm_lib_trace_rank_0"
    old.parent.mkdir(parents=True)
    old.write_bytes(REAL.read_bytes())
    os.utime(old, (1.0, 1.0))
    pid = rank(0, "deaf", TORCH_FR_DUMP_TEMP_FILE="", TORCH_NCCL_DEBUG_INFO_PIPE_FILE="")
    assert gathered(pid)[0] == {}
    os.utime(old)
    files, about = gathered(pid)
    assert files["flight-recorder-rank0"].path == str(old)
    assert about.dumps[0].rank == 0


def test_a_dump_too_large_to_bring_is_read_all_the_same(rank):
    files, about = gathered(rank(0), most_bytes=10)
    assert files == {}
    assert [dump.rank for dump in about.dumps] == [0]
    assert "was read and not brought" in about.unseen[0]


def test_the_error_files_of_all_attempts_come_along(rank, tmp_path):
    run = tmp_path / "logs" / "none_ab"
    for attempt, text in ((0, "died first"), (1, "")):
        (run / f"attempt_{attempt}" / "0").mkdir(parents=True)
        (run / f"attempt_{attempt}" / "0" / "error.json").write_text(text)
    (run / "attempt_1" / "0" / "stderr.log").write_text("x" * 100_000 + "last words")
    pid = rank(0, "deaf", TORCHELASTIC_ERROR_FILE=f"{run}/attempt_1/0/error.json")
    files, _ = gathered(pid, ask_dumps=False)
    assert files["torchrun-attempt-0-0-error.json"].data == b"died first"
    tail = files["torchrun-attempt-1-0-stderr.log"]
    assert tail.data.endswith(b"last words")
    assert (len(tail.data), tail.is_tail) == (rank_files.TAIL_BYTES, True)
    assert "torchrun-attempt-1-0-error.json" not in files


def test_only_plain_files_of_the_user_are_read(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"0123456789")
    assert read_owned(str(mine), os.geteuid(), 10) == b"0123456789"
    assert read_owned(str(mine), os.geteuid(), 4, tail=True) == b"6789"
    (tmp_path / "link").symlink_to(mine)
    os.mkfifo(tmp_path / "fifo")
    for name, number in (("link", errno.ELOOP), ("fifo", errno.EPERM), (".", errno.EPERM)):
        with pytest.raises(OSError, match=r".") as raised:
            read_owned(str(tmp_path / name), os.geteuid(), 10)
        assert raised.value.errno == number
    with pytest.raises(OSError, match="more than are brought"):
        read_owned(str(mine), os.geteuid(), 4)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_reads_no_file_of_another_user_for_a_job(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root's own")
    with pytest.raises(OSError, match="no plain file of the job's user"):
        read_owned(str(secret), 65534, 100)
    os.chown(secret, 65534, 65534)
    assert read_owned(str(secret), 65534, 100) == b"root's own"


def test_a_large_file_travels_in_pieces(monkeypatch):
    monkeypatch.setattr(rank_files, "PIECE_BYTES", 100)
    file = NodeFile("flight-recorder-rank0", "/x", os.urandom(1000))
    lines = [*lines_of(file), *lines_of(Gathered((), 2, ("\x1b[2J",)))]
    assert len(lines) > 10
    found = read_files({"n1": (lines, "")})
    assert found.files["n1"] == (file,)
    assert found.gathered["n1"] == Gathered((), 2, ("",))
    assert not found.unseen
    cut = read_files({"n1": (lines[:-1], "no end within 3 s"), "n2": ((), "")})
    assert cut.files["n1"] == (file,)
    assert cut.unseen == {"n1": "no end within 3 s", "n2": "it broke off before its end"}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": "a\n"},
        {"name": 5},
        {"data": "%%"},
        {"data": "AAAA"},
        {"path": None},
        {"name": ""},
    ],
    ids=str,
)
def test_a_piece_of_another_form_is_refused(change):
    (line,) = lines_of(NodeFile("a", "/x", b"data"))
    with pytest.raises(ValueError, match=r"."):
        unpacked({**json.loads(line), **change}, {}, 100)
    assert not read_files({"n1": ([json.dumps({**json.loads(line), **change})], "")}).files


def test_a_few_bytes_do_not_become_many():
    bomb = base64.b64encode(zlib.compress(bytes(5_000_000))).decode()
    file = unpacked({"name": "a", "path": "/x", "data": bomb, "is_last": True}, {}, 1000)
    assert file is not None
    assert len(file.data) == 1000


def test_the_request_is_read_as_it_was_written():
    request = FilesRequest(LookRequest("4711", "a", kernel_since=3.0), False, 2.5, 1000)
    assert read_files_request(files_request_text(request)) == request
    for text in ("", "[]", "{}", '{"schema": 2}', files_request_text(request).replace('"4711"', "4711")):
        with pytest.raises(ConfigError):
            read_files_request(text)


@pytest.mark.slow
def test_this_machine_is_asked_by_a_child(rank):
    order = LookOrder(LookRequest(run="a", roots=(rank(0),)))
    found = LocalLooker(LocalHost("here")).bring(order)
    assert found.unseen == {}
    assert [file.data for file in found.files["here"]] == [REAL.read_bytes()]
