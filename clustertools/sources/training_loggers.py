"""Metrics in files that are not logs of lines: trainer_state.json, wandb-summary.json, MLflow's metrics.

The first two are written anew as a whole; of MLflow each metric has a file, `metrics/KEY`, of lines
`timestamp value step` (mlflow/store/tracking/file_store.py).
"""

from __future__ import annotations

import dataclasses
import json

from clustertools.errors import Unparsable
from clustertools.sources import training_formats as formats
from clustertools.sources.training_records import mapping_point
from clustertools.sources.training_values import Line, Point, canonical, integer, number, time_of


def read_trainer_state(text: str) -> list[Point]:
    """The points of a Hugging Face `trainer_state.json` (its `log_history`; each entry has its step).

    Raises Unparsable when it is no such file. The last entry, the summary of the run, is not a step.
    """
    try:
        data = json.loads(text)
        history, total = data["log_history"], integer(data.get("max_steps"))
        entries = [entry for entry in history if "train_runtime" not in entry]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("not a trainer_state.json", text[:160]) from exc
    memory = formats.Memory()
    points = [mapping_point(e, Line(""), memory) for e in entries if isinstance(e, dict)]
    return [dataclasses.replace(point, total_steps=total) for point in points if point]


def read_wandb_summary(text: str) -> Point | None:
    """The last values in `wandb/run-*/files/wandb-summary.json`; None when it has no step yet.

    Raises Unparsable. The file is rewritten now and then, so it shows progress and misses short spikes.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unparsable("not a wandb-summary.json", text[:160]) from exc
    if not isinstance(data, dict):
        raise Unparsable("not a wandb-summary.json", text[:160])
    return mapping_point(data, Line(""), formats.Memory())


def read_mlflow(key: str, text: str) -> tuple[list[Point], int]:
    """The points of whole lines of an MLflow metric's file, and how many bytes they are.

    A line that is none is passed over. The timestamp is in milliseconds.
    """
    points: list[Point] = []
    whole = text[: text.rfind("\n") + 1]
    for line in whole.splitlines():
        words = line.split()
        if len(words) != 3:
            continue
        stamp, value, step = number(words[0]), number(words[1]), integer(words[2])
        if step is not None and value is not None:
            points.append(Point(step, time_of(stamp), {canonical(key): value}))
    return points, len(whole.encode())
