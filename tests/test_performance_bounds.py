"""Physical limits from facts, the catalogue behind them, and digests."""

from __future__ import annotations

import re

import pytest

from clustertools.catalog import performance as catalogue
from clustertools.measurement import Figure, Grade
from clustertools.performance import assess
from clustertools.performance_bounds import Facts, facts_from, measured_elsewhere, upper_bound

GB = 1e9
H100 = "NVIDIA H100 80GB HBM3"
#: Eight ports of 400 Gb/s.
EXPECT = {"gpu_count": 8, "ib_ports": 8, "ib_rate_bits_per_second": 400_000_000_000}


def all_reduce(nodes: int, ranks: int = 0, collective: str = "all_reduce", value: float = 1.0) -> Figure:
    names = tuple(f"n{i}" for i in range(nodes))
    variant = f"nccl float32 {ranks or 8 * nodes} ranks {collective}"
    return Figure("collective", names, "busbw_bytes_per_second", value, "", 16 << 30, variant)


def facts(gpu: str = H100, nodes: int = 32, **expect: object) -> dict[str, Facts]:
    return {f"n{i}": facts_from({**EXPECT, **expect}, gpu) for i in range(nodes)}


@pytest.mark.parametrize(
    ("nodes", "hierarchical"), [(2, 750), (4, 516.67), (8, 450), (16, 423.33), (32, 411.29)]
)
def test_an_all_reduce_over_nodes_is_bound_by_the_network(nodes: int, hierarchical: float) -> None:
    bound = upper_bound(facts())(all_reduce(nodes))
    assert bound is not None
    # a flat ring reaches the network of a node; nothing beats the larger of a tree's and the switches' bound
    assert bound.value == 400 * GB
    by_switches = 2 * (8 * nodes - 1) / (8 * nodes) * 400
    assert bound.surely == pytest.approx(max(hierarchical, by_switches) * GB, rel=1e-4)
    assert "400 GB/s of network in each of" in bound.why
    gathered = upper_bound(facts())(all_reduce(nodes, collective="all_gather"))
    assert gathered is not None
    # without sums, switches do not help; the links of a GPU and its share of the network are 500
    assert gathered.surely == pytest.approx(min(hierarchical, 500) * GB, rel=1e-4)


def test_within_a_node_the_links_are_the_bound_and_switches_may_add_up() -> None:
    bound = upper_bound(facts())(all_reduce(1))
    assert bound is not None
    assert (bound.value, bound.surely) == (450 * GB, 450 * GB * 2 * 7 / 8)
    a100 = upper_bound(facts("NVIDIA A100-SXM4-80GB"))(all_reduce(1))
    assert a100 is not None
    assert (a100.value, a100.surely) == (300 * GB, 300 * GB)


def test_thresholds_that_were_published_and_cannot_be_reached() -> None:
    # a public health check asks 300 GB/s of p4d on two nodes
    p4d = facts("NVIDIA A100-SXM4-40GB", ib_ports=0, efa_devices=4)
    bound = upper_bound(p4d)(all_reduce(2))
    assert bound is not None
    assert bound.value == 50 * GB
    assert bound.surely < 300 * GB


def test_one_rank_a_node_and_all_to_all() -> None:
    single = upper_bound(facts(gpu=""))(all_reduce(4, ranks=4))
    assert single is not None
    # (n - 1) / (k - 1) is 1 then, and switches that add up give 2 (n - 1) / n
    assert (single.value, single.surely) == (400 * GB, 600 * GB)
    exchanged = upper_bound(facts(gpu=""))(all_reduce(2, collective="all_to_all"))
    assert exchanged is not None
    # of 15 blocks that a rank sends, 8 leave its node
    assert exchanged.surely == pytest.approx(50 * GB * 15 / 8)


def test_what_is_not_known_bounds_nothing() -> None:
    assert upper_bound({})(all_reduce(2)) is None
    assert upper_bound({"n0": Facts()})(all_reduce(2)) is None
    assert upper_bound({"n0": Facts(), "n1": Facts()})(all_reduce(2)) is None
    gloo = Figure(
        "collective", ("n0",), "busbw_bytes_per_second", 1, "", 1 << 30, "gloo float32 8 ranks all_reduce"
    )
    assert upper_bound(facts())(gloo) is None
    latency = Figure("ib_write_bw", ("n0", "n1"), "latency_seconds", 1e-6, higher_is_better=False)
    assert upper_bound(facts())(latency) is None


