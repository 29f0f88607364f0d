"""Makes runs, and keeps them: one CSV a run and labels.yaml, as readers of labelled runs expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.lab.loss_runs import faults, labels
from tests.lab.loss_runs.training import Line, Recipe, Run

#: Significant digits of what is written, where the recipe says nothing else.
DIGITS = 5
COMMAND = "python -m tests.lab.loss_runs"


def rounded(name: str, value: float, how: Mapping[str, str]) -> float:
    """As the run logs it: 5 significant digits, 'bf16', or 'd2' for two decimals."""
    if not math.isfinite(value) or name == "loss_scale":
        return value
    rule = how.get(name, "")
    if rule == "bf16":
        value = float(torch.tensor(value).bfloat16())
    elif rule.startswith("d"):
        return round(value, int(rule[1:]))
    return float(f"{value:.{DIGITS - (name != 'loss')}g}")


def make_run(recipe: Recipe) -> tuple[list[Line], labels.Labels]:
    """Trains the recipe and its twins; its rows as logged, and their labels."""
    torch.set_num_threads(1)
    run, found = Run(recipe), labels.Labels()
    lines: list[Line] = []

    def rows(count: int) -> list[Line]:
        kept = run.train(count) if count > 0 else []
        return [
            {name: rounded(name, value, recipe.rounding) for name, value in line.items()} for line in kept
        ]

    lines += rows(early := max(recipe.rows // 12, 10))
    run.early_weights.copy_(run.weights)
    done, kept = early, run.kept()
    ends = [*(fault.at for fault in recipe.faults), recipe.rows][1:]
    for fault, end in zip(recipe.faults, ends, strict=True):
        if fault.at < done or end < fault.at + fault.rows:
            raise ValueError(
                f"{recipe.name}: the fault at row {fault.at} begins before {done} or ends after {end}"
            )
        lines += rows(fault.at - done)
        if fault.cause == "rollback":
            run.take_up(kept)
            run.counts["order"] += 1
            lines += rows(end - fault.at)
            done = end
            continue
        kept = run.kept()
        span = min(end - fault.at, max(fault.watch, fault.rows + 60))
        twin = other = []
        if fault.cause != "slow":
            twin = rows(span)
            run.take_up(kept)
            run.counts["order"] += 1
            other = rows(min(span, 150))
            run.take_up(kept)
        faults.begin(run, fault)
        faulty = rows(min(fault.rows or span, span))
        if fault.rows:
            faults.end(run, fault)
        faulty += rows(span - len(faulty))
        if fault.cause == "slow":
            twin = other = faulty
        labels.label_fault(labels.Branches(recipe, fault, lines[:8], lines, faulty, twin, other), found)
        lines += faulty
        done = fault.at + span
    lines += rows(recipe.rows - done)
    labels.label_rest(lines, warm_up_rows(recipe), found)
    return lines, found


def warm_up_rows(recipe: Recipe) -> int:
    rows = next(row for row in range(1, recipe.rows) if recipe.steps_at(row) >= recipe.warm_up)
    return max(30, rows)


def entry(recipe: Recipe, found: labels.Labels) -> dict[str, Any]:
    causes = ", ".join(f"{fault.cause} at row {fault.at}" for fault in recipe.faults) or "none"
    return {
        "set": recipe.set,
        "about": recipe.about,
        "made_by": f"{COMMAND} make --set {recipe.set} --only {recipe.name} (seed {recipe.seed})",
        "causes": causes,
        "left_no_mark": found.unmarked,
        "warm_up": warm_up_rows(recipe),
        "events": found.events,
        "ignore": found.ignore,
        "isolated": found.isolated,
    }


def write_csv(path: Path, recipe: Recipe, lines: list[Line]) -> None:
    names = ["step", *recipe.columns]
    shown = [",".join(names)]
    for line in lines:
        shown.append(",".join(_cell(line.get(name)) for name in names))
    _put(path, shown)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.9g}"


def read_labels(folder: Path) -> dict[str, Any]:
    path = folder / "labels.yaml"
    return yaml.safe_load(path.read_text())["runs"] if path.is_file() else {}


def write_labels(folder: Path, runs: Mapping[str, Any]) -> None:
    """One run after the other, an event a line."""
    shown = ["# Made by `python -m tests.lab.loss_runs make`: see README.md. Not edited by hand.", "runs:"]
    for name in sorted(runs):
        shown.append(f"  {name}:")
        for key, value in runs[name].items():
            if key == "events" and value:
                shown.append("    events:")
                shown += ["    - " + _flow(event) for event in value]
            else:
                shown.append(f"    {key}: {_flow(value)}")
    _put(folder / "labels.yaml", shown)


def _put(path: Path, shown: list[str]) -> None:
    """All at once: others may be reading the folder."""
    half = path.with_suffix(".part")
    half.write_text("\n".join(shown) + "\n")
    half.replace(path)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()
    return text.removesuffix("...").strip()
