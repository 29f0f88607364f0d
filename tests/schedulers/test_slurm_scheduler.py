"""What only Slurm has, on a real one: requeues, holds, exclusions, arrays, people, dead nodes, silence."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clustertools.errors import ActionFailed, Unobservable
from clustertools.host import LocalHost
from clustertools.model import Attempt, Job, Subject
from clustertools.schedulers import RunSpec, Wanted
from clustertools.schedulers import slurm_orders as orders
from clustertools.schedulers.slurm import SlurmScheduler
from clustertools.sources import slurm_queue
from tests.lab.runs import until
from tests.lab.slurm import Slurm, needs_slurm

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180), needs_slurm]

NOBODY = 65534
SLEEP = "#!/bin/sh\nexec sleep 300\n"
_numbers = itertools.count()


class Lab:
    """One entry of the config over a real Slurm, and what a watchdog would have written down of it."""

    def __init__(self, slurm: Slurm) -> None:
        self.slurm = slurm
        self.key = f"t{os.getpid()}x{next(_numbers)}"
        self.wanted = Wanted(self.key, name=self.key)
        self.attempts: dict[str, tuple[Attempt, ...]] = {}
        self.specs: dict[str, RunSpec] = {}
        self.renew()

    def renew(self) -> None:
        """A watchdog that remembers nothing but what it had written down."""
        self.scheduler = SlurmScheduler(LocalHost(), settle_seconds=1)

    def submit(self, *options: str, script: str = SLEEP, user: int = 0, name: str = "") -> str:
        return self.slurm.submit(script, f"--job-name={name or self.key}", *options, user=user)

    def look(self) -> dict[str, Job]:
        specs = self.scheduler.runs((self.wanted,), self.attempts)
        self.specs = {spec.name: spec for spec in specs}
        jobs = {spec.name: self.scheduler.job(spec, self.attempts.get(spec.name, ())) for spec in specs}
        for run, job in jobs.items():
            known = job.attempts
            if job.state == "ended" and known and not known[-1].end:
                last = dataclasses.replace(known[-1], end=job.exit_reason or "ended", ended_by=job.ended_by)
                known = (*known[:-1], last)
            self.attempts[run] = known
        return jobs

    def job(self, run: str = "") -> Job:
        return self.look()[run or self.key]

    def until(self, state: str, run: str = "", seconds: float = 120.0) -> Job:
        last: list[Any] = []

        def is_there() -> bool:
            last[:] = [self.look().get(run or self.key)]
            return last[0] is not None and last[0].state == state

        try:
            until(is_there, state, seconds)
        except AssertionError as exc:
            raise AssertionError(f"not {state}: {last}") from exc
        return last[0]

    def cancel(self, run: str = "") -> None:
        job = self.job(run)
        self.scheduler.cancel(self.specs[run or self.key], job, "test", force=False)

    def decide(self, *excluded: str, token: str = "") -> Attempt:
        """The next attempt, as it is written down before it is begun."""
        known = self.attempts[self.key]
        attempt = Attempt(
            self.key, known[-1].number + 1, token or f"{self.key}-{known[-1].number + 1}",
            started_at=time.time(), excluded=excluded,
        )  # fmt: skip
        self.attempts[self.key] = (*known, attempt)
        return attempt

    def begin(self, attempt: Attempt, **changes: Any) -> str:
        self.look()
        job_id = self.scheduler.submit(dataclasses.replace(self.specs[self.key], **changes), attempt)
        started = dataclasses.replace(attempt, job_id=job_id)
        self.attempts[self.key] = (*self.attempts[self.key][:-1], started)
        return job_id

    def tell(self, job_id: str, form: str) -> str:
        return self.slurm.run("squeue", "-h", "--states=all", "-j", job_id, "-o", form).strip()


@pytest.fixture
def lab(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    made = Lab(slurm)
    yield made
    names = {
        made.key,
        *(line for line in slurm.run("squeue", "-h", "-o", "%j").splitlines() if made.key in line),
    }
    slurm.run("scancel", f"--name={','.join(sorted(names))}", check=False)


@pytest.fixture(scope="module", autouse=True)
def timed(slurm: Slurm) -> str:
    """A job whose time limit ends it while the other tests run: slurmctld looks every 30 s."""
    job_id = slurm.submit(SLEEP, "--no-requeue", "-t1", "--overcommit", "--job-name=timed")
    slurm.wait(lambda: "RUNNING" in slurm.run("squeue", "-h", "-j", job_id, "-o", "%T"), "it runs")
    slurm.run("scontrol", "update", f"JobId={job_id}", "EndTime=now+1")
    return job_id


def test_a_requeue_keeps_the_number_and_the_exclusions_of_its_owner(lab: Lab) -> None:
    number = lab.submit("--exclude=n3", "--comment=mine: 50%|5")
    first = lab.until("running").nodes[0]
    lab.cancel()
    assert lab.until("ended").ended_by == "us"
    lab.renew()
    held = lab.job()
    assert (held.state, held.ended_by, held.held, held.exit_code) == ("ended", "us", False, None)
    assert lab.begin(lab.decide(first)) == number
    job = lab.until("running")
    assert (job.attempt, job.id, job.attempts[-1].requeues) == (2, number, 1)
    assert set(job.nodes).isdisjoint({first, "n3"})
    assert set(slurm_queue.node_names(LocalHost(), lab.tell(number, "%x"))) == {first, "n3"}
    assert lab.tell(number, "%k") == "mine: 50%|5"
    # our exclusion lapses, its owner's does not
    lab.cancel()
    lab.until("ended")
    assert lab.begin(lab.decide()) == number
    assert lab.tell(number, "%x") == "n3"


def test_what_was_written_down_and_not_let_go_is_let_go_by_the_next(lab: Lab) -> None:
    number = lab.submit()
    lab.until("running")
    lab.cancel()
    lab.until("ended")
    attempt = lab.decide()
    # the watchdog dies between its note at the job and the release
    note = f"AdminComment=of the admins [clustertools start 1 {attempt.token}]"
    lab.slurm.run("scontrol", "update", f"JobId={number}", note, "StartTime=now+1")
    lab.renew()
    assert lab.job().state == "pending"
    assert lab.begin(attempt) == number
    job = lab.until("running")
    assert [a.token for a in job.attempts] == [f"{number}.0", attempt.token]
    assert lab.begin(attempt) == number
    assert lab.job().state == "running"


def test_a_start_without_enough_nodes_left_is_refused_in_words(lab: Lab) -> None:
    lab.submit("-N2")
    lab.until("running")
    lab.cancel()
    lab.until("ended")
    with pytest.raises(ActionFailed, match=r"1 nodes left for job \d+, which needs 2"):
        lab.begin(lab.decide("n1", "n2", "n3"))
    # one that ended by itself is not even held for it
    failed = Lab(lab.slurm)
    number = failed.submit("-N2", script="#!/bin/sh\nexit 3\n")
    failed.until("ended")
    with pytest.raises(ActionFailed, match="nodes left"):
        failed.begin(failed.decide("n1", "n2", "n3"))
    assert failed.tell(number, "%T") == "FAILED"


def test_a_person_who_cancels_is_never_overruled(lab: Lab) -> None:
    number = lab.submit()
    lab.until("running")
    attempt = lab.decide()
    lab.slurm.run("scancel", number)
    until(lambda: lab.tell(number, "%T") == "CANCELLED", "it is over")
    with pytest.raises(ActionFailed, match="cancelled by a person"):
        lab.scheduler.submit(lab.specs[lab.key], attempt)  # decided before anybody saw the cancel
    assert lab.tell(number, "%T") == "CANCELLED"
    lab.attempts[lab.key] = lab.attempts[lab.key][:-1]
    job = lab.until("ended")
    assert (job.ended_by, job.exit_reason) == ("person", "a person cancelled it")
    # who knows of it and starts it all the same was told to
    assert lab.begin(lab.decide()) == number
    assert lab.until("running").attempt == 2


def test_a_person_who_cancels_what_we_began_is_never_overruled(lab: Lab) -> None:
    number = lab.submit()
    lab.until("running")
    lab.cancel()
    lab.until("ended")
    lab.begin(lab.decide())
    lab.until("running")
    lab.slurm.run("scancel", number)
    assert lab.until("ended").ended_by == "person"


def test_a_hold_of_somebody_else_is_theirs(lab: Lab) -> None:
    number = lab.submit("--hold")
    job = lab.until("pending")
    assert (job.held, job.reason, job.attempts[-1].started_at) == (True, "JobHeldUser", 0.0)
    with pytest.raises(ActionFailed, match="held by somebody else"):
        lab.begin(lab.decide())
    lab.slurm.run("scontrol", "release", number)
    lab.attempts[lab.key] = lab.attempts[lab.key][:-1]
    lab.until("running")
    lab.slurm.run("scontrol", "requeuehold", number)
    until(lambda: lab.job().held, "it is held")
    job = lab.job()
    assert (job.state, job.ended_by, [a.ended_by for a in job.attempts]) == ("pending", "", ["requeued", ""])
    with pytest.raises(ActionFailed, match="held by somebody else"):
        lab.begin(lab.decide())


def test_a_requeue_by_somebody_else_is_another_start(lab: Lab) -> None:
    number = lab.submit()
    lab.until("running")
    lab.slurm.run("scontrol", "requeue", number)
    until(lambda: len(lab.job().attempts) == 2, "the second start is seen")
    # Slurm waits for the life of the job's credential
    lab.slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now+1")
    job = lab.until("running")
    old, new = job.attempts
    assert (old.ended_by, old.token, new.token, new.number) == ("requeued", f"{number}.0", f"{number}.1", 2)
    assert new.started_at > old.started_at


def test_one_that_may_not_be_requeued_is_cancelled_and_submitted_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_OURS", "x")
    number = lab.submit("--no-requeue", "--comment=exp 5", "--exclude=n3")
    first = lab.until("running").nodes[0]
    lab.cancel()
    job = lab.until("ended")
    assert (job.ended_by, lab.tell(number, "%T")) == ("us", "CANCELLED")
    with pytest.raises(ActionFailed, match="may not be requeued, and the config has no command"):
        lab.begin(lab.decide())
    lab.attempts[lab.key] = lab.attempts[lab.key][:-1]
    told = lab.slurm.folder / f"{lab.key}.env"
    script = lab.slurm.folder / f"{lab.key}.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH --no-requeue\nenv > {told}\nexec sleep 300\n")
    command = ("sbatch", f"--job-name={lab.key}", "--output=/dev/null", str(script))
    attempt = dataclasses.replace(lab.decide(first), resume_path="/ckpt/50", resume_step=50)
    again = lab.begin(attempt, command=command, environment={"THEIRS": "1"})
    assert again != number
    assert lab.begin(attempt, command=command) == again
    job = lab.until("running")
    assert (job.id, job.attempt, [a.token for a in job.attempts][-1]) == (again, 2, attempt.token)
    assert set(job.nodes).isdisjoint({first, "n3"})
    until(lambda: told.exists() and "THEIRS" in told.read_text(), "what the job was told")
    lines = told.read_text().splitlines()
    assert {"CLUSTERTOOLS_RESUME_FROM=/ckpt/50", "CLUSTERTOOLS_RESUME_STEP=50", "THEIRS=1"} <= set(lines)
    assert "SECRET" not in told.read_text()
    assert lab.tell(again, "%k") == f"exp 5 [clustertools start 0 {attempt.token}]"


def test_a_job_of_another_user_is_submitted_anew_as_theirs(lab: Lab) -> None:
    number = lab.submit("--no-requeue", "--chdir=/tmp", "--output=/dev/null", user=NOBODY)
    assert lab.until("running").user == "nobody"
    lab.cancel()
    lab.until("ended")
    script = lab.slurm.folder / f"{lab.key}.sh"
    script.write_text(SLEEP)
    command = ("sbatch", f"--job-name={lab.key}", "--output=/dev/null", str(script))
    again = lab.begin(lab.decide(), command=command)
    assert lab.tell(again, "%u") == "nobody"
    assert int(again) > int(number)


def test_tasks_of_an_array_are_runs_of_their_own(lab: Lab) -> None:
    number = lab.submit(
        "--array=1-3%2", script="#!/bin/sh\n[ $SLURM_ARRAY_TASK_ID = 1 ] && exit 4\nexec sleep 300\n"
    )
    one, two, three = (f"{lab.key}_{task}" for task in (1, 2, 3))
    lab.until("running", two)
    lab.until("running", three)
    assert lab.job(one).exit_code == 4
    assert lab.specs[two].log_paths[0].endswith(f"-{lab.job(two).id}.out")
    # the last task has the number of the whole array
    assert lab.job(three).id == number
    lab.cancel(three)
    assert lab.until("ended", three).ended_by == "us"
    assert lab.job(two).state == "running"
    assert lab.job(one).ended_by == "itself"


def test_a_chain_is_one_run(lab: Lab) -> None:
    lab.wanted = dataclasses.replace(lab.wanted, array="chain")
    script = "#!/bin/sh\n[ $SLURM_ARRAY_TASK_ID = 1 ] && sleep 1 && exit 4\nexec sleep 300\n"
    number = lab.submit("--array=1-4%1", script=script)
    lab.until("running")
    until(lambda: len(lab.job().attempts) == 2, "the second task")
    first = lab.until("running")
    assert [a.number for a in first.attempts] == [1, 2]
    assert first.attempts[0].job_id != first.attempts[1].job_id
    # the second hangs: it is cancelled, the third takes over, and the fourth still waits
    lab.cancel()
    lab.cancel()
    assert lab.until("ended").ended_by == "us"
    attempt = lab.decide()
    until(lambda: _taken(lambda: lab.begin(attempt)), "the third task")
    job = lab.until("running")
    assert (job.attempt, job.attempts[-1].token) == (3, attempt.token)
    assert lab.tell(number, "%T").split().count("PENDING") == 1
    assert list(lab.look()) == [lab.key]


def _taken(step: Callable[[], object]) -> bool:
    """Whether a step that waits for Slurm could be taken now."""
    try:
        return bool(step())
    except Unobservable:
        return False


def test_a_heterogeneous_job_is_one_run(lab: Lab) -> None:
    path = lab.slurm.folder / f"{lab.key}.sh"
    path.write_text(
        f"#!/bin/sh\n#SBATCH -N1 --job-name={lab.key}\n#SBATCH hetjob\n"
        f"#SBATCH -N2 --job-name={lab.key}\nexec sleep 300\n"
    )
    number = lab.slurm.run("sbatch", "--parsable", "--output=/dev/null", str(path)).strip()
    job = lab.until("running")
    assert (job.id, len(lab.specs)) == (number, 1)
    until(lambda: len(lab.job().nodes) >= 2, "the nodes of all components")
    lab.cancel()
    assert lab.until("ended").ended_by == "us"
    assert lab.begin(lab.decide("n4")) == number
    job = lab.until("running")
    assert job.attempt == 2
    until(lambda: len(lab.job().nodes) >= 2, "the nodes of all components")
    assert "n4" not in lab.job().nodes


def test_what_a_user_writes_is_no_field_and_no_other_job(lab: Lab) -> None:
    evil = f"{lab.key}|x\nJobId=1 JobName=y UserId=root(0) $(touch /tmp/no) `x` %j"
    number = lab.submit(f"--comment=a<b>|\n{'x' * 300} [clustertools stop 7]", name=evil)
    lab.submit(name=f"{lab.key}.b")
    lab.submit(name=f"{lab.key} b")
    lab.wanted = Wanted("k", name=f"{lab.key}*")
    until(lambda: [job.state for job in lab.look().values()] == ["running"] * 3, "three runs")
    assert len(lab.specs) == 3
    for name in lab.specs:
        assert not set(name) & set("/.\n |$`(")
    (run,) = [name for name, job in lab.look().items() if job.id == number]
    lab.cancel(run)
    assert lab.until("ended", run).ended_by == "us"


def test_its_owner_may_do_it_without_an_operators_rights(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    number = lab.submit("--comment=mine", "--chdir=/tmp", "--output=/dev/null", user=NOBODY)
    lab.until("running")
    plain = slurm_queue.slurm_command

    def as_nobody(*words: str) -> tuple[str, ...]:
        return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *plain(*words))

    monkeypatch.setattr(slurm_queue, "slurm_command", as_nobody)
    monkeypatch.setattr(orders, "slurm_command", as_nobody)
    lab.cancel()
    lab.until("ended")
    assert lab.tell(number, "%k") == "mine [clustertools stop 0]"
    assert lab.begin(lab.decide()) == number
    assert lab.until("running").attempt == 2
    others = Lab(lab.slurm)
    job_id = others.submit()
    others.until("running")
    with pytest.raises(ActionFailed, match="owner, or an operator"):
        others.cancel()
    lab.slurm.run("scancel", job_id)


def test_a_controller_that_says_nothing_says_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.submit()
    before = lab.until("running")
    monkeypatch.setattr(slurm_queue, "QUEUE_SECONDS", 1.0)
    monkeypatch.setattr(orders, "ORDER_SECONDS", 1.0)
    lab.slurm.freeze("slurmctld")
    try:
        with pytest.raises(Unobservable):
            lab.look()
        with pytest.raises(Unobservable):
            lab.scheduler.cancel(lab.specs[lab.key], before, "test", force=True)
        with pytest.raises(Unobservable):
            lab.scheduler.nodes()
    finally:
        lab.slurm.freeze("slurmctld", signal.SIGCONT)
    monkeypatch.setattr(slurm_queue, "QUEUE_SECONDS", 10.0)
    assert lab.job().attempts == before.attempts
    # slurmctld writes its jobs down every few seconds; one that it had not is gone with it
    saved, began = lab.slurm.folder / "state" / "job_state", time.time()
    lab.slurm.run("scontrol", "update", f"jobid={before.id}", "nice=1")
    lab.slurm.wait(lambda: saved.exists() and saved.stat().st_mtime > began, "the jobs are written down")
    lab.slurm.kill("slurmctld")
    try:
        with pytest.raises(Unobservable, match="squeue"):
            lab.look()
    finally:
        lab.slurm.start("slurmctld")
    lab.slurm.wait(lambda: lab.slurm.run("squeue", "-h", check=False), "slurmctld is back")
    # it may have lost its last seconds; a start more or less it must not seem to be
    assert [a.token for a in lab.until("running").attempts] == [a.token for a in before.attempts]


def test_a_job_that_slurm_does_not_have_is_lost_only_by_its_word(lab: Lab) -> None:
    lab.attempts[lab.key] = (Attempt(lab.key, 1, "99999.0", "99999", time.time() - 900),)
    job = lab.job()
    assert (job.state, job.ended_by, job.exit_code) == ("ended", "lost", None)
    with pytest.raises(ActionFailed, match="no longer"):
        lab.begin(lab.decide(), command=("sbatch", "/dev/null"))


def test_what_a_login_shell_set_hides_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.submit()
    for name, value in {
        "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%i", "SQUEUE_FORMAT2": "JobID", "SQUEUE_STATES": "FAILED",
        "SLURM_TIME_FORMAT": "%H:%M", "SQUEUE_PARTITION": "none", "SINFO_FORMAT": "%t",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert lab.until("running").started_at > time.time() - 60
    assert lab.scheduler.nodes()["n1"].is_good


def test_preemption_is_slurms_own_restart(lab: Lab) -> None:
    number = lab.submit("--nodelist=n3", "--exclusive")
    lab.until("running")
    lab.slurm.submit("#!/bin/sh\nsleep 1\n", "--nodelist=n3", "--exclusive", "--partition=high")
    until(lambda: len(lab.job().attempts) == 2, "it was preempted", 30)
    old, new = lab.attempts[lab.key]
    # without accounting nobody says more
    assert (old.ended_by, new.token) == ("requeued", f"{number}.1")


def test_a_node_that_dies_is_named(lab: Lab) -> None:
    number = lab.submit("-N2")
    nodes = lab.until("running").nodes
    lab.slurm.kill(nodes[1])
    try:
        until(lambda: len(lab.job().attempts) == 2, "Slurm began it anew", 60)
        old, _ = lab.attempts[lab.key]
        assert (old.ended_by, old.blamed) == ("node-failed", (nodes[1],))
        state = lab.scheduler.nodes()[nodes[1]]
        assert (state.is_good, state.is_drained) == (False, False)
        job = lab.until("running")
        assert (job.id, job.attempt) == (number, 2)
        assert nodes[1] not in job.nodes
    finally:
        lab.slurm.start(nodes[1])
        lab.slurm.wait(lambda: set(lab.slurm.states().values()) <= {"idle", "mixed"}, "all nodes back", 60)


def test_drains_are_taken_back_by_their_owner_only(lab: Lab) -> None:
    scheduler = lab.scheduler
    scheduler.drain("n4", "JobHung: rank 3\n")
    scheduler.drain("n4", "another")
    node = scheduler.nodes()["n4"]
    assert (node.is_good, node.is_drained, node.reason) == (False, True, "clustertools: JobHung: rank 3")
    scheduler.resume("n4")
    scheduler.resume("n4")
    assert not scheduler.nodes()["n4"].is_drained
    lab.slurm.run("scontrol", "update", "nodename=n4", "state=drain", "reason=bad fan | [x] clustertools:")
    scheduler.drain("n4", "clustertools: mine")
    assert scheduler.nodes()["n4"].reason == "bad fan | [x] clustertools:"
    with pytest.raises(ActionFailed, match="theirs to resume"):
        scheduler.resume("n4")
    lab.slurm.run("scontrol", "update", "nodename=n4", "state=undrain")
    with pytest.raises((ActionFailed, Unobservable)):
        scheduler.drain("nosuch", "x")


def test_a_node_in_maintenance_is_not_good(lab: Lab) -> None:
    lab.slurm.run(
        "scontrol", "create", "reservation", "reservationname=m", "starttime=now", "duration=10",
        "users=root", "nodes=n4", "flags=maint,ignore_jobs",
    )  # fmt: skip
    try:
        lab.slurm.wait(lambda: not lab.scheduler.nodes()["n4"].is_good, "n4 is under maintenance")
        assert lab.scheduler.nodes()["n3"].is_good
    finally:
        lab.slurm.run("scontrol", "delete", "reservationname=m")


def test_a_preview_is_what_would_be_typed(lab: Lab) -> None:
    number = lab.submit()
    lab.until("running")
    target = Subject(run=lab.key)
    said = lab.scheduler.preview("restart", target, {"exclude": ("n1", "n2")})
    assert said == (
        f"scontrol requeuehold {number}; scontrol update JobId={number} ExcNodeList=n1,n2 StartTime=now+1; "
        f"scontrol release {number}"
    )
    assert lab.scheduler.preview("cancel", target, {}) == f"scontrol requeuehold {number}"
    drain = lab.scheduler.preview("drain", Subject(node="n1; reboot"), {"reason": "it's bad"})
    assert drain == "scontrol update 'NodeName=n1; reboot' State=DRAIN 'Reason=clustertools: it'\"'\"'s bad'"


def test_where_a_job_writes(lab: Lab, tmp_path: Path) -> None:
    lab.wanted = dataclasses.replace(
        lab.wanted, template=RunSpec("", log_paths=("logs/%x-*.txt",), checkpoint_dir="ckpt/%j")
    )
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{lab.key}-1.txt").touch()
    number = lab.submit(f"--chdir={tmp_path}")
    job = lab.until("running")
    assert job.log_paths == (str(tmp_path / "logs" / f"{lab.key}-1.txt"),)
    assert job.checkpoint_dir == str(tmp_path / "ckpt" / number)
    lab.wanted = dataclasses.replace(lab.wanted, template=RunSpec(""))
    path = lab.job().log_paths[0]
    until(Path(path).exists, "the job's output")
    assert path.endswith(f"-{number}.out")


def test_a_time_limit(lab: Lab, timed: str) -> None:
    lab.wanted = Wanted(lab.key, job_id=timed)
    job = lab.until("ended", seconds=60)
    assert (job.ended_by, job.exit_reason) == ("time-limit", "its time limit ended it")
    assert job.exit_code != 0
