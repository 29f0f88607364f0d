"""One pass and the loop around it, over a machine in memory and a real store."""

from __future__ import annotations

import dataclasses
import sqlite3

import pytest

from clustertools.cli.assemble import expectations
from clustertools.config import load
from clustertools.delivery import Mail
from clustertools.errors import DeliveryFailed, StoreError
from clustertools.model import Playbook, Status, Step
from clustertools.watchdog import loop
from tests.lab.watching import NOON, RESTART, WatchLab, check_of


@dataclasses.dataclass
class Ear:
    """A sink that keeps what it hears."""

    name: str = "ear"
    burst: int = 0
    down: bool = False
    heard: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def deliver(self, message, reference):
        if self.down:
            raise DeliveryFailed("no route to host")
        self.heard.append((message.kind, message.title))
        return f"thread of {message.key}"

    @property
    def kinds(self):
        return [kind for kind, _ in self.heard]


@pytest.fixture
def ear():
    return Ear()


@pytest.fixture
def lab(tmp_path, ear):
    lab = WatchLab(tmp_path, mail=Mail({"ear": ear}))
    yield lab
    lab.store.close()


@pytest.fixture
def acting(tmp_path, ear):
    lab = WatchLab(tmp_path, mail=Mail({"ear": ear}), run=True, mode="act")
    yield lab
    lab.store.close()


# the sentence and the heartbeat


def test_the_sentence_of_a_pass(lab, ear):
    assert lab.pass_().sentence == "0 findings"
    lab.machine.fault("GpuLost", "gpu@0000:3b:00.0")
    assert lab.pass_().sentence == "1 finding, opened GpuLost, ear: 1 sent"
    assert lab.pass_().sentence == "1 finding"
    lab.machine.blind = "the tool hangs"
    assert lab.pass_().sentence == "0 findings, could not look: node_check"
    lab.machine.blind = ""
    lab.machine.faults.clear()
    assert lab.pass_().sentence == "0 findings, resolved GpuLost, ear: 1 sent"
    ear.down = True
    lab.machine.fault("LinkDown")
    said = lab.pass_().sentence
    assert said.startswith("1 finding, opened LinkDown, ear: no route to host; next try in ")
    assert said.endswith("ear: 1 waiting")


def test_what_a_guard_stops_is_in_the_sentence(tmp_path):
    lab = WatchLab(tmp_path, run=True)
    lab.machine.fault("JobStuck")
    assert "would restart run:big (observe mode)" in lab.pass_().sentence
    assert lab.runs.asked == []


def test_the_heartbeat_tells_apart_that_we_live_and_that_we_see(lab):
    lab.pass_()
    beat = lab.store.cursor("heartbeat")
    assert (beat["at"], beat["seen"], beat["blind"]) == (NOON + 30, NOON + 30, [])
    lab.machine.blind = "the tool hangs"
    lab.pass_()
    beat = lab.store.cursor("heartbeat")
    assert (beat["at"], beat["seen"]) == (NOON + 60, NOON + 30)
    assert beat["blind"] == ["node_check on n1: the tool hangs"]


# which checks run when


def test_a_check_runs_when_its_interval_is_over(lab):
    looked = []
    lab.watchdog.checks = [check_of(lab.machine, looked=looked, interval_seconds=60.0)]
    lab.passes(5)  # every 30 s: at 0, 60 and 120
    assert len(looked) == 3
    lab.set(intervals={"node_check": 0.0})
    lab.passes(2)
    assert len(looked) == 5


def test_a_check_that_did_not_run_leaves_its_incidents_alone(lab):
    lab.watchdog.checks = [check_of(lab.machine, interval_seconds=60.0)]
    lab.machine.fault("GpuLost")
    lab.pass_()
    lab.machine.faults.clear()
    assert lab.pass_().transitions == ()
    assert [t.kind for t in lab.pass_().transitions] == ["resolved"]


def test_a_clock_that_was_set_back_silences_no_check(lab):
    looked = []
    lab.watchdog.checks = [check_of(lab.machine, looked=looked, interval_seconds=3600.0)]
    lab.pass_()
    lab.pass_(-86400.0)
    assert len(looked) == 2


