"""The reader of `dcgmi diag`: table and JSON; what was skipped did not pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from clustertools.errors import Unparsable
from clustertools.sources.tools import dcgm_diag, read_tolerantly

SAMPLES = Path(__file__).parents[1] / "tools" / "dcgm-diag"


def test_the_table() -> None:
    told = dcgm_diag.read((SAMPLES / "persistence-3.3.txt").read_text())
    assert (told["version"], told["driver"], told["gpu_device_ids"]) == ("3.3.8", "560.35.03", ["2330"] * 8)
    tests = {test["name"]: test for test in told["tests"]}
    assert told["status"] == "fail"
    assert tests["Persistence Mode"]["status"] == "pass"
    (said,) = tests["Persistence Mode"]["results"][0]["messages"]
    assert said["text"].startswith(
        "Persistence mode for GPU 0 is disabled. Enable persistence mode by running"
    )
    assert (tests["PCIe"]["status"], tests["PCIe"]["results"][0]["entity"]) == ("skip", "GPU")
    memory = tests["GPU Memory"]
    assert (memory["category"], memory["status"]) == ("Hardware", "fail")
    assert [(r["ids"], r["status"]) for r in memory["results"]] == [
        ([1, 2, 3, 4, 5, 6, 7], "pass"),
        ([0], "fail"),
    ]
    text = memory["results"][1]["messages"][0]["text"]
    assert text.endswith("totaling 13.3 seconds started at 9.7 seconds into the test for GPU 0")


def test_json_of_four_and_of_three() -> None:
    four = dcgm_diag.read((SAMPLES / "persistence-4.2.json").read_text())
    assert (four["version"], four["driver"], four["gpu_device_ids"]) == (
        "4.2.3",
        "580.82.09",
        ["2330", "2330"],
    )
    bad = four["tests"][0]["results"][0]
    assert (bad["entity"], bad["ids"], bad["status"]) == ("GPU", [0], "fail")
    assert (bad["messages"][0]["error_id"], bad["messages"][0]["error_severity"]) == (29, 5)
    three = dcgm_diag.read((SAMPLES / "three.json").read_text())
    assert [(t["name"], t["status"]) for t in three["tests"]] == [
        ("GPU Memory", "fail"),
        ("Memory Bandwidth", "skip"),
    ]
    assert three["tests"][1]["results"][0]["ids"] == [0, 1]
    assert three["tests"][0]["results"][1]["messages"][0]["text"].startswith("Detected 4 volatile")


def test_nothing_but_skips_is_no_pass() -> None:
    text = "| Diagnostic | Result |\n|-----  Hardware  ---+------|\n| PCIe       | Skip - All   |\n"
    assert dcgm_diag.read(text)["status"] == "skip"


def test_an_error_of_the_diagnostic_itself() -> None:
    told = dcgm_diag.read('{"DCGM Diagnostic": {"runtime_error": "Unable to connect to nv-hostengine"}}')
    assert (told["status"], told["error"]) == ("error", "Unable to connect to nv-hostengine")
    with pytest.raises(Unparsable):
        dcgm_diag.read('{"DCGM Diagnostic": {}}')


def test_an_unknown_result_is_said() -> None:
    text = (SAMPLES / "persistence-3.3.txt").read_text().replace("| Skip - All ", "| Maybe - All")
    told, unparsed = read_tolerantly(dcgm_diag, text)
    assert "PCIe" not in [test["name"] for test in told["tests"]]
    assert "Maybe" in unparsed[0]["text"]
