"""Errors on the xGMI links between AMD's GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clustertools.check import Context, check
from clustertools.errors import Unobservable, Unparsable
from clustertools.model import Finding, Reading, Remedy, gpu_part
from clustertools.sources.pci import amd_devices


@check(
    stages={"preflight", "watch"},
    codes={
        "XgmiUncorrected": "a GPU had an uncorrected error on an xGMI link",
        "XgmiCorrected": "a GPU corrects errors on an xGMI link",
    },
)
def xgmi_errors(ctx: Context) -> Iterator[Finding | Reading]:
    """Reads the amdgpu driver's RAS counters of the xGMI block, which count since the driver was loaded.

    Any uncorrected error is critical, as in Azure's health checks of the MI300X; corrected ones are a warning
    when they grow. (`rocm-smi --showxgmierr` is not asked: asking resets what it shows.)
    """
    devices = amd_devices(ctx.host)
    if not devices:
        raise ctx.skip("no AMD GPU on the PCI bus")
    files = {}
    for address in devices:
        # xgmi_wafl_err_count up to Linux 5.16, xgmi_err_count since
        for path in ctx.host.glob(f"/sys/bus/pci/devices/{address}/ras/xgmi*_err_count"):
            files[address] = path
    if not files:
        raise ctx.skip("the driver counts no xGMI errors here")
    counted = {}
    for address, path in files.items():
        try:
            counted[address] = _counts(path, ctx.host.read(path))
        except Unobservable as exc:
            ctx.unseen(str(exc))
    rates = ctx.rates({address: float(counts["ce"]) for address, counts in counted.items()})
    for address, counts in counted.items():
        part = gpu_part(address)
        yield ctx.reading("xgmi_uncorrected_errors_total", counts["ue"], part)
        yield ctx.reading("xgmi_corrected_errors_total", counts["ce"], part)
        if counts["ue"]:
            yield ctx.critical(
                "XgmiUncorrected", part,
                f"GPU {address}: {counts['ue']} uncorrected xGMI errors since the driver was loaded",
                remedy=Remedy.REBOOT_NODE,
            )  # fmt: skip
        rate = rates.get(address)
        if rate and rate.delta > 0:
            yield ctx.warning(
                "XgmiCorrected", part,
                f"GPU {address}: {rate.delta:.0f} corrected xGMI errors since the last look",
                remedy=Remedy.INSPECT, clears=3600.0,
            )  # fmt: skip


def _counts(path: str, text: str) -> dict[str, int]:
    # ue: 0\nce: 0\n and, since Linux 6.8, de: 0 (kernel documentation, gpu/amdgpu/ras.rst)
    if text.startswith("Query currently inaccessible"):
        raise Unobservable(f"{path}: the GPU is being reset")
    found = {key: int(n) for key, n in re.findall(r"^([ucd]e): (\d{1,18})$", text, re.MULTILINE)}
    if not {"ue", "ce"} <= found.keys():
        raise Unparsable(f"{path} has an unknown form", text)
    return found
