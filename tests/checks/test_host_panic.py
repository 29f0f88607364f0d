"""A panic of the last boot, by what outlived it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.host_panic import Limits, host_panic

from clustertools import check as checking
from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed, FileStat
from clustertools.model import Remedy, Status, Verdict

Run = Callable[..., Verdict]
NOW = 1_800_000_000.0
STORE = "/sys/fs/pstore/dmesg-efi_pstore-176369240101001"
PANIC = """\
Panic#1 Part1
<1>[ 5021.376820] BUG: unable to handle page fault for address: ffffb1e2c0a81000
<0>[ 5021.377001] Kernel panic - not syncing: Fatal exception in interrupt
"""


class Store:
    """A host of which only the places of panic records exist: path -> (age, text)."""

    name = "gpu-001"
    boot_id = "boot-2"

    def __init__(self, records: dict[str, tuple[float, str]], readable: bool | None = True) -> None:
        self.records, self.readable = records, readable

    def now(self) -> float:
        return NOW

    def glob(self, pattern: str) -> list[str]:
        folder = pattern.split("*", 1)[0].rsplit("/", 1)[0]
        depth = pattern.count("/")
        return [p for p in self.records if p.startswith(folder + "/") and p.count("/") == depth]

    def stat(self, path: str) -> FileStat:
        if path == "/sys/fs/pstore/.":
            if self.readable is None:
                raise Absent(path)
            if not self.readable:
                raise Unobservable("Permission denied")
            return FileStat(0, NOW, 1, True)
        return FileStat(10, NOW - self.records[path][0], 1)

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        text = self.records[path][1]
        if text == "gone":
            raise Absent(path)
        if text == "denied":
            raise Unobservable(f"{path}: Permission denied")
        return text[:limit]

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        raise AssertionError(argv)


def look(records: dict[str, tuple[float, str]], readable: bool | None = True) -> Verdict:
    verdict = checking.run(host_panic, Store(records, readable))
    assert "Traceback" not in verdict.detail, verdict.detail
    return verdict


@pytest.mark.parametrize(
    "path",
    [
        STORE,
        "/var/lib/systemd/pstore/1763692401/dmesg.txt",
        "/var/lib/systemd/pstore/1763692401/001/dmesg.txt",
    ],
)
def test_a_panic_is_told_with_its_cause(path: str) -> None:
    verdict = look({path: (7200.0, PANIC)})
    (finding,) = verdict.findings
    assert (finding.code, finding.status, finding.remedy) == ("HostPanicked", Status.WARNING, Remedy.INSPECT)
    assert "Fatal exception in interrupt" in finding.summary
    assert path in finding.summary
    assert finding.time == NOW - 7200
    assert "unable to handle page fault" in finding.evidence[0]


def test_the_log_beside_a_dump_of_kdump() -> None:
    text = "[    0.000000] Linux version\n[ 5021.377001] Kernel panic - not syncing: hung_task: blocked\n"
    verdict = look({"/var/crash/127.0.0.1-2026-11-21-04:11:09/vmcore-dmesg.txt": (60.0, text)})
    assert "hung_task: blocked" in verdict.findings[0].summary


def test_several_parts_are_one_panic() -> None:
    verdict = look(
        {
            f"{STORE}{n}": (7200.0, text)
            for n, text in enumerate(("Panic#1 Part2\n<6>[1.0] x\n", PANIC, "Panic#1 Part3\n"))
        }
    )
    assert len(verdict.findings) == 1
    assert "Fatal exception" in verdict.findings[0].summary


@pytest.mark.parametrize(
    "text", ["Oops#1 Part1\n<1>BUG: x", "Shutdown#1 Part1\nreboot: Power down", "", "\0\0"]
)
def test_other_records_are_no_panic(text: str) -> None:
    assert look({STORE: (60.0, text)}).status is Status.OK


def test_an_old_one_is_history() -> None:
    assert look({STORE: (Limits().news_seconds + 1, PANIC)}).status is Status.OK


@pytest.mark.parametrize("readable", [True, None])
def test_nothing_there(readable: bool | None) -> None:
    assert look({}, readable).status is Status.OK


def test_a_store_that_may_not_be_read_is_unknown() -> None:
    assert look({}, readable=False).status is Status.UNKNOWN
    assert look({STORE: (60.0, "denied")}).status is Status.UNKNOWN


def test_a_record_that_was_moved_meanwhile() -> None:
    assert look({STORE: (60.0, "gone")}).status is Status.OK


def test_recorded_machines(run: Run) -> None:
    assert run("host_panic", host="h100-kernel-broken").codes == {"HostPanicked"}
    assert run("host_panic", host="h100-healthy").status is Status.OK
