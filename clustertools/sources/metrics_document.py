"""Metrics in a JSON document: `trainer_state.json`, records in an array, an object of arrays, golden values.

Records in an array are read as a stream, whatever their size (`ArrayReader`). The shape of another document
is known only when all of it is read, so it has to fit into memory (`document_points`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clustertools.sources.training_formats import Memory
from clustertools.sources.training_records import json_value, mapping_point
from clustertools.sources.training_values import (
    CANONICAL_NAMES,
    Line,
    Point,
    canonical,
    integer,
    number,
    time_of,
)

#: A longer element of an array is no record of numbers.
_ELEMENT_CAP = 1 << 20
_STEP_NAMES = "step steps global_step iteration iterations iter _step x epoch epochs".split()
_GAP = re.compile(r"[\s,]*")
_BRACKET = re.compile(r"[][{}\"\\]")
_END_OF_SCALAR = re.compile(r"[,\]\n]")
_DECODER = json.JSONDecoder()


class ArrayReader:
    """The elements of a JSON array, out of its text in pieces: `[{...}, {...}]` in flat memory.

    `unread` counts elements that are no JSON, and one that is cut off at the end.
    """

    def __init__(self) -> None:
        self.unread = 0
        self._text = ""
        self._begun = self._ended = False

    def feed(self, piece: str) -> Iterator[Any]:
        """The elements that `piece` completes; what is before the first bracket is passed over."""
        text = self._text + piece
        place = 0
        if not self._begun:
            place = text.find("[") + 1
            self._begun = place > 0
        while self._begun and not self._ended:
            place = _GAP.match(text, place).end()  # type: ignore[union-attr]
            if place >= len(text):
                break
            if text[place] == "]":
                self._ended = True
                break
            try:
                value, end = _DECODER.raw_decode(text, place)
            except (ValueError, RecursionError):
                found = _end_of(text, place)
                if found is None and len(text) - place <= _ELEMENT_CAP:
                    break
                end = found or (text.find("\n", place) + 1) or len(text)
                value = json_value(text[place:end]) if found else None
                if value is None:
                    self.unread += 1
                    place = end
                    continue
            if end == len(text) and not isinstance(value, (dict, list)):
                break  # a number may go on in the next piece
            place = end
            yield value
        self._text = "" if self._ended else text[place:]

    def close(self) -> None:
        """No more text comes."""
        self.unread += bool(self._text.strip(" \t\r\n,"))


def _end_of(text: str, place: int) -> int | None:
    """Where the element at `place` ends; None when that is not in `text`."""
    if text[place] not in '{["':
        match = _END_OF_SCALAR.search(text, place)
        return max(match.start(), place + 1) if match else None
    depth, in_string = 0, False
    at = place
    while match := _BRACKET.search(text, at):
        sign, at = match[0], match.end()
        if sign == "\\":
            at += 1
        elif sign == '"':
            in_string = not in_string
        elif not in_string:
            depth += 1 if sign in "{[" else -1
        if depth <= 0 and not in_string:
            return at
    return None


class Records:
    """Points out of the elements of an array: objects, or TensorBoard's `[wall time, step, value]`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.unread = 0
        self._memory = Memory()
        self._index = -1

    def point(self, element: Any, total: int | None = None) -> Point | None:
        """The point of the next element, or None; `unread` counts those that are no record at all."""
        self._index += 1
        if isinstance(element, dict):
            if "train_runtime" in element:
                return None  # the summary of the run
            found = mapping_point(element, Line(""), self._memory)
            if found is not None and total:
                return Point(found.step, found.time, found.values, found.rank, total, found.missing)
            return found
        numbers = [_number(cell) for cell in element] if isinstance(element, list) else [_number(element)]
        if len(numbers) == 3 and None not in numbers and (step := integer(numbers[1])) is not None:
            return Point(step, time_of(numbers[0]), {self.name: numbers[2] or 0.0})
        if len(numbers) == 2 and None not in numbers and (step := integer(numbers[0])) is not None:
            return Point(step, None, {self.name: numbers[1] or 0.0})
        if len(numbers) == 1 and numbers[0] is not None:
            return Point(self._index, None, {self.name: numbers[0]})
        self.unread += 1
        return None


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    if isinstance(cell, str):
        return number(cell)
    try:
        return float(cell) if isinstance(cell, (int, float)) else None
    except OverflowError:
        return float("inf")


def document_shape(data: Any) -> str:
    """The name of the shape of a document whose all is known; empty when there are no metrics in it."""
    if isinstance(data, list):
        return "json array" if data else ""
    if not isinstance(data, dict):
        return ""
    if isinstance(data.get("log_history"), list):
        return "trainer_state"
    if isinstance(data.get("columns"), list) and isinstance(data.get("data"), list):
        return "json table"
    if any(isinstance(v, dict) and isinstance(v.get("values"), (dict, list)) for v in data.values()):
        return "golden values"
    if _arrays(data):
        return "json of arrays"
    if _records_of(data):
        return "json array"
    if _by_step(data) is not None:
        return "json by step"
    return "json record" if mapping_point(data, Line(""), Memory()) else ""


def document_points(data: Any, name: str) -> Iterator[Point | None]:
    """The points of a document, in its order; None for a record that could not be read.

    `name` is what a series is called that says no name of its own.
    """
    shape = document_shape(data)
    if shape == "golden values":
        yield from _golden(data)
    elif shape == "json of arrays":
        yield from _columns(_arrays(data))
    elif shape == "json table":
        columns = [str(c) for c in data["columns"]]
        rows = (row for row in data["data"] if isinstance(row, list))
        yield from _all((dict(zip(columns, row, strict=False)) for row in rows), name)
    elif shape == "json by step":
        yield from _steps(_by_step(data) or {})
    elif shape == "trainer_state":
        total = integer(data.get("max_steps"))
        yield from _all(data["log_history"], name, total if total and total > 0 else None)
    elif shape == "json record":
        yield mapping_point(data, Line(""), Memory())
    else:
        yield from _all(data if isinstance(data, list) else _records_of(data), name)


