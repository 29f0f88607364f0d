"""What stands of the kernel's events: one group for each kind and part, however many lines there were.

    followed = follow(ctx.host, ctx.past, RULES, ctx.limits)
    ctx.remember.update(followed.memory)
    for group in followed.groups: ...

A check gives the rules for the kinds that it judges; each has its own place in the log and its own memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clustertools.host import Host
from clustertools.model import Remedy, Status, from_data, to_data
from clustertools.sources.kernel import KernelLine, KernelLog, read_kernel_log
from clustertools.sources.kernel_events import HostEvent, Kind, parse_host_event
from clustertools.text import in_words

LINE_CHARACTERS = 300
#: More parts than any node has; a flood of invented names must not fill the memory.
MOST_GROUPS = 128
MOST_NAMES = 8


@dataclass(frozen=True)
class Rule:
    """What an event of one kind means.

    `limit` names the field of the check's limits that says how long it counts; "reboot": until the next boot.
    `part` is the prefix of the part's name, empty for the whole node. Fewer than `least` lines say nothing.
    `ends` is the kind of event that takes it back. With `only_after_end` it counts only where that one came
    before on this boot: a port that never had a cable is not one that lost it.
    """

    code: str
    status: Status
    remedy: Remedy
    limit: str
    meaning: str
    part: str = ""
    least: int = 1
    ends: Kind | None = None
    only_after_end: bool = False


Rules = Mapping[Kind, Rule]


@dataclass
class Group:
    """The events of one kind on one part that still count."""

    kind: str
    part: str
    last_time: float
    count: int = 0
    names: list[str] = field(default_factory=list)
    last_pid: int = -1
    first_lines: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)
    first_time: float = 0.0

    def keep_line(self, line: str, keep: int) -> None:
        """Hold `keep` lines of evidence, the first and the last ones."""
        line = line[:LINE_CHARACTERS]
        if len(self.first_lines) < (keep + 1) // 2:
            self.first_lines.append(line)
        else:
            self.last_lines = [*self.last_lines, line][-max(1, keep // 2) :]

    @property
    def evidence(self) -> tuple[str, ...]:
        return (*self.first_lines, *self.last_lines)

    def summary(self, rule: Rule) -> str:
        """What happened, to whom, and how often."""
        names = f": {', '.join(self.names)}" if self.names and not rule.part else ""
        seconds = self.last_time - (self.first_time or self.last_time)
        within = f" in {in_words(seconds)}" if seconds >= 1 else ""
        often = f", {self.count} times{within}" if self.count > 1 else ""
        return f"{rule.meaning}{names}{often}"


@dataclass(frozen=True)
class Followed:
    """The groups that count now, the log since the last look, and what to remember for the next one."""

    groups: tuple[Group, ...]
    log: KernelLog
    memory: Mapping[str, Any]


def follow(host: Host, past: Mapping[str, Any], rules: Rules, limits: Any) -> Followed:
    """What stands at this moment of the events that `rules` knows.

    `past` is the memory of the last look; of another boot, or one that makes no sense, it is as none.
    `limits` has `evidence_lines` and the fields that the rules name. Raises Unobservable as
    `read_kernel_log` does.
    """
    cursor, standing, ended = _remembered(host, past, rules)
    log = read_kernel_log(host, cursor)
    groups = {(g.kind, g.part): g for g in standing}
    _fold(groups, ended, log.lines, rules, int(limits.evidence_lines))
    now = host.now()
    kept = sorted((g for g in groups.values() if _counts(g, rules, limits, now)), key=lambda g: -g.last_time)[
        :MOST_GROUPS
    ]
    memory = {
        "cursor": log.cursor, "boot_id": host.boot_id, "standing": [to_data(g) for g in kept],
        "ended": sorted(ended)[:MOST_GROUPS],
    }  # fmt: skip
    shown = [g for g in kept if g.count >= rules[g.kind].least]  # type: ignore[index]
    return Followed(tuple(sorted(shown, key=lambda g: (g.kind, g.part))), log, memory)


def _counts(group: Group, rules: Rules, limits: Any, now: float) -> bool:
    limit = rules[group.kind].limit  # type: ignore[index]
    return limit == "reboot" or now - group.last_time <= float(getattr(limits, limit))


def _fold(
    groups: dict[tuple[str, str], Group],
    ended: set[str],
    lines: Iterable[KernelLine],
    rules: Rules,
    keep: int,
) -> None:
    by_end: dict[str, list[Kind]] = {}
    for kind, rule in rules.items():
        if rule.ends:
            by_end.setdefault(rule.ends, []).append(kind)
    for line in lines:
        event = parse_host_event(line.text)
        if event is None:
            continue
        for kind in by_end.get(event.kind, ()):
            part = part_of(rules[kind], event)
            groups.pop((kind, part), None)
            ended.add(f"{kind} {part}")
        found = rules.get(event.kind)
        if found is None:
            continue
        part = part_of(found, event)
        if found.only_after_end and f"{event.kind} {part}" not in ended:
            continue
        group = groups.setdefault((event.kind, part), Group(event.kind, part, line.time))
        _add(group, line, event, keep)


def _add(group: Group, line: KernelLine, event: HostEvent, keep: int) -> None:
    # one kill is told in two lines: "oom-kill:constraint=..." and "Killed process ..."
    if event.kind != "oom-kill" or event.pid != group.last_pid:
        group.count += 1
    group.last_pid = event.pid if event.pid is not None else -1
    group.first_time = group.first_time or line.time
    group.last_time = max(group.last_time, line.time)
    name = f"{event.what} of job {event.job}" if event.job else event.what
    if name and not any(n.startswith(name) for n in group.names) and len(group.names) < MOST_NAMES:
        group.names.append(name)
    group.keep_line(line.text, keep)


def part_of(rule: Rule, event: HostEvent) -> str:
    """The part that an event is about; empty for the whole node."""
    # a name out of a log becomes part of a key: only plain characters
    return f"{rule.part}{re.sub(r'[^A-Za-z0-9_.:-]', '_', event.what)[:64]}" if rule.part else ""


def _remembered(host: Host, past: Mapping[str, Any], rules: Rules) -> tuple[str, list[Group], set[str]]:
    if past.get("boot_id") != host.boot_id or not isinstance(past.get("cursor"), str):
        return "", [], set()
    try:
        standing = [from_data(Group, g) for g in past.get("standing", [])]
        ended = {str(key) for key in past.get("ended", [])}
    except (KeyError, TypeError, ValueError):
        return "", [], set()
    return past["cursor"], [g for g in standing if g.kind in rules], ended
