"""`plan` and its guards, with literal values in and out; the playbooks themselves."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from clustertools.catalog import xids
from clustertools.cli import COMMANDS
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
from clustertools.policy import (
    Budgets,
    Ledger,
    Past,
    World,
    explains,
    load_playbooks,
    parse_playbook,
    plan,
    playbook_for,
)
from clustertools.restarts import Decision
from clustertools.schedulers.local import LocalScheduler
from clustertools.sinks.message import plain_block
from docs.make_reference import own_checks, told

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


def test_a_run_drains_whom_it_is_certain_of_and_leaves_the_drain_to_the_root_where_there_is_one():
    book = playbook_for("JobHung", OURS)
    one = hung()
    guilty = dataclasses.replace(one, finding=dataclasses.replace(one.finding, blamed=("gpu-017", "gpu-018")))
    without = {"decisions": {"big": Decision("restart", "why", exclude=("gpu-017",))}}

    def done(found, **more):
        return [
            (a.kind, str(a.target), a.options.get("reason", ""))
            for a in decide(found, playbooks=(book,), **more)
        ]

    drain = ("drain", "gpu-017", "clustertools: JobHung, this node is to blame")
    assert done(one) == done(guilty) == [("restart", "run:big", "")]
    assert done(guilty, **without) == [drain, ("restart", "run:big", "why")]
    assert done(dataclasses.replace(guilty, explained_by="XidGpuLost:gpu-017"), **without) == [
        ("restart", "run:big", "why")
    ]


def test_a_divergence_is_undone_by_a_decision_of_its_own_which_puts_off_nothing_else():
    book = playbook_for("LossDiverged", OURS)
    gone = incident("LossDiverged", Subject(run="big"))
    no, yes = (
        Decision("leave", "nobody asked for it"),
        Decision("restart", "back", before_step=5, skip_data=True),
    )
    assert decide(gone, playbooks=[book])[0].blocked == "nobody decided to undo it"
    assert decide(gone, playbooks=[book], rollbacks={"big": no})[0].blocked == "nobody asked for it"
    (action,) = decide(gone, playbooks=[book], rollbacks={"big": yes})
    assert (action.blocked, action.options) == ("", {"reason": "back", "before_step": 5, "skip_data": True})
    both = decide(hung(), gone, playbooks=[RESTART, book], rollbacks={"big": no})
    assert [(a.playbook, a.blocked) for a in both] == [
        ("restart-it", ""), ("job-loss-diverged", "nobody asked for it"),
    ]  # fmt: skip
    (spike,) = [b for b in OURS if "LossSpike" in b.codes]
    assert spike.steps == (), "a spike stops nobody"


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
    assert asked.blocked.startswith("waits for approval: clustertools approve ")
    assert decide(incident(), mode="ask", approved=frozenset({asked.id}))[0].blocked == ""
    assert decide(incident(), mode="observe", playbook_modes={"drain-it": "act"})[0].blocked == ""


def test_guard_ownership_of_nodes():
    (a,) = decide(incident(), drained={"gpu-017": "bad fan (ada)"})
    assert a.blocked == "gpu-017 was drained by somebody else: bad fan (ada)"
    (a,) = decide(incident(), drained={"gpu-017": "clustertools: XidGpuLost"})
    assert a.blocked == "gpu-017 is drained already: clustertools: XidGpuLost"
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
    assert [a.blocked for a in actions] == ["", "a restart of run:big is already under way"]


def test_two_faults_of_one_node_drain_it_once():
    other = incident(subject=Subject(node="gpu-017", part="gpu@0000:5d:00.0"))
    blocked = [a.blocked for a in decide(incident(), other)]
    assert blocked == ["", "a drain of gpu-017 is already under way"]


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


@pytest.mark.parametrize("status", [Status.WARNING, Status.UNKNOWN])
def test_only_critical_acts_and_the_rest_is_looked_at(status):
    warned = incident()
    warned = dataclasses.replace(warned, finding=dataclasses.replace(warned.finding, status=status))
    book = dataclasses.replace(DRAIN, steps=(Step("capture"), Step("drain"), Step("restart")))
    actions = decide(warned, playbooks=[book], jobs=(Job("1", "big", "running", 1, ("gpu-017",)),))
    assert [a.kind for a in actions] == ["capture"]
    worse = incident()
    assert worse.key == warned.key
    assert "drain" in [a.kind for a in decide(worse, playbooks=[book])]


# the playbooks that ship

OURS = load_playbooks(())
CHECKS = own_checks()
DECLARED = {code: check for check in CHECKS for code in check.codes}
#: Codes that no check declares: `fold` makes them.
MADE = {"Blind"}


def test_shipped_playbooks_close_the_world():
    answered = Counter(code for book in OURS for code in book.codes)
    assert [code for code, times in answered.items() if times > 1] == []
    assert set(answered) - set(DECLARED) - MADE == set()
    critical = {
        c for check in CHECKS for c, known in told(check).items() if Status.CRITICAL in known.statuses
    }
    assert (critical | MADE) - set(answered) == set()


def test_what_can_be_critical_is_known():
    """What the test above stands on: codes that are literal, passed on, in a table, or in the catalogue."""
    known = {code: one.statuses for check in CHECKS for code, one in told(check).items()}
    assert known["EccUncorrected"] == {Status.CRITICAL}
    assert known["EccCorrectedHigh"] == {Status.WARNING}
    assert known["HostDiskFull"] == known["GpuTooHot"] == {Status.WARNING, Status.CRITICAL}
    assert known["HostIoError"] == {Status.WARNING}
    assert known["HostOomKill"] == {Status.WARNING, Status.CRITICAL}
    assert known["XidChannelTornDown"] == set()
    assert all(
        Status.CRITICAL in known[entry.finding_code]
        for entry in xids()
        if entry.status is not Status.OK  # a warning too: an Xid 154 after it makes it one
    )


@pytest.mark.parametrize("book", OURS, ids=lambda book: book.name)
def test_a_shipped_playbook_is_whole(book, tmp_path):
    assert set(book.explains) <= set(DECLARED) | MADE
    scheduler = LocalScheduler(tmp_path, "n1")
    for step in book.steps:
        for target in (Subject(node="gpu-017", part="gpu@0000:3b:00.0"), Subject(run="big")):
            assert scheduler.preview(step.kind, target, step.options).strip()


#: What a runbook may tell a person to type: tools that an operator has, and ours.
TOOLS = set(
    "cat chronyc clustertools compute-sanitizer dcgmi df dkms dmesg dmidecode du ethtool free fuser "
    "grep hwclock iblinkinfo ibportstate ibqueryerrors ipmitool journalctl lfs lsmod lsof lspci "
    "mlxlink modprobe mount nvidia-bug-report.sh nvidia-smi perfquery ps quota ras-mc-ctl saquery "
    "sacct scancel scontrol sinfo smartctl sminfo squeue systemctl timedatectl umount".split()
)


@pytest.mark.parametrize("book", OURS, ids=lambda book: book.name)
def test_a_runbook_tells_a_person_what_to_type(book):
    assert len(book.runbook.split()) >= 40
    assert plain_block(book.runbook) == book.runbook.strip(), "a message would cut it"
    for label in ("Means: ", "Look at: ", "By itself", "Do: ", "Undo: ", "Tell: "):
        assert f"\n{label}" in f"\n{book.runbook}"
    quoted = re.findall(r"`([^`]*)`", book.runbook)
    commands = [text for text in quoted if text.split()[0] in TOOLS]
    assert commands
    assert not [text for text in quoted if "\n" in text], "a command is on one line, to be copied"
    for text in commands:
        words = text.split()
        if words[0] == "clustertools":
            assert words[1] in COMMANDS, text


def test_runbooks_name_playbooks_that_exist():
    names = {book.name for book in OURS}
    for book in OURS:
        assert set(re.findall(r"playbook ([a-z][a-z-]+)", book.runbook)) <= names, book.name


def test_no_incident_is_hushed_by_one_that_it_hushes():
    """A is because of B because of A: nobody would hear of either."""
    causes = explains(OURS)

    def reached(code, seen=()):
        assert code not in seen, " -> ".join((*seen, code))
        for symptom in causes.get(code, ()):
            reached(symptom, (*seen, code))

    for code in causes:
        reached(code)


def test_what_is_wrong_with_a_run_explains_only_what_is_wrong_with_runs():
    """Only of the same run: see test_incidents. A node's fault may explain a run's."""
    for root, symptoms in explains(OURS).items():
        if "job" in DECLARED[root].stages:
            assert all("job" in DECLARED[code].stages for code in symptoms), root
    assert all("JobCrashLoop" not in symptoms for symptoms in explains(OURS).values())


def test_applications_faults_hurt_no_node():
    (book,) = (b for b in OURS if b.name == "app-xid")
    assert book.steps == ()
    assert {"XidGraphicsException", "XidMmuFault", "XidChannelTornDown"} <= set(book.codes)


# those of a site


def test_a_site_replaces_a_playbook_by_name_and_adds_its_own(tmp_path):
    for name, text in (
        ("a.yaml", "name: gpu-reset\ncodes: [EccUncorrected]\nsteps: [drain]\nrunbook: ours\n"),
        ("b.yaml", "name: site\ncodes: [SiteFault]\nafter: 2m\nrunbook: call Ada\n"),
        ("notes.txt", "not a playbook"),
    ):
        (tmp_path / name).write_text(text)
    books = {book.name: book for book in load_playbooks((str(tmp_path),))}
    assert set(books) == {book.name for book in OURS} | {"site"}
    assert books["gpu-reset"].runbook == "ours"
    assert (books["site"].after_seconds, books["site"].steps) == (120.0, ())
    assert playbook_for("SiteFault", books.values()) == books["site"]
    assert playbook_for("NoSuchCode", books.values()) is None


def test_a_site_s_version_of_ours_may_take_codes_of_the_others(tmp_path):
    (tmp_path / "x.yaml").write_text("name: gpu-lost\ncodes: [JobHung, RemapFailed]\nrunbook: mine\n")
    (tmp_path / "y.yaml").write_text("name: app-xid\ncodes: [XidMmuFault, RemapFailed]\nrunbook: mine\n")
    assert playbook_for("RemapFailed", load_playbooks((str(tmp_path),))).name == "app-xid"


def test_a_later_folder_wins(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(f"name: site\ncodes: [SiteFault]\nrunbook: {folder}\n")
    books = load_playbooks((str(tmp_path / "one"), str(tmp_path / "two")))
    assert playbook_for("SiteFault", books).runbook == "two"


def test_a_site_may_take_a_code_from_a_playbook_of_ours(tmp_path):
    (tmp_path / "x.yaml").write_text("name: aaa\ncodes: [XidGpuLost]\nsteps: [drain]\nrunbook: mine\n")
    books = load_playbooks((str(tmp_path),))
    assert playbook_for("XidGpuLost", books).name == "aaa"
    assert {action.playbook for action in decide(incident(), playbooks=books)} == {"aaa"}


def test_a_folder_that_is_not_there_is_no_problem(tmp_path):
    assert load_playbooks((str(tmp_path / "none"),)) == OURS


def test_broken_site_files_are_all_named_with_their_paths(tmp_path):
    broken = {
        "dance.yaml": "name: x\ncodes: [A]\nrunbook: t\nsteps: [dance]\nafter: soon\n",
        "empty.yaml": "",
        "latin1.yaml": b"name: \xe9\n",
        "list.yaml": "[1, 2]",
        "object.yaml": "!!python/object/apply:os.system [id]",
        "text.yaml": "name: [",
    }
    for name, text in broken.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_playbooks((str(tmp_path),))
    assert len(caught.value.problems) == len(broken) + 1
    for name in broken:
        assert any(p.startswith(str(tmp_path / name)) for p in caught.value.problems), name
    assert all("\0" not in p for p in caught.value.problems)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"codes": "XidGpuLost"}, "codes must be a list"),
        ({"codes": [79]}, "codes must be a list"),
        ({"explains": "JobHung"}, "explains must be a list"),
        ({"steps": "drain"}, "steps must be a list"),
        ({"limits": [2]}, "limits must be a mapping"),
        ({"limits": {"per_day": 2}}, "limits.per_day: 2 is wrong; there is per_node_per_day and"),
        ({"limits": {"per_node_per_day": "two"}}, "limits.per_node_per_day: 'two' is wrong"),
    ],
)
def test_a_field_of_the_wrong_shape_is_named(field, said):
    with pytest.raises(ConfigError, match=f"^f.yaml: {re.escape(said)}"):
        parse_playbook({"name": "x", "codes": ["XidGpuLost"], "runbook": "text", **field}, "f.yaml")


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
