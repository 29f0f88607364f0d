"""The store on bad days: locked, damaged, full, of another version, killed in the middle; and over weeks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools import store as module
from clustertools.delivery import Mail, StoreOutbox
from clustertools.errors import StoreError
from clustertools.model import (
    Action,
    Attempt,
    Finding,
    Incident,
    Outcome,
    Reading,
    Status,
    Subject,
    Transition,
    Verdict,
)
from clustertools.sinks import SinkRule
from clustertools.sinks.outbox import Outbox
from clustertools.store import Store, default_state_dir
from tests.sinks.test_outbox import MemoryOutbox, message

NODE = Subject(node="n1")
DAY = 86400.0


def finding(code: str = "GpuLost", part: str = "gpu@0000:3b:00.0") -> Finding:
    return Finding("gpu_xid", code, dataclasses.replace(NODE, part=part), Status.CRITICAL, "fell off")


def incident(code: str = "GpuLost", state: str = "open") -> Incident:
    return Incident(finding(code), state, 1.0, 2.0, opened_at=1.0)  # type: ignore[arg-type]


def action(number: int = 1) -> Action:
    return Action(f"a{number}", "restart", Subject(run="r"), "why", "book", "what", {"from": "last"}, "", 1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    one = Store(path)
    yield one
    one.close()


# what goes in comes out, also for who opens it next


def test_everything_is_there_after_opening_anew(store: Store, path: Path) -> None:
    before: dict[str, Incident] = {}
    after = {incident().key: incident(), incident("Other").key: incident("Other", "pending")}
    attempt = Attempt("r", 1, "tok", "r#1", 1.0, resume_step=4, last_step=9)
    verdict = Verdict(
        "gpu_xid", NODE, Status.CRITICAL, (finding(),), (Reading(NODE, "x_total", 3.0, 5.0),),
        "words", memory={"cursor": "kmsg:1"}, time=5.0,
    )  # fmt: skip
    with store.transaction():
        store.save_incidents(before, after)
        store.add_transition(Transition(incident(), "none", "open", 7.0))
        store.save_verdict(verdict)
        store.put_action(action(), "planned", 8.0)
        store.advance_action("a1", "running", "stop", {"stopped_at": 9.0}, 9.0)
        store.put_attempt(attempt)
        store.add_silence("Gpu*", 100.0, "me", "cable")
        store.put_cursor("pause", "", {"until": 5.0})
    store.close()
    again = Store(path)
    assert again.incidents() == after
    assert [t.kind for t in again.transitions()] == ["opened"]
    assert again.transitions(since=7.5) == []
    assert again.memory("gpu_xid", NODE) == {"cursor": "kmsg:1"}
    assert again.history(NODE_TEXT := "n1", "x_total") == [(5.0, 3.0)], NODE_TEXT
    (kept,) = again.verdicts()
    assert (kept.findings, kept.detail, kept.readings, kept.memory) == ((finding(),), "words", (), {})
    (row,) = again.actions()
    assert (row.action, row.state, row.step, row.detail) == (action(), "running", "stop", {"stopped_at": 9.0})
    assert again.attempts("r") == [attempt]
    assert (again.runs(), again.attempts("q"), again.cursor("pause")) == (["r"], [], {"until": 5.0})
    assert [(s.pattern, s.until, s.by, s.why) for s in again.silences(50.0)] == [
        ("Gpu*", 100.0, "me", "cable")
    ]
    assert again.silences(100.0) == []
    with again.transaction():
        again.save_incidents(after, {incident().key: incident(state="resolved")})
        again.finish_action(Outcome("a1", True, "done", time=10.0), 10.0)
    assert list(again.incidents().values()) == [incident(state="resolved")]
    assert (again.actions()[0].state, again.actions()[0].outcome) == (
        "done",
        Outcome("a1", True, "done", time=10.0),
    )


def test_a_replan_keeps_the_step_and_the_approval(store: Store) -> None:
    store.put_action(dataclasses.replace(action(), blocked="waits"), "blocked", 1.0)
    assert store.approve("a1", "alice", 3.0)
    assert not store.approve("a2", "alice", 3.0)
    store.put_action(action(), "planned", 2.0)
    (row,) = store.actions()
    assert (row.state, row.approved_by, row.action.blocked) == ("planned", "alice", "")
    assert not store.approve("a1", "bob", 4.0), "only a blocked one waits for approval"


def test_actions_under_way_are_shown_however_old(store: Store) -> None:
    for number, state in enumerate(("planned", "running", "done", "failed", "blocked")):
        store.put_action(action(number), state, 10.0)
    assert [r.state for r in store.actions(since=20.0)] == ["planned", "running"]
    assert len(store.actions(since=5.0)) == 5


# nobody else reads it, whatever the umask


def test_it_is_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = Store(tmp_path / "s" / "state.db")
        with store.transaction():
            store.put_attempt(Attempt("r", 1, "t"))
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "s").iterdir()}
    finally:
        os.umask(old)
    assert {"state.db", "state.db-wal", "state.db-shm"} == set(modes)
    assert set(modes.values()) == {0o600}
    store.close()


# others at the same file


def test_another_process_that_holds_it_is_named_and_nothing_is_done(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_attempt(Attempt("r", 1, "t"))
    store._db.execute("PRAGMA busy_timeout = 50")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked; another watchdog or command holds it"), store.transaction():
        raise AssertionError("nothing is begun without the lock")
    with pytest.raises(StoreError, match=r"cannot write the state in .*state\.db"):
        store.put_attempt(Attempt("r", 2, "t"))
    assert [a.number for a in store.attempts("r")] == [1]  # reading goes on
    holder.execute("ROLLBACK")
    with store.transaction():
        store.put_attempt(Attempt("r", 2, "t"))
    assert [a.number for a in store.attempts("r")] == [1, 2]
    holder.close()


def test_opening_a_file_that_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    path.parent.mkdir()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="is a second one running"):
        Store(path)
    holder.close()
    Store(path).close()


def test_a_command_that_writes_shortly_is_waited_for(store: Store, path: Path) -> None:
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    threading.Timer(0.2, lambda: holder.execute("COMMIT")).start()
    store.put_attempt(Attempt("r", 1, "t"))
    assert store.runs() == ["r"]
    holder.close()


def test_several_processes_create_it_at_the_same_moment(path: Path) -> None:
    path.parent.mkdir()
    script = "import sys; from clustertools.store import Store; sys.stdin.read(1); Store(sys.argv[1]).runs()"
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", script, str(path)]
    children = [subprocess.Popen(words, stdin=pipe, stderr=pipe, text=True) for _ in range(4)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go")
        child.stdin.close()
    for child in children:
        assert child.stderr is not None
        said = child.stderr.read()
        child.stderr.close()
        assert child.wait() == 0, said


def test_a_reader_sees_the_state_before_or_after_a_pass(store: Store, path: Path) -> None:
    store.put_attempt(Attempt("r", 1, "t"))
    reader = Store(path, read_only=True)
    with store.transaction():
        store.put_attempt(Attempt("r", 2, "t"))
        store.save_incidents({}, {incident().key: incident()})
        assert ([a.number for a in reader.attempts("r")], reader.incidents()) == ([1], {})
    assert ([a.number for a in reader.attempts("r")], len(reader.incidents())) == ([1, 2], 1)
    with pytest.raises(StoreError, match="readonly database; it cannot be written"):
        reader.put_attempt(Attempt("r", 3, "t"))
    reader.close()


# files that cannot be used


def test_garbage_and_truncated_files_say_what_to_do(store: Store, path: Path) -> None:
    with store.transaction():
        for number in range(400):
            store.put_attempt(Attempt("r", number, "t" * 200))
    store.close()
    whole = path.read_bytes()
    for bad in (b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 4000, whole[: len(whole) // 2]):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="damaged: move it aside and start anew") as caught:
            Store(path).attempts("r")
        assert str(path) in str(caught.value)


def test_rows_that_mean_nothing_are_an_error_of_the_store(store: Store, path: Path) -> None:
    store.save_incidents({}, {incident().key: incident()})
    store.put_attempt(Attempt("r", 1, "t"))
    store.put_action(action(), "planned", 1.0)
    store.enqueue("s", "k", {"key": "k"}, 1.0)
    store.put_cursor("pause", "", {"until": 1})
    for table, column in (
        ("incident", "data"), ("attempt", "data"), ("action", "detail"), ("delivery", "message"),
        ("cursor", "data"),
    ):  # fmt: skip
        for bad in (
            '{"cut',
            "[]",
            "null",
            '{"finding": 5}',
            '{"status": "PURPLE", "finding": {"status": "PURPLE"}}',
        ):
            store._db.execute(f"UPDATE {table} SET {column} = ?", (bad,))
            # what can be read is read; what cannot is said, and nothing else is raised
            with contextlib.suppress(StoreError):
                store.incidents()
            with contextlib.suppress(StoreError):
                store.attempts("r")
            with contextlib.suppress(StoreError):
                store.actions()
            with contextlib.suppress(StoreError):
                store.waiting()
            with contextlib.suppress(StoreError):
                store.cursor("pause")
    with pytest.raises(StoreError, match=r"a row that cannot be read .* move it aside and start anew"):
        store.incidents()


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert Store(path).runs() == []


def test_a_newer_schema_is_left_alone(store: Store, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"written by a newer clustertools \(schema 99"):
            Store(path, read_only=read_only)


def test_migrations_run_once_and_all_or_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    store.put_attempt(Attempt("r", 1, "t"))
    store.close()
    known = module._MIGRATIONS
    monkeypatch.setattr(module, "_MIGRATIONS", (*known, "CREATE TABLE more (x); CREATE TABLE verdict (x)"))
    with pytest.raises(StoreError, match="already exists"):
        Store(path)
    monkeypatch.setattr(module, "_MIGRATIONS", (*known, "CREATE TABLE more (x); INSERT INTO more VALUES (1)"))
    for _ in range(3):
        again = Store(path)
        assert again._db.execute("SELECT count(*) FROM more").fetchone() == (1,)
        assert again.runs() == ["r"]
        again.close()


def test_a_reader_migrates_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.setattr(module, "_MIGRATIONS", (*module._MIGRATIONS, "CREATE TABLE more (x)"))
    assert Store(path, read_only=True).runs() == []
    monkeypatch.undo()
    Store(path).close()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "state.db").mkdir(parents=True)
    for place in (tmp_path / "file" / "state.db", tmp_path / "folder" / "state.db"):
        with pytest.raises(StoreError, match=r"cannot open the state in .*CLUSTERTOOLS_STATE"):
            Store(place)
    with pytest.raises(StoreError, match="unable to open"):
        Store(tmp_path / "nowhere" / "state.db", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_name_with_marks_of_a_uri_in_it(tmp_path: Path) -> None:
    place = tmp_path / "100% of #1?mode=memory" / "state.db"
    store = Store(place)
    store.put_attempt(Attempt("r", 1, "t"))
    assert Store(place, read_only=True).runs() == ["r"]
    assert place.exists()


IN_A_NAMESPACE = """
import pathlib, subprocess, sys
from clustertools.errors import StoreError
from clustertools.model import Attempt
from clustertools.store import Store
where = pathlib.Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(where)], check=True)
store = Store(where / "state.db")
store.put_attempt(Attempt("r", 1, "t"))
def refused(what):
    try:
        what()
    except StoreError as exc:
        print(exc)
    else:
        sys.exit("it was not refused")
