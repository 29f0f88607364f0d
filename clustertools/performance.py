"""What a measured figure is worth: against what is possible, what its peers reach, and its own past.

    told = assess(figures, bounds=upper_bound(facts), baselines=stored.usual)
    told.judged[0].grade, told.judged[0].decided_by, told.judged[0].against
    told.marginal                    # worth measuring again
    told.remarks                     # what concerns many nodes at once, and is no single node's fault

A fixed number alone never fails a node. Slow is who is far below the peers, below its own past, or below
what a sound link or unit cannot fall under; where all nodes are alike, it is the configuration that is
suspect. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.measurement import Figure, Grade, Judged
from clustertools.performance_bounds import Bound, MeasuredElsewhere, Reference, Upper
from clustertools.performance_peers import Standing, stand, stand_of_groups

#: Metrics that tell the same as another one does (algbw, the mean time): kept for people, and not judged.
_TOLD_BY_ANOTHER = ("algbw_", "time_")
#: Nor is the single unlucky moment that the slowest of a few dozen tries is.
_ONE_MOMENT = "_p99_"
#: What a part reaches here depends on its place (the socket, the switch above): it is held against the same
#: place of other nodes, when there are as many of them.
_PLACE_MATTERS = frozenset(("peer", "host_device"))
_ENOUGH_PLACES = 3
#: An open or fsync that is quicker is so for nobody's good: it came from a cache.
_QUICK_SECONDS = 1e-3
#: Below this a link or memory spends its time on starting: nothing follows from being far from its rate.
_LARGE_BYTES = 64 << 20
#: Two of the same GPU may differ by this beyond a data sheet's figure, which holds for one clock: H100's peak
#: is at 1830 MHz and its clock may go to 1980.
_CLOCKS_ABOVE = 1.1


@dataclass(frozen=True, slots=True)
class Margin:
    """How one kind of figure is judged.

    `share` below what is expected is what matters in practice; `noise` is the usual standard deviation, as a
    share; below `floor` of what the hardware carries something is broken, whatever the peers say (0: never).
    """

    share: float
    noise: float
    floor: float = 0.0
    believable: float = 1.05


#: By probe. Why these shares:
#: network and collectives 10 %: one dead rail of eight costs 12.5 %; neighbours on a shared fabric cost some
#: percent (SuperBench's rules allow 5 % on an idle one; Google's and Azure's limits leave 10 to 40 %).
#: gemm and memory 5 %: SuperBench's variance rule and Azure's warning band. The silicon's own spread is wide
#: (8 % over a cluster on average: P. Sinha et al., "Not All GPUs Are Created Equal", SC 2022), which the
#: spread among the peers allows for by itself.
#: peer 5 %: one lost link of 18 costs 5.6 %. host_device 10 %: it depends on the NUMA node of the buffer.
#: storage 50 %: a shared server serves neighbours too; a sound client is seldom twice as slow as the others.
#: Floors: half of a PCIe or NVLink rate is what a link at half its width or speed gives (sound ones reach 80
#: to 90 %); 40 % of a memory's peak and a third of a GEMM's (MI300X reaches 51 %) are below any sound one.
MARGINS: Mapping[str, Margin] = {
    "collective": Margin(0.10, 0.03),
    "ib_write_bw": Margin(0.10, 0.03, floor=0.5),
    "gemm": Margin(0.05, 0.02, floor=0.33, believable=_CLOCKS_ABOVE),
    "memory": Margin(0.05, 0.01, floor=0.4, believable=_CLOCKS_ABOVE),
    "host_device": Margin(0.10, 0.02, floor=0.45),
    "peer": Margin(0.05, 0.01, floor=0.45),
    "storage": Margin(0.50, 0.15),
}
#: A probe that is not in the table: nothing is known of its noise.
_UNKNOWN = Margin(0.15, 0.05)


@dataclass(frozen=True, slots=True)
class Limits:
    """How strictly figures are judged; a site may set other margins by probe."""

    margins: Mapping[str, Margin] = field(default_factory=lambda: MARGINS)
    #: The chance that a sound set has any figure called slow; the line moves out with the number of figures.
    false_alarms: float = 0.01
    #: A baseline of fewer accepted runs is not yet one.
    baseline_runs: int = 3
    #: More nodes than this share below their own past are a change that came over all of them.
    common_share: float = 1 / 3
    #: Latencies vary more than bandwidths do.
    latency_share: float = 0.30
    #: Opening or syncing a file: four times as long as elsewhere.
    storage_latency_share: float = 0.75
    #: As in the check of one node's own clock: collectors and NCCL's logs are put in order by it.
    clock_offset_seconds: float = 0.1
    #: The catalogue's figures are the best that anybody measured.
    catalogue_share: float = 0.15

    def margin(self, figure: Figure) -> Margin:
        found = self.margins.get(figure.probe, _UNKNOWN)
        if "latency" in figure.metric:
            return Margin(max(found.share, self.latency_share), max(found.noise, 0.08), 0.0, math.inf)
        if figure.probe == "storage" and not figure.higher_is_better:
            return Margin(max(found.share, self.storage_latency_share), max(found.noise, 0.4), 0.0, math.inf)
        if "gloo" in figure.variant:
            # over TCP by the CPUs, which do other things too
            return Margin(max(found.share, 0.20), max(found.noise, 0.08), 0.0, found.believable)
        return found


@dataclass(frozen=True, slots=True)
class Usual:
    """What a node or part reached before: the median of `count` accepted runs, and their relative spread."""

    value: float
    count: int
    spread: float
    since: str = ""


Baselines = Callable[[Figure], "Usual | None"]


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is no single node's fault. `sets` are the nodes that it tells apart, the worse first."""

    code: str
    sentence: str
    sets: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Assessment:
    """What all figures of a stage come to. `marginal` are near a line, or contradict each other: repeat them.

    `accepted` are the good ones that may become part of a baseline.
    """

    judged: tuple[Judged, ...] = ()
    marginal: tuple[Figure, ...] = ()
    remarks: tuple[Remark, ...] = ()
    accepted: tuple[Figure, ...] = ()


