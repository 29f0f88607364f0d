"""The file that a job script sources: whatever is in a path, a shell reads it as it is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from clustertools.actions.resume_file import write_resume_file
from clustertools.errors import ActionFailed
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec

ATTEMPT = Attempt("r", 3, "t", resume_step=500, resume_path="/data/step_500.pt")


def spec(folder: Path) -> RunSpec:
    return RunSpec("r", resume="file", resume_file=str(folder / "resume.sh"))


def sourced(path: Path) -> list[str]:
    script = '. "$1"; printf "%s\\0%s" "$CLUSTERTOOLS_RESUME_FROM" "$CLUSTERTOOLS_RESUME_STEP"'
    done = subprocess.run(
        ["sh", "-euc", script, "sh", str(path)], capture_output=True, timeout=10, check=True
    )
    return done.stdout.decode().split("\0")


@pytest.mark.parametrize(
    "path", ["/data/step 500.pt", "/d/$(touch ran)`touch ran`;touch ran", '/d/it\'s "one"\nline\\', ""]
)
def test_a_shell_reads_it_as_it_is(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempt = dataclasses.replace(ATTEMPT, resume_path=path, resume_step=500 if path else None)
    write_resume_file(spec(tmp_path), attempt)
    assert sourced(tmp_path / "resume.sh") == [path, "500" if path else ""]
    assert not (tmp_path / "ran").exists()


def test_what_an_earlier_start_was_told_does_not_stay(tmp_path: Path) -> None:
    write_resume_file(spec(tmp_path), ATTEMPT)
    first = (tmp_path / "resume.sh").stat()
    assert "already" in write_resume_file(spec(tmp_path), ATTEMPT)
    assert (tmp_path / "resume.sh").stat().st_ino == first.st_ino
    write_resume_file(spec(tmp_path), dataclasses.replace(ATTEMPT, resume_path="", resume_step=None))
    assert sourced(tmp_path / "resume.sh") == ["", ""]
    assert os.listdir(tmp_path) == ["resume.sh"], "what we wrote ourselves is not kept"


def test_which_data_to_leave_out_is_in_it(tmp_path: Path) -> None:
    write_resume_file(spec(tmp_path), dataclasses.replace(ATTEMPT, before_step=600, skip_steps="501-700"))
    written = (tmp_path / "resume.sh").read_text()
    assert "\nCLUSTERTOOLS_BEFORE_STEP=600\nCLUSTERTOOLS_SKIP_STEPS=501-700\nexport " in written
    write_resume_file(spec(tmp_path), ATTEMPT)
    assert "CLUSTERTOOLS_SKIP_STEPS=''\n" in (tmp_path / "resume.sh").read_text()


def test_what_somebody_else_wrote_is_kept_with_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "resume.sh"
    file.write_text("CLUSTERTOOLS_RESUME_FROM=mine\n")
    file.chmod(0o640)
    said = write_resume_file(spec(tmp_path), ATTEMPT)
    assert said.endswith("what was there is kept as resume.sh.before-clustertools-1")
    assert (tmp_path / "resume.sh.before-clustertools-1").read_text() == "CLUSTERTOOLS_RESUME_FROM=mine\n"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ActionFailed, match="needs a full path"):
        write_resume_file(dataclasses.replace(spec(tmp_path), resume_file="resume.sh"), ATTEMPT)
    with pytest.raises(ActionFailed, match="No such file or directory"):
        write_resume_file(dataclasses.replace(spec(tmp_path), resume_file="/nowhere/at/all"), ATTEMPT)
    with pytest.raises(ActionFailed, match="not the name of a shell variable"):
        write_resume_file(dataclasses.replace(spec(tmp_path), resume_variable="A B"), ATTEMPT)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ActionFailed):
        write_resume_file(dataclasses.replace(spec(tmp_path), resume_file=str(tmp_path / "link")), ATTEMPT)
