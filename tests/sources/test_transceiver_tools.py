"""Readers of mlxlink and ethtool -m: optical, copper, SFP, QSFP, CMIS, and damaged output."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools import ethtool_module, mlxlink
from tests.lab.parts.fabric import mlxlink as mlxlink_json
from tests.lab.whole_node import H100_HCAS
from tests.tools import sample

JSON = mlxlink_json(H100_HCAS[0], 0)
COPPER = sample("mlxlink/copper-4.35.txt")
SFP = sample("ethtool-module/sfp.txt")
QSFP = sample("ethtool-module/qsfp28.txt")
CMIS = sample("ethtool-module/cmis.txt")


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
