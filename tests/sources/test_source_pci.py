"""Which NVIDIA GPUs are on the bus."""

from __future__ import annotations

from pathlib import Path

from clustertools.host import LocalHost, RecordedHost
from clustertools.sources.pci import nvidia_devices


def _host(folder: Path, devices: dict[str, tuple[str, str]]) -> RecordedHost:
    (folder / "host.yaml").write_text("name: gpu-001\ntime: 1.0\n")
    (folder / "files/sys/bus/pci/devices").mkdir(parents=True)
    for address, (vendor, kind) in devices.items():
        place = folder / "files/sys/bus/pci/devices" / address
        place.mkdir()
        (place / "vendor").write_text(vendor + "\n")
        (place / "class").write_text(kind + "\n")
    return RecordedHost(folder)


def test_only_gpus_of_nvidia_count(tmp_path: Path) -> None:
    host = _host(
        tmp_path,
        {
            "0000:3b:00.0": ("0x10de", "0x030200"),  # H100
            "0000:18:00.0": ("0x10de", "0x030000"),  # a card with a display output
            "0000:c1:00.0": ("0x10de", "0x068000"),  # NVSwitch
            "0000:05:00.0": ("0x1a03", "0x030000"),  # the BMC's VGA
            "0000:06:00.0": ("0x15b3", "0x020700"),  # ConnectX
            "0000:07:00.0": ("", "0x030200"),
        },
    )
    assert nvidia_devices(host) == ("0000:18:00.0", "0000:3b:00.0")


def test_a_device_that_goes_away_meanwhile_is_no_error(tmp_path: Path) -> None:
    host = _host(tmp_path, {"0000:3b:00.0": ("0x10de", "0x030200"), "0000:18:00.0": ("0x10de", "0x030200")})
    (tmp_path / "files/sys/bus/pci/devices/0000:3b:00.0/class").unlink()
    assert nvidia_devices(host) == ("0000:18:00.0",)


def test_no_bus_is_an_answer(tmp_path: Path) -> None:
    assert nvidia_devices(_host(tmp_path, {})) == ()


def test_a_live_machine_answers() -> None:
    assert isinstance(nvidia_devices(LocalHost()), tuple)
