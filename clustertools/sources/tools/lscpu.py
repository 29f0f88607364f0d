"""`lscpu` of util-linux, plain or with --json: sockets, cores, threads, NUMA nodes, CPUs that are off line.

The JSON is a flat list, in newer versions with `children` in their parents; plain text has the same names
before a colon.
"""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools.json_object import is_object_with, json_object

KIND = "lscpu"

FIELDS = {
    "architecture": "x86_64, aarch64",
    "vendor": "of the processor",
    "model": "its name",
    "hypervisor": "of a virtual machine",
    "cpus": "logical processors",
    "threads_per_core": "threads of a core",
    "cores_per_socket": "in a cluster, where there are no sockets",
    "sockets": "processors",
    "clusters": "of ARM",
    "numa_nodes": "NUMA nodes",
    "online[]": "numbers of the logical processors that are on",
    "offline[]": "and that are off",
}  # fmt: skip

_NUMBERS = {
    "CPU(s)": "cpus", "Thread(s) per core": "threads_per_core", "Core(s) per socket": "cores_per_socket",
    "Core(s) per cluster": "cores_per_socket", "Socket(s)": "sockets", "Cluster(s)": "clusters",
    "NUMA node(s)": "numa_nodes",
}  # fmt: skip
_TEXTS = {
    "Architecture": "architecture", "Vendor ID": "vendor", "Model name": "model",
    "Hypervisor vendor": "hypervisor",
}  # fmt: skip
_LISTS = {"On-line CPU(s) list": "online", "Off-line CPU(s) list": "offline"}


def recognise(text: str) -> bool:
    """Is this what lscpu prints?"""
    if is_object_with(text, "lscpu"):
        return True
    return text.startswith("Architecture:") and "\nCPU(s):" in text


def read(text: str) -> dict[str, Any]:
    """Counts by plain names, `online` and `offline` as lists of CPU numbers.

    A field that lscpu cannot tell is "-" and left out. Raises Unparsable without the number of CPUs.
    """
    fields = _from_json(text) if text.lstrip()[:1] == "{" else _from_text(text)
    found: dict[str, Any] = {}
    for name, value in fields:
        if name in _NUMBERS and re.fullmatch("[0-9]{1,6}", value):
            found[_NUMBERS[name]] = int(value)
        elif name in _TEXTS and value not in ("", "-"):
            found[_TEXTS[name]] = value[:200]
        elif name in _LISTS and value not in ("", "-"):
            found[_LISTS[name]] = cpu_list(value)
    if "cpus" not in found:
        raise Unparsable("lscpu does not tell the number of CPUs", text[:200])
    return found


def _from_text(text: str) -> list[tuple[str, str]]:
    # Thread(s) per core:      2        indented in newer versions
    return [
        (name.strip(), value.strip())
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    ]


def _from_json(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    waiting = [json_object(text, "lscpu").get("lscpu")]
    while waiting:
        rows = waiting.pop()
        if not isinstance(rows, list):
            raise Unparsable("lscpu --json has another form", text[:200])
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("field"), str):
                raise Unparsable("lscpu --json has a row of another form", str(row)[:200])
            found.append((row["field"].rstrip(": "), str(row.get("data") or "").strip()))
            if "children" in row:
                waiting.append(row["children"])
    return found


def cpu_list(text: str) -> list[int]:
    """The numbers of `0-3,8`, the form of the kernel's own lists. Raises Unparsable for another."""
    found: list[int] = []
    for piece in text.strip().split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", piece.strip())
        if match is None:
            raise Unparsable("not a list of CPUs", text[:200])
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 100_000 or len(found) > 100_000:
            raise Unparsable("a list of more CPUs than any machine has", text[:200])
        found.extend(range(first, last + 1))
    return found
