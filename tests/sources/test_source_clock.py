"""Parsers of the clock's tools: recorded, hostile, and live."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Completed, FileStat, LocalHost
from clustertools.sources.clock import KernelClock, chrony_tracking, kernel_clock

# chrony 4.3
LINE = (
    "7F000001,127.0.0.1,2,1795230822.823210116,-0.000001592,0.000001617,0.000001617,-0.651,-0.000,527.429,"
    "0.000008690,0.000403229,0.0,Normal\n"
)


class Says:
    """A host on which every command prints `output`."""

    name, boot_id = "n1", "boot"

    def __init__(self, output: str, returncode: int = 0) -> None:
        self.output, self.returncode = output, returncode

    def now(self) -> float:
        return 0.0

    def run(self, *argv: str, timeout_seconds: float = 10, stdin: str = "") -> Completed:
        return Completed(argv, self.returncode, self.output, "")

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        raise Absent(path)

    def stat(self, path: str) -> FileStat:
        raise Absent(path)

    def glob(self, pattern: str) -> list[str]:
        return []


def test_tracking() -> None:
    tracking = chrony_tracking(Says(LINE))
    assert (tracking.source, tracking.synchronised, tracking.stratum) == ("127.0.0.1", True, 2)
    assert tracking.offset_seconds == -0.000001592
    assert tracking.reference_time == 1795230822.823210116
    assert tracking.error_bound_seconds == pytest.approx(0.000001592 + 0.000403229 + 0.000004345)
    assert tracking.update_interval_seconds == 0.0


@pytest.mark.parametrize(
    ("old", "new"), [("7F000001", "00000000"), ("7F000001", "7F7F0101"), ("Normal", "Not synchronised")]
)
def test_not_synchronised(old: str, new: str) -> None:
    assert not chrony_tracking(Says(LINE.replace(old, new))).synchronised


@pytest.mark.parametrize(
    "line", ["", "506 Cannot talk", LINE.replace(",2,", ",x,"), LINE + LINE, LINE[:-8], "nan" + LINE]
)
def test_another_form_is_unparsable(line: str) -> None:
    with pytest.raises(Unparsable):
        chrony_tracking(Says(line))
    with pytest.raises(Unobservable):
        chrony_tracking(Says(LINE, returncode=1))


@pytest.mark.parametrize(
    ("status", "offset", "clock"),
    [
        (0x0040, 0, KernelClock(False, 16.0)),
        (0x0001, 250_000, KernelClock(True, 16.0, 0.25)),
        (0x2001, 250_000_000, KernelClock(True, 16.0, 0.25)),
        (0x2000, 250_000_000, KernelClock(True, 16.0)),
    ],
)
def test_kernel_flags(status: int, offset: int, clock: KernelClock) -> None:
    said = {"status": status, "offset": offset, "maxerror_us": 16_000_000}
    assert kernel_clock(Says(json.dumps(said))) == clock


@settings(max_examples=100)
@given(st.integers(0, 120), st.text(max_size=60), st.booleans())
def test_hostile_output(cut: int, noise: str, drop: bool) -> None:
    child = '{"status": 64, "offset": 0, "maxerror_us": 16000000}'
    for text, parse in ((LINE, chrony_tracking), (child, kernel_clock)):
        with contextlib.suppress(Unparsable):
            parse(Says(text[:cut] + noise + ("" if drop else text[cut:])))


def test_the_real_kernel_answers() -> None:
    assert 0 < kernel_clock(LocalHost()).max_error_seconds <= 2000
