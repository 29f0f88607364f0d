"""What a node does about its own health: drains itself, and takes back what it drained. Mostly: nothing.

    decision = decide(memory, verdicts, playbooks, rules, now, node, slurm)

The same `fold` and `plan` as in the watchdog, with the node's own short memory in place of the store. Slurm
is the database: what the node drained is told by the reason that stands there, so it outlives reboots and
diskless images, and a person who writes another reason has taken the node over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from clustertools import incidents, policy
from clustertools.errors import ActionFailed, Unobservable
from clustertools.model import Action, Incident, Playbook, Status, Verdict, from_data, to_data
from clustertools.policy import Budgets, Ledger, Past, World
from clustertools.text import plain

#: Every reason of ours begins so; the watchdog's and those of older versions too.
OURS = "clustertools:"
#: How the reason ends on what the node may take back by itself. Without it, a person has to.
MARK = "(node-health)"
_REASON_CHARACTERS = 160
#: How long what was done counts in the guards.
LEDGER_SECONDS = 7 * 86400.0


class Nodes(Protocol):
    """Slurm's list, as `schedulers.slurm_nodes.SlurmNodes` gives it."""

    def node(self, name: str) -> Any: ...
    def reasons(self) -> dict[str, str]: ...
    def drain(self, name: str, reason: str) -> None: ...
    def undrain(self, name: str) -> None: ...


@dataclass(frozen=True)
class Rules:
    """What a site decided. The defaults only look.

    `max_nodes` and `max_fraction` are the circuit breaker: no more nodes of the class than either of them may
    carry a reason of ours (one always may). `in_class` says whether another node belongs to this one's class.
    With `earn_cases` the node drains for nothing: who keeps the judgements is the watchdog. `is_watch`: the
    look of every minute, which alone counts the passes of what flickers, and alone resumes; a prolog or an
    epilog looks at less, and at any moment.
    """

    mode: str = "observe"
    playbook_modes: Mapping[str, str] = field(default_factory=dict)
    confirm: Mapping[str, int] = field(default_factory=dict)
    observe_only: frozenset[str] = frozenset()
    paused: str = ""
    may_act: bool = True
    is_watch: bool = True
    hold_seconds: float = 600.0
    per_node_per_day: int = 2
    earn_cases: int = 0
    max_nodes: int = 8
    max_fraction: float = 0.1
    breaker_seconds: float = 1800.0
    flap_window_seconds: float = 1800.0
    in_class: Callable[[str], bool] = lambda node: True

    @property
    def acts(self) -> bool:
        """Whether anything may be done at all."""
        modes = (self.mode, *self.playbook_modes.values())
        return self.may_act and not self.paused and "act" in modes


@dataclass(frozen=True)
class Memory:
    """What a node remembers between two looks. Losing it delays; it never drains or resumes.

    `standing` is what Slurm last said of us: "ours", "clear", or "" when nobody asked. `well_since` is when
    every look was well; 0 when it is not.
    """

    incidents: Mapping[str, Incident] = field(default_factory=dict)
    done: tuple[dict[str, Any], ...] = ()
    standing: str = ""
    well_since: float = 0.0
    breaker_until: float = 0.0
    said: str = ""
    said_at: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What was done or would be done, in sentences. `refuse`: a job must not start on this node."""

    memory: Memory
    sentences: tuple[str, ...] = ()
    refuse: bool = False


def decide(
    memory: Memory,
    verdicts: Sequence[Verdict],
    playbooks: Callable[[], Sequence[Playbook]],
    rules: Rules,
    now: float,
    node: str,
    slurm: Nodes,
) -> Decision:
    """Fold what was seen into the memory, and drain `node` or take a drain back where the rules allow it.

    `playbooks` is called only when something is wrong; Slurm is asked only when something is to be done, and
    once after the memory was lost.
    """
    after = _folded(memory.incidents, verdicts, rules, now)
    done = tuple(row for row in memory.done if now - float(row["time"]) < LEDGER_SECONDS)
    memory = dataclasses.replace(memory, incidents=after, done=done)
    grave = {k: i for k, i in after.items() if _is_grave(i) and i.finding.check not in rules.observe_only}
    observed = [i for i in after.values() if _is_grave(i) and i.finding.check in rules.observe_only]
    said = [f"{_name(i)}: its check is only observed here, so nothing is done" for i in observed]
    blind = [v.check for v in verdicts if v.blind or v.status is Status.UNKNOWN]
    if blind and memory.standing == "ours":
        said.append(f"not resumed: could not look with {', '.join(blind)}")
    if grave:
        memory = dataclasses.replace(memory, well_since=0.0)
        decision = _drain(memory, grave, _drains_of(playbooks()), rules, verdicts, now, node, slurm)
    elif not rules.is_watch:
        decision = Decision(memory)
    elif blind or all(v.status is Status.SKIPPED for v in verdicts):
        decision = Decision(dataclasses.replace(memory, well_since=0.0))
    else:
        decision = _recover(memory, rules, now, node, slurm)
    return dataclasses.replace(decision, sentences=(*said, *decision.sentences))


def _folded(
    before: Mapping[str, Incident], verdicts: Sequence[Verdict], rules: Rules, now: float
) -> dict[str, Incident]:
    folding = incidents.Rules(confirm=rules.confirm, flap_window_seconds=rules.flap_window_seconds)
    after, _ = incidents.fold(before, verdicts, now, folding)
    if rules.is_watch:
        return after
    # a prolog right after an epilog is no second pass: what they cannot believe by themselves stays as it was
    counted = {f.check for v in verdicts for f in v.findings if rules.confirm.get(v.check, 1) > 1}
    ours = {k: i for k, i in after.items() if i.finding.check not in counted}
    return {**ours, **{k: i for k, i in before.items() if i.finding.check in counted}}


def _is_grave(incident: Incident) -> bool:
    return incident.state in ("open", "pending") and incident.finding.status is Status.CRITICAL


def _drains_of(playbooks: Sequence[Playbook]) -> list[Playbook]:
    """The playbooks with nothing but their drain: all else is the watchdog's."""
    return [
        dataclasses.replace(book, steps=tuple(step for step in book.steps if step.kind == "drain"))
        for book in playbooks
    ]


