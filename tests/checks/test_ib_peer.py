"""The other end of each cable: on recorded answers, and on a live fabric."""

from __future__ import annotations

import pytest

from clustertools.errors import Unobservable
from clustertools.host import Completed
from clustertools.model import Status
from tests.lab.fabric import FabricLab, adapter_guid, fat_tree, leaf_guid, missing, port_files
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.fabric import answer

PORT = ("-C", "mlx5_0", "-P", "1")
MANAGER = ("sminfo", *PORT)
PEER = ("iblinkinfo", "-l", *PORT, "-D", "0")
COUNTERS = ("perfquery", *PORT, "2", "1")
STATE = "/sys/class/infiniband/mlx5_0/ports/1/state"
PHYS_STATE = "/sys/class/infiniband/mlx5_0/ports/1/phys_state"


class Host(MemoryHost):
    """A node of the recorded fabric; `failing` are commands that end badly: argv -> what they complain of."""

    def __init__(self):
        super().__init__("node0000")
        self.failing = {}
        self.files |= port_files(device="mlx5_0")
        self.commands |= {
            MANAGER: answer("sminfo")["stdout"], PEER: answer("peer")["stdout"],
            COUNTERS: answer("perfquery")["stdout"],
        }  # fmt: skip

    def run(self, *argv, timeout_seconds=10.0, stdin=""):
        if argv in self.failing:
            return Completed(argv, 255, "", self.failing[argv])
        return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)


@pytest.fixture
def host():
    return Host()


def placed(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_healthy_says_where_the_cable_goes(run, host):
    verdict = run("ib_peer", host=host)
    assert verdict.status is Status.OK
    assert verdict.detail == "mlx5_0/1 is cabled to switch leaf000 (0xe41d2d0300000000) port 1"


def test_no_infiniband(run, host):
    assert run("ib_peer", host=MemoryHost()).status is Status.SKIPPED
    host.files["/sys/class/infiniband/mlx5_0/ports/1/link_layer"] = "Ethernet\n"
    assert run("ib_peer", host=host).status is Status.SKIPPED


def test_a_virtual_function_may_not_ask_the_fabric(run, host):
    host.files["/sys/class/infiniband/mlx5_0/device/device"] = "0x101e\n"
    host.commands.clear()
    assert run("ib_peer", host=host).status is Status.SKIPPED
    host.files["/sys/class/infiniband/mlx5_0/device/device"] = "0x1021\n"
    assert run("ib_peer", host=host).status is Status.UNKNOWN


SILENT = "ibwarn: [7] mad_rpc: _do_madrpc failed; dport (Lid 1)\nsminfo: iberror: failed: query\n"


def test_no_subnet_manager(run, host):
    host.failing[MANAGER] = SILENT
    verdict = run("ib_peer", host=host)
    assert placed(verdict) == {("IbSubnetManagerSilent", "mlx5_0/1", Status.WARNING)}
    assert verdict.findings[0].evidence == ("sminfo: iberror: failed: query",)
    host.files[STATE] = "2: INIT\n"
    assert not run("ib_peer", host=host).findings, "ib_ports tells of a port that waits for one"


def test_the_second_port_of_an_adapter(run, host):
    """Both ports are listed; the first one's switch port has the number of the second port."""
    host.files |= {
        name.replace("/ports/1/", "/ports/2/").replace("umad0", "umad1"): text
        for name, text in port_files(device="mlx5_0").items()
    }
    host.files["/sys/class/infiniband_mad/umad1/port"] = "2\n"
    one = host.commands[PEER]
    two = one.replace("0x0002c90300000001", "0x0002c90300000002").replace(" 1    1[", " 1    2[")
    two = two.replace('2    1[  ] "leaf000', '2    7[  ] "leaf000')
    both = one.replace('2    1[  ] "leaf000', '2    2[  ] "leaf000') + two
    for number in ("1", "2"):
        port = ("-C", "mlx5_0", "-P", number)
        host.commands[("iblinkinfo", "-l", *port, "-D", "0")] = both
        host.commands[("sminfo", *port)] = host.commands[MANAGER]
        for there in ("2", "7"):
            host.commands[("perfquery", *port, "2", there)] = host.commands[COUNTERS]
    verdict = run("ib_peer", host=host)
    assert verdict.detail == (
        "mlx5_0/1 is cabled to switch leaf000 (0xe41d2d0300000000) port 2\n"
        "mlx5_0/2 is cabled to switch leaf000 (0xe41d2d0300000000) port 7"
    )


def test_a_manager_that_is_not_the_master(run, host):
    host.commands[MANAGER] = host.commands[MANAGER].replace("state 3 SMINFO_MASTER", "state 2 SMINFO_STANDBY")
    assert placed(run("ib_peer", host=host)) == {("IbSubnetManagerNotMaster", "mlx5_0/1", Status.WARNING)}


def test_without_root_nobody_knows(run, host):
    host.failing[MANAGER] = "sminfo: iberror: failed: Failed to open 'mlx5_0' port '1'\n"
    verdict = run("ib_peer", host=host)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())


