"""From verdicts to incidents and the changes that people hear of. Pure: values in, values out.

    reported >= confirm times          not reported, and `clears` is satisfied
 (none) -> pending ----------------> open ---------------------------------> resolved
             | not reported            ^   reported again inside the flap window |
             +--> dropped, silently    +-----------------------------------------+

A pass that could not look neither resolves nor counts. Blindness is an incident of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clustertools.model import Finding, Incident, State, Status, Transition, Verdict

Incidents = Mapping[str, Incident]


@dataclass(frozen=True, slots=True)
class Rules:
    """What `fold` needs to know of the site.

    `confirm` maps a check to the number of passes in a row that must report a state before it is believed;
    `explains` maps a root code to the codes that it makes a mere symptom on the same node; incidents of the
    checks in `observe_only` are marked as observed.
    """

    confirm: Mapping[str, int] = field(default_factory=dict)
    blind_confirm: int = 3
    flap_window_seconds: float = 1800.0
    keep_resolved_seconds: float = 7 * 86400.0
    explains: Mapping[str, frozenset[str]] = field(default_factory=dict)
    observe_only: frozenset[str] = frozenset()


def fold(
    incidents: Incidents, verdicts: Sequence[Verdict], now: float, rules: Rules | None = None
) -> tuple[dict[str, Incident], list[Transition]]:
    """The incidents after one pass and what changed.

    `incidents` are those known so far by key, `verdicts` the answers of this pass (at most one for each
    check and subject). Checks that did not run leave their incidents as they are.
    """
    rules = rules or Rules()
    after = dict(incidents)
    transitions: list[Transition] = []
    for verdict in verdicts:
        _fold_one(after, verdict, now, rules, transitions)
        _fold_blindness(after, verdict, now, rules, transitions)
    for key, incident in list(after.items()):
        if incident.state == "resolved" and now - incident.resolved_at > rules.keep_resolved_seconds:
            del after[key]
        elif incident.observed != (incident.finding.check in rules.observe_only):
            after[key] = dataclasses.replace(incident, observed=not incident.observed)
    return after, _explained(after, transitions, now, rules)


def _fold_one(
    after: dict[str, Incident], verdict: Verdict, now: float, rules: Rules, told: list[Transition]
) -> None:
    reported: dict[str, Finding] = {}
    for finding in verdict.findings:
        known = reported.get(finding.key)
        if known is None or finding.status > known.status:
            reported[finding.key] = finding
    confirm = rules.confirm.get(verdict.check, 1)
    for key, finding in reported.items():
        _report(after, key, finding, verdict.boot_id, now, confirm, rules, told)
    if verdict.blind or verdict.status in (Status.UNKNOWN, Status.SKIPPED):
        return
    for key, incident in list(after.items()):
        mine = incident.finding.check == verdict.check and incident.finding.subject.scope == verdict.subject
        if mine and key not in reported and incident.finding.code != "Blind":
            _not_reported(after, key, incident, verdict, now, told)


def _report(
    after: dict[str, Incident],
    key: str,
    finding: Finding,
    boot_id: str,
    now: float,
    confirm: int,
    rules: Rules,
    told: list[Transition],
) -> None:
    known = after.get(key)
    believed = finding.clears != "recovery" or confirm <= 1
    if known is None or (known.state == "resolved" and now - known.resolved_at > rules.flap_window_seconds):
        state: State = "open" if believed else "pending"
        opened = now if believed else 0.0
        after[key] = Incident(finding, state, now, now, opened, boot_id=boot_id)
        if believed:
            told.append(Transition(after[key], "none", "open", now))
        return
    seen = dataclasses.replace(
        known, finding=finding, last_seen=now, count=known.count + 1, boot_id=boot_id or known.boot_id
    )
    if known.state == "pending":
        if believed or seen.count >= confirm:
            seen = dataclasses.replace(seen, state="open", opened_at=now)
            told.append(Transition(seen, "pending", "open", now))
    elif known.state == "resolved":
        seen = dataclasses.replace(seen, state="open", opened_at=now, resolved_at=0.0)
        worse = finding.status > known.finding.status
        told.append(Transition(seen, "resolved", "open", now, worse))
    elif finding.status > known.finding.status:
        told.append(Transition(seen, "open", "open", now, worse=True))
    elif finding.edition > known.finding.edition:
        told.append(Transition(seen, "open", "open", now, changed=True))
    after[key] = seen


def _not_reported(
    after: dict[str, Incident],
    key: str,
    incident: Incident,
    verdict: Verdict,
    now: float,
    told: list[Transition],
) -> None:
    if incident.state == "pending":
        del after[key]
    elif incident.state == "open" and (key in verdict.ends or _cleared(incident, verdict, now)):
        finding = incident.finding
        if verdict.ends.get(key):
            finding = dataclasses.replace(finding, summary=verdict.ends[key])
        done = dataclasses.replace(
            incident, finding=finding, state="resolved", resolved_at=now, explained_by=""
        )
        after[key] = done
        told.append(Transition(done, "open", "resolved", now))


def _cleared(incident: Incident, verdict: Verdict, now: float) -> bool:
    clears = incident.finding.clears
    if clears == "recovery":
        return True
    if clears == "reboot":
        # a boot id that could not be read proves nothing
        return bool(incident.boot_id and verdict.boot_id and verdict.boot_id != incident.boot_id)
    if clears == "manual":
        return False
    return now - incident.last_seen >= float(clears)


def _fold_blindness(
    after: dict[str, Incident], verdict: Verdict, now: float, rules: Rules, told: list[Transition]
) -> None:
    scope = dataclasses.replace(verdict.subject, part=verdict.check)
    key = f"Blind:{scope}"
    if verdict.blind or verdict.status is Status.UNKNOWN:
        why = verdict.blind or "the check gave no reason"
        finding = Finding(
            verdict.check, "Blind", scope, Status.UNKNOWN,
            f"{verdict.check} cannot look: {why}", time=now, nodes=_nodes(verdict),
        )  # fmt: skip
        _report(after, key, finding, verdict.boot_id, now, rules.blind_confirm, rules, told)
    elif key in after:
        _not_reported(after, key, after[key], verdict, now, told)


def _nodes(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.subject.node,) if verdict.subject.node else ()


def _explained(
    after: dict[str, Incident], transitions: list[Transition], now: float, rules: Rules
) -> list[Transition]:
    """Mark symptoms with the root that explains them, on the incidents and on this pass's transitions.

    A symptom that outlives its root was told by nobody so far: it is told now.
    """
    roots = [i for i in after.values() if i.state == "open" and i.finding.code in rules.explains]
    told = {t.incident.key for t in transitions}
    left = []
    for key, incident in after.items():
        if incident.state != "open":
            continue
        by = next((root.key for root in roots if _explains(root, incident, rules)), "")
        if by != incident.explained_by:
            after[key] = dataclasses.replace(incident, explained_by=by)
            root = after.get(incident.explained_by)
            # what was open before its root was told then
            hushed = root is None or root.opened_at <= incident.opened_at
            if not by and key not in told and hushed:
                left.append(Transition(after[key], "none", "open", now))
    marked = [dataclasses.replace(t, incident=after.get(t.incident.key, t.incident)) for t in transitions]
    return marked + left


def _explains(root: Incident, symptom: Incident, rules: Rules) -> bool:
    nodes = {symptom.finding.subject.node, *symptom.finding.nodes}
    known = symptom.finding.code in rules.explains[root.finding.code]
    if root.finding.time < symptom.finding.since:
        return False  # the run began after it, and made its way in spite of it
    if root.finding.status < symptom.finding.status:
        return False  # who asked to hear of the worst only would hear of neither
    if root.finding.subject.run and root.finding.subject.run != symptom.finding.subject.run:
        return False  # what one run does says nothing of another's
    return known and root.key != symptom.key and root.finding.subject.node in nodes


def resolve(incidents: Incidents, key: str, now: float) -> tuple[dict[str, Incident], list[Transition]]:
    """A person says that `key` is over. Raises KeyError when there is no such open incident."""
    incident = incidents[key]
    if incident.state != "open":
        raise KeyError(key)
    done = dataclasses.replace(incident, state="resolved", resolved_at=now)
    return {**incidents, key: done}, [Transition(done, "open", "resolved", now)]


def is_quiet(incident: Incident, now: float) -> bool:
    """Whether people asked not to be told of it now."""
    return incident.silenced_until > now or incident.acknowledged_until > now


def about_node(incidents: Iterable[Incident], node: str) -> list[Incident]:
    """Open incidents that concern a node, by subject or by what their finding names."""
    return [
        i
        for i in incidents
        if i.state == "open" and (i.finding.subject.node == node or node in i.finding.nodes)
    ]
