"""The jobs that slurmctld knows, in one call of `squeue`; Slurm 20.11 to 25.11.

    queue = read_queue(host)
    queue.rows[0].name, queue.rows[0].state        "pretrain", "RUNNING"
    queue.unread                                   lines that were not understood: nobody may call a job gone

Form: `squeue --Format` with a width of 0 (nothing is cut) and a separator after each field that is drawn
anew for each call (`_parse_long_token` in Slurm's src/squeue/opts.c), so nothing that a user wrote into a
name or a comment, line breaks included, can pass for a field or for a job. Times are asked for as seconds
since 1970, and what a login script set for squeue does not count: SQUEUE_USERS would hide jobs.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from functools import lru_cache

from clustertools.errors import Absent, Unobservable, Unparsable
from clustertools.host import Completed, Host
from clustertools.sources.slurm_jobs import hostnames

#: A slurmctld under load takes seconds for ten thousand jobs; a pass of the watchdog has thirty.
QUEUE_SECONDS = 15.0

#: What squeue(1), sacct(1) and scontrol(1) take from the environment, except where the cluster is.
_MISLEADING = (
    "SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_", "SLURM_CLUSTERS", "SLURM_BITSTR_LEN",
)  # fmt: skip

# Slurm's own words first; what a user may write comes last. The names are those of 20.11 and of all since.
_FIELDS = (
    "JobID", "ArrayJobID", "ArrayTaskID", "HetJobID", "HetJobOffset", "State", "Reason", "exit_code",
    "RestartCnt", "Requeue", "BatchFlag", "PriorityLong", "UserID", "UserName", "Partition", "NumNodes",
    "StartTime", "EndTime", "EligibleTime", "SubmitTime", "NodeList", "Name", "Comment", "admin_comment",
    "WorkDir", "StdOut", "StdErr",
)  # fmt: skip

# slurm_load_jobs error: Invalid job id specified
_NO_SUCH_JOB = re.compile(r"Invalid job id specified", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One job as squeue has it; a pending array is one row for all of its waiting tasks.

    `exit_code` is Slurm's wait status (768: exit code 3; 15: signal 15). Times are seconds since 1970, 0.0
    for none. `task` is None for a job that is no task of an array and for tasks that still wait together.
    """

    id: str
    state: str
    reason: str = ""
    name: str = ""
    comment: str = ""
    admin_comment: str = ""
    user: str = ""
    user_id: int = -1
    partition: str = ""
    exit_code: int = 0
    restarts: int = 0
    may_requeue: bool = False
    is_batch: bool = False
    priority: int = 1
    node_count: int = 0
    started_at: float = 0.0
    ends_at: float = 0.0
    eligible_at: float = 0.0
    submitted_at: float = 0.0
    node_list: str = ""
    folder: str = ""
    stdout: str = ""
    stderr: str = ""
    array_id: str = ""
    task: int | None = None
    waiting_tasks: str = ""
    het_id: str = ""
    het_offset: int | None = None

    @property
    def target(self) -> str:
        """What an order to Slurm names: the number of an array's last task would be the whole array."""
        return self.id if self.task is None else f"{self.array_id}_{self.task}"


@dataclass(frozen=True, slots=True)
class Queue:
    """What one call told. `unread`: how many lines nobody could make sense of; `at`: when it was asked."""

    rows: tuple[Row, ...]
    unread: int = 0
    at: float = 0.0


def slurm_command(*words: str) -> tuple[str, ...]:
    """The argv of one of Slurm's commands in an environment without what would bend its answer."""
    bent = sorted(name for name in os.environ if name.startswith(_MISLEADING))
    unset = [word for name in bent for word in ("-u", name)]
    return ("env", *unset, "SLURM_TIME_FORMAT=%s", *words)


def answer(host: Host, *words: str, timeout_seconds: float) -> Completed:
    """What one of Slurm's commands says. Raises Unobservable when it fails, or says more than is kept."""
    done = host.run(*slurm_command(*words), timeout_seconds=timeout_seconds)
    if done.returncode == 127:  # env(1): the command was not found
        raise Absent(f"{words[0]} is not installed")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Unobservable(f"{words[0]} failed with exit code {done.returncode}: {said[:200]}")
    if done.truncated:
        raise Unobservable(f"{words[0]} printed more than is kept: nobody can say what is missing")
    return done


