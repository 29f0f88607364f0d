"""Transceivers and bit errors: what is a fault, and what copper, dark lanes and fresh counters are not."""

from __future__ import annotations

import pytest

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed
from clustertools.model import Status
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.fabric import ETHTOOL, mlxlink
from tests.lab.whole_node import H100_HCAS
from tests.sources.test_transceiver_tools import COPPER


def argv(number):
    return ("mlxlink", "-d", f"mlx5_{number}", "-m", "-c", "--json")


class Host(MemoryHost):
    """Four adapters; `failing` are commands that end badly: argv -> what they complain of."""

    def __init__(self, prefix="mlx5_"):
        super().__init__()
        self.failing = {}
        for n in range(4):
            folder = f"/sys/class/infiniband/{prefix}{n}"
            self.files[f"{folder}/ports/1/phys_state"] = "5: LinkUp\n"
            self.files[f"{folder}/device/net/ens{n}/type"] = "32\n"
            self.tell(n)

    def tell(self, number, **changes):
        self.commands[argv(number)] = mlxlink(H100_HCAS[number], 0, **changes)

    def run(self, *argv, timeout_seconds=10.0, stdin=""):
        if argv in self.failing:
            return Completed(argv, 1, "", self.failing[argv])
        return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)


@pytest.fixture
def host():
    return Host()


def placed(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_a_recorded_node_with_bad_modules(run):
    assert placed(run("ib_transceivers", host="h100-transceivers")) == {
        ("IbTransceiverHot", "mlx5_0/1"), ("IbTransceiverRxPower", "mlx5_1/1"),
        ("IbTransceiverTxPower", "mlx5_2/1"), ("IbTransceiverFault", "mlx5_3/1"),
        ("IbTransceiverFirmware", "mlx5_4/1"), ("IbBerHigh", "mlx5_5/1"),
    }  # fmt: skip


def test_healthy(run, host):
    verdict = run("ib_transceivers", host=host)
    assert (verdict.status, verdict.blind) == (Status.OK, "")
    told = {r.name: r.value for r in verdict.readings if r.subject.part == "mlx5_2/1"}
    assert told["ib_transceiver_temperature_celsius"] == 52
    assert told["ib_transceiver_rx_power_dbm"] == 1.886
    assert told["ib_effective_bit_error_ratio"] == 15e-255


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Temperature [C]": "80 [-10..80]"}, None),
        ({"Temperature [C]": "80.1 [-10..80]"}, "IbTransceiverHot"),
        ({"Temperature [C]": "-11 [-10..80]"}, None),
        ({"Temperature [C]": "95 [0..0]"}, None),
        ({"Rx Power Current [dBm]": "7.1,2,2,2 [-9.914..6.999]"}, "IbTransceiverRxPower"),
        ({"Rx Power Current [dBm]": "-40,2,2,2 [-9.914..6.999]"}, "IbTransceiverRxPower"),
        ({"Tx Power Current [dBm]": "2,2,2,-6.905 [-6.904..6.999]"}, "IbTransceiverTxPower"),
        ({"Voltage [mV]": "2969 [2970..3630]"}, "IbTransceiverFault"),
        ({"Bias Current [mA]": "481,265,248,248 [40..480]"}, "IbTransceiverFault"),
        ({"Bias Current [mA]": "0,265,248,248 [40..480]"}, None),
        ({"DataPath FW Fault": "1"}, "IbTransceiverFault"),
        ({"Symbol BER": "1E-12"}, None),
        ({"Symbol BER": "2E-12"}, "IbBerHigh"),
        ({"Symbol BER": "N/A", "Effective Physical BER": "2E-12"}, "IbBerHigh"),
        ({"Effective Physical BER": "2E-12"}, None),
        ({"Raw Physical BER": "2E-5"}, None),
        ({"Raw Physical BER": "3E-5"}, "IbBerHigh"),
        ({"Raw Physical BER": "2E-12", "FEC": "No FEC"}, "IbBerHigh"),
        ({"Symbol BER": "2E-6", "Time Since Last Clear [Min]": "9.9"}, None),
        ({"Symbol BER": "2E-6", "State": "Polling"}, None),
        ({"Rx Power Current [dBm]": "-40,-40,-40,-40 [-9.914..6.999]", "State": "Polling"}, None),
    ],
)
def test_limits(run, host, changes, code):
    host.tell(1, **changes)
    assert placed(run("ib_transceivers", host=host)) == ({(code, "mlx5_1/1")} if code else set())


