"""How jobs ended that slurmctld forgot: Slurm's accounting, where there is one; sacct of 20.11 to 25.11.

    records = read_accounting(host, ["4711"])
    records["4711"][-1].state                  "NODE_FAIL"

Form: `sacct --parsable2 --duplicates` gives one line for each incarnation of a job (a requeue ends one). What
users write is not asked for, so no line can hold a separator of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Host
from clustertools.sources.slurm_queue import answer, wait_status

#: slurmdbd asks its database; a busy one is slow, and nobody waits for it within a pass.
ACCOUNTING_SECONDS = 10.0

_FIELDS = ("JobIDRaw", "State", "ExitCode", "Start", "End", "NodeList", "FailedNode")

# sacct: error: Slurm accounting storage is disabled
# Slurm accounting storage is disabled
_DISABLED = re.compile(r"accounting storage is disabled", re.IGNORECASE)
# sacct: fatal: Invalid field requested: "FailedNode"
_NO_FIELD = re.compile(r"Invalid field", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One incarnation of a job. `exit_code` is a wait status; times are seconds since 1970, 0.0 for none."""

    job_id: str
    state: str
    exit_code: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0
    node_list: str = ""
    failed_node: str = ""


def read_accounting(host: Host, job_ids: Iterable[str]) -> dict[str, tuple[Record, ...]]:
    """The incarnations of these jobs, oldest first; a job that is not in the accounting is not in the answer.

    Raises Absent where the cluster keeps no accounting, Unobservable when it does not answer, Unparsable.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    # FailedNode is not known to old versions, and the rest is worth having without it
    for fields in (_FIELDS, _FIELDS[:-1]):
        words = (
            "--noheader", "--parsable2", "--allocations", "--duplicates", f"--format={','.join(fields)}",
            f"--jobs={','.join(wanted)}",
        )  # fmt: skip
        try:
            said = answer(host, "sacct", *words, timeout_seconds=ACCOUNTING_SECONDS).stdout
        except Absent:
            raise
        except Unobservable as exc:
            if _DISABLED.search(str(exc)):
                raise Absent("the cluster keeps no accounting") from exc
            if _NO_FIELD.search(str(exc)) and fields == _FIELDS:
                continue
            raise
        return parse_accounting(said, len(fields))
    raise AssertionError("the last form was either answered or refused")


def parse_accounting(text: str, columns: int = len(_FIELDS)) -> dict[str, tuple[Record, ...]]:
    """The records by job number, oldest first. Raises Unparsable."""
    found: dict[str, list[Record]] = {}
    for line in text.splitlines():
        # 4711|NODE_FAIL|0:0|1795289127|1795289200|n[1-2]|n2
        # 4711|CANCELLED by 1000|0:15|1795289127|1795289200|n[1-2]|
        # 4711|RUNNING|0:0|1795289300|Unknown|n[1-2]|
        words = line.strip().split("|")
        state = words[1].partition(" ")[0] if len(words) > 1 else ""
        if len(words) != columns or not words[0].isdecimal() or not re.fullmatch(r"[A-Z_]+", state):
            raise Unparsable("sacct did not answer in the form that it was asked for", line)
        nodes, failed = (_text(word) for word in [*words[5:], ""][:2])
        began, over = (float(word) if word.isdecimal() and len(word) < 12 else 0.0 for word in words[3:5])
        record = Record(words[0], state, wait_status(words[2]), began, over, nodes, failed)
        found.setdefault(words[0], []).append(record)
    return {
        job_id: tuple(sorted(records, key=lambda r: r.started_at or float("inf")))
        for job_id, records in found.items()
    }


def _text(word: str) -> str:
    return "" if word in ("", "None assigned", "None", "(null)", "Unknown") else word
