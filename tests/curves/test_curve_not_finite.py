"""What is a nan, what only looks like one, and what of it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import pytest

from clustertools.curves import CurveEvent, News, Restart, Row, Story
from clustertools.curves.not_finite import NotFinite
from clustertools.curves.watch import CurveWatch
from clustertools.sources.training_log import LogReader

NAN, INF = float("nan"), float("inf")
Told = list[News]


def told_of(rows: Iterable[Row | Restart], cut: int | None = None) -> Told:
    """All news of the rows; `cut`: the detector is saved and made anew before that row."""
    story, told, detector = Story(), Told(), NotFinite()
    for place, row in enumerate(rows):
        if place == cut:
            detector = NotFinite(json.loads(json.dumps(detector.state())))
        if isinstance(row, Restart):
            detector.restart(row, story, told)
        else:
            detector.add(row, story, told)
    detector.finish(story, told)
    return told


def events(rows: Iterable[Row | Restart]) -> list[CurveEvent]:
    """Each event as it was told last."""
    return list({news.event.number: news.event for news in told_of(rows)}.values())


def run(
    losses: Iterable[float | None], first: int = 1, every: int = 1, **more: Mapping[int, float] | float
) -> Iterator[Row]:
    """A row for each loss (None: none in it) with a learning rate; more values for all or for some steps."""
    for place, loss in enumerate(losses):
        step = first + place * every
        values = {"learning_rate": 3e-4} | ({} if loss is None else {"loss": loss})
        for name, value in more.items():
            if not isinstance(value, Mapping):
                values[name] = value
            elif step in value:
                values[name] = value[step]
        yield Row(step, values)


def spans(rows: Iterable[Row | Restart]) -> list[tuple[str, int, int | None, str]]:
    return [(e.metric, e.step, e.end_step, e.severity) for e in events(rows)]


def around(bad: Iterable[float | None], before: int = 60, after: int = 60) -> list[float | None]:
    return [2.5] * before + list(bad) + [2.5] * after


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_row_is_told_at_once_and_recovers_when_the_loss_is_a_number_for_a_while(bad: float) -> None:
    began, recovered = told_of(run(around([bad])))
    assert (began.change, began.event.step, began.event.alarm_step, began.event.severity) == (
        "began", 61, 61, "page",
    )  # fmt: skip
    assert (recovered.change, recovered.event.end_step, recovered.event.recovered_step) == (
        "recovered", 61, 62,
    )  # fmt: skip
    assert "the last loss that was a number: 2.5, logged at step 60" in began.event.message
    assert recovered.event.message == f"loss was {bad:g} at step 61 and is a number again since step 62"


def test_a_run_that_stays_nan_is_one_event_that_ends_with_the_log() -> None:
    began, ended = told_of(run(around([NAN] * 500, after=0)))
    assert (ended.change, ended.event.end_step, ended.event.recovered_step) == ("ended", 560, None)
    assert began.event.number == ended.event.number


def test_a_nan_in_the_last_row_and_two_disturbances() -> None:
    assert spans(run(around([NAN], after=0))) == [("loss", 61, 61, "page")]
    two = [*around([NAN], after=30), NAN, *[2.5] * 20]
    assert [s[1:3] for s in spans(run(two))] == [(61, 61), (92, 92)]
    near = [*around([NAN], after=4), NAN, *[2.5] * 20]
    assert [s[1:3] for s in spans(run(near))] == [(61, 66)], "one disturbance"


@pytest.mark.parametrize("before", range(6))
def test_a_nan_in_the_first_rows_is_told_within_five_rows(before: int) -> None:
    (event,) = events(run(around([NAN], before=before)))
    assert (event.step, event.end_step) == (before + 1, before + 1)
    assert event.alarm_step <= event.step + 5
    for bad in (NAN, INF):
        (event,) = events(run(around([bad] * 40, before=before, after=0)))
        assert event.step == before + 1
        assert event.alarm_step <= event.step + 2


def test_what_is_not_recorded_is_no_nan() -> None:
    plain = [Row(step, {"loss": NAN, "iteration_time": 3.1}) for step in range(1, 200)]
    assert events(plain) == [], "nan from the first row on"
    other = [
        Row(r.step, {"loss": r.values["loss"]}) for r in run([2.5 if s % 2 else NAN for s in range(300)])
    ]
    assert events(other) == [], "in alternate rows"
    assert events(run(2.5 if s % 3 == 0 else NAN for s in range(300))) == [], "every third"
    gone = [*other, *(Row(step, {"loss": NAN}) for step in range(301, 330))]
    assert [(e.step, e.end_step) for e in events(gone)] == [(301, 329)], "such a series can still be lost"


def test_records_of_another_kind_have_no_loss() -> None:
    rows = list(run([2.5] * 200))
    table = [
        r for row in rows for r in (row, Row(row.step, {"eval_loss": 2.4, "loss": NAN, "learning_rate": NAN}))
    ]
    assert events(table) == [], "a table has nan where a record of its own has nothing"
    seldom = [r for row in rows for r in ((row, *table[1:2]) if row.step % 50 == 0 else (row,))]
    assert events(seldom) == []
    few = [{"loss": 2.5, "grad_norm": 0.4}, {"loss": NAN, "grad_norm": NAN, "eval_loss": 2.4}] * 100
    assert events(Row(step, values) for step, values in enumerate(few)) == []
    assert events(r for row in rows for r in (row, Row(row.step, {"disk_used": 3.0}))) == []
    assert events(run(2.5 if s % 10 == 0 else None for s in range(300))) == [], "logged every ten rows"


def test_a_loss_that_stays_out_of_rows_that_are_whole_otherwise() -> None:
    """A blank cell of a CSV file that was made of Megatron-LM's lines."""
    cells = [*["2.5"] * 60, "", "", *["2.5"] * 40]
    text = "step,loss,grad_norm\n" + "".join(f"{at},{loss},0.4\n" for at, loss in enumerate(cells, 1))
    reader, watch = LogReader("csv"), CurveWatch()
    told = [n for item in reader.feed(text) for n in watch.add(item)] + watch.finish()
    assert [(n.change, n.event.kind, n.event.step, n.event.end_step) for n in told] == [
        ("began", "nan", 61, None), ("recovered", "nan", 61, 62),
    ]  # fmt: skip


