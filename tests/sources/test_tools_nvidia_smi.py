"""The readers of `nvidia-smi`'s table and of `nvidia-smi -q`."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustertools.errors import Unparsable
from clustertools.sources.tools import nvidia_smi, nvidia_smi_q, read_tolerantly

TOOLS = Path(__file__).parents[1] / "tools"
MIB = 1 << 20


def sample(name: str) -> str:
    return (TOOLS / name).read_text()


def test_the_table_of_a_driver_of_today() -> None:
    told = nvidia_smi.read(sample("nvidia-smi/v100-550.txt"))
    assert (told["nvidia_smi"], told["driver"], told["cuda"]) == ("550.54.15", "550.54.15", "12.4")
    assert told["gpus"] == [
        {
            "index": 0, "name": "Tesla V100-PCIE-16GB", "pci_bus_id": "00000000:00:1E.0", "persistence": True,
            "ecc_uncorrected_volatile": 0, "fan_percent": None, "temperature_celsius": 31,
            "performance_state": "P0", "power_watts": 38, "power_limit_watts": 250,
            "memory_used_bytes": 14555 * MIB, "memory_total_bytes": 16384 * MIB, "utilisation_percent": 0,
            "compute_mode": "Default", "mig_mode": None, "unreadable": [],
        }
    ]  # fmt: skip
    assert told["processes"] == [
        {"gpu": 0, "pid": 148733, "type": "C", "name": "/usr/bin/python3", "memory_bytes": 14552 * MIB}
    ]


def test_what_could_not_be_read_is_no_zero() -> None:
    mig, bad = nvidia_smi.read(sample("nvidia-smi/mig-and-error-535.txt"))["gpus"]
    assert (mig["mig_mode"], mig["utilisation_percent"], mig["unreadable"]) == (
        "Enabled", None, ["ecc_uncorrected_volatile"],
    )  # fmt: skip
    assert (bad["temperature_celsius"], bad["memory_total_bytes"], bad["ecc_uncorrected_volatile"]) == (
        None, None, None,
    )  # fmt: skip
    assert {"temperature_celsius", "ecc_uncorrected_volatile", "performance_state"} <= set(bad["unreadable"])


def test_an_older_table_with_a_name_that_is_cut() -> None:
    told = nvidia_smi.read(sample("nvidia-smi/geforce-470.txt"))
    (gpu,) = told["gpus"]
    assert (gpu["name"], gpu["persistence"], gpu["fan_percent"], gpu["utilisation_percent"]) == (
        "NVIDIA GeForce ...", False, 0, 30,
    )  # fmt: skip
    assert told["processes"][0]["type"] == "G"


@pytest.mark.parametrize("name", ["lost", "no-driver"])
def test_what_it_says_in_place_of_a_table(name: str) -> None:
    told = nvidia_smi.read(sample(f"nvidia-smi/{name}.txt"))
    assert (told["driver"], told["gpus"], len(told["errors"])) == (None, [], 1)


def test_a_row_of_another_form_is_said() -> None:
    text = sample("nvidia-smi/v100-550.txt").replace("38W /  250W", "38 Watt of 250")
    with pytest.raises(Unparsable, match="38 Watt of 250"):
        nvidia_smi.read(text)
    told, unparsed = read_tolerantly(nvidia_smi, text)
    assert (told["gpus"][0]["power_watts"], len(unparsed)) == (None, 1)


def test_sections_and_units() -> None:
    told = nvidia_smi_q.read(sample("nvidia-smi-q/a100-580.txt"))
    assert (told["driver"], told["cuda"]) == ("580.126.09", "13.0")
    (gpu,) = told["gpus"]
    assert gpu["pci_bus_id"] == "00000000:00:04.0"
    assert gpu["fb_memory_usage"]["total_bytes"] == 40960 * MIB
    assert gpu["pci"]["gpu_link_info"]["link_width"] == {"max": 16, "current": 16}
    assert gpu["ecc_errors"]["volatile"]["sram_correctable"] == 0
    assert gpu["temperature"]["gpu_current_temp_celsius"] == 29
    assert gpu["gpu_power_readings"]["average_power_draw_watts"] == 42.15
    assert (gpu["fan_speed"], gpu["mig_mode"]["current"]) == (None, "Disabled")
    assert gpu["serial_number"] == "1650000000000"
    assert [(p["process_id"], p["used_gpu_memory_bytes"]) for p in gpu["processes"]] == [
        (148733, 1024 * MIB), (148734, 2048 * MIB),
    ]  # fmt: skip
    two = nvidia_smi_q.read(sample("nvidia-smi-q/k40-470-clock.txt"))["gpus"]
    assert [g["max_clocks"]["memory_mhz"] for g in two] == [3200, 3200]
