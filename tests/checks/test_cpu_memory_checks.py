"""Processors, memory modules, NUMA nodes, and memory that nobody uses."""

from __future__ import annotations

import re

import pytest

from clustertools.errors import Absent, Unobservable
from clustertools.model import Status
from tests.checks.altered_node import AlteredNode
from tests.lab.parts import processors
from tests.lab.whole_node import DGX_H100, meminfo

CPU, NODES = "/sys/devices/system/cpu", "/sys/devices/system/node"
GIB_KIB = 1 << 20


def parts(verdict):
    return {(f.code, f.subject.part, f.status.name) for f in verdict.findings}


def test_a_socket_that_is_gone(run):
    verdict = run("cpu_count", AlteredNode("h100-socket-missing"), expect=AlteredNode().expect)
    assert parts(verdict) == {("CpuMissing", "cpu", "CRITICAL")}
    assert verdict.findings[0].summary == (
        "the node has 1 sockets (2 expected), 56 cores (112 expected), 112 CPUs (threads) (224 expected)"
    )


@pytest.mark.parametrize(("expect", "found"), [
    ({}, set()), ({"cpu_sockets": 2, "cpu_cores": 112, "cpu_count": 224}, set()),
    ({"cpu_sockets": 4}, {("CpuMissing", "cpu", "CRITICAL")}),
    ({"cpu_cores": 128}, {("CpuMissing", "cpu", "CRITICAL")}),
    ({"cpu_count": 225}, {("CpuMissing", "cpu", "CRITICAL")}),
    ({"cpu_cores": 112, "cpu_count": 448}, {("CpuThreads", "cpu", "WARNING")}),
    ({"cpu_cores": 112, "cpu_count": 112}, {("CpuThreads", "cpu", "WARNING")}),
    ({"cpu_count": 112}, set()), ({"cpu_cores": 56}, set()),
])  # fmt: skip
def test_expectations(run, expect, found):
    assert parts(run("cpu_count", AlteredNode(), expect=expect)) == found


@pytest.mark.parametrize(("smt", "found"), [("on", {"CpuOffline"}), ("off", set()), ("forceoff", set()),
                                            ("notsupported", {"CpuOffline"}),
                                            (None, {"CpuOffline"})])  # fmt: skip
def test_cpus_that_are_off_line(run, smt, found):
    node = AlteredNode()
    node.files |= {f"{CPU}/online": "0-99,101-111\n", f"{CPU}/smt/control": smt}
    verdict = run("cpu_count", node)
    assert verdict.codes == found
    if found:
        assert "113 of 224 CPUs are off line: 100,112-223" in verdict.findings[0].summary


@pytest.mark.parametrize("text", ["", "zero", "0-9999999", Unobservable("EIO")])
def test_cpus_that_cannot_be_counted(run, text):
    node = AlteredNode()
    node.files[f"{CPU}/online"] = text
    assert run("cpu_count", node).status is Status.UNKNOWN