def test_a_clock_that_was_set_back_holds_no_news_back(lab, ear):
    ear.down = True
    lab.machine.fault("GpuLost")
    lab.pass_()
    ear.down = False
    lab.pass_(-86400.0)
    assert ear.kinds == ["opened"]


def test_a_machine_that_slept_is_looked_at_once(lab):
    looked = []
    lab.watchdog.checks = [check_of(lab.machine, looked=looked, interval_seconds=60.0)]
    lab.machine.fault("LinkDown", clears=120.0)
    lab.pass_()
    lab.machine.faults.clear()
    result = lab.pass_(8 * 3600.0)
    assert len(looked) == 2
    assert [t.kind for t in result.transitions] == ["resolved"]
    assert lab.store.cursor("heartbeat")["at"] == lab.machine.time


# what checks are given


def test_expectations_come_from_the_class_that_names_the_node(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "node_classes:\n  big: {nodes: 'gpu-[001-128]', gpu_count: 8, mounts: [/scratch]}\n"
        "  small: {nodes: 'n[1-4],login', gpu_count: 1, expect: {scratch_bytes: 3TB}}\n"
    )
    config = load([path], etc=tmp_path).config
    assert expectations(config, "n1") == {"node_class": "small", "gpu_count": 1, "scratch_bytes": 3 * 10**12}
    assert expectations(config, "gpu-017")["gpu_count"] == 8
    assert expectations(config, "gpu-129") == {}


def test_checks_get_the_expectations(lab):
    looked = []
    lab.watchdog.checks = [check_of(lab.machine, looked=looked)]
    lab.set(expect={"gpu_count": 8})
    lab.pass_()
    assert looked[0].expect == {"gpu_count": 8}


# acting


def test_a_restart_runs_step_by_step_and_its_outcome_is_told(acting, ear):
    acting.machine.fault("JobStuck")
    acting.pass_()
    acting.machine.faults.clear()
    acting.passes(5)
    assert acting.runs.asked == ["cancel", "submit 2"]
    attempt = acting.store.attempts("big")[-1]
    with acting.store.transaction():
        acting.store.put_attempt(dataclasses.replace(attempt, first_step=1, last_step=3))
    acting.pass_()
    assert ear.kinds == ["opened", "resolved", "outcome"]
    assert ear.heard[-1][1].startswith("DONE restart run big")
    (row,) = [r for r in acting.store.actions() if r.action.kind == "restart"]
    assert row.state == "done"


def test_a_check_that_only_observes_acts_on_nothing(acting, ear):
    acting.machine.fault("JobStuck")
    acting.set(observe_only=frozenset({"job_check"}))
    acting.passes(3)
    assert (acting.runs.asked, acting.store.actions()) == ([], [])
    assert ear.kinds == ["opened"]


def test_paused_by_people_nothing_begins_and_everything_is_told(acting, ear):
    with acting.store.transaction():
        acting.store.put_cursor("pause", "", {"until": NOON + 100, "why": "roll-out (ada)"})
    acting.machine.fault("JobStuck")
    assert "would restart run:big (paused: roll-out (ada))" in acting.pass_().sentence
    assert acting.store.cursor("heartbeat")["paused"] == "roll-out (ada)"
    assert (ear.kinds, acting.runs.asked) == (["opened"], [])
    acting.passes(4)
    assert acting.runs.asked[:1] == ["cancel"]


def test_paused_by_the_file_of_the_config(acting):
    acting.set(pause_file="/etc/clustertools/pause")
    acting.machine.files["/etc/clustertools/pause"] = ""
    acting.machine.fault("JobStuck")
    assert "(paused: /etc/clustertools/pause exists)" in acting.pass_().sentence
    acting.passes(3)
    assert acting.runs.asked == []
    del acting.machine.files["/etc/clustertools/pause"]
    acting.passes(2)
    assert acting.runs.asked == ["cancel"]


