"""What the person on call types: `status`, `show`, `timeline`, and the marks that people make."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clustertools.cli import main, oncall
from clustertools.model import Attempt, Status
from clustertools.store import Store
from tests.lab.watching import SPEC, WatchLab


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A watchdog whose state is the one that the commands find; its clock is the real one."""
    monkeypatch.setenv("CLUSTERTOOLS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CLUSTERTOOLS_ETC", str(tmp_path / "etc"))
    for name in ("CLUSTERTOOLS_CONFIG", "COLUMNS", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "state").mkdir()
    lab = WatchLab(tmp_path / "state", run=True)
    lab.machine.time = time.time() - 60
    yield lab
    lab.store.close()


@pytest.fixture
def say(capsys):
    """`say("status")`: (exit code, lines on stdout, text on stderr) of a command line."""

    def run(*words: str):
        code = main(list(words))
        done = capsys.readouterr()
        return code, done.out.splitlines(), done.err

    return run


def records(lines, kind=""):
    found = [json.loads(line) for line in lines]
    assert all(r["schema"] == 1 for r in found)
    return [r for r in found if not kind or r["kind"] == kind]


def hosts(lab, *names, code="LinkDown"):
    """The same fault on other nodes, as a watchdog of many would keep it."""
    before = lab.store.incidents()
    one = before[f"{code}:n1"]
    more = {}
    for name in names:
        finding = dataclasses.replace(
            one.finding, subject=dataclasses.replace(one.finding.subject, node=name)
        )
        more[finding.key] = dataclasses.replace(one, finding=finding)
    with lab.store.transaction():
        lab.store.save_incidents(before, {**before, **more})


# status


def test_all_is_well(lab, say):
    lab.pass_()
    code, lines, err = say("status")
    assert code == 0
    assert lines[0].startswith("this machine: last pass 30 s ago")
    assert lines[1:] == ["  OK no open incident"]
    assert err == ""


@pytest.mark.parametrize(
    ("faults", "blind", "code"),
    [
        ([("LinkDown", Status.WARNING)], "", 1),
        ([("LinkDown", Status.WARNING), ("GpuLost", Status.CRITICAL)], "", 2),
        ([], "hangs", 3),
        ([("LinkDown", Status.WARNING)], "hangs", 3),
        ([("GpuLost", Status.CRITICAL)], "hangs", 2),
    ],
)
def test_the_exit_code_is_the_worst_and_blindness_is_unknown(lab, say, faults, blind, code):
    for name, status in faults:
        lab.machine.fault(name, status=status)
    lab.pass_()
    lab.machine.blind = blind
    lab.passes(1, 5.0)
    assert say("status")[0] == code


def test_what_is_silenced_does_not_count_and_is_still_shown(lab, say):
    lab.machine.fault("GpuLost")
    lab.machine.fault("LinkDown", status=Status.WARNING)
    lab.pass_()
    assert say("silence", "Gpu*", "--for", "1h", "--why", "known", "--by", "ada")[0] == 0
    code, lines, _ = say("status")
    assert code == 1
    assert any(line.startswith("  silent about Gpu* until ") and "known (ada)" in line for line in lines)
    assert "           [silenced]" in lines
    assert any(line.startswith("  CRITICAL GpuLost:n1") for line in lines)


