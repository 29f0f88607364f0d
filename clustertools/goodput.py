"""How often to save, how much of the time is training then, and how many spare nodes to keep. Pure formulas.

    plan = advise(Costs(mtbf_seconds=8860, save_seconds=300, restart_seconds=300), interval_seconds=3600)
    plan.best.interval_seconds, plan.best.ettr, plan.now.ettr

ETTR, the effective training time ratio, is productive step time that was kept, by wall time.

    Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", 2024
    Young, "A first order approximation to the optimum checkpoint interval", 1974
    Daly, "A higher order estimate of the optimum checkpoint interval", 2006
    Aupy, Robert, Vivien et al., "Checkpointing algorithms and fault prediction", 2013 (RFO, exact optimum)

Intervals reach from save to save, the save included. All times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clustertools.errors import ConfigError

DAY_SECONDS = 86400.0
#: The interval may be anything that costs at most this share of all time more than the best one.
FLAT_SHARE = 0.01
#: Kokolis et al., table of MTTF by job size: 1,024 GPUs (128 nodes), from the rate of node failures and seen.
RSC_HARDWARE_MTTF_HOURS, RSC_SEEN_MTTF_HOURS = 28.8, 7.9


def mttf_seconds(nodes: float, failures_per_node_day: float) -> float:
    """Mean time to failure of a job on `nodes` nodes: 1 / (N r)."""
    return DAY_SECONDS / (nodes * failures_per_node_day)


def failure_chance(units: float, chance_each: float) -> float:
    """The chance that at least one of `units` fails, when each does with `chance_each` by itself."""
    return -math.expm1(units * math.log1p(-chance_each)) if chance_each < 1 else 1.0


def failure_chance_in(failures_per_day: float, seconds: float) -> float:
    """The chance of at least one failure within a time, at that rate."""
    return -math.expm1(-failures_per_day * seconds / DAY_SECONDS)


def kokolis_interval(mtbf_seconds: float, save_seconds: float) -> float:
    """sqrt(2 w / (N r))."""
    return math.sqrt(2 * save_seconds * mtbf_seconds)


def kokolis_ettr(
    mtbf_seconds: float, interval_seconds: float, save_seconds: float, restart_seconds: float
) -> float:
    """1 - N r (u0 + interval/2) - w/interval: good while the losses are small, too low beyond; at least 0."""
    lost = (restart_seconds + interval_seconds / 2) / mtbf_seconds + save_seconds / interval_seconds
    return max(0.0, 1.0 - lost)


def young_interval(mtbf_seconds: float, save_seconds: float) -> float:
    """sqrt(2 mu C) + C."""
    return math.sqrt(2 * mtbf_seconds * save_seconds) + save_seconds


def daly_interval(mtbf_seconds: float, save_seconds: float, restart_seconds: float) -> float:
    """sqrt(2 (mu + D + R) C) + C."""
    return math.sqrt(2 * (mtbf_seconds + restart_seconds) * save_seconds) + save_seconds


def rfo_interval(mtbf_seconds: float, save_seconds: float, restart_seconds: float) -> float:
    """sqrt(2 (mu - (D + R)) C); 0 where a restart takes longer than the time between two failures."""
    return math.sqrt(2 * max(0.0, mtbf_seconds - restart_seconds) * save_seconds)


def exact_interval(mtbf_seconds: float, save_seconds: float) -> float:
    """The T with the greatest `exact_ettr`. Where it is does not depend on what a restart costs.

    With x = T/mu and c = C/mu it solves (1 - x + c) e^x = 1, x > c: one solution, found by halving.
    """
    if save_seconds <= 0:
        return 0.0
    c = save_seconds / mtbf_seconds
    low, high = c, c + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        # written without 1 - 1, which would drown a c of 1e-9
        if (c - middle) * math.exp(middle) + math.expm1(middle) > 0:
            low = middle
        else:
            high = middle
    return mtbf_seconds * (low + high) / 2


def exact_ettr(
    mtbf_seconds: float,
    interval_seconds: float,
    save_seconds: float,
    restart_seconds: float,
    down_seconds: float = 0.0,
) -> float:
    """(T - C) / ((mu + D) e^(R/mu) (e^(T/mu) - 1)): exact for failures without memory, whatever is lost.

    Nothing fails in `down_seconds` (D); `restart_seconds` (R) may be hit by the next failure.
    """
    grows = (mtbf_seconds + down_seconds) * math.exp(min(700.0, restart_seconds / mtbf_seconds))
    return max(0.0, interval_seconds - save_seconds) / (
        grows * math.expm1(min(700.0, max(1e-12, interval_seconds / mtbf_seconds)))
    )


def spares(machines: int, chance_each: float, confidence: float = 0.99) -> int:
    """The least number of spare machines that is enough with `confidence`, when each of `machines` fails by
    itself with `chance_each` until spares are filled up again. Binomial, as ByteRobust (2025) sizes its
    standby machines. Raises ValueError when `chance_each` is no chance.
    """
    if not 0 <= chance_each <= 1:
        raise ValueError(f"{chance_each} is not a chance")
    if chance_each in (0.0, 1.0):
        return machines if chance_each else 0
    # logarithms: (1 - p)^n is 0 in floating point for a large cluster
    log_term, total, k = machines * math.log1p(-chance_each), 0.0, 0
    odds = math.log(chance_each) - math.log1p(-chance_each)
    while True:
        total += math.exp(log_term)
        if total >= confidence or k == machines:
            return k
        log_term += math.log(machines - k) - math.log(k + 1) + odds
        k += 1


def rate_bounds(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The expected count may be anything between these two when `count` was seen (Poisson, Garwood 1936)."""
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else _where(lambda mean: 1 - _poisson_at_most(count - 1, mean) < tail, count)
    return low, _where(lambda mean: _poisson_at_most(count, mean) > tail, count)


