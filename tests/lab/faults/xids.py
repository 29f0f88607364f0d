"""A machine for each Xid that drains a node and that no other recorded host shows: its kernel log, no more.

Texts as in the driver's sources (NVIDIA open-gpu-kernel-modules: nvErrorLog_va and NV_ERROR_LOG), in the
tests of leptonai/gpud for NVLink 5, and in NVIDIA's forum and issues. 46, 54, 64, 155, 158, 167, 168 and 173
say the catalogue's words, as no line was to be found; of such a line only the number counts.
"""

from __future__ import annotations

from tests.lab.host_faults import NOBODY, RECOVERY, Machine, Record, xid

_H100, _B200, _GB200 = "0000:5d:00", "0000:61:00", "0009:01:00"
_AT = 88200.0
_LINK = "(0x1, 0x0, 0x10000, 0x2, 0x0, 0x0, 0x0)"
_STATUS = "XC0 i0 Link 05 ({} 0x00000000 0x00000000 0x00000000 0x00000000)"


def _driver(pci: str, number: int, text: str) -> Record:
    return xid(_AT, pci, number, text, NOBODY)


def _of_link(number: int, text: str, words: str) -> Record:
    """An Xid of NVLink 5, which names no process."""
    level, at, line = xid(_AT, _B200, number, f"{text} {_STATUS.format(words)}", "")
    return level, at, line.replace(", , ", ", ")


def _machine(name: str, code: str, what: str, *lines: Record, base: str = "h100-healthy") -> Machine:
    return Machine(
        name, what, (code,), base=base, kernel=lines,
        about={"provenance": "kernel log only: a line in the form of the driver's sources or of published "
               f"logs; for the rest see {base}"},
    )  # fmt: skip


