"""The clock: off, not kept, badly read, and what is no finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clustertools.host import LocalHost, RecordedHost
from clustertools.model import Remedy, Status, Verdict

Run = Callable[..., Verdict]
Build = Callable[..., RecordedHost]
TRACKING = "0A010009,10.1.0.9,3,{time},{offset},0.0,0.0,-0.651,-0.000,0.5,0.00025,0.0004,{interval},{leap}\n"
CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0"
SYNCHRONISED, UNSYNCHRONISED = 0x2001, 0x2040


@pytest.fixture
def machine(tmp_path: Path) -> Build:
    """A host with what chronyc says (None: not installed), the kernel's flags, and running programs."""

    def build(
        chrony: str | None, status: int = UNSYNCHRONISED, offset: int = 0, programs: tuple[str, ...] = ()
    ) -> RecordedHost:
        folder = tmp_path / "host"
        for place in ("commands", "files/proc", f"files{CLOCK_SOURCE}"):
            (folder / place).mkdir(parents=True)
        for name in ("current", "available"):
            (folder / f"files{CLOCK_SOURCE}/{name}_clocksource").write_text("tsc\n")
        (folder / "host.yaml").write_text("name: n1\ntime: 1000000\n")
        said = {"status": status, "offset": offset, "maxerror_us": 5000}
        clock = {"argv": ["python", "-m", "clustertools.sources.clock"], "stdout": json.dumps(said)}
        chronyc = {"argv": ["chronyc", "-c", "tracking"], "absent": True, "error": "chronyc is not installed"}
        if chrony is not None:
            chronyc = {"argv": chronyc["argv"], "stdout": chrony}
        for name, entry in {"clock": clock, "chronyc": chronyc}.items():
            (folder / f"commands/{name}.yaml").write_text(json.dumps(entry))
        for number, program in enumerate(programs, 100):
            (folder / f"files/proc/{number}").mkdir(parents=True)
            (folder / f"files/proc/{number}/comm").write_text(program + "\n")
        return RecordedHost(folder)

    return build


def tracking(offset: float = 0.0001, age: float = 10, interval: float = 64, leap: str = "Normal") -> str:
    return TRACKING.format(time=f"{1_000_000 - age:.3f}", offset=offset, interval=interval, leap=leap)


def test_a_clock_that_is_off_and_read_from_a_slow_counter(run: Run) -> None:
    verdict = run("host_clock", "host-clock-off")
    assert [f.code for f in verdict.findings] == ["ClockSourceUnstable", "ClockOffset"]
    assert verdict.status is Status.WARNING
    assert "hpet; the TSC was found unstable" in verdict.findings[0].summary
    assert verdict.findings[0].remedy is Remedy.REBOOT_NODE
    assert "2.500 s off, says chronyd, from 198.18.0.9 (limit 0.1 s)" in verdict.findings[1].summary


def test_no_time_service(run: Run) -> None:
    verdict = run("host_clock", "host-clock-unsynchronised")
    assert (verdict.status, verdict.blind) == (Status.WARNING, "")
    assert [f.code for f in verdict.findings] == ["ClockUnsynchronised"]
    assert "no time service runs" in verdict.findings[0].summary


@pytest.mark.parametrize(
    ("offset", "status"),
    [(0.099, Status.OK), (-0.1, Status.WARNING), (9.9, Status.WARNING), (-10.0, Status.CRITICAL)],
)
def test_offset(run: Run, machine: Build, offset: float, status: Status) -> None:
    verdict = run("host_clock", machine(tracking(offset)))
    assert verdict.status is status
    assert {r.name: r.value for r in verdict.readings}["clock_offset_seconds"] == abs(offset)


@pytest.mark.parametrize(
    ("age", "interval", "found"),
    [(8000, 64, False), (8400, 64, True), (8400, 2048, False), (17000, 2048, True)],
)
def test_a_source_that_fell_silent(
    run: Run, machine: Build, age: float, interval: float, found: bool
) -> None:
    verdict = run("host_clock", machine(tracking(age=age, interval=interval)))
    assert (verdict.codes == {"ClockUnsynchronised"}) is found


def test_chronyd_without_a_source(run: Run, machine: Build) -> None:
    verdict = run("host_clock", machine(tracking(leap="Not synchronised"), status=SYNCHRONISED))
    assert verdict.codes == {"ClockUnsynchronised"}


def test_another_service_keeps_it(run: Run, machine: Build) -> None:
    verdict = run("host_clock", machine(None, SYNCHRONISED, offset=250_000_000))
    assert verdict.codes == {"ClockOffset"}
    assert "says the kernel" in verdict.findings[0].summary


@pytest.mark.parametrize(
    ("programs", "status", "words"),
    [
        (("systemd-timesyn", "bash"), Status.WARNING, "systemd-timesyn runs, but"),
        (("bash",), Status.WARNING, "no time service runs"),
        (("ptp4l", "phc2sys"), Status.OK, "phc2sys keeps the clock"),
    ],
)
def test_who_else_runs(
    run: Run, machine: Build, programs: tuple[str, ...], status: Status, words: str
) -> None:
    verdict = run("host_clock", machine(None, programs=programs))
    assert verdict.status is status
    assert words in verdict.detail + "".join(f.summary for f in verdict.findings)


def test_an_unknown_form_is_unknown(run: Run, machine: Build) -> None:
    assert run("host_clock", machine("1,2,3\n", SYNCHRONISED)).status is Status.UNKNOWN


def test_this_machine(run: Run) -> None:
    verdict = run("host_clock", LocalHost())
    assert not verdict.blind
    assert verdict.status in (Status.OK, Status.WARNING)
    assert "clock_error_bound_seconds" in {r.name for r in verdict.readings}
