"""What a message to people says: from a transition or an outcome to a title and lines. Pure.

Everything that came from a log, a node or a job passes through `plain` on its way in, so that no sink ever
sees a control character, a terminal escape or a text without end. Escaping for one medium (Slack's `<` and
`&`) is that sink's own business.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from clustertools.model import Action, Incident, Outcome, Playbook, Remedy, Status, Subject, Transition, worst
from clustertools.text import in_words, plain, plain_block

Kind = Literal["opened", "reopened", "worsened", "changed", "resolved", "outcome", "note"]
KINDS: frozenset[str] = frozenset(get_args(Kind))

#: Fewer incidents than this keep a message, and so a thread, each. Three of a kind in one pass are one story.
FOLD_FROM = 3
#: Names told before "and 23 more".
NAMES_SHOWN = 8
EVIDENCE_SHOWN = 5
LINES_SHOWN = 16

_TITLE_CHARACTERS = 300
_NO_REFERENCES: Mapping[str, str] = MappingProxyType({})

ADVICE = {
    Remedy.RESTART_APP: "restart the job",
    Remedy.RESET_GPU: "reset the GPU",
    Remedy.DRAIN_AND_RESET: "drain the node, then reset the GPU",
    Remedy.REBOOT_NODE: "reboot the node",
    Remedy.INSPECT: "have somebody look at the hardware",
    Remedy.REPLACE: "replace the part",
}
_DEED = {
    "capture": "collect evidence from",
    "cancel": "cancel",
    "drain": "drain",
    "exclude": "exclude",
    "reboot": "reboot",
    "requeue": "requeue",
    "reset_gpu": "reset the GPU of",
    "restart": "restart",
    "resume": "resume",
    "run": "run the site's command for",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to tell. `key` is the incident's; `keys` are those of all that a folded message tells of.

    `place` (a node or a run) and `headline` are the two halves of the title that folding needs apart.
    `status` of a recovery is what the incident was, so that those who heard of the fault hear of its end.
    `joins` is the key of an earlier incident in whose thread this one is told. One that is only `changed`
    edits what was told, and goes to sinks that can.

    The last three are true at the moment of sending: `together` are the keys of all incidents of its thread,
    when there are others; `left_open` says how many of all of them are open; `taken_by` is who has it.
    """

    key: str
    kind: Kind
    status: Status
    title: str
    lines: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    runbook: str = ""
    time: float = 0.0
    place: str = ""
    headline: str = ""
    keys: tuple[str, ...] = ()
    joins: str = ""
    together: tuple[str, ...] = ()
    left_open: int = 0
    taken_by: str = ""

    def __post_init__(self) -> None:
        if not self.keys:
            object.__setattr__(self, "keys", (self.key,))

    @property
    def code(self) -> str:
        """The code of the incident: the part of its key before the subject."""
        return self.key.partition(":")[0]


def named(names: Iterable[str], shown: int = NAMES_SHOWN) -> str:
    """Names in a row, at most `shown` of them and then "and 23 more"."""
    every = list(names)
    rest = len(every) - shown
    return ", ".join(plain(name, 100) for name in every[:shown]) + (f" and {rest} more" if rest > 0 else "")


# one message


