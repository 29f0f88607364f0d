"""The first stage: the passive checks of all nodes at once, and on which facts the nodes differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from clustertools.drift import Drift, drift
from clustertools.fleet import Answer, Fate, Transport
from clustertools.fleet.looking import NodeLook, Request, look_all
from clustertools.fleet.shipping import Tool
from clustertools.model import Status
from clustertools.preflight.asked import Asked, Budget, Tell
from clustertools.preflight.record import NodeRecord, Record
from clustertools.preflight_report import Remark, Stage, folded
from clustertools.text import plain

NAME = "passive"
#: All passive checks of a node take about a second; a node that hangs in one of them is given this long.
SECONDS = 60.0
#: More facts than this on which nodes differ are told as a number only.
MOST_DRIFTS = 12
#: A value of so small a share of the nodes is a straggler of a roll-out; of more it is a second kind.
MINORITY = 0.2


def look(
    asked: Asked, record: Record, transport: Transport, tool: Tool, requests: Mapping[str, Request],
    budget: Budget, tell: Tell,
) -> None:  # fmt: skip
    """Run the checks on every node that can be reached, and write down what each says."""
    nodes = record.fit(asked.everyone)
    if not nodes:
        return
    seconds = min(SECONDS, budget.left)
    facts: dict[str, Mapping[str, str]] = {}
    with record.stage(NAME, len(nodes)) as stage:
        wanted = {node: requests[node] for node in nodes}
        for told in look_all(transport, tool, wanted, timeout_seconds=seconds):
            here = record[told.node]
            for verdict in told.verdicts:
                here.saw(verdict, NAME)
            if told.facts:
                facts[told.node] = told.facts
            if told.why_not:
                _note_the_end(here, told)
            stage.done += 1
            tell(Stage(NAME, len(nodes), stage.done, stage.elapsed_seconds))
    record.remarks += _everywhere(record, nodes)
    record.remarks += _differing(facts)


def _note_the_end(here: NodeRecord, told: NodeLook) -> None:
    """A node that did not say all: it may have gone, or may only have been too slow for this stage."""
    if told.fate in (Fate.COMPLETED, Fate.TIMEOUT):
        here.doubts.append(f"the passive checks: {plain(told.why_not, 300)}")
    else:
        here.away(Answer(here.node, told.fate, reason=told.why_not))


def _everywhere(record: Record, nodes: Iterable[str]) -> Iterator[Remark]:
    """A code that most nodes show is no fault of a node's: a roll-out, a service, the fabric."""
    nodes = list(nodes)
    showing: dict[str, list[str]] = {}
    for node in nodes:
        found = (f for verdict in record[node].verdicts for f in verdict.findings)
        for code in {f.code for f in found if f.status is Status.CRITICAL}:
            showing.setdefault(code, []).append(node)
    for code, who in sorted(showing.items()):
        if len(who) > 2 and len(who) > len(nodes) / 2:
            text = f"{code} on {len(who)} of {len(nodes)} nodes: look for what they have in common"
            yield Remark(text, Status.CRITICAL, tuple(who))


def _differing(facts: Mapping[str, Mapping[str, str]]) -> Iterator[Remark]:
    found = drift(facts) if len(facts) > 2 else []
    for one in found[:MOST_DRIFTS]:
        yield _remark(one, len(facts))
    if len(found) > MOST_DRIFTS:
        rest = ", ".join(one.fact for one in found[MOST_DRIFTS:])
        yield Remark(f"nodes differ on {len(found) - MOST_DRIFTS} more facts: {plain(rest, 300)}", Status.OK)


def _remark(one: Drift, count: int) -> Remark:
    others = "; ".join(f"{plain(value, 80)} on {folded(who)}" for value, who in one.others.items())
    common = f"{plain(one.common, 80)} on {one.common_nodes}" if one.common is not None else "no common value"
    differing = tuple(node for who in one.others.values() for node in who)
    few = one.common is not None and len(differing) <= max(1, MINORITY * count)
    status = Status.WARNING if few else Status.OK
    return Remark(f"{one.fact} differs: {common}; {plain(others, 300)}", status, differing if few else ())
