"""The whole preflight over virtual nodes: who is named, what is said of the others, and what may start."""

from __future__ import annotations

import random

import pytest

from clustertools.errors import ConfigError
from clustertools.fleet import Fate
from clustertools.fleet.looking import Request
from clustertools.measurement import Grade
from clustertools.preflight import Asked, examine
from clustertools.preflight import node as node_stage
from clustertools.preflight_report import Decision, Report, Terms
from tests.lab.virtual_fleet import VirtualFleet


def names(count: int) -> tuple[str, ...]:
    return tuple(f"gpu{i:03}" for i in range(1, count + 1))


def preflight(fleet: VirtualFleet, baselines=None, **asked) -> Report:
    whom = asked.pop("nodes", tuple(fleet.names))
    wanted = Asked(whom, seed=asked.pop("seed", 7), **asked)
    requests = dict.fromkeys(wanted.everyone, Request())
    return examine(wanted, fleet, requests, lambda stage: None, baselines)


def grades(report: Report) -> dict[str, Grade]:
    return {n.node: n.grade for n in report.nodes if n.grade is not Grade.GOOD}


@pytest.mark.parametrize("count", [2, 3, 8, 33, 128])
def test_good_nodes_are_good(count):
    report = preflight(VirtualFleet(names(count)))
    assert grades(report) == {}
    assert report.verdict.decision is Decision.GO, report.verdict.sentence
    assert report.verdict.launch_nodes == names(count)


@pytest.mark.parametrize("count", [8, 40, 200])
@pytest.mark.parametrize("seed", range(3))
def test_the_one_with_the_slow_link_is_named_and_nobody_else(count, seed):
    guilty = random.Random(seed * 1000 + count).choice(names(count))
    report = preflight(VirtualFleet(names(count), slow={guilty: 0.6}, seed=seed), seed=seed)
    assert grades(report) == {guilty: Grade.SLOW}
    assert report.verdict.decision is Decision.NO_GO


@pytest.mark.parametrize("count", [8, 40])
def test_the_one_that_hangs_every_collective_is_named(count):
    report = preflight(VirtualFleet(names(count), cut={"gpu005"}))
    assert grades(report) == {"gpu005": Grade.BAD_HARDWARE}


def test_the_one_with_wrong_data_is_named():
    assert grades(preflight(VirtualFleet(names(8), wrong={"gpu002"}))) == {"gpu002": Grade.WRONG_DATA}


def test_a_slow_path_between_good_nodes_is_named_as_a_path():
    report = preflight(VirtualFleet(names(8), paths={("gpu002", "gpu006"): 0.3}))
    assert grades(report) == {}
    assert [(s.kind, set(s.names)) for s in report.suspects] == [("path", {"gpu002", "gpu006"})]
    assert report.verdict.decision is Decision.NO_GO
    allowed = preflight(
        VirtualFleet(names(8), paths={("gpu002", "gpu006"): 0.3}), terms=Terms(allow_slow_paths=True)
    )
    assert allowed.verdict.decision is not Decision.NO_GO


