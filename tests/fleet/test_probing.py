"""What the head makes of the answers of many probers, whatever they say."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustertools.fleet import Answer, Fate, Line
from clustertools.fleet import probing as module
from clustertools.fleet.probing import Probers, as_group, trial
from clustertools.measurement import Ending, Figure, Trial


class Scripted:
    """A conversation whose nodes say what a test wants them to say to each order."""

    def __init__(self, *opening: Line | Answer, reply=lambda order: ()) -> None:
        self.waiting: list[Line | Answer] = list(opening)
        self.orders: list[dict] = []
        self.reply = reply
        self.closed = False

    def send(self, text: str) -> None:
        order = json.loads(text)
        self.orders.append(order)
        self.waiting += self.reply(order)

    def receive(self, seconds: float) -> Iterator[Line | Answer]:
        while self.waiting:
            yield self.waiting.pop(0)

    def close(self) -> None:
        self.closed = True


def hello(node: str, **more) -> Line:
    return Line(node, json.dumps({"hello": {"node": node, "torch": "2.13.0", **more}}))


def done(node: str, order: dict, **more) -> Line:
    return Line(node, json.dumps({"id": order["id"], "node": node, "ending": "done", **more}))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)


def test_who_said_hello_is_present_and_who_went_is_not():
    lost = Answer("n3", Fate.LOST, reason="the connection broke")
    probers = Probers(
        Scripted(hello("n1", cuda=True), Line("n2", "Last login: today"), lost), ["n1", "n2", "n3"]
    )
    probers.greet(0.05)
    assert probers.present == ("n1",)
    assert probers.hello["n1"].cuda
    assert probers.strange == {"n2": ["Last login: today"]}
    assert set(probers.gone) == {"n3"}


def test_each_node_that_was_asked_has_a_trial():
    def reply(order):
        figure = {"metric": "flops_per_second", "value": 2e12, "variant": "float32"}
        return [
            Line("n1", '{"id": 99, "ending": "done"}'),  # of an order that was given up before
            done("n1", order, figures=[figure], node_seconds=0.5),
            Answer("n2", Fate.LOST, reason="reset by peer"),
        ]

    probers = Probers(Scripted(hello("n1"), hello("n2"), hello("n3"), reply=reply), ["n1", "n2", "n3"])
    probers.greet(0.05)
    told = probers.ask({"probe": "gemm"}, ["n1", "n2", "n3"], timeout_seconds=0.05)
    assert [told[n].ending for n in ("n1", "n2", "n3")] == [Ending.DONE, Ending.CRASH, Ending.HANG]
    assert told["n1"].figures == (Figure("gemm", ("n1",), "flops_per_second", 2e12, variant="float32"),)
    assert "reset by peer" in told["n2"].detail


def test_an_order_names_those_that_are_still_there():
    scripted = Scripted(hello("n2"), Answer("n2", Fate.LOST), hello("n1"))
    probers = Probers(scripted, ["n1", "n2"])
    probers.greet(0.05)
    probers.ask({"probe": "gemm"}, ["n1", "n2"], timeout_seconds=0.01)
    assert scripted.orders[0]["nodes"] == ["n1"]
    probers.ask({"probe": "gemm"}, ["n2"], timeout_seconds=0.01)
    assert len(scripted.orders) == 1, "nobody is left to be asked"


@pytest.mark.parametrize(
    "said",
    [
        {"ending": "splendid"},
        {},
        {"ending": "done", "figures": [{"metric": "seconds", "value": float("nan")}]},
        {"ending": "done", "figures": [{"metric": "seconds", "value": True}]},
        {"ending": "done", "figures": [{"value": 3}]},
        {"ending": "done", "figures": ["no figure"]},
        {"ending": "done", "figures": 7},
        {"ending": "done", "figures": [{"metric": "s", "value": 1, "size_bytes": "many"}]},
    ],
)
def test_an_answer_of_another_form_is_one_that_could_not_run(said):
    assert trial("n1", "gemm", said).ending is Ending.COULD_NOT_RUN


def test_what_a_node_says_is_made_printable():
    told = trial("n1", "gemm", {"ending": "crash", "detail": "\x1b[2Jgone\n<b>", "evidence": ["a\x07b\nc"]})
    assert told.detail == "gone <b>"
    assert told.evidence == ("ab c",)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("ending", "figures", "detail", "evidence", "blamed", "node_seconds", "elapsed_seconds")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values | st.sampled_from(["done", "hang"])))
def test_nothing_that_a_node_says_breaks_the_head(said):
    told = trial("n1", "gemm", said)
    assert told.nodes == ("n1",)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(max_size=200))
def test_no_line_breaks_the_head(text):
    probers = Probers(Scripted(Line("n1", text), hello("n1")), ["n1"])
    probers.greet(0.05)
    assert probers.present == ("n1",)


def member(node: str, ending: Ending = Ending.DONE, busbw: float = 10.0, **more) -> Trial:
    figures = (Figure("collective", (node,), "busbw_bytes_per_second", busbw, size_bytes=1 << 20),)
    return Trial("collective", (node,), ending, figures if ending is Ending.DONE else (), **more)


def test_a_group_is_as_fast_as_its_slowest_member():
    group = as_group("collective", ("n1", "n2"), {"n1": member("n1"), "n2": member("n2", busbw=7.0)})
    assert group.ending is Ending.DONE
    assert [(f.nodes, f.value) for f in group.figures] == [(("n1", "n2"), 7.0)]


@pytest.mark.parametrize(
    ("endings", "whole"),
    [
        ((Ending.DONE, Ending.HANG), Ending.HANG),
        ((Ending.HANG, Ending.CRASH), Ending.CRASH),
        ((Ending.WRONG_DATA, Ending.CRASH), Ending.WRONG_DATA),
        ((Ending.COULD_NOT_RUN, Ending.HANG), Ending.COULD_NOT_RUN),
    ],
)
def test_the_ending_of_a_group(endings, whole):
    answers = {f"n{i}": member(f"n{i}", e, detail=f"it was a {e.value}") for i, e in enumerate(endings)}
    group = as_group("collective", tuple(answers), answers)
    assert group.ending is whole
    assert whole.value in group.detail


def test_a_group_blames_only_its_own():
    answers = {"n1": member("n1", Ending.WRONG_DATA, blamed=("n2", "somebody else")), "n2": member("n2")}
    assert as_group("collective", ("n1", "n2"), answers).blamed == ("n2",)


def test_who_was_not_asked_makes_a_group_that_could_not_run():
    assert as_group("collective", ("n1", "n2"), {"n1": member("n1")}).ending is Ending.COULD_NOT_RUN


def test_who_only_waited_for_the_guilty_is_not_pointed_at():
    """n1 is cut off: it says so of all others, and they of it. Of a pair nobody can tell who it is."""
    nodes = ("n1", "n2", "n3", "n4")

    def hangs(blamed: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        answers = {node: member(node, Ending.HANG, blamed=whom) for node, whom in blamed.items()}
        return as_group("collective", tuple(answers), answers).blamed

    assert hangs({"n1": nodes[1:], **dict.fromkeys(nodes[1:], ("n1",))}) == ("n1",)
    assert hangs({"n1": ("n2",), "n2": ("n1",)}) == ()
    assert hangs({"n1": ("n1",), "n2": ()}) == ("n1",), "who points at itself knows"
