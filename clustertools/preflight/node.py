"""The middle stage: each node under load by itself, all nodes at the same time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.budget import Plan, ProbeKind, answer_known, plan
from clustertools.fleet.probing import Hello, Probers
from clustertools.measurement import Ending, Figure, Grade
from clustertools.model import Status
from clustertools.preflight.asked import Asked
from clustertools.preflight.meeting import group_order, ports
from clustertools.preflight.record import Record
from clustertools.preflight.session import Session
from clustertools.preflight_report import BAD, Remark, Stage, Untested
from clustertools.probes.clock import Exchange, offset

NAME = "node"
#: What ended badly, or is near a line, is tried once more: nobody is blamed for one bad moment.
REPEATS = 2
#: Exchanges of the time with every node; the quickest counts.
EXCHANGES = 4
EXCHANGE_SECONDS = 3.0


def _nothing(asked: Asked) -> Mapping[str, Any]:
    return {}


def _everyone(asked: Asked, hello: Hello) -> bool:
    return True


def _with_gpu(asked: Asked, hello: Hello) -> bool:
    return bool(hello.devices)


def _with_gpus(asked: Asked, hello: Hello) -> bool:
    return len(hello.devices) > 1


def _with_dcgm(asked: Asked, hello: Hello) -> bool:
    return bool(hello.devices) and "dcgmi" in hello.tools


def _with_paths(asked: Asked, hello: Hello) -> bool:
    return bool(asked.paths_read or asked.paths_written)


@dataclass(frozen=True, slots=True)
class Load:
    """One probe as the preflight uses it: what it looks for, for which nodes, what it takes on eight GPUs
    before anybody has measured it here, when it hangs, its parameters, and why it is for no node."""

    probe: str
    covers: tuple[str, ...]
    fits: Callable[[Asked, Hello], bool] = _everyone
    without: str = ""
    cost_seconds: float = 15.0
    timeout_seconds: float = 60.0
    parameters: Callable[[Asked], Mapping[str, Any]] = _nothing


LOADS = (
    Load("gemm", ("gpu", "gpu-processor", "wrong-data", "thermal"), cost_seconds=10.0),
    Load("memory", ("gpu", "gpu-memory", "wrong-data"), cost_seconds=10.0),
    Load("host_device", ("gpu", "link"), _with_gpu, "no node has a GPU that PyTorch can use"),
    Load("peer", ("gpu", "link", "wrong-data"), _with_gpus, "no node has several GPUs"),
    Load("collective", ("gpu", "link", "wrong-data"), _with_gpus, "no node has several GPUs",
         parameters=lambda asked: {"environment": dict(asked.environment)}),
    Load("dcgm_diag", ("gpu", "gpu-memory"), _with_dcgm, "no node has dcgmi"),
    Load("storage", ("storage",), _with_paths, "no path was named: --data, --checkpoints",
         parameters=lambda asked: {"data": list(asked.paths_read), "checkpoint": list(asked.paths_written)}),
)  # fmt: skip
#: What the fabric stage is planned with, so that the loads before it leave it its time.
FABRIC = ProbeKind("fabric", 45.0, ("link", "nic", "wrong-data", "configuration"))


def load(session: Session) -> None:
    """Run the probes that fit into the budget on every node that is left, and grade what they measure."""
    asked, record, probers = session.asked, session.record, session.probers
    nodes = session.fit()
    with record.stage(NAME, len(nodes)) as stage:
        figures = _clocks(nodes, probers)
        planned = planned_loads(session, nodes)
        chosen = [by_name for step in planned.chosen for by_name in LOADS if by_name.probe == step.name]
        # whether the fabric stage has time left, it sees itself
        skipped = [(name, why) for name, why in planned.left_out if name != FABRIC.name]
        record.untested += [Untested(f"probe {name}", why) for name, why in skipped]
        for place, each in enumerate(chosen):
            session.tell(Stage(NAME, len(chosen), place, stage.elapsed_seconds, each.probe))
            left = record.fit(nodes)
            fitting = [node for node in left if each.fits(asked, probers.hello[node])]
            if stop := _known(asked, record, len(chosen) - place):
                what = ", ".join(one.probe for one in chosen[place:])
                record.untested.append(Untested(f"probes {what}", stop))
                stage.note = stop
                break
            if fitting:
                figures += _run(each, session, fitting)
        _grade(figures, session)
        stage.done = len(record.fit(nodes))


def planned_loads(session: Session, nodes: Sequence[str]) -> Plan:
    """What of LOADS, beside the fabric stage, fits into the time that is left, the most promising first."""
    asked, stored = session.asked, session.yardsticks.stored
    hellos = list(session.hello(nodes).values())
    kinds = [
        ProbeKind(
            each.probe, stored.cost_seconds(each.probe) or each.cost_seconds, each.covers,
            unavailable=_why_not(each, asked, hellos),
        )
        for each in LOADS
    ]  # fmt: skip
    if FABRIC.name in asked.stages and len(hellos) > 1:
        kinds.append(FABRIC)
    return plan(session.budget.left, kinds, stored.history)


def _why_not(each: Load, asked: Asked, hellos: Sequence[Hello]) -> str:
    if each.probe in asked.without:
        return "left out, as was asked"
    if not any(each.fits(asked, hello) for hello in hellos):
        return each.without
    return ""


def _known(asked: Asked, record: Record, pending: int) -> str:
    """Why nothing more need be tested, when too few nodes are left whatever else is found."""
    results = [result for result in record.results() if result.node in asked.everyone]
    need = asked.terms.need or len(asked.nodes)
    bad = sum(result.grade in BAD for result in results)
    at_least = asked.terms.at_least or need
    return answer_known(candidates=len(results), bad=bad, pending=pending, at_least=at_least)


def _run(each: Load, session: Session, nodes: Iterable[str]) -> list[Figure]:
    """One probe on all these nodes at once, and a second time where it is in doubt."""
    budget, probers, figures = session.budget, session.probers, list[Figure]()
    again, began, bad = list(nodes), time.monotonic(), False
    for _ in range(REPEATS):
        seconds = max(1.0, min(each.timeout_seconds, budget.left))
        trials = probers.ask(_order(each, session.asked, again), again, timeout_seconds=seconds)
        for node, trial in trials.items():
            session.record[node].tried(trial, NAME)
        figures += [figure for trial in trials.values() for figure in trial.figures]
        assessed = session.yardsticks.assess(figures)
        wrong = {n for n, trial in trials.items() if trial.ending in (Ending.CRASH, Ending.HANG)}
        doubtful = wrong | {node for figure in assessed.marginal for node in figure.nodes}
        bad = bool(wrong) or any(judged.grade is Grade.SLOW for judged in assessed.judged)
        again = [node for node in again if node in doubtful and node not in probers.gone]
        if not again or each.cost_seconds > budget.left:
            break
    session.yardsticks.ran(each.probe, time.monotonic() - began, bad)
    return figures


def _order(each: Load, asked: Asked, nodes: Iterable[str]) -> Mapping[str, Any]:
    parameters = each.parameters(asked)
    if each.probe != "collective":
        return {"probe": each.probe, **parameters}
    # the GPUs of each node among themselves: groups of one node, which meet at home
    alone = [(node,) for node in nodes]
    here = dict.fromkeys(nodes, "127.0.0.1")
    port = ports(asked.seed + 1)
    return group_order(each.probe, alone, here, port, collective="all_reduce", **parameters)


def _clocks(nodes: Sequence[str], probers: Probers) -> list[Figure]:
    """How far each node's clock is from ours."""
    exchanges: dict[str, list[Exchange]] = {}
    for _ in range(EXCHANGES):
        for node, times in probers.clocks(nodes, seconds=EXCHANGE_SECONDS).items():
            exchanges.setdefault(node, []).append(Exchange(*times))
    figures = []
    for node, told in exchanges.items():
        try:
            seconds, _ = offset(told)
        except ValueError:
            continue
        if math.isfinite(seconds):
            figures.append(Figure("clock", (node,), "offset_seconds", seconds, higher_is_better=False))
    return figures


def _grade(figures: Iterable[Figure], session: Session) -> None:
    """What all figures of the stage come to, at the nodes and for the cluster."""
    record, told = session.record, session.yardsticks.assess(figures)
    for one in told.judged:
        record[one.figure.nodes[0]].judged.append(one)
    session.yardsticks.accept(told.accepted)
    for remark in told.remarks:
        nodes = remark.sets[0] if len(remark.sets) == 1 else ()
        record.remarks.append(Remark(f"{remark.code}: {remark.sentence}", Status.WARNING, nodes))
