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
    readers,
)

# gpud's test data, of an A100 machine in a cloud, where the ninth device failed; GUIDs replaced, two of eight
IBSTAT_PANIC = """\
CA 'mlx5_0'
        CA type: MT4124
        Number of ports: 1
        Firmware version: 20.41.1000
        Hardware version: 0
        Node GUID: 0x020000fffe000000
        System image GUID: 0x020000fffe000001
        Port 1:
                State: Active
                Physical state: LinkUp
                Rate: 200
                Base lid: 13247
                LMC: 0
                SM lid: 1
                Capability mask: 0xa651ec48
                Port GUID: 0x020000fffd000000
                Link layer: InfiniBand
CA 'mlx5_1'
        CA type: MT4124
        Number of ports: 1
        Firmware version: 20.41.1000
        Hardware version: 0
        Node GUID: 0x020000fffe000002
        System image GUID: 0x020000fffe000003
        Port 1:
                State: Active
                Physical state: LinkUp
                Rate: 200
                Base lid: 13246
                LMC: 0
                SM lid: 1
                Capability mask: 0xa651ec48
                Port GUID: 0x020000fffd000002
                Link layer: InfiniBand
ibpanic: [1400444] main: stat of IB device 'mlx5_8' failed: No such file or directory

"""
# ConnectX-8 with an unused port, and mlx4 with a port at FDR10, from public notes; GUIDs replaced
IBSTAT_DOWN = """\
CA 'mlx5_10'
\tCA type: MT4131
\tNumber of ports: 1
\tFirmware version: 40.46.5500
\tHardware version: 0
\tNode GUID: 0x020000fffe00000a
\tSystem image GUID: 0x020000fffe00000a
\tPort 1:
\t\tState: Down
\t\tPhysical state: Disabled
\t\tRate: 10
\t\tBase lid: 65535
\t\tLMC: 0
\t\tSM lid: 0
\t\tCapability mask: 0xa750e848
\t\tPort GUID: 0x020000fffe00000a
\t\tLink layer: InfiniBand
CA 'mlx4_0'
\tCA type: MT4099
\tNumber of ports: 2
\tFirmware version: 2.30.3000
\tHardware version: 0
\tNode GUID: 0x020000fffe000010
\tSystem image GUID: 0x020000fffe000013
\tPort 1:
\t\tState: Active
\t\tPhysical state: LinkUp
\t\tRate: 40 (FDR10)
\t\tBase lid: 151
\t\tLMC: 0
\t\tSM lid: 317
\t\tCapability mask: 0x02514868
\t\tPort GUID: 0x020000fffe000011
\t\tLink layer: InfiniBand
\tPort 2:
\t\tState: Initializing
\t\tPhysical state: LinkUp
\t\tRate: 2.5
\t\tBase lid: 0
\t\tLMC: 0
\t\tSM lid: 0
\t\tCapability mask: 0x02514868
\t\tPort GUID: 0x020000fffe000012
\t\tLink layer: Ethernet
iWARP RNIC 'irdma0'
\tiWARP RNIC type:\x20
\tNumber of ports: 1
\tFirmware version: 1.60
\tHardware version:\x20
\tNode GUID: 0x020000fffe000020
\tSystem image GUID: 0x020000fffe000020
"""
# from public notes (libvma on ConnectX-3; OpenShift with RoCE); GIDs replaced
IBSTATUS = """\
Infiniband device 'mlx4_0' port 1 status:
\tdefault gid:\t fe80:0000:0000:0000:0200:00ff:fe00:0001
\tbase lid:\t 0x1
\tsm lid:\t\t 0x1
\tstate:\t\t 4: ACTIVE
\tphys state:\t 5: LinkUp
\trate:\t\t 40 Gb/sec (4X FDR10)
\tlink_layer:\t InfiniBand

Infiniband device 'mlx4_0' port 2 status:
\tdefault gid:\t fe80:0000:0000:0000:0200:00ff:fe00:0002
\tbase lid:\t 0x0
\tsm lid:\t\t 0x0
\tstate:\t\t 1: DOWN
\tphys state:\t 2: Polling
\trate:\t\t 10 Gb/sec (4X)
\tlink_layer:\t InfiniBand

   Infiniband device 'mlx5_2' port 1 status:
   \tdefault gid:\t 0000:0000:0000:0000:0000:0000:0000:0000
   \tbase lid:\t 0x0
   \tsm lid:\t\t 0x0
   \tstate:\t\t 1: DOWN
   \tphys state:\t 3: Disabled
   \trate:\t\t 200 Gb/sec (4X HDR)
   \tlink_layer:\t Ethernet
"""
# cloud node with InfiniBand and Ethernet, and a card of Chelsio, from public notes and charms; GUIDs replaced
DEVINFO = """\
hca_id:\tmlx5_0
\ttransport:\t\t\tInfiniBand (0)
\tfw_ver:\t\t\t\t20.31.1014
\tnode_guid:\t\t\t0200:00ff:fe00:0001
\tsys_image_guid:\t\t\t0200:00ff:fe00:0001
\tvendor_id:\t\t\t0x02c9
\tvendor_part_id:\t\t\t4124
\thw_ver:\t\t\t\t0x0
\tboard_id:\t\t\tMT_0000000223
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
\t\t\tmax_mtu:\t\t4096 (5)
\t\t\tactive_mtu:\t\t4096 (5)
\t\t\tsm_lid:\t\t\t228
\t\t\tport_lid:\t\t383
\t\t\tport_lmc:\t\t0x00
\t\t\tlink_layer:\t\tInfiniBand

hca_id:\tcxgb4_0
        transport:\t\t\tiWARP (1)
        fw_ver:\t\t\t\t1.23.4.0
        vendor_id:\t\t\t0x1425
        phys_port_cnt:\t\t\t2
                port:\t1
                        state:\t\t\tPORT_DOWN (1)
                        max_mtu:\t\t4096 (5)
                        active_mtu:\t\tinvalid MTU (0)
                        sm_lid:\t\t\t0
                        port_lid:\t\t0
                        port_lmc:\t\t0x00
                        link_layer:\t\tEthernet

                port:\t2
                        state:\t\t\tPORT_ACTIVE (4)
                        max_mtu:\t\t4096 (5)
                        active_mtu:\t\t1024 (3)
                        sm_lid:\t\t\t0
                        port_lid:\t\t0
                        port_lmc:\t\t0x00
                        link_layer:\t\tEthernet
"""
# rdma-core 39 and later with -v, shortened in its capabilities, and "Device ports:" of MLNX_OFED 4
DEVINFO_V = """\
hca_id:\tmlx5_0
\ttransport:\t\t\tInfiniBand (0)
\tfw_ver:\t\t\t\t20.37.1700
\tphys_port_cnt:\t\t\t1
\tdevice_cap_flags:\t\t0x21361c36
\t\t\t\t\tBAD_PKEY_CNTR
\t\t\t\t\tMANAGED_FLOW_STEERING
\tlog atomic arg sizes (mask)\t\t0x8
\tooo_rc_caps  = 0x0
\tcompletion_timestamp_mask not supported
\tmaximum available device memory:\t131072Bytes

\tnum_comp_vectors:\t\t63
\tDevice ports:
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
\t\t\tmax_mtu:\t\t4096 (5)
\t\t\tactive_mtu:\t\t2048 (4)
\t\t\tsm_lid:\t\t\t1
\t\t\tport_lid:\t\t4
\t\t\tport_lmc:\t\t0x00
\t\t\tlink_layer:\t\tInfiniBand
\t\t\tmax_msg_sz:\t\t0x40000000
\t\t\tmax_vl_num:\t\t4 (3)
\t\t\tactive_width:\t\t4X (2)
\t\t\tactive_speed:\t\t50.0 Gbps (64)
\t\t\tphys_state:\t\tLINK_UP (5)
\t\t\tGID[  0]:\t\tfe80:0000:0000:0000:0200:00ff:fe00:0001
\t\t\tGID[  1]:\t\t::ffff:198.18.0.9, RoCE v2
"""
RDMA = """\
link mlx5_0/1 subnet_prefix fe80:0000:0000:0000 lid 70 sm_lid 8 lmc 0 state ACTIVE physical_state LINK_UP
link mlx5_1/1 state DOWN physical_state DISABLED netdev ens7f0np0
link rxe_eth0/1 state ACTIVE physical_state LINK_UP netdev eth0
8/1: mlx5_bond_0/1: state ACTIVE physical_state LINK_UP netdev reth0
    caps: <CM, AUTOMIG>
"""
RDMA_JSON = (
    '[{"ifindex":0,"ifname":"mlx5_0","port":1,"state":"ACTIVE","physical_state":"LINK_UP",'
    '"netdev":"ens1f0np0"},{"ifindex":1,"ifname":"mlx5_1","port":1,"lid":70,"sm_lid":8,"lmc":0,'
    '"state":"DOWN","physical_state":"DISABLED"}]'
)
# ConnectX-6 Lx, from public notes, and virtio recorded with ethtool 6.1
ETHTOOL = """\
Settings for enp4s0f0np0:
\tSupported ports: [ Backplane ]
\tSupported link modes:   1000baseKX/Full
\t                        10000baseKR/Full
\t                        25000baseSR/Full
\tSupported pause frame use: Symmetric
\tSupports auto-negotiation: Yes
\tSupported FEC modes: None\t RS\t BASER
\tAdvertised link modes:  1000baseKX/Full
\t                        100000baseKR/Full
\tAdvertised pause frame use: Symmetric
\tSpeed: 10000Mb/s
\tDuplex: Full
\tAuto-negotiation: on
\tPort: Direct Attach Copper
\tPHYAD: 0
\tTransceiver: internal
netlink error: Operation not permitted
        Current message level: 0x00000007 (7)
                               drv probe link
\tLink detected: yes
"""
ETHTOOL_VIRTIO = """\
Settings for eth0:
\tSupported ports: [  ]
\tSupported link modes:   Not reported
\tSupported pause frame use: No
\tSupports auto-negotiation: No
\tSpeed: Unknown!
\tDuplex: Unknown! (255)
\tAuto-negotiation: off
\tPort: Other
\tLink detected: yes
"""
# virtio recorded here; the others are lines of mlx5, bnx2x and be2net from public issues
STATISTICS = """\
NIC statistics:
     rx_drops: 0
     rx_kicks: 516
     rx_prio3_pause: 41927
     rx_prio3_pause_duration: 8134
     [0]: rx_bytes: 209487403324
     rxq0: rx_pkts: 388868940376
"""
SAMPLES = {
    "ibstat": IBSTAT_PANIC, "ibstatus": IBSTATUS, "ibv-devinfo": DEVINFO_V, "rdma-link": RDMA,
    "ethtool": ETHTOOL, "ethtool-statistics": STATISTICS,
}  # fmt: skip
MODULES = {m.KIND: m for m in (ibstat, ibstatus, ibv_devinfo, rdma_link, ethtool, ethtool_statistics)}


def test_each_recognises_its_own_and_no_other():
    for kind, text in (*SAMPLES.items(), ("rdma-link", RDMA_JSON), ("ibstat", IBSTAT_DOWN)):
        assert [name for name in MODULES if MODULES[name].recognise(text)] == [kind]
        assert readers()[kind].recognise(text)


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
