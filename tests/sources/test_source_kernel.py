"""The kernel log since a cursor: the ring, the journal, what was lost; and what lines say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unobservable, Unparsable
from clustertools.host import LocalHost, RecordedHost
from clustertools.sources import kernel
from clustertools.sources.kernel import (
    KernelLog,
    almost_xid,
    is_driver_load,
    parse_gpu_uuid,
    parse_nvlink5,
    parse_recovery_action,
    parse_sxid,
    parse_xid,
    read_kernel_log,
)

BOOT = 1_700_000_000


class Machine:
    """A recorded host that is written step by step."""

    def __init__(self, folder: Path, boot_id: str = "boot-1") -> None:
        self.folder, self.boot_id = folder, boot_id
        (folder / "commands").mkdir(parents=True, exist_ok=True)
        (folder / "files/proc").mkdir(parents=True, exist_ok=True)
        (folder / "files/proc/stat").write_text(f"cpu  1 2 3\nbtime {BOOT}\n")
        for place in ("files/dev", "files/run/log/journal", "files/var/log/journal"):
            (folder / place).mkdir(parents=True, exist_ok=True)

    def ring(self, *records: str) -> Machine:
        (self.folder / "files/dev/kmsg").write_text("".join(r + "\n" for r in records))
        return self

    def journal(self, *argv: str, **answer: object) -> Machine:
        place = self.folder / "files/var/log/journal/0123"
        place.mkdir(parents=True, exist_ok=True)
        (place / "system.journal").touch()
        command = ["journalctl", "-k", "-o", "json", "--no-pager", *argv]
        name = f"commands/{abs(hash(argv))}.yaml"
        (self.folder / name).write_text(json.dumps({"argv": command, **answer}))
        return self

    @property
    def host(self) -> RecordedHost:
        (self.folder / "host.yaml").write_text(f"name: n\nboot_id: {self.boot_id}\ntime: {BOOT + 1000}\n")
        return RecordedHost(self.folder)

    def read(self, cursor: str = "") -> KernelLog:
        return read_kernel_log(self.host, cursor)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def record(sequence: int, text: str = "hello", seconds: float | None = None) -> str:
    at = sequence if seconds is None else seconds
    return f"6,{sequence},{int(at * 1e6)},-;{text}"


def entry(number: int, message: object = "hello", **more: object) -> str:
    return json.dumps(
        {
            "__CURSOR": f"s=a;i={number}",
            "__REALTIME_TIMESTAMP": str((BOOT + number) * 1_000_000),
            "__MONOTONIC_TIMESTAMP": str(number * 1_000_000),
            "_SOURCE_MONOTONIC_TIMESTAMP": str(number * 1_000_000),
            "SYSLOG_IDENTIFIER": "kernel",
            "SYSLOG_FACILITY": "0",
            "PRIORITY": "3",
            "MESSAGE": message,
            **more,
        }
    )


def texts(log: KernelLog) -> list[str]:
    return [line.text for line in log.lines]


# ---- the ring --------------------------------------------------------------------------------------------


def test_first_look_reads_the_whole_boot(machine: Machine) -> None:
    machine.ring("3,0,1500000,-;first; with a semicolon", "12,1,2000000,-,caller=T1;second")
    log = machine.read()
    assert texts(log) == ["first; with a semicolon", "second"]
    assert log.lines[0] == kernel.KernelLine(BOOT + 1.5, 0, 0, 3, "first; with a semicolon")
    assert (log.lines[1].facility, log.lines[1].level) == (1, 4)
    assert (log.gap, log.older, log.source) == (0, 0, "kmsg")


def test_only_what_is_new_since_the_cursor(machine: Machine) -> None:
    cursor = machine.ring(record(0), record(1)).read().cursor
    assert texts(machine.read(cursor)) == []
    log = machine.ring(record(0), record(1), record(2, "new")).read(cursor)
    assert texts(log) == ["new"]
    assert log.gap == 0
    assert machine.read(log.cursor).lines == ()


def test_lost_records_are_counted(machine: Machine) -> None:
    cursor = machine.ring(record(0)).read().cursor
    log = machine.ring(record(0), record(9)).read(cursor)
    assert log.gap == 8
    log = machine.ring(record(20), record(23)).read(log.cursor)
    assert log.gap == 10 + 2


def test_what_a_first_look_comes_too_late_for_is_no_gap(machine: Machine) -> None:
    log = machine.ring(record(500), record(501)).read()
    assert (log.gap, log.older) == (0, 500)


def test_after_a_reboot_the_whole_new_boot_is_read(tmp_path: Path) -> None:
    cursor = Machine(tmp_path).ring(record(70)).read().cursor
    log = Machine(tmp_path, "boot-2").ring(record(0, "again")).read(cursor)
    assert texts(log) == ["again"]
    assert log.gap == 0


@pytest.mark.parametrize(
    "cursor", ["", "nonsense", "kmsg:boot-1:x:y", "kmsg:boot-1:1", "kmsg:boot-1:1:²", ":::"]
)
def test_a_cursor_that_means_nothing_is_as_none(machine: Machine, cursor: str) -> None:
    assert len(machine.ring(record(0), record(1)).read(cursor).lines) == 2


def test_an_empty_ring_keeps_the_cursor(machine: Machine) -> None:
    cursor = machine.ring(record(5)).read().cursor
    log = machine.ring().read(cursor)
    assert (log.lines, log.cursor, log.gap) == ((), cursor, 0)


def test_device_dictionaries_are_not_text(machine: Machine) -> None:
    machine.ring(record(0, "usb 1-1: new device"), " SUBSYSTEM=usb", " DEVICE=c189:1")
    assert texts(machine.read()) == ["usb 1-1: new device"]


@pytest.mark.parametrize("raw", ["hello", "6,1;x", "a,1,2,-;x", "6,1,2,-", "6,1," + "9" * 30 + ",-;x"])
def test_a_record_of_unknown_form_is_blindness(machine: Machine, raw: str) -> None:
    with pytest.raises(Unparsable):
        machine.ring(record(0), raw).read()


def test_without_a_boot_time_nothing_is_guessed(machine: Machine) -> None:
    machine.ring(record(0))
    (machine.folder / "files/proc/stat").write_text("cpu 1 2 3\n")
    with pytest.raises(Unparsable, match="btime"):
        machine.read()


def test_neither_ring_nor_journal_is_unobservable_without_a_child(machine: Machine) -> None:
    with pytest.raises(Unobservable, match="/dev/kmsg"):
        machine.read()


# ---- the journal -----------------------------------------------------------------------------------------


def test_the_journal_when_the_ring_cannot_be_read(machine: Machine) -> None:
    machine.journal("-n", "5000", stdout=entry(1) + "\n" + entry(2, "two"))
    log = machine.read()
    assert texts(log) == ["hello", "two"]
    assert log.source == "journal"
    assert log.lines[0].time == BOOT + 1
    # the known entry comes back first: it is proof, not news
    machine.journal("--cursor=s=a;i=2", stdout=entry(2, "two") + "\n" + entry(3, "three") + "\n")
    log = machine.read(log.cursor)
    assert texts(log) == ["three"]
    assert log.gap == 0


def test_a_journal_that_forgot_the_cursor_is_a_gap(machine: Machine) -> None:
    cursor = machine.journal("-n", "5000", stdout=entry(1)).read().cursor
    machine.journal("--cursor=s=a;i=1", returncode=1, stderr="Failed to seek to cursor: Invalid argument")
    log = machine.journal("-n", "5000", stdout=entry(1) + "\n" + entry(7, "seven")).read(cursor)
    assert texts(log) == ["seven"]
    assert log.gap == 1


def test_a_journal_that_begins_after_the_cursor_is_a_gap_and_drops_nothing(machine: Machine) -> None:
    cursor = machine.journal("-n", "5000", stdout=entry(1)).read().cursor
    machine.journal("--cursor=s=a;i=1", stdout=entry(6, "six") + "\n" + entry(7, "seven"))
    log = machine.journal("-n", "5000", stdout=entry(6, "six") + "\n" + entry(7, "seven")).read(cursor)
    assert texts(log) == ["six", "seven"]
    assert log.gap == 1


def test_a_journal_without_any_kernel_message_means_we_may_not_read_it(machine: Machine) -> None:
    machine.journal("-n", "5000", stdout="")
    with pytest.raises(Unobservable, match="systemd-journal"):
        machine.read()


def test_journald_moves_the_first_word_of_user_records_away(machine: Machine) -> None:
    machine.journal(
        "-n",
        "5000",
        stdout=entry(1, "Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", SYSLOG_IDENTIFIER="NVRM"),
    )
    xid = parse_xid(machine.read().lines[0].text)
    assert xid is not None
    assert xid.code == 79


def test_a_message_that_is_not_utf8_comes_as_bytes(machine: Machine) -> None:
    machine.journal("-n", "5000", stdout=entry(1, [104, 105, 255]) + "\n" + entry(2, None))
    assert texts(machine.read()) == ["hi\ufffd", ""]


def test_the_journal_fills_what_the_ring_lost(machine: Machine) -> None:
    cursor = machine.ring(record(1)).read().cursor
    machine.journal("-n", "5000", stdout="\n".join(entry(n, f"journal {n}") for n in range(1, 8)))
    log = machine.ring(record(5), record(6)).read(cursor)
    assert texts(log) == ["journal 2", "journal 3", "journal 4", "hello", "hello"]
    assert log.gap == 0


def test_a_broken_journal_leaves_the_gap_counted(machine: Machine) -> None:
    cursor = machine.ring(record(1)).read().cursor
    machine.journal("-n", "5000", returncode=1, stderr="no")
    assert machine.ring(record(5)).read(cursor).gap == 3


def test_from_ring_to_journal_and_back_nothing_is_told_twice(machine: Machine) -> None:
    cursor = machine.ring(record(1), record(2)).read().cursor
    (machine.folder / "files/dev/kmsg").unlink()
    machine.journal("-n", "5000", stdout="\n".join(entry(n, f"j{n}") for n in range(1, 5)))
    log = machine.read(cursor)
    assert texts(log) == ["j3", "j4"]
    log = machine.ring(*(record(n, f"r{n}") for n in range(1, 7))).read(log.cursor)
    assert texts(log) == ["r5", "r6"]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"__CURSOR": 1}', '{"__CURSOR": "c", "__REALTIME_TIMESTAMP": Infinity}']
)
def test_a_line_that_is_no_entry_is_blindness(machine: Machine, line: str) -> None:
    with pytest.raises(Unobservable, match="not a journal entry"):
        machine.journal("-n", "5000", stdout=line).read()


# ---- the real thing --------------------------------------------------------------------------------------


def _say(text: str) -> None:
    # one open for each record: the kernel's rate limit counts for an open file
    with open("/dev/kmsg", "wb", buffering=0) as file:
        file.write(text.encode() + b"\n")


@pytest.mark.root
@pytest.mark.skipif(
    not (os.access("/dev/kmsg", os.W_OK) and os.geteuid() == 0), reason="writing to /dev/kmsg needs root"
)
def test_a_record_written_to_the_real_ring_is_seen_once() -> None:
    host = LocalHost()
    cursor = read_kernel_log(host).cursor
    # an application's Xid at an address that no machine has: it stays in this kernel's log until the reboot
    _say(f"<3>NVRM: Xid (PCI:0000:ff:1e): 43, pid={os.getpid()}, name=clustertools-test, Ch 00000001")
    log = read_kernel_log(host, cursor)
    seen = [x for x in map(parse_xid, texts(log)) if x is not None and x.pid == os.getpid()]
    assert [(x.code, x.pci) for x in seen] == [(43, "0000:ff:1e.0")]
    line = next(line for line in log.lines if f"pid={os.getpid()}," in line.text)
    assert (line.facility, line.level) == (1, 3)  # the kernel gives user space no other facility
    assert abs(line.time - time.time()) < 5
    again = read_kernel_log(host, log.cursor)
    assert not [t for t in texts(again) if f"pid={os.getpid()}," in t]


_IN_A_NAMESPACE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nReadKMsg=yes\\n' > /run/systemd/journald.conf.d/test.conf
"$1" > /dev/null 2>&1 & JOURNALD=$!
trap 'kill $JOURNALD' EXIT
"$2" -c "$3"
"""
_READ_THE_JOURNAL = """
import json, time
from clustertools.errors import Unobservable
from clustertools.host import LocalHost
from clustertools.sources.kernel import read_kernel_log

class NotRoot(LocalHost):
    def read(self, path, offset=0, limit=None):
        if path == "/dev/kmsg":
            raise Unobservable("/dev/kmsg: Operation not permitted")
        return super().read(path, offset, limit)

def once(cursor):
    for _ in range(50):
        try:
            return read_kernel_log(NotRoot(), cursor)
        except Unobservable as exc:
            said = exc
            time.sleep(0.1)
    raise said

first = once("")
with open("/dev/kmsg", "wb", buffering=0) as file:
    file.write(b"<3>NVRM: Xid (PCI:0000:ff:1e): 43, pid=1, name=journaltest, Ch 00000001\\n")
for _ in range(50):
    second = once(first.cursor)
    if second.lines:
        break
    time.sleep(0.1)
third = once(second.cursor)
about = {"first": len(first.lines), "gap": second.gap, "third": [line.text for line in third.lines]}
print(json.dumps({"source": first.source, "second": [line.text for line in second.lines], **about}))
"""
JOURNALD = "/lib/systemd/systemd-journald"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(
    not (os.access(JOURNALD, os.X_OK) and os.geteuid() == 0), reason="needs root and systemd-journald"
)
def test_a_real_journal_is_read_from_where_we_stopped() -> None:
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", _IN_A_NAMESPACE, "bash", JOURNALD, sys.executable, _READ_THE_JOURNAL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no mount namespace can be made here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["source"], said["gap"]) == ("journal", 0)
    assert said["first"] > 0
    assert len([t for t in said["second"] if t.startswith("NVRM: Xid") and "journaltest" in t]) == 1
    assert not [t for t in said["third"] if "journaltest" in t]


