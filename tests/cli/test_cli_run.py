"""`clustertools run` as a person uses it: real processes, real stacks, short times."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools import cli
from clustertools.cli.frame import Output
from clustertools.cli.run import Supervision
from clustertools.model import Attempt
from clustertools.schedulers import RunSpec
from clustertools.schedulers.local import LocalScheduler
from clustertools.store import Store
from clustertools.watchdog import Pass
from tests.checkpoint_builders import torch_zip
from tests.lab.runs import RunLab, until

INTERRUPTED, TERMINATED = 130, 143


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunLab]:
    one = RunLab(tmp_path)
    yield one
    alive = [w.pid for w in one.watchdogs if w.poll() is None]
    left = one.left()
    one.clean_up()
    assert not alive, "the test ends with its watchdogs"
    assert not left, f"processes of the run were left behind: {left}"
    assert not one.two_copies


def store(lab: RunLab, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"file:{lab.folder}/state.db?mode=ro", uri=True) as db:
        return db.execute(sql).fetchall()


def evidence(lab: RunLab) -> dict[str, str]:
    return {p.name: p.read_text(errors="replace") for p in (lab.folder / "evidence").glob("*/*")}


def end(watchdog: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a signal; (exit code, what was said)."""
    watchdog.send_signal(number)
    _, said = watchdog.communicate(timeout=60)
    return watchdog.returncode, said.decode()


# a run that is well


@pytest.mark.slow
def test_a_healthy_run_passes_its_output_on_byte_for_byte(lab: RunLab) -> None:
    words = ("--steps", "12", "--do", "print:200001@4", "--do", "print:3000000@12")
    done = subprocess.run(lab.argv(*words), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == (lab.attempt_folders()[0] / "output.log").read_bytes()
    assert len(done.stdout) > 3_200_000
    assert done.stderr.decode() == f"clustertools: {lab.name} ended well\n"
    assert lab.starts() == ["0 0"]
    assert store(lab, "SELECT count(*) FROM incident WHERE state = 'open'") == [(0,)]


@pytest.mark.slow
def test_a_second_call_after_a_good_end_starts_anew(lab: RunLab) -> None:
    assert lab.run("--steps", "6").returncode == 0
    done = lab.run("--steps", "6")
    assert done.returncode == 0
    assert "ended well before: starting it anew" in done.stderr
    assert lab.starts() == ["0 0", "1 0"]


@pytest.mark.slow
def test_a_good_end_that_nobody_watched_is_told_once(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "10")
    until(lambda: lab.starts(), "the start")
    watchdog.kill()
    watchdog.communicate()
    until(lambda: not lab.left(), "the run has ended")
    done = lab.run("--steps", "10")
    assert (done.returncode, lab.starts()) == (0, ["0 0"])
    assert "ended well" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("step 10/10")


@pytest.mark.slow
def test_json_is_one_object_a_line_and_nothing_else(lab: RunLab) -> None:
    done = lab.run("--steps", "20", "--do", "exit:3@12", options=("--json",))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["kind"] for r in records} == {"pass", "end"}
    assert all(r["schema"] == 1 for r in records)
    assert {"running", "ended"} <= {r.get("state") for r in records}
    last = records[-1]
    assert (last["kind"], last["run"], last["exit_code"], last["attempts"]) == ("end", lab.name, 0, 2)
    assert "step 1/" not in done.stdout


@pytest.mark.slow
def test_json_comes_as_it_happens(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "500", options=("--json",))
    assert watchdog.stdout is not None
    assert json.loads(watchdog.stdout.readline())["kind"] == "pass"
    assert end(watchdog)[0] == TERMINATED


# hangs


@pytest.mark.slow
def test_a_hang_is_restarted_from_the_last_verified_checkpoint(lab: RunLab) -> None:
    done = lab.run("--steps", "20", "--workers", "3", "--do", "torn@12", "--do", "stop@12")
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]
    assert lab.finished == ["20"]
    torn = lab.checkpoints / "step_000012.pt"
    assert re.search(rf"refused {re.escape(str(torn))}: .*(cut|torn|not whole)", done.stderr), done.stderr
    assert "resuming from" in done.stderr
    assert "step_000010.pt (step 10, verified)" in done.stderr
    assert torn.exists(), "nothing of the run is deleted or renamed"
    stacks = evidence(lab)["stacks.txt"]
    # the odd rank first, and the others as one
    assert stacks.splitlines()[0].startswith("rank 0 (stopped by a signal, state T): ")
    assert "do_stop (trainer.py:" in stacks
    assert "ranks 1-2" in stacks
    assert "step 12/20" in evidence(lab)["log-0-output.log"]
    assert json.loads(evidence(lab)["processes.json"])
    assert oct((lab.folder / "evidence").iterdir().__next__().stat().st_mode)[-3:] == "700"
    assert "ended well after 2 attempts" in done.stderr


