"""What the kernel wrote about network adapters: what is a fault, and what every healthy node says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.network_log import RULES, Limits, network_log

from clustertools.model import Finding, Remedy, Status, Verdict
from tests.checks.kernel_node import Node

Run = Callable[..., Verdict]
MLX5 = "mlx5_core 0000:5c:00.0"
NIC = "nic@0000:5c:00.0"


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


@pytest.mark.parametrize(
    ("text", "code", "status", "part"),
    [
        (
            f"{MLX5}: mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 0, Cable error, "
            "High Temperature",
            "NicModuleHot",
            Status.WARNING,
            NIC,
        ),
        (
            "mlx5_port_module_event:1131:(pid 0): Port module event[error]: module 0, Cable error, High "
            "Temperature",
            "NicModuleHot",
            Status.WARNING,
            "nic@",
        ),
        (
            f"{MLX5}: Port module event[error]: module 1, Cable error, Bad or shorted cable/module",
            "NicModuleError",
            Status.WARNING,
            NIC,
        ),
        (
            f"{MLX5}: poll_health:739:(pid 0): device's health compromised - reached miss count",
            "NicHealthFailed",
            Status.CRITICAL,
            NIC,
        ),
        (
            f"{MLX5}: print_health_info:426:(pid 0): synd 0x8: unrecoverable hardware error",
            "NicHealthFailed",
            Status.CRITICAL,
            NIC,
        ),
        (
            f"{MLX5}: wait_func:1151:(pid 967): CREATE_MKEY(0x200) timeout. Will cause a leak of a command "
            "resource",
            "NicCommandTimeout",
            Status.WARNING,
            NIC,
        ),
        (
            "NETDEV WATCHDOG: ens1f0np0 (mlx5_core): transmit queue 3 timed out",
            "NicTransmitTimeout",
            Status.WARNING,
            "nic@ens1f0np0",
        ),
        (
            f"{MLX5} ens1f0np0: NETDEV WATCHDOG: CPU: 3: transmit queue 2 timed out 5120 ms",
            "NicTransmitTimeout",
            Status.WARNING,
            "nic@ens1f0np0",
        ),
        (f"{MLX5} ens1f0np0: TX timeout detected", "NicTransmitTimeout", Status.WARNING, "nic@ens1f0np0"),
        (
            "nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping further "
            "processing",
            "PeermemInvalidContext",
            Status.WARNING,
            "",
        ),
    ],
)
def test_an_event(text: str, code: str, status: Status, part: str) -> None:
    finding = only(Node().say(text).look(network_log))
    assert (finding.code, finding.status, finding.subject.part) == (code, status, part)


@pytest.mark.parametrize(
    "text",
    [
        f"{MLX5}: mlx5_cmd_out_err:838:(pid 1441871): ACCESS_REG(0x805) op_mod(0x1) failed, status bad "
        "resource(0x5), syndrome (0x305684), err(-22)",
        f"{MLX5}: Port module event: module 0, Cable unplugged",  # a cage that was empty from the start
        f"{MLX5} ens1f0np0: Link down",  # an interface without a cable says so when it is brought up
        "ixgbe 0000:3b:00.0 eth0: NIC Link is Down",
        f"{MLX5}: mlx5_pcie_event:301:(pid 0): PCIe slot power capability was not advertised.",
        f"{MLX5}: firmware version: 28.39.1002",
        "unregister_netdevice: waiting for eth0 to become free. Usage count = 1",
        "br-3f: port 1(veth1) entered disabled state",
    ],
)
def test_a_healthy_node_says_so_too(text: str) -> None:
    assert Node().say(text).look(network_log).status is Status.OK


def test_a_flood_of_access_reg_is_quiet() -> None:
    node = Node()
    for pid in range(3000):
        node.say(f"{MLX5}: mlx5_cmd_out_err:838:(pid {pid}): ACCESS_REG(0x805) op_mod(0x1) failed", 0.001)
    verdict = node.look(network_log)
    assert (verdict.status, verdict.detail) == (Status.OK, "")
    assert node.memory["standing"] == []


def test_a_cable_that_was_there_and_is_pulled() -> None:
    node = Node().say(f"{MLX5}: Port module event: module 0, Cable plugged")
    assert node.look(network_log).status is Status.OK
    node.say(f"{MLX5}: Port module event: module 0, Cable unplugged")  # remembered from the look before
    assert only(node.look(network_log)).code == "NicCableUnplugged"
    node.say(f"{MLX5}: Port module event: module 0, Cable plugged")
    assert node.look(network_log).status is Status.OK


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("mlx5_core 0000:5c:00.0 eth0: Link up", "mlx5_core 0000:5c:00.0 eth0: Link down"),
        (
            "ixgbe 0000:3b:00.0 eth0: NIC Link is Up 10 Gbps, Flow Control: RX/TX",
            "ixgbe 0000:3b:00.0 eth0: NIC Link is Down",
        ),
    ],
)
def test_a_link_that_was_up_and_goes(up: str, down: str) -> None:
    node = Node().say(down).say(up).say(down)
    finding = only(node.look(network_log))
    assert (finding.code, finding.subject.part) == ("NetCarrierLost", "nic@eth0")
    assert "times" not in finding.summary
    assert node.say(up).look(network_log).status is Status.OK


def test_firmware_that_recovers() -> None:
    node = Node().say(f"{MLX5}: poll_health:739:(pid 0): device's health compromised - reached miss count")
    assert only(node.look(network_log)).remedy is Remedy.REBOOT_NODE
    node.say(f"{MLX5}: mlx5_health_try_recover:344:(pid 87): health recovery succeeded")
    assert node.look(network_log).status is Status.OK


def test_an_interface_that_nobody_lets_go() -> None:
    node = Node()
    for _ in range(3):
        node.say("unregister_netdevice: waiting for eth0 to become free. Usage count = 1", 10)
    finding = only(node.look(network_log))
    assert (finding.code, finding.status) == ("NetdeviceStuck", Status.WARNING)
    assert "eth0" in finding.summary


def test_a_recorded_adapter_that_failed(run: Run) -> None:
    verdict = run("network_log", host="h100-nic-failed")
    assert [f.code for f in verdict.findings if f.status is Status.CRITICAL] == ["NicHealthFailed"]
    assert "nic@0000:19:00.0" not in {f.subject.part for f in verdict.findings}
    assert run("network_log", host="h100-healthy").status is Status.OK


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    node = Node()
    node.ring = None
    assert node.look(network_log).status is Status.UNKNOWN


def test_each_kind_names_a_limit_that_exists() -> None:
    for rule in RULES.values():
        assert getattr(Limits(), rule.limit) > 0
        assert rule.code in network_log.codes
