"""What a node sees of its fabric: a subnet manager, the leaf behind each rail, its transceivers.

The node without GPUs is the one that sweeps: it sees 16 hosts, recorded from ibsim (tests/lab/fabric.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.parts import Hca, Shape
from tests.lab.parts.infiniband import adapters

PROVENANCE = (
    "infiniband-diags 44 recorded from a fabric of ibsim 0.10 and OpenSM 3.3.23, in that form for the "
    "rails; mlxlink as MFT 4.34 prints it in yuuki/mlxlink_exporter, ethtool -m as ethtool prints CMIS"
)

RECORDED = Path(__file__).parents[1] / "recorded_fabric"
GOLDEN = "/etc/clustertools/fabric.golden"
LANE = {400: ("106.25", "NDR"), 200: ("53.125", "HDR"), 100: ("53.125", "HDR")}


def guid(shape: Shape, number: int) -> int:
    """The GUID of a port: the node that sweeps is node0000 of the recorded fabric."""
    return 0x0002C90300000001 + (0 if shape.node_class == "cpu" else 0x1000000 + number * 0x10)


def answer(name: str, fabric: str = "healthy") -> dict[str, Any]:
    """What a tool said in the recorded fabric. ibqueryerrors ends with 1 when there are errors."""
    text = (RECORDED / fabric / f"{name}.txt").read_text()
    return {"seconds": 0.02, "returncode": 1 if "Errors for" in text else 0, "stdout": text}


def sweep(device: str, fabric: str = "healthy") -> dict[tuple[str, ...], Mapping[str, Any]]:
    """All that is asked by the node that sweeps."""
    port = ("-C", device, "-P", "1")
    return {
        ("sminfo", *port): answer("sminfo", fabric),
        ("iblinkinfo", "-l", *port, "-D", "0"): answer("peer", fabric),
        ("perfquery", *port, "2", "1"): answer("perfquery", fabric),
        ("iblinkinfo", "-l", *port): answer("iblinkinfo", fabric),
        ("ibqueryerrors", "--switch", *port): answer("ibqueryerrors", fabric),
        ("saquery", *port, "SMIR"): answer("saquery", fabric),
    }


def neighbours(shape: Shape, hca: Hca, number: int) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """A rail's subnet manager, its leaf, and what that counts."""
    port = ("-C", hca.name, "-P", "1")
    leaf, lid, lane = f"leaf{number:03d}", 0x100 + number, LANE[hca.rate_gbps][0]
    width = 2 if hca.rate_gbps == 100 else 4
    line = (
        f'0x{guid(shape, number):016x} "{"node0017 " + hca.name:>30}" {0x10 + number:6d} {1:4d}[  ] =='
        f"({width:2d}X {lane + ' Gbps':>18} Active/  LinkUp)==>  0x{0xE41D2D0300000000 + number * 0x10:016x} "
        f'{lid:6d} {7:4d}[  ] "{leaf}" ( )\n'
    )
    return {
        ("sminfo", *port): answer("sminfo"),
        ("iblinkinfo", "-l", *port, "-D", "0"): {"seconds": 0.02, "stdout": line},
        ("perfquery", *port, str(lid), "7"): answer("perfquery"),
    }


