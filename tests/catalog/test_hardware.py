"""The hardware catalogue: what a machine is recognised as, and what is then expected of it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from clustertools.catalog import hardware as catalogue
from clustertools.catalog.hardware import Seen, recognise
from clustertools.cli import main
from clustertools.config import NodeClass
from clustertools.errors import ConfigError
from clustertools.sources import hardware
from tests.conftest import HOSTS
from tests.lab.memory_host import MemoryHost

H100 = "10de:2330"
#: Keys that checks read and that no field of a node class is named after; they go through `expect:`.
FURTHER = {
    "nvlinks_per_gpu", "nvlink_bytes_per_second", "nvswitches", "pcie_generation", "pcie_width",
    "gpu_power_limit_watts", "efa_devices", "cpu_sockets", "cpu_cores", "ib_ports_built_in",
}  # fmt: skip


def test_every_row_has_a_source_a_date_and_keys_that_checks_know() -> None:
    gpus, systems = catalogue.catalogue()
    known = {field.name for field in dataclasses.fields(NodeClass)} | FURTHER
    names = [entry.name for entry in (*gpus, *systems)]
    assert len(set(names)) == len(names)
    for entry in (*gpus, *systems):
        assert entry.source
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry.date)
        assert {*entry.expect, *entry.bare_metal} <= known, entry.name
    ids = [one for entry in gpus for one in entry.ids]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"(10de|1002):[0-9a-f]{4}", one) for one in ids)


def test_a_dgx_with_a_gpu_too_few_still_expects_eight() -> None:
    known = recognise(Seen("NVIDIA", "DGXH100", (H100,) * 7))
    assert known.expect["gpu_count"] == 8
    assert known.expect["nvlinks_per_gpu"] == 18
    assert "user guide" in known.origin["gpu_count"]
    assert known.name == "H100 SXM5 80GB, DGX H100 or H200"


def test_a_server_nobody_knows_expects_of_its_gpus_what_they_are() -> None:
    known = recognise(Seen("Supermicro", "SYS-821GE-TNHR", (H100,) * 8))
    assert "gpu_count" not in known.expect
    assert known.expect["pcie_width"] == 16


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        (Seen("Amazon EC2", "p5.48xlarge", (H100,) * 7), 8),
        (Seen("Microsoft Corporation", "Virtual Machine", (H100,) * 5), 8),
        (Seen("Google", "Google Compute Engine", ("10de:2335",) * 8), 8),
        # smaller shapes of this GPU exist there
        (Seen("Google", "Google Compute Engine", (H100,) * 2), None),
        (Seen("Microsoft Corporation", "Virtual Machine", ("10de:2321",) * 2), None),
        (Seen("NVIDIA", "GB200 NVL", ("10de:2941",) * 4), 4),
        (Seen("Amazon EC2", "m5.large", ()), None),
    ],
)
def test_clouds(seen: Seen, count: int | None) -> None:
    assert recognise(seen).expect.get("gpu_count") == count


def test_a_virtual_machine_shows_no_pcie_as_it_is() -> None:
    assert "pcie_width" not in recognise(Seen("Amazon EC2", "p5.48xlarge", (H100,) * 8)).expect
    assert "pcie_width" not in recognise(Seen("QEMU", "Standard PC (Q35 + ICH9, 2009)", (H100,))).expect
    assert "pcie_width" in recognise(Seen("Amazon EC2", "g5.metal", (H100,))).expect


def test_mixed_gpus_are_of_no_kind() -> None:
    assert recognise(Seen("", "", (H100, "10de:2331"))).expect == {}


def test_what_a_site_says_counts_before_the_catalogue() -> None:
    host = MemoryHost()
    pci = "/sys/bus/pci/devices/0000:18:00.0"
    host.files |= {
        f"{pci}/vendor": "0x10de\n", f"{pci}/class": "0x030200\n", f"{pci}/device": "0x2330\n",
        "/sys/class/dmi/id/sys_vendor": "NVIDIA\n", "/sys/class/dmi/id/product_name": "DGXH100\n",
    }  # fmt: skip
    assert hardware.expectations(host, {})["gpu_count"] == 8
    told = hardware.expectations(host, {"gpu_count": 4, "ib_ports": 0})
    assert (told["gpu_count"], told["ib_ports"], told["cpu_sockets"]) == (4, 0, 2)
    assert hardware.expectations(host, {"hardware": "none"}) == {"hardware": "none"}
    assert hardware.expectations(host, {"hardware": "EC2 p5, p5e"})["efa_devices"] == 32
    with pytest.raises(ConfigError, match="'DGX Z' is not in the catalogue; it has: V100 SXM"):
        hardware.expectations(host, {"hardware": "DGX Z"})


def test_a_machine_that_shows_nothing_is_expected_nothing_of() -> None:
    assert hardware.expectations(MemoryHost(), {}) == {}


@pytest.mark.parametrize("name", ["h100", "h200", "b200", "gb200", "a100"])
def test_the_recorded_nodes_are_recognised(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = HOSTS / f"{name}-healthy"
    assert main(["config", "expectations", "--host", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert name.upper() in told["hardware"]
    assert told["expectations"]["nvlinks_per_gpu"]["value"] == (12 if name == "a100" else 18)
    assert told["expectations"]["gpu_count"] == {
        "value": 4 if name == "gb200" else 8, "from": "the recording",
    }  # fmt: skip


def test_a_missing_gpu_is_found_without_any_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "host.yaml").write_text(
        f"base: {HOSTS / 'h100-gpu-missing'}\nname: bare\nexpect: {{}}\nwhat: x\n"
    )
    assert main(["check", "gpu_count", "--host", str(tmp_path)]) == 2
    assert "7 GPUs on the PCI bus, 8 expected" in capsys.readouterr().out
