"""Files on mounts whose server may be away: what is read is the same, and one that hangs costs little."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustertools import hanging_files
from clustertools import host as hosts
from clustertools.errors import Absent, Unobservable
from clustertools.hanging_files import FileChildren, NoAnswer, mount_that_may_hang
from clustertools.host import FileStat, LocalHost, own_python
from clustertools.sources.checkpoints import checkpoints, decode
from tests.checkpoint_builders import hf_checkpoint
from tests.lab.stuck_files import needs_fuse, stuck


@pytest.fixture
def away(monkeypatch):
    """This machine, where everything below /tmp counts as a mount that may hang."""
    monkeypatch.setattr(hosts, "mount_that_may_hang", lambda path: "/tmp")
    host = LocalHost()
    yield host
    host.__dict__.pop("_children", None)


def started(host: LocalHost) -> list[int]:
    return host._children.children()


def test_the_child_reads_what_we_would(away, tmp_path):
    (tmp_path / "log").write_bytes(b"first\n\xff\xfe second\n" + b"x" * 300_000)
    (tmp_path / "run[1]").mkdir()
    path = str(tmp_path / "log")
    assert away.read(path) == (tmp_path / "log").read_bytes().decode("utf-8", "replace")
    assert away.read(path, 6, 9) == "\ufffd\ufffd second"
    assert away.read(path, 10**9) == ""
    info = os.stat(path)
    assert away.stat(path) == FileStat(info.st_size, info.st_mtime, info.st_ino)
    assert away.stat(str(tmp_path / "run[1]")).is_dir
    assert away.glob(f"{tmp_path}/l*") == [path]
    assert away.glob(f"{tmp_path}/nothing*") == []
    assert len(started(away)) == 1


@pytest.mark.parametrize("name", ["gone", "gone/deeper", "log/not-a-folder"])
def test_what_is_not_there_is_absent(name, away, tmp_path):
    (tmp_path / "log").write_text("x")
    for ask in (away.read, away.stat):
        with pytest.raises(Absent, match=r"log/not-a-folder|gone"):
            ask(str(tmp_path / name))


def test_a_folder_is_no_file(away, tmp_path):
    with pytest.raises(Unobservable, match="Is a directory"):
        away.read(str(tmp_path))


def test_a_name_that_is_not_utf8(away, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/l\xffg")
    Path(path).write_text("text")
    assert away.read(path) == "text"
    assert away.glob(f"{tmp_path}/*") == [path]


def test_a_child_that_was_killed_is_replaced(away, tmp_path):
    (tmp_path / "log").write_text("x")
    away.read(str(tmp_path / "log"))
    (pid,) = started(away)
    os.kill(pid, signal.SIGKILL)
    assert away.read(str(tmp_path / "log")) == "x"
    assert started(away) != [pid]


def test_children_end_with_us(tmp_path):
    program = (
        "from clustertools.hanging_files import FileChildren\nfrom clustertools.host import own_python\n"
        "c = FileChildren(own_python('-m', 'clustertools.hanging_files'))\n"
        "c.ask('/', {'op': 'stat', 'path': '/'}, 10)\nprint(c.children()[0], flush=True)\n"
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    until = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")


# modules that run in a copy of a warm process


def test_a_listing_of_checkpoints_runs_in_a_copy(tmp_path):
    hf_checkpoint(tmp_path, 500)
    host = LocalHost()
    cold = subprocess.run(
        own_python("-m", "clustertools.sources.checkpoints", str(tmp_path), "--max", "10", "--seconds", "48"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first = checkpoints(host, str(tmp_path))
    assert first == decode(cold.stdout)
    (pid,) = started(host)
    for _ in range(5):
        assert checkpoints(host, str(tmp_path)) == first
    assert started(host) == [pid]
    with pytest.raises(Absent):
        checkpoints(host, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        ("print(sys.stdin.read()); print('bad', file=sys.stderr); return 3", 3, ("given\n", "bad\n")),
        ("raise SystemExit(4)", 4, ("", "")),
        ("raise SystemExit('words')", 1, ("", "")),
        ("print('half'); raise ValueError('no')", 1, ("half\n", "ValueError: no")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ("", "")),
        ("x = []; import gc; gc.disable(); sys.path.append('leak'); return None", 0, ("", "")),
        ("print(gc.isenabled(), 'leak' in sys.path)", 0, ("True False\n", "")),
    ],
)
def test_how_a_copy_ends(main, code, said, tmp_path, children_of):
    children = children_of(f"import gc, sys\ndef main(arguments):\n    {main}\n")
    for _ in range(2):
        question = {"op": "main", "module": "odd", "arguments": [], "stdin": "given", "limit": 1 << 20}
        told, data = children.ask("odd", question, 10)
        assert told["code"] == code
        out, errors = data[: told["out"]].decode(), data[told["out"] :].decode()
        assert out == said[0]
        assert said[1] in errors


@pytest.fixture
def children_of(tmp_path):
    """Children that know a module `odd` with this text."""

    def make(text: str) -> FileChildren:
        (tmp_path / "odd.py").write_text(text)
        argv = [sys.executable, hanging_files.__file__]
        return FileChildren(argv, {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]})

    return make


def test_more_than_the_limit_is_cut(children_of):
    children = children_of("def main(arguments):\n    print('y' * 100_000)\n")
    told, data = children.ask(
        "odd", {"op": "main", "module": "odd", "arguments": [], "stdin": "", "limit": 1000}, 10
    )
    assert (told["out"], told["cut"], data) == (1000, True, b"y" * 1000)


@pytest.mark.slow
def test_one_that_takes_too_long_is_killed_and_the_next_gets_all_its_time(children_of, tmp_path, monkeypatch):
    monkeypatch.setattr(hanging_files, "IN_A_ROW", 1)
    text = (
        "import os, sys, time\ndef main(arguments):\n    open(arguments[0], 'w').write(str(os.getpid()))\n"
        "    time.sleep(float(arguments[1]))\n"
    )
    children, note = children_of(text), tmp_path / "pid"

    def run(seconds: str, timeout: float):
        question = {
            "op": "main", "module": "odd", "arguments": [str(note), seconds], "stdin": "", "limit": 10,
        }  # fmt: skip
        return children.ask("odd", question, timeout)

    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"no answer within 1.5 s; its reader was killed"):
            run("60", 1.5)
    status, until = Path(f"/proc/{note.read_text()}/stat"), time.monotonic() + 5
    while status.exists() and ") Z " not in status.read_text() and time.monotonic() < until:
        time.sleep(0.05)  # a killed process is there for a moment yet
    assert not status.exists() or ") Z " in status.read_text(), "its copy was killed as well"
    assert run("0", 10)[0]["code"] == 0


# a mount that really hangs


@needs_fuse
@pytest.mark.root
@pytest.mark.slow
def test_a_mount_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(hanging_files, "AWAY_SECONDS", 3.0)
    monkeypatch.setattr(hanging_files, "IMPATIENT_SECONDS", 0.3)
    monkeypatch.setattr(hosts, "DEFAULT_TIMEOUT_SECONDS", 0.6)
    (tmp_path / "here").write_text("x")
    (tmp_path / "fuse").mkdir()
    host = LocalHost()
    with stuck(tmp_path / "fuse") as folder:
        assert mount_that_may_hang(str(folder / "file")) == str(folder)
        assert mount_that_may_hang(str(tmp_path / "here")) == ""
        began = time.monotonic()
        for number in range(1000):
            with pytest.raises(Unobservable, match=r"did not answer|cannot be killed"):
                host.read(str(folder / f"file{number}"))
        assert time.monotonic() - began < 20, "a thousand logs do not cost a thousand deadlines"
        assert host.read(str(tmp_path / "here")) == "x"
        with pytest.raises(Unobservable):
            host.stat(str(folder / "file"))
        lost = [line for line in _stuck_children() if "hanging_files" in line]
        assert 1 <= len(lost) <= hanging_files.LOST_AT_MOST
    until = time.monotonic() + 10
    while _stuck_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert not _stuck_children(), "they end when the server is back"


def _stuck_children() -> list[str]:
    """Command lines of our processes in state D."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rsplit(") ", 1)[1][0]
            line = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if state == "D" and "hanging_files" in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_one_path_that_hangs_does_not_take_the_others_along(tmp_path):
    """As when one of the servers behind a parallel file system is away: a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "held")
    (tmp_path / "log").write_text("x")
    children = FileChildren(own_python("-m", "clustertools.hanging_files"))

    def read(name: str, timeout: float = 5.0) -> bytes:
        question = {"op": "read", "path": str(tmp_path / name), "offset": 0, "limit": 100}
        return children.ask("/lustre", question, timeout)[1]

    assert read("log") == b"x"
    with pytest.raises(NoAnswer, match=r"held did not answer within 0.5 s; its reader was killed"):
        read("held", 0.5)
    assert read("log") == b"x"
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(NoAnswer, match="asked again later"):
            read("held")
        assert read("log") == b"x"
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_one_path_alone_is_asked_again_soon(tmp_path, monkeypatch):
    """Nobody knows whether it was the file or the whole mount, and either may be back in a moment."""
    monkeypatch.setattr(hanging_files, "AWAY_SECONDS", 1.0)
    os.mkfifo(tmp_path / "log")
    children = FileChildren(own_python("-m", "clustertools.hanging_files"))

    def read() -> bytes:
        question = {"op": "read", "path": str(tmp_path / "log"), "offset": 0, "limit": 100}
        return children.ask("/nfs", question, 3.0)[1]

    with pytest.raises(NoAnswer, match="did not answer within 3 s"):
        read()
    with pytest.raises(NoAnswer, match="asked again soon"):
        read()
    (tmp_path / "log").unlink()
    (tmp_path / "log").write_text("back")
    time.sleep(1.1)
    assert read() == b"back"


@needs_fuse
@pytest.mark.root
@pytest.mark.slow
def test_a_mount_that_came_is_noticed(tmp_path):
    real, point = tmp_path / "real", tmp_path / "point"
    real.mkdir()
    point.mkdir()
    (real / "log").write_text("there")
    host = LocalHost()
    assert mount_that_may_hang(str(point / "log")) == ""
    server = subprocess.Popen([shutil.which("bindfs") or "", "-f", str(real), str(point)])
    try:
        until = time.monotonic() + 5
        while not (point / "log").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert mount_that_may_hang(str(point / "log")) == str(point)
        assert mount_that_may_hang(str(point)) == str(point)
        assert host.read(str(point / "log")) == "there"
        assert len(started(host)) == 1
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)
        server.terminate()
        server.wait(5)
    assert mount_that_may_hang(str(point / "log")) == ""