# ---- Xids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "pci", "pid", "process", "said"),
    [
        (
            "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
            79,
            "0000:3b:00.0",
            1234,
            "python",
            "GPU has fallen off the bus.",
        ),
        (
            "NVRM: Xid (PCI:0000:0F:00.0): 74, pid='<unknown>', name=<unknown>, NVLink: fatal (0x1, 0x0)",
            74,
            "0000:0f:00.0",
            None,
            "",
            "NVLink: fatal (0x1, 0x0)",
        ),
        (
            "NVRM: Xid (PCI:0000:10:1c): 63, pid=1850, Row Remapper: New row marked for remapping",
            63,
            "0000:10:1c.0",
            1850,
            "",
            "Row Remapper: New row marked for remapping",
        ),
        ("NVRM: Xid (PCI:0018:01:00): 95", 95, "0018:01:00.0", None, "", ""),
        (
            "NVRM: Xid (0000:03:00): 31, Ch 00000010, engmask 00000101",
            31,
            "0000:03:00.0",
            None,
            "",
            "Ch 00000010, engmask 00000101",
        ),
        (
            "[12.5] kernel: NVRM: Xid (PCI:0000:9b:00): 119, pid=7, name=nvidia-smi, Timeout after 6s",
            119,
            "0000:9b:00.0",
            7,
            "nvidia-smi",
            "Timeout after 6s",
        ),
        (
            "NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.",
            79,
            "0000:3b:00.0",
            None,
            "",
            "GPU has fallen off the bus",
        ),
        (
            r"NVRM: The NVIDIA GPU 0000:3b:00.0\x0aNVRM: (PCI ID: 10de:2330) has fallen off the bus",
            79,
            "0000:3b:00.0",
            None,
            "",
            "GPU has fallen off the bus",
        ),
        (
            "NVRM: fallen off the bus and is not responding to commands.",
            79,
            "",
            None,
            "",
            "GPU has fallen off the bus",
        ),
    ],
)
def test_an_xid(text: str, code: int, pci: str, pid: int | None, process: str, said: str) -> None:
    xid = parse_xid(text)
    assert xid is not None
    assert (xid.code, xid.pci, xid.pid, xid.process, xid.text) == (code, pci, pid, process, said)


