"""Other tools' output as trials: wrong data, cut output, skips and set-up are told apart from speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clustertools.measurement import Ending, Trial
from clustertools.probes.tool_figures import (
    from_dcgm_diag,
    from_ib_write_bw,
    from_nccl_tests,
    from_nvbandwidth,
)  # fmt: skip
from clustertools.sources.tools import dcgm_diag, ib_write_bw, nccl_tests, nvbandwidth

TOOLS = Path(__file__).parents[1] / "tools"
ROW = "  268435456  67108864  float  sum  -1  1119.8  239.71  419.49  {}  1117.4  240.24  420.42  {}"
HEADING = "#  size  count  type  redop  root  time  algbw  busbw #wrong  time  algbw  busbw #wrong"


def sample(name: str) -> str:
    return (TOOLS / name).read_text()


def nccl(*lines: str) -> Trial:
    return from_nccl_tests(
        nccl_tests.read("\n".join((HEADING, *lines))), ("n1", "n2"), collective="all_reduce"
    )


def test_each_size_of_nccl_tests_is_a_figure_and_the_average_is_none():
    trial = from_nccl_tests(
        nccl_tests.read(sample("nccl-tests/h100-8.txt")), ("n1",), collective="all_reduce"
    )
    assert (trial.ending, trial.blamed) == (Ending.DONE, ())
    assert {f.size_bytes: f.value for f in trial.figures} == {
        268435456: 420.42e9, 536870912: 436.02e9, 1073741824: 466.57e9, 2147483648: 470.73e9,
    }  # fmt: skip
    assert {(f.probe, f.metric, f.nodes) for f in trial.figures} == {
        ("collective", "busbw_bytes_per_second", ("n1",))
    }
    # the list of devices was cut: how many ranks there were is not made up
    assert {f.variant for f in trial.figures} == {"nccl-tests float all_reduce"}


def test_wrong_elements_are_wrong_data_however_fast_and_whatever_the_trailer_says():
    fast = nccl(ROW.format(0, 17), "# Out of bounds values : 0 OK", "# Avg bus bandwidth : 419.9")
    assert fast.ending is Ending.WRONG_DATA
    assert fast.detail == "all_reduce: 17 wrong elements of 67108864 at 268435456 bytes, in_place"
    told = nccl(ROW.format("N/A", "N/A"), "# Out of bounds values : 4 FAILED", "# Avg bus bandwidth : 419.9")
    assert told.ending is Ending.WRONG_DATA


def test_the_largest_error_that_old_versions_print_is_no_count():
    old = nccl(ROW.format("4e-07", "0e+00"), "# Out of bounds values : 0 OK", "# Avg bus bandwidth : 419.9")
    assert old.ending is Ending.DONE


def test_output_that_stops_is_a_crash_and_keeps_its_figures():
    cut = nccl(ROW.format(0, 0))
    assert (cut.ending, len(cut.figures)) == (Ending.CRASH, 1)
    assert "stops after 268435456 bytes" in cut.detail
    failed = nccl(ROW.format(0, 0), "n1: Test NCCL failure common.cu:1005 'unhandled system error'")
    assert (failed.ending, "unhandled system error" in failed.detail) == (Ending.CRASH, True)


def test_an_average_of_zero_with_no_rows_could_not_run():
    empty = nccl("# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 0")
    assert (empty.ending, empty.figures) == (Ending.COULD_NOT_RUN, ())


def test_one_rank_has_no_bus_bandwidth():
    alone = nccl(
        "  1024  256  float  sum  -1  4.1  0.25  0.00  0  3.9  0.26  0.00  0",
        "# Out of bounds values : 0 OK",
        "# Avg bus bandwidth    : 0",
    )
    assert (alone.ending, alone.figures) == (Ending.COULD_NOT_RUN, ())
    assert "single rank" in alone.detail


def test_nvbandwidth_gives_each_gpu_its_figure_and_none_for_a_gpu_with_itself():
    told = nvbandwidth.read(sample("nvbandwidth/h800-0.2.txt"))
    trial = from_nvbandwidth(told, "n1", parts=("gpu@0000:18:00.0", "gpu@0000:2a:00.0"))
    assert trial.ending is Ending.DONE
    assert [(f.probe, f.part, f.value) for f in trial.figures] == [
        ("host_device", "gpu@0000:18:00.0", 55.28e9),
        ("host_device", "gpu@0000:2a:00.0", 55.3e9),
        ("peer", "gpu@0000:18:00.0 to gpu@0000:2a:00.0", 276.07e9),
        ("peer", "gpu@0000:2a:00.0 to gpu@0000:18:00.0", 276.19e9),
    ]


def bandwidth_test(**changes: Any) -> dict[str, Any]:
    test = {"name": "host_to_device_memcpy_ce", "status": "passed", "bandwidth_matrix": [["55.1"]], **changes}
    return nvbandwidth.read(json.dumps({"nvbandwidth": {"testcases": [test]}}))


def test_what_nvbandwidth_waived_is_no_figure_and_a_failed_copy_is_no_pass():
    assert from_nvbandwidth(bandwidth_test(), "n1").ending is Ending.DONE
    waived = from_nvbandwidth(bandwidth_test(status="Waived", bandwidth_matrix=[]), "n1")
    assert waived.ending is Ending.COULD_NOT_RUN
    assert from_nvbandwidth(bandwidth_test(status="Failed"), "n1").ending is Ending.CRASH
    text = (
        "nvbandwidth Version: v0.5\nRunning device_to_device_memcpy_read_ce.\n"
        " Invalid value when checking the pattern at 0x735f80000000\n Current offset : 200064 \n"
        "ASSERT in expression h_errorFlag == 0 in void memcmpPatternHelper\n  (CUstream, CUdeviceptr)() :\n"
    )
    assert from_nvbandwidth(nvbandwidth.read(text), "n1").ending is Ending.WRONG_DATA


def test_perftest_by_duration_has_no_peak_but_an_average():
    trial = from_ib_write_bw(ib_write_bw.read(sample("ib-write-bw/by-duration.txt")), ("n1", "n2"))
    (figure,) = trial.figures
    assert (figure.value, figure.part, figure.size_bytes) == (98.02e9 / 8, "mlx5_0", 65536)
    assert figure.variant == "perftest RDMA_Write BW 1 qps"
    assert trial.evidence[0].startswith("Conflicting CPU frequency values")


def test_perftest_latency_is_better_when_lower_and_both_ways_are_another_variant():
    trial = from_ib_write_bw(ib_write_bw.read(sample("ib-write-bw/latency.txt")), ("n1", "n2"))
    assert [(f.metric, round(f.value * 1e6, 3), f.higher_is_better) for f in trial.figures] == [
        ("latency_seconds", 1.05, False), ("latency_p99_seconds", 1.14, False),
    ]  # fmt: skip
    both = from_ib_write_bw(ib_write_bw.read(sample("ib-write-bw/roce-sizes.txt")), ("n1", "n2"))
    assert {f.variant for f in both.figures} == {"perftest RDMA_Write Bidirectional BW 1 qps"}


def test_a_failed_diagnostic_blames_the_node_but_persistence_mode_is_set_up():
    bad = from_dcgm_diag(dcgm_diag.read(sample("dcgm-diag/three.json")), "n1")
    assert (bad.ending, bad.blamed) == (Ending.CRASH, ("n1",))
    assert bad.detail.startswith("GPU Memory: fail on GPU 1: Detected 4 volatile double-bit")
    set_up = from_dcgm_diag(dcgm_diag.read(sample("dcgm-diag/persistence-4.2.json")), "n1")
    # another GPU passed: it ran, and says what to set right
    assert (set_up.ending, set_up.blamed) == (Ending.DONE, ())
    assert "Persistence mode for GPU 0 is disabled" in set_up.evidence[0]


def test_a_diagnostic_that_skipped_everything_has_not_passed():
    skipped = json.loads(sample("dcgm-diag/persistence-4.2.json"))
    told = dcgm_diag.read(json.dumps(skipped))
    for test in told["tests"]:
        for result in test["results"]:
            result["status"] = "skip"
    assert from_dcgm_diag(told, "n1").ending is Ending.COULD_NOT_RUN
    assert (
        from_dcgm_diag({**told, "error": "Error: unable to connect"}, "n1").detail
        == "Error: unable to connect"
    )
