"""Readers of the tools that tell of RDMA ports and network interfaces, on outputs of several versions."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import (
    ethtool,
    ethtool_statistics,
    ibstat,
    ibstatus,
    ibv_devinfo,
    rdma_link,
)
from tests.tools import sample

IBSTAT_PANIC = sample("ibstat/a100-failed-device.txt")
IBSTAT_DOWN = sample("ibstat/down-fdr10-iwarp.txt")
IBSTATUS = sample("ibstatus/mlx4-mlx5.txt")
DEVINFO = sample("ibv-devinfo/mlx5-chelsio.txt")
DEVINFO_V = sample("ibv-devinfo/verbose.txt")
RDMA = sample("rdma-link/text.txt")
RDMA_JSON = sample("rdma-link/two.json")
ETHTOOL = sample("ethtool/connectx-6-lx.txt")
ETHTOOL_VIRTIO = sample("ethtool/virtio-6.1.txt")
STATISTICS = sample("ethtool-statistics/several-drivers.txt")
SAMPLES = {
    "ibstat": IBSTAT_PANIC, "ibstatus": IBSTATUS, "ibv-devinfo": DEVINFO_V, "rdma-link": RDMA,
    "ethtool": ETHTOOL, "ethtool-statistics": STATISTICS,
}  # fmt: skip
MODULES = {m.KIND: m for m in (ibstat, ibstatus, ibv_devinfo, rdma_link, ethtool, ethtool_statistics)}


def test_ibstat_with_a_failure_at_its_end():
    found = ibstat.read(IBSTAT_PANIC)
    assert [d["name"] for d in found["devices"]] == ["mlx5_0", "mlx5_1"]
    assert found["errors"] == [
        "ibpanic: [1400444] main: stat of IB device 'mlx5_8' failed: No such file or directory"
    ]
    device = found["devices"][0]
    assert (device["type"], device["firmware"], device["ports_total"]) == ("MT4124", "20.41.1000", 1)
    assert device["ports"] == [
        {
            "number": 1, "state": "Active", "phys_state": "LinkUp", "rate_bits_per_second": 200e9,
            "lid": 13247, "lmc": 0, "sm_lid": 1, "capability_mask": "0xa651ec48",
            "port_guid": "0x020000fffd000000", "link_layer": "InfiniBand",
        }
    ]  # fmt: skip


def test_ibstat_of_other_cards():
    devices = {d["name"]: d for d in ibstat.read(IBSTAT_DOWN)["devices"]}
    down = devices["mlx5_10"]["ports"][0]
    assert (down["state"], down["phys_state"], down["lid"]) == ("Down", "Disabled", 65535)
    rates = [p["rate_bits_per_second"] for p in devices["mlx4_0"]["ports"]]
    assert rates == [40e9, 2.5e9]
    assert (devices["irdma0"]["kind"], devices["irdma0"]["type"]) == ("iWARP RNIC", "")


def test_ibstatus():
    ports = ibstatus.read(IBSTATUS)["ports"]
    names = ("device", "number", "state", "phys_state", "width", "speed")
    assert [tuple(p[name] for name in names) for p in ports] == [
        ("mlx4_0", 1, "ACTIVE", "LinkUp", 4, "FDR10"), ("mlx4_0", 2, "DOWN", "Polling", 4, ""),
        ("mlx5_2", 1, "DOWN", "Disabled", 4, "HDR"),
    ]  # fmt: skip
    assert [p["rate_bits_per_second"] for p in ports] == [40e9, 10e9, 200e9]


def test_ibv_devinfo():
    devices = ibv_devinfo.read(DEVINFO)["devices"]
    assert [(d["name"], d["transport"], d["firmware"]) for d in devices] == [
        ("mlx5_0", "InfiniBand (0)", "20.31.1014"), ("cxgb4_0", "iWARP (1)", "1.23.4.0"),
    ]  # fmt: skip
    assert [[p["active_mtu_bytes"] for p in d["ports"]] for d in devices] == [[4096], [0, 1024]]
    port = devices[0]["ports"][0]
    assert (port["state"], port["lid"], port["sm_lid"], port["link_layer"]) == (
        "PORT_ACTIVE", 383, 228, "InfiniBand",
    )  # fmt: skip


def test_ibv_devinfo_verbose():
    port = ibv_devinfo.read(DEVINFO_V)["devices"][0]["ports"][0]
    assert (port["active_mtu_bytes"], port["width"], port["speed"]) == (2048, "4X", "50.0 Gbps")
    assert port["gids"] == [
        {"index": 0, "gid": "fe80:0000:0000:0000:0200:00ff:fe00:0001", "type": ""},
        {"index": 1, "gid": "::ffff:198.18.0.9", "type": "RoCE v2"},
    ]


def test_rdma_link():
    ports = rdma_link.read(RDMA)["ports"]
    assert ports[0] == {
        "device": "mlx5_0", "number": 1, "state": "ACTIVE", "phys_state": "LINK_UP", "lid": 70, "sm_lid": 8,
    }  # fmt: skip
    assert [(p["device"], p["phys_state"], p.get("netdev")) for p in ports[1:]] == [
        ("mlx5_1", "DISABLED", "ens7f0np0"), ("rxe_eth0", "LINK_UP", "eth0"),
        ("mlx5_bond_0", "LINK_UP", "reth0"),
    ]  # fmt: skip
    ports = rdma_link.read(RDMA_JSON)["ports"]
    assert [(p["device"], p["state"], p.get("netdev"), p.get("lid")) for p in ports] == [
        ("mlx5_0", "ACTIVE", "ens1f0np0", None), ("mlx5_1", "DOWN", None, 70),
    ]  # fmt: skip


def test_ethtool():
    found = ethtool.read(ETHTOOL)
    assert found == {
        "interface": "enp4s0f0np0", "speed_bits_per_second": 10 * 10**9,
        "best_bits_per_second": 25 * 10**9, "duplex": "full", "autonegotiation": True,
        "can_negotiate": True, "link": True,
    }  # fmt: skip
    found = ethtool.read(ETHTOOL_VIRTIO)
    assert (found["speed_bits_per_second"], found["best_bits_per_second"], found["duplex"]) == (
        None, None, "unknown",
    )  # fmt: skip


def test_ethtool_statistics():
    counters = ethtool_statistics.read(STATISTICS)["counters"]
    assert counters["rx_prio3_pause_duration"] == 8134
    assert counters["[0]: rx_bytes"] == 209487403324
    assert counters["rxq0: rx_pkts"] == 388868940376


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ibstat", IBSTAT_PANIC.replace("Rate: 200", "Rate: fast")),
        ("ibstat", IBSTAT_PANIC.replace("LMC", "Mood")),
        ("ibstat", IBSTAT_PANIC.replace("lid: 13247", "lid: none")),
        ("ibstat", "Port 1:\n"),
        ("ibstat", ""),
        ("ibstatus", IBSTATUS.replace("(4X)", "(very wide)")),
        ("ibstatus", IBSTATUS.replace("1: DOWN", "DOWN")),
        ("ibstatus", IBSTATUS.replace("sm lid", "tm lid")),
        ("ibstatus", ""),
        ("ibv-devinfo", DEVINFO.replace("1024 (3)", "1024")),
        ("ibv-devinfo", DEVINFO.replace("port_lid:\t\t383", "port_lid:\t\tx")),
        ("ibv-devinfo", "No IB devices found\n"),
        ("rdma-link", RDMA.replace("netdev eth0", "netdev")),
        ("rdma-link", RDMA.replace("physical_state", "mood")),
        ("rdma-link", '[{"ifname": "mlx5_0"}]'),
        ("rdma-link", "[1"),
        ("rdma-link", "[" * 100000),
        ("ethtool", ETHTOOL.replace("10000Mb/s", "10 Gb/s")),
        ("ethtool", "Settings for eth0:\n"),
        ("ethtool", "netlink error: No such device\n"),
        ("ethtool-statistics", STATISTICS + "what\n"),
        ("ethtool-statistics", "no stats available\n"),
    ],
)
def test_what_is_not_known_is_said(kind, text):
    with pytest.raises(Unparsable):
        MODULES[kind].read(text)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@given(cut=st.integers(0, 3000), junk=st.text(max_size=40), place=st.integers(0, 3000))
@example(cut=3000, junk="\0", place=10)
@example(cut=3000, junk="\ud800", place=200)
def test_truncated_and_mixed(kind, cut, junk, place):
    text = SAMPLES[kind][:cut]
    text = text[:place] + junk + text[place:]
    for module in MODULES.values():
        module.recognise(text)
    with contextlib.suppress(Unparsable):
        MODULES[kind].read(text)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
@pytest.mark.parametrize("filler", ["a", " ", "\t", "0", ":", "link a/1 ", "     x: 1\n"])
def test_huge(kind, filler):
    """A megabyte more, in one line or many: no reader takes longer than a moment over it."""
    text = SAMPLES[kind] + filler * (1_000_000 // len(filler))
    for module in MODULES.values():
        module.recognise(text)
    with contextlib.suppress(Unparsable):
        MODULES[kind].read(text)
