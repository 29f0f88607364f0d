"""Which changes people hear of, and what they are still owed. Pure.

While an incident is silenced, taken by a person, or explained by another one, nothing is said about it. What
was kept back is told when that ends and the incident is still open: a silence delays a page, it eats none.
What can wait for the summary of the day is kept back until then.
"""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from clustertools.model import Incident, State, Transition

#: What was kept back of an incident: the kind of a transition. Owed to people until it is told or over.
Owed = Mapping[str, str]

#: The earlier ones hold the later ones: who hears that it opened needs not hear that it got worse.
_ORDER = ("opened", "reopened", "worsened")
_WAS: Mapping[str, State] = {"opened": "none", "reopened": "resolved", "worsened": "open"}


#: The hour, by the clock of this machine, from which on the summary of the day is told: people are there.
#: Our choice.
DAILY_HOUR = 9


def day_of(now: float, zone: datetime.tzinfo | None = None) -> str:
    """The newest day whose summary may be told: `2026-01-31`. `zone`: None is this machine's."""
    moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).astimezone(zone)
    return (moment - datetime.timedelta(hours=DAILY_HOUR)).date().isoformat()


def is_silenced(key: str, patterns: Iterable[str]) -> bool:
    """Whether somebody asked not to hear of this key (shell patterns, upper and lower case are different)."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def is_quiet(incident: Incident, patterns: Iterable[str], now: float) -> bool:
    """Whether nobody is told of this incident now."""
    marked = incident.silenced_until > now or incident.acknowledged_until > now
    return marked or bool(incident.explained_by) or is_silenced(incident.key, patterns)


def due(
    transitions: Sequence[Transition],
    incidents: Mapping[str, Incident],
    owed: Owed,
    patterns: Sequence[str],
    now: float,
    *,
    with_daily: bool = True,
) -> tuple[list[Transition], dict[str, str]]:
    """What to tell on this pass, and what is owed after it. `with_daily`: the summary of the day is due.

    `incidents` are those after the pass, `owed` is what an earlier call gave. The end of an incident is told
    to whoever heard of its beginning, in spite of any silence: a page whose end is never told is worse than
    none.
    """

    def must_wait(incident: Incident) -> bool:
        return (incident.finding.daily and not with_daily) or is_quiet(incident, patterns, now)

    told: list[Transition] = []
    left = dict(owed)
    for transition in transitions:
        key, kind = transition.incident.key, transition.kind
        if kind == "resolved":
            if left.pop(key, "worsened") == "worsened":
                told.append(transition)
            continue
        if kind == "changed":
            # whoever is still owed its beginning hears all of it then
            if key not in left and not must_wait(transition.incident):
                told.append(transition)
            continue
        first = min(kind, left.pop(key, kind), key=_ORDER.index)
        if must_wait(transition.incident):
            left[key] = first
        else:
            told.append(transition if first == kind else _again(transition.incident, first, now))
    for key, kind in list(left.items()):
        incident = incidents.get(key)
        if incident is None or incident.state != "open":
            del left[key]
        elif not must_wait(incident):
            del left[key]
            told.append(_again(incident, kind, now))
    return told, left


def _again(incident: Incident, kind: str, now: float) -> Transition:
    return Transition(incident, _WAS[kind], "open", now, worse=kind == "worsened")


def lapsed(
    incidents: Mapping[str, Incident], now: float
) -> tuple[dict[str, Incident], list[tuple[Incident, str]]]:
    """Incidents without the acknowledgements that are over, and the open ones among them with who had it.

    It is over at its time and at the end of its incident: who took that did not take its return.
    """
    after = dict(incidents)
    open_still = []
    for key, incident in incidents.items():
        over = incident.acknowledged_until <= now or incident.state == "resolved"
        if incident.acknowledged_by and over:
            after[key] = dataclasses.replace(incident, acknowledged_by="", acknowledged_until=0.0)
            if incident.state == "open":
                open_still.append((after[key], incident.acknowledged_by))
    return after, open_still
