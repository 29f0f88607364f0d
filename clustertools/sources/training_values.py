"""What training logs have in common: points, events, metric names, spellings of numbers, line prefixes.

canonical("optim/total_grad_norm")      "grad_norm"
number("2,048"), number("'NaN'")        2048.0, nan
Line.of("[default7]: [2026-01-02 03:04:05.5] iteration ...")   rank 7, time, the rest
"""

from __future__ import annotations

import calendar
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clustertools.sources.training_names import CANONICAL_NAMES, canonical

__all__ = [
    "CANONICAL_NAMES", "NUMBER", "Event", "EventKind", "Line", "Point", "StepsBack", "canonical", "from_json",
    "integer", "number", "time_of", "to_json",
]  # fmt: skip

EventKind = Literal[
    "checkpoint_started", "checkpoint_saved", "evaluation", "resumed", "finished", "restart_marker"
]


@dataclass(frozen=True, slots=True)
class Point:
    """What one record of a log says about one step.

    `values` has canonical names (see `canonical`) and the others under their own, sanitised; a loss that is
    not a number is a float nan. `missing` are values that the records before this one had and this one should
    have too: Megatron-LM leaves the loss out of the line when it is not a number.
    `time` is seconds since 1970 as the log says. A stamp without a zone is read as UTC, so only the
    differences between points of one log mean anything. `offset_bytes`: where the record begins in the file.
    """

    step: int | None
    time: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    total_steps: int | None = None
    missing: tuple[str, ...] = ()
    offset_bytes: int = 0

    @property
    def evaluation(self) -> bool:
        """The result of an evaluation, not of a training step."""
        return "eval_loss" in self.values and "loss" not in self.values

    @property
    def skipped(self) -> int:
        """Iterations of this record that were not trained on, because their gradients overflowed."""
        count = self.values.get("skipped_iterations", 0.0)
        return int(count) if math.isfinite(count) else 0

    @property
    def non_finite(self) -> bool:
        """The loss of this step is nan or infinite, or the log leaves it out because it is.

        The Hugging Face Trainer prints a nan loss as 0.0; then the grad norm beside it is nan. Of iterations
        that were skipped, as in the search for a loss scale, Megatron-LM prints no loss and counts the nans:
        they are in `skipped` and say nothing here.
        """
        loss, grad_norm = self.values.get("loss"), self.values.get("grad_norm", 0.0)
        if loss is not None and (not math.isfinite(loss) or (loss == 0.0 and math.isnan(grad_norm))):
            return True
        if self.skipped:
            return False
        return "loss" in self.missing or self.values.get("nan_iterations", 0.0) > 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something other than numbers. `evaluation` is the start of one; its result is a Point with `eval_loss`.

    `checkpoint_saved` means that the log says so, which in some frameworks is before the bytes are durable.
    `resumed` has the step of the checkpoint when the line tells it; `restart_marker` the first step after.
    """

    kind: EventKind
    step: int | None = None
    text: str = ""
    path: str = ""
    time: float | None = None
    rank: int | None = None
    offset_bytes: int = 0


def to_json(item: Point | Event) -> dict[str, Any]:
    """JSON-ready; numbers that JSON cannot say become the strings "nan", "inf" and "-inf"."""
    if isinstance(item, Event):
        data = {name: getattr(item, name) for name in Event.__slots__}
        return {k: v for k, v in data.items() if v not in (None, "")}
    data = {name: getattr(item, name) for name in Point.__slots__ if name not in ("values", "missing")}
    data = {k: v for k, v in data.items() if v is not None}
    data["values"] = {k: v if math.isfinite(v) else str(v) for k, v in item.values.items()}
    if item.missing:
        data["missing"] = list(item.missing)
    return data


def from_json(data: Mapping[str, Any]) -> Point | Event:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on data of another shape."""
    if "kind" in data:
        return Event(**data)
    rest = {k: v for k, v in data.items() if k not in ("values", "missing", "step")}
    values = {str(k): float(v) for k, v in data["values"].items()}
    return Point(step=data.get("step"), values=values, missing=tuple(data.get("missing", ())), **rest)


#: A number as text: 1.2e-05, 2,048, nan, -inf, and as Windows writes nan. Bounded: no line can make it slow.
NUMBER = (
    r"[-+]?(?:1\.\#(?:QNAN|SNAN|IND|INF)\d{0,6}|(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,30})(?:\.\d{0,30})?"
    r"(?:[eE][-+]?\d{1,3})?|\.\d{1,30}(?:[eE][-+]?\d{1,3})?|[nN][aA][nN](?:\([a-z]{1,5}\))?"
    r"|[iI]nf(?:inity)?|INF(?:INITY)?)"
)
# -nan(ind)   1.#QNAN   -1.#IND00
_NAN = re.compile(r"[-+]?(?:nan\([a-z]{1,5}\)|1\.\#(?:q|s)?(?:nan|ind)\d{0,6})$", re.IGNORECASE)
_INFINITY = re.compile(r"([-+]?)1\.\#inf\d{0,6}$", re.IGNORECASE)


def number(text: str) -> float | None:
    """A number in any spelling of the logs: quoted, with thousands separators, nan, NaN, -nan, inf, Infinity,
    -nan(ind), 1.#QNAN.

    None when it is none; `null` and `None` are none as well: they say "not recorded", not "not a number".
    """
    text = text.strip().strip("\"'")
    try:
        return float(text)
    except ValueError:
        pass
    if "," in text:
        try:
            return float(text.replace(",", ""))
        except ValueError:
            return None
    if _NAN.match(text):
        return math.nan
    infinity = _INFINITY.match(text)
    return float(infinity[1] + "inf") if infinity else None


