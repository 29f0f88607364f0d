"""What a node is, as flat facts, name to text: the versions and settings that a cluster's nodes should share.

    facts(host)    {"kernel": "5.15.0-113-generic", "sysctl.net.core.rmem_max": "67108864", ...}

Only what could be found out is in there: a fact that is missing is unknown, not different. Nothing that
changes by itself from one minute to the next is a fact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from clustertools.errors import Unobservable
from clustertools.host import Host

#: One file, one fact, as it is. Paths as in the kernel's Documentation/ABI and admin-guide.
_FILES: Mapping[str, str] = {
    "kernel": "/proc/sys/kernel/osrelease",
    "kernel.build": "/proc/sys/kernel/version",
    "driver.nvidia": "/sys/module/nvidia/version",
    "driver.nvidia_peermem": "/sys/module/nvidia_peermem/version",
    "driver.gdrdrv": "/sys/module/gdrdrv/version",
    "driver.amdgpu": "/sys/module/amdgpu/version",
    "driver.mlx5_core": "/sys/module/mlx5_core/version",
    "driver.efa": "/sys/module/efa/version",
    "driver.lustre": "/sys/module/lustre/version",
    "bios.vendor": "/sys/class/dmi/id/bios_vendor",
    "bios.version": "/sys/class/dmi/id/bios_version",
    "bios.date": "/sys/class/dmi/id/bios_date",
    "board.name": "/sys/class/dmi/id/board_name",
    "board.version": "/sys/class/dmi/id/board_version",
    "product.name": "/sys/class/dmi/id/product_name",
    "clock_source": "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    "cpu.governor": "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "cpu.smt": "/sys/devices/system/cpu/smt/control",
    "cpu.online": "/sys/devices/system/cpu/online",
    "numa.online": "/sys/devices/system/node/online",
    "cgroup.controllers": "/sys/fs/cgroup/cgroup.controllers",
}
#: Files that show a choice in brackets: "always [madvise] never".
_CHOICES = {
    "thp.enabled": "/sys/kernel/mm/transparent_hugepage/enabled",
    "thp.defrag": "/sys/kernel/mm/transparent_hugepage/defrag",
}
#: The sysctls that decide about training: memory, sockets, NUMA, limits.
_SYSCTLS = (
    "kernel.numa_balancing kernel.pid_max kernel.threads-max kernel.shmmax kernel.randomize_va_space "
    "kernel.yama.ptrace_scope kernel.hung_task_timeout_secs kernel.panic kernel.panic_on_oops "
    "vm.max_map_count vm.swappiness vm.overcommit_memory vm.zone_reclaim_mode vm.nr_hugepages "
    "vm.min_free_kbytes vm.dirty_ratio vm.dirty_background_ratio fs.file-max fs.nr_open "
    "net.core.rmem_max net.core.wmem_max net.core.somaxconn net.core.netdev_max_backlog "
    "net.ipv4.tcp_rmem net.ipv4.tcp_wmem net.ipv4.tcp_mtu_probing net.ipv4.ip_local_port_range "
    "net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.conf.all.rp_filter"
).split()
#: Words of the kernel's command line that belong to one machine.
_OWN_WORDS = r"(root|resume|BOOT_IMAGE|initrd|ip|ifname|BOOTIF|rd\.md\.uuid|rd\.lvm\.lv|rd\.luks\.uuid)=\S*"
#: Variables of the communication libraries; the values are settings, never secrets.
ENVIRONMENT = re.compile(r"(NCCL|UCX|OMPI_MCA|RCCL|FI|NVSHMEM|TORCH_NCCL|GLOO|MLX5|CUDA_DEVICE)_\w{1,80}")
#: Mount options that change with each mount or name this node.
_OWN_OPTIONS = re.compile(r"(clientaddr|addr|mountaddr|size|nr_inodes|inode64|seclabel)(=.*)?")


def facts(
    host: Host, pythons: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """All facts that this machine tells. Raises Unobservable when not even its kernel can be read.

    `pythons` are interpreters of job environments; asked for the versions of torch and NCCL as packages, they
    are not imported. Of `environment` only the variables of communication libraries are taken.
    """
    host.read(_FILES["kernel"])
    found: dict[str, str] = {}
    for part in (_plain, _release, _cpu, _command_line, _hcas, _mounts, _gpus):
        found.update(part(host))
    for python in pythons:
        found.update(_packages(host, python))
    for name, value in (environment or {}).items():
        if ENVIRONMENT.fullmatch(name):
            found[f"env.{name}"] = value
    return {name: " ".join(value.split())[:1000] for name, value in sorted(found.items()) if value.strip()}


def _text(host: Host, path: str) -> str:
    try:
        return host.read(path, 0, 1 << 20).strip()
    except Unobservable:
        # an unknown fact is left out: that is what unknown means here
        return ""


def _plain(host: Host) -> Iterator[tuple[str, str]]:
    for name, path in _FILES.items():
        yield name, _text(host, path)
    for name, path in _CHOICES.items():
        # always [madvise] never
        match = re.search(r"\[(\w+)\]", _text(host, path))
        yield name, match[1] if match else ""
    for name in _SYSCTLS:
        yield f"sysctl.{name}", _text(host, f"/proc/sys/{name.replace('.', '/')}")
    # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build
    module = re.search(r"NVRM version: NVIDIA UNIX (Open )?", _text(host, "/proc/driver/nvidia/version"))
    yield "driver.nvidia.open", ("yes" if module[1] else "no") if module else ""


def _release(host: Host) -> Iterator[tuple[str, str]]:
    told = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _text(host, "/etc/os-release"), re.MULTILINE))
    yield "os", told.get("PRETTY_NAME", "")
    # MLNX_OFED_LINUX-24.10-0.7.0.0 ...
    match = re.search(r"VERSION=\S*?(\d[\w.-]*)", _text(host, "/etc/mlnx-release") or "")
    yield "ofed", match[1] if match else ""
    try:
        yield "ofed", host.run("ofed_info", "-s", timeout_seconds=5).check().stdout.strip().rstrip(":")
    except Unobservable:
        # it is not installed
        return


def _cpu(host: Host) -> Iterator[tuple[str, str]]:
    text = _text(host, "/proc/cpuinfo")
    for name, key in (("cpu.model", "model name"), ("cpu.microcode", "microcode")):
        match = re.search(rf"^{key}\s*: (.{{1,200}})$", text, re.MULTILINE)
        yield name, match[1] if match else ""
    # MemTotal:       2113425548 kB          firmware takes a little more here and there: in GiB
    total = re.search(r"^MemTotal:\s+(\d{1,15}) kB$", _text(host, "/proc/meminfo"), re.MULTILINE)
    yield "memory_gib", str(round(int(total[1]) / (1 << 20))) if total else ""


def _command_line(host: Host) -> Iterator[tuple[str, str]]:
    words = re.sub(_OWN_WORDS, "", _text(host, "/proc/cmdline")).split()
    yield "kernel.command_line", " ".join(sorted(words))
    # without a group for devices the IOMMU is off
    try:
        yield "iommu", "on" if host.glob("/sys/kernel/iommu_groups/*") else "off"
    except Unobservable:
        return


def _hcas(host: Host) -> Iterator[tuple[str, str]]:
    """Firmware by kind of adapter: nodes may number theirs differently."""
    try:
        devices = host.glob("/sys/class/infiniband/*")
    except Unobservable:
        return
    versions: dict[str, set[str]] = {}
    for device in devices:
        kind = _text(host, f"{device}/board_id") or _text(host, f"{device}/hca_type")
        versions.setdefault(kind, set()).add(_text(host, f"{device}/fw_ver"))
    yield "hca.count", str(len(devices)) if devices else ""
    for kind, seen in versions.items():
        if kind and all(seen):
            yield f"hca.firmware.{kind}", " ".join(sorted(seen))


def _mounts(host: Host) -> Iterator[tuple[str, str]]:
    """Options of the network file systems, by mount point."""
    for line in _text(host, "/proc/self/mounts").splitlines():
        # 198.18.0.9:/export/home /home nfs4 rw,relatime,vers=4.2,hard,addr=198.18.0.9 0 0
        words = line.split(" ")
        if len(words) == 6 and re.fullmatch(r"nfs4?|lustre|gpfs|beegfs|ceph|wekafs|cifs", words[2]):
            kept = sorted(word for word in words[3].split(",") if not _OWN_OPTIONS.fullmatch(word))
            yield f"mount.{words[1]}", f"{words[2]} {','.join(kept)}"


def _gpus(host: Host) -> Iterator[tuple[str, str]]:
    """By /proc/driver/nvidia, which needs no driver call."""
    names, vbios, gsp = [], set(), set()
    try:
        places = host.glob("/proc/driver/nvidia/gpus/*/information")
    except Unobservable:
        return
    for path in places:
        told = dict(re.findall(r"^([\w ]{1,40}):\s+(\S.*?)\s*$", _text(host, path), re.MULTILINE))
        names.append(told.get("Model", ""))
        vbios.add(told.get("Video BIOS", "").replace("??.??.??.??.??", ""))
        gsp.add(told.get("GPU Firmware", "").replace("N/A", ""))
    yield "gpu.count", str(len(names)) if names else ""
    yield "gpu.model", " ".join(sorted(set(names)))
    yield "gpu.vbios", " ".join(sorted(vbios)) if all(vbios) else ""
    yield "gpu.gsp", " ".join(sorted(gsp)) if all(gsp) else ""


_ASK_PACKAGES = """
import importlib.metadata as m, json, re
want = re.compile(r"(torch|nvidia[-_](nccl|cuda[-_]runtime|cudnn|cublas|nvshmem)[-_]cu\\d+|"
                  r"transformer[-_]engine|flash[-_]attn|megatron[-_]core|deepspeed|"
                  r"triton|numpy|jax|jaxlib)", re.I)
print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions()
                  if d.metadata["Name"] and want.fullmatch(d.metadata["Name"])}))
"""


def _packages(host: Host, python: str) -> Iterator[tuple[str, str]]:
    try:
        said = host.run(python, "-I", "-c", _ASK_PACKAGES, timeout_seconds=20).check().stdout
        told = json.loads(said)
        yield from ((f"python.{name.lower()}", str(version)) for name, version in told.items())
    except (Unobservable, ValueError, AttributeError):
        # that environment is not here, which others' facts will show
        return
