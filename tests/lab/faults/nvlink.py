"""Faults of NVLinks, of the fabric that they make with the NVSwitches, and of PCIe links."""

from __future__ import annotations

from tests.lab.host_faults import Machine
from tests.lab.parts.nvlink import FABRIC_MANAGER, IMEX, LOG, STARTED
from tests.lab.parts.pcie import link
from tests.lab.whole_node import DGX_H100

LOST_SWITCH = "0000:09:00.0"
TOPOLOGY = (
    "[Aug 06 2026 05:58:20] [ERROR] [tid 5183] detected number of NVSwitches don't match with any supported "
    "system topology, aborting fabric manager\n"
)
FATAL = (
    "[Aug 06 2026 06:31:55] [ERROR] [tid 5190] detected NVSwitch fatal error 20034 on NodeId 0 on NVSwitch "
    "pci bus id 00000000:08:00.0 physical id 1 port 33\n"
)
NON_FATAL = (
    "[Aug 06 2026 06:01:57] [ERROR] [tid 5190] detected NVSwitch non-fatal error 22013 on NodeId 0 on "
    "NVSwitch pci bus id 00000000:08:00.0 physical id 1 port 60\n"
)
FAILED = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n"
CLUSTER = "00000000-0000-4000-8000-000000000001"

MACHINES = (
    Machine(
        "h100-nvlink-down",
        "two NVLinks of GPU 3 did not train and a third runs at half its speed; the driver says that the "
        "GPU's bandwidth in the fabric is degraded",
        ("NvlinkDown", "NvlinkSlow", "FabricUnhealthy"),
        values=("3.nvlink.4=0", "3.nvlink.5=0", "3.field.164.7=13281", "3.fabric.health=0x1",
                "3.fabric.summary=3"),
    ),
    Machine(
        "h100-fabric-down",
        "an NVSwitch was not found at boot, so fabric manager gave up: the GPUs wait for their fabric and no "
        "CUDA program starts",
        ("FabricManagerDown", "FabricNotReady", "FabricTopologyMismatch", "NvlinkPeerUnreachable",
         "NvswitchMissing"),
        without=(f"/sys/bus/pci/devices/{LOST_SWITCH}",),
        values=("fabric.state=2", "p2p=5"),
        files={LOG: STARTED.splitlines()[0].format(driver=DGX_H100.driver) + "\n" + TOPOLOGY},
        commands={
            FABRIC_MANAGER: {
                "seconds": 0.006,
                "stdout": FAILED,
            }
        },
    ),
    Machine(
        "h100-fabric-fatal",
        "an NVSwitch had a fatal error under load; GPU 7 was reset alone since and came back in a clique of "
        "its own",
        ("FabricSwitchFatal", "FabricSplit"),
        values=(f"fabric.cluster={CLUSTER}", "fabric.clique=1", "7.fabric.clique=2"),
        files={LOG: STARTED.format(driver=DGX_H100.driver) + NON_FATAL + FATAL},
    ),
    Machine(
        "h100-pcie-degraded",
        "GPU 1 has 8 of its 16 PCIe lanes and one network adapter trained at generation 3; both sit behind "
        "switches that can do all",
        ("PcieWidthReduced", "PcieSpeedReduced"),
        files={
            **link("0000:2a:00.0", 16, 5, now=8),
            **link("0000:19:00.0", 16, 5, speed_now="8.0 GT/s PCIe"),
        },
    ),
    Machine(
        "gb200-imex-failed",
        "the IMEX daemon of a tray that serves a domain at all times ended with an error",
        ("ImexDown",),
        base="gb200-healthy",
        commands={IMEX: {"seconds": 0.006, "stdout": FAILED}},
    ),
    Machine(
        "mi300x-xgmi",
        "GPU 2 had an uncorrected error on an xGMI link",
        ("XgmiUncorrected",),
        base="mi300x-healthy",
        files={"/sys/bus/pci/devices/0000:46:00.0/ras/xgmi_wafl_err_count": "ue: 1\nce: 12\n"},
    ),
)  # fmt: skip
