"""What moves slowly: the loss scale, the grad and parameter norm, and a loss that learns nothing any more."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from clustertools.curves import CurveEvent, Detector, News, Restart, Row, Story
from clustertools.curves.scale import Scale
from clustertools.curves.slow import Slow

Told = list[News]


def told_of(kind: type, rows: Iterable[Row | Restart], cut: int | None = None) -> Told:
    """All news of the rows; `cut`: the detector is saved and made anew before that row."""
    story, told = Story(), Told()
    detector: Detector = kind()
    for place, row in enumerate(rows):
        if place == cut:
            saved = json.dumps(detector.state())
            assert len(saved) < 4000
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
    doubled = [*[16.0] * 800, 17.0, *[16.0] * 30, *[15.0] * 30, *[14.0] * 500]
    assert collapses(doubled) == [], "two halvings, and one of a scale that did not hold"


def test_the_search_for_a_scale_says_nothing() -> None:
    search = [32.0 - step for step in range(16)]
    assert collapses([*search, *[16.0] * 1000]) == []
    assert collapses([30.0, 21.0, 17.0, *[16.0] * 100], every=10) == []
    slow = [exponent for exponent in range(32, 26, -1) for _ in range(30)]
    assert collapses([*map(float, slow), *[26.0] * 1000]) == []
    assert collapses([*[15.0] * 1000, *search, *[15.0] * 1000]) == [], "started anew in the same log"
    again: list[Row | Restart] = [*scales([15.0] * 1000), Restart(900, 1000), *scales(search, first=900)]
    assert told_of(Scale, again) == []


def test_glm_130b_is_told_before_its_loss_rises() -> None:
    """The scale began to fall at step 33710, the loss rose at 33740 (logs/main-log-en.md)."""
    fall = [16.0 - min(14, (step - 33710) // 2 + 1) for step in range(33710, 33740)]
    (event,) = collapses([*breathing(3709), *fall], first=30001)
    assert (event.step, event.alarm_step) == (33710, 33714)
    assert (event.value, event.baseline, event.severity) == (4.0, 65536.0, "page")
    began, grew, ended = told_of(Scale, scales([*breathing(3709), *fall], first=30001))
    assert [n.event.severity for n in (began, grew, ended)] == ["notice", "page", "page"]
    assert began.event.message == (
        "loss scale fell from 65536 to 8192 (3 halvings) between steps 33710 and 33714: "
        "the gradients overflow again and again, and the loss may rise next"
    )


def test_bigscience_tr1_tr8_and_tr8b() -> None:
    # tr1-13B: two lines of ten iterations each
    (event,) = collapses([16.0] * 200 + [14.0, 12.0] + [12.0] * 50, first=28000, every=10)
    assert (event.step, event.alarm_step, event.value) == (30000, 30010, 4096.0)
    # tr8b-104B: 1048576 at iteration 17062, 32768 at 17068
    (event,) = collapses([20.0] * 259 + [20, 20, 20, 19, 18, 17, 17, 16, 15], first=16801)
    assert (event.step, event.alarm_step, event.value) == (17063, 17065, 32768.0)
    # tr8-104B exp 2: from about 4700 on, the loss rose at 6900
    slow = [18.0 - (step - 4700) // 450 - 1 for step in range(4700, 6900, 10)]
    (event,) = collapses([18.0] * 470 + slow, every=10)
    assert (event.step, event.severity) == (4701, "notice")
    assert event.alarm_step < 6900


def test_at_its_floor_nothing_is_trained() -> None:
    (event,) = collapses([4.0] * 1000 + [3.0, 2.0, 1.0, 0.0, -1.0, *[-5.0] * 500])
    assert (event.severity, event.value, event.alarm_step) == ("page", 2.0**-5, 1003)
    (event,) = collapses([16.0 - step for step in range(22)])
    assert event.severity == "page", "a search that found none"


def test_a_log_that_names_the_scale_only_when_it_falls() -> None:
    rows = [Row(step, {"loss": 2.5}) for step in range(1000)]
    fall = [Row(1000 + step, {"loss": 2.5, "loss_scale": 2.0 ** (15 - step)}) for step in range(8)]
    story, told, detector = Story(), Told(), Scale()
    for row in [*rows, *fall]:
        story.rows += 1
        detector.add(row, story, told)
    assert [(n.event.step, n.event.alarm_step) for n in told[:1]] == [(1001, 1003)]


def test_a_scale_that_is_a_mean_of_its_interval_never_stands_still() -> None:
    means = [15.0 + 0.5 * math.sin(row) for row in range(400)]
    assert collapses(means, every=100) == []
    (event,) = collapses([*means, 11.0, 8.0, 5.0], every=100)
    assert event.severity == "page"


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


# a loss that learns nothing any more, and norms that grow beside it


class Made:
    """Runs made of a curve, noise about it, and a learning rate; no two rows alike, the same every time."""

    def __init__(self, seed: int, rows: int = 2000, sigma: float = 0.01) -> None:
        self._random, self.rows, self._sigma = random.Random(seed), rows, sigma

    def run(
        self,
        curve: Callable[[float], float],
        rate: Callable[[float], float] = lambda _: 1.0,
        norm: Callable[[float], float] = lambda _: 1.0,
        param: Callable[[float], float] = lambda at: 20 + 80 * at**0.5,
    ) -> Iterator[Row]:
        """All are functions of the share of the run that is over."""
        gauss = self._random.gauss
        for row in range(self.rows):
            at = (row + 0.5) / self.rows
            loss = curve(at) * (1 + gauss(0, self._sigma)) if self._sigma else curve(at)
            values = {
                "loss": loss, "grad_norm": norm(at) * math.exp(gauss(0, 0.1)), "param_norm": param(at),
                "learning_rate": 3e-4 * rate(at),
            }  # fmt: skip
            yield Row(round(30_000 * at), values)


def power(at: float) -> float:
    return 2.0 + 1.2 / math.sqrt(math.sqrt(at + 0.003))


def cosine(at: float) -> float:
    return min(1.0, at / 0.02) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * at)))


def stops(at: float, share: float = 0.5) -> float:
    return power(min(at, share))


def seen(rows: Iterable[Row | Restart]) -> list[tuple[str, int, int]]:
    return [(e.kind, e.step, e.alarm_step) for e in last_of(told_of(Slow, rows))]


@pytest.mark.parametrize("rate", [lambda _: 1.0, cosine], ids=["constant", "cosine"])
def test_a_loss_that_stops_to_fall_is_a_stall(rate: Callable[[float], float]) -> None:
    ((kind, step, alarm),) = seen(Made(1).run(stops, rate))
    assert kind == "stall"
    assert 15_000 <= step < alarm <= 26_000, "dated to where it is sure, told by another half"


def test_the_message_of_a_stall_and_its_end() -> None:
    def again(at: float) -> float:
        return stops(at) if at < 0.8 else power(0.5) * (1 - 0.3 * (at - 0.8))

    began, over = told_of(Slow, Made(1, rows=6000).run(again))
    assert began.event.severity == "daily"
    assert over.change == "recovered"
    assert over.event.recovered_step is not None
    assert over.event.recovered_step >= 24_000
    assert began.event.message.startswith("loss stands at 3.4")
    assert "the learning rate is not spent" in began.event.message


CLEAN: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "pretraining": (power, cosine),
    "constant rate": (power, lambda _: 1.0),
    "decay at the end": (
        lambda at: power(at) * (1 - 0.3 * max(0.0, at - 0.8)), lambda at: min(1.0, 5.01 - 5 * at),
    ),
    "converged": (lambda at: 0.4 + 3 * math.exp(-at / 0.12), lambda _: 1.0),
    "converged late": (lambda at: 0.4 + 3 * math.exp(-at / 0.3), lambda _: 1.0),
    "its rate is spent": (stops, lambda at: math.exp(-at / 0.24)),
    "stairs that end": (lambda at: 1.3 * 0.85 ** min(int(math.log2(1 + at * 30) * 1.1), 4), lambda _: 1.0),
    "two sweeps": (
        lambda at: 0.3 + 1.5 / (1 + math.exp((at - 0.1) / 0.05)) + 2 / (1 + math.exp((at - 0.45) / 0.05)),
        lambda _: 1.0,
    ),
    "epochs": (lambda at: 1.3 * 0.85 ** int(at * 4) * (1 + 0.3 * math.exp(-at / 0.02)), lambda _: 1.0),
    "fine-tuning": (lambda at: 0.9 + 0.5 * math.exp(-at / 0.01), lambda at: 1 - 0.99 * at),
    "reward": (lambda at: 0.02 * math.sin(40 * at), lambda _: 1.0),
    "rate in steps": (
        lambda at: 1 + math.exp(-at / 0.05) - 0.2 * (at > 0.4) - 0.1 * (at > 0.7),
        lambda at: 0.4 ** ((at > 0.4) + (at > 0.7)),
    ),
    "another mix": (lambda at: power(at) * (1.08 if at > 0.55 else 1.0), lambda _: 1.0),
    "a late step": (lambda at: 0.5 + 2 / (1 + math.exp((at - 0.4) / 0.04)), lambda _: 1.0),
    "warmed up again": (
        lambda at: power(at) * (1.0 if at < 0.6 else 1.02), lambda at: 0.3 if 0.3 < at < 0.6 else 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_flat_by_nature_is_none(name: str) -> None:
    curve, rate = CLEAN[name]
    for seed, sigma in enumerate((0.003, 0.02)):
        rising = Made(seed, sigma=sigma).run(curve, rate, norm=lambda at: 1 + 3 * at)
        assert seen(rising) == [], "and a grad norm that grows fourfold says nothing by itself"


def test_without_a_learning_rate_the_break_must_be_wider() -> None:
    def bare(rows: Iterable[Row]) -> list[Row]:
        return [Row(r.step, {k: v for k, v in r.values.items() if k != "learning_rate"}) for r in rows]

    assert seen(bare(Made(1).run(lambda at: stops(at, 0.9)))) == []
    assert [kind for kind, _, _ in seen(bare(Made(1, sigma=0.004).run(lambda at: stops(at, 0.4))))] == [
        "stall"
    ]
    for curve, _ in CLEAN.values():
        assert seen(bare(Made(1).run(curve))) == [] or curve is stops


def turns(at: float) -> float:
    return power(at) if at < 0.6 else power(0.6) * (1 + 0.2 * (at - 0.6))


def grows(at: float) -> float:
    return 0.5 if at < 0.6 else 0.5 * 6 ** ((at - 0.6) / 0.4)


def test_a_grad_norm_that_grows_while_the_loss_turns_is_told() -> None:
    told = {kind: (step, alarm) for kind, step, alarm in seen(Made(1).run(turns, norm=grows))}
    assert set(told) == {"grad_rise"}
    step, alarm = told["grad_rise"]
    assert 18_000 <= step < alarm <= 27_000
    assert seen(Made(1).run(power, norm=lambda at: 0.5 * 6**at)) == [], "the loss still falls"
    leap = Made(1).run(turns, norm=lambda at: 0.5 if at < 0.7 else 2.0)
    assert seen(leap) == [], "a leap is no growth"


def test_a_grad_norm_that_runs_away_while_the_loss_still_falls_is_told() -> None:
    ((kind, step, alarm),) = seen(Made(1).run(power, norm=lambda at: max(1.0, 25 ** ((at - 0.8) / 0.15))))
    assert kind == "grad_rise"
    assert 24_000 <= step < alarm <= 29_500
    ((kind, step, alarm),) = seen(Made(1).run(power, norm=lambda at: max(1.0, 20 ** ((at - 0.4) / 0.4))))
    assert kind == "grad_rise", "slower, but more in all than a run does by itself"
    assert 12_000 <= step < alarm <= 29_500


def test_a_parameter_norm_that_runs_away_is_told() -> None:
    (event,) = last_of(told_of(Slow, Made(1).run(turns, param=lambda at: 100 * grows(at))))
    assert (event.kind, event.metric, event.severity) == ("param_norm_rise", "param_norm", "daily")
    assert "parameter norm" in event.message
    assert "the loss does not improve any more" in event.message


def test_saved_anywhere_the_slow_ones_go_on_with_the_same_result() -> None:
    rows: list[Row | Restart] = list(Made(1).run(stops, norm=grows))
    same_from_any_row(Slow, rows, 311)
    back: list[Row | Restart] = [*rows, Restart(15_000, 29_990), *rows[1000:]]
    same_from_any_row(Slow, back, 911)


def test_a_run_that_went_back_is_judged_by_its_own_branch() -> None:
    rows: list[Row | Restart] = list(Made(1).run(stops))
    good: list[Row | Restart] = list(Made(2).run(power))
    told = told_of(Slow, [*rows, Restart(15_000, 29_990), *good[1000:]])
    assert [(n.event.kind, n.change) for n in told] == [("stall", "began"), ("stall", "ended")]
    slow = Slow()
    for row in rows:
        assert isinstance(row, Row)
        slow.add(row, Story(), told)
    slow.restart(Restart(15_000, 29_990), Story(), told)
    assert max(step for step, *_ in slow.state()["history"]["points"]) < 15_000


def test_the_whole_of_a_run_stays_small() -> None:
    slow, story, told = Slow(), Story(), Told()
    for row in Made(3, rows=15_000).run(power, cosine):
        slow.add(row, story, told)
    assert len(json.dumps(slow.state())) < 3500
