"""The life of an incident: `fold` with literal values in and out."""

from __future__ import annotations

import dataclasses

import pytest

from clustertools.incidents import Rules, fold, resolve
from clustertools.model import Finding, Incident, Remedy, Status, Subject, Verdict

NODE = Subject(node="gpu-017")
PART = Subject(node="gpu-017", part="gpu@0000:3b:00.0")


def finding(code="IbLinkDown", subject=PART, status=Status.CRITICAL, clears="recovery", **more):
    return Finding("ib_ports", code, subject, status, f"{code} on {subject}", clears=clears, **more)


def verdict(*findings, blind="", status=None, boot_id="boot-1", check="ib_ports", subject=NODE):
    worst = max((f.status for f in findings), default=Status.OK)
    return Verdict(
        check, subject, status or (Status.UNKNOWN if blind else worst), tuple(findings), blind=blind,
        boot_id=boot_id,
    )  # fmt: skip


def passes(*verdicts, rules=None, start=None, step=60.0):
    """Fold one verdict a minute; the last incidents and every transition as (minute, kind, code)."""
    incidents, told = dict(start or {}), []
    for minute, one in enumerate(verdicts):
        one = [one] if isinstance(one, Verdict) else one
        incidents, transitions = fold(incidents, one, 1000.0 + step * minute, rules)
        told += [(minute, t.kind, t.incident.finding.code) for t in transitions]
    return incidents, told


def test_a_state_opens_and_resolves():
    incidents, told = passes(verdict(finding()), verdict(finding()), verdict())
    assert told == [(0, "opened", "IbLinkDown"), (2, "resolved", "IbLinkDown")]
    (incident,) = incidents.values()
    assert (incident.state, incident.count) == ("resolved", 2)


def test_confirm_waits_and_a_blip_is_dropped_silently():
    rules = Rules(confirm={"ib_ports": 3})
    _, told = passes(verdict(finding()), verdict(finding()), verdict(), verdict(finding()), rules=rules)
    assert told == []
    _, told = passes(*[verdict(finding())] * 3, rules=rules)
    assert told == [(2, "opened", "IbLinkDown")]


def test_an_event_is_believed_at_once_whatever_confirm_says():
    _, told = passes(verdict(finding("XidGpuLost", clears="reboot")), rules=Rules(confirm={"ib_ports": 3}))
    assert told == [(0, "opened", "XidGpuLost")]


@pytest.mark.parametrize("clears", ["recovery", "reboot", "manual", 60.0])
def test_nothing_resolves_while_blind(clears):
    blind = verdict(blind="ibstat did not answer", boot_id="boot-2")
    incidents, told = passes(verdict(finding(clears=clears)), *[blind] * 10)
    assert (9, "resolved", "IbLinkDown") not in told
    assert [t for t in told if t[1] == "resolved"] == []
    assert incidents[finding().key].state == "open"


def test_blindness_is_an_incident_of_its_own_and_ends_when_the_check_sees_again():
    blind = verdict(blind="ibstat did not answer")
    incidents, told = passes(blind, blind, blind, verdict())
    assert told == [(2, "opened", "Blind"), (3, "resolved", "Blind")]
    assert next(iter(incidents.values())).finding.summary == "ib_ports cannot look: ibstat did not answer"


def test_a_partly_blind_pass_still_reports_but_resolves_nothing():
    other = finding(subject=Subject(node="gpu-017", part="mlx5_0/1"))
    _, told = passes(verdict(finding()), verdict(other, blind="mlx5_3 did not answer"))
    assert told == [(0, "opened", "IbLinkDown"), (1, "opened", "IbLinkDown")]


def test_a_check_that_does_not_apply_resolves_nothing():
    incidents, told = passes(verdict(finding()), verdict(status=Status.SKIPPED))
    assert told == [(0, "opened", "IbLinkDown")]
    assert incidents[finding().key].state == "open"


def test_a_reboot_clears_only_what_a_reboot_clears():
    lost = finding("XidGpuLost", clears="reboot")
    quiet_same_boot, quiet_new_boot = verdict(), verdict(boot_id="boot-2")
    _, told = passes(verdict(lost), quiet_same_boot, quiet_new_boot)
    assert told == [(0, "opened", "XidGpuLost"), (2, "resolved", "XidGpuLost")]


def test_an_unreadable_boot_id_proves_no_reboot():
    lost = finding("XidGpuLost", clears="reboot")
    _, told = passes(verdict(lost), verdict(boot_id=""))
    assert told == [(0, "opened", "XidGpuLost")]


def test_after_a_reboot_that_did_not_help_it_stays_open():
    lost = finding("XidGpuLost", clears="reboot")
    _, told = passes(verdict(lost), verdict(lost, boot_id="boot-2"), verdict(boot_id="boot-2"))
    assert told == [(0, "opened", "XidGpuLost")]


def test_a_duration_counts_from_the_last_repeat():
    event = finding("XidContained", clears=150.0)
    _, told = passes(verdict(event), verdict(event), verdict(), verdict(), verdict())
    assert told == [(0, "opened", "XidContained"), (4, "resolved", "XidContained")]


