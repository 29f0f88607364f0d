"""What a node shows of one job: its ranks, their stacks, what its GPUs and network ports do, kernel lines.

    look(host, LookRequest(job_id="4711", run="pretrain"))        on the node
    JobLook((NodeLook(...), NodeLook(...)), {"n3": "no route to host"})   all of its nodes, on the head

It is taken only of jobs in doubt, on each of their nodes at once (`clustertools.fleet.job_looks`), or here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from clustertools.sources.processes import Process
from clustertools.sources.stacks import Stack


@dataclass(frozen=True, slots=True)
class LookRequest:
    """What to look at. The processes are those of the Slurm job `job_id` ("4711", "4711_3"), or the trees
    below `roots`. `kernel_since`: no kernel lines before this time (epoch seconds).
    """

    job_id: str = ""
    run: str = ""
    roots: tuple[int, ...] = ()
    stacks: bool = True
    kernel_since: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuActivity:
    """What one GPU does now. None: not told. Utilisation says nothing of work (it is 100 % in a spinning
    collective); power and memory traffic do.
    """

    index: int
    pci: str
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: float | None = None
    temperature_celsius: float | None = None
    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeLook:
    """One node at one moment. `ranks` is rank -> pid there, `stacks` those of the ranks (main threads).

    `port_bytes` counts what went in and out of each RDMA port and network interface since it came up.
    `unseen` names each part that could not be looked at, and why.
    """

    node: str
    time: float
    boot_id: str = ""
    ranks: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    stacks: tuple[Stack, ...] = ()
    gpus: tuple[GpuActivity, ...] = ()
    port_bytes: Mapping[str, int] = field(default_factory=dict)
    kernel: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLook:
    """All nodes of a job at one moment; `unseen` is node -> why nobody could look there."""

    nodes: tuple[NodeLook, ...] = ()
    unseen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LookOrder:
    """A look at all nodes of one job. `how` is the way to them (`schedulers.RunSpec.look`)."""

    request: LookRequest
    nodes: tuple[str, ...] = ()
    how: Literal["auto", "ssh", "srun", "none"] = "auto"


class Looker(Protocol):
    """The way to the nodes of jobs. A node that does not answer is in `unseen`, never an exception."""

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        """Look at all of them side by side, within a deadline for all together: run -> what was seen."""
        ...
