"""Faults that show only in comparison with an earlier look: counters that grew, a device that was there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tests.lab import whole_node
from tests.lab.host_faults import Machine
from tests.lab.parts import services
from tests.lab.parts.infiniband import CLASS, port
from tests.lab.parts.pcie import aer
from tests.lab.whole_node import TIME

_LOST = whole_node.H100_HCAS[7]
_FATAL = whole_node.H100_HCAS[0].pci
_UNSTABLE = whole_node.DGX_H100.gpus[4]


def remembering(machine: Machine, **past: Mapping[str, Mapping[str, object]]) -> Machine:
    """`machine` with what its checks remember of a look a minute ago in this boot."""
    of_boot = {"boot_id": machine.boot_id}
    told: dict[str, dict[str, object]] = {}
    for check, known in past.items():
        told[check] = {**of_boot, **known}
        if "counters" in known:
            told[check]["counters"] = {**of_boot, "time": TIME - 60, "values": known["counters"]}
        if "blocked" in known:
            told[check]["blocked"] = {**of_boot, **known["blocked"]}
    return dataclasses.replace(machine, about={**machine.about, "past": told})


MACHINES = (
    remembering(
        Machine(
            "h100-rails-lost",
            "the cable of rail 2 is failing, rail 4 went down seven minutes ago, the adapter of rail 0 had a "
            "fatal PCIe error, that of rail 7 is gone from the bus",
            ("IbSymbolErrors", "IbLinkDropped", "IbLinkDown", "PcieAerFatal", "PcieDeviceGone",
             "IbPortMissing"),
            files={
                f"{CLASS}/mlx5_2/ports/1/counters/symbol_error": "1512\n",
                **{
                    f"{CLASS}/mlx5_4/ports/1/{name}": text
                    for name, text in port(
                        state="1: DOWN", phys_state="2: Polling", rate="10 Gb/sec (4X SDR)", lid="0xffff",
                        sm_lid="0x0",
                    ).items()
                },
                f"{CLASS}/mlx5_4/ports/1/counters/link_downed": "2\n",
                **aer(_FATAL, fatal_CmpltTO=1),
            },
            without=(
                f"/sys/bus/pci/devices/{_LOST.pci}", f"{CLASS}/{_LOST.name}",
                "/sys/class/infiniband_verbs/uverbs7", "/sys/class/infiniband_mad/umad7",
                "/dev/infiniband/uverbs7", "/dev/infiniband/umad7",
            ),
        ),
        ib_counters={"counters": {"mlx5_2/1 symbol_error": 12}},
        ib_flaps={
            "links": {
                "mlx5_4/1": {
                    "up": False, "since": TIME - 420, "downs": 2, "was_up": True, "returns": [],
                    "dropped": True, "recovered_at": 0.0,
                }
            }
        },
        pcie_errors={"counters": {f"{_FATAL} fatal CmpltTO": 0}},
        pcie_link={"devices": {_LOST.pci: ["nic", f"pci@{_LOST.pci}", True]}},
    ),
    remembering(
        Machine(
            "h100-nvlink-unstable",
            "the NVLinks of GPU 4 repeat transfers in most of the last looks",
            ("NvlinkUnstable",),
            values=("4.field.52=612",),
        ),
        nvlink_errors={
            "counters": {f"gpu@{_UNSTABLE} - nvlink_replay_errors": 588},
            "windows": {f"gpu@{_UNSTABLE} -": "0110111011110111101111"},
        },
    ),
    remembering(
        Machine(
            "h100-driver-task-stuck",
            "a rank whose job is gone has hung in the NVIDIA driver for ten minutes and cannot be killed",
            ("DriverTaskStuck",),
            files={
                "/proc/20118/stat": services.stat(20118, "pt_main_thread", "D", start=8650000),
                "/proc/20118/status": "Name:\tpt_main_thread\nState:\tD (disk sleep)\n"
                "voluntary_ctxt_switches:\t40211\nnonvoluntary_ctxt_switches:\t118\n",
                "/proc/20118/wchan": "os_acquire_rwlock_write",
                "/proc/20118/stack": "[<0>] os_acquire_rwlock_write+0x3a/0x50 [nvidia]\n"
                "[<0>] nvidia_close+0x1f2/0x3a0 [nvidia]\n",
            },
        ),
        host_processes={
            "blocked": {"tasks": {"20118:8650000": {"since": TIME - 600, "switches": 40329}}},
        },
    ),
)  # fmt: skip
