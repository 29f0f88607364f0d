"""A run that overwrites its only checkpoint: the copy that a restart keeps is where the next one goes on."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from clustertools.actions import spare_copy
from tests.actions.test_action_restart import FIRST, Stage
from tests.checkpoint_builders import aged, torch_zip

KEPT = "ckpt.kept-by-clustertools.pt"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.spec = dataclasses.replace(stage.spec, resume="newest")
    return stage


def restarted(stage: Stage) -> str:
    """The steps from the choice to the start; what the first said."""
    chosen = stage.step("choose")
    assert chosen.attempt is not None
    stage.attempts = (FIRST, chosen.attempt)
    stage.step("submit", chosen.detail)
    stage.attempts = (FIRST,)
    return chosen.said


def test_kept_at_a_restart_and_put_back_after_a_torn_save(stage: Stage) -> None:
    own = torch_zip(stage.checkpoints / "ckpt.pt", iter_num=2000)
    whole = own.read_bytes()
    assert f"kept a copy of ckpt.pt as {KEPT}" in restarted(stage)
    # the run opens it anew, writes a part and dies: a hard link would be empty as well
    with own.open("wb") as file:
        file.write(whole[:500])
    aged(own, 300)
    said = restarted(stage)
    assert f"resuming from {stage.checkpoints / KEPT} (step 2000, verified)" in said
    assert own.read_bytes() == whole
    assert (stage.checkpoints / "ckpt.pt.refused-by-clustertools").read_bytes() == whole[:500]


def test_it_is_renewed_and_never_doubled(stage: Stage) -> None:
    torch_zip(stage.checkpoints / "ckpt.pt", iter_num=2000)
    restarted(stage)
    assert "kept a copy" not in restarted(stage), "nothing was saved since"
    torch_zip(stage.checkpoints / "ckpt.pt", iter_num=3000, age=600)
    assert "kept a copy" in restarted(stage)
    assert sorted(os.listdir(stage.checkpoints)) == [KEPT, "ckpt.pt"]


def test_runs_that_keep_several_need_none(stage: Stage) -> None:
    for step in (1, 2):
        torch_zip(stage.checkpoints / f"step_{step}.pt")
    restarted(stage)
    assert sorted(os.listdir(stage.checkpoints)) == ["step_1.pt", "step_2.pt"]


def test_a_copy_that_cannot_be_made_stops_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_zip(stage.checkpoints / "ckpt.pt", iter_num=2000)
    monkeypatch.setattr(spare_copy, "COPY_BYTES", 10)
    assert "no copy of ckpt.pt was kept: it is too large" in restarted(stage)
