"""A recording answers as the machine did."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustertools import check as checking
from clustertools.errors import Absent, Unobservable
from clustertools.host import LocalHost, RecordedHost
from clustertools.recorder import Recorder
from tests.lab.memory_host import MemoryHost

PASSIVE = [c for c in checking.discover(site_folders=()).values() if c.stages & {"watch", "preflight"}]


class Noisy(LocalHost):
    """This machine, except that it is one moment: what is asked twice is answered alike."""

    def __init__(self) -> None:
        super().__init__()
        self._moment = super().now()

    def now(self) -> float:
        return self._moment


def seen(verdict):
    readings = sorted((str(r.subject), r.name, r.value) for r in verdict.readings)
    return verdict.status, sorted(verdict.codes), readings, verdict.blind


@pytest.mark.parametrize("check", PASSIVE, ids=lambda c: c.name)
def test_a_check_of_this_machine_says_the_same_of_its_recording(check, tmp_path: Path):
    recorder = Recorder(Noisy(), tmp_path)
    live = checking.run(check, recorder)
    recorder.save({"what": "this machine"})
    recorded = checking.run(check, RecordedHost(tmp_path))
    if live.blind:  # in which words nobody could look may differ
        assert recorded.blind
        assert (recorded.status, recorded.codes) == (live.status, live.codes)
        return
    assert seen(recorded) == seen(live)


PATHS = ["/proc/stat", "/proc/1/stat", "/data/log", "/data/état", "/data/stale", "/data/none"]
PATTERNS = ["/proc/[0-9]*", "/data/*", "/proc/*/stat", "/data/*/x"]
FOUR = ["a line\n"] * 4
COMMANDS = [("uname", "-r"), ("nvidia-smi", "-q"), ("hangs",)]
LOOKS = st.one_of(
    st.tuples(st.just("read"), st.sampled_from(PATHS), st.integers(0, 40), st.none() | st.integers(0, 40)),
    st.tuples(st.just("stat"), st.sampled_from(PATHS)),
    st.tuples(st.just("glob"), st.sampled_from(PATTERNS)),
    st.tuples(st.just("run"), st.sampled_from(COMMANDS)),
)


class Machine(MemoryHost):
    """With a folder that nobody can list."""

    def glob(self, pattern):
        if pattern == "/data/*/x":
            raise Unobservable("Stale file handle")
        return super().glob(pattern)


def machine(texts: list[str]) -> Machine:
    host = Machine()
    for path, text in zip(PATHS[:4], texts, strict=True):
        host.files[path] = text
    host.files["/data/stale"] = Unobservable("Stale file handle")
    host.commands[COMMANDS[0]] = "6.1.0\n"
    host.commands[COMMANDS[2]] = Unobservable("did not answer within 10 s")
    return host


def ask(host, look):
    """The answer, or which kind of error."""
    name, *words = look
    try:
        if name == "run":
            done = host.run(*words[0])
            return done.returncode, done.stdout, done.stderr
        return getattr(host, name)(*words)
    except Absent:
        return "absent"
    except Unobservable:
        return "unobservable"


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(st.text("aé漢\n\0 ", max_size=30), min_size=4, max_size=4),
    looks=st.lists(LOOKS, min_size=1, max_size=12),
)
@example(texts=FOUR, looks=[("read", "/data/none", 0, None)])
@example(texts=FOUR, looks=[("stat", "/data/none")])
@example(texts=FOUR, looks=[("stat", "/data/stale")])
@example(texts=FOUR, looks=[("read", "/data/log", 0, None), ("glob", "/data/*/x")])
@example(
    texts=FOUR, looks=[("read", "/data/log", 0, None), ("read", "/data/log", 0, 3), ("stat", "/data/log")]
)
@example(texts=FOUR, looks=[("read", "/data/log", 5, None), ("run", ("nvidia-smi", "-q"))])
def test_every_look_is_answered_alike(texts, looks, tmp_path_factory):
    host, folder = machine(texts), tmp_path_factory.mktemp("host")
    recorder = Recorder(host, folder)
    live = [ask(recorder, look) for look in looks]
    assert live == [ask(host, look) for look in looks], "a recorder changes no answer"
    recorder.save({})
    recorded = RecordedHost(folder)
    assert [ask(recorded, look) for look in looks] == live


def test_of_an_environment_only_the_named_variables_are_written(tmp_path: Path):
    host = MemoryHost()
    host.files["/proc/7/environ"] = "RANK=3\0WANDB_API_KEY=planted\0RANKED=planted\0"
    host.files["/proc/7/task/8/environ"] = "SECRET=planted\0"
    recorder = Recorder(host, tmp_path, keep_variables={"RANK"})
    assert "planted" in recorder.read("/proc/7/environ")
    recorder.read("/proc/7/environ", 7, 10)
    recorder.read("/proc/7/task/8/environ")
    written = recorder.save({})
    assert (tmp_path / "files/proc/7/environ").read_text() == "RANK=3\0"
    assert not [p for p in written if "planted" in p.read_text()]


def test_without_names_nothing_of_an_environment_is_written(tmp_path: Path):
    host = MemoryHost()
    host.files["/proc/7/environ"] = "RANK=3\0"
    recorder = Recorder(host, tmp_path)
    recorder.read("/proc/7/environ")
    recorder.save({})
    assert (tmp_path / "files/proc/7/environ").read_text() == ""


def test_a_look_at_the_first_bytes_does_not_shorten_the_file(tmp_path: Path):
    host = MemoryHost()
    host.files["/data/log"] = "a long line\n" * 9
    recorder = Recorder(host, tmp_path)
    whole = recorder.read("/data/log")
    recorder.read("/data/log", 0, 5)
    recorder.save({})
    assert RecordedHost(tmp_path).read("/data/log") == whole


def test_the_size_of_a_redacted_file_is_that_of_what_was_written(tmp_path: Path):
    host = MemoryHost()
    host.files["/data/log"] = "by alice\n"
    recorder = Recorder(host, tmp_path)
    recorder.stat("/data/log")
    recorder.read("/data/log")
    recorder.save({}, lambda text: text.replace("alice", "anonuser1"))
    recorded = RecordedHost(tmp_path)
    assert recorded.stat("/data/log").size_bytes == len(recorded.read("/data/log")) == 13


def test_what_is_forgotten_is_not_written(tmp_path: Path):
    host = MemoryHost()
    host.process(11)
    host.process(12)
    recorder = Recorder(host, tmp_path)
    for path in recorder.glob("/proc/[0-9]*"):
        recorder.read(f"{path}/cmdline")
    recorder.forget(lambda path: path.startswith("/proc/12"))
    recorder.save({})
    assert RecordedHost(tmp_path).glob("/proc/[0-9]*") == ["/proc/11"]
    assert not (tmp_path / "files/proc/12").exists()


def test_nothing_is_written_outside_the_folder(tmp_path: Path):
    host = MemoryHost()
    host.files["/data/../../../../../tmp/escaped"] = "out"
    recorder = Recorder(host, tmp_path / "in")
    recorder.read("/data/../../../../../tmp/escaped")
    written = recorder.save({})
    assert all(tmp_path / "in" in p.resolve().parents for p in written)