def _name(incident: Incident) -> str:
    part = incident.finding.subject.part
    return plain(f"{incident.finding.code} {part}".strip(), 100)


def reason_of(incident: Incident) -> str:
    """The note beside the drained node: whose it is, what, where, and whether we take it back ourselves."""
    finding = incident.finding
    words = " ".join((OURS, finding.code, finding.subject.part, finding.summary))
    text = plain(" ".join(words.split()), _REASON_CHARACTERS)
    by_hand = finding.clears == "manual"
    return text if by_hand else f"{text} {MARK}"


def is_ours_to_end(reason: str) -> bool:
    """Whether this program wrote the reason, and may take it back."""
    return reason.startswith(OURS) and reason.endswith(MARK)


# draining


def _drain(
    memory: Memory,
    grave: Mapping[str, Incident],
    books: Sequence[Playbook],
    rules: Rules,
    verdicts: Sequence[Verdict],
    now: float,
    node: str,
    slurm: Nodes,
) -> Decision:
    fresh = frozenset(f.key for v in verdicts for f in v.findings)

    def plan(drained: Mapping[str, str]) -> list[Action]:
        world = World(
            mode=rules.mode, playbook_modes=rules.playbook_modes, paused=rules.paused, fresh=fresh,
            drained=drained, supported=frozenset({"drain"}),
        )  # fmt: skip
        # the breaker of `plan` counts what this node did; ours counts what Slurm lists
        budgets = Budgets(rules.per_node_per_day, breaker_nodes=1 << 30, earn_cases=rules.earn_cases)
        ledger = Ledger(tuple(from_data(Past, row) for row in memory.done))
        return policy.plan(grave, books, ledger, world, now, budgets)

    actions = plan({})
    said = [_would(grave[a.because], a.blocked) for a in actions if a.blocked]
    # one that was drained for is in the ledger, so it is not planned again: a person who resumes the node
    # while the fault lasts is not contradicted
    wanted = [a for a in actions if not a.blocked]
    if wanted and not rules.may_act:
        return Decision(memory, (*said, *(_would(grave[a.because], "it may only look now") for a in wanted)))
    if not wanted:
        settled = any(row["kind"] == "drain" and row.get("because") in fresh for row in memory.done)
        refuse = settled and rules.acts and _stands(node, slurm)
        return Decision(memory, tuple(said), refuse)
    action, incident = wanted[0], grave[wanted[0].because]
    try:
        known = slurm.node(node)
        note = known.reason or ("no reason given" if known.is_drained else "")
        # plan knows nodes by the name that findings carry, which need not be Slurm's
        drained = {action.target.node: note} if note else {}
        again = [a for a in plan(drained) if a.id == action.id]
        blocked = again[0].blocked if again else ""
        blocked = blocked or _breaker(memory, rules, now, node, slurm)
        if blocked:
            standing = "ours" if is_ours_to_end(known.reason) else "clear"
            memory = dataclasses.replace(memory, standing=standing)
            ours = known.is_drained and known.reason.startswith(OURS)
            return Decision(memory, (*said, _would(incident, blocked)), refuse=ours)
        reason = reason_of(incident)
        slurm.drain(node, reason)
    except (Unobservable, ActionFailed) as exc:
        return Decision(memory, (*said, _would(incident, f"{exc}")))
    past = Past(action.id, "drain", action.target, action.playbook, "done", "", now)
    row = {**to_data(past), "because": action.because}
    memory = dataclasses.replace(memory, done=(*memory.done, row), standing="ours")
    undone = _too_many_after_all(rules, node, slurm)
    if undone:
        row = {**row, "state": "blocked", "blocked": undone}
        memory = dataclasses.replace(
            memory, done=(*memory.done[:-1], row), standing="clear",
            breaker_until=now + rules.breaker_seconds,
        )  # fmt: skip
        return Decision(memory, (*said, f"drained {node} and took it back: {undone}"))
    return Decision(memory, (*said, f"drained {node}: {reason}"), refuse=True)


