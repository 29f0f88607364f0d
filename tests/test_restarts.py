"""Whether a run is started again: the rows of the policy, each with literal values."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

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
    three = found("GpuLost", "n2", "n3", "n4")
    told = ask(attempt(1), diagnosis=three)
    assert told.exclude == ("n2", "n3")
    assert "n4 cannot be left out as well" in told.why
    assert ask(attempt(1), diagnosis=three, spares=0).exclude == ()
    assert ask(attempt(1, nodes=("n1", "n2")), diagnosis=three).exclude == ("n2",)
    many = tuple(f"n{i}" for i in range(40))
    assert ask(attempt(1, nodes=many), diagnosis=three, spares=9).exclude == ("n2", "n3", "n4")


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


def test_steps_that_reach_no_checkpoint_are_no_progress():
    """Each start trains some way from the same checkpoint and fails at another step."""
    loop = [attempt(n, resume=1000, new=100 + 7 * n, cause="ProcessKilled") for n in range(1, 6)]
    killed = found("ProcessKilled")
    assert ask(*loop[:3], diagnosis=killed).kind == "restart"
    assert ask(*loop[:3], diagnosis=killed, newest_checkpoint=1000).kind == "stop"
    assert ask(*loop[:4], diagnosis=killed).kind == "stop"
    assert ask(*loop[:4], diagnosis=found("PortTaken")).kind == "restart"
    assert ask(*loop[:3], attempt(4, resume=1100, new=9), diagnosis=killed).kind == "restart"
    # the second time without progress between is a repetition
    oom = [attempt(n, resume=1000, new=500 - n, cause="GpuOutOfMemory") for n in (1, 2)]
    assert ask(*oom, diagnosis=found("GpuOutOfMemory")).kind == "stop"
    later = attempt(2, resume=1400, new=900)
    assert ask(oom[0], later, diagnosis=found("GpuOutOfMemory")).kind == "restart"


def test_what_the_scheduler_interrupts_spends_nothing():
    taken = [attempt(n, new=0, ended_by="preempted") for n in (1, 2, 3)]
    assert ask(*taken, attempt(4, new=0)).kind == "restart"
    # a run that only ever reaches its time limit without a step leads nowhere all the same
    limit = [attempt(n, new=0, ended_by="time-limit") for n in (1, 2, 3)]
    assert ask(*limit, ended_by="time-limit", on_time_limit="restart").kind == "stop"


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


def test_a_checkpoint_that_cannot_be_loaded_is_passed_over():
    told = ask(attempt(1, resume=400, new=0), diagnosis=found("CheckpointTorn"))
    assert (told.kind, told.before_step) == ("restart", 400)
    # it had trained since: what is torn is another file
    assert ask(attempt(1, resume=400, new=9), diagnosis=found("CheckpointTorn")).before_step is None


def test_a_service_that_is_away_is_waited_for_ever_longer():
    away = found("ServiceAway")
    assert ask(attempt(1), diagnosis=away, now=1959.0).kind == "hold"
    assert ask(attempt(1), diagnosis=away, now=1961.0).kind == "restart"
    twice = [attempt(1, cause="ServiceAway"), attempt(2, new=0)]
    assert ask(*twice, diagnosis=away, now=2961.0).kind == "hold"
    assert ask(*twice, diagnosis=away, now=3021.0).kind == "restart"


def test_a_hang_is_not_held_for_a_service():
    hung = {"state": "running", "ended_by": "", "exit_code": None, "codes": frozenset({"JobHung"})}
    stale = found("StorageFault")
    assert ask(attempt(1, end=""), diagnosis=stale, **hung).kind == "restart"
    assert ask(attempt(1, end=""), diagnosis=stale, storage_works=False, **hung).kind == "hold"


def test_a_loss_that_is_no_number_on_a_broken_node():
    told = ask(
        attempt(1, resume=400, new=120), codes=frozenset({"LossNotFinite"}), first_bad_step=500,
        diagnosis=found("GpuLost", "n3"),
    )  # fmt: skip
    assert (told.exclude, told.before_step) == (("n3",), 500)


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


def diverged(*attempts, **more):
    more = {"state": "running", "ended_by": "", "exit_code": None, "diverged_step": 500, **more}
    return ask(*attempts, **{"codes": frozenset({"LossDiverged", "LossSpike", "JobSlow"}), **more})


def test_a_loss_that_diverged_is_undone_only_where_its_owner_asked_for_it():
    now = attempt(1, resume=400, new=160, end="")
    told = diverged(now)
    assert (told.kind, "on-divergence" in told.why) == ("leave", True)
    told = diverged(now, rollback=True)
    assert (told.kind, told.before_step, told.skip_data, told.exclude) == ("restart", 500, True, ())
    assert diverged(now, rollback=True, diverged_step=None).kind == "hold", "it may still come back"
    assert diverged(now, rollback=True, codes=frozenset({"LossSpike"})).skip_data is False


def test_a_divergence_is_undone_once_for_a_step():
    one = attempt(1, resume=400, new=160, cause="LossDiverged")
    again = attempt(2, resume=400, new=120, end="")
    assert diverged(one, again, rollback=True).kind == "stop"
    assert diverged(one, again, rollback=True, diverged_step=555).kind == "stop", "it was here before"
    assert diverged(
        one, attempt(2, resume=400, new=999, end=""), rollback=True, diverged_step=1300
    ).before_step


def test_a_crash_of_a_run_that_diverged_goes_back_as_far_where_that_is_asked_for():
    more = {"codes": frozenset({"JobCrashed", "LossDiverged"}), "diverged_step": 500}
    assert ask(attempt(1, resume=400, new=160), **more).before_step is None
    told = ask(attempt(1, resume=400, new=160), rollback=True, **more)
    assert (told.before_step, told.skip_data) == (500, False)


class Life(RuleBasedStateMachine):
    """A run with every kind of trouble, one attempt after the other, as a watchdog would go on with it."""

    causes = ("", "GpuLost", "GpuIllegalAccess", "ProcessKilled", "StorageFull", "ServiceAway", "PortTaken")

    def __init__(self):
        super().__init__()
        self.attempts, self.step, self.clock, self.over = [], 0, 1000.0, False
        self.in_vain = 0

    def begin(self, exclude=(), before_step=None):
        nodes = tuple(n for n in (f"n{i}" for i in range(1, 9)) if n not in exclude)[:4]
        number = len(self.attempts) + 1
        self.attempts.append(
            Attempt("big", number, str(number), started_at=self.clock, nodes=nodes, excluded=tuple(exclude),
                    resume_step=self.step)
        )  # fmt: skip

    def end(self, last_step, cause, blamed, ended_by):
        if not self.attempts:
            self.begin()
        self.clock += 700.0
        last = dataclasses.replace(
            self.attempts[-1], last_step=last_step, ended_at=self.clock, end="it ended", cause=cause,
            blamed=blamed, ended_by=ended_by,
        )  # fmt: skip
        self.attempts[-1] = last
        told = Diagnosis(cause, signature(cause).advice if cause else "none", "it", tuple(
            Suspect(n, 0.9, "x") for n in blamed))  # fmt: skip
        ended = job(ended_by=ended_by, nodes=last.nodes, ended_at=self.clock)
        self.clock += 3600.0
        return decide(self.attempts, ended, told, codes=frozenset({"JobCrashed"}), now=self.clock, spares=3)

    @rule(cause=st.sampled_from(causes), steps=st.sampled_from([0, 0, None, 7, 300]), node=st.integers(0, 3))
    def fails(self, cause, steps, node):
        if self.over:
            return
        nodes = self.attempts[-1].nodes if self.attempts else ("n1", "n2", "n3", "n4")
        blamed = (nodes[node],) if cause == "GpuLost" else ()
        told = self.end(None if steps is None else self.step + steps, cause, blamed, "itself")
        self.step += steps or 0
        self.in_vain = self.in_vain + 1 if steps == 0 else self.in_vain if steps is None else 0
        # never beyond the budget, and never stopped for what nobody knows
        assert told.kind in ("restart", "stop")
        assert self.in_vain < 3 or told.kind == "stop"
        assert len(told.exclude) <= 2
        assert set(blamed) <= set(told.exclude) or told.kind != "restart"
        if told.kind == "stop":
            more = decide([*self.attempts[:-1], self.attempts[-1], self.attempts[-1]], job(), found(cause),
                          codes=frozenset({"JobCrashed"}), now=self.clock)  # fmt: skip
            assert more.kind == "stop" or self.in_vain < 3
            self.over = True
        else:
            self.begin(told.exclude, told.before_step)

    @rule(by=st.sampled_from(["preempted", "requeued"]))
    def is_interrupted(self, by):
        if self.over:
            return
        told = self.end(self.step, "", (), by)
        assert (told.kind, told.counts) == ("leave", False)
        self.begin(self.attempts[-1].excluded)

    @rule()
    def is_cancelled_by_a_person(self):
        if self.over:
            return
        assert self.end(self.step + 5, "GpuLost", (self.attempts[-1].nodes[:1] if self.attempts else ()),
                        "person").kind == "leave"  # fmt: skip
        self.over = True


Life.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=14)
TestLife = pytest.mark.slow(Life.TestCase)


@given(st.lists(st.sampled_from([None, 0, 40]), min_size=1, max_size=9))
@settings(deadline=None, max_examples=80)
def test_what_nobody_knows_changes_nothing(news):
    """Attempts of unknown progress in a history count neither way."""

    def decided(steps):
        return ask(*(attempt(n, new=new, resume=500 + n) for n, new in enumerate(steps, 1))).kind

    if news[-1] is not None:
        assert decided(news) == decided([n for n in news if n is not None])
