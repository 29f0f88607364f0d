"""This node in Slurm's eyes: known, responding, in service, with the GPUs that it was configured with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy
from clustertools.sources.processes import programs
from clustertools.sources.slurm import SlurmNode, node_record

#: What slurmctld writes as the reason when a node registers with less than slurm.conf says
#: (src/slurmctld/node_mgr.c): GPUs, memory or CPUs are missing.
_LESS = ("count reported lower than configured", "Low RealMemory", "Low socket*core*thread", "Low CPUs",
         "Low TmpDisk")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    # gcm (Meta) warns when the node cannot be scheduled; soperator on any state of these
    down_states: tuple[str, ...] = ("DOWN", "ERROR", "FAIL", "NOT_RESPONDING")


@check(
    limits=Limits,
    stages={"watch", "daily"},
    codes={
        "SlurmNodeDown": "Slurm holds the node for down, failed or not responding, while it runs",
        "SlurmNodeInvalid": "the node registered with less than slurm.conf says: GPUs, memory or CPUs",
        "SlurmNodeUnknown": "slurmd runs, but the controller knows no node of this name",
    },
    confirm=2,
    # a request to slurmctld from each node: 16,000 nodes make 27 a second
    interval_seconds=600,
)
def slurm_node(ctx: Context) -> Iterator[Finding | Reading]:
    """What the Slurm controller thinks of this node, and why. A drain is told as a note: somebody meant it.

    Where no slurmd runs it does not apply. A controller that does not answer is UNKNOWN here, and
    `slurm_controller` says it once for the cluster.
    """
    if "slurmd" not in programs(ctx.host):
        raise ctx.skip("no slurmd runs here")
    try:
        node = node_record(ctx.host, ctx.host.name)
    except Absent as exc:
        raise ctx.skip(str(exc)) from exc
    if node is None:
        # NodeName need not be the host's name
        yield ctx.warning(
            "SlurmNodeUnknown", "slurm", f"slurmd runs, but Slurm knows no node named {ctx.host.name}"
        )
        return
    yield ctx.reading("slurm_schedulable_ratio", not node.is_bad)
    why = f": {node.reason}" if node.reason else ""
    by = f" (by {node.reason_by})" if node.reason_by else ""
    if "INVALID_REG" in node.flags or any(text in node.reason for text in _LESS):
        yield ctx.warning(
            "SlurmNodeInvalid",
            "slurm",
            f"Slurm took the node out of service, as it has less than configured{why}",
            evidence=_evidence(node),
            remedy=Remedy.INSPECT,
        )
    elif node.flags & set(ctx.limits.down_states):
        yield ctx.warning(
            "SlurmNodeDown",
            "slurm",
            f"Slurm holds the node for {'+'.join(sorted(node.flags))}{why}{by}",
            evidence=_evidence(node),
            remedy=Remedy.INSPECT,
        )
    elif "DRAIN" in node.flags:
        ctx.note(f"drained in Slurm{why}{by}")


def _evidence(node: SlurmNode) -> tuple[str, ...]:
    gres = ", ".join(f"{name} x {count}" for name, count in node.gres) or "none"
    return (f"state {'+'.join(sorted(node.flags))}, configured GRES: {gres}, Slurm {node.version or '?'}",)
