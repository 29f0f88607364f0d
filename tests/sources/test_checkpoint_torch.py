"""Checkpoints written by PyTorch itself, and what PyTorch says about the broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.sources.checkpoint_files import Look, verify_file
from clustertools.sources.checkpoints import CheckpointReport, list_checkpoints
from tests.checkpoint_builders import aged, hostile

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]
DEEP = Look(deep=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its optimizer after one step, saved in every way PyTorch has."""
    import numpy
    import torch.distributed.checkpoint as dcp

    folder = tmp_path_factory.mktemp("torch")
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.zeros(1, 32)).sum().backward()
    optimizer.step()
    state: dict[str, Any] = {
        "step": 100,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy_rng": numpy.random.get_state(),
        "numpy": {"a": numpy.arange(5), "b": numpy.float64(2), "c": numpy.random.default_rng(1)},
        "small": [
            torch.zeros(7, dtype=d) for d in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.uint16)
        ],
        "sparse": torch.eye(4).to_sparse(),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "shared": [model[0].weight, model[0].weight.T, model[0].weight[3:5]],
        "device": torch.device("cpu"),
    }
    torch.save(state, folder / "step_000100.pt")
    torch.save(state, folder / "legacy_100.pt", _use_new_zipfile_serialization=False)
    torch.save(model, folder / "module_100.pt")
    torch.save(model[0].weight.detach(), folder / "weights.pt")
    torch.save(torch.nn.TransformerEncoderLayer(8, 2, 16), folder / "encoder_100.pt")
    plain = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 100}
    dcp.save(plain, checkpoint_id=folder / "step-100", no_dist=True)
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of step-100, an hour old, to break."""
    aged(Path(shutil.copytree(saved / "step-100", tmp_path / "run" / "step-100")))
    shutil.copy(saved / "weights.pt", tmp_path)
    return tmp_path / "run"


def newest(folder: Path, deep: bool = False) -> CheckpointReport:
    return list_checkpoints(str(folder), now=time.time(), deep=deep)[0]


@pytest.mark.parametrize("name", ["step_000100.pt", "legacy_100.pt", "module_100.pt", "encoder_100.pt"])
def test_what_torch_saves_is_good(saved: Path, name: str) -> None:
    report = verify_file(str(saved / name), look=DEEP)
    assert report.verdict == "good", report.reason
    assert report.note == ""
    assert report.step == (None if name.startswith(("module", "encoder")) else 100)


@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["step_000100.pt", "legacy_100.pt"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_part_of_a_file_is_good(saved: Path, tmp_path: Path, share: float, name: str) -> None:
    whole = (saved / name).read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole[: int(share * len(whole))])
    assert verify_file(str(cut)).verdict == "torn"


def test_hole_that_torch_loads_without_a_word(saved: Path, tmp_path: Path) -> None:
    data = bytearray((saved / "step_000100.pt").read_bytes())
    weights = torch.load(saved / "step_000100.pt", weights_only=False)["model"]["0.weight"].numpy().tobytes()
    at = data.index(weights)
    data[at : at + len(weights)] = bytes(len(weights))
    path = tmp_path / "step_000100.pt"
    path.write_bytes(data)
    assert torch.load(path, weights_only=False)["model"]["0.weight"].abs().sum() == 0
    assert verify_file(str(path)).verdict == "good"
    report = verify_file(str(path), look=DEEP)
    assert report.verdict == "torn"
    assert "all zeros on disk" in report.reason


def test_distributed_checkpoint_is_good(run: Path) -> None:
    for deep in (False, True):
        report = newest(run, deep)
        assert (report.verdict, report.layout, report.step, report.files) == ("good", "dcp", 100, 2)


def test_distributed_checkpoint_with_every_kind_of_damage(run: Path) -> None:
    where = run / "step-100"
    data, metadata = where / "__0_0.distcp", where / ".metadata"
    whole, index = data.read_bytes(), metadata.read_bytes()

    def after(change: Any, deep: bool = False) -> str:
        change()
        aged(where)
        report = newest(run, deep)
        data.write_bytes(whole)
        metadata.write_bytes(index)
        return f"{report.verdict}: {report.reason}"

    assert "torn: __0_0.distcp: .metadata names" in after(lambda: os.truncate(data, len(whole) - 1))
    assert "torn: __0_0.distcp" in after(lambda: data.write_bytes(whole + b"x"))
    assert "__0_0.distcp, which .metadata names, is missing" in after(data.unlink)
    assert "incomplete: .metadata, which is written last" in after(metadata.unlink)
    assert "torn: .metadata: its pickle breaks off" in after(lambda: os.truncate(metadata, len(index) // 2))
    assert "torn: .metadata: is empty" in after(lambda: os.truncate(metadata, 0))
    marker = run / "ran"
    assert "hostile: .metadata" in after(lambda: metadata.write_bytes(hostile(marker)))
    assert not marker.exists()
    renamed = index.replace(b"__0_0.distcp", b"../0_0.distc")
    assert "hostile: .metadata: it points outside" in after(lambda: metadata.write_bytes(renamed))
    model = torch.load(run.parent / "weights.pt")
    at = whole.index(model.numpy().tobytes()) + 16
    holed = whole[:at] + bytes(500) + whole[at + 500 :]
    assert after(lambda: data.write_bytes(holed)).startswith("good")
    assert after(lambda: data.write_bytes(holed), deep=True).startswith("torn: __0_0.distcp: ")


@pytest.mark.parametrize("place", ["megatron", "whole"])
def test_megatrons_own_end_marks(run: Path, place: str) -> None:
    where = run / "step-100"
    shutil.copy(where / "__0_0.distcp", where / "__1_0.distcp")
    torch.save({"iteration": 100}, where / "common.pt")
    if place == "whole":
        (where / "metadata.json").write_text(
            '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
        )
    aged(where)
    report = newest(run)
    if place == "whole":
        assert (report.verdict, report.layout) == ("good", "megatron-dist")
    else:
        assert report.verdict == "incomplete"
        assert "metadata.json, which is written last" in report.reason


def test_folder_given_itself(run: Path) -> None:
    report = newest(run / "step-100")
    assert (report.verdict, report.step) == ("good", 100)


SHARDED = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
weight = distribute_tensor(torch.arange(4096.0).reshape(64, 64), mesh, [Shard(0)])
dcp.save({"model": {"weight": weight}, "step": 100, "rng": torch.get_rng_state()}, checkpoint_id=folder)
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that takes its time to end
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor that two ranks saved a half of each, over gloo."""
    folder = tmp_path_factory.mktemp("sharded")
    words = [sys.executable, "-c", SHARDED]
    places = [str(folder / "rendezvous"), str(folder / "run" / "step-100")]
    ranks = [subprocess.Popen([*words, str(rank), *places], stderr=subprocess.PIPE) for rank in (0, 1)]
    try:
        for rank in ranks:
            _, said = rank.communicate(timeout=120)
            assert rank.returncode == 0, said.decode()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return aged(folder / "run")


def test_what_two_ranks_saved(sharded: Path, tmp_path: Path) -> None:
    report = newest(sharded, deep=True)
    assert (report.verdict, report.layout, report.proved) == ("good", "dcp", True), report.reason
    for lost, said in (
        ("__1_0.distcp", "__1_0.distcp, which .metadata names, is missing"),
        (".metadata", ".metadata, which is written last, is missing"),
    ):
        copy = Path(shutil.copytree(sharded, tmp_path / lost.strip("._")))
        (copy / "step-100" / lost).unlink()
        aged(copy)
        assert said in newest(copy).reason
    copy = Path(shutil.copytree(sharded, tmp_path / "holed"))
    other = copy / "step-100" / "__1_0.distcp"
    data = bytearray(other.read_bytes())
    at = data.index(torch.arange(2048.0, 4096.0).numpy().tobytes())
    data[at : at + 1024] = bytes(1024)
    other.write_bytes(data)
    aged(copy)
    assert newest(copy).verdict == "good", "its size is right"
    assert newest(copy, deep=True).reason.startswith("__1_0.distcp: ")
