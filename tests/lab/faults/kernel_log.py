"""Machines whose faults are in the kernel log, or in what a panic left behind.

Lines in the forms of the kernel and of the drivers' sources (nvidia open-gpu-kernel-modules, mlx5, nvme, md,
ext4); the NVLink 5 and Xid 74 ones as leptonai/gpud and NVIDIA/NVSentinel show them from operation.
"""

from __future__ import annotations

from tests.lab.host_faults import NOBODY, Machine, at, xid

_SWITCH = "nvidia-nvswitch2: SXid (PCI:0000:07:00.0): "
_GPUS = ("0000:18:00", "0000:2a:00", "0000:3a:00", "0000:5d:00", "0000:9a:00", "0000:ab:00", "0000:ba:00",
         "0000:db:00")  # fmt: skip
_LINK_4 = f"NVLink: fatal error detected on link 4(0x10000, {', '.join(['0x0'] * 6)})"
_MLX5 = "mlx5_core 0000:5e:00.0"
_PSTORE = "/sys/fs/pstore/dmesg-efi_pstore-176369240101001"
_PANIC = """\
Panic#1 Part1
<1>[ 5021.376820] BUG: unable to handle page fault for address: ffffb1e2c0a81000
<4>[ 5021.376911] RIP: 0010:nv_dma_unmap_pages+0x41/0xc0 [nvidia]
<0>[ 5021.377001] Kernel panic - not syncing: Fatal exception in interrupt
"""

