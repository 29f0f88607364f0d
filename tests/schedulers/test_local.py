"""Runs of this machine: real processes, started once, ended whole, and told truly however their shim ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clustertools.errors import ActionFailed, Unobservable
from clustertools.model import Attempt, Job, Subject
from clustertools.schedulers import RunSpec
from clustertools.schedulers.local import LocalScheduler
from clustertools.schedulers.shim import boot_id, start_ticks
from tests.lab.runs import marked, until

SHIM = [sys.executable, "-I", "-m", "clustertools.schedulers.shim"]


class Lab:
    """One attempt of one command."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.scheduler = LocalScheduler(folder / "attempts", "n1")
        self.token = f"t{os.getpid()}{time.monotonic_ns():x}"
        self.attempt = Attempt("demo", 1, self.token, started_at=time.time())
        self.spec = RunSpec("demo", cwd=str(self.work))

    @property
    def folder(self) -> Path:
        return self.scheduler.log_path(self.attempt).parent

    @property
    def log(self) -> str:
        return self.scheduler.log_path(self.attempt).read_text()

    def start(self, *command: str, **spec: object) -> str:
        self.spec = dataclasses.replace(self.spec, command=command, **spec)  # type: ignore[arg-type]
        return self.scheduler.submit(self.spec, self.attempt)

    def sh(self, script: str, **spec: object) -> None:
        self.start("sh", "-c", script, **spec)

    def job(self) -> Job:
        return self.scheduler.job(self.spec, (self.attempt,))

    def until(self, state: str, seconds: float = 20.0) -> Job:
        until(lambda: self.job().state == state, f"the job is {state}", seconds)
        return self.job()

    def until_file(self, name: str) -> str:
        until((self.work / name).exists, name)
        until((self.work / name).read_text, f"{name} has content")
        return (self.work / name).read_text()

    def cancel(self, why: str = "clustertools: test", *, force: bool = False) -> None:
        self.scheduler.cancel(self.spec, self.job(), why, force=force)

    def left(self) -> list[int]:
        return self.scheduler.leftovers(self.spec, self.job())

    @property
    def shim(self) -> int:
        return int(json.loads((self.folder / "claimed").read_text())["shim_pid"])

    def kill_shim(self) -> None:
        os.kill(self.shim, signal.SIGKILL)

    def write(self, name: str, data: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(json.dumps(data))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path)
    yield one
    for pid in marked(f"CLUSTERTOOLS_ATTEMPT={one.token}"):
        os.kill(pid, signal.SIGKILL)


# how it ended


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -SEGV $$", -11), ("kill -KILL $$", -9)]
)
def test_how_a_command_ended(lab: Lab, script: str, code: int) -> None:
    began = time.time()
    lab.sh(f"echo out; echo err >&2; {script}")
    job = lab.until("ended")
    assert (job.exit_code, job.exit_reason, job.attempt, job.nodes) == (code, "", 1, ("n1",))
    assert began <= job.ended_at <= time.time()
    assert lab.log.splitlines()[:2] == ["out", "err"]
    assert not lab.left()


def test_while_it_runs(lab: Lab) -> None:
    assert lab.job().state == "pending"  # written down, not submitted
    assert lab.start("sleep", "60") == "demo#1"
    job = lab.until("running")
    assert Path(f"/proc/{job.pids[0]}/cmdline").read_bytes() == b"sleep\x0060\0"
    assert job.log_paths == (str(lab.scheduler.log_path(lab.attempt)),)
    assert lab.left() == list(job.pids)
    # of its own session, so that a Ctrl-C at the terminal is ours to handle
    assert os.getsid(job.pids[0]) == job.pids[0]


def test_while_it_runs_on_a_full_disk(lab: Lab) -> None:
    lab.start("sleep", "60")
    pid = lab.until("running").pids[0]
    (lab.folder / "running.json").unlink()
    assert lab.job().state == "pending"  # it may be just about to be written
    os.utime(lab.folder / "claimed", (time.time() - 6,) * 2)
    assert (lab.job().state, lab.job().pids) == ("running", (pid,))


def test_signals_that_the_shim_ignores_are_not_inherited(lab: Lab) -> None:
    lab.start("sleep", "60")
    pid = lab.until("running").pids[0]
    text = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in text.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & 0x4003 == 0  # HUP, INT, TERM


