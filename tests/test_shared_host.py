"""One pass asks a command once, whatever it answers."""

from __future__ import annotations

import threading
import time

import pytest

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, FileStat, LocalHost
from clustertools.shared_host import SharedHost


class Counting:
    """A host that counts what it is asked, answers slowly or not at all."""

    name = "node1"
    boot_id = "boot"

    def __init__(self, error: Unobservable | None = None, seconds: float = 0.0) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.deadlines: list[float] = []
        self.error = error
        self.seconds = seconds

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        self.asked.append(argv)
        self.deadlines.append(timeout_seconds)
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return Completed(argv, 0, stdin or f"answer {len(self.asked)}", "")

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        self.asked.append(("read", path))
        return str(len(self.asked))

    def stat(self, path: str) -> FileStat:
        return FileStat(1, 2.0, 3)

    def glob(self, pattern: str) -> list[str]:
        return [pattern]

    def now(self) -> float:
        return 7.0


def test_the_same_command_runs_once_and_others_do_too():
    host = Counting()
    shared = SharedHost(host)
    assert shared.run("a", "b").stdout == "answer 1"
    assert shared.run("a", "b", timeout_seconds=99).stdout == "answer 1"
    assert shared.run("a", "c").stdout == "answer 2"
    assert shared.run("a", "b", stdin="x").stdout == "x"
    assert host.asked == [("a", "b"), ("a", "c"), ("a", "b")]


def test_a_new_pass_asks_anew():
    host = Counting()
    assert [SharedHost(host).run("a").stdout for _ in range(2)] == ["answer 1", "answer 2"]


def test_a_hang_is_paid_for_once_unless_someone_can_wait_longer():
    host = Counting(Unobservable("a did not answer within 5 s"))
    shared = SharedHost(host)
    for _ in range(3):
        with pytest.raises(Unobservable, match="within 5 s"):
            shared.run("a", timeout_seconds=5)
    assert len(host.asked) == 1
    with pytest.raises(Unobservable):
        shared.run("a", timeout_seconds=20)
    assert len(host.asked) == 2


def test_what_is_absent_stays_absent():
    host = Counting(Absent("a is not installed"))
    shared = SharedHost(host)
    for seconds in (5, 20):
        with pytest.raises(Absent, match="not installed"):
            shared.run("a", timeout_seconds=seconds)
    assert len(host.asked) == 1


def test_threads_share_one_child():
    host = Counting(seconds=0.05)
    shared = SharedHost(host)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(shared.run("a").stdout)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["answer 1"] * 8
    assert len(host.asked) == 1


def test_waiting_for_another_one_keeps_the_own_deadline():
    host = Counting(seconds=0.2)
    shared = SharedHost(host)
    slow = threading.Thread(target=lambda: shared.run("a"))
    slow.start()
    while not host.asked:
        time.sleep(0.001)
    began = time.monotonic()
    with pytest.raises(Unobservable, match=r"within 0\.05 s"):
        shared.run("a", timeout_seconds=0.05)
    assert time.monotonic() - began < 0.15
    slow.join()


def test_time_spent_waiting_is_not_given_twice():
    host = Counting(Unobservable("a did not answer within 1 s"), seconds=0.1)
    shared = SharedHost(host)

    def first() -> None:
        with pytest.raises(Unobservable):
            shared.run("a", timeout_seconds=1)

    slow = threading.Thread(target=first)
    slow.start()
    while not host.asked:
        time.sleep(0.001)
    with pytest.raises(Unobservable):
        shared.run("a", timeout_seconds=2)
    slow.join()
    assert host.deadlines[0] > 0.9
    assert 1 < host.deadlines[1] < 1.95


def test_everything_else_passes_through():
    host = Counting()
    shared = SharedHost(host)
    assert (shared.name, shared.boot_id, shared.now()) == ("node1", "boot", 7.0)
    assert shared.read("/x") != shared.read("/x")
    assert shared.stat("/x").size_bytes == 1
    assert shared.glob("/y") == ["/y"]


def test_on_this_machine():
    assert SharedHost(LocalHost()).run("echo", "hello").stdout == "hello\n"
