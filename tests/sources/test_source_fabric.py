"""The fabric as a graph: names, places, differences from the golden one, and this machine's own ports."""

from __future__ import annotations

import pytest

from clustertools.errors import Unparsable
from clustertools.sources.fabric import changes, local_ports, parse, short_name, too_fast
from tests.lab.fabric import adapter_guid, leaf_guid, port_files
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.fabric import RECORDED

HEALTHY = (RECORDED / "healthy" / "iblinkinfo.txt").read_text()
FAULTY = (RECORDED / "faulty" / "iblinkinfo.txt").read_text()


@pytest.fixture(scope="module")
def healthy():
    return parse(HEALTHY)


def test_the_graph_of_a_small_fat_tree(healthy):
    assert set(healthy.switches.values()) == {
        "leaf000",
        "leaf001",
        "leaf002",
        "leaf003",
        "spine000",
        "spine001",
    }
    assert (len(healthy.hosts()), len(healthy.links())) == (16, 24)
    peer = healthy.peer((adapter_guid(6) + 1, 1))
    assert (healthy.label(peer), peer.guid) == ("leaf001/3", leaf_guid(1))
    assert healthy.place(healthy.ports[adapter_guid(6) + 1, 1]) == "leaf001/3"
    behind = healthy.hosts_behind(leaf_guid(1))
    assert {number: port.host for number, port in behind.items()} == {
        1: "node0004", 2: "node0005", 3: "node0006", 4: "node0007",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("leaf001", "leaf001"),
        ("MF0;sw01:MQM8700/U1", "sw01"),
        ("MF0;sw01:MQM9700/U2", "sw01:U2"),
        ("Infiniscale-IV Mellanox Technologies", ""),
        ("rack 3/<b>", "rack_3_b_"),
        ("", ""),
    ],
)
def test_short_names(node, name):
    assert short_name(node) == name


def test_switches_without_a_name_of_their_own_are_called_by_guid():
    text = HEALTHY.replace('"                       leaf000"', '"  Quantum Mellanox Technologies"')
    assert parse(text).switches[leaf_guid(0)] == f"0x{leaf_guid(0):016x}"
    twins = parse(HEALTHY.replace("leaf001", "leaf000")).switches
    assert twins[leaf_guid(1)] == f"0x{leaf_guid(1):016x}"


def test_what_the_fabric_has_not_of_the_golden_one(healthy):
    found = changes(healthy, parse(FAULTY))
    assert list(found.switches_missing.values()) == ["leaf003"]
    gone = {port.host for port in found.adapters_missing}
    assert gone == {
        "node0005",
        "node0008",
        "node0009",
        "node0010",
        "node0012",
        "node0013",
        "node0014",
        "node0015",
    }
    assert [(healthy.label(a), healthy.label(b)) for a, b in found.links_down] == [
        ("leaf001/6", "spine001/2")
    ]
    assert {(port.host, there.number) for port, _, there in found.moved} == {("node0002", 4), ("node0003", 3)}
    assert {(now.label(here) if False else here.number) for here, _ in found.slower for now in [healthy]} == {
        3,
        6,
    }
    assert found.new_nodes == []


def test_no_change_from_itself(healthy):
    found = changes(healthy, healthy)
    assert not any(
        (found.switches_missing, found.adapters_missing, found.links_down, found.moved, found.slower)
    )


def test_a_replaced_switch_and_adapter_are_known_by_name(healthy):
    replaced = HEALTHY.replace(f"{leaf_guid(2):016x}", "e41d2d03000fff00")
    replaced = replaced.replace(f"{adapter_guid(3) + 1:016x}", "0002c903000abc01")
    found = changes(healthy, parse(replaced))
    assert not any((found.switches_missing, found.adapters_missing, found.links_down, found.moved))


def test_a_switch_processor_is_no_host():
    text = HEALTHY.replace("node0003 mlx5_0", "Mellanox Technologies Aggregation Node")
    fabric = parse(text)
    assert (len(fabric.hosts()), len(fabric.hosts_behind(leaf_guid(0)))) == (15, 3)


def test_without_guids_of_the_peers_there_is_no_graph():
    with pytest.raises(Unparsable, match="without -l"):
        parse('Switch: 0x01 sw:\n 11 1[  ] ==( 4X 53.125 Gbps Active/ LinkUp)==> 7 1[  ] "n mlx5_0" ( )\n')
    with pytest.raises(Unparsable):
        parse("")


def test_rates_and_totals_have_limits_of_their_own():
    class Limits:
        symbol_errors_per_hour = 120
        link_downs = 3
        host_link_downs = 6
        discards_per_second = 100

    def judged(counter, delta, per_second, host_link=True):
        return too_fast(Limits(), {counter: (delta, per_second)}, host_link=host_link)

    assert judged("SymbolErrorCounter", 1000, 121 / 3600)
    assert not judged("SymbolErrorCounter", 1000, 119 / 3600)
    assert not judged("SymbolErrorCounter", 10, 10.0), "one burst of ten in a second is no rate"
    assert judged("LinkDownedCounter", 4, 0.0, host_link=False)
    assert not judged("LinkDownedCounter", 4, 0.0)
    assert judged("PortXmitDiscards", 1e6, 101.0)
    assert not judged("PortRcvErrors", 1e9, 1e9), "no limit, no judgement"


def test_local_ports_are_those_of_infiniband_with_a_umad_device():
    host = MemoryHost()
    assert local_ports(host) == []
    host.files |= port_files(device="mlx5_0")
    port = local_ports(host)[0]
    assert (port.name, port.state, port.has_link) == ("mlx5_0/1", "ACTIVE", True)
    assert port.argv == ("-C", "mlx5_0", "-P", "1")
    host.files["/sys/class/infiniband/mlx5_0/ports/1/link_layer"] = "Ethernet\n"
    assert local_ports(host) == []
    host.files["/sys/class/infiniband/mlx5_0/ports/1/link_layer"] = "InfiniBand\n"
    host.files["/sys/class/infiniband/mlx5_0/ports/1/state"] = "garbage\n"
    with pytest.raises(Unparsable):
        local_ports(host)
    del host.files["/sys/class/infiniband/mlx5_0/ports/1/state"]
    assert local_ports(host) == [], "taken out between the list and the look"
    host.files |= port_files(device="mlx5_0")
    del host.files["/dev/infiniband/umad0"]
    assert local_ports(host) == [], "a container that was not given the device"