def test_an_xid_of_a_mig_instance() -> None:
    xid = parse_xid(
        "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=7194, Contained: SM (0x1). RST: No, D-RST: No"
    )
    assert xid is not None
    assert (xid.mig, xid.code, xid.pid) == ("05", 94, 7194)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "python[123]: segfault at 0 ip 0 sp 0 error 4 in libcuda.so",
        "nvidia 0000:3b:00.0: enabling device",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module",
        "NVRM: Xid (PCI:0000:3b:00): many",
        "xNVRM: Xid (PCI:0000:3b:00): 79",
    ],
)
def test_no_xid(text: str) -> None:
    assert parse_xid(text) is None


def test_a_line_that_is_almost_an_xid_is_noticed() -> None:
    assert almost_xid("NVRM: Xid [gpu0/0000:3b:00]: 79 in a form of tomorrow")
    assert almost_xid("NVRM: Xid (PCI:0000:3b:00): many")
    assert not almost_xid("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.")
    assert not almost_xid("eth0: link up")


def test_the_drivers_own_decision() -> None:
    said = parse_recovery_action("GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
    assert said == kernel.RecoveryAction("None", "GPU Reset Required", 1)
    assert parse_recovery_action("GPU has fallen off the bus") is None


def test_the_extended_form_of_nvlink5() -> None:
    said = parse_nvlink5("RLW_REMAP Nonfatal XC1 i0 Link 10 (0x00000082 0x00000040 0x00000000 0x00000000)")
    assert said == kernel.Nvlink5Error("RLW_REMAP", False, 10, 0x40, 0, 0x82)
    said = parse_nvlink5("NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x004505c6 0x00000000 0x00000000)")
    assert said == kernel.Nvlink5Error("NETIR_LINK_EVT", True, 8, 0, 4, 0x4505C6)
    assert parse_nvlink5("NVLink: fatal error detected on link 6(0x10000, 0x0)") is None


def test_uuid_and_driver_load() -> None:
    uuid = "GPU-8f6a9ea1-4b4f-2e34-9a1e-0a4bd5a3a1f4"
    assert parse_gpu_uuid(f"NVRM: GPU at PCI:0000:3b:00: {uuid}") == ("0000:3b:00.0", uuid)
    assert parse_gpu_uuid("NVRM: GPU Board Serial Number: 1") is None
    assert is_driver_load("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5")
    assert is_driver_load("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build")
    assert not is_driver_load("nvidia-nvlink: Nvlink Core is being initialized")


@pytest.mark.parametrize(
    ("text", "code", "fatal", "link"),
    [
        ("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up", 20034, True, 32),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 20009, Non-fatal, Link 28 RX Short Error",
            20009,
            False,
            28,
        ),
        (
            "nvidia-nvswitch1 SXid (PCI:0000:06:00.0): 10003, Fatal, Host_unhandled_interrupt",
            10003,
            True,
            None,
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Severity 1 Engine instance 32",
            20034,
            None,
            None,
        ),
    ],
)
def test_an_sxid(text: str, code: int, fatal: bool | None, link: int | None) -> None:
    sxid = parse_sxid(text)
    assert sxid is not None
    assert (sxid.code, sxid.fatal, sxid.link) == (code, fatal, link)
    assert sxid.pci.startswith("0000:")


