"""The labelled training curves of tests/runs/loss: well-formed, made anew alike, labelled by twins."""

from __future__ import annotations

import csv
import math
import typing
from pathlib import Path

import pytest
import yaml

from clustertools.curves import Kind

KEPT = Path(__file__).parent / "runs" / "loss"
RUNS = yaml.safe_load((KEPT / "labels.yaml").read_text())["runs"]
#: Canonical names that a curve may have as columns.
COLUMNS = {
    "step", "loss", "grad_norm", "learning_rate", "loss_scale", "param_norm", "step_seconds",
    "skipped_iterations", "nan_iterations", "eval_loss", "time",
}  # fmt: skip


def rows_of(name: str, folder: Path = KEPT) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def number(cell: str) -> float:
    return float(cell) if cell else math.nan


def test_every_kept_curve_is_labelled_and_none_is_larger_than_it_need_be():
    assert {path.stem for path in KEPT.glob("*.csv")} == set(RUNS)
    assert sum(path.stat().st_size for path in KEPT.iterdir()) <= 3.1e6


@pytest.mark.parametrize("name", sorted(RUNS))
def test_labels_agree_with_their_curve(name: str):
    run, rows = RUNS[name], rows_of(name)
    steps = [int(row["step"]) for row in rows]
    assert run["set"] == "score"
    assert run["about"]
    assert run["made_by"]
    assert set(rows[0]) <= COLUMNS
    assert 0 < run["warm_up"] < len(rows)
    for event in run["events"]:
        assert event["kind"] in typing.get_args(Kind)
        assert event["start"] in steps
        assert event["end"] in steps
        assert event["start"] <= event["end"]
        assert isinstance(event["sure"], bool)
        if event["kind"] == "nan":
            at = steps.index(event["start"])
            seen = [number(rows[at][column]) for column in ("loss", "grad_norm") if column in rows[at]]
            assert not all(map(math.isfinite, seen))
    for low, high in run["ignore"]:
        assert low <= high
        assert not any(event["start"] <= low <= event["end"] for event in run["events"])
    for step in run["isolated"]:
        assert step in steps
    losses = [number(row["loss"]) for row in rows if "loss" in row]
    steps = steps[: len(losses)]  # some tell their pace only
    told = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
    spans = [(event["start"], event["end"]) for event in run["events"]] + [
        tuple(span) for span in run["ignore"]
    ]
    assert all(any(low <= step <= high for low, high in spans) for step in told), "a nan that nobody labelled"


@pytest.mark.torch
def test_every_kept_curve_has_its_recipe_and_the_sets_share_no_name_and_no_seed():
    pytest.importorskip("torch")
    from tests.lab.loss_runs.recipes import RECIPES

    sets = {which: [one for one in RECIPES if one.set == which] for which in ("score", "tune")}
    assert {one.name for one in sets["score"]} == set(RUNS)
    assert not {one.name for one in sets["score"]} & {one.name for one in sets["tune"]}
    assert not {one.seed for one in sets["score"]} & {one.seed for one in sets["tune"]}


@pytest.mark.torch
@pytest.mark.slow
def test_a_run_made_anew_is_the_kept_one():
    """Up to the first fault within a thousandth: another processor sums in another order. After a fault such
    differences grow, so there it is the labels that must agree."""
    pytest.importorskip("torch")
    from tests.lab.loss_runs.corpus import make_run
    from tests.lab.loss_runs.recipes import RECIPES

    name = "absolute-rollback"
    recipe = next(one for one in RECIPES if one.name == name)
    lines, found = make_run(recipe)
    kept = rows_of(name)
    assert [line["step"] for line in lines] == [int(row["step"]) for row in kept]
    for line, row in zip(lines[:300], kept, strict=False):
        assert line["loss"] == pytest.approx(float(row["loss"]), rel=2e-3)
    assert [event["kind"] for event in found.events] == [event["kind"] for event in RUNS[name]["events"]]
    for event, old in zip(found.events, RUNS[name]["events"], strict=True):
        assert event["start"] == pytest.approx(old["start"], abs=2)