@pytest.mark.parametrize("argv", [MANAGER, PEER, COUNTERS])
@pytest.mark.parametrize("bad", [Unobservable("hangs"), "garbage\n", "\x00" * 100])
def test_what_cannot_be_read_is_unknown(run, host, argv, bad):
    host.commands[argv] = bad
    verdict = run("ib_peer", host=host)
    assert verdict.status is Status.UNKNOWN
    assert "IbPeerLost" not in verdict.codes


def test_a_port_that_went_down_tells_where_its_cable_goes(run, host):
    host.files |= {STATE: "1: DOWN\n", PHYS_STATE: "2: Polling\n"}
    assert not run("ib_peer", host=host).findings, "a port that never had a cable"
    host.files |= {STATE: "4: ACTIVE\n", PHYS_STATE: "5: LinkUp\n"}
    good = run("ib_peer", host=host)
    host.files |= {STATE: "1: DOWN\n", PHYS_STATE: "2: Polling\n"}
    lost = run("ib_peer", host=host, past=good.memory)
    assert placed(lost) == {("IbPeerLost", "mlx5_0/1", Status.WARNING)}
    assert lost.findings[0].summary == (
        "mlx5_0/1 is Polling: its cable leads to switch leaf000 (0xe41d2d0300000000) port 1"
    )
    # and it is not forgotten while it is down
    assert run("ib_peer", host=host, past=lost.memory).codes == {"IbPeerLost"}


def test_a_link_whose_peer_does_not_answer_is_not_lost(run, host):
    good = run("ib_peer", host=host)
    host.commands[PEER] = host.commands[PEER].split("==>")[0] + '==>      "Port not available"\n'
    verdict = run("ib_peer", host=host, past=good.memory)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())


def test_a_cable_in_another_switch_port(run, host):
    good = run("ib_peer", host=host)
    host.commands[PEER] = host.commands[PEER].replace("2    1[  ]", "2    9[  ]")
    host.commands[(*COUNTERS[:-1], "9")] = host.commands[COUNTERS]
    moved = run("ib_peer", host=host, past=good.memory)
    assert placed(moved) == {("IbPeerChanged", "mlx5_0/1", Status.WARNING)}
    assert moved.findings[0].clears == 86400.0
    assert not run("ib_peer", host=host, past=moved.memory).findings
    # another name for the same switch is no other switch
    host.commands[PEER] = host.commands[PEER].replace("leaf000", "sw-a1")
    assert not run("ib_peer", host=host, past=moved.memory).findings


@pytest.mark.parametrize(
    ("counter", "grown", "told"),
    [
        ("SymbolErrorCounter", 121, True),
        ("SymbolErrorCounter", 120, False),
        ("PortRcvErrors", 121, True),
        ("LocalLinkIntegrityErrors", 1, True),
        ("PortXmitWait", 10**9, False),
        ("LinkDownedCounter", 200, False),
    ],
)
def test_what_the_switch_counts(run, host, counter, grown, told):
    zero = next(line for line in host.commands[COUNTERS].splitlines(True) if line.startswith(f"{counter}:"))
    good = run("ib_peer", host=host)
    host.commands[COUNTERS] = host.commands[COUNTERS].replace(zero, zero.rstrip("\n")[:-1] + f"{grown}\n")
    host.time += 3600
    verdict = run("ib_peer", host=host, past=good.memory)
    assert placed(verdict) == ({("IbPeerErrors", "mlx5_0/1", Status.WARNING)} if told else set())


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"a simulated fabric needs {', '.join(missing())}")
def test_on_a_live_fabric(run):
    with FabricLab(fat_tree(8, down=4, spines=2)) as lab:
        host = lab.host(5)
        good = run("ib_peer", host=host)
        assert (good.status, "switch leaf001" in good.detail, "port 2" in good.detail) == (
            Status.OK,
            True,
            True,
        )
        lab.count(leaf_guid(1), 2, SymbolErrorCounter=4000)
        host.time += 3600
        verdict = run("ib_peer", host=host, past=good.memory)
        assert placed(verdict) == {("IbPeerErrors", "ibsim0/1", Status.WARNING)}
        lab.unlink(adapter_guid(5), 1)
        host.files |= port_files(state="1: DOWN")
        assert run("ib_peer", host=host, past=verdict.memory).codes == {"IbPeerLost"}
