"""Which active tests fit into a budget of seconds, in which order, and what is left out and why. Pure.

    planned = plan(60.0, probes, history)
    [step.name for step in planned.chosen], planned.left_out

The order is by what a second is likely to find: how often each kind of fault stops training (published, then
corrected by what this site found), less what the tests before it have already looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Shares of the 419 unexpected interruptions of a run on 16,384 H100 (Llama Team, "The Llama 3 Herd of
#: Models", 2024, table 5), by the kind of fault that a test may cover. 148 faulty GPUs, 72 HBM3, 35 switches
#: and cables, 32 host maintenance, 19 SRAM, 17 GPU processor, 7 NIC, 6 silent corruption, 6 thermal, 3 SSD.
#: `configuration` and `clock` are ours: nobody publishes them, and they are cheap to look at.
FAULT_SHARES: Mapping[str, float] = {
    "gpu": 148 / 419, "gpu-memory": (72 + 19) / 419, "gpu-processor": 17 / 419, "link": 35 / 419,
    "host": 32 / 419, "nic": 7 / 419, "wrong-data": 6 / 419, "thermal": 6 / 419, "storage": 3 / 419,
    "configuration": 0.05, "clock": 0.002,
}  # fmt: skip
#: A fault that is not in the table is worth looking for, a little.
_UNKNOWN_SHARE = 0.005
#: So many runs' worth of trust in the published shares before the site's own count takes over.
_PRIOR_RUNS = 5.0


@dataclass(frozen=True, slots=True)
class ProbeKind:
    """One test that may be run: what it costs on all nodes together, and which kinds of fault it would find.

    `needs` are tests that must have run before it. `detects` is the share of such faults that it finds.
    `lighter` are cheaper forms of it (smaller sizes, fewer iterations), of the same name. `unavailable` says
    why it cannot be run here.
    """

    name: str
    cost_seconds: float
    covers: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    detects: float = 0.8
    lighter: tuple[ProbeKind, ...] = ()
    unavailable: str = ""
    #: How it differs from its other forms, for people and for whoever carries it out.
    form: str = ""


@dataclass(frozen=True, slots=True)
class ProbeHistory:
    """What a test found at this site: in how many preflights it ran, and in how many it found a fault."""

    runs: int = 0
    faults: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One chosen test, when it begins at the latest, and why it stands where it does."""

    probe: ProbeKind
    begins_seconds: float
    why: str

    @property
    def name(self) -> str:
        return self.probe.name


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen tests in order, and for each that will not be run the reason."""

    chosen: tuple[Step, ...]
    left_out: tuple[tuple[str, str], ...]
    cost_seconds: float = 0.0


def plan(
    budget_seconds: float, probes: Sequence[ProbeKind], history: Mapping[str, ProbeHistory] | None = None
) -> Plan:
    """The tests that fit, the most promising second first.

    Each comes after what it needs. When all that is worth it is in, what is left of the budget goes into
    heavier forms of what was chosen.
    """
    known = history or {}
    by_name = {probe.name: probe for probe in probes}
    left: dict[str, float] = {}
    chosen: list[ProbeKind] = []
    scores: dict[str, float] = {}
    spent = 0.0
    while True:
        best: tuple[float, list[ProbeKind]] | None = None
        for probe in probes:
            for form in (probe, *probe.lighter):
                bundle = _with_needs(form, by_name, {one.name for one in chosen})
                cost = sum(one.cost_seconds for one in bundle)
                if not bundle or spent + cost > budget_seconds:
                    continue
                score = sum(_worth(one, left, known) for one in bundle) / max(cost, 1e-3)
                if best is None or score > best[0]:
                    best = score, bundle
        if best is None:
            break
        for one in best[1]:
            chosen.append(one)
            scores[one.name] = _worth(one, left, known)
            spent += one.cost_seconds
            _look(one, left)
    chosen, spent = _heavier(chosen, by_name, budget_seconds, spent)
    steps, begins = [], 0.0
    for one in chosen:
        steps.append(Step(one, begins, _why(one, scores[one.name])))
        begins += one.cost_seconds
    names = {one.name for one in chosen}
    left_out = tuple(
        (probe.name, _reason(probe, by_name, names, budget_seconds - spent))
        for probe in probes
        if probe.name not in names
    )
    return Plan(tuple(steps), left_out, spent)


def _with_needs(form: ProbeKind, by_name: Mapping[str, ProbeKind], have: set[str]) -> list[ProbeKind]:
    """The test and what it still needs, in order; empty when it is there already or cannot be run."""
    order: list[ProbeKind] = []

    def add(one: ProbeKind, path: tuple[str, ...]) -> bool:
        if one.name in have or any(one.name == other.name for other in order):
            return True
        if one.unavailable or one.name in path:
            return False
        for name in one.needs:
            needed = by_name.get(name)
            if needed is None or not add(_lightest(needed), (*path, one.name)):
                return False
        order.append(one)
        return True

    if form.name in have or by_name[form.name].unavailable or not add(form, ()):
        return []
    return order


def _lightest(probe: ProbeKind) -> ProbeKind:
    return min((probe, *probe.lighter), key=lambda form: form.cost_seconds)


def _worth(probe: ProbeKind, left: Mapping[str, float], history: Mapping[str, ProbeHistory]) -> float:
    """How likely it finds what nobody found before it, relative to others."""
    share = sum(FAULT_SHARES.get(kind, _UNKNOWN_SHARE) * left.get(kind, 1.0) for kind in probe.covers)
    return probe.detects * share * _site_factor(probe.name, history)


def _site_factor(name: str, history: Mapping[str, ProbeHistory]) -> float:
    """Above 1 for a test that finds more here than the others do, below 1 for one that never does."""
    mine = history.get(name)
    runs = sum(one.runs for one in history.values())
    if mine is None or not runs:
        return 1.0
    usual = sum(one.faults for one in history.values()) / runs
    return (mine.faults + _PRIOR_RUNS * usual + 0.1) / (mine.runs * usual + _PRIOR_RUNS * usual + 0.1)


def _look(probe: ProbeKind, left: dict[str, float]) -> None:
    for kind in probe.covers:
        left[kind] = left.get(kind, 1.0) * (1 - probe.detects)


def _heavier(
    chosen: Sequence[ProbeKind], by_name: Mapping[str, ProbeKind], budget_seconds: float, spent: float
) -> tuple[list[ProbeKind], float]:
    """The chosen with the heaviest form of each that what is left of the budget pays for."""
    grown = []
    for one in chosen:
        probe = by_name[one.name]
        forms = [
            form
            for form in (probe, *probe.lighter)
            if form.detects > one.detects and spent - one.cost_seconds + form.cost_seconds <= budget_seconds
        ]
        best = max(forms, key=lambda form: form.detects, default=one)
        spent += best.cost_seconds - one.cost_seconds
        grown.append(best)
    return grown, spent


def _why(probe: ProbeKind, score: float) -> str:
    covers = ", ".join(probe.covers) or "nothing that is counted"
    form = f" ({probe.form})" if probe.form else ""
    return f"looks for {covers}{form}: {score:.3f} of the usual faults for {probe.cost_seconds:.3g} s"


def _reason(probe: ProbeKind, by_name: Mapping[str, ProbeKind], names: set[str], left_seconds: float) -> str:
    if probe.unavailable:
        return probe.unavailable
    for name in probe.needs:
        if name not in by_name:
            return f"needs {name}, which there is not"
        if name not in names:
            return f"needs {name}, which is left out"
    cheapest = _lightest(probe)
    return f"needs {cheapest.cost_seconds:.3g} s, and {max(0.0, left_seconds):.3g} s of the budget are left"


def answer_known(*, candidates: int, bad: int, pending: int, at_least: int) -> str:
    """Why nothing more need be tested; empty while it may still change whether the job can start.

    `candidates` are all nodes that may be used, spares included; `bad` of them are known to be bad;
    `pending` tests are still to be run on others. With `at_least` good ones the job may start.
    """
    if at_least > 0 and candidates - bad < at_least:
        return f"{bad} of {candidates} nodes are bad, so that {at_least} cannot be reached"
    if not pending:
        return "everything that was planned was run"
    return ""