@pytest.mark.slow
def test_a_hang_at_one_line_is_seen_by_two_equal_stacks(lab: RunLab) -> None:
    done = lab.run("--steps", "14", "--do", "sleep@7")
    assert done.returncode == 0, done.stderr
    assert "stand at the same line as in the sample before" in done.stderr
    assert lab.starts() == ["0 0", "1 5"]


@pytest.mark.slow
def test_a_hung_run_that_is_deaf_and_has_orphans_is_gone_before_the_next_start(lab: RunLab) -> None:
    orders = ("deaf@3", "orphan@4", "deaf-orphan@4", "stop@7")
    words = [word for order in orders for word in ("--do", order)]
    done = lab.run("--steps", "14", *words, options=("--grace", "500ms"))
    assert done.returncode == 0, done.stderr
    assert "sent SIGKILL" in done.stderr
    assert lab.starts() == ["0 0", "1 5"]
    assert len(lab.orphans()) == 2
    assert not [pid for pid in lab.orphans() if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_hostile_checkpoint_is_refused_and_never_executed(lab: RunLab) -> None:
    done = lab.run("--steps", "20", "--do", "hostile@12", "--do", "stop@12")
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]
    assert re.search(r"refused .*step_000012\.pt: .*system", done.stderr), done.stderr
    assert not (lab.work / "EXECUTED").exists()


@pytest.mark.slow
def test_nothing_is_started_when_no_checkpoint_is_whole(lab: RunLab) -> None:
    done = lab.run("--steps", "20", "--do", "stubborn@start", "--do", "exit:3@12")
    assert done.returncode == 2
    assert "none of the 2 checkpoints" in done.stderr
    assert lab.starts() == ["0 0"]


@pytest.mark.slow
def test_silence_without_a_second_sign_is_told_and_nothing_is_done(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "100000", "--do", "quiet@5")
    until(lambda: store_has(lab, "JobSilent"), "JobSilent")
    time.sleep(1)
    assert lab.starts() == ["0 0"]
    assert Path(f"/proc/{lab.trainer_pid()}").exists()
    assert store(lab, "SELECT count(*) FROM action WHERE id LIKE '%restart%'") == [(0,)]
    code, said = end(watchdog)
    assert code == TERMINATED
    assert "no second sign that it is stuck" in said


def store_has(lab: RunLab, code: str) -> bool:
    try:
        return bool(store(lab, f"SELECT 1 FROM incident WHERE state = 'open' AND key LIKE '{code}:%'"))
    except sqlite3.OperationalError:
        return False  # it is being made


@pytest.mark.slow
def test_a_run_that_never_makes_a_step_is_told_of_and_not_killed(lab: RunLab) -> None:
    watchdog = lab.start("--do", "sleep@start", options=("--startup", "600ms"))
    until(lambda: store_has(lab, "JobIdle"), "JobIdle")
    time.sleep(1)
    assert lab.starts() == ["0 0"]
    assert Path(f"/proc/{lab.trainer_pid()}").exists()
    code, said = end(watchdog)
    assert code == TERMINATED
    assert "never made a step" in said
    # what it does, for the person who is told
    assert "do_sleep" in evidence(lab)["stacks.txt"]


@pytest.mark.slow
def test_a_run_that_is_done_and_does_not_exit_is_told_of_and_not_killed(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "10", "--do", "sleep@end")
    until(lambda: store_has(lab, "JobIdle"), "JobIdle")
    time.sleep(1)
    code, said = end(watchdog)
    assert code == TERMINATED
    assert lab.starts() == ["0 0"], said


# crashes


