"""What a figure can be at most on this hardware, and the best that others have measured on it. Pure.

    facts = facts_from(expect, "NVIDIA H100 80GB HBM3")
    upper = upper_bound({"gpu-001": facts, "gpu-002": facts})
    upper(figure)                   # Bound(400e9, 750e9, "8 x 50 GB/s of network in each of 2 nodes")

A bound is for finding what cannot be (a measurement beyond it is wrong) and what is far from it; it is never
a pass line, since nobody reaches it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clustertools.catalog.performance import GpuRow, Measured, efa_bytes_per_second, gpu_row
from clustertools.measurement import Figure

#: Bytes a second of one PCIe lane, one way, after its line code (8b/10b, 128b/130b, and flits in 6.0), from
#: the PCI Express base specifications. What copies reach is some 12 % less, for the headers of packets.
_PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.9846e9, 4: 1.9692e9, 5: 3.9385e9, 6: 7.5629e9}
#: Buffers below this may live in a cache (256 MB on an MI300X), which is faster than the memory.
_BEYOND_CACHES_BYTES = 512 << 20
#: A matrix of fewer rows leaves parts of a GPU idle.
_WHOLE_MATRIX = 4096
_DTYPES = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64", "double": "float64",
    "fp32": "float32", "float": "float32", "fp8": "float8",
    "float8_e4m3fn": "float8", "float8_e5m2": "float8",
}  # fmt: skip
_COLLECTIVES = {
    "all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all", "alltoall": "all_to_all", "broadcast": "broadcast", "reduce": "reduce",
    "pairs": "pairs", "sendrecv": "pairs",
}  # fmt: skip
# nccl float32 16 ranks all_reduce
_RANKS = re.compile(r"\b(\d+) ranks\b")
# bfloat16 8192      bfloat16 8192x8192x8192
_DIMENSION = re.compile(r"\b(\d{3,6})(?=x|\b)")


@dataclass(frozen=True, slots=True)
class Bound:
    """`value`: what the links or units carry. `surely`: what nothing can beat, such as when switches add up.

    `full`: whether a sound device comes near `value` in such a test, so that far below it says something.
    """

    value: float
    surely: float
    why: str
    full: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """Somebody else's best figure, and who says so."""

    value: float
    why: str


