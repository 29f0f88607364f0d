"""The virtual nodes are what the preflight's tests take them for: each fault does what it says, and ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.netlab import NetLab, needs_netlab
from tests.lab.slurm import needs_slurm

pytestmark = [pytest.mark.slow, pytest.mark.root, needs_netlab]

RECEIVER = """
import socket
listener = socket.create_server(("", 7007))
print("ready", flush=True)
peer = listener.accept()[0]
peer.settimeout(4)
while peer.recv(1 << 20): pass
peer.sendall(b"!")
"""
SENDER = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 7007), 4)
peer.settimeout(4)
began = time.monotonic()
peer.sendall(b"x" * int(sys.argv[2])); peer.shutdown(socket.SHUT_WR)
assert peer.recv(1) == b"!"
print(int(sys.argv[2]) * 8 / (time.monotonic() - began))
"""
MEGABIT = 1e6


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory):
    with NetLab(tmp_path_factory.mktemp("netlab"), nodes=4, leaves=2) as made:
        yield made


def megabits(lab: NetLab, a: str, b: str, size: int = 1 << 20) -> float:
    """What one stream from `a` to `b` carries over the data network; 0 when it does not arrive."""
    receiver = lab.popen(b, sys.executable, "-c", RECEIVER)
    with receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        sent = lab.run(a, sys.executable, "-c", SENDER, lab.address(b, "eth1"), str(size))
        receiver.kill()
    return float(sent.stdout) / MEGABIT if sent.returncode == 0 else 0.0


def ssh(lab: NetLab, node: str, *argv: str, timeout: int = 2) -> subprocess.CompletedProcess[str]:
    return lab.head("ssh", "-o", f"ConnectTimeout={timeout}", node, *(argv or ("hostname",)))


def test_nodes_are_apart_and_reached_by_name(lab: NetLab):
    for node in lab.nodes:
        assert ssh(lab, node).stdout == f"{node}\n"
    said = ssh(lab, "n2", "echo $HOME; ls -d /run/*sh*; cat /proc/1/comm").stdout.split()
    assert said == [str(lab.folder / "n2" / "home"), "/run/sshd", "tini"]
    assert "10.78." not in lab.head("ip", "-br", "addr").stdout  # the head is not on the data network
    assert lab.head("hostname").stdout == "head\n"


def test_a_slow_link_a_slow_path_and_a_slow_leaf(lab: NetLab):
    assert 120 < megabits(lab, "n1", "n3") < 240
    with lab.slow("n2", 20e6):
        assert 10 < megabits(lab, "n1", "n2") < 25 > megabits(lab, "n2", "n4")
        assert megabits(lab, "n1", "n3") > 100
    with lab.slow("n2", 20e6, "receive"):
        assert megabits(lab, "n1", "n2") < 25 < 100 < megabits(lab, "n2", "n1")
    with lab.slow_path("n2", "n3", 20e6):
        assert megabits(lab, "n3", "n2") < 25 > megabits(lab, "n2", "n3")
        assert megabits(lab, "n1", "n2") > 100 < megabits(lab, "n4", "n3")
    with lab.slow_uplink(1, 20e6):
        assert megabits(lab, "n1", "n3") < 25 > megabits(lab, "n4", "n2")
        assert megabits(lab, "n1", "n2") > 100 < megabits(lab, "n3", "n4")
    assert megabits(lab, "n2", "n3") > 100


def test_a_cut_link_takes_its_network_and_not_the_other(lab: NetLab):
    with lab.cut("n3"):
        assert megabits(lab, "n1", "n3", 1) == 0.0
        assert ssh(lab, "n3").stdout == "n3\n"
    with lab.mute("n3"):
        assert megabits(lab, "n3", "n1", 1) == 0.0
        assert "eth1" in lab.run("n3", "ip", "-br", "link", "show", "up").stdout
    with lab.cut_path("n1", "n3"):
        assert megabits(lab, "n1", "n3", 1) == 0.0
        assert megabits(lab, "n1", "n2", 1) > 0 < megabits(lab, "n2", "n3", 1)
    with lab.cut("n3", "eth0"):
        assert ssh(lab, "n3").returncode == 255
        assert megabits(lab, "n1", "n3", 1) > 0
    assert ssh(lab, "n3").stdout == "n3\n"
    assert megabits(lab, "n1", "n3", 1) > 0


def test_an_ssh_that_hangs_refuses_or_is_another(lab: NetLab):
    with lab.hang_sshd("n1"):
        assert "timed out" in ssh(lab, "n1").stderr
    with lab.refuse_key("n1"):
        assert "Permission denied" in ssh(lab, "n1").stderr
    with lab.change_host_key("n1"):
        assert "Host key verification failed" in ssh(lab, "n1").stderr
        assert ssh(lab, "n2").stdout == "n2\n"
    assert ssh(lab, "n1").stdout == "n1\n"


def test_a_node_that_is_frozen_lacks_torch_or_has_no_disk(lab: NetLab):
    with lab.freeze("n2"):
        assert ssh(lab, "n2").returncode == 255
    assert ssh(lab, "n2").returncode == 0
    find = ("-c", "import importlib.util as u; print(u.find_spec('torch') is not None)")
    pytest.importorskip("torch")
    with lab.without_torch("n2"):
        assert [lab.run(node, sys.executable, *find).stdout for node in ("n2", "n3")] == ["False\n", "True\n"]
    assert lab.run("n2", sys.executable, *find).stdout == "True\n"

    write = ("dd", "if=/dev/zero", f"of={lab.scratch}/file", "bs=4k", "count=1")
    with lab.full_disk("n2"):
        assert "No space left" in lab.run("n2", *write).stderr
        assert lab.run("n3", *write).returncode == 0
    with lab.read_only_disk("n2"):
        assert "Read-only" in lab.run("n2", *write).stderr
    assert lab.run("n2", *write).returncode == 0


@needs_slurm
def test_a_slurm_of_the_same_nodes(lab: NetLab, tmp_path: Path):
    with lab.slurm(tmp_path / "slurm") as slurm:
        said = lab.head("srun", "-N4", "-l", "ip", "-br", "addr", env={"SLURM_CONF": str(slurm.conf)}).stdout
        assert all(lab.address(node, "eth1") in said for node in lab.nodes)
        assert slurm.batch("#!/bin/sh\nhostname; srun hostname | sort", "-N2") == "n1\nn1\nn2\n"
        with lab.cut("n4", "eth0"):
            failed = slurm.run("srun", "-N4", "hostname", check=False)
            assert "n4" not in failed
        slurm.wait(lambda: set(slurm.states().values()) == {"idle"}, "n4 is back", 60)


def test_a_killed_node_is_gone_and_a_killed_test_run_leaves_nothing(tmp_path: Path):
    program = (
        "import sys, pathlib, signal, os; from tests.lab.netlab import NetLab\n"
        "lab = NetLab(pathlib.Path(sys.argv[1]), nodes=2).__enter__()\n"
        "lab.popen('n2', 'tail', '-f', sys.argv[1] + '/hosts')\n"
        "lab.kill('n1')\n"
        "print(*(lab.head('ssh', n, 'true').returncode for n in ('n1', 'n2')), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout == "255 0\n", done.stderr
    until = time.monotonic() + 10
    while left := _commands_with(str(tmp_path)):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def _commands_with(word: str) -> list[str]:
    """The command lines of all processes on this machine but ours; one that ends meanwhile has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.parent.name != str(os.getpid()) and word in (line := path.read_text(errors="replace")):
                found.append(line)
    return found
