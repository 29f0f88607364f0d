"""What nvidia-smi topo prints, of several drivers and machines."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools.nvidia_smi_topo import read, recognise

# ASUS ESC8000A-E12 with 4 x RTX 6000 Ada, driver 550 (luigifcruz/stelline, validated hardware); heading moved
# together
ADA = """\
        GPU0    GPU1    GPU2    GPU3    NIC0    NIC1    NIC2    NIC3  CPU Affinity  NUMA Affinity  GPU NUMA ID
GPU0     X      NODE    SYS     SYS     NODE    NODE    SYS     SYS     0-31    0               N/A
GPU1    NODE     X      SYS     SYS     NODE    NODE    SYS     SYS     0-31    0               N/A
GPU2    SYS     SYS      X      NODE    SYS     SYS     NODE    NODE    32-63   1               N/A
GPU3    SYS     SYS     NODE     X      SYS     SYS     NODE    NODE    32-63   1               N/A
NIC0    NODE    NODE    SYS     SYS      X      PIX     SYS     SYS
NIC1    NODE    NODE    SYS     SYS     PIX      X      SYS     SYS
NIC2    SYS     SYS     NODE    NODE    SYS     SYS      X      PIX
NIC3    SYS     SYS     NODE    NODE    SYS     SYS     PIX      X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
  NIC2: mlx5_2
  NIC3: mlx5_3
"""
# two bridged A100, tabs and an underlined heading (test of a public tool, driver 535 and later)
BRIDGED = (
    "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV12\t0-31\t0\t\tN/A\nGPU1\tNV12\t X \t0-31\t0\t\tN/A\n"
)
# driver 470: adapters by their own names, no GPU NUMA ID (after public logs of DGX machines)
OLDER = (
    "\t\x1b[4mGPU0\tGPU1\tmlx5_0\tCPU Affinity\tNUMA Affinity\x1b[0m\n"
    "GPU0\t X \tNV12\tPXB\t48-63,176-191\t3\nGPU1\tNV12\t X \tSYS\t48-63,176-191\t3\nmlx5_0\tPXB\tSYS\t X \n"
)
# 4 of 8 x A100 (an issue of LLMServe/DistServe), and a pair of GeForce that may not (a report on 3090s)
P2P = """\
 \tGPU0\tGPU1\tGPU2\tGPU3
 GPU0\tX\tOK\tOK\tOK
 GPU1\tOK\tX\tOK\tOK
 GPU2\tOK\tOK\tX\tOK
 GPU3\tOK\tOK\tOK\tX

Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
  GNS  = GPU not supported
  TNS  = Topology not supported
  NS   = Not supported
  U    = Unknown
"""
NO_P2P = "        GPU0    GPU1\nGPU0     X      CNS\nGPU1    CNS      X\n"
ONE = "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-7\t\tN/A\t\tN/A\n"
SAMPLES = [ADA, BRIDGED, OLDER, P2P, NO_P2P, ONE]


@pytest.mark.parametrize("text", SAMPLES)
def test_recognised(text):
    assert recognise(text)


@pytest.mark.parametrize("text", ["", "GPU0\n", "GPU 0: NVIDIA L4\n", "  GPU0 GPU1\nGPU0 OK X\n"])
def test_not_recognised(text):
    assert not recognise(text)


def test_a_matrix_with_adapters():
    told = read(ADA)
    assert told["form"] == "matrix"
    assert told["devices"][3:5] == ["GPU3", "NIC0"]
    assert told["links"]["GPU0"]["GPU1"] == "NODE"
    assert told["links"]["NIC3"]["NIC2"] == "PIX"
    assert "GPU0" not in told["links"]["GPU0"]
    assert (told["cpu_affinity"]["GPU2"], told["numa"]["GPU2"]) == ("32-63", 1)
    assert told["nics"]["NIC3"] == "mlx5_3"
    assert "NIC0" not in told["cpu_affinity"]


def test_other_forms():
    assert read(BRIDGED)["links"]["GPU0"] == {"GPU1": "NV12"}
    assert read(OLDER)["links"]["mlx5_0"] == {"GPU0": "PXB", "GPU1": "SYS"}
    assert read(OLDER)["numa"] == {"GPU0": 3, "GPU1": 3}
    assert read(ONE)["numa"] == {}


def test_peers():
    assert read(P2P)["form"] == "p2p"
    assert set(read(P2P)["links"]["GPU2"].values()) == {"OK"}
    assert read(NO_P2P)["links"] == {"GPU0": {"GPU1": "CNS"}, "GPU1": {"GPU0": "CNS"}}


@pytest.mark.parametrize(
    "text",
    [
        "", ADA.replace("PIX      X ", "PIX "), ADA.replace("GPU3    SYS", "GPU9    SYS"),
        ADA.replace("NODE     X      SYS", "NODENODE  X    SYS"), NO_P2P.replace("CNS", "WHAT", 1),
        NO_P2P.replace("X      CNS", "CNS      X"), NO_P2P + "GPU1    CNS      X\n",
        NO_P2P.replace("GPU1    CNS      X\n", ""), NO_P2P.replace("GPU0    GPU1\n", "GPU0    GPU0\n"),
    ],
)  # fmt: skip
def test_an_unknown_form(text):
    with pytest.raises(Unparsable):
        read(text)


@given(st.sampled_from(SAMPLES), st.integers(0, 900), st.text(max_size=40))
def test_cut_and_spoiled(text, at, more):
    for spoiled in (text[:at], text[:at] + more + text[at:]):
        recognise(spoiled)
        with contextlib.suppress(Unparsable):
            read(spoiled)


def test_ten_megabytes_on_a_line():
    with pytest.raises(Unparsable):
        read(NO_P2P + "GPU2 " + "OK " * 3_000_000)