Upper = Callable[[Figure], "Bound | None"]
MeasuredElsewhere = Callable[[Figure], "Reference | None"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a node sets bounds; 0 and "" are not known. Rates are bytes a second, one way.

    `network_bytes_per_second` is all ports of a node together, `port_bytes_per_second` one of them.
    """

    gpu: str = ""
    gpus: int = 0
    network_bytes_per_second: float = 0.0
    port_bytes_per_second: float = 0.0
    nvlink_bytes_per_second: float = 0.0
    host_bytes_per_second: float = 0.0

    @property
    def row(self) -> GpuRow | None:
        return gpu_row(self.gpu) if self.gpu else None


def facts_from(expect: Mapping[str, Any], gpu: str = "") -> Facts:
    """What is known of a node from what is expected of it (`ctx.expect`), and from the name of its GPUs.

    What is expected counts before what the catalogue says of such a GPU. `network_bits_per_second` (all
    ports) overrides what ports and their rate come to.
    """
    row = gpu_row(gpu) if gpu else None
    ports, rate = _number(expect, "ib_ports"), _number(expect, "ib_rate_bits_per_second") / 8
    efa = efa_bytes_per_second(int(_number(expect, "efa_devices")), row.name if row else "")
    network = _number(expect, "network_bits_per_second") / 8 or ports * rate or efa
    nvlink = _number(expect, "nvlinks_per_gpu") * _number(expect, "nvlink_bytes_per_second")
    generation = int(_number(expect, "pcie_generation")) or (row.pcie_generation if row else 0)
    width = int(_number(expect, "pcie_width")) or (row.pcie_width if row else 0)
    # a GPU beside its CPU (GH200) is not reached over PCIe, whatever PCIe it also has
    host = (row.host_bytes_per_second if row else 0.0) or width * _PCIE_LANE.get(generation, 0.0)
    return Facts(
        gpu,
        int(_number(expect, "gpu_count")),
        network,
        rate,
        nvlink or (row.nvlink_bytes_per_second if row else 0.0),
        host,
    )


def _number(expect: Mapping[str, Any], key: str) -> float:
    value = expect.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def upper_bound(facts: Mapping[str, Facts]) -> Upper:
    """The bound of a figure by the facts of its nodes; None where they do not tell one."""

    def upper(figure: Figure) -> Bound | None:
        known = [facts[node] for node in figure.nodes if node in facts]
        if len(known) < len(figure.nodes) or not known or not figure.higher_is_better:
            return None
        if figure.probe == "collective":
            return _collective(figure, known)
        if figure.probe == "gemm":
            return _gemm(figure, known[0].row)
        if figure.probe == "memory":
            return _memory(figure, known[0].row)
        ways = 2 if _both_ways(figure) else 1
        told = "both ways" if ways == 2 else "one way"
        if figure.probe == "host_device" and known[0].host_bytes_per_second:
            value = ways * known[0].host_bytes_per_second
            return Bound(value, value, f"the link to the host, {told}")
        if figure.probe == "peer" and known[0].nvlink_bytes_per_second and "host" not in figure.variant:
            value = ways * known[0].nvlink_bytes_per_second
            return Bound(value, value, f"the links of a GPU, {told}")
        if figure.probe == "ib_write_bw" and (port := min(one.port_bytes_per_second for one in known)):
            return Bound(ways * port, ways * port, f"one port, {told}")
        return None

    return upper


def measured_elsewhere(facts: Mapping[str, Facts]) -> MeasuredElsewhere:
    """Others' best figure for the same test on the same GPU and network; None where there is none."""

    def known(figure: Figure) -> Reference | None:
        mine = [facts[node] for node in figure.nodes if node in facts]
        rows = {one.gpu: one.row for one in mine}
        row = next(iter(rows.values()), None)
        if len(rows) != 1 or row is None or not figure.higher_is_better:
            return None
        best = max((one for one in row.measured if _same_test(one, figure, mine)), key=_value, default=None)
        return Reference(best.value, f"{row.name}: {best.source}, {best.date}") if best else None

    return known


def _value(measured: Measured) -> float:
    return measured.value


def _same_test(one: Measured, figure: Figure, facts: list[Facts]) -> bool:
    if one.probe != figure.probe or (one.dtype and one.dtype != dtype_of(figure.variant)):
        return False
    if one.probe == "gemm":
        return _largest(figure.variant) >= _WHOLE_MATRIX
    if _both_ways(figure):
        return False
    if one.probe != "collective":
        return not figure.size_bytes or figure.size_bytes >= 64 << 20
    network = facts[0].network_bytes_per_second
    return (
        one.collective == collective_of(figure.variant)
        and one.nodes == len(figure.nodes)
        and one.ranks == ranks_of(figure, facts)
        and one.size_bytes == figure.size_bytes
        and (not one.network or math.isclose(one.network, network, rel_tol=0.01))
        and "gloo" not in figure.variant
    )


def _both_ways(figure: Figure) -> bool:
    told = f"{figure.metric} {figure.variant}".lower().replace("_", " ")
    return "both ways" in told or "bidirectional" in told


def dtype_of(variant: str) -> str:
    """The type of the elements that a variant names, as PyTorch calls it; empty when it names none."""
    names = {*_DTYPES.values(), "tf32", "int8"}
    words = (_DTYPES.get(word, word) for word in variant.lower().replace("torch.", "").split())
    return next((word for word in words if word in names), "")


def collective_of(variant: str) -> str:
    """The collective that a variant names; empty when it names none."""
    return next((_COLLECTIVES[word] for word in variant.lower().split() if word in _COLLECTIVES), "")


def ranks_of(figure: Figure, facts: list[Facts]) -> int:
    """How many ranks took part: as the variant says, or else one a GPU; 0 when nobody knows."""
    if match := _RANKS.search(figure.variant):
        return int(match[1])
    return sum(one.gpus for one in facts) if all(one.gpus for one in facts) else 0


def _largest(variant: str) -> int:
    """The largest dimension of a matrix that a variant names; 0 when it names none."""
    return max((int(match) for match in _DIMENSION.findall(variant)), default=0)


def _gemm(figure: Figure, row: GpuRow | None) -> Bound | None:
    dtype = dtype_of(figure.variant)
    if row is None or dtype not in row.flops or not figure.metric.startswith("flop"):
        return None
    value = row.flops[dtype]
    # a library may put wide types together from products of narrow ones, on units that are faster (TF32 for
    # float32 when allowed; cuBLAS's emulation of float64)
    surely = max(value, row.flops.get("tf32", value)) if dtype in ("float32", "float64") else value
    full = _largest(figure.variant) >= _WHOLE_MATRIX and surely == value
    return Bound(value, surely, f"the {dtype} peak of {row.name}", full)


def _memory(figure: Figure, row: GpuRow | None) -> Bound | None:
    if row is None or 0 < figure.size_bytes < _BEYOND_CACHES_BYTES:
        return None
    return Bound(row.memory_bytes_per_second, row.memory_bytes_per_second, f"the memory of {row.name}")


def _collective(figure: Figure, facts: list[Facts]) -> Bound | None:
    """The bus bandwidth of a collective: what the network of a node, and what the links of a GPU, let pass.

    For k nodes of g ranks (n = k g) each with the share w of its node's network, a node must take in what the
    others have and it has not, whatever the algorithm: busbw <= w (n - 1) / (k - 1) (of which a flat ring
    reaches g w). Switches that add up (SHARP) halve what an all-reduce sends: 2 (n - 1) / n of g w.
    Within a node they do so too (NVLS); measured is 107 % of the links' rate on eight H200.
    """
    nodes, name = len(figure.nodes), collective_of(figure.variant)
    ranks = ranks_of(figure, facts)
    if not figure.metric.startswith("busbw") or not name or ranks < 2 or ranks % nodes:
        return None
    over_gpus = "gloo" not in figure.variant
    links = min(one.nvlink_bytes_per_second for one in facts) if over_gpus else 0.0
    network = min(one.network_bytes_per_second for one in facts)
    a_node = ranks // nodes
    adds_up = name == "all_reduce" and all(one.row is not None and one.row.in_network for one in facts)
    doubled = 2 * (ranks - 1) / ranks
    if nodes == 1:
        if not links or not over_gpus or a_node > max(facts[0].gpus, 1):
            return None
        return Bound(links, links * doubled if adds_up else links, "the links of a GPU", full=False)
    if not network:
        return None
    share = network / a_node
    if name in ("broadcast", "reduce", "pairs"):
        value = surely = network
    elif name == "all_to_all":
        value = surely = share * (ranks - 1) / (ranks - a_node)
    else:
        value, surely = network, share * (ranks - 1) / (nodes - 1)
        if name == "all_reduce":
            surely = max(surely, network * doubled)
    why = f"{_rounded(network)} GB/s of network in each of {nodes} nodes"
    # a rank takes in over its own links and its share of the network
    if links and surely > (links + share) * (doubled if adds_up else 1):
        surely = (links + share) * (doubled if adds_up else 1)
        if value > surely:
            value, why = surely, "the links of a GPU and its share of the network"
    return Bound(value, surely, why, full=False)


def _rounded(value: float) -> str:
    return f"{value / 1e9:.4g}"