def test_without_lscpu_the_threads_are_still_compared(run):
    node = AlteredNode()
    node.commands["lscpu",] = Absent("lscpu is not installed")
    verdict = run("cpu_count", node, expect={"cpu_sockets": 4, "cpu_count": 300})
    assert verdict.findings[0].summary == "the node has 224 CPUs (threads) (300 expected)"
    node.commands["lscpu",] = Unobservable("lscpu did not answer within 10 s")
    assert run("cpu_count", node).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("share", "found"), [(1.0, set()), (0.86, set()), (0.84, {"NumaMemoryUneven"}), (0, {"NumaMemoryUneven"})]
)
def test_numa_nodes(run, share, found):
    node = AlteredNode()
    node.files[f"{NODES}/node1/meminfo"] = processors.node_memory(1, round(DGX_H100.memory_kib // 2 * share))
    assert run("cpu_count", node).codes == found
    node.files[f"{NODES}/node1/cpulist"] = "\n"  # the memory of a GPU, or CXL
    assert run("cpu_count", node).codes == set()
    node.files |= {f"{NODES}/node1/meminfo": "?", f"{NODES}/node1/cpulist": "1\n"}
    assert run("cpu_count", node).status is Status.UNKNOWN


# ------------------------------------------------------------------ speed

POLICY = f"{CPU}/cpufreq/policy2"
THROTTLE = f"{CPU}/cpu56/thermal_throttle/package_throttle_total_time_ms"


@pytest.mark.parametrize(("changes", "expect", "found"), [
    ({}, {}, set()), ({}, {"cpu_governor": "performance"}, set()),
    ({}, {"cpu_governor": "schedutil"}, {"CpuGovernor"}),
    ({"scaling_governor": "powersave\n"}, {}, {"CpuGovernor"}), ({"scaling_governor": None}, {}, set()),
    ({"scaling_max_freq": "2000000\n"}, {}, set()), ({"scaling_max_freq": "1890000\n"}, {}, {"CpuCapped"}),
    ({"bios_limit": "1200000\n"}, {}, {"CpuCapped"}), ({"scaling_max_freq": None}, {}, set()),
    ({"base_frequency": None, "scaling_max_freq": "1900000\n"}, {}, set()),
    ({"base_frequency": None, "scaling_max_freq": "1890000\n"}, {}, {"CpuCapped"}),
])  # fmt: skip
def test_governors_and_caps(run, changes, expect, found):
    node = AlteredNode()
    node.files |= {f"{POLICY}/{name}": text for name, text in changes.items()}
    verdict = run("cpu_speed", node, expect=expect)
    assert (verdict.codes, verdict.blind) == (found, "")


@pytest.mark.parametrize(
    ("milliseconds", "found"), [(121, set()), (6120, set()), (6121, {"CpuThrottled"}), (3, set())]
)
def test_throttled(run, milliseconds, found):
    node = AlteredNode()
    past = run("cpu_speed", node).memory
    node.time += 60
    node.files[THROTTLE] = f"{milliseconds}\n"
    assert run("cpu_speed", node, past=past).codes == found
    node.files[THROTTLE] = "hot\n"
    assert run("cpu_speed", node, past=past).status is Status.UNKNOWN


def test_a_virtual_machine_has_only_a_load(run):
    node = AlteredNode()
    node.globs |= {
        f"{CPU}/cpufreq/policy[0-9]*": [],
        f"{CPU}/cpu[0-9]*/thermal_throttle/package_throttle_total_time_ms": [],
    }
    verdict = run("cpu_speed", node, expect={"cpu_governor": "performance"})
    assert (verdict.status, [r.name for r in verdict.readings]) == (Status.OK, ["cpu_load_total"])
    node.files["/proc/loadavg"] = "high\n"
    assert run("cpu_speed", node).status is Status.UNKNOWN


# ------------------------------------------------------------------ modules


@pytest.mark.parametrize(("text", "expect", "found"), [
    (processors.dimms(32), 32, set()), (processors.dimms(32), {"count": 32, "size_bytes": 64 << 30}, set()),
    (processors.dimms(32), 33, {"DimmMissing"}), (processors.dimms(32), 16, set()),
    (processors.dimms(32), None, set()),
    (processors.dimms(32, odd={3: (0, 0)}), 32, {"DimmMissing"}),
    (processors.dimms(32, odd={3: (32, 4800)}), 32, {"DimmMixed"}),
    (processors.dimms(8, odd=dict.fromkeys(range(4), (32, 4800))), 8, set()),  # two sizes on purpose
    (processors.dimms(2, odd={0: (8, 4800)}), None, set()),  # a laptop
    (processors.dimms(32, odd={3: (64, 4400)}), None, {"DimmSlow"}),
    (processors.dimms(32, odd=dict.fromkeys(range(32), (64, 4400))), None, set()),  # full channels
    (processors.dimms(4, gib=32), {"count": 4, "size_bytes": 64 << 30}, {"DimmMixed"}),
])  # fmt: skip
def test_modules(run, text, expect, found):
    node = AlteredNode()
    node.commands[processors.DMIDECODE] = text
    verdict = run("mem_dimms", node, expect={} if expect is None else {"dimms": expect})
    assert (verdict.codes, verdict.blind) == (found, "")


@pytest.mark.parametrize(("answer", "status"), [
    (Absent("dmidecode is not installed"), "SKIPPED"), ("# dmidecode 3.3\n", "UNKNOWN"),
    (Unobservable("no"), "UNKNOWN"),
])  # fmt: skip
def test_modules_that_cannot_be_seen(run, answer, status):
    node = AlteredNode()
    node.commands["dmidecode",] = answer
    assert run("mem_dimms", node).status.name == status


# ------------------------------------------------------------------ idle memory

TOTAL = DGX_H100.memory_kib
JOBS = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_[0-9]*"


def test_memory_that_was_not_freed(run):
    node = AlteredNode()
    node.files["/proc/meminfo"] = meminfo(
        TOTAL, MemAvailable=TOTAL * 79 // 100, AnonPages=10 * GIB_KIB, Shmem=300 * GIB_KIB
    )
    verdict = run("mem_idle", node)
    assert parts(verdict) == {("MemoryNotFreed", "memory", "WARNING")}
    assert verdict.findings[0].evidence[0] == "files in /dev/shm and other tmpfs (Shmem): 300.0 GiB"
    assert any("in no column: drivers" in line for line in verdict.findings[0].evidence)
    node.globs[JOBS] = ["/sys/fs/cgroup/system.slice/slurmstepd.scope/job_12"]
    assert run("mem_idle", node).status is Status.OK
    node.globs[JOBS] = []
    node.files["/proc/meminfo"] = meminfo(TOTAL, MemAvailable=TOTAL * 81 // 100)
    assert run("mem_idle", node).status is Status.OK


def fragments(run, large, free, failed, before=0, seconds=10):
    node = AlteredNode()
    node.files["/proc/buddyinfo"] = f"Node 0, zone   Normal {free >> 12} 0 0 0 0 0 0 0 {large} 0 0 \n"
    node.files["/proc/vmstat"] = f"compact_fail {before}\n"
    past = run("mem_idle", node).memory
    node.time += seconds
    node.files["/proc/vmstat"] = f"compact_fail {failed}\n"
    return run("mem_idle", node, past=past).codes


def test_fragments(run):
    assert fragments(run, 9, 9 << 30, 10) == {"MemoryFragmented"}
    assert fragments(run, 10, 9 << 30, 10) == set()
    assert fragments(run, 9, 7 << 30, 10) == set()  # the page cache does its work
    assert fragments(run, 9, 9 << 30, 9) == set()  # nobody missed them


@pytest.mark.parametrize(("path", "text", "status"), [
    ("/proc/meminfo", "MemTotal: 12 kB\n", "UNKNOWN"), ("/proc/meminfo", Unobservable("no"), "UNKNOWN"),
    ("/proc/buddyinfo", Unobservable("no"), "UNKNOWN"),
    ("/proc/buddyinfo", "Node 0, zone    DMA32 1 2 3\n", "OK"), ("/proc/buddyinfo", "\0", "OK"),
    ("/proc/vmstat", "nr_free_pages 3\n", "OK"),
])  # fmt: skip
def test_idle_memory_that_cannot_be_seen(run, path, text, status):
    node = AlteredNode()
    node.files[path] = text
    assert run("mem_idle", node).status.name == status


def test_modules_that_a_hypervisor_made_up_may_differ(run):
    """Hyper-V has one of 4 GB below the hole for devices, many of 64 GB, and the rest; none tells a speed."""
    node = AlteredNode()
    text = processors.dimms(32, odd={0: (4, 4800), 31: (32, 4800)})
    node.commands[processors.DMIDECODE] = text
    assert run("mem_dimms", node).codes == {"DimmMixed"}
    node.commands[processors.DMIDECODE] = re.sub(r"Speed: .*", "Speed: Unknown", text)
    verdict = run("mem_dimms", node)
    assert (verdict.findings, verdict.blind) == ((), "")
    assert "hypervisor" in verdict.detail
