"""Main memory: too little, swapping, a DIMM gone or failing, and a machine where all is well."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.host import LocalHost, RecordedHost, dump_yaml
from clustertools.model import Remedy, Status, Verdict

Run = Callable[..., Verdict]
HOSTS = Path(__file__).parents[1] / "hosts"
TIB = 1 << 40
DAY = 86400
WITHOUT: dict[str, str | None] = {"proc/pressure/memory": None, "sys/devices/system/edac": None}


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., RecordedHost]:
    """A recorded host with some files changed or (None) taken away, at another time."""
    count = iter(range(1000))

    def build(name: str, files: dict[str, str | None], seconds_later: float = 0) -> RecordedHost:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        gone = [f"/{path}" for path, text in files.items() if text is None]
        time = RecordedHost(HOSTS / name).now() + seconds_later
        dump_yaml(folder / "host.yaml", {"base": str(HOSTS / name), "time": time, "without": gone})
        for path, text in files.items():
            if text is not None:
                place = folder / "files" / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
        return RecordedHost(folder)

    return build


def test_memory_low(run: Run) -> None:
    verdict = run("host_memory", "host-memory-low")
    assert verdict.status is Status.CRITICAL
    assert [(f.code, f.subject.part) for f in verdict.findings] == [
        ("HostMemoryLow", "memory"),
        ("HostMemoryLow", "pressure"),
    ]
    assert "0.3 GiB of 2015.5 GiB" in verdict.findings[0].summary
    assert verdict.findings[0].evidence[0].startswith("Shmem (/dev/shm and other tmpfs): 1536")
    assert not verdict.blind


def test_a_dimm_that_failed(run: Run) -> None:
    verdict = run("host_memory", "host-memory-dimm-failing")
    [finding] = verdict.findings
    assert (finding.code, finding.subject.part) == ("HostMemoryUncorrected", "dimm@mc1/dimm0")
    assert "CPU_SrcID#0_MC#1_Chan#0_DIMM#0" in finding.summary
    assert finding.remedy is Remedy.REPLACE


@pytest.mark.parametrize(("expected", "found"), [(1.9, False), (2.0, True)])
def test_a_dimm_that_is_gone(run: Run, expected: float, found: bool) -> None:
    verdict = run("host_memory", "host-memory-dimm-failing", expect={"memory_bytes": expected * TIB})
    assert ("HostMemoryMissing" in verdict.codes) is found


def corrected(variant: Callable[..., RecordedHost], count: int, hours: float) -> RecordedHost:
    files: dict[str, str | None] = {
        "sys/devices/system/edac/mc/mc0/dimm1/dimm_ce_count": f"{count}\n",
        "sys/devices/system/edac/mc/mc1/dimm0/dimm_ue_count": "0\n",
    }
    return variant("host-memory-dimm-failing", files, hours * 3600)


def test_corrected_errors_are_judged_by_their_growth_in_a_day(
    run: Run, variant: Callable[..., RecordedHost]
) -> None:
    past: dict[str, object] = {}
    seen = []
    # 431 old ones; 6 in the first hours; 4 more; then nothing for a day
    for count, hours in [(431, 0), (437, 8), (441, 13), (441, 20), (441, 26), (441, 40)]:
        verdict = run("host_memory", corrected(variant, count, hours), past=past)
        past = dict(verdict.memory)
        seen.append("HostMemoryCorrected" in verdict.codes)
    assert seen == [False, False, True, True, False, False]


def test_corrected_errors_after_a_reset_of_the_counter(
    run: Run, variant: Callable[..., RecordedHost]
) -> None:
    past = dict(run("host_memory", corrected(variant, 431, 0)).memory)
    verdict = run("host_memory", corrected(variant, 3, 1), past=past)
    assert not verdict.findings
    verdict = run("host_memory", corrected(variant, 438, 2), past=dict(verdict.memory))
    assert verdict.codes == {"HostMemoryCorrected"}
    assert "438 corrected" in verdict.findings[0].summary


def swapping(variant: Callable[..., RecordedHost], free: int, pages: int, seconds: float) -> RecordedHost:
    text = (HOSTS / "host-memory-dimm-failing/files/proc/meminfo").read_text()
    text = re.sub(r"(?<=SwapFree:)\s+8388604", f" {free}", text)
    files: dict[str, str | None] = {"proc/meminfo": text, "proc/vmstat": f"pswpin {pages}\npswpout 0\n"}
    files["sys/devices/system/edac/mc/mc1/dimm0/dimm_ue_count"] = "0\n"
    return variant("host-memory-dimm-failing", files, seconds)


def test_swap(run: Run, variant: Callable[..., RecordedHost]) -> None:
    verdict = run("host_memory", swapping(variant, 8388604, 100, 0))
    assert verdict.status is Status.OK
    past = verdict.memory
    assert run("host_memory", swapping(variant, 8388604, 700, 60), past=past).status is Status.OK
    verdict = run("host_memory", swapping(variant, 8388604, 600_100, 60), past=past)
    assert verdict.codes == {"HostSwapping"}
    assert "10000 pages a second" in verdict.findings[0].summary
    assert run("host_memory", swapping(variant, 6388604, 100, 0)).codes == {"HostSwapping"}


def test_without_pressure_or_edac_the_rest_is_still_seen(
    run: Run, variant: Callable[..., RecordedHost]
) -> None:
    verdict = run("host_memory", variant("host-memory-low", WITHOUT))
    assert verdict.codes == {"HostMemoryLow"}
    assert "psi=1" in verdict.detail
    assert "EDAC" in verdict.detail


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/meminfo", "MemTotal: lots\n"),
        ("proc/meminfo", "MemTotal: 5 kB\n"),
        ("proc/pressure/memory", "full 3\n"),
    ],
)
def test_another_form_is_unknown(
    run: Run, variant: Callable[..., RecordedHost], path: str, text: str
) -> None:
    verdict = run("host_memory", variant("host-memory-low", {path: text}))
    assert "Unparsable" not in verdict.detail
    assert verdict.status in (Status.UNKNOWN, Status.CRITICAL)
    assert path in verdict.blind


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300), st.integers(0, 400))
def test_hostile_meminfo(run: Run, variant: Callable[..., RecordedHost], noise: str, cut: int) -> None:
    text = (HOSTS / "host-memory-low/files/proc/meminfo").read_text()
    noise = noise.encode("utf-8", "replace").decode()
    verdict = run("host_memory", variant("host-memory-low", {"proc/meminfo": text[:cut] + noise}))
    assert "check itself failed" not in verdict.blind


def test_this_machine(run: Run) -> None:
    verdict = run("host_memory", LocalHost())
    assert not verdict.blind
    assert "HostMemoryMissing" not in verdict.codes
    assert {r.name for r in verdict.readings} >= {"host_memory_total_bytes", "host_memory_available_bytes"}
