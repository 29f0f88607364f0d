"""The check of a run's checkpoints, on real folders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clustertools.errors import Unobservable
from clustertools.host import Completed, LocalHost
from clustertools.model import Job, Status, Verdict
from tests.checkpoint_builders import aged, hostile, torch_zip

Run = Callable[..., Verdict]


def job(folder: Path | str, **more: object) -> Job:
    given = {"id": "1", "run": "run7", "state": "running", "started_at": time.time() - 90_000, **more}
    return Job(checkpoint_dir=str(folder), **given)  # type: ignore[arg-type]


def look(run: Run, folder: Path | str, **more: object) -> Verdict:
    return run("job_checkpoint", LocalHost("here"), job=job(folder, **more))


def test_whole_ones_are_fine(run: Run, tmp_path: Path) -> None:
    for step in (100, 200):
        torch_zip(tmp_path / f"step_{step}.pt", age=600)
    verdict = look(run, tmp_path)
    assert verdict.status is Status.OK
    readings = {r.name: r.value for r in verdict.readings}
    assert readings["checkpoint_last_good_step"] == 200
    assert 600 <= readings["checkpoint_age_seconds"] < 700
    assert verdict.subject.run == "run7"


def test_newest_torn(run: Run, tmp_path: Path) -> None:
    for step in (100, 200):
        torch_zip(tmp_path / f"step_{step}.pt", age=600)
    os.truncate(tmp_path / "step_200.pt", 900)
    aged(tmp_path / "step_200.pt", 300)
    verdict = look(run, tmp_path)
    assert verdict.codes == {"CheckpointTorn"}
    (finding,) = verdict.findings
    assert finding.status is Status.WARNING
    assert "step_200.pt is torn" in finding.summary
    assert "the last good one is step_100.pt, 100 steps older" in finding.summary


def test_newest_still_written_is_no_finding(run: Run, tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt", age=600)
    os.truncate(torch_zip(tmp_path / "step_200.pt"), 900)
    assert look(run, tmp_path).status is Status.OK


def test_none_good(run: Run, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "step_100.pt").write_bytes(hostile(marker))
    (tmp_path / "step_200.pt").write_bytes(b"")
    aged(tmp_path)
    verdict = look(run, tmp_path)
    assert verdict.codes == {"CheckpointNoneGood"}
    assert verdict.status is Status.CRITICAL
    assert any("hostile" in line for line in verdict.findings[0].evidence)
    assert not marker.exists()


def test_unknown_format_is_blindness(run: Run, tmp_path: Path) -> None:
    (tmp_path / "step_100.pt").write_bytes(b"GIF89a" * 100)
    aged(tmp_path)
    verdict = look(run, tmp_path)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "no format known" in verdict.blind


def test_old_one(run: Run, tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt", age=3 * 3600)
    verdict = look(run, tmp_path)
    assert verdict.codes == {"CheckpointStale"}
    assert "3.0 h old" in verdict.findings[0].summary
    # just restarted: it has had no time
    assert look(run, tmp_path, started_at=time.time() - 600).status is Status.OK
    assert look(run, tmp_path, state="ended").status is Status.OK
    # a save is under way
    os.truncate(torch_zip(tmp_path / "step_200.pt"), 900)
    assert look(run, tmp_path).status is Status.OK


def test_bad_tracker(run: Run, tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt", age=600)
    (tmp_path / "latest").write_text("")
    verdict = look(run, tmp_path)
    assert verdict.codes == {"CheckpointTrackerBad"}
    assert "latest is empty" in verdict.findings[0].summary
    assert "the last good one is step_100.pt" in verdict.findings[0].summary


def test_nothing_there_yet(run: Run, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        verdict = look(run, folder)
        assert (verdict.status, verdict.findings) == (Status.OK, ())
        assert "(yet)" in verdict.detail


def test_does_not_apply_without_a_folder(run: Run) -> None:
    assert look(run, "").status is Status.SKIPPED
    assert run("job_checkpoint", LocalHost()).status is Status.SKIPPED


class Hung(LocalHost):
    """A file system whose server is away."""

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        raise Unobservable(f"{argv[0]} did not answer within {timeout_seconds:g} s")


@pytest.mark.parametrize("folder", ["/data/away"])
def test_hung_file_system_is_unknown(run: Run, folder: str) -> None:
    verdict = run("job_checkpoint", Hung(), job=job(folder))
    assert verdict.status is Status.UNKNOWN
    assert "did not answer" in verdict.blind


def test_saves_under_way_are_noted(run: Run, tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt", age=600)
    torch_zip(tmp_path / "step_200.pt.tmp", age=5)
    verdict = look(run, tmp_path)
    assert verdict.status is Status.OK
    assert "being saved: step_200.pt.tmp" in verdict.detail


def test_one_that_changed_between_two_looks_is_still_being_saved(run: Run, tmp_path: Path) -> None:
    """A storage that stalls for minutes: nothing was touched lately, and yet it is not what it was."""
    torch_zip(tmp_path / "step_100.pt", age=600)
    newest = torch_zip(tmp_path / "step_200.pt", 4096)
    whole = newest.read_bytes()
    newest.write_bytes(whole[:1000])
    aged(newest, 500)
    first = look(run, tmp_path)
    assert first.codes == {"CheckpointTorn"}
    newest.write_bytes(whole[:9000])
    aged(newest, 300)
    again = run("job_checkpoint", LocalHost("here"), job=job(tmp_path), past=first.memory)
    assert again.status is Status.OK
    assert "step_200.pt changed since the last look" in again.detail
    still = run("job_checkpoint", LocalHost("here"), job=job(tmp_path), past=again.memory)
    assert still.codes == {"CheckpointTorn"}


class OutOfTime(LocalHost):
    """Reading every byte takes longer than a look may."""

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        words = list(argv)
        if "--deep" in words and "--background" not in words:
            words[words.index("--seconds") + 1] = "0"
        return super().run(*words, timeout_seconds=timeout_seconds, stdin=stdin)


def test_what_takes_longer_is_read_on_and_known_at_the_next_look(run: Run, tmp_path: Path) -> None:
    from clustertools.checks.job_checkpoint import Limits

    folder, cache = tmp_path / "run", tmp_path / "cache"
    torch_zip(folder / "step_100.pt", age=8 * 3600)
    bad = torch_zip(folder / "step_200.pt", 2000, age=600)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bad.write_bytes(data)
    aged(bad, 600)
    limits = Limits(deep=True, cache=str(cache))
    first = run("job_checkpoint", OutOfTime("here"), job=job(folder), limits=limits)
    assert (first.status, first.findings, first.blind) == (Status.OK, (), "")
    assert "reading every byte of step_200.pt in the background" in first.detail
    end = time.monotonic() + 60
    while not list(cache.glob("*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    second = run("job_checkpoint", LocalHost("here"), job=job(folder), limits=limits, past=first.memory)
    assert "CRC-32" in next(f for f in second.findings if f.code == "CheckpointTorn").summary
