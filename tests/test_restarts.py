"""Whether a run is started again: the rows of the policy, each with literal values."""

from __future__ import annotations

import pytest

from clustertools.catalog.failures import signature
from clustertools.diagnose import Diagnosis, Suspect
from clustertools.model import Attempt, Job
from clustertools.restarts import decide

NODES = ("n1", "n2", "n3", "n4")


def attempt(number, *, new=50, resume=None, **more):
    """One that ended; `new` steps were made (None: not known)."""
    resume = 100 * number if resume is None else resume
    more.setdefault("nodes", NODES)
    more.setdefault("end", "exit code 1")
    return Attempt(
        "big", number, str(number), started_at=1000.0 * number, ended_at=1000.0 * number + 900,
        resume_step=resume, last_step=None if new is None else resume + new, **more,
    )  # fmt: skip


def job(**more):
    more = {"state": "ended", "exit_code": 1, "ended_by": "itself", "nodes": NODES, **more}
    return Job("4711", "big", attempt=9, **more)


def found(cause="", *blamed, advice=None, named=()):
    row = signature(cause)
    suspects = [Suspect(n, 0.9, "it is broken") for n in blamed] + [Suspect(n, 0.3, "perhaps") for n in named]
    return Diagnosis(cause, advice or (row.advice if row else "none"), f"{cause} it was", tuple(suspects))


def ask(*attempts, diagnosis=None, **more):
    job_fields = {k: more.pop(k) for k in list(more) if k in Job.__slots__}
    more = {"now": 1000.0 * len(attempts) + 950, "codes": frozenset({"JobCrashed"}), **more}
    return decide(attempts, job(**job_fields), diagnosis or found(), **more)


def test_a_first_unexplained_crash_is_started_again_at_once_on_the_same_nodes():
    told = ask(attempt(1))
    assert (told.kind, told.exclude, told.counts) == ("restart", (), True)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"ended_by": "person"}, "a person cancelled it"),
        ({"kill_switch": True}, "kill-switch"),
        ({"ended_by": "preempted"}, "by itself"),
        ({"ended_by": "requeued"}, "by itself"),
        ({"state": "pending"}, "by itself"),
        ({"state": "pending", "held": True, "reason": "JobHeldAdmin"}, "JobHeldAdmin"),
        ({"state": "unknown"}, "second copy"),
        ({"exit_code": 0}, "ended well"),
        ({"ended_by": "time-limit", "exit_code": None}, "time limit"),
        ({"ended_by": "lost", "exit_code": None}, "nobody knows how it ended"),
        ({"ended_by": "", "exit_code": None}, "nobody knows how it ended"),
        ({"state": "running", "ended_by": "", "exit_code": None, "codes": frozenset()}, "it runs"),
    ],
)
def test_what_is_left_alone(fields, why):
    told = ask(attempt(1), **fields)
    assert (told.kind, told.counts) == ("leave", False)
    assert why in told.why


def test_a_time_limit_is_free_where_the_config_says_restart():
    told = ask(attempt(1), ended_by="time-limit", on_time_limit="restart")
    assert (told.kind, told.counts) == ("restart", False)


def test_an_end_that_nobody_saw_is_a_crash_when_the_log_says_so():
    assert (
        ask(attempt(1), ended_by="lost", exit_code=None, diagnosis=found("GpuLost", "n2")).kind == "restart"
    )


def test_hardware_evidence_leaves_the_node_out():
    told = ask(attempt(1), diagnosis=found("GpuMemoryUncorrectable", "n3"))
    assert (told.kind, told.exclude) == ("restart", ("n3",))


def test_a_hang_with_evidence_by_stacks_only_stays_on_its_nodes_once():
    hung = {"state": "running", "ended_by": "", "exit_code": None, "codes": frozenset({"JobHung"})}
    stacks = found("", "n3", advice="same")
    assert ask(attempt(1, end=""), diagnosis=stacks, **hung).exclude == ()
    again = ask(attempt(1, blamed=("n3",)), attempt(2, end=""), diagnosis=stacks, **hung)
    assert (again.kind, again.exclude) == ("restart", ("n3",))
    later = ask(attempt(1, blamed=("n3",)), attempt(2, end=""), diagnosis=stacks, now=1e6, **hung)
    assert later.exclude == ()


def test_a_node_that_was_only_present_is_left_out_the_third_time():
    told = ask(
        attempt(1, nodes=("n1", "n2")), attempt(2, nodes=("n1", "n3")), attempt(3, nodes=("n1", "n4"))
    )  # fmt: skip
    assert told.exclude == ("n1",)
    assert ask(attempt(1), attempt(2), attempt(3)).exclude == ()


def test_never_more_nodes_are_left_out_than_spares_and_share_allow():
    two = found("GpuLost", "n2", "n3")
    told = ask(attempt(1), diagnosis=two)
    assert told.exclude == ("n2",)
    assert "n3 cannot be left out as well" in told.why
    assert ask(attempt(1), diagnosis=two, spares=0).exclude == ()
    many = tuple(f"n{i}" for i in range(40))
    assert ask(attempt(1, nodes=many), diagnosis=two, spares=9).exclude == ("n2", "n3")


def test_what_was_left_out_stays_out_for_a_day():
    first, second = attempt(1, blamed=("n3",)), attempt(2, nodes=("n1", "n2", "n4", "n5"), excluded=("n3",))
    assert ask(first, second).exclude == ("n3",)
    assert ask(first, second, now=200_000.0).exclude == ()


