"""`nvidia-smi` as it prints its table: drivers 390 to 595, and what it says when it cannot.

The columns moved and were renamed between drivers; what is read is the form of each cell, not its place.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nvidia-smi"

FIELDS = {
    "nvidia_smi": "version of the tool",
    "driver": "version of the driver",
    "cuda": "newest CUDA version that the driver knows",
    "errors[]": "what it said instead, or beside the table: a GPU that is lost, no driver, no devices",
    "gpus[].index": "its number",
    "gpus[].name": "product name; cut by the table",
    "gpus[].pci_bus_id": "its PCI address as printed",
    "gpus[].persistence": "persistence mode; null where the card has none",
    "gpus[].ecc_uncorrected_volatile": "uncorrected memory errors since driver load; null: no ECC, or off",
    "gpus[].fan_percent": "null where the card has no fan",
    "gpus[].temperature_celsius": "null where it could not be read (ERR!)",
    "gpus[].performance_state": "P0 is the fastest",
    "gpus[].power_watts": "draw",
    "gpus[].power_limit_watts": "the limit",
    "gpus[].memory_used_bytes": "of the frame buffer",
    "gpus[].memory_total_bytes": "of the frame buffer",
    "gpus[].utilisation_percent": "share of time with a kernel running",
    "gpus[].compute_mode": "Default, E. Process, Prohibited",
    "gpus[].mig_mode": "Enabled, Disabled; null where the card has none",
    "gpus[].unreadable[]": "what stood as ERR! or Unknown Error",
    "processes[].gpu": "number of its GPU",
    "processes[].pid": "process id",
    "processes[].type": "C compute, G graphics, M+C of an MPS client",
    "processes[].name": "its command; cut by the table",
    "processes[].memory_bytes": "GPU memory that it holds; null where it is not told",
}

_MIB = 1 << 20
# | NVIDIA-SMI 550.54.15              Driver Version: 550.54.15      CUDA Version: 12.4     |
_HEAD = re.compile(
    r"\| NVIDIA-SMI (\S+)\s+(?:Driver|KMD) Version: (\S+)(?:\s+(?:CUDA|CUDA UMD) Version: (\S+))?"
)
# |   0  NVIDIA H100 80GB HBM3          On  |   00000000:18:00.0 Off |                    0 |
_GPU = re.compile(
    r"\|\s+(\d+)\s+(\S.*?)\s+(On|Off|N/A|TCC|WDDM|MCDM)\s*"
    r"\|\s*([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)\s+(?:On|Off|N/A)\s*\|\s*(\S+(?: \S+)*)\s*\|"
)
_LOST = r"N/A|ERR!|Unknown Error"
# | N/A   31C    P0             72W /  700W |       0MiB /  81559MiB |      0%      Default |
_STATE = re.compile(
    rf"\|\s*(\d+%|{_LOST})\s+(\d+C|{_LOST})\s+(P\d+|{_LOST})\s+(\d+W|{_LOST})\s*/\s*(\d+W|{_LOST})\s*"
    rf"\|\s*(\d+MiB|{_LOST})\s*/\s*(\d+MiB|{_LOST})\s*\|\s*(\d+%|{_LOST})\s+(\S.*?)\s*\|"
)
# |                                         |                        |             Disabled |
_MIG = re.compile(r"\|\s+\|\s+\|\s*(Enabled\*?|Disabled\*?|N/A|ERR!)\s*\|")
# |    0   N/A  N/A     12345      C   python3                                    10240MiB |
_PROCESS = re.compile(
    r"\|\s+(\d+)\s+(?:(?:N/A|\d+)\s+(?:N/A|\d+)\s+)?(\d+)\s+([CGM+]+)\s+(\S.*?)\s+(\d+MiB|N/A)\s*\|"
)
# Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover it
_ERROR = re.compile(
    r"(Unable to determine|NVIDIA-SMI has failed|No devices|Failed to initialize NVML|WARNING: infoROM)"
)
_FRAME = re.compile(r"[+|][-=+|\s]*[+|]?\s*")
#: The headings of both tables; the last is that of the third line, which has only one column.
_HEADINGS = (
    "GPU  Name",
    "Fan  Temp",
    "Processes:",
    "GPU   GI",
    "GPU       PID",
    "ID   ID",
    "No running",
    "MIG M.",
)
# Fri Nov 21 14:05:16 2026
_DATE = re.compile(r"\w{3} \w{3} +\d+ [\d:]{8} \d{4}\s*")


def recognise(text: str) -> bool:
    """Whether it has the table's first line, or one of the lines that stand in its place."""
    return re.search(r"\| NVIDIA-SMI [\d.]+ +(Driver|KMD)", text[:4000]) is not None or (
        "NVIDIA-SMI has failed" in text[:400] or "Unable to determine the device handle for GPU" in text[:400]
    )


