"""EFA devices: counted, and by the growth of their counters."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.infiniband import CLASS
from tests.lab.rdma import RdmaHost

#: Counters of drivers/infiniband/hw/efa/efa_verbs.c.
COUNTERS = (
    "tx_bytes", "rx_bytes", "rx_drops", "retrans_pkts", "retrans_timeout_events",
    "unresponsive_remote_events",
    "impaired_remote_conn_events", "submitted_cmds", "lifespan",
)  # fmt: skip


def efa(count=4):
    """Devices as the efa driver shows them: no board id, no link layer, no LID."""
    host = RdmaHost(count)
    for n in range(count):
        folder = f"{CLASS}/mlx5_{n}"
        for name in ("board_id", "hca_type", "ports/1/counters", "ports/1/hw_counters", "device/net"):
            host.remove(f"{folder}/{name}")
        host.files[f"{folder}/device/uevent"] = f"DRIVER=efa\nPCI_SLOT_NAME=0000:{0x10 + n:02x}:1b.0\n"
        host.port(f"mlx5_{n}", rate="100 Gb/sec (4X EDR)", link_layer="Unknown", lid="0x0", sm_lid="0x0")
        host.files |= {f"{folder}/ports/1/hw_counters/{name}": "0\n" for name in COUNTERS}
    host.files = {p.replace("mlx5_", "rdmap0s"): t for p, t in host.files.items()}
    return host


def twice(run, host, **counted):
    first = run("efa_devices", host=host)
    for name, n in counted.items():
        host.set("rdmap0s1", **{f"hw_counters__{name}": str(n)})
    host.time += 60
    return run("efa_devices", host=host, past=first.memory)


def told(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_counted(run):
    assert run("efa_devices", host=efa()).status is Status.OK
    assert run("efa_devices", host=efa(), expect={"efa_devices": 4}).status is Status.OK
    verdict = run("efa_devices", host=efa(3), expect={"efa_devices": 4})
    assert told(verdict) == {("EfaMissing", "efa", Status.CRITICAL)}
    # started without any: how it was ordered, more likely than four faults
    assert told(run("efa_devices", host=efa(0), expect={"efa_devices": 4})) == {
        ("EfaMissing", "efa", Status.WARNING)
    }
    assert run("efa_devices", host=MemoryHost()).status is Status.SKIPPED
    assert run("efa_devices", host=RdmaHost()).status is Status.SKIPPED


def test_a_container_may_have_fewer(run):
    host = efa(1)
    host.files["/proc/self/mountinfo"] = "24 29 0:5 / /dev rw - tmpfs tmpfs rw\n"
    assert run("efa_devices", host=host, expect={"efa_devices": 4}).status is Status.OK


@pytest.mark.parametrize(
    ("counter", "quiet", "loud", "code"),
    [
        ("rx_drops", 600, 601, "EfaDrops"),
        ("retrans_timeout_events", 60, 61, "EfaRetransmitTimeouts"),
        ("unresponsive_remote_events", 6, 7, "EfaPeersUnresponsive"),
        ("impaired_remote_conn_events", 6, 7, "EfaPeersUnresponsive"),
        ("retrans_pkts", 10**6, 10**6, ""),
    ],
)
def test_limits(run, counter, quiet, loud, code):
    assert twice(run, efa(), **{counter: quiet}).status is Status.OK
    found = told(twice(run, efa(), **{counter: loud}))
    assert found == ({(code, "rdmap0s1/1", Status.WARNING)} if code else set())


def test_down_and_unreadable(run):
    host = efa()
    host.files[f"{CLASS}/rdmap0s2/ports/1/state"] = "1: DOWN\n"
    assert told(run("efa_devices", host=host)) == {("EfaPortDown", "rdmap0s2/1", Status.CRITICAL)}
    host.files[f"{CLASS}/rdmap0s2/ports/1/state"] = refused("EIO")
    verdict = run("efa_devices", host=host, expect={"efa_devices": 4})
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
    host.files[f"{CLASS}/rdmap0s2/fw_ver"] = refused("EIO")  # then it is not known whose it is
    verdict = run("efa_devices", host=host, expect={"efa_devices": 4})
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())


def test_the_other_checks_leave_efa_alone(run):
    for name in ("ib_ports", "ib_counters", "ib_flaps", "roce_congestion"):
        assert run(name, host=efa()).status is Status.SKIPPED
