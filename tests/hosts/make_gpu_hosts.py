"""Make the recorded GPU hosts anew: `python -m tests.hosts.make_gpu_hosts [NAME...]` in the repository.

Each is a recording of the GPU checks on this machine, its NVIDIA driver replaced by the stand-in of tests/lab
with the values below. What the real driver would answer is what the profiles believe it does.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clustertools.checks.gpu_count import gpu_count
from clustertools.checks.gpu_ecc import gpu_ecc
from clustertools.checks.gpu_recovery import gpu_recovery
from clustertools.checks.gpu_remap import gpu_remap
from clustertools.checks.gpu_throttle import gpu_throttle

from clustertools import check as checking
from clustertools.host import Completed, Recorder
from tests.lab import profiles
from tests.lab.nvml import LabHost, NvmlLab, build

HOSTS = Path(__file__).parent
CHECKS = (gpu_count, gpu_ecc, gpu_remap, gpu_throttle, gpu_recovery)
TIME = 1786000000.0
PROVENANCE = (
    "recorded from the NVML stand-in of tests/lab, profile {profile}; the kernel log is written by hand"
)

#: Lines that any such machine writes at boot, as /dev/kmsg gives them:
#: priority,sequence,microseconds,flags;text
BOOT_LINES = """\
6,0,0,-;Linux version 5.15.0-1053-nvidia (buildd@lcy02-amd64-007) (gcc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0)
6,1,0,-;Command line: BOOT_IMAGE=/boot/vmlinuz-5.15.0-1053-nvidia root=/dev/md0 ro console=ttyS0,115200
6,412,1204418,-;pci {address}: [10de:{device}] type 00 class 0x030200
6,901,5120077,-;EXT4-fs (md0): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.
5,1377,21330102,-;nvidia: module license 'NVIDIA' taints kernel.
4,1378,21330110,-;Disabling lock debugging due to kernel taint
6,1391,21391744,-;nvidia-nvlink: Nvlink Core is being initialized, major device number 510
6,1399,22840913,-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build
6,1404,23104558,-;nvidia-modeset: Loading NVIDIA UNIX Open Kernel Mode Setting Driver for x86_64  {driver}
6,1410,25730122,-;mlx5_core 0000:1a:00.0: firmware version: 28.39.1002
6,1502,31200876,-;mlx5_core 0000:1a:00.0 ibp26s0: Link up
"""


@dataclass(frozen=True)
class Machine:
    """One recorded host: what is wrong with it, the stand-in's values, lines added to its kernel log."""

    name: str
    what: str
    codes: tuple[str, ...] = ()
    profile: str = "H100"
    node_class: str = "h100-8"
    values: tuple[str, ...] = ()
    kernel: str = ""
    lacks: str = ""
    hangs: bool = False


MACHINES = (
    Machine("h100-healthy", "healthy: 8 x H100, idle"),
    Machine(
        "h100-dbe-gpu3",
        "GPU 3 had an uncorrectable (double bit) error in HBM; the job on it was killed",
        ("EccUncorrected",),
        values=("3.ecc.uncorrected.volatile=1", "3.ecc.uncorrected.volatile.dram=1",
                "3.ecc.uncorrected.aggregate=1", "3.ecc.uncorrected.aggregate.dram=1"),
        kernel="""\
3,2207,88120443901,-;NVRM: Xid (PCI:0000:5d:00): 48, pid=148733, name=python3, DBE (double bit error) ECC Error
""",  # noqa: E501
    ),
    Machine(
        "h100-gpu-missing",
        "GPU 5 was not found at boot: it is neither on the PCI bus nor in NVML",
        ("GpuMissing",),
        lacks="0000:ab:00.0",
    ),
    Machine(
        "h100-remap-pending",
        "GPU 6 will remap a bad memory row at its next reset, and asks for that reset",
        ("RemapPending", "GpuRecoveryAction"),
        values=("6.remap.uncorrectable=1", "6.remap.pending=1", "6.field.230=4"),
        kernel="""\
3,2311,90233120877,-;NVRM: Xid (PCI:0000:ba:00): 63, pid=151020, name=python3, Row Remapper: New row (0x0000000000a4c2d1) marked for remapping, reset gpu to activate.
""",  # noqa: E501
    ),
    Machine(
        "h100-throttled",
        "under load; GPU 1 is too hot and slows down, GPU 4 is held down by the power supply's brake signal, "
        "the others are at their power cap, which is no fault",
        ("GpuThrottledThermal", "GpuThrottledPowerBrake", "GpuTooHot"),
        values=(
            "throttle=0x4", "temperature=64", "margin=23", "field.82=74", "power_mw=699100", "sm_clock=1755",
            "utilisation=100", "memory_utilisation=38",
            "1.temperature=90", "1.margin=-3", "1.throttle=0x48", "1.sm_clock=1005", "1.power_mw=402300",
            "1.violation.1=734000000000",
            "4.throttle=0x88", "4.sm_clock=990", "4.power_mw=351800",
        ),
    ),
    Machine(
        "a100-remap-failed",
        "GPU 2 could not remap a bad memory row: a bank has no spare rows left",
        ("RemapFailed", "RemapHistogramLow"),
        profile="A100",
        node_class="a100-8",
        values=("2.remap.uncorrectable=9", "2.remap.failed=1", "2.remap.histogram=636,2,1,0,1"),
    ),
    Machine(
        "h100-nvml-hang",
        "NVML hangs in the driver: nobody can say how the GPUs are",
        hangs=True,
    ),
)  # fmt: skip


