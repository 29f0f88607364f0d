"""The probes of one node, run for real on this machine's CPU and disk; and the clock."""

from __future__ import annotations

import os
import stat
import time

import pytest

from clustertools.probes.clock import Exchange, offset
from tests.probes.probing import Prober, probers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def prober():
    pytest.importorskip("torch", reason="needs PyTorch (torch)")
    for (one,) in probers("n1"):
        yield one


@pytest.fixture
def light():
    for (one,) in probers("n1", options=["--without-torch"]):
        yield one


@pytest.fixture
def faulty(request):
    pytest.importorskip("torch", reason="needs PyTorch (torch)")
    for (one,) in probers("n1", environment={"CLUSTERTOOLS_TEST_FAULT": request.param}):
        yield one


def order(probe, **settings):
    return {"id": 1, "probe": probe, "nodes": ["n1"], "timeout_seconds": 60, **settings}


@pytest.mark.torch
def test_products_are_right_and_measured(prober):
    dtypes = ["float32", "bfloat16", "float64", "float16"]
    answer = prober.ask(order("gemm", dtypes=dtypes, size=256, seconds=0.1))
    assert answer["ending"] == "done", answer
    assert [told["variant"] for told in answer["figures"]] == [f"{dtype} 256" for dtype in dtypes]
    for told in answer["figures"]:
        assert (told["metric"], told["part"]) == ("flop_per_second", "cpu")
        assert told["value"] > 1e6


@pytest.mark.torch
def test_memory_is_copied_and_holds_what_is_written(prober):
    answer = prober.ask(order("memory", size_bytes=8 * MIB))
    assert answer["ending"] == "done", answer
    (told,) = answer["figures"]
    assert told["metric"] == "memory_copy_bytes_per_second"
    assert told["value"] > 1e7
    assert "hold what was written" in answer["evidence"][0]


@pytest.mark.torch
@pytest.mark.parametrize("faulty", ["wrong@0"], indirect=True)
@pytest.mark.parametrize("probe", ["gemm", "memory"])
def test_one_wrong_element_is_found(faulty, probe):
    answer = faulty.ask(order(probe, **({"size": 256, "seconds": 0.1} if probe == "gemm" else {})))
    assert (answer["ending"], answer["blamed"]) == ("wrong-data", ["n1"])
    assert "cpu: 1 of " in answer["detail"]


@pytest.mark.torch
@pytest.mark.parametrize(("faulty", "ending"), [("die@0", "crash"), ("hang@0", "hang")], indirect=["faulty"])
def test_a_device_that_dies_or_hangs_is_its_nodes(faulty, ending):
    answer = faulty.ask(order("gemm", size=128, seconds=0.1, timeout_seconds=3))
    assert (answer["ending"], answer["blamed"]) == (ending, ["n1"])
    assert faulty.ask(order("storage", data=["/dev/null"], timeout_seconds=3))["id"] == 1


@pytest.mark.torch
@pytest.mark.parametrize("probe", ["host_device", "peer"])
def test_what_needs_a_gpu_could_not_run(prober, probe):
    answer = prober.ask(order(probe))
    assert answer["ending"] == "could-not-run"
    assert "no GPU" in answer["detail"]


@pytest.mark.parametrize("probe", ["gemm", "memory"])
def test_without_torch_they_could_not_run(light, probe):
    answer = light.ask(order(probe))
    assert (answer["ending"], "PyTorch" in answer["detail"]) == ("could-not-run", True)


# storage


def metrics(answer, path):
    return {told["metric"] for told in answer["figures"] if told["part"] == str(path)}


def test_a_checkpoint_folder_is_written_read_and_left_empty(light, tmp_path):
    answer = light.ask(order("storage", checkpoint=[str(tmp_path)], size_bytes=8 * MIB, files=4))
    assert answer["ending"] == "done", answer
    assert metrics(answer, tmp_path) == {
        "write_bytes_per_second", "read_bytes_per_second", "fsync_seconds", "create_p50_seconds",
        "create_p99_seconds",
    }  # fmt: skip
    assert os.listdir(tmp_path) == []
    assert not light.others()


