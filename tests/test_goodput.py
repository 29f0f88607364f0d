"""The formulas of `clustertools plan`, against the tables of the papers that they are from."""

from __future__ import annotations

import math

import pytest

from clustertools.errors import ConfigError
from clustertools.goodput import (
    Costs,
    advise,
    daly_interval,
    exact_ettr,
    exact_interval,
    failure_chance,
    kokolis_ettr,
    kokolis_interval,
    mttf_seconds,
    rate_bounds,
    rfo_interval,
    spares,
    young_interval,
)

#: Aupy, Robert, Vivien et al. 2013, Table 2: C = R = 600 s, D = 60 s, one processor fails in 125 years.
#: mu, Young, Daly, RFO, optimum
AUPY = [
    (3849609, 68567, 68573, 67961, 68240),
    (1924805, 48660, 48668, 48052, 48320),
    (962402, 34584, 34595, 33972, 34189),
    (481201, 24630, 24646, 24014, 24231),
    (240601, 17592, 17615, 16968, 17194),
    (120300, 12615, 12648, 11982, 12218),
    (60150, 9096, 9142, 8449, 8701),
    (30075, 6608, 6673, 5941, 6214),
    (15038, 4848, 4940, 4154, 4458),
    (7519, 3604, 3733, 2869, 3218),
]
RSC = 6.5e-3  # failures of a node and day (Kokolis et al.), nodes of 8 GPUs
MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(("mtbf", "young", "daly", "rfo", "optimum"), AUPY)
def test_aupy_table_2(mtbf, young, daly, rfo, optimum):
    assert young_interval(mtbf, 600) == pytest.approx(young, abs=1)
    assert daly_interval(mtbf, 600, 660) == pytest.approx(daly, abs=1)
    assert rfo_interval(mtbf, 600, 660) == pytest.approx(rfo, abs=1)
    # the first two rows are printed 0.1 % higher than the formula gives
    assert exact_interval(mtbf, 600) == pytest.approx(optimum, rel=0.0015)
    methods = advise(Costs(mtbf, 600, 660)).methods
    assert [round(methods[name]) for name in ("young", "daly", "rfo")] == [
        pytest.approx(x, abs=1) for x in (young, daly, rfo)
    ]


@pytest.mark.parametrize("mtbf", [row[0] for row in AUPY])
def test_nothing_beats_the_exact_interval(mtbf):
    best = exact_interval(mtbf, 600)
    top = exact_ettr(mtbf, best, 600, 600, 60)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert exact_ettr(mtbf, best * factor, 600, 600, 60) < top


@pytest.mark.parametrize(
    ("interval_minutes", "printed"), [(60, 0.684), (5, 0.932)], ids=["every hour", "every 5 min"]
)
def test_kokolis_16000_gpus(interval_minutes, printed):
    mtbf = mttf_seconds(2000, RSC)
    assert kokolis_ettr(mtbf, interval_minutes * MINUTE, 0, 5 * MINUTE) == pytest.approx(printed, abs=0.0006)


@pytest.mark.parametrize(
    ("rate", "save", "best_minutes", "printed"),
    [(RSC, 300, 38.4, 0.706), (RSC, 10, 7.0, 0.919), (1e-3, 300, 98, 0.893)],
)
def test_kokolis_12000_gpus(rate, save, best_minutes, printed):
    mtbf = mttf_seconds(1500, rate)
    best = kokolis_interval(mtbf, save)
    assert best / MINUTE == pytest.approx(best_minutes, rel=0.003)
    assert kokolis_ettr(mtbf, best, save, 5 * MINUTE) == pytest.approx(printed, abs=0.0006)
    plan = advise(Costs(mtbf, save, 5 * MINUTE), best)
    assert plan.now is not None
    assert plan.now.ettr_small_loss == pytest.approx(printed, abs=0.0006)


@pytest.mark.parametrize(("gpus", "hours"), [(1024, 28.8), (16384, 1.80), (131072, 0.225)])
def test_kokolis_mttf_by_size(gpus, hours):
    assert mttf_seconds(gpus / 8, RSC) / HOUR == pytest.approx(hours, rel=0.003)


