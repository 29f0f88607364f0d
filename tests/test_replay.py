"""The replay itself: a machine that changes, a scheduler that writes down, recordings that are wrong."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from clustertools.cli import main
from clustertools.errors import Absent, ConfigError, Unobservable
from clustertools.model import Attempt
from clustertools.replay import replay
from clustertools.replay.machine import ReplayHost
from clustertools.replay.scheduler import ReplayScheduler
from clustertools.replay.script import seconds
from clustertools.schedulers import RunSpec
from clustertools.sources.checkpoints import checkpoints
from clustertools.sources.kernel import read_kernel_log
from clustertools.sources.processes import processes, ranks
from clustertools.sources.stacks import stacks

RUNS = Path(__file__).parent / "runs"
HOST = "name: n1\nboot_id: boot-1\ntime: 1786017600.0\n"
HUNG = """
    settings: {mode: observe, interval: 60s, checks: [job_progress, job_exit]}
    run: {name: r1, log: /data/log, attempts: [{started: -10m}]}
    until: 20m
    timeline:
    - at: 0s
      job: {state: running, pids: [11]}
      processes: {11: {rank: 0, stack: "step (train.py:4)"}}
    - {at: 5s, every: 10s, until: 2m, count: {from: 7}, append: {/data/log: "iter {count}: loss 2.0"}}
