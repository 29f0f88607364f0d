"""Kinds of error lines that nobody has described are counted and shown, and never more than that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clustertools.checks.kernel_unfamiliar import MOST_KINDS, kernel_unfamiliar

from clustertools.model import Status, Verdict
from clustertools.sources.kernel_kinds import KIND_CHARACTERS, is_familiar, kind_of
from tests.checks.kernel_node import Node

Run = Callable[..., Verdict]


def kinds(verdict: Verdict) -> float:
    assert (verdict.status, verdict.findings) == (Status.OK, ())
    return verdict.readings[0].value


def test_a_kind_is_counted_once_and_shown() -> None:
    node = Node()
    for number in range(50):
        node.say(f"frobnicator 0000:3b:00.{number % 8}: lost 0x{number:08x} of {number} quanta")
    verdict = node.look(kernel_unfamiliar)
    assert kinds(verdict) == 1
    assert verdict.detail == "unfamiliar: frobnicator #: lost # of # quanta"
    assert kinds(node.look(kernel_unfamiliar)) == 1  # it stays for this boot
    assert kinds(node.say("another thing broke").look(kernel_unfamiliar)) == 2
    assert kinds(node.reboot().say("EDAC MC0: ready").look(kernel_unfamiliar)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, name=x, GPU has fallen off the bus.",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 32 LTSSM Fault Up",
        "EXT4-fs error (device sda1): x: inode #2",
        "mlx5_core 0000:d2:00.0: mlx5_cmd_out_err:838:(pid 1): ACCESS_REG(0x805) op_mod(0x1) failed",
        "ACPI BIOS Error (bug): Could not resolve symbol [\\_SB.PC00.LPCB], AE_NOT_FOUND",
        " nv_dma_unmap_pages+0x41/0xc0 [nvidia]",
        "RIP: 0010:nv_dma_unmap_pages+0x41/0xc0 [nvidia]",
    ],
)
def test_what_is_known_is_not_told_again(text: str) -> None:
    assert is_familiar(text)
    assert kinds(Node().say(text).look(kernel_unfamiliar)) == 0


def test_lines_that_are_no_errors_or_not_the_kernels() -> None:
    node = Node()
    assert node.ring is not None
    node.ring += ["6,0,1,-;frobnicator: hello", "11,1,2,-;frobnicator: a program wrote this"]
    assert kinds(node.look(kernel_unfamiliar)) == 0


def test_a_flood_of_invented_kinds_is_bounded() -> None:
    node = Node()
    for number in range(3 * MOST_KINDS):
        name = "".join(chr(ord("g") + int(digit)) for digit in str(number))
        node.say(f"frob-{name} {'z' * 5000}", 0.001)
    assert kinds(node.look(kernel_unfamiliar)) == MOST_KINDS
    assert all(len(kind) <= KIND_CHARACTERS for kind in node.memory["kinds"])


@pytest.mark.parametrize("memory", [{"kinds": 3}, {"kinds": ["x"]}, {"cursor": 1, "kinds": []}])
def test_a_memory_that_makes_no_sense_means_a_first_look(memory: dict[str, object]) -> None:
    node = Node().say("frobnicator: lost")
    node.memory = {"boot_id": "boot-1", **memory}
    assert kinds(node.look(kernel_unfamiliar)) == 1


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    node = Node()
    node.ring = None
    assert node.look(kernel_unfamiliar).status is Status.UNKNOWN


def test_kinds() -> None:
    assert kind_of("nvme nvme3: I/O 12 QID 5 timeout") == "nvme nvme#: I/O # QID # timeout"
    assert kind_of("x [abc] 0xdeadbeef 0000:3b:00.0") == "x [abc] # #"
    assert len(kind_of("a" * 10_000_000)) == KIND_CHARACTERS


def test_recorded_machines(run: Run) -> None:
    for host in ("h100-healthy", "a100-healthy", "cpu-healthy", "h100-nic-failed", "h100-xid79"):
        assert kinds(run("kernel_unfamiliar", host=host)) == 0, host
