"""Which job is which run: by what the config asks for, and by what is known of earlier starts. Pure.

A run is a job, one task of an array (or all its tasks, one after the other), or all components of a
heterogeneous job, followed over requeues and over resubmissions. Where two jobs of one name run at the same
time nobody guesses which of them goes on: each is a run of its own, by its number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from clustertools.model import Attempt
from clustertools.schedulers import Wanted
from clustertools.schedulers.slurm_states import ended_by, held_by_us, is_ended, mark_of, unmarked
from clustertools.sources.slurm_queue import Row

#: A run whose last start failed stays known for this long after Slurm forgot the job: it may be begun anew.
REMEMBERED_SECONDS = 86400.0
#: For so long a task of a chain that we stopped is told of, unless the next start is decided before.
CHAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """A job: its row (the leader's, of a heterogeneous one) and the rows of the other components."""

    row: Row
    others: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A run that is there: by which entry of the config, and the job that tells of it (None: forgotten)."""

    name: str
    wanted: Wanted
    place: Place | None = None


@dataclass
class _Candidates:
    wanted: Wanted
    places: list[Place] = field(default_factory=list)


def places_of(rows: Iterable[Row]) -> list[Place]:
    """The jobs: components of a heterogeneous one together, tasks that still wait together left out."""
    single: list[Place] = []
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if row.het_id:
            parts.setdefault(row.het_id, []).append(row)
        else:
            single.append(Place(row))
    for components in parts.values():
        leader, *others = sorted(components, key=lambda row: row.het_offset or 0)
        single.append(Place(leader, tuple(others)))
    return single


def is_wanted(row: Row, wanted: Wanted) -> bool:
    """Whether the config names this job."""
    ids = {row.id, row.array_id, f"{row.array_id}_{row.task}", row.het_id} - {""}
    return (
        _fits(row.name, wanted.name)
        and _fits(row.user, wanted.user)
        and any(_fits(partition, wanted.partition) for partition in row.partition.split(","))
        and _fits(unmarked(row.comment), wanted.comment)
        and (not wanted.job_id or any(fnmatchcase(one, wanted.job_id) for one in ids))
    )


def _fits(text: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(text, pattern)


def run_name(row: Row, wanted: Wanted) -> str:
    """The run's name by its entry in the config; tasks of an array are told apart, unless it is a chain."""
    name = wanted.key
    if any(c in wanted.name for c in "*?[") or not (wanted.name or wanted.job_id):
        name += f"-{_safe(row.name)}"
    if row.task is not None and wanted.array == "tasks":
        name += f"_{row.task}"
    return name


def _safe(name: str) -> str:
    """A job's name as a part of a run's; two that would look alike are told apart by what they were."""
    # nobody's name may hold what a key, a path or another run's name is made of
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", name)[:60].strip("-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def entry_of(run: str, wanted: Sequence[Wanted]) -> Wanted | None:
    """The entry that a run of that name comes from; None when the config has it no longer."""
    fitting = [w for w in wanted if run == w.key or run.startswith((f"{w.key}-", f"{w.key}_", f"{w.key}."))]
    return max(fitting, key=lambda w: len(w.key), default=None)


def find(
    jobs: Iterable[Place], wanted: Sequence[Wanted], attempts: Mapping[str, tuple[Attempt, ...]], now: float
) -> dict[str, Found]:
    """Every run that is there, or that was there and is not known to be over."""
    candidates: dict[str, _Candidates] = {}
    there = set()
    for place in jobs:
        there.add(place.row.id)
        entry = next((w for w in wanted if is_wanted(place.row, w)), None)
        if entry is None or (place.row.waiting_tasks and entry.array == "tasks"):
            continue
        candidates.setdefault(run_name(place.row, entry), _Candidates(entry)).places.append(place)
    places = [place for group in candidates.values() for place in group.places]
    by_number = {place.row.id: place for place in places}
    by_token = {token: place for place in places if (token := _token(place.row))}
    found: dict[str, Found] = {}
    taken: set[str] = set()
    for run, known in attempts.items():
        # a job that is known by a number or a token stays with its run, whatever else begins
        mine = by_token.get(known[-1].token) if known else None
        at = mine or by_number.get(last_number(known))
        entry = entry_of(run, wanted)
        if at is not None and entry is not None and at.row.id not in taken:
            taken.add(at.row.id)
            found[run] = Found(run, entry, at)
    for run, group in candidates.items():
        free = [place for place in group.places if place.row.id not in taken]
        _add_unknown(found, run, group.wanted, free, attempts.get(run, ()), now)
    for run, known in attempts.items():
        entry = entry_of(run, wanted)
        # a job that is there and is not asked for any more (its name or comment was changed) is nobody's here
        if (
            run not in found
            and last_number(known) not in there
            and entry is not None
            and _may_go_on(known, now)
        ):
            found[run] = Found(run, entry)
    return found


def last_number(known: Sequence[Attempt]) -> str:
    """The number of the job that the run was last seen in; "" when it never had one."""
    return next((attempt.job_id for attempt in reversed(known) if attempt.job_id), "")


def _token(row: Row) -> str:
    mark = mark_of(row)
    return mark.token if mark is not None and mark.token else ""


def _add_unknown(
    found: dict[str, Found],
    run: str,
    wanted: Wanted,
    free: Sequence[Place],
    known: Sequence[Attempt],
    now: float,
) -> None:
    """Jobs of a run's name that are not yet known: the run's next start, or runs by their numbers."""
    last = found.get(run)
    before = {attempt.job_id for attempt in known}
    since = known[-1].started_at if known else 0.0
    begun = [place for place in free if has_begun(place.row)]
    waiting = [place for place in free if not is_ended(place.row) and not has_begun(place.row)]
    # it ended between two looks; one that ended well or was cancelled is nobody's business
    failed = [
        place for place in free
        if is_ended(place.row) and place.row.state not in ("COMPLETED", "CANCELLED", "REVOKED")
        and place.row.id not in before and place.row.ends_at >= since
    ]  # fmt: skip
    goes_on = last is not None and last.place is not None and not _is_over(last.place.row, now)
    if goes_on or len(begun) > 1:
        for place in begun:
            name = f"{run}.{place.row.id}"
            found[name] = Found(name, wanted, place)
        return
    if last is not None and last.place is not None and ended_by(last.place.row, now)[0] == "us":
        row = last.place.row
        if row.task is not None and row.id == known[-1].job_id and now - row.ends_at < CHAIN_SECONDS:
            return  # the next task of a chain may run already; who stopped this one has to see its end first
        waiting = []  # what we stopped we begin anew; what waits behind it does not take its place
    # of jobs that wait for each other the first comes next; of those that failed unseen, the last counts
    chosen = begun or sorted(waiting, key=_number)[:1] or sorted(failed, key=_number)[-1:]
    if chosen:
        found[run] = Found(run, wanted, chosen[0])


def _number(place: Place) -> int:
    return int(place.row.id)


def has_begun(row: Row) -> bool:
    """Whether something of the job ran, now or in an incarnation before."""
    return not is_ended(row) and (row.restarts > 0 or row.state not in ("PENDING", "CONFIGURING"))


def _is_over(row: Row, now: float) -> bool:
    return is_ended(row) or held_by_us(row, now)


def _may_go_on(known: Sequence[Attempt], now: float) -> bool:
    """Whether a run without a job is one to speak of: its end is not known, or it may be begun anew."""
    if not known:
        return False
    last = known[-1]
    if not last.end:
        return True
    return (
        last.ended_by != "person" and last.end != "exit code 0" and now - last.ended_at < REMEMBERED_SECONDS
    )
