"""What is left on GPUs before and after a job: whose GPUs are looked at, who holds them, how grave it is."""

from __future__ import annotations

import pytest

from clustertools.model import Remedy, Status
from tests.lab import profiles
from tests.lab.parts.gpu import stat_line

GIB = 1 << 30
PART = "gpu@0000:18:00.0"


def found(verdict):
    return {(f.code, f.subject.part, f.status) for f in verdict.findings}


def test_the_prolog_of_a_job(run):
    verdict = run("gpu_leftovers", "h100-gpu-leftovers")
    assert found(verdict) == {
        ("GpuProcessLeft", PART, Status.CRITICAL),
        ("GpuProcessUndead", "gpu@0000:2a:00.0", Status.CRITICAL),
        ("GpuMemoryLeft", "gpu@0000:3a:00.0", Status.CRITICAL),
    }
    assert "only the GPUs of job 4813 were looked at: 0,1,2" in verdict.detail
    undead = next(f for f in verdict.findings if f.code == "GpuProcessUndead")
    assert undead.remedy is Remedy.REBOOT_NODE
    assert undead.evidence == (
        "pt_main_thread (pid 20118), 61440 MiB, hangs in the kernel, waits in _nv_rwsem_down",
    )


def job(nvml, text):
    nvml.file("/proc/self/environ", text)


@pytest.mark.parametrize(
    ("gpus", "seen"), [("7", {7}), ("5-7", {5, 6, 7}), ("0,6-7", {0, 6, 7}), ("0,1,2,3,4,5,6", set(range(7)))]
)
def test_only_the_gpus_of_the_job(run, nvml, gpus, seen):
    job(nvml, f"SLURM_JOB_ID=1\0SLURM_JOB_GPUS={gpus}\0")
    nvml.set("7.processes=4711:1048576")
    verdict = run("gpu_leftovers", nvml.host)
    assert len({r.subject.part for r in verdict.readings}) == len(seen)
    assert (verdict.codes == {"GpuProcessLeft"}) == (7 in seen)


def test_a_job_without_gpus_on_a_shared_node(run, nvml):
    job(nvml, "SLURM_JOB_ID=1\0PATH=/usr/bin\0")
    nvml.set(f"processes=4711:{70 * GIB}", f"memory_used={70 * GIB}")
    verdict = run("gpu_leftovers", nvml.host)
    assert (verdict.status, verdict.findings) == (Status.SKIPPED, ())


@pytest.mark.parametrize("gpus", ["gpu:0", "8", "0,,1", "0-9999", "all", "\x00x"])
def test_a_list_of_gpus_that_is_not_understood_is_blindness(run, nvml, gpus):
    job(nvml, f"SLURM_JOB_ID=1\0SLURM_JOB_GPUS={gpus}")
    nvml.set("7.processes=4711:1048576")
    assert run("gpu_leftovers", nvml.host).findings == ()


def test_without_a_job_nothing_is_critical(run, nvml):
    job(nvml, "PATH=/usr/bin\0")
    nvml.set(f"0.processes=4711:{70 * GIB}", f"0.memory_used={70 * GIB}")
    verdict = run("gpu_leftovers", nvml.host)
    assert found(verdict) == {("GpuProcessLeft", PART, Status.WARNING)}
    assert "a process that is not seen from here (pid 4711) holds 70.0 GiB" in verdict.findings[0].summary


@pytest.mark.parametrize(
    ("used", "status"), [(8.0 * GIB, Status.CRITICAL), (7.9 * GIB, Status.WARNING), (1 * GIB, None)]
)
def test_how_much_memory_is_grave(run, nvml, used, status):
    job(nvml, "SLURM_JOB_ID=1\0SLURM_JOB_GPUS=0\0")
    nvml.set(f"0.memory_used={round(used)}")
    assert found(run("gpu_leftovers", nvml.host)) == ({("GpuMemoryLeft", PART, status)} if status else set())


def test_a_desktop_has_memory_of_its_own(run, nvml):
    nvml.use(profiles.GEFORCE)
    nvml.set(f"memory_used={3 * GIB}")
    assert run("gpu_leftovers", nvml.host).status is Status.OK
    nvml.set("display_active=0")
    assert run("gpu_leftovers", nvml.host).codes == {"GpuMemoryLeft"}


def test_a_gpu_that_jobs_share_is_not_judged(run, nvml):
    job(nvml, "SLURM_JOB_ID=1\0SLURM_JOB_GPUS=0,1\0SLURM_SHARDS_ON_NODE=4\0")
    nvml.set(f"0.processes=4711:{70 * GIB}", f"0.memory_used={70 * GIB}")
    assert run("gpu_leftovers", nvml.host).status is Status.SKIPPED
    job(nvml, "SLURM_JOB_ID=1\0SLURM_JOB_GPUS=0,1\0")
    nvml.set("0.mig=1")
    verdict = run("gpu_leftovers", nvml.host)
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    assert "divided by MIG" in verdict.detail


def test_services_are_no_leftovers(run, nvml):
    nvml.set("processes=4711:31457280", "memory_used=31457280")
    nvml.file("/proc/4711/stat", stat_line(4711, "nvidia-cuda-mps-server"[:15], "S"))
    assert run("gpu_leftovers", nvml.host).status is Status.OK


@pytest.mark.parametrize("text", ["", "garbage", "4711 (a) b) c", "4711 (x) S x 1 1 1", "\0" * 50])
def test_a_process_that_cannot_be_read_is_named_by_its_number(run, nvml, text):
    nvml.set("0.processes=4711:1048576")
    nvml.file("/proc/4711/stat", text)
    verdict = run("gpu_leftovers", nvml.host)
    assert verdict.codes == {"GpuProcessLeft"}
    assert "(pid 4711)" in verdict.findings[0].summary


def test_a_zombie_names_its_parent(run, nvml):
    nvml.set("0.processes=4711:1048576")
    nvml.file("/proc/4711/stat", stat_line(4711, "python", "Z", 4700))
    verdict = run("gpu_leftovers", nvml.host)
    assert found(verdict) == {("GpuProcessUndead", PART, Status.WARNING)}
    assert "its parent 4700" in verdict.findings[0].evidence[0]


def test_a_lost_gpu_is_blindness(run, nvml):
    nvml.set("3.lost=1")
    assert run("gpu_leftovers", nvml.host).status is Status.UNKNOWN
