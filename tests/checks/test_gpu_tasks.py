"""Tasks that hang in the driver, seen over several looks; and the environment of GPU processes."""

from __future__ import annotations

import dataclasses

import pytest
from clustertools.checks.gpu_tasks import OURS, Limits

from clustertools.model import Status
from tests.lab.parts.gpu import stat_line


@pytest.mark.parametrize(
    "name",
    ["nvidia-smi", "nvidia-persiste", "nv-hostengine", "nv_queue", "irq/130-nvidia", "UVM global queue"],
)
def test_our_tasks(name):
    assert OURS.match(name)


@pytest.mark.parametrize("name", ["nvme-wq", "nvmet", "python", "irq/130-nvme0q1", "nfsd", "kworker/0:1"])
def test_not_our_tasks(name):
    assert not OURS.match(name)


def look(run, nvml, past=None, **limits):
    limits = dataclasses.replace(Limits(), **limits)
    return run("gpu_tasks", nvml.host, past=past, limits=limits)


def test_a_task_that_stays_in_the_kernel(run, nvml):
    nvml.file("/proc/4711/stat", stat_line(4711, "nvidia-smi", "D"))
    nvml.file("/proc/4711/wchan", "_nv_rwsem_down")
    first = look(run, nvml)
    assert first.status is Status.OK
    past = {"since": {"4711@2211": nvml.host.now() - 121}}
    verdict = look(run, nvml, past)
    assert verdict.codes == {"GpuTaskStuck"}
    assert verdict.findings[0].status is Status.WARNING
    assert "nvidia-smi (pid 4711) for 121 s in _nv_rwsem_down" in verdict.findings[0].evidence[0]
    assert verdict.memory["since"] == past["since"]
    # the same number is another process when it started at another time
    assert look(run, nvml, {"since": {"4711@99": 1.0}}).status is Status.OK
    nvml.file("/proc/4711/stat", stat_line(4711, "nvidia-smi", "S"))
    assert look(run, nvml, past).memory["since"] == {}


def test_other_peoples_tasks_are_not_ours(run, nvml):
    nvml.file("/proc/4711/stat", stat_line(4711, "dd", "D"))
    nvml.file("/proc/4712/stat", "garbage")
    verdict = look(run, nvml, {"since": {"4711@2211": 1.0}})
    assert (verdict.status, verdict.memory) == (Status.OK, {"since": {}})


def test_no_proc_is_blindness(run, nvml):
    nvml.file("/proc/self/environ", "")
    assert look(run, nvml).status is Status.UNKNOWN


# ---- gpu_environment ---------------------------------------------------------------------------------------


def test_a_debuggers_variable(run, nvml):
    nvml.set("0.processes=4711:1", "1.processes=4712:1")
    nvml.file("/proc/4711/stat", stat_line(4711, "python", "S"))
    nvml.file("/proc/4711/environ", "SECRET=hunter2\0CUDA_LAUNCH_BLOCKING=1\0CUDA_COREDUMP_FILE=/tmp/x\0")
    nvml.file("/proc/4712/environ", "CUDA_LAUNCH_BLOCKING=0\0CUDA_PROFILE=\0")
    verdict = run("gpu_environment", nvml.host)
    assert [(f.code, f.subject.part) for f in verdict.findings] == [
        ("GpuDebugEnvironment", "CUDA_LAUNCH_BLOCKING")
    ]
    assert verdict.findings[0].evidence == ("GPU 0: python (pid 4711)",)
    assert verdict.detail == "CUDA_COREDUMP_FILE is set for 1 processes"
    assert "hunter2" not in str(verdict)


def test_a_process_that_is_gone_is_no_matter(run, nvml):
    nvml.set("0.processes=4711:1")
    nvml.file("/proc/1/comm", "init")
    assert run("gpu_environment", nvml.host).status is Status.OK


def test_no_environment_may_be_read(run, nvml, monkeypatch):
    nvml.set("0.processes=4711:1")
    nvml.file("/proc/4711/environ/x", "a folder, which cannot be read as a file either")
    verdict = run("gpu_environment", nvml.host)
    assert verdict.status is Status.UNKNOWN
    assert "needs root" in verdict.blind
