"""From a fault to what people read in Slack, over a real HTTP server on this machine that answers as Slack.

Most of it with real `clustertools watch --once` processes, as cron starts them; one from a line in the real
kernel log. What needs a reboot runs over a machine in memory, with the same store, outbox and sink.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from clustertools.check import discover
from clustertools.delivery import Mail
from clustertools.model import Playbook, Status, Step
from clustertools.policy import load_playbooks
from clustertools.sinks.slack import SlackSink
from clustertools.store import Store
from clustertools.watchdog import Settings, Watchdog
from tests.checks.kernel_node import Node
from tests.lab.site import Site
from tests.lab.slack_stub import Answer, SlackStub
from tests.lab.watching import Runs, WatchLab

RED, GREEN = "\N{LARGE RED CIRCLE}", "\N{LARGE GREEN CIRCLE}"


@pytest.fixture
def slack():
    with SlackStub() as stub:
        yield stub


class SlackSite(Site):
    """A site whose only sink is the stub, under the address that a relay or GovSlack would have."""

    def __init__(self, folder: Path, slack: SlackStub) -> None:
        self.slack = slack
        super().__init__(folder)

    def write_config(self, more: str, *, only: tuple[str, ...] = ("lab_fault",)) -> None:
        url = f"{self.slack.origin}/api"
        sink = f"{{kind: slack, channel: '#oncall', token_env: SLACK_TOKEN, url: '{url}'}}"
        super().write_config(f"{more}sinks:\n  team: {sink}\n", only=only)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(SLACK_TOKEN=self.slack.token, **more)

    def told(self) -> list[str]:
        return titles(self.slack)


def titles(slack: SlackStub) -> list[str]:
    """Every message in the order it came: its title without the time, replies with an arrow before them."""
    return [
        ("> " if m.thread_ts else "") + m.body["text"].splitlines()[0].rpartition(" · ")[0]
        for m in slack.messages
    ]  # fmt: skip


@pytest.fixture
def site(tmp_path, slack):
    return SlackSite(tmp_path, slack)


def node_name() -> str:
    return os.uname().nodename.split(".")[0]


# the whole chain


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(
    not (os.access("/dev/kmsg", os.W_OK) and os.geteuid() == 0), reason="writing to /dev/kmsg needs root"
)
def test_a_line_in_the_real_kernel_log_becomes_one_message(site, slack):
    """Xid 31, an application's fault, at an address that no machine has. Other lines may be there too."""
    site.write_config("", only=("gpu_xid",))
    with open("/dev/kmsg", "wb", buffering=0) as log:
        log.write(b"<4>NVRM: Xid (PCI:0000:ff:1d): 31, pid=4242, name=clustertools-test, Ch 00000001\n")

    def mine():
        return [m for m in slack.messages if "0000:ff:1d" in m.text]

    site.watch("--once")
    (first,) = mine()
    assert not first.thread_ts
    assert "XidMmuFault" in first.text or "Xid 31" in first.text
    assert "NVRM: Xid (PCI:0000:ff:1d): 31, pid=4242" in first.text
    key = next(k for k in Store(site.state / "state.db", read_only=True).incidents() if "ff:1d" in k)
    assert f"clustertools show {key}" in first.text
    site.watch("--once")
    assert mine() == [first]
    shown = site.run("show", key)
    assert shown.returncode == 1
    assert "name=clustertools-test" in shown.stdout


def test_from_a_lost_gpu_to_a_green_message(slack, tmp_path):
    """Xid 79: one message, the outcome as a reply; after the reboot the message turns green, and a reply."""
    node = Node("0000:3b:00.0")
    check = discover(site_folders=())["gpu_xid"]
    sink = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
    store = Store(tmp_path / "state.db")
    (book,) = [b for b in load_playbooks(()) if "XidGpuLost" in b.codes]
    watchdog = Watchdog(
        store, node, Runs(), [dataclasses.replace(check, interval_seconds=0.0)], playbooks=[book],
        mail=Mail({"team": sink}), settings=Settings(cluster="alps"), evidence_folder=tmp_path / "evidence",
    )  # fmt: skip
    watchdog.once()
    assert slack.messages == []
    node.xid(79, "GPU has fallen off the bus.")
    watchdog.once()
    (first,) = slack.first_messages
    assert first.body["text"].startswith(f"{RED} CRITICAL gpu-001 · ")
    assert "not done: drain gpu-001 (drain is not possible here)" in first.text
    assert "runbook: " in first.text
    assert "NVRM: Xid (PCI:0000:3b:00): 79" in first.text
    (reply,) = slack.replies(first)
    assert reply.body["text"].startswith("DONE collect evidence from gpu-001")
    node.seconds += 60
    watchdog.once()
    assert len(slack.messages) == 2
    node.reboot()
    watchdog.once()
    assert first.edits == 1
    assert first.body["text"].startswith(f"{GREEN} RESOLVED gpu-001 · ")
    assert [r.body["text"].split(" ")[1] for r in slack.replies(first)] == ["collect", "RESOLVED"]
    assert len(slack.first_messages) == 1
    store.close()