def test_a_pause_file_that_cannot_be_looked_at_pauses(acting):
    acting.set(pause_file="/net/pause")
    acting.machine.unseen_files.add("/net/pause")
    acting.machine.fault("JobStuck")
    assert "nobody can see whether the pause file is there" in acting.pass_().sentence
    assert acting.runs.asked == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lab: lab.machine.files.update({"/pause": ""}), "paused: /pause exists"),
        (lambda lab: lab.set(mode="observe"), "observe mode"),
        (lambda lab: lab.machine.faults.clear(), "its incident is over"),
    ],
)
def test_what_waited_through_a_crash_is_called_off_when_the_world_has_changed(acting, change, why):
    """Planned and committed, then killed: the next watchdog must not begin what is no longer wanted."""
    acting.set(pause_file="/pause")
    acting.machine.fault("JobStuck")

    def killed(paused, now):
        raise KeyboardInterrupt

    perform, acting.watchdog._perform = acting.watchdog._perform, killed
    with pytest.raises(KeyboardInterrupt):
        acting.pass_()
    acting.watchdog._perform = perform
    assert [r.state for r in acting.store.actions()] == ["planned"]
    change(acting)
    assert f"restart of run:big called off: {why}" in acting.pass_(3600.0).sentence
    acting.passes(3)
    assert acting.runs.asked == []
    assert [(r.state, r.action.blocked) for r in acting.store.actions()][-1] == ("blocked", why)


def test_what_waited_through_a_crash_and_is_still_wanted_goes_on(acting):
    acting.machine.fault("JobStuck")
    acting.watchdog._perform, perform = (lambda paused, now: ([], [])), acting.watchdog._perform
    acting.pass_()
    acting.watchdog._perform = perform
    acting.passes(2, 3600.0)
    assert acting.runs.asked == ["cancel"]


def test_a_run_that_nobody_can_see_is_blindness_and_no_reason_to_act(acting, ear):
    acting.machine.fault("JobStuck")
    acting.runs.away = "the scheduler does not answer"
    results = acting.passes(3)
    assert results[0].blind == ("job_state on run:big: the scheduler does not answer",)
    assert [t.incident.finding.code for r in results for t in r.transitions] == ["Blind"]
    assert (acting.runs.asked, acting.store.actions()) == ([], [])
    assert ear.heard[0][1].startswith("UNKNOWN run big")


def test_a_fault_of_ours_in_one_action_ends_that_action_only(acting, ear):
    acting.runs.breaks = RuntimeError("a bug")
    acting.machine.fault("JobStuck")
    acting.passes(6)
    row = acting.store.actions()[0]
    assert row.state == "failed"
    assert row.outcome.detail == "a fault in clustertools itself: RuntimeError: a bug"
    assert ear.heard[1][1].startswith("FAILED restart run big")


def test_mode_ask_waits_for_a_person(acting):
    acting.set(mode="ask")
    acting.machine.fault("JobStuck")
    acting.passes(3)
    (row,) = acting.store.actions()
    assert row.state == "blocked"
    assert acting.runs.asked == []
    acting.store.approve(row.action.id, "ada", acting.machine.time)
    acting.passes(2)
    (row,) = acting.store.actions()
    assert (row.state, row.approved_by, acting.runs.asked) == ("running", "ada", ["cancel"])


# people


def ack(lab, key, until):
    before = lab.store.incidents()
    marked = dataclasses.replace(before[key], acknowledged_by="ada", acknowledged_until=until)
    with lab.store.transaction():
        lab.store.save_incidents(before, {**before, key: marked})


def test_an_acknowledgement_that_runs_out_is_told_and_taken_away(lab, ear):
    lab.machine.fault("LinkDown", status=Status.WARNING)
    lab.pass_()
    ack(lab, "LinkDown:n1", NOON + 100)
    lab.machine.fault("LinkDown")
    lab.pass_()
    assert ear.kinds == ["opened"]  # it got worse; ada has it
    lab.passes(2)
    assert ear.kinds == ["opened", "worsened"]
    ack(lab, "LinkDown:n1", NOON + 200)
    lab.passes(4)
    assert ear.kinds == ["opened", "worsened", "note"]
    assert ear.heard[-1][1] == "CRITICAL LinkDown n1 · still open, and ada no longer has it"
    assert lab.store.incidents()["LinkDown:n1"].acknowledged_by == ""


