"""How the adapters are set up: against the class, or against each other."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab import whole_node
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.infiniband import CLASS, ibv_devinfo
from tests.lab.rdma import RdmaHost


def told(verdict):
    assert all(f.status is Status.WARNING for f in verdict.findings)
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_recorded(run):
    verdict = run("ib_configuration", host="a100-ib-adapters")
    assert told(verdict) == {
        ("IbFirmwareMixed", "mlx5_1"), ("IbPkeyWrong", "mlx5_2/1"), ("IbDeviceFileMissing", "mlx5_0"),
        ("IbDriverMissing", "pci@0000:cc:00.0"), ("GpuDirectMissing", "rdma"),
    }  # fmt: skip
    for name in ("h100-healthy", "a100-healthy", "cpu-healthy"):
        assert run("ib_configuration", host=name).status is Status.OK


def test_quiet(run):
    assert run("ib_configuration", host=RdmaHost()).status is Status.OK
    assert run("ib_configuration", host=MemoryHost()).status is Status.SKIPPED


def test_firmware(run):
    host = RdmaHost()
    host.set("mlx5_6", fw_ver="28.35.1012")
    assert told(run("ib_configuration", host=host)) == {("IbFirmwareMixed", "mlx5_6")}
    accepted = {"ib_firmware": ["28.39.1002", "28.35.1012"]}
    assert run("ib_configuration", host=host, expect=accepted).status is Status.OK
    verdict = run("ib_configuration", host=host, expect={"ib_firmware": "28.35.1012"})
    assert len(verdict.findings) == 7
    # another card type has another firmware
    host.set("mlx5_6", board_id="MT_0000000546")
    assert run("ib_configuration", host=host).status is Status.OK


def test_two_and_two_are_no_majority(run):
    for count, others in ((4, 2), (6, 3), (3, 1)):
        host = RdmaHost(count)
        for n in range(others):
            host.set(f"mlx5_{n}", fw_ver="28.35.1012")
        assert run("ib_configuration", host=host).status is Status.OK


def test_partitions(run):
    host = RdmaHost()
    host.set("mlx5_1", pkeys__0="0x7fff")
    assert told(run("ib_configuration", host=host)) == {("IbPkeyWrong", "mlx5_1/1")}
    host.set("mlx5_1", pkeys__0="0xffff", pkeys__1="0x8012")
    verdict = run("ib_configuration", host=host, expect={"ib_pkeys": ["0xffff"]})
    assert verdict.status is Status.OK
    verdict = run("ib_configuration", host=host, expect={"ib_pkeys": [0xFFFF, "0x8012"]})
    assert len(verdict.findings) == 7
    host.set("mlx5_1", pkeys__0="???")
    assert run("ib_configuration", host=host).status is Status.UNKNOWN


def gids(host, device, *entries):
    for index, (kind, gid) in enumerate(entries):
        host.files[f"{CLASS}/{device}/ports/1/gid_attrs/types/{index}"] = f"{kind}\n"
        host.files[f"{CLASS}/{device}/ports/1/gids/{index}"] = f"{gid}\n"
    host.files[f"{CLASS}/{device}/ports/1/gid_attrs/types/{len(entries)}"] = refused("EINVAL")


LOCAL = ("RoCE v2", "fe80:0000:0000:0000:0200:00ff:fe00:0001")
FIRST = ("IB/RoCE v1", "fe80:0000:0000:0000:0200:00ff:fe00:0001")
ROUTED = ("RoCE v2", "0000:0000:0000:0000:0000:ffff:c612:0009")


def roce(count=4):
    host = RdmaHost(count, link_layer="Ethernet")
    for n in range(count):
        gids(host, f"mlx5_{n}", FIRST, LOCAL, ROUTED)
    return host


def test_gids(run):
    host = roce()
    assert run("ib_configuration", host=host).status is Status.OK
    gids(host, "mlx5_2", FIRST)
    host.remove(f"{CLASS}/mlx5_2/ports/1/gids/2")
    assert told(run("ib_configuration", host=host)) == {("RoceGidMissing", "mlx5_2/1")}
    host = roce()
    gids(host, "mlx5_2", FIRST, LOCAL)
    assert told(run("ib_configuration", host=host)) == {("RoceGidMissing", "mlx5_2/1")}


def test_gids_that_are_not_judged(run):
    host = roce()
    for n in range(4):
        gids(host, f"mlx5_{n}", FIRST, LOCAL)  # nobody has an address: not configured yet
    assert run("ib_configuration", host=host).status is Status.OK
    host = roce()
    host.remove(f"{CLASS}/mlx5_2/ports/1/gids/1")
    host.remove(f"{CLASS}/mlx5_2/ports/1/gids/2")
    gids(host, "mlx5_2", ("RoCE v2", "0000:0000:0000:0000:0000:0000:0000:0000"))  # its interface is in a pod
    assert run("ib_configuration", host=host).status is Status.OK
    gids(host, "mlx5_2", FIRST, LOCAL, ROUTED)  # one has an address of all: it is the storage's
    for n in (0, 1, 3):
        gids(host, f"mlx5_{n}", FIRST, LOCAL)
        host.remove(f"{CLASS}/mlx5_{n}/ports/1/gids/2")
    assert run("ib_configuration", host=host).status is Status.OK
    host = roce()
    gids(host, "mlx5_2", FIRST)
    host.set("mlx5_2", node_type="4: RNIC")  # iWARP
    assert run("ib_configuration", host=host).status is Status.OK


def test_mtu(run):
    host = RdmaHost()
    host.commands["ibv_devinfo",] = ibv_devinfo(whole_node.DGX_H100, {"mlx5_2": 2048})
    assert told(run("ib_configuration", host=host)) == {("IbMtuLow", "mlx5_2/1")}
    verdict = run("ib_configuration", host=host, expect={"ib_mtu": 2048})
    assert verdict.status is Status.OK
    everywhere = {f"mlx5_{n}": 2048 for n in range(8)}
    host.commands["ibv_devinfo",] = ibv_devinfo(whole_node.DGX_H100, everywhere)
    assert run("ib_configuration", host=host).status is Status.OK
    assert len(run("ib_configuration", host=host, expect={"ib_mtu": 4096}).findings) == 8
    host.commands["ibv_devinfo",] = "hca_id:\tmlx5_0\n\t\tport:\t1\n\t\t\tactive_mtu:\t\tlots\n"
    assert run("ib_configuration", host=host).status is Status.UNKNOWN


def test_the_mtu_of_an_ethernet_adapter_is_its_own(run):
    """Azure's accelerated networking: Ethernet at 1024 beside rails of InfiniBand at 4096."""
    host = RdmaHost()
    host.port("mlx5_2", link_layer="Ethernet", lid="0x0", sm_lid="0x0")
    host.commands["ibv_devinfo",] = ibv_devinfo(whole_node.DGX_H100, {"mlx5_2": 1024, "mlx5_3": 2048})
    for layer in ({}, {"ib_link_layer": "InfiniBand"}):
        verdict = run("ib_configuration", host=host, expect={"ib_mtu": 4096, **layer})
        assert {f.subject.part for f in verdict.findings if f.code == "IbMtuLow"} == {"mlx5_3/1"}
    verdict = run("ib_configuration", host=host, expect={"ib_mtu": 4096, "ib_link_layer": "Ethernet"})
    assert {f.subject.part for f in verdict.findings if f.code == "IbMtuLow"} == {"mlx5_2/1"}


