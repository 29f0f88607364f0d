"""DCGM's report, and whether containers can be given GPUs."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.errors import Absent, Unparsable
from clustertools.host import Completed
from clustertools.model import Status
from clustertools.sources.tools import dcgmi_health

#: In the form of NVIDIA/DCGM's dcgmi/Health.cpp and DcgmiOutput.h; the sentences are its error messages.
REPORT = {
    "body": {
        "GPU": {
            "children": {
                "3": {
                    "children": {
                        "Errors": {
                            "children": {
                                "Memory system": {
                                    "overflow": ["GPU 3 has row remapping pending.", "Reset the GPU."],
                                    "value": "Failure",
                                },
                                "Thermal system": {"overflow": ["Clocks held down."], "value": "Warning"},
                            }
                        }
                    },
                    "value": "Failure",
                }
            }
        },
        "Overall Health": {"value": "Failure"},
    },
    "header": ["Health Monitor Report"],
}
HEALTHY = {"body": {"Overall Health": {"value": "Healthy"}}, "header": ["Health Monitor Report"]}
DCGMI = "dcgmi"


def answering(nvml, monkeypatch, stdout="", returncode=0, absent=False):
    def run(*argv, timeout_seconds=10.0, stdin=""):
        if absent:
            raise Absent("dcgmi is not installed")
        assert argv[0] == DCGMI
        return Completed(argv, returncode, stdout, "")

    monkeypatch.setattr(nvml.host, "run", run)


def test_incidents(run, nvml, monkeypatch):
    answering(nvml, monkeypatch, json.dumps(REPORT))
    verdict = run("gpu_dcgm", nvml.host)
    assert [(f.code, f.subject.part, f.status) for f in verdict.findings] == [
        ("DcgmIncident", "dcgm@GPU3", Status.WARNING)
    ]
    assert verdict.findings[0].summary == "DCGM on GPU 3: Memory system, Thermal system"
    assert verdict.findings[0].evidence[0] == (
        "Failure: Memory system: GPU 3 has row remapping pending. Reset the GPU."
    )


def test_healthy(run, nvml, monkeypatch):
    answering(nvml, monkeypatch, json.dumps(HEALTHY))
    assert run("gpu_dcgm", nvml.host).status is Status.OK


@pytest.mark.parametrize(
    ("stdout", "returncode", "absent", "status"),
    [
        ("", 0, True, Status.SKIPPED),
        ("Error: unable to establish a connection to the specified host: x\n", 255, False, Status.SKIPPED),
        ("Error: Health watches not enabled. Please enable watches. \n", 255, False, Status.SKIPPED),
        ("Error: Unable to check health watches. Return: Timeout\n", 245, False, Status.UNKNOWN),
        ("nonsense", 0, False, Status.UNKNOWN),
        ('{"body": {"Overall Health": {"value": "Internal error"}}}', 0, False, Status.UNKNOWN),
        ('{"body": {"GPU": {"children": {"0": {}}}, "Overall Health": {"value": "Failure"}}}', 0, False,
         Status.UNKNOWN),
    ],
)  # fmt: skip
def test_what_is_no_report(run, nvml, monkeypatch, stdout, returncode, absent, status):
    answering(nvml, monkeypatch, stdout, returncode, absent)
    verdict = run("gpu_dcgm", nvml.host)
    assert (verdict.status, verdict.findings) == (status, ())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.text(max_size=6))
def test_a_damaged_report_is_read_or_unparsable(at, text):
    whole = json.dumps(REPORT)
    with contextlib.suppress(Unparsable):
        dcgmi_health.read(whole[:at] + text + whole[at + len(text) :])


# ---- gpu_container -----------------------------------------------------------------------------------------

DOCKER = '{"runtimes": {\n  "nvidia": {"args": [],\n "path": "/usr/bin/nvidia-container-runtime"}}}\n'
CONTAINERD = """\
          [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
            BinaryName = "/usr/bin/nvidia-container-runtime"
"""
CDI = """\
cdiVersion: 0.5.0
containerEdits:
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20
"""


@pytest.mark.parametrize(
    ("path", "text", "code"),
    [
        ("/etc/docker/daemon.json", DOCKER, "GpuContainerRuntime"),
        ("/etc/containerd/config.toml", CONTAINERD, "GpuContainerRuntime"),
        ("/etc/containerd/conf.d/99-nvidia.toml", CONTAINERD, "GpuContainerRuntime"),
        ("/etc/cdi/nvidia.yaml", CDI, "GpuContainerSpecStale"),
    ],
)
def test_what_is_configured_has_to_be_there(run, nvml, path, text, code):
    nvml.file("/usr/x", "")
    nvml.file(path, text)
    verdict = run("gpu_container", nvml.host)
    assert (verdict.codes, verdict.status) == ({code}, Status.WARNING)
    nvml.file("/usr/bin/nvidia-container-runtime", "")
    nvml.file("/usr/lib/x86_64-linux-gnu/libcuda.so.570.133.20", "")
    assert run("gpu_container", nvml.host).status is Status.OK


def test_a_node_without_such_containers(run, nvml):
    nvml.file("/etc/docker/daemon.json", '{"log-driver": "journald"}')
    assert run("gpu_container", nvml.host).status is Status.SKIPPED


@pytest.mark.parametrize("text", ["", "\0\0", "path: /a" * 10_000, '"path": "' + "/" * 100_000])
def test_an_odd_configuration_names_nothing(run, nvml, text):
    nvml.file("/etc/docker/daemon.json", text)
    assert run("gpu_container", nvml.host).status is Status.SKIPPED