@pytest.mark.parametrize("count", [4, 8, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_a_dead_path_between_good_nodes_is_named_and_nothing_starts(count, seed):
    pair = tuple(random.Random(f"{count} {seed}").sample(names(count), 2))
    report = preflight(VirtualFleet(names(count), cut_paths=[pair]), seed=seed)
    assert grades(report) == {}
    assert [(s.kind, set(s.names)) for s in report.suspects] == [("path", set(pair))]
    assert report.verdict.decision is Decision.NO_GO


def test_weak_gpus_are_found_before_any_collective():
    fleet = VirtualFleet(names(8), weak={"gpu004": 0.8})
    report = preflight(fleet)
    assert grades(report) == {"gpu004": Grade.SLOW}
    together = [o for o in fleet.orders if "groups" in o and any(len(g["nodes"]) > 1 for g in o["groups"])]
    assert together
    assert all("gpu004" not in g["nodes"] for o in together for g in o["groups"])


def test_each_kind_of_trouble_is_its_own_and_the_others_go_on():
    fleet = VirtualFleet(
        names(12), critical={"gpu001": "GpuMissing"}, blind={"gpu002"}, torchless={"gpu003"}, dies={"gpu004"},
        away={"gpu005": Fate.UNREACHABLE, "gpu006": Fate.REFUSED, "gpu007": Fate.HOST_KEY},
    )  # fmt: skip
    report = preflight(fleet, terms=Terms(at_least=4))
    by_name = {n.node: n for n in report.nodes}
    assert {n: r.fate for n, r in by_name.items() if r.fate != "completed"} == {
        "gpu004": "lost", "gpu005": "unreachable", "gpu006": "refused", "gpu007": "host-key",
    }  # fmt: skip
    assert by_name["gpu001"].grade is Grade.BAD_HARDWARE
    assert "GpuMissing" in by_name["gpu001"].reasons[0]
    assert by_name["gpu002"].grade is Grade.COULD_NOT_RUN
    assert "PyTorch" in " ".join(by_name["gpu003"].reasons)
    assert report.verdict.good_nodes == names(12)[7:]
    assert report.verdict.launch_nodes == names(12)[7:]


def test_a_spare_is_tested_and_takes_the_place():
    fleet = VirtualFleet(names(10), slow={"gpu003": 0.5, "gpu009": 0.5})
    report = preflight(fleet, nodes=names(8), spares=names(10)[8:])
    assert report.verdict.decision is Decision.GO_WITHOUT
    assert report.verdict.launch_nodes == ("gpu001", "gpu002", "gpu010", *names(8)[3:])


def test_what_fails_only_all_together_is_not_launched():
    report = preflight(VirtualFleet(names(40), together_fails=True))
    assert report.verdict.decision is Decision.NO_GO
    assert grades(report) == {}
    (told,) = (u for u in report.untested if u.required)
    assert "when all work together" in told.why


def test_all_slow_alike_is_the_cluster_and_nobody():
    fleet = VirtualFleet(names(12), slow=dict.fromkeys(names(12), 0.4))
    assert grades(preflight(fleet)) == {}


def test_what_does_not_fit_into_the_budget_is_said(monkeypatch):
    monkeypatch.setattr(node_stage, "LOADS", node_stage.LOADS[:2])
    report = preflight(VirtualFleet(names(4)), budget_seconds=12.0)
    assert {u.what for u in report.untested} & {"probe gemm", "probe memory", "fabric"}
    assert all("s of the budget are left" in u.why for u in report.untested)


def test_a_later_run_knows_what_was_usual(tmp_path):
    kept = tmp_path / "preflight.json"
    for seed in range(4):
        assert grades(preflight(VirtualFleet(names(2), seed=seed), kept)) == {}
    weak = preflight(VirtualFleet(names(2), weak={"gpu001": 0.7}, seed=9), kept)
    assert grades(weak) == {"gpu001": Grade.SLOW}, "two nodes cannot outvote each other, but the past can"
    assert next(n for n in weak.nodes if n.node == "gpu001").decided_by == "baseline"


def test_the_report_survives_its_own_form():
    report = preflight(VirtualFleet(names(8), slow={"gpu002": 0.5}))
    assert Report.from_data(report.to_data()).verdict == report.verdict


def test_rdma_between_neighbours_comes_first_where_the_tool_is_there():
    fleet = VirtualFleet(names(9), slow={"gpu004": 0.5}, tools=("ib_write_bw",))
    report = preflight(fleet)
    assert report.rounds[0].why == "RDMA writes between neighbours"
    assert [set(g.nodes) for g in report.rounds[0].groups] == [
        {f"gpu{i:03}", f"gpu{i + 1:03}"} for i in (1, 3, 5, 7)
    ]
    assert grades(report) == {"gpu004": Grade.SLOW}
    assert "ib_write_bw" not in {o["probe"] for o in preflight_orders(VirtualFleet(names(4)))}


def preflight_orders(fleet: VirtualFleet) -> list[dict]:
    preflight(fleet)
    return fleet.orders


def test_no_more_is_tested_once_too_few_can_be_good():
    fleet = VirtualFleet(names(8), critical=dict.fromkeys(names(8)[:5], "GpuMissing"))
    report = preflight(fleet, terms=Terms(need=4))
    assert report.verdict.decision is Decision.NO_GO
    assert not [o for o in fleet.orders if o["probe"] == "gemm"]
    (probes,) = (u for u in report.untested if u.what.startswith("probes "))
    assert "5 of 8 nodes are bad" in probes.why


def test_the_report_says_what_it_ran_with_and_how_to_look_again():
    report = preflight(VirtualFleet(names(8), slow={"gpu003": 0.5}))
    assert report.versions["torch"] == "2.9.0"
    (again,) = report.repeats
    assert again.argv[:3] == ("clustertools", "preflight", "-w")
    assert "gpu[001-003]" in again.argv[3]


def test_all_four_collectives_run_over_exactly_the_launch_set():
    fleet = VirtualFleet(names(8), cut={"gpu006"})
    report = preflight(fleet, terms=Terms(at_least=7))
    last = [o for o in fleet.orders if o["probe"] == "collective"][-4:]
    assert [o["collective"] for o in last] == ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    assert all(o["groups"][0]["nodes"] == list(report.verdict.launch_nodes) for o in last)


def test_no_address_that_leads_anywhere_is_told():
    fleet = VirtualFleet(names(4))
    with pytest.raises(ConfigError, match="no node has an address on eth7; there are: ib0"):
        preflight(fleet, interface="eth7")
    assert fleet.orders == [], "before any load"