def test_the_missing_loss_of_megatron_is_a_nan_unless_all_iterations_were_skipped() -> None:
    def row(step: int, skipped: int, **values: float) -> Row:
        lost = () if "loss" in values else ("loss",)
        return Row(step, {"learning_rate": 1e-4, "skipped_iterations": skipped, **values}, lost)

    good = [row(step, 0, loss=2.5, grad_norm=0.3) for step in range(10, 2010, 10)]
    assert spans([*good, row(2010, 0)]) == [("loss", 2010, 2010, "page")]
    assert spans([*good, row(2010, 4)]) == [("loss", 2010, 2010, "page")], "six were not skipped"
    assert spans([*good, row(2010, 10)]) == [("skipped_iterations", 2010, 2010, "page")]
    each = [row(step, 0, loss=2.5, grad_norm=0.3) for step in range(1, 200)]
    assert spans([*each, row(200, 1), *(row(s, 0, loss=2.5) for s in range(201, 230))]) == []


def test_the_trainer_prints_zero_for_nan() -> None:
    assert spans(run(around([0.0] * 4), grad_norm=dict.fromkeys(range(61, 65), NAN))) == [
        ("loss", 61, 64, "page")
    ]
    (event,) = events(run(around([0.0] * 30, after=0)))
    assert (event.step, event.alarm_step, event.end_step) == (61, 63, 90), "older ones print no grad norm"
    assert events(run(around([0.0]))) == [], "a batch without a single label"
    quantised = [0.0, 0.0001, 0.0, -0.0002, 0.0] * 40
    assert events(run(quantised, grad_norm={77: NAN})) == [], (
        "losses of reinforcement learning are often zero"
    )