def from_transition(
    transition: Transition,
    *,
    playbook: Playbook | None,
    planned: Sequence[Action] = (),
    explains: Sequence[Incident] = (),
    zone: datetime.tzinfo | None = None,
) -> Message:
    """What people hear of a change: what is wrong where, what will be done or why not, how to look.

    `planned` are the actions of this incident, blocked ones included; `explains` the incidents that are its
    symptoms. `zone` is the time zone of the clock in the title; None is this machine's.
    """
    incident, finding, kind = transition.incident, transition.incident.finding, transition.kind
    place, headline = _place(finding.subject), plain(finding.summary, 200)
    ended = kind == "resolved"
    lines = []
    if ended:
        lasted = in_words(transition.time - (incident.opened_at or incident.first_seen))
        lines.append(f"resolved, it lasted {lasted}")
    lines += _affected(finding.nodes, explains, incident.explained_by)
    if incident.observed and not ended:
        lines.append(f"only observed: nothing is done for it (checks.{plain(finding.check)}.observe)")
    if not ended:
        lines += [line for action in planned for line in _intent(action)]
        if finding.remedy in ADVICE:
            lines.append(f"advice: {ADVICE[finding.remedy]}")
        if playbook is not None:
            lines.append(f"runbook: {plain(playbook.name)} (clustertools explain {plain(finding.code)})")
    lines.append(f"look: clustertools show {shlex.quote(plain(incident.key))}")
    said = {"reopened": f"again: {headline}", "worsened": f"worse: {headline}"}.get(kind, headline)
    return Message(
        key=incident.key,
        kind=_kind(kind),
        status=finding.status,
        title=_title("RESOLVED" if ended else finding.status.name, place, said, transition.time, zone),
        lines=_capped(lines),
        evidence=() if ended else tuple(plain(line) for line in finding.evidence[:EVIDENCE_SHOWN]),
        runbook="" if ended or playbook is None else plain_block(playbook.runbook),
        time=transition.time,
        place=place,
        headline=headline,
        joins="" if ended else _joins(incident, explains),
    )


def _joins(incident: Incident, explains: Sequence[Incident]) -> str:
    """The thread of the oldest symptom in the same run: what was told there first is this."""
    subject = incident.finding.subject
    before = [
        i for i in explains
        if subject.run and i.finding.subject == subject and i.opened_at < incident.opened_at
    ]  # fmt: skip
    return min(before, key=lambda i: i.opened_at).key if before else ""


def from_outcome(
    action: Action,
    outcome: Outcome,
    *,
    incident: Incident | None = None,
    zone: datetime.tzinfo | None = None,
) -> Message:
    """The reply in an incident's thread that says what became of an action.

    Its status is the incident's, so that it goes where the incident went; without the incident it is WARNING.
    """
    place = _place(action.target)
    deed = f"{_DEED.get(action.kind, plain(action.kind, 40))} {place}"
    lines = [plain(outcome.detail)] if outcome.detail else []
    if outcome.elapsed_seconds >= 1:
        lines.append(f"took {in_words(outcome.elapsed_seconds)}")
    if not outcome.ok:
        lines.append(f"by hand: {plain(action.preview)}")
    lines.append(f"look: clustertools show {shlex.quote(plain(action.because))}")
    return Message(
        key=action.because,
        kind="outcome",
        status=Status.WARNING if incident is None else incident.finding.status,
        title=_title("DONE" if outcome.ok else "FAILED", deed, "", outcome.time, zone),
        lines=_capped(lines),
        time=outcome.time,
        place=place,
        headline=f"{'done' if outcome.ok else 'failed'}: {_DEED.get(action.kind, plain(action.kind, 40))}",
    )


def from_asking(action: Action, incident: Incident, time: float) -> Message:
    """A reply in an incident's thread: something could be done, and waits for a person's word."""
    deed = f"{_DEED.get(action.kind, plain(action.kind, 40))} {_place(action.target)}"
    status = incident.finding.status
    return note(action.because, status, f"may I {deed}?", time, lines=_intent(action))


def note(key: str, status: Status, text: str, time: float, *, lines: Sequence[str] = ()) -> Message:
    """Something to say that is not a change of an incident: a reminder, a test message."""
    return Message(
        key=key,
        kind="note",
        status=status,
        title=plain(text, _TITLE_CHARACTERS),
        lines=_capped(lines),
        time=time,
        headline=plain(text, 200),
    )


def _kind(text: str) -> Kind:
    for kind in get_args(Kind):
        if kind == text:
            return kind  # type: ignore[no-any-return]
    raise ValueError(f"no such kind of message: {text!r}")


def _title(word: str, place: str, said: str, time: float, zone: datetime.tzinfo | None) -> str:
    clock = datetime.datetime.fromtimestamp(time, datetime.timezone.utc).astimezone(zone).strftime("%H:%M:%S")
    return plain(" · ".join(x for x in (f"{word} {place}", said, clock) if x), _TITLE_CHARACTERS)


