"""`facts` on this machine and in memory; `drift` over JSON Lines, with its exit codes."""

from __future__ import annotations

import io
import json

import pytest

from clustertools.cli import main
from clustertools.errors import Unobservable
from clustertools.sources.facts import facts
from tests.lab.memory_host import MemoryHost


@pytest.fixture
def drift(monkeypatch, capsys):
    def compare(lines, *options):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return main(["drift", *options, "-"]), capsys.readouterr()

    return compare


def line(node, **told):
    return {"schema": 1, "kind": "facts", "node": node, "facts": told}


def test_facts_of_this_machine(capsys):
    assert main(["facts", "--json"]) == 0
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert told["kind"] == "facts"
    assert told["facts"]["kernel"]
    assert main(["facts"]) == 0
    assert "kernel " in capsys.readouterr().out


def test_the_odd_nodes(drift):
    lines = [line(f"gpu-{n:03d}", kernel="b" if n in (3, 4) else "a") for n in range(8)]
    code, said = drift(lines)
    assert code == 1
    assert said.out == "kernel: a on 6 nodes\n    b on gpu-[003-004]\n"
    code, said = drift(lines, "--json")
    assert json.loads(said.out)["others"] == {"b": ["gpu-003", "gpu-004"]}
    assert drift(lines, "--ignore", "ker*")[0] == 0


def test_nothing_to_compare_is_unknown(drift):
    assert drift([line("a", kernel="x")])[0] == 3
    assert drift([])[0] == 3
    code, said = drift([line("a", kernel="x"), line("b", kernel="x"), "srun: error\x1b[2J"])
    assert (code, "\x1b" in said.err) == (3, False)


def test_hostile_values(drift):
    code, said = drift([line("a", kernel="\x1b[2Jx"), line("b", kernel=["no"]), line("c", kernel="y\ny")])
    assert (code, "\x1b" in said.out) == (1, False)


def test_facts_are_left_out_when_they_cannot_be_read():
    host = MemoryHost()
    host.files |= {
        "/proc/sys/kernel/osrelease": "6.1.0\n", "/etc/os-release": 'PRETTY_NAME="Debian 12"\nID=debian\n',
        "/sys/class/dmi/id/bios_version": Unobservable("denied"),
        "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=UUID=1-2 ro iommu=pt quiet\n",
        "/sys/class/infiniband/mlx5_0/fw_ver": "28.39.1002\n",
        "/sys/class/infiniband/mlx5_0/board_id": "MT_0000000838\n",
        "/proc/self/mounts": "198.18.0.9:/h /home nfs4 rw,hard,clientaddr=198.18.0.2,vers=4.2 0 0\n",
        "/proc/driver/nvidia/gpus/0000:18:00.0/information":
            "Model: \t\t NVIDIA H100 80GB HBM3\nVideo BIOS: \t 96.00.74.00.01\nGPU Firmware: \t 570.133.20\n",
        "/proc/driver/nvidia/version":
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n",
    }  # fmt: skip
    told = facts(host, environment={"NCCL_DEBUG": "INFO", "SECRET": "x", "WANDB_API_KEY": "y"})
    assert told == {
        "kernel": "6.1.0", "os": "Debian 12", "thp.enabled": "madvise", "iommu": "off",
        "kernel.command_line": "iommu=pt quiet ro", "hca.count": "1",
        "hca.firmware.MT_0000000838": "28.39.1002", "mount./home": "nfs4 hard,rw,vers=4.2",
        "gpu.count": "1", "gpu.model": "NVIDIA H100 80GB HBM3", "gpu.vbios": "96.00.74.00.01",
        "gpu.gsp": "570.133.20", "driver.nvidia.open": "yes", "env.NCCL_DEBUG": "INFO",
    }  # fmt: skip
    host.files["/proc/sys/kernel/osrelease"] = Unobservable("denied")
    with pytest.raises(Unobservable):
        facts(host)
