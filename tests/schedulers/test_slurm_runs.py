"""Which job is which run, what its state means, and which start it is: told from rows of squeue alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from clustertools.model import Attempt
from clustertools.schedulers import RunSpec, Wanted
from clustertools.schedulers.slurm_attempts import End, followed
from clustertools.schedulers.slurm_paths import expanded, output_paths, with_paths
from clustertools.schedulers.slurm_runs import Found, entry_of, find, places_of, run_name
from clustertools.schedulers.slurm_states import (
    Mark,
    ended_by,
    exit_code,
    held_by_us,
    incarnation,
    is_held,
    mark_of,
    state_of,
    unmarked,
)
from clustertools.sources.slurm_queue import Row

NOW = 10_000.0
BASE = Row(
    "7", "RUNNING", name="train", user="al", user_id=1000, partition="main", may_requeue=True, is_batch=True,
    priority=100, node_count=2, started_at=9_000.0, ends_at=99_000.0, node_list="n[1-2]", folder="/work",
    stdout="/work/slurm-7.out",
)  # fmt: skip
HELD_REASON = "job requeued in held state"


def row(**changes: Any) -> Row:
    return dataclasses.replace(BASE, **changes)


def over(state: str, **changes: Any) -> Row:
    return row(state=state, ends_at=9_500.0, **changes)


def held(**changes: Any) -> Row:
    return row(
        state="PENDING", reason=HELD_REASON, priority=0, started_at=10_100.0, ends_at=0.0, restarts=1,
        **changes,
    )  # fmt: skip


def names(rows: list[Row], *wanted: Wanted, **attempts: tuple[Attempt, ...]) -> dict[str, str]:
    """Run -> the number of its job."""
    found = find(places_of(rows), wanted or (Wanted("pre", name="train"),), attempts, NOW)
    return {run: f.place.row.id if f.place else "" for run, f in found.items()}


def known(job_id: str = "7", **changes: Any) -> tuple[Attempt, ...]:
    return (Attempt("pre", 1, f"{job_id}.0", job_id, 9_000.0, **changes),)


# states


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (row(), "running"),
        (row(state="SIGNALING"), "running"),
        (row(state="RESIZING"), "running"),
        (row(state="SUSPENDED"), "pending"),
        (row(state="STOPPED"), "pending"),
        (row(state="PENDING"), "pending"),
        (row(state="CONFIGURING"), "pending"),
        (row(state="REQUEUED"), "pending"),
        (row(state="SPECIAL_EXIT"), "pending"),
        (row(state="COMPLETING"), "completing"),
        (row(state="STAGE_OUT"), "completing"),
        (over("COMPLETED"), "ended"),
        (over("REVOKED"), "ended"),
        (held(), "pending"),
        (held(admin_comment="[clustertools stop 0]"), "ended"),
        (row(state="NEW_IN_30"), "unknown"),
    ],
)
def test_states(told: Row, state: str) -> None:
    assert state_of(told, NOW) == state


@pytest.mark.parametrize(
    ("told", "by", "code"),
    [
        (over("COMPLETED"), "itself", 0),
        (over("FAILED", exit_code=3 << 8), "itself", 3),
        (over("FAILED", exit_code=11), "itself", -11),
        (over("CANCELLED", exit_code=15), "person", -15),
        (over("CANCELLED", admin_comment="[clustertools stop 0]"), "us", None),
        # the mark is that of an incarnation before: this one was cancelled by somebody
        (over("CANCELLED", admin_comment="[clustertools stop 0]", restarts=1), "person", None),
        (over("CANCELLED", admin_comment="[clustertools start 0 t]"), "person", None),
        (over("TIMEOUT"), "time-limit", None),
        (over("DEADLINE"), "time-limit", None),
        (over("PREEMPTED"), "preempted", None),
        (over("NODE_FAIL"), "node-failed", None),
        (over("BOOT_FAIL"), "node-failed", None),
        (over("OUT_OF_MEMORY", exit_code=0), "out-of-memory", None),
        (row(), "", None),
        (held(), "", None),
        (held(comment="mine [clustertools stop 0]"), "us", None),
    ],
)
def test_who_ended_it(told: Row, by: str, code: int | None) -> None:
    assert (ended_by(told, NOW)[0], exit_code(told, NOW)) == (by, code)


@pytest.mark.parametrize(
    ("told", "is_ours"),
    [
        (held(), False),
        (held(admin_comment="note [clustertools stop 0]"), True),
        (held(admin_comment="[clustertools stop 1]"), False),  # somebody held it once more since
        (held(admin_comment="[clustertools start 1 tok]"), True),  # written down, and not yet let go
        (held(admin_comment="[clustertools start 0 tok]"), False),  # begun by us, then held by somebody
        (held(admin_comment="[clustertools stop 0] by hand"), False),
        (row(admin_comment="[clustertools stop 0]"), False),
        (
            row(state="COMPLETING", restarts=1, ends_at=0.0, admin_comment="[clustertools stop 0]"),
            True,
        ),
    ],
)
def test_a_hold_is_ours_by_the_mark_alone(told: Row, is_ours: bool) -> None:
    assert held_by_us(told, NOW) is is_ours


@pytest.mark.parametrize(
    "reason",
    [
        "JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "launch_failed_requeued_held",
        HELD_REASON, "JobHoldMaxRequeue",
    ],
)  # fmt: skip
def test_holds(reason: str) -> None:
    assert is_held(row(state="PENDING", reason=reason))
    assert not is_held(row(state="PENDING", reason="Priority"))
    assert not is_held(row(reason=reason))


def test_while_it_ends_for_a_requeue_the_restart_is_counted_and_has_not_begun() -> None:
    ending = row(state="COMPLETING", restarts=3, ends_at=0.0)
    assert incarnation(ending, NOW) == 2
    assert incarnation(row(state="COMPLETING", restarts=3, ends_at=9_999.0), NOW) == 3
    assert incarnation(row(restarts=3), NOW) == 3
    assert incarnation(held(admin_comment="[clustertools stop 0]"), NOW) == 0


def test_marks_keep_what_people_wrote() -> None:
    mark = Mark("start", 2, "a1b2")
    assert mark_of(row(comment=f"run 5 [x] {mark}")) == mark
    assert unmarked(f"run 5 [x] {mark}") == "run 5 [x]"
    assert mark_of(row(comment="see [clustertools docs]")) is None


# files


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("/logs/%x-%j-%u.out", "/logs/train-7-al.out"),
        ("log-%A_%a.txt", "/work/log-3_4.txt"),
        ("%4a.%N.%n.%t.%%", "/work/0004.n1.0.0.%"),
        ("a\\%j", "/work/a%j"),
        ("%q.out", "/work/%q.out"),
        ("", ""),
    ],
)
def test_patterns_in_names_of_files(path: str, full: str) -> None:
    assert expanded(path, row(array_id="3", task=4), "n1") == full


def test_the_output_of_a_job() -> None:
    assert output_paths(row()) == ("/work/slurm-7.out",)
    assert output_paths(row(stderr="/work/e-%j")) == ("/work/slurm-7.out", "/work/e-7")
    assert output_paths(row(stdout="/dev/null")) == ()
    assert output_paths(row(is_batch=False)) == ()
    # squeue 22.05 names slurm-7.out for a task whose output is slurm-3_4.out
    assert output_paths(row(array_id="3", task=4)) == ("/work/slurm-3_4.out",)


def test_a_run_has_the_jobs_paths() -> None:
    template = RunSpec("", log_paths=("logs/*-%j.txt",), checkpoint_dir="ckpt/%x", resume_file="resume")
    spec = with_paths(template, "pre", row())
    assert (spec.name, spec.cwd, spec.log_paths) == ("pre", "/work", ("/work/logs/*-7.txt",))
    assert (spec.checkpoint_dir, spec.resume_file) == ("/work/ckpt/train", "/work/resume")
    odd = with_paths(RunSpec(""), "pre", row(stdout="/work/[a]*.out"))
    assert odd.log_paths == ("/work/[[]a][*].out",)  # a name, no pattern


# which job is which run


def test_only_what_is_asked_for_is_a_run() -> None:
    rows = [row(), row(id="8", name="other"), row(id="9", name="train2")]
    assert names(rows) == {"pre": "7"}
    assert names(rows, Wanted("a", name="train*")) == {"a-train": "7", "a-train2": "9"}
    assert names(rows, Wanted("a", user="bob")) == {}
    assert names(rows, Wanted("a", job_id="8")) == {"a": "8"}
    assert names([row(partition="x,main")], Wanted("a", name="train", partition="main")) == {"a": "7"}
    marked = row(comment="exp-5 [clustertools start 0 t]")
    assert names([marked], Wanted("a", name="train", comment="exp-?")) == {"a": "7"}
    assert names(rows, Wanted("a", name="t*", user="bob"), Wanted("b", name="train")) == {"b": "7"}


def test_names_of_jobs_that_would_look_alike_are_kept_apart() -> None:
    any_name = Wanted("k", name="*")
    assert run_name(row(name="a.b"), any_name) != run_name(row(name="a b"), any_name)
    assert run_name(row(name="a-b"), any_name) == "k-a-b"
    for text in ("../../x", "x/y", "x" * 500, "\n", "", "x:y"):
        name = run_name(row(name=text), any_name)
        assert len(name) < 80
        assert not set(name) & set("/.\n: ")


def test_the_longest_key_that_fits_is_the_entry_of_a_run() -> None:
    a, ab = Wanted("a"), Wanted("a-b")
    assert entry_of("a-b-c", (a, ab)) is ab
    assert entry_of("a_3", (a, ab)) is a
    assert entry_of("a.17", (a, ab)) is a
    assert entry_of("abc", (a, ab)) is None


def test_two_that_run_at_once_are_two_runs() -> None:
    rows = [row(), row(id="8")]
    assert names(rows) == {"pre.7": "7", "pre.8": "8"}
    assert names(rows, pre=known("7")) == {"pre": "7", "pre.8": "8"}
    # and stay so when one of them is over
    both = {"pre": known("7"), "pre.8": known("8")}
    assert names([over("FAILED"), row(id="8")], **both) == {"pre": "7", "pre.8": "8"}


def test_what_waits_behind_another_is_the_next_start_of_its_run() -> None:
    waits = row(id="8", state="PENDING", reason="Dependency")
    later = row(id="9", state="PENDING", reason="Dependency")
    assert names([row(), waits, later], pre=known()) == {"pre": "7"}
    assert names([over("FAILED"), waits, later], pre=known()) == {"pre": "8"}
    assert names([over("FAILED"), row(id="8"), later], pre=known()) == {"pre": "8"}


def test_what_waits_behind_one_that_we_stopped_does_not_take_its_place() -> None:
    waits = row(id="8", state="PENDING", reason="Dependency")
    assert names([held(admin_comment="[clustertools stop 0]"), waits], pre=known()) == {"pre": "7"}
    assert names([held(), waits], pre=known()) == {"pre": "7"}


def test_one_of_ours_is_known_by_its_token_whatever_its_number() -> None:
    ours = row(id="9", comment="[clustertools start 0 tok]")
    other = row(id="8")
    attempts = (*known("7", end="exit code 1"), Attempt("pre", 2, "tok"))
    assert names([over("FAILED"), other, ours], pre=attempts) == {"pre": "9", "pre.8": "8"}


def test_one_that_failed_between_two_looks_is_seen() -> None:
    assert names([over("FAILED")]) == {"pre": "7"}
    assert names([over("COMPLETED")]) == {}
    assert names([over("CANCELLED")]) == {}


def test_a_run_without_a_job_is_told_of_while_it_may_go_on() -> None:
    assert names([], pre=known()) == {"pre": ""}
    assert names([], pre=known(end="exit code 1", ended_at=9_900.0)) == {"pre": ""}
    assert names([], pre=known(end="exit code 0", ended_at=9_900.0)) == {}
    assert names([], pre=known(end="cancelled", ended_at=9_900.0, ended_by="person")) == {}
    assert names([], pre=known(end="exit code 1", ended_at=-90_000.0)) == {}
    assert names([], Wanted("other"), pre=known()) == {}
    # it runs, under a name that nobody asked for: that is no end
    assert names([row(name="mine now")], pre=known()) == {}


def test_tasks_and_chains() -> None:
    tasks = [
        row(id="11", array_id="10", task=1),
        row(id="12", array_id="10", task=2),
        row(id="10", array_id="10", state="PENDING", waiting_tasks="3-9"),
    ]
    assert names(tasks) == {"pre_1": "11", "pre_2": "12"}
    chain = Wanted("pre", name="train", array="chain")
    one, two, rest = over("COMPLETED", id="11", array_id="10", task=1), tasks[1], tasks[2]
    assert names([tasks[0], rest], chain) == {"pre": "11"}
    assert names([one, rest], chain, pre=known("11")) == {"pre": "10"}
    assert names([one, two, rest], chain, pre=known("11")) == {"pre": "12"}
    # the last task has the number of the array itself
    last = row(id="10", array_id="10", task=3)
    assert names([over("FAILED", id="12"), last], chain, pre=known("12")) == {"pre": "10"}


def test_components_of_a_heterogeneous_job_are_one_run() -> None:
    parts = [row(id="5", het_id="4", het_offset=1), row(id="4", het_id="4", het_offset=0)]
    found = find(places_of(parts), (Wanted("pre", name="train"),), {}, NOW)
    place = found["pre"].place
    assert isinstance(found["pre"], Found)
    assert place is not None
    assert (place.row.id, [other.id for other in place.others]) == ("4", ["5"])


# which start it is


def follow(attempts: tuple[Attempt, ...], told: Row, before: End | None = None) -> tuple[Attempt, ...]:
    return followed("pre", attempts, told, ("n1", "n2"), before or End("requeued", "again"), NOW)


def test_the_first_start_that_is_seen() -> None:
    (first,) = follow((), row(restarts=2))
    assert (first.number, first.token, first.job_id, first.requeues) == (1, "7.2", "7", 2)
    assert (first.started_at, first.nodes) == (9_000.0, ("n1", "n2"))
    (waiting,) = follow((), row(state="PENDING", started_at=12_000.0))
    assert (waiting.started_at, waiting.nodes) == (0.0, ())
    assert follow((), row(state="PENDING", waiting_tasks="1-9")) == ()


def test_a_requeue_by_others_is_another_start() -> None:
    first = known()
    assert [a.number for a in follow(first, row())] == [1]
    old, new = follow(first, row(state="PENDING", restarts=1))
    assert (old.ended_by, old.end, old.ended_at) == ("requeued", "again", NOW)
    assert (new.number, new.token, new.requeues, new.started_at) == (2, "7.1", 1, 0.0)
    (*_, ran) = follow((old, new), row(restarts=1, started_at=9_800.0))
    assert (ran.number, ran.started_at, ran.nodes) == (2, 9_800.0, ("n1", "n2"))


def test_while_it_is_on_its_way_out_it_is_still_the_same_start() -> None:
    assert follow(known(), row(state="COMPLETING", restarts=1, ends_at=0.0)) == known()


def test_our_hold_is_no_start() -> None:
    assert len(follow(known(), held(admin_comment="[clustertools stop 0]"))) == 1


def test_our_start_is_the_attempt_that_was_decided() -> None:
    decided = (*known(end="us"), Attempt("pre", 2, "tok"))
    stopped = held(admin_comment="[clustertools stop 0]")
    assert follow(decided, stopped) == decided
    written = held(admin_comment="[clustertools start 1 tok]")
    assert follow(decided, written) == decided
    begun = row(restarts=1, admin_comment="[clustertools start 1 tok]")
    (_, ours) = follow(decided, begun)
    assert (ours.number, ours.job_id, ours.requeues) == (2, "7", 1)
    # and a later requeue by Slurm is not
    after = row(restarts=2, admin_comment="[clustertools start 1 tok]")
    assert [a.token for a in follow((decided[0], ours), after)] == ["7.0", "tok", "7.2"]


def test_a_start_that_could_not_be_made_does_not_make_the_old_job_a_new_one() -> None:
    lost = (*known(end="exit code 1"), Attempt("pre", 2, "tok", end="sbatch failed"))
    assert follow(lost, over("FAILED")) == lost


def test_the_next_task_of_a_chain_is_what_was_decided() -> None:
    decided = (*known("11", end="us"), Attempt("pre", 2, "tok", resume_path="/c", excluded=("n9",)))
    assert follow(decided, row(id="10", state="PENDING", array_id="10", waiting_tasks="2-4")) == decided
    (_, ours) = follow(decided, row(id="12", array_id="10", task=2))
    assert (ours.number, ours.token, ours.job_id, ours.requeues) == (2, "tok", "12", 0)
    assert (ours.resume_path, ours.excluded) == ("/c", ("n9",))


def test_another_job_that_waits_has_begun_nothing() -> None:
    (old,) = follow(known(), row(id="8", state="PENDING"), End("itself", "", 1, 9_500.0))
    assert (old.number, old.ended_by, old.ended_at) == (1, "itself", 9_500.0)
    old, new = follow((old,), row(id="8"))
    assert (new.number, new.token) == (2, "8.0")
