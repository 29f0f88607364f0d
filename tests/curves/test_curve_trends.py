"""What moves slowly: the loss scale, the grad and parameter norm, and a loss that learns nothing any more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from clustertools.curves import CurveEvent, Detector, News, Restart, Row, Story
from clustertools.curves.scale import Scale

Told = list[News]


def told_of(kind: type, rows: Iterable[Row | Restart], cut: int | None = None) -> Told:
    """All news of the rows; `cut`: the detector is saved and made anew before that row."""
    story, told = Story(), Told()
    detector: Detector = kind()
    for place, row in enumerate(rows):
        if place == cut:
            saved = json.dumps(detector.state())
            assert len(saved) < 3000
            detector = kind(json.loads(saved))
        if isinstance(row, Restart):
            detector.restart(row, story, told)
        else:
            detector.add(row, story, told)
    detector.finish(story, told)
    return told


def last_of(told: Told) -> list[CurveEvent]:
    """Each event as it was told last."""
    return list({news.event.number: news.event for news in told}.values())


# the loss scale


def scales(exponents: Iterable[float], first: int = 1, every: int = 1) -> Iterator[Row]:
    for place, exponent in enumerate(exponents):
        yield Row(first + place * every, {"loss": 2.5, "loss_scale": 2.0**exponent})


def breathing(rows: int, growth: int = 1000, top: int = 17) -> Iterator[float]:
    """Doubled after `growth` good steps, halved at the next overflow."""
    for row in range(rows):
        yield top - (row % growth < growth - 1)


def collapses(exponents: Iterable[float], first: int = 1, every: int = 1) -> list[CurveEvent]:
    return last_of(told_of(Scale, scales(exponents, first, every)))


def test_a_scale_that_stands_or_breathes_says_nothing() -> None:
    assert collapses([0.0] * 3000) == [], "bf16"
    assert collapses([17.0] * 3000) == [], "static"
    for growth in (100, 1000, 2000):
        assert collapses(breathing(6000, growth)) == []
    for every in (10, 100, 1000):
        assert collapses(list(breathing(200_000))[::every], every=every) == []
    assert collapses([20 - row // 2500 for row in range(20_000)]) == [], "a slow change of the gradients"


def test_the_search_for_a_scale_says_nothing() -> None:
    search = [32.0 - step for step in range(16)]
    assert collapses([*search, *[16.0] * 1000]) == []
    assert collapses([30.0, 21.0, 17.0, *[16.0] * 100], every=10) == []
    assert collapses([*[15.0] * 1000, *search, *[15.0] * 1000]) == [], "started anew in the same log"
    again: list[Row | Restart] = [*scales([15.0] * 1000), Restart(900, 1000), *scales(search, first=900)]
    assert told_of(Scale, again) == []


def test_glm_130b_is_told_before_its_loss_rises() -> None:
    """The scale began to fall at step 33710, the loss rose at 33740 (logs/main-log-en.md)."""
    fall = [16.0 - min(14, (step - 33710) // 2 + 1) for step in range(33710, 33740)]
    (event,) = collapses([*breathing(3709), *fall], first=30001)
    assert (event.step, event.alarm_step) == (33710, 33716)
    assert (event.value, event.baseline, event.severity) == (4.0, 65536.0, "page")
    began, grew, ended = told_of(Scale, scales([*breathing(3709), *fall], first=30001))
    assert [n.event.severity for n in (began, grew, ended)] == ["notice", "page", "page"]
    assert began.event.message == (
        "loss scale fell from 65536 to 4096 (4 halvings) between steps 33710 and 33716: "
        "the gradients overflow again and again, and the loss may rise next"
    )


def test_bigscience_tr1_tr8_and_tr8b() -> None:
    # tr1-13B: two lines of ten iterations each
    (event,) = collapses([16.0] * 200 + [14.0, 12.0] + [12.0] * 50, first=28000, every=10)
    assert (event.step, event.alarm_step, event.value) == (30000, 30010, 4096.0)
    # tr8b-104B: 1048576 at iteration 17062, 32768 at 17068
    (event,) = collapses([20.0] * 259 + [20, 20, 20, 19, 18, 17, 17, 16, 15], first=16801)
    assert (event.step, event.alarm_step, event.value) == (17063, 17067, 32768.0)
    # tr8-104B exp 2: from about 4700 on, the loss rose at 6900
    slow = [18.0 - (step - 4700) // 450 - 1 for step in range(4700, 6900, 10)]
    (event,) = collapses([18.0] * 470 + slow, every=10)
    assert (event.step, event.severity) == (4701, "notice")
    assert event.alarm_step < 6900


def test_at_its_floor_nothing_is_trained() -> None:
    (event,) = collapses([4.0] * 1000 + [3.0, 2.0, 1.0, 0.0, -1.0, *[-5.0] * 500])
    assert (event.severity, event.value, event.alarm_step) == ("page", 2.0**-5, 1004)
    (event,) = collapses([16.0 - step for step in range(22)])
    assert event.severity == "page", "a search that found none"


def test_a_scale_that_grows_again_has_recovered() -> None:
    fall = [16.0 - step for step in range(6)]
    told = told_of(Scale, scales([*[17.0] * 500, *fall, *[11.0] * 999, *[12.0] * 1000, *[13.0] * 500]))
    assert [n.change for n in told] == ["began", "grew", "recovered"]
    assert (told[-1].event.end_step, told[-1].event.recovered_step) == (506, 2506)
    told = told_of(Scale, scales([*[17.0] * 500, *fall, *[11.0] * 4000]))
    assert [n.change for n in told] == ["began", "grew", "ended"], "the new level was accepted"


def same_from_any_row(kind: type, rows: Sequence[Row | Restart], every: int) -> None:
    whole = told_of(kind, rows)
    assert whole
    for cut in range(0, len(rows), every):
        assert repr(told_of(kind, rows, cut)) == repr(whole), f"cut before row {cut}"


def test_saved_anywhere_the_scale_goes_on_with_the_same_result() -> None:
    fall = [16.0 - step for step in range(6)]
    rows: list[Row | Restart] = [
        *scales([*[32.0 - step for step in range(16)], *[17.0] * 300, *fall, *[11.0] * 40]),
        Restart(200),
        *scales([17.0] * 300, first=200),
        *scales(fall, first=500),
        *scales([11.0] * 9, first=506),
    ]
    same_from_any_row(Scale, rows, 11)
