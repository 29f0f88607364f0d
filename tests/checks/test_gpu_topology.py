"""gpu_topology: GPUs and adapters against the class, or against the machine's own symmetry."""

from __future__ import annotations

import pytest

from clustertools.errors import Unobservable
from clustertools.model import Status
from tests.lab.parts.infiniband import CLASS
from tests.lab.rdma import RdmaHost


class Node(RdmaHost):
    """GPUs at these NUMA nodes, adapters at those."""

    def __init__(self, gpus: list[str], adapters: list[int] | None = None) -> None:
        super().__init__(len(adapters or ()))
        for number, node in enumerate(gpus):
            folder = f"/sys/bus/pci/devices/0000:{number + 0x40:02x}:00.0"
            self.files |= {f"{folder}/vendor": "0x10de\n", f"{folder}/class": "0x030200\n"}
            if node:
                self.files[f"{folder}/numa_node"] = f"{node}\n"
        for number, at in enumerate(adapters or ()):
            self.files[f"{CLASS}/mlx5_{number}/device/numa_node"] = f"{at}\n"


def test_healthy_and_mixed_up(run):
    assert run("gpu_topology", "h100-healthy").status is Status.OK
    verdict = run("gpu_topology", "h100-numa-mixed")
    assert verdict.codes == {"GpuNumaWrong"}
    assert "5 at node 0, 3 at node 1" in verdict.findings[0].summary
    assert {r.subject.part: r.value for r in verdict.readings} == {"numa0": 5, "numa1": 3}


@pytest.mark.parametrize(
    ("nodes", "expect", "codes"),
    [
        (["0", "0", "1", "1"], {}, set()),
        (["0", "0", "0", "1"], {}, {"GpuNumaWrong"}),
        # an odd number cannot be even
        (["0", "0", "1"], {}, set()),
        (["0", "0", "0", "0"], {}, set()),
        (["0", "0", "0", "0"], {"gpu_numa_nodes": [0, 0, 1, 1]}, {"GpuNumaWrong"}),
        (["1", "0", "0", "0"], {"gpu_numa_nodes": [1, 0, 0, 0]}, set()),
    ],
)
def test_spread(run, nodes, expect, codes):
    assert run("gpu_topology", Node(nodes), expect=expect).codes == codes


@pytest.mark.parametrize("nodes", [["-1", "-1"], ["", ""], ["0", "-1"], ["zero", "0"]])
def test_what_the_firmware_does_not_say_is_no_fault(run, nodes):
    assert run("gpu_topology", Node(nodes)).status is Status.SKIPPED


def test_a_gpu_without_an_adapter_beside_it(run):
    verdict = run("gpu_topology", Node(["0", "0", "1", "1"], [0, 0, 0, 0]))
    assert {(f.code, f.subject.part) for f in verdict.findings} == {
        ("GpuNicFar", "gpu@0000:42:00.0"), ("GpuNicFar", "gpu@0000:43:00.0"),
    }  # fmt: skip
    # one card for all GPUs cannot be beside each
    assert run("gpu_topology", Node(["0", "0", "1", "1"], [0])).status is Status.OK
    assert run("gpu_topology", Node(["0", "0", "1", "1"], [0, 0, 1, 1])).status is Status.OK


def test_blind_is_unknown(run):
    host = Node(["0", "1"])
    host.files["/sys/bus/pci/devices/0000:40:00.0/numa_node"] = Unobservable("denied")
    assert run("gpu_topology", host).status is Status.UNKNOWN
