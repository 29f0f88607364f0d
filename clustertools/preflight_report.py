"""What one preflight found, and whether the job may start: the value that is shown, kept and handed over.

    verdict = report.verdict
    verdict.exit_code, verdict.sentence, verdict.launch_nodes

Pure. A node counts as good only when it was looked at and nothing was wrong with it: one that was not
reached, could not be tested, or has no result at all is unknown, and unknown nodes are used only on request.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.measurement import Grade, Judged, Suspect
from clustertools.model import Finding, Status, from_data, to_data, worst
from clustertools.text import plain

#: Grades from the worst to the best: where two are known of one node, the worse counts.
WORST_FIRST = (
    Grade.WRONG_DATA,
    Grade.BAD_HARDWARE,
    Grade.SLOW,
    Grade.COULD_NOT_RUN,
    Grade.UNTESTED,
    Grade.GOOD,
)
BAD = frozenset({Grade.WRONG_DATA, Grade.BAD_HARDWARE, Grade.SLOW})
UNKNOWN = frozenset({Grade.COULD_NOT_RUN, Grade.UNTESTED})

#: The fates (clustertools.fleet.Fate) of a node on which nothing can be started now.
_AWAY = frozenset({"unreachable", "host-key", "refused", "lost"})


class Decision(str, enum.Enum):
    """May the job start?"""

    GO = "go"
    #: On other or fewer nodes than were asked for, or with something that people should know.
    GO_WITHOUT = "go-without"
    NO_GO = "no-go"


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a launch is allowed. `need` nodes are launched on (0: as many as were asked for).

    `at_least`: fewer will do, down to this many (0: no fewer than `need`). `allow_unknown` lets nodes take
    part that answer but could not be tested; `allow_slow_paths` lets a job cross a slow path or boundary.
    """

    need: int = 0
    at_least: int = 0
    allow_unknown: bool = False
    allow_slow_paths: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: how many nodes (or groups) were planned and done. `note` says what cut it short."""

    name: str
    planned: int
    done: int
    elapsed_seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that was tried on a node: a check, a probe. `detail` is why it is not good."""

    stage: str
    name: str
    grade: Grade
    detail: str = ""
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What is thought of one node, and why.

    `fate` is how far it came (a value of clustertools.fleet.Fate), `leaf` the switch that it hangs on where
    that is known, `decided_by` what settled the grade (`check`, `bound`, `peers`, `isolation` ...).
    """

    node: str
    grade: Grade
    reasons: tuple[str, ...] = ()
    decided_by: str = ""
    confidence: float = 1.0
    findings: tuple[Finding, ...] = ()
    judged: tuple[Judged, ...] = ()
    cases: tuple[Case, ...] = ()
    spare: bool = False
    fate: str = "completed"
    leaf: str = ""


@dataclass(frozen=True, slots=True)
class GroupResult:
    """How one group of a round of isolation did; `ratio` is measured over expected, None when unknown."""

    nodes: tuple[str, ...]
    grade: Grade
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the search for the guilty: why it was run, and what each group showed."""

    why: str
    groups: tuple[GroupResult, ...]
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Untested:
    """Something that nobody looked at, and why. `required`: no launch without it, unless that is allowed."""

    what: str
    why: str
    nodes: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about the cluster as a whole: drift of a few nodes, a setting that all of them have."""

    text: str
    status: Status = Status.WARNING
    nodes: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """A command that repeats a part of what was done."""

    what: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Swap:
    """A spare that takes the place of a node."""

    out: str
    into: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a preflight. `good_nodes`, `bad_nodes` and `unknown_nodes` share no node and miss none.

    `launch_nodes` are those to start on, in the order asked for; empty when the answer is no. `unproven` are
    those of them that are not known to be good.
    """

    decision: Decision
    status: Status
    sentence: str
    good_nodes: tuple[str, ...]
    bad_nodes: tuple[str, ...]
    unknown_nodes: tuple[str, ...]
    launch_nodes: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    swaps: tuple[Swap, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all asked nodes are good; 1 it may start with other or fewer nodes, or with a warning; 2 it may
        not, since too many are bad; 3 it may not, since too much is unknown."""
        return self.status.exit_code

    @property
    def excluded(self) -> tuple[str, ...]:
        """What a launcher must not use: everything that is not launched on and not known to be good."""
        used = {*self.launch_nodes, *self.good_nodes}
        return tuple(n for n in (*self.bad_nodes, *self.unknown_nodes) if n not in used)


@dataclass(frozen=True, slots=True)
class Report:
    """One preflight from its start to its end. Times are seconds since the epoch.

    `asked` is in the order in which the nodes were named; spares stand in `nodes` only. `group_figures` are
    the judged figures of more than one node. `versions` and `command` say how to get the same again.
    """

    started: float
    ended: float
    asked: tuple[str, ...]
    nodes: tuple[NodeResult, ...] = ()
    cluster: str = ""
    transport: str = ""
    job: str = ""
    budget_seconds: float = 0.0
    terms: Terms = Terms()
    stages: tuple[Stage, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    rounds: tuple[Round, ...] = ()
    untested: tuple[Untested, ...] = ()
    remarks: tuple[Remark, ...] = ()
    group_figures: tuple[Judged, ...] = ()
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    repeats: tuple[Repeat, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return decide(self)

    @property
    def pair_figures(self) -> tuple[Judged, ...]:
        """The judged figures of exactly two nodes: what a heat map is made of."""
        return tuple(j for j in self.group_figures if len(set(j.figure.nodes)) == 2)

    def to_data(self) -> dict[str, Any]:
        """JSON-ready, with the verdict beside what it was made from."""
        verdict = self.verdict
        answer = {**to_data(verdict), "exit_code": verdict.exit_code, "excluded": list(verdict.excluded)}
        return {**to_data(self), "verdict": answer}

    @classmethod
    def from_data(cls, data: Any) -> Report:
        """The inverse of `to_data`; the verdict is made anew. Raises ValueError or TypeError."""
        return from_data(cls, data)


def folded(names: Iterable[str]) -> str:
    """Node names as one word, gpu[001-031]; names that mean something else to a node set stay as they are."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException  # costs 30 ms

    distinct = list(dict.fromkeys(names))
    # "gpu-017.example", never "@rack1", "gpu[1-9]" or "a,b", which stand for other nodes
    simple = [name for name in distinct if is_host_name(name)]
    odd = [plain(name, 100) or "(no name)" for name in distinct if not is_host_name(name)]
    try:
        word = str(NodeSet.fromlist(simple, resolver=RESOLVER_NOGROUP)) if simple else ""
    except NodeSetException:
        word = ",".join(simple)
    return ",".join([word, *odd] if word else odd)


def number(count: int, noun: str) -> str:
    """`1 node`, `1,024 nodes`"""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def is_host_name(name: str) -> bool:
    """Whether `name` can be a node's: what Slurm, ssh and MPI take as one host, and nothing else."""
    letters = name.replace("-", "").replace(".", "").replace("_", "")
    return letters.isascii() and letters.isalnum() and name[0].isalnum() and len(name) <= 253


def results(report: Report) -> dict[str, NodeResult]:
    """One result for each node, the asked first and in their order; the worst where there are several.

    A node that was asked for and has no result was not tested.
    """
    found: dict[str, NodeResult] = {}
    for result in report.nodes:
        known = found.get(result.node)
        if known is None or WORST_FIRST.index(result.grade) < WORST_FIRST.index(known.grade):
            found[result.node] = result
    nobody = ("nobody looked at it",)
    asked = {name: found.get(name) or NodeResult(name, Grade.UNTESTED, nobody) for name in report.asked}
    return {**asked, **{name: result for name, result in found.items() if name not in asked}}


def decide(report: Report) -> Verdict:
    """The verdict of a report, on its own terms."""
    by_name = results(report)
    asked = tuple(dict.fromkeys(report.asked))
    # a node that was found good and then went away is not good now
    good = tuple(n for n, r in by_name.items() if r.grade is Grade.GOOD and r.fate == "completed")
    bad = tuple(n for n, r in by_name.items() if r.grade in BAD)
    proven, guilty = set(good), set(bad)
    unknown = tuple(n for n in by_name if n not in proven and n not in guilty)

    def refuse(status: Status, why: str) -> Verdict:
        left_out = _left_out(by_name, (*bad, *unknown))
        sentence = f"NO GO: {why}" + (f"; {left_out}" if left_out else "")
        return Verdict(Decision.NO_GO, status, sentence, good, bad, unknown)

    need = report.terms.need or len(asked)
    enough = min(need, report.terms.at_least or need)
    if not asked or enough < 1:
        return refuse(Status.UNKNOWN, "no node was asked for")
    blocking = _blocking(report)
    wanted = set(asked)
    candidates = [n for n in by_name if n in wanted or by_name[n].spare]
    usable = _without_crossing(blocking, [n for n in candidates if n in proven], enough)
    launch, swaps = _chosen(by_name, asked, set(usable), need)
    unproven: tuple[str, ...] = ()
    if len(launch) < need and report.terms.allow_unknown:
        present = {*proven, *(n for n in unknown if by_name[n].fate not in _AWAY)}
        usable = _without_crossing(blocking, [n for n in candidates if n in present], enough)
        launch, swaps = _chosen(by_name, asked, set(usable), need)
        unproven = tuple(n for n in launch if n not in proven)
    if len(launch) < enough:
        possible = sum(n not in guilty for n in candidates)
        status = Status.UNKNOWN if possible >= enough else Status.CRITICAL
        spares = ", spares included" if len(candidates) > len(asked) else ""
        have = f"{len(launch)} of {len(asked)} nodes are good" + (" or allowed" if unproven else "")
        return refuse(status, f"{have}{spares}, {enough} are needed")
    crossed = [s for s in blocking if _crosses(s, launch)]
    if crossed:
        return refuse(Status.CRITICAL, "; ".join(suspect_in_words(s) for s in crossed))
    missing = [u for u in report.untested if u.required]
    if missing and not report.terms.allow_unknown:
        untested = "; ".join(f"{plain(u.what)} was not tested: {plain(u.why)}" for u in missing)
        return refuse(Status.UNKNOWN, untested)
    warnings = _warnings(report, by_name, launch, unproven)
    avoided = [s for s in blocking if _crosses(s, asked)]
    everything = not swaps and not avoided and wanted <= proven
    status = Status.OK if everything and not warnings else Status.WARNING
    decision = Decision.GO if everything else Decision.GO_WITHOUT
    sentence = _go_sentence(by_name, asked, launch, swaps, unproven, everything)
    return Verdict(
        decision, status, sentence, good, bad, unknown, launch, unproven, swaps, tuple(warnings)
    )  # fmt: skip


def _chosen(
    by_name: Mapping[str, NodeResult], asked: Sequence[str], usable: set[str], need: int
) -> tuple[tuple[str, ...], tuple[Swap, ...]]:
    """Up to `need` usable nodes, asked ones before spares, a spare in the place of the node it replaces.

    A spare on the leaf switch of the node that it replaces comes before the others.
    """
    kept = [n for n in asked if n in usable][:need]
    spares = [n for n, r in by_name.items() if r.spare and n in usable and n not in asked]
    places: dict[str, str] = {n: n for n in kept}
    swaps = []
    for lost in asked:
        if lost in usable or not spares or len(places) >= need:
            continue
        leaf = by_name[lost].leaf
        spare = next((s for s in spares if leaf and by_name[s].leaf == leaf), spares[0])
        spares.remove(spare)
        places[lost] = spare
        swaps.append(Swap(lost, spare))
    launch = [places[n] for n in asked if n in places]
    launch += spares[: need - len(launch)]  # more were needed than asked for: spares fill up
    return tuple(launch), tuple(swaps)


def _blocking(report: Report) -> list[Suspect]:
    """What a job must not run over. A slow path may be allowed; a suspected node never is."""
    allowed = report.terms.allow_slow_paths
    return [
        s for s in report.suspects
        if s.grade in BAD and (s.kind == "node" or s.grade is not Grade.SLOW or not allowed)
    ]  # fmt: skip


def _sides(suspect: Suspect) -> list[frozenset[str]]:
    """The nodes at each end of a path or boundary, whose names are a node's or a list of nodes."""
    from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

    sides = []
    for word in suspect.names:
        try:
            nodes = [word] if is_host_name(word) else list(NodeSet(word, resolver=RESOLVER_NOGROUP))
        except NodeSetException:
            nodes = [word]
        sides.append(frozenset(nodes))
    # an end without nodes, such as all that is not below the only switch, clears nobody
    return [side for side in sides if side]


def _crosses(suspect: Suspect, nodes: Iterable[str]) -> bool:
    """Whether a job on `nodes` uses what is suspected: both ends of a path, or a node itself."""
    used = set(nodes)
    return all(used & side for side in _sides(suspect))


def _without_crossing(suspects: Iterable[Suspect], usable: list[str], enough: int) -> list[str]:
    """`usable` without the smaller end of each suspected path, as long as enough nodes are left."""
    for suspect in suspects:
        if not _crosses(suspect, usable):
            continue
        present = set(usable)
        smaller = min((side & present for side in _sides(suspect)), key=len, default=frozenset())
        rest = [n for n in usable if n not in smaller]
        if len(rest) >= enough:
            usable = rest
    return usable


def suspect_ends(suspect: Suspect) -> tuple[str, ...]:
    """The names of a suspect, each folded: `gpu[001-006]`."""
    return tuple(folded(sorted(side)) for side in _sides(suspect))


def suspect_in_words(suspect: Suspect) -> str:
    """`the path between gpu1 and gpu5 is slow`"""
    ends = suspect_ends(suspect)
    between = "between " if len(ends) > 1 else ""
    return f"the {plain(suspect.kind)} {between}{' and '.join(ends)} is {suspect.grade.value}"


def _warnings(
    report: Report, by_name: Mapping[str, NodeResult], launch: Iterable[str], unproven: tuple[str, ...]
) -> list[str]:
    """What a person should know of a launch that is allowed."""
    bad = [s for s in report.suspects if s.grade in BAD]
    said = [suspect_in_words(s) for s in bad if _crosses(s, launch)]
    asked = [n for n in report.asked if by_name[n].grade is Grade.GOOD]
    apart = [s for s in bad if _crosses(s, asked) and not _crosses(s, launch)]
    said += [f"{suspect_in_words(s)}: nodes are left out so that the job does not cross it" for s in apart]
    if unproven:
        said.append(f"not known to be good, and used all the same: {folded(unproven)}")
    said += [f"{plain(u.what)} was not tested: {plain(u.why)}" for u in report.untested if u.required]
    told = worst(f.status for n in launch for f in by_name[n].findings)
    if told >= Status.WARNING:
        warned = [n for n in launch if any(f.status >= Status.WARNING for f in by_name[n].findings)]
        said.append(f"findings on nodes that are used: {folded(warned)}")
    said += [plain(r.text) for r in report.remarks if r.status >= Status.WARNING]
    return said


def _left_out(by_name: Mapping[str, NodeResult], names: Iterable[str]) -> str:
    """`slow: gpu007; unreachable: gpu[009-011]`, the worst first."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: WORST_FIRST.index(by_name[n].grade)):
        kinds.setdefault(state(by_name[name]), []).append(name)
    return "; ".join(f"{kind}: {folded(group)}" for kind, group in kinds.items())


def state(result: NodeResult) -> str:
    """The one word for a node: its grade, or how far it came when that is why there is none."""
    if result.grade not in BAD and result.fate != "completed":
        return plain(result.fate, 40)
    return result.grade.value


def _go_sentence(
    by_name: Mapping[str, NodeResult],
    asked: Sequence[str],
    launch: Sequence[str],
    swaps: Sequence[Swap],
    unproven: Sequence[str],
    everything: bool,
) -> str:
    if everything:
        fewer = f", {len(launch)} of them are used: {folded(launch)}" if len(launch) < len(asked) else ""
        whole = "the node is" if len(asked) == 1 else f"all {number(len(asked), 'node')} are"
        return f"GO: {whole} good" + (fewer or f": {folded(launch)}")
    used = set(launch)
    out = [n for n in asked if n not in used and state(by_name[n]) != Grade.GOOD.value]
    parts = [f"GO on {number(len(launch), 'node')}: {folded(launch)}"]
    if out:
        parts.append(f"without {_left_out(by_name, out)}")
    if swaps:
        pairs = ", ".join(f"{plain(s.into, 100)} for {plain(s.out, 100)}" for s in swaps[:8])
        parts.append(f"spares: {pairs}" + (f" and {len(swaps) - 8} more" if len(swaps) > 8 else ""))
    if unproven:
        parts.append(f"allowed although {_left_out(by_name, unproven)}")
    return "; ".join(parts)
