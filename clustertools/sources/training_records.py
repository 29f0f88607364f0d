"""Training metrics that loggers write as records of keys and values: JSON Lines, CSV and its like."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from clustertools.sources.training_formats import Memory, Records, json_object
from clustertools.sources.training_names import canonical_rank, with_step_seconds
from clustertools.sources.training_values import (
    CANONICAL_NAMES,
    Line,
    Point,
    canonical,
    integer,
    number,
    time_of,
)

#: Where the step is, surest first: W&B's own `_step` counts calls of its logger, not steps.
_STEP_KEYS = (
    "global_step train/global_step trainer/global_step step num_updates iteration iter current_steps "
    "global_steps train/step train_step trainer/step optimizer_step opt_step steps training_step global_iter "
    "n_iter it train_iter iterations update updates cur_step _step"
).split()
#: Where there is no step: what else a run counts with.
_AXIS_KEYS = (
    "consumed_samples consumed_tokens tokens_seen num_tokens total_tokens num_input_tokens_seen samples_seen "
    "examples_seen num_samples tokens samples"
).split()
_TOTAL_KEYS = "total_steps max_steps max_iters num_training_steps train_iters num_steps".split()
_TIME_KEYS = "_timestamp timestamp @timestamp time wall_time ts datetime created_at asctime".split()
#: Seconds since the run began.
_CLOCK_KEYS = "_runtime runtime relative_time elapsed_time elapsed time wall_time seconds_elapsed".split()
_TEXT_KEYS = ("log", "message", "msg")
_RESERVED = frozenset((*_STEP_KEYS, *_TOTAL_KEYS, *_TIME_KEYS, "rank", "global_rank", "_runtime"))
#: Rises in a row that make a column a clock: a duration of a step does not rise so often.
_CLOCK_RISES = 16


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
def _layout(keys: _Keys) -> tuple[_Keys, _Keys, _Keys, _Keys, _Keys, tuple[tuple[str, str], ...]]:
    """Which keys of a record may hold the step, the total, the time, a clock, the rank; the metrics' names.

    A logger's records have few different sets of keys, so this is worked out once for each. Of several
    spellings of a metric the surest comes first.
    """
    low = {k.lower().replace(" ", "_"): k for k in keys}
    kinds = (_STEP_KEYS, _TOTAL_KEYS, _TIME_KEYS, _CLOCK_KEYS, ("rank", "global_rank"))
    steps, totals, times, clocks, ranks = (tuple(low[k] for k in kind if k in low) for kind in kinds)
    if not steps:
        steps = tuple(low[k] for k in _AXIS_KEYS if k in low)[:1]
    named = [(k, *canonical_rank(k)) for k in keys if k.lower().replace(" ", "_") not in _RESERVED]
    ordered = sorted(named, key=lambda entry: entry[2])
    metrics = tuple((k, name) for k, name, _ in ordered if name)
    if "data_time" in low and "time" in low:
        # mmengine, detectron2: the time of a step and of its data
        times, clocks = tuple(t for t in times if t != low["time"]), ()
        metrics += ((low["time"], "step_seconds"),)
    return steps, totals, times, clocks, ranks, metrics


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def mapping_point(data: Mapping[str, Any], line: Line, memory: Memory) -> Point | None:
    """A point of any logger's key and value record; None when no number in it is a metric of a step.

    A loss or grad norm that is null where it was a number before is told as missing. A record that tells no
    step has to have a loss, else it is one of something else.
    """
    flat = _flat(data) if any(isinstance(v, dict) for v in data.values()) else data
    steps, totals, times, clocks, ranks, metrics = _layout(tuple(flat))
    step, key = None, ""
    for key in steps:
        if (step := integer(flat[key])) is not None:
            break
    total = next((s for k in totals if (s := integer(flat[k])) is not None), None)
    when = next((t for k in times if (t := _moment(flat[k])) is not None), None)
    rank = next((r for k in ranks if (r := integer(flat[k])) is not None), None)
    values: dict[str, float] = {}
    missing: tuple[str, ...] = ()
    for name_there, name in metrics:
        cell = flat[name_there]
        if isinstance(cell, str):
            cell = number(cell)
        if isinstance(cell, (int, float)) and not isinstance(cell, bool):
            values.setdefault(name, _float(cell))
        elif cell is None and flat[name_there] is None and name in memory.seen:
            missing += (name,)
    missing = tuple(n for n in missing if n not in values)
    if not (values or missing):
        return None
    if step is None and not ("loss" in values or ("eval_loss" in values and "epoch" in values)):
        return None
    if step is not None and key == "_step" and "loss" not in values and memory.step_key not in ("", "_step"):
        step = None  # an evaluation of a run whose steps are told under another name: `_step` is no step
        if not values.keys() & {"eval_loss"}:
            return None
    elif step is not None and memory.step_key != key and "loss" in values:
        memory.step_key = key
    if when is None and clocks:
        when = _clock(flat, clocks, memory)
    if "throughput" in values and "current_steps" in flat:
        values["throughput_tokens_per_second"] = values.pop("throughput")  # LLaMA-Factory counts tokens
    memory.seen = [n for n in ("loss", "grad_norm") if n in values or n in memory.seen]
    return Point(
        step, when if when is not None else line.time, with_step_seconds(values),
        rank if rank is not None else line.rank, total, missing, line.offset_bytes,
    )  # fmt: skip


def _moment(cell: Any) -> float | None:
    """`time_of` a cell, which in CSV is a number as text."""
    return time_of(value if isinstance(cell, str) and (value := number(cell)) is not None else cell)


def _clock(flat: Mapping[str, Any], clocks: _Keys, memory: Memory) -> float | None:
    """Seconds since the start; of a name that may as well be a duration only once it rose again and again."""
    for key in clocks:
        value = flat[key]
        value = number(value) if isinstance(value, str) else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            continue
        if key == "_runtime":
            return float(value)
        last, rises = memory.clock or (value, 0)
        memory.clock = [float(value), min(_CLOCK_RISES, rises + 1) if value > last else 0]
        return float(value) if memory.clock[1] >= _CLOCK_RISES else None
    return None


# , nan   : -nan(ind)   [inf   : None   : 1.#QNAN   as values that are no JSON
_NO_JSON = re.compile(
    r"(?<=[:,\[])\s{0,8}"
    r"([-+]?(?:nan(?:\([a-z]{1,5}\))?|inf(?:inity)?|1\.\#(?:q|s)?(?:nan|ind|inf)\d{0,6})|None|True|False)"
    r"(?=\s{0,8}[,\]}])",
    re.IGNORECASE,
)


#: No record that is worth mending is longer.
_MENDED_CAP = 1 << 16


def json_value(text: str) -> Any:
    """The value of a JSON text, also of one with bare numbers that JSON cannot say; None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    mended = _NO_JSON.sub(lambda m: " null" if m[1].lower() == "none" else f' "{m[1]}"', text)
    if mended == text:
        return None
    try:
        return json.loads(mended)
    except (ValueError, RecursionError):
        return None


