"""Trackers are repaired by rename with the old one kept; torn checkpoints are renamed, never deleted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from clustertools.actions.tracker import repair_tracker, set_aside
from clustertools.errors import ActionFailed
from clustertools.host import LocalHost
from clustertools.sources.checkpoints import CheckpointReport, checkpoints, last_good, list_checkpoints
from tests.checkpoint_builders import deepspeed_checkpoint, megatron_checkpoint, torch_zip


def good(folder: Path) -> CheckpointReport:
    report = last_good(list_checkpoints(str(folder), now=time.time()))
    assert report is not None
    return report


@pytest.mark.parametrize("content", ["", "300", "garbage\0"])
def test_megatron(tmp_path: Path, content: str) -> None:
    megatron_checkpoint(tmp_path, 200, 1, 1)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text(content)
    said = repair_tracker(str(tmp_path), good(tmp_path))
    assert tracker.read_text() == "200"
    assert (tmp_path / "latest_checkpointed_iteration.txt.before-clustertools-1").read_text() == content
    assert said.startswith("latest_checkpointed_iteration.txt now names iter_0000200")
    listing = checkpoints(LocalHost(), str(tmp_path))
    assert listing.tracker is not None
    assert listing.tracker.ok


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    (tmp_path / "latest").write_text("step_2.pt")
    repair_tracker(str(tmp_path), good(tmp_path))
    before = sorted(os.listdir(tmp_path))
    inode = (tmp_path / "latest").stat().st_ino
    assert repair_tracker(str(tmp_path), good(tmp_path)) == "latest already names step_1.pt"
    assert (tmp_path / "latest").stat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == before == ["latest", "latest.before-clustertools-1", "step_1.pt"]


def test_each_old_one_is_kept(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    for content in ("first", "second"):
        (tmp_path / "latest").write_text(content)
        repair_tracker(str(tmp_path), good(tmp_path))
    kept = [(tmp_path / f"latest.before-clustertools-{n}").read_text() for n in (1, 2)]
    assert kept == ["first", "second"]


def test_mode_is_kept_and_the_write_is_no_write_through(tmp_path: Path) -> None:
    """The kept one is a second name of the old file: writing into the new one must not change it."""
    torch_zip(tmp_path / "step_1.pt")
    tracker = tmp_path / "latest"
    tracker.write_text("x")
    tracker.chmod(0o664)
    repair_tracker(str(tmp_path), good(tmp_path))
    assert tracker.stat().st_mode & 0o777 == 0o664
    tracker.write_text("step_9.pt")
    assert (tmp_path / "latest.before-clustertools-1").read_text() == "x"


def test_link(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    (tmp_path / "latest").symlink_to("step_2.pt")
    repair_tracker(str(tmp_path), good(tmp_path))
    assert os.readlink(tmp_path / "latest") == "step_1.pt"
    assert os.readlink(tmp_path / "latest.before-clustertools-1") == "step_2.pt"


def test_missing_tracker_is_made_where_a_framework_needs_one(tmp_path: Path) -> None:
    deepspeed_checkpoint(tmp_path / "ds", 100)
    repair_tracker(str(tmp_path / "ds"), good(tmp_path / "ds"))
    assert (tmp_path / "ds" / "latest").read_text() == "global_step100"
    torch_zip(tmp_path / "plain" / "step_1.pt")
    assert "no tracker" in repair_tracker(str(tmp_path / "plain"), good(tmp_path / "plain"))


def test_refuses_a_bad_one_and_one_elsewhere(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "a" / "step_1.pt")
    report = good(tmp_path / "a")
    with pytest.raises(ActionFailed, match="does not lie in"):
        repair_tracker(str(tmp_path), report)
    os.truncate(path, 100)
    (bad,) = list_checkpoints(str(tmp_path / "a"), now=time.time() + 999)
    with pytest.raises(ActionFailed, match="torn"):
        repair_tracker(str(tmp_path / "a"), bad)


def test_failed_repair_leaves_the_old_one(tmp_path: Path) -> None:
    torch_zip(tmp_path / "ckpt_final.pt")
    tracker = tmp_path / "latest.txt"
    tracker.write_text("")
    with pytest.raises(ActionFailed, match="tells no step"):
        repair_tracker(str(tmp_path), good(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["ckpt_final.pt", "latest.txt"]


def test_set_aside_renames_and_may_be_asked_again(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "step_2.pt")
    data = path.read_bytes()
    assert set_aside(str(path)) == "step_2.pt set aside as step_2.pt.refused-by-clustertools"
    assert (tmp_path / "step_2.pt.refused-by-clustertools").read_bytes() == data
    assert set_aside(str(path)) == "step_2.pt is set aside already"
    # the run saved that step again, and it is torn again
    torch_zip(path)
    assert set_aside(str(path)) == "step_2.pt set aside as step_2.pt.refused-by-clustertools-2"
    assert list_checkpoints(str(tmp_path), now=time.time()) == []
    with pytest.raises(ActionFailed):
        set_aside(str(tmp_path / "never"))
