"""Stuck tasks over several looks, zombies, full tables."""

from __future__ import annotations

import pytest

from clustertools.errors import Unobservable
from clustertools.model import Remedy, Status
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.services import stat

BOOT = 1785900000.0


@pytest.fixture
def node():
    host = MemoryHost()
    host.files |= {
        "/proc/loadavg": "0.20 0.18 0.12 1/2688 412083\n",
        "/proc/sys/kernel/pid_max": "4194304\n",
        "/proc/sys/kernel/threads-max": "100000\n",
        "/proc/sys/fs/file-nr": "8480\t0\t9223372036854775807\n",
        "/proc/1/stat": stat(1, "systemd", ppid=0),
        "/proc/871/stat": stat(871, "kswapd0", kernel=True),
    }
    return host


def blocked(host, pid, comm, *, switches=7, wchan="0", stack="", **how):
    host.files[f"/proc/{pid}/stat"] = stat(pid, comm, "D", **how)
    host.files[f"/proc/{pid}/status"] = (
        f"Name:\t{comm}\nState:\tD (disk sleep)\nvoluntary_ctxt_switches:\t{switches}\n"
        "nonvoluntary_ctxt_switches:\t2\n"
    )
    host.files[f"/proc/{pid}/wchan"] = wchan
    if stack:
        host.files[f"/proc/{pid}/stack"] = stack


def looks(run, host, *seconds, **how):
    verdict = run("host_processes", host, **how)
    for after in seconds:
        host.time += after
        verdict = run("host_processes", host, past=verdict.memory, **how)
    return verdict


def test_a_process_that_hangs_in_the_driver(run, node):
    blocked(
        node, 77, "python3", wchan="rwsem_down_write_slowpath",
        stack="[<0>] os_acquire_rwlock_write+0x3a/0x50 [nvidia]\n"
        "[<0>] uvm_api_unregister_gpu+0x1c/0x60 [nvidia_uvm]\n",
    )  # fmt: skip
    assert looks(run, node).status is Status.OK
    assert looks(run, node, 60, 239).status is Status.OK
    verdict = looks(run, node, 60, 60, 60, 60, 60)
    (finding,) = verdict.findings
    assert (finding.code, finding.subject.part) == ("DriverTaskStuck", "pid@77")
    assert (finding.status, finding.remedy) == (Status.CRITICAL, Remedy.REBOOT_NODE)
    assert finding.evidence[1] == "os_acquire_rwlock_write+0x3a/0x50 [nvidia]"


@pytest.mark.parametrize(
    ("wchan", "whom"),
    [("rpc_wait_bit_killable", "NFS"), ("cl_sync_io_wait", "Lustre"), ("io_schedule", "a disk"), ("0", "")],
)
def test_a_process_that_hangs_on_storage_is_a_warning(run, node, wchan, whom):
    blocked(node, 77, "python3", wchan=wchan)
    (finding,) = looks(run, node, 300).findings
    assert (finding.code, finding.status) == ("TaskStuck", Status.WARNING)
    assert f"waiting for {whom}" in finding.summary if whom else "waiting" not in finding.summary


def test_nvidia_smi_that_hangs_is_known_without_root(run, node):
    blocked(node, 77, "nvidia-smi")
    node.files["/proc/77/wchan"] = Unobservable("denied")
    assert looks(run, node, 300).codes == {"DriverTaskStuck"}


def test_a_busy_disk_is_no_finding(run, node):
    """It is in state D at each look, but was scheduled in between."""
    past = {}
    for switches in range(10):
        blocked(node, 77, "tar", switches=switches, wchan="io_schedule")
        verdict = run("host_processes", node, past=past)
        past, node.time = verdict.memory, node.time + 60
        assert verdict.status is Status.OK


def test_another_process_with_the_same_pid_begins_anew(run, node):
    blocked(node, 77, "tar")
    verdict = run("host_processes", node)
    node.time += 400
    blocked(node, 77, "tar", start=4000)
    assert run("host_processes", node, past=verdict.memory).status is Status.OK
    node.boot_id = "boot-2"
    blocked(node, 77, "tar")
    assert run("host_processes", node, past=verdict.memory).status is Status.OK


def test_a_kernel_thread_that_sleeps_so_is_a_note(run, node):
    blocked(node, 77, "nv_queue", kernel=True)
    verdict = looks(run, node, 300)
    assert (verdict.status, "nv_queue has not run" in verdict.detail) == (Status.OK, True)


def test_a_killed_job_whose_thread_hangs(run, node):
    node.files["/proc/77/stat"] = stat(77, "python3", "Z", threads=2)
    node.files["/proc/77/task/80/status"] = (
        "State:\tD (disk sleep)\nvoluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t0\n"
    )
    node.files["/proc/77/stack"] = "[<0>] nv_open_device+0x10/0x20 [nvidia]\n"
    assert looks(run, node, 300).codes == {"DriverTaskStuck"}


def test_zombies(run, node):
    for pid in range(1000, 1099):
        node.files[f"/proc/{pid}/stat"] = stat(pid, "sh", "Z")
    assert looks(run, node, 300).status is Status.OK
    node.files["/proc/1099/stat"] = stat(1099, "sh", "Z")
    assert looks(run, node).status is Status.OK
    (finding,) = looks(run, node, 300).findings
    assert (finding.code, finding.evidence) == ("ZombieProcesses", ("100 of systemd (pid 1)",))


@pytest.mark.parametrize(
    ("path", "text", "code", "status"),
    [
        ("/proc/loadavg", "1 1 1 1/79999 4\n".replace("1 1 1", "1.0 1.0 1.0"), "", Status.OK),
        ("/proc/loadavg", "1.0 1.0 1.0 1/80000 4\n", "TaskTableFull", Status.WARNING),
        ("/proc/loadavg", "1.0 1.0 1.0 1/95000 4\n", "TaskTableFull", Status.CRITICAL),
        ("/proc/sys/fs/file-nr", "90\t11\t100\n", "", Status.OK),
        ("/proc/sys/fs/file-nr", "80\t0\t100\n", "FileTableFull", Status.WARNING),
        ("/proc/sys/fs/file-nr", "95\t0\t100\n", "FileTableFull", Status.CRITICAL),
    ],
)
def test_tables(run, node, path, text, code, status):
    node.files[path] = text
    verdict = run("host_processes", node)
    assert (verdict.status, verdict.codes) == (status, {code} - {""})


def test_kswapd(run, node):
    verdict = run("host_processes", node)
    node.time += 60
    node.files["/proc/871/stat"] = stat(871, "kswapd0", kernel=True, ticks=5399)
    assert run("host_processes", node, past=verdict.memory).status is Status.OK
    node.files["/proc/871/stat"] = stat(871, "kswapd0", kernel=True, ticks=5400)
    (finding,) = run("host_processes", node, past=verdict.memory).findings
    assert (finding.code, finding.subject.part) == ("KswapdBusy", "kswapd0")


@pytest.mark.parametrize("path", ["/proc/loadavg", "/proc/sys/kernel/pid_max", "/proc/sys/fs/file-nr"])
@pytest.mark.parametrize("text", ["", "garbage\0", "9" * 5000, Unobservable("denied")])
def test_what_cannot_be_read_is_unknown(run, node, path, text):
    node.files[path] = text
    assert run("host_processes", node).status is Status.UNKNOWN