def _place(subject: Subject) -> str:
    if subject.node:
        return plain(subject.node, 100)
    who = f"run {subject.run}" if subject.run else f"job {subject.job}" if subject.job else ""
    return plain(who or subject.cluster or "cluster", 100)


def _affected(nodes: Sequence[str], explains: Sequence[Incident], explained_by: str) -> list[str]:
    lines = [f"nodes: {named(nodes)}"] if nodes else []
    for symptom in explains[:4]:
        about = symptom.finding
        lines.append(f"explains: {_place(about.subject)} · {plain(about.summary, 200)} ({plain(about.code)})")
    if len(explains) > 4:
        lines.append(f"explains: {len(explains) - 4} more")
    if explained_by:
        lines.append(f"because of: {plain(explained_by)}")
    return lines


def _intent(action: Action) -> list[str]:
    deed = f"{_DEED.get(action.kind, plain(action.kind, 40))} {_place(action.target)}"
    if not action.blocked:
        return [f"next: {deed}"]
    line = f"not done: {deed} ({plain(action.blocked, 300)})"
    return [line, f"by hand: {plain(action.preview)}"] if action.preview else [line]


def _capped(lines: Sequence[str]) -> tuple[str, ...]:
    cleaned = [plain(line) for line in lines]
    if len(cleaned) <= LINES_SHOWN:
        return tuple(cleaned)
    # the last line says how to look
    return (*cleaned[: LINES_SHOWN - 2], f"{len(cleaned) - LINES_SHOWN + 1} more lines", cleaned[-1])


# many messages as one


def fold_messages(
    messages: Sequence[Message],
    *,
    references: Mapping[str, str] = _NO_REFERENCES,
    at_least: int = FOLD_FROM,
    zone: datetime.tzinfo | None = None,
) -> list[Message]:
    """The messages of one pass with those of the same code and kind told as one.

    `references` maps incident keys to the threads that one sink told them in before: recoveries of separate
    threads stay separate, so that each first message can be edited. Fewer than `at_least` are left alone.
    A folded message takes the place of its first; no message moves ahead of an earlier one of its incident.
    """
    groups: list[list[Message]] = []
    open_groups: dict[tuple[str, ...], int] = {}
    last_place: dict[str, int] = {}
    for message in messages:
        deed = message.headline if message.kind == "outcome" else ""
        alike = (message.code, message.kind, references.get(message.key, ""), deed)
        at = open_groups.get(alike, -1)
        single = message.kind == "note" or len(message.keys) > 1
        if single or at < max(last_place.get(key, 0) for key in message.keys):
            at = len(groups)
            groups.append([])
            if not single:
                open_groups[alike] = at
        groups[at].append(message)
        last_place.update(dict.fromkeys(message.keys, at))
    folded: list[Message] = []
    for group in groups:
        folded += [_fold(group, zone)] if len(group) >= max(2, at_least) else group
    return folded


def _fold(group: Sequence[Message], zone: datetime.tzinfo | None) -> Message:
    first, status, time = group[0], worst(m.status for m in group), max(m.time for m in group)
    places = list(dict.fromkeys(m.place for m in group))
    keys = tuple(dict.fromkeys(key for m in group for key in m.keys))
    headlines = {m.headline for m in group}
    what = first.headline if len(headlines) == 1 else plain(first.code)
    what = {"reopened": f"again: {what}", "worsened": f"worse: {what}"}.get(first.kind, what)
    who = f"{len(places)} nodes" if not any(p.startswith("run ") for p in places) else f"{len(places)} places"
    if len(places) != len(keys):
        who = f"{len(keys)} incidents on {who if len(places) > 1 else places[0]}"
    word = "RESOLVED" if first.kind == "resolved" else status.name
    if first.kind == "outcome":
        word, _, deed = first.headline.partition(": ")
        who, what = f"{deed} {who}", ""
    lines = [named(places)]
    if len(headlines) > 1:
        lines.append(f"for example {first.place}: {first.headline}")
    lines += _common(group)
    return dataclasses.replace(
        first,
        status=status,
        title=_title(word.upper(), who, what, time, zone),
        lines=_capped(
            [*lines, f"look: clustertools show {shlex.quote(plain(first.key))} · clustertools status"]
        ),
        evidence=tuple(plain(f"{m.place}: {m.evidence[0]}") for m in group[:3] if m.evidence),
        time=time,
        place=who,
        keys=keys,
    )


