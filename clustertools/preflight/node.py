"""The middle stage: each node under load by itself, all nodes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools import performance
from clustertools.fleet.probing import Hello, Probers
from clustertools.measurement import Ending, Figure, Grade, Trial
from clustertools.model import Status
from clustertools.preflight.asked import Asked, Budget, Tell
from clustertools.preflight.meeting import collective_order, ports
from clustertools.preflight.record import Record
from clustertools.preflight_report import Remark, Stage, Untested

NAME = "node"
#: What is measured once more when it is near a line: twice the cost, for the few that need it.
REPEATS = 2


def _nothing(asked: Asked) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Load:
    """One probe as the preflight uses it: for which nodes, its parameters, what it takes on eight GPUs, and
    when it hangs."""

    probe: str
    fits: Callable[[Asked, Hello], bool]
    cost_seconds: float = 10.0
    timeout_seconds: float = 60.0
    parameters: Callable[[Asked], Mapping[str, Any]] = _nothing


#: In the order in which they are run: the cheap and telling first. Of 419 interruptions of a run on 16,384
#: H100s, faulty GPUs were 148 and their memory 72, network 35 and the NIC 7 (Llama 3 report, table 5).
LOADS = (
    Load("gemm", lambda asked, hello: True),
    Load("memory", lambda asked, hello: True),
    Load("host_device", lambda asked, hello: bool(hello.devices)),
    Load("peer", lambda asked, hello: len(hello.devices) > 1, 15.0),
    Load("collective", lambda asked, hello: len(hello.devices) > 1, 15.0, 60.0,
         lambda asked: {"environment": dict(asked.environment)}),
    Load("storage", lambda asked, hello: bool(asked.paths_read or asked.paths_written), 15.0, 60.0,
         lambda asked: {"read": list(asked.paths_read), "write": list(asked.paths_written)}),
)  # fmt: skip


def load(asked: Asked, record: Record, probers: Probers, budget: Budget, tell: Tell) -> None:
    """Run the probes that fit into the budget on every node that is left, and grade what they measure."""
    nodes = record.fit(probers.present)
    figures: list[Figure] = []
    with record.stage(NAME, len(nodes)) as stage:
        for place, each in enumerate(LOADS):
            fitting = [n for n in record.fit(nodes) if each.fits(asked, probers.hello[n])]
            if not fitting:
                continue
            if why := _why_not(each, asked, budget):
                record.untested.append(Untested(f"probe {each.probe}", why, tuple(fitting)))
                continue
            tell(Stage(NAME, len(LOADS), place, stage.elapsed_seconds, each.probe))
            figures += _run(each, asked, fitting, record, probers, budget)
        stage.done = len(record.fit(nodes))
    grade(figures, record)


def _why_not(each: Load, asked: Asked, budget: Budget) -> str:
    if each.probe in asked.without:
        return "not to count, as was asked"
    if each.cost_seconds > budget.left:
        return f"{each.cost_seconds:g} s are needed, {budget.left:.0f} s are left"
    return ""


def _run(
    each: Load, asked: Asked, nodes: Iterable[str], record: Record, probers: Probers, budget: Budget
) -> list[Figure]:
    """One probe on all these nodes at once, and a second time where a figure is near a line."""
    figures: list[Figure] = []
    again = list(nodes)
    for _ in range(REPEATS):
        seconds = max(1.0, min(each.timeout_seconds, budget.left))
        trials = probers.ask(_order(each, asked, again), again, timeout_seconds=seconds)
        figures += [figure for trial in write_down(trials, record, each.probe) for figure in trial.figures]
        marginal = {node for figure in performance.assess(figures).marginal for node in figure.nodes}
        again = [node for node in record.fit(again) if node in marginal]
        if not again or each.cost_seconds > budget.left:
            break
    return figures


def _order(each: Load, asked: Asked, nodes: Iterable[str]) -> Mapping[str, Any]:
    parameters = each.parameters(asked)
    if each.probe != "collective":
        return {"probe": each.probe, **parameters}
    # the GPUs of each node among themselves: groups of one node, which meet at home
    alone = [(node,) for node in nodes]
    here = dict.fromkeys(nodes, "127.0.0.1")
    return collective_order(alone, here, ports(asked.seed + 1), collective="all_reduce", **parameters)


def write_down(trials: Mapping[str, Trial], record: Record, probe: str) -> list[Trial]:
    """Each node's trial at its record; what is given back are those that were done.

    When more than half of several nodes end badly in the same probe, that is no fault of each of them: a
    server, a library, the probe itself. They could not be tested, and the cluster is told of.
    """
    bad = [t for t in trials.values() if t.ending in (Ending.CRASH, Ending.HANG)]
    common = len(bad) > 1 and 2 * len(bad) > len(trials)
    if common:
        text = f"{probe}: {len(bad)} of {len(trials)} nodes ended badly: look for what they have in common"
        names = tuple(node for t in bad for node in t.nodes)
        record.remarks.append(Remark(text, Status.CRITICAL, names, tuple(t.detail for t in bad[:3])))
    for node, trial in trials.items():
        if common and trial in bad:
            reason = f"{probe} ended badly here as on most nodes: {trial.detail}"
            record[node].think(Grade.COULD_NOT_RUN, reason, f"probe {probe}")
        else:
            record[node].tried(trial, NAME)
    return [t for t in trials.values() if t.ending is Ending.DONE]


def grade(figures: Iterable[Figure], record: Record) -> None:
    """What all figures of the stage come to, at the nodes and for the cluster."""
    told = performance.assess(figures)
    for one in told.judged:
        node = record[one.figure.nodes[0]]
        node.judged.append(one)
        if one.grade in (Grade.SLOW, Grade.COULD_NOT_RUN):
            part = f" {one.figure.part}" if one.figure.part else ""
            value = performance.told(one.figure.value, one.figure)
            said = f"{performance.name_of(one.figure)}{part}: {value}, {one.ratio:.0%} of {one.against}"
            node.think(one.grade, said, one.decided_by)
    for remark in told.remarks:
        nodes = remark.sets[0] if len(remark.sets) == 1 else ()
        record.remarks.append(Remark(f"{remark.code}: {remark.sentence}", Status.WARNING, nodes))
