"""Figures of earlier runs: whose they are, what may become usual, and files that are broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools import baselines
from clustertools.baselines import Baselines, Offence, load, owner_of, save
from clustertools.budget import ProbeHistory
from clustertools.errors import StoreError
from clustertools.measurement import Figure, Grade
from clustertools.performance import assess

DAY = 86400.0
SOFT = {"n1": "H100 580.82 torch 2.9", "n2": "H100 580.82 torch 2.9"}
WHO = owner_of({("n1", "gpu0"): "GPU-aaaa", ("n1", ""): "SN-1", ("n2", ""): "SN-2"}, SOFT)


def gemm(value: float, node: str = "n1", part: str = "gpu0") -> Figure:
    return Figure("gemm", (node,), "flop_per_second", value, part, 0, "bfloat16 8192")


def filled(*values: float) -> Baselines:
    stored = Baselines()
    for number, value in enumerate(values):
        stored = stored.updated([gemm(value)], WHO, number * DAY)
    return stored


def test_the_usual_is_the_median_of_the_last_accepted() -> None:
    usual = filled(690e12, 700e12, 710e12).usual(WHO)(gemm(1.0))
    assert usual is not None
    assert (usual.value, usual.count, usual.since) == (700e12, 3, "1970-01-01")
    assert usual.spread == pytest.approx(1.4826 * 10 / 700, rel=1e-3)


def test_only_the_last_few_are_kept_so_that_a_change_for_good_becomes_usual() -> None:
    stored = filled(*[700e12] * 20, *[600e12] * 5)
    usual = stored.usual(WHO)(gemm(1.0))
    assert usual is not None
    assert (usual.count, usual.value) == (baselines.VALUES_KEPT, 600e12)


def test_a_gpu_keeps_its_past_in_another_node_and_loses_it_with_other_software() -> None:
    stored = filled(700e12, 700e12, 700e12)
    moved = owner_of({("n2", "gpu7"): "GPU-aaaa"}, SOFT)
    assert stored.usual(moved)(gemm(1.0, "n2", "gpu7")) is not None
    updated = owner_of({("n1", "gpu0"): "GPU-aaaa"}, {"n1": "H100 590.10 torch 2.9"})
    assert stored.usual(updated)(gemm(1.0)) is None


def test_what_is_nobodys_own_is_not_kept() -> None:
    group = Figure("collective", ("n1", "n2"), "busbw_bytes_per_second", 4e11)
    assert Baselines().updated([group], WHO, 0.0).past == {}
    assert WHO(gemm(1.0, part="gpu3")) == "SN-1/gpu3|H100 580.82 torch 2.9"
    assert WHO(gemm(1.0, "n9", "")) == "n9|"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_measurement_is_not_kept(value: float) -> None:
    assert Baselines().updated([gemm(value)], WHO, 0.0).past == {}


def test_slow_figures_never_become_usual() -> None:
    figures = [gemm(700e12, f"n{i}") for i in range(5)] + [gemm(400e12, "n5")]
    who = owner_of({}, {})
    stored = Baselines().updated(assess(figures).accepted, who, 0.0)
    assert len(stored.past) == 5
    assert not [key for key in stored.past if "n5" in key]


def test_what_was_not_seen_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "FIGURES_KEPT", 3)
    stored = Baselines()
    for number in range(5):
        stored = stored.updated([gemm(7e14, f"n{number}")], owner_of({}, {}), number * DAY)
    assert [key.split("|")[5] for key in stored.past] == ["n2/gpu0", "n3/gpu0", "n4/gpu0"]


def test_costs_leave_out_the_one_slowest_and_history_counts() -> None:
    stored = Baselines()
    assert stored.cost_seconds("gemm") is None
    for seconds in (10.0, 11.0, 60.0, 12.0):
        stored = stored.with_run("gemm", seconds, seconds == 60.0)
    assert stored.cost_seconds("gemm") == 12.0
    assert stored.history["gemm"] == ProbeHistory(4, 1)


def test_a_part_that_was_bad_is_remembered_wherever_it_sat() -> None:
    stored = Baselines().with_offence("GPU-aaaa", Offence(0.0, "n1", Grade.SLOW, "80% of its peers"))
    stored = stored.with_offence("GPU-aaaa", Offence(9 * DAY, "n2", Grade.WRONG_DATA, "other bits"))
    assert stored.reputation("GPU-aaaa") == (
        "GPU-aaaa was bad 2 times before, on n1, n2, the last time on 1970-01-10: other bits"
    )
    assert stored.reputation("GPU-bbbb") == ""


@pytest.fixture
def whole() -> Baselines:
    stored = filled(690e12, 700e12).with_run("gemm", 10.5, True)
    return stored.with_offence("GPU-aaaa", Offence(1.0, "n1", Grade.SLOW, "slow"))


def test_saved_and_loaded_is_the_same(tmp_path: Path, whole: Baselines) -> None:
    file = tmp_path / "deep" / "figures.json"
    save(file, whole)
    assert load(file) == (whole, "")
    assert os.listdir(file.parent) == ["figures.json"]
    assert load(tmp_path / "none.json") == (Baselines(), "")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"version": 2}', '{"version": 1}', "[" * 100_000,
        '{"version": 1, "past": {"k": [1, 2]}, "costs": {}, "history": {}, "offences": {}}',
        '{"version": 1, "past": {"k": [1, 2, -5]}, "costs": {}, "history": {}, "offences": {}}',
        '{"version": 1, "past": {"k": [1, 2, "x"]}, "costs": {}, "history": {}, "offences": {}}',
        '{"version": 1, "past": {}, "costs": {}, "history": {}, "offences": {"u": [[1, "n", "odd", "b"]]}}',
    ],
)  # fmt: skip
def test_a_broken_file_is_told_kept_aside_and_counts_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "figures.json"
    for number in (1, 2):
        file.write_text(text)
        stored, problem = load(file)
        assert stored == Baselines()
        assert f"kept as figures.json.broken-{number}" in problem
        assert not file.exists()
    assert (tmp_path / "figures.json.broken-1").read_text() == text


def test_bytes_that_are_no_text_and_a_folder_in_its_place(tmp_path: Path, whole: Baselines) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in load(tmp_path / "bytes.json")[1]
    (tmp_path / "folder").mkdir()
    assert "cannot be read: Is a directory" in load(tmp_path / "folder")[1]
    with pytest.raises(StoreError, match="could not be kept"):
        save(tmp_path / "folder", whole)
    assert sorted(os.listdir(tmp_path)) == ["bytes.json.broken-1", "folder"]


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, whole: Baselines, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    save(file, whole)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        save(file, Baselines())
    assert load(file) == (whole, "")
    assert os.listdir(tmp_path) == ["figures.json"]


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x),
    )
)
def test_any_json_is_understood_or_told(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    file = tmp_path_factory.mktemp("any") / "figures.json"
    file.write_text(json.dumps(data))
    stored, problem = load(file)
    assert bool(problem) or stored == Baselines()
