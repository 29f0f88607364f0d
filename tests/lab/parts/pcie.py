"""PCIe as sysfs shows it: links and error counters of GPUs, adapters and NVSwitches, and two switches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.lab.parts import Shape

FOLDER = "/sys/bus/pci/devices"
PROVENANCE = (
    "PCIe links and errors written from the kernel's ABI documents sysfs-bus-pci and "
    "sysfs-bus-pci-devices-aer_stats, with the figures of the makers' data sheets"
)
SPEEDS = {3: "8.0 GT/s PCIe", 4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe"}
#: The NVSwitches that the host sees, and their device id.
_HOPPER = ("22a3", ("0000:07:00.0", "0000:08:00.0", "0000:09:00.0", "0000:0a:00.0"))
NVSWITCHES = {
    "a100-8": ("1af1", tuple(f"0000:{bus:02x}:00.0" for bus in range(0xC4, 0xCA))),
    "h100-8": _HOPPER,
    "h200-8": _HOPPER,
    # a guest sees them, as it runs fabric manager; at which addresses is assumed
    "p5.48xlarge": ("22a3", tuple(f"0000:{bus:02x}:00.0" for bus in range(0x40, 0x44))),
    "nd96isr-h100-v5": ("22a3", tuple(f"{domain:04x}:00:00.0" for domain in range(4, 8))),
}
#: Kinds of node whose links and errors are written out; the others tell nothing of these.
WRITTEN_OUT = ("a100-8", "h100-8", "mi300x-8")
CORRECTABLE = "RxErr BadTLP BadDLLP Rollover Timeout NonFatalErr CorrIntErr HeaderOF".split()
UNCORRECTABLE = (
    "Undefined DLP SDES TLP FCP CmpltTO CmpltAbrt UnxCmplt RxOF MalfTLP ECRC UnsupReq ACSViol UncorrIntErr "
    "BlockedTLP AtomicOpBlocked TLPBlockedErr PoisonTLPBlocked"
).split()


def aer(address: str, **counts: int) -> dict[str, str]:
    """The three error files of a device; `counts` as `fatal_DLP=1`."""

    def text(names: list[str], severity: str, total: str) -> str:
        told = {name: counts.get(f"{severity}_{name}", 0) for name in names}
        return "".join(f"{name} {n}\n" for name, n in told.items()) + f"{total} {sum(told.values())}\n"

    return {
        f"{FOLDER}/{address}/aer_dev_correctable": text(CORRECTABLE, "correctable", "TOTAL_ERR_COR"),
        f"{FOLDER}/{address}/aer_dev_nonfatal": text(UNCORRECTABLE, "nonfatal", "TOTAL_ERR_NONFATAL"),
        f"{FOLDER}/{address}/aer_dev_fatal": text(UNCORRECTABLE, "fatal", "TOTAL_ERR_FATAL"),
    }


def link(address: str, width: int, generation: int, now: int = 0, speed_now: str = "") -> dict[str, str]:
    """The four files of a link: what it can, and what it does where that is less."""
    return {
        f"{FOLDER}/{address}/max_link_width": f"{width}\n",
        f"{FOLDER}/{address}/current_link_width": f"{now or width}\n",
        f"{FOLDER}/{address}/max_link_speed": f"{SPEEDS[generation]}\n",
        f"{FOLDER}/{address}/current_link_speed": f"{speed_now or SPEEDS[generation]}\n",
    }


def _bridges(shape: Shape) -> Iterator[tuple[str, int]]:
    """(address, bus below) of the bridges above the first two pairs of GPU and adapter of a DGX H100."""
    for gpu in shape.gpus[:2] if shape.node_class == "h100-8" else ():
        number = int(gpu[5:7], 16)
        yield f"0000:{number - 3:02x}:01.0", number - 2
        yield f"0000:{number - 2:02x}:00.0", number - 1
        yield f"0000:{number - 1:02x}:00.0", number
        yield f"0000:{number - 1:02x}:01.0", number + 1


def lspci(addresses: Sequence[str]) -> str:
    """What lspci -D -vvv says of these bridges, as far as ACS goes; it is off."""
    text = ""
    for address in addresses:
        text += (
            f"{address} PCI bridge: Broadcom / LSI PEX890xx PCIe Gen 5 Switch (rev b0) (prog-if 00 [Normal "
        )
        text += (
            "decode])\n\tCapabilities: [f24 v1] Access Control Services\n\t\tACSCap:\tSrcValid+ TransBlk+ "
        )
        text += (
            "ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl+ DirectTrans+\n\t\tACSCtl:\tSrcValid- TransBlk- "
        )
        text += "ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-\n"
    return text


def commands(shape: Shape) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """lspci of a machine with switches."""
    bridges = [address for address, _ in _bridges(shape)]
    argv = ("lspci", "-D", "-vvv", "-d", "*:*:0604")
    return {argv: {"seconds": 0.21, "stdout": lspci(bridges)}} if bridges else {}


def files(shape: Shape) -> dict[str, str]:
    """Links and errors of all devices of a job; NVSwitches and bridges."""
    generation = shape.pcie_generation
    found = {}
    if shape.node_class in WRITTEN_OUT:
        for address in (*(hca.pci for hca in shape.hcas), *shape.gpus):
            found |= link(address, 16, generation) | aer(address)
    if shape.gpu == "amd":
        found |= {f"{FOLDER}/{address}/ras/xgmi_wafl_err_count": "ue: 0\nce: 0\n" for address in shape.gpus}
    device, switches = NVSWITCHES.get(shape.node_class, ("", ()))
    for address in switches:
        found |= {
            f"{FOLDER}/{address}/vendor": "0x10de\n",
            f"{FOLDER}/{address}/class": "0x068000\n",
            f"{FOLDER}/{address}/device": f"0x{device}\n",
        }
    for address, below in _bridges(shape):
        # the root ports are the processor's, the others a switch's of Broadcom
        root = address.endswith(":01.0") and address[5:7] == f"{below - 1:02x}"
        found |= {
            f"{FOLDER}/{address}/vendor": "0x8086\n" if root else "0x1000\n",
            f"{FOLDER}/{address}/device": "0x352a\n" if root else "0xc030\n",
            f"{FOLDER}/{address}/class": "0x060400\n",
            f"{FOLDER}/{address}/secondary_bus_number": f"{below}\n",
            **link(address, 16, generation),
        }
    return found