def test_manual_ends_only_by_a_person():
    incidents, told = passes(verdict(finding(clears="manual")), *[verdict(boot_id="boot-2")] * 5)
    assert told == [(0, "opened", "IbLinkDown")]
    after, transitions = resolve(incidents, finding().key, 9000.0)
    assert (after[finding().key].state, transitions[0].kind) == ("resolved", "resolved")
    with pytest.raises(KeyError):
        resolve(after, finding().key, 9001.0)


def test_flapping_reuses_the_incident_and_a_later_return_is_a_new_one():
    rules = Rules(flap_window_seconds=120.0)
    up, down = verdict(), verdict(finding())
    incidents, told = passes(down, up, down, rules=rules)
    assert [t[1] for t in told] == ["opened", "resolved", "reopened"]
    assert next(iter(incidents.values())).first_seen == 1000.0
    incidents, told = passes(down, up, up, up, up, down, rules=rules)
    assert [t[1] for t in told] == ["opened", "resolved", "opened"]
    assert next(iter(incidents.values())).first_seen == 1000.0 + 5 * 60


def test_worse_is_told_and_better_is_not():
    warn = finding(status=Status.WARNING)
    _, told = passes(verdict(warn), verdict(finding()), verdict(warn))
    assert told == [(0, "opened", "IbLinkDown"), (1, "worsened", "IbLinkDown")]


def test_the_root_explains_the_symptom_and_stops_explaining_when_it_is_over():
    rules = Rules(explains={"XidGpuLost": frozenset({"JobHung"})})
    root = verdict(finding("XidGpuLost", clears="reboot"))
    hung = Finding(
        "job_progress", "JobHung", Subject(run="big"), Status.CRITICAL, "stuck", nodes=("gpu-017", "gpu-018")
    )
    job = verdict(hung, check="job_progress", subject=Subject(run="big"))
    incidents, transitions = fold({}, [root, job], 1000.0, rules)
    assert incidents[hung.key].explained_by == "XidGpuLost:gpu-017/gpu@0000:3b:00.0"
    assert [t.incident.explained_by != "" for t in transitions] == [False, True]
    incidents, transitions = fold(incidents, [verdict(boot_id="boot-2"), job], 1060.0, rules)
    assert incidents[hung.key].explained_by == ""
    told = [(t.kind, t.incident.finding.code) for t in transitions]
    assert told == [("resolved", "XidGpuLost"), ("opened", "JobHung")], "what outlives its root is told"


def test_a_warning_explains_nothing_worse_than_itself():
    """Whoever asked to hear of CRITICAL only would hear neither of the root nor of the symptom."""
    rules = Rules(explains={"HostOomKill": frozenset({"JobCrashed", "JobSilent"})})
    root = finding("HostOomKill", NODE, Status.WARNING)
    about = Subject(run="big")
    crashed = finding("JobCrashed", about, nodes=("gpu-017",))
    silent = finding("JobSilent", about, Status.WARNING, nodes=("gpu-017",))
    incidents, _ = passes([verdict(root), verdict(crashed, silent, check="job", subject=about)], rules=rules)
    assert incidents[crashed.key].explained_by == ""
    assert incidents[silent.key].explained_by == root.key


def test_a_root_on_another_node_explains_nothing():
    rules = Rules(explains={"XidGpuLost": frozenset({"JobHung"})})
    root = verdict(finding("XidGpuLost"))
    hung = Finding("job_progress", "JobHung", Subject(run="x"), Status.CRITICAL, "stuck", nodes=("gpu-900",))
    incidents, _ = fold({}, [root, verdict(hung, check="job_progress", subject=Subject(run="x"))], 1.0, rules)
    assert incidents[hung.key].explained_by == ""


def test_two_findings_of_one_key_are_one_incident_with_the_worse_status():
    incidents, told = passes(verdict(finding(status=Status.WARNING), finding()))
    assert told == [(0, "opened", "IbLinkDown")]
    assert next(iter(incidents.values())).finding.status is Status.CRITICAL


def test_checks_that_did_not_run_leave_their_incidents_alone():
    incidents, told = passes(verdict(finding()), verdict(check="gpu_ecc"), [])
    assert told == [(0, "opened", "IbLinkDown")]
    assert incidents[finding().key].state == "open"


def test_marks_survive_further_reports():
    incidents, _ = passes(verdict(finding()))
    key = finding().key
    incidents[key] = dataclasses.replace(incidents[key], acknowledged_by="ada", acknowledged_until=9e9)
    incidents, _ = passes(verdict(finding(remedy=Remedy.INSPECT)), start=incidents)
    assert (incidents[key].acknowledged_by, incidents[key].finding.remedy) == ("ada", Remedy.INSPECT)


def test_resolved_incidents_are_forgotten_in_the_end():
    rules = Rules(keep_resolved_seconds=300.0)
    incidents, _ = passes(verdict(finding()), *[verdict()] * 8, rules=rules)
    assert incidents == {}
    assert isinstance(Incident(finding(), "open", 0, 0).key, str)