@pytest.mark.parametrize(
    "how",
    [
        "exit:3@12",
        pytest.param("signal:11@12", marks=pytest.mark.slow),
        pytest.param("signal:9@12", marks=pytest.mark.slow),
    ],
)
def test_a_crash_is_restarted(lab: RunLab, how: str) -> None:
    done = lab.run("--steps", "20", "--do", how)
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]
    word = "exit code 3" if "exit" in how else f"killed by signal {how[7:-3]}"
    assert f"ended: {word}" in done.stderr
    assert "ended well after 2 attempts" in done.stderr


@pytest.mark.slow
def test_what_never_makes_a_step_is_tried_once_more(lab: RunLab) -> None:
    done = lab.run("--do", "exit:7@start/*")
    assert done.returncode == 2
    assert lab.starts() == ["0 0", "1 0"]
    assert "at its launch and never made a step" in done.stderr


@pytest.mark.slow
def test_a_crash_loop_stops_after_three_starts_without_a_step(lab: RunLab) -> None:
    done = lab.run(
        "--do", "exit:3@7/0", "--do", "exit:7@start/1", "--do", "exit:7@start/2", "--do", "exit:7@start/3"
    )
    assert done.returncode == 2
    assert lab.starts() == ["0 0", "1 5", "2 5", "3 5"]
    assert f"the last 3 starts of {lab.name} made no new step" in done.stderr
    assert "not restarted: 3 starts in a row made no new step" in done.stderr
    assert store_has(lab, "JobCrashLoop")


@pytest.mark.slow
def test_starts_that_make_steps_are_no_crash_loop(lab: RunLab) -> None:
    orders = ("exit:3@7/0", "exit:3@8/1", "exit:3@9/2", "exit:3@12/3")
    done = lab.run("--steps", "14", *[word for order in orders for word in ("--do", order)])
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 5", "2 5", "3 5", "4 10"]


@pytest.mark.slow
def test_the_limit_of_starts_is_the_one_that_was_told(lab: RunLab) -> None:
    done = lab.run("--do", "exit:7@start/*", options=("--restarts", "1"))
    assert done.returncode == 2
    assert lab.starts() == ["0 0"]


@pytest.mark.slow
def test_observe_tells_and_changes_nothing(lab: RunLab) -> None:
    done = lab.run("--steps", "20", "--do", "torn@12", "--do", "exit:3@12", options=("--observe",))
    assert done.returncode == 2
    assert lab.starts() == ["0 0"]
    assert "observe mode" in done.stderr
    assert sorted(p.name for p in lab.checkpoints.iterdir()) == [
        "step_000005.pt",
        "step_000010.pt",
        "step_000012.pt",
    ]


@pytest.mark.slow
def test_observe_leaves_a_hung_run_as_it_is(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "20", "--do", "stop@7", options=("--observe",))
    until(lambda: store_has(lab, "JobHung"), "JobHung")
    time.sleep(1)
    stat = Path(f"/proc/{lab.trainer_pid()}/stat").read_text()
    assert stat.rpartition(")")[2].split()[0] == "T"
    assert end(watchdog)[0] == TERMINATED


# ways to resume


@pytest.mark.slow
def test_resume_by_words_in_the_command(lab: RunLab) -> None:
    words = ("--steps", "14", "--do", "exit:3@12", "--resume", "placeholder", "--resume-from={checkpoint}")
    done = lab.run(*words, options=("--resume", "placeholder"))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]


@pytest.mark.slow
def test_resume_by_another_variable(lab: RunLab) -> None:
    whole = torch_zip(lab.work / "whole.pt", 8)
    lab.checkpoints.mkdir()
    script = f"""
    [ "$FROM" ] && {{ echo "from $FROM"; exit 0; }}
    echo "step 1/3 | loss 2"; cp {whole} {lab.checkpoints}/step_000001.pt; exit 3
    """
    argv = [sys.executable, "-m", "clustertools", "run", *lab.options("--resume-variable", "FROM")]
    done = subprocess.run([*argv, "--", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"from {lab.checkpoints}/step_000001.pt\n")


@pytest.mark.slow
def test_resume_by_the_tracker_of_the_framework(lab: RunLab) -> None:
    words = ("--steps", "14", "--resume", "tracker", "--do", "torn@12", "--do", "exit:3@12")
    done = lab.run(*words, options=("--resume", "tracker"))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]
    assert "latest_checkpointed_iteration.txt now names iter_0000010" in done.stderr
    kept = lab.checkpoints / "latest_checkpointed_iteration.txt.before-clustertools-1"
    assert kept.read_text() == "12"
    assert (lab.checkpoints / "iter_0000012").is_dir()


