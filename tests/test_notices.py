"""Which changes people hear of: silences and acknowledgements delay, they never eat."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustertools.model import Finding, Incident, Status, Subject, Transition
from clustertools.notices import due, is_quiet, is_silenced, lapsed

NOW = 1000.0


def incident(state="open", **more):
    found = Finding("c", "LinkDown", Subject(node="n1"), Status.CRITICAL, "text")
    return Incident(found, state, 1.0, NOW, opened_at=1.0, **more)


KEY = incident().key
ACKED = {"acknowledged_by": "ada", "acknowledged_until": NOW + 60}


def change(kind, **more):
    was, now, worse = {
        "opened": ("none", "open", False),
        "reopened": ("resolved", "open", False),
        "worsened": ("open", "open", True),
        "resolved": ("open", "resolved", False),
    }[kind]
    return Transition(incident(now, **more), was, now, NOW, worse)


def told(*transitions, now_is=None, owed=None, patterns=(), now=NOW):
    """(kinds told, what is owed then)"""
    known = now_is if now_is is not None else transitions[-1].incident
    tell, left = due(transitions, {KEY: known} if known else {}, owed or {}, patterns, now)
    return [t.kind for t in tell], left


def test_without_marks_everything_is_told():
    for kind in ("opened", "reopened", "worsened", "resolved"):
        assert told(change(kind)) == ([kind], {})


@pytest.mark.parametrize("mark", [ACKED, {"explained_by": "Root:n1"}, {"silenced_until": NOW + 1}])
def test_a_mark_keeps_it_back_and_owes_it(mark):
    assert told(change("opened", **mark)) == ([], {KEY: "opened"})


def test_a_silence_owes_the_opening_and_pays_when_it_ends():
    kinds, owed = told(change("opened"), patterns=["LinkDown:*"])
    assert (kinds, owed) == ([], {KEY: "opened"})
    assert told(now_is=incident(), owed=owed, patterns=["LinkDown:*"]) == ([], owed)
    assert told(now_is=incident(), owed=owed) == (["opened"], {})


def test_what_began_and_ended_in_silence_is_never_told():
    assert told(change("resolved"), owed={KEY: "opened"}) == ([], {})
    assert told(change("resolved"), owed={KEY: "reopened"}) == ([], {})


def test_the_end_is_told_to_whoever_heard_the_beginning():
    assert told(change("resolved", **ACKED)) == (["resolved"], {})
    assert told(change("resolved"), patterns=["*"]) == (["resolved"], {})
    assert told(change("resolved"), owed={KEY: "worsened"}) == (["resolved"], {})


def test_a_worsening_in_silence_is_owed_as_such_and_never_hides_an_opening():
    assert told(change("worsened", **ACKED)) == ([], {KEY: "worsened"})
    assert told(change("worsened", **ACKED), owed={KEY: "opened"}) == ([], {KEY: "opened"})
    assert told(now_is=incident(), owed={KEY: "worsened"}) == (["worsened"], {})
    # the silence ends on the pass on which it gets worse: people hear of it for the first time
    assert told(change("worsened"), owed={KEY: "opened"}) == (["opened"], {})


def test_nothing_is_owed_for_what_is_gone():
    assert told(owed={KEY: "opened"}, now_is=incident("resolved")) == ([], {})
    assert due((), {}, {KEY: "opened"}, (), NOW) == ([], {})


def test_patterns_are_shell_patterns_with_case():
    assert is_silenced("IbDown:gpu-017/mlx5_3/1", ["Ib*:gpu-017*"])
    assert not is_silenced("IbDown:gpu-018/mlx5_3/1", ["Ib*:gpu-017*"])
    assert not is_silenced("IbDown:n1", ["ib*"])


def test_an_acknowledgement_that_is_over_is_taken_away_and_its_open_incident_named():
    late = dataclasses.replace(incident(), acknowledged_by="ada", acknowledged_until=NOW)
    after, still = lapsed({KEY: late}, NOW)
    assert (after[KEY].acknowledged_by, after[KEY].acknowledged_until) == ("", 0.0)
    assert [(i.key, who) for i, who in still] == [(KEY, "ada")]
    done = incident("resolved", **ACKED)
    after, still = lapsed({KEY: done}, NOW)
    assert (after[KEY].acknowledged_by, still) == ("", [])
    assert lapsed({KEY: incident(**ACKED)}, NOW) == ({KEY: incident(**ACKED)}, [])


STEPS = st.lists(
    st.tuples(st.sampled_from(["opens", "worsens", "resolves", "nothing"]), st.booleans()), max_size=12
)


@given(STEPS)
@settings(max_examples=100)
def test_whatever_happens_an_open_incident_that_is_not_quiet_was_told(steps):
    """And nobody is told twice that it opened, nor of the end of what they never heard of."""
    state, owed, heard = "none", {}, False
    for number, (step, quiet) in enumerate(steps):
        patterns = ["*"] if quiet else []
        transitions = []
        if step == "opens" and state != "open":
            transitions = [change("opened" if state == "none" else "reopened")]
            state = "open"
        elif step == "worsens" and state == "open":
            transitions = [change("worsened")]
        elif step == "resolves" and state == "open":
            transitions = [change("resolved")]
            state = "resolved"
        known = {KEY: incident(state)} if state != "none" else {}
        tell, owed = due(transitions, known, owed, patterns, NOW + number)
        assert len(tell) <= 1
        for kind in (t.kind for t in tell):
            assert heard or kind in ("opened", "reopened"), f"{kind} of what nobody heard of"
            assert kind != "opened" or not heard
            heard = True
        if state == "open" and not is_quiet(incident(), patterns, NOW):
            assert heard
            assert not owed
