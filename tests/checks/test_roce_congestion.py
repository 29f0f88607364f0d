"""Pause frames, drops and retransmissions of RoCE, by their growth."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.ethernet import statistics
from tests.lab.rdma import RdmaHost


def roce(count=2):
    host = RdmaHost(count, link_layer="Ethernet")
    for n in range(count):
        host.commands["ethtool", "-S", f"net{n}"] = statistics()
        host.set(
            f"mlx5_{n}",
            **{
                f"hw_counters__{name}": "0"
                for name in (
                    "out_of_buffer",
                    "roce_slow_restart",
                    "roce_adp_retrans",
                    "np_cnp_sent",
                    "np_ecn_marked_roce_packets",
                )
            },
        )
    return host


def twice(run, host, change, seconds=60.0):
    first = run("roce_congestion", host=host)
    assert not first.findings
    change()
    host.time += seconds
    return run("roce_congestion", host=host, past=first.memory)


def grow(host, **counted):
    host.commands["ethtool", "-S", "net1"] = statistics(**counted)


@pytest.mark.parametrize(
    ("counter", "quiet", "loud", "code"),
    [
        ("rx_prio3_pause_duration", 6 * 10**6, 6 * 10**6 + 60, "RocePausedBySwitch"),
        ("tx_prio3_pause_duration", 6 * 10**6, 6 * 10**6 + 60, "RocePausesSwitch"),
        ("tx_pause_storm_error_events", 0, 1, "RocePausesSwitch"),
        ("tx_pause_storm_warning_events", 9, 9, ""),
        ("rx_prio3_buf_discard", 6000, 6001, "RoceDiscards"),
        ("rx_discards_phy", 6000, 6001, "RoceDiscards"),
        ("rx_prio3_pause", 10**6, 10**6, ""),
    ],
)  # fmt: skip
def test_limits_of_the_driver(run, counter, quiet, loud, code):
    for growth, codes in ((quiet, set()), (loud, {(code, "mlx5_1/1")} if code else set())):
        host = roce()
        verdict = twice(run, host, lambda n=growth, h=host: grow(h, **{counter: n}))
        assert {(f.code, f.subject.part) for f in verdict.findings} == codes
        assert all(f.status is Status.WARNING for f in verdict.findings)


@pytest.mark.parametrize(
    ("counter", "quiet", "loud", "code"),
    [
        ("out_of_sequence", 60000, 60001, "RoceRetransmits"),
        ("packet_seq_err", 60000, 60001, "RoceRetransmits"),
        ("roce_slow_restart", 600, 601, "RoceRetransmits"),
        ("roce_adp_retrans", 6000, 6001, "RoceRetransmits"),
        ("out_of_buffer", 6000, 6001, "RoceOutOfBuffer"),
        ("np_ecn_marked_roce_packets", 10**9, 10**9, ""),
    ],
)
def test_limits_of_the_adapter(run, counter, quiet, loud, code):
    for growth, codes in ((quiet, set()), (loud, {code} - {""})):
        host = roce()
        verdict = twice(
            run, host, lambda n=growth, h=host: h.set("mlx5_1", **{f"hw_counters__{counter}": str(n)})
        )
        assert verdict.codes == codes


def test_one_finding_a_code_and_port(run):
    host = roce()

    def all_at_once():
        for name in ("out_of_sequence", "packet_seq_err", "roce_adp_retrans", "roce_slow_restart"):
            host.set("mlx5_1", **{f"hw_counters__{name}": "1000000"})
        grow(host, rx_prio3_buf_discard=10**6, rx_prio0_buf_discard=10**6, rx_discards_phy=10**6)

    verdict = twice(run, host, all_at_once)
    assert sorted(f.code for f in verdict.findings) == ["RoceDiscards", "RoceRetransmits"]


def test_readings(run):
    host = roce()

    def congest():
        grow(host, rx_prio3_pause_duration=3 * 10**6, rx_prio0_pause_duration=60)
        host.set("mlx5_1", hw_counters__np_cnp_sent="600")

    readings = {(r.subject.part, r.name): r.value for r in twice(run, host, congest).readings}
    assert readings["mlx5_1/1", "roce_rx_paused_ratio"] == 0.05
    assert readings["mlx5_1/1", "roce_np_cnp_sent_per_second"] == 10
    assert readings["mlx5_0/1", "roce_rx_paused_ratio"] == 0


def test_without_ethtool_or_statistics(run):
    host = roce()
    host.commands.clear()
    verdict = twice(run, host, lambda: host.set("mlx5_1", hw_counters__out_of_buffer="6001"))
    assert verdict.codes == {"RoceOutOfBuffer"}
    assert verdict.blind == ""
    assert "ethtool is not installed" in verdict.detail
    host = roce()
    host.commands["ethtool", "-S", "net1"] = refused("ethtool did not answer within 10 s")
    assert run("roce_congestion", host=host).status is Status.UNKNOWN
    host.commands["ethtool", "-S", "net1"] = "NIC statistics:\n     what is this\n"
    assert run("roce_congestion", host=host).status is Status.UNKNOWN


def test_no_roce(run):
    assert run("roce_congestion", host=RdmaHost(2)).status is Status.SKIPPED
    assert run("roce_congestion", host=MemoryHost()).status is Status.SKIPPED
    host = roce()
    host.down("mlx5_0")
    host.down("mlx5_1")
    assert run("roce_congestion", host=host).status is Status.OK
