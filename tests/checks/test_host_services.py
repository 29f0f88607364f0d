"""systemd's units, a node without systemd, limits, modules, the IP network, runtimes, the uptime."""

from __future__ import annotations

import pytest

from clustertools.errors import Absent, Unobservable
from clustertools.host import Completed
from clustertools.model import Status
from tests.lab.memory_host import MemoryHost
from tests.lab.parts import services as room
from tests.lab.whole_node import DGX_H100

ASK = (*room.SHOW, *room.UNITS)


def codes(verdict):
    return {(f.code, f.subject.part, f.status.name) for f in verdict.findings}


def test_a_node_with_much_wrong(run):
    expect = room.expect(DGX_H100)
    assert codes(run("host_services", "host-services-down", expect=expect)) == {
        ("ServiceDown", "unit@munge.service", "CRITICAL"),
        ("UnitFailed", "unit@sssd.service", "WARNING"),
    }
    assert codes(run("host_limits", "host-services-down", expect=expect)) == {
        ("MemlockLow", "slurmd", "CRITICAL"), ("NofileLow", "slurmd", "WARNING"),
    }  # fmt: skip
    assert codes(run("host_network", "host-services-down", expect=expect)) == {
        ("ConntrackFull", "conntrack", "WARNING"), ("DnsSilent", "dns", "WARNING"),
        ("HostUnreachable", "tcp@198.18.0.9:2049", "WARNING"),
    }  # fmt: skip
    assert codes(run("host_containers", "host-services-down")) == {
        ("ContainerRuntimeSilent", "containerd", "WARNING")
    }
    assert codes(run("host_modules", "host-services-down", expect=expect)) == {
        ("ModuleMissing", "module@mlx5_core", "CRITICAL")
    }
    assert codes(run("host_modules", "host-kernel-new-no-driver", expect=expect)) == {
        ("DriverNotForKernel", "module@nvidia", "CRITICAL")
    }


# ---- services --------------------------------------------------------------------------------------------


@pytest.fixture
def node():
    host = MemoryHost()
    host.files["/proc/1/comm"] = "systemd\n"
    return host


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (room.unit("munge.service"), set()),
        (room.unit("munge.service", "active", "exited"), set()),
        (room.unit("munge.service", "reloading", "reload"), set()),
        (room.unit("munge.service", "activating", "auto-restart"), {"ServiceDown"}),
        (room.unit("munge.service", "inactive", "dead"), {"ServiceDown"}),
        (room.unit("munge.service", "inactive", "dead", LoadState="not-found"), {"ServiceDown"}),
    ],
)
def test_an_expected_service(run, node, block, found):
    node.commands[(*room.SHOW, "munge.service", *room.UNITS)] = block
    assert run("host_services", node, expect={"services": ["munge"]}).codes == found


def test_a_restart_loop(run, node):
    def look(count, past):
        node.commands[ASK] = room.unit("a.service", NRestarts=count)
        return run("host_services", node, past=past)

    first = look(7, {})
    assert first.status is Status.OK
    node.time += 600
    assert look(11, first.memory).status is Status.OK
    again = look(12, first.memory)
    assert codes(again) == {("ServiceRestarting", "unit@a.service", "WARNING")}
    node.time += 1300
    later = look(12, look(12, again.memory).memory)
    assert later.status is Status.OK
    node.boot_id = "boot-2"
    assert look(99, first.memory).status is Status.OK


@pytest.mark.parametrize("told", [Absent("no"), "System has not been booted with systemd as init system"])
def test_without_systemd(run, node, told):
    if isinstance(told, str):
        node.run = lambda *argv, **how: Completed(argv, 1, "", told)
    assert run("host_services", node).status is Status.SKIPPED
    assert run("host_services", node, expect={"services": ["munge"]}).codes == {"ServiceDown"}
    node.files["/proc/9/comm"] = "munge\n"
    assert run("host_services", node, expect={"services": ["munge"]}).status is Status.OK


@pytest.mark.parametrize("text", ["garbage", "Id=a\n", "\0=\0", "Id=a.service\nLoadState=loaded\nwhat\n"])
def test_another_form_of_systemctl_is_unknown(run, node, text):
    node.commands[ASK] = text
    assert run("host_services", node).status is Status.UNKNOWN