def big():
    with store.transaction():
        store.put_attempt(Attempt("r", 2, "t"))
        for number in range(100):
            store.put_cursor("c", str(number), {"x": "y" * 20000})
refused(big)
print(len(store.attempts("r")), store.cursor("c", "5"))
store.put_attempt(Attempt("r", 3, "t"))
store.close()
subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
refused(lambda: Store(where / "state.db"))
print(len(Store(where / "state.db", read_only=True).attempts("r")))
"""


@pytest.mark.root
def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", IN_A_NAMESPACE, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    full, left, read_only, readable = done.stdout.splitlines()
    assert "the disk is full: make room" in full
    assert left == "1 {}", "nothing of the transaction stayed"
    assert "cannot open the state" in read_only
    assert "check the owner and the mount" in read_only
    assert readable == "2", "those who only look still can"


def test_a_limit_on_file_size_is_an_error_of_the_store(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from clustertools.errors import StoreError
from clustertools.store import Store
store = Store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with store.transaction():
        for number in range(100):
            store.put_cursor("c", str(number), {"x": "y" * 20000})
except StoreError as exc:
    print(exc)
print(store.cursor("c", "1"))
"""
    words = [sys.executable, "-c", script, str(tmp_path / "state.db")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said, kept = done.stdout.splitlines()
    assert "cannot write the state" in said
    assert "disk is full" in said
    assert kept == "{}"


# file systems


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs", "fuse.sshfs", "9p", "cifs"])
def test_off_a_local_disk_it_warns_and_uses_the_rollback_journal(path: Path, kind: str) -> None:
    store = Store(path, file_system=kind)
    assert f"is on {kind}: keep the state on a local disk (CLUSTERTOOLS_STATE)" in store.warning
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    with store.transaction():
        store.put_attempt(Attempt("r", 1, "t"))
    assert not path.with_name("state.db-wal").exists()


def test_on_a_local_disk_it_does_not(path: Path) -> None:
    store = Store(path, file_system="xfs")
    assert store.warning == ""
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: commits outlive a power failure"


def test_a_state_that_moved_to_a_network_disk_changes_its_journal(path: Path) -> None:
    local = Store(path, file_system="ext4")
    local.put_attempt(Attempt("r", 1, "t"))
    local.close()
    moved = Store(path, file_system="nfs")
    assert moved._db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert moved.runs() == ["r"]


# transactions


def test_an_exception_in_the_middle_leaves_the_old_state(store: Store) -> None:
    store.put_attempt(Attempt("r", 1, "t"))

    def half() -> None:
        with store.transaction():
            store.put_attempt(Attempt("r", 2, "t"))
            store.enqueue("slack", "k", {}, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert ([a.number for a in store.attempts("r")], store.waiting()) == ([1], [])
    with store.transaction():  # and the store goes on
        store.put_attempt(Attempt("r", 3, "t"))
    assert [a.number for a in store.attempts("r")] == [1, 3]


@pytest.mark.parametrize("file_system", ["ext4", "nfs"])
def test_a_process_killed_in_the_middle_leaves_the_old_state(tmp_path: Path, file_system: str) -> None:
    script = """
import os, sys
from clustertools.model import Attempt
from clustertools.store import Store
store = Store(sys.argv[1], file_system=sys.argv[2])
store.put_attempt(Attempt("r", 1, "t"))
with store.transaction():
    for number in range(2, 400):
        store.put_attempt(Attempt("r", number, "t" * 3000))
    print("half", flush=True)
    sys.stdin.read()
"""
    place = tmp_path / "state.db"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(place), file_system], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    store = Store(place, file_system=file_system)
    assert [a.number for a in store.attempts("r")] == [1]
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# weeks


@pytest.mark.slow
def test_thirty_days_do_not_grow_without_bound(path: Path) -> None:
    store = Store(path)
    store._db.execute("PRAGMA synchronous = OFF")
    names = [f"reading_{n}_total" for n in range(8)]
    sizes, began = [], time.monotonic()
    every = 300.0
    for hour in range(24 * 32):
        base = hour * 3600.0
        with store.transaction():
            for step in range(int(3600 / every)):
                at = base + step * every
                store.add_readings(Reading(NODE, name, at, at) for name in names)
            code = f"Code{hour}"
            store.add_transition(Transition(incident(code), "none", "open", base))
            store.put_action(action(hour), "done", base)
            number = store.enqueue("slack", code, {"key": code}, base)
            store.delivered(number, base)
            store.put_cursor("told:slack", code, {"reference": "thread"})
            store.thin(base + 3600.0)
        if hour % 24 == 23:
            sizes.append(store._db.execute("SELECT count(*) FROM reading").fetchone()[0])
    assert time.monotonic() - began < 60
    # six hours of all readings, thirty days of one an hour
    assert max(sizes) <= len(names) * (6 * 3600 / every + 24 + 30 * 24 + 12)
    assert sizes[-1] - sizes[-2] == 0, "no growth from day to day at the end"
    now = 24 * 32 * 3600.0
    history = store.history("n1", names[0])
    assert history[0][0] >= now - 30 * DAY - 3600
    recent = [t for t, _ in history if t >= now - 5 * 3600]
    assert len(recent) == 5 * 12, "the last hours are whole"
    old = [t for t, _ in history if t < now - 8 * 3600]
    assert len({t // 3600 for t in old}) == len(old), "older ones are one an hour"
    assert store._db.execute("SELECT count(*) FROM delivery").fetchone()[0] <= 30 * 24 + 1
    assert store._db.execute("SELECT count(*) FROM cursor").fetchone()[0] == 0, "threads of what is forgotten"
    store.close()


def test_what_is_under_way_is_never_thinned(store: Store) -> None:
    store.put_action(action(1), "running", 0.0)
    store.put_action(action(2), "planned", 0.0)
    store.put_action(action(3), "done", 0.0)
    store.enqueue("slack", "k", {"key": "k"}, 0.0)
    store.put_cursor("told:slack", "k", {"reference": "t"})
    store.put_attempt(Attempt("r", 1, "t"))
    store.thin(365 * DAY)
    assert [r.action.id for r in store.actions()] == ["a1", "a2"]
    assert len(store.waiting()) == 1
    assert store.cursor("told:slack", "k") == {"reference": "t"}, "its message still waits"
    assert store.attempts("r")


def test_threads_of_open_incidents_are_kept(store: Store) -> None:
    store.save_incidents({}, {incident().key: incident()})
    store.put_cursor("told:slack", incident().key, {"reference": "t"})
    store.put_cursor("check:gpu_xid", "gone", {"a": 1})
    store.thin(365 * DAY)
    assert store.cursor("told:slack", incident().key) == {"reference": "t"}
    assert store.cursor("check:gpu_xid", "gone") == {"a": 1}


# the outbox, held against the one in memory that the sinks are tested with


class Both:
    """The same calls to two outboxes, which must answer the same."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.mail = Mail({"slack": None, "pager": None}, {})  # type: ignore[dict-item]
        self.real: Outbox = StoreOutbox(store)
        self.memory = MemoryOutbox()
        self.numbers: dict[int, int] = {}

    def add(self, sink: str, *messages: object) -> None:
        for each in messages:
            self.memory.add(sink, [each])  # type: ignore[list-item]
            with self.store.transaction():
                Mail({sink: None}, {}).enqueue(self.store, each, 0.0)  # type: ignore[dict-item,arg-type]
            newest = self.store._db.execute("SELECT max(id) FROM delivery").fetchone()[0]
            self.numbers[newest] = len(self.memory.rows) - 1

    def due(self, now: float, limit: int = 50) -> list[tuple[int, str, str, str, int]]:
        real = [
            (self.numbers[p.id], p.sink, p.message.title, p.reference, p.tries)
            for p in self.real.due(now, limit)
        ]
        rows = self.memory.rows
        # the store's is more patient: a sink that failed rests as a whole
        resting = {r.sink for r in rows if self.memory.next_try[r.id] > now and r.tries in range(1, 5)}
        owed = [p for p in self.memory.due(now, 999) if p.sink not in resting][:limit]
        memory = [(p.id, p.sink, p.message.title, p.reference, p.tries) for p in owed]
        assert real == memory
        return real

    def sent(self, id: int, reference: str, now: float) -> None:
        self.memory.sent(id, reference, now)
        self.real.sent({v: k for k, v in self.numbers.items()}[id], reference, now)

    def failed(self, id: int, next_try: float | None, now: float) -> None:
        self.memory.failed(id, "down", next_try, now)
        self.real.failed({v: k for k, v in self.numbers.items()}[id], "down", next_try, now)


def test_order_patience_and_threads_are_those_of_the_outbox_in_memory(store: Store) -> None:
    both = Both(store)
    both.add("slack", message("a"), message("b"), message("a", "outcome"))
    both.add("pager", message("a"))
    assert [row[2] for row in both.due(0.0)] == ["opened a", "opened b", "outcome a", "opened a"]
    assert len(both.due(0.0, limit=2)) == 2
    both.failed(0, 30.0, 0.0)
    assert [(row[1], row[2]) for row in both.due(1.0)] == [("pager", "opened a")]
    both.sent(3, "page a", 1.0)
    assert both.due(29.0) == []
    told = [("opened a", 1), ("opened b", 0), ("outcome a", 0)]
    assert [(row[2], row[4]) for row in both.due(30.0)] == told
    for number in range(4):
        both.failed(0, 40.0 + number, 30.0 + number)
    # it failed so often that it is the message's fault; but the end of a's story waits for its beginning
    assert [row[2] for row in both.due(34.0)] == ["opened b"]
    both.sent(1, "thread b", 34.0)
    assert [(row[2], row[4]) for row in both.due(43.0)] == [("opened a", 5), ("outcome a", 0)]
    both.sent(0, "thread a", 43.0)
    assert [(row[2], row[3]) for row in both.due(43.0)] == [("outcome a", "thread a")]
    both.failed(2, None, 43.0)
    assert both.due(1e9) == []


def test_a_folded_message_ties_all_of_its_incidents_to_one_thread(store: Store) -> None:
    both = Both(store)
    both.add("slack", message("a", keys=("a", "b", "c")))
    both.due(0.0)
    for number in range(5):
        both.failed(0, 10.0, 0.1 * number)
    both.add("slack", message("c", "resolved"), message("d"))
    assert [row[2] for row in both.due(1.0)] == ["opened d"]
    both.due(10.0)
    both.sent(0, "thread abc", 10.0)
    assert [(row[2], row[3]) for row in both.due(10.0)] == [("resolved c", "thread abc"), ("opened d", "")]


def test_a_sink_that_is_down_for_days_does_not_hide_what_others_are_owed(store: Store) -> None:
    with store.transaction():
        for number in range(2100):
            Mail({"slack": None}, {}).enqueue(store, message(f"k{number}"), 0.0)  # type: ignore[dict-item]
        store._db.execute("UPDATE delivery SET due = 500")
        Mail({"pager": None}, {}).enqueue(store, message("new"), 0.0)  # type: ignore[dict-item]
    assert [p.sink for p in StoreOutbox(store).due(1.0, 50)] == ["pager"]


def test_a_message_of_another_version_is_lost_loudly_and_the_others_go_on(store: Store) -> None:
    store.enqueue("slack", "k", {"kind": "of the future"}, 0.0)
    Mail({"slack": None}, {}).enqueue(store, message("a"), 0.0)  # type: ignore[dict-item]
    assert [p.message.title for p in StoreOutbox(store).due(0.0, 50)] == ["opened a"]
    rows = store._db.execute("SELECT state, reason FROM delivery ORDER BY id").fetchall()
    assert rows[0][0] == "failed"
    assert "unreadable in the outbox" in rows[0][1]


def test_who_heard_of_it_hears_the_end_and_others_do_not(store: Store) -> None:
    mail = Mail(
        {"slack": None, "pager": None},  # type: ignore[dict-item]
        {"pager": SinkRule(minimum=Status.CRITICAL)},
    )
    warned = dataclasses.replace(message("a"), status=Status.WARNING)
    mail.enqueue(store, warned, 0.0)
    mail.enqueue(store, dataclasses.replace(warned, kind="worsened", status=Status.CRITICAL), 0.0)
    mail.enqueue(store, dataclasses.replace(warned, kind="resolved"), 0.0)
    sent = [(sink, json.loads(text)["kind"]) for _, sink, text, *_ in _raw(store)]
    assert sent == [
        ("slack", "opened"), ("slack", "worsened"), ("pager", "worsened"), ("slack", "resolved"),
        ("pager", "resolved"),
    ]  # fmt: skip
    assert mail.references(store, ["a", "never"]) == {"a": "|", "never": "|"}


def _raw(store: Store) -> list[tuple[int, str, str]]:
    return store._db.execute("SELECT id, sink, message FROM delivery ORDER BY id").fetchall()


# where it is


def test_where_the_state_is_kept() -> None:
    told = {"CLUSTERTOOLS_STATE": "/a", "STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/d", "HOME": "/e"}
    assert default_state_dir(told) == Path("/a")
    del told["CLUSTERTOOLS_STATE"]
    assert default_state_dir(told) == Path("/b")
    del told["STATE_DIRECTORY"]
    mine = Path("/var/lib/clustertools") if os.geteuid() == 0 else Path("/d/clustertools")
    assert default_state_dir(told) == mine


LOCKS_ON_A_FULL_DISK = """
import pathlib, subprocess, sys
where = pathlib.Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(where)], check=True)
from clustertools.cli.assemble import lock
try:
    with open(where / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
except OSError:
    pass
lock(where, "it")
print("held")
second = subprocess.run(
    [sys.executable, "-c", "import sys, pathlib; from clustertools.cli.assemble import lock\\n"
     "lock(pathlib.Path(sys.argv[1]), 'it')", str(where)], capture_output=True, text=True)
print(second.stderr.splitlines()[-1])
"""


@pytest.mark.root
def test_a_full_disk_holds_the_lock_all_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", LOCKS_ON_A_FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "held"
    assert "it is already watched by another process; two watchdogs would act twice" in done.stdout