def test_an_end_is_never_told_without_its_exit_code(lab: Lab) -> None:
    # between the last word of a shim and its own end there is a moment in which it is neither
    labs = []
    for number in range(6):
        attempt = Attempt(f"demo{number}", 1, f"{lab.token}{number}", started_at=time.time())
        spec = RunSpec(f"demo{number}", ("true",))
        lab.scheduler.submit(spec, attempt)
        labs.append((spec, attempt))
    ended: set[str] = set()
    deadline = time.monotonic() + 20
    while len(ended) < len(labs) and time.monotonic() < deadline:
        for spec, attempt in labs:
            job = lab.scheduler.job(spec, (attempt,))
            if job.state == "ended":
                assert job.exit_code == 0, job
                ended.add(spec.name)
    assert len(ended) == len(labs)


def test_a_shim_that_ends_between_two_looks_is_believed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # the worst moment: alive when exit.json was looked for, gone when the process table was
    from clustertools.schedulers import local

    lab.sh("exit 5")
    lab.until("ended")
    (lab.folder / "exit.json").rename(lab.folder / "kept")
    real = local._is_alive

    def ends_now(shim: object) -> bool:
        if (lab.folder / "kept").exists():
            (lab.folder / "kept").rename(lab.folder / "exit.json")
        return real(shim)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "_is_alive", ends_now)
    assert lab.job().exit_code == 5


# what it leaves behind


def test_leftovers_of_every_kind_end_with_the_command(lab: Lab) -> None:
    # no other test may sleep as long: it is by this that they are found
    long = [f"600.{os.getpid()}{time.monotonic_ns()}{n}" for n in range(6)]
    lab.sh(f"""
    sleep {long[0]} &
    setsid sleep {long[1]} &
    (setsid sh -c 'sleep {long[2]} & sleep {long[3]}' &) &
    env -i setsid sleep {long[4]} &
    sh -c 'kill -STOP $$; sleep {long[5]}' &
    sleep 0.2; exit 4
    """)
    job = lab.until("ended")
    assert job.exit_code == 4
    assert json.loads((lab.folder / "exit.json").read_text())["leftovers"] >= 6
    assert not lab.left()
    table = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in table.splitlines() if line.removeprefix("sleep ") in long]


@pytest.mark.slow
def test_a_leftover_that_ignores_sigterm_is_killed(lab: Lab) -> None:
    lab.sh("(trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 71; sleep 72') & sleep 0.2; exit 0")
    assert lab.until("ended").exit_code == 0
    assert not lab.left()


def test_orphans_that_end_meanwhile_do_not_pile_up_as_zombies(lab: Lab) -> None:
    lab.sh("for i in 1 2 3; do (sleep 0.05 & ) & done; touch ready; sleep 60")
    until((lab.work / "ready").exists, "it works")
    main = lab.until("running").pids[0]

    def below() -> list[str]:
        text = subprocess.run(
            ["ps", "-o", "pid=,stat=", "--ppid", str(lab.shim)], capture_output=True, text=True
        )
        return text.stdout.split("\n")[:-1]

    until(lambda: len(below()) == 1, "only the command is below its shim")
    assert below()[0].split()[0] == str(main)


# being stopped


def test_cancel_ends_it_and_says_who_asked(lab: Lab) -> None:
    lab.sh("setsid sleep 60 & sleep 60")
    until(lambda: len(lab.left()) == 3, "three processes")
    lab.cancel("clustertools: JobHung:run:demo")
    job = lab.until("ended")
    assert (job.exit_code, job.exit_reason) == (-15, "clustertools: JobHung:run:demo")
    assert not lab.left()
    lab.cancel("clustertools: somebody else")  # again: nothing happens, the first reason stays
    assert lab.job().exit_reason == "clustertools: JobHung:run:demo"


def test_while_it_is_being_stopped_the_reason_shows(lab: Lab) -> None:
    lab.sh("trap '' TERM; touch deaf; while :; do sleep 0.05; done")
    until((lab.work / "deaf").exists, "it is deaf")
    lab.cancel()
    time.sleep(0.2)
    job = lab.job()
    assert (job.state, job.exit_reason) == ("running", "clustertools: test")
    lab.cancel(force=True)
    assert lab.until("ended").exit_code == -9
    assert not lab.left()


def test_a_stopped_process_ends_too(lab: Lab) -> None:
    lab.sh("sh -c 'kill -STOP $$' & kill -STOP $$; sleep 60")
    pid = lab.until("running").pids[0]
    until(lambda: " T " in Path(f"/proc/{pid}/stat").read_text(), "it is stopped")
    lab.cancel()
    assert lab.until("ended").exit_code == -15


