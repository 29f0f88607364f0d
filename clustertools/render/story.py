"""What happened, as lines for a person: status, one incident, a timeline, checkpoints. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clustertools.model import Attempt, Incident, Playbook, Transition, Verdict

_COLOURS = {"CRITICAL": "1;31", "WARNING": "33", "UNKNOWN": "35", "OK": "32", "good": "32"}


def paint(text: str, word: str, color: bool) -> str:
    """`text` in the colour of a status word."""
    code = _COLOURS.get(word, "")
    return f"\x1b[{code}m{text}\x1b[0m" if color and code else text


def clock(at: float) -> str:
    """A time of day, with the date when it is not today."""
    moment = datetime.datetime.fromtimestamp(at)
    today = moment.date() == datetime.date.today()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def ago(seconds: float) -> str:
    """A duration in the largest unit that fits: 40 s, 12 min, 3.5 h, 2.1 d."""
    for size, unit in ((86400.0, "d"), (3600.0, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def since_start(seconds: float) -> str:
    """A time since a start: `2m11s`, `1h05m00s`, `-10m00s`."""
    sign, whole = "-" if seconds < 0 else "", round(abs(seconds))
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{sign}{hours}h{rest // 60:02d}m{rest % 60:02d}s"
    return f"{sign}{rest // 60}m{rest % 60:02d}s"


def status_lines(
    name: str,
    shown: Iterable[Incident],
    verdicts: Sequence[Verdict],
    beat: Mapping[str, Any],
    pause: Mapping[str, Any],
    now: float,
    color: bool,
) -> Iterator[str]:
    """One store: when it last looked, what it could not see, and its incidents, the worst first."""
    title = f"run {name}" if name else "cluster"
    if not beat:
        yield f"{title}: no pass has ended yet"
    else:
        age = now - float(beat["at"])
        looked = f"{len(verdicts)} verdicts, last pass {ago(age)} ago"
        yield f"{title}: {looked}"
    for why in beat.get("blind", ()):
        yield f"  {paint('UNKNOWN', 'UNKNOWN', color)} {why}"
    if float(pause.get("until", 0)) > now:
        yield f"  paused until {clock(float(pause['until']))}: {pause.get('why', '')}"
    ordered = sorted(shown, key=lambda i: (i.state != "open", -i.finding.status, i.first_seen))
    for incident in ordered:
        word = incident.finding.status.name if incident.state == "open" else incident.state
        marks = f" [{incident.acknowledged_by} has it]" if incident.acknowledged_until > now else ""
        marks += f" [because of {incident.explained_by}]" if incident.explained_by else ""
        since = ago(now - (incident.opened_at or incident.first_seen))
        yield f"  {paint(word, word, color)} {incident.key}  {incident.finding.summary}  ({since}){marks}"
    if not ordered:
        yield f"  {paint('OK', 'OK', color)} no open incident"


def incident_lines(
    incident: Incident, rows: Sequence[Any], book: Playbook | None, now: float, color: bool
) -> Iterator[str]:
    """One incident whole: `rows` are the store's actions of it."""
    finding = incident.finding
    word = finding.status.name
    yield f"{paint(word, word, color)} {incident.key}"
    yield f"  {finding.summary}"
    yield (
        f"  {incident.state}; first seen {clock(incident.first_seen)}, last {clock(incident.last_seen)}, "
        f"{incident.count} times; ends by {_ending(finding.clears)}; advice: {finding.remedy.value}"
    )
    if incident.acknowledged_until > now:
        yield f"  {incident.acknowledged_by} has it until {clock(incident.acknowledged_until)}"
    if finding.evidence:
        yield "evidence"
        for line in finding.evidence:
            yield f"  | {line}"
    if rows:
        yield "actions"
    for row in rows:
        yield f"  {row.action.kind} {row.action.target}: {row.state} {row.action.blocked}".rstrip()
        yield f"    would run: {row.action.preview}" if row.action.blocked else f"    {row.action.preview}"
        for at, said in row.detail.get("history", ()):
            yield f"    {clock(at)} {said}"
    if book:
        yield f"runbook {book.name}"
        for line in book.runbook.splitlines():
            yield f"  {line}".rstrip()


def _ending(clears: str | float) -> str:
    return clears if isinstance(clears, str) else f"{ago(float(clears))} without a repeat"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `subjects` are the runs and nodes that it concerns."""

    time: float
    kind: str
    text: str
    status: str = ""
    subjects: tuple[str, ...] = ()

    def line(self, color: bool = False) -> str:
        text = paint(self.text, self.status, color)
        return f"{clock(self.time)}  {self.kind:<9} {text}"


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
        text = f"{finding.status.name} {finding.code}: {finding.summary}{by}"
        found.append(Event(t.time, t.kind, text, word, about))
    for row in rows:
        about = (row.action.target.run, row.action.target.node)
        if row.state == "blocked":
            text = f"would {row.action.kind} {row.action.target}: {row.action.blocked}"
            found.append(Event(row.time, "blocked", text, "", about))
        for at, said in row.detail.get("history", ()):
            found.append(Event(at, row.action.kind, said, "", about))
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


def checkpoint_line(report: Any, is_last_good: bool, color: bool) -> str:
    """`report` is a CheckpointReport."""
    word = "good" if report.verdict == "good" else "CRITICAL"
    step = "" if report.step is None else f"step {report.step}, "
    mark = "  <- last good" if is_last_good else ""
    size = f"{report.size_bytes / 1e6:,.1f} MB"
    reason = f": {report.reason}" if report.reason else ""
    return f"{paint(f'{report.verdict:<11}', word, color)} {report.path}  ({step}{size}){reason}{mark}"