def mlxlink(hca: Hca, number: int, **changes: str) -> str:
    """What `mlxlink -m -c --json` says of a good optical module, as far as it is read; `changes` by words."""
    generation = LANE[hca.rate_gbps][1]
    ndr = generation == "NDR"

    def lanes(*values: str) -> dict[str, list[str]]:
        return {"values": list(values)}

    output = {
        "Operational Info": {
            "FEC": "Standard_RS-FEC - (544,514)" if ndr else "Standard LL RS-FEC - RS(271,257)",
            "State": "Active", "Physical state": "LinkUp", "Speed": f"IB-{generation}", "Width": "4x",
        },
        "Module Info": {
            "Identifier": "OSFP" if ndr else "QSFP28", "Cable Type": "Optical Module (separated)",
            "Cable Technology": "1310 nm DFB laser", "Vendor Name": "EXAMPLE",
            "Vendor Part Number": f"{generation}-DR4", "Vendor Serial Number": "S00XXX000000",
            "FW Version": "40.242.17", "Temperature [C]": f"{52 + number} [-10..80]",
            "Voltage [mV]": "3235.5 [2970..3630]",
            "Bias Current [mA]": "265.504,265.504,248.416,248.416 [40..480]",
            "Rx Power Current [dBm]": "1.886,1.989,2.281,1.976 [-9.914..6.999]",
            "Tx Power Current [dBm]": "2.193,1.202,1.708,1.274 [-6.904..6.999]",
            "Module FW Fault": "0", "DataPath FW Fault": "0",
            "Tx Fault [per lane]": lanes("0", "0", "0", "0"),
        },
        "Physical Counters and BER Info": {
            "Time Since Last Clear [Min]": "2718.1", "Effective Physical Errors": "0",
            "Effective Physical BER": "15E-255", "Symbol Errors": "0", "Symbol BER": "15E-255",
            "Raw Physical BER": "5E-10",
            "Raw Physical Errors Per Lane": lanes("3017647", "15132549", "0", "9"),
        },
        "Troubleshooting Info": {"Status Opcode": "0", "Recommendation": "No issue was observed"},
        "Tool Information": {"MFT Version": "4.34.1-10"},
    }  # fmt: skip
    for section in output.values():
        section.update({key: value for key, value in changes.items() if key in section})  # type: ignore[arg-type]
    return json.dumps({"result": {"output": output}, "status": {"code": 0, "message": "success"}}, indent=1)


ETHTOOL = """\
\tIdentifier                                : 0x18 (QSFP-DD Double Density 8X Pluggable Transceiver)
\tVendor name                               : EXAMPLE
\tVendor PN                                 : QDD-400G-DR4
\tVendor SN                                 : S00XXX000000
\tModule State                              : 0x03 (ModuleReady)
\tModule temperature                        : 54.49 degrees C / 130.08 degrees F
\tModule voltage                            : 3.2186 V
\tTransmit avg optical power (Channel 1)    : 1.5975 mW / 2.03 dBm
\tTransmit avg optical power (Channel 2)    : 0.0000 mW / -inf dBm
\tRcvr signal avg optical power (Channel 1) : 1.1351 mW / 0.55 dBm
\tRcvr signal avg optical power (Channel 2) : 0.0000 mW / -inf dBm
\tModule temperature high alarm             : Off
\tLaser output power high alarm threshold   : 3.5481 mW / 5.50 dBm
\tLaser output power low alarm threshold    : 0.4074 mW / -3.90 dBm
\tModule temperature high alarm threshold   : 75.00 degrees C / 167.00 degrees F
\tModule temperature low alarm threshold    : -5.00 degrees C / 23.00 degrees F
\tModule voltage high alarm threshold       : 3.6300 V
\tModule voltage low alarm threshold        : 3.0500 V
\tLaser rx power high alarm threshold       : 3.5481 mW / 5.50 dBm
\tLaser rx power low alarm threshold        : 0.1288 mW / -8.90 dBm
"""


def files(shape: Shape) -> dict[str, str]:
    numbers = range(len(adapters(shape)))
    found = {f"/sys/class/infiniband_mad/umad{number}/port": "1\n" for number in numbers}
    if shape.node_class == "cpu":
        found[GOLDEN] = (RECORDED / "healthy" / "iblinkinfo.txt").read_text()
    return found


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for number, hca in enumerate(adapters(shape)):
        if hca.name.startswith("mlx5"):
            argv = ("mlxlink", "-d", hca.name, "-m", "-c", "--json")
            found[argv] = {"seconds": 1.4, "stdout": mlxlink(hca, number)}
        else:
            found["ethtool", "-m", hca.netdev] = {"seconds": 0.2, "stdout": ETHTOOL}
        if shape.node_class == "cpu":
            found |= sweep(hca.name)
        else:  # of an Ethernet port nobody asks, unless a fault makes it one of InfiniBand
            found |= neighbours(shape, hca, number)
    return found


def expect(shape: Shape) -> dict[str, object]:
    if shape.node_class != "cpu":
        return {}
    return {"ib_fabric_golden": GOLDEN, "ib_fabric_hosts": [f"node{n:04d}" for n in range(16)]}
