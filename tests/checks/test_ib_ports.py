"""Ports that are gone, down, slow; and the many that are so on purpose."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.infiniband import CLASS
from tests.lab.rdma import RdmaHost

EXPECT = {"ib_ports": 8, "ib_rate_bits_per_second": 400e9, "ib_link_layer": "InfiniBand"}


def told(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_recorded(run):
    verdict = run("ib_ports", host="h100-ib-links", expect=EXPECT)
    critical = Status.CRITICAL
    assert told(verdict) == {
        ("IbLinkDown", "mlx5_3/1", critical), ("IbLinkSlow", "mlx5_5/1", critical),
        ("IbNoSubnetManager", "mlx5_6/1", critical),
    }  # fmt: skip
    assert "PCI 0000:5e:00.0" in verdict.findings[0].evidence[0]
    assert not run("ib_ports", host="h100-healthy", expect=EXPECT).findings


def test_healthy_without_expectations(run):
    assert run("ib_ports", host=RdmaHost()).status is Status.OK
    readings = {(r.subject.part, r.name): r.value for r in run("ib_ports", host=RdmaHost(1)).readings}
    assert readings == {
        ("mlx5_0/1", "ib_port_active_ratio"): 1, ("mlx5_0/1", "ib_port_rate_bits_per_second"): 400e9,
    }  # fmt: skip


def test_nothing_there(run):
    assert run("ib_ports", host=MemoryHost()).status is Status.SKIPPED
    verdict = run("ib_ports", host=RdmaHost(0), expect=EXPECT)
    assert told(verdict) == {("IbPortMissing", "rdma", Status.CRITICAL)}


def test_a_container_may_have_fewer(run):
    host = RdmaHost(2)
    host.files["/proc/self/mountinfo"] = "24 29 0:5 / /dev rw - tmpfs tmpfs rw\n"
    assert run("ib_ports", host=host, expect=EXPECT).status is Status.OK
    host.down("mlx5_1")
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert told(verdict) == {("IbLinkDown", "mlx5_1/1", Status.CRITICAL)}


def test_a_missing_adapter(run):
    verdict = run("ib_ports", host=RdmaHost(7), expect=EXPECT)
    assert told(verdict) == {("IbPortMissing", "rdma", Status.CRITICAL)}
    assert "7 of 8" in verdict.findings[0].summary
    assert run("ib_ports", host=RdmaHost(9), expect=EXPECT).status is Status.OK


def test_a_missing_and_a_dead_one(run):
    host = RdmaHost(7)
    host.down("mlx5_2")
    parts = {(f.code, f.subject.part) for f in run("ib_ports", host=host, expect=EXPECT).findings}
    assert parts == {("IbPortMissing", "rdma"), ("IbLinkDown", "mlx5_2/1")}


def test_the_free_port_of_another_card_is_not_blamed(run):
    host = RdmaHost(10)
    for device in ("mlx5_8", "mlx5_9"):
        host.set(device, board_id="MT_0000000546")
        host.down(device)
    assert run("ib_ports", host=host, expect=EXPECT).status is Status.OK
    host.down("mlx5_4")
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert told(verdict) == {("IbLinkDown", "mlx5_4/1", Status.CRITICAL)}


def test_the_storage_port_is_not_blamed_for_a_rail_that_is_gone(run):
    host = RdmaHost(8)
    host.set("mlx5_7", board_id="MT_0000000546")
    host.up("mlx5_7", "200 Gb/sec (4X HDR)")
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert told(verdict) == {("IbPortMissing", "rdma", Status.CRITICAL)}


def test_all_down_are_all_named(run):
    host = RdmaHost(8)
    for n in range(8):
        host.down(f"mlx5_{n}")
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert told(verdict) == {("IbLinkDown", f"mlx5_{n}/1", Status.CRITICAL) for n in range(8)}


def test_where_nobody_can_tell_which_is_meant_all_are_listed(run):
    host = RdmaHost(10)
    for device in ("mlx5_1", "mlx5_8", "mlx5_9"):
        host.down(device)
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert told(verdict) == {("IbPortMissing", "rdma", Status.CRITICAL)}
    assert any("mlx5_9/1: DOWN" in line for line in verdict.findings[0].evidence)


def test_a_port_that_cannot_be_read_is_blindness_and_no_fault(run):
    host = RdmaHost()
    host.break_reading(f"{CLASS}/mlx5_3/ports/1/state", refused("EIO"))
    verdict = run("ib_ports", host=host, expect=EXPECT)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    assert "mlx5_3/1" in verdict.blind
    host.files[f"{CLASS}/mlx5_4/ports/1/rate"] = "banana\n"
    assert run("ib_ports", host=host, expect=EXPECT).status is Status.UNKNOWN


def test_all_unreadable_is_unknown_not_skipped(run):
    host = RdmaHost(1)
    host.break_reading(f"{CLASS}/mlx5_0/ports/1/state", refused("EIO"))
    assert run("ib_ports", host=host).status is Status.UNKNOWN


def test_a_device_that_vanishes_in_between(run):
    host = RdmaHost()
    del host.files[f"{CLASS}/mlx5_3/ports/1/rate"]
    assert {f.code for f in run("ib_ports", host=host, expect=EXPECT).findings} == {"IbPortMissing"}


def test_link_layer_and_rate(run):
    host = RdmaHost()
    host.port("mlx5_1", link_layer="Ethernet")
    host.up("mlx5_2", "200 Gb/sec (2X NDR)")
    parts = {(f.code, f.subject.part) for f in run("ib_ports", host=host, expect=EXPECT).findings}
    assert parts == {("IbLinkLayerWrong", "mlx5_1/1"), ("IbLinkSlow", "mlx5_2/1")}
    host.up("mlx5_2", "800 Gb/sec (4X XDR)")
    host.port("mlx5_1")
    assert run("ib_ports", host=host, expect=EXPECT).status is Status.OK


# ------------------------------------------------------------------ without expectations


def test_uncabled_among_its_like(run):
    host = RdmaHost()
    host.down("mlx5_7")
    assert told(run("ib_ports", host=host)) == {("IbUncabled", "mlx5_7/1", Status.WARNING)}


@pytest.mark.parametrize("up", [0, 1, 2])
def test_few_peers_prove_nothing(run, up):
    host = RdmaHost(4)
    for n in range(up, 4):
        host.down(f"mlx5_{n}")
    assert run("ib_ports", host=host).status is Status.OK


def test_two_of_three_prove_nothing(run):
    host = RdmaHost(3)
    host.down("mlx5_0")
    assert run("ib_ports", host=host).status is Status.OK
    host.up("mlx5_0", "200 Gb/sec (2X NDR)")
    assert run("ib_ports", host=host).status is Status.OK


def test_half_of_many_down_is_a_choice(run):
    host = RdmaHost()
    for n in range(4):
        host.down(f"mlx5_{n}")
    assert run("ib_ports", host=host).status is Status.OK
    host.up("mlx5_0")
    assert {f.subject.part for f in run("ib_ports", host=host).findings} == {
        "mlx5_1/1", "mlx5_2/1", "mlx5_3/1",
    }  # fmt: skip


def test_second_ports_of_dual_port_cards_are_free(run):
    host = RdmaHost(8)
    for n in range(4):
        host.move(f"mlx5_{n + 4}", f"0000:{0x10 + n:02x}:00.1")
        host.down(f"mlx5_{n + 4}")
    assert run("ib_ports", host=host).status is Status.OK
    # one of these is cabled, for storage: still nobody's fault
    host.up("mlx5_4")
    assert run("ib_ports", host=host).status is Status.OK


def test_second_port_of_one_function(run):
    """ConnectX-3 (mlx4) has both ports on one device."""
    host = RdmaHost(4)
    for n in range(4):
        for path, text in list(host.files.items()):
            if path.startswith(f"{CLASS}/mlx5_{n}/ports/1/"):
                host.files[path.replace("/ports/1/", "/ports/2/")] = text
        host.files[f"{CLASS}/mlx5_{n}/ports/2/state"] = "1: DOWN\n"
        host.files[f"{CLASS}/mlx5_{n}/ports/2/phys_state"] = "2: Polling\n"
    assert run("ib_ports", host=host).status is Status.OK


def test_switched_off_infiniband(run):
    host = RdmaHost()
    host.down("mlx5_7", "3: Disabled")
    verdict = run("ib_ports", host=host)
    assert verdict.status is Status.OK
    assert "switched off" in verdict.detail


def test_disabled_is_what_mlx5_says_of_every_dead_ethernet_port(run):
    host = RdmaHost(link_layer="Ethernet")
    host.down("mlx5_7", "3: Disabled")
    assert told(run("ib_ports", host=host)) == {("IbUncabled", "mlx5_7/1", Status.WARNING)}
    host.files["/sys/class/net/net7/flags"] = "0x1002\n"
    assert run("ib_ports", host=host).status is Status.OK


def test_no_subnet_manager(run):
    host = RdmaHost(2)
    host.port("mlx5_0", state="2: INIT", lid="0xffff", sm_lid="0x0")
    assert told(run("ib_ports", host=host)) == {("IbNoSubnetManager", "mlx5_0/1", Status.WARNING)}
    # on Ethernet the state says nothing of a subnet manager
    host.port("mlx5_0", state="2: INIT", link_layer="Ethernet")
    assert run("ib_ports", host=host).status is Status.OK


def test_slower_than_its_like(run):
    host = RdmaHost()
    host.up("mlx5_1", "200 Gb/sec (2X NDR)")
    assert told(run("ib_ports", host=host)) == {("IbLinkSlow", "mlx5_1/1", Status.WARNING)}
    for n in (2, 3, 4, 5, 6):
        host.up(f"mlx5_{n}", "200 Gb/sec (2X NDR)")
    assert run("ib_ports", host=host).status is Status.OK  # two at 400: nobody's measure


@pytest.mark.parametrize(
    ("rate", "layer", "slow"),
    [
        ("25 Gb/sec (1X EDR)", "InfiniBand", True), ("2.5 Gb/sec (1X)", "InfiniBand", True),
        ("25 Gb/sec (1X EDR)", "Ethernet", False), ("100 Gb/sec (1X NDR)", "InfiniBand", False),
        ("100 Gb/sec (2X HDR)", "InfiniBand", False),
    ],
)  # fmt: skip
def test_one_lane(run, rate, layer, slow):
    host = RdmaHost(1)
    host.port("mlx5_0", rate=rate, link_layer=layer)
    assert {f.code for f in run("ib_ports", host=host).findings} == ({"IbLinkSlow"} if slow else set())


def test_what_is_not_judged(run):
    host = RdmaHost(4)
    host.down("mlx5_3")
    # a virtual function, to be given to a machine
    host.files[f"{CLASS}/mlx5_3/device/physfn/uevent"] = "PCI_SLOT_NAME=0000:10:00.0\n"
    assert run("ib_ports", host=host).status is Status.OK
    # in the machine that was given it, its physical function is nowhere
    host.files[f"{CLASS}/mlx5_3/device/physfn/uevent"] = "PCI_SLOT_NAME=0000:99:00.0\n"
    assert told(run("ib_ports", host=host)) == {("IbUncabled", "mlx5_3/1", Status.WARNING)}
    # soft-RoCE, in its old and new form
    host = RdmaHost(1)
    host.files[f"{CLASS}/mlx5_0/parent"] = "eno1\n"
    assert run("ib_ports", host=host).status is Status.SKIPPED
    host = RdmaHost(1)
    host.remove(f"{CLASS}/mlx5_0/device")
    assert run("ib_ports", host=host).status is Status.SKIPPED


def test_efa_is_another_checks(run):
    host = RdmaHost(1)
    host.files[f"{CLASS}/mlx5_0/device/uevent"] = "DRIVER=efa\nPCI_SLOT_NAME=0000:10:1b.0\n"
    assert run("ib_ports", host=host).status is Status.SKIPPED


@pytest.mark.parametrize("driver", ["hfi1", "irdma", "bnxt_en", "mana", "mlx4_core", "qedr", "hns3"])
def test_other_drivers_with_the_least_of_files(run, driver):
    host = RdmaHost(1)
    host.files[f"{CLASS}/mlx5_0/device/uevent"] = f"DRIVER={driver}\nPCI_SLOT_NAME=0000:10:00.0\n"
    for name in ("board_id", "hca_type", "fw_ver", "device/numa_node", "ports/1/counters"):
        host.remove(f"{CLASS}/mlx5_0/{name}")
    assert run("ib_ports", host=host).status is Status.OK


def test_a_bond_is_one_device(run):
    host = RdmaHost(1, link_layer="Ethernet")
    moved = {p.replace("mlx5_0", "mlx5_bond_0"): t for p, t in host.files.items()}
    host.files = {**moved, f"{CLASS}/mlx5_bond_0/device/net/net1/type": "1\n"}
    assert run("ib_ports", host=host, expect={"ib_ports": 1}).status is Status.OK


def test_adapters_that_are_built_in_must_be_there_cabled_or_not(run):
    expect = {"ib_ports_built_in": 20}
    verdict = run("ib_ports", "h100-healthy", expect=expect)
    assert verdict.codes == {"IbPortMissing"}
    assert "20 are built into this machine" in verdict.findings[0].summary
    assert run("ib_ports", "h100-healthy", expect={"ib_ports_built_in": 8}).status is Status.OK
    # a site that says what it needs has the last word
    assert run("ib_ports", "cpu-healthy", expect={**expect, "ib_ports": 0}).status is Status.OK
