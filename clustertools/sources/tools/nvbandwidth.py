"""nvbandwidth: copies between host and GPUs, and between GPUs, as matrices; text or --json.

Forms as nvbandwidth 0.2 to 0.10 print them (`output.cpp`, `json_output.cpp`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "nvbandwidth"

FIELDS = {
    "version": "of nvbandwidth",
    "driver": "version of the NVIDIA driver",
    "cuda_runtime": "as printed: 12040, or 13.0",
    "devices[]": "name of each GPU, in its order",
    "tests[].name": "host_to_device_memcpy_ce ...",
    "tests[].status": "passed, waived (not possible on this machine), failed, or error",
    "tests[].what": "the sentence above the matrix, with its unit",
    "tests[].unit": "GB/s (10^9 bytes), or ns for a latency",
    "tests[].columns[]": "the GPUs that the columns of the matrix are",
    "tests[].rows[]": "the GPUs, or the host (0), that its rows are",
    "tests[].matrix[][]": "a value for each row and column; null where there is no pair (N/A)",
    "tests[].sum": "of all values, as the tool tells it",
    "tests[].minimum": "of the pairs that were measured: 0.00 is a GPU with itself",
    "tests[].maximum": "of the pairs that were measured",
    "tests[].message": "what it says of an error",
}

# Running host_to_device_memcpy_ce.      Running benchmark host_to_device_memcpy_ce.      (before 0.3)
_TEST = re.compile(r"Running (?:benchmark )?([A-Za-z0-9_]+)\.?\s*")
# memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)        host_device_latency ... (ns)
_WHAT = re.compile(r"\s*(\S.*\((GB/s|MB/s|ns|us)\))\s*")
#           0         1         2
_COLUMNS = re.compile(r"\s+(\d+(?:\s+\d+)*)\s*")
# 0     26.03     25.94       N/A
_ROW = re.compile(r"\s*(\d+)((?:\s+(?:[0-9.]+(?:e[+-]?\d+)?|N/A|-nan|nan|inf))+)\s*")
# SUM host_to_device_memcpy_ce 442.52
_SUM = re.compile(r"(SUM|MIN|MAX|AVG|COEFFICIENT_OF_VARIATION) ([A-Za-z0-9_]+) ([0-9.]+|-?nan)\s*")
# Device 0: NVIDIA H100 80GB HBM3 (00000000:18:00)
_DEVICE = re.compile(r"(?:Process \d+ \([^)]*\): )?[Dd]evice (\d+): (.+?)\s*")
# Driver Version: 535.54.03     CUDA Runtime Version: 12020     CUDA Runtime Version: 13.3 (13030)
_FACT = re.compile(
    r"(nvbandwidth|Driver|CUDA Runtime|CUDA Driver) [Vv]ersion(?: \(API\))?: (\S+)(?: \(\d+\))?\s*"
)
# Waived: host_to_device_memcpy_sm          Waived:
_WAIVED = re.compile(r"(?i)\s*waived\b:?.*")
# ERROR: [CUDA_ERROR_...] ...
_ERROR = re.compile(r"\s*(\[?(?:ERROR|CUDA_ERROR|NVML_ERROR|Invalid)\b.*)")
_CHATTER = re.compile(
    r"(Built from|NOTE:|Additional system|Generating random|\s*$|MPI version|Process \d+|CUDA |-+$)"
)


def recognise(text: str) -> bool:
    """Whether it names itself, or has the heading of a matrix."""
    if text.lstrip()[:1] == "{":
        return '"nvbandwidth"' in text[:400]
    return "nvbandwidth Version:" in text or (
        re.search(r"(?m)^(Running (benchmark )?[a-z_0-9]+\.$|memcpy .*\(GB/s\)$)", text) is not None
        and "(row)" in text
    )


def read(text: str) -> dict[str, Any]:
    """The machine and each test. Raises Unparsable where there is none, or for a line of another form."""
    told: dict[str, Any] = {"version": None, "driver": None, "cuda_runtime": None, "devices": [], "tests": []}
    if text.lstrip()[:1] == "{":
        return _from_json(text, told)
    for line in text.splitlines():
        if match := _TEST.fullmatch(line):
            told["tests"].append(_empty(match[1]))
        elif match := _FACT.fullmatch(line):
            key = {"nvbandwidth": "version", "Driver": "driver", "CUDA Runtime": "cuda_runtime"}.get(match[1])
            if key:
                told[key] = match[2].lstrip("v") if key == "version" else match[2]
        elif match := _DEVICE.fullmatch(line):
            told["devices"].append(match[2])
        elif _WHAT.fullmatch(line) and (not told["tests"] or told["tests"][-1]["what"]):
            # cut out of the output, without the line that names the test
            told["tests"].append(_empty(""))
            _in_test(told["tests"][-1], line)
        elif told["tests"] and _in_test(told["tests"][-1], line):
            continue
        elif told["tests"] and told["tests"][-1]["message"]:
            # after a failed comparison: "Current offset : 200064", "ASSERT in expression ...", its place
            continue
        elif not _CHATTER.match(line):
            raise Unparsable("nvbandwidth: a line of an unknown form", line)
    if not told["tests"] and not told["version"]:
        raise Unparsable("nvbandwidth: no test", text)
    for test in told["tests"]:
        _judge(test)
    return told


def _empty(name: str) -> dict[str, Any]:
    return {
        "name": name, "status": "", "what": "", "unit": "", "columns": [], "rows": [], "matrix": [],
        "sum": None, "minimum": None, "maximum": None, "message": "",
    }  # fmt: skip


def _in_test(test: dict[str, Any], line: str) -> bool:
    if match := _SUM.fullmatch(line):
        if match[1] == "SUM":
            test["sum"] = _value(match[3])
    elif match := _WHAT.fullmatch(line):
        test["what"], test["unit"] = match[1], match[2]
    elif not test["columns"] and (match := _COLUMNS.fullmatch(line)):
        test["columns"] = [int(word) for word in match[1].split()]
    elif (match := _ROW.fullmatch(line)) and len(match[2].split()) == len(test["columns"]):
        test["rows"].append(int(match[1]))
        test["matrix"].append([_value(word) for word in match[2].split()])
    elif _WAIVED.fullmatch(line):
        test["status"] = "waived"
    elif match := _ERROR.match(line):
        test["status"], test["message"] = "error", test["message"] or match[1][:300]
    else:
        return False
    return True


def _judge(test: dict[str, Any]) -> None:
    values = [value for row in test["matrix"] for value in row if value]
    test["minimum"], test["maximum"] = min(values, default=None), max(values, default=None)
    test["status"] = test["status"] or ("passed" if values else "error")


def _value(word: str) -> float | None:
    if word in ("N/A", "nan", "-nan", "inf"):
        return None
    try:
        return float(word)
    except ValueError:
        raise Unparsable("nvbandwidth: no number", word) from None


def _from_json(text: str, told: dict[str, Any]) -> dict[str, Any]:
    try:
        data = json.loads(text)["nvbandwidth"]
        told["version"] = str(data.get("version", data.get("nvbandwidth Version", ""))).lstrip("v") or None
        told["driver"] = data.get("Driver Version")
        told["cuda_runtime"] = str(data.get("CUDA Runtime Version", "")) or None
        listed = data.get("GPU Device list", data.get("GPU", []))
        told["devices"] = [re.sub(r"^\d+: ", "", str(name)) for name in listed]
        for case in data["testcases"]:
            test = _empty(str(case["name"]))
            test["status"] = str(case.get("status", "")).lower()
            test["what"] = str(case.get("bandwidth_description", case.get("description", "")))
            test["unit"] = "ns" if "latency" in test["name"] else "GB/s"
            matrix = case.get("bandwidth_matrix", case.get("matrix", []))
            test["matrix"] = [[_value(str(cell)) for cell in row] for row in matrix]
            test["rows"] = list(range(len(matrix)))
            test["columns"] = list(range(max((len(row) for row in matrix), default=0)))
            test["sum"] = case.get("sum")
            status = test["status"]
            _judge(test)
            test["status"] = status or test["status"]
            told["tests"].append(test)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("nvbandwidth: JSON of an unknown form", text) from exc
    return told