def test_who_has_it_is_shown_and_it_still_counts(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    say("ack", "GpuLost:n1", "--by", "ada")
    code, lines, _ = say("status")
    assert code == 2
    assert any("[ada has it until " in line for line in lines)


def test_a_watchdog_that_stopped_looking_is_unknown(lab, say):
    lab.machine.time = time.time() - 7200
    lab.pass_()
    code, lines, _ = say("status")
    assert code == 3
    assert any("nobody looked for 1 h 59 m: is the watchdog running?" in line for line in lines)
    assert not any("OK" in line for line in lines)


def test_a_run_that_has_ended_needs_no_watchdog(lab, say):
    folder = lab.folder / "runs" / "demo"
    folder.mkdir(parents=True)
    run = Store(folder / "state.db")
    with run.transaction():
        run.put_attempt(Attempt("demo", 1, "t", ended_at=1.0, end="exit code 0"))
        run.put_cursor("heartbeat", "", {"at": 1.0, "blind": ["x"]})
    run.close()
    lab.pass_()
    code, lines, _ = say("status")
    assert code == 0
    assert any(line.startswith("run demo: last pass ") for line in lines)


def test_many_nodes_are_one_line(lab, say):
    lab.machine.fault("LinkDown")
    lab.pass_()
    hosts(lab, *(f"gpu-{n:03d}" for n in range(1, 32)), "gpu-040")
    say("ack", "LinkDown:gpu-007", "--by", "ada")
    _, lines, _ = say("status")
    (line,) = [x for x in lines if "times" in x]
    assert line.startswith("  CRITICAL LinkDown  gpu-[001-006,008-031,040],n1  32 times, ")
    assert any(x.startswith("  CRITICAL LinkDown:gpu-007") for x in lines)  # the one that ada has


@pytest.mark.parametrize("words", [("status",), ("show", "Gpu"), ("timeline",)])
def test_eighty_columns(lab, say, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    lab.machine.fault("GpuLost", "gpu@0000:3b:00.0", text="one two three " * 20)
    lab.pass_()
    say("ack", "Gpu", "--by", "somebody with a long name")
    lines = say(*words)[1]
    wide = [x for x in lines if len(x) > 80 and not x.startswith("  | ")]
    assert [x for x in wide if " " in x.strip()[:60] and "gpu@" not in x] == []
    assert sum("one two three" in x for x in lines) > 1


def test_without_a_terminal_nothing_is_wrapped(lab, say):
    lab.machine.fault("GpuLost", text="one two three " * 20)
    lab.pass_()
    assert any(len(x) > 250 for x in say("status")[1])


HOSTILE = "bad \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \u202etxet \x00 end"


@pytest.mark.parametrize("words", [("status",), ("status", "--all"), ("show", "GpuLost"), ("timeline",)])
def test_what_a_log_says_cannot_move_the_cursor(lab, say, words):
    lab.machine.fault("GpuLost", "gpu@\x1b[2J", text=HOSTILE)
    lab.pass_()
    _, lines, err = say(*words)
    text = "\n".join(lines) + err
    assert "bad red" in text
    assert not [c for c in text if c != "\n" and not c.isprintable()]


def test_names_in_errors_cannot_either(lab, say):
    lab.machine.fault("GpuLost", "\x1b[2Ja")
    lab.machine.fault("GpuLost", "\x1b[2Jb")
    lab.pass_()
    code, _, err = say("show", "GpuLost")
    assert code == 3
    assert "is not one incident" in err
    assert "\x1b" not in err


def test_status_as_json(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    say("silence", "Gpu*", "--why", "known")
    code, lines, _ = say("status", "--json")
    (watched,) = records(lines, "watched")
    (incident,) = records(lines, "incident")
    assert (watched["status"], watched["run"], watched["blind"], watched["stale"]) == ("OK", "", [], "")
    assert watched["silences"][0]["pattern"] == "Gpu*"
    assert (incident["key"], incident["silenced"], incident["state"]) == ("GpuLost:n1", True, "open")
    assert code == 0


# reading what others write and own


def test_no_state_at_all(lab, say, monkeypatch, tmp_path):
    monkeypatch.setenv("CLUSTERTOOLS_STATE", str(tmp_path / "nowhere"))
    for words in (("status",), ("show", "X"), ("timeline",), ("ack", "X"), ("restart", "x"), ("pause",)):
        code, lines, err = say(*words)
        assert (code, lines) == (3, [])
        assert f"no watchdog has kept state in {tmp_path / 'nowhere'}: start `clustertools watch`" in err


def test_the_systems_state_is_found_by_another_user(lab, say, monkeypatch, tmp_path):
    lab.machine.fault("GpuLost")
    lab.pass_()
    monkeypatch.delenv("CLUSTERTOOLS_STATE")
    monkeypatch.setattr(oncall, "SYSTEM_STATE", lab.folder)
    monkeypatch.setattr(oncall, "state_folder", lambda given, config: tmp_path / "home")
    assert say("status")[0] == 2


def test_a_wrong_config_does_not_hide_the_state_that_is_named(lab, say, monkeypatch, tmp_path):
    lab.machine.fault("GpuLost")
    lab.pass_()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "config.yaml").write_text("policy: {mode: perhaps}\n")
    assert say("status")[0] == 2
    monkeypatch.delenv("CLUSTERTOOLS_STATE")
    code, _, err = say("status")
    assert code == 3
    assert "policy.mode: expected one of" in err
    assert "--state names the folder" in err
    assert say("status", "--state", str(lab.folder))[0] == 2


def test_while_a_watchdog_writes(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    lab.store._db.execute("BEGIN IMMEDIATE")
    try:
        assert say("status")[0] == 2
        assert say("show", "GpuLost")[0] == 2
        assert say("timeline")[0] == 0
    finally:
        lab.store._db.execute("ROLLBACK")


AS_NOBODY = """
import os, sys
import clustertools.cli.oncall  # the interpreter itself may lie where nobody may look
from clustertools.cli import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def as_nobody(*words: str, state: Path):
    environment = {**os.environ, "CLUSTERTOOLS_STATE": str(state)}
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *words], env=environment, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip


@pytest.fixture
def public(lab):
    """The state in a folder that everybody may enter, as an administrator may have set it up."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    lab.machine.fault("GpuLost")
    lab.pass_()
    folder = Path("/tmp") / f"ct-oncall-{os.getpid()}-{time.monotonic_ns()}"
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("running", [True, False])
def test_what_another_user_owns_can_be_read_if_they_let_us(lab, public, running):
    if running:  # with its write-ahead log, as while the watchdog lives
        shutil.copytree(lab.folder, public)
        live = Store(public / "state.db")
        live.put_cursor("x", "", {})
    else:
        lab.store.close()
        shutil.copytree(lab.folder, public)
        assert not (public / "state.db-wal").exists()
    public.chmod(0o755)
    for path in public.glob("state.db*"):
        path.chmod(0o644)
    done = as_nobody("status", state=public)
    assert (done.returncode, done.stderr) == (2, "")
    assert "CRITICAL GpuLost:n1" in done.stdout
    done = as_nobody("ack", "GpuLost", state=public)
    assert done.returncode == 3
    assert "cannot" in done.stderr
    assert "check the owner" in done.stderr
    if running:
        live.close()


@pytest.mark.root
def test_what_another_user_keeps_private_is_said_so(lab, public):
    shutil.copytree(lab.folder, public)
    public.chmod(0o755)
    done = as_nobody("status", state=public)
    assert done.returncode == 3
    assert "no state can be read here; ask as the user that the watchdog runs as" in done.stderr
    public.chmod(0o700)
    done = as_nobody("status", state=public)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_one_store_that_is_damaged_does_not_hide_the_others(lab, say):
    lab.pass_()
    folder = lab.folder / "runs" / "broken"
    folder.mkdir(parents=True)
    (folder / "state.db").write_bytes(b"this is no database, it is a text" * 100)
    code, lines, err = say("status")
    assert code == 3
    assert lines[0].startswith("this machine: ")
    assert "it is damaged: move it aside" in err


# show


def test_show_by_the_beginning_of_a_key(lab, say):
    lab.machine.fault("GpuLost", "gpu@0000:3b:00.0")
    lab.machine.fault("LinkDown", "mlx5_0/1")
    lab.machine.fault("LinkDown", "mlx5_1/1")
    lab.pass_()
    code, lines, _ = say("show", "Gpu")
    assert code == 2
    assert lines[0] == "CRITICAL GpuLost:n1/gpu@0000:3b:00.0"
    assert "  | GpuLost it is" in lines
    assert say("show", "LinkDown:n1/mlx5_0/1")[0] == 2
    code, lines, err = say("show", "LinkDown")
    assert (code, lines) == (3, [])
    assert "'LinkDown' is not one incident: LinkDown:n1/mlx5_0/1, LinkDown:n1/mlx5_1/1" in err
    assert "there is no incident 'Fan'" in say("show", "Fan")[2]


def test_show_what_is_over_is_no_alarm(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_()
    code, lines, _ = say("show", "GpuLost")
    assert code == 0
    assert lines[2].startswith("  resolved; first seen ")
    assert say("status")[1][1:] == ["  OK no open incident"]
    assert any("resolved GpuLost:n1" in x for x in say("status", "--all")[1])


def test_show_as_json(lab, say):
    lab.machine.fault("GpuLost")
    lab.machine.fault("JobStuck")
    lab.pass_()
    code, lines, _ = say("show", "JobStuck", "--json")
    incident, action = records(lines)
    assert (incident["kind"], incident["key"], code) == ("incident", "JobStuck:run:big", 2)
    assert (action["kind"], action["state"]) == ("action", "blocked")
    assert action["action"]["blocked"] == "observe mode"
    (incident,) = records(say("show", "GpuLost", "--json")[1])
    assert incident["playbook"]
    assert "Look at:" in incident["runbook"]


# timeline


def test_the_timeline_of_a_run_and_of_a_node(lab, say):
    lab.machine.fault("JobStuck")
    lab.machine.fault("GpuLost")
    lab.pass_()
    code, lines, _ = say("timeline", "big")
    assert code == 0
    text = "\n".join(lines)
    assert "start     attempt 1" not in text  # it began long before
    assert "opened    CRITICAL JobStuck run:big: the run is stuck" in text
    assert "blocked   would restart run:big: observe mode" in text
    assert "GpuLost" not in text
    node = "\n".join(say("timeline", "n1")[1])
    assert "GpuLost n1" in node
    assert "JobStuck" in node  # its finding names the node
    assert say("timeline", "run:big")[1] == lines


def test_a_timeline_of_nothing(lab, say):
    lab.pass_()
    code, lines, err = say("timeline", "n1", "--since", "1h")
    assert (code, lines) == (0, [])
    assert "nothing happened to n1 in that time" in err
    code, _, err = say("timeline", "n2")
    assert code == 3
    assert "there is no run or node 'n2'; there is big, n1" in err


def test_the_timeline_as_json(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    say("ack", "GpuLost", "--by", "ada")
    found = records(say("timeline", "--json")[1], "event")
    assert [r["event"] for r in found] == ["opened", "ack"]
    assert found[1]["text"].startswith("ada has it until ")


# marks


def test_an_acknowledgement(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    code, lines, _ = say("ack", "Gpu", "--for", "1h30m", "--by", "ada")
    assert code == 0
    assert lines[0].startswith("GpuLost:n1: ada has it until ")
    kept = lab.store.incidents()["GpuLost:n1"]
    assert kept.acknowledged_by == "ada"
    assert 5300 < kept.acknowledged_until - time.time() <= 5400
    assert "people" in say("show", "Gpu")[1]
    say("ack", "Gpu", "--for", "0s", "--by", "ada")
    lab.machine.time = time.time()
    lab.pass_(1.0)
    assert lab.store.incidents()["GpuLost:n1"].acknowledged_by == ""


def test_several_at_once_and_by_the_person_behind_sudo(lab, say, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "grace")
    lab.machine.fault("GpuLost")
    lab.machine.fault("LinkDown")
    lab.pass_()
    (first, second) = records(say("ack", "Gpu", "Link", "--json")[1], "ack")
    assert (first["key"], second["key"], first["by"]) == ("GpuLost:n1", "LinkDown:n1", "grace")


def test_what_is_over_cannot_be_acknowledged(lab, say):
    lab.machine.fault("GpuLost")
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_()
    code, _, err = say("ack", "GpuLost")
    assert code == 3
    assert "GpuLost:n1 is resolved, not open" in err


def test_a_silence_and_its_end(lab, say):
    lab.machine.fault("LinkDown")
    lab.pass_()
    assert say("silence", "Link*")[0] == 3  # why?
    code, lines, _ = say("silence", "Link*", "--for", "2h", "--why", "cable on order", "--by", "ada")
    assert code == 0
    assert lines[0].endswith(": cable on order (1 open now)")
    assert [s.pattern for s in lab.store.silences(time.time())] == ["Link*"]
    assert say("silence", "Nope*", "--end")[0] == 3
    assert say("silence", "Link*", "--end")[0] == 0
    assert lab.store.silences(time.time()) == []


def test_pause_and_resume(lab, say):
    lab.pass_()
    assert say("pause", "5")[0] == 3
    code, lines, _ = say("pause", "2h", "--why", "roll-out", "--by", "ada")
    assert code == 0
    assert lines[0].endswith("roll-out (ada)")
    assert lab.store.cursor("pause")["why"] == "roll-out (ada)"
    assert any(line.startswith("  paused until ") for line in say("status")[1])
    assert say("resume")[0] == 0
    assert lab.store.cursor("pause") == {}
    assert not any("paused" in line for line in say("status")[1])
    assert [e["event"] for e in records(say("timeline", "--json")[1])] == ["pause", "unpause"]


def test_a_pause_by_the_file_is_shown_and_not_ended_by_resume(lab, say):
    lab.set(pause_file="/pause")
    lab.machine.files["/pause"] = ""
    lab.pass_()
    assert "  paused, nothing is done: /pause exists" in say("status")[1]
    code, _, err = say("resume")
    assert code == 0
    assert "this machine was paused on its last pass: /pause exists" in err


def asked(lab):
    """A restart that waits for approval."""
    lab.watchdog.specs = [SPEC]
    lab.set(mode="ask")
    lab.machine.fault("JobStuck")
    lab.pass_()
    (row,) = lab.store.actions()
    assert row.action.blocked == f"waits for approval: clustertools approve '{row.action.id}'"
    return row.action.id


@pytest.mark.parametrize("by", ["id", "start", "key"])
def test_approve_and_the_next_pass_does_it(lab, say, by):
    id_ = asked(lab)
    word = {"id": id_, "start": id_[:20], "key": "JobStuck:run:big"}[by]
    lab.pass_(5.0)
    assert lab.runs.asked == []
    code, lines, _ = say("approve", word, "--by", "ada")
    assert (code, lines) == (0, ["ada approved: restart run:big, on the next pass"])
    lab.passes(2, 5.0)
    assert lab.runs.asked == ["cancel"]
    row = next(r for r in lab.store.actions() if r.action.kind == "restart")
    assert (row.state, row.approved_by) == ("running", "ada")
    shown = "\n".join(say("show", "JobStuck")[1])
    assert "restart run:big: running, approved by ada" in shown
    assert "ada approved: restart run:big" in shown


def test_whoever_has_it_may_approve_it(lab, say):
    """Taken by a person it is left alone; what that very person asks for is done."""
    id_ = asked(lab)
    say("ack", "JobStuck", "--by", "ada")
    lab.machine.time = time.time()
    lab.pass_(5.0)
    assert lab.runs.asked == []
    say("approve", id_[:20], "--by", "ada")
    lab.passes(2, 5.0)
    assert lab.runs.asked == ["cancel"]


def test_what_cannot_be_approved(lab, say):
    code, _, err = (lab.pass_(), say("approve", "nope"))[1]
    assert code == 3
    assert "no action 'nope' waits for approval; there is none" in err
    id_ = asked(lab)
    lab.set(mode="observe")
    lab.pass_(5.0)
    code, _, err = say("approve", id_)
    assert code == 3
    assert "cannot be approved: observe mode" in err
    lab.set(mode="ask")
    lab.pass_(5.0)
    lab.machine.faults.clear()
    lab.pass_(5.0)
    code, _, err = say("approve", id_)
    assert code == 3
    assert "JobStuck:run:big is over; nothing is done about it any more" in err


def test_approved_and_paused_waits_for_the_end_of_the_pause(lab, say):
    id_ = asked(lab)
    say("approve", id_)
    say("pause", "1h")
    lab.machine.time = time.time()
    lab.passes(2, 5.0)
    assert lab.runs.asked == []
    say("resume")
    lab.passes(2, 5.0)
    assert lab.runs.asked == ["cancel"]


def test_a_restart_by_a_person_is_done_although_it_only_observes(lab, say):
    lab.pass_()
    code, lines, _ = say("restart", "big", "--by", "ada")
    assert (code, lines) == (0, ["big will be restarted on its watchdog's next pass"])
    code, _, err = say("restart", "big")
    assert code == 3
    assert "a restart of big is already under way" in err
    lab.passes(3, 5.0)
    assert lab.runs.asked[0] == "cancel"
    row = next(r for r in lab.store.actions() if r.action.kind == "restart")
    assert row.action.because == "asked by a person (ada)"
    assert "there is no run 'small'; there is big" in say("restart", "small")[2]


def test_a_mark_that_another_writer_holds_up_is_an_error_in_words(lab, say, monkeypatch):
    lab.machine.fault("GpuLost")
    lab.pass_()
    monkeypatch.setattr("clustertools.store.WAIT_SECONDS", 0.05)
    lab.store._db.execute("BEGIN IMMEDIATE")
    code, _, err = say("ack", "GpuLost")
    lab.store._db.execute("ROLLBACK")
    assert code == 3
    assert "another watchdog or command holds it" in err


def test_stacks_of_what_is_no_run(lab, say):
    lab.pass_()
    code, _, err = say("stacks", "nope")
    assert code == 3
    assert "'nope' is neither a process id nor a run in " in err
