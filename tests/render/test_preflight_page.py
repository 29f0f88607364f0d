"""The page of a preflight: whole, without scripts, and nothing from a node is anything but text."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from clustertools.measurement import Grade
from clustertools.preflight_report import NodeResult, Report, Terms
from clustertools.render.preflight_page import ROWS_SHOWN, page
from tests.lab.browser import measure, needs_chromium
from tests.render.preflight_cases import MARKUP, curve, hostile, large, node, small

_VOID = {"meta", "link", "img", "br", "hr", "input", "wbr", "col"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; raises on one that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


EMPTY = Report(1.0, 2.0, ())
ONE = Report(1.0, 2.0, ("n1",), (NodeResult("n1", Grade.GOOD),))


@pytest.mark.parametrize(
    "report", [small(), hostile(), large(), EMPTY, ONE], ids="small hostile large 0 1".split()
)
def test_the_page_is_whole_and_asks_for_nothing(report):
    text = page(report)
    seen = Reader(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    assert len(seen.ids) == len(set(seen.ids))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_what_a_node_says_is_text():
    text = page(hostile())
    assert "<script" not in text
    assert "<img" not in text
    assert "<i>" not in text
    assert MARKUP.split(">")[0] in Reader(text).text


def test_the_answer_the_guilty_and_what_is_not_known_are_there():
    said = Reader(page(small())).text
    for words in (
        "NO GO",
        "the boundary between gpu[001-006] and gpu[008-016] is slow",
        "all-reduce of 64 MiB at 41.2 GB/s, 0.45 of its peers' 91.6 GB/s",
        "isolation, then peers, confidence 0.97",
        "volatile uncorrected: 3",
        "connection refused",
        "quarters of the slow half",
        "storage: no path was named",
        "driver 535.104 where the others have 550.54",
        "clustertools preflight -w 'gpu[001-016]' --budget 5m",
        "all_reduce_perf -b 64M -e 64M",
        "seed 17; clustertools 0.1.0; torch 2.13.0; NCCL 2.29.3",
        "Nothing may be launched",
        "pairs 40 of 64, 1 m (budget over)",
    ):
        assert words in said, words


def test_the_hand_over_is_what_the_launcher_gets():
    report = Report(
        1.0,
        2.0,
        ("n1", "n2", "n3"),
        (node("n1"), node("n2", Grade.SLOW, "x"), node("n3")),
        terms=Terms(at_least=2),
    )
    said = Reader(page(report)).text
    assert "on 2 nodes: n[1,3]; without slow: n2" in said
    assert re.search(r"launch on\s+n\[1,3\]\s+exclude\s+n2", said)


def test_hundreds_of_bad_nodes_do_not_bury_the_rest():
    nodes = tuple(node(f"n{k}", Grade.SLOW, "slow") for k in range(1024))
    text = page(Report(1.0, 2.0, tuple(n.node for n in nodes), nodes))
    assert f"and {1024 - ROWS_SHOWN:,} more that are not good" in Reader(text).text
    assert len(text) < 1_000_000


def test_the_worst_node_of_a_grade_comes_first():
    mild = node("n1", Grade.SLOW, "a little", judged=curve(("n1",), 0.8, Grade.SLOW))
    away = node("n2", Grade.UNTESTED, "away", judged=())
    worse = node("n3", Grade.SLOW, "a lot", judged=curve(("n3",), 0.2, Grade.SLOW))
    wrong = node("n4", Grade.WRONG_DATA, "wrong sums")
    text = Reader(page(Report(1.0, 2.0, ("n1", "n2", "n3", "n4"), (mild, away, worse, wrong)))).text
    places = [text.index(word) for word in ("wrong sums", "a lot", "a little", "away")]
    assert places == sorted(places)


def test_a_figure_that_nothing_could_be_held_against_is_no_deviation():
    alone = node("n1", judged=curve(("n1",), 1.0, Grade.UNTESTED))
    assert 'class="off"' not in page(Report(1.0, 2.0, ("n1",), (alone,)))
    slow = node("n1", judged=curve(("n1",), 1.0, Grade.SLOW))
    assert 'class="off"' in page(Report(1.0, 2.0, ("n1",), (slow,)))


def test_jinja_is_imported_for_a_page_only():
    program = "import sys, clustertools.render.preflight_page; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@needs_chromium
@pytest.mark.slow
def test_a_browser_shows_it_on_desk_and_phone_by_day_and_night(tmp_path):
    for report, pictures in ((small(), 3), (hostile(), 2), (large(), 2), (EMPTY, 0)):
        text = page(report)
        for width in (1280, 390):
            seen = measure(tmp_path, text, width=width)
            assert width - 20 <= seen["scroll"] <= seen["client"] <= width, seen["wide"]
            assert seen["wide"] == []
            assert (seen["scripts"], seen["images"], seen["links"]) == (0, 0, 0)
            assert seen["pictures"] == pictures
            assert seen["headings"][0] in ("GO", "NO GO")
            assert seen["background"] == "rgb(255, 255, 255)"
    night = measure(tmp_path, page(small()), width=390, dark=True)
    assert night["background"] == "rgb(15, 19, 24)"
    assert night["text"] == "rgb(230, 233, 237)"