"""


def recording(folder: Path, run: str, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host.yaml").write_text(HOST)
    (folder / "run.yaml").write_text(textwrap.dedent(run))
    (folder / "files/proc").mkdir(parents=True)
    (folder / "files/proc/stat").write_text("btime 1786010000\n")
    return folder


# the machine


@pytest.fixture
def machine(tmp_path: Path) -> ReplayHost:
    return ReplayHost(recording(tmp_path / "rec", ""))


def test_files_are_written_appended_and_removed(machine: ReplayHost):
    machine.set("/data/a", "one\n")
    before = machine.stat("/data/a")
    machine.clock.time += 5
    machine.append("/data/a", "two")
    after = machine.stat("/data/a")
    assert machine.read("/data/a") == "one\ntwo\n"
    assert (after.inode, after.size_bytes, after.mtime) == (before.inode, 8, before.mtime + 5)
    assert machine.glob("/data/*") == ["/data/a"]
    machine.remove("/data/a")
    with pytest.raises(Absent):
        machine.read("/data/a")
    assert machine.glob("/data/*") == []


def test_a_file_made_anew_is_another_file(machine: ReplayHost):
    machine.set("/data/a", "one\n")
    inode = machine.stat("/data/a").inode
    machine.remove("/data/a")
    machine.set("/data/a", "one\n")
    assert machine.stat("/data/a").inode != inode


def test_a_stale_mount_hides_all_below_it(machine: ReplayHost):
    machine.set("/data/a", "one\n")
    machine.unreadable("/data", "Stale file handle")
    for look in (machine.read, machine.stat, machine.glob):
        with pytest.raises(Unobservable, match="Stale"):
            look("/data/a")
    machine.readable("/data")
    assert machine.read("/data/a") == "one\n"


def test_kernel_records_are_numbered_and_timed(machine: ReplayHost):
    machine.kernel_log(["first", {"level": 6, "text": "second"}])
    machine.clock.time += 10
    machine.kernel_log(["third"])
    lines = read_kernel_log(machine).lines
    assert [(x.sequence, x.level, x.text) for x in lines] == [
        (0, 3, "first"),
        (1, 6, "second"),
        (2, 3, "third"),
    ]
    assert lines[2].time == pytest.approx(machine.now())


def test_after_a_boot_nothing_of_before_runs(machine: ReplayHost):
    machine.process(11, {"rank": 0})
    machine.kernel_log(["old"])
    machine.clock.time += 100
    machine.boot("boot-2")
    assert machine.boot_id == "boot-2"
    assert list(processes(machine)) == [1]
    assert read_kernel_log(machine).lines == ()


def test_processes_ranks_and_stacks_are_what_was_said(machine: ReplayHost):
    machine.process(10, {"command": "torchrun", "argv": ["torchrun", "train.py"]})
    machine.process(11, {"parent": 10, "rank": 0, "world": 2, "stack": "a (x.py:1) < b (y.py:2)"})
    machine.process(12, {"parent": 10, "rank": 1, "world": 2, "state": "D", "stack": "c (z.py:3)"})
    assert ranks(machine, [10]) == {0: 11, 1: 12}
    seen = stacks(machine, {0: 11, 1: 12}).stacks
    assert [(s.rank, s.state, [str(f) for f in s.frames]) for s in seen] == [
        (0, "S", ["a (x.py:1)", "b (y.py:2)"]),
        (1, "D", ["c (z.py:3)"]),
    ]
    machine.process(12, {"state": "S"})
    assert stacks(machine, {1: 12}).stacks[0].frames[0].function == "c", "what was said before stays"
    machine.process(12, "gone")
    assert ranks(machine, [10]) == {0: 11}


def test_checkpoints_answer_whoever_asks(machine: ReplayHost):
    machine.checkpoints("/ckpt", [{"step": 20, "verdict": "torn", "reason": "short"}, {"step": 10}])
    for deep in (True, False):
        listed = checkpoints(machine, "/ckpt", deep=deep, newest=3).reports
        assert [(r.step, r.verdict) for r in listed] == [(20, "torn"), (10, "good")]
    machine.checkpoints("/ckpt", "hang")
    with pytest.raises(Unobservable, match="did not answer"):
        checkpoints(machine, "/ckpt")
    machine.checkpoints("/ckpt", {"error": "No such file or directory", "absent": True})
    with pytest.raises(Absent):
        checkpoints(machine, "/ckpt")


def test_the_folder_stays_as_it_is(tmp_path: Path):
    folder = recording(tmp_path / "rec", HUNG)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    replay(folder, mode="act")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# the scheduler


def test_a_token_is_submitted_once_and_a_cancel_told_once():
    now, asked = [100.0], []
    place = ReplayScheduler("n1", lambda: now[0], asked=asked.append)
    spec, first = RunSpec("r1"), Attempt("r1", 1, "a")
    place.begin(spec, first)
    job = place.job(spec, (first,))
    assert job.state == "running"
    for _ in range(2):
        place.cancel(spec, job, "clustertools: hung", force=False)
    job = place.job(spec, (first,))
    assert (job.state, job.exit_code, job.exit_reason) == ("ended", -15, "clustertools: hung")
    second = Attempt("r1", 2, "b")
    assert place.job(spec, (first, second)).state == "pending"
    assert place.submit(spec, second) == place.submit(spec, second) == "r1#2"
    assert asked == ["cancel", "submit"]


# what is wrong is said, and at once


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("timelin: []", "'timelin' is not known"),
        ("settings: {mode: perhaps}", "'perhaps' is not one of"),
        ("settings: {checks: [gpu_ec]}", "no check 'gpu_ec'"),
        ("settings: {limits: {job_progress: {factr: 2}}}", "'factr' is not known"),
        ("timeline: [{at: soon}]", "'soon' is not a time"),
        ("timeline: [{at: 0s, sett: {}}]", "'sett' is not known"),
        ("timeline: [{at: 0s, set: {relative: x}}]", "not an absolute path"),
        ("timeline: [{at: 5m, every: 10s, until: 1m}]", "until that is not before"),
        ("timeline: [{at: 0s, every: 1ms, until: 1d}]", "is not a time"),
        ("timeline: [{at: 0s, every: 0.1, until: 1d}]", "more than 25000"),
        ("timeline: [{after: lunch}]", "after is one of"),
        ("timeline: [{at: 0s, job: {state: gone}}]", "state is one of"),
        ("timeline: [{at: 0s, processes: {eleven: gone}}]", "not a process id"),
        ("timeline: [{at: 0s, commands: [{stdout: x}]}]", "needs argv"),
        ("expect: [{at: 0s}]", "one of code, action, done, failed, call"),
        ("expect: {maybe: []}", "not a mode"),
        ("run: {log: /data/log}", "name is missing"),
        ("until: 300d", "more than 25000 passes"),
        ("timeline: [{at: 0s, processes: {11: {stack: nonsense}}}]", "not of the form"),
        ("timeline: [{at: 0s, processes: {11: {cpu_seconds: many}}}]", "wrong kind"),
        ("timeline: [{at: 0s, job: {pids: 11}}]", "wrong kind"),
        ("- a list", "a mapping is expected"),
    ],
)
def test_a_wrong_recording_is_refused(run: str, said: str, tmp_path: Path):
    folder = recording(tmp_path / "rec", run)
    with pytest.raises(ConfigError, match=said):
        replay(folder)


def test_everything_wrong_is_said_at_once(tmp_path: Path):
    folder = recording(tmp_path / "rec", "settings: {mode: perhaps}\ntimeline: [{at: soon}]")
    with pytest.raises(ConfigError) as caught:
        replay(folder)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [("90s", 90), ("2m11s", 131), ("1.5h", 5400), ("-1h", -3600), (7, 7), ("1d", 86400), ("", None),
     ("m", None), ("5", None), (True, None), ("1s2m", None)],
)  # fmt: skip
def test_times(text, number):
    assert seconds(text) == number


# what came out is compared with what must


def expect(tmp_path: Path, lines: str) -> tuple[str, ...]:
    return replay(recording(tmp_path / "rec", HUNG + lines)).problems


OPENED = "{at: 8m, kind: opened, code: JobHung}"
BLOCKED = "{at: 8m, action: restart, blocked: observe mode}"


def test_all_as_expected(tmp_path: Path):
    assert expect(tmp_path, f"    expect: [{OPENED}, {BLOCKED}]") == ()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (f"[{OPENED}]", "came, but is not expected, at 8m00s: action restart"),
        (f"[{BLOCKED}]", "came, but is not expected, at 8m00s: kind opened, code JobHung"),
        (f"[{OPENED}, {BLOCKED}, {{code: JobCrashed}}]", "expected, but did not come: code JobCrashed"),
        (
            f"[{{at: 11m, code: JobHung}}, {BLOCKED}]",
            "did not come at 11m00s: code JobHung; it came at 8m00s",
        ),
        (f"[{{at: 8m, code: JobHung, kind: resolved}}, {BLOCKED}]", "kind resolved"),
        (f"[{OPENED}, {{at: 8m, action: restart}}]", "did not come at 8m00s: action restart"),
        (f"[{OPENED}, {{at: 8m, action: restart, blocked: paused}}]", "blocked paused"),
        (f"[{{code: JobHung, explained_by: Xid}}, {BLOCKED}]", "explained_by Xid"),
    ],
)
def test_what_differs_is_said(lines: str, said: str, tmp_path: Path):
    problems = expect(tmp_path, f"    expect: {lines}")
    assert any(said in p for p in problems), problems


@pytest.mark.slow
def test_with_another_interval_times_do_not_count(tmp_path: Path):
    folder = recording(tmp_path / "rec", HUNG + f"    expect: [{OPENED}, {BLOCKED}]")
    assert replay(folder, interval_seconds=10.0).problems == ()


def test_the_job_of_an_ended_attempt_does_no_more(tmp_path: Path):
    """In act mode the run is restarted at 8m: what the first attempt would have done later does not count."""
    later = """\
        - {at: 15m, job: {state: ended, exit_code: 1}}
        - {at: 14m, append: {/data/log: "iter 99: loss 9"}}
        - {after: submit, at: 1s, job: {state: running, pids: [21]}}
        - {after: submit, at: 1s, processes: {21: {rank: 0, stack: "step (train.py:4)"}}}
        - {after: submit, at: 2s, every: 10s, until: 1h, append: {/data/log: "iter {count}: loss 2"}}
    """
    told = replay(
        recording(tmp_path / "rec", HUNG + textwrap.dedent(later).replace("- {", "    - {")), mode="act"
    )
    codes = [(t.kind, t.incident.finding.code) for t in told.transitions]
    assert codes == [("opened", "JobHung"), ("resolved", "JobHung")]
    assert [c.kind for c in told.calls] == ["cancel", "submit"]


# the command


@pytest.mark.slow
def test_the_command_tells_the_story(capsys):
    assert main(["replay", str(RUNS / "xid79-during-run")]) == 0
    out = capsys.readouterr().out
    assert "2m30s  opened    CRITICAL XidGpuLost" in out
    assert "drained gpu-079" in out
    assert "[because of XidGpuLost" in out
    assert "$ scontrol update NodeName=gpu-079 State=DRAIN" in out
    assert "runbook node-reboot" in out
    assert "everything came out as the recording says" in out


@pytest.mark.slow
def test_the_command_observes(capsys):
    assert main(["replay", str(RUNS / "xid79-during-run"), "--observe"]) == 0
    out = capsys.readouterr().out
    assert "would drain gpu-079: observe mode" in out
    assert "drained gpu-079" not in out


def test_the_command_as_json(capsys):
    assert main(["replay", str(RUNS / "blind-log"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {r["kind"] for r in rows} == {"event", "replayed"}
    assert rows[-1]["problems"] == []
    assert any(r.get("after_seconds") == 270.0 for r in rows)


@pytest.mark.slow
def test_the_exit_code_says_what_differs(tmp_path: Path, capsys):
    folder = recording(tmp_path / "rec", HUNG + "    expect: []")
    assert main(["replay", str(folder)]) == 2
    assert "came, but is not expected" in capsys.readouterr().out
    assert main(["replay", str(folder), "--act", "--every", "30s"]) == 2


def test_a_recording_that_says_nothing_of_a_mode(tmp_path: Path, capsys):
    folder = recording(tmp_path / "rec", HUNG + "    expect: {act: []}")
    assert main(["replay", str(folder), "--observe"]) == 0
    assert "does not say what must come out in observe mode" in capsys.readouterr().out


def test_a_recording_does_not_steer_the_terminal(tmp_path: Path, capsys):
    folder = recording(
        tmp_path / "rec", HUNG.replace("(train.py:4)", "(\\e]0;owned\\a.py:4)") + '    what: "a\\eb"'
    )
    assert main(["replay", str(folder), "--act"]) in (0, 2)
    assert "\x1b" not in capsys.readouterr().out


def test_an_unreadable_recording(tmp_path: Path, capsys):
    assert main(["replay", str(tmp_path)]) == 3
    assert "no run.yaml" in capsys.readouterr().err
    assert main(["replay", str(recording(tmp_path / "rec", "{broken"))]) == 3