def test_a_silence_delays_a_page_and_never_eats_it(lab, ear):
    lab.store.add_silence("Link*", NOON + 100, "ada", "cable")
    lab.machine.fault("LinkDown")
    lab.machine.fault("FanStopped")
    lab.passes(2)
    assert [title.split(" · ")[1] for _, title in ear.heard] == ["FanStopped it is"]
    lab.passes(2)
    assert [title.split(" · ")[1] for _, title in ear.heard] == ["FanStopped it is", "LinkDown it is"]
    assert ear.kinds == ["opened", "opened"]
    lab.passes(3)
    assert len(ear.heard) == 2


def test_what_was_silent_all_its_life_is_never_told(lab, ear):
    lab.store.add_silence("*", NOON + 100, "ada", "maintenance")
    lab.machine.fault("LinkDown")
    lab.pass_()
    lab.machine.faults.clear()
    lab.passes(6)
    assert ear.heard == []


def test_a_symptom_is_told_when_its_root_is_over_and_it_is_not(tmp_path, ear):
    root = Playbook("root", ("GpuLost",), "text", explains=("LinkDown",))
    lab = WatchLab(tmp_path, mail=Mail({"ear": ear}))
    lab.watchdog.playbooks = (root, RESTART)
    lab.machine.fault("GpuLost")
    lab.machine.fault("LinkDown", "mlx5_0/1")
    lab.pass_()
    assert [title.split(" · ")[1] for _, title in ear.heard] == ["GpuLost it is"]
    del lab.machine.faults["GpuLost", ""]
    lab.pass_()
    assert [(kind, title.split(" · ")[1]) for kind, title in ear.heard[1:]] == [
        ("resolved", "GpuLost it is"),
        ("opened", "LinkDown it is"),
    ]


def resolve(lab, key):
    with lab.store.transaction():
        lab.store.put_cursor("resolve", "", {key: "ada says so"})


def test_a_person_ends_what_no_check_ends(lab, ear):
    lab.machine.fault("FanStopped", clears="manual")
    lab.pass_()
    resolve(lab, "FanStopped:n1")
    assert lab.pass_().transitions == ()  # its check still reports it
    lab.machine.faults.clear()
    assert lab.pass_().transitions == ()
    resolve(lab, "FanStopped:n1")
    assert [t.kind for t in lab.pass_().transitions] == ["resolved"]
    assert ear.kinds == ["opened", "resolved"]


def test_blindness_is_not_ended_by_a_person_while_it_lasts(lab):
    lab.machine.blind = "hangs"
    lab.passes(3)
    resolve(lab, "Blind:n1/node_check")
    assert lab.pass_().transitions == ()
    assert lab.store.incidents()["Blind:n1/node_check"].state == "open"


def test_a_mark_that_is_made_during_a_pass_is_not_written_over(lab):
    """The checks take seconds; a person acknowledges just then, from another process."""
    lab.machine.fault("LinkDown")
    lab.pass_()

    def slow(ctx):
        other = WatchLab.__new__(WatchLab)
        other.store = type(lab.store)(lab.folder / "state.db")
        ack(other, "LinkDown:n1", NOON + 9999)
        other.store.close()
        yield ctx.critical("LinkDown", "", "LinkDown it is")

    lab.watchdog.checks = [dataclasses.replace(lab.watchdog.checks[0], look=slow)]
    lab.pass_()
    assert lab.store.incidents()["LinkDown:n1"].acknowledged_by == "ada"


# a broken store


