"""What a healthy virtual machine of a cloud answers: eight H100, and little of the board.

Its parts are those of `tests.lab.parts` for its shape, less what a hypervisor hides: no BMC, no EDAC, no
cpufreq, no system mirror, and PCIe, drives and adapters as the guest sees them. EC2: SMBIOS, addresses and
drives as in public reports of p5 instances, topology of aws-ofi-nccl. Azure: ndv5-topo.xml of its images, and
ibv_devinfo as published of an ND v5. Where the NVSwitches are, what the drives of EBS tell, and that a
virtual function shows no PCIe link, is assumed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from tests.lab import profiles
from tests.lab.parts import Hca, Shape, efa, ethernet, infiniband, processors, storage
from tests.lab.parts.pcie import FOLDER as PCI
from tests.lab.parts.pcie import link
from tests.lab.whole_node import MOUNTS, RAID, RAID_FSTAB, TIME, Node, dgx, sized

_CPU = "/sys/devices/system/cpu"
_UNSEEN = (
    "/sys/devices/system/edac", f"{_CPU}/cpufreq", f"{_CPU}/cpu0/thermal_throttle",
    f"{_CPU}/cpu48/thermal_throttle", f"{PCI}/0000:c1:00.0/",
    f"{infiniband.CLASS}/mlx5_0/", f"{infiniband.CLASS}/mlx5_8/",
    "/sys/fs/lustre", "/proc/fs/lustre", "/sys/module/zfs",
    "/sys/class/infiniband_verbs", "/sys/class/infiniband_mad", "/dev/infiniband",
)  # fmt: skip

P5 = Shape(
    "p5.48xlarge", "nvidia", "NVIDIA H100 80GB HBM3", profiles.EC2_P5, "2330", "570.133.20", 5, (), 8,
    False, "AMD EPYC 7R13 Processor", 2, 48, 2, 2097225116, "6.8.0-1021-aws", "p5.48xlarge", "Amazon EC2",
)  # fmt: skip
#: The rails, and the adapter of "accelerated networking" beside them.
AZURE_RAILS = tuple(
    Hca(f"mlx5_ib{n}", f"{0x101 + n:04x}:00:00.0", f"ib{n}", 400, numa=n // 4) for n in range(8)
)
AZURE_NET = Hca("mlx5_an0", "5f4a:00:02.0", "enP24394s1", 100, "Ethernet")
AZURE_NET_INFO = """\
hca_id:\tmlx5_an0
\ttransport:\t\t\tInfiniBand (0)
\tfw_ver:\t\t\t\t16.30.5000
\tnode_guid:\t\t\t0200:00ff:fe00:0008
\tsys_image_guid:\t\t\t0000:0000:0000:0000
\tvendor_id:\t\t\t0x02c9
\tvendor_part_id:\t\t\t4122
\thw_ver:\t\t\t\t0x80
\tboard_id:\t\t\tMSF0000000041
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
\t\t\tmax_mtu:\t\t4096 (5)
\t\t\tactive_mtu:\t\t1024 (3)
\t\t\tsm_lid:\t\t\t0
\t\t\tport_lid:\t\t0
\t\t\tport_lmc:\t\t0x00
\t\t\tlink_layer:\t\tEthernet
"""
ND = Shape(
    "nd96isr-h100-v5", "nvidia", "NVIDIA H100 80GB HBM3", profiles.AZURE_ND, "2330", "570.133.20", 5,
    AZURE_RAILS, 8, False, "Intel(R) Xeon(R) Platinum 8480C", 2, 48, 1, 1981808640, "6.8.0-1021-azure",
    "Virtual Machine", "Microsoft Corporation", installed_gib=1900,
)  # fmt: skip


def _guest(
    shape: Shape, files: Mapping[str, str], *, commands: Mapping[tuple[str, ...], Mapping[str, object]],
    clock: str, source: str, own: Mapping[str, str], expect: Mapping[str, object], root: str,
) -> Node:  # fmt: skip
    node = dgx(shape)
    dropped = (
        *_UNSEEN,
        f"{ethernet.CLASS}/{ethernet.OWN}/",
        *(f"{infiniband.CLASS}/{h.name}/" for h in shape.hcas),
    )
    kept = {path: text for path, text in node.files.items() if not path.startswith(dropped)}
    boot = [
        (level, at, text.replace("/dev/md0", root))
        for level, at, text in node.boot
        if "mlx5" not in text and "md0" not in text.replace("/dev/md0", "")
    ]
    stripe = f"md1 : active raid0 {' '.join(f'nvme{n}n1[{n}]' for n in reversed(range(8)))}\n"
    where = f"{_CPU.rsplit('/', 1)[0]}/clocksource/clocksource0"
    wanted = {key: value for key, value in {**node.expect, **expect}.items() if value is not None}
    return dataclasses.replace(
        node,
        files={
            **kept, **own,
            f"{where}/current_clocksource": f"{source.split()[0]}\n",
            f"{where}/available_clocksource": f"{source} \n",
            "/proc/self/mountinfo": MOUNTS.replace("9:0 / / ", "8:1 / / ").replace("/dev/md0", root) + RAID,
            "/etc/fstab": f"{root} / ext4 discard,errors=remount-ro 0 1\n" + RAID_FSTAB,
            "/proc/self/mountstats": "device proc mounted on /proc with fstype proc\n",
            "/proc/mdstat": "Personalities : [raid0] \n" + stripe
            + "      30005842944 blocks super 1.2 512k chunks\n\nunused devices: <none>\n",
            "/proc/net/route": ethernet.route(next(iter(own)).split("/")[4]),
            **files,
        },
        mounts={point: told for point, told in node.mounts.items() if point != "/home"} | {
            "/": sized(520_000_000_000, 0.21, 64_000_000)
        },
        chrony=clock,
        boot=boot,
        expect=wanted,
        commands={**node.commands, **commands},
        globs={
            **node.globs,
            "/dev/ipmi[0-9]*": [], f"{_CPU}/cpufreq/policy[0-9]*": [],
            "/sys/devices/system/edac/mc/mc[0-9]*/dimm[0-9]*/dimm_ue_count": [],
            "/sys/devices/system/edac/mc/mc[0-9]*/ue_count": [],
        },
        absent=[*node.absent, "/sys/devices/system/edac/mc", f"{_CPU}/cpufreq", "/sys/fs/lustre/health_check",
                "/proc/fs/lustre/health_check", "/sys/kernel/debug/lustre/health_check",
                "/sys/module/zfs/version"],
    )  # fmt: skip


def _interface(name: str, driver: str, **changes: str) -> dict[str, str]:
    """A virtual Ethernet interface, which tells no speed and no duplex."""
    files = ethernet.link(name, **{"device/uevent": f"DRIVER={driver}", **changes})
    return {path: text for path, text in files.items() if not path.endswith(("/speed", "/duplex"))}


def _memory(sizes: Sequence[str], maker: str, place: str) -> str:
    """dmidecode of a guest: what the hypervisor made up, without speeds."""
    text = "# dmidecode 3.3\nGetting SMBIOS data from sysfs.\nSMBIOS 3.1.0 present.\n\n"
    for number, size in enumerate(sizes):
        text += (
            f"Handle 0x{0x40 + number:04X}, DMI type 17, 40 bytes\nMemory Device\n\tTotal Width: Unknown\n"
            f"\tData Width: Unknown\n\tSize: {size}\n\tForm Factor: Unknown\n"
            f"\tLocator: {place.format(number + 1)}\n\tType: Unknown\n\tSpeed: Unknown\n"
            f"\tManufacturer: {maker}\n\tConfigured Memory Speed: Unknown\n\n"
        )
    return text


def _lease(address: str, stratum: int) -> str:
    """`chronyc -c tracking` on a guest; the source is a clock of the hypervisor."""
    return (
        f"{address},{stratum},{TIME - 11.2:.9f},-0.000000412,0.000000221,0.000004410,-6.201,0.000,0.004,"
        "0.000105000,0.000020100,16.1,Normal\n"
    )


def ec2() -> Node:
    """A p5.48xlarge: Nitro, 32 EFA devices, 8 drives of the instance and one of EBS."""
    shape = P5
    own = _interface("ens32", "ena", mtu="9001")
    own |= {f"{PCI}/{address}/{file}": text for address in efa.ADDRESSES for file, text in (
        ("vendor", "0x1d0f\n"), ("device", "0xefa2\n"), ("class", "0x020000\n"), ("numa_node", "0\n"),
    )}  # fmt: skip
    files: dict[str, str] = {}
    for number, address in enumerate(efa.ADDRESSES):
        files |= efa.device(address, number // 16, counters=number < 4)
        files |= link(address, 8, 4)
    for address in shape.gpus:
        files |= link(address, 16, 5)
    for number in range(len(efa.ADDRESSES)):
        files |= {
            f"/sys/class/infiniband_verbs/uverbs{number}/ibdev": f"{efa.name(efa.ADDRESSES[number])}\n",
            f"/dev/infiniband/uverbs{number}": "",
        }
    # EBS tells of no wear and no heat: all of its log is zero
    zero = {"temperature": 0, "available_spare": 0, "available_spare_threshold": 0, "percentage_used": 0}
    ebs = {
        storage.asked(n): {"seconds": 0.02, "stdout": storage.health(n, **zero).replace(
            "SAMSUNG MZQL23T8HCLS-00A07", "Amazon Elastic Block Store")}
        for n in (8, 9)
    }  # fmt: skip
    node = _guest(
        shape, files, own=own, commands={
            **ebs, ("zpool", "status"): {"error": "zpool is not installed", "absent": True},
            processors.DMIDECODE: {
                "seconds": 0.05, "stdout": _memory(["2 TB"], "Amazon EC2", "Not Specified")
            },
        },
        clock=_lease("A9FEA97B,198.18.0.9", 4), source="tsc kvm-clock acpi_pm", root="/dev/nvme8n1p1",
        expect={
            "efa_devices": 32, "mounts": ["/", "/raid"], "cpu_governor": None, "dimms": None,
            "interfaces": {"ens32": {"mtu_bytes": 9001}}, "files": None,
        },
    )  # fmt: skip
    none = {f"{efa.CLASS}/{efa.name(a)}/device/net/*": [] for a in efa.ADDRESSES}
    none |= {"/sys/class/infiniband_mad/umad[0-9]*/ibdev": []}
    return dataclasses.replace(node, globs={**node.globs, **none})


def azure() -> Node:
    """An ND96isr_H100_v5: Hyper-V, a PCI domain for each device, virtual functions of ConnectX-7 and of
    ConnectX-5, whose part of PCIe's state is all zero."""
    shape = ND
    files: dict[str, str] = {}
    for number, hca in enumerate((*AZURE_RAILS, AZURE_NET)):
        found = infiniband.adapter(dataclasses.replace(hca, rate_gbps=400), number)
        rail = hca is not AZURE_NET
        folder = f"{infiniband.CLASS}/{hca.name}"
        found |= {
            f"{folder}/board_id": "MSF0000000047\n" if rail else "MSF0000000041\n",
            f"{folder}/hca_type": "MT4126\n" if rail else "MT4122\n",
            f"{folder}/fw_ver": "28.40.1702\n" if rail else "16.30.5000\n",
            f"{folder}/device/uevent": f"DRIVER=mlx5_core\nPCI_CLASS={20700 if rail else 20000}\n"
            f"PCI_ID=15B3:{'101E' if rail else '101A'}\nPCI_SLOT_NAME={hca.pci}\n",
        }
        if not rail:
            found[f"{folder}/ports/1/rate"] = "100 Gb/sec (4X EDR)\n"
        files |= found
        files |= {
            f"{PCI}/{hca.pci}/vendor": "0x15b3\n",
            f"{PCI}/{hca.pci}/device": "0x101e\n" if rail else "0x101a\n",
            f"{PCI}/{hca.pci}/class": "0x020700\n" if rail else "0x020000\n",
            f"{PCI}/{hca.pci}/max_link_width": "16\n", f"{PCI}/{hca.pci}/current_link_width": "0\n",
            f"{PCI}/{hca.pci}/max_link_speed": "32.0 GT/s PCIe\n" if rail else "8.0 GT/s PCIe\n",
            f"{PCI}/{hca.pci}/current_link_speed": "Unknown\n",
        }  # fmt: skip
    for address in shape.gpus:
        files |= link(address, 16, 5)
    own = _interface("eth0", "hv_netvsc", speed="100000")
    # the function that the interface above it uses: no address of its own
    own |= _interface(
        AZURE_NET.netdev,
        "mlx5_core",
        flags="0x1803",
        **{f"device/infiniband/{AZURE_NET.name}/node_type": "1: CA"},
    )
    own |= {
        f"{ethernet.CLASS}/eth0/lower_{AZURE_NET.netdev}": "",
        f"{ethernet.CLASS}/{AZURE_NET.netdev}/master/ifindex": "2\n",
    }
    sizes = ["3968 MB", *["64 GB"] * 29, "32640 MB"]
    info = infiniband.ibv_devinfo(shape).split("\nhca_id:\tmlx5_8")[0]
    info = (
        info.replace("MT_0000000838", "MSF0000000047")
        .replace("28.39.1002", "28.40.1702")
        .replace("4129", "4126")
    )
    node = _guest(
        shape, files, own=own, commands={
            ("zpool", "status"): {"error": "zpool is not installed", "absent": True},
            ("mlxlink", "-d", AZURE_NET.name, "-m", "-c", "--json"): {
                "error": "mlxlink is not installed", "absent": True,
            },
            **{
                ("mlxlink", "-d", hca.name, "-m", "-c", "--json"): {
                    "error": "mlxlink is not installed", "absent": True,
                }
                for hca in AZURE_RAILS
            },
            **{
                ("ethtool", "-m", hca.netdev): {
                    "returncode": 92, "seconds": 0.01, "stdout": "",
                    "stderr": "netlink error: Operation not supported\n",
                }
                for hca in (*AZURE_RAILS, AZURE_NET)
            },
            ("ethtool", "-S", AZURE_NET.netdev): {
                "seconds": 0.01, "stdout": "NIC statistics:\n     rx_packets: 4211\n"
            },
            ("ibv_devinfo",): {"seconds": 0.06, "stdout": f"{info}\n{AZURE_NET_INFO}"},
            storage.SCAN: {"seconds": 0.01, "stdout": storage.scan([*range(8)])},
            processors.DMIDECODE: {
                "seconds": 0.05, "stdout": _memory(sizes, "Microsoft Corporation", "M{:04d}")
            },
        },
        clock=_lease("50484330,PHC0", 3), source="hyperv_clocksource_tsc_page acpi_pm", root="/dev/sda1",
        expect={
            "mounts": ["/", "/raid"], "cpu_governor": None, "dimms": None, "ib_ports": 8,
            "interfaces": {"eth0": {"mtu_bytes": 1500}}, "nvme_count": 8, "files": None,
        },
    )  # fmt: skip
    # the system's disk is no NVMe
    return dataclasses.replace(
        node,
        files={path: text for path, text in node.files.items() if not re.search(r"/nvme[89](n1)?/", path)},
        globs={
            pattern: [path for path in paths if not re.search(r"nvme[89](n1)?$|0000:4[89]:00.0", path)]
            for pattern, paths in node.globs.items()
        },
    )