MACHINES = (
    Machine(
        "h100-sxid-fatal",
        "an NVSwitch lost the train of a link; the GPUs tell of their links as well, which is no fault of "
        "theirs",
        ("SxidFatal",),
        kernel=(
            xid(88100.2, _GPUS[0], 74, _LINK_4, NOBODY),
            (3, at(88100.4), _SWITCH + "20034, Fatal, Link 30 LTSSM Fault Up (First)"),
            (3, at(88100.4), _SWITCH + "20034, Severity 1 Engine instance 30 Sub-engine instance 00"),
            (3, at(88100.4), _SWITCH + "20034, Data {0x50610002, 0x10100030, 0x00000000, 0x10100030}"),
            *(xid(88100.6, gpu, 74, _LINK_4, NOBODY) for gpu in _GPUS[1:]),
        ),
    ),
    Machine(
        "h100-nvlink-errors",
        "GPU 4 reports an NVLink error whose source is the peer (Xid 149), GPU 6 one of its own link (Xid "
        "74), "
        "and the driver could not find out which links have a partner",
        ("XidNvlinkNetir", "XidNvlinkError", "NvlinkDiscoveryFailed"),
        kernel=(
            (3, at(14.2), "NVRM: knvlinkUpdatePostRxDetectLinkMask_IMPL: Failed to update Rx Detect Link "
                          "mask!"),
            (3, at(88100.1), f"NVRM: Xid (PCI:{_GPUS[4]}): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 14 "
             "(0x0215c5c6 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)"),
            xid(89000, _GPUS[6], 74,
                "NVLink: fatal error detected on link 14(0x0, 0x0, 0x40, 0x20000, 0x0, 0x0, 0x0)", NOBODY),
        ),
    ),
    Machine(
        "h100-xid-lemon",
        "GPU 7 had uncorrectable memory errors five times since yesterday, each after a reset; GPU 1 gives "
        "page "
        "faults to whoever uses it",
        ("XidEccUncorrectable", "XidRecurring", "XidHardwareSuspect", "XidMmuFault"),
        kernel=(
            *(xid(20000 + 15000 * n, _GPUS[7], 48, "DBE (double bit error) ECC Error") for n in range(5)),
            *(
                xid(81000 + 4000 * n, _GPUS[1], 31,
                    "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPC3 GPCCLIENT_T1_2 faulted @ "
                    "0x7f2b_00001000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
                    f"pid={20000 + n}, name=train{n}")
                for n in range(3)
            ),
        ),
    ),
    Machine(
        "h100-nic-failed",
        "the firmware of mlx5_3 failed during a job, and one of its cables is too hot; ACCESS_REG lines "
        "flood the "
        "log, which is harmless",
        ("NicHealthFailed", "NicCommandTimeout", "NicModuleHot", "NicTransmitTimeout", "NetCarrierLost",
         "NicCableUnplugged", "NicModuleError", "NetdeviceStuck", "PeermemInvalidContext", "PcieSlotPower"),
        kernel=(
            (6, at(12.1), f"{_MLX5} ibp94s0: Link up"),
            (6, at(12.2), f"{_MLX5}: Port module event: module 0, Cable plugged"),
            (6, at(12.3), "mlx5_core 0000:19:00.0: Port module event: module 1, Cable unplugged"),
            (6, at(12.4), "mlx5_core 0000:19:00.0 ens19f1np1: Link down"),
            (4, at(87990), f"{_MLX5}: mlx5_pcie_event:301:(pid 0): Detected insufficient power on the PCIe "
                           "slot "
             "(27W)."),
            *(
                (3, at(80000 + n), f"mlx5_core 0000:d2:00.0: mlx5_cmd_out_err:838:(pid {1441871 + n}): "
                 "ACCESS_REG(0x805) op_mod(0x1) failed, status bad resource(0x5), syndrome (0x305684), "
                 "err(-22)")
                for n in range(300)
            ),
            (3, at(88000), f"{_MLX5}: mlx5_port_module_event:1131:(pid 0): Port module event[error]: module "
                           "0, "
             "Cable error, High Temperature"),
            (3, at(88001), f"{_MLX5}: Port module event[error]: module 0, Cable error, Bus stuck (I2C or "
                           "data "
             "shorted)"),
            (3, at(88010), f"{_MLX5}: wait_func:1151:(pid 967): CREATE_MKEY(0x200) timeout. Will cause a "
                           "leak of "
             "a command resource"),
            (3, at(88012), f"{_MLX5}: poll_health:739:(pid 0): device's health compromised - reached miss "
                           "count"),
            (3, at(88014), f"{_MLX5} ibp94s0: TX timeout detected"),
            (6, at(88015), f"{_MLX5} ibp94s0: Link down"),
            (6, at(88015), f"{_MLX5}: Port module event: module 0, Cable unplugged"),
            (3, at(88020), "nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, "
             "skipping further processing"),
            *(
                (0, at(88100 + 10 * n), "unregister_netdevice: waiting for ibp94s0 to become free. Usage "
                                        "count = 2")
                for n in range(4)
            ),
        ),
    ),
    Machine(
        "host-disks-failing",
        "one NVMe drive of the RAID does not come back from its reset, another file system has lost its "
        "journal, "
        "and NFS and Lustre have thrown the node out",
        ("NvmeTimeout", "DiskGone", "RaidDiskFailed", "HostIoError", "HostFilesystemError", "NfsLocksLost",
         "NfsWritebackHung", "LustreEvicted", "NfsNotResponding"),
        base="cpu-healthy",
        kernel=(
            (4, at(88000), "nvme nvme4: I/O tag 22 (2016) opcode 0x2 (I/O Cmd) QID 5 timeout, reset "
                           "controller"),
            (4, at(88060), "nvme nvme4: Disabling device after reset failure: -19"),
            (3, at(88061), "I/O error, dev nvme4n1, sector 1234 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio "
                           "class 0"),
            (2, at(88062), "md/raid1:md0: Disk failure on nvme4n1p2, disabling device."),
            (2, at(88062), "md/raid1:md0: Operation continuing on 1 devices."),
            (3, at(88070), "Aborting journal on device sda1-8."),
            (2, at(88071), "EXT4-fs (sda1): Remounting filesystem read-only"),
            (3, at(88080), "NFS: nfs4_reclaim_open_state: Lock reclaim failed!"),
            (4, at(88081), "nfs: server nas01 not responding, still trying"),
            (6, at(88090), " nfs_lock_and_join_requests+0x61/0x2b0 [nfs]"),
            (6, at(88090), " nfs_wb_all+0x2c/0x190 [nfs]"),
            (3, at(88095), "LustreError: 167-0: fs1-OST0003-osc-ffff8a1: This client was evicted by "
                           "fs1-OST0003; "
             "in progress operations using this service will fail."),
        ),
    ),
    Machine(
        "h100-kernel-broken",
        "the node came back from a panic some hours ago; since then a processor was stuck, the kernel "
        "failed once "
        "more, memory gave a machine check, a GPU had a fatal PCIe error, and the switch above GPU 0 "
        "has 8 lanes",
        ("HostPanicked", "HostLockup", "HostKernelOops", "HostMachineCheck", "PcieFatalError",
         "PcieBandwidthLimited"),
        files={
            "/sys/bus/pci/devices/0000:15:01.0/vendor": "0x8086\n",
            "/sys/bus/pci/devices/0000:15:01.0/class": "0x060400\n",
            "/sys/bus/pci/devices/0000:15:01.0/current_link_width": "8\n",
            "/sys/bus/pci/devices/0000:15:01.0/max_link_width": "16\n",
            _PSTORE: _PANIC,
        },
        globs={"/sys/fs/pstore/dmesg-*": (_PSTORE,)},
        kernel=(
            (6, at(2.1), "pci 0000:18:00.0: 252.048 Gb/s available PCIe bandwidth, limited by 32.0 GT/s "
                         "PCIe x8 "
             "link at 0000:15:01.0 (capable of 504.112 Gb/s with 32.0 GT/s PCIe x16 link)"),
            (0, at(88000), "watchdog: BUG: soft lockup - CPU#18 stuck for 27s! [python3:2254956]"),
            (1, at(88100), "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
            (4, at(88100), "Oops: 0000 [#1] PREEMPT SMP NOPTI"),
            (0, at(88200), "mce: [Hardware Error]: CPU 12: Machine Check: 5 Bank 4: be00000000800400"),
            (3, at(88300), "pcieport 0000:17:01.0: AER: Uncorrected (Fatal) error received: 0000:18:00.0"),
        ),
    ),
)  # fmt: skip
