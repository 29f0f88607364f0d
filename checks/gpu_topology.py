"""Whether the GPUs sit at the NUMA nodes where they should, each with an RDMA adapter beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clustertools.check import Context, check
from clustertools.errors import Absent
from clustertools.model import Finding, Reading, Remedy, gpu_part
from clustertools.sources.infiniband import fabric_devices
from clustertools.sources.pci import amd_devices, nvidia_devices


@check(
    stages={"preflight", "daily"},
    codes={
        "GpuNumaWrong": "the GPUs are spread over the NUMA nodes otherwise than they should be",
        "GpuNicFar": "a GPU has no RDMA adapter at its NUMA node, though its peers have",
    },
)
def gpu_topology(ctx: Context) -> Iterator[Finding | Reading]:
    """Compares where GPUs and RDMA adapters sit with the class, or with the machine's own symmetry.

    `expect["gpu_numa_nodes"]` is the NUMA node of each GPU in the order of the bus ([0, 0, 1, 1]). Azure's
    health checks hold such a topology file of each machine size against what NCCL is told; a virtual machine
    whose host mixed them up is otherwise only slow. Without it an even number of GPUs on two or more nodes is
    taken to be spread evenly, and adapters as many as the GPUs to be spread as these are.
    """
    gpus = nvidia_devices(ctx.host) or amd_devices(ctx.host)
    if not gpus:
        raise ctx.skip("no GPU on the PCI bus")
    nodes = [_numa_node(ctx, address) for address in gpus]
    if -1 in nodes:
        raise ctx.skip(
            "the firmware does not say at which NUMA node the GPUs are (one node, or a virtual machine)"
        )
    evidence = tuple(f"{address}: NUMA node {node}" for address, node in zip(gpus, nodes, strict=True))
    counts = Counter(nodes)
    for node, count in sorted(counts.items()):
        yield ctx.reading("gpus_at_numa_node_total", count, f"numa{node}")
    wanted = ctx.expect.get("gpu_numa_nodes")
    if wanted is not None and list(wanted) != nodes:
        yield ctx.warning(
            "GpuNumaWrong", "", f"the GPUs are at the NUMA nodes {nodes}, expected {list(wanted)}",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
    elif (
        wanted is None and len(counts) > 1 and len(gpus) % len(counts) == 0 and len(set(counts.values())) > 1
    ):
        said = ", ".join(f"{count} at node {node}" for node, count in sorted(counts.items()))
        yield ctx.warning(
            "GpuNumaWrong", "", f"{len(gpus)} GPUs are spread unevenly over the NUMA nodes: {said}",
            evidence=evidence, remedy=Remedy.INSPECT,
        )  # fmt: skip
    yield from _adapters(ctx, gpus, nodes)


def _adapters(ctx: Context, gpus: Sequence[str], nodes: Sequence[int]) -> Iterator[Finding]:
    """GPUs without an adapter at their node, where there are as many adapters as GPUs to go round."""
    adapters = [device for device in fabric_devices(ctx.host, ctx.unseen) if device.numa_node >= 0]
    if len(adapters) < len(gpus):
        return
    near = {device.numa_node for device in adapters}
    for address, node in zip(gpus, nodes, strict=True):
        if node not in near:
            yield ctx.warning(
                "GpuNicFar", gpu_part(address),
                f"no RDMA adapter at NUMA node {node}, where this GPU is; {len(adapters)} are elsewhere",
                evidence=tuple(f"{device.name}: NUMA node {device.numa_node}" for device in adapters),
                remedy=Remedy.INSPECT,
            )  # fmt: skip


def _numa_node(ctx: Context, address: str) -> int:
    try:
        return int(ctx.host.read(f"/sys/bus/pci/devices/{address}/numa_node"))
    except (Absent, ValueError):
        return -1  # what the kernel writes, too, where it does not know
