"""A machine with NVIDIA GPUs that are not there: the real pynvml over a stand-in library (`nvml.c`).

    def test_lost(run, nvml):
        nvml.set("5.lost=1")
        assert run("gpu_count", host=nvml.host).codes == {"GpuLost"}

The machine is this one, except that its PCI bus shows the profile's GPUs and that its children find the
stand-in as libnvidia-ml.so.1.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from clustertools.host import FileStat, LocalHost
from tests.lab import profiles

SOURCE = Path(__file__).with_name("nvml.c")
PCI_BUS = "/sys/bus/pci/"


class NoCompiler(Exception):
    """There is no C compiler on this machine."""


def build(folder: Path) -> Path:
    """Compile the stand-in into `folder` and return that. Raises NoCompiler without gcc."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("the NVML stand-in needs gcc")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", target, SOURCE], check=True
    )
    return folder


#: What is another machine's: always its PCI bus, and each folder of which a test wrote a file.
OTHERS = (PCI_BUS, "/dev/", "/proc/", "/run/", "/sys/", "/etc/", "/usr/")


class LabHost(LocalHost):
    """This machine with another PCI bus, kept in a folder, and whatever else a test wrote there."""

    def __init__(self, root: Path, name: str = "gpu-lab") -> None:
        super().__init__(name)
        self.root = root

    def _path(self, path: str) -> str:
        mine = any(path.startswith(top) and Path(f"{self.root}{top}").is_dir() for top in OTHERS)
        return f"{self.root}{path}" if mine or path.startswith(PCI_BUS) else path

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str:
        return super().read(self._path(path), offset, limit)

    def stat(self, path: str) -> FileStat:
        return super().stat(self._path(path))

    def glob(self, pattern: str) -> list[str]:
        return [p.removeprefix(str(self.root)) for p in super().glob(self._path(pattern))]


class NvmlLab:
    """The stand-in's values and the machine around it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.values = folder / "nvml.conf"
        self.root = folder / "root"
        self.environment: Mapping[str, str] = {
            "LD_LIBRARY_PATH": str(library),
            "CT_NVML_FILE": str(self.values),
        }
        self.host = LabHost(self.root)
        self.use(profiles.H100)

    def use(self, profile: str) -> None:
        """Begin anew with the values of `profile`, and its GPUs on the PCI bus."""
        self.values.write_text(profile)
        self.bus(re.findall(r"^\d+\.pci=(\S+)$", profile, re.MULTILINE))

    def set(self, *lines: str) -> None:
        """Add values or faults, `"3.lost=1"`; a later one wins over an earlier one."""
        with self.values.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def file(self, path: str, text: str) -> None:
        """Give the machine this file, and so a /dev, /proc, ... of its own: what else is there, is not."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def bus(self, addresses: Sequence[str]) -> None:
        """Let the PCI bus show NVIDIA GPUs at just these addresses."""
        shutil.rmtree(self.root, ignore_errors=True)
        (self.root / PCI_BUS.strip("/") / "devices").mkdir(parents=True)
        for address in addresses:
            device = self.root / PCI_BUS.strip("/") / "devices" / address
            device.mkdir()
            (device / "vendor").write_text("0x10de\n")
            (device / "class").write_text("0x030200\n")


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled stand-in."""
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as exc:
        pytest.skip(str(exc))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvmlLab:
    """Eight healthy H100; `.set(...)` breaks them, `.host` is the machine."""
    lab = NvmlLab(nvml_library, tmp_path)
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    return lab
