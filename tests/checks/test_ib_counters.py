"""Error counters by their growth: limits, windows, resets, wraps, counters at their end."""

from __future__ import annotations

import pytest

from clustertools.model import Status
from tests.lab.memory_host import MemoryHost, refused
from tests.lab.parts.infiniband import CLASS
from tests.lab.rdma import RdmaHost


def twice(run, host, change, seconds=60.0, **options):
    """The second of two looks, `seconds` apart, with `change` between them."""
    first = run("ib_counters", host=host, **options)
    assert not first.findings
    change()
    host.time += seconds
    return run("ib_counters", host=host, past=first.memory, **options)


def counters(**values):
    return {f"counters__{name}": str(n) for name, n in values.items()}


def told(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_healthy_under_load(run):
    host = RdmaHost()
    verdict = twice(
        run, host,
        lambda: host.set("mlx5_0", **counters(port_xmit_data=918273645 + 15 * 10**9, port_xmit_wait=10**9)),
    )  # fmt: skip
    assert verdict.status is Status.OK
    readings = {(r.subject.part, r.name): r.value for r in verdict.readings}
    assert readings["mlx5_0/1", "ib_transmit_bytes_per_second"] == 10**9
    assert readings["mlx5_0/1", "ib_port_xmit_wait_per_second"] > 10**7


@pytest.mark.parametrize(
    ("counter", "quiet", "loud", "code"),
    [
        ("symbol_error", 120, 121, "IbSymbolErrors"),
        ("link_error_recovery", 5, 6, "IbLinkRecovery"),
        ("port_rcv_errors", 600, 601, "IbReceiveErrors"),
        ("port_rcv_remote_physical_errors", 600, 601, "IbRemotePhysicalErrors"),
        ("local_link_integrity_errors", 0, 1, "IbIntegrityErrors"),
        ("excessive_buffer_overrun_errors", 0, 1, "IbIntegrityErrors"),
        ("port_xmit_discards", 6000, 6001, "IbTransmitDiscards"),
        ("port_rcv_constraint_errors", 600, 601, "IbConstraintErrors"),
    ],
)
def test_limits_of_the_ports_counters(run, counter, quiet, loud, code):
    for growth, codes in ((quiet, set()), (loud, {(code, "mlx5_3/1", Status.WARNING)})):
        host = RdmaHost()
        verdict = twice(run, host, lambda n=growth, h=host: h.set("mlx5_3", **counters(**{counter: n})))
        assert told(verdict) == codes


@pytest.mark.parametrize(
    ("counter", "quiet", "loud", "code"),
    [
        ("local_ack_timeout_err", 60, 61, "IbAcknowledgeTimeouts"),
        ("rnr_nak_retry_err", 600, 601, "IbReceiverNotReady"),
        ("out_of_sequence", 100000, 100000, ""),
    ],
)
def test_limits_of_the_transports_counters(run, counter, quiet, loud, code):
    for growth, codes in ((quiet, set()), (loud, {code} - {""})):
        host = RdmaHost(2)
        verdict = twice(
            run, host, lambda n=growth, h=host: h.set("mlx5_1", **{f"hw_counters__{counter}": str(n)})
        )
        assert verdict.codes == codes


def test_many_symbol_errors_are_critical(run):
    host = RdmaHost()
    verdict = twice(run, host, lambda: host.set("mlx5_3", **counters(symbol_error=601)))
    assert told(verdict) == {("IbSymbolErrors", "mlx5_3/1", Status.CRITICAL)}
    # not those of a link that came up between the looks
    host = RdmaHost()
    verdict = twice(run, host, lambda: host.set("mlx5_3", **counters(symbol_error=601, link_downed=2)))
    assert not verdict.findings


def test_slow_errors_add_up_over_an_hour(run):
    host, memory, seen = RdmaHost(1), {}, {}
    for minute in range(130):
        host.set("mlx5_0", **counters(symbol_error=3 * minute))
        verdict = run("ib_counters", host=host, past=memory)
        memory, seen[minute] = verdict.memory, verdict.codes
        host.time += 60
    assert not any(seen[n] for n in range(41))
    assert all(seen[n] for n in range(41, 61))
    assert verdict.memory["hour"]["time"] > 1_786_000_000  # the window begins anew, and fills again
    assert seen[102]


def test_totals_of_before_do_not_count(run):
    host = RdmaHost()
    host.set("mlx5_0", **counters(symbol_error=60000, port_rcv_errors=60000, link_downed=200))
    assert run("ib_counters", host=host).status is Status.OK
    assert twice(run, host, lambda: None).status is Status.OK


def test_cleared_and_rebooted(run):
    host = RdmaHost()
    host.set("mlx5_0", **counters(symbol_error=5000, local_link_integrity_errors=0))
    assert twice(run, host, lambda: host.set("mlx5_0", **counters(symbol_error=3))).status is Status.OK

    def reboot():
        host.boot_id = "boot-2"
        host.set("mlx5_0", **counters(symbol_error=50000))

    assert twice(run, host, reboot).status is Status.OK


def test_a_transport_counter_wraps(run):
    host = RdmaHost(1)
    host.set("mlx5_0", hw_counters__local_ack_timeout_err=str(2**32 - 10))
    verdict = twice(run, host, lambda: host.set("mlx5_0", hw_counters__local_ack_timeout_err="20"))
    assert verdict.status is Status.OK
    readings = {r.name: r.value for r in verdict.readings}
    assert readings["ib_local_ack_timeout_err_per_second"] == 0.5


def test_at_its_end_a_counter_is_noted(run):
    host = RdmaHost(1)
    host.set("mlx5_0", **counters(link_error_recovery=255, symbol_error=65535))
    verdict = run("ib_counters", host=host)
    assert verdict.status is Status.OK
    assert "mlx5_0/1: link_error_recovery, symbol_error cannot count further" in verdict.detail


def test_a_port_that_is_down_is_not_judged_by_its_counters(run):
    host = RdmaHost()

    def fall():
        host.down("mlx5_0")
        host.set("mlx5_0", **counters(symbol_error=60000, port_xmit_discards=60000))

    assert twice(run, host, fall).status is Status.OK


def test_unreadable(run):
    host = RdmaHost(1)
    host.files[f"{CLASS}/mlx5_0/ports/1/counters/symbol_error"] = refused("EIO")
    assert run("ib_counters", host=host).status is Status.UNKNOWN
    # a virtual function lists them, and answers none
    for path in list(host.files):
        if "/counters/" in path or "/hw_counters/" in path:
            host.files[path] = refused("EINVAL")
    assert run("ib_counters", host=host).status is Status.OK
    host = RdmaHost(1)
    host.set("mlx5_0", counters__symbol_error="N/A (no PMA)", counters__link_downed="7")
    assert run("ib_counters", host=host).status is Status.OK
    host.set("mlx5_0", counters__symbol_error="many")
    assert run("ib_counters", host=host).status is Status.UNKNOWN
    assert run("ib_counters", host=MemoryHost()).status is Status.SKIPPED


def test_a_driver_without_counters(run):
    host = RdmaHost(1)
    host.remove(f"{CLASS}/mlx5_0/ports/1/counters")
    host.remove(f"{CLASS}/mlx5_0/ports/1/hw_counters")
    assert twice(run, host, lambda: None).status is Status.OK