def test_mtu_that_nobody_can_tell(run):
    assert "not installed" in run("ib_configuration", host=RdmaHost()).detail
    assert run("ib_configuration", host=RdmaHost(), expect={"ib_mtu": 4096}).status is Status.UNKNOWN


def test_device_files(run):
    host = RdmaHost()
    del host.files["/dev/infiniband/uverbs3"]
    assert told(run("ib_configuration", host=host)) == {("IbDeviceFileMissing", "mlx5_3")}
    host.files["/proc/self/mountinfo"] = "24 29 0:5 / /dev rw - tmpfs tmpfs rw\n"
    assert run("ib_configuration", host=host).status is Status.OK
    host = RdmaHost(1)
    host.remove("/sys/class/infiniband_verbs")
    host.remove("/dev/infiniband")
    (finding,) = run("ib_configuration", host=host).findings
    assert "ib_uverbs loaded?" in finding.summary
    assert "/dev/infiniband/umad0" in finding.summary
    # Ethernet needs no umad
    host = roce()
    for path in [p for p in host.files if "umad" in p]:
        del host.files[path]
    assert run("ib_configuration", host=host).status is Status.OK


ADAPTER = "/sys/bus/pci/devices/0000:99:00.0"


@pytest.mark.parametrize(
    ("uevent", "wrong"),
    [("DRIVER=mlx5_core\n", True), ("PCI_CLASS=20700\n", True), ("DRIVER=vfio-pci\n", False)],
)
def test_an_adapter_without_a_device(run, uevent, wrong):
    host = RdmaHost(1)
    host.files |= {f"{ADAPTER}/class": "0x020700\n", f"{ADAPTER}/uevent": uevent}
    assert run("ib_configuration", host=host).codes == ({"IbDriverMissing"} if wrong else set())
    host.files[f"{ADAPTER}/physfn"] = ""
    assert run("ib_configuration", host=host).status is Status.OK
    del host.files[f"{ADAPTER}/physfn"]
    host.files["/proc/self/mountinfo"] = "24 29 0:5 / /dev rw - tmpfs tmpfs rw\n"
    assert run("ib_configuration", host=host).status is Status.OK


def test_gpu_direct(run):
    host = RdmaHost(1)
    host.files["/proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08\n"
    assert told(run("ib_configuration", host=host)) == {("GpuDirectMissing", "rdma")}
    host.files["/sys/module/nv_peer_mem/initstate"] = "live\n"
    assert run("ib_configuration", host=host).status is Status.OK
    del host.files["/sys/module/nv_peer_mem/initstate"]
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20\n"
    host.files["/proc/driver/nvidia/version"] = version
    assert run("ib_configuration", host=host).status is Status.OK
