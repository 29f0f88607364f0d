"""Readers of infiniband-diags: what versions 1.5 to 44 print, damaged text, and that all give one graph."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import (
    ibhosts,
    iblinkinfo,
    ibnetdiscover,
    ibqueryerrors,
    ibswitches,
    perfquery,
    sminfo,
)
from tests.lab.parts.fabric import RECORDED
from tests.tools import sample

READERS = (iblinkinfo, ibnetdiscover, ibqueryerrors, perfquery, ibhosts, ibswitches, sminfo)


def recorded(name: str, fabric: str = "healthy") -> str:
    return (RECORDED / fabric / f"{name}.txt").read_text()


DEFAULT = sample("iblinkinfo/ibsim-44.txt")
OLD = sample("iblinkinfo/voltaire-1.5.txt")


def test_iblinkinfo_without_l():
    ports = {(p["name"], p["port"]): p for p in iblinkinfo.read(DEFAULT)["ports"]}
    leaf = ports["leaf001", 6]
    assert (leaf["kind"], leaf["guid"], leaf["lid"]) == ("switch", 0xE41D2D0300000010, 11)
    assert (leaf["width"], leaf["lane_gbps"], leaf["state"]) == (4, 25.78125, "Active")
    assert leaf["could_be"] == {"width": 12, "lane_gbps": 53.125}
    down = ports["leaf001", 2]
    assert (down["state"], down["physical_state"], down["peer"]) == ("Down", "Polling", None)
    assert ports["node0006 mlx5_0", 1]["peer"] == {"guid": None, "lid": 11, "port": 3, "name": "leaf001"}


def test_iblinkinfo_of_long_ago():
    ports = {p["port"]: p for p in iblinkinfo.read(OLD)["ports"]}
    assert {p["guid"] for p in ports.values()} == {0x0008F105006500D0}
    assert ports[1]["peer"]["name"] == "MF0;ib0:IS5200/L07/U1"
    assert (ports[2]["state"], ports[2]["could_be"]) == ("Initialize", {"lane_gbps": 10.3125})
    assert (ports[3]["lane_gbps"], ports[4]["physical_state"], ports[5]["peer"]) == (10.0, "Disabled", None)


@pytest.mark.parametrize(
    ("speed", "gbps"), [("106.25 Gbps", 106.25), ("212.5 Gbps", 212.5), ("14.0625 Gbps", 14.0625)]
)
def test_speeds_that_the_simulator_has_not(speed, gbps):
    line = (
        f'0xe41d2d0300000010 "sw" 37 12[ 3] ==( 4X {speed} Active/ LinkUp)==> 0x02 91 1[  ] "n17 mlx5_0" ( )'
    )
    port = iblinkinfo.read(line)["ports"][0]
    assert (port["lane_gbps"], port["width"], port["could_be"]) == (gbps, 4, {})


def test_complaints_in_between_are_kept_apart():
    text = (
        "ibwarn: [1] mad_rpc: timed out\nsrc/query_smp.c:229; umad (DR path 0,1) bad status 110\n" + DEFAULT
    )
    told = iblinkinfo.read(text)
    assert (len(told["complaints"]), len(told["ports"])) == (2, 4)


def test_ibqueryerrors_with_everything():
    # infiniband-diags 44, --details --data -r, in ibsim; the second node as 1.5 named its counters
    told = ibqueryerrors.read("""\
Errors for 0xe41d2d0300000000 "leaf000"
   GUID 0xe41d2d0300000000 port ALL: [SymbolErrorCounter == 4321] [PortXmitDiscards == 255]
   GUID 0xe41d2d0300000000 port 3: [SymbolErrorCounter == 4321] [PortXmitData == 3456 (13.500KB)] [PortRcvData == 15567487854894 (  infPB)]
       Link info:      2   3[  ] ==( 4X        53.125 Gbps Active/  LinkUp)==>  0x0002c90300002001      5    1[  ] "node0002 mlx5_0" (Could be 12X )
Errors for "c015 HCA-1"
   GUID 0x800380001389e62 port 1: [RcvErrors == 52] [LinkDowned == 3]