def _json_object(text: str, memory: Memory) -> dict[str, Any] | None:
    """The object of a line; of a line that begins with half of another one, the whole object after it."""
    data = json_object(text)
    if data is not None:
        return data
    if len(text) > _MENDED_CAP:
        memory.unread += text.startswith('{"')
        return None
    mended = json_value(text)
    if isinstance(mended, dict):
        return mended
    memory.unread += text.startswith('{"')
    place = 0
    for _ in range(4):
        place = text.find('{"', place + 1)
        if place < 0:
            return None
        if isinstance(rest := json_value(text[place:]), dict):
            return rest
    return None


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
    data = _json_object(text, memory)
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


_HEADER_CAP = 1 << 16
_STEP_COLUMNS = {*_STEP_KEYS, *_AXIS_KEYS, "epoch"}


def csv_header(text: str) -> tuple[list[str], str]:
    """The columns and what parts them, when a first line is a header that names a step and another metric.

    Parted by commas, tabs or semicolons. Of a W&B export ("run - train/loss") the run's name is left out, and
    the columns `__MIN` and `__MAX` and those of further runs are "".
    """
    best: list[str] = []
    parted = ","
    for separator in ",\t;":
        columns = _cells(text, separator)
        if len(columns) > len(best):
            best, parted = columns, separator
    names = [c.strip().strip("\"'").lstrip("#").strip() for c in best]
    if len(names) < 2 or any(len(c) > 300 or "=" in c or "{" in c or number(c) is not None for c in names):
        return [], ","
    if any(" - " in c for c in names):
        names = _wandb_columns(names)
    if [c.lower() for c in names] == ["wall time", "step", "value"]:
        return names, parted
    low = {c.lower().replace(" ", "_") for c in names}
    if not low & _STEP_COLUMNS:
        return [], ","
    known = CANONICAL_NAMES - {"epoch", "tokens", "samples"}
    metric = any("loss" in n for n in low) or any(canonical(c) in known for c in names)
    return (names, parted) if metric else ([], ",")


