"""Who is told what, over whole passes: storms that are one story, reminders, routes, and standing sinks."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.delivery import JOIN_SECONDS, Mail
from clustertools.errors import DeliveryFailed
from clustertools.model import Status
from clustertools.sinks import SinkRule
from clustertools.sinks.alertmanager import AlertmanagerSink
from clustertools.sinks.deadman import DeadManSink
from clustertools.sinks.message import KINDS
from clustertools.sinks.pagerduty import PagerDutySink
from clustertools.sinks.secret import Secret
from clustertools.sinks.slack import SlackSink
from tests.lab.service_stub import Answer, ServiceStub
from tests.lab.slack_stub import SlackStub
from tests.lab.watching import Machine, WatchLab, check_of

GREEN, RED = "\N{LARGE GREEN CIRCLE}", "\N{LARGE RED CIRCLE}"


@pytest.fixture
def slack():
    with SlackStub() as stub:
        yield stub


@pytest.fixture
def service():
    with ServiceStub() as stub:
        yield stub


def slack_mail(slack, **rule):
    sink = SlackSink("C1", token_env="T", environ={"T": slack.token}, base_url=slack.base_url, burst=0)
    return Mail({"team": sink}, {"team": SinkRule(**rule)} if rule else {})


def pager_mail(service, **rule):
    key = Secret("routing key", "", "K", {"K": "k" * 32})
    return Mail({"pager": PagerDutySink(key, name="pager", url=service.url)}, {"pager": SinkRule(**rule)})


class Storm(WatchLab):
    """Thirty-one parts with one code each: what a switch that dies looks like."""

    def lose(self, numbers, code="LinkDown"):
        for n in numbers:
            self.machine.fault(code, f"port@{n}", text="the link is down")

    def mend(self, numbers, code="LinkDown"):
        for n in numbers:
            del self.machine.faults[code, f"port@{n}"]


def heads(stub):
    return [m.body["text"].splitlines()[0].rpartition(" · ")[0] for m in stub.first_messages]


def test_a_storm_in_one_pass_is_one_message(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack))
    lab.lose(range(31))
    lab.pass_()
    assert heads(slack) == [f"{RED} CRITICAL 31 incidents on n1 · the link is down"]
    assert len(slack.messages) == 1


def test_a_storm_over_several_passes_is_one_thread(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack))
    for lost in (range(1), range(1, 12), range(12, 25), range(25, 31)):
        lab.lose(lost)
        lab.pass_()
    assert heads(slack) == [f"{RED} CRITICAL 31 LinkDown · the link is down"]
    (first,) = slack.first_messages
    assert "31 of 31 are open" in first.text
    assert len(slack.replies(first)) == 3
    lab.mend(range(20))
    lab.pass_()
    assert heads(slack) == [f"{RED} CRITICAL 11 of 31 LinkDown · the link is down"]
    lab.mend(range(20, 31))
    lab.pass_()
    assert heads(slack) == [f"{GREEN} RESOLVED all 31 LinkDown · the link is down"]
    assert len(slack.replies(first)) == 5


def test_two_are_no_storm_and_what_is_worse_has_its_own_message(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack))
    lab.machine.fault("LinkDown", "port@0", status=Status.WARNING)
    lab.pass_()
    lab.machine.fault("LinkDown", "port@1", status=Status.WARNING)
    lab.pass_()
    assert len(slack.first_messages) == 2
    lab.lose([2])  # CRITICAL
    lab.pass_()
    assert len(slack.first_messages) == 3
    lab.machine.fault("LinkDown", "port@3", status=Status.WARNING)
    lab.lose([4])
    lab.pass_()
    assert len(slack.first_messages) == 3
    assert "3 of 3 are open" in slack.first_messages[-1].text


def test_what_comes_much_later_is_another_story(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack))
    lab.lose(range(3))
    lab.pass_()
    lab.lose(range(3, 6))
    lab.pass_(JOIN_SECONDS)
    assert len(slack.first_messages) == 2


def test_a_storm_that_slack_hears_of_late_is_still_one_thread(slack, tmp_path):
    """Slack is down for all of it: opening, more openings and some recoveries wait, and keep their thread."""
    from tests.lab.slack_stub import Answer as Said

    lab = Storm(tmp_path, mail=slack_mail(slack))
    slack.script.append(Said(503, "down"))
    lab.lose(range(4))
    lab.pass_(1)
    lab.lose(range(4, 8))
    lab.pass_(1)
    lab.mend(range(6))
    lab.pass_(1)
    assert slack.messages == []
    lab.passes(3, 30)
    assert heads(slack) == [f"{RED} CRITICAL 2 of 8 LinkDown · the link is down"]
    (first,) = slack.first_messages
    assert len(slack.replies(first)) == 2


def test_a_page_about_a_storm_ends_when_all_of_it_is_over(service, tmp_path):
    lab = Storm(tmp_path, mail=pager_mail(service))
    lab.lose(range(3))
    lab.pass_()
    lab.lose(range(3, 9))
    lab.pass_()
    lab.mend(range(8))
    lab.pass_()
    assert [b["event_action"] for b in service.bodies] == ["trigger", "trigger"]
    lab.mend([8])
    lab.pass_()
    assert [b["event_action"] for b in service.bodies] == ["trigger", "trigger", "resolve"]
    assert len({b["dedup_key"] for b in service.bodies}) == 1


def test_who_takes_it_is_told_to_the_pager(service, tmp_path):
    lab = WatchLab(tmp_path, mail=pager_mail(service))
    lab.machine.fault("GpuLost")
    lab.pass_()
    with lab.store.transaction():
        before = lab.store.incidents()
        ((key, incident),) = before.items()
        taken = dataclasses.replace(
            incident, acknowledged_by="ada", acknowledged_until=lab.machine.time + 900
        )
        lab.store.save_incidents(before, {key: taken})
        lab.store.put_cursor("said", "", {"notes": [[key, "ada has it"]]})
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_()
    assert [b["event_action"] for b in service.bodies] == ["trigger", "acknowledge", "resolve"]


# reminders


def test_what_nobody_takes_is_told_again(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack, remind_seconds=4 * 3600.0))
    lab.lose(range(3))
    lab.machine.fault("FanStopped", status=Status.WARNING)
    lab.passes(5, 3600)
    (storm,) = (m for m in slack.first_messages if "LinkDown" in m.text)
    lab.pass_()
    (reminder,) = slack.replies(storm)
    assert reminder.body["text"].startswith(
        f"{RED} CRITICAL LinkDown:n1/port@0, LinkDown:n1/port@1, LinkDown:n1/port@2 · open for 4 h"
    )
    lab.passes(3, 3600)
    assert len(slack.replies(storm)) == 1
    lab.passes(2, 3600)
    assert len(slack.replies(storm)) == 2
    with lab.store.transaction():
        lab.store.add_silence("LinkDown:*", lab.machine.time + 1e6, "ada", "cable on order")
    lab.passes(10, 3600)
    assert len(slack.replies(storm)) == 2


def test_what_comes_back_after_days_is_not_reminded_of_at_once(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack, remind_seconds=4 * 3600.0))
    lab.lose(range(3))
    lab.passes(6, 3600)
    lab.mend(range(3))
    lab.passes(2, 86400)
    told = len(slack.messages)
    lab.lose(range(3))
    lab.passes(3, 3600)
    assert len(slack.messages) == told + 1


def test_nobody_is_reminded_unless_the_config_says_so(slack, tmp_path):
    lab = Storm(tmp_path, mail=slack_mail(slack))
    lab.lose(range(3))
    lab.passes(20, 3600)
    assert len(slack.messages) == 1


# routes


def test_a_sink_hears_of_the_incidents_that_it_is_for(slack, tmp_path):
    lab = WatchLab(tmp_path, mail=slack_mail(slack, only=("GpuLost:n1*", "*:n2/*")))
    lab.machine.fault("GpuLost", "gpu@1")
    lab.machine.fault("LinkDown")
    lab.pass_()
    lab.machine.faults.clear()
    lab.pass_()
    assert heads(slack) == [f"{GREEN} RESOLVED n1 · GpuLost it is"]
    assert len(slack.messages) == 2


# standing sinks


def standing_mail(service, **sinks):
    return Mail(standing={"alerts": AlertmanagerSink(service.url, name="alerts"), **sinks})


def test_alerts_follow_the_incidents_over_passes(service, tmp_path):
    lab = WatchLab(tmp_path, mail=standing_mail(service))
    lab.pass_()
    assert service.asked == []
    lab.machine.fault("GpuLost")
    lab.passes(5)
    assert len(service.asked) == 3  # at once, and each minute
    lab.machine.faults.clear()
    lab.pass_()
    ended = service.bodies[-1][0]
    assert ended["endsAt"][:19] == "2026-09-21T14:16:50"
    lab.passes(5)
    assert service.bodies[-1][0] == ended


def test_the_switch_hears_of_good_passes_only(service, tmp_path):
    lab = WatchLab(tmp_path, mail=Mail(standing={"beat": DeadManSink(name="beat", url=service.url)}))
    lab.passes(2, 60)
    assert len(service.asked) == 2
    lab.machine.blind = "the tool hangs"
    lab.passes(4, 60)
    # nor while the check that cannot look is only observed
    lab.set(observe_only=frozenset({"node_check"}))
    lab.passes(4, 60)
    assert len(service.asked) == 2
    lab.machine.blind = ""
    lab.machine.fault("GpuLost")  # something is wrong, and somebody is looking
    lab.pass_(60)
    assert len(service.asked) == 3


def test_a_check_that_is_rarely_due_and_could_not_look_keeps_the_switch_silent(service, tmp_path):
    """Between two of its looks nobody is blind, and yet nobody sees what it looks at."""
    lab = WatchLab(tmp_path, mail=Mail(standing={"beat": DeadManSink(name="beat", url=service.url)}))
    rare = Machine()
    rare.time = lab.machine.time
    lab.watchdog.checks = [*lab.watchdog.checks, check_of(rare, "rare_check", interval_seconds=600.0)]
    rare.blind = "the tool hangs"
    lab.passes(5, 60)
    assert service.asked == []
    rare.blind = ""
    lab.passes(8, 60)
    assert len(service.asked) == 3  # from its next look on
    lab.watchdog.checks = lab.watchdog.checks[:1]


def test_a_standing_sink_that_fails_is_told_rests_and_harms_nobody(service, tmp_path):
    class Broken:
        name = "broken"

        def keep_up(self, standing, memory):
            raise RuntimeError("a bug")

    beat = DeadManSink(name="beat", url=service.url)
    lab = WatchLab(tmp_path, mail=Mail(standing={"broken": Broken(), "beat": beat}))
    service.script.append(Answer(503))
    said = lab.pass_(60).sentence
    assert "broken: the sink broke: RuntimeError: a bug" in said
    assert "beat: the dead man's switch beat has trouble: HTTP status 503" in said
    assert lab.pass_(1).sentence == "0 findings"  # both rest
    assert "broken" in lab.pass_(60).sentence
    assert len(service.asked) == 2


def test_a_sink_that_asks_for_a_rest_gets_it(tmp_path):
    class Slow:
        name = "slow"
        asked = 0

        def keep_up(self, standing, memory):
            self.asked += 1
            raise DeliveryFailed("not now", retry_after_seconds=600)

    slow = Slow()
    lab = WatchLab(tmp_path, mail=Mail(standing={"slow": slow}))
    lab.passes(10, 60)
    assert slow.asked == 1
    lab.pass_(60)
    assert slow.asked == 2


def test_every_kind_of_news_has_its_place():
    """A kind that is added later has to be thought of in the sinks that tell kinds apart."""
    assert {"opened", "reopened", "worsened", "changed", "resolved", "outcome", "note"} == KINDS