@pytest.mark.slow
def test_resume_by_a_framework_that_takes_the_newest(lab: RunLab) -> None:
    words = ("--steps", "14", "--resume", "newest", "--do", "torn@12", "--do", "exit:3@12")
    done = lab.run(*words, options=("--resume", "newest"))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 10"]
    assert "step_000012.pt set aside as step_000012.pt.refused-by-clustertools" in done.stderr
    assert (lab.checkpoints / "step_000012.pt.refused-by-clustertools").stat().st_size == 700


@pytest.mark.slow
def test_a_run_that_cannot_resume_begins_anew(lab: RunLab) -> None:
    words = ("--steps", "14", "--resume", "none", "--do", "torn@12", "--do", "exit:3@12")
    done = lab.run(*words, options=("--resume", "none"))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 0"]


# signals, second calls, lost state


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, INTERRUPTED),
        pytest.param(signal.SIGTERM, TERMINATED, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_and_leaves_nobody(lab: RunLab, number: int, code: int) -> None:
    watchdog = lab.start("--steps", "5000", "--workers", "2", "--do", "orphan@2")
    until(lambda: lab.orphans(), "an orphan")
    got, said = end(watchdog, number)
    assert got == code, said
    assert f"signal {int(number)}: stopping" in said
    assert not lab.left()
    # and goes on where it was
    saved = [int(p.stem[5:]) for p in lab.checkpoints.glob("step_*.pt")]
    done = lab.run("--steps", str(max(saved, default=0) + 4))
    assert done.returncode == 0, done.stderr
    assert lab.starts()[1] == f"1 {max(saved, default=0)}"


@pytest.mark.slow
def test_ctrl_c_on_a_deaf_run_kills_it_after_the_grace_and_twice_at_once(lab: RunLab) -> None:
    for grace, signals in (("500ms", 1), ("30s", 2)):
        watchdog = lab.start("--steps", "5000", "--do", "deaf@start/*", options=("--grace", grace))
        until(lambda: "step" in log_of(lab) and lab.left(), "it trains")
        began = time.monotonic()
        for _ in range(signals):
            watchdog.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, said = watchdog.communicate(timeout=60)
        assert watchdog.returncode == INTERRUPTED, said.decode()
        assert time.monotonic() - began < 5
        assert not lab.left()
        for path in lab.attempt_folders():
            (path / "output.log").write_text("")


def log_of(lab: RunLab) -> str:
    """What the newest attempt printed; nothing before it began."""
    paths = [path / "output.log" for path in lab.attempt_folders()[-1:]]
    return paths[0].read_text() if paths and paths[0].exists() else ""


@pytest.mark.slow
def test_the_command_is_asked_to_end_once(lab: RunLab) -> None:
    script = "trap 'echo asked >> asked; sleep 0.5; exit 0' TERM; echo 'step 1/9 | loss 2'; "
    script += "while :; do sleep 0.05; done"
    lab.work.mkdir()
    argv = [sys.executable, "-m", "clustertools", "run", *lab.options(), "--", "sh", "-c", script]
    watchdog = lab.popen(argv, cwd=lab.work)
    until(lambda: "step 1" in log_of(lab), "the start")
    assert end(watchdog)[0] == TERMINATED
    assert (lab.work / "asked").read_text() == "asked\n"


@pytest.mark.slow
def test_nohup_is_respected(lab: RunLab) -> None:
    watchdog = lab.popen(["nohup", *lab.argv("--steps", "20")])
    until(lambda: lab.starts(), "the start")
    code, said = end(watchdog, signal.SIGHUP)
    assert code == 0, said
    assert lab.finished == ["20"]


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_the_run(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "20", "--do", "print:300000@3")
    assert watchdog.stdout is not None
    watchdog.stdout.read(10)
    watchdog.stdout.close()
    assert watchdog.wait(60) == 0
    assert watchdog.stderr is not None
    assert (
        "the output is passed on no longer (Broken pipe); the run goes on" in watchdog.stderr.read().decode()
    )
    watchdog.stderr.close()
    assert lab.finished == ["20"]


@pytest.mark.slow
def test_a_reader_that_stands_still_does_not_blind_the_watchdog(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "14", "--do", "print:300000@3", "--do", "stop@7")
    until(lambda: len(lab.starts()) == 2, "it was restarted, although nobody reads")
    said, _ = watchdog.communicate(timeout=60)
    assert watchdog.returncode == 0
    assert said == b"".join((f / "output.log").read_bytes() for f in lab.attempt_folders())


@pytest.mark.slow
def test_a_second_run_of_the_same_name_is_refused(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "5000")
    until(lambda: lab.starts(), "the start")
    second = lab.run("--steps", "5000")
    assert second.returncode == 3
    assert f"run {lab.name} is already watched by process {watchdog.pid}" in second.stderr
    assert lab.starts() == ["0 0"]
    assert watchdog.poll() is None
    assert end(watchdog)[0] == TERMINATED


@pytest.mark.slow
def test_a_run_whose_watchdog_was_killed_is_taken_up_again(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "40", "--do", "stop@30")
    until(lambda: (lab.checkpoints / "step_000010.pt").exists(), "a checkpoint")
    watchdog.kill()
    watchdog.communicate()
    done = lab.run("--steps", "40", "--do", "stop@30")
    assert done.returncode == 0, done.stderr
    assert "attempt 1 of" in done.stderr.splitlines()[0]
    assert "is running: watching it" in done.stderr.splitlines()[0]
    assert lab.starts() == ["0 0", "1 30"]


@pytest.mark.slow
def test_a_lost_state_starts_no_second_copy(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "60")
    until(lambda: lab.starts(), "the start")
    watchdog.kill()
    watchdog.communicate()
    for path in lab.folder.glob("state.db*"):
        path.unlink()
    done = lab.run("--steps", "60")
    assert done.returncode == 0, done.stderr
    assert "1 earlier attempts were found" in done.stderr
    assert lab.starts() == ["0 0"]
    assert lab.finished == ["60"]


def test_a_damaged_state_does_nothing_and_says_what_to_do(lab: RunLab) -> None:
    lab.folder.mkdir(parents=True)
    (lab.folder / "state.db").write_bytes(b"not a database, not at all" * 400)
    done = lab.run()
    assert done.returncode == 3
    assert "it is damaged: move it aside" in done.stderr
    assert lab.starts() == []


@pytest.mark.slow
def test_fresh_begins_from_nothing(lab: RunLab) -> None:
    assert (
        lab.run("--steps", "20", "--do", "exit:3@12", options=("--restarts", "0", "--observe")).returncode
        == 2
    )
    done = lab.run("--steps", "6", options=("--fresh",))
    assert done.returncode == 0, done.stderr
    assert lab.starts() == ["0 0", "1 0"]


@pytest.mark.slow
def test_fresh_beside_a_living_run_is_refused(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "5000")
    until(lambda: lab.starts(), "the start")
    watchdog.kill()
    watchdog.communicate()
    done = lab.run("--steps", "5000", options=("--fresh",))
    assert done.returncode == 3
    assert "still runs: end it before you start afresh" in done.stderr
    assert lab.starts() == ["0 0"]
    lab.clean_up()


@pytest.mark.slow
def test_a_crash_while_everything_is_paused_waits_for_the_end_of_the_pause(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "40", "--do", "exit:3@30", "--step-seconds", "0.15")
    until(lambda: lab.starts(), "the start")
    words = [sys.executable, "-m", "clustertools"]
    state = ["--state", str(lab.state)]
    subprocess.run([*words, "pause", "10m", *state], check=True, capture_output=True)
    until(lambda: store_has(lab, "JobCrashed"), "the crash")
    time.sleep(0.5)
    assert watchdog.poll() is None
    assert lab.starts() == ["0 0"]
    subprocess.run([*words, "resume", *state], check=True, capture_output=True)
    _, said = watchdog.communicate(timeout=60)
    assert watchdog.returncode == 0, said.decode()
    assert "ended while everything is paused" in said.decode()
    assert lab.starts() == ["0 0", "1 30"]


# what cannot be looked at, what is wrong at the start


@pytest.mark.slow
def test_a_log_that_cannot_be_read_is_blindness_and_nothing_is_done(lab: RunLab, tmp_path: Path) -> None:
    watchdog = lab.start("--steps", "20", "--do", "stop@7", options=("--log", str(tmp_path)))
    until(lambda: store_has(lab, "Blind"), "Blind")
    time.sleep(1)
    code, said = end(watchdog)
    assert code == TERMINATED
    assert "job_progress cannot look" in said
    assert str(tmp_path) in said
    assert lab.starts() == ["0 0"]
    assert store(lab, "SELECT count(*) FROM action") == [(0,)]


def test_a_command_that_is_not_there_is_a_users_error(lab: RunLab) -> None:
    argv = [sys.executable, "-m", "clustertools", "run", *lab.options(), "--", "./no-such-trainer"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == (
        "clustertools: ./no-such-trainer: there is no such command, or it may not be executed\n"
    )
    assert not lab.folder.exists()


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "-x", "a b", "x" * 65, "ü"])
def test_a_name_that_is_no_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["run", "--name=" + name, "--state", str(tmp_path / "state"), "--", "true"]) == 3
    assert "use letters, digits, dots and dashes" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "words", [["--interval", "5", "--", "true"], ["--interval", "nan", "--", "true"], ["--steps", "many"], []]
)
def test_wrong_usage_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(["run", "--state", str(tmp_path / "state"), *words]) == 3
    assert capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_a_state_that_cannot_be_written_for_a_while_leaves_the_run_alone(lab: RunLab) -> None:
    watchdog = lab.start("--steps", "400", options=("--interval", "200ms"))
    until(lambda: lab.starts(), "the start")
    with sqlite3.connect(lab.folder / "state.db", isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(6)
        assert watchdog.poll() is None
        db.execute("ROLLBACK")
    before = os.path.getmtime(lab.folder / "state.db")
    _, said = watchdog.communicate(timeout=60)
    assert watchdog.returncode == 0, said.decode()
    assert "another watchdog or command holds it" in said.decode()
    assert os.path.getmtime(lab.folder / "state.db") >= before
    assert lab.starts() == ["0 0"]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [(0, 0, "filling ended well"), (1, 2, "exit code 1; not restarted: cannot write the state in")],
)
def test_a_disk_that_stays_full_does_not_keep_an_ended_command_waiting(
    tmp_path: Path, code: int, ends: int, said: str
) -> None:
    fill = f"head -c 600000 /dev/zero >{tmp_path}/filler; exit {code}"
    script = f"""
import subprocess, sys
from clustertools import cli
from clustertools.cli import run
run.BAD_END_PATIENCE_SECONDS = 3.0
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", {str(tmp_path)!r}], check=True)
words = ["run", "--name", "filling", "--state", {str(tmp_path)!r}, "--interval", "300ms", "--"]
sys.exit(cli.main([*words, "sh", "-c", {fill!r}]))
"""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == ends, done.stderr
    assert "the disk is full: make room" in done.stderr
    assert said in done.stderr