# ---- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memlock", "expect", "found"),
    [
        ("unlimited", {}, set()),
        (str(16 << 30), {}, set()),
        (str((16 << 30) - 1), {}, {("MemlockLow", "slurmd", "WARNING")}),
        (str(16 << 30), {"memlock_bytes": "unlimited"}, {("MemlockLow", "slurmd", "CRITICAL")}),
        ("65536", {"memlock_bytes": 65536}, set()),
    ],
)
def test_locked_memory(run, node, memlock, expect, found):
    node.files |= {"/proc/9/comm": "slurmd\n", "/proc/9/limits": room.limits(memlock)}
    node.files["/proc/modules"] = "ib_uverbs 1 0 - Live 0x0\n"
    assert codes(run("host_limits", node, expect=expect)) == found
    if not expect:
        node.files["/proc/modules"] = "nvme 1 0 - Live 0x0\n"
        assert run("host_limits", node).status is Status.OK


@pytest.mark.parametrize("adapters", [0, 1])
def test_locked_memory_where_the_kernel_has_no_modules(run, node, adapters):
    node.files |= {"/proc/9/comm": "slurmd\n", "/proc/9/limits": room.limits("65536")}
    node.files["/proc/modules"] = Absent("/proc/modules: no such file")
    node.files |= {"/sys/class/infiniband_verbs/uverbs0/dev": "231:192\n"} if adapters else {}
    verdict = run("host_limits", node)
    assert (verdict.status, verdict.codes) == (
        (Status.WARNING, {"MemlockLow"}) if adapters else (Status.OK, set())
    )


def test_limits_without_a_starter_or_in_another_form(run, node):
    assert run("host_limits", node).status is Status.SKIPPED
    node.files |= {"/proc/9/comm": "containerd\n", "/proc/9/limits": room.limits("8388608", 1024)}
    assert run("host_limits", node).status is Status.OK
    assert run("host_limits", node, expect={"nofile": 2048}).codes == {"NofileLow"}
    for text in ("", "Max open files 1 2 files", Unobservable("denied")):
        node.files["/proc/9/limits"] = text
        assert run("host_limits", node).status is Status.UNKNOWN


# ---- modules ---------------------------------------------------------------------------------------------


def test_modules_built_in_or_with_another_dash(run, node):
    node.files |= {
        "/proc/modules": "nvidia_peermem 1 0 - Live 0x0\n", "/proc/sys/kernel/osrelease": "6.1.0\n",
        "/proc/sys/kernel/tainted": "512\n", "/lib/modules/6.1.0/modules.builtin": "kernel/fs/fuse/fuse.ko\n",
    }  # fmt: skip
    verdict = run("host_modules", node, expect={"modules": ["nvidia-peermem", "fuse"]})
    assert (verdict.status, verdict.detail) == (Status.OK, "the kernel is tainted: a warning of the kernel")
    assert run("host_modules", node, expect={"modules": ["lnet"]}).codes == {"ModuleMissing"}


GPU = "/sys/bus/pci/devices/0000:3b:00.0"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"/lib/modules/6.1.0/updates/dkms/nvidia.ko.zst": ""}, set()),
        ({"/lib/modules/5.9.0/updates/dkms/nvidia.ko.zst": ""}, {"DriverNotForKernel"}),
        ({"/lib/modules/5.9.0/kernel/nvidia-570/nvidia.ko": ""}, {"DriverNotForKernel"}),
        ({}, set()),
        ({"/lib/modules/5.9.0/extra/nvidia.ko": "", "/sys/bus/pci/drivers/vfio-pci/0000:3b:00.0": ""}, set()),
        ({"/lib/modules/5.9.0/extra/nvidia.ko": "", "/proc/modules": "nvidia 1 0 - Live 0x0\n"}, set()),
    ],
)
def test_a_driver_for_another_kernel(run, node, files, found):
    node.files |= {
        "/proc/modules": "", "/proc/sys/kernel/osrelease": "6.1.0\n", "/proc/sys/kernel/tainted": "0\n",
        f"{GPU}/vendor": "0x10de\n", f"{GPU}/class": "0x030200\n", **files,
    }  # fmt: skip
    assert run("host_modules", node).codes == found


# ---- network ---------------------------------------------------------------------------------------------

ROUTES = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
DEFAULT = "eno1\t00000000\t010012C6\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"


