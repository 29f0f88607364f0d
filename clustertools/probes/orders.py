"""What the head orders and what a node answers: the lines of the conversation, read and written. Pure.

An order is one JSON object a line. `groups` (of a collective) or `nodes` (of all else) say whom it is for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.measurement import Ending
from clustertools.text import plain

#: No probe may sit on a node for longer.
TIMEOUT_LIMIT_SECONDS = 3600.0
#: What is kept of the words of an answer; the figures are numbers that we made ourselves.
EVIDENCE_LINES = 20
FIGURES_LIMIT = 20_000
#: One number of more than this is a mistake, and a tensor of that size would not fit anywhere.
SIZE_LIMIT_BYTES = 1 << 40
#: The head's word for the libraries' settings; nothing else of an environment may come over the wire.
_ENVIRONMENT = re.compile(r"(?:NCCL|TORCH_NCCL|GLOO|UCX|FI|RDMAV|IBV)_[A-Z0-9_]{1,60}")


class BadOrder(ValueError):
    """An order that cannot be carried out as it is written; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Order:
    """One order as far as it concerns this node. `nodes` are those of this node's own group."""

    id: int
    probe: str
    nodes: tuple[str, ...]
    timeout_seconds: float
    #: Everything else that the order says, as it came: read it with the functions below.
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.parameters.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise BadOrder(f"{name}: a number was expected, not {_shown(value)}")
        if not low <= value <= high:
            raise BadOrder(f"{name}: {value:g} is not between {low:g} and {high:g}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise BadOrder(f"{name}: a whole number was expected, not {value:g}")
        return int(value)

    def text(self, name: str, default: str, among: Sequence[str] = ()) -> str:
        value = self.parameters.get(name, default)
        if not isinstance(value, str) or "\0" in value:
            raise BadOrder(f"{name}: text was expected, not {_shown(value)}")
        if among and value not in among:
            raise BadOrder(f"{name}: {_shown(value)} is not one of {', '.join(among)}")
        return value

    def texts(self, name: str, default: Sequence[str] = (), among: Sequence[str] = ()) -> tuple[str, ...]:
        value = self.parameters.get(name, list(default))
        if not isinstance(value, list) or len(value) > 64:
            raise BadOrder(f"{name}: a list of at most 64 words was expected, not {_shown(value)}")
        for word in value:
            if not isinstance(word, str) or not word or "\0" in word:
                raise BadOrder(f"{name}: a word was expected, not {_shown(word)}")
            if among and word not in among:
                raise BadOrder(f"{name}: {_shown(word)} is not one of {', '.join(among)}")
        return tuple(value)

    def sizes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        value = self.parameters.get(name, list(default))
        good = isinstance(value, list) and 0 < len(value) <= 64
        if not good or not all(
            isinstance(size, int) and not isinstance(size, bool) and 0 < size <= SIZE_LIMIT_BYTES
            for size in value
        ):
            raise BadOrder(
                f"{name}: a list of 1 to 64 sizes in bytes was expected, each from 1 to {SIZE_LIMIT_BYTES}, "
                f"not {_shown(value)}"
            )
        return tuple(value)

    def environment(self) -> dict[str, str]:
        """The settings of the communication libraries that the order carries."""
        value = self.parameters.get("environment", {})
        if not isinstance(value, dict):
            raise BadOrder(f"environment: names and values were expected, not {_shown(value)}")
        for name, setting in value.items():
            if not _ENVIRONMENT.fullmatch(name):
                raise BadOrder(
                    f"environment: {_shown(name)} is not passed on; only settings of the communication "
                    "libraries are (NCCL_*, GLOO_*, UCX_*, FI_*)"
                )
            if not isinstance(setting, str) or "\0" in setting:
                raise BadOrder(f"environment: {name} is {_shown(setting)}, not text")
        return dict(value)


def read_order(line: str, node: str) -> Order | None:
    """The order on this line, or None when it is for other nodes. `end` has the probe "end".

    Raises BadOrder for a line that is no order.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadOrder(f"not JSON: {_shown(line)}") from exc
    if not isinstance(said, dict):
        raise BadOrder(f"an order is a JSON object, not {_shown(line)}")
    if said.get("end") is True:
        return Order(0, "end", (), 0.0)
    number, probe = said.get("id"), said.get("probe")
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadOrder(f"an order without a whole number as its id: {_shown(line)}")
    if not isinstance(probe, str) or not probe:
        raise BadOrder(f"order {number} does not name its probe: {_shown(line)}")
    group: Mapping[str, Any] = said
    if "groups" in said:
        if not isinstance(said["groups"], list):
            raise BadOrder(f"order {number}: groups is no list: {_shown(said['groups'])}")
        mine = [group for group in said["groups"] if node in _names(group, number)]
        if not mine:
            return None
        if len(mine) > 1:
            raise BadOrder(f"order {number}: {node} is in {len(mine)} of its groups, and can be in one")
        group = mine[0]
    nodes = _names(group, number)
    if node not in nodes:
        return None
    order = Order(number, probe, nodes, 0.0, {**said, **group})
    return Order(
        number,
        probe,
        nodes,
        order.number("timeout_seconds", 30.0, 0.1, TIMEOUT_LIMIT_SECONDS),
        order.parameters,
    )


def _names(group: Any, number: int) -> tuple[str, ...]:
    nodes = group.get("nodes") if isinstance(group, dict) else None
    if (
        not isinstance(nodes, list)
        or not nodes
        or not all(isinstance(name, str) and name for name in nodes)
        or len(set(nodes)) != len(nodes)
    ):
        raise BadOrder(f"order {number}: nodes must be a list of different names, not {_shown(nodes)}")
    return tuple(nodes)


def _shown(value: object) -> str:
    return plain(value if isinstance(value, str) else repr(value), 120)


def figure(
    metric: str,
    value: float,
    *,
    size_bytes: int = 0,
    variant: str = "",
    part: str = "",
    higher_is_better: bool = True,
    nodes: Sequence[str] = (),
) -> dict[str, Any]:
    """One figure as it goes over the wire. `nodes`: whose it is, where that is not the one that answers."""
    told: dict[str, Any] = {
        "metric": metric, "value": value, "size_bytes": size_bytes, "variant": variant, "part": part,
        "higher_is_better": higher_is_better,
    }  # fmt: skip
    return {**told, "nodes": list(nodes)} if nodes else told


@dataclass(slots=True)
class Report:
    """What one child found; the reports of all children of an order become the node's answer."""

    ending: Ending
    detail: str = ""
    evidence: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    node_seconds: float = 0.0
    #: For whoever puts the reports of several children together; does not leave the node.
    private: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Raises ValueError, KeyError or TypeError for what a child did not write to its end."""
        said = json.loads(text)
        return cls(**{**said, "ending": Ending(said["ending"])})


#: Which of several reports gives the ending of a node: wrong data stand above all, and a rank that died or
#: could not run is why its neighbours hang.
_FIRST = (Ending.WRONG_DATA, Ending.CRASH, Ending.COULD_NOT_RUN, Ending.HANG, Ending.DONE)


def together(reports: Sequence[Report]) -> Report:
    """The reports of all children of one order as one."""
    if not reports:
        return Report(Ending.COULD_NOT_RUN, "nothing was started")
    first = min(reports, key=lambda report: _FIRST.index(report.ending))
    return Report(
        first.ending,
        first.detail,
        [line for report in reports for line in report.evidence],
        list(dict.fromkeys(name for report in reports for name in report.blamed)),
        [figure for report in reports for figure in report.figures],
        max(report.node_seconds for report in reports),
    )


def answer_line(order: Order, node: str, report: Report, elapsed_seconds: float, **more: Any) -> str:
    """The answer to `order` as one line; `more` are keys that only this probe's answers have."""
    figures = [told for told in report.figures if math.isfinite(told["value"])]
    return json.dumps(
        {
            "id": order.id,
            "node": node,
            "ending": report.ending.value,
            "detail": plain(report.detail),
            "evidence": [plain(line) for line in dict.fromkeys(report.evidence)][:EVIDENCE_LINES],
            "blamed": report.blamed,
            "figures": figures[:FIGURES_LIMIT],
            "node_seconds": round(report.node_seconds, 6),
            "elapsed_seconds": round(elapsed_seconds, 6),
            **more,
        }
    )
