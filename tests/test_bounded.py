"""Looking ends in time and names what hung: checks that spin, block in the kernel or crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools import bounded
from clustertools import check as checking
from clustertools.check import Check, NoLimits
from clustertools.host import LocalHost, PassingHost
from clustertools.model import Status, Verdict
from tests.lab.stuck_files import needs_fuse, stuck


def check_of(look: Any, name: str = "probe", **more: Any) -> Check:
    return Check(name, look, "doc", NoLimits, frozenset({"watch"}), {"SiteBad": "bad"}, **more)


def look(*checks: Check, seconds: float | None = None, host: Any = None) -> list[Verdict]:
    def ask(each: Check, shared: Any) -> Verdict:
        return checking.run(each, shared)

    return list(bounded.look(checks, ask, host or LocalHost("n1"), seconds=seconds, cluster="c"))


def fine(ctx: Any) -> Any:
    ctx.remember["pid"] = os.getpid()
    yield ctx.reading("fine_total", 1)


def spins(ctx: Any) -> Any:
    while True:
        pass


def test_verdicts_come_back_whole_and_from_one_process():
    def finds(ctx: Any) -> Any:
        ctx.remember.update(pid=os.getpid(), nested={"a": [1, 2.5, None]})
        yield ctx.critical("SiteBad", "part", "bad it is", evidence=("a", "\ud800"))

    first, second = look(check_of(fine, "one"), check_of(finds, "two"))
    assert first.readings[0].value == 1
    assert second.status is Status.CRITICAL
    assert second.findings[0].evidence == ("a", "\ud800")
    assert second.memory["nested"] == {"a": [1, 2.5, None]}
    assert first.memory["pid"] == second.memory["pid"] != os.getpid()


def test_a_check_that_spins_is_named_and_the_next_one_runs():
    began = time.monotonic()
    stuck, after = look(check_of(spins, "spinner", timeout_seconds=0.2), check_of(fine, "next"))
    assert time.monotonic() - began < 2.5
    assert stuck.check == "spinner"
    assert stuck.status is Status.UNKNOWN
    assert "its own code did not come back" in stuck.blind
    assert "within 1.1 s" in stuck.blind
    assert after.status is Status.OK


@pytest.mark.slow
def test_a_spin_that_swallows_every_exception_ends_too():
    def stubborn(ctx: Any) -> Any:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(0.001)

    (stuck,) = look(check_of(stubborn, timeout_seconds=0.1))
    assert stuck.status is Status.UNKNOWN


@pytest.mark.slow
def test_what_it_waited_for_is_told():
    class Blocking(PassingHost):
        def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
            time.sleep(60)
            return ""

    def reads(ctx: Any) -> Any:
        yield ctx.reading("length_total", len(ctx.host.read("/sys/class/some/device")))

    (stuck,) = look(check_of(reads, timeout_seconds=0.1), host=Blocking(LocalHost("n1")))
    assert "it waited for reading /sys/class/some/device (state S" in stuck.blind


def test_a_crash_is_named_and_the_next_one_runs():
    def crashes(ctx: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)
        yield from ()

    crashed, after = look(check_of(crashes, "crasher"), check_of(fine, "next"))
    assert crashed.status is Status.UNKNOWN
    assert crashed.blind == "the process that looked was killed by signal 11"
    assert after.status is Status.OK


def test_an_answer_that_cannot_be_passed_on():
    def odd(ctx: Any) -> Any:
        ctx.remember["lock"] = threading.Lock()
        yield ctx.reading("odd_total", 1)

    odd_one, after = look(check_of(odd), check_of(fine, "next"))
    assert odd_one.status is Status.UNKNOWN
    assert "cannot be passed on" in odd_one.blind
    assert after.status is Status.OK


def test_a_large_answer_passes_through_the_pipe():
    def large(ctx: Any) -> Any:
        ctx.remember["text"] = "x" * 3_000_000
        yield ctx.reading("large_total", 1)

    (verdict,) = look(check_of(large))
    assert len(verdict.memory["text"]) == 3_000_000


def test_no_process_is_left_and_nothing_reaches_our_streams(capfd: pytest.CaptureFixture[str]):
    def prints(ctx: Any) -> Any:
        print("noise", flush=True)
        os.write(2, b"noise")
        ctx.remember["pid"] = os.getpid()
        yield ctx.reading("noise_total", 1)

    (verdict,) = look(check_of(prints))
    assert not Path(f"/proc/{verdict.memory['pid']}").exists()
    assert capfd.readouterr() == ("", "")


def test_a_child_of_a_killed_check_holds_no_lock_and_no_pipe():
    reader, writer = os.pipe()

    def open_files(ctx: Any) -> Any:
        ctx.remember["open"] = len(os.listdir("/proc/self/fd"))
        yield ctx.reading("open_total", int(os.path.exists(f"/proc/self/fd/{writer}")))

    (verdict,) = look(check_of(open_files))
    os.close(reader)
    os.close(writer)
    # the three streams and /dev/null again, two pipes, and the listing itself
    assert verdict.memory["open"] <= 7
    assert verdict.readings[0].value == 0


@pytest.mark.slow
def test_a_slow_check_leaves_the_others_their_time():
    began = time.monotonic()
    stuck, *others = look(
        check_of(spins, "spinner"), *(check_of(fine, f"n{i}", cost_seconds=0.1) for i in range(5)),
        seconds=2.0,
    )  # fmt: skip
    assert time.monotonic() - began < 2.2
    assert stuck.status is Status.UNKNOWN
    assert [v.status for v in others] == [Status.OK] * 5


def test_what_does_not_start_says_so():
    (verdict,) = look(check_of(fine), seconds=0)
    assert verdict.blind == "not started: the 0 s were over"
    assert verdict.subject.cluster == "c"


def test_leaving_early_leaves_nothing_behind():
    verdicts = bounded.look([check_of(fine), check_of(spins)], checking.run, LocalHost("n1"))
    first = next(verdicts)
    verdicts.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{first.memory['pid']}").exists()


@pytest.fixture
def stuck_files(tmp_path: Path) -> Iterator[Path]:
    with stuck(tmp_path) as folder:
        yield folder


SPINNING = """
from clustertools.check import check

