"""Processes outside of every Slurm job: whose they are, how old, and when nothing can be proven."""

from __future__ import annotations

import pytest
from clustertools.checks.host_stray import Limits

from clustertools.errors import Unobservable
from clustertools.model import Status
from tests.lab.memory_host import MemoryHost
from tests.lab.parts.services import stat, status

UP = 100_000 * 100  # ticks from the boot to now
V2 = "0::/system.slice/slurmstepd.scope/job_{}/step_0/user/task_0\n"
V1 = "5:memory:/slurm/uid_{0}/job_{1}/step_0\n1:name=systemd:/system.slice/slurmd.service\n"
LOGIN = "0::/user.slice/user-{}.slice/session-3.scope\n"


@pytest.fixture
def node():
    host = MemoryHost()
    host.files |= {
        "/etc/login.defs": "# UID_MIN 5\nUID_MIN\t\t\t 1000\n",
        "/sys/fs/cgroup/system.slice/slurmstepd.scope": "",
    }
    process(host, 1, "systemd", 0, "0::/init.scope\n", ppid=0)
    process(host, 90, "slurmd", 0, "0::/system.slice/slurmd.service\n")
    return host


def process(host, pid, comm, uid, cgroup, *, age=3600, rss=2048, **how):
    host.files[f"/proc/{pid}/stat"] = stat(pid, comm, start=UP - age * 100, **how)
    host.files[f"/proc/{pid}/status"] = status(comm, uid, rss)
    host.files[f"/proc/{pid}/cgroup"] = cgroup


def look(run, host, **how):
    verdict = run("host_stray", host, **how)
    return {(f.code, f.subject.part) for f in verdict.findings}


def test_a_login_of_somebody_without_a_job(run, node):
    process(node, 500, "bash", 1005, LOGIN.format(1005))
    process(node, 501, "python3", 1005, LOGIN.format(1005), ppid=500, ticks=4200)
    process(node, 600, "python3", 1000, V2.format(4812), ppid=90)
    verdict = run("host_stray", node)
    (finding,) = verdict.findings
    assert (finding.code, finding.subject.part, finding.status) == (
        "StrayProcess",
        "uid@1005",
        Status.WARNING,
    )
    assert finding.summary == "user 1005 has no job here, but 2 processes: python3 (pid 501), bash (pid 500)"
    assert finding.evidence[0] == "python3 (pid 501): for 1.0 h, 42 s of processor"
    told = {r.name: r.value for r in verdict.readings}
    assert told == {
        "stray_processes_total": 2, "stray_processes_cpu_seconds": 42,
        "stray_processes_memory_bytes": 4 << 20,
    }  # fmt: skip


@pytest.mark.parametrize(("age", "found"), [(599, False), (600, True)])
def test_how_old(run, node, age, found):
    process(node, 500, "bash", 1005, LOGIN.format(1005), age=age)
    assert bool(look(run, node)) is found


@pytest.mark.parametrize(
    ("uid", "comm", "cgroup"),
    [
        (999, "chronyd", LOGIN.format(999)),
        (65534, "node_exporter", "0::/system.slice/sshd.service\n"),
        (61300, "dynamic", "0::/\n"),
        (1005, "jenkins", "0::/system.slice/jenkins.service\n"),
        (1005, "grafana", "0::/system.slice/docker-0f3a.scope\n"),
        (1005, "java", "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope\n"),
        (1005, "systemd", LOGIN.format(1005)),
        (1005, "(sd-pam)", LOGIN.format(1005)),
        (1005, "bash", LOGIN.format(0)),
        (1005, "python3", V2.format(4812)),
        (1005, "bash", ""),
    ],
)
def test_what_is_nobodys_stray(run, node, uid, comm, cgroup):
    process(node, 500, comm, uid, cgroup)
    assert run("host_stray", node).status is Status.OK


