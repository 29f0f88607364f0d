"""What happened, as lines for a person: status, one incident, a timeline, checkpoints. Pure.

Names, summaries and evidence come from logs and nodes: each goes through `plain` before it meets a terminal.
"""

from __future__ import annotations

import datetime
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clustertools.model import Attempt, Incident, Playbook, Status, Transition, worst
from clustertools.text import in_words, plain

_COLOURS = {"CRITICAL": "1;31", "WARNING": "33", "UNKNOWN": "35", "OK": "32", "good": "32"}
#: This many open incidents of one code are one line, with their nodes folded.
FOLD_FROM = 3
#: A watchdog that ended no pass for so long is not watching: cron lines are at most this far apart.
STALE_SECONDS = 900.0


def paint(text: str, word: str, color: bool) -> str:
    """`text` in the colour of a status word."""
    code = _COLOURS.get(word, "")
    return f"\x1b[{code}m{text}\x1b[0m" if color and code else text


def clock(at: float, now: float | None = None) -> str:
    """A time of day, with the date when it is not that of `now` (default: today)."""
    moment = datetime.datetime.fromtimestamp(at)
    today = datetime.date.today() if now is None else datetime.datetime.fromtimestamp(now).date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def since_start(seconds: float) -> str:
    """A time since a start: `2m11s`, `1h05m00s`, `-10m00s`."""
    sign, whole = "-" if seconds < 0 else "", round(abs(seconds))
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{sign}{hours}h{rest // 60:02d}m{rest % 60:02d}s"
    return f"{sign}{rest // 60}m{rest % 60:02d}s"


def wrapped(text: str, indent: str, width: int | None) -> list[str]:
    """`text` behind `indent`, in lines of at most `width` columns; one line when there is no width.

    A key or a command is never broken: it is there to be copied.
    """
    if not width:
        return [indent + text]
    room = max(20, width - len(indent))
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return [indent + line for line in lines] or [indent.rstrip()]


@dataclass(frozen=True)
class Watched:
    """What one store tells about now. `name` is the run's, "" for the watchdog of this machine.

    `blind` holds what nobody could see on the last pass. `due` says whether somebody ought to be watching:
    a run that has ended needs no watchdog.
    """

    name: str
    incidents: Sequence[Incident]
    silenced: frozenset[str] = frozenset()
    beat: Mapping[str, Any] = field(default_factory=dict)
    paused: str = ""
    paused_until: float = 0.0
    silences: Sequence[Any] = ()
    due: bool = True

    @property
    def blind(self) -> tuple[str, ...]:
        return tuple(str(why) for why in self.beat.get("blind", ()))

    def stale(self, now: float) -> str:
        """Why what is shown may be old; empty when it is not."""
        if not self.beat:
            return "no pass has ended yet"
        age = now - float(self.beat["at"])
        if self.due and age > STALE_SECONDS:
            return f"nobody looked for {in_words(age)}: is the watchdog running?"
        return ""

    def status(self, now: float) -> Status:
        """The worst of what is open and not silenced. What nobody could see is UNKNOWN, never OK."""
        found = [i.finding.status for i in self.incidents if i.state == "open" and i.key not in self.silenced]
        unseen = self.due and bool(self.blind or self.stale(now))
        return worst([*found, Status.UNKNOWN] if unseen else found)


def status_lines(seen: Watched, now: float, color: bool, width: int | None = None) -> Iterator[str]:
    """One store: when it last looked, what it could not see, and its incidents, the worst first."""
    title = f"run {plain(seen.name)}" if seen.name else "this machine"
    stale = seen.stale(now)
    if seen.beat:
        said = f"last pass {in_words(now - float(seen.beat['at']))} ago"
        if seen.blind:
            at = float(seen.beat.get("seen", 0.0))
            said += f"; everything was seen {in_words(now - at)} ago" if at else "; it never saw everything"
        yield f"{title}: {said}"
    else:
        yield f"{title}:"
    for why in (stale, *seen.blind):
        if why and seen.due:
            yield from _marked("UNKNOWN", plain(why), color, width)
    if seen.paused:
        until = f" until {clock(seen.paused_until, now)}" if seen.paused_until else ""
        yield from wrapped(f"paused{until}, nothing is done: {plain(seen.paused)}", "  ", width)
    for silence in seen.silences:
        text = f"silent about {plain(silence.pattern)} until {clock(silence.until, now)}: "
        yield from wrapped(text + f"{plain(silence.why)} ({plain(silence.by)})", "  ", width)
    ordered = sorted(seen.incidents, key=lambda i: (i.state != "open", -i.finding.status, i.first_seen))
    for group in _alike(ordered, seen.silenced):
        yield from _incident(group, seen, now, color, width)
    if not any(i.state == "open" for i in ordered):
        yield f"  {paint('OK', 'OK', color)} no open incident" if not (stale and seen.due) else ""


def _marked(word: str, text: str, color: bool, width: int | None) -> Iterator[str]:
    first, *rest = wrapped(text, " " * 11, width)
    yield f"  {paint(word, word, color)}{first[2 + len(word) :]}"
    yield from rest


def _alike(ordered: Iterable[Incident], silenced: frozenset[str]) -> list[list[Incident]]:
    """Incidents in groups of the same code, where there are many of them and no mark tells them apart."""
    groups: dict[Any, list[Incident]] = {}
    for i in ordered:
        about = i.finding
        single = i.acknowledged_by or i.explained_by or i.key in silenced or not about.subject.node
        alike = i.key if single else (i.state, about.status, about.code)
        groups.setdefault(alike, []).append(i)
    return [part for g in groups.values() for part in ([g] if len(g) >= FOLD_FROM else [[i] for i in g])]


def _incident(
    group: Sequence[Incident], seen: Watched, now: float, color: bool, width: int | None
) -> Iterator[str]:
    incident = group[0]
    finding = incident.finding
    word = finding.status.name if incident.state == "open" else incident.state
    since = in_words(now - min(i.opened_at or i.first_seen for i in group))
    if len(group) == 1:
        head = f"{plain(incident.key)}  {since}"
    else:
        head = f"{plain(finding.code)}  {_nodes(group)}  {len(group)} times, {since}"
    first, *rest = wrapped(head, " " * 11, width)
    yield f"  {paint(word, word, color)}{' ' * max(1, 9 - len(word))}{first[11:]}"
    yield from rest
    yield from wrapped(plain(finding.summary), " " * 11, width)
    marks = []
    if incident.acknowledged_until > now:
        marks.append(
            f"{plain(incident.acknowledged_by)} has it until {clock(incident.acknowledged_until, now)}"
        )
    if incident.explained_by:
        marks.append(f"because of {plain(incident.explained_by)}")
    if incident.observed:
        marks.append("only observed")
    if incident.key in seen.silenced:
        marks.append("silenced")
    if len(group) > 1:
        marks.append(f"for example {plain(incident.key)}")
    for mark in marks:
        yield from wrapped(f"[{mark}]", " " * 11, width)


def _nodes(group: Sequence[Incident]) -> str:
    """The nodes of some incidents as a node set: gpu-[001-031]."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException  # costs 30 ms, and few need it

    names = sorted({plain(i.finding.subject.node, 100) for i in group})
    try:
        return str(NodeSet.fromlist(names))
    except NodeSetException:
        return ",".join(names)  # a name that means something to a node set


#: Rows of the audit trail that are no actions: marks that people made.
MARKS = frozenset({"ack", "approve", "false-alarm", "pause", "resolve", "silence", "true-alarm", "unpause"})


def incident_lines(
    incident: Incident,
    rows: Sequence[Any],
    book: Playbook | None,
    now: float,
    color: bool,
    width: int | None = None,
) -> Iterator[str]:
    """One incident whole: `rows` are the store's actions of it, the marks of people among them."""
    finding = incident.finding
    word = finding.status.name
    yield f"{paint(word, word, color)} {plain(incident.key)}"
    yield from wrapped(plain(finding.summary), "  ", width)
    often = "once" if incident.count == 1 else f"{incident.count} times"
    seen = f"first seen {clock(incident.first_seen, now)}, last {clock(incident.last_seen, now)}"
    yield from wrapped(f"{incident.state}; {seen}, reported {often}", "  ", width)
    yield from wrapped(f"ends by {_ending(finding.clears)}; advice: {finding.remedy.value}", "  ", width)
    if incident.observed:
        yield f"  only observed: nothing is done for it (checks.{plain(finding.check)}.observe)"
    if incident.explained_by:
        yield f"  because of {plain(incident.explained_by)}"
    if incident.acknowledged_until > now:
        yield f"  {plain(incident.acknowledged_by)} has it until {clock(incident.acknowledged_until, now)}"
    if finding.nodes:
        yield from wrapped(f"nodes: {', '.join(plain(n, 100) for n in finding.nodes)}", "  ", width)
    if finding.evidence:
        yield "evidence"
        for line in finding.evidence:
            # as it was written: a line of a log is compared with the log
            yield f"  | {plain(line)}"
    marks = [row for row in rows if row.action.kind in MARKS]
    done = [row for row in rows if row.action.kind not in MARKS]
    for title, some in (("actions", done), ("people", marks)):
        if some:
            yield title
        for row in some:
            yield from _row(row, now, width)
    if book:
        yield f"runbook {book.name}"
        for item in _items(book.runbook) if width else book.runbook.splitlines():
            yield from (line.rstrip() for line in wrapped(item, "  ", width))


# "Look at: ", "By itself (mode act): ": where a new item of a runbook begins
_ITEM = re.compile(r"[A-Z][\w ()]{1,24}: ")


def _items(runbook: str) -> list[str]:
    """The paragraphs and items of a runbook, each as one long line, to be wrapped anew."""
    items: list[str] = []
    for line in runbook.splitlines():
        begins = not line.strip() or not items or not items[-1] or _ITEM.match(line)
        if begins:
            items.append(line.strip())
        else:
            items[-1] += f" {line.strip()}"
    return items


def _row(row: Any, now: float, width: int | None) -> Iterator[str]:
    """An action: what, how far, by whose leave, the command, and each step that was taken."""
    action = row.action
    if action.kind not in MARKS:
        why = f": {plain(action.blocked)}" if row.state == "blocked" else ""
        leave = f", approved by {plain(row.approved_by)}" if row.approved_by else ""
        yield from wrapped(f"{action.kind} {plain(str(action.target))}: {row.state}{leave}{why}", "  ", width)
        yield from wrapped(f"{'would run' if why else 'runs'}: {plain(action.preview)}", "    ", width)
    for at, said in _history(row):
        indent = "  " if action.kind in MARKS else "    "
        yield from wrapped(f"{clock(at, now)} {plain(said)}", indent, width)
    if row.outcome is not None and not row.outcome.ok:
        yield from wrapped(f"failed: {plain(row.outcome.detail)}", "    ", width)


def _ending(clears: str | float) -> str:
    return clears if isinstance(clears, str) else f"{in_words(float(clears))} without a repeat"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `subjects` are the runs and nodes that it concerns."""

    time: float
    kind: str
    text: str
    status: str = ""
    subjects: tuple[str, ...] = ()

    def lines(self, now: float, color: bool = False, width: int | None = None) -> list[str]:
        """The event as text; what does not fit into `width` columns goes on under its beginning."""
        start = f"{clock(self.time, now)}  {self.kind:<9} "
        body = wrapped(plain(self.text), "", width and width - len(start))
        return [
            f"{' ' * len(start) if number else start}{paint(text, self.status, color)}"
            for number, text in enumerate(body)
        ]


def events(
    transitions: Iterable[Transition], rows: Iterable[Any], attempts: Iterable[Attempt], since: float
) -> list[Event]:
    """Everything that the store knows happened, in order of time. `rows` are the store's actions."""
    found: list[Event] = []
    for t in transitions:
        finding = t.incident.finding
        word = "OK" if t.kind == "resolved" else finding.status.name
        about = (finding.subject.run, finding.subject.node, *finding.nodes)
        by = f" [because of {t.incident.explained_by}]" if t.incident.explained_by else ""
        text = f"{finding.status.name} {finding.code} {finding.subject}: {finding.summary}{by}"
        found.append(Event(t.time, t.kind, text, word, about))
    for row in rows:
        about = (row.action.target.run, row.action.target.node)
        if row.state == "blocked":
            text = f"would {row.action.kind} {row.action.target}: {row.action.blocked}"
            found.append(Event(row.time, "blocked", text, "", about))
        found += [Event(at, row.action.kind, said, "", about) for at, said in _history(row)]
        if row.outcome is not None and not row.outcome.ok:
            text = f"{row.action.kind} failed: {row.outcome.detail}"
            found.append(Event(row.outcome.time, "failed", text, "CRITICAL", about))
    for a in attempts:
        begin = f"attempt {a.number}" + (
            f" from step {a.resume_step} ({a.resume_path})" if a.resume_path else ""
        )
        found.append(Event(a.started_at, "start", begin, "", (a.run,)))
        if a.end:
            reached = "no step" if a.last_step is None else f"step {a.last_step}"
            found.append(Event(a.ended_at, "end", f"attempt {a.number} at {reached}: {a.end}", "", (a.run,)))
    return sorted((e for e in found if e.time >= since), key=lambda e: e.time)


def _history(row: Any) -> list[tuple[float, str]]:
    """The steps of an action as (time, sentence), without the one that says again how it failed."""
    failure = row.outcome.detail if row.outcome is not None and not row.outcome.ok else None
    return [(float(at), str(said)) for at, said in row.detail.get("history", ()) if said != failure]


def checkpoint_line(report: Any, is_last_good: bool, color: bool) -> str:
    """`report` is a CheckpointReport."""
    word = "good" if report.verdict == "good" else "CRITICAL"
    step = "" if report.step is None else f"step {report.step}, "
    mark = "  <- last good" if is_last_good else ""
    size = f"{report.size_bytes / 1e6:,.1f} MB"
    reason = f": {report.reason}" if report.reason else ""
    text = plain(f"{report.path}  ({step}{size}){reason}{mark}")
    return f"{paint(f'{report.verdict:<11}', word, color)} {text}"
