"""Collectives of real ranks over gloo on this machine: every ending, and that the next order works."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.probes.probing import Prober, all_ask, collective, free_port, probers

pytest.importorskip("torch", reason="needs PyTorch (torch)")
pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def two():
    yield from probers("n1", "n2")


@pytest.fixture
def faulty(request):
    yield from probers("n1", "n2", "n3", environment={"CLUSTERTOOLS_TEST_FAULT": request.param})


def values(answer, metric):
    return {told["size_bytes"]: told["value"] for told in answer["figures"] if told["metric"] == metric}


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_collective_is_done_and_measured(two, kind, dtype):
    sizes = [4096, 1 << 20]
    order = collective(1, ["n1", "n2"], collective=kind, sizes_bytes=sizes, dtype=dtype, ranks_per_node=2)
    answers = all_ask(two, order)
    assert {answer["ending"] for answer in answers.values()} == {"done"}, answers
    first = answers["n1"]
    busbw, algbw = (values(first, f"{name}_bytes_per_second") for name in ("busbw", "algbw"))
    assert list(busbw) == sizes
    factor = 1.5 if kind == "all_reduce" else 0.75
    assert busbw[1 << 20] == pytest.approx(factor * algbw[1 << 20])
    assert algbw[1 << 20] * values(first, "time_mean_seconds")[1 << 20] == pytest.approx(1 << 20)
    assert first["figures"][0]["variant"] == f"gloo {dtype} 4 ranks {kind}"
    assert answers["n2"]["figures"] == [], "the group's figures come from its first node alone"
    assert answers["n2"]["node_seconds"] > 0


def test_pairs_give_a_figure_for_every_two_nodes():
    for those in probers("n1", "n2", "n3"):
        answers = all_ask(those, collective(1, ["n1", "n2", "n3"], collective="pairs", ranks_per_node=2))
        told = [one for answer in answers.values() for one in answer["figures"]]
        assert sorted(tuple(one["nodes"]) for one in told) == [("n1", "n2"), ("n1", "n3"), ("n2", "n3")]
        assert {one["part"] for one in told} == {"n1-n2", "n1-n3", "n2-n3"}
        assert all(one["value"] > 0 for one in told)


@pytest.mark.parametrize("faulty", ["wrong@1"], indirect=True)
@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "pairs"])
def test_one_flipped_element_is_found_and_its_node_named(faulty, kind):
    answers = all_ask(faulty, collective(1, ["n1", "n2", "n3"], collective=kind))
    for answer in answers.values():
        assert answer["ending"] == "wrong-data", answer
        assert answer["blamed"] == ["n2"]
        assert any("CLUSTERTOOLS_TEST_FAULT=wrong@1 is set" in line for line in answer["evidence"])


@pytest.mark.parametrize("faulty", ["die@1"], indirect=True)
def test_a_rank_that_dies_is_a_crash_of_its_node(faulty):
    answers = all_ask(faulty, collective(1, ["n1", "n2", "n3"]))
    assert answers["n2"]["ending"] == "crash"
    assert answers["n2"]["blamed"] == ["n2"]
    assert "signal 9" in answers["n2"]["detail"]
    for name in ("n1", "n3"):
        assert answers[name]["ending"] == "crash", answers[name]
        assert "a peer closed the connection" in answers[name]["detail"]


@pytest.mark.parametrize("faulty", ["hang@1"], indirect=True)
def test_a_rank_that_never_enters_is_a_hang_of_its_node_and_the_next_order_works(faulty):
    began = time.monotonic()
    answers = all_ask(faulty, collective(1, ["n1", "n2", "n3"], timeout_seconds=4))
    assert time.monotonic() - began < 30
    assert {name: answer["ending"] for name, answer in answers.items()} == dict.fromkeys(answers, "hang")
    assert answers["n2"]["blamed"] == ["n2"]
    assert "own work" in answers["n2"]["detail"]
    assert answers["n1"]["blamed"] == answers["n3"]["blamed"] == []
    assert "in the collective (all_reduce, 65536 bytes, iteration 2)" in answers["n1"]["detail"]
    # n1 and n3 without the faulty rank 1: with three ranks on one node it would be there again
    again = collective(2, ["n3"], ranks_per_node=1)
    assert faulty[2].ask(again)["ending"] == "could-not-run"
    assert not [pid for prober in faulty for pid in prober.others() if pid in _busy()]


def _busy():
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _state(name) == "R"]


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_after_a_hang_the_same_prober_measures_again(two):
    absent = collective(1, ["n1", "n2", "n9"], timeout_seconds=3)
    answers = all_ask(two, absent)
    for answer in answers.values():
        assert answer["ending"] == "hang"
        assert answer["blamed"] == ["n9"], answer
        assert "never came to the rendezvous: n9" in answer["detail"]
    answers = all_ask(two, collective(2, ["n1", "n2"]))
    assert {answer["ending"] for answer in answers.values()} == {"done"}


def test_the_same_port_serves_one_order_after_the_other(two):
    port = free_port()
    for number in range(3):
        answers = all_ask(two, collective(number, ["n1", "n2"], port=port))
        assert {answer["ending"] for answer in answers.values()} == {"done"}, answers


def test_orders_leave_neither_processes_nor_descriptors(two):
    def open_files():
        return [len(os.listdir(f"/proc/{one.process.pid}/fd")) for one in two]

    all_ask(two, collective(1, ["n1", "n2"]))
    before = open_files()
    for number in range(3):
        all_ask(two, collective(number, ["n1", "n2"], timeout_seconds=20))
    assert open_files() == before
    until = time.monotonic() + 30
    while any(one.others() for one in two):  # the store ends at the order's deadline
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_first_node_that_is_not_there_is_named(two):
    answer = two[1].ask(collective(1, ["n9", "n2"], timeout_seconds=3))
    assert (answer["ending"], answer["blamed"]) == ("hang", ["n9"])


@pytest.mark.parametrize("faulty", ["slow@1"], indirect=True)
def test_a_rank_that_comes_late_is_told_from_a_slow_network(faulty):
    answers = all_ask(faulty, collective(1, ["n1", "n2", "n3"], iterations=4))
    assert {answer["ending"] for answer in answers.values()} == {"done"}
    assert answers["n2"]["node_seconds"] > 0.2 > 10 * answers["n1"]["node_seconds"]
    assert any("rank 1 (n2) comes late" in line for line in answers["n1"]["evidence"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "nccl"}, "nccl needs GPUs"),
        ({"dtype": "float8"}, "dtype"),
        ({"collective": "broadcast"}, "collective"),
        ({"sizes_bytes": [0]}, "sizes_bytes"),
        ({"environment": {"LD_PRELOAD": "x"}}, "environment"),
        ({"probe": "telepathy"}, "probe"),
    ],
)
def test_what_cannot_run_here_says_so(two, settings, words):
    answer = two[0].ask(collective(5, ["n1", "n2"], **settings))
    assert (answer["id"], answer["ending"]) == (5, "could-not-run")
    assert words in answer["detail"]


def test_without_torch_it_could_not_run():
    for (prober,) in probers("n1", options=["--without-torch"]):
        answer = prober.ask(collective(1, ["n1", "n2"]))
        assert answer["ending"] == "could-not-run"
        assert "PyTorch" in answer["detail"]


def test_the_serving_process_has_one_thread_and_nothing_is_left_when_it_is_killed():
    prober = Prober("n1")
    try:
        hello = prober.hear()["hello"]
        assert hello["torch"]
        prober.say(collective(1, ["n1", "n9"], timeout_seconds=60))
        until = time.monotonic() + 10
        while len(prober.others()) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(prober.others()) >= 2
        pid = prober.process.pid
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            assert "libcuda.so" not in maps.read()
        prober.process.send_signal(signal.SIGKILL)
        assert prober.gone()
    finally:
        prober.close()
