"""sd_notify over a real datagram socket."""

from __future__ import annotations

import os
import socket

import pytest

from clustertools import systemd
from clustertools.errors import StoreError
from clustertools.watchdog import loop
from tests.lab.watching import WatchLab


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path, monkeypatch):
    """A socket as systemd's; `heard()` is what was sent to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        address = (
            str(tmp_path / "notify") if request.param == "path" else f"@ct-{os.getpid()}-{tmp_path.name}"
        )
        sock.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)

        def heard():
            found = []
            while True:
                try:
                    found.append(sock.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield heard


class Hasty:
    """A clock on which waiting takes no time."""

    def __init__(self):
        self.time = 0.0

    def monotonic(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


def test_one_datagram_for_each_call(listener):
    systemd.notify("READY=1")
    systemd.notify("STATUS=14 findings · näh", "X=1")
    assert listener() == ["READY=1", "STATUS=14 findings · näh\nX=1"]


def test_alive_only_where_systemd_waits_for_it(listener, monkeypatch):
    systemd.alive()
    assert listener() == []
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    systemd.alive()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    systemd.alive()
    monkeypatch.setenv("WATCHDOG_PID", "1")  # inherited from a service that is not us
    systemd.alive()
    assert listener() == ["WATCHDOG=1", "WATCHDOG=1"]
    assert systemd.watchdog_seconds() is None


@pytest.mark.parametrize("limit", ["", "0", "-5", "soon", "²"])
def test_a_limit_that_is_none(monkeypatch, limit):
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert systemd.watchdog_seconds() is None


def test_the_whole_life_of_a_service(listener, monkeypatch, tmp_path):
    """Blind and broken passes keep it alive for systemd: starting it anew would help nobody."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    lab = WatchLab(tmp_path)
    clock, results = Hasty(), []
    heard = []

    def report(result):
        results.append(result)
        heard.extend(listener())
        if len(results) == 1:
            lab.machine.blind = "the tool hangs"
        if len(results) == 2:
            lab.machine.blind = ""
            lab.watchdog.once = lambda: (_ for _ in ()).throw(StoreError("the disk is full"))

    def stop():
        heard.extend(listener())  # as systemd does; the queue is short
        return clock.time > 80

    loop(lab.watchdog, clock, stop, report)
    heard += listener()
    said = [line for line in heard if line != "WATCHDOG=1"]
    assert said == [
        "READY=1",
        "STATUS=0 findings",
        "STATUS=0 findings, could not look: node_check",
        "STATUS=the disk is full",
        "STOPPING=1",
    ]
    # in a pass after each check and delivery, and all through the wait
    assert heard.count("WATCHDOG=1") > 150
    assert isinstance(results[2], StoreError)


def test_nobody_listens(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


def test_a_full_queue_does_not_hold_us(listener):
    for _ in range(2000):
        systemd.notify("WATCHDOG=1")
    assert listener()


def test_reloading_says_when(listener):
    systemd.reloading()
    (said,) = listener()
    assert said.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said.split("=")[-1].isdigit()