def test_llama_3():
    mtbf = 54 * 86400 / 419
    assert mtbf / HOUR == pytest.approx(3.093, abs=0.0005)
    assert kokolis_interval(mtbf, 300) / MINUTE == pytest.approx(43.1, abs=0.05)


def test_bloom_saved_for_40_s_every_3_h():
    plan = advise(Costs(10 * 86400, 40, 300, checkpoint_bytes=2.3e12), 3 * HOUR)
    assert plan.now is not None
    assert plan.now.saving == pytest.approx(0.0037, abs=0.00005)
    assert plan.now.bytes_per_day == pytest.approx(18.4e12)


def test_dlrover_a_thousand_cards():
    assert failure_chance(1000, 0.0027) == pytest.approx(0.933, abs=0.0005)
    assert failure_chance(3, 1.0) == 1.0


def test_byterobust_standby_machines():
    """The table (P99: 2, 2, 3, 4) holds for 0.0012 failures of a machine and day, which it does not print."""
    assert [spares(n, 0.0012) for n in (128, 256, 512, 1024)] == [2, 2, 3, 4]


def test_spares_at_the_edges():
    assert spares(100, 0.0) == 0
    assert spares(100, 1.0) == 100
    assert spares(0, 0.5) == 0
    # (1 - p)^n alone is 0 in floating point here
    assert 5000 < spares(100_000, 0.05) < 5200
    with pytest.raises(ValueError, match="not a chance"):
        spares(10, 1.2)


def test_shares_add_up_to_all_the_time():
    plan = advise(Costs(8861, 300, 300, step_seconds=7), 7200)
    for one in (plan.best, plan.now):
        assert one is not None
        assert one.ettr + one.saving + one.repeating + one.restarting == pytest.approx(1.0)
    assert (plan.best.interval_seconds - 300) % 7 == pytest.approx(0, abs=1e-6)
    assert plan.best.ettr > plan.now.ettr


def test_the_ends_of_the_flat_region_cost_one_percent():
    plan = advise(Costs(8861, 300, 300))
    for end in plan.flat:
        assert exact_ettr(8861, end, 300, 300) == pytest.approx(plan.best.ettr - 0.01, abs=1e-6)
    assert plan.flat[0] < plan.best.interval_seconds < plan.flat[1]


@pytest.mark.parametrize("mtbf", [1.0, 10.0, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("save", [0.0, 1e-3, 1.0, 600.0])
@pytest.mark.parametrize("restart", [0.0, 300.0, 1e5])
def test_no_figures_break_it(mtbf, save, restart):
    plan = advise(Costs(mtbf, save, restart, step_seconds=2.0), save + 100)
    for one in (plan.best, plan.now):
        assert one is not None
        assert 0 <= one.ettr <= 1 + 1e-9
        assert all(
            math.isfinite(x) for x in (one.saving, one.repeating, one.restarting, one.interval_seconds)
        )
    assert plan.best.steps >= 1
    assert plan.best.ettr >= plan.now.ettr - 0.02 or plan.best.steps == 1


def test_rare_failures_do_not_drown_in_rounding():
    assert exact_interval(1e12, 1.0) == pytest.approx(kokolis_interval(1e12, 1.0), rel=1e-3)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.390)])
def test_what_a_count_is_consistent_with(count, low, high):
    """Garwood's table, two-sided 95 %."""
    assert rate_bounds(count) == pytest.approx((low, high), abs=0.001)


@pytest.mark.parametrize(
    ("costs", "interval", "said"),
    [
        (Costs(0, 1, 1), 0, "mtbf seconds 0"),
        (Costs(math.nan, 1, 1), 0, "mtbf seconds nan"),
        (Costs(100, -1, 1), 0, "save seconds -1"),
        (Costs(100, 60, 1), 60, "leaves no time to train"),
    ],
)
def test_costs_that_cannot_be(costs, interval, said):
    with pytest.raises(ConfigError, match=said):
        advise(costs, interval)
