"""Why a run ended or stands still, and who is guilty: root before cascade, out of all that was seen. Pure."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.catalog.failures import KERNEL, Advice, FailureLine, Signature, signature
from clustertools.model import Incident, Job, RankState, Status


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was seen of one run's trouble.

    `rank_nodes` is where each rank lives. `odd_ranks` are those whose stacks differ from all others', with
    what they do (rank -> frame). `recorded` comes from flight recorder dumps, of `world_size` ranks.
    `incidents` are the open ones of the run's nodes.
    """

    job: Job
    lines: Sequence[FailureLine] = ()
    rank_nodes: Mapping[int, str] = field(default_factory=dict)
    odd_ranks: Mapping[int, str] = field(default_factory=dict)
    recorded: Sequence[RankState] = ()
    world_size: int = 0
    incidents: Sequence[Incident] = ()
    unseen_nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A node that may be guilty. `confidence` from 0 to 1; at CERTAIN and above it may be left out."""

    node: str
    confidence: float
    why: str
    rank: int | None = None


#: From here on a node is blamed; below it is only named.
CERTAIN = 0.7


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What it was, as far as the evidence goes. `cause` "" and no suspects is an answer: nobody knows.

    `lines` prove it, the root first.
    """

    cause: str = ""
    advice: Advice = "none"
    summary: str = ""
    suspects: tuple[Suspect, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def blamed(self) -> tuple[str, ...]:
        return tuple(s.node for s in self.suspects if s.node and s.confidence >= CERTAIN)


#: An incident of a node explains a failure of a run when it was seen in this time around it, as Meta's RSC
#: clusters attribute failures (Kokolis et al. 2024, section 3).
BEFORE_SECONDS = 600.0
AFTER_SECONDS = 300.0
#: No amount of evidence makes more of it.
CONFIDENCE_AT_MOST = 0.97
LINES_AT_MOST = 12

# How much each kind of evidence says of one node. No source gives such figures; they are set so that a word
# of the scheduler or of the hardware is enough alone, and what ranks show of each other needs a second.
_SLURM_NAMES = 0.9
_CRITICAL_INCIDENT = 0.85
_WARNING_INCIDENT = 0.35
_BEHIND = 0.7
_NO_DUMP = 0.6
_UNSEEN = 0.65
_STOPPED = 0.6
_IN_KERNEL = 0.7
_ODD_STACK = 0.5
_SILENT_IN_TIMEOUTS = 0.6
_BEHIND_BY_LOG = 0.6
_LINE_NAMES = 0.9

#: Incidents whose codes begin so speak of a fault of the node that can end a run.
_HARDWARE_CODES = (
    "Xid", "Sxid", "Gpu", "Ecc", "Remap", "MemoryUnrepairable", "Nvlink", "Fabric", "Imex", "Ib", "Net",
    "Nic", "Roce", "Efa", "Pcie", "Bmc", "Xgmi", "Dcgm", "HostMachineCheck", "HostMemoryUncorrected",
    "HostLockup", "HostKernelOops", "HostPanicked", "HostOomKill", "HostHungTask", "HostUnreachable",
    "HostMount",
    "HostFilesystem", "HostIoError", "DriverTaskStuck", "TaskStuck", "RebootLoop", "Disk", "Nvme", "Raid",
    "Nfs", "Lustre", "SlurmNode",
)  # fmt: skip
#: What a rank says that ends because of another one.
_LOST_A_PEER = frozenset({"PeerLost", "CollectiveTimeout", "CollectiveTeardown", "CollectiveWatchdogStuck"})
#: Faults that show as exceptions, which a program may print and handle; then nobody ends by them.
_EXCEPTIONS = frozenset({"user", "environment", "service"})
#: Who ends so was not ended by an exception.
_BY_SIGNAL = frozenset({"ProcessKilled", "SegmentationFault", "BusError"})
#: Those of a host whose load, or whose servers, may be the reason: no reason to leave it out at once.
_SOFT_CODES = ("HostOomKill", "HostHungTask", "HostMount", "TaskStuck", "Nfs", "Lustre")
#: Those that come after another fault and say nothing of its place.
_CONSEQUENCES = frozenset({"XidChannelStopped", "XidChannelTornDown"})


@dataclass(frozen=True, slots=True)
class _Clue:
    """One piece of evidence against one node. `hard`: it speaks of the node's hardware, not of a rank."""

    node: str
    weight: float
    why: str
    source: str
    rank: int | None = None
    hard: bool = False


def diagnose(evidence: Evidence) -> Diagnosis:
    """The cause, what it advises, who is guilty and how surely, and the lines that prove it.

    The root is the earliest root line over all ranks; a cascade names nobody. Errors of the run's own code,
    arguments or environment blame no node, whatever else is seen.
    """
    lines = in_time([line for line in evidence.lines if _is_timely(line, evidence.job)])
    root = _root(lines, evidence)
    # torchrun's list of failures tells where a rank lives
    told = {line.rank: line.node for line in lines if line.rank is not None and line.node}
    evidence = dataclasses.replace(evidence, rank_nodes={**told, **evidence.rank_nodes})
    known = signature(root.signature) if root is not None else None
    cause, advice = _cause(evidence, root, known)
    row = signature(cause) if cause else None
    if row is not None and row.kind in ("user", "environment"):
        suspects: tuple[Suspect, ...] = ()
    else:
        suspects = _suspects(list(_clues(evidence, lines, root, known)), evidence)
    if suspects and suspects[0].confidence >= CERTAIN and advice in ("none", "same"):
        advice = "exclude" if _is_hard(evidence, suspects) else "same"
    if advice == "exclude" and not any(s.confidence >= CERTAIN for s in suspects):
        advice = "same"  # hardware, and nobody knows whose
    return Diagnosis(
        cause, advice, _sentence(evidence, cause, row, root, lines, suspects), suspects, _proof(root, lines)
    )


def _is_timely(line: FailureLine, job: Job) -> bool:
    """Whether a line of a kernel log is of about when the run failed; those of the run's own logs are."""
    if not line.path.startswith(KERNEL) or line.time is None or job.state != "ended" or not job.ended_at:
        return True
    return job.ended_at - BEFORE_SECONDS <= line.time <= job.ended_at + AFTER_SECONDS


def in_time(lines: Sequence[FailureLine]) -> list[FailureLine]:
    """Lines in the order in which they happened.

    One without a time happened when its file's last one before it did, or, where there is none, just before
    the first after it.
    """
    by_path: dict[str, list[FailureLine]] = defaultdict(list)
    for line in lines:
        by_path[line.path].append(line)
    keyed: list[tuple[float, bool, str, int, FailureLine]] = []
    for path, own in by_path.items():
        own.sort(key=lambda item: item.order)
        first = next((item.time for item in own if item.time is not None), None)
        now = first if first is not None else float("inf")
        for item in own:
            now = item.time if item.time is not None else now
            keyed.append((now, item.time is not None, path, item.order, item))
    return [item[-1] for item in sorted(keyed, key=lambda k: (k[0], k[2], k[3]))]


def _root(lines: Sequence[FailureLine], evidence: Evidence) -> FailureLine | None:
    """The earliest root; one that is weak only when there is no other. None: nothing but symptoms."""
    weak = None
    lost = {line.rank for line in lines if line.role == "cascade" and line.signature in _LOST_A_PEER}
    by_signal = any(line.signature in _BY_SIGNAL for line in lines) and not any(
        line.signature == "ProcessFailed" and line.rank not in lost for line in lines
    )
    for line in lines:
        if line.role != "root":
            continue
        if line.signature == "ProcessFailed" and (line.rank in lost or (line.rank is None and lost)):
            continue  # it ended since it had lost a peer; torchrun calls it the root cause all the same
        known = signature(line.signature)
        if known is not None and known.kind in _EXCEPTIONS and (by_signal or _lives_on(line, evidence)):
            continue
        if known is not None and known.weak:
            weak = weak or line
            continue
        if known is not None and known.kind == "end" and line.advice == "none":
            continue  # how the scheduler ended it is told by the job itself
        return line
    return weak


def _lives_on(line: FailureLine, evidence: Evidence) -> bool:
    """Whether an exception was handled, as far as one can see: whoever printed it still runs."""
    if evidence.job.state == "ended":
        return False
    return line.rank is None or not evidence.rank_nodes or line.rank in evidence.rank_nodes


def _cause(evidence: Evidence, root: FailureLine | None, known: Signature | None) -> tuple[str, Advice]:
    job = evidence.job
    weak = known is None or known.weak
    if job.ended_by == "node-failed" and weak:
        return "SlurmNodeFailure", "exclude"
    killed = any(code == "HostOomKill" for code, _ in _incidents(evidence))
    if weak and (job.ended_by == "out-of-memory" or killed):
        return "HostOutOfMemory", "same"
    if root is not None:
        return root.signature, root.advice
    by_code = {93: "NoProgressStop", -9: "ProcessKilled", -11: "SegmentationFault", -7: "BusError"}
    name = by_code.get(job.exit_code or 0, "")
    row = signature(name) if name and job.state == "ended" else None
    return (row.name, row.advice) if row is not None else ("", "none")


def _clues(
    evidence: Evidence, lines: Sequence[FailureLine], root: FailureLine | None, known: Signature | None
) -> Iterator[_Clue]:
    yield from _by_root(evidence, lines, root, known)
    job = evidence.job
    for node in job.failed_nodes:
        yield _Clue(node, _SLURM_NAMES, "the scheduler says that it failed", "scheduler", hard=True)
    yield from _by_incidents(evidence)
    yield from _by_recorder(evidence)
    yield from _by_stacks(evidence)
    yield from _by_timeouts(evidence, lines)
    nodes = _all_nodes(evidence)
    unseen = {n: why for n, why in evidence.unseen_nodes.items() if n in nodes or not nodes}
    # when many do not answer it is our way to them that is broken
    if unseen and len(unseen) * 3 <= max(len(nodes), 1):
        for node, why in unseen.items():
            yield _Clue(node, _UNSEEN, f"it does not answer ({why}), the others do", "unseen")


def _node_of(line: FailureLine, evidence: Evidence) -> str:
    if line.node:
        return line.node
    if line.rank is not None and line.rank in evidence.rank_nodes:
        return evidence.rank_nodes[line.rank]
    nodes = set(evidence.job.nodes)
    return next(iter(nodes)) if len(nodes) == 1 else ""


def _by_root(
    evidence: Evidence, lines: Sequence[FailureLine], root: FailureLine | None, known: Signature | None
) -> Iterator[_Clue]:
    if root is None or known is None:
        return
    hard = known.advice == "exclude"
    named = {line.about for line in lines if line.about and line.signature == root.signature}
    for node in sorted(named):
        yield _Clue(node, _LINE_NAMES, f"the log names it: {known.meaning}", "line", hard=hard)
    if named:
        return
    if not known.blames:
        return
    first: dict[str, FailureLine] = {}
    for line in lines:
        if line.signature == root.signature and (node := _node_of(line, evidence)):
            first.setdefault(node, line)
    shared = _is_shared(first, evidence)
    for node, line in first.items():
        where = f"rank {line.rank}" if line.rank is not None else "one of its processes"
        # of what need not be the node's fault, the first alone is suspect, and the less the more there are
        if line is root or (hard and not shared) or (root.rank is None and not root.node):
            weight = known.blames / (3 if shared else 1 if hard else len(first))
            why = f"{where} was the first to fail" if line is root else f"{where} failed in the same way"
            yield _Clue(node, weight, why, "line", line.rank, hard and not shared)


def _is_shared(nodes: Collection[str], evidence: Evidence) -> bool:
    """Whether so many nodes show the same that it is the fabric's, the storage's or a power feed's fault."""
    return len(nodes) > max(2, 0.2 * len(_all_nodes(evidence)))


def _all_nodes(evidence: Evidence) -> set[str]:
    return set(evidence.job.nodes) or set(evidence.rank_nodes.values())


def _incidents(evidence: Evidence) -> Iterator[tuple[str, Incident]]:
    """Code and incident of each fault of a node of the run that was seen about when the run failed."""
    job = evidence.job
    end = job.ended_at if job.state == "ended" and job.ended_at else 0.0
    # a run that hangs has no end: what began while it ran may explain it
    first, last = (end or job.started_at) - BEFORE_SECONDS, end + AFTER_SECONDS if end else float("inf")
    nodes = _all_nodes(evidence)
    for incident in evidence.incidents:
        finding = incident.finding
        node = finding.subject.node
        if not node or finding.subject.run or (nodes and node not in nodes):
            continue
        if not finding.code.startswith(_HARDWARE_CODES) or finding.code in _CONSEQUENCES:
            continue
        if finding.code == "HostOomKill" and finding.time < job.started_at:
            continue  # what was killed before the run began was none of its processes
        if any(first <= t <= last for t in (finding.time, incident.first_seen, incident.opened_at) if t):
            yield finding.code, incident


def _by_incidents(evidence: Evidence) -> Iterator[_Clue]:
    found: dict[str, list[Incident]] = defaultdict(list)
    for code, incident in _incidents(evidence):
        found[code].append(incident)
    for code, several in found.items():
        shared = _is_shared({i.finding.subject.node for i in several}, evidence)
        for incident in several:
            hard = incident.finding.status is Status.CRITICAL and not code.startswith(_SOFT_CODES)
            weight = _CRITICAL_INCIDENT if hard else _WARNING_INCIDENT
            yield _Clue(
                incident.finding.subject.node, weight / 3 if shared else weight,
                f"{code}: {incident.finding.summary}", f"incident:{code}", hard=hard and not shared,
            )  # fmt: skip


def _by_recorder(evidence: Evidence) -> Iterator[_Clue]:
    """Ranks that had enqueued less than the others in their group, and ranks without a dump."""
    groups: dict[str, list[RankState]] = defaultdict(list)
    for state in evidence.recorded:
        groups[state.group].append(state)
    behind: dict[int, str] = {}
    for group, states in groups.items():
        most = max(s.last_enqueued for s in states)
        late = [s for s in states if s.last_enqueued < most]
        if len(late) * 2 > len(states):
            # most are behind: those ahead are the odd ones, and the sequence numbers tell nobody's guilt
            continue
        least = min((s.last_enqueued for s in late), default=most)
        for state in late:
            if state.last_enqueued == least:
                behind.setdefault(
                    state.rank,
                    f"rank {state.rank} stopped at collective {state.last_enqueued} of group {group}, "
                    f"the others went on to {most}",
                )
    yield from _of_ranks(behind, _BEHIND, "recorder", evidence)
    seen = {s.rank for s in evidence.recorded}
    if seen and evidence.world_size > len(seen):
        absent = set(range(evidence.world_size)) - seen
        if len(absent) * 4 <= evidence.world_size or len(_nodes_of(absent, evidence)) == 1:
            why = {r: f"rank {r} left no flight recorder dump, {len(seen)} others did" for r in absent}
            yield from _of_ranks(why, _NO_DUMP, "recorder", evidence)


def _by_stacks(evidence: Evidence) -> Iterator[_Clue]:
    odd = evidence.odd_ranks
    world = evidence.world_size or len(evidence.rank_nodes)
    if world and len(odd) * 2 > world and len(odd) > 1:
        return
    for weight, words in (
        (_STOPPED, ("state T", "stopped by a signal", "state t")),
        (_IN_KERNEL, ("state D", "in the kernel")),
        (_ODD_STACK, ("",)),
    ):
        hit = {r: f"rank {r} is elsewhere than the others: {frame}" for r, frame in odd.items()
               if any(word in frame for word in words)}  # fmt: skip
        odd = {r: frame for r, frame in odd.items() if r not in hit}
        yield from _of_ranks(hit, weight, "stacks", evidence, hard=weight == _IN_KERNEL)


def _by_timeouts(evidence: Evidence, lines: Sequence[FailureLine]) -> Iterator[_Clue]:
    """Who is silent where all others wait, and whose own line says that it enqueued least.

    These are lines of survivors: alone they never make more than a suspicion.
    """
    waiting = {line.rank for line in lines if line.signature == "CollectiveTimeout" and line.rank is not None}
    world = evidence.world_size or len(evidence.rank_nodes)
    silent = set(range(world)) - waiting
    nodes = _nodes_of(silent, evidence)
    spoke = _nodes_of(waiting, evidence)
    quiet = nodes - spoke
    if waiting and quiet and len(silent) * 2 < world and len(quiet) <= max(1, 0.1 * len(nodes | spoke)):
        for node in sorted(quiet):
            yield _Clue(
                node, _SILENT_IN_TIMEOUTS, "its ranks logged nothing where all others waited", "timeouts"
            )
        return
    enqueued = dict(_enqueued(lines))
    most = max(enqueued.values(), default=0)
    least = min(enqueued.values(), default=0)
    late = {r for r, n in enqueued.items() if n == least}
    if least < most and len(late) * 2 <= len(enqueued):
        why = {r: f"rank {r} had enqueued {least} collectives, others {most}" for r in late}
        yield from _of_ranks(why, _BEHIND_BY_LOG, "timeouts", evidence)


def _enqueued(lines: Sequence[FailureLine]) -> Iterator[tuple[int, int]]:
    for line in lines:
        # ... PG status: last enqueued work: 547, last completed work: -1
        _, found, rest = line.text.partition("last enqueued work: ")
        number = rest.split(",")[0].strip()
        if found and line.rank is not None and number.lstrip("-").isdigit():
            yield line.rank, int(number)


def _nodes_of(ranks: Collection[int | None], evidence: Evidence) -> set[str]:
    return {evidence.rank_nodes[r] for r in ranks if r is not None and r in evidence.rank_nodes}


def _of_ranks(
    why: Mapping[int, str], weight: float, source: str, evidence: Evidence, *, hard: bool = False
) -> Iterator[_Clue]:
    """One clue a node. Ranks on several nodes share what is known: not all of them can be the first."""
    by_node: dict[str, int] = {}
    lone = set(evidence.job.nodes)
    for rank in sorted(why):
        node = evidence.rank_nodes.get(rank) or (next(iter(lone)) if len(lone) == 1 else "")
        by_node.setdefault(node, rank)
    for node, rank in by_node.items():
        yield _Clue(
            node, weight if len(by_node) == 1 else weight / len(by_node), why[rank], source, rank, hard
        )


def _suspects(clues: Sequence[_Clue], evidence: Evidence) -> tuple[Suspect, ...]:
    """Nodes with what speaks against them, the surest first.

    Evidence of different sources adds up as independent (noisy or); of one source the strongest counts. When
    sources point at different nodes, each of them is believed less.
    """
    by_node: dict[str, list[_Clue]] = defaultdict(list)
    for clue in clues:
        by_node[clue.node].append(clue)
    # a rank whose node nobody knows is still worth a name
    total = {node: _combined(own) for node, own in by_node.items()}
    hard = {node for node, own in by_node.items() if any(c.hard and c.weight >= CERTAIN for c in own)}
    suspects = []
    for node, own in by_node.items():
        confidence = total[node]
        if node not in hard:
            rivals = [t for other, t in total.items() if other != node and other]
            if hard:
                confidence *= 0.5  # explained by those
            elif rivals:
                confidence *= 1 - 0.5 * max(rivals)
        strongest = sorted(own, key=lambda c: -c.weight)
        why = "; ".join(dict.fromkeys(c.why for c in strongest))
        rank = next((c.rank for c in strongest if c.rank is not None), None)
        suspects.append(Suspect(node, round(min(confidence, CONFIDENCE_AT_MOST), 3), why, rank))
    return tuple(sorted(suspects, key=lambda s: (-s.confidence, s.node)))


def _combined(clues: Sequence[_Clue]) -> float:
    best: dict[str, float] = {}
    for clue in clues:
        best[clue.source] = max(best.get(clue.source, 0.0), clue.weight)
    doubt = 1.0
    for weight in best.values():
        doubt *= 1 - weight
    return min(1 - doubt, CONFIDENCE_AT_MOST)


def _is_hard(evidence: Evidence, suspects: Sequence[Suspect]) -> bool:
    """Whether what blames the first suspect is a word of the scheduler or of the hardware."""
    first = suspects[0].node
    if first in evidence.job.failed_nodes:
        return True
    return any(c.node == first and c.hard and c.weight >= CERTAIN for c in _by_incidents(evidence))


def _sentence(
    evidence: Evidence,
    cause: str,
    row: Signature | None,
    root: FailureLine | None,
    lines: Sequence[FailureLine],
    suspects: Sequence[Suspect],
) -> str:
    named = [s for s in suspects if s.node]
    blamed = [s for s in named if s.confidence >= CERTAIN]
    who = ""
    if blamed:
        who = f"; {_listed([s.node for s in blamed])} to blame ({blamed[0].why})"
    elif named:
        who = f"; {named[0].node} may be guilty ({named[0].why})"
    if row is None:
        what = "nobody knows why it stopped"
        if cause:
            what = cause
        elif any(line.role == "cascade" for line in lines):
            what = "the log holds only symptoms of ranks that lost a peer, no cause"
        elif not lines:
            what = "nothing in the logs says why"
        return _capital(what) + who
    where = ""
    if root is not None and root.signature == cause:
        node = _node_of(root, evidence)
        rank = f"rank {root.rank}" if root.rank is not None else ""
        where = " on ".join(x for x in (rank, node) if x)
        where = f" ({where})" if where else ""
    if row.kind in ("user", "environment"):
        who = "; no node is to blame"
    return _capital(row.meaning) + where + who


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(names: Sequence[str]) -> str:
    few = ", ".join(names[:4])
    return few + (
        f" and {len(names) - 4} more are" if len(names) > 4 else " is" if len(names) == 1 else " are"
    )


def _proof(root: FailureLine | None, lines: Sequence[FailureLine]) -> tuple[str, ...]:
    """The root, then one line of each other signature in order of time."""
    told: dict[str, FailureLine] = {}
    if root is not None:
        told[root.signature] = root
    for line in lines:
        told.setdefault(line.signature, line)
    return tuple(_shown(line) for line in list(told.values())[:LINES_AT_MOST])


def _shown(line: FailureLine) -> str:
    where = ", ".join(x for x in (line.node, f"rank {line.rank}" if line.rank is not None else "") if x)
    return f"{where}: {line.text}" if where else line.text