def read(text: str) -> dict[str, Any]:
    """The table. Raises Unparsable for a line of another form."""
    told: dict[str, Any] = {
        "nvidia_smi": None, "driver": None, "cuda": None, "errors": [], "gpus": [], "processes": [],
    }  # fmt: skip
    for line in text.splitlines():
        if match := _HEAD.match(line):
            told["nvidia_smi"], told["driver"] = match[1], match[2]
            told["cuda"] = None if match[3] in (None, "N/A", "ERR!") else match[3]
        elif match := _GPU.match(line):
            told["gpus"].append(_gpu(match))
        elif told["gpus"] and (match := _STATE.match(line)):
            told["gpus"][-1] |= _state(match, told["gpus"][-1]["unreadable"])
        elif told["gpus"] and (match := _MIG.match(line)):
            told["gpus"][-1]["mig_mode"] = match[1] if match[1][0] in "ED" and match[1] != "ERR!" else None
        elif match := _PROCESS.match(line):
            told["processes"].append(
                {"gpu": int(match[1]), "pid": int(match[2]), "type": match[3], "name": match[4],
                 "memory_bytes": _number(match[5], _MIB, "", [])}
            )  # fmt: skip
        elif _ERROR.match(line):
            told["errors"].append(line.strip())
        elif line.strip() and not (_is_frame(line)):
            # what it adds to an error, such as what to try
            if not told["errors"] or line.startswith("|"):
                raise Unparsable("nvidia-smi: a line of an unknown form", line)
            told["errors"].append(line.strip())
    if not (told["driver"] or told["errors"]):
        raise Unparsable("nvidia-smi: no table", text)
    return told


def _is_frame(line: str) -> bool:
    words = line.strip("| ")
    return bool(_FRAME.fullmatch(line) or _DATE.fullmatch(line) or words.startswith(_HEADINGS))


def _gpu(match: re.Match[str]) -> dict[str, Any]:
    index, name, persistence, bus, ecc = match.groups()
    unreadable: list[str] = []
    return {
        "index": int(index), "name": name, "pci_bus_id": bus,
        "persistence": {"On": True, "Off": False}.get(persistence),
        "ecc_uncorrected_volatile": _number(ecc, 1, "ecc_uncorrected_volatile", unreadable),
        "fan_percent": None, "temperature_celsius": None, "performance_state": None, "power_watts": None,
        "power_limit_watts": None, "memory_used_bytes": None, "memory_total_bytes": None,
        "utilisation_percent": None, "compute_mode": None, "mig_mode": None, "unreadable": unreadable,
    }  # fmt: skip


def _state(match: re.Match[str], unreadable: list[str]) -> dict[str, Any]:
    fan, temperature, state, power, limit, used, total, utilisation, mode = match.groups()
    numbers = {
        "fan_percent": (fan, 1), "temperature_celsius": (temperature, 1), "power_watts": (power, 1),
        "power_limit_watts": (limit, 1), "memory_used_bytes": (used, _MIB),
        "memory_total_bytes": (total, _MIB), "utilisation_percent": (utilisation, 1),
    }  # fmt: skip
    found: dict[str, Any] = {
        name: _number(text, factor, name, unreadable) for name, (text, factor) in numbers.items()
    }
    if state in ("ERR!", "Unknown Error"):
        unreadable.append("performance_state")
    return {
        **found, "performance_state": state if state.startswith("P") else None,
        "compute_mode": None if mode in ("N/A", "ERR!") else mode,
    }  # fmt: skip


def _number(text: str, factor: int, name: str, unreadable: list[str]) -> int | None:
    match = re.match(r"(\d+)", text)
    if match is None and text not in ("N/A", "Off"):
        unreadable.append(name)
    return int(match[1]) * factor if match else None
