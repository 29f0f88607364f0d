"""The scorer of benchmarks/loss: tiny runs counted by hand, each public rule on a series made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loss import report
from benchmarks.loss.__main__ import CORPUS, main, score_all
from benchmarks.loss.peers import (
    PEERS,
    Moving,
    Ordered,
    above_last,
    ewma,
    kill_loss_spike,
    lightning,
    mean_deviations,
    median_mad,
    nan_check,
    slow_steps,
    spiky_loss,
    z_score,
    zclip,
)
from benchmarks.loss.runs import LabelError, Run, labelled, load
from benchmarks.loss.score import Alarm, Score, add, groups, quantile


def run_of(steps: Sequence[int], loss: Sequence[Any] | None = None, grad: bool = True, **labels: Any) -> Run:
    cells = loss if loss is not None else [2.0] * len(steps)
    lines = ["step,loss,grad_norm" if grad else "step,loss"]
    lines += [
        f"{step},{cell},0.5" if grad else f"{step},{cell}" for step, cell in zip(steps, cells, strict=True)
    ]
    return labelled("a_run", "\n".join(lines) + "\n", labels)


def scored(run: Run, alarms: Sequence[Alarm], family: str = "loss") -> Score:
    score = Score("one", family)
    add(score, run, alarms)
    return score


SPIKE = {"kind": "spike", "start": 40, "end": 42}


def wavy(count: int, level: float = 2.0, size: float = 0.01) -> list[tuple[int, float]]:
    """Values around a level whose median absolute deviation is about `size`."""
    return [(i, level + size * (0, 1, -1, 2, -2)[i % 5]) for i in range(count)]


class TestLabels:
    def test_an_event_is_known_by_its_rows(self) -> None:
        run = run_of(range(0, 1000, 10), events=[{"kind": "spike", "start": 200, "end": 229, "sure": False}])
        (event,) = run.events
        assert (event.first, event.last, event.sure) == (20, 22, False)

    def test_the_first_pass_over_a_step_counts_and_ends_where_the_run_goes_back(self) -> None:
        run = run_of([1, 2, 3, 4, 2, 3, 4, 5], events=[{"kind": "spike", "start": 3, "end": 9}])
        assert (run.events[0].first, run.events[0].last) == (2, 3)

    def test_a_place_is_found_in_the_pass_that_was_told(self) -> None:
        run = run_of([1, 2, 3, 4, 2, 3, 4, 5])
        assert run.row_of(3, upto=7) == 5
        assert run.row_of(3, upto=4) == 2
        assert run_of([0, 10, 20, 30]).row_of(15, upto=3) == 1

    def test_clean_rows_are_outside_warm_up_events_aftermath_and_ignored_spans(self) -> None:
        run = run_of(range(100), warm_up=10, events=[SPIKE], ignore=[[80, 84]])
        dirty = {*range(10), *range(39, 58), *range(80, 85)}
        assert [row for row in range(100) if not run.clean[row]] == sorted(dirty)

    @pytest.mark.parametrize(
        ("text", "labels", "says"),
        [
            ("loss\n1\n", {}, "`step`"),
            ("step,loss\n", {}, "no rows"),
            ("step,loss\n1,2,3\n", {}, "row 0 has 3 cells of 2"),
            ("step,loss\n1,2\n", {"events": [{"kind": "oops", "start": 1, "end": 1}]}, "'oops'"),
            ("step,loss\n1,2\n", {"events": [{"kind": "nan", "start": 7, "end": 9}]}, "7 to 9"),
            ("step,loss\n1,2\n", {"events": [{"kind": "nan", "start": 1}]}, "needs `start` and `end`"),
        ],
    )
    def test_a_wrong_label_is_said(self, text: str, labels: dict[str, Any], says: str) -> None:
        with pytest.raises(LabelError, match=says):
            labelled("a_run", text, labels)

    def test_a_folder_is_read_by_set_and_an_absent_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "labels.yaml").write_text("runs: {a: {set: tune}, b: {set: score}, c: {set: score}}")
        for name in "ab":
            (tmp_path / f"{name}.csv").write_text("step,loss\n1,2.0\n2,nan\n3,\n")
        runs, absent = load(tmp_path, "score")
        assert [run.name for run in runs] == ["b"]
        assert absent == ["c"]
        assert [row for row, _ in runs[0].series("loss")] == [0, 1]
        with pytest.raises(LabelError, match="labels"):
            load(tmp_path / "nowhere")

    def test_step_time_comes_from_the_column_the_speed_or_the_clock(self) -> None:
        speed = labelled("a", "step,tflops_per_gpu\n1,4\n2,2\n", {})
        clock = labelled("a", "step,time\n10,100\n20,150\n30,140\n40,160\n", {})
        assert speed.step_seconds() == [(0, 0.25), (1, 0.5)]
        assert clock.step_seconds() == [(1, 5.0), (3, 2.0)]


class TestScoring:
    @pytest.mark.parametrize(("place", "found"), [(38, 0), (39, 1), (42, 1), (47, 1), (48, 0)])
    def test_an_event_is_found_from_a_row_before_to_five_after(self, place: int, found: int) -> None:
        score = scored(run_of(range(100), events=[SPIKE]), [Alarm(place, place, "spike")])
        assert score.recall() == (found, 1)
        # what lies in the aftermath is neither right nor wrong; a row too early is wrong
        assert (score.right_groups, len(score.false)) == (found, int(place == 38))

    def test_delay_is_from_the_first_bad_row_to_the_row_of_the_telling(self) -> None:
        run = run_of(range(0, 1000, 10), events=[{"kind": "spike", "start": 400, "end": 420}])
        late = scored(run, [Alarm(45, 40, "spike"), Alarm(43, 41, "spike")])
        assert late.delays() == [3]
        assert late.delays(steps=True) == [30]
        assert scored(run, [Alarm(39, 39, "spike")]).delays() == [0]

    def test_alarms_of_another_family_say_nothing(self) -> None:
        run = run_of(range(100), events=[SPIKE])
        alarms = [Alarm(41, 41, "grad_burst"), Alarm(80, 80, "step_time"), Alarm(20, 20, "grad_burst")]
        loss = scored(run, alarms)
        assert loss.recall() == (0, 1)
        assert loss.wrong == []
        assert loss.precision() is None
        assert scored(run, alarms, "all").recall() == (1, 1)
        assert len(scored(run, alarms, "all").false) == 2
        # a burst of the grad norm beside a spike of the loss is no false one
        assert len(scored(run, alarms, "grad").false) == 1

    def test_a_run_without_the_metric_does_not_count(self) -> None:
        score = scored(run_of(range(100), grad=False), [], "grad")
        assert score.runs == 0
        assert score.per_10k() is None

    def test_alarms_close_together_are_one(self) -> None:
        places = [10, 19, 28, 38]
        assert [len(g) for g in groups([Alarm(p, p) for p in places])] == [3, 1]
        score = scored(run_of(range(100)), [Alarm(p, p) for p in places])
        assert len(score.false) == 2
        assert score.per_10k() == 200.0

    def test_isolated_outliers_are_false_only_in_strict_figures(self) -> None:
        score = scored(run_of(range(100), events=[SPIKE], isolated=[70]), [Alarm(40, 40), Alarm(70, 70)])
        assert (score.precision(), score.precision(strict=True)) == (1.0, 0.5)
        assert score.per_10k() == 0.0
        assert score.per_10k(strict=True) == pytest.approx(1e4 / 81)
        # with a second alarm beside it, it is not only the outlier
        score = scored(run_of(range(100), isolated=[70]), [Alarm(70, 70), Alarm(75, 75)])
        assert score.precision() == 0.0

    def test_an_alarm_in_warm_up_or_in_an_ignored_span_is_nothing(self) -> None:
        run = run_of(range(100), warm_up=20, ignore=[[60, 69]])
        assert scored(run, [Alarm(5, 5), Alarm(65, 65)]).wrong == []

    def test_the_kind_is_right_when_one_alarm_that_finds_the_event_says_it(self) -> None:
        run = run_of(range(100), events=[SPIKE])
        assert scored(run, [Alarm(40, 40, "divergence")]).right_kinds() == 0.0
        assert scored(run, [Alarm(40, 40, "divergence"), Alarm(41, 41, "spike")]).right_kinds() == 1.0

    def test_the_worst_run_can_be_left_out_and_clean_runs_are_counted(self) -> None:
        score = Score("one", "loss")
        for name, places in (("worst", (10, 30, 50)), ("other", (10,)), ("calm", ())):
            run = run_of(range(100))
            run.name = name
            add(score, run, [Alarm(p, p) for p in places])
        assert score.per_10k() == pytest.approx(1e4 * 4 / 300)
        assert score.per_10k(without_worst=True) == pytest.approx(1e4 / 200)
        assert score.clean_alarmed() == 2
        assert len(score.clean_runs) == 3

    def test_quantiles_are_values_that_were_seen(self) -> None:
        values = list(range(10))
        assert quantile(values, 0.5) == 4
        assert quantile(values, 0.9) == 8
        assert quantile([3], 0.9) == 3
        assert quantile([], 0.5) is None

    def test_recall_and_precision_together(self) -> None:
        run = run_of(range(100), events=[SPIKE])
        ours, peer = scored(run, [Alarm(40, 40)]), scored(run, [Alarm(40, 40), Alarm(80, 80)])
        assert report._better(ours, peer)
        assert not report._better(peer, ours)
        assert not report._better(ours, ours)


class TestReport:
    def test_failures_show_the_rows_and_what_was_said(self) -> None:
        run = run_of(
            range(100), loss=[2.0] * 40 + [7.5] * 3 + [2.0] * 57, events=[SPIKE], about="bad batches"
        )
        score = scored(run, [Alarm(72, 70, "spike", "notice", "loss 2 at step 70")])
        told = "\n".join(report.failures(score))
        assert "MISS a_run: spike at 40-42 (bad batches)" in told
        assert "7.5" in told
        assert "FALSE a_run: spike at 70" in told
        assert "notice: loss 2 at step 70" in told

    def test_the_program_prints_a_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = ["step,loss"] + [f"{i},{'nan' if i == 150 else 2 + 0.01 * (i % 3)}" for i in range(200)]
        (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
        (tmp_path / "labels.yaml").write_text(
            "runs: {a: {set: score, events: [{kind: nan, start: 150, end: 150}]}}"
        )
        assert main([str(tmp_path), "--detector", "nan_check"]) == 0
        assert "| nan_check | 1.00 (1/1) | 1.00 | 1.00 | 1.00 | 0.00 |" in capsys.readouterr().out
        assert main([str(tmp_path), "--detector", "nobody"]) == 2
        assert "nobody" in capsys.readouterr().err


class TestRules:
    def test_every_rule_is_quiet_on_a_calm_run_and_on_too_few_rows(self) -> None:
        lines = ["step,loss,grad_norm,step_seconds"]
        lines += [f"{i},{2 + v},{1 + v},{1 + v}" for i, v in wavy(600, 0.0)]
        long, short = labelled("a", "\n".join(lines), {}), labelled("b", "\n".join(lines[:4]), {})
        for peer in PEERS.values():
            assert not [*peer.fires(long), *peer.fires(short)], peer.name

    def test_kill_loss_spike_waits_for_five_rows_running(self) -> None:
        calm = [(i, 2.0) for i in range(120)]
        four, five = [(120 + i, 9.0) for i in range(4)], [(120 + i, 9.0) for i in range(5)]
        after = [(125 + i, 2.0) for i in range(20)]
        assert kill_loss_spike(calm + four + after, 200) == []
        assert kill_loss_spike(calm + five + after, 200) == [124]

    def test_kill_loss_spike_knows_a_loss_that_stays_at_its_cap(self) -> None:
        series = [(i, 11.0 if i == 0 or i >= 220 else 3.0) for i in range(400)]
        fired = kill_loss_spike([(i, min(v, 10.0) if i else v) for i, v in series], 400)
        # five rows running first, half of the window of a hundred at 10 later
        assert fired[0] == 224
        assert 271 in fired
        assert 399 in fired

    def test_ten_times_the_largest_of_the_first_hundred(self) -> None:
        series = [(i, 3.0) for i in range(100)] + [(100, 29.9), (101, 30.0), (102, -31.0)]
        assert spiky_loss(series) == [101, 102]

    def test_nan_check(self) -> None:
        assert nan_check([(0, 1.0), (1, math.nan), (2, math.inf), (3, -math.inf)]) == [1, 2, 3]

    def test_lightning_needs_three_times_the_mean_of_ten(self) -> None:
        calm = [(i, 1.0) for i in range(10)]
        assert lightning([*calm, (10, 2.9), (11, 1.0)]) == []
        assert lightning([*calm, (10, 3.1), (11, 3.1), (12, math.nan), (13, 1.0)]) == [10, 11, 12]

    def test_one_and_a_half_times_the_last(self) -> None:
        assert above_last([(0, 1.0), (1, 1.5), (2, 2.26), (3, 2.0), (4, math.nan), (5, 9.0)]) == [2]

    def test_z_scores_go_both_ways(self) -> None:
        calm = wavy(30)
        assert z_score([*calm, (30, 2.5), (31, 2.0)]) == [30]
        assert z_score([*calm, (30, 1.5)]) == [30]
        assert z_score([*wavy(29), (29, 2.5)]) == []

    def test_six_deviations_of_a_full_window_and_a_blind_one_after_inf(self) -> None:
        calm = wavy(128)
        assert mean_deviations([*calm, (128, 2.07), (129, 2.11)], 128, 6) == [129]
        assert mean_deviations([*wavy(127), (127, 9.0)], 128, 6) == []
        assert mean_deviations([*wavy(127), (127, 9.0)], 128, 6, least=64, spare=1) == [127]
        blind = [*calm, (128, math.inf), *((129 + i, v) for i, v in wavy(127)), (256, 9.0), (257, 9.0)]
        assert mean_deviations(blind, 128, 6) == [128, 257]

    def test_an_ewma_sees_a_jump_and_then_is_wide(self) -> None:
        series = [*wavy(300), (300, 3.0), (301, 2.0), (302, 2.5)]
        assert ewma(series, 6) == [300]
        assert ewma([*wavy(40), (40, 3.0)], 6) == []

    def test_a_median_is_not_blinded_and_cries_on_a_flat_series(self) -> None:
        series = [*wavy(128), (128, 3.0), (129, 2.0), (130, 3.0), (131, 1.0)]
        assert median_mad(series, 10) == [128, 130]
        assert median_mad([(i, 2.0) for i in range(100)] + [(100, 2.0078125)], 16) == [100]
        assert median_mad([*wavy(128), (128, 2.1)], 10) == [] != median_mad([*wavy(128), (128, 2.1)], 6)

    def test_zclip_lets_a_clipped_value_in(self) -> None:
        series = [*wavy(100, 1.0), *((100 + i, 50.0) for i in range(3))]
        assert zclip(series) == [100, 101, 102]
        assert zclip([*wavy(20, 1.0), (20, 50.0)]) == []

    def test_slow_steps_are_medians_of_twenty_against_two_hundred(self) -> None:
        series = [(i, 1.0) for i in range(220)] + [(220 + i, 1.4) for i in range(30)]
        # the median of twenty is above after eleven of them; 1 / 1.4 = 0.71
        assert slow_steps(series, 0.75)[0] == 230
        assert slow_steps([(i, 1.2 if i >= 220 else 1.0) for i in range(250)], 0.75) == []
        assert slow_steps([(i, 1.2 if i >= 220 else 1.0) for i in range(250)], 0.95) != []

    def test_moving_figures_are_those_of_the_window(self) -> None:
        moving, ordered = Moving(7), Ordered(7)
        values = [3.0, 1e8, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 8.0, 9.0, 7.0, 9.0]
        for value in values:
            moving.add(value)
            ordered.add(value)
        window = values[-7:]
        mean = sum(window) / 7
        assert moving.mean() == pytest.approx(mean)
        assert moving.deviation(1) == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in window) / 6))
        middle = sorted(window)[3]
        assert ordered.median() == middle
        assert ordered.mad(middle) == sorted(abs(v - middle) for v in window)[3]
        ordered.size = 8
        ordered.add(7.5)
        window.append(7.5)
        assert ordered.mad(7.25) == sum(sorted(abs(v - 7.25) for v in window)[3:5]) / 2


#: What the watch does not reach on the scored corpus yet (docs/loss-scores.md). Take out what it has reached.
NOT_YET = ("loss: false_per_10k ",)


@pytest.mark.slow
def test_what_has_to_be_reached_on_the_scored_corpus() -> None:
    runs, absent = load(CORPUS, "score")
    assert len(runs) >= 50
    assert not absent
    scores = {(score.detector, score.family): score for score in score_all(runs)}
    told = report.wanted(scores)
    assert len(told) > 30
    missed = [text for text, good in told if not good and not text.startswith(NOT_YET)]
    assert missed == []
    # the open one has a floor of its own, so that it does not get worse unseen
    assert (scores["ours", "loss"].per_10k() or 0.0) <= 0.3
