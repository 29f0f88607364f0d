"""The sweep of the fabric: on recorded fabrics, and on live ones in ibsim with OpenSM."""

from __future__ import annotations

import time

import pytest
from clustertools.checks.ib_fabric import AT_MOST

from clustertools.errors import Unobservable
from clustertools.model import Status
from clustertools.sources.fabric import parse
from tests.lab.fabric import FabricLab, adapter_guid, fat_tree, leaf_guid, missing, port_files, spine_guid
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.fabric import GOLDEN, answer

PORT = ("-C", "mlx5_0", "-P", "1")
SWEEP = ("iblinkinfo", "-l", *PORT)
ERRORS = ("ibqueryerrors", "--switch", *PORT)
MANAGERS = ("saquery", *PORT, "SMIR")


def placed(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def of(verdict, code):
    return next(f for f in verdict.findings if f.code == code)


@pytest.fixture
def host():
    """A node whose fabric is the recorded, healthy one."""
    host = MemoryHost("node0000")
    host.files |= port_files(device="mlx5_0")
    host.files[GOLDEN] = answer("iblinkinfo")["stdout"]
    host.commands |= {
        SWEEP: answer("iblinkinfo")["stdout"], ERRORS: answer("ibqueryerrors")["stdout"],
        MANAGERS: answer("saquery")["stdout"],
    }  # fmt: skip
    return host


def test_a_broken_fabric_in_a_recording(run):
    verdict = run("ib_fabric", host="ib-fabric-faulty", expect={"ib_fabric_golden": GOLDEN})
    assert placed(verdict) == {
        ("IbFabricSwitchMissing", "fabric/leaf003"), ("IbLeafFailing", "fabric/leaf002"),
        ("IbFabricHostMissing", "fabric/leaf001/2"), ("IbFabricLinkDown", "fabric/leaf001/6"),
        ("IbFabricLinkNarrow", "fabric/leaf001/3"), ("IbFabricLinkSlow", "fabric/leaf000/6"),
        ("IbFabricMiscabled", "fabric/leaf000/3"), ("IbFabricMiscabled", "fabric/leaf000/4"),
        ("IbFabricPortErrors", "fabric/leaf000/2"),
    }  # fmt: skip
    assert of(verdict, "IbFabricSwitchMissing").nodes == ("node0012", "node0013", "node0014", "node0015")
    assert of(verdict, "IbFabricHostMissing").nodes == ("node0005",)
    assert of(verdict, "IbLeafFailing").nodes == ("node0008", "node0009", "node0010")
    assert {f.code for f in verdict.findings if f.status is Status.CRITICAL} == {"IbFabricSwitchMissing"}


def test_healthy(run, host):
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_golden": GOLDEN})
    assert (verdict.status, verdict.blind) == (Status.OK, "")
    assert {r.name: r.value for r in verdict.readings} == {
        "ib_fabric_switches_total": 6, "ib_fabric_hosts_total": 16, "ib_fabric_links_total": 24,
    }  # fmt: skip


@pytest.mark.parametrize("expect", [{}, {"ib_fabric_sweep": False}])
def test_no_node_sweeps_unasked(run, host, expect):
    host.commands.clear()
    verdict = run("ib_fabric", host=host, expect=expect)
    assert (verdict.status, "ib_fabric_sweep" in verdict.detail) == (Status.SKIPPED, True)


def test_a_machine_without_infiniband_skips(run):
    assert run("ib_fabric", host=MemoryHost(), expect={"ib_fabric_sweep": True}).status is Status.SKIPPED


def test_expected_hosts(run, host):
    names = [f"node{n:04d}" for n in range(16)] + ["node0016.cluster"]
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_hosts": names})
    assert placed(verdict) == {("IbFabricHostMissing", "fabric/node0016")}


def test_blind_is_unknown(run, host):
    expect = {"ib_fabric_golden": GOLDEN}
    host.files["/sys/class/infiniband/mlx5_0/ports/1/phys_state"] = "3: Disabled\n"
    assert run("ib_fabric", host=host, expect=expect).status is Status.UNKNOWN
    host.files["/sys/class/infiniband/mlx5_0/ports/1/phys_state"] = "5: LinkUp\n"
    for argv in (SWEEP, ERRORS):
        good = host.commands[argv]
        for bad in (Unobservable("no answer"), "", good[: len(good) // 2], "what?\n"):
            host.commands[argv] = bad
            verdict = run("ib_fabric", host=host, expect=expect)
            assert verdict.blind, (argv, bad)
            assert not {"IbFabricSwitchMissing", "IbFabricHostMissing"} & verdict.codes
        host.commands[argv] = good
    host.files[GOLDEN] = "not a fabric"
    assert "golden" in run("ib_fabric", host=host, expect=expect).blind


def errors(**counters):
    words = " ".join(f"[{name} == {value}]" for name, value in counters.items())
    return (
        f'Errors for 0x{leaf_guid(0):016x} "leaf000"\n   GUID 0x{leaf_guid(0):016x} port ALL: {words}\n'
        f"   GUID 0x{leaf_guid(0):016x} port 3: {words}\n"
        "## Summary: 6 nodes checked, 1 bad nodes found\n"
        "##  32 ports checked, 1 ports have errors beyond threshold\n"
    )


@pytest.mark.parametrize(
    ("before", "after", "seconds", "told"),
    [
        ({}, {"SymbolErrorCounter": 200}, 3600, True),
        ({"SymbolErrorCounter": 9000}, {"SymbolErrorCounter": 9120}, 3600, False),
        ({"SymbolErrorCounter": 9000}, {"SymbolErrorCounter": 9121}, 3600, True),
        ({"SymbolErrorCounter": 9000}, {"SymbolErrorCounter": 9009}, 60, False),
        ({"SymbolErrorCounter": 60000}, {"SymbolErrorCounter": 65535}, 86400 * 30, True),
        ({"LinkDownedCounter": 10}, {"LinkDownedCounter": 16}, 86400, False),
        ({"LinkDownedCounter": 10}, {"LinkDownedCounter": 17}, 86400, True),
        ({"LocalLinkIntegrityErrors": 1}, {"LocalLinkIntegrityErrors": 2}, 86400, True),
        ({"PortXmitWait": 1}, {"PortXmitWait": 4294967295}, 3600, False),
        ({"PortRcvSwitchRelayErrors": 1}, {"PortRcvSwitchRelayErrors": 60000}, 3600, False),
        ({"SymbolErrorCounter": 9000}, {"SymbolErrorCounter": 3}, 3600, False),
    ],
)
def test_counters_are_judged_by_their_growth(run, host, before, after, seconds, told):
    expect = {"ib_fabric_sweep": True}
    host.commands[ERRORS] = errors(**before) if before else answer("ibqueryerrors")["stdout"]
    first = run("ib_fabric", host=host, expect=expect)
    assert not first.findings, "totals of a first look are no fault"
    host.commands[ERRORS] = errors(**after)
    host.time += seconds
    verdict = run("ib_fabric", host=host, expect=expect, past=first.memory)
    assert placed(verdict) == ({("IbFabricPortErrors", "fabric/leaf000/3")} if told else set())
    if told:
        assert verdict.findings[0].nodes == ("node0002",)


def test_a_link_that_waits_for_the_manager_is_told_the_second_time(run, host):
    near = '"                       leaf000"      2    4[  ] ==( 4X        53.125 Gbps Active/'
    assert near in host.commands[SWEEP]
    host.commands[SWEEP] = host.commands[SWEEP].replace(near, near.replace("Active", "Initialize"))
    first = run("ib_fabric", host=host, expect={"ib_fabric_sweep": True})
    assert not first.findings, "a host that boots is for a moment so"
    again = run("ib_fabric", host=host, expect={"ib_fabric_sweep": True}, past=first.memory)
    assert placed(again) == {("IbFabricLinkNotActive", "fabric/leaf000/4")}
    assert again.findings[0].nodes == ("node0003",)


@pytest.mark.parametrize("planes", [1, 2])
def test_each_plane_is_swept_once(run, host, planes):
    """Two rails in one fabric, or in two fabrics that do not know each other."""
    host.files |= {
        name.replace("mlx5_0", "mlx5_1").replace("umad0", "umad1"): text.replace("mlx5_0", "mlx5_1")
        for name, text in port_files(device="mlx5_0").items()
    }
    other = ("-C", "mlx5_1", "-P", "1")

    def of_plane(name):
        text = answer(name)["stdout"]
        if planes == 2:  # other adapters, other switches, the same LIDs
            text = text.replace("0x0002c903", "0x0002c904").replace("0xe41d2d", "0xe41d2e")
            text = text.replace("leaf0", "leaf1").replace("spine0", "spine1").replace(" mlx5_0", " mlx5_1")
        return text

    host.commands[("iblinkinfo", "-l", *other, "-D", "0")] = of_plane("peer")
    if planes == 2:
        host.commands[("iblinkinfo", "-l", *other)] = of_plane("iblinkinfo")
        host.commands[("ibqueryerrors", "--switch", *other)] = of_plane("ibqueryerrors")
        host.commands[("saquery", *other, "SMIR")] = of_plane("saquery")
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_sweep": True})
    assert (verdict.status, verdict.blind) == (Status.OK, "")
    told = {r.name: r.value for r in verdict.readings}
    assert (told["ib_fabric_switches_total"], told["ib_fabric_hosts_total"]) == (6 * planes, 16)


def one_link(text, near, far, rate):
    """`text` with another rate of one link, which neither end calls a fault."""
    lines = text.splitlines()
    for n, line in enumerate(lines):
        if f'"{near}"' in " ".join(line.split()).replace('" ', '"') and f'"{far}"' in line:
            head, tail = line.split("==(")[0], line.split("==>")[1]
            lines[n] = f"{head}==({rate} Active/  LinkUp)==>{tail.split('(')[0]}( )"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("rate", "code"),
    [(" 2X        53.125 Gbps", "IbFabricLinkNarrow"), (" 4X      25.78125 Gbps", "IbFabricLinkSlow")],
)
def test_slower_than_the_golden_topology(run, host, rate, code):
    text = host.commands[SWEEP]
    for near, far in (("leaf000", "node0003 mlx5_0"), ("node0003 mlx5_0", "leaf000")):
        text = one_link(text, near, far, rate)
    assert text.count(rate) == 2
    host.commands[SWEEP] = text
    assert not run("ib_fabric", host=host, expect={"ib_fabric_sweep": True}).findings
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_golden": GOLDEN})
    assert placed(verdict) == {(code, "fabric/leaf000/4")}
    assert verdict.findings[0].nodes == ("node0003",)


def test_one_of_two_parallel_links_is_slower(run, host):
    """Two cables between the same two switches: one came up at HDR, and nobody says that it could be more."""
    speeds = {1: "106.25", 2: "53.125"}
    host.commands[SWEEP] = "".join(
        f'0x{guid:016x} "{name}" {guid} {n}[  ] ==( 4X {gbps} Gbps Active/ LinkUp)==>  '
        f'0x{3 - guid:016x} {3 - guid} {n}[  ] "{other}" ( )\n'
        for n, gbps in speeds.items()
        for guid, name, other in ((1, "leaf", "spine"), (2, "spine", "leaf"))
    )
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_sweep": True})
    assert placed(verdict) == {("IbFabricLinkSlow", "fabric/leaf/2")}


def test_two_masters(run, host):
    one = answer("saquery")["stdout"]
    host.commands[MANAGERS] = one + one.replace("0x0002c90300000001", "0x0002c90300009001")
    assert placed(run("ib_fabric", host=host, expect={"ib_fabric_sweep": True})) == {
        ("IbSubnetManagerDuplicate", "fabric/sm")
    }
    standby = one.replace("0x0002c90300000001", "0x0002c90300009001").replace(
        "SMState...............3", "SMState...............2"
    )
    host.commands[MANAGERS] = one + standby
    assert not run("ib_fabric", host=host, expect={"ib_fabric_sweep": True}).findings


def test_a_half_populated_fabric_of_split_ports_is_quiet(run, host):
    """HDR100: ports split into two lanes, which is all that either end has; and empty ports."""
    lines = host.commands[SWEEP].replace("( 4X ", "( 2X ").replace("(Could be 12X )", "( )").splitlines()
    lines.append(
        f'0x{leaf_guid(0):016x} "           leaf000"      2   40[  ] ==(  Down/ Polling)==>  [  ] "" ( )'
    )
    host.commands[SWEEP] = "\n".join(lines) + "\n"
    assert not run("ib_fabric", host=host, expect={"ib_fabric_sweep": True}).findings


def test_a_fabric_that_fell_apart_is_not_ten_thousand_incidents(run, host):
    host.commands[SWEEP] = host.commands[SWEEP].replace("( 4X ", "( 1X ")
    host.files[GOLDEN] = host.files[GOLDEN].replace("53.125", "106.25")
    names = [f"lost{n}" for n in range(3000)]
    verdict = run("ib_fabric", host=host, expect={"ib_fabric_hosts": names})
    assert sum(f.code == "IbFabricHostMissing" for f in verdict.findings) == AT_MOST
    assert "2960 more" in verdict.detail


# ------------------------------------------------------------------ live fabrics

live = pytest.mark.skipif(bool(missing()), reason=f"a simulated fabric needs {', '.join(missing())}")


@pytest.fixture(scope="module")
def lab():
    if missing():
        pytest.skip(f"a simulated fabric needs {', '.join(missing())}")
    with FabricLab(fat_tree(16, down=4, spines=2)) as lab:
        yield lab


@pytest.mark.slow
@live
def test_all_tools_give_one_graph(lab):
    texts = [
        lab.run(*argv).stdout for argv in (("iblinkinfo", "-l"), ("ibnetdiscover",), ("ibnetdiscover", "-p"))
    ]
    graphs = [
        {(a.id, b.id, a.kind, b.kind, a.width, a.lane_gbps, a.node, b.node) for a, b in fabric.links()}
        for fabric in map(parse, texts)
    ]  # fmt: skip
    assert len(graphs[0]) == 24
    assert graphs[0] == graphs[1] == graphs[2]


def swept(run, host, past=None, **expect):
    return run("ib_fabric", host=host, past=past, expect=expect or {"ib_fabric_golden": "/golden"})


@pytest.mark.slow
@live
def test_faults_of_a_live_fabric(run, lab):
    """A cut cable, rising errors, a host that is gone, a dead leaf; and quiet again when all is mended."""
    host = lab.host(0)
    host.files["/golden"] = lab.run("iblinkinfo", "-l").stdout
    first = swept(run, host)
    assert (first.status, first.findings) == (Status.OK, ())

    lab.unlink(spine_guid(1), 2)
    assert placed(swept(run, host)) == {("IbFabricLinkDown", "fabric/leaf001/6")}
    lab.relink(spine_guid(1), 2)

    lab.count(leaf_guid(2), 3, SymbolErrorCounter=500)
    host.time += 3600
    rising = swept(run, host, past=first.memory)
    assert placed(rising) == {("IbFabricPortErrors", "fabric/leaf002/3")}
    assert rising.findings[0].nodes == ("node0010",)
    host.time += 3600
    assert not swept(run, host, past=rising.memory).findings, "what does not grow is over"

    lab.unlink(adapter_guid(5), 1)
    gone = swept(run, host, ib_fabric_golden="/golden", ib_fabric_hosts=["node0005", "node0006"])
    assert placed(gone) == {("IbFabricHostMissing", "fabric/leaf001/2")}
    assert placed(swept(run, host, ib_fabric_hosts=["node0005"])) == {
        ("IbFabricHostMissing", "fabric/node0005")
    }
    lab.relink(adapter_guid(5), 1)

    lab.unlink(leaf_guid(3))
    dead = swept(run, host)
    assert placed(dead) == {("IbFabricSwitchMissing", "fabric/leaf003")}
    assert (dead.status, len(dead.findings[0].nodes)) == (Status.CRITICAL, 4)
    lab.relink(leaf_guid(3))

    deadline = time.monotonic() + 60
    while (mended := swept(run, host)).findings and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not mended.findings


@pytest.mark.slow
@live
def test_degraded_links_of_a_live_fabric(run):
    links = {("leaf001", 3): "1xHDR", ("leaf002", 6): "4xEDR"}
    with FabricLab(fat_tree(12, down=4, spines=2, links=links)) as lab:
        verdict = swept(run, lab.host(0), ib_fabric_sweep=True)
    assert placed(verdict) == {
        ("IbFabricLinkNarrow", "fabric/leaf001/3"),
        ("IbFabricLinkSlow", "fabric/leaf002/6"),
    }
    assert of(verdict, "IbFabricLinkNarrow").nodes == ("node0006",)


@pytest.mark.slow
@live
def test_swapped_cables_of_a_live_fabric(run):
    topology = {"down": 4, "spines": 2}
    with FabricLab(fat_tree(8, **topology)) as lab:
        golden = lab.run("ibnetdiscover").stdout
    with FabricLab(fat_tree(8, **topology, swap=(2, 5))) as lab:
        host = lab.host(0)
        host.files["/golden"] = golden
        verdict = swept(run, host)
    assert placed(verdict) == {
        ("IbFabricMiscabled", "fabric/leaf000/3"),
        ("IbFabricMiscabled", "fabric/leaf001/2"),
    }
    assert {f.nodes for f in verdict.findings} == {("node0002",), ("node0005",)}


@pytest.mark.slow
@live
@pytest.mark.parametrize("hosts", [128, 512])
def test_large_fabrics(run, hosts, capsys):
    """A dead leaf in a large fabric is one finding, and the sweep stays within its cost."""
    with FabricLab(fat_tree(hosts, down=16, spines=8)) as lab:
        host = lab.host(0)
        host.files["/golden"] = lab.run("iblinkinfo", "-l").stdout
        began = time.monotonic()
        healthy = swept(run, host)
        seconds = time.monotonic() - began
        lab.unlink(leaf_guid(5))
        dead = swept(run, host)
    with capsys.disabled():
        print(f"\n{hosts} hosts: the sweep and its judgement took {seconds:.2f} s")
    assert (healthy.status, healthy.blind) == (Status.OK, "")
    assert placed(dead) == {("IbFabricSwitchMissing", "fabric/leaf005")}
    assert len(dead.findings[0].nodes) == 16