def _poisson_at_most(count: int, mean: float) -> float:
    if mean <= 0:
        return 1.0
    terms = (math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))
    return min(1.0, math.fsum(terms))


def _where(below: Callable[[float], bool], count: int) -> float:
    """The place where `below` turns from true to false."""
    low, high = 0.0, 20.0 + 3.0 * count
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Costs:
    """What saving and failing cost a job. `mtbf_seconds` is of the whole job, not of one node.

    `save_seconds` is how long a save holds the training up, not how long its background part takes.
    `restart_seconds`: from the last step before a failure to the first after it, without the steps that are
    trained again. `step_seconds`, `checkpoint_bytes`: 0 when not known.
    """

    mtbf_seconds: float
    save_seconds: float
    restart_seconds: float
    step_seconds: float = 0.0
    checkpoint_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What is to be expected of one interval.

    `ettr` is the exact one for failures without memory, `ettr_small_loss` Kokolis' closed form.
    `saving`, `repeating`, `restarting` are shares of all time: saves, steps trained twice, restarts.
    `steps` and `bytes_per_day` are 0 when nobody knows.
    """

    interval_seconds: float
    ettr: float
    ettr_small_loss: float
    saving: float
    repeating: float
    restarting: float
    steps: int = 0
    bytes_per_day: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`best` is what to do, `now` what is done (None: not told); between the `flat` ends it hardly matters.

    `methods` has the interval of every formula by its name.
    """

    costs: Costs
    best: Expected
    now: Expected | None
    flat: tuple[float, float]
    methods: Mapping[str, float] = field(default_factory=dict)
    failures_per_day: float = 0.0
    failure_chance_per_day: float = 0.0


def advise(costs: Costs, interval_seconds: float = 0.0) -> Plan:
    """How often to save. Raises ConfigError for costs that cannot be."""
    for name in ("mtbf_seconds", "save_seconds", "restart_seconds", "step_seconds", "checkpoint_bytes"):
        value = getattr(costs, name)
        if not math.isfinite(value) or value < 0 or (name == "mtbf_seconds" and value == 0):
            raise ConfigError(f"{name.replace('_', ' ')} {value:g}: expected a number above 0")
    if interval_seconds and interval_seconds <= costs.save_seconds:
        raise ConfigError(
            f"a save every {interval_seconds:g} s that takes {costs.save_seconds:g} s leaves no time to "
            "train: is the interval the time from save to save?"
        )
    mu, w, u0 = costs.mtbf_seconds, costs.save_seconds, costs.restart_seconds
    best = _whole_steps(costs, exact_interval(mu, w))
    return Plan(
        costs,
        best=expected(costs, best),
        now=expected(costs, interval_seconds) if interval_seconds else None,
        flat=_flat(costs, best),
        methods={
            "exact": exact_interval(mu, w),
            "kokolis": kokolis_interval(mu, w),
            "young": young_interval(mu, w),
            "daly": daly_interval(mu, w, u0),
            "rfo": rfo_interval(mu, w, u0),
        },
        failures_per_day=DAY_SECONDS / mu,
        failure_chance_per_day=failure_chance_in(DAY_SECONDS / mu, DAY_SECONDS),
    )


def expected(costs: Costs, interval_seconds: float) -> Expected:
    """What comes of saving every `interval_seconds`, which must be longer than one save."""
    mu, w, u0 = costs.mtbf_seconds, costs.save_seconds, costs.restart_seconds
    ettr = exact_ettr(mu, interval_seconds, w, u0)
    saving = ettr * w / (interval_seconds - w)
    # what is left is split as the small-loss formula does: a restart, and half an interval, per failure
    left, half = max(0.0, 1.0 - ettr - saving), interval_seconds / 2
    restarting = left * u0 / (u0 + half)
    steps = (interval_seconds - w) / costs.step_seconds if costs.step_seconds else 0
    return Expected(
        interval_seconds,
        ettr,
        kokolis_ettr(mu, interval_seconds, w, u0),
        saving,
        left - restarting,
        restarting,
        max(1, round(steps)) if costs.step_seconds else 0,
        costs.checkpoint_bytes * DAY_SECONDS / interval_seconds,
    )


def _whole_steps(costs: Costs, interval_seconds: float) -> float:
    """The interval as whole steps, at least one; the least where a save costs nothing."""
    if not costs.step_seconds:
        return max(interval_seconds, 1.0)
    steps = max(1, round((interval_seconds - costs.save_seconds) / costs.step_seconds))
    return costs.save_seconds + steps * costs.step_seconds


def _flat(costs: Costs, best: float) -> tuple[float, float]:
    """The shortest and the longest interval that cost at most FLAT_SHARE of all time more than the best."""
    mu, w, u0 = costs.mtbf_seconds, costs.save_seconds, costs.restart_seconds
    least = exact_ettr(mu, best, w, u0) - FLAT_SHARE

    def good(interval: float) -> bool:
        return exact_ettr(mu, interval, w, u0) >= least

    shortest, bad = best, w
    for _ in range(80):
        middle = (shortest + bad) / 2
        shortest, bad = (middle, bad) if good(middle) else (shortest, middle)
    longest, bad = best, 2 * best
    while good(bad) and bad < 1e6 * mu:
        longest, bad = bad, 2 * bad
    for _ in range(80):
        middle = (longest + bad) / 2
        longest, bad = (middle, bad) if good(middle) else (longest, middle)
    return shortest, longest
