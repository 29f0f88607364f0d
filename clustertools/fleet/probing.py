"""The probers of many nodes, spoken to as one: orders go out, one answer a node comes back.

    probers = Probers(transport.talk(nodes, tool.argv("probe", "serve")), nodes)
    probers.greet(30)
    trials = probers.ask({"probe": "gemm", "seconds": 2}, nodes, timeout_seconds=20)

The protocol is that of `clustertools.probes.serve`: JSON Lines, an order names the nodes that it is for.
What a node says is data of a stranger: its form is checked, its text made printable, its numbers are finite.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from clustertools.fleet import Answer, Conversation, Fate, Line
from clustertools.measurement import Ending, Figure, Trial
from clustertools.text import plain, plain_block

#: A node that was given an order answers by itself at the order's deadline; this much later it is not
#: believed to answer any more.
GRACE_SECONDS = 5.0
#: More figures than this from one node for one order are none that a probe makes.
MOST_FIGURES = 4096
_MOST_TEXTS = 40


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, as the node's PyTorch sees it."""

    index: int
    name: str
    pci: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a prober tells of its node when it starts. `torch` is empty where there is none."""

    node: str
    python: str = ""
    torch: str = ""
    cuda: bool = False
    devices: tuple[Device, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()


class Probers:
    """One conversation with the probers of `nodes`. `gone` are those that are there no more, and why."""

    def __init__(self, conversation: Conversation, nodes: Sequence[str]) -> None:
        self._conversation = conversation
        self._numbers = itertools.count(1)
        self.nodes = tuple(nodes)
        self.hello: dict[str, Hello] = {}
        self.gone: dict[str, Answer] = {}
        #: Lines that were not of the protocol, a few of each node: a driver's warning, a login banner.
        self.strange: dict[str, list[str]] = {}

    @property
    def present(self) -> tuple[str, ...]:
        """The nodes whose prober said hello and is still there, in the order they were given."""
        return tuple(node for node in self.nodes if node in self.hello and node not in self.gone)

    def greet(self, seconds: float) -> Mapping[str, Hello]:
        """Wait until every prober has said hello, or is gone, or `seconds` are over."""
        silent = set(self.nodes) - self.hello.keys()
        for node, data in self._hear(silent, seconds):
            if isinstance(said := data.get("hello"), Mapping):
                self.hello[node] = _hello(node, said)
                silent.discard(node)
        return dict(self.hello)

    def ask(
        self, order: Mapping[str, Any], nodes: Iterable[str], *, timeout_seconds: float
    ) -> dict[str, Trial]:
        """Give one order to `nodes`, and the Trial of each; one that does not answer hangs or is lost."""
        wanted, probe = [node for node in nodes if node in self.hello], str(order["probe"])
        told: dict[str, Trial] = {}
        for node, data in self._answers(order, wanted, timeout_seconds, timeout_seconds + GRACE_SECONDS):
            told[node] = trial(node, probe, data)
        return {node: told.get(node) or self._silent(node, probe) for node in wanted}

    def clocks(self, nodes: Iterable[str], *, seconds: float) -> dict[str, tuple[float, ...]]:
        """One exchange of the time with each node that answers within `seconds`.

        Of each: when we sent it, when the node read it and answered by its own clock, when we heard of it.
        """
        told: dict[str, tuple[float, ...]] = {}
        sent = time.time()
        for node, data in self._answers({"probe": "clock", "head_time": sent}, nodes, seconds, seconds):
            times = data.get("clock")
            if isinstance(times, Mapping):
                received, answered = times.get("received"), times.get("sent")
                if _is_number(received) and _is_number(answered):
                    told[node] = (sent, float(received), float(answered), time.time())
        return told

    def _answers(
        self, order: Mapping[str, Any], nodes: Iterable[str], timeout_seconds: float, seconds: float
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Send an order to those of `nodes` that are there, and give the answer of each as it comes."""
        asked = [node for node in nodes if node in self.hello and node not in self.gone]
        if not asked:
            return
        number, whom = next(self._numbers), {} if "groups" in order else {"nodes": asked}
        line = {"id": number, "timeout_seconds": timeout_seconds, **order, **whom}
        self._conversation.send(json.dumps(line))
        pending = set(asked)
        for node, data in self._hear(pending, seconds):
            if data.get("id") == number:  # not the late answer to an order that was given up
                pending.discard(node)
                yield node, data

    def close(self) -> None:
        self._conversation.close()

    def _hear(self, pending: set[str], seconds: float) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What nodes of `pending` say, until the caller has taken all out or the time is over.

        Who goes away is taken out here.
        """
        end = time.monotonic() + seconds
        pending.difference_update(self.gone)
        while pending and (left := end - time.monotonic()) > 0:
            for node, data in self._lines(left):
                if node in self.gone:
                    pending.discard(node)
                elif node in pending:
                    yield node, data
                if not pending:
                    return

    def _silent(self, node: str, probe: str) -> Trial:
        last = self.gone.get(node)
        if last is None:
            detail = "no answer, although its prober should have given up by then"
            return Trial(probe, (node,), Ending.HANG, detail=detail)
        said = f"its prober is gone ({last.fate.value}): {plain(last.reason or _last_words(last), 300)}"
        return Trial(
            probe, (node,), Ending.CRASH if last.fate is Fate.LOST else Ending.COULD_NOT_RUN, detail=said
        )

    def _lines(self, seconds: float) -> Iterable[tuple[str, Mapping[str, Any]]]:
        for heard in self._conversation.receive(seconds):
            if isinstance(heard, Answer):
                self.gone[heard.node] = heard
                yield heard.node, {}
                continue
            data = _parsed(heard)
            if data is None:
                kept = self.strange.setdefault(heard.node, [])
                if len(kept) < _MOST_TEXTS:
                    kept.append(plain(heard.text, 300))
                continue
            yield heard.node, data


def _parsed(line: Line) -> Mapping[str, Any] | None:
    try:
        data = json.loads(line.text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _last_words(answer: Answer) -> str:
    done = answer.completed
    said = (done.stderr.strip() or done.stdout.strip()) if done else answer.said.strip()
    last = said.splitlines()[-1] if said else "it said nothing"
    return f"exit code {done.returncode}: {last}" if done else last


def _hello(node: str, said: Mapping[str, Any]) -> Hello:
    devices = said.get("devices")
    addresses = said.get("addresses")
    return Hello(
        node, _text(said.get("python")), _text(said.get("torch")), said.get("cuda") is True,
        tuple(
            Device(number, _text(d.get("name")), _text(d.get("pci")), _text(d.get("uuid")))
            for number, d in enumerate(devices if isinstance(devices, list) else ())
            if isinstance(d, Mapping)
        ),
        {_text(k): _text(v) for k, v in addresses.items()} if isinstance(addresses, Mapping) else {},
        _texts(said.get("tools")),
    )  # fmt: skip


def trial(node: str, probe: str, data: Mapping[str, Any]) -> Trial:
    """What one node answered, as a Trial. An answer of another form is one that could not run."""
    try:
        ending = Ending(data.get("ending"))
        figures = tuple(_figure(node, probe, f) for f in (data.get("figures") or [])[:MOST_FIGURES])
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        detail = f"its answer made no sense: {plain(str(exc), 200)}"
        return Trial(probe, (node,), Ending.COULD_NOT_RUN, detail=detail)
    seconds = data.get("node_seconds")
    elapsed = data.get("elapsed_seconds")
    return Trial(
        probe, (node,), ending, figures, plain(_text(data.get("detail"), 2000), 500),
        tuple(plain_block(line, 500) for line in _texts(data.get("evidence"))), _texts(data.get("blamed")),
        {node: float(seconds)} if _is_number(seconds) else {},
        float(elapsed) if _is_number(elapsed) else 0.0,
    )  # fmt: skip


def _figure(node: str, probe: str, data: Mapping[str, Any]) -> Figure:
    value = data["value"]
    if not _is_number(value):
        raise ValueError(f"a figure that is no number: {value!r}")
    return Figure(
        _text(data.get("probe")) or probe, _texts(data.get("nodes")) or (node,), _text(data["metric"]),
        float(value),
        _text(data.get("part")), int(data.get("size_bytes") or 0), _text(data.get("variant")),
        data.get("higher_is_better") is not False,
    )  # fmt: skip


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any, limit: int = 200) -> str:
    return plain(value, limit) if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(v, 2000) for v in value[:_MOST_TEXTS]) if isinstance(value, list) else ()


#: Which ending of its members is the ending of a group: wrong data is proof, a crash says more than the hang
#: of those who waited for the one that crashed.
_WORST = (Ending.WRONG_DATA, Ending.CRASH, Ending.HANG, Ending.COULD_NOT_RUN, Ending.DONE)


def as_group(probe: str, nodes: Sequence[str], answers: Mapping[str, Trial]) -> Trial:
    """The answers of a group's members as one Trial of the group.

    A figure that several members tell (each measured the same collective) counts with the worst of them: a
    collective is done when its last rank is. One that names several members itself is of these only.
    Where every member could run but one could not, the group could not: nothing is known of the others.
    """
    members = [
        answers.get(node) or Trial(probe, (node,), Ending.COULD_NOT_RUN, detail="not asked") for node in nodes
    ]
    endings = {member.ending for member in members}
    could_not = [m for m in members if m.ending is Ending.COULD_NOT_RUN]
    ending = Ending.COULD_NOT_RUN if could_not else next(e for e in _WORST if e in endings)
    merged: dict[tuple[Any, ...], Figure] = {}
    for figure in itertools.chain.from_iterable(m.figures for m in members):
        between = len(figure.nodes) > 1 and set(figure.nodes) <= set(nodes)
        whole = figure if between else replace(figure, nodes=tuple(nodes))
        key = (whole.comparable, whole.nodes, whole.part)
        other = merged.get(key)
        worse = min if whole.higher_is_better else max
        if other is None or worse(whole.value, other.value) == whole.value:
            merged[key] = whole
    telling = [m for m in members if m.ending is ending and m.detail]
    return Trial(
        probe, tuple(nodes), ending, tuple(merged.values()),
        f"{telling[0].nodes[0]}: {telling[0].detail}" if telling else "",
        tuple(itertools.islice((line for m in telling for line in m.evidence), _MOST_TEXTS)),
        _blamed(nodes, members, ending),
        {k: v for m in members for k, v in m.node_seconds.items()},
        max((m.elapsed_seconds for m in members), default=0.0),
    )  # fmt: skip


def _blamed(nodes: Sequence[str], members: Sequence[Trial], ending: Ending) -> tuple[str, ...]:
    """Whom a group points at: who points at itself, and whom more than half of its members point at.

    Two ends of a path that carries nothing each say that the other never came; one node that is cut off says
    it of all others, and they all of it. Wrong data is found by reckoning: there each word counts.
    """
    pointing = [(b, m.nodes[0]) for m in members for b in dict.fromkeys(m.blamed) if b in nodes]
    if ending is Ending.WRONG_DATA:
        return tuple(sorted({node for node, _ in pointing}))
    votes = Counter(node for node, _ in pointing)
    itself = {node for node, by in pointing if node == by}
    return tuple(sorted(n for n, count in votes.items() if n in itself or 2 * count > len(nodes)))
