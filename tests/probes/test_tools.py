"""Other people's tests as probes: a stand-in on the PATH prints what the real one was recorded to print."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from clustertools.measurement import Ending
from clustertools.probes import children, collective, dcgm_diag, host_device, ib_write_bw, peer
from clustertools.probes.children import Progress
from clustertools.probes.node import Here
from clustertools.probes.orders import Order, Report

RECORDED = Path(__file__).parent.parent / "tools"
GPUS = tuple({"index": n, "name": "GPU", "pci": f"0000:{n:02x}:00.0", "uuid": ""} for n in range(8))
ALL = ("all_reduce_perf", "nvbandwidth", "ib_write_bw", "dcgmi")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program on the PATH that prints `text`, notes its argv, and ends with `code`."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def make(name, text, code=0, before=""):
        (tmp_path / f"{name}.txt").write_text(text)
        program = tmp_path / name
        program.write_text(
            f"#!{sys.executable}\nimport json, sys, time\n{before}\n"
            f"json.dump(sys.argv[1:], open({str(tmp_path / 'argv')!r}, 'w'))\n"
            f"sys.stdout.write(open({str(tmp_path / f'{name}.txt')!r}).read())\nsys.exit({code})\n"
        )
        program.chmod(0o755)
        return lambda: json.loads((tmp_path / "argv").read_text())

    return make


def run(probe, nodes=("n1",), node="n1", seconds=20.0, tools=ALL, **parameters) -> Report:
    here = Here(node, torch="2.9.0", cuda=True, devices=GPUS, tools=tools)
    order = Order(1, probe.__name__.rpartition(".")[2], nodes, seconds, parameters)
    (task,) = probe.tasks(order, here)
    return probe.gather([task.work(Progress())])


def values(report, metric):
    return {told["part"]: told["value"] for told in report.figures if told["metric"] == metric}


def test_nccl_tests_within_a_node(stand_in):
    argv = stand_in("all_reduce_perf", (RECORDED / "nccl-tests" / "h100-8.txt").read_text())
    report = run(collective, sizes_bytes=[8, 1 << 20], dtype="bfloat16", tool="nccl-tests", iterations=7)
    assert report.ending is Ending.DONE, report
    assert argv() == [
        "-b", "8", "-e", "1048576", "-f", "2", "-g", "8", "-c", "1", "-w", "2", "-n", "7", "-d", "bfloat16",
    ]  # fmt: skip
    told = [one for one in report.figures if one["metric"] == "busbw_bytes_per_second"]
    assert told[0]["variant"] == "nccl-tests bfloat16 8 ranks all_reduce"
    assert max(one["value"] for one in told) > 1e11


def test_wrong_elements_that_nccl_tests_counted(stand_in):
    text = (RECORDED / "nccl-tests" / "h100-8.txt").read_text()
    assert "# Out of bounds values : 0 OK" in text
    stand_in(
        "all_reduce_perf", text.replace("# Out of bounds values : 0 OK", "# Out of bounds values : 3 FAILED")
    )
    report = run(collective, sizes_bytes=[8], tool="nccl-tests")
    assert (report.ending, report.blamed) == (Ending.WRONG_DATA, ["n1"])


def test_nccl_tests_that_failed(stand_in):
    stand_in("all_reduce_perf", "n1: Test NCCL failure common.cu:1005 'unhandled system error'\n", 3)
    report = run(collective, sizes_bytes=[8], tool="nccl-tests")
    assert report.ending is Ending.CRASH
    assert "unhandled system error" in report.detail


def test_nvbandwidth_gives_each_gpus_copies(stand_in):
    argv = stand_in("nvbandwidth", (RECORDED / "nvbandwidth" / "a10-0.5.txt").read_text())
    report = run(host_device)
    assert report.ending is Ending.DONE, report
    assert values(report, "host_to_device_bytes_per_second") == {"gpu@0000:00:00.0": pytest.approx(25.17e9)}
    assert argv() == ["-t", "host_to_device_memcpy_ce", "device_to_host_memcpy_ce"]


def test_nvbandwidth_between_gpus_says_from_where_to_where(stand_in):
    text = (
        "nvbandwidth Version: v0.5\n\nRunning device_to_device_memcpy_read_ce.\n"
        "memcpy CE GPU(row) <- GPU(column) bandwidth (GB/s)\n"
        "           0         1\n 0       N/A    361.00\n 1    362.00       N/A\n\n"
        "SUM device_to_device_memcpy_read_ce 723.00\n"
    )
    stand_in("nvbandwidth", text)
    assert values(run(peer), "peer_copy_bytes_per_second") == {
        "gpu@0000:01:00.0 to gpu@0000:00:00.0": pytest.approx(361e9),
        "gpu@0000:00:00.0 to gpu@0000:01:00.0": pytest.approx(362e9),
    }


@pytest.mark.parametrize(
    ("message", "ending"),
    [
        ("Invalid value when checking the pattern at 0x7f10", Ending.WRONG_DATA),
        ("CUDA error: an illegal memory access was encountered", Ending.CRASH),
    ],
)
def test_what_nvbandwidth_says_of_an_error(stand_in, message, ending):
    tests = [{"name": "device_to_device_memcpy_read_ce", "status": "Error", "bandwidth_matrix": []}]
    stand_in("nvbandwidth", "")
    told = {"tests": [{**tests[0], "status": "error", "message": message, "matrix": [], "rows": []}]}
    from clustertools.probes import tools

    report = tools._from_nvbandwidth(told, {}, Here("n1"))
    assert (report.ending, report.blamed) == (ending, ["n1"])


@pytest.mark.parametrize("text", ["", "Segmentation fault\n", "\x00\xff garbage"])
@pytest.mark.parametrize(("probe", "name"), [(host_device, "nvbandwidth"), (dcgm_diag, "dcgmi")])
def test_what_cannot_be_read_could_not_run(stand_in, probe, name, text):
    stand_in(name, text, 1)
    assert run(probe).ending is Ending.COULD_NOT_RUN


def test_a_tool_that_does_not_end_is_a_hang(stand_in):
    stand_in("dcgmi", "", before="time.sleep(60)")
    report = run(dcgm_diag, seconds=1.5)
    assert report.ending is Ending.HANG
    assert "did not end within" in report.detail


def test_a_tool_that_was_asked_for_and_is_not_here():
    with pytest.raises(children.Absent, match="nvbandwidth"):
        run(peer, tool="nvbandwidth", tools=())
    with pytest.raises(children.Absent, match="dcgmi"):
        run(dcgm_diag, tools=())


def test_the_diagnostic_names_the_gpu_that_failed(stand_in):
    argv = stand_in("dcgmi", (RECORDED / "dcgm-diag" / "three.json").read_text(), 226)
    report = run(dcgm_diag, level=2)
    assert argv() == ["diag", "-r", "2", "-j"]
    assert (report.ending, report.blamed) == (Ending.CRASH, ["n1"])
    assert "GPU Memory: fail GPU 1 Detected 4 volatile double-bit ECC" in report.detail


def test_a_diagnostic_that_skipped_everything_is_no_pass(stand_in):
    text = (RECORDED / "dcgm-diag" / "three.json").read_text().replace("PASS", "SKIP").replace("FAIL", "SKIP")
    stand_in("dcgmi", text)
    assert run(dcgm_diag).ending is Ending.COULD_NOT_RUN


def test_rdma_writes_are_told_by_the_second_node(stand_in):
    argv = stand_in("ib_write_bw", (RECORDED / "ib-write-bw" / "roce-sizes.txt").read_text())
    settings = {"address": "10.77.0.1", "port": 18600, "device": "mlx5_0", "size_bytes": 4096}
    report = run(ib_write_bw, ("n1", "n2"), "n2", **settings)
    assert report.ending is Ending.DONE, report
    assert argv()[-1] == "10.77.0.1"
    (last,) = [told for told in report.figures if told["size_bytes"] == 4096]
    assert last["value"] == pytest.approx(188.56e9 / 8)
    assert (last["part"], last["nodes"]) == ("mlx5_0", ["n1", "n2"])
    report = run(ib_write_bw, ("n1", "n2"), "n1", **settings)
    assert (report.ending, report.figures) == (Ending.DONE, [])
    assert argv()[-2:] == ["-d", "mlx5_0"]


def test_a_server_that_is_not_reached_is_named(stand_in):
    stand_in("ib_write_bw", "Couldn't connect to 10.77.0.1:18600\n", 1)
    report = run(ib_write_bw, ("n1", "n2"), "n2", seconds=2.5, address="10.77.0.1")
    assert (report.ending, report.blamed) == (Ending.CRASH, ["n1"])


@pytest.mark.parametrize("settings", [{"address": ""}, {"address": "-x"}, {"address": "a", "device": "-d;x"}])
def test_no_order_becomes_an_option(settings):
    with pytest.raises(ValueError, match=r"address|device"):
        run(ib_write_bw, ("n1", "n2"), "n1", **settings)