@pytest.mark.parametrize(
    "cgroup",
    ["0::/system.slice/cron.service\n", "0::/system.slice/ssh.service\n", "0::/\n",
     "0::/system.slice/sshd@3-198.18.0.1:22.service\n", "0::/\n1:name=systemd:/user.slice/u/x\n",
     "0::/system.slice/slurmd.service\n"],
)  # fmt: skip
def test_the_doors(run, node, cgroup):
    process(node, 500, "bash", 1005, cgroup)
    assert look(run, node) == {("StrayProcess", "uid@1005")}


def test_a_container_of_a_user_is_the_users(run, node):
    process(node, 500, "node", 100999, "0::/user.slice/user-1005.slice/user@1005.service/x\n")
    assert look(run, node) == {("StrayProcess", "uid@1005")}


def test_allowed_users(run, node):
    process(node, 500, "bash", 1005, LOGIN.format(1005))
    assert not look(run, node, limits=Limits(allowed_users=(1005,)))


def test_a_user_with_a_job_may_log_in(run, node):
    process(node, 600, "python3", 1005, V2.format(4812), age=3000)
    process(node, 500, "tmux: server", 1005, LOGIN.format(1005), age=2000)
    process(node, 501, "bash", 1005, LOGIN.format(1005), ppid=500, age=9000)
    assert not look(run, node)
    process(node, 502, "wandb", 1005, LOGIN.format(1005), age=3001)
    assert look(run, node) == {("OrphanedProcess", "uid@1005")}


def test_version_1_names_the_user_of_a_job(run, node):
    process(node, 600, "slurmstepd", 0, V1.format(1005, 4812))
    process(node, 500, "bash", 1005, LOGIN.format(1005), age=700)
    assert run("host_stray", node).status is Status.OK


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h.files.pop("/proc/90/stat"), "no slurmd"),
        (lambda h: h.files.pop("/sys/fs/cgroup/system.slice/slurmstepd.scope"), "keeps no cgroups"),
        (lambda h: process(h, 600, "slurmstepd", 0, V2.format(4812)), "job 4812 shows no process"),
        (lambda h: (process(h, 600, "slurmstepd", 0, "0::/system.slice/slurmd.service\n", ppid=90),
                    process(h, 601, "sh", 1006, "0::/system.slice/slurmd.service\n", ppid=600),
                    process(h, 602, "a.out", 1006, "0::/system.slice/slurmd.service\n", ppid=601)),
         "in no job's cgroup"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_proven(run, node, change, reason):
    process(node, 500, "bash", 1005, LOGIN.format(1005))
    change(node)
    verdict = run("host_stray", node)
    assert (verdict.status, reason in verdict.detail) == (Status.SKIPPED, True)


def test_what_may_not_be_read_is_unknown(run, node):
    process(node, 500, "bash", 1005, LOGIN.format(1005))
    node.files["/proc/500/status"] = Unobservable("denied")
    assert run("host_stray", node).status is Status.UNKNOWN


@pytest.mark.parametrize("text", ["", "garbage\0", "Uid:\tx\n", "Uid:\t" + "9" * 5000 + "\t\n"])
def test_ugly_files(run, node, text):
    process(node, 500, "bash\n)(", 1005, LOGIN.format(1005))
    node.files["/proc/500/status"] = text
    node.files["/etc/login.defs"] = text
    assert run("host_stray", node).status is Status.OK
    process(node, 500, "b\x1b[31m\n)(", 1005, "0::/" + "x" * 100000 + "\n0::/user.slice/" + text)
    assert run("host_stray", node).status in (Status.OK, Status.WARNING)


def test_a_process_that_ends_in_between(run, node):
    process(node, 500, "bash", 1005, LOGIN.format(1005))
    del node.files["/proc/500/cgroup"]
    assert run("host_stray", node).status is Status.OK


def test_without_login_defs_the_default_holds(run, node):
    del node.files["/etc/login.defs"]
    process(node, 500, "bash", 1000, LOGIN.format(1000))
    process(node, 501, "bash", 999, LOGIN.format(999))
    assert look(run, node) == {("StrayProcess", "uid@1000")}
