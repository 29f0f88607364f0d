"""The whole watchdog under random histories: a real store, a fake host, a scheduler that checks its callers.

Held at every point: nothing resolves while blind, nothing opens twice, no action without its audit row, no
attempt without its row, no token started twice, no restart beyond the budget, nothing done while paused or
in observe mode.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clustertools.check import Check, NoLimits
from clustertools.errors import Unobservable
from clustertools.host import FileStat
from clustertools.model import Job, Playbook, Remedy, Step, starts_without_progress
from clustertools.schedulers import RunSpec
from clustertools.store import Store
from clustertools.watchdog import Settings, Watchdog

SPEC = RunSpec("big", ("true",), grace_seconds=5.0)
LIMIT = 3
CODES = {"StateFault": "", "RebootFault": "", "BriefFault": "", "JobStuck": "", "JobDied": ""}
CLEARS = {"StateFault": "recovery", "RebootFault": "reboot", "BriefFault": 120.0}
BOOKS = (Playbook("again", ("JobStuck", "JobDied"), "text", steps=(Step("restart"),)),)


class World:
    """The machine, the run and the time."""

    def __init__(self):
        self.time, self.boot = 1000.0, 1
        self.faults, self.blind, self.blind_job = set(), False, False
        self.started: dict[str, int] = {}
        self.alive = self.stuck = self.stopping = False
        self.died: str = ""
        self.step = 0

    # Host
    name = "n1"

    @property
    def boot_id(self):
        return f"boot-{self.boot}"

    def now(self):
        return self.time

    def run(self, *argv, timeout_seconds=0, stdin=""):
        raise Unobservable("no commands here")

    def read(self, path, offset=0, limit=None):
        raise Unobservable("no files here")

    def stat(self, path) -> FileStat:
        raise Unobservable("no files here")

    def glob(self, pattern):
        return []


def node_check(world):
    def look(ctx):
        if world.blind:
            raise Unobservable("the tool hangs")
        for code in sorted(world.faults):
            yield ctx.critical(code, "part", code, remedy=Remedy.INSPECT, clears=CLEARS[code])

    return Check("node_check", look, "doc", NoLimits, frozenset({"watch"}), CODES, interval_seconds=0.0)


def job_check(world):
    def look(ctx):
        if world.blind_job:
            raise Unobservable("the log is on a stale mount")
        if ctx.job.attempt and world.step:
            yield ctx.reading("job_last_step", world.step)
        if ctx.job.state == "ended" and not ctx.job.exit_reason.startswith("clustertools:"):
            yield ctx.critical("JobDied", "", "died", nodes=("n1",))
        if ctx.job.state == "running" and world.stuck and not world.stopping:
            yield ctx.critical("JobStuck", "", "stuck", nodes=("n1",))

    return Check("job_progress", look, "doc", NoLimits, frozenset({"job"}), CODES)


class CheckingScheduler:
    """Does nothing real; asserts that whoever calls it wrote down what they are about to do."""

    kind = "fake"
    supported = frozenset({"restart"})

    def __init__(self, world, path):
        self.world, self.path = world, path
        self.allowed = True

    def _rows(self, sql):
        with sqlite3.connect(f"file:{self.path}?mode=ro", uri=True) as db:
            return db.execute(sql).fetchall()

    def _is_written_down(self, step):
        rows = self._rows("SELECT step FROM action WHERE state = 'running' AND step != 'wait_step'")
        assert len(rows) == 1, f"{step} without exactly one running action: {rows}"
        assert rows[0][0] == step or (step == "stop" and rows[0][0] in ("", "stop", "wait_end"))
        assert self.allowed, f"{step} though paused or only observing"

    def job(self, spec, attempts):
        w, a = self.world, attempts[-1]
        if a.token not in w.started:
            return Job(a.token, "big", "pending", a.number, ("n1",), attempts=attempts)
        if w.alive:
            why = "clustertools: stopping" if w.stopping else ""
            return Job(a.token, "big", "running", a.number, ("n1",), (1,), a.started_at, exit_reason=why,
                       attempts=attempts)  # fmt: skip
        reason = w.died if w.died.startswith("clustertools:") else ""
        return Job(a.token, "big", "ended", a.number, ("n1",), exit_code=1, exit_reason=reason,
                   ended_at=w.time, attempts=attempts)  # fmt: skip

    def submit(self, spec, attempt):
        w = self.world
        rows = self._rows(f"SELECT data FROM attempt WHERE number = {attempt.number}")
        assert rows, "started an attempt that is not written down"
        assert attempt.token in rows[0][0]
        if attempt.number > 1:
            self._is_written_down("submit")
        assert not w.alive, "a second copy beside the first"
        if attempt.token not in w.started:
            w.started[attempt.token] = attempt.number
            w.alive, w.stuck, w.stopping, w.died = True, False, False, ""
            w.step = 0
        return attempt.token

    def cancel(self, spec, job, why, *, force):
        self._is_written_down("stop")
        if self.world.alive:
            self.world.stopping = True
            if force:
                self._end()

    def _end(self):
        self.world.alive, self.world.died = False, "clustertools: stopped"

    def leftovers(self, spec, job):
        return [1] if self.world.alive else []

    def preview(self, kind, target, options):
        return f"{kind} {target}"


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        # every commit reaches the disk, and a history makes hundreds of them
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="ct-", dir=memory))
        self.world = World()
        self.store = Store(self.folder / "state.db")
        self.scheduler = CheckingScheduler(self.world, self.folder / "state.db")
        self.open_keys: set[str] = set()
        self.watchdog = Watchdog(
            self.store, self.world, self.scheduler, [node_check(self.world), job_check(self.world)], [SPEC],
            BOOKS, settings=Settings(mode="act", blind_confirm=2), evidence_folder=self.folder / "evidence",
        )  # fmt: skip
        self.watchdog.start(SPEC)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(code=st.sampled_from(sorted(CLEARS)))
    def a_fault_appears(self, code):
        self.world.faults.add(code)

    @rule()
    def faults_go(self):
        self.world.faults.clear()

    @rule(blind=st.booleans(), job=st.booleans())
    def blindness(self, blind, job):
        self.world.blind, self.world.blind_job = blind, job

    @rule()
    def reboot(self):
        self.world.boot += 1

    @precondition(lambda self: self.world.alive)
    @rule()
    def the_run_hangs(self):
        self.world.stuck = True

    @precondition(lambda self: self.world.alive)
    @rule()
    def the_run_dies(self):
        self.world.alive = False
        self.world.died = "clustertools: stopped" if self.world.stopping else "segfault"

    @precondition(lambda self: self.world.alive and not self.world.stuck)
    @rule(steps=st.integers(1, 50))
    def the_run_advances(self, steps):
        self.world.step += steps

    @rule(mode=st.sampled_from(["act", "act", "observe"]), paused=st.booleans())
    def people_decide(self, mode, paused):
        import dataclasses

        self.watchdog.settings = dataclasses.replace(self.watchdog.settings, mode=mode)
        with self.store.transaction():
            self.store.put_cursor("pause", "", {"until": 9e9, "why": "x"} if paused else {})

    @rule()
    def the_watchdog_is_killed_and_started_again(self):
        self.store.close()
        self.store = self.watchdog.store = Store(self.folder / "state.db")

    @precondition(lambda self: self.world.alive)
    @rule(times=st.integers(1, 4))
    def it_crashes_again_and_again(self, times):
        for _ in range(times):
            if self.world.alive:
                self.the_run_dies()
            for _ in range(7):
                self.a_pass(30.0)

    @rule()
    def given_time_and_permission_the_run_goes_on(self):
        self.blindness(False, False)
        self.people_decide("act", False)
        self.world.time += 4000.0  # the hourly budget is new
        for _ in range(14):
            self.a_pass(30.0)
        gave_up = starts_without_progress(self.store.attempts("big")) >= LIMIT
        assert gave_up or (self.world.alive and not self.world.stuck)

    @rule(seconds=st.sampled_from([1.0, 30.0, 200.0]))
    def a_pass(self, seconds):
        self.world.time += seconds
        attempts = self.store.attempts("big")
        under_way = [r for r in self.store.actions() if r.state in ("planned", "running")]
        may_act = self.watchdog.settings.mode == "act" and not self.store.cursor("pause")
        # what is under way is finished: a run left stopped would be worse than a restart during a pause
        self.scheduler.allowed = may_act or bool(under_way)
        started_before = len(self.world.started)
        seen_before = {"node_check": self.world.blind, "job_progress": self.world.blind_job}
        result = self.watchdog.once()
        for t in result.transitions:
            key = t.incident.key
            if t.kind in ("opened", "reopened"):
                assert key not in self.open_keys, f"{key} opened twice"
                self.open_keys.add(key)
            if t.kind == "resolved":
                assert t.incident.finding.code == "Blind" or not seen_before[t.incident.finding.check]
                assert key in self.open_keys
                self.open_keys.discard(key)
        for action in result.planned:
            if not action.blocked:
                assert may_act, "planned to act while it may not"
                # a running attempt that got further counts as progress already
                assert starts_without_progress(self.store.attempts("big")) < LIMIT
        assert len(self.world.started) - started_before <= 1
        assert len(attempts) <= len(self.store.attempts("big")) <= len(attempts) + 1

    @invariant()
    def every_start_has_its_row(self):
        tokens = {a.token for a in self.store.attempts("big")}
        assert set(self.world.started) <= tokens

    @invariant()
    def every_open_incident_was_told(self):
        open_now = {k for k, i in self.store.incidents().items() if i.state == "open"}
        assert open_now == self.open_keys


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=30,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # a failing history is short enough as found; shrinking one takes minutes
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