def test_a_data_set_is_only_read(light, tmp_path):
    for n in range(3):
        (tmp_path / f"shard-{n}").write_bytes(os.urandom(100_000 + n))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "shard").write_bytes(b"x" * 5000)
    before = {entry: os.stat(entry) for entry in sorted(tmp_path.rglob("*"))}
    answer = light.ask(order("storage", data=[str(tmp_path)], size_bytes=4 * MIB))
    assert answer["ending"] == "done", answer
    assert metrics(answer, tmp_path) == {"read_bytes_per_second", "open_p50_seconds", "open_p99_seconds"}
    assert "4 files, 305003 bytes" in answer["evidence"][0]
    after = {entry: os.stat(entry) for entry in sorted(tmp_path.rglob("*"))}
    assert list(after) == list(before)
    for entry, was in before.items():
        now = after[entry]
        assert (now.st_mtime_ns, now.st_size, now.st_ctime_ns) == (
            was.st_mtime_ns,
            was.st_size,
            was.st_ctime_ns,
        )
        if stat.S_ISREG(was.st_mode):
            assert now.st_atime_ns == was.st_atime_ns, "the owner's read leaves no trace"


@pytest.mark.parametrize(
    "settings", [{}, {"data": ["relative"]}, {"data": "x"}, {"checkpoint": ["/a"], "files": 0}]
)
def test_storage_orders_that_make_no_sense(light, settings):
    assert light.ask(order("storage", **settings))["ending"] == "could-not-run"


def test_a_path_that_is_not_there_could_not_run(light, tmp_path):
    for kind in ("data", "checkpoint"):
        answer = light.ask(order("storage", **{kind: [str(tmp_path / "no")]}))
        assert answer["ending"] == "could-not-run"
        assert "No such file" in answer["detail"]


@pytest.mark.parametrize("faulty", ["wrong@0"], indirect=True)
@pytest.mark.torch
def test_a_byte_that_comes_back_wrong_is_found(faulty, tmp_path):
    answer = faulty.ask(order("storage", checkpoint=[str(tmp_path)], size_bytes=4 * MIB))
    assert (answer["ending"], os.listdir(tmp_path)) == ("wrong-data", [])


@pytest.mark.parametrize("killed", [True, False])
def test_a_probe_that_is_killed_while_its_file_has_a_name_leaves_none(tmp_path, killed):
    one = Prober("n1", "--without-torch", environment={"CLUSTERTOOLS_TEST_FAULT": "hang@0"})
    try:
        one.hear()
        one.say(order("storage", checkpoint=[str(tmp_path)], size_bytes=4 * MIB, timeout_seconds=5))
        until = time.monotonic() + 20
        while not os.listdir(tmp_path):
            assert time.monotonic() < until
            time.sleep(0.01)
        if killed:
            one.process.kill()
            assert one.gone()
        else:
            answer = one.hear()
            assert (answer["ending"], answer["blamed"]) == ("hang", [])
            assert "creating and removing small files" in answer["detail"]
            while one.others():
                assert time.monotonic() < until
        assert os.listdir(tmp_path) == []
    finally:
        one.close()


# the clock


def test_the_offset_is_that_of_the_quickest_exchange():
    # the node is 5 s ahead; 10 ms out and 10 ms back, then 10 ms out and 400 ms back
    quick = Exchange(100.0, 105.010, 105.011, 100.021)
    slow = Exchange(101.0, 106.010, 106.011, 101.411)
    assert offset([slow, quick]) == (pytest.approx(5.0), pytest.approx(0.010))
    assert offset([slow])[0] == pytest.approx(5.0, abs=offset([slow])[1])


def test_no_exchange_that_makes_sense():
    with pytest.raises(ValueError, match="no exchange"):
        offset([Exchange(10.0, 5.0, 9.0, 10.5)])


def test_the_clock_is_told_even_while_an_order_is_carried_out(light, tmp_path):
    light.say(order("storage", checkpoint=[str(tmp_path)], size_bytes=256 * MIB, timeout_seconds=60))
    exchanges = []
    for number in range(3):
        sent = time.time()
        answer = light.ask({"id": 10 + number, "probe": "clock", "nodes": ["n1"], "head_time": sent})
        received = time.time()
        assert answer["id"] == 10 + number
        assert answer["clock"]["head"] == sent
        exchanges.append(Exchange(sent, answer["clock"]["received"], answer["clock"]["sent"], received))
    ahead, uncertain = offset(exchanges)
    assert abs(ahead) <= uncertain < 5
    assert light.hear()["ending"] == "done"


def test_a_clock_order_without_a_time_is_refused(light):
    assert "head_time" in light.ask({"id": 1, "probe": "clock", "nodes": ["n1"]})["error"]
