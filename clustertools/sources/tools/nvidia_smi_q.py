"""`nvidia-smi -q` as text: sections by their indentation. Its XML (`-q -x`) is another kind."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nvidia-smi-q"

FIELDS = {
    "timestamp": "as printed, local time",
    "driver": "version of the driver",
    "cuda": "newest CUDA version that the driver knows",
    "gpus[].pci_bus_id": "the address that the section of the GPU begins with",
    "gpus[].*": "its sections and figures by their headings in lower case with underscores, the unit at "
    "the end: fb_memory_usage.total_bytes, temperature.gpu_current_temp_celsius; null: N/A; what is repeated "
    "is a list, and `processes` is a list of maps",
}  # fmt: skip

#: Unit to the end of the name, and the factor.
_UNITS = {
    "MiB": ("bytes", 1 << 20), "KiB": ("bytes", 1 << 10), "GiB": ("bytes", 1 << 30), "W": ("watts", 1),
    "MHz": ("mhz", 1), "C": ("celsius", 1), "%": ("percent", 1), "us": ("microseconds", 1),
    "ms": ("milliseconds", 1), "KB/s": ("kb_per_second", 1), "MB/s": ("mb_per_second", 1),
    "GB/s": ("gb_per_second", 1), "GT/s": ("gt_per_second", 1), "mJ": ("millijoules", 1), "FPS": ("fps", 1),
}  # fmt: skip
# GPU 00000000:18:00.0
_GPU = re.compile(r"GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.\d)")
# 81559 MiB      72.30 W       31 C      0 %
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?) ?([A-Za-z/%]+)")
_DEPTH = 40


def recognise(text: str) -> bool:
    """Whether it begins as nvidia-smi -q does."""
    return "==============NVSMI LOG==============" in text[:2000]


def read(text: str) -> dict[str, Any]:
    """The driver and the sections of each GPU. Raises Unparsable for a line of another form."""
    top: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    # sections that are open: their indentation and their values
    open_sections: list[tuple[int, dict[str, Any]]] = [(-1, top)]
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith("====="):
            continue
        depth = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        if depth > _DEPTH * 4:
            raise Unparsable("nvidia-smi -q: a line that is indented too far", line)
        while len(open_sections) > 1 and depth <= open_sections[-1][0]:
            open_sections.pop()
        inside = open_sections[-1][1]
        name, mark, value = bare.partition(" : ")
        if not mark and bare.endswith(" :"):
            name, mark, value = bare[:-2], ":", ""
        if depth == 0 and (match := _GPU.fullmatch(bare)):
            gpus.append({"pci_bus_id": match[1]})
            open_sections = [(-1, top), (0, gpus[-1])]
        elif mark and name.strip() == "Process ID":
            inside.setdefault("list", []).append({"process_id": _pid(value.strip())})
            open_sections.append((depth, inside["list"][-1]))
        elif mark:
            key, read_value = _value(name, value.strip())
            previous = inside.get(key)
            if key in inside and key != "gpus":
                # Process ID of the second process in the same section
                inside[key] = [*(previous if isinstance(previous, list) else [previous]), read_value]
            else:
                inside[key] = read_value
        elif re.match(r"[A-Za-z]", bare):
            section: dict[str, Any] = {}
            key = _key(name)
            if isinstance(inside.get(key), dict):
                inside[key] = [inside[key], section]
            elif isinstance(inside.get(key), list):
                inside[key].append(section)
            else:
                inside[key] = section
            open_sections.append((depth, section))
        else:
            raise Unparsable("nvidia-smi -q: a line of an unknown form", line)
    if not gpus and "driver_version" not in top:
        raise Unparsable("nvidia-smi -q: no GPU and no driver", text)
    for gpu in gpus:
        if "processes" in gpu:
            gpu["processes"] = _processes(gpu["processes"])
    return {
        "timestamp": top.get("timestamp"), "driver": _text(top.get("driver_version")),
        "cuda": _text(top.get("cuda_version")), "gpus": gpus,
    }  # fmt: skip


def _processes(section: Any) -> list[dict[str, Any]]:
    """A process is begun by its id, and what is below the id is told of it."""
    return section["list"] if isinstance(section, dict) and "list" in section else []


def _pid(text: str) -> int | None:
    return int(text) if text.isdigit() and len(text) < 12 else None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _value(name: str, text: str) -> tuple[str, Any]:
    """The name with its unit, and the value."""
    key = _key(name)
    if text in ("N/A", "[N/A]", "None", "", "Not Found"):
        return key, None
    if (match := _QUANTITY.fullmatch(text)) and match[2] in _UNITS:
        unit, factor = _UNITS[match[2]]
        number = float(match[1]) * factor
        return f"{key}_{unit}", int(number) if number == int(number) else number
    if text.isdigit() and len(text) < 16 and not re.search(r"serial|number|version|id$|part", key):
        return key, int(text)
    # 16x of a link's width
    if match := re.fullmatch(r"(\d+)x", text):
        return key, int(match[1])
    return key, text