def test_one_that_had_not_begun_never_begins_after_a_cancel(lab: Lab) -> None:
    lab.write("spec.json", {"command": ["touch", "begun"], "cwd": str(lab.work), "log_path": "/dev/null"})
    lab.cancel("clustertools: signal 2")
    job = lab.job()
    assert (job.state, job.exit_code, job.exit_reason) == ("ended", None, "clustertools: signal 2")
    assert subprocess.run([*SHIM, str(lab.folder)], check=False).returncode == 0
    lab.start("touch", "begun")
    time.sleep(0.3)
    assert not (lab.work / "begun").exists()


def test_a_shim_that_is_stopped_itself_does_not_hold_up_the_end(lab: Lab) -> None:
    lab.start("sleep", "60")
    lab.until("running")
    os.kill(lab.shim, signal.SIGSTOP)
    lab.cancel(force=True)
    assert lab.until("ended").exit_code == -9


# shims that are killed, machines that reboot


def test_a_command_whose_shim_was_killed_is_still_ours(lab: Lab) -> None:
    lab.sh("setsid sleep 60 & sleep 60")
    until(lambda: len(lab.left()) == 3, "three processes")
    lab.until("running")
    before = lab.left()
    lab.kill_shim()
    until(lambda: not start_ticks(lab.shim), "the shim is gone")
    assert (lab.job().state, list(lab.job().pids)) == ("running", before)
    lab.cancel()
    job = lab.until("ended")
    assert (job.exit_code, job.exit_reason) == (None, "clustertools: test")


def test_what_ends_after_its_shim_was_killed_ended_unknown(lab: Lab) -> None:
    lab.sh("until [ -e go ]; do sleep 0.02; done")
    lab.until("running")
    until((lab.folder / "running.json").exists, "the shim's word that it began")
    lab.kill_shim()
    (lab.work / "go").touch()
    job = lab.until("ended")
    assert (job.exit_code, job.exit_reason) == (None, "its supervisor was killed: nobody saw how it ended")


def test_a_shim_killed_before_it_began_is_not_waited_for_and_never_starts(lab: Lab) -> None:
    lab.folder.mkdir(parents=True)
    os.mkfifo(lab.folder / "spec.json")  # it waits here, after its claim
    with subprocess.Popen([*SHIM, str(lab.folder)]) as shim:
        until((lab.folder / "claimed").exists, "the claim")
        until((lab.folder / "claimed").read_text, "who claimed")
        assert lab.job().state == "pending"
        shim.kill()
    job = lab.job()
    assert (job.state, job.exit_reason) == ("ended", "its supervisor was killed before it began")
    lab.start("touch", "begun")
    time.sleep(0.3)
    assert not (lab.work / "begun").exists()


def test_killed_between_the_start_and_its_note(lab: Lab) -> None:
    lab.start("sleep", "60")
    pid = lab.until("running").pids[0]
    lab.kill_shim()
    (lab.folder / "running.json").unlink()
    assert lab.until("running").pids == (pid,)
    assert lab.left() == [pid]


def test_after_a_reboot(lab: Lab) -> None:
    # the same pid and start may be anybody's now
    me = {"shim_pid": os.getpid(), "shim_ticks": start_ticks(os.getpid()), "boot_id": "another-boot"}
    lab.write("claimed", me)
    lab.write("running.json", {"pid": os.getpid(), "pid_ticks": start_ticks(os.getpid())})
    job = lab.job()
    assert (job.state, job.exit_code, job.exit_reason) == ("ended", None, "the machine was rebooted")
    assert lab.left() == []


def test_another_process_with_the_pid_of_the_shim(lab: Lab) -> None:
    lab.write("claimed", {"shim_pid": os.getpid(), "shim_ticks": 1, "boot_id": boot_id()})
    lab.write("running.json", {"pid": os.getpid(), "pid_ticks": 1})
    assert lab.job().state == "ended"
    assert lab.left() == []
    lab.cancel(force=True)  # ends nobody; this process among them


def test_one_that_nobody_claimed_in_time_is_given_up_for_good(lab: Lab) -> None:
    lab.attempt = dataclasses.replace(lab.attempt, started_at=time.time() - 31)
    assert lab.job().state == "pending"  # there is no folder: its submit may be still to come
    lab.write("spec.json", {"command": ["touch", "begun"], "cwd": str(lab.work), "log_path": "/dev/null"})
    assert lab.job().state == "pending"  # submitted just now
    os.utime(lab.folder, (time.time() - 31,) * 2)
    job = lab.job()
    assert (job.state, job.exit_reason) == ("ended", "it was never started")
    subprocess.run([*SHIM, str(lab.folder)], check=True)
    assert not (lab.work / "begun").exists()