## Summary: 11 nodes checked, 2 bad nodes found
##          24 ports checked, 2 ports have errors beyond threshold
##          1 PMA query failures
## Thresholds: SymbolErrorCounter=10
## Suppressed:
""")  # noqa: E501
    leaf, old = told["nodes"]
    assert leaf["ports"] == {
        "3": {
            "guid": 0xE41D2D0300000000,
            "counters": {
                "SymbolErrorCounter": 4321, "PortXmitData": 3456, "PortRcvData": 15567487854894,
            },
        }
    }  # fmt: skip
    assert (old["guid"], old["ports"]["1"]["counters"]) == (
        None,
        {"PortRcvErrors": 52, "LinkDownedCounter": 3},
    )
    assert (told["nodes_checked"], told["bad_ports"], told["query_failures"]) == (11, 2, 1)


def test_ibqueryerrors_that_was_cut_short_is_not_health():
    with pytest.raises(Unparsable, match="no summary"):
        ibqueryerrors.read("")
    with pytest.raises(Unparsable):
        ibqueryerrors.read(recorded("ibqueryerrors", "faulty")[:120])


def test_perfquery_of_today_and_of_long_ago():
    told = perfquery.read(recorded("perfquery"))["ports"][0]
    assert (told["lid"], told["port"]) == (2, 1)
    assert told["counters"]["SymbolErrorCounter"] == 0
    # infiniband-diags 1.4, TACC/tacc_stats
    old = "# Port counters: Lid 936 port 1\nPortSelect:...........1\nLinkDowned:.......2\n"
    assert perfquery.read(old)["ports"][0]["counters"] == {"LinkDownedCounter": 2}
    wide = (
        "# Port extended counters: Lid 1 port 255 (CapMask: 0x1200 CapMask2: 0x0000000)\nPortXmitData:....9\n"
    )
    assert perfquery.read(wide)["ports"] == [{"lid": 1, "port": 255, "counters": {"PortXmitData": 9}}]


def test_lists_and_the_subnet_manager():
    hosts = 'Ca\t: 0x0002c90300007000 ports 2 "node0007 mlx5_0"\n'
    assert ibhosts.read(hosts)["adapters"] == [
        {"guid": 0x0002C90300007000, "port_count": 2, "name": "node0007 mlx5_0"}
    ]
    switches = 'Switch\t: 0xe41d2d0300000010 ports 41 "MF0;sw1:MQM8700/U1" enhanced port 0 lid 11 lmc 0\n'
    assert ibswitches.read(switches)["switches"][0]["lid"] == 11
    assert sminfo.read(recorded("sminfo"))["state_name"] == "MASTER"
    with pytest.raises(Unparsable):
        sminfo.read("sminfo: iberror: failed: query")


SAMPLES = {
    "iblinkinfo": [recorded("iblinkinfo"), DEFAULT, OLD],
    "ibqueryerrors": [recorded("ibqueryerrors"), recorded("ibqueryerrors", "faulty")],
    "perfquery": [recorded("perfquery")],
    "sminfo": [recorded("sminfo")],
    "ibhosts": ['Ca\t: 0x0002c90300007000 ports 1 "node0007 mlx5_0"\n'],
    "ibswitches": ['Switch\t: 0xe41d2d0300000010 ports 6 "leaf001" enhanced port 0 lid 11 lmc 0\n'],
    "ibnetdiscover": [
        "#\n# Topology file: generated on Sat Nov 21 13:34:44 2026\n#\n",
        "CA    10  1 0x0002c90300007001 4x HDR - SW    11  4 0xe41d2d0300000010 ( 'n7 HCA-1' - 'leaf1' )\n",
    ],
}


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.KIND)
@given(data=st.data())
@settings(max_examples=60, deadline=2000)
def test_damaged_output_is_read_or_refused(reader, data):
    text = data.draw(st.sampled_from(SAMPLES[reader.KIND]))
    at = data.draw(st.integers(0, len(text)))
    junk = data.draw(
        st.one_of(st.text(max_size=40), st.sampled_from(["\x00" * 9, "=" * 5000, '"' * 3000, "(" * 900]))
    )
    damaged = text[:at] + junk + text[at + data.draw(st.integers(0, 60)) :]
    reader.recognise(damaged)
    with contextlib.suppress(Unparsable):
        assert isinstance(reader.read(damaged), dict)


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.KIND)
def test_a_line_without_end_is_refused_at_once(reader):
    for line in ("x" * 10_000_000, '"' * 10_000_000, " 1" * 5_000_000):
        reader.recognise(line)
        with pytest.raises(Unparsable):
            reader.read(line)