def test_user_errors_stop_at_once():
    told = ask(attempt(1), diagnosis=found("ModuleMissing"))
    assert told.kind == "stop"
    assert ask(attempt(1, new=0, resume=0), diagnosis=found("ProgramCheckFailed")).kind == "stop"
    assert ask(attempt(1), diagnosis=found("ProgramCheckFailed")).kind == "restart"


def test_gpu_memory_runs_out_early_or_late():
    oom = found("GpuOutOfMemory")
    assert (
        ask(attempt(1, new=3, resume=0), diagnosis=oom).kind == "restart"
    )  # it was resumed: step 0 is known
    first = Attempt("big", 1, "1", started_at=1000.0, ended_at=1100.0, first_step=0, last_step=3, end="x")
    assert ask(first, diagnosis=oom).kind == "stop"
    assert ask(attempt(1, new=500), diagnosis=oom).kind == "restart"
    again = ask(attempt(1, new=500, cause="GpuOutOfMemory"), attempt(2, new=0), diagnosis=oom)
    assert again.kind == "stop"


def test_an_illegal_access_again_here_or_elsewhere():
    bad = found("GpuIllegalAccess", named=("n2",))
    one = attempt(1, cause="GpuIllegalAccess", nodes=NODES)
    assert ask(attempt(1), diagnosis=bad).exclude == ()
    assert ask(one, attempt(2, new=0), diagnosis=bad).exclude == ("n2",)
    elsewhere = attempt(1, cause="GpuIllegalAccess", blamed=("n4",))
    assert ask(elsewhere, attempt(2, new=0), diagnosis=bad).kind == "stop"


def test_the_same_step_twice():
    one = attempt(1, resume=100, new=134, nodes=("n1", "n2"))
    here = attempt(2, resume=200, new=34, nodes=("n1", "n2"))
    there = attempt(2, resume=200, new=34, nodes=("n3", "n4"))
    assert ask(one, there).kind == "stop"
    swap = ask(one, here, diagnosis=found("ProcessKilled", named=("n2",)))
    assert (swap.kind, swap.exclude) == ("restart", ("n2",))
    third = attempt(3, resume=200, new=34, nodes=("n1", "n3"))
    assert ask(one, here, third).kind == "stop"
    assert ask(one, attempt(2, resume=200, new=35, nodes=("n3", "n4"))).kind == "restart"


def test_three_starts_without_a_step_stop_it_and_progress_refills():
    # the crash loop of the literature: same signature, the tracker never moves
    assert ask(attempt(1), attempt(2, new=0), attempt(3, new=0)).kind == "restart"
    loop = [attempt(1), *(attempt(n, new=0, cause="PortTaken") for n in (2, 3)), attempt(4, new=0)]
    told = ask(*loop, diagnosis=found("PortTaken"))
    assert told.kind == "stop"
    assert "3 starts in a row made no new step, each by" in told.why
    assert ask(*loop[:2], attempt(3), attempt(4, new=0)).kind == "restart"


def test_unknown_progress_counts_nothing():
    assert ask(*(attempt(n, new=None) for n in range(1, 9))).kind == "restart"


def test_a_launch_that_fails_is_tried_once_more():
    fails = [
        Attempt("big", n, str(n), started_at=n * 100.0, ended_at=n * 100.0 + 60, last_step=0,
                end="exit code 1", nodes=NODES) for n in (1, 2)
    ]  # fmt: skip
    assert ask(*fails[:1]).kind == "restart"
    assert ask(*fails[:2]).kind == "stop"


def test_storage_full_waits_for_the_probe_and_distrusts_the_newest_checkpoint():
    full = found("StorageFull")
    held = ask(attempt(1), diagnosis=full, storage_works=False, now=1e6)
    assert (held.kind, held.counts) == ("hold", False)
    assert ask(attempt(1), diagnosis=full, now=1901.0).kind == "hold"
    told = ask(attempt(1), diagnosis=full, storage_works=True, newest_checkpoint=140)
    assert (told.kind, told.before_step) == ("restart", 140)


def test_a_service_that_is_away_is_waited_for_ever_longer():
    away = found("ServiceAway")
    assert ask(attempt(1), diagnosis=away, now=1959.0).kind == "hold"
    assert ask(attempt(1), diagnosis=away, now=1961.0).kind == "restart"
    twice = [attempt(1, cause="ServiceAway"), attempt(2, new=0)]
    assert ask(*twice, diagnosis=away, now=2961.0).kind == "hold"
    assert ask(*twice, diagnosis=away, now=3021.0).kind == "restart"


def test_a_loss_that_is_no_number():
    def nan(*attempts, step=500):
        return ask(
            *attempts, state="running", ended_by="", exit_code=None, codes=frozenset({"LossNotFinite"}),
            first_bad_step=step, diagnosis=found("LossNotFinite", named=("n2",)),
        )  # fmt: skip

    one, two, three = (attempt(n, resume=400, new=120, cause="LossNotFinite") for n in (1, 2, 3))
    assert (nan(one).kind, nan(one).before_step, nan(one).exclude) == ("restart", 500, ())
    assert (nan(one, two).exclude, nan(one, two).before_step) == (("n2",), 500)
    assert nan(one, two, three).kind == "stop"
    assert nan(one, attempt(2, resume=600, new=999), step=1500).exclude == ()
