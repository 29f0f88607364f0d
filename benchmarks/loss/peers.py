"""The rules of public tools over a run, with their defaults, streaming: no row looks ahead.

Each rule takes a series of (row, value) and gives the rows at which it fires. Sources and defaults are in the
docstrings. Where a tool leaves something open (what a nan does to a running mean), it is said what we chose.
Values that were not logged in a row are no part of its series.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.loss.runs import Run

Series = Sequence[tuple[int, float]]
#: A standard deviation is 1.4826 median absolute deviations, for normally spread values.
SIGMAS_PER_MAD = 1.4826


class Moving:
    """Mean and standard deviation of the last `size` values. One that is not finite makes both nan."""

    def __init__(self, size: int) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self._sum = self._squares = self._shift = 0.0
        self._bad = self._since = 0

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        squares = self._squares
        if len(self.values) == self.values.maxlen:
            self._count(self.values[0], -1)
        rounded = self._squares < 1e-6 * squares
        self.values.append(value)
        self._count(value, 1)
        self._since += 1
        if rounded or self._since >= 4 * (self.values.maxlen or 1):
            self._anew()

    def _count(self, value: float, sign: int) -> None:
        if not math.isfinite(value):
            self._bad += sign
            return
        self._sum += sign * (value - self._shift)
        self._squares += sign * (value - self._shift) ** 2

    def _anew(self) -> None:
        """The rounding of old values goes out of the sums."""
        finite = [v for v in self.values if math.isfinite(v)]
        self._shift = sum(finite) / len(finite) if finite else 0.0
        self._sum = sum(v - self._shift for v in finite)
        self._squares = sum((v - self._shift) ** 2 for v in finite)
        self._since = 0

    def mean(self) -> float:
        return math.nan if self._bad else self._shift + self._sum / len(self.values)

    def deviation(self, spare: int = 0) -> float:
        """Divided by n - spare: 0 for the whole population, 1 for a sample."""
        n = len(self.values)
        if self._bad or n <= spare:
            return math.nan
        return math.sqrt(max(0.0, self._squares - self._sum * self._sum / n) / (n - spare))


class Ordered:
    """Median and median absolute deviation of the last `size` finite values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> float | None:
        """Gives the value that fell out."""
        if not math.isfinite(value):
            return None
        self._queue.append(value)
        insort(self._sorted, value)
        if len(self._queue) <= self.size:
            return None
        old = self._queue.popleft()
        del self._sorted[bisect_left(self._sorted, old)]
        return old

    def median(self) -> float:
        n = len(self._sorted)
        return (self._sorted[(n - 1) // 2] + self._sorted[n // 2]) / 2

    def mad(self, middle: float) -> float:
        """The median distance from `middle`: the sorted values are walked outwards from it."""
        values, n = self._sorted, len(self._sorted)
        right = bisect_left(values, middle)
        left = right - 1
        before = distance = 0.0
        for _ in range(n // 2 + 1):
            before = distance
            if right < n and (left < 0 or values[right] - middle <= middle - values[left]):
                distance = values[right] - middle
                right += 1
            else:
                distance = middle - values[left]
                left -= 1
        return distance if n % 2 else (before + distance) / 2


def kill_loss_spike(series: Series, rows: int) -> list[int]:
    """mosaicml/llm-foundry KillLossSpike: 2 x the mean of the window on more than 4 rows running, or half
    of the window above the cap. Window 5% of the run, at least 100; cap: the largest of the first window, at
    most 10.
    """
    size = max(100, round(0.05 * rows))
    window = Moving(size)
    cap, above, fired, high = math.inf, 0, [], 0
    for count, (row, loss) in enumerate(series):
        if count == size:
            cap = min(10.0, max(window.values))
        if count >= size:
            above = above + 1 if loss >= 2 * window.mean() else 0
            if above > 4 or (count >= 2 * size and high >= size / 2):
                fired.append(row)
            if count >= 2 * size:
                high -= window.values[0] >= cap
            high += loss >= cap
        window.add(loss)
    return fired


def spiky_loss(series: Series, factor: float = 10.0, first: int = 100) -> list[int]:
    """NVIDIA/Megatron-LM rerun state machine: abs(loss) >= 10 x the largest of the first 100."""
    largest = max((abs(v) for _, v in series[:first] if math.isfinite(v)), default=math.inf)
    return [row for row, loss in series[first:] if abs(loss) >= factor * largest]


def nan_check(series: Series) -> list[int]:
    """Composer NaNMonitor, Megatron-LM: the value is not finite."""
    return [row for row, value in series if not math.isfinite(value)]


def lightning(series: Series, window: int = 10, times: float = 2.0) -> list[int]:
    """Lightning SpikeDetection: worse than the last value and abs(loss - mean of 10) >= 2 x mean; not
    finite is a spike. A spike does not enter the mean, as the tool raises before it is added. Warm-up 1."""
    mean, last, fired = Moving(window), math.inf, []
    for row, loss in series:
        if len(mean) and (
            not math.isfinite(loss) or (loss > last and abs(loss - mean.mean()) >= times * abs(mean.mean()))
        ):
            fired.append(row)
            continue
        mean.add(loss)
        last = loss
    return fired


def above_last(series: Series, times: float = 1.5) -> list[int]:
    """InternEvo monitor: 1.5 x the loss of the step before."""
    return [row for (_, before), (row, loss) in pairwise(series) if loss > times * before]


def z_score(series: Series, window: int = 30, threshold: float = 3.0) -> list[int]:
    """W&B automations' MetricZScoreFilter: 3 standard deviations of the last 30, in both directions."""
    moving, fired = Moving(window), []
    for row, value in series:
        if len(moving) == window and abs(value - moving.mean()) > threshold * moving.deviation():
            fired.append(row)
        moving.add(value)
    return fired


def mean_deviations(
    series: Series, window: int, sigmas: float, least: int | None = None, spare: int = 0
) -> list[int]:
    """More than `sigmas` standard deviations above the mean of the last `window`, once there are `least`.

    OLMo-core StabilityMonitor (128, 6, full window), its SkipStep optimizers and Levanter's SkipStepConfig
    (the sample's deviation, from 64 on), the `--skip_grad_norm` of an sd-scripts fork (200, 2.5).
    """
    moving, fired = Moving(window), []
    least = window if least is None else least
    for row, value in series:
        if len(moving) >= least and value > moving.mean() + sigmas * moving.deviation(spare):
            fired.append(row)
        moving.add(value)
    return fired


def ewma(series: Series, threshold: float, decay: float = 0.98) -> list[int]:
    """An exponential moving mean and variance. Warm-up 1 / (1 - decay) rows, values that are not finite left
    out: our choice, no tool states it."""
    mean = variance = 0.0
    count, fired, warm_up = 0, [], round(1 / (1 - decay))
    for row, value in series:
        if count >= warm_up and value > mean + threshold * math.sqrt(variance):
            fired.append(row)
        if not math.isfinite(value):
            continue
        count += 1
        weight = max(1 - decay, 1 / count)
        change = value - mean
        mean += weight * change
        variance = (1 - weight) * (variance + weight * change * change)
    return fired


def median_mad(series: Series, threshold: float, window: int = 128) -> list[int]:
    """More than `threshold` robust sigmas above the median of the last 128, from half a window on."""
    ordered, fired = Ordered(window), []
    for row, value in series:
        if len(ordered) >= window // 2:
            middle = ordered.median()
            if value > middle and value - middle > threshold * SIGMAS_PER_MAD * ordered.mad(middle):
                fired.append(row)
        ordered.add(value)
    return fired


def zclip(series: Series, decay: float = 0.97, threshold: float = 2.5, warm_up: int = 25) -> list[int]:
    """bluorion-com/ZClip: z of a moving mean and variance above 2.5; the clipped value enters them."""
    first: list[float] = []
    mean = variance = 0.0
    fired = []
    for row, value in series:
        if not math.isfinite(value):
            continue
        if len(first) < warm_up:
            first.append(value)
            mean = sum(first) / len(first)
            variance = sum((v - mean) ** 2 for v in first) / len(first)
            continue
        deviation = math.sqrt(variance)
        z = (value - mean) / (deviation + 1e-6)
        if z > threshold:
            fired.append(row)
            value = mean + threshold * deviation * threshold / z
        mean = decay * mean + (1 - decay) * value
        variance = decay * variance + (1 - decay) * (value - mean) ** 2
    return fired


def slow_steps(series: Series, performance: float, now: int = 20, before: int = 200) -> list[int]:
    """Median of the last 20 steps against that of the 200 before. 0.75 is the relative performance at which
    nvidia-resiliency-ext reports a straggler."""
    late, early, fired = Ordered(now), Ordered(before), []
    for row, seconds in series:
        fell = late.add(seconds)
        if fell is not None:
            early.add(fell)
        if len(early) == before and early.median() < performance * late.median():
            fired.append(row)
    return fired


@dataclass(frozen=True)
class Peer:
    """A rule by name: the family that it is scored in, and what gives the rows at which it fires."""

    name: str
    family: str
    fires: Callable[[Run], Iterable[int]]


def _loss(rule: Callable[[Series], list[int]]) -> Callable[[Run], Iterable[int]]:
    return lambda run: rule(run.series("loss"))


def _grad(rule: Callable[[Series], list[int]]) -> Callable[[Run], Iterable[int]]:
    return lambda run: rule(run.series("grad_norm"))


def _steps(performance: float) -> Callable[[Run], Iterable[int]]:
    return lambda run: slow_steps(run.step_seconds(), performance)


def _both(
    loss: Callable[[Series], list[int]], grad: Callable[[Series], list[int]]
) -> Callable[[Run], Iterable[int]]:
    return lambda run: sorted({*loss(run.series("loss")), *grad(run.series("grad_norm"))})


def _olmo(series: Series) -> list[int]:
    return mean_deviations(series, 128, 6)


def _skip(series: Series) -> list[int]:
    return mean_deviations(series, 128, 6, least=64, spare=1)


def _ewma(threshold: float) -> Callable[[Series], list[int]]:
    return lambda series: ewma(series, threshold)


def _median(threshold: float) -> Callable[[Series], list[int]]:
    return lambda series: median_mad(series, threshold)


_ALL = (
    Peer("mosaic_kill_loss_spike", "loss", lambda run: kill_loss_spike(run.series("loss"), len(run))),
    Peer("megatron_spiky_loss_10x", "loss", _loss(spiky_loss)),
    Peer("nan_check", "loss", _loss(nan_check)),
    Peer("lightning_spike_detection", "loss", _loss(lightning)),
    Peer("internevo_1p5x_last", "loss", _loss(above_last)),
    Peer("wandb_zscore_30_3", "loss", _loss(z_score)),
    Peer("olmo_stability_128_6_loss", "loss", _loss(_olmo)),
    Peer("olmo_skip_step_128_6_loss", "loss", _loss(_skip)),
    Peer("ewma_0.98_z6_loss", "loss", _loss(_ewma(6))),
    Peer("ewma_0.98_z10_loss", "loss", _loss(_ewma(10))),
    Peer("median_mad_128_k6_loss", "loss", _loss(_median(6))),
    Peer("median_mad_128_k10_loss", "loss", _loss(_median(10))),
    Peer("median_mad_128_k16_loss", "loss", _loss(_median(16))),
    Peer("zclip_0.97_z2.5_grad", "grad", _grad(zclip)),
    Peer("grad_mean_2.5std_200", "grad", _grad(lambda series: mean_deviations(series, 200, 2.5))),
    Peer("olmo_stability_128_6_grad", "grad", _grad(_olmo)),
    Peer("ewma_0.98_z10_grad", "grad", _grad(_ewma(10))),
    Peer("median_mad_128_k20_grad", "grad", _grad(_median(20))),
    Peer("olmo_stability_128_6", "loss+grad", _both(_olmo, _olmo)),
    Peer("olmo_skip_step_128_6", "loss+grad", _both(_skip, _skip)),
    Peer("ewma_0.98_z10", "loss+grad", _both(_ewma(10), _ewma(10))),
    Peer("median_mad_loss_k10_grad_k20", "loss+grad", _both(_median(10), _median(20))),
    Peer("step_time_20_vs_200_0.75", "step_time", _steps(0.75)),
    Peer("step_time_20_vs_200_0.95", "step_time", _steps(0.95)),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