@check(stages={"prolog"}, codes={"SiteSpin": "spins"})
def site_spin(ctx):
    "Spins."
    while True:
        pass
"""


@pytest.mark.slow
@pytest.mark.root
@needs_fuse
def test_a_check_in_state_d_is_left_behind_and_named(stuck_files: Path):
    def touches(ctx: Any) -> Any:
        os.stat(stuck_files / "file")  # not through the host: what no check should do, and a library may
        yield ctx.reading("never_total", 1)

    began = time.monotonic()
    stuck, after = look(check_of(touches, "toucher", timeout_seconds=0.2), check_of(fine, "next"))
    assert time.monotonic() - began < 3
    assert stuck.status is Status.UNKNOWN
    assert "cannot be killed (state D" in stuck.blind
    assert after.status is Status.OK


@pytest.mark.slow
@pytest.mark.root
@needs_fuse
def test_the_command_ends_in_time_with_a_child_in_state_d(stuck_files: Path, tmp_path: Path):
    """Our caller reads our output to its end: a child that hangs must not keep the pipe open."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "site_spin.py").write_text(SPINNING)
    touch = SPINNING.replace("site_spin", "site_touch").replace("SiteSpin", "SiteTouch")
    touch = touch.replace(
        "    while True:\n        pass", f"    __import__('os').stat({str(stuck_files / 'file')!r})"
    )
    (site / "site_touch.py").write_text(touch)
    network = touch.replace("site_touch", "site_read").replace("SiteTouch", "SiteRead")
    network = network.replace("__import__('os').stat", "ctx.host.read")
    (site / "site_read.py").write_text(network)
    (tmp_path / "c.yaml").write_text(f"site_checks: [{site}]\n")
    words = ["check", "site_touch", "site_read", "site_spin", "host_memory", "--timeout", "10", "--json"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "clustertools", *words, "--config", str(tmp_path / "c.yaml")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    took = time.monotonic() - began
    verdicts = {v["check"]: v for v in map(json.loads, done.stdout.splitlines())}
    assert took < 15, f"{took:.1f} s"  # told to take 10, on a machine that is busy with other tests
    assert done.returncode == 3
    assert {n: v["status"] for n, v in verdicts.items()} == {
        "site_touch": "UNKNOWN", "site_read": "UNKNOWN", "site_spin": "UNKNOWN",
        "host_memory": verdicts["host_memory"]["status"],
    }  # fmt: skip
    assert verdicts["host_memory"]["status"] != "UNKNOWN"
    assert "state D" in verdicts["site_touch"]["blind"]
    assert f"it waited for reading {stuck_files}/file" in verdicts["site_read"]["blind"]
    assert "did not come back" in verdicts["site_spin"]["blind"]
