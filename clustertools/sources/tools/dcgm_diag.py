"""`dcgmi diag`: what NVIDIA's diagnostic found, by -j (DCGM 2 to 4) or as its table.

JSON: DCGM's `dcgmi/Diag.cpp` and `NvvsJsonStrings.h`; 2 and 3 have `gpu_ids` in a result, 4 has an entity.
The table cuts its messages at the width of the column.
"""

from __future__ import annotations

import json
import re
from typing import Any

from clustertools.errors import Unparsable

KIND = "dcgm-diag"

FIELDS = {
    "version": "of DCGM",
    "driver": "version of the NVIDIA driver",
    "gpu_device_ids[]": "PCI device id of each GPU, as DCGM prints it",
    "status": "the worst of all tests: fail, warn, skip or pass; error when the diagnostic itself failed",
    "error": "why the diagnostic itself failed; null otherwise",
    "tests[].category": "Deployment, Integration, Hardware, Stress",
    "tests[].name": "of the test",
    "tests[].status": "the worst of its results; `skip` and `not_run` are no pass",
    "tests[].results[].entity": "GPU, CPU ...; null: the test has no result by device",
    "tests[].results[].ids[]": "their DCGM numbers; empty: all",
    "tests[].results[].status": "pass, fail, warn, skip or not_run",
    "tests[].results[].messages[].text": "what it says of it",
    "tests[].results[].messages[].error_id": "DCGM_FR_... as a number (DCGM 3.2 and later)",
    "tests[].results[].messages[].error_category": "DCGM's category of that error",
    "tests[].results[].messages[].error_severity": "1 monitor, 2 isolate, 4 triage, 5 config, 6 reset",
}

_WORST = ("pass", "not_run", "skip", "warn", "fail", "error")
# |-----  Metadata  ----------+------------------------------------------------|
_CATEGORY = re.compile(r"[|+]-{3,}\s+(\S.*?)\s+-+\+-+[|+]\s*")
# | GPU Memory                | Pass - GPUs: 1, 2, 3                           |
_ROW = re.compile(r"\| ?(.{1,40}?)\|(.+)\|\s*")
_RULE = re.compile(r"\+[-=]+\+[-=]+\+\s*")
# Fail - GPU: 0      Fail - GPU 3      Pass - GPUs: 1, 2, 3      Skip - All      Pass
_RESULT = re.compile(
    r"(Pass|Fail|Warn|Skip|Not Run|NotRun)(?: - (?:All|(GPU|CPU|NvSwitch)s?:? ([\d, ]+)))?", re.IGNORECASE
)
_FACTS = {
    "DCGM Version": "version", "Driver Version Detected": "driver",
    "GPU Device IDs Detected": "gpu_device_ids", "GPU Device IDs": "gpu_device_ids",
}  # fmt: skip
_MESSAGES = frozenset(("Info", "Warning", "Error", "EUD Error"))


def recognise(text: str) -> bool:
    """Whether it has the diagnostic's heading, or its JSON."""
    if text.lstrip()[:1] == "{":
        return re.search(r'"DCGM (GPU )?Diagnostic"', text[:20000]) is not None
    return re.search(r"\|\s*Diagnostic\s+\|\s*Result\s+\|", text) is not None


def read(text: str) -> dict[str, Any]:
    """The tests and their results. Raises Unparsable for JSON or a table of another form."""
    told: dict[str, Any] = {
        "version": None, "driver": None, "gpu_device_ids": [], "status": "", "error": None, "tests": [],
    }  # fmt: skip
    # nv-hostengine may have said something before
    start = text.find("{")
    if text.lstrip()[:1] == "{" or (start >= 0 and '"DCGM' in text and "| Diagnostic" not in text):
        _from_json(text[start:], told)
    else:
        _from_table(text, told)
    for test in told["tests"]:
        test["status"] = _worst([result["status"] for result in test["results"]])
    told["status"] = "error" if told["error"] else _worst([test["status"] for test in told["tests"]])
    return told


def _worst(statuses: list[str]) -> str:
    return max(statuses, key=_WORST.index, default="not_run")


def _status(word: Any) -> str:
    status = str(word).strip().lower().replace(" ", "_").replace("notrun", "not_run")
    status = {
        "passed": "pass",
        "failed": "fail",
        "warning": "warn",
        "skipped": "skip",
        "none": "not_run",
    }.get(status, status)
    if status not in _WORST:
        raise Unparsable("dcgmi diag: a result of an unknown name", str(word))
    return status


# JSON