class Faulty:
    """A watchdog with a fault of its own in its first passes."""

    def __init__(self, folder: Path, faults: int) -> None:
        self.store = Store(folder / "state.db")
        self.scheduler = LocalScheduler(folder / "attempts", "n1")
        self.faults, self.spec = faults, RunSpec("faulty", ("true",))
        self.settings = None

    def start(self, spec: RunSpec) -> None:
        self.store.put_attempt(Attempt("faulty", 1, "t", started_at=time.time()))
        self.scheduler.submit(spec, self.store.attempts("faulty")[0])

    def paused(self, now: float) -> bool:
        return False

    def once(self) -> Pass:
        self.faults -= 1
        if self.faults >= 0:
            raise IndexError("a line that nobody thought of")
        job = self.scheduler.job(self.spec, tuple(self.store.attempts("faulty")))
        return Pass((), (), (), (), (), (job,), (), "fine")


@pytest.mark.parametrize("faults", [2, 1000])
def test_a_fault_of_ours_does_not_leave_the_command_unwatched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], faults: int
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        watchdog = Faulty(tmp_path, faults)
        assert Supervision(watchdog, watchdog.spec, Output(), 0.05, False).run() == 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    said = capfd.readouterr().err.splitlines()
    fault = "clustertools: a fault in clustertools itself: IndexError: a line that nobody thought of (test_"
    assert [line.startswith(fault) for line in said] == [True, False], said
    assert said[1] == "clustertools: faulty ended well"