def test_gradients_go_before_the_loss() -> None:
    began, *_ = told_of(run(around([2.5, NAN, NAN], after=0), grad_norm={61: NAN}))
    assert (began.event.metric, began.event.step, began.event.alarm_step) == ("loss", 61, 62)
    began, grew, _ = told_of(run(around([2.5, NAN, NAN], after=0), grad_norm={61: INF}, loss_scale=1.0))
    assert (began.event.metric, began.event.severity) == ("grad_norm", "notice")
    assert (grew.event.metric, grew.event.severity, grew.event.step) == ("loss", "page", 61)
    assert spans(run(around([], after=0), grad_norm={60: NAN})) == [("grad_norm", 60, 60, "notice")]
    assert spans(run(around([]), grad_norm={60: NAN})) == [], "the next loss is fine: the step was skipped"


def test_single_skipped_steps_are_counted_and_three_in_a_row_wake_somebody() -> None:
    assert events(run([2.5] * 2000, skipped_iterations={s: float(s % 400 == 0) for s in range(2001)})) == []
    three = {s: float(s in (700, 701, 702)) for s in range(1, 1001)}
    (event,) = events(run([2.5] * 1000, skipped_iterations=three))
    told = (event.metric, event.step, event.alarm_step, event.recovered_step)
    assert told == ("skipped_iterations", 700, 703, 713), "1, 1, 1 may be one skip, counted from the start"
    three |= {300: 1.0}
    (event,) = events(run([2.5] * 1000, skipped_iterations=three))
    assert (event.step, event.alarm_step, event.end_step) == (700, 702, 702), "it went back to 0 before"
    (event,) = events(run([2.5] * 1000, grad_norm=dict.fromkeys((700, 701, 702, 703), INF)))
    assert (event.step, event.alarm_step, event.value) == (700, 702, 4.0)


def test_ten_in_a_thousand_wake_somebody_unless_the_scaler_only_breathes() -> None:
    at = {300 + 17 * i for i in range(30)}
    (event,) = events(run([2.5] * 3000, skipped_iterations={s: float(s in at) for s in range(3001)}))
    assert (event.step, event.alarm_step, event.end_step, event.value) == (300, 300 + 17 * 9, max(at), 30.0)
    breath = {s: float(s % 101 == 0) for s in range(3001)}
    assert events(run([2.5] * 3000, skipped_iterations=breath)) == []


def test_the_first_search_for_a_loss_scale_is_normal_and_one_without_an_end_is_not() -> None:
    scale = {step: 2.0 ** (32 - step) for step in range(1, 18)}
    skipped = {step: float(step < 18) for step in range(1, 400)}
    assert events(run([9.0] * 399, loss_scale=scale, skipped_iterations=skipped)) == []
    jumps = dict.fromkeys(range(1, 200), 2.0**15) | {200 + i: 2.0 ** (32 - i) for i in range(18)}
    jumps |= dict.fromkeys(range(218, 400), 2.0**15)
    assert events(run([9.0] * 399, loss_scale=jumps)) == [], "started anew with the first scale"
    (event,) = events(run([9.0] * 200, skipped_iterations=dict.fromkeys(range(1, 201), 1.0), grad_norm=NAN))
    assert event.alarm_step == 36


def test_a_counter_of_all_since_the_start_is_not_counted_twice() -> None:
    """DeepSpeed says skipped=6 from the sixth skip on, Megatron-LM begins at 0 with every line."""
    total = {step: float(min(step, 6) + (step > 500)) for step in range(1, 1001)}
    assert events(run([2.5] * 1000, skipped_iterations=total)) == []
    rare = {step: float(step > 300) + float(step > 600) for step in range(1, 1001)}
    assert events(run([2.5] * 1000, skipped_iterations=rare)) == []
    by_line = {step: 8.0 if step == 10 else 2.0 if 600 <= step < 700 else 0.0 for step in range(10, 1001, 10)}
    (event,) = events(run([2.5] * 100, first=10, every=10, skipped_iterations=by_line))
    assert (event.step, event.alarm_step, event.value) == (600, 640, 20.0)