def test_a_restart_is_told_in_the_thread_of_the_hang(slack, tmp_path):
    sink = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
    lab = WatchLab(tmp_path, mail=Mail({"team": sink}), run=True, mode="act")
    lab.machine.fault("JobStuck")
    lab.pass_()
    lab.machine.faults.clear()
    lab.passes(5)
    attempt = lab.store.attempts("big")[-1]
    with lab.store.transaction():
        lab.store.put_attempt(dataclasses.replace(attempt, first_step=1, last_step=3))
    lab.pass_()
    assert titles(slack) == [
        f"{GREEN} RESOLVED run big · the run is stuck",
        f"> {GREEN} RESOLVED run big · the run is stuck",
        "> DONE restart run big",
    ]


def test_a_root_and_its_symptoms_are_one_thread(slack, tmp_path):
    """The run that hangs because its node lost a GPU: its restart is told where the GPU was."""
    sink = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url)
    lab = WatchLab(tmp_path, mail=Mail({"team": sink}), run=True, mode="act")
    root = Playbook("root", ("GpuLost",), "text", explains=("JobStuck",))
    lab.watchdog.playbooks = (root, Playbook("again", ("JobStuck",), "text", steps=(Step("restart"),)))
    lab.machine.fault("GpuLost")
    lab.machine.fault("JobStuck")
    lab.runs.breaks = RuntimeError("no")
    lab.passes(6)
    (first,) = slack.first_messages
    assert "explains: run big · the run is stuck (JobStuck)" in first.text
    assert [r.body["text"].splitlines()[0].split(" · ")[0] for r in slack.replies(first)] == [
        "FAILED restart run big"
    ]


# processes, as cron starts them


@pytest.mark.slow
def test_the_life_of_an_incident_over_processes(site, slack):
    site.fault("LabWarning link@1 the link flaps")
    assert site.watch("--once").returncode == 1
    site.fault("LabWarning link@1 the link flaps more")
    site.watch("--once")
    assert len(slack.messages) == 1
    site.run("ack", "LabWarning", "--for", "2h", "--by", "ada")
    site.watch("--once")
    (first,) = slack.first_messages
    assert [r.body["text"].split(" until ")[0] for r in slack.replies(first)] == [
        f"\N{LARGE YELLOW CIRCLE} LabWarning {node_name()}/link@1 · ada has it"
    ]
    site.fault()
    assert site.watch("--once").returncode == 0
    assert first.edits == 1
    assert first.body["text"].startswith(f"{GREEN} RESOLVED {node_name()} · the link flaps more")
    site.fault("LabWarning link@1 the link flaps again")
    site.watch("--once")
    assert len(slack.first_messages) == 1  # within the flap window: the same story
    assert first.edits == 2
    assert "again: the link flaps again" in first.body["text"]


@pytest.mark.slow
def test_what_a_person_ends_is_told_with_their_name(site, slack):
    site.fault("LabManual - the fan is broken")
    site.watch("--once")
    site.run("resolve", "LabManual", "--why", "fan <replaced>", "--by", "ada")
    assert "resolved" not in site.watch("--once").stdout  # its check still reports it
    site.fault()
    assert site.watch("--once").returncode == 0
    assert site.run("status").returncode == 2
    site.run("resolve", "LabManual", "--why", "fan <replaced>", "--by", "ada")
    assert "resolved LabManual" in site.watch("--once").stdout
    (first,) = slack.first_messages
    said = [r.body["text"] for r in slack.replies(first)]
    assert said[1].endswith("ada says that it is over: fan &lt;replaced&gt;")
    assert first.body["text"].startswith(f"{GREEN} RESOLVED")
    assert site.run("status").returncode == 0


