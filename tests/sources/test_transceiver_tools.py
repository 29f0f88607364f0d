"""Readers of mlxlink and ethtool -m: optical, copper, SFP, QSFP, CMIS, and damaged output."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import ethtool_module, mlxlink
from tests.lab.parts.fabric import ETHTOOL
from tests.lab.parts.fabric import mlxlink as mlxlink_json
from tests.lab.whole_node import H100_HCAS

JSON = mlxlink_json(H100_HCAS[0], 0)
# mlxlink -m of MFT 4.35 on a ConnectX-7 with a passive copper cable, link up at NDR; from a public how-to,
# shortened, its serial number changed
COPPER = """
Operational Info
----------------
State                              : \x1b[32mActive\x1b[0m
Physical state                     : LinkUp
Speed                              : IB-NDR
Width                              : 4x
FEC                                : Ethernet_Consortium_LL_50G_RS_FEC_PLR -(272,257+1)

Troubleshooting Info
--------------------
Status Opcode                      : 0
Group Opcode                       : N/A
Recommendation                     : No issue was observed

Tool Information
----------------
Firmware Version                   : 28.46.3048
amBER Version                      : 6.4
MFT Version                        : 4.35.0-159

Module Info
-----------
Temperature [C]                    : 0 [0..0]
Voltage [mV]                       : 0 [0..0]
Rx Power Current [dBm]             : 0,0,0,0 [0..0]
Tx Power Current [dBm]             : 0,0,0,0 [0..0]
Identifier                         : OSFP
Cable Technology                   : Copper cable, passive, unequalized
Cable Type                         : Passive copper cable
Vendor Name                        : EXAMPLE
Vendor Part Number                 : OSFPFL-400G-PC01
Vendor Serial Number               : S00XXX000000
FW Version                         : N/A
Attenuation (5g,7g,12g,25g)[dB]    : 0,0,0,0
Rx LOS [per lane]                  : 1,0,1,1
Rx CDR LOL [per lane]              : 1,1,1,1
"""
# ethtool -m of an SFP (FS.com, a patch on the intel-wired-lan list), shortened
SFP = """\
	Identifier                                : 0x03 (SFP)
	Transceiver type                          : Ethernet: BASE-BX10
	Vendor name                               : EXAMPLE
	Vendor rev                                :
	Laser bias current                        : 17.650 mA
	Laser output power                        : 0.2132 mW / -6.71 dBm
	Receiver signal average optical power     : 0.2740 mW / -5.62 dBm
	Module temperature                        : 47.30 degrees C / 117.13 degrees F
	Module voltage                            : 3.2576 V
	Alarm/warning flags implemented           : Yes
	Laser bias current high alarm             : Off
	Laser rx power low alarm                  : On
	Laser bias current high alarm threshold   : 110.000 mA
	Laser output power high alarm threshold   : 0.7079 mW / -1.50 dBm
	Laser output power low alarm threshold    : 0.0891 mW / -10.50 dBm
	Module temperature high alarm threshold   : 90.00 degrees C / 194.00 degrees F
	Laser rx power low alarm threshold        : 0.0028 mW / -25.53 dBm
"""
# of a QSFP28 (a Mellanox MMA1B00), shortened
QSFP = """\
	Identifier                                : 0x11 (QSFP28)
	Module temperature                        : 30.56 degrees C / 87.01 degrees F
	Laser tx bias current (Channel 1)         : 6.750 mA
	Laser tx bias current (Channel 2)         : 6.750 mA
	Transmit avg optical power (Channel 1)    : 1.3924 mW / 1.44 dBm
	Rcvr signal avg optical power(Channel 1)  : 0.9720 mW / -0.12 dBm
	Rcvr signal avg optical power(Channel 2)  : 0.0000 mW / -inf dBm
	Laser bias current high alarm   (Chan 1)  : On
	Laser tx power low warning  (Channel 1)   : On
	Laser bias current high alarm threshold   : 0.000 mA
	Laser output power high alarm threshold   : 0.0000 mW / -inf dBm
	Laser output power low alarm threshold    : 0.0000 mW / -inf dBm
"""
CMIS = ETHTOOL + "\tRx loss of signal                         : [ Yes, No, Yes ]\n\tTx fault   : None\n"


def test_mlxlink_in_json():
    told = mlxlink.read(JSON)
    assert told["link"] == {
        "state": "Active", "physical_state": "LinkUp", "speed": "IB-NDR", "width": "4x",
        "fec": "Standard_RS-FEC - (544,514)",
    }  # fmt: skip
    assert told["module"]["rx_power_dbm"] == {
        "values": [1.886, 1.989, 2.281, 1.976],
        "low": -9.914,
        "high": 6.999,
    }
    assert told["module"]["temperature_celsius"] == {"values": [52.0], "low": -10.0, "high": 80.0}
    assert told["module"]["flags"]["tx_fault"] == [False] * 4
    assert (told["ber"]["raw"], told["ber"]["effective"], told["ber"]["minutes"]) == (5e-10, 15e-255, 2718.1)
    assert told["ber"]["raw_errors_per_lane"][0] == 3017647


def test_a_copper_cable_has_neither_light_nor_limits():
    told = mlxlink.read(COPPER)
    assert (told["link"]["state"], told["firmware"]) == ("Active", "28.46.3048")
    assert told["module"]["rx_power_dbm"] == {"values": [0.0] * 4, "low": None, "high": None}
    assert told["module"]["flags"]["rx_loss_of_signal"] == [True, False, True, True]
    assert "ber" not in told


def test_lanes_that_are_not_told():
    told = mlxlink.read(JSON.replace("1.886,1.989", "N/A,1.989").replace('"52 [-10..80]"', '"N/A"'))
    assert told["module"]["rx_power_dbm"]["values"][0] is None
    assert told["module"]["temperature_celsius"] is None


@pytest.mark.parametrize(
    "text",
    [
        JSON.replace('"code": 0', '"code": 1'),
        JSON.replace("52 [-10..80]", "warm [-10..80]"),
        JSON.replace('"result"', '"answer"'),
        "-E- Failed to open device: mlx5_0\n",
        "",
        "[]",
        "{",
        "[" * 100_000,
    ],
)
def test_what_mlxlink_could_not_tell_is_refused(text):
    with pytest.raises(Unparsable):
        mlxlink.read(text)


def test_ethtool_of_an_sfp():
    told = ethtool_module.read(SFP)
    assert told["temperature_celsius"]["values"] == [47.3]
    assert told["tx_power_dbm"] == {
        "values": [-6.71], "low": -10.5, "high": -1.5, "low_warning": None, "high_warning": None,
    }  # fmt: skip
    assert (told["rx_power_dbm"]["values"], told["rx_power_dbm"]["low"]) == ([-5.62], -25.53)
    assert (told["alarms"], told["warnings"]) == (["Laser rx power low alarm"], [])


def test_ethtool_of_a_qsfp():
    told = ethtool_module.read(QSFP)
    assert told["bias_milliamperes"]["values"] == [6.75, 6.75]
    assert told["bias_milliamperes"]["high"] is None, "limits of 0 are none"
    assert told["rx_power_dbm"]["values"] == [-0.12, float("-inf")]
    assert told["tx_power_dbm"]["low"] is None
    assert told["alarms"] == ["Laser bias current high alarm (Chan 1)"]
    assert told["warnings"] == ["Laser tx power low warning (Channel 1)"]


def test_ethtool_of_cmis():
    told = ethtool_module.read(CMIS)
    assert told["state"] == "0x03 (ModuleReady)"
    assert told["flags"] == {"rx_loss_of_signal": [True, False, True]}
    assert (told["voltage_volts"]["low"], told["voltage_volts"]["high"]) == (3.05, 3.63)


def test_each_is_recognised():
    assert mlxlink.recognise(JSON)
    assert mlxlink.recognise(COPPER)
    assert not ethtool_module.recognise(JSON)
    for text in (SFP, QSFP, CMIS):
        assert ethtool_module.recognise(text)
        assert not mlxlink.recognise(text)


@pytest.mark.parametrize(
    ("reader", "samples"),
    [(mlxlink, [JSON, COPPER]), (ethtool_module, [SFP, QSFP, CMIS])],
    ids=["mlxlink", "ethtool"],
)
@given(data=st.data())
@settings(max_examples=60, deadline=2000)
def test_damaged_output_is_read_or_refused(reader, samples, data):
    text = data.draw(st.sampled_from(samples))
    at = data.draw(st.integers(0, len(text)))
    junk = data.draw(
        st.one_of(st.text(max_size=40), st.sampled_from(["\x00", "9" * 5000, '{"a":' * 300, ","]))
    )
    damaged = text[:at] + junk + text[at + data.draw(st.integers(0, 60)) :]
    reader.recognise(damaged)
    with contextlib.suppress(Unparsable):
        json.dumps(reader.read(damaged))


@pytest.mark.parametrize("reader", [mlxlink, ethtool_module], ids=["mlxlink", "ethtool"])
def test_ten_megabytes_are_refused_at_once(reader):
    for text in ("x" * 10_000_000, "{" + '"a' * 5_000_000, "Identifier : 0x03 (" * 500_000):
        reader.recognise(text)
        with pytest.raises(Unparsable):
            reader.read(text)