def integer(value: Any) -> int | None:
    """A whole number in any spelling, else None."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        value = number(value)
    if (
        isinstance(value, (int, float))
        and math.isfinite(value)
        and value == int(value)
        and abs(value) < 2**53
    ):
        return int(value)
    return None


# 2026-01-02T03:04:05.123456789Z   2026-01-02 03:04:05,678   2026-01-02 03:04:05+08:00
_STAMP = (
    r"(?P<date>\d{4}-\d\d-\d\d)[T ](?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)(?:[.,](?P<f>\d{1,9}))?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
# "[default7]:" torchrun, "[rank0]:" torchtitan, "[Rank 0] " DeepSpeed, "[1,0]<stdout>:" mpirun,
# "(main pid=12, ip=10.0.0.1) " Ray, "stdout F " the container runtime interface, "[titan] " or "[INFO]" a tag
_PREFIX = re.compile(
    r"\s*\[?" + _STAMP + r"\]?(?: - \w{1,20}(?: - [A-Z]{4,8})? - | \| | (?=\S)|:|$)?"
    r"|\s*\[(?:default|[rR]ank ?|RANK ?)(?P<rank>\d{1,6})\]:?"
    r"|\s*\[\d{1,6},(?P<mpi>\d{1,6})\]<std(?:out|err)>:"
    r"|\s*\((?:\w{1,60}) pid=\d{1,9}(?:, ip=[\d.]{1,40})?\) ?"
    r"|(?:stdout|stderr) [FP] "
    r"|\s*\[[A-Za-z][\w.:|-]{0,60}\]:?(?=[\s\[\d]|$)"
)
_SRUN = re.compile(r" {0,5}(?P<rank>\d{1,6}): ")
# colours and cursor movements: ESC [ 31 m
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]{0,200}\x07|[@-Z\\-_])")
_PREFIXES_AT_MOST = 8


@functools.lru_cache(maxsize=64)
def _midnight(date: str) -> int | None:
    year, month, day = (int(x) for x in date.split("-"))
    if not (1 <= month <= 12 and 1 <= day <= 31 and year >= 1970):
        return None
    return calendar.timegm((year, month, day, 0, 0, 0))


def _seconds(match: re.Match[str]) -> float | None:
    start = _midnight(match["date"])
    if start is None:
        return None
    moment = start + int(match["h"]) * 3600 + int(match["m"]) * 60 + int(match["s"])
    zone = match["zone"]
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "")
        shift = int(digits[:2]) * 3600 + int(digits[2:]) * 60
        moment += -shift if zone[0] == "+" else shift
    return moment + (float("0." + match["f"]) if match["f"] else 0.0)


_STAMP_ONLY = re.compile(_STAMP)


def time_of(value: Any) -> float | None:
    """A moment from a log record's own field: seconds or milliseconds since 1970, or ISO 8601. Else None.

    Numbers before 2001 are seconds since something else (the start of the run), so they are no moment.
    """
    if isinstance(value, str):
        match = _STAMP_ONLY.match(value.strip())
        return _seconds(match) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if 1e12 <= value < 1e13:
        return value / 1000
    return float(value) if 1e9 <= value < 1e11 else None


@dataclass(slots=True)
class Line:
    """One line without colours and prefixes, and what the prefixes told."""

    text: str
    offset_bytes: int = 0
    rank: int | None = None
    time: float | None = None

    @classmethod
    def of(cls, text: str, offset_bytes: int = 0) -> Line:
        """Take the prefixes of launchers and loggers off. The first rank and the first time count."""
        if "\x1b" in text:
            text = _ANSI.sub("", text)
        line = cls(text, offset_bytes)
        place = 0
        if match := _SRUN.match(text):
            line.rank, place = int(match["rank"]), match.end()
        for _ in range(_PREFIXES_AT_MOST):
            match = _PREFIX.match(text, place)
            if match is None:
                break
            place = match.end()
            if match["date"]:
                line.time = _seconds(match) if line.time is None else line.time
            rank = match["rank"] or match["mpi"]
            if rank and line.rank is None:
                line.rank = int(rank)
        line.text = text[place:]
        return line


class StepsBack:
    """Notices when a run went back to an earlier step: once for a restart, however many ranks print it.

    Each key (a family of lines and a rank, or a tag) counts its own steps back; a restart is news when one
    key has gone back more often than any before it.
    """

    #: Keys that are followed. Ranks beyond it print the same steps as the others.
    KEYS_AT_MOST = 1024

    def __init__(self, keys: Mapping[str, Any] | None = None, count: int = 0) -> None:
        self._keys: dict[str, list[int]] = {k: [int(v[0]), int(v[1])] for k, v in (keys or {}).items()}
        self.count = count

    def previous(self, key: str, step: int) -> int | None:
        """Note `step`; the step before it when this is a restart that is news, else None."""
        known = self._keys.get(key)
        if known is None:
            if len(self._keys) < self.KEYS_AT_MOST:
                self._keys[key] = [step, self.count]
            return None
        before, known[0] = known[0], step
        if step >= before:
            return None
        known[1] += 1
        if known[1] <= self.count:
            return None
        self.count = known[1]
        return before

    def state(self) -> dict[str, Any]:
        """JSON-ready; `StepsBack(**state)` goes on from it."""
        return {"keys": {k: list(v) for k, v in self._keys.items()}, "count": self.count}