def _all(elements: Iterable[Any], name: str, total: int | None = None) -> Iterator[Point | None]:
    records = Records(name)
    for element in elements:
        unread = records.unread
        found = records.point(element, total)
        if found is not None or records.unread > unread:
            yield found


def _records_of(data: Mapping[str, Any]) -> list[Any]:
    """The longest list of objects that an object holds: `{"history": [{...}, ...]}`."""
    lists = [v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return max(lists, key=len, default=[])


def _arrays(data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The arrays of numbers of an object, also one level deeper; those of another length are left out."""
    flat: dict[str, list[Any]] = {}
    for key, value in data.items():
        inner = value.items() if isinstance(value, dict) else ()
        for name, cells in ((key, value), *((f"{key}/{k}", v) for k, v in inner)):
            if isinstance(cells, list) and cells and not isinstance(cells[0], dict):
                flat[str(name)] = cells
    lengths = [len(cells) for cells in flat.values()]
    most = max(set(lengths), key=lambda n: (lengths.count(n), n), default=0)
    steps = [n for n in flat if _last_word(n) in _STEP_NAMES]
    length = len(flat[steps[0]]) if steps else most
    return {n: cells for n, cells in flat.items() if len(cells) == length}


def _last_word(name: str) -> str:
    return name.lower().rsplit("/", 1)[-1]


def _columns(arrays: Mapping[str, list[Any]]) -> Iterator[Point | None]:
    """{"step": [...], "loss": [...]}; without steps the place in the array is the step."""
    pairs = {n: cells for n, cells in arrays.items() if isinstance(cells[0], list)}
    if pairs:
        yield from _pairs(pairs)
        return
    named = {_last_word(n): n for n in reversed(list(arrays))}
    step_name = next((named[n] for n in _STEP_NAMES if n in named), None)
    memory = Memory()
    names = [n for n in arrays if n != step_name]
    steps = arrays[step_name] if step_name else None
    for index in range(len(next(iter(arrays.values())))):
        step = integer(steps[index]) if steps is not None else index
        record = {n: arrays[n][index] for n in names}
        if step is None and steps is not None:
            record["epoch"] = steps[index]
        else:
            record["step"] = step
        yield mapping_point(record, Line(""), memory)


def _pairs(arrays: Mapping[str, list[Any]]) -> Iterator[Point | None]:
    """{"loss": [[step, value], ...]}, or with the wall time before the step."""
    series: dict[str, dict[Any, Any]] = {}
    for name, cells in arrays.items():
        records = Records(name)
        points = [p for cell in cells if (p := records.point(cell)) is not None]
        series[name] = {p.step: p.values[name] for p in points}
    yield from _steps(series)


def _by_step(data: Mapping[str, Any]) -> dict[str, dict[Any, Any]] | None:
    """{"loss": {"1": 2.3, ...}}, or {"1": {"loss": 2.3}, ...} turned over; None when it is neither."""
    inner = {str(k): v for k, v in data.items() if isinstance(v, dict) and v}
    if not inner:
        return None
    if all(integer(k) is not None for k in inner):
        turned: dict[str, dict[Any, Any]] = {}
        for step, values in inner.items():
            for name, value in values.items():
                turned.setdefault(str(name), {})[step] = value
        return turned
    series = {k: v for k, v in inner.items() if all(integer(step) is not None for step in v)}
    return series or None


def _golden(data: Mapping[str, Any]) -> Iterator[Point | None]:
    """Megatron-LM's golden values (tests/functional_tests): a series each, of steps that may be apart.

    There the string "nan" says that a step was not recorded.
    """
    series: dict[str, dict[Any, Any]] = {}
    for name, entry in data.items():
        values = entry.get("values") if isinstance(entry, dict) else None
        if isinstance(values, list):
            first = integer(entry.get("start_step")) or 0
            every = integer(entry.get("step_interval")) or 1
            values = {first + every * i: v for i, v in enumerate(values)}
        if isinstance(values, dict):
            series[str(name)] = {k: v for k, v in values.items() if str(v).lower() != "nan"}
    yield from _steps(series)


def _steps(series: Mapping[str, Mapping[Any, Any]]) -> Iterator[Point | None]:
    """Series by their steps put together. {"step": {"0": 100, ...}}, as pandas writes it, tells the steps."""
    axis = next((n for n in series if n.lower() in _STEP_NAMES), None)
    rows: dict[int, dict[str, Any]] = {}
    for name, values in series.items():
        for key, value in values.items():
            step = integer(key)
            if step is not None:
                rows.setdefault(step, {})[name] = value
    memory = Memory()
    for step in sorted(rows):
        record = {"step": step if axis is None else rows[step].pop(axis, None), **rows[step]}
        yield mapping_point(record, Line(""), memory)


def series_name(file_name: str) -> str:
    """What a file with one series without a name holds, by the name TensorBoard gives it; else the loss.

    run-version_0-tag-train_loss.csv is the loss; grad_norm.json the grad norm.
    """
    stem = re.sub(r"\.(?:csv|json|tsv|txt)(?:\.gz|\.bz2|\.xz)?$", "", file_name, flags=re.IGNORECASE)
    name = canonical(stem.rpartition("tag-")[2])
    return name if name and ("tag-" in stem or name in CANONICAL_NAMES) else "loss"
