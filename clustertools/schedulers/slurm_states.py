"""What a state of Slurm means for a run, who ended it, and the mark by which we know our own doing. Pure.

Words: `job_state_string` and `job_reason_string` in Slurm's src/common/slurm_protocol_defs.c, job_states and
job_state_reason in slurm.h; 20.11 to 25.11.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass

from clustertools.model import EndedBy, JobState
from clustertools.sources.slurm_queue import Row

#: State -> who or what ended the job, and that in words. CANCELLED and FAILED say more by other fields.
ENDS: dict[str, tuple[EndedBy, str]] = {
    "COMPLETED": ("itself", ""),
    "FAILED": ("itself", ""),
    "CANCELLED": ("person", "a person cancelled it"),
    "TIMEOUT": ("time-limit", "its time limit ended it"),
    "DEADLINE": ("time-limit", "its deadline ended it"),
    "PREEMPTED": ("preempted", "it was preempted"),
    "NODE_FAIL": ("node-failed", "a node of it failed"),
    "BOOT_FAIL": ("node-failed", "a node of it did not boot"),
    "LAUNCH_FAILED": ("node-failed", "a node could not launch it"),
    "OUT_OF_MEMORY": ("out-of-memory", "it ran out of memory"),
    # another cluster of the federation has it
    "REVOKED": ("", "it runs elsewhere"),
}
_PENDING = frozenset(
    "PENDING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD CONFIGURING POWER_UP_NODE".split()
)
_RUNNING = frozenset("RUNNING RESIZING SIGNALING UPDATE_DB".split())
#: It holds its nodes, and none of its processes gets a moment: nothing of it may be called a hang.
_STANDING = frozenset("SUSPENDED STOPPED".split())
_COMPLETING = frozenset("COMPLETING STAGE_OUT".split())
#: Waits that end only when somebody says so; a priority of 0 says the same.
_HOLDS = frozenset("REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD".split())
_HELD_REASON = re.compile(r"^JobHeld|held|^JobHoldMaxRequeue|^ReservationDeleted", re.IGNORECASE)

# "mine [clustertools stop 0]": what the user wrote stays in front of it
_MARK = re.compile(r" ?\[clustertools (stop|start) (\d{1,6})(?: ([A-Za-z0-9._-]{1,64}))?\]$")


@dataclass(frozen=True, slots=True)
class Mark:
    """What we wrote at a job: `stop`, we ended its incarnation of that number; `start`, we began it.

    It is found again by whoever comes after us. `token` is that of the attempt which `start` began.
    """

    verb: str
    restarts: int
    token: str = ""

    def __str__(self) -> str:
        return f"[clustertools {self.verb} {self.restarts}{' ' if self.token else ''}{self.token}]"


def mark_of(row: Row) -> Mark | None:
    """The mark that a job carries in the administrator's comment or in its own; None: none."""
    for text in (row.admin_comment, row.comment):
        match = _MARK.search(text)
        if match:
            return Mark(match[1], int(match[2]), match[3] or "")
    return None


def unmarked(comment: str) -> str:
    """A comment as a person wrote it."""
    return _MARK.sub("", comment)


def is_ended(row: Row) -> bool:
    """Slurm is done with the job: nothing of it runs, and nothing of it will by itself."""
    return row.state in ENDS


def is_held(row: Row) -> bool:
    """The job waits until somebody lets it go (or, for impossible wishes, until they are changed)."""
    waits = row.state in _PENDING and row.state not in ("CONFIGURING", "POWER_UP_NODE")
    return waits and (row.state in _HOLDS or row.priority == 0 or bool(_HELD_REASON.search(row.reason)))


def ends_for_requeue(row: Row, now: float) -> bool:
    """The job is COMPLETING because it is begun anew: Slurm counts the restart before the end is over."""
    # the end of one that is over for good lies behind us; that of a requeued one is unset or far ahead
    return row.state in _COMPLETING and row.restarts > 0 and not 0 < row.ends_at <= now + 1


def held_by_us(row: Row, now: float) -> bool:
    """We ended its last incarnation and hold it, or are about to let it go."""
    mark = mark_of(row)
    if mark is None or not (is_held(row) or ends_for_requeue(row, now)):
        return False
    return row.restarts == (mark.restarts + 1 if mark.verb == "stop" else mark.restarts)


def incarnation(row: Row, now: float) -> int:
    """How often the job that this row tells of had been begun anew; a hold by us is the end of the last."""
    over = held_by_us(row, now) or ends_for_requeue(row, now)
    return row.restarts - 1 if over and row.restarts else row.restarts


def state_of(row: Row, now: float) -> JobState:
    """The protocol's word for the row's state. A suspended job waits: its silence is nobody's fault."""
    if row.state in _COMPLETING:
        return "completing"
    if held_by_us(row, now) or is_ended(row):
        return "ended"
    if row.state in _RUNNING:
        return "running"
    return "pending" if row.state in _PENDING | _STANDING else "unknown"


def ended_by(row: Row, now: float) -> tuple[EndedBy, str]:
    """Who ended it and that in words; ("", "") while it is not over."""
    mark = mark_of(row)
    ours = mark is not None and mark.verb == "stop" and mark.restarts == row.restarts
    if held_by_us(row, now) or (ours and row.state == "CANCELLED"):
        return "us", "clustertools stopped it"
    if row.state == "FAILED":
        # NonZeroExitCode says nothing beyond the exit code; JobLaunchFailure, BadConstraints do
        told = (
            ""
            if row.reason in ("", "NonZeroExitCode") or row.reason.startswith("RaisedSignal")
            else row.reason
        )
        return "itself", told
    return ENDS.get(row.state, ("", ""))


def exit_code(row: Row, now: float) -> int | None:
    """Its exit code, negative for a signal; None while nobody knows.

    One that did not end by itself has none of its own: Slurm's 0 beside TIMEOUT is no success.
    """
    if not is_ended(row):
        return None
    if os.WIFSIGNALED(row.exit_code):
        number = os.WTERMSIG(row.exit_code)
        # 0:125 is how Slurm says that memory ran out (SIG_OOM), and no signal
        return -number if number < signal.NSIG else None
    code = row.exit_code >> 8 & 0xFF
    return code if code or row.state == "COMPLETED" else None


def waits_for(row: Row) -> str:
    """Slurm's own word for why it waits or ended."""
    return row.state if row.state in _STANDING or row.state in _HOLDS else row.reason
