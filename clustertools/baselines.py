"""What nodes and GPUs reached before, what tests cost, and which parts were bad: a file beside the preflight.

    stored, problem = load(path)                   # a broken file is kept aside and told, never an error
    usual = stored.usual(who)                      # for `performance.assess(baselines=...)`
    save(path, stored.updated(assessment.accepted, who, now))

A value belongs to the hardware (a GPU's UUID, a node's serial number), not to its place, and to the software
it ran with: `who` makes that one text. Two preflights at the same time lose one's additions, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clustertools.budget import ProbeHistory
from clustertools.errors import StoreError
from clustertools.measurement import Figure, Grade
from clustertools.performance import Baselines as UsualOf
from clustertools.performance import Usual
from clustertools.stats import median_and_spread

VERSION = 1
#: Accepted values that are kept of one figure; a change for good has become usual after half as many runs.
VALUES_KEPT = 9
#: 1,000 nodes of 8 GPUs with 10 figures each; beyond, what was not seen for longest is forgotten.
FIGURES_KEPT = 100_000
COSTS_KEPT = 9
OFFENCES_KEPT = 20
PARTS_KEPT = 20_000

#: Whose figure it is: hardware and software in one text; empty: not to be remembered.
Who = Callable[[Figure], str]


@dataclass(frozen=True, slots=True)
class Past:
    """Accepted values, the oldest first, and when the first and the last of them were measured."""

    values: tuple[float, ...]
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Offence:
    """Once that a part was bad."""

    time: float
    node: str
    grade: Grade
    because: str


@dataclass(frozen=True, slots=True)
class Baselines:
    """Everything that one preflight leaves for the next. Frozen: each change gives a new one."""

    past: Mapping[str, Past] = field(default_factory=dict)
    costs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    history: Mapping[str, ProbeHistory] = field(default_factory=dict)
    offences: Mapping[str, tuple[Offence, ...]] = field(default_factory=dict)

    def usual(self, who: Who) -> UsualOf:
        """What each figure was before, as `performance` asks for it."""

        def of(figure: Figure) -> Usual | None:
            past = self.past.get(_key(figure, who))
            if past is None:
                return None
            middle, spread = median_and_spread(past.values)
            since = time.strftime("%Y-%m-%d", time.gmtime(past.first))
            return Usual(middle, len(past.values), spread / middle, since)

        return of

    def updated(self, accepted: Iterable[Figure], who: Who, now: float) -> Baselines:
        """With figures that were found good; what was bad or suspect never becomes usual."""
        past = dict(self.past)
        for figure in accepted:
            key = _key(figure, who)
            if not key or not math.isfinite(figure.value) or figure.value <= 0:
                continue
            before = past.pop(key, None)
            # five digits are more than a measurement has, and a third of the file
            values = (*(before.values if before else ()), float(f"{figure.value:.5g}"))[-VALUES_KEPT:]
            past[key] = Past(values, before.first if before else now, now)
        return replace(self, past=_newest(past, lambda one: one.last, FIGURES_KEPT))

    def with_run(self, probe: str, seconds: float, found_fault: bool) -> Baselines:
        """With one run of a probe: what it cost on all nodes together, and whether it found a fault."""
        costs = {**self.costs, probe: (*self.costs.get(probe, ()), round(seconds, 3))[-COSTS_KEPT:]}
        known = self.history.get(probe, ProbeHistory())
        told = ProbeHistory(known.runs + 1, known.faults + found_fault)
        return replace(self, costs=costs, history={**self.history, probe: told})

    def cost_seconds(self, probe: str) -> float | None:
        """What it is to be budgeted with: the slowest of its last runs but one; None when it never ran."""
        spent = sorted(self.costs.get(probe, ()))
        return spent[-2] if len(spent) > 2 else spent[-1] if spent else None

    def with_offence(self, part: str, offence: Offence) -> Baselines:
        """With one more time that `part` (a GPU's UUID, a serial number) was bad."""
        known = {**self.offences, part: (*self.offences.get(part, ()), offence)[-OFFENCES_KEPT:]}
        return replace(self, offences=_newest(known, lambda all_of_it: all_of_it[-1].time, PARTS_KEPT))

    def reputation(self, part: str) -> str:
        """One sentence on a part that was bad before, wherever it sat then; empty when it never was."""
        known = self.offences.get(part, ())
        if not known:
            return ""
        last = known[-1]
        day = time.strftime("%Y-%m-%d", time.gmtime(last.time))
        nodes = ", ".join(dict.fromkeys(one.node for one in known))
        times = "once" if len(known) == 1 else f"{len(known)} times"
        return f"{part} was bad {times} before, on {nodes}, the last time on {day}: {last.because}"


def _key(figure: Figure, who: Who) -> str:
    owner = who(figure)
    probe, metric, size, variant, count = figure.comparable
    return "|".join((probe, metric, str(size), variant, str(count), owner)) if owner else ""


def _newest(known: dict[str, Any], when: Callable[[Any], float], keep: int) -> dict[str, Any]:
    if len(known) <= keep:
        return known
    return dict(sorted(known.items(), key=lambda item: when(item[1]))[-keep:])


def load(path: str | Path) -> tuple[Baselines, str]:
    """What is stored there, and what is wrong with it (empty: nothing).

    No file is an empty start. One that cannot be understood is renamed, so that nothing is lost and nothing
    is written over, and counts as none; one that cannot be read counts as none as well.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Baselines(), ""
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        if isinstance(exc, OSError):
            return Baselines(), f"{file}: the figures of earlier runs cannot be read: {why}"
        return Baselines(), _kept_aside(file, str(why))
    try:
        return _from_json(json.loads(text)), ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        return Baselines(), _kept_aside(file, str(exc) or type(exc).__name__)


def _kept_aside(file: Path, why: str) -> str:
    told = f"{file}: the figures of earlier runs cannot be understood ({why[:100]}) and do not count"
    for number in range(1, 100):
        aside = file.with_name(f"{file.name}.broken-{number}")
        if aside.exists():
            continue
        try:
            file.rename(aside)
        except OSError as exc:
            return f"{told}; the file could not be kept aside: {exc.strerror}"
        return f"{told}; the file is kept as {aside.name}"
    return f"{told}; too many broken ones are kept there already"


def save(path: str | Path, stored: Baselines) -> None:
    """Write it whole or not at all. Raises StoreError, naming the file."""
    file = Path(path)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as out:
            json.dump(_to_json(stored), out, separators=(",", ":"), allow_nan=False)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
        handle = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as exc:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StoreError(f"{file}: the figures of this run could not be kept: {exc.strerror}") from exc


def _to_json(stored: Baselines) -> dict[str, Any]:
    return {
        "version": VERSION,
        "past": {key: [one.first, one.last, *one.values] for key, one in stored.past.items()},
        "costs": {probe: list(seconds) for probe, seconds in stored.costs.items()},
        "history": {probe: [one.runs, one.faults] for probe, one in stored.history.items()},
        "offences": {
            part: [[one.time, one.node, one.grade.value, one.because] for one in known]
            for part, known in stored.offences.items()
        },
    }


def _from_json(data: Any) -> Baselines:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}, and this program knows {VERSION}")
    past = {}
    for key, (first, last, *values) in data["past"].items():
        numbers = tuple(float(value) for value in values)
        if not numbers or not all(math.isfinite(value) and value > 0 for value in numbers):
            raise ValueError(f"no values of {str(key)[:80]}")
        past[str(key)] = Past(numbers[-VALUES_KEPT:], float(first), float(last))
    return Baselines(
        past,
        {str(probe): tuple(map(float, spent)) for probe, spent in data["costs"].items()},
        {
            str(probe): ProbeHistory(int(runs), int(faults))
            for probe, (runs, faults) in data["history"].items()
        },
        {
            str(part): tuple(
                Offence(float(at), str(node), Grade(grade), str(because))
                for at, node, grade, because in known
            )
            for part, known in data["offences"].items()
        },
    )


def owner_of(parts: Mapping[tuple[str, str], str], kinds: Mapping[str, str]) -> Who:
    """A `who` from serial numbers: `parts` by (node, part), part empty for the node itself; `kinds` by node.

    A kind is what else must be the same for two runs to be compared: model of the GPU, driver, versions of
    PyTorch and NCCL. A part without a known identity goes by its node's, a node by its name. What more than
    one node took part in is nobody's own.
    """

    def who(figure: Figure) -> str:
        if len(figure.nodes) != 1:
            return ""
        node = figure.nodes[0]
        own = parts.get((node, figure.part)) if figure.part else None
        if own is None:
            own = parts.get((node, ""), node) + (f"/{figure.part}" if figure.part else "")
        return f"{own}|{kinds.get(node, '')}"

    return who
