"""The middle stage: each node under load by itself, all nodes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools import performance
from clustertools.fleet.probing import Hello, Probers
from clustertools.measurement import Ending, Figure
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
    _grade(figures, record)


def _why_not(each: Load, asked: Asked, budget: Budget) -> str:
    if each.probe in asked.without:
        return "not to count, as was asked"
    if each.cost_seconds > budget.left:
        return f"{each.cost_seconds:g} s are needed, {budget.left:.0f} s are left"
    return ""


def _run(
    each: Load, asked: Asked, nodes: Iterable[str], record: Record, probers: Probers, budget: Budget
) -> list[Figure]:
    """One probe on all these nodes at once, and a second time where it ended badly or a figure is near a
    line."""
    figures: list[Figure] = []
    again = list(nodes)
    for _ in range(REPEATS):
        seconds = max(1.0, min(each.timeout_seconds, budget.left))
        trials = probers.ask(_order(each, asked, again), again, timeout_seconds=seconds)
        for node, trial in trials.items():
            record[node].tried(trial, NAME)
        figures += [figure for trial in trials.values() for figure in trial.figures]
        doubtful = {node for figure in performance.assess(figures).marginal for node in figure.nodes}
        doubtful |= {n for n, trial in trials.items() if trial.ending in (Ending.CRASH, Ending.HANG)}
        again = [node for node in again if node in doubtful and node not in probers.gone]
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


def _grade(figures: Iterable[Figure], record: Record) -> None:
    """What all figures of the stage come to, at the nodes and for the cluster."""
    told = performance.assess(figures)
    for one in told.judged:
        record[one.figure.nodes[0]].judged.append(one)
    for remark in told.remarks:
        nodes = remark.sets[0] if len(remark.sets) == 1 else ()
        record.remarks.append(Remark(f"{remark.code}: {remark.sentence}", Status.WARNING, nodes))
