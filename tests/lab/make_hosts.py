"""Make the recorded hosts anew: `python -m tests.lab.make_hosts [NAME...]` in the repository.

Three are whole: h100-healthy, a100-healthy and cpu-healthy (`whole_node`, with what the NVML stand-in of
tests/lab answers). Each of the others names one of them as its base and holds only what is wrong with it. A
check that reads something new is blind on all of them until `whole_node` has it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustertools import check as checking
from clustertools.host import PYTHON, RecordedHost, dump_yaml
from clustertools.model import Status
from tests.lab import cloud_node, faults, parts, profiles, whole_node
from tests.lab.host_faults import CHRONY, GPU_FAULTS, HOST_FAULTS, NVML, Machine
from tests.lab.nvml import NvmlLab, build
from tests.lab.whole_node import Node, kernel_log

HOSTS = Path(__file__).parents[1] / "hosts"
MOUNTS = (PYTHON, "-m", "clustertools.sources.mounts", "--deadline", "5")


@dataclass(frozen=True)
class Whole:
    """A healthy node, its profile in tests/lab/profiles.py (none: no GPUs) and the class that it is of."""

    node: Node
    profile: str
    node_class: str
    what: str


WHOLE = {
    "h100-healthy": Whole(
        whole_node.dgx(whole_node.DGX_H100), "H100", "h100-8", "healthy: DGX H100, 8 x H100, idle"
    ),
    "a100-healthy": Whole(
        whole_node.dgx(whole_node.DGX_A100), "A100", "a100-8", "healthy: DGX A100, 8 x A100 80 GB, idle"
    ),
    "h200-healthy": Whole(
        whole_node.dgx(whole_node.DGX_H200), "H200", "h200-8", "healthy: DGX H200, 8 x H200, idle"
    ),
    "b200-healthy": Whole(
        whole_node.dgx(whole_node.DGX_B200), "B200", "b200-8", "healthy: DGX B200, 8 x B200, idle"
    ),
    "gb200-healthy": Whole(
        whole_node.dgx(whole_node.GB200_TRAY), "GB200", "gb200-4",
        "healthy: a compute tray of a GB200 NVL72, 4 x GB200, idle",
    ),
    "mi300x-healthy": Whole(
        whole_node.dgx(whole_node.MI300X), "", "mi300x-8", "healthy: 8 x MI300X, idle"
    ),
    "ec2-healthy": Whole(
        cloud_node.ec2(), "H100", "p5.48xlarge", "healthy: EC2 p5.48xlarge, 8 x H100 and 32 EFA devices, idle"
    ),
    "azure-healthy": Whole(
        cloud_node.azure(), "H100", "nd96isr-h100-v5",
        "healthy: Azure ND96isr_H100_v5, 8 x H100 and 8 virtual functions of ConnectX-7, idle",
    ),
    "cpu-healthy": Whole(whole_node.cpu_node(), "", "cpu", "healthy: a node without GPUs, idle"),
}  # fmt: skip

MACHINES = (
    *(Machine(name, whole.what, base="") for name, whole in WHOLE.items()),
    *GPU_FAULTS,
    *HOST_FAULTS,
    *faults.machines(),
)


class Asked(RecordedHost):
    """The files of a recording; its commands are answered here, and what was asked is kept."""

    def __init__(self, folder: Path, machine: Machine, nvml: Mapping[str, Any] | None) -> None:
        super().__init__(folder)
        self.machine = machine
        self.nvml = nvml
        self.asked: dict[tuple[str, ...], Mapping[str, Any]] = {}

    def _answer(self, argv: tuple[str, ...]) -> Mapping[str, Any] | None:
        known = super()._answer(argv)
        whole = WHOLE[self.machine.base or self.machine.name].node
        # a tool that is asked about this node by its name: {node} stands for it
        named = tuple("{node}" if word == self.name else word for word in argv)
        new: Mapping[str, Any] | None = self.machine.commands.get(named)
        if new is None and argv == NVML and self.nvml is not None:
            new = self.nvml
        elif new is None and argv == CHRONY and known is None:
            new = {"seconds": 0.003, "stdout": whole.chrony}
        elif new is None and argv[: len(MOUNTS)] == MOUNTS and (known is None or self.machine.mounts):
            told = {**whole.mounts, **self.machine.mounts}
            points = argv[len(MOUNTS) :]
            hangs = any(told[point].get("hung") for point in points)
            text = whole_node.answers({point: told[point] for point in points})
            new = {"seconds": 5.06 if hangs else 0.06, "stdout": text}
        elif new is None and known is None:
            new = whole.commands.get(named)
        if new is None:
            return known
        if named != argv and "stdout" in new:
            new = {**new, "stdout": str(new["stdout"]).replace("{node}", self.name)}
        self.asked[argv] = {"argv": list(argv), **({} if "error" in new else {"returncode": 0}), **new}
        return self.asked[argv]


def make(machine: Machine, library: Path, work: Path, hosts: Path = HOSTS) -> Path:
    """Write one recording into `hosts`, where its base must be.

    Raises RuntimeError when the checks do not find there what it is made to show.
    """
    whole = WHOLE[machine.base or machine.name]
    folder = hosts / machine.name
    shutil.rmtree(folder, ignore_errors=True)
    files = dict(machine.files) if machine.base else dict(whole.node.files)
    if machine.kernel or not machine.base:
        files["/dev/kmsg"] = kernel_log([*whole.node.boot, *machine.kernel])
    for path, text in files.items():
        place = folder / "files" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    about = _about(machine, whole)
    folder.mkdir(exist_ok=True)
    dump_yaml(folder / "host.yaml", about)
    _listings(folder, machine, whole)
    host = Asked(folder, machine, _nvml(machine, whole, library, work))
    _judge(machine, host)
    (folder / "commands").mkdir(exist_ok=True)
    for number, entry in enumerate(host.asked.values(), 1):
        word = (
            str(entry["argv"][2 if entry["argv"][0] == PYTHON else 0]).rsplit(".", 1)[-1].rsplit("/", 1)[-1]
        )
        dump_yaml(folder / "commands" / f"{number:03d}-{word}.yaml", entry)
    if not host.asked:
        (folder / "commands").rmdir()
    return folder


def _listings(folder: Path, machine: Machine, whole: Whole) -> None:
    """What was looked for and is not there; without it a check would be blind, not content."""
    globs = {**({} if machine.base else whole.node.globs), **machine.globs}
    absent = [*(() if machine.base else whole.node.absent), *machine.absent]
    if globs or absent:
        told = {"globs": {name: list(paths) for name, paths in globs.items()}, "absent": absent}
        dump_yaml(folder / "listings.yaml", {key: value for key, value in told.items() if value})


def _about(machine: Machine, whole: Whole) -> dict[str, Any]:
    kind = whole.node_class.split("-")[0]
    about: dict[str, Any] = {"base": f"../{machine.base}"} if machine.base else {}
    about |= {
        "name": f"{'cpu' if kind == 'cpu' else 'gpu'}-{1000 + machine.number}",
        "boot_id": machine.boot_id,
    }
    provenance = whole_node.PROVENANCE + parts.provenance()
    provenance += whole_node.NVML_PROVENANCE.format(profile=whole.profile) if whole.profile else ""
    if not machine.base:
        about |= {"time": whole_node.TIME, "node_class": whole.node_class, "expect": dict(whole.node.expect)}
    about |= {"what": machine.what, "expect_codes": list(machine.codes)}
    if machine.unknown:
        about["expect_unknown"] = list(machine.unknown)
    if machine.without:
        about["without"] = list(machine.without)
    return {**about, "provenance": provenance, **machine.about}


def _nvml(machine: Machine, whole: Whole, library: Path, work: Path) -> Mapping[str, Any] | None:
    """What the stand-in answers; None where the base's answer is the machine's."""
    profile = machine.profile or whole.profile
    if not profile or (machine.base and not machine.values and not machine.lacks):
        return None
    addresses = whole.node.gpus
    left = tuple(a for a in addresses if a != machine.lacks)
    lab = NvmlLab(library, work)
    lab.use(profiles.profile(getattr(profiles, f"{profile}_VALUES"), left))
    # stand-ins that the redaction leaves alone
    lab.set(*(f"{n}.serial=9999999{n:06d}" for n in range(len(left))), *machine.values)
    os.environ.update(lab.environment)
    return {"seconds": 0.4, "stdout": lab.host.run(*NVML).check().stdout, "stderr": ""}


def _judge(machine: Machine, host: Asked) -> None:
    """Ask all that the checks ask, with expectations and without; compare the findings with the machine."""
    codes: set[str] = set()
    unknown: set[str] = set()
    for check in checking.discover(site_folders=()).values():
        if check.stages == {"job"}:
            continue
        checking.run(check, host)
        past = host.about.get("past", {}).get(check.name)
        verdict = checking.run(check, host, expect=host.about["expect"], past=past)
        codes |= verdict.codes
        if verdict.blind or verdict.status is Status.UNKNOWN:
            unknown.add(check.name)
    if codes != set(machine.codes) or unknown != set(machine.unknown):
        raise RuntimeError(
            f"{machine.name}: found {sorted(codes)}, blind {sorted(unknown)}; "
            f"meant {sorted(machine.codes)}, blind {sorted(machine.unknown)}"
        )


def main(names: list[str]) -> None:
    """Make those named, or all."""
    with tempfile.TemporaryDirectory() as work:
        library = build(Path(work))
        for machine in MACHINES:
            if not names or machine.name in names:
                print(make(machine, library, Path(work)))


if __name__ == "__main__":
    main(sys.argv[1:])