# BigScience, train/tr8b-104B/chronicles.md: the counter says 0 while DeepSpeed skips
TR8B = """
 iteration    17060/  159576 | consumed samples:      8126688 | learning rate: 5.948E-05 | lm loss: 2.665295E+00 | loss scale: 1048576.0 | grad norm: 453082.517 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration    17061/  159576 | consumed samples:      8128736 | learning rate: 5.948E-05 | lm loss: 2.667121E+00 | loss scale: 1048576.0 | grad norm: 464441.887 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration    17062/  159576 | consumed samples:      8130784 | learning rate: 5.948E-05 | lm loss: 4.374269E+00 | loss scale: 1048576.0 | grad norm: 464441.887 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration    17063/  159576 | consumed samples:      8132832 | learning rate: 5.948E-05 | lm loss: 4.365822E+00 | loss scale: 524288.0 | grad norm: 464441.887 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration    17064/  159576 | consumed samples:      8134880 | learning rate: 5.948E-05 | lm loss: 4.391485E+00 | loss scale: 262144.0 | grad norm: 464441.887 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration    17065/  159576 | consumed samples:      8136928 | learning rate: 5.948E-05 | lm loss: 4.404639E+00 | loss scale: 131072.0 | grad norm: 464441.887 | number of skipped iterations:   0 | number of nan iterations:   0 |
"""  # noqa: E501


def test_three_halvings_in_a_row_are_three_skipped_steps_whatever_the_counter_says() -> None:
    calm = TR8B.strip("\n").splitlines()[0]
    lines = [calm.replace("17060", str(step)) for step in range(16900, 17060)] + TR8B.strip("\n").splitlines()
    reader, watch = LogReader(), CurveWatch()
    told = [n for item in reader.feed("\n".join(lines) + "\n") for n in watch.add(item)] + watch.finish()
    skips = [n.event for n in told if n.event.kind == "nan"]
    assert {(e.metric, e.step, e.alarm_step) for e in skips} == {("skipped_iterations", 17063, 17065)}


def test_a_run_that_went_back_ends_the_event() -> None:
    back: list[Row | Restart] = [
        *run(around([NAN] * 3, after=0)),
        Restart(40, 63),
        *run([2.5] * 100, first=40),
    ]
    assert spans(back) == [("loss", 61, 63, "page")]


def test_saved_anywhere_it_goes_on_with_the_same_result() -> None:
    rows: list[Row | Restart] = [
        *run([9.0] * 30, loss_scale={s: 2.0 ** (32 - s) for s in range(1, 18)}),
        *run(around([NAN, 2.5, NAN, 2.5, 2.5]), first=31, grad_norm={90: NAN, 95: INF}, loss_scale=65536.0),
        Restart(100),
        *run(around([NAN, 0.0, 0.0, 0.0, 0.0], before=80), first=100, grad_norm=0.4),
        *run([2.5, None, NAN, NAN], first=300, skipped_iterations=1.0),
    ]
    whole = told_of(rows)
    assert len(whole) >= 6
    for cut in range(0, len(rows), 3):
        assert repr(told_of(rows, cut)) == repr(whole), f"cut before row {cut}"
    assert len(json.dumps(NotFinite().state())) < 3000


def test_a_table_with_the_loss_alone_that_leaves_it_out_once() -> None:
    rows = [Row(step, {} if step == 301 else {"loss": 2.5}) for step in range(1, 400)]
    assert spans(rows) == [("loss", 301, 301, "page")]
    assert spans([Row(step, {} if step % 10 else {"loss": 2.5}) for step in range(1, 999)]) == []