def test_a_pass_that_cannot_write_does_nothing_and_says_so(acting, ear):
    acting.machine.fault("JobStuck")
    other = sqlite3.connect(acting.folder / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    acting.store._db.execute("PRAGMA busy_timeout=10")
    with pytest.raises(StoreError, match="another watchdog or command holds it"):
        acting.pass_()
    assert (ear.heard, acting.runs.asked) == ([], [])
    other.execute("ROLLBACK")
    other.close()
    acting.passes(2)
    assert (ear.kinds, acting.runs.asked) == (["opened"], ["cancel"])


# the loop


class CountedClock:
    """Time passes only when somebody sleeps; a pass takes `pass_seconds`."""

    def __init__(self):
        self.time = 0.0
        self.slept = []

    def monotonic(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


class Passes:
    """Stands in for a watchdog: what `once` gives is written down before."""

    def __init__(self, clock, took=1.0, fails=()):
        self.clock, self.took, self.fails = clock, took, fails
        self.began = []
        self.settings = type("S", (), {"interval_seconds": 30.0})()

    def once(self):
        self.began.append(self.clock.time)
        self.clock.time += self.took
        if len(self.began) in self.fails:
            raise StoreError("the disk is full")
        return f"pass {len(self.began)}"

    def busy(self):
        return False


def drive(passes, clock, until):
    reported = []
    loop(passes, clock, lambda: clock.time >= until, reported.append)
    return reported


def test_passes_begin_an_interval_apart_however_long_each_takes():
    clock = CountedClock()
    passes = Passes(clock, took=12.0)
    drive(passes, clock, 100.0)
    assert passes.began == [0.0, 30.0, 60.0, 90.0]


def test_passes_that_take_too_long_leave_a_moment_between_them():
    clock = CountedClock()
    passes = Passes(clock, took=45.0)
    drive(passes, clock, 100.0)
    assert passes.began == pytest.approx([0.0, 45.05, 90.1])


def test_a_pass_without_a_store_is_told_and_tried_again():
    clock = CountedClock()
    passes = Passes(clock, fails={2})
    reported = drive(passes, clock, 80.0)
    assert [str(r) for r in reported] == ["pass 1", "the disk is full", "pass 3"]


def test_what_is_under_way_goes_on_between_two_passes():
    clock, said = CountedClock(), []
    passes = Passes(clock)
    passes.left = 3
    passes.busy = lambda: passes.left > 0

    def carry_on():
        passes.left -= 1
        return (f"step at {clock.time:.0f}",)

    passes.carry_on = carry_on
    loop(passes, clock, lambda: clock.time >= 29.0, lambda result: None, said.append)
    assert len(passes.began) == 1
    assert said == ["step at 3", "step at 5", "step at 7"]


def test_to_stop_needs_no_end_of_the_interval():
    clock = CountedClock()
    passes = Passes(clock)
    drive(passes, clock, 3.2)
    assert clock.time < 4.0
    assert len(passes.began) == 1


def test_a_changed_interval_counts_from_the_next_pass():
    clock = CountedClock()
    passes = Passes(clock)

    def stop():
        if clock.time > 31:
            passes.settings.interval_seconds = 10.0
        return clock.time > 75

    loop(passes, clock, stop, lambda result: None)
    assert passes.began == [0.0, 30.0, 60.0, 70.0]


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
def test_memory_is_flat_over_500_passes(lab):
    """A hundred incidents, half of them coming and going, with messages, for four hours of passes."""
    for number in range(50):
        lab.machine.fault("LinkDown", f"mlx5_{number}/1")

    def some(count):
        for number in range(count):
            for part in range(50):
                if number % 2:
                    lab.machine.faults.pop(("FanStopped", f"fan{part}"), None)
                else:
                    lab.machine.fault("FanStopped", f"fan{part}", text=f"fan {part} stopped, look {number}")
            lab.pass_()

    some(100)
    before = resident_bytes()
    some(500)
    grown = resident_bytes() - before
    assert grown < 4_000_000


def test_steps_of_a_playbook_without_permission_are_looks_only(tmp_path):
    lab = WatchLab(tmp_path, run=True)
    lab.watchdog.playbooks = (
        Playbook("look", ("JobStuck",), "text", steps=(Step("capture"), Step("restart"))),
    )
    lab.machine.fault("JobStuck")
    lab.passes(2)
    assert [(r.action.kind, r.state) for r in lab.store.actions()] == [
        ("capture", "done"),
        ("restart", "blocked"),
    ]


def test_the_steps_of_a_playbook_are_taken_one_after_the_other(acting):
    """Evidence is saved before the run is touched: a restart does not begin beside its own capture."""
    steps = (Step("capture"), Step("restart"))
    acting.watchdog.playbooks = (Playbook("both", ("JobStuck",), "text", steps=steps),)
    acting.machine.fault("JobStuck")
    acting.pass_()
    assert [(r.action.kind, r.state) for r in acting.store.actions()] == [
        ("capture", "done"),
        ("restart", "planned"),
    ]
    acting.passes(3)
    assert acting.runs.asked[:1] == ["cancel"]