def test_one_that_could_not_be_submitted_has_ended(lab: Lab) -> None:
    lab.attempt = dataclasses.replace(lab.attempt, end="could not start demo: no space", ended_at=5.0)
    job = lab.job()
    assert (job.state, job.ended_at, job.exit_reason) == ("ended", 5.0, "could not start demo: no space")


def test_garbage_where_the_end_is_written_is_not_an_end(lab: Lab) -> None:
    lab.sh("exit 0")
    lab.until("ended")
    (lab.folder / "exit.json").write_text('{"returnc')
    with pytest.raises(Unobservable, match=r"exit\.json"):
        lab.job()


def test_a_run_that_was_never_started_is_not_an_ended_one(lab: Lab) -> None:
    with pytest.raises(Unobservable, match="never started"):
        lab.scheduler.job(lab.spec, ())


# started once


@pytest.mark.slow
def test_eight_who_submit_the_same_attempt_at_once_start_it_once(lab: Lab) -> None:
    spec = dataclasses.replace(lab.spec, command=("sh", "-c", "echo $$ >> starts; sleep 60"))
    gate, opened = os.pipe()
    children = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            os.read(gate, 1)
            try:
                LocalScheduler(lab.scheduler.folder, "n1").submit(spec, lab.attempt)
            finally:
                os._exit(0)
        children.append(pid)
    os.write(opened, b"x" * 8)
    for pid in children:
        os.waitpid(pid, 0)
    lab.spec = spec
    lab.until("running")
    time.sleep(0.5)  # the last of eight shims had its chance
    assert len((lab.work / "starts").read_text().split()) == 1
    lab.start(*spec.command)
    time.sleep(0.3)
    assert len((lab.work / "starts").read_text().split()) == 1


# what cannot be started


def test_a_command_that_is_not_there(lab: Lab) -> None:
    lab.start("no-such-trainer")
    job = lab.until("ended")
    assert job.exit_code == 127
    assert job.exit_reason == "could not start no-such-trainer: No such file or directory"
    assert lab.log == f"clustertools: {job.exit_reason}\n"


def test_a_command_that_may_not_be_run(lab: Lab) -> None:
    (lab.work / "train.sh").write_text("#!/bin/sh\n")
    lab.start("./train.sh")
    job = lab.until("ended")
    assert job.exit_code == 126
    assert "Permission denied" in lab.log


def test_a_working_folder_that_is_gone(lab: Lab) -> None:
    lab.start("true", cwd=str(lab.work / "gone"))
    job = lab.until("ended")
    assert job.exit_code == 127
    assert job.exit_reason == f"could not start true in {lab.work}/gone: No such file or directory"


def test_a_log_that_cannot_be_written(lab: Lab) -> None:
    (lab.folder / "output.log").mkdir(parents=True)
    lab.start("true")
    job = lab.until("ended")
    assert job.exit_code == 126
    assert job.exit_reason.startswith("could not start true: its log ")


def test_a_folder_that_cannot_be_made_is_an_error_at_once(lab: Lab) -> None:
    lab.scheduler.folder.write_text("in the way")
    with pytest.raises(ActionFailed, match="could not start demo: "):
        lab.start("true")
    assert lab.job().state == "pending"


def test_a_word_that_no_process_can_be_given(lab: Lab) -> None:
    with pytest.raises(ActionFailed, match="null byte"):
        lab.start("true", environment={"A": "b\0c"})


# what it is told


def test_placeholders_are_filled_in(lab: Lab) -> None:
    words = ("echo", "--from={checkpoint}", "{step}", "{else}")
    lab.start(*words, resume="placeholder")
    lab.until("ended")
    assert lab.log == "--from=  {else}\n"
    lab.attempt = Attempt("demo", 2, lab.token + "b", resume_step=40, resume_path="/ck/a b{step}")
    lab.start(*words, resume="placeholder")
    lab.until("ended")
    assert lab.log == "--from=/ck/a b40 40 {else}\n"


def test_without_a_checkpoint_another_command_may_be_told(lab: Lab) -> None:
    lab.start("echo", "{checkpoint}", resume="placeholder", first_command=("echo", "first"))
    lab.until("ended")
    assert lab.log == "first\n"


