"""The mount table and the probe: real mounts, a mount that hangs, hostile tables."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unparsable
from clustertools.host import Completed, FileStat, LocalHost
from clustertools.sources.mounts import Answer, Mount, mounts, probe

LINE = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"


class Table:
    """A host that has a mount table, and a probe that says `output`."""

    name, boot_id = "n1", "boot"

    def __init__(self, table: str = LINE, output: str = "") -> None:
        self.table, self.output = table, output

    def now(self) -> float:
        return 0.0

    def run(self, *argv: str, timeout_seconds: float = 10, stdin: str = "") -> Completed:
        return Completed(argv, 0, self.output, "")

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        return self.table

    def stat(self, path: str) -> FileStat:
        raise Absent(path)

    def glob(self, pattern: str) -> list[str]:
        return []


def test_one_line() -> None:
    assert mounts(Table()) == [
        Mount(
            36, "/mnt2", "ext3", "98:0", "/dev/root", "/mnt1", frozenset({"rw", "noatime"}),
            frozenset({"rw", "errors=continue"}),
        )
    ]  # fmt: skip


def test_names_with_blanks_and_the_uppermost_of_two() -> None:
    table = LINE + LINE.replace("/mnt2", "/my\\040disk\\134x") + LINE.replace("36 35", "99 35")
    found = mounts(Table(table))
    assert [(m.id, m.point) for m in found] == [(36, "/my disk\\x"), (99, "/mnt2")]


@pytest.mark.parametrize(
    ("options", "super_options", "read_only"),
    [("rw", "rw", False), ("ro", "rw", False), ("rw", "ro", True), ("rw", "rw,emergency_ro", True)],
)
def test_read_only_is_the_file_system_not_the_bind(options: str, super_options: str, read_only: bool) -> None:
    table = f"36 35 98:0 / /mnt2 {options} - ext4 /dev/sda1 {super_options}\n"
    assert mounts(Table(table))[0].is_read_only is read_only


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)],
)
def test_network(kind: str, network: bool) -> None:
    assert mounts(Table(LINE.replace("ext3", kind)))[0].is_network is network


@pytest.mark.parametrize(
    "line", ["nonsense", "36 35 98:0 / /mnt rw", "x 35 98:0 / /mnt rw - ext4 /dev/a rw", "\0"]
)
def test_another_form_is_unparsable(line: str) -> None:
    with pytest.raises(Unparsable):
        mounts(Table(LINE + line + "\n"))


@settings(max_examples=100)
@given(st.text(max_size=400), st.integers(0, 100))
def test_hostile_tables_and_answers(noise: str, cut: int) -> None:
    with contextlib.suppress(Unparsable):
        mounts(Table(LINE[:cut] + noise))
    answer = json.dumps({"path": "/", "total_bytes": 5})
    with contextlib.suppress(Unparsable):
        probe(Table(output=answer[:cut] + noise), ["/"])


@pytest.mark.parametrize(
    "output",
    [
        "",
        '{"path": "/other"}\n',
        '{"path": "/"}\n{"path": "/"}\n',
        '{"path": "/", "new": 1}\n',
        '{"path": "/", "total_bytes": "5"}\n',
        '{"path": "/", "error": 5}\n',
    ],
)
def test_a_probe_that_says_something_else(output: str) -> None:
    with pytest.raises(Unparsable):
        probe(Table(output=output), ["/"])


def test_real_paths(tmp_path: Path) -> None:
    odd = tmp_path / "a b\u00e9'\"\n"
    odd.mkdir()
    answers = {a.path: a for a in probe(LocalHost(), ["/", str(odd), str(tmp_path / "gone")])}
    assert answers[str(tmp_path / "gone")] == Answer(str(tmp_path / "gone"), error="ENOENT")
    root, size = answers["/"], os.statvfs("/")
    assert root.total_bytes == size.f_blocks * size.f_frsize
    assert 0 < root.used_ratio <= 1
    assert answers[str(odd)].total_bytes > 0
    assert probe(LocalHost(), []) == []


@pytest.fixture
def hung_mount(tmp_path: Path) -> Iterator[str]:
    """A FUSE mount whose server is stopped: it blocks all who touch it."""
    source, point = tmp_path / "source", tmp_path / "point"
    source.mkdir()
    (source / "file").write_text("x")
    point.mkdir()
    with subprocess.Popen(["bindfs", "-f", str(source), str(point)]) as server:
        try:
            deadline = time.monotonic() + 5
            while not (point / "file").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            server.send_signal(signal.SIGSTOP)
            yield str(point)
        finally:
            server.send_signal(signal.SIGCONT)
            subprocess.run(["umount", "-l", str(point)], check=False)
            server.terminate()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"),
    reason="needs root, /dev/fuse and bindfs",
)
def test_a_mount_that_really_hangs_is_named_and_the_others_answer(hung_mount: str) -> None:
    began = time.monotonic()
    answers = {a.path: a for a in probe(LocalHost(), ["/", hung_mount, "/dev/shm"], deadline_seconds=0.7)}
    assert time.monotonic() - began < 3
    assert answers[hung_mount].hung
    assert answers["/"].total_bytes
    assert not answers["/dev/shm"].hung
    assert hung_mount in {m.point for m in mounts(LocalHost()) if m.is_network}