def judge(
    figures: Iterable[Figure],
    *,
    bounds: Upper | None = None,
    baselines: Baselines | None = None,
    catalogue: MeasuredElsewhere | None = None,
    limits: Limits | None = None,
) -> list[Judged]:
    """The verdicts of `assess`, without what it says beside them."""
    told = assess(figures, bounds=bounds, baselines=baselines, catalogue=catalogue, limits=limits)
    return list(told.judged)


def assess(
    figures: Iterable[Figure],
    *,
    bounds: Upper | None = None,
    baselines: Baselines | None = None,
    catalogue: MeasuredElsewhere | None = None,
    limits: Limits | None = None,
) -> Assessment:
    """Judge the figures of all nodes and groups of one stage.

    Repeats of one figure are taken together first (`of_repeats`), so each figure is judged once. A figure
    that nothing can be held against is UNTESTED; one that cannot be true is COULD_NOT_RUN. What tells the
    same as another figure does, and the slowest of a few tries, is not judged.

    A node is held against its population, a group of nodes against the fastest groups: SLOW says of a group
    that something in it is, and of none of its nodes that it is the one.

    Clock offsets get
    no verdict, but a remark: a wrong clock slows nobody.
    """
    rules = limits or Limits()
    single = [one for one in of_repeats(figures, rules) if _is_judged(one)]
    places = Counter((one.comparable, one.part) for one in single)
    sets: dict[tuple[object, ...], list[Figure]] = {}
    for figure in single:
        apart = figure.probe in _PLACE_MATTERS and places[figure.comparable, figure.part] >= _ENOUGH_PLACES
        place = figure.part if apart or figure.probe == "storage" else ""
        sets.setdefault((*figure.comparable, figure.higher_is_better, place), []).append(figure)
    parts = []
    for alike in sets.values():
        if alike[0].probe == "clock":
            parts.append(Assessment(remarks=compare_clocks(alike, rules)))
        else:
            parts.append(_Set(alike, rules, bounds, baselines, catalogue).assessment())
    return Assessment(
        tuple(one for part in parts for one in part.judged),
        tuple(one for part in parts for one in part.marginal),
        tuple(one for part in parts for one in part.remarks),
        tuple(one for part in parts for one in part.accepted),
    )