def _wandb_columns(names: list[str]) -> list[str]:
    """Names without their run; the first run of a metric is read, what follows of it is not."""
    seen: set[str] = set()
    found: list[str] = []
    for name in names:
        _run, dash, metric = name.rpartition(" - ")
        if metric.endswith(("__MIN", "__MAX")) or (dash and metric in seen):
            metric = ""
        seen.add(metric)
        found.append(metric)
    return found


def _cells(text: str, separator: str) -> list[str]:
    """The cells of a line; quotes are read only where there are some."""
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator), [])
    except csv.Error:
        return []


@functools.lru_cache(maxsize=64)
def _plan(columns: _Keys) -> tuple[int, int, tuple[tuple[int, str], ...]] | None:
    """Places of the step, of the time, of the metrics, when a row can be read without looking at its keys."""
    keys = tuple(c for c in columns if c)
    steps, totals, times, clocks, ranks, metrics = _layout(keys)
    names = [name for _, name in metrics]
    plain = len(set(names)) == len(names) and not {"step_milliseconds", "steps_per_second"} & set(names)
    if (
        len(steps) != 1
        or totals
        or ranks
        or clocks
        or len(times) > 1
        or not plain
        or len(set(keys)) < len(keys)
    ):
        return None
    if steps[0].lower() == "_step":
        return None
    place = {name: i for i, name in enumerate(columns)}
    order = sorted((place[key], name) for key, name in metrics)
    return place[steps[0]], place[times[0]] if times else -1, tuple(order)


def csv_row(line: Line, memory: Memory) -> Records:
    """A row of metrics.csv (Lightning's CSVLogger) or its like; blank cells are values not recorded."""
    columns, text = memory.columns, line.text
    cells = _cells(text, memory.separator)
    if len(cells) != len(columns):
        return _no_row(text, memory)
    plan = _plan(tuple(columns)) if len(columns) < 512 else None
    if plan is not None and '"' not in text and (point := _plain_row(cells, plan, line)) is not None:
        return [point]
    cells = [c.strip().strip("\"'") for c in cells]
    if memory.separator == ";":
        cells = [c.replace(",", ".") if c.count(",") == 1 else c for c in cells]  # a decimal comma
    row = {k: v for k, v in zip(columns, cells, strict=True) if v and k}
    point = mapping_point(row, line, memory)
    if point is None and (epoch := number(row.get("epoch", ""))) is not None and len(row) > 1:
        values = {canonical(k): value for k, v in row.items() if (value := number(v)) is not None}
        point = Point(None, line.time, {**values, "epoch": epoch}, offset_bytes=line.offset_bytes)
    if point is None:
        plain = all(number(v) is not None for v in row.values())
        return [] if plain else _no_row(text, memory)
    return [point]


def _no_row(text: str, memory: Memory) -> Records:
    """A line that does not fit: another header, as a restart of the run appends it, or a damaged row."""
    if not take_header(text[:_HEADER_CAP], memory):
        memory.unread += bool(text.strip())
    return []


def take_header(text: str, memory: Memory) -> bool:
    """Whether a line is a header; then the lines after it are read by it."""
    columns, separator = csv_header(text)
    if not columns:
        return False
    if len(columns) == 3 and columns[2].lower() == "value":
        columns[2] = memory.series or "loss"  # TensorBoard's export names only steps and times
    memory.columns, memory.separator = columns, separator
    return True


def _plain_row(
    cells: list[str], plan: tuple[int, int, tuple[tuple[int, str], ...]], line: Line
) -> Point | None:
    """The point of a row of plain numbers; None when any cell needs a closer look."""
    step_place, time_place, metrics = plan
    try:
        step = int(cells[step_place])
        values = {name: float(cell) for place, name in metrics if (cell := cells[place])}
    except ValueError:
        return None
    if not values:
        return None
    when = _moment(cells[time_place]) if time_place >= 0 else None
    return Point(step, when, values, None, None, (), line.offset_bytes)
