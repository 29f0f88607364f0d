"""The driver as installed: libraries, device files, who holds the GPUs; containers are let be."""

from __future__ import annotations

import pytest

from clustertools.errors import Absent
from clustertools.host import Completed, FileStat, PassingHost, RecordedHost
from clustertools.model import Status
from tests.conftest import HOSTS
from tests.lab.parts.gpu import FOLDERS, ldconfig


class Node(PassingHost):
    """h100-healthy with other answers: `globs`, `files` (None: absent), `commands` by their first word."""

    def __init__(self, globs=(), files=(), commands=()):
        super().__init__(RecordedHost(HOSTS / "h100-healthy"))
        self.globs, self.files, self.commands = dict(globs), dict(files), dict(commands)

    def glob(self, pattern):
        return self.globs[pattern] if pattern in self.globs else super().glob(pattern)

    def read(self, path, offset=0, limit=None):
        if path in self.files:
            if self.files[path] is None:
                raise Absent(path)
            return self.files[path]
        return super().read(path, offset, limit)

    def stat(self, path):
        return FileStat(0, 0.0, 0)

    def run(self, *argv, timeout_seconds=10.0, stdin=""):
        if argv[0] in self.commands:
            told = self.commands[argv[0]]
            if told is None:
                raise Absent(f"{argv[0]} is not installed")
            return Completed(argv, told[0], told[1], told[2] if len(told) > 2 else "")
        return super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)


def found(verdict):
    return {(f.code, f.subject.part) for f in verdict.findings}


def without_libraries():
    return {f"{folder}/{name}.*": [] for folder in FOLDERS for name in ("libcuda.so", "libnvidia-ml.so")}


def test_half_upgraded(run):
    verdict = run("gpu_driver", "h100-driver-half-upgraded")
    assert found(verdict) == {
        ("GpuLibraryVersion", "libcuda.so.1"), ("GpuLibraryVersion", "libnvidia-ml.so.1"),
        ("GpuWrongDriver", "gpu@0000:db:00.0"),
        ("GpuDeviceFile", "gpu@0000:5d:00.0"), ("GpuDeviceFile", "gpu@0000:ab:00.0"),
    }  # fmt: skip
    said = " ".join(f.summary for f in verdict.findings)
    assert "held by nouveau, 7 other GPUs by nvidia" in said
    assert "/dev/nvidia5 has mode 600, the driver was told 666" in said


def test_a_missing_library(run):
    node = Node(without_libraries(), commands={"ldconfig": (0, ldconfig("libnvidia-ml.so.1"))})
    assert found(run("gpu_driver", node)) == {("GpuLibraryMissing", "libcuda.so.1")}
    node = Node(without_libraries(), commands={"ldconfig": None})
    verdict = run("gpu_driver", node)
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())


def test_two_versions_side_by_side_are_none_too_many(run):
    names = {
        f"{FOLDERS[0]}/{n}.*": [f"{FOLDERS[0]}/{n}.{v}" for v in ("1", "535.10", "570.133.20")]
        for n in ("libcuda.so", "libnvidia-ml.so")
    }
    assert run("gpu_driver", Node(names)).status is Status.OK


def test_a_gpu_lent_to_a_virtual_machine(run):
    folder = "/sys/bus/pci/drivers"
    held = {
        f"{folder}/nvidia/*:*": [f"{folder}/nvidia/0000:18:00.0"],
        f"{folder}/vfio-pci/*:*": [f"{folder}/vfio-pci/0000:2a:00.0"],
    }
    lent = run("gpu_driver", Node(held))
    assert ("GpuWrongDriver", "gpu@0000:2a:00.0") not in found(lent)
    assert ("GpuWrongDriver", "gpu@0000:3a:00.0") in found(lent)
    held = {f"{folder}/{name}/*:*": [] for name in ("nvidia", "vfio-pci")}
    assert run("gpu_driver", Node(held)).status is Status.OK


@pytest.mark.parametrize(
    "node",
    [
        Node({"/run/nvidia/driver/usr": ["/run/nvidia/driver/usr"]}, commands={"ldconfig": (0, "")}),
        Node(files={"/proc/self/mountinfo": "1 2 0:98 / /proc/driver/nvidia ro - tmpfs tmpfs rw\n"}),
        Node(files={"/proc/self/mountinfo": "1 2 0:98 / / rw,relatime master:1 - overlay overlay rw\n"}),
    ],
)
def test_a_container_is_not_judged(run, node):
    node.globs.update(without_libraries())
    verdict = run("gpu_driver", node)
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "not judged" in verdict.detail


def test_a_module_that_is_not_loaded_is_another_checks_affair(run):
    assert run("gpu_driver", Node(files={"/sys/module/nvidia/version": None})).status is Status.SKIPPED
    assert run("gpu_driver", "cpu-healthy").status is Status.SKIPPED


def test_a_site_that_closes_its_device_files_on_purpose(run):
    modes = "".join(f"660 /dev/nvidia{n}\n" for n in ("ctl", *range(8)))
    told = "ModifyDeviceFiles: 1\nDeviceFileMode: 432\n"
    node = Node(files={"/proc/driver/nvidia/params": told}, commands={"stat": (0, modes)})
    assert run("gpu_driver", node).status is Status.OK
    node.files["/proc/driver/nvidia/params"] = "ModifyDeviceFiles: 0\nDeviceFileMode: 438\n"
    assert run("gpu_driver", node).status is Status.OK


@pytest.mark.parametrize(
    ("files", "commands"),
    [
        ({"/proc/driver/nvidia/params": "nonsense"}, {}),
        ({}, {"stat": (1, "", "stat: permission denied")}),
        ({}, {"stat": None}),
        ({}, {"ldconfig": (1, "", "cannot read the cache")}),
    ],
)
def test_what_cannot_be_read_is_blindness(run, files, commands):
    verdict = run("gpu_driver", Node(files=files, commands=commands))
    assert (verdict.status, verdict.findings) == (Status.UNKNOWN, ())
