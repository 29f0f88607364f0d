"""What nvidia-smi nvlink prints, of several generations of drivers and cards."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Unparsable
from clustertools.sources.tools.nvidia_smi_nvlink import read, recognise

FOLDER = Path(__file__).parents[1] / "tools" / "nvidia-smi-nvlink"
STATUS, V100, ERRORS, BLACKWELL, WITHOUT = (
    (FOLDER / f"{name}.txt").read_text()
    for name in ("status-h100", "status-v100", "errors-h100", "errors-gb200", "without")
)
SAMPLES = [STATUS, V100, ERRORS, BLACKWELL, WITHOUT]


@pytest.mark.parametrize("text", SAMPLES)
def test_recognised(text):
    assert recognise(text)


@pytest.mark.parametrize("text", ["", "GPU 0: NVIDIA L4 (UUID: GPU-0)\n", "Link 0: up\n", "\0" * 100])
def test_not_recognised(text):
    assert not recognise(text)


def test_status():
    first, second = read(STATUS)["gpus"]
    assert (first["gpu"], first["name"], first["state"]) == (0, "NVIDIA H100 80GB HBM3", "links")
    assert first["links"] == [
        {"link": 0, "active": True, "bytes_per_second": 26562000000},
        {"link": 1, "active": False, "bytes_per_second": None},
    ]
    assert all(link["active"] for link in second["links"])
    assert read(V100)["gpus"][0]["links"][1]["bytes_per_second"] == 25781000000


def test_counters():
    links = read(ERRORS)["gpus"][0]["links"]
    assert links[0]["counters"] == {"replay_errors": 0, "recovery_errors": 2, "crc_errors": 0}
    assert links[1]["counters"]["replay_errors"] == 7
    counters = read(BLACKWELL)["gpus"][0]["links"][0]["counters"]
    assert counters["effective_ber"] == 15e-255
    assert counters["symbol_ber"] == 6e-12
    assert counters["fec_errors_0"] == 17941761
    assert counters["plr_xmit_retry_blocks"] is None


def test_both_together():
    links = read(STATUS + ERRORS)["gpus"][0]["links"]
    assert links[0] == {
        "link": 0, "active": True, "bytes_per_second": 26562000000,
        "counters": {"replay_errors": 0, "recovery_errors": 2, "crc_errors": 0},
    }  # fmt: skip


def test_cards_without():
    assert [g["state"] for g in read(WITHOUT)["gpus"]] == ["not supported", "all inactive"]


@pytest.mark.parametrize(
    "text",
    ["", "hello\n", "\t Link 0: 26.562 GB/s\n", STATUS + "\t Link 2: 26.562 GiB/s\n",
     STATUS + "\t Link 2: asleep\n", STATUS + "an unknown line\n"],
)  # fmt: skip
def test_an_unknown_form(text):
    with pytest.raises(Unparsable):
        read(text)


@given(st.sampled_from(SAMPLES), st.integers(0, 700), st.text(max_size=40))
def test_cut_and_spoiled(text, at, more):
    for spoiled in (text[:at], text[:at] + more + text[at:]):
        recognise(spoiled)
        with contextlib.suppress(Unparsable):
            read(spoiled)


def test_ten_megabytes_on_a_line():
    with contextlib.suppress(Unparsable):
        read(STATUS + "\t Link 2: " + "9" * 10_000_000)
