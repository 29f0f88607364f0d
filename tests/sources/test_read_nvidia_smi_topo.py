"""What nvidia-smi topo prints, of several drivers and machines."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools.nvidia_smi_topo import read, recognise

FOLDER = Path(__file__).parents[1] / "tools" / "nvidia-smi-topo"
ADA, BRIDGED, OLDER, P2P, NO_P2P, ONE = (
    (FOLDER / f"{name}.txt").read_text()
    for name in ("rtx-6000-ada", "a100-bridged", "a100-older", "p2p-a100", "p2p-geforce", "one")
)
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