@pytest.fixture
def wired(node):
    node.files |= {"/proc/net/route": ROUTES + DEFAULT, "/etc/resolv.conf": "nameserver 198.18.0.53\n# x\n"}
    node.commands[(*room.PROBE, "3", "dns:198.18.0.53")] = room.answered("dns:198.18.0.53")
    return node


def test_a_lost_default_route(run, wired):
    first = run("host_network", wired)
    assert first.status is Status.OK
    wired.files["/proc/net/route"] = ROUTES
    assert run("host_network", wired).status is Status.OK
    second = run("host_network", wired, past=first.memory)
    assert second.codes == {"DefaultRouteLost"}
    assert run("host_network", wired, past=second.memory).codes == {"DefaultRouteLost"}
    wired.boot_id = "boot-2"
    assert run("host_network", wired, past=first.memory).status is Status.OK


def test_one_of_two_name_servers(run, wired):
    wired.files["/etc/resolv.conf"] = "nameserver 198.18.0.53\nnameserver fe80::1%eno1\noptions edns0\n"
    asked = ("dns:198.18.0.53", "dns:fe80::1")
    wired.commands[(*room.PROBE, "3", *asked)] = room.answered(*asked, **{asked[0]: "no answer"})
    verdict = run("host_network", wired)
    assert (verdict.status, "198.18.0.53 does not answer" in verdict.detail) == (Status.OK, True)


def test_a_node_without_name_servers_and_routes(run, node):
    node.files["/proc/net/route"] = ROUTES
    assert run("host_network", node).status is Status.OK


@pytest.mark.parametrize(("count", "found"), [("90", set()), ("91", {"ConntrackFull"})])
def test_conntrack(run, wired, count, found):
    for name, text in (("count", count), ("max", "100")):
        wired.files[f"/proc/sys/net/netfilter/nf_conntrack_{name}"] = text
    assert run("host_network", wired).codes == found


@pytest.mark.parametrize("answer", ["", "{}", '{"what": 1}', "x\n", Unobservable("it hung")])
def test_a_probe_that_fails_is_unknown(run, wired, answer):
    wired.commands[(*room.PROBE, "3", "dns:198.18.0.53")] = answer
    assert run("host_network", wired).status is Status.UNKNOWN


# ---- containers ------------------------------------------------------------------------------------------


def test_the_kubelet_and_docker(run, node):
    node.files |= {"/proc/8/comm": "dockerd\n", "/proc/9/comm": "kubelet\n"}
    asked = ("docker:/run/docker.sock", "http:127.0.0.1:10248/healthz")
    ask = (*room.PROBE, "5", *asked)
    node.commands[ask] = room.answered(*asked)
    assert run("host_containers", node).status is Status.OK
    node.commands[ask] = room.answered(*asked, **{asked[1]: "it said b'HTTP/1.0 500'"})
    assert codes(run("host_containers", node)) == {("ContainerRuntimeSilent", "kubelet", "WARNING")}
    node.commands[ask] = room.answered(*asked, **{asked[1]: "Connection refused", asked[0]: "No such file"})
    assert run("host_containers", node).status is Status.OK
    node.commands[ask] = room.answered(*asked).replace("false", "true", 1)
    assert run("host_containers", node).status is Status.UNKNOWN


def test_no_runtime(run, node):
    assert run("host_containers", node).status is Status.SKIPPED
    node.files.clear()
    assert run("host_containers", node).status is Status.UNKNOWN


# ---- uptime ----------------------------------------------------------------------------------------------


def test_a_reboot_loop(run, node):
    past = {}
    for number in range(4):
        node.boot_id, node.files["/proc/uptime"] = f"boot-{number}", "60.00 1.00\n"
        for _ in range(2):
            verdict = run("host_uptime", node, past=past)
        past, node.time = verdict.memory, node.time + 1800
        assert verdict.codes == (set() if number < 3 else {"RebootLoop"})
    assert verdict.detail == "booted 1 m ago"
    node.time += 21600
    node.files["/proc/uptime"] = "23400.00 1.00\n"
    assert run("host_uptime", node, past=past).status is Status.OK


@pytest.mark.parametrize("text", ["", "x", "1 2", "-1.0 2.0", Unobservable("no")])
def test_an_unknown_uptime(run, node, text):
    node.files["/proc/uptime"] = text
    assert run("host_uptime", node).status is Status.UNKNOWN
