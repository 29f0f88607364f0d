"""The checkpoints of a folder: which is the last good one, and why the newer ones were refused."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import LocalHost
from clustertools.sources.checkpoint_cache import FileCache, cache_file
from clustertools.sources.checkpoint_files import FileReport
from clustertools.sources.checkpoint_layouts import Entry, step_of, temporary
from clustertools.sources.checkpoints import (
    CheckpointReport,
    checkpoints,
    decode,
    is_being_verified,
    last_good,
    list_checkpoints,
    verify_in_background,
)
from tests.checkpoint_builders import (
    aged,
    deepspeed_checkpoint,
    hf_checkpoint,
    hostile,
    megatron_checkpoint,
    safetensors,
    torch_zip,
)


def look(folder: Path, **options: object) -> list[CheckpointReport]:
    return list_checkpoints(str(folder), now=time.time(), **options)  # type: ignore[arg-type]


def verdicts(folder: Path, **options: object) -> dict[str, str]:
    return {r.name: r.verdict for r in look(folder, **options)}


def cut(path: Path, share: float = 0.6, age: float = 3600.0) -> Path:
    os.truncate(path, int(path.stat().st_size * share))
    return aged(path, age)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_000100.pt", 100),
        ("ckpt_100.pt", 100),
        ("iter_0001000", 1000),
        ("global_step500", 500),
        ("global_step_20", 20),
        ("checkpoint-500", 500),
        ("step-100", 100),
        ("step1000-unsharded", 1000),
        ("epoch=3-step=1000.ckpt", 1000),
        ("epoch=3-step=1000-v1.ckpt", 1000),
        ("checkpoint_3_5000.pt", 5000),
        ("checkpoint_5000.pt", 5000),
        ("model_100.pth", 100),
        ("1000", 1000),
        ("ckpt.pt", None),
        ("epoch_5.pt", None),
        ("epoch=5.ckpt", None),
        ("checkpoint5.pt", None),
        ("model-00001-of-00004.safetensors", None),
        ("checkpoint_20250101123000.pt", None),
        ("last.ckpt", None),
    ],
)
def test_step_in_a_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("step_100.pt.tmp", "step_100.pt"),
        ("step_100.pt.tmp.4711", "step_100.pt"),
        ("step100-tmp", "step100"),
        ("tmp-checkpoint-500", "checkpoint-500"),
        ("iter_0000100_0_local.dirty.pt", "iter_0000100_0_local.pt"),
        ("step_100.pt", "step_100.pt"),
    ],
)
def test_temporary_names(name: str, base: str) -> None:
    assert temporary(name)[0] == base
    assert bool(temporary(name)[1]) == (name != base)


def test_walk_back_past_a_torn_and_a_holed_one(tmp_path: Path) -> None:
    """The third is chosen by the deep look, the second without it."""
    for step in (100, 200, 300):
        torch_zip(tmp_path / f"step_{step:06d}.pt", 8192, step=step)
    cut(tmp_path / "step_000300.pt")
    holed = tmp_path / "step_000200.pt"
    data = bytearray(holed.read_bytes())
    data[40_000:44_000] = bytes(4000)
    holed.write_bytes(data)
    aged(holed)
    quick, deep = look(tmp_path), look(tmp_path, deep=True)
    assert [r.step for r in quick] == [300, 200, 100]
    assert last_good(quick) == quick[1]
    assert last_good(deep) == deep[2]
    assert "CRC-32" in deep[1].reason
    assert deep[2].deep


def test_order_is_by_step_not_by_time(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_9.pt", age=100)
    torch_zip(tmp_path / "step_10.pt", age=5000)
    assert [r.step for r in look(tmp_path)] == [10, 9]


def test_single_overwritten_file_tells_its_step_itself(tmp_path: Path) -> None:
    torch_zip(tmp_path / "ckpt.pt", iter_num=2000)
    (report,) = look(tmp_path)
    assert (report.step, report.verdict, report.layout) == (2000, "good", "file")


def test_fresh_unfinished_ones_are_in_progress_and_old_ones_incomplete(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt")
    torch_zip(tmp_path / "step_200.pt.tmp", age=5)
    assert verdicts(tmp_path)["step_200.pt.tmp"] == "in_progress"
    aged(tmp_path / "step_200.pt.tmp", 9000)
    report = look(tmp_path)[0]
    assert report.verdict == "incomplete"
    assert "2.5 h" in report.reason
    cut(torch_zip(tmp_path / "step_300.pt"), age=3)
    assert verdicts(tmp_path)["step_300.pt"] == "in_progress"
    assert verdicts(tmp_path, writing_seconds=0.0)["step_300.pt"] == "torn"


def test_marker_of_nemo(tmp_path: Path) -> None:
    torch_zip(tmp_path / "run--step=100-last.ckpt", age=9000)
    assert list(verdicts(tmp_path).values()) == ["good"]
    aged(_touched(tmp_path / "run--step=100-last-unfinished"))
    assert list(verdicts(tmp_path).values()) == ["incomplete"]


def _touched(path: Path) -> Path:
    path.write_text("")
    return path


def test_poisoned_from_the_first_non_finite_loss_on(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        torch_zip(tmp_path / f"step_{step}.pt")
    assert list(verdicts(tmp_path, refuse_after_step=200).values()) == ["poisoned", "poisoned", "good"]
    shutil.rmtree(tmp_path)
    torch_zip(tmp_path / "ckpt.pt")
    (report,) = look(tmp_path, refuse_after_step=200)
    assert report.verdict == "poisoned"
    assert "tells no step" in report.reason


def test_hostile_one_is_refused_and_never_run(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt")
    marker = tmp_path / "ran"
    (tmp_path / "step_200.pt").write_bytes(hostile(marker))
    assert list(verdicts(tmp_path).values()) == ["hostile", "good"]
    folder = tmp_path / "step_300"
    folder.mkdir()
    (folder / ".metadata").write_bytes(hostile(marker))
    (folder / "__0_0.distcp").write_bytes(b"x")
    assert look(tmp_path)[0].verdict == "hostile"
    assert not marker.exists()


def test_names_in_a_file_reach_no_terminal(tmp_path: Path) -> None:
    escape = b"\x80\x02cevil\x1b]0;owned\x07\nrun\n)R."
    (tmp_path / "step_1.pkl").write_bytes(escape)
    reason = look(tmp_path)[0].reason
    assert "evil" in reason
    assert reason.isprintable()


def test_pickle_of_a_few_bytes_that_asks_for_terabytes(tmp_path: Path) -> None:
    (tmp_path / "step_2.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    aged(torch_zip(tmp_path / "step_1.pt"))
    aged(tmp_path / "step_2.pkl")
    reports = checkpoints(LocalHost(), str(tmp_path)).reports
    assert [r.verdict for r in reports] == ["torn", "good"]
    assert "more memory" in reports[0].reason


def test_goes_further_back_than_asked_until_one_is_good(tmp_path: Path) -> None:
    for step in range(1, 10):
        torch_zip(tmp_path / f"step_{step}.pt")
        if step > 2:
            cut(tmp_path / f"step_{step}.pt")
    reports = look(tmp_path, newest=3)
    assert [r.step for r in reports] == [9, 8, 7, 6, 5, 4, 3, 2]
    assert last_good(reports) == reports[-1]


def test_whole_hf_folder_and_each_way_to_lose_a_part(tmp_path: Path) -> None:
    hf_checkpoint(tmp_path, 500)
    newest = hf_checkpoint(tmp_path, 1000)
    assert verdicts(tmp_path, deep=True) == {"checkpoint-1000": "good", "checkpoint-500": "good"}
    assert look(tmp_path)[0].layout == "hf-trainer"
    for lost, said in {
        "trainer_state.json": "written last",
        "model-00002-of-00002.safetensors": "is missing",
        "optimizer.pt": "checkpoint-500 has it",
    }.items():
        kept = (newest / lost).read_bytes()
        (newest / lost).unlink()
        aged(newest)
        report = look(tmp_path)[0]
        assert (report.verdict, report.name) == ("incomplete", "checkpoint-1000")
        assert lost in report.reason
        assert said in report.reason
        (newest / lost).write_bytes(kept)
        aged(newest)
    (newest / "trainer_state.json").write_text(json.dumps({"global_step": 999}))
    aged(newest)
    assert "says global_step 999" in look(tmp_path)[0].reason
    (newest / "trainer_state.json").write_text('{"global_st')
    aged(newest)
    assert look(tmp_path)[0].verdict == "torn"


def test_hf_shard_without_the_tensor_that_the_index_names(tmp_path: Path) -> None:
    newest = hf_checkpoint(tmp_path, 500)
    safetensors(newest / "model-00002-of-00002.safetensors", {"other": 64})
    report = look(tmp_path)[0]
    assert report.verdict == "torn"
    assert "does not hold t2" in report.reason


def test_fewer_random_states_after_a_smaller_restart_are_fine(tmp_path: Path) -> None:
    hf_checkpoint(tmp_path, 500)
    newest = hf_checkpoint(tmp_path, 1000)
    (newest / "rng_state_3.pth").unlink()
    aged(newest)
    assert verdicts(tmp_path)["checkpoint-1000"] == "good"


def test_megatron_ranks(tmp_path: Path) -> None:
    megatron_checkpoint(tmp_path, 100)
    newest = megatron_checkpoint(tmp_path, 200)
    assert [(r.layout, r.verdict, r.step) for r in look(tmp_path)] == [
        ("megatron", "good", 200),
        ("megatron", "good", 100),
    ]
    shutil.move(newest / "mp_rank_01_000", tmp_path.parent / "away")
    aged(newest)
    assert "only 3 of 2 x 2 model-parallel ranks" in look(tmp_path)[0].reason
    shutil.move(tmp_path.parent / "away", newest / "mp_rank_01_000")
    (newest / "mp_rank_01_001" / "distrib_optim.pt").unlink()
    aged(newest)
    assert "mp_rank_01_001/distrib_optim.pt is missing" in look(tmp_path)[0].reason
    # the whole last pipeline stage: no gap in the numbers, but the one before has it
    for rank in ("mp_rank_00_001", "mp_rank_01_001"):
        shutil.rmtree(newest / rank)
    aged(newest)
    assert "iter_0000100 has it" in look(tmp_path)[0].reason


def test_deepspeed_ranks(tmp_path: Path) -> None:
    deepspeed_checkpoint(tmp_path, 100)
    newest = deepspeed_checkpoint(tmp_path, 200)
    assert {r.verdict for r in look(tmp_path)} == {"good"}
    (newest / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    aged(newest)
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is missing" in look(tmp_path)[0].reason
    # the last rank leaves no gap: the older checkpoint tells
    newest = deepspeed_checkpoint(tmp_path, 300)
    (newest / "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt").unlink()
    aged(newest)
    assert look(tmp_path)[0].verdict == "incomplete"
    # and so does the number that the model states hold
    deepspeed_checkpoint(tmp_path, 400, ranks=2, told=3)
    assert "only 2 of 3 data-parallel ranks" in look(tmp_path)[0].reason
    deepspeed_checkpoint(tmp_path, 500, ranks=2, told=2)
    assert look(tmp_path)[0].verdict == "good"
    (tmp_path / "global_step500" / "mp_rank_00_model_states.pt").unlink()
    aged(tmp_path / "global_step500")
    assert "model states" in look(tmp_path)[0].reason


def test_files_of_one_step_belong_together(tmp_path: Path) -> None:
    for step in (100, 200):
        torch_zip(tmp_path / f"model_{step}.pt")
        torch_zip(tmp_path / f"optim_{step}.pt")
    assert [(r.name, r.files, r.layout) for r in look(tmp_path)] == [
        ("model_200.pt", 2, "files"),
        ("model_100.pt", 2, "files"),
    ]
    (tmp_path / "optim_200.pt").unlink()
    report = look(tmp_path)[0]
    assert report.step == 200


def test_numbered_shards(tmp_path: Path) -> None:
    for step in (100, 200):
        for rank in range(4):
            torch_zip(tmp_path / f"checkpoint_{step}" / f"model_world_size_4_rank_{rank}.pt", 8)
            torch_zip(tmp_path / f"checkpoint_{step}" / f"extra-rank{rank}.pt", 8)
    assert {r.verdict for r in look(tmp_path)} == {"good"}
    (tmp_path / "checkpoint_200" / "model_world_size_4_rank_3.pt").unlink()
    aged(tmp_path / "checkpoint_200")
    assert "only 3 of 4 parts" in look(tmp_path)[0].reason
    (tmp_path / "checkpoint_100" / "extra-rank2.pt").unlink()
    aged(tmp_path / "checkpoint_100")
    assert "extra-rank2.pt is missing" in look(tmp_path)[1].reason


def test_distributed_parts_without_their_metadata(tmp_path: Path) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp"):
        (tmp_path / "step-10").mkdir(exist_ok=True)
        (tmp_path / "step-10" / name).write_bytes(b"x" * 100)
    aged(tmp_path / "step-10")
    report = look(tmp_path)[0]
    assert (report.verdict, report.layout) == ("incomplete", "dcp")
    assert ".metadata, which is written last, is missing" in report.reason


def test_integrity_file_of_megatron(tmp_path: Path) -> None:
    newest = megatron_checkpoint(tmp_path, 100, 1, 1)
    name = "mp_rank_00_000/distrib_optim.pt"
    integrity = {"algorithm": "sha256", "files": {name: "0" * 64}}
    (newest / "integrity.json").write_text(json.dumps(integrity))
    aged(newest)
    assert look(tmp_path)[0].verdict == "good"
    assert f"{name}: its sha256" in look(tmp_path, deep=True)[0].reason


def test_empty_folder_of_a_checkpoints_name(tmp_path: Path) -> None:
    (tmp_path / "step-10").mkdir()
    aged(tmp_path)
    assert verdicts(tmp_path) == {"step-10": "incomplete"}


def test_other_folders_links_and_set_aside_ones_are_none(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    torch_zip(tmp_path / "step_2.pt.refused-by-clustertools")
    torch_zip(tmp_path / "step_3.refused-by-clustertools" / "model.pt")
    (tmp_path / "last.ckpt").symlink_to("step_1.pt")
    for name in ("logs", "wandb", "tensorboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.txt").write_text("x")
    assert verdicts(tmp_path) == {"step_1.pt": "good"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("  \n", "only blanks"),
        ("12x", "instead of an iteration"),
        ("900", "not there"),
        ("\0\0\0", "garbage"),
        ("../../etc", "instead of an iteration"),
    ],
)
def test_bad_tracker_of_megatron(tmp_path: Path, content: str, said: str) -> None:
    megatron_checkpoint(tmp_path, 100)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(content)
    tracker = checkpoints(LocalHost(), str(tmp_path)).tracker
    assert tracker is not None
    assert not tracker.ok
    assert said in tracker.reason


def test_tracker_that_names_a_refused_one(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    cut(torch_zip(tmp_path / "step_2.pt"))
    (tmp_path / "latest").write_text("step_2.pt\n")
    listing = checkpoints(LocalHost(), str(tmp_path))
    assert listing.tracker is not None
    assert "names step_2.pt, which was refused (torn)" in listing.tracker.reason
    (tmp_path / "latest").write_text("step_1.pt")
    tracker = checkpoints(LocalHost(), str(tmp_path)).tracker
    assert tracker is not None
    assert (tracker.ok, tracker.points_to) == (True, str(tmp_path / "step_1.pt"))


def test_dangling_link_and_a_path_outside(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_1.pt")
    (tmp_path / "latest").symlink_to("step_9")
    tracker = checkpoints(LocalHost(), str(tmp_path)).tracker
    assert tracker is not None
    assert (tracker.kind, tracker.ok) == ("symlink", False)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").write_text("../elsewhere")
    tracker = checkpoints(LocalHost(), str(tmp_path)).tracker
    assert tracker is not None
    assert "not in this folder" in tracker.reason


def test_missing_folder_is_absent_and_an_unreadable_one_unobservable(tmp_path: Path) -> None:
    with pytest.raises(Absent):
        checkpoints(LocalHost(), str(tmp_path / "none"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Absent):
        checkpoints(LocalHost(), str(file))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": 1}', '{"schema": 1, "checkpoints": [{}]}', "x" * 99]
)
def test_answer_in_another_form(text: str) -> None:
    with pytest.raises(Unparsable):
        decode(text)


def test_answer_that_tells_an_error() -> None:
    with pytest.raises(Unobservable, match="Input/output error"):
        decode('{"schema": 1, "error": "/data: Input/output error", "absent": false}')


@given(text=st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_answer_decodes_or_is_unparsable(text: str) -> None:
    with pytest.raises(Unobservable):
        decode(text)


def test_cache_reads_unchanged_files_once_and_changed_ones_again(tmp_path: Path) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache.json"
    path = torch_zip(folder / "step_1.pt", 4096)
    ask: Callable[[], str] = lambda: checkpoints(  # noqa: E731
        LocalHost(), str(folder), deep=True, cache=str(cache)
    ).reports[0].verdict  # fmt: skip
    assert ask() == "good"
    stored = json.loads(cache.read_text())
    (key,) = stored["files"]
    stored["files"][key].update(verdict="torn", reason="from the cache")
    cache.write_text(json.dumps(stored))
    assert ask() == "torn"
    aged(path, 1800)
    assert ask() == "good"
    cache.write_text("{not json")
    assert ask() == "good"


def test_late_answer_says_what_was_not_looked_at(tmp_path: Path) -> None:
    for step in (1, 2):
        torch_zip(tmp_path / f"step_{step}.pt")
    listing = checkpoints(LocalHost(), str(tmp_path), timeout_seconds=60, deep=True)
    assert {r.verdict for r in listing.reports} == {"good"}
    from clustertools.sources.checkpoint_files import OutOfTime

    def late() -> None:
        raise OutOfTime

    reports = look(tmp_path, tick=late)
    assert {r.verdict for r in reports} == {"unknown"}
    assert "in time" in reports[0].reason


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_folder_never_raises(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    where = hf_checkpoint(tmp_path / "run", 10)
    files = sorted(p for p in where.iterdir())
    victim = data.draw(st.sampled_from(files))
    size = victim.stat().st_size
    how = data.draw(st.sampled_from(["cut", "garbage", "gone", "folder"]))
    if how == "cut":
        os.truncate(victim, data.draw(st.integers(0, size - 1)))
    elif how == "garbage":
        victim.write_bytes(data.draw(st.binary(max_size=200)))
    else:
        victim.unlink()
        if how == "folder":
            victim.mkdir()
    aged(where)
    (report,) = look(tmp_path / "run", deep=True)
    if how == "cut" and victim.suffix in (".pt", ".safetensors"):
        assert report.verdict == "torn"


def test_reading_goes_on_without_the_one_who_asked(tmp_path: Path) -> None:
    """The starter answers at once; what its child found is in the cache; two never read at the same time."""
    folder, cache = tmp_path / "run", tmp_path / "cache"
    torch_zip(folder / "step_1.pt", 4096)
    torch_zip(folder / "step_2.pt", 4096)
    began = time.monotonic()
    verify_in_background(LocalHost(), str(folder), str(cache), seconds=60)
    while is_being_verified(str(folder), str(cache)) or not list(cache.glob("*.json")):
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    (kept,) = [json.loads(p.read_text())["files"] for p in cache.glob("*.json")]
    assert sorted(key.rpartition("/")[2] for key in kept) == ["step_1.pt", "step_2.pt"]
    assert all(key.startswith("deep ") for key in kept)
    # the next look reads nothing: what the cache says is what is told
    (file,) = cache.glob("*.json")
    for told in kept.values():
        told.update(verdict="torn", reason="from the cache")
    file.write_text(json.dumps({"schema": 1, "files": kept}))
    listing = checkpoints(LocalHost(), str(folder), deep=True, cache=str(cache))
    assert {r.reason for r in listing.reports} == {"from the cache"}


def test_one_reader_at_a_time(tmp_path: Path) -> None:
    folder, cache = tmp_path / "run", tmp_path / "cache"
    torch_zip(folder / "step_1.pt")
    cache.mkdir()
    with open(cache_file(str(cache), str(folder)) + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_being_verified(str(folder), str(cache))
        verify_in_background(LocalHost(), str(folder), str(cache), seconds=60)
        time.sleep(0.3)
        assert not list(cache.glob("*.json"))
    assert not is_being_verified(str(folder), str(cache))


def test_a_long_look_that_is_killed_is_not_begun_anew(tmp_path: Path) -> None:
    paths = [torch_zip(tmp_path / f"step_{n}.pt") for n in (1, 2)]
    entries = [Entry(str(p), p.name, p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_ino) for p in paths]
    report = FileReport("step_1.pt", "torch zip", "good")
    killed = FileCache(str(tmp_path / "c.json"), time.time(), every_seconds=0.0)
    killed.keep(entries[0], "deep", report)
    again = FileCache(str(tmp_path / "c.json"), time.time())
    assert again.find(entries[0], "quick") == report
    # one that looked quickly meanwhile takes nothing of it away
    other = FileCache(str(tmp_path / "c.json"), time.time())
    again.keep(entries[1], "deep", report)
    again.save()
    other.find(entries[0], "quick")
    other.save()
    assert FileCache(str(tmp_path / "c.json"), time.time()).find(entries[1], "deep") is not None


def test_digests_of_megatron_are_read_once(tmp_path: Path) -> None:
    folder, cache = tmp_path / "run", tmp_path / "c.json"
    newest = megatron_checkpoint(folder, 100, 1, 1)
    name = "mp_rank_00_000/distrib_optim.pt"
    digest = hashlib.sha256((newest / name).read_bytes()).hexdigest()
    (newest / "integrity.json").write_text(json.dumps({"algorithm": "sha256", "files": {name: digest}}))
    aged(newest)
    for text in (digest, "0" * 64):
        deep = checkpoints(LocalHost(), str(folder), deep=True, cache=str(cache)).reports[0]
        assert deep.verdict == ("good" if text == digest else "torn")
        kept = json.loads(cache.read_text())
        (key,) = [k for k in kept["files"] if k.startswith("digest-sha256 ")]
        assert kept["files"][key]["note"] == text
        kept["files"][key]["note"] = "0" * 64
        cache.write_text(json.dumps(kept))
