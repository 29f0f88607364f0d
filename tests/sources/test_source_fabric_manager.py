"""Fabric manager's log and unit, as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Completed
from clustertools.sources.fabric_manager import LOG, TAIL_BYTES, parse_line, read_log, runs, unit
from tests.lab.memory_host import MemoryHost, refused

# lines from the tests of leptonai/gpud (log.go of its fabric-manager component) and from public reports
FATAL = (
    "[Jul 23 2024 07:53:55] [ERROR] [tid 841] detected NVSwitch fatal error 20034 on fid 0 on NVSwitch pci "
    "bus id 00000000:86:00.0 physical id 3 port 33"
)
NON_FATAL = (
    "[Mar 03 2026 18:39:57] [ERROR] [tid 5183] detected NVSwitch non-fatal error 22013 on NodeId 0 on "
    "NVSwitch pci bus id 00000000:08:00.0 physical id 3 port 60"
)
START = (
    "[Feb 25 2025 13:59:40] [INFO] [tid 1803] Fabric Manager version 535.161.08 is running with the "
    "following configuration options"
)
LINES = [
    (FATAL, "fatal", 20034, "pci@0000:86:00.0"),
    (NON_FATAL, "non-fatal", 22013, "pci@0000:08:00.0"),
    ("[Jul 19 2025 18:34:55] [ERROR] [tid 192] Fabric Manager detected GPU NVL Non Fatal error on :",
     "link-non-fatal", None, ""),
    ("[Sep 17 2024 06:01:46] [ERROR] [tid 1230079] failed to find the GPU handle 5410063385821516767 in the "
     "multicast team request setup 6130285411925746235.", "multicast", None, ""),
    ("detected number of NVSwitches don't match with any supported system topology, aborting fabric manager",
     "topology", None, ""),
    (START, "start", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "code", "part"), LINES, ids=[line[1] for line in LINES])
def test_lines_that_say_something(line, kind, code, part):
    event = parse_line(line)
    assert (event.kind, event.code, event.part) == (kind, code, part)


@pytest.mark.parametrize(
    "line",
    [
        "[Feb 27 2025 14:10:02] [INFO] [tid 1808] multicast group 1 is allocated.",
        "[Jul 24 2024 03:14:18] [INFO] [tid 855] Sending inband response message:  Message header details: "
        "magic Id:adbc request Id:2b59bdc21b9504c4 status:0 type:3 length:24",
        "request to query NVSwitch device information from NVSwitch driver failed with error:WARNING Nothing "
        "to do [NV_WARN_NOTHING_TO_DO]",
        "",
    ],
)
def test_lines_that_say_nothing(line):
    assert parse_line(line) is None


@given(st.text(max_size=2000))
def test_any_line(line):
    parse_line(line)
    parse_line("detected NVSwitch fatal error 1" + line)


def test_a_line_of_ten_megabytes():
    assert parse_line("x" * 10_000_000 + FATAL) is None


def test_from_its_last_start_and_then_from_the_cursor():
    host = MemoryHost()
    host.files[LOG] = f"{FATAL}\n{START}\n{NON_FATAL}\n{FATAL[:40]}"
    log = read_log(host)
    assert ([e.kind for e in log.events], log.restarted) == (["non-fatal"], True)
    # the line that was still being written is read when it is whole
    host.files[LOG] = f"{FATAL}\n{START}\n{NON_FATAL}\n{FATAL}\n"
    log = read_log(host, log.cursor)
    assert ([e.kind for e in log.events], log.restarted) == (["fatal"], False)
    assert read_log(host, log.cursor).events == ()


def test_a_log_that_was_rotated_or_cut():
    host = MemoryHost()
    host.files[LOG] = f"{NON_FATAL}\n" * 3
    cursor = read_log(host).cursor
    host.files[LOG] = f"{FATAL}\n"
    assert [e.kind for e in read_log(host, cursor).events] == ["fatal"]
    host.files[LOG], host.inodes[LOG] = f"{FATAL}\n" * 9, 77
    assert len(read_log(host, cursor).events) == 9


@pytest.mark.parametrize("cursor", ["", "nonsense", "1:-5", "1:99999999999999999999999", ":"])
def test_a_cursor_that_means_nothing(cursor):
    host = MemoryHost()
    host.files[LOG] = f"{FATAL}\n"
    assert len(read_log(host, cursor).events) == 1


def test_only_the_end_of_a_long_log():
    host = MemoryHost()
    host.files[LOG] = f"{FATAL}\n" + "x" * TAIL_BYTES + "\n" + f"{NON_FATAL}\n"
    assert [e.kind for e in read_log(host).events] == ["non-fatal"]


def test_no_log_and_one_that_we_may_not_read():
    host = MemoryHost()
    with pytest.raises(Absent):
        read_log(host)
    host.files[LOG] = refused("Permission denied")
    with pytest.raises(Unobservable):
        read_log(host)


def test_a_unit():
    host = MemoryHost()
    argv = ("systemctl", "show", "x.service", "--property=LoadState,ActiveState,SubState,Result")
    host.commands[argv] = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
    told = unit(host, "x.service")
    assert (told.known, told.active, told.state) == (True, False, "failed (failed), exit-code")
    host.commands[argv] = "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\n"
    assert unit(host, "x.service").known is False
    host.commands[argv] = "hello\n"
    with pytest.raises(Unparsable):
        unit(host, "x.service")


def test_no_systemd():
    class Container(MemoryHost):
        def run(self, *argv, timeout_seconds=10.0, stdin=""):
            text = "System has not been booted with systemd as init system (PID 1). Can't operate.\n"
            return Completed(argv, 1, "", text)

    with pytest.raises(Absent, match="does not run here"):
        unit(Container(), "x.service")


def test_a_process():
    host = MemoryHost()
    host.files["/proc/71/comm"] = "nv-fabricmanage\n"
    host.files["/proc/72/comm"] = refused("No such process")
    assert runs(host, "nv-fabricmanage")
    assert not runs(host, "nv-hostengine")