@pytest.mark.parametrize(
    ("expect", "gpu", "limit"),
    [
        ({"pcie_generation": 5, "pcie_width": 16}, "", 63.0),
        ({"pcie_generation": 4, "pcie_width": 16}, "", 31.5),
        ({"pcie_generation": 4, "pcie_width": 8}, H100, 15.75),  # what is expected goes before the catalogue
        ({}, H100, 63.0),
        ({"pcie_generation": 5, "pcie_width": 16}, "NVIDIA GB200", 450.0),
    ],
)
def test_the_way_to_the_host(expect: dict[str, int], gpu: str, limit: float) -> None:
    upper = upper_bound({"n0": facts_from(expect, gpu)})
    one_way = Figure("host_device", ("n0",), "host_to_device_bytes_per_second", 1, "gpu0", 1 << 30, "pinned")
    both = Figure("host_device", ("n0",), "both_ways_bytes_per_second", 1, "gpu0", 1 << 30, "pinned")
    (once, twice) = (upper(one_way), upper(both))
    assert once is not None
    assert twice is not None
    assert once.value == pytest.approx(limit * GB, rel=0.001)
    assert twice.value == 2 * once.value


def gemm(variant: str) -> Figure:
    return Figure("gemm", ("n0",), "flop_per_second", 1, "gpu0", 0, variant)


def test_the_peak_of_a_type_and_that_float32_may_use_tf32() -> None:
    upper = upper_bound(facts())
    for variant, value, surely, full in (
        ("bfloat16 8192", 989.4e12, 989.4e12, True),
        ("fp8 8192", 1978.9e12, 1978.9e12, True),
        ("bfloat16 512", 989.4e12, 989.4e12, False),
        ("float32 8192", 66.9e12, 494.7e12, False),
    ):
        bound = upper(gemm(variant))
        assert bound is not None
        assert (bound.value, bound.surely, bound.full) == (value, surely, full)
    assert upper(gemm("int4 8192")) is None


def test_a_cache_is_faster_than_the_memory() -> None:
    upper = upper_bound(facts())
    small = Figure("memory", ("n0",), "bytes_per_second", 5e12, "gpu0", 32 << 20, "copy")
    large = Figure("memory", ("n0",), "bytes_per_second", 3e12, "gpu0", 4 << 30, "copy")
    assert upper(small) is None
    bound = upper(large)
    assert bound is not None
    assert bound.value == 3.352e12


def test_a_gpu_beyond_its_peak_is_not_believed_but_beyond_its_rated_clock_is() -> None:
    def graded(value: float) -> Grade:
        one = Figure("gemm", ("n0",), "flop_per_second", value, "gpu0", 0, "bfloat16 8192")
        return assess([one], bounds=upper_bound(facts())).judged[0].grade

    assert graded(1040e12) is Grade.GOOD  # 1980 MHz instead of 1830
    assert graded(1200e12) is Grade.COULD_NOT_RUN
    assert graded(300e12) is Grade.SLOW


def test_no_measured_figure_of_the_catalogue_is_above_its_bound() -> None:
    checked = 0
    for row in catalogue.gpu_rows():
        for one in row.measured:
            expect = {"gpu_count": 8, "network_bits_per_second": one.network * 8}
            known = {f"n{i}": facts_from(expect, row.names[0]) for i in range(one.nodes or 1)}
            words = (
                f"nccl float32 {one.ranks} ranks {one.collective}" if one.collective else f"{one.dtype} 8192"
            )
            metric = {"gemm": "flop_per_second", "collective": "busbw_bytes_per_second"}.get(
                one.probe, "bytes_per_second"
            )
            figure = Figure(one.probe, tuple(known), metric, one.value, "", one.size_bytes, words)
            bound = upper_bound(known)(figure)
            if bound is None:
                continue
            checked += 1
            assert one.value <= (bound.surely if one.in_network else bound.value), (row.name, one)
            reference = measured_elsewhere(known)(figure)
            assert reference is not None
            assert reference.value == one.value
    assert checked >= 20


def test_rows_of_the_catalogue_have_sources_and_plausible_numbers() -> None:
    rows = catalogue.gpu_rows()
    names = [name for row in rows for name in row.names]
    assert len(set(names)) == len(names)
    for row in rows:
        assert row.source
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row.date)
        assert all(isinstance(value, float) for value in row.flops.values())
        assert 1e12 <= min(row.flops.values()) <= max(row.flops.values()) < 1e16
        assert 1e11 < row.memory_bytes_per_second < 1e13
        assert row.nvlink_bytes_per_second < 2e12
        assert all(one.source and re.fullmatch(r"20\d\d-\d\d-\d\d", one.date) for one in row.measured)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA GB200", "GB200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_tells(told: str, name: str | None) -> None:
    row = catalogue.gpu_row(told)
    assert (row.name if row else None) == name


def test_efa_by_the_number_of_devices() -> None:
    assert catalogue.efa_bytes_per_second(32) == 400 * GB
    assert catalogue.efa_bytes_per_second(16) == 400 * GB
    assert catalogue.efa_bytes_per_second(16, "B300") == 800 * GB
    assert catalogue.efa_bytes_per_second(3) == 0.0