def environment(lab: Lab, **spec: object) -> dict[str, str]:
    lab.start("env", **spec)
    assert lab.until("ended").exit_code == 0
    return dict(line.split("=", 1) for line in lab.log.splitlines() if "=" in line)


def test_the_environment_says_where_to_go_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERTOOLS_RESUME_FROM", "of another run around this one")
    monkeypatch.setenv("CLUSTERTOOLS_RESUME_STEP", "7")
    first = environment(lab, environment={"EXTRA": "e"})
    assert "CLUSTERTOOLS_RESUME_FROM" not in first
    assert "CLUSTERTOOLS_RESUME_STEP" not in first
    assert (first["CLUSTERTOOLS_RUN"], first["CLUSTERTOOLS_RESTART_COUNT"]) == ("demo", "0")
    assert (first["EXTRA"], first["PYTHONUNBUFFERED"], first["CLUSTERTOOLS_ATTEMPT"]) == ("e", "1", lab.token)

    lab.attempt = Attempt("demo", 2, lab.token + "b", resume_step=40, resume_path="/ck/40")
    second = environment(lab)
    assert (second["CLUSTERTOOLS_RESUME_FROM"], second["CLUSTERTOOLS_RESUME_STEP"]) == ("/ck/40", "40")
    assert second["CLUSTERTOOLS_RESTART_COUNT"] == "1"

    lab.attempt = dataclasses.replace(lab.attempt, token=lab.token + "c", number=3)
    third = environment(lab, resume_variable="RESUME")
    assert third["RESUME"] == "/ck/40"

    lab.attempt = dataclasses.replace(lab.attempt, token=lab.token + "d", number=4)
    assert "RESUME" not in environment(lab, resume="none")


def test_nobody_else_can_read_what_a_run_is_told_or_says(lab: Lab) -> None:
    old = os.umask(0)
    try:
        lab.sh("echo $SECRET; sleep 60", environment={"SECRET": "hf_topsecret"})
        lab.until("running")
    finally:
        os.umask(old)
    assert stat.S_IMODE(lab.scheduler.folder.stat().st_mode) == 0o700
    for path in lab.folder.iterdir():
        if path.name != "output.log":
            # not even root's backup gets a token out of it
            assert b"topsecret" not in path.read_bytes(), path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    until(lambda: lab.log == "hf_topsecret\n", "the command has it")


def test_what_left_folders_is_found_again(lab: Lab) -> None:
    assert lab.scheduler.found("demo") == ()
    lab.sh("exit 0")
    lab.until("ended")
    second = Attempt("demo", 2, "abc", started_at=time.time())
    lab.scheduler.submit(lab.spec, second)
    (lab.scheduler.folder / "demo" / "notes").mkdir()
    found = lab.scheduler.found("demo")
    assert [(a.run, a.number, a.token) for a in found] == [("demo", 1, lab.token), ("demo", 2, "abc")]
    assert abs(found[0].started_at - time.time()) < 60
    until(lambda: lab.scheduler.job(lab.spec, found).state == "ended", "the second has ended")


@pytest.mark.root
def test_the_exit_code_is_kept_on_a_full_disk(tmp_path: Path) -> None:
    script = """
    mount -t tmpfs -o size=256k none "$1" || exit 77
    mkdir "$1/x"
    cat > "$1/train" << END
    until [ -s $1/x/running.json ]; do sleep 0.01; done
    cat /dev/zero > $1/fill
    exit 6
END
    echo '{"command": ["sh", "'$1'/train"], "cwd": "", "log_path": "/dev/null"}' > "$1/x/spec.json"
    "$2" -I -m clustertools.schedulers.shim "$1/x"; cat "$1/x/exit.json"; umount "$1"
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 77, done.stderr
    assert json.loads(done.stdout)["returncode"] == 6, done.stderr


def test_a_note_that_cannot_be_written_costs_nothing(lab: Lab) -> None:
    (lab.folder / "running.json").mkdir(parents=True)
    lab.sh("until [ -e go ]; do sleep 0.02; done; exit 6")
    until((lab.folder / "claimed").exists, "a shim")
    (lab.work / "go").touch()
    until((lab.folder / "exit.json").exists, "the end")
    assert lab.job().exit_code == 6


def test_previews_are_what_a_person_reads() -> None:
    scheduler = LocalScheduler("/nowhere", "n1")
    run = Subject(run="my run")
    for kind in ("restart", "capture", "cancel", "drain"):
        assert "'my run'" in scheduler.preview(kind, run, {})
