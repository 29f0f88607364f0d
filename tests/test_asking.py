"""Mode `ask`, from the fault to the deed: what is asked where, whose word counts, and for how long."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import time

import pytest

from clustertools import policy
from clustertools.cli import main
from clustertools.delivery import Mail
from clustertools.model import Playbook, Step
from clustertools.sinks.slack import SlackSink
from clustertools.sinks.webhook import WebhookSink
from clustertools.store import Store
from tests.lab.service_stub import ServiceStub
from tests.lab.slack_stub import SlackStub
from tests.lab.watching import RESTART, WatchLab


@pytest.fixture
def slack():
    with SlackStub() as stub:
        yield stub


@pytest.fixture
def hook():
    with ServiceStub() as stub:
        yield stub


@pytest.fixture
def lab(tmp_path, slack, hook):
    team = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
    mail = Mail({"team": team, "hook": WebhookSink(name="hook", url=hook.url)})
    lab = WatchLab(tmp_path, mail=mail, run=True, mode="ask")
    lab.machine.time = time.time()  # the commands of people have the machine's clock
    return lab


@pytest.fixture
def say(lab, capsys):
    def run(*words):
        capsys.readouterr()
        code = main([*words, "--state", str(lab.folder)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def commands(lines):
    """The commands that messages tell people to type."""
    return [line.partition("waits for approval: ")[2].rstrip(")") for line in lines if "approval: " in line]


def rows(lab):
    return [r for r in lab.store.actions() if r.action.kind == "restart"]


def test_from_the_question_to_the_deed(lab, say, slack, hook):
    lab.machine.fault("JobStuck")
    lab.pass_(5)
    (first,) = slack.first_messages
    assert "not done: restart run big (waits for approval: clustertools approve " in first.text
    (event,) = hook.bodies
    (command,) = commands(event["lines"])
    # as a person pastes it
    program, *words = shlex.split(command)
    assert (program, words[0], len(words)) == ("clustertools", "approve", 2)
    lab.passes(3, 5)
    assert lab.runs.asked == []
    assert len(slack.messages) == 1  # asked once
    code, said = say(*words, "--by", "ada")
    assert (code, said.splitlines()[0]) == (0, "ada approved: restart run:big, on the next pass")
    lab.passes(2, 5)
    assert lab.runs.asked == ["cancel"]
    heard = [r.body["text"].splitlines()[0] for r in slack.replies(first)]
    assert any("ada approved: restart run:big" in line for line in heard)
    code, said = say(*words)
    assert code == 3
    assert "waits for approval" in said


def test_twice_is_said_to_be_so(lab, say):
    lab.machine.fault("JobStuck")
    lab.pass_(5)
    assert say("approve", "JobStuck:run:big", "--by", "ada")[0] == 0
    code, said = say("approve", "JobStuck:run:big", "--by", "bob")
    assert code == 3
    assert "cannot be approved: ada did so at " in said
    (row,) = rows(lab)
    assert row.approved_by == "ada"


def test_a_word_of_this_morning_does_not_count_this_evening(lab, say):
    lab.machine.fault("JobStuck")
    lab.pass_(5)
    say("pause", "8h", "--why", "roll-out")
    say("approve", "JobStuck:run:big", "--by", "ada")
    lab.pass_(5)
    (row,) = rows(lab)
    assert row.action.blocked.startswith("paused: roll-out")
    say("resume")
    lab.pass_(policy.APPROVAL_SECONDS + 10)
    (row,) = rows(lab)
    assert row.action.blocked.startswith("waits for approval: ")
    assert lab.runs.asked == []
    with lab.store.transaction():  # the machine's clock of this test is ahead of the real one
        assert lab.store.approve(row.action.id, "bob", lab.machine.time)
    lab.passes(2, 5)
    assert lab.runs.asked == ["cancel"]


def test_what_is_over_or_of_an_earlier_start_cannot_be_approved(lab, say):
    lab.machine.fault("JobStuck")
    lab.pass_(5)
    attempt = lab.store.attempts("big")[-1]
    with lab.store.transaction():
        lab.store.put_attempt(dataclasses.replace(attempt, end="1"))
        lab.store.put_attempt(dataclasses.replace(attempt, number=2, token="t2"))
    code, said = say("approve", rows(lab)[0].action.id)
    assert code == 3
    assert "it is about start 1 of the run, and start 2 has begun since" in said
    lab.pass_(5)  # asks about the second start
    assert say("approve", rows(lab)[-1].action.id)[0] == 0
    lab.machine.faults.clear()
    lab.pass_(5)
    for row in rows(lab):
        code, said = say("approve", row.action.id)
        assert code == 3
    assert "JobStuck:run:big is over" in said
    assert lab.runs.asked == []


def test_nobody_is_asked_about_what_another_guard_stops(lab, say):
    lab.machine.fault("JobStuck")
    lab.set(budgets=policy.Budgets(restarts_per_hour=0))
    lab.pass_(5)
    (row,) = rows(lab)
    assert row.action.blocked.startswith("budget: ")
    code, said = say("approve", row.action.id)
    assert code == 3
    assert "cannot be approved: budget: " in said


def test_what_is_asked_later_is_a_reply(lab, slack):
    """The playbook waits a minute before its first step: the message is out by then."""
    lab.watchdog.playbooks = (dataclasses.replace(RESTART, after_seconds=60.0),)
    lab.machine.fault("JobStuck")
    lab.passes(2, 20)
    (first,) = slack.first_messages
    assert "waits for approval" not in first.text
    lab.passes(4, 20)
    (reply,) = slack.replies(first)
    assert "may I restart run big?" in reply.body["text"]
    assert "waits for approval: clustertools approve " in reply.text


def test_what_was_asked_in_a_silence_is_asked_when_it_ends(lab, slack):
    with lab.store.transaction():
        lab.store.add_silence("Job*", lab.machine.time + 100, "ada", "why")
    lab.machine.fault("JobStuck")
    lab.passes(3, 30)
    assert slack.messages == []
    lab.passes(2, 30)
    (first,) = slack.first_messages
    assert "waits for approval: clustertools approve " in first.text


def test_the_name_of_a_job_cannot_speak_to_the_shell(lab):
    """Slurm lets anybody call a job anything, and people paste what they are told."""
    evil = "x'; echo owned >&2; echo ' $(echo owned >&2) `echo owned >&2` \" \\"
    action = policy.Action("JobHung:run:" + evil + "#1", "restart", policy.Subject(run=evil), "k", "b", "")
    world = policy.World(mode="ask", owned_runs=frozenset({evil}))
    said = policy._approval(action, Playbook("b", (), ""), world)
    command = said.removeprefix("waits for approval: ")
    script = f"clustertools() {{ printf '%s' \"$2\"; }}; {command}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (action.id, "")


def test_a_store_of_before_the_hour_counts_as_not_approved(tmp_path, monkeypatch):
    """An approval that was written down without its time is asked for again."""
    import clustertools.store as module

    path = tmp_path / "state.db"
    with monkeypatch.context() as before:
        before.setattr(module, "_MIGRATIONS", module._MIGRATIONS[:1])
        old = Store(path)
        old._db.execute(
            "INSERT INTO action (id, state, time, data, approved_by) VALUES ('a', 'blocked', 1, ?, 'ada')",
            ['{"id":"a","kind":"restart","target":{},"because":"k","playbook":"b","preview":""}'],
        )
        old.close()
    (row,) = Store(path).actions()
    assert row.approved_by == "ada"
    assert not policy.is_approved(row.approved_by, row.approved_at, 1e9)


def test_steps_that_only_look_ask_nobody(lab, slack):
    lab.watchdog.playbooks = (Playbook("b", ("JobStuck",), "text", steps=(Step("capture"), Step("restart"))),)
    lab.machine.fault("JobStuck")
    lab.passes(2, 5)
    states = {r.action.kind: r.state for r in lab.store.actions()}
    assert states["restart"] == "blocked"
    assert states["capture"] != "blocked"