MACHINES = (
    _machine(
        "h100-xid46", "XidGpuNotResponding", "GPU 3 stopped processing",
        _driver(_H100, 46, "GPU timeout: Ch 00000008, engmask 00000101"),
    ),
    _machine(
        "h100-xid54", "XidPowerConnector", "the power cable of GPU 3 is not seated",
        _driver(_H100, 54, "Auxiliary power is not connected to the GPU board"),
    ),
    _machine(
        "h100-xid61", "XidPmuBreakpoint", "the power unit of GPU 3 stopped in a breakpoint",
        _driver(_H100, 61, "0cec(3098) 00000000 00000000"),
    ),
    _machine(
        "h100-xid62", "XidPmuHalt", "the power unit of GPU 3 halted",
        _driver(_H100, 62, "2027a5a6 2027a6fa 2027d6f2 2027a5c2 20278ee4 2027f2ae 00000000 00000000"),
    ),
    _machine(
        "h100-xid64", "XidRemapFailed", "a bad row of GPU 3 could not be recorded for replacement",
        _driver(_H100, 64, "Row Remapper: Error: Row remapping failed for row (0x0000000000a4c2d1)"),
    ),
    _machine(
        "h100-xid95", "XidUncontainedMemory", "a memory error on GPU 3 could not be held to one application",
        xid(_AT, _H100, 95, "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No"),
    ),
    _machine(
        "h100-xid109", "XidContextSwitchTimeout", "a context of GPU 3 could not be switched out",
        xid(_AT, _H100, 109, "Ch 00000006, errorString CTX SWITCH TIMEOUT, Info 0x4c003"),
    ),
    _machine(
        "h100-xid110", "XidSecurityFault", "GPU 3 locked itself after a security fault",
        _driver(_H100, 110, "SEC_FAULT: _PMU_L5_WDT"),
    ),
    _machine(
        "h100-xid119", "XidGspTimeout", "the firmware processor of GPU 3 answers no call",
        *(
            xid(
                _AT + 6 * n, _H100, 119,
                "Timeout after 6s of waiting for RPC response from GPU3 GSP! Expected function 76 "
                "(GSP_RM_CONTROL) (0x2080a0a4 0x4).",
                "pid=2817, name=nvidia-smi",
            )
            for n in range(3)
        ),
    ),
    _machine(
        "h100-xid120", "XidGspError", "the firmware processor of GPU 3 failed",
        _driver(_H100, 120, "GSP task exception: illegal instruction (cause:0x2) @ pc:0x1c2a7f0, "
                "partition:4#0, task:3"),
    ),
    _machine(
        "h100-xid136", "XidLinkTraining", "an NVLink of GPU 3 did not train",
        _driver(_H100, 136, f"NVLink: Link training failed for link 5{_LINK}"),
    ),
    _machine(
        "h100-xid140", "XidEccUnrecovered", "a memory error on GPU 3 was not recovered from",
        _driver(_H100, 140, "An uncorrectable ECC error detected (possible firmware handling failure) "
                "DRAM:-1840691462, LTC:0, MMU:0, PCIE:0"),
    ),
    _machine(
        "h100-xid143", "XidGpuInitFailed", "GPU 3 did not start when it was reset",
        xid(_AT, _H100, 143, "Error status 0x65 while polling for FSP boot complete, 0x0, 0x0, 0x0, 0x0, 0x0",
            NOBODY),
    ),
    _machine(
        "b200-xid144", "XidNvlinkSaw", "the crossbar side of NVLink 5 on GPU 3 had an error",
        _of_link(144, "SAW_MVB Fatal", "0x00000001 0x00000002"), base="b200-healthy",
    ),
    _machine(
        "b200-xid145", "XidNvlinkRlw", "the remapper of NVLink 5 on GPU 3 had an error",
        _of_link(145, "RLW_REMAP Fatal", "0x00000004 0x00000040"), base="b200-healthy",
    ),
    _machine(
        "b200-xid146", "XidNvlinkTlw", "the transaction layer of NVLink 5 on GPU 3 had an error",
        _of_link(146, "TLW_CTRL Fatal", "0x00000009 0x00000004"), base="b200-healthy",
    ),
    _machine(
        "b200-xid147", "XidNvlinkTrex", "the reduction engine of NVLink 5 on GPU 3 had an error that the "
        "driver calls fatal",
        _of_link(147, "TREX Fatal", "0x0000000e 0x00000001"), base="b200-healthy",
    ),
    _machine(
        "b200-xid148", "XidNvlinkControl", "the control unit of NVLink 5 on GPU 3 had an error that the "
        "driver calls fatal",
        _of_link(148, "NVLPW_CTRL Fatal", "0x0000000f 0x80000000"), base="b200-healthy",
    ),
    _machine(
        "b200-xid149", "XidNvlinkNetir", "a link of GPU 3 went down for good",
        _of_link(149, "NETIR_LINK_EVT Fatal", "0x00000011 0x00000000"), base="b200-healthy",
    ),
    _machine(
        "b200-xid150", "XidNvlinkMse", "the management engine of NVLink 5 on GPU 3 stopped",
        _of_link(150, "MSE_WATCHDOG Fatal", "0x00000000 0x00000000"), base="b200-healthy",
    ),
    _machine(
        "b200-xid155", "XidNvlinkSoftwareError", "software brought a link of GPU 3 down",
        _driver(_B200, 155, "NVLINK: Link 05 was brought down by software"), base="b200-healthy",
    ),
    _machine(
        "b200-xid158", "XidGpuFatalTimeout", "GPU 3 did not answer in time",
        _driver(_B200, 158, "GPU fatal timeout"), base="b200-healthy",
    ),
    _machine(
        "b200-xid167", "XidPcieFatalTimeout", "the PCIe path to GPU 3 does not answer in time",
        _driver(_B200, 167, "PCIe fatal timeout"), base="b200-healthy",
    ),
    _machine(
        "b200-xid168", "XidProtectedRegionErrors", "GPU 3 has memory errors where its firmware must live",
        _driver(_B200, 168, "Errors found in the write protected region of framebuffer memory"),
        base="b200-healthy",
    ),
    _machine(
        "gb200-xid173", "XidC2cFatal", "the link between GPU 1 and its Grace processor is down",
        _driver(_GB200, 173, "C2C fatal link failure"), base="gb200-healthy",
    ),
    _machine(
        "h100-xid-unknown", "XidUnknown",
        "an Xid that nobody knows; the driver asks for a reset because of it",
        _driver(_H100, 199, "Unexpected state 0x1"),
        xid(_AT + 0.1, _H100, 154, RECOVERY.format("0x1 (GPU Reset Required)"), NOBODY),
    ),
)  # fmt: skip