def _from_json(text: str, told: dict[str, Any]) -> None:
    try:
        data, _ = json.JSONDecoder().raw_decode(text)
        root = data.get("DCGM Diagnostic", data.get("DCGM GPU Diagnostic"))
        about = data.get("metadata", root)
        told["version"] = about.get("version", root.get("version"))
        told["driver"] = about.get("Driver Version Detected", root.get("Driver Version Detected"))
        devices = root.get("GPU Device IDs", about.get("GPU Device IDs", []))
        told["gpu_device_ids"] = [str(one) for one in devices] or _device_ids(data)
        told["error"] = root.get("runtime_error") or None
        for category in root.get("test_categories", ()):
            for test in category["tests"]:
                results = [_json_result(result) for result in test.get("results", ())]
                summary = test.get("test_summary")
                if summary and not results:
                    results = [_json_result(summary)]
                told["tests"].append(
                    {"category": str(category["category"]), "name": str(test["name"]), "results": results}
                )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unparsable("dcgmi diag: JSON of an unknown form", text) from exc
    if not told["tests"] and not told["error"]:
        raise Unparsable("dcgmi diag: JSON without a test", text)


def _device_ids(data: dict[str, Any]) -> list[str]:
    return [
        str(entity["device_id"])
        for group in data.get("entity_groups", ())
        for entity in group.get("entities", ())
        if "device_id" in entity and group.get("entity_group") == "GPU"
    ]


def _json_result(result: dict[str, Any]) -> dict[str, Any]:
    if "entity_group" in result:
        entity, ids = str(result["entity_group"]), [int(result["entity_id"])]
    elif "gpu_ids" in result or "gpu_id" in result:
        listed = str(result.get("gpu_ids", result.get("gpu_id")))
        entity, ids = "GPU", [int(word) for word in re.findall(r"\d+", listed)]
    else:
        entity, ids = "", []
    messages = []
    for key in ("warnings", "warning", "info"):
        said = result.get(key) or ()
        for one in [said] if isinstance(said, (str, dict)) else said:
            about = one if isinstance(one, dict) else {"warning": one}
            messages.append(
                {"text": str(about.get("warning", about.get("info", ""))).strip(),
                 "error_id": about.get("error_id"), "error_category": about.get("error_category"),
                 "error_severity": about.get("error_severity")}
            )  # fmt: skip
    return {"entity": entity or None, "ids": ids, "status": _status(result["status"]), "messages": messages}


# table


def _from_table(text: str, told: dict[str, Any]) -> None:
    category, begun = "", False
    last: dict[str, Any] | None = None
    for line in text.splitlines():
        if match := _CATEGORY.fullmatch(line):
            category, begun, last = match[1], True, None
        elif _RULE.fullmatch(line) or not line.strip():
            continue
        elif match := _ROW.fullmatch(line):
            name, value = match[1].strip(), match[2][1:].rstrip()
            # the heading; versions before 4 have a test of this name too
            if name == "Diagnostic" and value.strip() == "Result":
                begun = True
            elif name in _FACTS:
                said = value.strip()
                told[_FACTS[name]] = said.split(",") if name.startswith("GPU") else said
            else:
                last = _table_row(told["tests"], category, name, value, last, line)
        elif begun and not line.startswith("Successfully ran diagnostic"):
            raise Unparsable("dcgmi diag: a line of an unknown form", line)
        elif line.startswith("Error"):
            told["error"] = line.strip()
    if not told["tests"] and not told["error"]:
        raise Unparsable("dcgmi diag: no test", text)


def _table_row(
    tests: list[dict[str, Any]], category: str, name: str, value: str, last: dict[str, Any] | None, line: str
) -> dict[str, Any] | None:
    """One row: a test, another result of it, or a message about it, which is then returned to be gone on."""
    found = _RESULT.fullmatch(value.strip())
    if found:
        ids = [int(word) for word in re.findall(r"\d+", found[3] or "")]
        entity = found[2].upper() if found[2] else ("GPU" if "All" in value else None)
        result = {"entity": entity, "ids": ids, "status": _status(found[1]), "messages": []}
        if name:
            tests.append({"category": category, "name": name, "results": []})
        elif not tests:
            raise Unparsable("dcgmi diag: a result of no test", line)
        tests[-1]["results"].append(result)
        return None
    if not name and last is not None:
        last["text"] += value
        return last
    if name and name not in _MESSAGES:
        raise Unparsable("dcgmi diag: a result of an unknown name", line)
    if not tests:
        tests.append({"category": category, "name": name, "results": []})
    if not tests[-1]["results"]:
        tests[-1]["results"].append({"entity": None, "ids": [], "status": "fail", "messages": []})
    message = {"text": value.strip(), "error_id": None, "error_category": None, "error_severity": None}
    # results stand in the table before what is said of the worst of them
    worst = max(tests[-1]["results"], key=lambda result: _WORST.index(result["status"]))
    worst["messages"].append(message)
    return message