# ---- hostile texts ---------------------------------------------------------------------------------------

PARSERS = (
    parse_xid,
    almost_xid,
    parse_recovery_action,
    parse_nvlink5,
    parse_gpu_uuid,
    is_driver_load,
    parse_sxid,
)
STARTS = (
    "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, ",
    "NVRM: Xid (PCI:",
    "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 1, Fatal, Link ",
    "GPU recovery action changed from 0x0 (",
    "RLW_REMAP Fatal XC1 i0 Link 1 (0x1 ",
    "",
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(STARTS), st.text(max_size=300), st.integers(0, 60))
def test_any_text_is_answered(start: str, noise: str, cut: int) -> None:
    for parse in PARSERS:
        parse(start[: len(start) - cut] + noise)
        parse(noise + start)


@pytest.mark.parametrize(
    "unit", ["0x1 ", "A", "1", " ", ",", "(", "\0", "\x0a", "pid=", "é", "NVRM: ", "0000:3b:00"]
)
def test_a_megabyte_of_anything_is_answered_at_once(unit: str) -> None:
    for start in STARTS:
        text = start + unit * (1_000_000 // len(unit))
        began = time.perf_counter()
        for parse in PARSERS:
            parse(text)
        assert time.perf_counter() - began < 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=60), st.integers(0, 9).map(record)), max_size=8), st.text(max_size=40)
)
def test_any_ring_is_answered_or_unparsable(lines: list[str], cursor: str) -> None:
    class Ring:
        name, boot_id = "n", "b"

        def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
            return "btime 1\n" if path == "/proc/stat" else "\n".join(lines)

        def glob(self, pattern: str) -> list[str]:
            return []

    try:
        log = read_kernel_log(Ring(), cursor)  # type: ignore[arg-type]
    except Unparsable:
        return
    assert log.gap >= 0
    assert read_kernel_log(Ring(), log.cursor).lines == () or not log.lines  # type: ignore[arg-type]
