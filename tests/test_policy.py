"""`plan` and its guards, with literal values in and out; the playbooks themselves."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.check import discover
from clustertools.errors import ConfigError
from clustertools.model import (
    Attempt,
    Finding,
    Incident,
    Job,
    Playbook,
    Status,
    Step,
    Subject,
    starts_without_progress,
)
from clustertools.policy import STEPS, Budgets, Ledger, Past, World, load_playbooks, parse_playbook, plan

NODE = Subject(node="gpu-017", part="gpu@0000:3b:00.0")
DRAIN = Playbook("drain-it", ("XidGpuLost",), "text", steps=(Step("drain", {"reason": "x"}),))
RESTART = Playbook("restart-it", ("JobHung",), "text", steps=(Step("restart"),))


def incident(code="XidGpuLost", subject=NODE, opened=1000.0, **more):
    nodes = more.pop("nodes", ())
    found = Finding("c", code, subject, Status.CRITICAL, "text", nodes=nodes)
    return Incident(found, "open", opened, opened, opened_at=opened, **more)


def hung(**more):
    return incident("JobHung", Subject(run="big"), nodes=("gpu-017",), **more)


def world(*incidents, **more):
    more.setdefault("mode", "act")
    more.setdefault("owned_runs", frozenset({"big"}))
    return World(fresh=frozenset(i.key for i in incidents), **more)


def decide(*incidents, playbooks=(DRAIN, RESTART), ledger=None, now=1000.0, budgets=None, **more):
    given = {i.key: i for i in incidents}
    return plan(given, playbooks, ledger or Ledger(), world(*incidents, **more), now, budgets)


def past(kind="drain", node="gpu-017", run="", state="done", time=900.0, id="old"):
    target = Subject(run=run) if run else Subject(node=node)
    return Past(id, kind, target, "p", state, "", time)


def test_an_open_incident_gets_its_steps():
    (action,) = decide(incident())
    assert (action.kind, action.target, action.blocked) == ("drain", Subject(node="gpu-017"), "")
    assert action.because == incident().key


@pytest.mark.parametrize("state", ["pending", "resolved"])
def test_only_open_incidents_act(state):
    assert decide(dataclasses.replace(incident(), state=state)) == []


def test_after_waits():
    book = dataclasses.replace(DRAIN, after_seconds=300.0)
    assert decide(incident(), playbooks=[book], now=1299.0) == []
    assert len(decide(incident(), playbooks=[book], now=1300.0)) == 1


def test_guard_mode():
    assert decide(incident(), mode="observe")[0].blocked == "observe mode"
    (asked,) = decide(incident(), mode="ask")
    assert asked.blocked.startswith("waits for approval: clustertools approve '")
    assert decide(incident(), mode="ask", approved=frozenset({asked.id}))[0].blocked == ""
    assert decide(incident(), mode="observe", playbook_modes={"drain-it": "act"})[0].blocked == ""


def test_guard_ownership_of_nodes():
    (a,) = decide(incident(), drained={"gpu-017": "bad fan (ada)"})
    assert a.blocked == "gpu-017 was drained by somebody else: bad fan (ada)"
    (a,) = decide(incident(), drained={"gpu-017": "clustertools: XidGpuLost"})
    assert a.blocked == ""
    book = dataclasses.replace(DRAIN, steps=(Step("resume"),))
    assert decide(incident(), playbooks=[book])[0].blocked == "gpu-017 is not drained"


def test_guard_ownership_of_runs():
    (a,) = decide(hung(), owned_runs=frozenset())
    assert a.blocked == "run big is not named in the config"


def test_guard_budget_per_node():
    ledger = Ledger((past(time=900.0), past(time=800.0, id="older")))
    assert decide(incident(), ledger=ledger)[0].blocked.startswith("budget: drain of gpu-017 2 times")
    assert decide(incident(), ledger=ledger, budgets=Budgets(per_node_per_day=3))[0].blocked == ""
    old = Ledger((past(time=1000.0 - 86401), past(time=1000.0 - 90000, id="older")))
    assert decide(incident(), ledger=old)[0].blocked == ""


def test_guard_budget_restarts_per_hour():
    ledger = Ledger(tuple(past("restart", run="other", id=str(n)) for n in range(6)))
    assert decide(hung(), ledger=ledger)[0].blocked.startswith("budget: 6 restarts in the last hour")


def attempts(*steps):
    """One ended attempt for each number of new steps; None is unknown."""
    return [
        Attempt("big", n, str(n), ended_at=1.0, end="exit code 1", resume_step=100,
                last_step=None if new is None else 100 + new)
        for n, new in enumerate(steps, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "lost"),
    [
        ((), 0),
        ((0, 0, 0), 3),
        ((0, 0, 5), 0),
        ((5, 0, 0), 2),
        ((0, None, 0), 2),
        ((None, None, None, None), 0),
        ((7, None, None), 0),
    ],
)
def test_only_known_failures_to_advance_count(steps, lost):
    assert starts_without_progress(attempts(*steps)) == lost


def test_guard_crash_loop_and_progress_refills():
    stuck = Ledger(attempts={"big": attempts(9, 0, 0, 0)})
    assert decide(hung(), ledger=stuck)[0].blocked.startswith("crash loop: 3 starts in a row")
    moving = Ledger(attempts={"big": attempts(0, 0, 0, 1)})
    assert decide(hung(), ledger=moving)[0].blocked == ""


def test_an_attempt_that_still_runs_is_no_failure():
    running = [*attempts(0, 0), Attempt("big", 3, "t", resume_step=100, last_step=100)]
    assert starts_without_progress(running) == 2


def test_guard_circuit_breaker():
    many = [incident(subject=Subject(node=f"gpu-{n:03d}", part="gpu@0000:3b:00.0")) for n in range(6)]
    actions = decide(*many, class_size=40)
    assert [a.blocked == "" for a in actions] == [True] * 4 + [False] * 2
    assert actions[-1].blocked.startswith("circuit breaker: 6 nodes ask for drain")
    # 6 of 1,000 nodes is a bad day, not a bad roll-out
    assert [a.blocked for a in decide(*many, class_size=1000)] == [""] * 6


def test_guard_circuit_breaker_remembers_the_window():
    ledger = Ledger(tuple(past(node=f"gpu-{n:03d}", id=str(n), time=100.0) for n in range(4)))
    assert decide(incident(), ledger=ledger, now=1000.0)[0].blocked.startswith("circuit breaker: 5")
    assert decide(incident(), ledger=ledger, now=2000.0)[0].blocked == ""


def test_guard_freshness():
    stale = plan({incident().key: incident()}, [DRAIN], Ledger(), World(mode="act"), 1000.0)
    assert stale[0].blocked == "not seen on this pass"


def test_guard_pause():
    assert decide(incident(), paused="driver roll-out (ada)")[0].blocked == "paused: driver roll-out (ada)"


def test_a_person_who_has_it_is_left_alone():
    (a,) = decide(incident(acknowledged_by="ada", acknowledged_until=2000.0))
    assert a.blocked == "ada has taken it"


def test_looking_needs_no_permission():
    book = Playbook("look", ("XidGpuLost",), "text", steps=(Step("capture"),))
    (a,) = decide(incident(), playbooks=[book], mode="observe", paused="x")
    assert a.blocked == ""


def test_what_the_scheduler_cannot_do_is_said():
    assert decide(incident(), supported=frozenset({"restart"}))[0].blocked == "drain is not possible here"


def test_planning_again_adds_nothing():
    (first,) = decide(incident())
    for state in ("planned", "running", "done", "failed"):
        ledger = Ledger((Past(first.id, "drain", first.target, "drain-it", state, "", 1000.0),))
        assert decide(incident(), ledger=ledger) == []


def test_a_block_is_told_once_and_lifted_when_its_reason_is_gone():
    (first,) = decide(incident(), mode="observe")
    ledger = Ledger((Past(first.id, "drain", first.target, "drain-it", "blocked", first.blocked, 1000.0),))
    assert decide(incident(), ledger=ledger, mode="observe") == []
    (lifted,) = decide(incident(), ledger=ledger, mode="act")
    assert (lifted.id, lifted.blocked) == (first.id, "")


def test_one_restart_at_a_time():
    ledger = Ledger((past("restart", run="big", state="running"),))
    assert decide(hung(), ledger=ledger) == []
    crashed = incident("JobCrashed", Subject(run="big"))
    both = dataclasses.replace(RESTART, codes=("JobHung", "JobCrashed"))
    actions = decide(hung(), crashed, playbooks=[both])
    assert [a.blocked for a in actions] == ["", "a restart of big is already under way"]


def test_a_node_fault_restarts_the_runs_on_it():
    book = Playbook("node", ("XidGpuLost",), "text", steps=(Step("drain"), Step("restart")))
    jobs = (
        Job("1", "big", "running", 1, ("gpu-016", "gpu-017")),
        Job("2", "far", "running", 1, ("gpu-900",)),
    )
    actions = decide(incident(), playbooks=[book], jobs=jobs)
    assert [(a.kind, str(a.target)) for a in actions] == [("drain", "gpu-017"), ("restart", "run:big")]


def test_each_attempt_of_a_run_may_be_restarted_once():
    ids = [decide(hung(), jobs=(Job("x", "big", "running", n),))[0].id for n in (1, 2)]
    assert ids[0] != ids[1]


# the playbooks that ship


def test_shipped_playbooks_close_the_world():
    declared = {code for check in discover(site_folders=()).values() for code in check.codes}
    for book in load_playbooks(()):
        assert set(book.codes) <= declared, book.name
        assert set(book.explains) <= declared, book.name
        assert {step.kind for step in book.steps} <= STEPS
        assert len(book.runbook.split()) > 20


def test_a_wrong_playbook_tells_every_problem():
    with pytest.raises(ConfigError) as caught:
        parse_playbook(
            {"name": "x", "steps": ["dance", {"drain": 3}], "after": "soon", "colour": 1}, "f.yaml"
        )
    text = str(caught.value)
    for said in (
        "'colour' is not known",
        "codes is missing",
        "runbook is missing",
        "'dance'",
        "drain",
        "after",
    ):
        assert said in text
