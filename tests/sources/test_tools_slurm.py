"""The readers of scontrol, sinfo, squeue and sacct: live Slurm's text and JSON say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import Unparsable
from clustertools.sources.tools import read_tolerantly, sacct, scontrol, sinfo, slurm_values, squeue

TOOLS = Path(__file__).parents[1] / "tools"


def sample(name: str) -> str:
    return (TOOLS / name).read_text()


@pytest.mark.parametrize("form", ["job", "job-o"])
def test_a_job_in_lines_and_in_one(form: str) -> None:
    first, second = scontrol.read(sample(f"scontrol/{form}-22.05.txt"))["jobs"]
    assert (first["job_id"], first["name"], first["user"], first["state"]) == (
        1,
        "train:a=b",
        "root",
        "RUNNING",
    )
    assert (first["nodes"], first["batch_host"], first["node_count"]) == ("n[1-2]", "n1", 2)
    assert (first["time_limit_seconds"], first["elapsed_seconds"]) == (365 * 86400, 1)
    assert (first["exit_code"], first["signal"], first["restarts"], first["requeue"]) == (0, 0, 0, True)
    assert first["stdout"] == "/home/u1/o-1"
    assert (second["array_job_id"], second["array_task"], second["reason"]) == (2, "1-3", "JobHeldUser")
    assert (second["nodes"], second["start_time"], second["time_limit_seconds"]) == (None, None, None)


@pytest.mark.parametrize("form", ["node", "node-o"])
def test_a_drained_node_with_a_reason_that_looks_like_a_key(form: str) -> None:
    nodes = {node["name"]: node for node in scontrol.read(sample(f"scontrol/{form}-22.05.txt"))["nodes"]}
    n3 = nodes["n3"]
    assert n3["states"] == ["IDLE", "DRAIN"]
    assert (n3["reason"], n3["reason_by"], n3["reason_time"]) == (
        "bad gpu 3 [xid 79] = x", "root", "2026-11-21T14:05:16",
    )  # fmt: skip
    assert n3["fields"]["OS"] == "Linux 5.15.0-113-generic #1 SMP PREEMPT_DYNAMIC @0"
    assert (nodes["n1"]["states"], nodes["n1"]["cpus_allocated"], nodes["n1"]["reason"]) == (
        ["MIXED"],
        1,
        None,
    )


def test_states_with_marks() -> None:
    line = "NodeName=g1 State=DOWN*+DRAIN CPUTot=8 Reason=Not responding [slurm@2026-01-02T03:04:05]\n"
    (node,) = scontrol.read(line)["nodes"]
    assert set(node["states"]) >= {"DRAIN", "NOT_RESPONDING"}
    assert node["reason"] == "Not responding"


def test_a_partition() -> None:
    (main,) = scontrol.read(sample("scontrol/partition-22.05.txt"))["partitions"]
    assert (main["name"], main["state"], main["nodes"], main["node_count"], main["is_default"]) == (
        "main", "UP", "n[1-4]", 4, True,
    )  # fmt: skip


def test_a_name_with_a_key_in_it_stays_a_name() -> None:
    text = "JobId=7 JobName=x State=IDLE y\n   UserId=u(5) GroupId=g(5)\n   JobState=RUNNING Reason=None\n"
    (job,) = scontrol.read(text)["jobs"]
    # `State` is no key that a job has at this place twice; what cannot be told is not invented
    assert job["job_id"] == 7
    assert job["state"] == "RUNNING"


def test_a_line_that_is_none_of_slurms_is_said() -> None:
    text = sample("scontrol/node-o-22.05.txt") + "slurm_load_node error: Unable to contact controller\n"
    told, unparsed = read_tolerantly(scontrol, text)
    assert len(told["nodes"]) == 4
    assert [line["text"] for line in unparsed] == ["slurm_load_node error: Unable to contact controller"]


def test_jobs_of_squeue_by_text_and_json() -> None:
    for form in ("default", "long"):
        held, running = squeue.read(sample(f"squeue/{form}-22.05.txt"))["jobs"]
        assert (held["job_id"], held["state"], held["reason"], held["nodes"]) == (
            "2_[1-3]", "PENDING", "JobHeldUser", None,
        )  # fmt: skip
        assert (running["state"], running["nodes"], running["node_count"]) == ("RUNNING", "n[1-2]", 2)
    by_id = {job["job_id"]: job for job in squeue.read(sample("squeue/22.05.json"))["jobs"]}
    assert (by_id[1]["name"], by_id[1]["nodes"], by_id[1]["time_limit_seconds"]) == (
        "train:a=b", "n[1-2]", 365 * 86400,
    )  # fmt: skip


def test_jobs_of_the_newer_json() -> None:
    job: dict[str, Any] = {
        "job_id": 12, "name": "train", "user_name": "ann", "job_state": ["RUNNING", "COMPLETING"],
        "time_limit": {"set": True, "infinite": False, "number": 60}, "job_resources": {},
        "exit_code": {"status": ["SIGNALED"], "return_code": {"set": False, "infinite": False, "number": 0},
                      "signal": {"id": {"set": True, "infinite": False, "number": 9}, "name": "KILL"}},
        "start_time": {"set": True, "infinite": False, "number": 1795269915},
        "array_job_id": {"set": True, "infinite": False, "number": 0}, "nodes": "g[1-2]",
    }  # fmt: skip
    text = json.dumps({"meta": {"Slurm": {"release": "24.05.1"}}, "jobs": [job]})
    assert squeue.recognise(text)
    (read,) = squeue.read(text)["jobs"]
    assert (read["state"], read["time_limit_seconds"], read["signal"], read["exit_code"]) == (
        "RUNNING", 3600, 9, None,
    )  # fmt: skip
    assert (read["start_time"], read["array_job_id"]) == ("2026-11-21T14:05:15Z", None)


def test_a_job_name_with_blanks_in_squeue() -> None:
    text = sample("squeue/default-22.05.txt").replace("train:a=", "my train")
    assert squeue.read(text)["jobs"][1]["name"] == "my train"


def test_groups_of_sinfo() -> None:
    groups = sinfo.read(sample("sinfo/default-22.05.txt"))["groups"]
    assert [(g["nodes"], g["node_count"], g["states"]) for g in groups] == [
        ("n3", 1, ["DRAINED"]), ("n[1-2]", 2, ["MIXED"]), ("n4", 1, ["IDLE"]),
    ]  # fmt: skip
    assert (groups[0]["partition"], groups[0]["is_default"], groups[0]["partition_available"]) == (
        "main", True, "up",
    )  # fmt: skip
    third = sinfo.read(sample("sinfo/by-node-22.05.txt"))["groups"][2]
    assert (third["nodes"], third["states"], third["reason"]) == ("n3", ["DRAINED"], "bad gpu 3 [xid 79] =")
    (reason,) = sinfo.read(sample("sinfo/reasons-22.05.txt"))["groups"]
    assert (reason["reason"], reason["reason_by"], reason["nodes"]) == ("bad gpu 3 [xid 79] =", "root", "n3")
    by_name = {g["nodes"]: g for g in sinfo.read(sample("sinfo/22.05.json"))["groups"]}
    assert (by_name["n3"]["states"], by_name["n3"]["reason"]) == (["IDLE", "DRAIN"], "bad gpu 3 [xid 79] = x")


def test_groups_of_the_newer_sinfo_json() -> None:
    group: dict[str, Any] = {
        "node": {"state": ["DOWN", "NOT_RESPONDING"]}, "nodes": {"total": 2, "nodes": ["g1", "g2"]},
        "partition": {"name": "gpu", "partition": {"state": ["UP"]},
                      "maximums": {"time": {"set": True, "infinite": True, "number": 0}}},
        "reason": {"description": "Not responding", "user": "slurm", "time": {"set": False, "number": 0}},
    }  # fmt: skip
    text = json.dumps({"meta": {"slurm": {"release": "24.11.0"}}, "sinfo": [group]})
    assert sinfo.recognise(text)
    (read,) = sinfo.read(text)["groups"]
    assert (read["states"], read["nodes"], read["reason"], read["time_limit_seconds"]) == (
        ["DOWN", "NOT_RESPONDING"], "g1,g2", "Not responding", None,
    )  # fmt: skip


def test_accounts_of_sacct() -> None:
    records = sacct.read(sample("sacct/parsable.txt"))["records"]
    assert [record["step"] for record in records] == [None, "batch", "extern", None, "0"]
    assert (records[1]["max_rss_bytes"], records[0]["elapsed_seconds"]) == (211488 * 1024, 33)
    assert (records[3]["exit_code"], records[3]["nodes"]) == (255, "frontier[01515,01517]")
    last = records[4]
    assert (last["state"], last["cancelled_by_uid"], last["signal"], last["elapsed_seconds"]) == (
        "CANCELLED", 1000, 15, 86402,
    )  # fmt: skip
    fixed = sacct.read(sample("sacct/fixed.txt"))["records"]
    assert [(r["job_id"], r["name"], r["partition"], r["state"]) for r in fixed] == [
        ("15", "sleep.sh", "debug", "COMPLETED"), ("15.batch", "batch", None, "COMPLETED"),
        ("16", "train run", "debug", "CANCELLED"),
    ]  # fmt: skip


def test_a_bar_inside_a_name_is_said_and_not_guessed() -> None:
    text = "JobID|JobName|State\n1|a|b|FAILED\n2|c|COMPLETED\n"
    with pytest.raises(Unparsable, match="4 columns under 3 headings"):
        sacct.read(text)
    told, unparsed = read_tolerantly(sacct, text)
    assert ([r["job_id"] for r in told["records"]], unparsed[0]["line"]) == (["2"], 2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:33", 33), ("12:30", 750), ("1-02:03:04", 93784), ("2-00", 172800), ("1-02:03", 93780),
        ("00:00:33.250", 33), ("UNLIMITED", None), ("INVALID", None), ("", None), ("Partition_Limit", None),
    ],
)  # fmt: skip
def test_spans_of_time(text: str, seconds: float | None) -> None:
    assert slurm_values.seconds(text) == seconds