class Steady(LabHost):
    """The lab's machine with a name and a time that do not change from one recording to the next."""

    boot_id = "4f0c7a52-6a0e-4b43-8d3d-1f3f6f0f2a10"

    def now(self) -> float:
        return TIME

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        done = super().run(*argv, timeout_seconds=timeout_seconds, stdin=stdin)
        return dataclasses.replace(done, elapsed_seconds=0.4)


class Hangs(Steady):
    """Answers as a command does that takes a minute."""

    def run(self, *argv: str, timeout_seconds: float = 10.0, stdin: str = "") -> Completed:
        return Completed(argv, 0, "", "", 60.0)


def make(machine: Machine, library: Path, work: Path) -> Path:
    """Record one machine. Raises RuntimeError when the checks do not find what it is made to show."""
    lab = NvmlLab(library, work)
    addresses = getattr(profiles, f"DGX_{machine.profile}")
    text = getattr(profiles, machine.profile)
    if machine.lacks:
        left = tuple(a for a in addresses if a != machine.lacks)
        text = profiles.profile(getattr(profiles, f"{machine.profile}_VALUES"), left)
    lab.use(text)
    lab.set(*machine.values)
    os.environ.update(lab.environment)
    folder = HOSTS / machine.name
    shutil.rmtree(folder, ignore_errors=True)
    host = (Hangs if machine.hangs else Steady)(lab.root, f"gpu-{100 + MACHINES.index(machine)}")
    recorder = Recorder(host, folder)
    expect = {"gpu_count": 8}
    codes: set[str] = set()
    for check in CHECKS:
        verdict = checking.run(check, recorder, expect=expect)
        codes |= verdict.codes
        if verdict.blind and not machine.hangs:
            raise RuntimeError(f"{machine.name}: {check.name} is blind: {verdict.blind}")
    if codes != set(machine.codes):
        raise RuntimeError(f"{machine.name}: found {sorted(codes)}, meant {sorted(machine.codes)}")
    recorder.save(
        {
            "what": machine.what,
            "node_class": machine.node_class,
            "expect": expect,
            "expect_codes": list(machine.codes),
            "provenance": PROVENANCE.format(profile=machine.profile),
        }
    )
    kernel_log = folder / "files" / "dev" / "kmsg"
    kernel_log.parent.mkdir(exist_ok=True)
    device = {"H100": "2330", "A100": "20b2"}[machine.profile]
    driver = text.split("driver=", 1)[1].split("\n", 1)[0]
    boot = BOOT_LINES.format(address=addresses[0], device=device, driver=driver)
    kernel_log.write_text(boot + machine.kernel)
    return folder


def main(names: list[str]) -> None:
    """Make those named, or all."""
    with tempfile.TemporaryDirectory() as work:
        library = build(Path(work))
        for machine in MACHINES:
            if not names or machine.name in names:
                print(make(machine, library, Path(work)))


if __name__ == "__main__":
    main(sys.argv[1:])
