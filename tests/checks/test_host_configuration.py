"""Facts against expectations; what cannot be found out is no difference."""

from __future__ import annotations

import pytest

from clustertools.errors import Unobservable
from clustertools.model import Status
from tests.lab.memory_host import MemoryHost

DPKG = ("dpkg-query", "-W", "-f=${Package}\\t${Version}\\n", "docker-ce", "slurmd")


@pytest.fixture
def node():
    host = MemoryHost()
    host.files |= {
        "/proc/sys/kernel/osrelease": "5.15.0-113-generic\n",
        "/etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.4 LTS"\nID=ubuntu\nID_LIKE=debian\n',
        "/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
        "/proc/sys/net/foo": "1\n",
    }
    return host


@pytest.mark.parametrize(
    ("expect", "parts"),
    [
        ({"kernel": "5.15.0-113-generic"}, set()),
        ({"kernel": "5.15.0-*"}, set()),
        ({"kernel": "5.15.0-105-generic"}, {"kernel"}),
        ({"os_release": "Ubuntu 22.04*"}, set()),
        ({"sysctls": {"net.ipv4.tcp_rmem": "4096 131072 6291456", "net.foo": 1}}, set()),
        ({"sysctls": {"net.ipv4.tcp_rmem": "4096 1 1", "net.foo": 2}},
         {"sysctl.net.ipv4.tcp_rmem", "sysctl.net.foo"}),
        ({"facts": {"iommu": "on"}}, {"iommu"}),
    ],
)  # fmt: skip
def test_expectations(run, node, expect, parts):
    verdict = run("host_configuration", node, expect=expect)
    assert {f.subject.part for f in verdict.findings} == parts
    assert verdict.status is (Status.WARNING if parts else Status.OK)


def test_packages(run, node):
    node.commands[DPKG] = "slurmd\t23.11.4-1.2ubuntu5\n"
    found = run("host_configuration", node, expect={"packages": {"slurmd": "23.11.*", "docker-ce": "5:*"}})
    assert {(f.subject.part, "not installed" in f.summary) for f in found.findings} == {
        ("package.docker-ce", True)
    }


@pytest.mark.parametrize(
    "expect", [{"facts": {"bios.version": "1"}}, {"sysctls": {"../etc/shadow": 1}}, {"packages": {"x": "1"}}]
)
def test_what_cannot_be_found_out_is_unknown(run, node, expect):
    assert run("host_configuration", node, expect=expect).status is Status.UNKNOWN


def test_nothing_expected(run, node):
    assert run("host_configuration", node).status is Status.SKIPPED
    node.files["/proc/sys/kernel/osrelease"] = Unobservable("denied")
    assert run("host_configuration", node).status is Status.UNKNOWN