def _would(incident: Incident, why: str) -> str:
    return f"would drain for {_name(incident)} ({plain(incident.finding.summary, 120)}): {plain(why, 200)}"


def _stands(node: str, slurm: Nodes) -> bool:
    """Whether the node is still drained by us, as far as Slurm can be asked."""
    try:
        known = slurm.node(node)
    except Unobservable:
        return False
    return bool(known.is_drained and known.reason.startswith(OURS))


def _carrying(rules: Rules, slurm: Nodes) -> tuple[set[str], int]:
    """(nodes of this class that carry a reason of ours, nodes of the class)."""
    reasons = {name: why for name, why in slurm.reasons().items() if rules.in_class(name)}
    return {name for name, why in reasons.items() if why.startswith(OURS)}, len(reasons)


def _limit(rules: Rules, size: int) -> int:
    return max(1, min(rules.max_nodes, int(rules.max_fraction * size)))


def _breaker(memory: Memory, rules: Rules, now: float, node: str, slurm: Nodes) -> str:
    if memory.breaker_until > now:
        return f"circuit breaker: open for another {memory.breaker_until - now:.0f} s"
    carrying, size = _carrying(rules, slurm)
    limit = _limit(rules, size)
    if len(carrying | {node}) > limit:
        return f"circuit breaker: {len(carrying - {node})} of {size} nodes are drained by us (limit {limit})"
    return ""


def _too_many_after_all(rules: Rules, node: str, slurm: Nodes) -> str:
    """Take the drain back when more nodes than allowed did the same at this moment; in words why.

    Slurm runs health checks on all nodes at once, so all may have seen an empty list. It takes the drains one
    after the other, though: who looks after its own sees all those before it.
    """
    try:
        carrying, size = _carrying(rules, slurm)
        limit = _limit(rules, size)
        if len(carrying) <= limit:
            return ""
        slurm.undrain(node)
    except (Unobservable, ActionFailed):
        return ""  # it stands; the next look that is well takes it back
    return f"circuit breaker: {len(carrying)} of {size} nodes were drained at once (limit {limit})"


# recovering


def _recover(memory: Memory, rules: Rules, now: float, node: str, slurm: Nodes) -> Decision:
    """All that looked is well, and all could look."""
    memory = dataclasses.replace(memory, well_since=memory.well_since or now)
    if memory.standing == "clear" or not dataclasses.replace(rules, paused="").acts:
        return Decision(memory)
    try:
        known = slurm.node(node)
        if not (known.is_drained and is_ours_to_end(known.reason)):
            return Decision(dataclasses.replace(memory, standing="clear"))
        memory = dataclasses.replace(memory, standing="ours")
        left = memory.well_since + rules.hold_seconds - now
        if left > 0:
            return Decision(memory, (f"well again; resumes in {left:.0f} s if it stays so",))
        if rules.paused:
            return Decision(memory, (f"well again, not resumed: paused: {rules.paused}",))
        slurm.undrain(node)
    except (Unobservable, ActionFailed) as exc:
        return Decision(memory, (f"well, but Slurm could not be asked about this node: {exc}",))
    text = f"resumed {node}: well for {now - memory.well_since:.0f} s; it was {plain(known.reason, 200)}"
    return Decision(dataclasses.replace(memory, standing="clear"), (text,))


def memory_to_data(memory: Memory) -> dict[str, Any]:
    """JSON-ready."""
    data = to_data(memory)
    return {**data, "incidents": [to_data(i) for i in memory.incidents.values()]}


def memory_from_data(data: Mapping[str, Any]) -> Memory:
    """The inverse. Raises ValueError, TypeError or KeyError on data of another shape."""
    found = [from_data(Incident, row) for row in data["incidents"]]
    past = [dict(row) for row in data["done"]]
    for row in past:
        from_data(Past, row)
    return Memory(
        {i.key: i for i in found}, tuple(past), str(data["standing"]), float(data["well_since"]),
        float(data["breaker_until"]), str(data["said"]), float(data["said_at"]),
    )  # fmt: skip
