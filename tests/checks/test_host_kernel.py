"""What the kernel wrote about its host becomes findings that end with time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.host_kernel import RULES, Limits, host_kernel

from clustertools.model import Finding, Remedy, Status, Verdict
from tests.checks.kernel_node import BOOT, Node

Run = Callable[..., Verdict]


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, [f.code for f in verdict.findings]
    return verdict.findings[0]


def test_memory_ran_out_and_a_task_hung(run: Run) -> None:
    verdict = run("host_kernel", host="host-oom")
    assert verdict.codes == {"HostOomKill", "HostHungTask"}  # the NFS server is back, a segfault is no event
    killed = next(f for f in verdict.findings if f.code == "HostOomKill")
    assert "python3 of job 4812" in killed.summary  # by the path of its cgroup
    assert "times" not in killed.summary  # two lines, one kill
    assert len(killed.evidence) == 2


@pytest.mark.parametrize("host", ["h100-xid79", "h100-xid-storm", "h100-xid48-45"])
def test_gpu_lines_are_not_the_hosts(run: Run, host: str) -> None:
    assert run("host_kernel", host=host).status is Status.OK


@pytest.mark.parametrize(
    ("text", "code", "status", "part"),
    [
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1]", "HostLockup", Status.CRITICAL, ""),
        ("BUG: kernel NULL pointer dereference, address: 08", "HostKernelOops", Status.CRITICAL, ""),
    ],
)  # fmt: skip
def test_an_event(text: str, code: str, status: Status, part: str) -> None:
    finding = only(Node().say(text).look(host_kernel))
    assert (finding.code, finding.status, finding.subject.part) == (code, status, part)
    assert finding.evidence == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "mce: [Hardware Error]: Machine check events logged",
        "EDAC MC0: 2 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
        "NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.",
        "EXT4-fs error (device sda1): x: inode #2",
        "mlx5_core 0000:5e:00.0: poll_health:739:(pid 0): device's health compromised - reached miss count",
    ],
)
def test_what_others_watch_is_left_to_them(text: str) -> None:
    assert Node().say(text).look(host_kernel).status is Status.OK


def test_an_event_stands_for_its_time_and_ends() -> None:
    node = Node().say("Out of memory: Killed process 1 (python) total-vm:1kB")
    assert only(node.look(host_kernel)).time == BOOT + 101
    node.seconds += 3000
    assert only(node.look(host_kernel)).remedy is Remedy.RESTART_APP
    node.seconds += 700
    assert node.look(host_kernel).status is Status.OK
    assert node.look(host_kernel, Limits(oom_seconds=86400), remember=False).codes == {"HostOomKill"}


def test_a_broken_kernel_stands_until_the_reboot() -> None:
    node = Node().say("Oops: 0000 [#1] PREEMPT SMP NOPTI")
    node.look(host_kernel)
    node.seconds += 10 * 86400
    assert only(node.look(host_kernel)).clears == "reboot"
    assert node.reboot().say("Linux version").look(host_kernel).status is Status.OK


def test_many_kills_are_critical() -> None:
    node = Node()
    for pid in range(1, 21):
        node.say(f"Memory cgroup out of memory: Killed process {pid} (python) total-vm:1kB", 0.1)
    finding = only(node.look(host_kernel))
    assert finding.status is Status.CRITICAL
    assert "20 times" in finding.summary
    assert len(finding.evidence) <= Limits().evidence_lines


def test_lost_messages_are_told() -> None:
    node = Node().say("a")
    node.look(host_kernel)
    assert only(node.lose(3).say("b").look(host_kernel)).code == "HostLogGap"


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    node = Node()
    node.ring = None
    assert node.look(host_kernel).status is Status.UNKNOWN


def test_a_memory_that_makes_no_sense_means_a_first_look() -> None:
    node = Node().say("Oops: 0000 [#1] SMP")
    node.memory = {"boot_id": "boot-1", "cursor": "kmsg:boot-1:999999999:99", "standing": [{"kind": 3}]}
    assert only(node.look(host_kernel)).code == "HostKernelOops"


def test_each_kind_names_a_limit_that_exists() -> None:
    for rule in RULES.values():
        assert rule.limit == "reboot" or getattr(Limits(), rule.limit) > 0
        assert rule.code in host_kernel.codes
