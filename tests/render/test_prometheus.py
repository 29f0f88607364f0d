"""Prometheus' format, held to the parser of its own client library, and the file for node_exporter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from clustertools.cli import main
from clustertools.errors import Unobservable
from clustertools.model import Finding, Reading, Status, Subject, Verdict
from clustertools.render.prometheus import prometheus, write_textfile

HOSTS = Path(__file__).parent.parent / "hosts"
NODE = Subject(cluster="alps", node="gpu-017")
GPU = Subject(cluster="alps", node="gpu-017", part="gpu@0000:3b:00.0")


def verdict(check: str = "gpu_ecc", status: Status = Status.OK, **more: object) -> Verdict:
    return Verdict(check, NODE, status, time=1_700_000_000.0, elapsed_seconds=0.25, **more)  # type: ignore[arg-type]


def parsed(*verdicts: Verdict) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name -> its values by their labels; a series that is there twice fails."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    text = prometheus(verdicts) + "\n"
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            assert key not in found.setdefault(sample.name, {})
            found[sample.name][key] = sample.value
    return found


def test_every_status_has_a_series_and_one_of_them_is_1():
    found = parsed(verdict(status=Status.UNKNOWN), verdict("gpu_xid"))["clustertools_check_status"]
    assert len(found) == 2 * len(Status)
    ones = [dict(labels) for labels, value in found.items() if value == 1]
    assert ones == [
        {"cluster": "alps", "node": "gpu-017", "check": "gpu_ecc", "status": "unknown"},
        {"cluster": "alps", "node": "gpu-017", "check": "gpu_xid", "status": "ok"},
    ]


def test_findings_readings_and_the_time_of_the_look():
    finding = Finding("gpu_ecc", "EccUncorrected", GPU, Status.CRITICAL, "3 errors")
    readings = (Reading(GPU, "ecc_errors_total", 3, 0), Reading(GPU, "temperature_celsius", 41.5, 0))
    found = parsed(verdict(status=Status.CRITICAL, findings=(finding,), readings=readings))
    ((labels, value),) = found["clustertools_finding"].items()
    assert value == 1
    assert dict(labels)["code"] == "EccUncorrected"
    assert dict(labels)["part"] == "gpu@0000:3b:00.0"
    assert list(found["clustertools_ecc_errors_total"].values()) == [3]
    assert list(found["clustertools_temperature_celsius"].values()) == [41.5]
    assert list(found["clustertools_last_look_timestamp_seconds"].values()) == [1_700_000_000]
    assert list(found["clustertools_check_duration_seconds"].values()) == [0.25]


def test_types_and_base_units():
    readings = (
        Reading(NODE, "used_percent", 40, 0), Reading(NODE, "rate_bits_per_second", 4e11, 0),
        Reading(NODE, "errors_total", 1, 0),
    )  # fmt: skip
    text = prometheus([verdict(readings=readings)])
    assert "# TYPE clustertools_errors_total counter" in text
    assert "# TYPE clustertools_used_ratio gauge" in text
    found = parsed(verdict(readings=readings))
    assert list(found["clustertools_used_ratio"].values()) == [0.4]
    assert list(found["clustertools_rate_bytes_per_second"].values()) == [5e10]


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(), st.floats(), st.sampled_from(["a_total", "b_bytes", "c-d e_seconds", "é_total"]))
def test_whatever_a_part_is_called(part: str, code: str, value: float, name: str):
    about = Subject(node="n1", part=part)
    finding = Finding("c", code, about, Status.WARNING, "x")
    readings = (Reading(about, name, value, 0), Reading(about, name, value, 0))
    found = parsed(verdict(findings=(finding,), readings=readings))
    assert len(found["clustertools_finding"]) == 1


@pytest.mark.parametrize("name", ["h100-healthy", "h100-dbe-gpu3", "cpu-healthy", "host-storage-trouble"])
def test_recorded_machines(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "ct.prom"
    main(["check", "--host", str(HOSTS / name), "--format", "prometheus", "--textfile", str(path)])
    text = capsys.readouterr().out
    assert path.read_text() == text
    assert list(text_string_to_metric_families(text))


def test_the_file_is_replaced_whole_and_readable_by_all(tmp_path: Path):
    path = tmp_path / "ct.prom"
    before = os.umask(0o077)
    try:
        write_textfile(path, [verdict()])
        first = path.stat()
        write_textfile(path, [verdict(), verdict("other")])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.stat().st_ino != first.st_ino
    assert [p.name for p in tmp_path.iterdir()] == ["ct.prom"]
    assert "other" in path.read_text()


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(Unobservable, match="No such file"):
        write_textfile(tmp_path / "no" / "ct.prom", [verdict()])
    (tmp_path / "ct.prom").mkdir()
    with pytest.raises(Unobservable):
        write_textfile(tmp_path / "ct.prom", [verdict()])
    assert [p.name for p in tmp_path.iterdir()] == ["ct.prom"]