@pytest.mark.torch
def test_a_fault_that_changes_nothing_leaves_no_label_and_a_real_one_does():
    pytest.importorskip("torch")
    from tests.lab.loss_runs.corpus import make_run
    from tests.lab.loss_runs.training import Fault, Recipe

    faults = (Fault("rate", 120, 3, 1.0, 60), Fault("weights_noise", 220, 0, 2.0, 60))
    shape = {"size": 64, "tail": 8.0}
    recipe = Recipe("tiny", "tune", "a fault that is none", "regression", 900, 300, 2e-3, faults, shape)
    _, found = make_run(recipe)
    assert found.unmarked == ["rate"]
    assert [(event["kind"], event["start"]) for event in found.events] in (
        [("spike", 221)],
        [("divergence", 221)],
    )
    assert found.ignore[0][0] == 121


def branches(
    faulty: list[float], cause: str = "weights_noise", rows: int = 0, grad: list[float] | None = None
):
    """A loss of 2 with a little noise, its twins, and a fault after 100 rows."""
    from tests.lab.loss_runs.labels import Branches
    from tests.lab.loss_runs.training import Fault, Recipe

    def noise(at: int) -> float:
        return 0.01 * math.sin(at * at)

    count = len(faulty)
    before = [{"step": at + 1, "loss": 2 + noise(at), "grad_norm": 1 + noise(at)} for at in range(100)]
    later = [{"step": at + 101, "loss": 2 + noise(at), "grad_norm": 1 + noise(at)} for at in range(count)]
    other = [{**line, "loss": 2 + noise(at + 7)} for at, line in enumerate(later)]
    bad = [
        {**line, "loss": line["loss"] + more, "grad_norm": grad[at] if grad else 1.0}
        for at, (line, more) in enumerate(zip(later, faulty, strict=True))
    ]
    recipe = Recipe("made", "tune", "by hand", "factors", 1, 100 + count, 1e-3)
    return Branches(recipe, Fault(cause, 100, rows), before[:8], before, bad, later, other)


def labelled(*arguments, **more):
    from tests.lab.loss_runs.labels import Labels, label_fault

    found = Labels()
    label_fault(branches(*arguments, **more), found)
    return found


@pytest.mark.torch
def test_kinds_follow_the_definitions():
    pytest.importorskip("torch")
    calm = [0.0] * 200

    def kinds(faulty: list[float], **more):
        return [(event["kind"], event["start"], event["end"]) for event in labelled(faulty, **more).events]

    assert kinds(calm) == []
    assert kinds([0.1] * 200) == [], "five per cent is no event"
    assert kinds([1.0] * 10 + calm) == [("spike", 101, 110)]
    assert kinds([1.0] * 120 + calm) == [("level_shift", 101, 220)]
    assert kinds([0.2 + at / 50 for at in range(200)]) == [("divergence", 101, 300)]
    bump = [0.11 + 0.9 * math.sin(at / 40 * math.pi) for at in range(40)]
    assert kinds(bump + calm) == [("slow_bump", 101, 140)]
    burst = [1.0, 60.0, 1.0] + [1.0] * 197
    assert kinds(calm, grad=burst) == [("grad_burst", 102, 102)]
    assert kinds([math.nan, *calm]) == [("nan", 101, 101)]


@pytest.mark.torch
def test_one_row_out_without_its_gradient_is_a_nuisance_and_with_it_a_spike():
    pytest.importorskip("torch")
    one = [0.0, 1.0] + [0.0] * 100
    alone = labelled(one)
    assert (alone.events, alone.isolated) == ([], [102])
    steep = labelled(one, grad=[1.0, 20.0] + [1.0] * 100)
    assert [(event["kind"], event["start"]) for event in steep.events] == [("spike", 102)]
