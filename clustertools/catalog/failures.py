"""The lines by which failures show in logs: what each means, root or cascade, and what it advises.

    match("CUDA error: uncorrectable ECC error encountered").name      "GpuMemoryUncorrectable"
    signature("GpuMemoryUncorrectable").advice                         "exclude"

The signatures are in failures.yaml; a site adds its own in /etc/clustertools/failures.d.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clustertools.catalog import packaged_text
from clustertools.errors import ConfigError

#: What a failure means for the next start (watchdog reference, section 5). `same`: start again where it was;
#: `exclude`: without the guilty node; `stop`: a person must mend something first; `wait`: when the resource
#: is back; `none`: says nothing by itself.
Advice = Literal["same", "exclude", "stop", "wait", "none"]
Role = Literal["root", "cascade", "confirmation"]
#: What the fault is in. `user`: code, arguments or configuration of the run. `memory`: the host's ran out.
#: `end`: the scheduler's word on how the job ended. `unclear`: it could be several.
Kind = Literal[
    "collective", "hardware", "network", "host", "memory", "storage", "storage-full", "service", "checkpoint",
    "numeric", "user", "environment", "launcher", "end", "unclear",
]  # fmt: skip

SITE_FOLDER = "/etc/clustertools/failures.d"
#: The path of a line of a node's kernel log, before the node's name.
KERNEL = "kernel log of "


@dataclass(frozen=True, slots=True)
class FailureLine:
    """One line of a log that a signature of the catalogue matches.

    `time` is seconds since 1970 as the line says it (None: it does not), `rank` and `node` whom it is from
    when the line or its file says so, `about` the node that the line itself names as guilty. `order` is its
    place in its file.
    """

    signature: str
    role: Role
    advice: Advice
    text: str
    path: str = ""
    order: int = 0
    time: float | None = None
    rank: int | None = None
    node: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    """One row of the catalogue. `advice` is for the first time; the others are where it differs.

    `early`: before the run's first steps. `again`: the second time in a row; `again_same_node` and
    `again_other_node` where it matters where. `weak`: any other root explains more. `blames`: what is guilty
    is the node that the line comes from, by this much (0 to 1).
    """

    name: str
    pattern: re.Pattern[str]
    role: Role
    advice: Advice
    kind: Kind
    meaning: str
    source: str
    examples: tuple[str, ...]
    unlike: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    early: Advice | None = None
    again: Advice | None = None
    again_same_node: Advice | None = None
    again_other_node: Advice | None = None
    weak: bool = False
    blames: float = 0.0
    origin: str = "clustertools"

    def advice_for(self, *, early: bool, same_node: int, other_node: int) -> Advice:
        """The advice for a failure that ended so many starts before this one, there and elsewhere."""
        if early and self.early is not None:
            return self.early
        if same_node and self.again_same_node is not None:
            return self.again_same_node
        if other_node and self.again_other_node is not None:
            return self.again_other_node
        if same_node + other_node and self.again is not None:
            return self.again
        return self.advice


_FIELDS = frozenset(
    "name pattern role advice kind meaning source examples unlike anchors early again again_same_node "
    "again_other_node weak blames".split()
)


def load(site_folder: str = SITE_FOLDER) -> tuple[Signature, ...]:
    """Every signature, in the order in which they are tried: the site's before ours.

    A site's file has a list `failures` of rows as in failures.yaml; one with the name of ours overrides the
    fields that it gives. Raises ConfigError with every problem at once.
    """
    ours = {str(row.get("name")): row for row in _rows(packaged_text("failures.yaml"), "failures.yaml")}
    site: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for path in sorted(Path(site_folder).glob("*.yaml")):
        try:
            for row in _rows(path.read_text(encoding="utf-8"), str(path)):
                name = str(row.get("name"))
                merged = {**ours.get(name, {}), **row, "origin": str(path)}
                if name in ours:
                    ours[name] = merged
                else:
                    site[name] = merged
        except ConfigError as exc:
            problems += exc.problems
        except (OSError, UnicodeDecodeError) as exc:
            problems.append(f"{path}: {exc}")
    found = []
    for name, row in {**site, **ours}.items():
        try:
            found.append(_signature(row))
        except (KeyError, TypeError, ValueError, re.error) as exc:
            said = f"needs {exc}" if isinstance(exc, KeyError) else str(exc)
            problems.append(f"{row.get('origin', 'failures.yaml')}: failure {name}: {said}")
    if problems:
        raise ConfigError(*problems)
    return tuple(found)


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """Every signature, loaded once."""
    return load()


@functools.cache
def _by_name() -> Mapping[str, Signature]:
    return {s.name: s for s in signatures()}


def signature(name: str) -> Signature | None:
    """The signature called `name`; None when the catalogue has none of that name (any more)."""
    return _by_name().get(name)


@functools.cache
def anchors() -> tuple[str, ...]:
    """Words of which every line that a signature matches has one: a quick look before the patterns.

    There are few: each is looked for in every byte of a log.
    """
    words = {_coarse(word) for s in signatures() for word in s.anchors}
    return tuple(sorted(w for w in words if not any(other != w and other in w for other in words)))


#: Parts that many anchors share and that few lines of a healthy log have.
_COARSE = (
    "rror", "fail", "onnect", " memory", "ignal", "ermi", "ismatch", "code", "handle", "onitor", "corr",
    "bort", " system i", " operatio", "Unable to", " state_di", " of tenso", "Machine ", "_STATUS_", "ernel ",
    "[Errno", "illed", "inimum", "ssert", "cator", "store", "ABLE", "ADDR", "_all", "Exception", "imed out",
    "losed", "file", "ound", "ected ", "not ",
)  # fmt: skip


def _coarse(anchor: str) -> str:
    return next((part for part in _COARSE if part in anchor), anchor)


#: Longer texts are cut: what a signature matches stands near the beginning of its line.
LOOKED_AT = 2000


def match(text: str) -> Signature | None:
    """The first signature whose pattern is found in `text` (a line without prefixes), or None."""
    found = matched(text)
    return found[0] if found else None


def matched(text: str) -> tuple[Signature, re.Match[str]] | None:
    """The first signature that matches, and how."""
    text = text[:LOOKED_AT]
    for row in signatures():
        if any(anchor in text for anchor in row.anchors) and (found := row.pattern.search(text)):
            return row, found
    return None


def _rows(text: str, origin: str) -> Iterator[dict[str, Any]]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # builds plain values only
    try:
        document = loader(text).get_single_data()
    except yaml.YAMLError as exc:
        raise ConfigError(f"{origin}: not YAML: {exc}") from exc
    rows = document.get("failures") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{origin}: expected `failures`, a list of rows with name, pattern, examples...")
    yield from rows


def _signature(row: Mapping[str, Any]) -> Signature:
    """A signature from its row. Raises KeyError, TypeError, ValueError or re.error when the row is wrong."""
    wrong = set(row) - _FIELDS - {"origin"}
    if wrong:
        raise ValueError(
            f"{', '.join(sorted(map(str, wrong)))} is not known; a row has {', '.join(sorted(_FIELDS))}"
        )
    advice = {key: _one_of(row[key], Advice) for key in _FIELDS if key in row and _is_advice(key)}
    made = Signature(
        str(row["name"]), re.compile(row["pattern"]), _one_of(row["role"], Role), advice.pop("advice"),
        _one_of(row["kind"], Kind), str(row["meaning"]), str(row["source"]), _texts(row["examples"]),
        _texts(row.get("unlike", ())), _texts(row["anchors"]), weak=bool(row.get("weak", False)),
        blames=float(row.get("blames", 0.0)), origin=str(row.get("origin", "clustertools")), **advice,
    )  # fmt: skip
    if not (made.name[:1].isupper() and made.name.isalnum()):
        raise ValueError("its name must be CamelCase")
    for text in made.examples:
        if not made.pattern.search(text) or not any(anchor in text for anchor in made.anchors):
            raise ValueError(f"its pattern, or none of its anchors, is in its example {text!r}")
    return made


def _is_advice(key: str) -> bool:
    return key in ("advice", "early") or key.startswith("again")


def _one_of(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise ValueError(f"{value!r} is not one of {', '.join(get_args(kind))}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{value!r} is not a list of texts")
    return tuple(value)
