"""Each framework's layout: whole as it is, and refused with the name of the part that is missing."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from clustertools.sources import checkpoint_layouts
from clustertools.sources.checkpoints import CheckpointReport, last_good, list_checkpoints
from tests.checkpoint_builders import aged, distributed_checkpoint, folder_of, hf_checkpoint, torch_zip

#: name of the checkpoint's folder | what is in it | layout | what is taken away | the words of the refusal
CASES = [
    ("global_step10", "mp_rank_0{0..1}_model_states.pt zero_pp_rank_{0..3}_mp_rank_0{0..1}_optim_states.pt",
     "deepspeed", "zero_pp_rank_{0..3}_mp_rank_01_optim_states.pt", "mp_rank_01_optim_states.pt are missing"),
    ("global_step10", "mp_rank_0{0..3}_model_states.pt", "deepspeed",
     "mp_rank_02_model_states.pt", "mp_rank_02_model_states.pt is missing"),
    ("global_step10", "zero_pp_rank_{0..3}_mp_rank_00_{model,optim}_states.pt", "deepspeed",
     "zero_pp_rank_2_mp_rank_00_model_states.pt", "zero_pp_rank_2_mp_rank_00_model_states.pt is missing"),
    ("global_step10", "mp_rank_0{0..1}_model_states.pt layer_0{0..5}-model_0{0..1}-model_states.pt "
     "layer_09-model_0{0..1}-model_states.pt bf16_zero_pp_rank_{0..1}_mp_rank_0{0..1}_optim_states.pt",
     "deepspeed", "layer_03-model_01-model_states.pt", "layer_03-model_01-model_states.pt is missing"),
    ("global_step10", "layer_0{0..5}-model_00-model_states.pt mp_rank_00_model_states.pt", "deepspeed",
     "mp_rank_00_model_states.pt", "the model states (mp_rank_*_model_states.pt) are missing"),
    ("global_step10", "mp_rank_00_model_states.pt layer_{0..1}_expert_{0..3}_mp_rank_00_model_states.pt "
     "expp_rank_{0..3}_mp_rank_00_optim_states.pt", "deepspeed",
     "layer_1_expert_3_mp_rank_00_model_states.pt", "layer_1_expert_3_mp_rank_00_model_states.pt is missing"),
    ("global_step10", "mp_rank_00_model_states.pt expp_rank_{0..3}_mp_rank_00_optim_states.pt", "deepspeed",
     "expp_rank_1_mp_rank_00_optim_states.pt", "expp_rank_1_mp_rank_00_optim_states.pt is missing"),
    ("global_step10_universal", "mp_rank_00_model_states.pt zero/optimizer_state.pt "
     "zero/layer.{0..2}.weight/{fp32,exp_avg,exp_avg_sq}.pt", "deepspeed",
     "zero/layer.1.weight/fp32.pt", "zero/layer.1.weight/fp32.pt is missing"),
    ("10", "checkpoint_metadata.json "
     "model/decoder/0/model_weight_pp-rank-0-of-2_tp-rank-{0..1}-of-2.safetensors "
     "model/decoder/1/model_weight_pp-rank-1-of-2_tp-rank-{0..1}-of-2.safetensors "
     "optimizer/optimizer_pp-{0..1}-of-2_tp-{0..1}-of-2_exp-0-of-1.pt random/tp-0-of-2_dp-0-of-4.pt",
     "nanotron",
     "model/decoder/1/model_weight_pp-rank-1-of-2_tp-rank-0-of-2.safetensors",
     "only 1 of 2 tp ranks of model/decoder/1/model_weight_pp-rank-1-of-2_tp-rank-*-of-2"),
    ("10", "optimizer/optimizer_pp-{0..1}-of-2_dp-{0..3}-of-4_tp-0-of-1_exp-0-of-1.pt", "nanotron",
     "optimizer/optimizer_pp-1-of-2_dp-{0..3}-of-4_tp-0-of-1_exp-0-of-1.pt",
     "only 1 of 2 pp ranks of optimizer/"),
    ("global_step_10", "actor/{model,optim,extra_state}_world_size_4_rank_{0..3}.pt", "verl",
     "actor/optim_world_size_4_rank_3.pt", "only 3 of 4 parts actor/optim_world_size_4_rank_*.pt"),
    ("step10-unsharded", "config.yaml model.pt optim.pt train.pt", "olmo", "optim.pt", "optim.pt is missing"),
    ("step10", "config.yaml {train,model,optim}/rank{0..3}.pt", "olmo", "optim/rank3.pt",
     "optim/rank3.pt is missing, the other parts have it"),
    ("step-10", "model-0000{1..2}-of-00002.safetensors model.safetensors.index.json", "directory",
     "model.safetensors.index.json", "model.*.index.json, which is written after the shards, is missing"),
    ("checkpoint_10", "checkpoint-model_part-0-shard{0..7}.pt", "directory",
     "checkpoint-model_part-0-shard5.pt", "checkpoint-model_part-0-shard5.pt is missing"),
]  # fmt: skip


def words(text: str) -> str:
    """`{a,b}` written out, so that the builder only sees numbers."""
    import re

    done = []
    for name in text.split():
        match = re.search(r"\{([a-z_0-9]+(?:,[a-z_0-9]+)+)\}", name)
        done += [name.replace(match[0], w) for w in match[1].split(",")] if match else [name]
    return " ".join(done)


def look(folder: Path, **options: object) -> list[CheckpointReport]:
    return list_checkpoints(str(folder), now=time.time(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "files", "layout", "taken", "said"), CASES)
def test_whole_and_without_a_part(
    tmp_path: Path, name: str, files: str, layout: str, taken: str, said: str
) -> None:
    where = folder_of(tmp_path / name, words(files))
    if "model.safetensors.index.json" in files:
        (where / "model.safetensors.index.json").write_text('{"weight_map": {}}')
        aged(where)
    (report,) = look(tmp_path, deep=True)
    assert (report.layout, report.verdict) == (layout, "good"), report.reason
    spare = folder_of(tmp_path / "spare", words(taken))
    for path in sorted(p.relative_to(spare) for p in spare.rglob("*") if p.is_file()):
        (where / path).unlink()
    shutil.rmtree(spare)
    aged(where)
    (report,) = look(tmp_path)
    assert report.verdict == "incomplete"
    assert said in report.reason


def test_a_group_that_is_missing_as_a_whole_is_missed_beside_the_older_one(tmp_path: Path) -> None:
    files = "actor/{model,optim}_world_size_2_rank_{0..1}.pt"
    folder_of(tmp_path / "global_step_10", words(files))
    folder_of(tmp_path / "global_step_20", words(files.replace("model,optim", "model,model")))
    assert look(tmp_path)[0].reason.endswith("actor/optim_*.pt is missing, global_step_10 has it")


# distributed checkpoints


def test_a_distributed_checkpoint_of_megatron_ends_with_metadata_json(tmp_path: Path) -> None:
    for step in (100, 200):
        where = distributed_checkpoint(
            tmp_path / f"iter_{step:07d}", {"__0_0.distcp": 64, "__1_0.distcp": 64}
        )
        (where / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
        aged(where)
    assert [(r.layout, r.verdict) for r in look(tmp_path, deep=True)] == [("megatron-dist", "good")] * 2
    (tmp_path / "iter_0000200" / "metadata.json").unlink()
    aged(tmp_path / "iter_0000200")
    newest = look(tmp_path)[0]
    assert newest.verdict == "incomplete"
    assert "metadata.json, which is written last, is missing, iter_0000100 has it" in newest.reason


def test_common_pt_needs_metadata_json_in_nemo_too(tmp_path: Path) -> None:
    where = distributed_checkpoint(tmp_path / "run--step=10" / "weights", {"__0_0.distcp": 64})
    torch_zip(where / "common.pt")
    (where.parent / "context").mkdir()
    (where.parent / "context" / "model.yaml").write_text("")
    aged(where.parent)
    (report,) = look(tmp_path)
    assert (report.layout, report.verdict) == ("nemo", "incomplete")
    assert "weights/metadata.json, which is written last" in report.reason
    (where / "metadata.json").write_text("{}")
    aged(where.parent)
    assert look(tmp_path)[0].verdict == "good"


def test_lightning_writes_meta_last(tmp_path: Path) -> None:
    where = distributed_checkpoint(tmp_path / "epoch=1-step=10.ckpt", {"__0_0.distcp": 64})
    assert "meta.pt, which is written last, is missing" in look(tmp_path)[0].reason
    torch_zip(where / "meta.pt")
    aged(where)
    assert (look(tmp_path)[0].layout, look(tmp_path)[0].verdict) == ("lightning", "good")


def test_a_part_that_the_metadata_names(tmp_path: Path) -> None:
    where = distributed_checkpoint(tmp_path / "step-10", {"__0_0.distcp": 64, "__1_0.distcp": 64})
    (where / "__1_0.distcp").unlink()
    aged(where)
    assert "__1_0.distcp, which .metadata names, is missing" in look(tmp_path)[0].reason


def test_zarr_cannot_be_told(tmp_path: Path) -> None:
    folder_of(tmp_path / "iter_0000100", "metadata.json common.pt model.weight/.zarray model.weight/0.0")
    (report,) = look(tmp_path)
    assert report.verdict == "unknown"
    assert "zarr" in report.reason


# Trainer with DeepSpeed or FSDP inside


def test_trainer_with_deepspeed_inside(tmp_path: Path) -> None:
    where = hf_checkpoint(tmp_path, 500)
    inner = "mp_rank_00_model_states.pt zero_pp_rank_{0..1}_mp_rank_00_optim_states.pt"
    folder_of(where / "global_step500", inner)
    (where / "latest").write_text("global_step500")
    aged(where)
    assert look(tmp_path, deep=True)[0].verdict == "good"
    (where / "global_step500" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    aged(where)
    assert "zero_pp_rank_0_mp_rank_00_optim_states.pt is missing" in look(tmp_path)[0].reason
    for tag, said in (("global_step400", "'global_step400', which is not there"), ("", "latest: is empty")):
        (where / "latest").write_text(tag)
        aged(where)
        assert look(tmp_path)[0].verdict in ("incomplete", "torn")
        assert said in look(tmp_path)[0].reason or "and 1 more" in look(tmp_path)[0].reason


def test_trainer_with_fsdp_inside(tmp_path: Path) -> None:
    where = hf_checkpoint(tmp_path, 500)
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        distributed_checkpoint(where / name, {"__0_0.distcp": 32, "__1_0.distcp": 32})
    aged(where)
    assert look(tmp_path, deep=True)[0].verdict == "good"
    (where / "optimizer_0" / ".metadata").unlink()
    aged(where)
    assert "optimizer_0/.metadata, which is written last, is missing" in look(tmp_path)[0].reason


# files without a folder, and folders for each rank


def test_a_file_that_its_elder_had_with_it(tmp_path: Path) -> None:
    for step in (100, 200):
        for part in ("model", "optim"):
            torch_zip(tmp_path / f"{part}_{step}.pt")
    (tmp_path / "optim_200.pt").unlink()
    newest = look(tmp_path)[0]
    assert newest.verdict == "incomplete"
    assert "optim_#.pt is missing, model_100.pt has it" in newest.reason


def test_shards_of_metaseq_in_one_folder(tmp_path: Path) -> None:
    for step in (100, 200):
        for shard in range(4):
            torch_zip(tmp_path / f"checkpoint_{step}-model_part-0-shard{shard}.pt")
    whole = look(tmp_path)
    assert [(r.step, r.files, r.verdict) for r in whole] == [(200, 4, "good"), (100, 4, "good")]
    assert len(whole[0].parts) == 4
    (tmp_path / "checkpoint_200-model_part-0-shard1.pt").unlink()
    assert "shard1.pt is missing" in look(tmp_path)[0].reason
    torch_zip(tmp_path / "checkpoint_200-model_part-0-shard1.pt")
    (tmp_path / "checkpoint_200-model_part-0-shard3.pt").unlink()
    assert "shard3.pt is missing, checkpoint_100" in look(tmp_path)[0].reason


def test_nemo_with_a_folder_for_each_rank(tmp_path: Path) -> None:
    for step in (100, 200):
        for rank in range(2):
            torch_zip(tmp_path / f"mp_rank_{rank:02d}" / f"gpt--step={step}.ckpt")
    assert [(r.name, r.step, r.verdict, r.files) for r in look(tmp_path)] == [
        ("gpt--step=200.ckpt", 200, "good", 2),
        ("gpt--step=100.ckpt", 100, "good", 2),
    ]
    (tmp_path / "mp_rank_01" / "gpt--step=200.ckpt").unlink()
    assert "mp_rank_01/gpt--step=200.ckpt is missing" in look(tmp_path)[0].reason
    (tmp_path / "gpt--step=100-unfinished").touch()
    assert [r.verdict for r in look(tmp_path)] == ["incomplete", "incomplete"]


def test_local_checkpoints_of_the_resiliency_extension(tmp_path: Path) -> None:
    for rank in range(3):
        torch_zip(tmp_path / str(rank) / f"iter_0000100_{rank}_local.pt")
        torch_zip(tmp_path / str(rank) / f"iter_0000200_{rank}_local.pt")
    assert [(r.step, r.verdict) for r in look(tmp_path)] == [(200, "good"), (100, "good")]
    newest = tmp_path / "2" / "iter_0000200_2_local.pt"
    newest.rename(newest.with_name("iter_0000200_2_local.dirty.pt"))
    good = last_good(look(tmp_path))
    assert good is not None
    assert good.step == 100


def test_numbered_folders_of_nanotron_are_no_ranks(tmp_path: Path) -> None:
    for step in (10, 20):
        folder_of(tmp_path / str(step), "checkpoint_metadata.json model/w.safetensors")
    assert [(r.step, r.layout) for r in look(tmp_path)] == [(20, "nanotron"), (10, "nanotron")]


def test_a_folder_that_is_taken_away_meanwhile_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_zip(tmp_path / "step_1.pt")
    (tmp_path / "7").mkdir()
    real = checkpoint_layouts._items

    def items(folder: str) -> object:
        if folder.endswith("/7"):
            raise FileNotFoundError(2, "No such file or directory", folder)
        return real(folder)

    monkeypatch.setattr(checkpoint_layouts, "_items", items)
    assert [r.verdict for r in look(tmp_path)] == ["good"]


# saves in progress


def test_a_save_that_dlrover_has_not_committed(tmp_path: Path) -> None:
    for step in (100, 200):
        torch_zip(tmp_path / f"checkpoint-{step}" / "model.pt")
        aged(tmp_path / f"checkpoint-{step}")
    stage = tmp_path / "._dlrover_ckpt_stage" / "200.done"
    stage.mkdir(parents=True)
    (stage / "0").touch()
    (tmp_path / "dlrover_latest.txt").write_text("100")
    assert [r.verdict for r in look(tmp_path)] == ["incomplete", "good"]
    assert "._dlrover_ckpt_stage" in look(tmp_path)[0].reason
    # killed between the tracker and the end of the stage: it is committed
    (tmp_path / "dlrover_latest.txt").write_text("200")
    assert [r.verdict for r in look(tmp_path)] == ["good", "good"]


def test_one_that_is_much_smaller_is_only_noted(tmp_path: Path) -> None:
    torch_zip(tmp_path / "step_100.pt", 1 << 18)
    torch_zip(tmp_path / "step_200.pt", 16)
    newest = look(tmp_path)[0]
    assert newest.verdict == "good"
    assert "much smaller than step_100.pt (2.1 MB)" in newest.reason


def test_proved_says_that_every_byte_of_weights_has_a_sum_that_matches(tmp_path: Path) -> None:
    torch_zip(tmp_path / "a" / "step_100.pt")
    assert [r.proved for r in look(tmp_path / "a", deep=True)] == [True]
    assert [r.proved for r in look(tmp_path / "a")] == [False]
    folder_of(tmp_path / "b" / "step-100", "model.safetensors")
    assert [r.proved for r in look(tmp_path / "b", deep=True)] == [False], "the format has no sums"