def read_queue(host: Host, job_ids: tuple[str, ...] = ()) -> Queue:
    """All jobs that slurmctld still has, ended ones for MinJobAge; or only those of these numbers.

    Raises Unobservable when it does not answer, Unparsable when it answers in another form.
    """
    field, end = f"<{secrets.token_hex(8)}>", f"<{secrets.token_hex(8)}>"
    wanted = ",".join(f"{name}:0{field}" for name in _FIELDS) + end
    only = (f"--jobs={','.join(job_ids)}",) if job_ids else ()
    options = ("--noheader", "--all", "--local", "--states=all", f"--Format={wanted}", *only)
    try:
        done = answer(host, "squeue", *options, timeout_seconds=QUEUE_SECONDS)
    except Unobservable as exc:
        if only and _NO_SUCH_JOB.search(str(exc)):
            return Queue((), at=host.now())
        raise
    return parse_queue(done.stdout, field, end, host.now())


def parse_queue(text: str, field: str, end: str, at: float = 0.0) -> Queue:
    """The rows of squeue's answer, whose fields end with `field` and whose rows end with `field` + `end`.

    Raises Unparsable when there is text and no row in it: squeue does not know the form.
    """
    rows, unread = [], 0
    pieces = text.split(field + end)
    for piece in pieces[:-1]:
        row = _row(piece.removeprefix("\n").split(field))
        unread += row is None
        rows += [row] if row else []
    unread += bool(pieces[-1].strip())
    if unread and not rows:
        raise Unparsable("squeue did not answer in the form that it was asked for", pieces[0])
    return Queue(tuple(rows), unread, at)


def _row(words: list[str]) -> Row | None:
    if len(words) != len(_FIELDS):
        return None
    said = dict(zip(_FIELDS, words, strict=True))
    task = said["ArrayTaskID"]
    if not said["JobID"].isdecimal() or not re.fullmatch(r"[A-Z_]+", said["State"]):
        return None
    het_offset = said["HetJobOffset"]
    return Row(
        id=said["JobID"], state=said["State"], reason=_text(said["Reason"]), name=said["Name"],
        comment=_text(said["Comment"]), admin_comment=_text(said["admin_comment"]), user=said["UserName"],
        user_id=_number(said["UserID"], -1), partition=said["Partition"],
        exit_code=wait_status(said["exit_code"]), restarts=_number(said["RestartCnt"]),
        may_requeue=said["Requeue"] == "1", is_batch=said["BatchFlag"] not in ("0", "N/A"),
        priority=_number(said["PriorityLong"], 1), node_count=_number(said["NumNodes"]),
        started_at=_time(said["StartTime"]), ends_at=_time(said["EndTime"]),
        eligible_at=_time(said["EligibleTime"]), submitted_at=_time(said["SubmitTime"]),
        node_list=_text(said["NodeList"]), folder=said["WorkDir"], stdout=_text(said["StdOut"]),
        stderr=_text(said["StdErr"]),
        # ArrayJobID is the job's own number where there is no array
        array_id=said["ArrayJobID"] if task != "N/A" else "", task=int(task) if task.isdecimal() else None,
        waiting_tasks=task if task != "N/A" and not task.isdecimal() else "",
        het_id=said["HetJobID"] if said["HetJobID"].isdecimal() and said["HetJobID"] != "0" else "",
        het_offset=int(het_offset) if het_offset.isdecimal() else None,
    )  # fmt: skip


def _text(word: str) -> str:
    return "" if word in ("(null)", "None", "N/A", "None assigned") else word


def _number(word: str, default: int = 0) -> int:
    # NumNodes of a job that asked for a range is "2-4"
    match = re.match(r"\d{1,19}", word)
    return int(match[0]) if match else default


def _time(word: str) -> float:
    # seconds since 1970, as SLURM_TIME_FORMAT=%s asks; N/A, NONE and Unknown where there is none
    return float(word) if word.isdecimal() and len(word) < 12 else 0.0


def wait_status(word: str) -> int:
    """Slurm's exit code as wait(2) has it, from that number or from `code:signal`; 0 for anything else."""
    # 768   3:0   0:15
    code, mark, number = word.partition(":")
    if not code.isdecimal() or (mark and not number.isdecimal()):
        return 0
    return int(code) if not mark else int(code) << 8 | int(number)


@lru_cache(maxsize=4096)
def _unfolded(folded: str) -> tuple[str, ...]:
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

    return tuple(NodeSet(folded, resolver=RESOLVER_NOGROUP))


def node_names(host: Host, folded: str) -> tuple[str, ...]:
    """The nodes that a folded list stands for: `n[1-3]` -> n1, n2, n3. Raises Unobservable."""
    if not folded:
        return ()
    if "[" not in folded:
        return tuple(folded.split(","))
    from ClusterShell.NodeSet import NodeSetException

    try:
        return _unfolded(folded)
    except NodeSetException:
        return hostnames(host, folded)