@pytest.mark.slow
def test_retry_after_holds_over_processes(site, slack):
    """Slack asks for 15 s, longer than our own first wait; until then no process asks, not even with news."""
    site.fault("LabFault a first")
    slack.script.append(Answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "15"}))
    began = time.time()
    done = site.watch("--once")
    refused = time.time()
    assert "team: Slack asked us to slow down; next try in 15 s" in done.stdout
    site.fault("LabFault a first", "LabFault b second")
    for later in (0.0, 6.5):
        time.sleep(max(0.0, began + later - time.time()))
        site.watch("--once")
        assert time.time() < began + 15
        assert len(slack.requests) == 1
    time.sleep(max(0.0, refused + 15.1 - time.time()))
    site.watch("--once")
    assert [t.split(" · ")[1] for t in site.told()] == ["first", "second"]


@pytest.mark.slow
def test_slack_is_down_for_a_while_and_comes_back(site, slack):
    """Nothing lost, nothing doubled, each story in its order, and the exit code tells of the machine only."""
    down = Answer(503, "<html>no</html>")
    slack.script.extend([down] * 50)
    site.fault("LabFault a first")
    assert site.watch("--once").returncode == 2
    site.fault("LabFault a first", "LabFault b second", "LabWarning c third")
    assert site.watch("--once").returncode == 2
    site.fault("LabFault b second")
    assert site.watch("--once").returncode == 2
    assert slack.messages == []
    slack.script.clear()
    said = []
    for _ in range(40):
        said.append(site.watch("--once").stdout)
        if len(slack.messages) == 5:
            break
        time.sleep(0.5)
    told = [t.split(" · ")[1] for t in site.told()]
    # the resolved ones were edited into their first messages; each has its reply too
    assert sorted(told) == ["first", "first", "second", "third", "third"]
    assert told.index("first") < told.index("second")
    assert len(slack.first_messages) == 3
    for first in slack.first_messages:
        over = first.body["text"].split(" · ")[1] in ("first", "third")
        assert (first.edits, len(slack.replies(first))) == ((1, 1) if over else (0, 0))
    before = len(slack.requests)
    site.watch("--once")
    assert len(slack.requests) == before


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True])
def test_killed_between_the_post_and_the_commit_it_tells_once_more_at_most(site, slack, answered):
    """kill -9 while Slack has the message and we have no answer; or just before Slack has it."""
    posted = threading.Event()
    answer = slack.answer

    def slow(path, authorization, body):
        given = answer(path, authorization, body) if answered else Answer(500, "")
        posted.set()
        return dataclasses.replace(given, wait_seconds=60)

    slack.answer = slow
    site.fault("LabFault a it broke")
    process = site.start("watch", "--once")
    assert posted.wait(20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    slack.released.set()
    slack.answer = answer
    for _ in range(3):
        assert site.watch("--once").returncode == 2
    assert len(slack.messages) == (2 if answered else 1)
    ids = {m.body["metadata"]["event_payload"]["delivery"] for m in slack.messages}
    assert len(ids) == 1  # both copies say that they are the same
    site.fault()
    site.watch("--once")
    last = slack.first_messages[-1]
    assert last.body["text"].startswith(GREEN)
    assert len(slack.replies(last)) == 1


@pytest.mark.slow
def test_what_a_log_says_cannot_write_slack_markup(site, slack):
    site.fault(
        "LabFault gpu@0000:3b:00.0 <!channel> <@U1> *bold* `code` \x1b[31mred\x1b[0m & <http://x|click>"
    )
    site.watch("--once")
    (first,) = slack.messages
    assert "&lt;!channel&gt; &lt;@U1&gt;" in first.body["text"]
    assert "<!channel>" not in str(first.body)
    assert "\x1b" not in str(first.body)


@pytest.mark.slow
def test_a_silence_keeps_slack_quiet_and_pays_afterwards(site, slack):
    site.fault("LabWarning other@1 something else")
    site.watch("--once")
    site.run("silence", "LabFault:*", "--for", "1h", "--why", "known")
    site.fault("LabFault a it broke")
    site.watch("--once")
    assert not any("it broke" in m.text for m in slack.messages)
    site.run("silence", "LabFault:*", "--end")
    site.watch("--once")
    assert sum("it broke" in m.text for m in slack.messages) == 1


@pytest.mark.slow
def test_a_sink_that_hears_only_the_worst(site, slack):
    site.config.write_text(
        site.config.read_text().replace("{kind: slack,", "{kind: slack, min_status: CRITICAL,")
    )
    site.fault("LabWarning a a little", "LabFault b a lot")
    site.watch("--once")
    site.fault()
    site.watch("--once")
    assert {m.body["text"].split(" · ")[1] for m in slack.messages} == {"a lot"}
    assert Status.CRITICAL.name not in slack.first_messages[0].body["text"]
