"""Ethernet links: those that matter are judged, the many others are not."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.ethernet import link, route

CLASS = "/sys/class/net"


def node(*names, **changes):
    host = MemoryHost()
    for name in names or ("eno1",):
        host.files |= link(name, **changes)
    host.files |= {f"{CLASS}/lo/type": "772\n", "/proc/net/route": route("eno1")}
    return host


def down(host, name):
    host.files |= {f"{CLASS}/{name}/operstate": "down\n", f"{CLASS}/{name}/speed": "-1\n"}


def bonded(mode="802.3ad 4"):
    host = node("eno1", "eno2")
    host.files |= link("bond0", speed="50000")
    del host.files[f"{CLASS}/bond0/device/uevent"]
    host.files |= {
        f"{CLASS}/bond0/bonding/mode": f"{mode}\n", f"{CLASS}/bond0/bonding/slaves": "eno1 eno2\n",
        f"{CLASS}/bond0/bonding/ad_aggregator": "1\n",
        f"{CLASS}/bond0/lower_eno1": "", f"{CLASS}/bond0/lower_eno2": "",
        "/proc/net/route": route("bond0"),
    }  # fmt: skip
    for name in ("eno1", "eno2"):
        host.files[f"{CLASS}/{name}/bonding_slave/mii_status"] = "up\n"
        host.files[f"{CLASS}/{name}/bonding_slave/ad_aggregator_id"] = "1\n"
    return host


def told(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def later(run, host, change, seconds=60.0, **options):
    first = run("net_links", host=host, **options)
    assert not first.findings
    change()
    host.time += seconds
    return run("net_links", host=host, past=first.memory, **options)


def test_quiet(run):
    assert run("net_links", host=node()).status is Status.OK
    assert run("net_links", host=bonded()).status is Status.OK
    for name in ("h100-healthy", "cpu-healthy", "mi300x-healthy"):
        assert run("net_links", host=name).status is Status.OK


def test_nothing_that_counts(run):
    host = MemoryHost()
    host.files["/proc/net/route"] = route("eth0")
    host.files |= {f"{CLASS}/eth0/type": "1\n", f"{CLASS}/eth0/operstate": "down\n"}  # a container's
    assert run("net_links", host=host).status is Status.SKIPPED


def test_ports_that_nobody_uses(run):
    host = node("eno1", "eno2", "wlan0")
    down(host, "eno2")
    host.files[f"{CLASS}/wlan0/phy80211/name"] = "phy0\n"
    down(host, "wlan0")
    host.files["/proc/net/route"] = route("eno1", "wlan0")
    host.files |= link("ib0", type="32", operstate="down")
    host.files |= link(
        "enx0", operstate="down", **{"device/uevent": "DEVTYPE=usb_interface\nDRIVER=cdc_ether"}
    )
    host.files["/proc/net/route"] = route("eno1", "wlan0", "ib0", "enx0")
    assert run("net_links", host=host).status is Status.OK


def test_a_link_that_is_lost(run):
    host = node("eno1", "eno2")
    host.files["/proc/net/route"] = route("eno1", "eno2")

    def pull():
        down(host, "eno2")
        host.files["/proc/net/route"] = route("eno1")  # its addresses go with it

    assert told(later(run, host, pull)) == {("NetLinkDown", "net@eno2", Status.WARNING)}
    host.files["/sys/class/dmi/id/chassis_type"] = "10\n"
    host.files["/proc/net/route"] = route("eno1", "eno2")
    assert run("net_links", host=host).status is Status.OK  # a notebook


def test_switched_off_by_somebody(run):
    host = node("eno1", "eno2")
    host.files["/proc/net/route"] = route("eno1", "eno2")

    def off():
        down(host, "eno2")
        host.files[f"{CLASS}/eno2/flags"] = "0x1002\n"

    assert later(run, host, off).status is Status.OK
    expect = {"interfaces": ["eno2"]}
    assert told(run("net_links", host=host, expect=expect)) == {("NetLinkDown", "net@eno2", Status.CRITICAL)}


def test_another_boot_forgets(run):
    host = node("eno1", "eno2")
    host.files["/proc/net/route"] = route("eno1", "eno2")

    def reboot():
        host.boot_id = "boot-2"
        down(host, "eno2")
        host.files["/proc/net/route"] = route("eno1")

    assert later(run, host, reboot).status is Status.OK


def test_expected(run):
    expect = {"interfaces": {"eno1": {"speed_bits_per_second": 25e9, "mtu_bytes": 1500}, "eno9": None}}
    verdict = run("net_links", host=node(), expect=expect)
    assert told(verdict) == {("NetLinkDown", "net@eno9", Status.CRITICAL)}
    host = node(speed="10000", mtu="9000")
    expect = {"interfaces": {"eno1": {"speed_bits_per_second": 25e9, "mtu_bytes": 1500, "address": "AA:BB"}}}
    assert told(run("net_links", host=host, expect=expect)) == {
        ("NetLinkSlow", "net@eno1", Status.WARNING), ("NetMtuWrong", "net@eno1", Status.WARNING),
        ("NetAddressWrong", "net@eno1", Status.WARNING),
    }  # fmt: skip
    expect = {"interfaces": {"eno1": {"speed_bits_per_second": 10e9, "address": "02:00:00:00:00:01"}}}
    assert run("net_links", host=host, expect=expect).status is Status.OK


@pytest.mark.parametrize(
    ("modes", "slow"),
    [("100baseT/Full", False), ("100baseT/Full\n\t   1000baseT/Full", True), ("Not reported", False)],
)
def test_a_speed_that_fell_back(run, modes, slow):
    host = node(speed="100")
    assert run("net_links", host=host).status is Status.OK  # no ethtool: nobody can tell
    host.commands["ethtool", "eno1"] = (
        f"Settings for eno1:\n\tSupported link modes:   {modes}\n\tSpeed: 100Mb/s\n"
    )
    assert run("net_links", host=host).codes == ({"NetLinkSlow"} if slow else set())


def test_half_duplex_and_unknown_speeds(run):
    host = node(duplex="half")
    assert run("net_links", host=host).status is Status.OK  # virtual ones say so, and mean nothing by it
    host.commands["ethtool", "eno1"] = "Settings for eno1:\n\tSupported link modes:   25000baseCR/Full\n"
    assert run("net_links", host=host).codes == {"NetLinkSlow"}
    for speed in ("-1", "4294967295", "0", "?"):
        assert run("net_links", host=node(speed=speed, duplex="unknown")).status is Status.OK
    host = node()
    host.files[f"{CLASS}/eno1/speed"] = refused("EINVAL")
    host.files[f"{CLASS}/eno1/operstate"] = "unknown\n"
    assert run("net_links", host=host).status is Status.OK


@pytest.mark.parametrize(
    ("path", "text"), [("bonding_slave/mii_status", "down"), ("bonding_slave/ad_aggregator_id", "2")]
)
def test_a_bond_without_a_member(run, path, text):
    host = bonded()
    host.files[f"{CLASS}/eno2/{path}"] = f"{text}\n"
    down(host, "eno2")
    assert told(run("net_links", host=host)) == {("NetBondDegraded", "net@bond0", Status.WARNING)}
    host.files[f"{CLASS}/bond0/flags"] = "0x1002\n"
    assert run("net_links", host=host).status is Status.OK


def test_bonds_of_other_kinds(run):
    host = bonded("active-backup 1")
    del host.files[f"{CLASS}/bond0/bonding/ad_aggregator"]
    assert run("net_links", host=host).status is Status.OK
    host.files[f"{CLASS}/eno2/speed"] = "10000\n"
    assert told(run("net_links", host=host)) == {("NetLinkSlow", "net@eno2", Status.WARNING)}
    down(host, "bond0")
    assert ("NetLinkDown", "net@bond0", Status.WARNING) in told(run("net_links", host=host))


def test_the_port_of_an_rdma_adapter_is_ib_ports_business(run):
    host = node()
    host.files[f"{CLASS}/eno1/device/infiniband/mlx5_0/node_type"] = "1: CA\n"
    down(host, "eno1")
    assert run("net_links", host=host).status is Status.OK
    expect = {"interfaces": ["eno1"]}
    assert told(run("net_links", host=host, expect=expect)) == {("NetLinkDown", "net@eno1", Status.CRITICAL)}


def test_below_a_bridge_and_a_vlan(run):
    host = node("eno1", "eno2")
    host.files |= {
        f"{CLASS}/br0/lower_eno1.7": "",
        f"{CLASS}/eno1.7/lower_eno1": "",
        "/proc/net/route": route("br0"),
    }
    down(host, "eno1")
    down(host, "eno2")
    assert told(run("net_links", host=host)) == {("NetLinkDown", "net@eno1", Status.WARNING)}


def test_flaps_and_errors(run):
    host = node()
    verdict = later(run, host, lambda: host.files.update({f"{CLASS}/eno1/carrier_down_count": "4\n"}))
    assert told(verdict) == {("NetCarrierFlapping", "net@eno1", Status.WARNING)}
    host = node()
    verdict = later(run, host, lambda: host.files.update({f"{CLASS}/eno1/statistics/rx_crc_errors": "61\n"}))
    assert told(verdict) == {("NetErrors", "net@eno1", Status.WARNING)}
    host = node()
    verdict = later(run, host, lambda: host.files.update({f"{CLASS}/eno1/statistics/rx_crc_errors": "60\n"}))
    assert verdict.status is Status.OK


def test_unreadable(run):
    host = node()
    host.files[f"{CLASS}/eno1/flags"] = "up\n"
    assert run("net_links", host=host).status is Status.UNKNOWN
    host = node()
    host.files[f"{CLASS}/eno1/statistics/rx_crc_errors"] = "many"
    assert run("net_links", host=host).status is Status.UNKNOWN
    host.files["/proc/net/route"] = "something else\n"
    assert run("net_links", host=host).status is Status.UNKNOWN
    del host.files["/proc/net/route"]  # a kernel without IPv4
    assert run("net_links", host=host).status is Status.SKIPPED
    # one that vanishes in between
    host = node("eno1", "eno2")
    host.files["/proc/net/route"] = route("eno1", "eno2")
    del host.files[f"{CLASS}/eno2/flags"]
    assert run("net_links", host=host).status is Status.OK
