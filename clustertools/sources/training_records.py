"""Training metrics that loggers write as records of keys and values: JSON Lines and CSV."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from clustertools.sources.training_formats import Memory, Records, json_object, named, point_at
from clustertools.sources.training_values import Line, Point, canonical, integer, number, time_of

_STEP_KEYS = (
    "step global_step _step num_updates iteration iter current_steps train/global_step trainer/global_step "
    "steps training_step global_iter n_iter it update"
).split()
_TOTAL_KEYS = "total_steps max_steps max_iters num_training_steps train_iters num_steps".split()
_TIME_KEYS = "_timestamp timestamp @timestamp time wall_time ts datetime created_at asctime".split()
_TEXT_KEYS = ("log", "message", "msg")
_RESERVED = frozenset((*_STEP_KEYS, *_TOTAL_KEYS, *_TIME_KEYS, "rank", "global_rank", "_runtime"))


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """One level of nesting taken out: {"step": 1, "train": {"loss": 2}} gives step and train/loss."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update({f"{key}/{inner}": v for inner, v in value.items()})
        else:
            flat[str(key)] = value
    return flat


_Keys = tuple[str, ...]


@functools.lru_cache(maxsize=512)
def _layout(keys: _Keys) -> tuple[_Keys, _Keys, _Keys, _Keys, tuple[tuple[str, str], ...]]:
    """Which keys of a record may hold the step, the total, the time, the rank; the metrics and their names.

    A logger's records have few different sets of keys, so this is worked out once for each.
    """
    low = {k.lower(): k for k in keys}
    kinds = (_STEP_KEYS, _TOTAL_KEYS, _TIME_KEYS, ("rank", "global_rank"))
    steps, totals, times, ranks = (tuple(low[k] for k in kind if k in low) for kind in kinds)
    metrics = tuple((k, name) for k in keys if k.lower() not in _RESERVED and (name := canonical(k)))
    return steps, totals, times, ranks, metrics


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def mapping_point(data: Mapping[str, Any], line: Line, memory: Memory) -> Point | None:
    """A point of any logger's key and value record; None when it has no step or no number besides.

    A loss or grad norm that is null where it was a number before is told as missing.
    """
    flat = _flat(data) if any(isinstance(v, dict) for v in data.values()) else data
    steps, totals, times, ranks, metrics = _layout(tuple(flat))
    step = next((s for k in steps if (s := integer(flat[k])) is not None), None)
    total = next((s for k in totals if (s := integer(flat[k])) is not None), None)
    when = next((t for k in times if (t := time_of(flat[k])) is not None), None)
    rank = next((r for k in ranks if (r := integer(flat[k])) is not None), None)
    values: dict[str, float] = {}
    missing: tuple[str, ...] = ()
    for key, name in metrics:
        cell = flat[key]
        if isinstance(cell, str):
            cell = number(cell)
        if isinstance(cell, (int, float)) and not isinstance(cell, bool):
            values.setdefault(name, _float(cell))
        elif cell is None and flat[key] is None and name in memory.seen:
            missing += (name,)
    missing = tuple(n for n in missing if n not in values)
    if step is None or not (values or missing):
        return None
    if "throughput" in values and "current_steps" in flat:
        values["throughput_tokens_per_second"] = values.pop("throughput")  # LLaMA-Factory counts tokens
    memory.seen = [n for n in ("loss", "grad_norm") if n in values or n in memory.seen]
    return Point(
        step, when if when is not None else line.time, values,
        rank if rank is not None else line.rank, total, missing, line.offset_bytes,
    )  # fmt: skip


def json_lines(line: Line, memory: Memory) -> tuple[str, Records | Line] | None:
    """One JSON object a line: LLaMA-Factory's trainer_log.jsonl, and any logger's with the usual names.

    Gives the format and the records; or an inner `Line`, when the object only wraps a line of text as
    container runtimes do.
    """
    text = line.text.strip()
    if not text.startswith("{"):
        start = text.find("{", 0, 200)
        if start < 0 or not text.endswith("}"):
            return None
        text = text[start:]
    data = json_object(text)
    if data is None:
        return None
    point = mapping_point(data, line, memory)
    if point is not None:
        return ("llamafactory" if "current_steps" in data else "jsonl"), [point]
    for key in _TEXT_KEYS:
        if isinstance(inner := data.get(key), str) and inner:
            wrapped = Line.of(inner.rstrip("\r\n"), line.offset_bytes)
            when = next((t for k in _TIME_KEYS if (t := time_of(data.get(k))) is not None), None)
            wrapped.time = when if when is not None else wrapped.time
            wrapped.rank = wrapped.rank if wrapped.rank is not None else line.rank
            return "", wrapped
    return "", []


def csv_header(text: str) -> list[str]:
    """The columns, when a first line is a header that names a step and another metric; else none."""
    columns = [c.strip().strip('"') for c in text.split(",")]
    names = {c.lower() for c in columns}
    if len(columns) < 2 or not names & {*_STEP_KEYS, "epoch"}:
        return []
    if any(len(c) > 200 or "=" in c or "{" in c or number(c) is not None for c in columns):
        return []
    known = {"eval_loss", "grad_norm", "learning_rate"}
    metric = any("loss" in n for n in names) or any(canonical(c) in known for c in columns)
    return columns if metric else []


def csv_row(line: Line, memory: Memory) -> Records:
    """A row of metrics.csv (Lightning's CSVLogger) or its like; blank cells are values not recorded."""
    cells = [c.strip().strip('"') for c in line.text.split(",")]
    if len(cells) != len(memory.columns):
        return []
    row = {k: v for k, v in zip(memory.columns, cells, strict=True) if v}
    point = mapping_point(row, line, memory)
    if point is None and (epoch := number(row.get("epoch", ""))) is not None and len(row) > 1:
        point = point_at(line, None, {**named(row.items()), "epoch": epoch})
    return [point] if point else []
