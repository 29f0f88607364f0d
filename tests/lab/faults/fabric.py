"""A fabric that is broken in many places, seen from a node that sweeps it; and transceivers that fail."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts.fabric import mlxlink, sweep
from tests.lab.parts.infiniband import adapters
from tests.lab.whole_node import DGX_H100

_RAILS = adapters(DGX_H100)


def _mlxlink(number: int, **changes: str) -> dict[tuple[str, ...], dict[str, object]]:
    hca = _RAILS[number]
    argv = ("mlxlink", "-d", hca.name, "-m", "-c", "--json")
    return {argv: {"seconds": 1.4, "stdout": mlxlink(hca, number, **changes)}}


MACHINES = (
    Machine(
        "ib-fabric-faulty",
        "leaf003 is dead; three of the four hosts of leaf002 are gone, and node0005; an uplink is cut, one "
        "is at EDR, one link at 1X; the cables of node0002 and node0003 are swapped; a counter is full",
        ("IbFabricSwitchMissing", "IbLeafFailing", "IbFabricHostMissing", "IbFabricLinkDown",
         "IbFabricLinkNarrow", "IbFabricLinkSlow", "IbFabricMiscabled", "IbFabricPortErrors"),
        base="cpu-healthy",
        commands=sweep("mlx5_0", "faulty"),
        about={
            "provenance": "infiniband-diags 44 recorded from a fabric of ibsim 0.10 and OpenSM 3.3.23 that "
            "was broken so (tests/lab/fabric.py); for the rest see cpu-healthy",
        },
    ),
    Machine(
        "h100-no-subnet-manager",
        "the subnet manager of rail 2's plane does not answer; its links are still up",
        ("IbSubnetManagerSilent",),
        commands={
            ("sminfo", "-C", "mlx5_2", "-P", "1"): {
                "seconds": 3.1, "returncode": 255, "stdout": "",
                "stderr": "ibwarn: [412083] mad_rpc: _do_madrpc failed; dport (Lid 1)\n"
                "sminfo: iberror: failed: query\n",
            },
        },
    ),
    Machine(
        "h100-transceivers",
        "of the transceivers one is too hot, one gets little light on a lane, one sends little, one reports "
        "a fault, one has old firmware, and one link has too many bit errors",
        ("IbTransceiverHot", "IbTransceiverRxPower", "IbTransceiverTxPower", "IbTransceiverFault",
         "IbTransceiverFirmware", "IbBerHigh"),
        commands={
            **_mlxlink(0, **{"Temperature [C]": "81 [-10..80]"}),
            **_mlxlink(1, **{"Rx Power Current [dBm]": "1.886,-11.2,2.281,1.976 [-9.914..6.999]"}),
            **_mlxlink(2, **{"Tx Power Current [dBm]": "2.193,1.202,-7.9,1.274 [-6.904..6.999]"}),
            **_mlxlink(3, **{"Module FW Fault": "1"}),
            **_mlxlink(4, **{"FW Version": "40.240.3"}),
            **_mlxlink(5, **{"Symbol BER": "3E-11", "Symbol Errors": "912"}),
        },
    ),
)  # fmt: skip
