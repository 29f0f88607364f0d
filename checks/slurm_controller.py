"""Slurm's controllers answer, and most of the cluster's nodes are in service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.processes import programs
from clustertools.sources.slurm import all_nodes, controllers


@dataclass(frozen=True)
class Limits:
    # gcm (Meta), check_slurm cluster-availability: share of nodes that take no jobs
    bad_nodes_warning_ratio: float = 0.15
    bad_nodes_critical_ratio: float = 0.25
    # own choice: of four nodes one is a quarter
    least_nodes: int = 8


@check(
    limits=Limits,
    stages={"daily"},
    codes={
        "SlurmControllerDown": "a slurmctld does not answer",
        "SlurmNodesBad": "a large share of the cluster's nodes takes no jobs",
    },
    # a controller that fails over is away for a while
    confirm=2,
    interval_seconds=300,
    # 16,000 nodes print 10 MB
    cost_seconds=3.0,
    timeout_seconds=30,
)
def slurm_controller(ctx: Context) -> Iterator[Finding | Reading]:
    """Whether each slurmctld answers `scontrol ping`, and how many nodes are down, drained or failed.

    For the head node, once for the cluster: on a compute node it does not apply, as thousands of them would
    ask one controller for the whole list. Nodes that power saving has switched off do not count, nor those
    in a maintenance reservation.
    """
    running = programs(ctx.host)
    if "slurmd" in running and "slurmctld" not in running:
        raise ctx.skip("a compute node; the head node asks for all")
    try:
        found = controllers(ctx.host)
    except Absent as exc:
        raise ctx.skip(str(exc)) from exc
    up = [one for one in found if one.is_up]
    for one in found:
        if not one.is_up:
            # with the others up, jobs go on; with none, nothing starts and no job can end well
            say = ctx.warning if up else ctx.critical
            yield say(
                "SlurmControllerDown", f"slurmctld@{one.host}",
                f"the {one.role} slurmctld on {one.host} does not answer", remedy=Remedy.INSPECT,
            )  # fmt: skip
    if not up:
        ctx.unseen("no slurmctld answers, so the state of the nodes is not known")
        return
    nodes = all_nodes(ctx.host)
    bad = [node for node in nodes if node.is_bad]
    ratio = len(bad) / len(nodes) if nodes else 0.0
    yield ctx.reading("slurm_bad_nodes_ratio", ratio)
    limits = ctx.limits
    if len(nodes) < limits.least_nodes or ratio <= limits.bad_nodes_warning_ratio:
        return
    say = ctx.critical if ratio > limits.bad_nodes_critical_ratio else ctx.warning
    reasons: dict[str, int] = {}
    for node in bad:
        reasons[node.reason or "no reason given"] = reasons.get(node.reason or "no reason given", 0) + 1
    often = sorted(reasons.items(), key=lambda item: -item[1])[:5]
    yield say(
        "SlurmNodesBad",
        "slurm",
        f"{len(bad)} of {len(nodes)} nodes take no jobs ({ratio:.0%}, limit "
        f"{limits.bad_nodes_warning_ratio:.0%})",
        evidence=tuple(f"{count} x {reason[:200]}" for reason, count in often),
        remedy=Remedy.INSPECT,
    )
