"""`squeue`: the jobs that Slurm has, by its own columns (also -l, and -o with headings), or by --json."""

from __future__ import annotations

import re
from typing import Any

from clustertools.errors import Unparsable
from clustertools.sources.tools import slurm_values as values
from clustertools.sources.tools.scontrol import FIELDS as JOB_FIELDS
from clustertools.sources.tools.scontrol import json_job
from clustertools.sources.tools.slurm_table import rows

KIND = "squeue"

FIELDS = {
    **{key: meaning for key, meaning in JOB_FIELDS.items() if key.startswith("jobs[]")},
    "jobs[].job_id": "as printed: 12, or 2_[1-3] for tasks of an array (a number in JSON)",
    "jobs[].fields": "every column by its heading, as text",
}

#: The two letters of the column ST (squeue(1), JOB STATE CODES).
_STATES = {
    "BF": "BOOT_FAIL", "CA": "CANCELLED", "CD": "COMPLETED", "CF": "CONFIGURING", "CG": "COMPLETING",
    "DL": "DEADLINE", "F": "FAILED", "NF": "NODE_FAIL", "OOM": "OUT_OF_MEMORY", "PD": "PENDING",
    "PR": "PREEMPTED", "R": "RUNNING", "RD": "RESV_DEL_HOLD", "RF": "REQUEUE_FED", "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED", "RS": "RESIZING", "RV": "REVOKED", "SE": "SPECIAL_EXIT", "SI": "SIGNALING",
    "SO": "STAGE_OUT", "ST": "STOPPED", "S": "SUSPENDED", "TO": "TIMEOUT",
}  # fmt: skip


def recognise(text: str) -> bool:
    """Whether the heading is squeue's, or it is its JSON."""
    head = next((line for line in text.splitlines()[:3] if "JOBID" in line), "")
    columns = set(re.split(r"[|\s]+", head))
    return ("JOBID" in columns and bool({"ST", "STATE", "NODELIST(REASON)"} & columns)) or (
        values.is_document(text, "jobs") and '"job_resources"' in text
    )


def read(text: str) -> dict[str, Any]:
    """The jobs. Raises Unparsable for another heading, or a row that does not fit it."""
    if text.lstrip()[:1] == "{":
        data = values.document(text, "squeue", "jobs")
        try:
            return {"jobs": [json_job(job) for job in data["jobs"]]}
        except (AttributeError, TypeError, ValueError, IndexError) as exc:
            raise Unparsable("squeue: JSON of an unknown form", text) from exc
    table = rows(text, "squeue", {"JOBID": r"\d"})
    if not recognise(text):
        raise Unparsable("squeue: no heading with JOBID and a state", text)
    return {"jobs": [_job(row) for row in table]}


def _job(row: dict[str, str]) -> dict[str, Any]:
    where = row.get("NODELIST(REASON)", "")
    # a job that waits has "(Resources)" where a running one has its nodes
    waits = re.fullmatch(r"\((.*)\)", where)
    state = row.get("ST", row.get("STATE", ""))
    return {
        "job_id": row.get("JOBID", ""), "name": row.get("NAME", ""), "user": row.get("USER", ""),
        "partition": row.get("PARTITION"), "state": _STATES.get(state, state),
        "reason": values.text_or_none(waits[1] if waits else row.get("REASON", "")),
        "nodes": None if waits else values.text_or_none(where or row.get("NODELIST", "")),
        "node_count": values.count(row.get("NODES", "")),
        "elapsed_seconds": values.seconds(row.get("TIME", "")),
        "time_limit_seconds": values.seconds(row.get("TIME_LIMI", row.get("TIME_LIMIT", ""))),
        "fields": row,
    }  # fmt: skip
