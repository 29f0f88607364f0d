"""A node in Slurm's eyes, the controllers, and every form of scontrol's lines."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.model import Status
from clustertools.sources import slurm
from tests.lab.memory_host import MemoryHost
from tests.lab.parts import services as room
from tests.lab.whole_node import CPU, DGX_H100


def node(text):
    (found,) = slurm.parse_nodes(text)
    return found


def test_a_reason_that_quotes_keys():
    found = node(
        room.node_line(
            DGX_H100, "IDLE+DRAIN", "was State=DOWN Foo=bar gpu 3 xid 79 [root@2026-11-21T13:37:09]"
        )
    )
    assert (found.flags, found.reason_by) == ({"IDLE", "DRAIN"}, "root")
    assert (found.reason, found.gpus) == ("was State=DOWN Foo=bar gpu 3 xid 79", 8)


# 20.11 and 24.05: without CPUEfctv and with it, with ResumeAfterTime; 24.05 as told in an issue of
# awslabs/awsome-distributed-ai (195), put on one line and renamed
OTHER_VERSIONS = {
    "20.11": "NodeName=n1 Arch=x86_64 CoresPerSocket=64 CPUAlloc=0 CPUTot=128 CPULoad=0.01 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:a100:8(S:0-7),nic:4 NodeAddr=n1 "
    "NodeHostName=n1 Version=20.11.9 OS=Linux 4.18.0 #1 SMP Tue  RealMemory=1000000 AllocMem=0 "
    "FreeMem=990000 Sockets=2 Boards=1 State=IDLE*+DRAIN ThreadsPerCore=1 TmpDisk=0 Weight=1 "
    "Owner=N/A MCS_label=N/A Partitions=gpu  BootTime=2024-01-01T00:00:00 SlurmdStartTime=None "
    "CfgTRES=cpu=128,mem=1000000M,billing=128 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0"
    " ExtSensorsJoules=n/s ExtSensorsWatts=0 ExtSensorsTemp=n/s Reason=not responding "
    "[slurm@2024-01-02T00:00:00] Comment=(null)",
    "24.05": "NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=0.99 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:nvidia-rtx-3090:1 NodeAddr=n1 "
    "NodeHostName=n1 Version=24.05.0-0rc1 OS=Linux 5.10.0-153 #1 SMP Wed Jun 28 23:04:48 CST "
    "2023  RealMemory=1 AllocMem=0 FreeMem=340 Sockets=8 Boards=1 State=IDLE+DRAIN "
    "ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=compute100  "
    "BootTime=2024-11-18T20:46:45 SlurmdStartTime=2024-12-19T11:41:49 "
    "LastBusyTime=2024-12-19T11:41:49 ResumeAfterTime=None "
    "CfgTRES=cpu=8,mem=1M,billing=8,gres/gpu=1 AllocTRES= CurrentWatts=0 AveWatts=0  "
    "Reason=gres/gpu count reported lower than configured (0 < 1) [slurm@2024-12-19T11:03:34]",
    "25.05": "NodeName=n1 CoresPerSocket=1  Gres=gpu:1 State=IDLE+CLOUD+POWERED_DOWN+NOT_RESPONDING "
    'Comment=a b Extra={"x": "y=z"} InstanceId=i-0 InstanceType=p5 Topology=a:b NewKey=what',
}  # fmt: skip


def test_lines_of_other_versions():
    old, new, next_ = (node(line) for line in OTHER_VERSIONS.values())
    assert (old.flags, old.gpus) == ({"IDLE", "DRAIN", "NOT_RESPONDING"}, 8)
    assert old.gres == (("gpu:a100", 8), ("nic", 4))
    assert (old.reason, old.reason_by) == ("not responding", "slurm")
    assert (new.gpus, new.version) == (1, "24.05.0-0rc1")
    assert new.reason == "gres/gpu count reported lower than configured (0 < 1)"
    assert not next_.is_bad
    assert new.is_bad


@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1"))))
def test_any_text_is_answered_or_refused(text):
    for form in (text, "NodeName=" + text, room.node_line(CPU)[: len(text)] + text):
        for parse in (lambda t: list(slurm.parse_nodes(t)), slurm.parse_ping):
            with contextlib.suppress(Unparsable):
                parse(form)


@pytest.mark.slow
def test_a_line_of_ten_megabytes():
    assert node(room.node_line(CPU, reason="a=b " * 2_500_000)).name == "{node}"


def test_ping():
    both = slurm.parse_ping("Slurmctld(primary/backup) at h1/h2 are UP/DOWN\n")
    assert [(c.role, c.host, c.is_up) for c in both] == [("primary", "h1", True), ("backup", "h2", False)]
    with pytest.raises(Unparsable):
        slurm.parse_ping("slurmctld: what\n")


# ---- the checks ------------------------------------------------------------------------------------------


@pytest.fixture
def host():
    found = MemoryHost("gpu-001")
    found.files["/proc/9/comm"] = "slurmd\n"
    return found


ASK = (*room.NODE, "gpu-001")


@pytest.mark.parametrize(
    ("state", "reason", "code", "note"),
    [
        ("IDLE", "", "", ""),
        ("MIXED+PLANNED", "", "", ""),
        ("ALLOCATED+DRAIN", "maintenance [alice@x]", "", "drained in Slurm: maintenance (by alice)"),
        ("IDLE+MAINTENANCE+RESERVED", "", "", ""),
        ("DOWN", "test [root@x]", "SlurmNodeDown", ""),
        ("IDLE*", "", "SlurmNodeDown", ""),
        ("IDLE+FAIL", "", "SlurmNodeDown", ""),
        ("UNKNOWN+DRAIN+INVALID_REG", "gres/gpu count reported lower than configured (1 < 2) [x@y]",
         "SlurmNodeInvalid", ""),
        ("IDLE+INVALID_REG", "something new [slurm@x]", "SlurmNodeInvalid", ""),
        ("IDLE+DRAIN", "Low RealMemory (reported:1 < 100.00% of configured:2) [slurm@x]",
         "SlurmNodeInvalid", ""),
    ],
)  # fmt: skip
def test_states(run, host, state, reason, code, note):
    host.commands[ASK] = room.node_line(DGX_H100, state, reason)
    verdict = run("slurm_node", host)
    assert (verdict.codes, verdict.detail, verdict.blind) == ({code} - {""}, note, "")
    assert verdict.status is (Status.WARNING if code else Status.OK)


def test_a_node_that_slurm_does_not_know(run, host):
    host.commands[ASK] = "Node gpu-001 not found\n"
    assert run("slurm_node", host).codes == {"SlurmNodeUnknown"}


@pytest.mark.parametrize(
    "answer", [Unobservable("it hung"), "", "slurm_load_node error: x\n", "NodeName=a State=\0"]
)
def test_a_silent_controller_is_unknown(run, host, answer):
    host.commands[ASK] = answer
    assert run("slurm_node", host).status is Status.UNKNOWN


def test_without_slurm(run, host):
    host.commands[ASK] = Absent("scontrol is not installed")
    assert run("slurm_node", host).status is Status.SKIPPED
    assert run("slurm_controller", host).status is Status.SKIPPED
    host.commands[("scontrol", "ping")] = "Slurmctld(primary) at head-1 is DOWN\n"
    assert run("slurm_controller", host).detail == "a compute node; the head node asks for all"
    host.commands.clear()
    host.files = {"/proc/1/comm": "systemd\n"}
    assert run("slurm_node", host).status is Status.SKIPPED
    assert run("slurm_controller", host).status is Status.SKIPPED
    host.files = {}
    assert run("slurm_node", host).status is Status.UNKNOWN


def test_controllers(run):
    both = run("slurm_controller", "slurm-head-bad-nodes")
    assert {(f.code, f.subject.part, f.status.name) for f in both.findings} == {
        ("SlurmControllerDown", "slurmctld@head-2", "WARNING"), ("SlurmNodesBad", "slurm", "CRITICAL"),
    }  # fmt: skip
    assert both.findings[1].evidence == ("3 x Not responding", "3 x gpu 3 xid 79")
    down = run("slurm_controller", "slurm-head-down")
    assert (down.codes, down.findings[0].status.name) == ({"SlurmControllerDown"}, "CRITICAL")
    assert "the state of the nodes is not known" in down.blind


@pytest.mark.parametrize(
    ("bad", "status"), [(15, Status.OK), (16, Status.WARNING), (25, Status.WARNING), (26, Status.CRITICAL)]
)
def test_the_share_of_bad_nodes(run, bad, status):
    head = MemoryHost("head-1")
    head.files["/proc/9/comm"] = "slurmctld\n"
    head.commands[("scontrol", "ping")] = "Slurmctld(primary) at head-1 is UP\n"
    states = ["DOWN*"] * bad + ["IDLE+POWERED_DOWN"] * 10 + ["ALLOCATED"] * (90 - bad)
    head.commands[room.NODE] = "".join(room.node_line(CPU, s, name=f"n{i}") for i, s in enumerate(states))
    assert run("slurm_controller", head).status is status


def test_pids_of_steps():
    host = MemoryHost()
    host.commands[("scontrol", "listpids")] = (
        "PID      JOBID    STEPID   LOCALID GLOBALID\n4711 1 batch 0 0\n-1 1 0 - -\n"
    )
    assert slurm.step_pids(host) == {4711, -1}
    host.commands[("scontrol", "listpids")] = "No job steps exist on this node.\n"
    assert slurm.step_pids(host) == set()