def one_end(messages: Sequence[Message]) -> list[Message]:
    """The messages, with ends of one place that say the same told as one: it had several names."""
    kept: list[Message] = []
    first: dict[tuple[str, str], int] = {}
    for message in messages:
        alike = (message.place, message.headline)
        if message.kind == "resolved" and alike in first:
            known = kept[first[alike]]
            kept[first[alike]] = dataclasses.replace(
                known, keys=(*known.keys, *message.keys), status=max(known.status, message.status)
            )
            continue
        if message.kind == "resolved":
            first[alike] = len(kept)
        kept.append(message)
    return kept


def of_the_day(messages: Sequence[Message], *, zone: datetime.tzinfo | None = None) -> list[Message]:
    """What could wait for the summary of the day, as one message."""
    if len(messages) < 2:
        return list(messages)
    first, last = messages[0], f"look: clustertools show {shlex.quote(plain(messages[0].key))}"
    status, time = worst(m.status for m in messages), max(m.time for m in messages)
    lines = [f"{m.place}: {m.headline} ({plain(m.code)})" for m in messages]
    return [
        dataclasses.replace(
            first,
            status=status,
            title=_title(status.name, "summary of the day", f"{len(messages)} things to look at", time, zone),
            lines=_capped([*lines, f"{last} · clustertools status"]),
            evidence=(),
            runbook="",
            time=time,
            keys=tuple(dict.fromkeys(key for m in messages for key in m.keys)),
        )
    ]


def of_thread(message: Message, *, zone: datetime.tzinfo | None = None) -> Message | None:
    """What the first message of its thread says from now on, when the thread is about more than this message.

    That is the message itself where it is about all of them, or where the thread is about one run whose
    trouble has had several names; then None for the end of one of them: what was told last still holds.
    """
    every = message.together
    if not set(every) - set(message.keys):
        return message
    if len({key.partition(":")[2] for key in every}) == 1:
        return None if message.kind == "resolved" and message.left_open else message
    count, is_over = len(every), not message.left_open
    who = f"all {count}" if is_over else f"{message.left_open} of {count}"
    if message.left_open == count:
        who = str(count)
    word = "RESOLVED" if is_over else message.status.name
    first, last = every[0], f"look: clustertools show {shlex.quote(plain(every[0]))} · clustertools status"
    state = "all are resolved" if is_over else f"{message.left_open} of {count} are open"
    return dataclasses.replace(
        message,
        kind="resolved" if is_over else "note" if message.kind == "resolved" else message.kind,
        key=first,
        title=_title(word, f"{who} {plain(message.code)}", message.headline, message.time, zone),
        lines=_capped([state, named(every), last]),
        evidence=() if is_over else message.evidence,
        runbook="" if is_over else message.runbook,
    )


def _common(group: Sequence[Message]) -> list[str]:
    """The lines that messages share, told once: "each node" for a name, a count where not all agree."""
    counts: dict[str, int] = {}
    for message in group:
        name = re.compile(rf"(?<![\w.-]){re.escape(message.place)}(?![\w-])")
        lines = [name.sub("each node", line) for line in message.lines if not line.startswith("look: ")]
        for line in dict.fromkeys(lines):
            counts[line] = counts.get(line, 0) + 1
    often = [(line, n) for line, n in counts.items() if n > 1]
    return [line if n == len(group) else f"{line} ({n} of {len(group)})" for line, n in often]