def of_repeats(figures: Iterable[Figure], limits: Limits | None = None) -> list[Figure]:
    """One figure for all repeats of the same measurement, in the order of the first.

    What disturbs a measurement makes it slower, hardly ever faster, so the best of them is the truest; but
    what is slow in at least half of three runs or more is slow, and not disturbed: then it is the median.
    """
    rules = limits or Limits()
    runs: dict[tuple[object, ...], list[Figure]] = {}
    for figure in figures:
        runs.setdefault((figure.comparable, figure.nodes, figure.part, figure.higher_is_better), []).append(
            figure
        )
    return [_of_one(repeats, rules.margin(repeats[0])) for repeats in runs.values()]


def _of_one(repeats: Sequence[Figure], margin: Margin) -> Figure:
    usable = sorted((one for one in repeats if _usable(one)), key=_goodness)
    if repeats[0].probe == "clock" or not usable:
        return repeats[-1]
    best = usable[-1]
    low = [one for one in usable if _goodness(one) < (1 - margin.share) * _goodness(best)]
    if len(usable) >= 3 and 2 * len(low) >= len(usable):
        return usable[(len(usable) - 1) // 2]
    return best


def _is_judged(figure: Figure) -> bool:
    return not figure.metric.startswith(_TOLD_BY_ANOTHER) and _ONE_MOMENT not in figure.metric


def _usable(figure: Figure) -> bool:
    return math.isfinite(figure.value) and figure.value > 0


def _goodness(figure: Figure) -> float:
    """A number that is better when higher, in whichever direction the figure is."""
    if figure.higher_is_better:
        return figure.value
    return 1 / (max(figure.value, _QUICK_SECONDS) if figure.probe == "storage" else figure.value)


class _Set:
    """Figures that may be compared with each other, and what is held against them."""

    def __init__(
        self,
        figures: Sequence[Figure],
        limits: Limits,
        bounds: Upper | None,
        baselines: Baselines | None,
        catalogue: MeasuredElsewhere | None,
    ) -> None:
        self.limits = limits
        self.margin = limits.margin(figures[0])
        self.all = figures
        self.remarks: list[Remark] = []
        self.marginal: list[Figure] = []
        self.told = name_of(figures[0])
        self.bound_of = {id(one): bounds(one) if bounds else None for one in figures}
        impossible = [one for one in figures if self._impossible(one)]
        if len(figures) >= 3 and 2 * len(impossible) > len(figures):
            # so many measurements do not err alike: what is known of the hardware does
            self._remark("FactsSuspect", f"most are above {self._told_bound(impossible[0])}", impossible)
            self.bound_of = dict.fromkeys(self.bound_of)
            impossible = []
        self.impossible = {id(one) for one in impossible}
        self.sound = [one for one in figures if _usable(one) and id(one) not in self.impossible]
        self.usual_of = {id(one): self._usual(one, baselines) for one in self.sound}
        self.elsewhere_of = {id(one): catalogue(one) if catalogue else None for one in self.sound}
        self.standing_of = dict(
            zip(
                map(id, self.sound),
                (stand_of_groups if len(figures[0].nodes) > 1 else stand)(
                    [_goodness(one) for one in self.sound],
                    noise=self.margin.noise,
                    margin=self.margin.share,
                    false_alarms=limits.false_alarms,
                ),
                strict=True,
            )
        )
        self.populations = len({standing.population for standing in self.standing_of.values()})
        self.broken = self._below_floor()
        self.fallen = self._below_past()

    def assessment(self) -> Assessment:
        judged = [self._judge(one) for one in self.all]
        self._tell_populations()
        self._tell_catalogue()
        suspect = any(remark.code in ("ConfigSuspect", "FactsSuspect") for remark in self.remarks)
        accepted = [] if suspect else [one.figure for one in judged if one.grade is Grade.GOOD]
        return Assessment(tuple(judged), tuple(self.marginal), tuple(self.remarks), tuple(accepted))

    # what is held against a figure

    def _impossible(self, figure: Figure) -> bool:
        bound = self.bound_of[id(figure)]
        return bound is not None and _usable(figure) and figure.value > bound.surely * self.margin.believable

    def _usual(self, figure: Figure, baselines: Baselines | None) -> Usual | None:
        usual = baselines(figure) if baselines else None
        return usual if usual is not None and usual.count >= self.limits.baseline_runs else None

    def _below_floor(self) -> set[int]:
        """The figures that are below what any sound device gives, unless all nodes are so."""
        low = [
            one
            for one in self.sound
            if (bound := self.bound_of[id(one)]) is not None
            and bound.full
            and not 0 < one.size_bytes < _LARGE_BYTES
            and one.value < self.margin.floor * bound.value
        ]
        if low and len(low) == len(self.sound) and len(_nodes(self.sound)) > 1:
            self._remark(
                "ConfigSuspect",
                f"all are below {self.margin.floor:.0%} of {self._told_bound(low[0])}: they are alike, so "
                "look at their common configuration before any one of them",
                low,
            )
            return set()
        return {id(one) for one in low}

    def _below_past(self) -> dict[int, float]:
        """The figures that are far below what the same node or part gave before, unless most are so."""
        ratios = {}
        known = 0
        for one in self.sound:
            usual = self.usual_of[id(one)]
            if usual is None:
                continue
            known += 1
            ratio = _goodness(one) / (usual.value if one.higher_is_better else 1 / usual.value)
            line = max(-math.log1p(-self.margin.share), 3.5 * max(usual.spread, self.margin.noise))
            if ratio > 0 and math.log(ratio) < -line:
                ratios[id(one)] = ratio
        fallen = [one for one in self.sound if id(one) in ratios]
        if (
            known > 1
            and len(_nodes(self.sound)) > 1
            and len(fallen) > max(1, self.limits.common_share * known)
        ):
            middle = statistics.median(ratios.values())
            what = "the server or the network to it" if self.all[0].probe == "storage" else "what was changed"
            self._remark(
                "ConfigSuspect",
                f"{len(fallen)} of {known} are below their own past (at {middle:.0%} of it): look at {what}, "
                "not at each of them",
                fallen,
            )
            return {}
        return ratios

    # one figure

    def _judge(self, figure: Figure) -> Judged:
        bound = self.bound_of[id(figure)]
        if not _usable(figure):
            return Judged(figure, Grade.COULD_NOT_RUN, "bound", 0.0, f"{figure.value:g} is no measurement")
        if id(figure) in self.impossible and bound is not None:
            ratio = figure.value / bound.surely
            against = f"not to be believed: {ratio:.0%} of {told(bound.surely, figure)}, {bound.why}"
            return Judged(figure, Grade.COULD_NOT_RUN, "bound", ratio, against)
        if id(figure) in self.broken and bound is not None:
            ratio = figure.value / bound.value
            against = (
                f"{told(bound.value, figure)}, {bound.why}; no sound one is below {self.margin.floor:.0%}"
            )
            return Judged(figure, Grade.SLOW, "bound", ratio, against)
        standing, usual = self.standing_of[id(figure)], self.usual_of[id(figure)]
        self._mark_marginal(figure, standing)
        if standing.verdict == "slow":
            return self._by_peers(figure, standing, Grade.SLOW)
        if id(figure) in self.fallen and usual is not None:
            return self._by_past(figure, usual, Grade.SLOW)
        if standing.verdict == "alike":
            return self._by_peers(figure, standing, Grade.GOOD)
        if usual is not None:
            return self._by_past(figure, usual, Grade.GOOD)
        return self._without_peers(figure, standing, bound, self.elsewhere_of[id(figure)])

    def _by_peers(self, figure: Figure, standing: Standing, grade: Grade) -> Judged:
        middle = standing.middle if figure.higher_is_better else 1 / standing.middle
        whose = f"the median of {standing.count} alike"
        if self.populations > 1:
            whose = f"the median of its population, {standing.count} of {len(self.sound)}"
        if len(figure.nodes) > 1:
            whose = f"the fastest of {len(self.sound)} groups"
        against = f"{told(middle, figure)}, {whose}; slow is below {math.exp(-standing.line):.0%} of it"
        return Judged(figure, grade, "peers", math.exp(standing.deviation), against)

    def _by_past(self, figure: Figure, usual: Usual, grade: Grade) -> Judged:
        ratio = figure.value / usual.value if figure.higher_is_better else usual.value / figure.value
        since = f" since {usual.since}" if usual.since else ""
        against = f"{told(usual.value, figure)}, its own median of {usual.count} runs{since}"
        return Judged(figure, grade, "baseline", ratio, against)

    def _without_peers(
        self, figure: Figure, standing: Standing, bound: Bound | None, elsewhere: Reference | None
    ) -> Judged:
        """No peer and no past to hold it against, or a peer that says otherwise."""
        if standing.verdict == "undecided":
            against = (
                f"{standing.count} alike that contradict each other, and nothing else to hold it against"
            )
            return Judged(figure, Grade.UNTESTED, "", math.exp(standing.deviation), against)
        if elsewhere is not None and figure.value >= (1 - self.limits.catalogue_share) * elsewhere.value:
            against = f"{told(elsewhere.value, figure)}, {elsewhere.why}"
            return Judged(figure, Grade.GOOD, "catalogue", figure.value / elsewhere.value, against)
        large = bound is not None and bound.full and not 0 < figure.size_bytes < _LARGE_BYTES
        if bound is not None and large and self.margin.floor:
            against = f"{told(bound.value, figure)}, {bound.why}: not below {self.margin.floor:.0%} of it"
            return Judged(figure, Grade.GOOD, "bound", figure.value / bound.value, against)
        return Judged(figure, Grade.UNTESTED, "", 1.0, "no peer, no past and no bound to hold it against")

    def _mark_marginal(self, figure: Figure, standing: Standing) -> None:
        """A second look decides what is slow or sound by little, and who is right of two."""
        near = 0.75 * standing.line <= -standing.deviation <= 1.5 * standing.line
        if standing.verdict == "undecided" or (near and standing.verdict in ("slow", "alike")):
            self.marginal.append(figure)

    # all of them

    def _tell_populations(self) -> None:
        numbers = sorted({standing.population for standing in self.standing_of.values()})
        if len(numbers) > 1:
            sets, middles = [], []
            for number in numbers:
                mine = [one for one in self.sound if self.standing_of[id(one)].population == number]
                sets.append(_nodes(mine))
                middles.append(told(statistics.median(one.value for one in mine), self.all[0]))
            counts = " and ".join(
                f"{len(some)} nodes at {middle}" for some, middle in zip(sets, middles, strict=True)
            )
            self.remarks.append(
                Remark(
                    "TwoPopulations",
                    f"{self.told}: {len(numbers)} populations, {counts}: look for what tells them apart "
                    "(clocks, firmware, place), each node is like others",
                    tuple(sets),
                )
            )
        contradict = [one for one in self.sound if self.standing_of[id(one)].verdict == "undecided"]
        if contradict:
            values = sorted(one.value for one in contradict)
            span = f"{told(values[0], self.all[0])} to {told(values[-1], self.all[0])}"
            self._remark("PeersDisagree", f"{span}, and too few to say who is right", contradict)

    def _tell_catalogue(self) -> None:
        low = []
        for one in self.sound:
            elsewhere = self.elsewhere_of[id(one)]
            if elsewhere is not None and one.value < (1 - self.limits.catalogue_share) * elsewhere.value:
                low.append((one, elsewhere))
        if low and 2 * len(low) > len(self.sound):
            middle = statistics.median(one.value / elsewhere.value for one, elsewhere in low)
            best = low[0][1]
            self._remark(
                "BelowCatalogue",
                f"at {middle:.0%} of {told(best.value, self.all[0])} ({best.why}): alike on "
                f"{len(low)} of {len(self.sound)}, so look at the configuration",
                [one for one, _ in low],
            )

    def _told_bound(self, figure: Figure) -> str:
        bound = self.bound_of[id(figure)]
        return f"{told(bound.surely, figure)}, {bound.why}" if bound else ""

    def _remark(self, code: str, sentence: str, figures: Sequence[Figure]) -> None:
        self.remarks.append(Remark(code, f"{self.told}: {sentence}", (_nodes(figures),)))


def _nodes(figures: Iterable[Figure]) -> tuple[str, ...]:
    return tuple(sorted({node for one in figures for node in one.nodes}))


def compare_clocks(figures: Sequence[Figure], limits: Limits | None = None) -> tuple[Remark, ...]:
    """Who is off the others' median, from `offset_seconds` of each node to one clock.

    Nothing is slow for it, but the order of events over nodes is lost: logs, NCCL's timestamps, which rank
    was the first to wait. Two nodes cannot tell which of them is right.
    """
    rules = limits or Limits()
    offsets = [one for one in figures if one.metric == "offset_seconds" and math.isfinite(one.value)]
    if len(offsets) < 2:
        return ()
    middle = statistics.median(one.value for one in offsets)
    off = [one for one in offsets if abs(one.value - middle) > rules.clock_offset_seconds]
    if not off:
        return ()
    limit = f"(limit {rules.clock_offset_seconds:g} s)"
    if len(offsets) == 2:
        apart = abs(offsets[0].value - offsets[1].value)
        sentence = f"the clocks of the two nodes are {apart:.3g} s apart {limit}"
    else:
        furthest = max(off, key=lambda one: abs(one.value - middle))
        sentence = (
            f"{len(off)} of {len(offsets)} clocks are off the others' median {limit}, at most "
            f"{furthest.value - middle:+.3g} s on {furthest.nodes[0]}: logs cannot be put in order"
        )
    return (Remark("ClockOffset", sentence, (_nodes(off),)),)


def name_of(figure: Figure) -> str:
    """What was measured, in words: `collective busbw at 1 GiB (nccl float32 16 ranks all_reduce)`."""
    metric = figure.metric.removesuffix("_per_second").removesuffix("_bytes").removesuffix("_seconds")
    size = f" at {_size(figure.size_bytes)}" if figure.size_bytes else ""
    return f"{figure.probe} {metric}{size}" + (f" ({figure.variant})" if figure.variant else "")


def _size(size_bytes: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << power:
            return f"{size_bytes / (1 << power):.4g} {unit}"
    return f"{size_bytes} B"


def told(value: float, figure: Figure) -> str:
    """A value of this figure's metric, with a unit that people read: `401 GB/s`, `742 TFLOP/s`, `1.2 ms`."""
    metric = figure.metric
    if metric.endswith("_per_second"):
        unit = "FLOP/s" if metric.startswith("flop") else "B/s" if "bytes" in metric else "/s"
        # a link of 1.8 TB/s is compared with others in GB/s
        fits = {"FLOP/s": 1e15, "B/s": 1e9, "/s": 1.0}[unit]
        for step, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= step and step <= fits:
                return f"{value / step:.4g} {prefix}{unit}"
        return f"{value:.4g} {unit}"
    if metric.endswith("_seconds"):
        for step, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
            if value >= step:
                return f"{value / step:.4g} {unit}"
        return f"{value / 1e-9:.4g} ns"
    return f"{value:.4g}"
