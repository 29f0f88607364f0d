"""`sacct`: Slurm's accounting of jobs and their steps; fixed columns, -p, -P, or --json."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools import slurm_values as values
from clustertools.sources.tools.slurm_table import rows

KIND = "sacct"

FIELDS = {
    "records[].job_id": "of the job or step, as printed: 16, 16.batch, 16.0, 17_3",
    "records[].step": "batch, extern, interactive or a number; null for the job as a whole",
    "records[].name": "job or step name",
    "records[].user": "who submitted it; null where it was not asked for",
    "records[].partition": "partition; null for a step",
    "records[].account": "account",
    "records[].state": "COMPLETED, FAILED, CANCELLED ... without by whom",
    "records[].cancelled_by_uid": "user id that cancelled it; null otherwise",
    "records[].exit_code": "exit code",
    "records[].signal": "signal; 0: none",
    "records[].elapsed_seconds": "run time",
    "records[].submit_time": "ISO; as printed in text, UTC (Z) in JSON",
    "records[].start_time": "as submit_time",
    "records[].end_time": "as submit_time",
    "records[].nodes": "its nodes, as a node set",
    "records[].node_count": "how many they are",
    "records[].max_rss_bytes": "largest resident memory of a task of the step",
    "records[].fields": "every column by its heading, as text",
}

# 211488K    2.50G    80Gn
_SIZE = re.compile(r"([\d.]+)([KMGTP]?)[nc]?")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
# CANCELLED by 1000
_CANCELLED = re.compile(r"CANCELLED by (\d+)")


def recognise(text: str) -> bool:
    """Whether the heading is sacct's, or it is its JSON."""
    head = text.lstrip("\n").split("\n", 1)[0]
    if text.lstrip()[:1] == "{":
        return values.is_document(text, "jobs") and '"association"' in text and '"steps"' in text
    # with --format=ALL the number of the job stands in the middle
    return bool({"JobID", "JobIDRaw"} & set(re.split(r"[|\s]+", head))) and (
        "|" in head or re.search(r"^[- ]{10,}$", text, re.MULTILINE) is not None
    )


def read(text: str) -> dict[str, Any]:
    """The jobs and steps. Raises Unparsable for another heading, or a row that does not fit it."""
    if text.lstrip()[:1] == "{":
        data = values.document(text, "sacct", "jobs")
        try:
            return {"records": [record for job in data["jobs"] for record in _json_records(job)]}
        except (AttributeError, TypeError, ValueError, IndexError, KeyError) as exc:
            raise Unparsable("sacct: JSON of an unknown form", text) from exc
    if not recognise(text):
        raise Unparsable("sacct: no heading with JobID", text)
    return {"records": [_record(row) for row in rows(text, "sacct", {"JobID": r"\d", "JobIDRaw": r"\d"})]}


def _record(row: dict[str, str]) -> dict[str, Any]:
    job_id = row.get("JobID", row.get("JobIDRaw", ""))
    code, signal = values.exit_code(row.get("ExitCode", ""))
    state = row.get("State", "")
    by = _CANCELLED.match(state)
    raw = row.get("ElapsedRaw", "")
    nodes = row.get("NodeList", "")
    return {
        "job_id": job_id, "step": job_id.partition(".")[2] or None, "name": row.get("JobName", ""),
        "user": values.text_or_none(row.get("User", "")), "partition": row.get("Partition") or None,
        "account": row.get("Account") or None,
        "state": "CANCELLED" if by else state.rstrip("+"), "cancelled_by_uid": int(by[1]) if by else None,
        "exit_code": code, "signal": signal,
        "elapsed_seconds": float(raw) if raw.isdigit() else values.seconds(row.get("Elapsed", "")),
        "submit_time": values.text_or_none(row.get("Submit", "")),
        "start_time": values.text_or_none(row.get("Start", "")),
        "end_time": values.text_or_none(row.get("End", "")), "nodes": values.text_or_none(nodes),
        "node_count": values.count(row.get("NNodes", row.get("AllocNodes", ""))),
        "max_rss_bytes": _bytes(row.get("MaxRSS", "")), "fields": row,
    }  # fmt: skip


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    try:
        return int(float(match[1]) * _UNITS[match[2]]) if match else None
    except ValueError:
        return None


def _json_records(job: dict[str, Any]) -> list[dict[str, Any]]:
    records = [_json_record(str(job["job_id"]), None, str(job.get("name", "")), job)]
    for step in job.get("steps", ()):
        about = step.get("step") or {}
        job_id = str(
            (about.get("id") if not isinstance(about.get("id"), dict) else "") or about.get("step_id") or ""
        )
        name = str(about.get("name", ""))
        step_id = job_id.partition(".")[2] or name
        records.append(_json_record(f"{job['job_id']}.{step_id}", step_id, name, step))
    return records


def _json_record(job_id: str, step: str | None, name: str, about: dict[str, Any]) -> dict[str, Any]:
    time = about.get("time") or {}
    ended = about.get("exit_code") or {}
    signal = ended.get("signal") or {}
    state = about.get("state")
    current = state.get("current") if isinstance(state, dict) else state
    nodes = about.get("nodes")
    listed = nodes if isinstance(nodes, str) else (nodes or {}).get("range")
    return {
        "job_id": job_id, "step": step, "name": name, "user": about.get("user") or None,
        "partition": about.get("partition") or None, "account": about.get("account") or None,
        "state": values.words(current)[0], "cancelled_by_uid": None,
        "exit_code": _int(ended.get("return_code")),
        "signal": _int(signal.get("signal_id", signal.get("id"))) or 0,
        "elapsed_seconds": values.number(time.get("elapsed")),
        "submit_time": values.moment(time.get("submission")), "start_time": values.moment(time.get("start")),
        "end_time": values.moment(time.get("end")), "nodes": values.text_or_none(str(listed or "")),
        "node_count": None, "max_rss_bytes": None, "fields": {},
    }  # fmt: skip


def _int(value: Any) -> int | None:
    found = values.number(value)
    return None if found is None else int(found)
