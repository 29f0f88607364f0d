"""The watchdog over a scheduler whose jobs others began: what it is told, decides, and leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from clustertools.check import Check, NoLimits
from clustertools.errors import Unobservable
from clustertools.model import Attempt, Job, Playbook, Status, Step
from clustertools.schedulers import FindsRuns, KnowsNodes, NodeState, RunSpec, Wanted
from clustertools.sources.job_look import JobLook, LookOrder, NodeLook
from tests.lab.watching import NOON, WatchLab

NODES = ("n1", "n2", "n3", "n4")
AGAIN = Playbook(
    "again", ("JobCrashed", "JobHung"), "Look.",
    steps=(Step("drain", {"reason": "clustertools: {code}"}), Step("restart")),
)  # fmt: skip


class Cluster:
    """A scheduler with the jobs that a test puts there; notes what it is asked to do."""

    kind = "cluster"
    supported = frozenset({"restart", "capture", "cancel", "drain", "resume", "exclude"})

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.specs: dict[str, RunSpec] = {}
        self.asked: list[str] = []
        self.away = ""
        self.drained: dict[str, str] = {}

    def put(self, run: str, **more: Any) -> None:
        self.specs.setdefault(run, RunSpec(run, resume="none"))
        job = Job("1", run, "running", 1, NODES, started_at=NOON)
        attempt = Attempt(run, 1, "1.0", "1", started_at=NOON, first_step=1, last_step=900, nodes=NODES)
        self.jobs[run] = dataclasses.replace(self.jobs.get(run, job), attempts=(attempt,), **more)

    def runs(
        self, wanted: Sequence[Wanted], attempts: Mapping[str, tuple[Attempt, ...]]
    ) -> Sequence[RunSpec]:
        if self.away:
            raise Unobservable(self.away)
        return list(self.specs.values())

    def job(self, spec: RunSpec, attempts: tuple[Attempt, ...]) -> Job:
        job = self.jobs[spec.name]
        return dataclasses.replace(job, attempts=attempts or job.attempts)

    def submit(self, spec: RunSpec, attempt: Attempt) -> str:
        self.asked.append(f"submit {spec.name} without {','.join(attempt.excluded) or 'nobody'}")
        self.put(spec.name, state="running", ended_by="", exit_code=None)
        return "1"

    def cancel(self, spec: RunSpec, job: Job, why: str, *, force: bool) -> None:
        self.asked.append(f"cancel {spec.name}")
        self.put(spec.name, state="ended", ended_by="us")

    def leftovers(self, spec: RunSpec, job: Job) -> list[int]:
        return []

    def preview(self, kind: str, target: Any, options: Mapping[str, Any]) -> str:
        return f"{kind} {target} {dict(options)}"

    def nodes(self) -> dict[str, NodeState]:
        return {
            n: NodeState(n, n not in self.drained, n in self.drained, self.drained.get(n, ""), "idle")
            for n in NODES
        }

    def drain(self, node: str, reason: str) -> None:
        self.asked.append(f"drain {node}")
        self.drained[node] = reason

    def resume(self, node: str) -> None:
        del self.drained[node]


class Looker:
    """Notes what it was asked to look at; all that it sees is a time."""

    def __init__(self) -> None:
        self.orders: list[list[LookOrder]] = []

    def look(self, orders: Sequence[LookOrder]) -> Mapping[str, JobLook]:
        self.orders.append(list(orders))
        return {o.request.run: JobLook(tuple(NodeLook(n, NOON) for n in o.nodes)) for o in orders}


def ended(ctx: Any) -> Any:
    """Reports that a job ended badly."""
    if ctx.job.state == "ended" and ctx.job.ended_by != "us" and ctx.job.exit_code != 0:
        yield ctx.critical("JobCrashed", "", "it ended", nodes=ctx.job.nodes)


def doubted(ctx: Any) -> Any:
    """Has to see the nodes of runs that are called doubt-N."""
    if ctx.job.run.startswith("doubt") and len(ctx.look().nodes) == len(NODES):
        yield ctx.warning("JobSilent", "", f"seen on {len(ctx.look().nodes)} nodes")


def check_of(look: Any, **codes: str) -> Check:
    return Check(look.__name__, look, "doc", NoLimits, frozenset({"job"}), codes, interval_seconds=0.0)


class ClusterLab(WatchLab):
    def __init__(self, folder: Any, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.cluster, self.looker = Cluster(), Looker()
        self.watchdog.scheduler = self.cluster
        self.watchdog.looker = self.looker
        self.watchdog.wanted = [Wanted("any")]
        self.watchdog.playbooks = (AGAIN,)
        self.watchdog.checks = [check_of(ended, JobCrashed="ended"), check_of(doubted, JobSilent="silent")]


@pytest.fixture
def lab(tmp_path):
    return ClusterLab(tmp_path, mode="act")


def crash(lab: ClusterLab, run: str = "big", **more: Any) -> None:
    lab.cluster.put(run, **{"state": "ended", "exit_code": 1, "ended_by": "itself", "ended_at": NOON, **more})


def test_the_stand_in_is_what_the_watchdog_asks_for():
    assert isinstance(Cluster(), FindsRuns)
    assert isinstance(Cluster(), KnowsNodes)


def test_a_run_that_crashed_is_started_again(lab):
    lab.cluster.put("big")
    lab.pass_()
    assert lab.cluster.asked == []
    crash(lab)
    lab.passes(8)
    assert lab.cluster.asked == ["submit big without nobody"]
    assert [a.number for a in lab.store.attempts("big")] == [1, 2]


def test_nothing_is_decided_while_the_scheduler_is_away(lab):
    lab.cluster.put("big")
    lab.pass_()
    crash(lab)
    lab.cluster.away = "slurmctld does not answer"
    passes = lab.passes(5)
    assert lab.cluster.asked == []
    assert all(not p.planned for p in passes)
    assert "Blind:job_list" in lab.store.incidents()
    assert [j for p in passes for j in p.jobs] == []
    lab.cluster.away = ""
    lab.passes(8)
    assert lab.cluster.asked == ["submit big without nobody"]
    assert lab.store.incidents()["Blind:job_list"].state == "resolved"


def test_a_restart_waits_while_the_scheduler_is_away(lab):
    crash(lab)
    while not any(a.number == 2 for a in lab.store.attempts("big")):
        lab.pass_()
    lab.cluster.away = "slurmctld does not answer"
    lab.passes(5)
    assert lab.cluster.asked == []
    lab.cluster.away = ""
    lab.passes(3)
    assert lab.cluster.asked == ["submit big without nobody"]


def test_what_a_person_cancelled_is_left_alone(lab):
    crash(lab, ended_by="person", exit_code=None)
    lab.passes(6)
    assert lab.cluster.asked == []


def test_the_kill_switch_is_heard_and_one_that_cannot_be_seen_counts(lab):
    lab.cluster.specs["big"] = RunSpec("big", resume="none", kill_switch="/run/STOP")
    lab.machine.files["/run/STOP"] = ""
    crash(lab)
    said = lab.passes(4)
    assert lab.cluster.asked == []
    assert any("/run/STOP exists" in a.blocked for p in said for a in p.planned)
    del lab.machine.files["/run/STOP"]
    lab.machine.unseen_files.add("/run/STOP")
    lab.passes(4)
    assert lab.cluster.asked == []
    lab.machine.unseen_files.clear()
    lab.passes(8)
    assert lab.cluster.asked == ["submit big without nobody"]


def test_only_a_node_that_is_blamed_is_drained_and_left_out(lab):
    crash(lab, failed_nodes=("n3",), ended_by="node-failed", exit_code=None)
    lab.passes(8)
    assert lab.cluster.asked == ["drain n3", "submit big without n3"]
    assert lab.store.attempts("big")[0].blamed == ("n3",)


def test_a_node_that_drained_itself_is_left_out_and_its_reason_stays(lab):
    reason = "clustertools: XidGpuLost gpu@0000:5d:00.0: the GPU fell off the bus (node-health)"
    lab.cluster.drained["n2"] = reason
    crash(lab)
    lab.passes(8)
    assert lab.cluster.asked == ["submit big without n2"]
    assert lab.cluster.drained == {"n2": reason}
    assert lab.store.attempts("big")[0].blamed == ("n2",)


def test_what_a_person_wrote_beside_a_node_blames_nobody(lab):
    lab.cluster.drained["n2"] = "XidGpuLost, says al"
    crash(lab)
    lab.passes(8)
    assert lab.cluster.asked == ["submit big without nobody"]


def test_the_nodes_of_a_run_are_no_suspects(lab):
    crash(lab)
    lab.passes(8)
    assert lab.cluster.drained == {}


def test_the_nodes_of_all_runs_in_doubt_are_looked_at_together(lab):
    for run in ("doubt-1", "fine", "doubt-2"):
        lab.cluster.put(run)
    done = lab.pass_()
    assert [[o.request.run for o in orders] for orders in lab.looker.orders] == [["doubt-1", "doubt-2"]]
    assert lab.looker.orders[0][0].nodes == NODES
    said = [f.summary for v in done.verdicts for f in v.findings]
    assert said == ["seen on 4 nodes"] * 2
    assert not any(v.wants_look for v in done.verdicts)


def test_without_a_way_to_the_nodes_the_check_hears_so(lab):
    lab.watchdog.looker = None
    lab.cluster.put("doubt-1")
    done = lab.pass_()
    assert [f for v in done.verdicts for f in v.findings] == []


def test_an_incident_stays_open_until_its_run_was_started_again(lab):
    lab.watchdog.playbooks = (dataclasses.replace(AGAIN, codes=("JobStuck",), steps=(Step("restart"),)),)
    stuck = {"now": True}

    def job_check(ctx: Any) -> Any:
        if stuck["now"] and ctx.job.state == "running":
            yield ctx.critical("JobStuck", "", "stuck", nodes=NODES)

    lab.watchdog.checks = [check_of(job_check, JobStuck="stuck")]
    lab.cluster.put("big")
    lab.pass_()
    while "cancel big" not in lab.cluster.asked:
        lab.pass_()
    stuck["now"] = False
    lab.pass_()
    assert lab.store.incidents()["JobStuck:run:big"].state == "open"
    lab.passes(6)
    assert lab.store.incidents()["JobStuck:run:big"].state == "resolved"


def test_what_is_open_about_a_run_that_is_gone_ends_after_a_day(lab):
    lab.set(mode="observe")
    crash(lab)
    lab.pass_()
    key = "JobCrashed:run:big"
    assert lab.store.incidents()[key].state == "open"
    lab.cluster.specs.clear()
    lab.pass_(3600)
    assert lab.store.incidents()[key].state == "open"
    lab.pass_(86400)
    assert lab.store.incidents()[key].state == "resolved"


def test_between_two_passes_what_is_under_way_goes_on(lab):
    crash(lab)
    lab.pass_()
    assert lab.watchdog.busy()
    said = [s for _ in range(8) for s in lab.watchdog.carry_on()]
    assert lab.cluster.asked == ["submit big without nobody"]
    assert any("started attempt 2" in s for s in said)
    assert not lab.watchdog.busy()


def test_carrying_on_starts_nothing_new(lab):
    crash(lab)
    assert lab.watchdog.carry_on() == ()
    assert lab.store.actions() == []


def test_a_run_that_others_began_anew_has_one_more_attempt(lab):
    lab.cluster.put("big")
    lab.pass_()
    first = lab.store.attempts("big")[0]
    over = dataclasses.replace(first, end="Slurm began it anew", ended_by="requeued", ended_at=NOON + 9)
    second = Attempt("big", 2, "1.1", "1", requeues=1, started_at=NOON + 10)
    lab.cluster.job = lambda spec, attempts: dataclasses.replace(
        lab.cluster.jobs["big"], attempt=2, attempts=(over, second)
    )
    lab.pass_()
    assert [(a.number, a.ended_by, a.requeues) for a in lab.store.attempts("big")] == [
        (1, "requeued", 0), (2, "", 1),
    ]  # fmt: skip


def test_a_trouble_that_went_by_is_nobodys_fault(lab):
    hung = {"now": True}

    def job_progress(ctx: Any) -> Any:
        if hung["now"]:
            yield ctx.critical("JobHung", "", "it hangs", nodes=NODES)

    lab.set(mode="observe")
    lab.watchdog.checks = [check_of(job_progress, JobHung="hung")]
    lab.cluster.put("big", failed_nodes=("n3",))
    lab.pass_()
    assert lab.store.attempts("big")[0].blamed == ("n3",)
    hung["now"] = False
    lab.pass_()
    assert (lab.store.attempts("big")[0].blamed, lab.store.attempts("big")[0].cause) == ((), "")


def test_observe_mode_does_nothing_and_says_what_it_would(tmp_path):
    lab = ClusterLab(tmp_path)
    crash(lab)
    done = lab.pass_()
    assert [(a.kind, a.blocked) for a in done.planned] == [("restart", "observe mode")]
    lab.passes(3)
    assert lab.cluster.asked == []


def test_a_verdict_of_the_scheduler_is_there_for_each_run(lab):
    lab.cluster.put("big")
    lab.cluster.put("small", state="pending", reason="Priority")
    states = {str(v.subject): v.detail for v in lab.pass_().verdicts if v.check == "job_state"}
    assert states == {"run:big": "running", "run:small": "pending (Priority)"}
    assert all(v.status is Status.OK for v in lab.pass_().verdicts if v.check == "job_state")
