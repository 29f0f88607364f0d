"""Whether each run in trouble is to be started again, and where: what `restarts` needs to know for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clustertools.diagnose import Diagnosis
from clustertools.errors import Absent, Unobservable
from clustertools.host import Host
from clustertools.model import Attempt, Incident
from clustertools.restarts import DIVERGED, Decision, decide
from clustertools.schedulers import NodeState, RunSpec
from clustertools.sources import mounts
from clustertools.watchdog.observing import Seen

#: A storage with less free than this is still full: the next save would tear as the last one did.
FREE_RATIO = 0.03


def decisions(
    incidents: Mapping[str, Incident],
    seen: Seen,
    attempts: Mapping[str, Sequence[Attempt]],
    nodes: Mapping[str, NodeState],
    host: Host,
    now: float,
) -> dict[str, Decision]:
    """Run -> what to do about it, for each run that has an open incident. `nodes`: none when not known.

    A loss that diverged does not count: the run trains, and what else it needs is not put off for that.
    """
    return {
        run: _decision(run, codes - {DIVERGED}, seen, attempts.get(run, ()), nodes, host, now)
        for run, codes in _troubled(incidents, seen).items()
        if codes - {DIVERGED}
    }


def rollbacks(
    incidents: Mapping[str, Incident],
    seen: Seen,
    attempts: Mapping[str, Sequence[Attempt]],
    host: Host,
    now: float,
) -> dict[str, Decision]:
    """Run -> whether it is to go back, for each run whose loss diverged."""
    return {
        run: _decision(run, codes, seen, attempts.get(run, ()), {}, host, now)
        for run, codes in _troubled(incidents, seen).items()
        if DIVERGED in codes
    }


def _troubled(incidents: Mapping[str, Incident], seen: Seen) -> dict[str, frozenset[str]]:
    troubled: dict[str, frozenset[str]] = {}
    for incident in incidents.values():
        run = incident.finding.subject.run
        if incident.state == "open" and run in seen.jobs:
            troubled[run] = troubled.get(run, frozenset()) | {incident.finding.code}
    return troubled


def _decision(
    run: str,
    codes: frozenset[str],
    seen: Seen,
    attempts: Sequence[Attempt],
    nodes: Mapping[str, NodeState],
    host: Host,
    now: float,
) -> Decision:
    spec, job, diagnosis = seen.specs[run], seen.jobs[run], seen.diagnoses.get(run, Diagnosis())
    killed = kill_switch(spec, host)
    if killed:
        return Decision("leave", killed, counts=False)
    spares = sum(n.is_good and n.state.lower().startswith("idle") for n in nodes.values()) if nodes else None
    return decide(
        attempts, job, diagnosis, codes=codes, now=now, without_progress=spec.without_progress,
        on_time_limit=spec.on_time_limit, first_bad_step=seen.first_bad_steps.get(run),
        storage_works=_storage_works(spec, host) if diagnosis.advice == "wait" else None, spares=spares,
        diverged_step=seen.diverged_steps.get(run), rollback=spec.rollback,
    )  # fmt: skip


def kill_switch(spec: RunSpec, host: Host) -> str:
    """Why the owner of a run wants it left alone. A file that cannot be looked at may well be there."""
    if not spec.kill_switch:
        return ""
    try:
        host.stat(spec.kill_switch)
    except Absent:
        return ""
    except Unobservable as exc:
        return f"nobody can see whether the kill switch {spec.kill_switch} is there: {exc}"
    return f"the kill switch {spec.kill_switch} exists"


def _storage_works(spec: RunSpec, host: Host) -> bool | None:
    """Whether the checkpoints' file system answers and has room; None when nobody can tell."""
    if not spec.checkpoint_dir:
        return None
    try:
        (answer,) = mounts.probe(host, [spec.checkpoint_dir])
    except Unobservable:
        return None
    if answer.error or answer.stuck_pid:
        return False
    has_files = not answer.inodes or answer.inodes_free > 0
    return has_files and answer.free_bytes >= FREE_RATIO * answer.total_bytes