def test_lanes_that_nobody_uses_are_dark(run, host):
    eight = "2,2,2,2,-40,-40,-40,-40"
    host.tell(0, **{
        "Rx Power Current [dBm]": f"{eight} [-9..7]", "Tx Power Current [dBm]": f"{eight} [-7..7]",
    })  # fmt: skip
    assert not run("ib_transceivers", host=host).findings


def test_copper_is_passed_over(run, host):
    for n in range(4):
        host.commands[argv(n)] = COPPER
    verdict = run("ib_transceivers", host=host)
    assert (verdict.status, verdict.findings, verdict.readings) == (Status.OK, (), ())


def test_firmware_of_one_kind(run, host):
    host.tell(0, **{"FW Version": "1.0"})
    assert placed(run("ib_transceivers", host=host)) == {("IbTransceiverFirmware", "mlx5_0/1")}
    host.tell(0, **{"FW Version": "1.0", "Vendor Part Number": "OTHER"})
    assert not run("ib_transceivers", host=host).findings, "another kind has another firmware"
    for n in (0, 1):
        host.tell(n, **{"FW Version": "1.0"})
    verdict = run("ib_transceivers", host=host)
    assert not verdict.findings
    assert "as common" in verdict.detail


def test_blind_is_unknown_and_the_rest_counts(run, host):
    host.commands[argv(0)] = Unobservable("mlxlink did not answer within 30 s")
    host.failing[argv(1)] = "-E- Failed to open device: mlx5_1. Permission denied\n"
    host.tell(2, **{"Temperature [C]": "90 [-10..80]"})
    verdict = run("ib_transceivers", host=host)
    assert (placed(verdict), verdict.status) == ({("IbTransceiverHot", "mlx5_2/1")}, Status.UNKNOWN)
    assert "mlx5_1/1" in verdict.blind


def test_ethtool_where_mlxlink_is_not(run):
    host = Host()
    host.commands = {argv(n): Absent("mlxlink is not installed") for n in range(4)}
    for n in range(4):
        host.commands["ethtool", "-m", f"ens{n}"] = ETHTOOL
    assert run("ib_transceivers", host=host).status is Status.OK
    host.commands["ethtool", "-m", "ens1"] = ETHTOOL.replace(": 54.49 deg", ": 75.49 deg")
    host.failing["ethtool", "-m", "ens2"] = "netlink error: Operation not supported\n"
    verdict = run("ib_transceivers", host=host)
    assert placed(verdict) == {("IbTransceiverHot", "mlx5_1/1")}
    assert (verdict.status, "mlx5_2/1 has no transceiver" in verdict.detail) == (Status.WARNING, True)
    host.failing["ethtool", "-m", "ens3"] = "netlink error: Operation not permitted\n"
    assert "mlx5_3/1" in run("ib_transceivers", host=host).blind


def test_no_tool_or_no_adapter_skips(run):
    host = Host()
    host.commands = {}
    verdict = run("ib_transceivers", host=host)
    assert (verdict.status, "neither mlxlink" in verdict.detail) == (Status.SKIPPED, True)
    assert run("ib_transceivers", host=MemoryHost()).status is Status.SKIPPED


def test_virtual_functions_have_no_cable(run, host):
    for n in range(4):
        host.files[f"/sys/class/infiniband/mlx5_{n}/device/physfn"] = ""
        host.tell(n, **{"Temperature [C]": "90 [-10..80]"})
    assert not run("ib_transceivers", host=host).findings
