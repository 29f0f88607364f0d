"""What rocm-smi prints of xGMI errors and lspci of ACS."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources import lspci
from clustertools.sources.tools import rocm_smi_xgmi

FOLDER = Path(__file__).parents[1] / "tools" / "rocm-smi-xgmi"
XGMI, XGMI_JSON = ((FOLDER / name).read_text() for name in ("text.txt", "json.json"))
# written from lspci 3.7's ls-caps-ext.c and ls-caps.c
LSPCI = """\
0000:16:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
\tCapabilities: [68] Express (v2) Upstream Port, MSI 00
0000:17:00.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
\tCapabilities: [f24 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl+ DirectTrans+
\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
0000:17:01.0 PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal decode])
\tCapabilities: [f24 v1] Access Control Services
\t\tACSCtl:\tSrcValid- TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-
18:00.0 PCI bridge: somebody's
\tCapabilities: <access denied>
"""


def test_xgmi():
    assert rocm_smi_xgmi.recognise(XGMI)
    assert rocm_smi_xgmi.recognise(XGMI_JSON)
    assert not rocm_smi_xgmi.recognise("XGMI Error status")
    assert rocm_smi_xgmi.read(XGMI) == {"gpus": [{"gpu": 0, "errors": 0}, {"gpu": 1, "errors": 2}]}
    assert rocm_smi_xgmi.read(XGMI_JSON) == {"gpus": [{"gpu": 0, "errors": 0}, {"gpu": 1, "errors": 1}]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{",
        '{"card0": 1}',
        '{"card0": {"XGMI Error count": "7"}}',
        '{"system": {}}',
        "hello",
        XGMI + "x",
    ],
)
def test_xgmi_of_unknown_form(text):
    with pytest.raises(Unparsable):
        rocm_smi_xgmi.read(text)


def test_acs():
    controls, denied = lspci.acs(LSPCI)
    assert controls == {
        "0000:16:00.0": None,
        "0000:17:00.0": ["SrcValid", "ReqRedir", "CmpltRedir", "UpstreamFwd"],
        "0000:17:01.0": [],
        "0000:18:00.0": None,
    }
    assert denied == ["0000:18:00.0"]


@pytest.mark.parametrize("text", ["", "hello", LSPCI.replace("ReqRedir+", "ReqRedir?")])
def test_acs_of_unknown_form(text):
    with pytest.raises(Unparsable):
        lspci.acs(text)


@given(st.sampled_from([XGMI, XGMI_JSON, LSPCI]), st.integers(0, 900), st.text(max_size=40))
def test_cut_and_spoiled(text, at, more):
    for spoiled in (text[:at], text[:at] + more + text[at:]):
        rocm_smi_xgmi.recognise(spoiled)
        for read in (rocm_smi_xgmi.read, lspci.acs):
            with contextlib.suppress(Unparsable):
                read(spoiled)
