"""The readers of nccl-tests, perftest and nvbandwidth: figures, their units, and what is no figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import Unparsable
from clustertools.sources.tools import ib_write_bw, nccl_tests, nvbandwidth, read_tolerantly

TOOLS = Path(__file__).parents[1] / "tools"
HEADING = (
    "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw"
)


def sample(name: str) -> str:
    return (TOOLS / name).read_text()


# nccl-tests


def test_a_run_on_eight_gpus() -> None:
    (run,) = nccl_tests.read(sample("nccl-tests/h100-8.txt"))["runs"]
    assert (run["min_bytes"], run["iterations"], run["warmup_iterations"], run["validated"]) == (
        268435456, 20, 5, True,
    )  # fmt: skip
    assert run["rows"][-1] == {
        "size_bytes": 2147483648, "elements": 536870912, "type": "float", "operation": "sum", "root": -1,
        "out_of_place": {
            "time_microseconds": 7983.5, "algbw_gb_per_second": 268.99,
            "busbw_gb_per_second": 470.73, "wrong": 0,
        },
        "in_place": {
            "time_microseconds": 7985.2, "algbw_gb_per_second": 268.93,
            "busbw_gb_per_second": 470.63, "wrong": 0,
        },
    }  # fmt: skip
    assert (run["ok"], run["average_busbw_gb_per_second"], run["peak_busbw_gb_per_second"]) == (
        True, 448.212, 470.73,
    )  # fmt: skip
    assert run["devices"][1] == {
        "rank": 7, "pid": 1623025, "host": "host", "device": 7, "pci_bus": "0xdf",
        "name": "NVIDIA H100 80GB HBM3",
    }  # fmt: skip


def test_a_run_under_mpirun_among_other_lines() -> None:
    (run,) = nccl_tests.read(sample("nccl-tests/mpirun-efa.txt"))["runs"]
    assert [row["size_bytes"] for row in run["rows"]] == [67108864, 134217728]
    assert run["average_busbw_gb_per_second"] == 1.15327


def test_two_runs_in_one_log_are_two() -> None:
    text = sample("nccl-tests/gb10-2.18-allgather.txt")
    runs = nccl_tests.read(text + "case 2\n" + text)["runs"]
    assert [(r["test"], r["version"], r["nccl_library"], len(r["rows"])) for r in runs] == [
        ("all_gather_perf", "2.18.3", 22907, 3)
    ] * 2
    assert runs[0]["rows"][0]["operation"] is None


@pytest.mark.parametrize(
    ("row", "wrong", "in_place", "root"),
    [
        ("  1024  256  float  sum  -1  9.0  0.1  0.2  N/A  9.1  0.1  0.2  N/A", None, True, -1),
        ("  1024  256  float  -1  9.0  0.1  0.2  3  N/A  N/A  N/A  N/A", 3, False, -1),
        ("  1024  256  float  sum  9.0  0.1  0.2  0e+00  9.1  0.1  0.2  0e+00", 0, True, None),
        ("  1024  256  float  9.0  0.1  0.2  1e-06  9.1  0.1  0.2  0e+00", 1e-06, True, None),
        ("  1024  256  float  sum  -1  9.0  0.1  0.2  0", 0, False, -1),
    ],
)
def test_the_rows_of_all_versions(row: str, wrong: float | None, in_place: bool, root: int | None) -> None:
    heading = HEADING if root is not None else HEADING.replace(" root", "")
    (run,) = nccl_tests.read(f"{heading}\n{row}\n")["runs"]
    (read,) = run["rows"]
    assert (read["root"], read["in_place"] is not None) == (root, in_place)
    assert read["out_of_place"]["wrong"] == wrong
    assert run["ok"] is None, "a run without its trailer did not come to its end"


def test_wrong_data_and_failures_are_told() -> None:
    text = (
        f"{HEADING}\n  8  2  float  sum  -1  9.0  0.1  0.2  5  9.1  0.1  0.2  0\n"
        "# Out of bounds values : 5 FAILED\n# Avg bus bandwidth    : 0.2\n"
        "gpu-017: Test NCCL failure common.cu:1005 'unhandled system error'\n"
        "# Avg bus bandwidth    : nan\n"
    )
    (run,) = nccl_tests.read(text)["runs"]
    assert (run["ok"], run["out_of_bounds"], run["average_busbw_gb_per_second"]) == (False, 5, None)
    assert run["failures"] == ["gpu-017: Test NCCL failure common.cu:1005 'unhandled system error'"]


def test_a_row_that_is_cut_is_said() -> None:
    text = (
        f"{HEADING}\n  8  2  float  sum  -1  9.0  0.1  0.2  0  9.1  0.1\n  16  4  float  sum  -1  9 1 2 0\n"
    )
    with pytest.raises(Unparsable, match=r"9\.0  0\.1"):
        nccl_tests.read(text)
    told, unparsed = read_tolerantly(nccl_tests, text)
    assert [row["size_bytes"] for row in told["runs"][0]["rows"]] == [16]
    assert [line["line"] for line in unparsed] == [2]


# perftest


def test_bandwidth_by_size_and_by_duration() -> None:
    (test,) = ib_write_bw.read(sample("ib-write-bw/roce-sizes.txt"))["tests"]
    assert test["test"] == "RDMA_Write Bidirectional BW Test"
    assert test["settings"]["Device"] == "mlx5_0"
    assert test["settings"]["Link type"] == "Ethernet"
    assert test["rows"][-1] == {
        "size_bytes": 4096, "iterations": 5000, "peak_gigabits_per_second": 188.76,
        "average_gigabits_per_second": 188.56, "message_rate_millions_per_second": 5.754307,
    }  # fmt: skip
    (test,) = ib_write_bw.read(sample("ib-write-bw/by-duration.txt"))["tests"]
    assert test["rows"][0]["average_gigabits_per_second"] == 98.02
    assert test["warnings"] == [
        "Conflicting CPU frequency values detected: 1500.000000 != 3300.016000. CPU Frequency is not max."
    ]


def test_megabytes_are_of_two_to_the_twentieth() -> None:
    text = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n"
    (test,) = ib_write_bw.read(
        text + " 65536      5000             11000.00           10999.99      0.176\n"
    )["tests"]
    assert test["rows"][0]["peak_gigabits_per_second"] == pytest.approx(11000 * 2**20 * 8 / 1e9)


def test_latency() -> None:
    (test,) = ib_write_bw.read(sample("ib-write-bw/latency.txt"))["tests"]
    assert test["test"] == "RDMA_Write Latency Test"
    row = test["rows"][0]
    assert (row["typical_microseconds"], row["p99_microseconds"], row["p999_microseconds"]) == (
        1.05,
        1.14,
        3.35,
    )


def test_json_of_perftest_with_its_comma() -> None:
    text = (
        '{\n"test_info": {\n"test": "RDMA_Write BW Test",\n"Device": "mlx5_0",\n},\n"results": {\n'
        '"MsgSize": 65536,\n"n_iterations": 5000,\n"BW_peak": 196.1,\n"BW_average": 195.9\n}\n}\n'
    )
    assert ib_write_bw.recognise(text)
    (test,) = ib_write_bw.read(text)["tests"]
    assert test["rows"][0]["average_gigabits_per_second"] == 195.9


def test_a_row_that_is_none_of_perftest_is_said() -> None:
    text = " #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]\n"
    text += " 65536 five 1 2 3\n"
    with pytest.raises(Unparsable, match="65536 five"):
        ib_write_bw.read(text)


# nvbandwidth


def test_matrices_and_the_diagonal_that_was_not_measured() -> None:
    told = nvbandwidth.read(sample("nvbandwidth/h800-0.2.txt"))
    assert (told["version"], told["driver"], told["devices"]) == ("0.2", "525.105.17", ["NVIDIA H800"] * 2)
    host, peers = told["tests"]
    assert (host["matrix"], host["sum"], host["unit"]) == ([[55.28, 55.30]], 110.58, "GB/s")
    assert (peers["matrix"], peers["minimum"]) == ([[0.0, 276.07], [276.19, 0.0]], 276.07)


def test_what_was_waived_is_no_zero() -> None:
    host, peers = nvbandwidth.read(sample("nvbandwidth/a10-0.5.txt"))["tests"]
    assert (host["status"], host["maximum"]) == ("passed", 25.17)
    assert (peers["status"], peers["matrix"], peers["minimum"]) == ("waived", [], None)


def test_json_of_nvbandwidth() -> None:
    case: dict[str, Any] = {
        "name": "device_to_device_memcpy_read_ce", "status": "Passed",
        "bandwidth_matrix": [["N/A", "376.10"], ["375.90", "N/A"]], "sum": 752.0,
    }  # fmt: skip
    text = json.dumps(
        {"nvbandwidth": {"version": "0.8", "Driver Version": "550.54.15", "testcases": [case],
                         "GPU Device list": ["0: NVIDIA H100 80GB HBM3", "1: NVIDIA H100 80GB HBM3"]}}
    )  # fmt: skip
    assert nvbandwidth.recognise(text)
    told = nvbandwidth.read(text)
    assert told["devices"] == ["NVIDIA H100 80GB HBM3"] * 2
    assert told["tests"][0]["matrix"] == [[None, 376.1], [375.9, None]]
    assert told["tests"][0]["minimum"] == 375.9
